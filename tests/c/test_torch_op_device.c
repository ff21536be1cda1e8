/* The device of an op, on a pretended torch: which kernel runs, on which stream, with
 * which device current, and that nothing is left behind when it fails. law: 10 */
#include "torch/torch_op.c"
#include "torch/torch_op_args.c"
#include "torch/torch_ops_spmm.c"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            printf("%s:%d: %s; %s\n", __FILE__, __LINE__, #condition, text);           \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

enum { CPU_TYPE, CUDA_TYPE };

struct AtenTensorOpaque {
    int32_t dtype, device_type, device_index;
    int64_t dim, size[2], stride[2];
    void *data, *owned;
};
struct CUDAGuardOpaque {
    int device;
};
struct torch_abi torch_abi;

static int n_tensors;                       // alive
static struct CUDAGuardOpaque guard = {-1}; // the current device
static jmp_buf raised;
static char text[512];

/* ------------------------------------------------------------------- the pretended torch */

#define DTYPE_CODE(name, code)                                                         \
    static int32_t name(void) {                                                        \
        return code;                                                                   \
    }
DTYPE_CODE(code_f32, 6)
DTYPE_CODE(code_f64, 7)
DTYPE_CODE(code_bf16, 15)
DTYPE_CODE(code_f16, 5)
DTYPE_CODE(code_i32, 3)
DTYPE_CODE(code_i64, 4)
DTYPE_CODE(code_i8, 1)
DTYPE_CODE(code_i16, 2)
DTYPE_CODE(code_u8, 0)
DTYPE_CODE(type_cuda, CUDA_TYPE)

static AtenTensorHandle tensor(int32_t dtype, int32_t device, int64_t n,
                               int64_t columns, void *data) {
    AtenTensorHandle t = calloc(1, sizeof *t);
    *t = (struct AtenTensorOpaque){.dtype = dtype,
                                   .device_type = device < 0 ? CPU_TYPE : CUDA_TYPE,
                                   .device_index = device,
                                   .dim = columns < 0 ? 1 : 2,
                                   .size = {n, columns},
                                   .stride = {columns < 0 ? 1 : columns, 1},
                                   .data = data};
    n_tensors++;
    return t;
}

static AOTITorchError get_dtype(AtenTensorHandle t, int32_t *out) {
    *out = t->dtype;
    return 0;
}
static AOTITorchError get_device_type(AtenTensorHandle t, int32_t *out) {
    *out = t->device_type;
    return 0;
}
static AOTITorchError get_device_index(AtenTensorHandle t, int32_t *out) {
    *out = t->device_index;
    return 0;
}
static AOTITorchError get_dim(AtenTensorHandle t, int64_t *out) {
    *out = t->dim;
    return 0;
}
static AOTITorchError get_sizes(AtenTensorHandle t, int64_t **out) {
    *out = t->size;
    return 0;
}
static AOTITorchError get_strides(AtenTensorHandle t, int64_t **out) {
    *out = t->stride;
    return 0;
}
static AOTITorchError get_const(AtenTensorHandle t, const void **out) {
    *out = t->data;
    return 0;
}
static AOTITorchError get_mutable(AtenTensorHandle t, void **out) {
    *out = t->data;
    return 0;
}
static AOTITorchError empty_strided(int64_t dim, const int64_t *size,
                                    const int64_t *stride, int32_t dtype, int32_t type,
                                    int32_t index, AtenTensorHandle *out) {
    (void)stride;
    *out = tensor(dtype, type == CPU_TYPE ? -1 : index, size[0],
                  dim == 2 ? size[1] : -1, NULL);
    (*out)->data = (*out)->owned = calloc(1024, 1);
    return 0;
}
static AOTITorchError delete_tensor(AtenTensorHandle t) {
    free(t->owned);
    free(t);
    n_tensors--;
    return 0;
}
static bool grad_mode(void) {
    return true;
}
static void set_grad_mode(bool on) {
    (void)on;
}
static void check_condition(bool condition, const char *function, const char *file,
                            uint32_t line, const char *message) {
    (void)function, (void)file, (void)line;
    if (!condition) { // torch throws
        snprintf(text, sizeof text, "%s", message);
        longjmp(raised, 1);
    }
}
static AOTITorchError create_guard(int32_t device, CUDAGuardHandle *out) {
    CHECK(guard.device == -1);
    guard.device = device;
    *out = &guard;
    return 0;
}
static AOTITorchError delete_guard(CUDAGuardHandle g) {
    CHECK(g->device != -1);
    g->device = -1;
    return 0;
}
static AOTITorchError current_stream(int32_t device, void **out) {
    *out = (void *)(uintptr_t)(0x5000 + device);
    return 0;
}

static void pretend(void) {
    memset(&torch_abi, 0, sizeof torch_abi);
    torch_abi.aoti_torch_dtype_float32 = code_f32;
    torch_abi.aoti_torch_dtype_float64 = code_f64;
    torch_abi.aoti_torch_dtype_bfloat16 = code_bf16;
    torch_abi.aoti_torch_dtype_float16 = code_f16;
    torch_abi.aoti_torch_dtype_int32 = code_i32;
    torch_abi.aoti_torch_dtype_int64 = code_i64;
    torch_abi.aoti_torch_dtype_int8 = code_i8;
    torch_abi.aoti_torch_dtype_int16 = code_i16;
    torch_abi.aoti_torch_dtype_uint8 = code_u8;
    torch_abi.aoti_torch_device_type_cuda = type_cuda;
    torch_abi.aoti_torch_get_dtype = get_dtype;
    torch_abi.aoti_torch_get_device_type = get_device_type;
    torch_abi.aoti_torch_get_device_index = get_device_index;
    torch_abi.aoti_torch_get_dim = get_dim;
    torch_abi.aoti_torch_get_sizes = get_sizes;
    torch_abi.aoti_torch_get_strides = get_strides;
    torch_abi.torch_get_const_data_ptr = get_const;
    torch_abi.torch_get_mutable_data_ptr = get_mutable;
    torch_abi.aoti_torch_empty_strided = empty_strided;
    torch_abi.aoti_torch_delete_tensor_object = delete_tensor;
    torch_abi.aoti_torch_grad_mode_is_enabled = grad_mode;
    torch_abi.aoti_torch_grad_mode_set_enabled = set_grad_mode;
    torch_abi.aoti_torch_check = check_condition;
    torch_abi.aoti_torch_create_cuda_guard = create_guard;
    torch_abi.aoti_torch_delete_cuda_guard = delete_guard;
    torch_abi.aoti_torch_get_current_cuda_stream = current_stream;
    read_dtype_codes();
}

/* ------------------------------------------------------------------ the pretended kernels */

static struct {
    int calls, device;
    uint64_t stream;
    gnn_csr a;
    const void *scratch;
    gnn_status answer;
} launched;

int64_t gnn_spmm_cuda_scratch(const gnn_csr *a, int64_t n_features, gnn_dtype dtype) {
    return a->n_split * n_features * gnn_dtype_size(dtype);
}
gnn_status gnn_spmm_cuda(const gnn_spmm_args *args, uint64_t stream) {
    launched.calls++;
    launched.device = guard.device;
    launched.stream = stream;
    launched.a = args->a;
    launched.scratch = args->scratch;
    return launched.answer ? gnn_fail(launched.answer, "launch refused") : GNN_OK;
}
gnn_status gnn_sddmm_cuda(const gnn_sddmm_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return GNN_OK;
}

/* ------------------------------------------------------------------------------- tests */

static int64_t rowptr[] = {0, 2, 2, 1, 0}; // two rows, and one pair behind
static int32_t col[] = {0, 1};
static float x[] = {1, 2, 3, 4};
static float weight[] = {1, 10};

/* y = spmm of a 2 x 2 graph with x, the graph and the weight on these devices; NULL with
 * the text of the exception in `text`. -1 is the CPU. */
static AtenTensorHandle run(int of_x, int of_weight, int of_graph, int64_t behind) {
    AtenTensorHandle in[] = {tensor(6, of_x, 2, 2, x),
                             tensor(6, of_weight, 2, -1, weight),
                             tensor(6, -1, 0, -1, NULL),
                             tensor(6, -1, 0, -1, NULL),
                             tensor(4, of_graph, 3 + behind, -1, rowptr),
                             tensor(3, of_graph, 2, -1, col),
                             tensor(3, -1, 0, -1, NULL),
                             tensor(4, -1, 0, -1, NULL),
                             tensor(3, -1, 0, -1, NULL),
                             tensor(3, -1, 0, -1, NULL)};
    StableIValue stack[12];
    for (int i = 0; i < 10; i++) {
        stack[i] = (StableIValue)(uintptr_t)in[i];
    }
    stack[10] = stack[11] = 2;
    memset(&launched.calls, 0, sizeof launched.calls);
    if (setjmp(raised)) {
        CHECK(n_tensors == 0);     // nothing leaks
        CHECK(guard.device == -1); // and the device is as before
        return NULL;
    }
    spmm_kernel(stack, 12, 1);
    CHECK(guard.device == -1);
    CHECK(n_tensors == 1);
    return (AtenTensorHandle)(uintptr_t)stack[0];
}

static void test_cuda_tensors_go_to_the_launcher(void) {
    AtenTensorHandle y = run(3, 3, 3, 2);
    CHECK(launched.calls == 1 && launched.device == 3 && launched.stream == 0x5003);
    CHECK(launched.a.n_split == 1 && launched.a.split == rowptr + 3);
    CHECK(launched.scratch != NULL);
    CHECK(y->device_type == CUDA_TYPE && y->device_index == 3);
    delete_tensor(y);
    delete_tensor(run(0, 0, 0, 0));
    CHECK(launched.device == 0 && launched.stream == 0x5000 && launched.a.n_split == 0);
}

static void test_cpu_tensors_never_do(void) {
    AtenTensorHandle y = run(-1, -1, -1, 0);
    const float *got = y->data;
    CHECK(launched.calls == 0 && y->device_type == CPU_TYPE);
    CHECK(got[0] == 31 && got[1] == 42 && got[2] == 0 && got[3] == 0);
    delete_tensor(y);
}

static void test_other_devices_are_refused(void) {
    CHECK(run(3, 2, 3, 0) == NULL && launched.calls == 0);
    CHECK(strstr(text, "spmm: all tensors must be on one device, argument 1 is") ==
          text);
    CHECK(run(3, -1, 3, 0) == NULL && launched.calls == 0);
    CHECK(run(-1, -1, 3, 0) == NULL && launched.calls == 0);
    CHECK(strstr(text, "argument 4 is not where the first one is"));
}

static void test_failures_leave_nothing(void) {
    launched.answer = GNN_EDEVICE;
    CHECK(run(3, 3, 3, 2) == NULL && launched.calls == 1);
    CHECK(strcmp(text, "launch refused") == 0);
    launched.answer = GNN_OK;
    torch_abi.aoti_torch_create_cuda_guard = NULL;
    CHECK(run(3, 3, 3, 0) == NULL && launched.calls == 0);
    CHECK(strstr(text, "libtorch_cuda.so was not there"));
    pretend();
}

int main(void) {
    pretend();
    test_cuda_tensors_go_to_the_launcher();
    test_cpu_tensors_never_do();
    test_other_devices_are_refused();
    test_failures_leave_nothing();
    return 0;
}

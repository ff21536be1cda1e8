/* torch_op.c: ownership, grad mode, errors and views of boxed dispatcher ops. */
#include "torch/torch_op.h"

#include <stdlib.h>
#include <string.h>

#define NAMESPACE "gnnoffload"

/* The last act of a failing op: throws through its frame into torch (hence
 * -fexceptions), which makes a RuntimeError of it, in forward and inside backward. */
static _Noreturn void raise_last_failure(const char *name) {
    torch_abi.aoti_torch_check(false, name, __FILE__, __LINE__, gnn_message());
    abort(); /* not reached: aoti_torch_check(false) throws */
}

/* A shim call failed: its own text where torch is new enough to tell it. */
static gnn_status torch_failed(const struct torch_op *op, const char *what) {
    const char *text = NULL;
    if (torch_abi.torch_exception_get_what_without_backtrace) {
        text = torch_abi.torch_exception_get_what_without_backtrace();
    }
    return gnn_fail(GNN_ENOMEM, "%s: torch could not %s%s%s", op->name, what,
                    text && *text ? ": " : "", text ? text : "");
}

/* The device of the first tensor; on CUDA it becomes the current one and the stream is
 * torch's current one there. */
static gnn_status enter_device(struct torch_op *op, CUDAGuardHandle *guard) {
    if (torch_abi.aoti_torch_get_device_type(op->owned[0], &op->device_type) ||
        torch_abi.aoti_torch_get_device_index(op->owned[0], &op->device_index)) {
        return torch_failed(op, "tell a tensor's device");
    }
    op->is_cuda = op->device_type == torch_abi.aoti_torch_device_type_cuda();
    if (!op->is_cuda) {
        return GNN_OK;
    }
    GNN_REQUIRE(torch_abi.aoti_torch_get_current_cuda_stream &&
                    torch_abi.aoti_torch_create_cuda_guard &&
                    torch_abi.aoti_torch_delete_cuda_guard,
                GNN_ENOTSUP, "%s: libtorch_cuda.so was not there when gnnoffload bound",
                op->name);
    void *stream = NULL;
    if (torch_abi.aoti_torch_create_cuda_guard(op->device_index, guard) ||
        torch_abi.aoti_torch_get_current_cuda_stream(op->device_index, &stream)) {
        return torch_failed(op, "enter a CUDA device");
    }
    op->stream = (uint64_t)(uintptr_t)stream;
    return GNN_OK;
}

void torch_op_call(const char *name, torch_op_body body, uint64_t n_tensors,
                   StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    struct torch_op op = {.name = name, .arg = stack, .n_outputs = n_outputs};
    (void)n_args;
    for (uint64_t i = 0; i < n_tensors; i++) {
        op.owned[op.n_owned++] = (AtenTensorHandle)(uintptr_t)stack[i];
    }
    bool grad_mode = torch_abi.aoti_torch_grad_mode_is_enabled();
    torch_abi.aoti_torch_grad_mode_set_enabled(false);
    CUDAGuardHandle guard = NULL;
    gnn_status status = enter_device(&op, &guard);
    if (status == GNN_OK) {
        status = body(&op);
    }
    torch_abi.aoti_torch_grad_mode_set_enabled(grad_mode);

    for (int i = 0; i < op.n_owned; i++) {
        torch_abi.aoti_torch_delete_tensor_object(op.owned[i]);
    }
    if (guard) {
        torch_abi.aoti_torch_delete_cuda_guard(guard);
    }
    if (status != GNN_OK) {
        for (uint64_t i = 0; i < n_outputs; i++) {
            if (op.output[i]) {
                torch_abi.aoti_torch_delete_tensor_object(op.output[i]);
            }
        }
        raise_last_failure(name);
    }
    for (uint64_t i = 0; i < n_outputs; i++) {
        stack[i] = (StableIValue)(uintptr_t)op.output[i];
    }
}

static gnn_status read_view(struct torch_op *op, AtenTensorHandle handle,
                            struct torch_view *view) {
    int64_t *size = NULL, *stride = NULL;
    view->handle = handle;
    if (torch_abi.aoti_torch_get_dtype(handle, &view->dtype) ||
        torch_abi.aoti_torch_get_dim(handle, &view->dim) ||
        torch_abi.aoti_torch_get_sizes(handle, &size) ||
        torch_abi.aoti_torch_get_strides(handle, &stride) ||
        torch_abi.torch_get_const_data_ptr(handle, &view->data)) {
        return torch_failed(op, "read a tensor");
    }
    view->size = size;
    view->stride = stride;
    view->numel = 1;
    for (int64_t i = 0; i < view->dim; i++) {
        if (__builtin_mul_overflow(view->numel, size[i], &view->numel)) {
            view->numel = INT64_MAX; /* an expanded tensor; never allocated */
        }
    }
    return GNN_OK;
}

gnn_status torch_op_tensor(struct torch_op *op, uint64_t i, struct torch_view *view) {
    int32_t type = -1, index = -1;
    GNN_TRY(read_view(op, (AtenTensorHandle)(uintptr_t)op->arg[i], view));
    if (view->numel == 0) {
        return GNN_OK; // an absent argument is an empty tensor anywhere
    }
    if (torch_abi.aoti_torch_get_device_type(view->handle, &type) ||
        torch_abi.aoti_torch_get_device_index(view->handle, &index)) {
        return torch_failed(op, "tell a tensor's device");
    }
    GNN_REQUIRE(type == op->device_type && index == op->device_index, GNN_ETYPE,
                "%s: all tensors must be on one device, argument %d is not where the "
                "first one is",
                op->name, (int)i);
    return GNN_OK;
}

int64_t torch_op_int(const struct torch_op *op, uint64_t i) {
    return (int64_t)op->arg[i];
}

double torch_op_float(const struct torch_op *op, uint64_t i) {
    double value;
    memcpy(&value, &op->arg[i], sizeof value);
    return value;
}

/* torch's dtype codes, asked for once per process: they never change in it. */
static int32_t dtype_codes[GNN_DTYPE_COUNT];

static void read_dtype_codes(void) {
    dtype_codes[GNN_F32] = torch_abi.aoti_torch_dtype_float32();
    dtype_codes[GNN_F64] = torch_abi.aoti_torch_dtype_float64();
    dtype_codes[GNN_BF16] = torch_abi.aoti_torch_dtype_bfloat16();
    dtype_codes[GNN_F16] = torch_abi.aoti_torch_dtype_float16();
    dtype_codes[GNN_I32] = torch_abi.aoti_torch_dtype_int32();
    dtype_codes[GNN_I64] = torch_abi.aoti_torch_dtype_int64();
    dtype_codes[GNN_I8] = torch_abi.aoti_torch_dtype_int8();
    dtype_codes[GNN_I16] = torch_abi.aoti_torch_dtype_int16();
}

int32_t torch_dtype_code(gnn_dtype dtype) {
    return dtype_codes[dtype];
}

gnn_status torch_op_dtype(const struct torch_op *op, const struct torch_view *view,
                          const char *argument, gnn_dtype *dtype) {
    for (int i = 0; i < GNN_DTYPE_COUNT; i++) {
        if (dtype_codes[i] == view->dtype) {
            *dtype = (gnn_dtype)i;
            return GNN_OK;
        }
    }
    return gnn_fail(GNN_ETYPE,
                    "%s: %s has a dtype that is not supported (torch code %d)",
                    op->name, argument, (int)view->dtype);
}

/* At most one copy per argument and one scratch: TORCH_OP_MAX_TENSORS is enough. */
static void own(struct torch_op *op, AtenTensorHandle handle) {
    op->owned[op->n_owned++] = handle;
}

/* A new contiguous tensor of 1 or 2 dimensions, uninitialised. */
static gnn_status new_tensor(struct torch_op *op, int32_t dtype, int64_t dim,
                             const int64_t *size, AtenTensorHandle *handle) {
    const int64_t columns = dim == 2 ? size[1] : 1;
    int64_t elements;
    /* 8 bytes is the widest element: the product in bytes fits as well. */
    GNN_REQUIRE(!__builtin_mul_overflow(size[0], columns, &elements) &&
                    elements < INT64_MAX / 8,
                GNN_EGRAPH, "%s: a tensor of %lld x %lld elements is too large",
                op->name, (long long)size[0], (long long)columns);
    const int64_t stride[2] = {dim == 2 && columns > 0 ? columns : 1, 1};
    if (torch_abi.aoti_torch_empty_strided(dim, size, stride, dtype, op->device_type,
                                           op->device_index, handle)) {
        return torch_failed(op, "allocate memory for a tensor");
    }
    return GNN_OK;
}

gnn_status torch_op_pack(struct torch_op *op, struct torch_view *view) {
    gnn_dtype dtype = GNN_F32;
    GNN_TRY(torch_op_dtype(op, view, "a tensor", &dtype));
    int64_t last = view->dim - 1;
    bool dense = view->numel == 0 || view->size[last] == 1 || view->stride[last] == 1;
    bool aligned = (uintptr_t)view->data % (uintptr_t)gnn_dtype_size(dtype) == 0;
    if (dense && aligned) {
        return GNN_OK;
    }
    AtenTensorHandle copy = NULL;
    GNN_TRY(new_tensor(op, view->dtype, view->dim, view->size, &copy));
    own(op, copy);
    if (torch_abi.aoti_torch_copy_(copy, view->handle, 0)) {
        return torch_failed(op, "copy a tensor");
    }
    return read_view(op, copy, view);
}

gnn_status torch_op_empty(struct torch_op *op, int output, int32_t dtype, int64_t size0,
                          int64_t size1, void **data) {
    const int64_t size[2] = {size0, size1};
    AtenTensorHandle handle = NULL;
    GNN_TRY(new_tensor(op, dtype, size1 < 0 ? 1 : 2, size, &handle));
    if (output >= 0) {
        op->output[output] = handle;
    } else {
        own(op, handle);
    }
    if (torch_abi.torch_get_mutable_data_ptr(handle, data)) {
        return torch_failed(op, "read a tensor");
    }
    return GNN_OK;
}

gnn_status torch_op_scratch(struct torch_op *op, int64_t bytes, void **data) {
    *data = NULL;
    if (bytes == 0) {
        return GNN_OK;
    }
    return torch_op_empty(op, -1, torch_abi.aoti_torch_dtype_uint8(), bytes, -1, data);
}

/* Library handles own the registrations, so they live as long as the process. */
bool torch_ops_define(const struct torch_op_definition *ops) {
    static TorchLibraryHandle definitions, cpu, cuda;
    if (!definitions) {
        read_dtype_codes();
        if (torch_abi.aoti_torch_library_init_fragment(NAMESPACE, __FILE__, __LINE__,
                                                       &definitions) ||
            torch_abi.aoti_torch_library_init_impl(NAMESPACE, "CPU", __FILE__, __LINE__,
                                                   &cpu) ||
            torch_abi.aoti_torch_library_init_impl(NAMESPACE, "CUDA", __FILE__,
                                                   __LINE__, &cuda)) {
            return false;
        }
    }
    for (; ops->schema; ops++) {
        if (torch_abi.aoti_torch_library_def(definitions, ops->schema) ||
            torch_abi.torch_library_impl(cpu, ops->name, ops->kernel,
                                         TORCH_BUILD_VERSION) ||
            (ops->on_cuda && torch_abi.torch_library_impl(cuda, ops->name, ops->kernel,
                                                          TORCH_BUILD_VERSION))) {
            return false;
        }
    }
    return true;
}

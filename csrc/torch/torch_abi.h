/* torch_abi.h: libtorch's stable C interface as plain C declarations of our own.
 *
 * Torch's headers are C++ and are not needed to build. `_C.bind()` looks every row of
 * the three maps below up in the libtorch that Python has loaded and fills `torch_abi`;
 * tests/abi compiles this file against the installed torch headers, so that a wrong
 * parameter is a compile error. A new entry point is one new row.
 *
 * Floor: torch 2.10. A missing required row is an ImportError that names it; an optional
 * row is NULL where torch is too old to have it; a CUDA row where torch has no CUDA.
 * Ownership: functions borrow the handles they are given; a `ret` tensor is a new handle
 * that its receiver deletes.
 */
#ifndef TORCH_ABI_H
#define TORCH_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef __cplusplus             /* the C++ check takes these from torch's own headers */
typedef int32_t AOTITorchError; // 0 on success
typedef uint64_t StableIValue;  // one argument or result of a boxed op
typedef struct AtenTensorOpaque *AtenTensorHandle;
typedef struct TorchLibraryOpaque *TorchLibraryHandle;
typedef struct CUDAGuardOpaque *CUDAGuardHandle;
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void *ctx);
#endif

/* How arguments of boxed ops are encoded: as torch 2.10 does. */
#define TORCH_BUILD_VERSION UINT64_C(0x020A000000000000)

/* clang-format off */
/* result, name, parameters */
#define TORCH_ABI_REQUIRED(X)                                                          \
    /* facts */                                                                        \
    X(uint64_t, aoti_torch_abi_version, (void))                                        \
    X(int32_t, aoti_torch_device_type_cpu, (void))                                     \
    X(int32_t, aoti_torch_device_type_cuda, (void))                                    \
    X(int32_t, aoti_torch_dtype_float32, (void))                                       \
    X(int32_t, aoti_torch_dtype_float64, (void))                                       \
    X(int32_t, aoti_torch_dtype_bfloat16, (void))                                      \
    X(int32_t, aoti_torch_dtype_float16, (void))                                       \
    X(int32_t, aoti_torch_dtype_int32, (void))                                         \
    X(int32_t, aoti_torch_dtype_int64, (void))                                         \
    X(int32_t, aoti_torch_dtype_int8, (void))                                          \
    X(int32_t, aoti_torch_dtype_int16, (void))                                         \
    X(int32_t, aoti_torch_dtype_uint8, (void))                                         \
    X(int32_t, aoti_torch_dtype_bool, (void))                                          \
    /* reading a tensor */                                                             \
    X(AOTITorchError, aoti_torch_get_device_type, (AtenTensorHandle, int32_t *))       \
    X(AOTITorchError, aoti_torch_get_device_index, (AtenTensorHandle, int32_t *))      \
    X(AOTITorchError, aoti_torch_get_dtype, (AtenTensorHandle, int32_t *))             \
    X(AOTITorchError, aoti_torch_get_dim, (AtenTensorHandle, int64_t *))               \
    X(AOTITorchError, aoti_torch_get_sizes, (AtenTensorHandle, int64_t **))            \
    X(AOTITorchError, aoti_torch_get_strides, (AtenTensorHandle, int64_t **))          \
    X(AOTITorchError, torch_get_const_data_ptr, (AtenTensorHandle, const void **))     \
    X(AOTITorchError, torch_get_mutable_data_ptr, (AtenTensorHandle, void **))         \
    /* making and freeing one */                                                       \
    X(AOTITorchError, aoti_torch_empty_strided, (int64_t ndim, const int64_t *sizes,   \
        const int64_t *strides, int32_t dtype, int32_t device_type,                    \
        int32_t device_index, AtenTensorHandle *ret))                                  \
    X(AOTITorchError, aoti_torch_copy_, (AtenTensorHandle self, AtenTensorHandle src,  \
        int32_t non_blocking))                                                         \
    X(AOTITorchError, aoti_torch_delete_tensor_object, (AtenTensorHandle))             \
    /* ops */                                                                          \
    X(AOTITorchError, aoti_torch_library_init_fragment, (const char *ns,               \
        const char *file, uint32_t line, TorchLibraryHandle *ret))                     \
    X(AOTITorchError, aoti_torch_library_init_impl, (const char *ns, const char *key,  \
        const char *file, uint32_t line, TorchLibraryHandle *ret))                     \
    X(AOTITorchError, aoti_torch_library_def, (TorchLibraryHandle,                     \
        const char *schema))                                                           \
    X(AOTITorchError, torch_library_impl, (TorchLibraryHandle, const char *name,       \
        void (*fn)(StableIValue *, uint64_t, uint64_t), uint64_t build_version))       \
    X(AOTITorchError, aoti_torch_delete_library_object, (TorchLibraryHandle))          \
    /* context of a call */                                                            \
    X(bool, aoti_torch_grad_mode_is_enabled, (void))                                   \
    X(void, aoti_torch_grad_mode_set_enabled, (bool))                                  \
    X(AOTITorchError, torch_parallel_for, (int64_t begin, int64_t end, int64_t grain,  \
        ParallelFunc, void *ctx))                                                      \
    X(void, aoti_torch_check, (bool condition, const char *function,                   \
        const char *file, uint32_t line, const char *message))

#define TORCH_ABI_OPTIONAL(X)                                                          \
    X(const char *, torch_exception_get_what_without_backtrace, (void)) /* 2.13 */

#define TORCH_ABI_CUDA(X) /* in libtorch_cuda.so */                                    \
    X(AOTITorchError, aoti_torch_get_current_cuda_stream, (int32_t device,             \
        void **ret_stream))                                                            \
    X(AOTITorchError, aoti_torch_create_cuda_guard, (int32_t device,                   \
        CUDAGuardHandle *ret))                                                         \
    X(AOTITorchError, aoti_torch_delete_cuda_guard, (CUDAGuardHandle))
/* clang-format on */

#define TORCH_ABI_MEMBER(result, name, parameters) result(*name) parameters;
struct torch_abi {
    TORCH_ABI_REQUIRED(TORCH_ABI_MEMBER)
    TORCH_ABI_OPTIONAL(TORCH_ABI_MEMBER)
    TORCH_ABI_CUDA(TORCH_ABI_MEMBER)
};
#undef TORCH_ABI_MEMBER

extern struct torch_abi torch_abi; // all NULL until torch_abi_load succeeds

/* Fills torch_abi from the libtorch_cpu.so that is already in the process: first by its
 * SONAME, then by `path` (may be NULL). On failure the table stays empty and *missing
 * names what was not found: a symbol, or the library. Not thread-safe (the GIL is held). */
bool torch_abi_load(const char *path, const char **missing);

/* Row `index` of the maps, for show_config: its name, whether it was found and whether
 * it is required. false past the end. */
bool torch_abi_slot(size_t index, const char **name, bool *found, bool *required);

#endif

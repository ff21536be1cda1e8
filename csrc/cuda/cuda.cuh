/* cuda.cuh: the one door between our device code and CUDA.
 *
 * Kernels (*_kernels.cuh) and launchers (*_cuda.cu) include this header and no other of
 * CUDA. nvcc makes the product of them; g++ makes the executor of tests/cuda_on_cpu,
 * which runs the very same files lane by lane and knows exactly the device names that
 * are allowed: a name that executor.h lacks does not compile there.
 * Rules: no inline PTX, no <<<>>> but the one below, no `extern __shared__`, arguments by
 * value, every loop over work in grid strides.
 */
#ifndef GNN_CUDA_CUH
#define GNN_CUDA_CUH

#include "gnn.h"

#define GNN_FULL_WARP 0xffffffffu

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

typedef cudaStream_t gnn_cuda_stream_t;

#define GNN_UNROLL _Pragma("unroll")
#define GNN_UNROLL_BY(n) GNN_PRAGMA(unroll n)
#define GNN_PRAGMA(text) _Pragma(#text)

#define CUDA_TRY(call)                                                                 \
    do {                                                                               \
        const cudaError_t cuda_try_error_ = (call);                                    \
        if (cuda_try_error_ != cudaSuccess) {                                          \
            (void)cudaGetLastError(); /* leave none behind for the next caller */      \
            return gnn_fail(GNN_EDEVICE, "%s: %s (%s)", __func__,                      \
                            cudaGetErrorString(cuda_try_error_),                       \
                            cudaGetErrorName(cuda_try_error_));                        \
        }                                                                              \
    } while (0)

/* Queues kernel(args...) on the stream. Does not wait. GNN_EDEVICE with CUDA's text. */
template <typename... Parameters, typename... Arguments>
static gnn_status gnn_launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                             size_t shared_bytes, gnn_cuda_stream_t stream,
                             Arguments... args) {
    kernel<<<grid, block, shared_bytes, stream>>>(args...);
    CUDA_TRY(cudaGetLastError());
    return GNN_OK;
}

#else

#define GNN_UNROLL
#define GNN_UNROLL_BY(n)
#include "executor.h"

#endif

#endif

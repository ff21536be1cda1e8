/* executor.h: CUDA C++ for g++, as far as our kernels use it.
 *
 * csrc/cuda/cuda.cuh includes this file where nvcc would bring the toolkit. The device
 * language below is an allow-list: a kernel that uses another name does not compile. Each
 * intrinsic is one row. A GPU thread is a fiber (exec_fiber.h); it runs until a barrier, a
 * warp collective or its end. Types and 16-bit arithmetic are the toolkit's own.
 *
 * Everything inline here is compiled with the access hooks (exec_hooks.cpp), like the
 * kernels themselves; what must stay unseen lives in the .cpp files.
 */
#ifndef EXECUTOR_H
#define EXECUTOR_H

#include "gnn.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_types.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>

/* glibc's private names, which are CUDA's fast functions. */
#pragma GCC poison __expf __exp10f __logf __log2f __log10f __powf __sinf __cosf __tanf

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __managed__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
/* Static shared variables are the thread-local ones of this library: the only place where
 * gcc gathers those of templates too. Refilled with poison for each block. */
#define __shared__ static __thread
#define GNN_DYNAMIC_SHARED(type, name)                                                 \
    type *name = static_cast<type *>(exec::dynamic_shared(alignof(type)))

typedef uint64_t gnn_cuda_stream_t;

namespace exec {

struct Site { // a place in a kernel's source
    const char *file;
    int line;
};
#define EXEC_HERE exec::Site site = {__builtin_FILE(), __builtin_LINE()}

/* name of the intrinsic, as errors say it */
#define EXEC_COLLECTIVES(X)                                                            \
    X(SYNCTHREADS, "__syncthreads")                                                    \
    X(SYNCWARP, "__syncwarp")                                                          \
    X(SHFL, "__shfl_sync")                                                             \
    X(SHFL_UP, "__shfl_up_sync")                                                       \
    X(SHFL_DOWN, "__shfl_down_sync")                                                   \
    X(SHFL_XOR, "__shfl_xor_sync")                                                     \
    X(BALLOT, "__ballot_sync")                                                         \
    X(ANY, "__any_sync")                                                               \
    X(ALL, "__all_sync")
#define EXEC_ENUM(name, text) name,
enum Collective { EXEC_COLLECTIVES(EXEC_ENUM) };
#undef EXEC_ENUM

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
void *dynamic_shared(size_t alignment);
void block_barrier(Site site);
/* Waits for the lanes of mask; value, argument and width mean what the collective says. */
uint64_t collective(Collective what, unsigned mask, uint64_t value, int argument,
                    int width, Site site);
void check_access(const void *p, size_t bytes, size_t alignment, bool write, Site site);

struct Launch {
    const void *kernel; // for its name
    dim3 grid, block;
    size_t shared_bytes;
    void *call; // [call_bytes] the kernel and its arguments, read by each thread
    size_t call_bytes;
    void (*run)(void *call);
};
gnn_status launch(const Launch &launch);

template <typename T> uint64_t to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || std::is_same_v<T, __half> ||
                      std::is_same_v<T, __nv_bfloat16>,
                  "a shuffle moves 4 or 8 bytes, half or bfloat16");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <typename T> T from_bits(uint64_t bits) {
    T value;
    std::memcpy(static_cast<void *>(&value), &bits, sizeof value);
    return value;
}

template <typename... P> struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    static void run(void *call) {
        std::apply(static_cast<Call *>(call)->kernel,
                   static_cast<Call *>(call)->arguments);
    }
};

} // namespace exec

/* ------------------------------------------------------------------------- the host */

/* Runs the kernel to its end. GNN_EDEVICE with the strict error, if there was one. */
template <typename... P, typename... A>
gnn_status gnn_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                      gnn_cuda_stream_t, A... arguments) {
    exec::Call<P...> call = {kernel, {static_cast<P>(arguments)...}};
    return exec::launch({reinterpret_cast<const void *>(kernel), grid, block,
                         shared_bytes, &call, sizeof call, exec::Call<P...>::run});
}

/* ----------------------------------------------------------------- the device language */

#define threadIdx (exec::thread_index())
#define blockIdx (exec::block_index())
#define blockDim (exec::block_size())
#define gridDim (exec::grid_size())
static constexpr int warpSize = 32;

#define EXEC_DEVICE template <typename T> inline
inline void __syncthreads(EXEC_HERE) {
    exec::block_barrier(site);
}
inline void __syncwarp(unsigned mask = ~0u, EXEC_HERE) {
    exec::collective(exec::SYNCWARP, mask, 0, 0, 32, site);
}
EXEC_DEVICE T __shfl_sync(unsigned mask, T v, int lane, int width = 32, EXEC_HERE) {
    return exec::from_bits<T>(
        exec::collective(exec::SHFL, mask, exec::to_bits(v), lane, width, site));
}
EXEC_DEVICE T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32,
                             EXEC_HERE) {
    return exec::from_bits<T>(exec::collective(exec::SHFL_UP, mask, exec::to_bits(v),
                                               int(delta), width, site));
}
EXEC_DEVICE T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,
                               EXEC_HERE) {
    return exec::from_bits<T>(exec::collective(exec::SHFL_DOWN, mask, exec::to_bits(v),
                                               int(delta), width, site));
}
EXEC_DEVICE T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EXEC_HERE) {
    return exec::from_bits<T>(
        exec::collective(exec::SHFL_XOR, mask, exec::to_bits(v), bits, width, site));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EXEC_HERE) {
    return unsigned(exec::collective(exec::BALLOT, mask, predicate != 0, 0, 32, site));
}
inline int __any_sync(unsigned mask, int predicate, EXEC_HERE) {
    return int(exec::collective(exec::ANY, mask, predicate != 0, 0, 32, site));
}
inline int __all_sync(unsigned mask, int predicate, EXEC_HERE) {
    return int(exec::collective(exec::ALL, mask, predicate != 0, 0, 32, site));
}
EXEC_DEVICE T __ldg(const T *p, EXEC_HERE) {
    exec::check_access(p, sizeof(T), alignof(T), false, site);
    return *p;
}
inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}

#endif

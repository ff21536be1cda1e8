/* golden_kernels.cu: every device function that our kernels use, on inputs from outside.
 * g++ builds it for the executor, nvcc for a GPU: golden.py compares the two.
 */
#include "cuda/cuda.cuh"

#define ONES 0xffffffffu

/* ---------------------------------------------------------------- shuffles and votes */

enum { IDX, UP, DOWN, XOR };

template <typename T>
__global__ void shuffle_kernel(const T *x, T *y, int kind, int argument, int width) {
    const int i = int(threadIdx.x);
    switch (kind) {
    case IDX:
        y[i] = __shfl_sync(ONES, x[i], argument, width);
        break;
    case UP:
        y[i] = __shfl_up_sync(ONES, x[i], unsigned(argument), width);
        break;
    case DOWN:
        y[i] = __shfl_down_sync(ONES, x[i], unsigned(argument), width);
        break;
    default:
        y[i] = __shfl_xor_sync(ONES, x[i], argument, width);
    }
}

template <typename T>
static gnn_status run_shuffle(const void *x, void *y, int kind, int argument,
                              int width) {
    return gnn_launch(shuffle_kernel<T>, dim3(1), dim3(32), 0, 0, (const T *)x, (T *)y,
                      kind, argument, width);
}

extern "C" gnn_status shuffle(const void *x, void *y, int kind, int argument, int width,
                              int dtype) {
    switch (dtype) {
    case GNN_F32:
        return run_shuffle<float>(x, y, kind, argument, width);
    case GNN_F64:
        return run_shuffle<double>(x, y, kind, argument, width);
    case GNN_BF16:
        return run_shuffle<__nv_bfloat16>(x, y, kind, argument, width);
    case GNN_F16:
        return run_shuffle<__half>(x, y, kind, argument, width);
    case GNN_I32:
        return run_shuffle<int32_t>(x, y, kind, argument, width);
    default:
        return run_shuffle<int64_t>(x, y, kind, argument, width);
    }
}

/* The examples of the CUDA programming guide's section on warp shuffles. */
__global__ void guide_kernel(const int32_t *x, int32_t *y) {
    const int lane = int(threadIdx.x % 32);
    y[lane] = __shfl_sync(ONES, x[lane], 0); // a broadcast
    int value = x[lane];                     // an inclusive scan over groups of 8
    for (int i = 1; i <= 4; i *= 2) {
        const int n = __shfl_up_sync(ONES, value, unsigned(i), 8);
        if ((lane & 7) >= i) {
            value += n;
        }
    }
    y[32 + lane] = value;
    value = x[lane]; // the sum of the warp, in all lanes
    for (int i = 16; i >= 1; i /= 2) {
        value += __shfl_xor_sync(ONES, value, i, 32);
    }
    y[64 + lane] = value;
}
extern "C" gnn_status guide(const int32_t *x, int32_t *y) {
    return gnn_launch(guide_kernel, dim3(1), dim3(32), 0, 0, x, y);
}

/* Odd and even lanes vote apart; lanes 30 and 31 have left. */
__global__ void vote_kernel(const int32_t *x, int32_t *y) {
    const int lane = int(threadIdx.x);
    if (lane >= 30) {
        return;
    }
    const unsigned mask = lane % 2 ? 0xaaaaaaaau : 0x55555555u;
    y[lane] = int(__ballot_sync(mask, x[lane]));
    y[32 + lane] = __any_sync(mask, x[lane]);
    y[64 + lane] = __all_sync(mask, x[lane]);
}
extern "C" gnn_status vote(const int32_t *x, int32_t *y) {
    return gnn_launch(vote_kernel, dim3(1), dim3(32), 0, 0, x, y);
}

/* --------------------------------------------------------------- conversions and loads */

/* The 16-bit types widened, and float narrowed to them, bit patterns in and out. */
__global__ void widen_kernel(const uint16_t *x, float *as_half, float *as_bf16, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        __half half;
        __nv_bfloat16 bf16;
        memcpy(&half, x + i, sizeof half);
        memcpy(&bf16, x + i, sizeof bf16);
        as_half[i] = __half2float(half);
        as_bf16[i] = __bfloat162float(bf16);
    }
}
extern "C" gnn_status widen_all(const uint16_t *x, float *y, int n) {
    return gnn_launch(widen_kernel, dim3(unsigned(n + 127) / 128), dim3(128), 0, 0, x,
                      y, y + n, n);
}

template <typename T> struct narrow_to;
template <> struct narrow_to<__half> {
    static __device__ __half of(float v) {
        return __float2half_rn(v);
    }
};
template <> struct narrow_to<__nv_bfloat16> {
    static __device__ __nv_bfloat16 of(float v) {
        return __float2bfloat16_rn(v);
    }
};

template <typename T> __global__ void narrow_kernel(const float *x, T *y, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        y[i] = narrow_to<T>::of(__ldg(x + i));
    }
}
extern "C" gnn_status narrow_all(const float *x, void *y, int n, int dtype) {
    const dim3 grid(unsigned(n + 127) / 128), block(128);
    return dtype == GNN_F16
               ? gnn_launch(narrow_kernel<__half>, grid, block, 0, 0, x, (__half *)y, n)
               : gnn_launch(narrow_kernel<__nv_bfloat16>, grid, block, 0, 0, x,
                            (__nv_bfloat16 *)y, n);
}

/* Bits set, and a pack moved whole. */
__global__ void packs_and_bits_kernel(const uint4 *x, uint4 *y, int *bits) {
    const uint4 raw = __ldg(x + threadIdx.x);
    y[threadIdx.x] = make_uint4(raw.w, raw.z, raw.y, raw.x);
    bits[threadIdx.x] = __popc(raw.x);
}
extern "C" gnn_status packs_and_bits(const uint32_t *x, uint32_t *y) {
    return gnn_launch(packs_and_bits_kernel, dim3(1), dim3(32), 0, 0, (const uint4 *)x,
                      (uint4 *)y, (int *)(y + 128));
}

/* ----------------------------------------------------------------------- exp, log, sqrt */

__global__ void functions_float_kernel(const float *x, float *y, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        y[i] = expf(x[i]);
        y[n + i] = logf(x[i]);
        y[2 * n + i] = sqrtf(x[i]);
    }
}
__global__ void functions_double_kernel(const double *x, double *y, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        y[i] = exp(x[i]);
        y[n + i] = log(x[i]);
        y[2 * n + i] = sqrt(x[i]);
    }
}
extern "C" gnn_status functions(const void *x, void *y, int n, int dtype) {
    const dim3 grid(unsigned(n + 127) / 128), block(128);
    return dtype == GNN_F32 ? gnn_launch(functions_float_kernel, grid, block, 0, 0,
                                         (const float *)x, (float *)y, n)
                            : gnn_launch(functions_double_kernel, grid, block, 0, 0,
                                         (const double *)x, (double *)y, n);
}

/* right_kernels.cu: kernels without a mistake, whose results are known. A block of 64
 * threads unless a launcher says otherwise.
 */
#include "executor.h"

/* ------------------------------------------------------------------- barriers and order */

/* y[i] = sum of the block's x, through shared memory; half of the threads leave early. */
__global__ void block_sum_kernel(const int32_t *x, int32_t *y) {
    GNN_DYNAMIC_SHARED(int32_t, part);
    const unsigned i = threadIdx.x;
    part[i] = x[blockIdx.x * blockDim.x + i];
    __syncthreads();
    if (i >= blockDim.x / 2) {
        return;
    }
    for (unsigned n = blockDim.x / 2; n > 0; n /= 2) {
        if (i < n) {
            part[i] += part[i + n];
        }
        __syncthreads();
    }
    if (i == 0) {
        y[blockIdx.x] = part[0];
    }
}
extern "C" gnn_status block_sum(const int32_t *x, int32_t *y, int blocks, int threads) {
    return gnn_launch(block_sum_kernel, dim3(unsigned(blocks)), dim3(unsigned(threads)),
                      size_t(threads) * 4, 0, x, y);
}

/* Each half of a warp passes values round through shared memory, ordered by __syncwarp of
 * its own mask; all read one cell, then one lane writes it. */
__global__ void half_warps_kernel(const int32_t *x, int32_t *y) {
    __shared__ int32_t a[64];
    const unsigned i = threadIdx.x, member = i % 16, first = i - member;
    const unsigned mask = i % 32 < 16 ? 0xffffu : 0xffff0000u;
    int32_t value = x[i];
    for (int round = 0; round < 3; round++) {
        a[i] = value;
        __syncwarp(mask);
        value = a[first + (member + 1) % 16];
        __syncwarp(mask);
    }
    value += a[first]; // of the last round
    __syncwarp(mask);
    if (member == 0) {
        a[first] = -1;
    }
    y[i] = value;
}
extern "C" gnn_status half_warps(const int32_t *x, int32_t *y) {
    return gnn_launch(half_warps_kernel, dim3(1), dim3(64), 0, 0, x, y);
}

/* Where each thread is, for blocks and grids of three dimensions. */
__global__ void index_kernel(int32_t *y) {
    const unsigned block =
        (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread =
        (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int lane =
        int(__popc(__ballot_sync(0xffffffffu, 1) & ((1u << thread % 32) - 1)));
    int32_t *out = y + (block * blockDim.x * blockDim.y * blockDim.z + thread) * 2;
    out[0] = int32_t(block * 1000 + thread);
    out[1] = lane;
}
extern "C" gnn_status indices(int32_t *y) {
    return gnn_launch(index_kernel, dim3(2, 3, 2), dim3(5, 2, 4), 0, 0, y);
}

/* A second launch reads what the first wrote: no barrier is needed between launches. */
__global__ void fill_kernel(int32_t *y, int32_t value) {
    y[blockIdx.x * 64 + threadIdx.x] = value;
}
__global__ void reverse_add_kernel(int32_t *y, int n) {
    const int i = int(blockIdx.x * 64 + threadIdx.x);
    if (i < n / 2) {
        y[i] += y[n - 1 - i];
    }
}
extern "C" gnn_status two_launches(int32_t *y) {
    GNN_TRY(gnn_launch(fill_kernel, dim3(4), dim3(64), 0, 0, y, 3));
    return gnn_launch(reverse_add_kernel, dim3(2), dim3(64), 0, 0, y, 256);
}

/* ------------------------------------------------------------------ traffic, huge grids */

/* Each lane copies one float, `stride` floats from the next one. */
__global__ void strided_kernel(const float *x, float *y, int stride) {
    y[threadIdx.x] = x[threadIdx.x * unsigned(stride)];
}
extern "C" gnn_status strided(const float *x, float *y, int stride) {
    return gnn_launch(strided_kernel, dim3(1), dim3(32), 0, 0, x, y, stride);
}

__global__ void packs_kernel(const float4 *x, float4 *y) {
    y[threadIdx.x] = x[threadIdx.x];
}
extern "C" gnn_status packs(const float *x, float *y) {
    return gnn_launch(packs_kernel, dim3(1), dim3(32), 0, 0, (const float4 *)x,
                      (float4 *)y);
}

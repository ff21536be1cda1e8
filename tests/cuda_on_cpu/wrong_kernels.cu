/* wrong_kernels.cu: one mistake each. The line that the executor must name carries the
 * marker "// <- name"; test_strict_errors.py knows the text. x, y hold 64 floats.
 */
#include "executor.h"

#define ONES 0xffffffffu

/* ------------------------------------------------------------------ warps and barriers */

__global__ void not_in_mask(const float *, float *y) {
    y[threadIdx.x] = __shfl_sync(0xfffffffe, 1.0f, 1); // <- not_in_mask
}

__global__ void other_collective(const float *, float *y) {
    if (threadIdx.x % 32 < 8) {
        __syncwarp(); // <- other_collective_waits
    } else {
        y[threadIdx.x] = __shfl_sync(ONES, 1.0f, 1); // <- other_collective
    }
}

__global__ void other_mask(const float *, float *y) {
    const unsigned mask = threadIdx.x % 32 < 8 ? ONES : ONES >> 1;
    if (threadIdx.x % 32 < 31) {
        y[threadIdx.x] = __shfl_sync(mask, 1.0f, 1); // <- other_mask
    }
}

__global__ void two_barriers(const float *, float *y) {
    if (threadIdx.x < 40) {
        __syncthreads(); // <- two_barriers_waits
    } else {
        __syncthreads(); // <- two_barriers
    }
    y[threadIdx.x] = 0;
}

__global__ void deadlock(const float *, float *) {
    if (threadIdx.x == 5) {
        __syncthreads(); // <- deadlock
    } else {
        __syncwarp(); // <- deadlock_waits
    }
}

__global__ void exited_lane(const float *, float *y) {
    if (threadIdx.x % 32 == 7) {
        return;
    }
    y[threadIdx.x] = __shfl_sync(ONES, 1.0f, 7); // <- exited_lane
}

__global__ void unnamed_lane(const float *, float *y) {
    if (threadIdx.x % 32 < 16) {
        y[threadIdx.x] = __shfl_xor_sync(0xffff, 1.0f, 16); // <- unnamed_lane
    }
}

__global__ void bad_width(const float *, float *y) {
    y[threadIdx.x] = __shfl_sync(ONES, 1.0f, 0, 12); // <- bad_width
}

__global__ void endless(const float *x, float *y) {
    while (x[0] == x[0]) { // <- endless
    }
    y[0] = 1;
}

/* --------------------------------------------------------------------------- addresses */

__global__ void past_the_end(const float *, float *y) {
    y[threadIdx.x + 1] = 1; // <- past_the_end
}

__global__ void across_the_end(const float *x, float *y) {
    const long last = long(reinterpret_cast<uintptr_t>(x + 63));
    struct Pair {
        float a, b;
    };
    const Pair pair = *reinterpret_cast<const Pair *>(last); // <- across_the_end
    y[threadIdx.x] = pair.a + pair.b;
}

__global__ void before_the_start(const float *x, float *y) {
    y[threadIdx.x] = x[int(threadIdx.x) - 2]; // <- before_the_start
}

__global__ void misaligned(const float *x, float *y) {
    const float4 v = *reinterpret_cast<const float4 *>(x + 1); // <- misaligned
    y[threadIdx.x] = v.w;
}

__global__ void misaligned_ldg(const float *x, float *y) {
    const double *wide = reinterpret_cast<const double *>(x + 1);
    y[threadIdx.x] = float(__ldg(wide)); // <- misaligned_ldg
}

__global__ void write_to_input(const float *x, float *) {
    const_cast<float *>(x)[threadIdx.x] = 1; // <- write_to_input
}

__global__ void host_memory(const float *, float *y) {
    static float counter[4];       // not in device memory
    counter[threadIdx.x % 4] += 1; // <- host_memory
    y[threadIdx.x] = 1;
}

__global__ void dynamic_past_the_end(const float *, float *) {
    GNN_DYNAMIC_SHARED(float, a); // 64 floats
    a[threadIdx.x + 1] = 1;       // <- dynamic_past_the_end
}

__global__ void index_of_array(const float *, float *y) {
    __shared__ float a[64];
    a[threadIdx.x + 1] = 1; // <- index_of_array
    y[threadIdx.x] = 1;
}

__global__ void int_product(const float *, float *y) {
    const int row = int(threadIdx.x) + 8643286, n_features = 4 * int(blockDim.x);
    const int first = row * n_features; // <- int_product
    y[first % 64] = 1;
}

/* ------------------------------------------------------------------- contents and races */

__global__ void unwritten_shared(const float *, float *y) {
    __shared__ float a[64];
    if (threadIdx.x != 40) {
        a[threadIdx.x] = 1;
    }
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x]; // <- unwritten_shared
}

/* Each block fills one half only: what a block before has left does not count. */
__global__ void unwritten_by_this_block(const float *, float *y) {
    __shared__ float a[128];
    a[threadIdx.x + 64 * blockIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x]; // <- unwritten_by_this_block
}

__global__ void unwritten_output(const float *, float *y) {
    y[threadIdx.x] += 1; // <- unwritten_output
}

__global__ void no_barrier(const float *x, float *y) {
    __shared__ float a[64];
    a[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = a[threadIdx.x / 32 * 32]; // <- no_barrier
}

__global__ void no_second_barrier(const float *x, float *y) {
    __shared__ float a[64];
    for (int round = 0; round < 2; round++) {
        a[threadIdx.x] = x[threadIdx.x]; // <- no_second_barrier
        __syncthreads();
        y[threadIdx.x] = a[threadIdx.x] + a[0];
    }
}

__global__ void shuffle_for_barrier(const float *x, float *y) {
    __shared__ float a[64];
    a[threadIdx.x] = x[threadIdx.x];
    const float v = __shfl_sync(ONES, 1.0f, 0);
    y[threadIdx.x] = v + a[threadIdx.x ^ 1]; // <- shuffle_for_barrier
}

__global__ void warp_barrier_across_warps(const float *x, float *y) {
    __shared__ float a[64];
    a[threadIdx.x] = 0;
    __syncthreads();
    a[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = a[threadIdx.x ^ 32]; // <- warp_barrier_across_warps
}

__global__ void read_then_write(const float *x, float *y) {
    __shared__ float a[64];
    a[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 3) {
        y[3] = a[5];
    }
    if (threadIdx.x == 5) {
        a[5] = 1; // <- read_then_write
    }
}

__global__ void two_readers(const float *x, float *y) {
    __shared__ float a[64];
    a[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 1 || threadIdx.x == 2) {
        y[threadIdx.x] = a[5];
    }
    if (threadIdx.x == 2) {
        a[5] = 1; // <- two_readers
    }
}

__global__ void same_place_written(const float *, float *y) {
    y[threadIdx.x / 2] = 1; // <- same_place_written
}

__global__ void race_of_blocks(const float *, float *y) {
    if (threadIdx.x == 0) {
        y[0] = float(blockIdx.x); // <- race_of_blocks
    }
}

__global__ void nothing(const float *, float *) {}

struct Wrong {
    const char *name;
    void (*kernel)(const float *, float *);
    dim3 grid = {1, 1, 1}, block = {64, 1, 1};
    size_t shared_bytes = 0;
};
#define WRONG(name, ...) {#name, name, __VA_ARGS__}

static const Wrong wrongs[] = {
    WRONG(not_in_mask),
    WRONG(other_collective),
    WRONG(other_mask),
    WRONG(two_barriers),
    WRONG(deadlock),
    WRONG(exited_lane),
    WRONG(unnamed_lane),
    WRONG(bad_width),
    WRONG(endless),
    WRONG(past_the_end),
    WRONG(across_the_end),
    WRONG(before_the_start),
    WRONG(misaligned),
    WRONG(misaligned_ldg),
    WRONG(write_to_input),
    WRONG(host_memory),
    WRONG(dynamic_past_the_end, {1, 1, 1}, {64, 1, 1}, 256),
    WRONG(index_of_array),
    WRONG(int_product),
    WRONG(unwritten_shared),
    WRONG(unwritten_by_this_block, {2, 1, 1}),
    WRONG(unwritten_output),
    WRONG(no_barrier),
    WRONG(no_second_barrier),
    WRONG(shuffle_for_barrier),
    WRONG(warp_barrier_across_warps),
    WRONG(read_then_write),
    WRONG(two_readers),
    WRONG(same_place_written),
    WRONG(race_of_blocks, {3, 1, 1}),
    {"block_too_large", nothing, {1, 1, 1}, {1024, 2, 1}},
    {"block_too_deep", nothing, {1, 1, 1}, {1, 1, 65}},
    {"no_grid", nothing, {0, 1, 1}},
    {"grid_too_high", nothing, {1, 65536, 1}},
    {"shared_too_large", nothing, {1, 1, 1}, {64, 1, 1}, 49153},
};

extern "C" gnn_status run_wrong(const char *name, const float *x, float *y) {
    for (const Wrong &w : wrongs) {
        if (std::strcmp(w.name, name) == 0) {
            return gnn_launch(w.kernel, w.grid, w.block, w.shared_bytes, 0, x, y);
        }
    }
    return gnn_fail(GNN_EINVAL, "no kernel %s", name);
}

/* lanes.cuh: how the lanes of a warp share rows of features.
 *
 * A *group* of 4, 8, 16 or 32 neighbouring lanes holds a *slice* of a row, 16 bytes a
 * lane; a warp holds 32 / lanes groups, each at its own row. All groups of a warp make
 * the same number of steps, so that shuffles and votes always name the whole warp.
 * When pointers, strides and F are multiples of 16 bytes (WIDE) a lane's elements lie
 * side by side and move in one access; else they lie a group's width apart and move one
 * by one. Element k of a lane is feature first + k * step either way.
 */
#ifndef GNN_LANES_CUH
#define GNN_LANES_CUH

#include "cuda/cuda.cuh"

enum {
    GNN_BLOCK_THREADS = 128,
    GNN_BLOCK_WARPS = GNN_BLOCK_THREADS / 32,
    GNN_BLOCKS_AT_LEAST =
        4, // on a multiprocessor: ptxas may use 128 registers, not spill
    GNN_PACK_BYTES = 16,
    GNN_SECTOR_BYTES = 32,
    GNN_EDGES_IN_FLIGHT = 4, // row loads a lane issues before it uses the first
};
static const int64_t GNN_MAX_FEATURES = (int64_t)1 << 30; // feature numbers are ints
#ifndef GNN_MAX_BLOCKS // tests make it small, so that grid strides are walked
#define GNN_MAX_BLOCKS (1 << 24)
#endif
#ifndef GNN_MAX_SLICES // blocks side by side in y; CUDA allows 65535
#define GNN_MAX_SLICES 4096
#endif

static inline unsigned gnn_grid_x(int64_t warps) {
    const int64_t blocks = (warps + GNN_BLOCK_WARPS - 1) / GNN_BLOCK_WARPS;
    return (unsigned)(blocks < GNN_MAX_BLOCKS ? blocks : GNN_MAX_BLOCKS);
}

static inline unsigned gnn_grid_y(int64_t slices) {
    return (unsigned)(slices < GNN_MAX_SLICES ? slices : GNN_MAX_SLICES);
}

/* ------------------------------------------------------------------------------ types */

template <typename T> struct gnn_accumulator {
    typedef float type;
};
template <> struct gnn_accumulator<double> {
    typedef double type;
};

static __device__ __forceinline__ float widen(float v) {
    return v;
}
static __device__ __forceinline__ double widen(double v) {
    return v;
}
static __device__ __forceinline__ float widen(__half v) {
    return __half2float(v);
}
static __device__ __forceinline__ float widen(__nv_bfloat16 v) {
    return __bfloat162float(v);
}

static __device__ __forceinline__ void narrow(float v, float *out) {
    *out = v;
}
static __device__ __forceinline__ void narrow(double v, double *out) {
    *out = v;
}
static __device__ __forceinline__ void narrow(float v, __half *out) {
    *out = __float2half_rn(v);
}
static __device__ __forceinline__ void narrow(float v, __nv_bfloat16 *out) {
    *out = __float2bfloat16_rn(v);
}

/* The caller's edge of entry e. */
static __device__ __forceinline__ int64_t edge_of(const void *eid, bool is_64,
                                                  int64_t e) {
    return eid == NULL ? e
           : is_64     ? __ldg((const int64_t *)eid + e)
                       : __ldg((const int32_t *)eid + e);
}

/* n / divisor for 0 <= n < 2^31 and 1 <= divisor < 2^31 without a division, which is
 * slow: floor(n * multiplier / 2^shift), exact as multiplier * divisor exceeds 2^shift by
 * less than 2^(shift - 31). */
struct gnn_divider {
    uint64_t multiplier;
    int shift, divisor;

    __device__ __forceinline__ int quotient(int n) const {
        return (int)((uint64_t)n * multiplier >> shift);
    }
    __device__ __forceinline__ int remainder(int n) const {
        return n - quotient(n) * divisor;
    }
};

static inline gnn_divider gnn_divider_of(int64_t divisor) {
    int bits = 0;
    while ((int64_t)1 << bits < divisor) {
        bits++;
    }
    const uint64_t power = (uint64_t)1 << (31 + bits), d = (uint64_t)divisor;
    return gnn_divider{(power + d - 1) / d, 31 + bits, (int)divisor};
}

/* ------------------------------------------------------------------------------ groups */

/* Lane, group and warp of this thread, for groups of 1 << shift lanes. */
struct gnn_place_in_warp {
    int shift, lane, lanes, member, group, groups; // member: place in the group
    int64_t warp, warps;                           // of the whole grid in x

    __device__ __forceinline__ explicit gnn_place_in_warp(int group_shift) {
        shift = group_shift;
        lane = (int)(threadIdx.x % 32);
        lanes = 1 << shift;
        member = lane & (lanes - 1);
        group = lane >> shift;
        groups = 32 >> shift;
        warp = (int64_t)blockIdx.x * GNN_BLOCK_WARPS + threadIdx.x / 32;
        warps = (int64_t)gridDim.x * GNN_BLOCK_WARPS;
    }
};

/* Groups of 1 << result lanes for rows of F elements, `size` of them a lane: the fewest
 * that hold the row, at least 4 (a step's indices come in one load) and at most a warp.
 * `least`: lanes wanted besides, if the row has an element for each. */
static inline int gnn_group_shift(int64_t n_features, int size, int64_t least = 4) {
    int shift = 2;
    while (shift < 5 &&
           ((int64_t)size << shift < n_features ||
            ((int64_t)1 << shift < least && (int64_t)1 << shift < n_features))) {
        shift++;
    }
    return shift;
}

static inline int64_t gnn_slice_count(int64_t n_features, int size, int64_t least = 4) {
    const int64_t width = (int64_t)size << gnn_group_shift(n_features, size, least);
    return (n_features + width - 1) / width;
}

/* Lanes that together span a sector of memory, which would be asked for again by the next
 * step of fewer. */
template <typename T, bool WIDE> static inline int64_t gnn_sector_lanes() {
    return WIDE ? 2 : GNN_SECTOR_BYTES / (int64_t)sizeof(T);
}

/* Can rows of F elements at p, stride elements apart, move 16 bytes at a time? */
static inline bool gnn_is_wide(const void *p, int64_t stride, int64_t n_features,
                               int64_t element_bytes) {
    return (uintptr_t)p % GNN_PACK_BYTES == 0 &&
           stride * element_bytes % GNN_PACK_BYTES == 0 &&
           n_features * element_bytes % GNN_PACK_BYTES == 0;
}

/* The largest of the lanes' values, for all lanes. */
static __device__ __forceinline__ int warp_max(int v) {
    GNN_UNROLL
    for (int offset = 16; offset > 0; offset /= 2) {
        const int other = __shfl_xor_sync(GNN_FULL_WARP, v, offset);
        v = other > v ? other : v;
    }
    return v;
}

/* The first row in [low, high] that starts at `target` or later, counting entries, or
 * entries and rows (UNITS): the lanes of a group probe at once. The whole warp calls this
 * together, each group with numbers of its own. */
template <bool UNITS>
static __device__ __forceinline__ int64_t first_row_from(const int64_t *rowptr,
                                                         int64_t target, int64_t low,
                                                         int64_t high,
                                                         const gnn_place_in_warp &at) {
    while (__any_sync(GNN_FULL_WARP, low < high)) {
        const int64_t step = ((high - low) >> at.shift) + 1;
        const int64_t probe = low + at.member * step;
        const bool early =
            probe < high && __ldg(rowptr + probe) + (UNITS ? probe : 0) < target;
        const unsigned votes = __ballot_sync(GNN_FULL_WARP, early);
        const int n_early =
            __popc(votes >> (at.lane - at.member) & GNN_FULL_WARP >> (32 - at.lanes));
        const int64_t beyond = low + n_early * step; // the first probe not too early
        high = n_early == 0 ? low : beyond < high ? beyond : high;
        low = n_early == 0 ? low : beyond - step + 1;
    }
    return low;
}

/* ------------------------------------------------------------------------------- packs */

/* A lane's elements of a row, at most MOST: kernels that hold much for each take less. */
template <typename T, bool WIDE, int MOST = 8> struct gnn_pack {
    enum {
        FULL = WIDE      ? GNN_PACK_BYTES / (int)sizeof(T)
        : sizeof(T) == 8 ? 2
                         : 4,
        SIZE = FULL < MOST ? (int)FULL : MOST,
    };
    T at[SIZE];
};

/* One access of so many bytes. */
template <int BYTES> struct gnn_access;
template <> struct gnn_access<16> {
    typedef uint4 type;
};
template <> struct gnn_access<8> {
    typedef uint2 type;
};

/* Which features of a row are this lane's. */
template <typename T, bool WIDE, int MOST = 8> struct gnn_columns {
    typedef gnn_pack<T, WIDE, MOST> pack;
    enum { IS_WIDE = WIDE };
    int first, step, n_features;

    __device__ __forceinline__ gnn_columns(int slice, const gnn_place_in_warp &at,
                                           int n) {
        const int begin = slice * at.lanes * (int)pack::SIZE;
        first = begin + at.member * (WIDE ? (int)pack::SIZE : 1);
        step = WIDE ? 1 : at.lanes;
        n_features = n;
    }

    __device__ __forceinline__ bool has(int k) const { // WIDE: all of a pack or none
        return first + (WIDE ? 0 : k * step) < n_features;
    }

    /* This lane's part of a row [F]; zeros past its end and where there is no row. */
    __device__ __forceinline__ pack load(const T *row, bool wanted) const {
        pack out;
        if constexpr (WIDE) {
            typename gnn_access<sizeof(pack)>::type raw = {};
            if (wanted && has(0)) {
                raw = __ldg(
                    (const typename gnn_access<sizeof(pack)>::type *)(row + first));
            }
            memcpy(&out, &raw, sizeof raw);
        } else {
            GNN_UNROLL
            for (int k = 0; k < pack::SIZE; k++) {
                narrow(0, &out.at[k]);
                if (wanted && has(k)) {
                    out.at[k] = row[first + k * step];
                }
            }
        }
        return out;
    }

    __device__ __forceinline__ void store(T *row, const pack &in) const {
        if constexpr (WIDE) {
            if (has(0)) {
                typename gnn_access<sizeof(pack)>::type raw;
                memcpy(&raw, &in, sizeof raw);
                *(typename gnn_access<sizeof(pack)>::type *)(row + first) = raw;
            }
        } else {
            GNN_UNROLL
            for (int k = 0; k < pack::SIZE; k++) {
                if (has(k)) {
                    row[first + k * step] = in.at[k];
                }
            }
        }
    }
};

#endif

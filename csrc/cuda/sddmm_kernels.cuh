/* sddmm_kernels.cuh: sampled dense-dense product on CUDA.
 *
 * Entries do not meet, so a warp takes SDDMM_WINDOW of them whatever their rows. A lane
 * finds row, column and scales of one entry; then each group of lanes takes the dot
 * product of one entry at a time, four in flight, and hands it back to that lane, which
 * writes it. Neighbouring entries share their row of u: it is read again each time, from
 * the nearest cache, since holding it would make every entry wait for the one before.
 */
#ifndef GNN_SDDMM_KERNELS_CUH
#define GNN_SDDMM_KERNELS_CUH

#include "cuda/lanes.cuh"

enum { SDDMM_WINDOW = 128 }; // entries

/* Device pointers; strides in elements. */
template <typename T> struct sddmm_view {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t *rowptr; // [n_rows + 1]
    const int32_t *col;    // [n_edges]
    const void *eid;       // [n_edges] or NULL
    const T *u;            // [n_rows, F], rows u_stride apart
    const T *v;            // [n_cols, F], rows v_stride apart
    const A *row_scale;    // [n_rows] or NULL
    const A *col_scale;    // [n_cols] or NULL
    T *z;                  // [n_edges] in the caller's order
    int64_t n_rows, n_edges, u_stride, v_stride;
    int n_features, n_slices, group_shift;
    bool eid_is_64;
};

/* The row of entry e: the last one in [low, beyond) that starts at e or before. */
static __device__ __forceinline__ int64_t row_of_entry(const int64_t *rowptr, int64_t e,
                                                       int64_t low, int64_t beyond) {
    while (beyond - low > 1) {
        const int64_t middle = low + (beyond - low) / 2;
        const bool after = __ldg(rowptr + middle) > e;
        low = after ? low : middle;
        beyond = after ? middle : beyond;
    }
    return low;
}

/* Two matrices of which dot products of n_features elements are taken. */
template <typename T> struct dot_operands {
    const T *u, *v;
    int n_features, n_slices;
};

/* The first n of 32 dot products; lane k gets that of the k-th, for which it brings where
 * in u and v the elements begin. */
template <typename T, bool WIDE>
static __device__ __forceinline__ typename gnn_accumulator<T>::type
dot_products(const dot_operands<T> &s, int64_t u_begin, int64_t v_begin, int n,
             const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE> pack;
    A mine = 0;
    for (int first = 0; first < n; first += GNN_EDGES_IN_FLIGHT * at.groups) {
        A dot[GNN_EDGES_IN_FLIGHT];
        GNN_UNROLL
        for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
            dot[j] = 0;
        }
        for (int slice = 0; slice < s.n_slices; slice++) {
            const gnn_columns<T, WIDE> columns(slice, at, s.n_features);
            pack u[GNN_EDGES_IN_FLIGHT], v[GNN_EDGES_IN_FLIGHT];
            GNN_UNROLL
            for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
                const int entry = first + j * at.groups + at.group; // below 32
                const int64_t of_u = __shfl_sync(GNN_FULL_WARP, u_begin, entry);
                const int64_t of_v = __shfl_sync(GNN_FULL_WARP, v_begin, entry);
                u[j] = columns.load(s.u + of_u, entry < n);
                v[j] = columns.load(s.v + of_v, entry < n);
            }
            GNN_UNROLL
            for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
                GNN_UNROLL
                for (int k = 0; k < pack::SIZE; k++) {
                    dot[j] += (A)widen(u[j].at[k]) * (A)widen(v[j].at[k]);
                }
            }
        }
        GNN_UNROLL
        for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
            for (int offset = at.lanes / 2; offset > 0; offset /= 2) {
                dot[j] += __shfl_xor_sync(GNN_FULL_WARP, dot[j], offset);
            }
            // entry begin + g is group g's
            const int begin = first + j * at.groups;
            const int group = (at.lane - begin) & (at.groups - 1);
            const A of_entry = __shfl_sync(GNN_FULL_WARP, dot[j], group << at.shift);
            mine = at.lane >= begin && at.lane < begin + at.groups ? of_entry : mine;
        }
    }
    return mine;
}

template <typename T, bool WIDE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    sddmm_entries_kernel(const sddmm_view<T> s) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(s.group_shift), whole_warp(5);
    const dot_operands<T> operands = {s.u, s.v, s.n_features, s.n_slices};
    const int64_t n_windows = (s.n_edges + SDDMM_WINDOW - 1) / SDDMM_WINDOW;
    for (int64_t w = at.warp; w < n_windows; w += at.warps) {
        const int64_t begin = w * SDDMM_WINDOW;
        const int64_t left = s.n_edges - begin;
        const int64_t end = begin + (left < SDDMM_WINDOW ? left : SDDMM_WINDOW);
        // rows that start after the window's first entry, and after its last
        const int64_t second =
            first_row_from<false>(s.rowptr, begin + 1, 0, s.n_rows, whole_warp);
        const int64_t beyond =
            first_row_from<false>(s.rowptr, end, second, s.n_rows, whole_warp);
        for (int64_t base = begin; base < end; base += 32) {
            const int64_t e = base + at.lane;
            const int n = end - base < 32 ? (int)(end - base) : 32;
            int64_t row = second - 1;
            int col = 0;
            A scale = 1;
            if (at.lane < n) {
                row = row_of_entry(s.rowptr, e, second - 1, beyond);
                col = __ldg(s.col + e);
                scale = s.row_scale != NULL ? __ldg(s.row_scale + row) : scale;
                scale *= s.col_scale != NULL ? __ldg(s.col_scale + col) : (A)1;
            }
            const A dot = dot_products<T, WIDE>(operands, row * s.u_stride,
                                                col * s.v_stride, n, at);
            if (at.lane < n) {
                narrow(scale * dot, s.z + edge_of(s.eid, s.eid_is_64, e));
            }
        }
    }
}

#endif

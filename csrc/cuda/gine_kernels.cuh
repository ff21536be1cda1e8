/* gine_kernels.cuh: sums of relu messages on CUDA, and their two derivatives.
 *
 * Items, rows and the join of heavy rows are spmm's (spmm_kernels.cuh); here is what an
 * entry e of row i adds, with gate = 1 where the message is above 0 or NaN:
 *
 *   GINE_SUM  gate * m            m = x[col] + edge[eid]
 *   GINE_JVP  gate * (dx[col] + dedge[eid])
 *   GINE_VJP  gate * grad[col]    m = x[i] + edge[eid]; also written to grad_edge[eid]
 */
#ifndef GNN_GINE_KERNELS_CUH
#define GNN_GINE_KERNELS_CUH

#include "cuda/spmm_kernels.cuh"

enum gine_mode { GINE_SUM, GINE_JVP, GINE_VJP };

/* A matrix [*, F] whose rows are `stride` elements apart; at NULL: zeros. */
template <typename T> struct gine_matrix {
    const T *at;
    int64_t stride;
};

template <typename T> struct gine_view {
    spmm_view<T> rows;        // y [n_rows, F], or NULL where it is not wanted
    gine_matrix<T> gathered;  // x [n_cols, F]; GINE_VJP: grad
    gine_matrix<T> edge;      // [n_edges, F]
    gine_matrix<T> dx, dedge; // GINE_JVP: [n_cols, F], [n_edges, F]
    gine_matrix<T> own;       // GINE_VJP: x [n_rows, F]
    T *grad_edge;             // GINE_VJP: [n_edges, F] or NULL
};

template <typename T, bool WIDE, int MODE>
static __device__ __forceinline__ void
walk_messages(const gine_view<T> &g, const spmm_item &item,
              const gnn_columns<T, WIDE> &columns, const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE> pack;
    enum { IN_FLIGHT = 2 }; // entries; each is two row loads or four
    const spmm_view<T> &s = g.rows;
    const int longest = warp_max(item.n);
    spmm_row<T, WIDE> row(s, item, columns);
    pack own = columns.load(g.own.at + item.row * g.own.stride,
                            MODE == GINE_VJP && item.n > 0);
    for (int base = 0; base < longest; base += at.lanes) {
        int col = 0;
        int64_t edge = 0;
        if (base + at.member < item.n) {
            const int64_t mine = item.entry + base + at.member;
            col = __ldg(s.col + mine);
            edge = edge_of(s.eid, s.eid_is_64, mine);
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += IN_FLIGHT) {
            pack x[IN_FLIGHT], a[IN_FLIGHT], dx[IN_FLIGHT], da[IN_FLIGHT];
            int64_t e[IN_FLIGHT];
            GNN_UNROLL
            for (int j = 0; j < IN_FLIGHT; j++) {
                const bool live = base + k + j < item.n;
                const int64_t c = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                e[j] = __shfl_sync(GNN_FULL_WARP, edge, k + j, at.lanes);
                x[j] = columns.load(g.gathered.at + c * g.gathered.stride, live);
                a[j] = columns.load(g.edge.at + e[j] * g.edge.stride, live);
                if (MODE == GINE_JVP) {
                    dx[j] = columns.load(g.dx.at + c * g.dx.stride,
                                         live && g.dx.at != NULL);
                    da[j] = columns.load(g.dedge.at + e[j] * g.dedge.stride,
                                         live && g.dedge.at != NULL);
                }
            }
            GNN_UNROLL
            for (int j = 0; j < IN_FLIGHT; j++) {
                if (base + k + j < item.n) {
                    while (base + k + j == row.cut) {
                        row.close();
                        own =
                            columns.load(g.own.at + (item.row + row.row) * g.own.stride,
                                         MODE == GINE_VJP);
                    }
                    pack passed;
                    GNN_UNROLL
                    for (int i = 0; i < pack::SIZE; i++) {
                        const A source = widen(x[j].at[i]), of_edge = widen(a[j].at[i]);
                        const A m =
                            (MODE == GINE_VJP ? (A)widen(own.at[i]) : source) + of_edge;
                        const A v = MODE == GINE_SUM ? m
                                    : MODE == GINE_VJP
                                        ? source
                                        : (A)widen(dx[j].at[i]) + (A)widen(da[j].at[i]);
                        const A term = m <= 0 ? (A)0 : v; // NaN passes
                        row.sum[i] += term;
                        narrow(term, &passed.at[i]);
                    }
                    if (MODE == GINE_VJP && g.grad_edge != NULL) {
                        columns.store(g.grad_edge + e[j] * s.n_features, passed);
                    }
                }
            }
        }
    }
    while (row.row < item.n_rows) {
        row.close();
    }
}

template <typename T, bool WIDE, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    gine_items_kernel(const gine_view<T> g) {
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(s.group_shift);
    const int64_t n_items = s.n_split + s.n_windows;
    for (int slice = (int)blockIdx.y; slice < s.n_slices; slice += (int)gridDim.y) {
        const gnn_columns<T, WIDE> columns(slice, at, s.n_features);
        for (int64_t i = at.warp * at.groups; i < n_items; i += at.warps * at.groups) {
            walk_messages<T, WIDE, MODE>(g, find_item(s, i + at.group, at), columns,
                                         at);
        }
    }
}

#endif

/* heads_kernels.cuh: products head by head on CUDA.
 *
 * heads_spmm   Items, rows and the join of heavy rows are spmm's. A row has the H * C
 *              features of all heads; an entry has a weight for each head, which a lane
 *              reads for the heads of its features (one where they move 16 bytes at a
 *              time: then a lane's are all of one head).
 * heads_sddmm  As sddmm, with an entry and head where that has an entry: neighbouring
 *              groups of lanes take the heads of one entry, so a row is still read whole.
 */
#ifndef GNN_HEADS_KERNELS_CUH
#define GNN_HEADS_KERNELS_CUH

#include "cuda/sddmm_kernels.cuh"
#include "cuda/spmm_kernels.cuh"

/* -------------------------------------------------------------------------- heads_spmm */

/* W: type of the weights, T or its accumulator. */
template <typename T, typename W> struct heads_spmm_view {
    spmm_view<T> rows;       // x [n_cols, H * C], y [n_rows, H * C]
    const W *w;              // [n_edges, H] in the caller's order
    gnn_divider by_channels; // feature -> head
    int n_heads;
};

template <typename T, typename W, bool WIDE>
static __device__ __forceinline__ void
walk_heads(const heads_spmm_view<T, W> &g, const spmm_item &item,
           const gnn_columns<T, WIDE> &columns, const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE> pack;
    enum { HEADS = WIDE ? 1 : (int)pack::SIZE }; // of a lane's elements
    const spmm_view<T> &s = g.rows;
    const int longest = warp_max(item.n);
    int head[HEADS];
    GNN_UNROLL
    for (int k = 0; k < HEADS; k++) {
        head[k] = columns.has(k)
                      ? g.by_channels.quotient(columns.first + k * columns.step)
                      : 0;
    }
    spmm_row<T, WIDE> row(s, item, columns);
    for (int base = 0; base < longest; base += at.lanes) {
        int col = 0;
        int64_t edge = 0;
        if (base + at.member < item.n) {
            const int64_t mine = item.entry + base + at.member;
            col = __ldg(s.col + mine);
            edge = edge_of(s.eid, s.eid_is_64, mine);
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += GNN_EDGES_IN_FLIGHT) {
            pack x[GNN_EDGES_IN_FLIGHT];
            W w[GNN_EDGES_IN_FLIGHT][HEADS];
            GNN_UNROLL
            for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
                const bool live = base + k + j < item.n;
                const int64_t c = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                const int64_t e = __shfl_sync(GNN_FULL_WARP, edge, k + j, at.lanes);
                x[j] = columns.load(s.x + c * s.x_stride, live);
                GNN_UNROLL
                for (int i = 0; i < HEADS; i++) {
                    narrow(0, &w[j][i]);
                    if (live && columns.has(i)) {
                        w[j][i] = g.w[e * g.n_heads + head[i]];
                    }
                }
            }
            GNN_UNROLL
            for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
                if (base + k + j < item.n) {
                    while (base + k + j == row.cut) {
                        row.close();
                    }
                    GNN_UNROLL
                    for (int i = 0; i < pack::SIZE; i++) {
                        const A c = widen(w[j][WIDE ? 0 : i]);
                        row.sum[i] += c * (A)widen(x[j].at[i]);
                    }
                }
            }
        }
    }
    while (row.row < item.n_rows) {
        row.close();
    }
}

template <typename T, typename W, bool WIDE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    heads_spmm_kernel(const heads_spmm_view<T, W> g) {
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(s.group_shift);
    const int64_t n_items = s.n_split + s.n_windows;
    for (int slice = (int)blockIdx.y; slice < s.n_slices; slice += (int)gridDim.y) {
        const gnn_columns<T, WIDE> columns(slice, at, s.n_features);
        for (int64_t i = at.warp * at.groups; i < n_items; i += at.warps * at.groups) {
            walk_heads(g, find_item(s, i + at.group, at), columns, at);
        }
    }
}

/* ------------------------------------------------------------------------- heads_sddmm */

/* Device pointers; strides in elements. Z: T or its accumulator. */
template <typename T, typename Z> struct heads_sddmm_view {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t *rowptr; // [n_rows + 1]
    const int32_t *col;    // [n_edges]
    const void *eid;       // [n_edges] or NULL
    const T *u;            // [n_rows, H * C], rows u_stride apart
    const T *v;            // [n_cols, H * C], rows v_stride apart
    Z *z;                  // [n_edges, H] in the caller's order
    A scale;
    int64_t n_rows, n_edges, u_stride, v_stride;
    gnn_divider by_heads;
    int n_channels, n_slices, group_shift, window; // window: entries a warp takes
    bool eid_is_64;
};

template <typename T, typename Z, bool WIDE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    heads_sddmm_kernel(const heads_sddmm_view<T, Z> s) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(s.group_shift), whole_warp(5);
    const dot_operands<T> operands = {s.u, s.v, s.n_channels, s.n_slices};
    for (int64_t begin = at.warp * s.window; begin < s.n_edges;
         begin += at.warps * s.window) {
        const int64_t left = s.n_edges - begin;
        const int64_t end = begin + (left < s.window ? left : s.window);
        // rows that start after the window's first entry, and after its last
        const int64_t second =
            first_row_from<false>(s.rowptr, begin + 1, 0, s.n_rows, whole_warp);
        const int64_t beyond =
            first_row_from<false>(s.rowptr, end, second, s.n_rows, whole_warp);
        const int n_heads = s.by_heads.divisor;
        const int n_products = (int)(end - begin) * n_heads;
        for (int base = 0; base < n_products; base += 32) {
            const int n = n_products - base < 32 ? n_products - base : 32;
            int64_t e = begin, u_begin = 0, v_begin = 0;
            int head = 0;
            if (at.lane < n) {
                const int entry = s.by_heads.quotient(base + at.lane);
                head = base + at.lane - entry * n_heads;
                e = begin + entry;
                const int64_t row = row_of_entry(s.rowptr, e, second - 1, beyond);
                const int64_t of_head = (int64_t)head * s.n_channels;
                u_begin = row * s.u_stride + of_head;
                v_begin = __ldg(s.col + e) * s.v_stride + of_head;
            }
            const A dot = dot_products<T, WIDE>(operands, u_begin, v_begin, n, at);
            if (at.lane < n) {
                const int64_t edge = edge_of(s.eid, s.eid_is_64, e);
                narrow(s.scale * dot, s.z + edge * n_heads + head);
            }
        }
    }
}

#endif

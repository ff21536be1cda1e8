/* softmax_aggregate_kernels.cuh: softmax aggregation on CUDA, feature by feature, and its
 * gradients.
 *
 * Forward keeps the sum of p * m beside the sum of p (softmax.cuh), and joins both chunk
 * by chunk, as the kernels of aggregate do. Backward walks the transpose: p is made again
 * from lse, so an entry needs the rows lse, y and g of its destination. The gradient of t
 * is a sum over all entries: partial q takes items q, q + P, ..; the P of them are added
 * up 128 at a time. P depends on the graph alone.
 */
#ifndef GNN_SOFTMAX_AGGREGATE_KERNELS_CUH
#define GNN_SOFTMAX_AGGREGATE_KERNELS_CUH

#include "cuda/reduce_rows.cuh"

enum {
    SOFTMAX_MOST = 4,     // elements a lane takes at most: six numbers for each
    SOFTMAX_COLUMN = 128, // rows that one lane adds up
};
#ifndef SOFTMAX_PARTIALS // of the gradient of t, at most; tests make it small
#define SOFTMAX_PARTIALS 16384
#endif

/* Device pointers; what is NULL is not wanted. */
template <typename T> struct softmax_aggregate_view {
    typedef typename gnn_accumulator<T>::type A;
    spmm_view<T> rows;     // forward: x, y; backward: y is d_x [n_src, F]
    reduce_matrix<T> edge; // [n_edges, F]
    const A *t;            // [F]
    A eps;
    bool relu, semi_grad;
    // forward
    A *out_acc, *lse; // [n_dst, F]
    A *parts;         // [n_split, 3, F] max, sum, sum of p * m
    // backward
    reduce_matrix<T> own, grad;     // x [n_src, F]; g [n_dst, F]
    const A *given_out, *given_lse; // [n_dst, F]
    T *grad_edge;                   // [n_edges, F]
    A *t_parts;                     // [n_partials, F]
    int64_t n_partials;             // a multiple of the groups of a warp
};

/* x + edge, before relu. */
template <typename T>
static __device__ __forceinline__ typename gnn_accumulator<T>::type
softmax_operand(const softmax_aggregate_view<T> &g, T x, T edge) {
    typedef typename gnn_accumulator<T>::type A;
    return g.edge.at == NULL ? (A)widen(x) : (A)widen(x) + (A)widen(edge);
}

/* The message of it; NaN passes relu. */
template <typename T>
static __device__ __forceinline__ typename gnn_accumulator<T>::type
softmax_message(const softmax_aggregate_view<T> &g,
                typename gnn_accumulator<T>::type m) {
    typedef typename gnn_accumulator<T>::type A;
    return !g.relu ? m : (m <= 0 ? (A)0 : m) + g.eps;
}

/* ------------------------------------------------------------------------------ forward */

template <typename A> struct softmax_state {
    gnn_exp_sum<A> weight;
    A value; // sum of p * m

    __device__ __forceinline__ softmax_state() : value(0) {}

    __device__ __forceinline__ void merge(gnn_exp_sum<A> other, A other_value) {
        A theirs;
        const A ours = weight.merge(other, &theirs);
        value = value * ours + other_value * theirs;
    }

    /* y of a row of n messages; one that is infinite makes it NaN. */
    __device__ __forceinline__ A result(int64_t n) const {
        const A finite = weight.max - weight.max; // 0, or NaN
        return n == 0 ? (A)0 : value * (1 / weight.sum) + finite;
    }
};

template <typename T, typename Columns>
static __device__ __forceinline__ void
store_softmax_row(const softmax_aggregate_view<T> &g, int64_t row, int64_t n,
                  const Columns &columns,
                  const softmax_state<typename gnn_accumulator<T>::type> *states) {
    typedef typename gnn_accumulator<T>::type A;
    enum { SIZE = Columns::pack::SIZE };
    const int64_t at = row * g.rows.n_features;
    typename Columns::pack y;
    reduce_elements<A, SIZE> exact, lse;
    GNN_UNROLL
    for (int k = 0; k < SIZE; k++) {
        exact.at[k] = states[k].result(n);
        lse.at[k] = states[k].weight.log_sum();
        narrow(exact.at[k], &y.at[k]);
    }
    columns.store(g.rows.y + at, y);
    if (g.out_acc != NULL) {
        store_elements(g.out_acc + at, columns, exact);
    }
    if (g.lse != NULL) {
        store_elements(g.lse + at, columns, lse);
    }
}

template <typename T, typename Columns>
static __device__ __forceinline__ void
walk_softmax(const softmax_aggregate_view<T> &g, const spmm_item &item,
             const Columns &columns, const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef typename Columns::pack pack;
    enum { IN_FLIGHT = 2, SIZE = pack::SIZE };
    const spmm_view<T> &s = g.rows;
    const int longest = warp_max(item.n);
    const bool has_edge = g.edge.at != NULL;
    const reduce_elements<A, SIZE> t = load_elements(g.t, columns, true);
    reduce_cursor cursor(s.rowptr, item);
    softmax_state<A> done[SIZE], open[SIZE]; // of this row; of this chunk
    // ends a chunk and, at its end, the row
    const auto close = [&]() {
        GNN_UNROLL
        for (int i = 0; i < SIZE; i++) {
            done[i].merge(open[i].weight, open[i].value);
            open[i] = softmax_state<A>();
        }
        if (cursor.cut == cursor.end) {
            if (item.slot >= 0) {
                A *part = g.parts + item.slot * 3 * s.n_features; // [3, F]
                GNN_UNROLL
                for (int i = 0; i < SIZE; i++) {
                    if (columns.has(i)) {
                        const int f = columns.first + i * columns.step;
                        part[f] = done[i].weight.max;
                        part[s.n_features + f] = done[i].weight.sum;
                        part[2 * (int64_t)s.n_features + f] = done[i].value;
                    }
                }
            } else {
                store_softmax_row(g, item.row + cursor.row, cursor.end - cursor.begin,
                                  columns, done);
            }
            GNN_UNROLL
            for (int i = 0; i < SIZE; i++) {
                done[i] = softmax_state<A>();
            }
        }
        cursor.advance();
    };
    for (int base = 0; base < longest; base += at.lanes) {
        int col = 0;
        int64_t edge = 0;
        if (base + at.member < item.n) {
            const int64_t mine = item.entry + base + at.member;
            col = __ldg(s.col + mine);
            edge = has_edge ? edge_of(s.eid, s.eid_is_64, mine) : 0;
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += IN_FLIGHT) {
            pack x[IN_FLIGHT], a[IN_FLIGHT];
            GNN_UNROLL
            for (int j = 0; j < IN_FLIGHT; j++) {
                const bool live = base + k + j < item.n;
                const int64_t c = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                const int64_t e = __shfl_sync(GNN_FULL_WARP, edge, k + j, at.lanes);
                x[j] = columns.load(s.x + c * s.x_stride, live);
                a[j] = columns.load(g.edge.at + e * g.edge.stride, live && has_edge);
            }
            GNN_UNROLL
            for (int j = 0; j < IN_FLIGHT; j++) {
                if (base + k + j < item.n) {
                    while (base + k + j == cursor.cut) {
                        close();
                    }
                    GNN_UNROLL
                    for (int i = 0; i < SIZE; i++) {
                        const A m = softmax_message(
                            g, softmax_operand(g, x[j].at[i], a[j].at[i]));
                        open[i].merge(gnn_exp_sum<A>(t.at[i] * m, 1), m);
                    }
                }
            }
        }
    }
    while (cursor.row < item.n_rows) {
        close();
    }
}

template <typename T, bool WIDE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    softmax_aggregate_items_kernel(const softmax_aggregate_view<T> g) {
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(s.group_shift);
    const int64_t n_items = s.n_split + s.n_windows;
    for (int slice = (int)blockIdx.y; slice < s.n_slices; slice += (int)gridDim.y) {
        const gnn_columns<T, WIDE, SOFTMAX_MOST> columns(slice, at, s.n_features);
        for (int64_t i = at.warp * at.groups; i < n_items; i += at.warps * at.groups) {
            walk_softmax(g, find_item(s, i + at.group, at), columns, at);
        }
    }
}

/* Heavy rows from their parts, in order: a lane for each row and feature. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    softmax_aggregate_join_kernel(const softmax_aggregate_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(5);
    for (int64_t slot = at.warp; slot < s.n_split; slot += at.warps) {
        if (s.split[2 * slot + 1] != 0) {
            continue;
        }
        const int64_t row = s.split[2 * slot];
        const int64_t degree = s.rowptr[row + 1] - s.rowptr[row];
        const int64_t n_chunks = (degree + SPMM_CHUNK - 1) / SPMM_CHUNK;
        for (int64_t slab = blockIdx.y; slab * 32 < s.n_features; slab += gridDim.y) {
            const gnn_columns<T, false, 1> columns((int)slab, at, s.n_features);
            softmax_state<A> state[1];
            if (columns.has(0)) {
                const A *part = g.parts + slot * 3 * s.n_features + columns.first;
                for (int64_t c = 0; c < n_chunks; c++) {
                    const gnn_exp_sum<A> weight(part[0], part[s.n_features]);
                    state[0].merge(weight, part[2 * (int64_t)s.n_features]);
                    part += 3 * (int64_t)s.n_features;
                }
            }
            store_softmax_row(g, row, degree, columns, state);
        }
    }
}

/* ----------------------------------------------------------------------------- backward */

template <typename T, bool WIDE>
static __device__ __forceinline__ void walk_softmax_gradients(
    const softmax_aggregate_view<T> &g, const spmm_item &item,
    const gnn_columns<T, WIDE, SOFTMAX_MOST> &columns, const gnn_place_in_warp &at,
    typename gnn_accumulator<T>::type (&of_t)[gnn_pack<T, WIDE, SOFTMAX_MOST>::SIZE]) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE, SOFTMAX_MOST> pack;
    enum { SIZE = pack::SIZE };
    const spmm_view<T> &s = g.rows;
    const int longest = warp_max(item.n);
    const bool has_edge = g.edge.at != NULL;
    const reduce_elements<A, SIZE> t = load_elements(g.t, columns, true);
    spmm_row<T, WIDE, SOFTMAX_MOST> row(s, item, columns);
    pack own = columns.load(g.own.at + item.row * g.own.stride, item.n > 0);
    for (int base = 0; base < longest; base += at.lanes) {
        int col = 0;
        int64_t edge = 0;
        if (base + at.member < item.n) {
            const int64_t mine = item.entry + base + at.member;
            col = __ldg(s.col + mine);
            edge = edge_of(s.eid, s.eid_is_64, mine);
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k++) { // four row loads in flight
            const bool live = base + k < item.n;
            const int64_t to = __shfl_sync(GNN_FULL_WARP, col, k, at.lanes);
            const int64_t e = __shfl_sync(GNN_FULL_WARP, edge, k, at.lanes);
            const int64_t of_row = to * s.n_features;
            const auto lse = load_elements(g.given_lse + of_row, columns, live);
            const auto out = load_elements(g.given_out + of_row, columns, live);
            const pack grad = columns.load(g.grad.at + to * g.grad.stride, live);
            const pack a =
                columns.load(g.edge.at + e * g.edge.stride, live && has_edge);
            if (live) {
                while (base + k == row.cut) {
                    row.close();
                    own = columns.load(g.own.at + (item.row + row.row) * g.own.stride,
                                       true);
                }
                pack passed;
                GNN_UNROLL
                for (int i = 0; i < SIZE; i++) {
                    const A before = softmax_operand(g, own.at[i], a.at[i]);
                    const A m = softmax_message(g, before);
                    const A p = exp_of(t.at[i] * m - lse.at[i]);
                    const A gp = (A)widen(grad.at[i]) * p, beyond = m - out.at[i];
                    const A d = g.semi_grad ? gp : gp * (1 + t.at[i] * beyond);
                    const A term = g.relu && before <= 0 ? (A)0 : d;
                    of_t[i] += gp * m * beyond;
                    row.sum[i] += term;
                    narrow(term, &passed.at[i]);
                }
                if (g.grad_edge != NULL) {
                    columns.store(g.grad_edge + e * s.n_features, passed);
                }
            }
        }
    }
    while (row.row < item.n_rows) {
        row.close();
    }
}

template <typename T, bool WIDE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    softmax_aggregate_vjp_items_kernel(const softmax_aggregate_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    enum { SIZE = gnn_pack<T, WIDE, SOFTMAX_MOST>::SIZE };
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(s.group_shift);
    const int64_t n_items = s.n_split + s.n_windows;
    for (int slice = (int)blockIdx.y; slice < s.n_slices; slice += (int)gridDim.y) {
        const gnn_columns<T, WIDE, SOFTMAX_MOST> columns(slice, at, s.n_features);
        for (int64_t q = at.warp * at.groups; q < g.n_partials;
             q += at.warps * at.groups) {
            A of_t[SIZE];
            GNN_UNROLL
            for (int k = 0; k < SIZE; k++) {
                of_t[k] = 0;
            }
            for (int64_t i = q; i < n_items; i += g.n_partials) {
                walk_softmax_gradients(g, find_item(s, i + at.group, at), columns, at,
                                       of_t);
            }
            if (g.t_parts != NULL) {
                A *part = g.t_parts + (q + at.group) * s.n_features; // [F]
                GNN_UNROLL
                for (int k = 0; k < SIZE; k++) {
                    if (columns.has(k)) {
                        part[columns.first + k * columns.step] = of_t[k];
                    }
                }
            }
        }
    }
}

/* out[r, :] = sum of rows r * SOFTMAX_COLUMN and following of in [n, F], in order. */
template <typename A>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    softmax_aggregate_columns_kernel(const A *in, A *out, int64_t n, int n_features) {
    const gnn_place_in_warp at(5);
    for (int64_t r = at.warp; r * SOFTMAX_COLUMN < n; r += at.warps) {
        const int64_t begin = r * SOFTMAX_COLUMN, left = n - begin;
        const int rows = left < SOFTMAX_COLUMN ? (int)left : (int)SOFTMAX_COLUMN;
        GNN_UNROLL_BY(1) // more would count its turns, with a division
        for (int f = (int)blockIdx.y * 32 + at.lane; f < n_features;
             f += (int)gridDim.y * 32) {
            A total = 0;
            GNN_UNROLL_BY(16)
            for (int i = 0; i < rows; i++) {
                total += in[(begin + i) * n_features + f];
            }
            out[r * n_features + f] = total;
        }
    }
}

#endif

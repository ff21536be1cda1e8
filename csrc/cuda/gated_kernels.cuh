/* gated_kernels.cuh: sums of gated messages on CUDA, and their gradients.
 *
 * Items are spmm's (spmm_kernels.cuh), rows are closed chunk by chunk as in aggregate's
 * kernels. What an entry adds to its row, with gate and value of what the row's own
 * matrix, the gathered one and the edge hold:
 *
 *   GATED_SUM  own is u, v is gathered: the term, and its derivatives by u
 *   GATED_VJP  own is v, u and the gradient are gathered: the term's derivatives times
 *              the gradient, written to d_edge as well
 *
 * An entry's rows, four or five of them, are in flight together; one entry at a time.
 */
#ifndef GNN_GATED_KERNELS_CUH
#define GNN_GATED_KERNELS_CUH

#include "cuda/reduce_rows.cuh"

enum gated_mode { GATED_SUM, GATED_VJP };
enum { GATED_MOST = 4 }; // elements a lane takes at most: three sums for each
enum { OF_GATE, OF_VALUE, OF_TERM, N_SUMS }; // OF_TERM: GATED_SUM

/* Device pointers; what is NULL is absent or not wanted. Sums of a chunk lie in parts:
 * terms (GATED_SUM), gates, values (GATED_SUM: with u_has_value), F of each. */
template <typename T> struct gated_view {
    typedef typename gnn_accumulator<T>::type A;
    spmm_view<T> rows; // y [n_rows, F]; GATED_VJP: d_v [n_rows, 2 F]
    reduce_matrix<T> own, gathered, edge, grad;
    const A *scale; // by destination
    bool softplus, u_has_value;
    A *dy_du;  // GATED_SUM: [n_rows, part_width - F]
    T *d_edge; // GATED_VJP: [n_edges, 2 F]
    A *parts;  // [n_split, part_width]
    int64_t part_width;
};

/* -------------------------------------------------------------------------- functions */

template <typename A> static __device__ __forceinline__ A sigmoid_of(A z) {
    return 1 / (1 + exp_of(-z));
}

/* artanh(s) / s of q = s^2 <= 0.0295: what is left out is below 3e-9, and 2e-18 */
static __device__ __forceinline__ float artanh_series(float q) {
    const float tail = 1.0F / 7 + q * (1.0F / 9 + q * (1.0F / 11));
    return 1 + q * (1.0F / 3 + q * (1.0F / 5 + q * tail));
}
static __device__ __forceinline__ double artanh_series(double q) {
    double tail = 1.0 / 19 + q * (1.0 / 21 + q * (1.0 / 23));
    tail = 1.0 / 13 + q * (1.0 / 15 + q * (1.0 / 17 + q * tail));
    tail = 1.0 / 7 + q * (1.0 / 9 + q * (1.0 / 11 + q * tail));
    return 1 + q * (1.0 / 3 + q * (1.0 / 5 + q * tail));
}

/* log(1 + e^z), above 20 z itself as torch has it, and its derivative. With t = e^-|z|,
 * log(1 + t) is 2 artanh(t / (2 + t)), or log 2 + 2 artanh((t - 1) / (t + 3)) where t is
 * above sqrt 2 - 1: nothing cancels. */
template <typename A> static __device__ __forceinline__ A softplus_of(A z, A *rise) {
    const bool up = z > 0; // NaN: no, and t is NaN
    const A e = exp_of(up ? -z : z), t = z > 20 ? (A)0 : e, over = 1 / (1 + t);
    const bool big = t > (A)0.41421356237309505;
    const A s = (big ? t - 1 : t) * (1 / (t + (big ? (A)3 : (A)2)));
    *rise = up ? over : t * over;
    return (up ? z : (A)0) +
           ((big ? (A)0.69314718055994531 : (A)0) + 2 * s * artanh_series(s * s));
}

/* -------------------------------------------------------------------------------- rows */

/* Writes a row of sums, by what its item is. */
template <typename T, typename Columns, int MODE>
static __device__ __forceinline__ void store_gated_row(
    const gated_view<T> &g, const spmm_item &item, int64_t row, const Columns &columns,
    const typename gnn_accumulator<T>::type (&sums)[N_SUMS][Columns::pack::SIZE]) {
    typedef typename gnn_accumulator<T>::type A;
    typedef typename Columns::pack pack;
    enum { SIZE = pack::SIZE };
    const int64_t f = g.rows.n_features;
    if (item.slot >= 0) {
        A *part = g.parts + item.slot * g.part_width;
        A *of_gate = MODE == GATED_SUM ? part + f : part;
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            if (columns.has(k)) {
                const int at = columns.first + k * columns.step;
                if (MODE == GATED_SUM) {
                    part[at] = sums[OF_TERM][k];
                }
                of_gate[at] = sums[OF_GATE][k];
                if (MODE == GATED_VJP || g.u_has_value) {
                    of_gate[f + at] = sums[OF_VALUE][k];
                }
            }
        }
        return;
    }
    if (MODE == GATED_VJP) {
        if (g.rows.y != NULL) {
            pack gate, value;
            GNN_UNROLL
            for (int k = 0; k < SIZE; k++) {
                narrow(sums[OF_GATE][k], &gate.at[k]);
                narrow(sums[OF_VALUE][k], &value.at[k]);
            }
            columns.store(g.rows.y + row * 2 * f, gate);
            columns.store(g.rows.y + row * 2 * f + f, value);
        }
        return;
    }
    const A scale = g.scale == NULL ? (A)1 : __ldg(g.scale + row);
    pack term;
    reduce_elements<A, SIZE> gate, value;
    GNN_UNROLL
    for (int k = 0; k < SIZE; k++) {
        narrow(scale * sums[OF_TERM][k], &term.at[k]);
        gate.at[k] = scale * sums[OF_GATE][k];
        value.at[k] = scale * sums[OF_VALUE][k];
    }
    columns.store(g.rows.y + row * f, term);
    if (g.dy_du != NULL) {
        A *dy_du = g.dy_du + row * (g.part_width - f);
        store_elements(dy_du, columns, gate);
        if (g.u_has_value) {
            store_elements(dy_du + f, columns, value);
        }
    }
}

template <typename T, bool WIDE, int MODE>
static __device__ __forceinline__ void
walk_gated(const gated_view<T> &g, const spmm_item &item,
           const gnn_columns<T, WIDE, GATED_MOST> &columns,
           const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_columns<T, WIDE, GATED_MOST> Columns;
    typedef typename Columns::pack pack;
    enum { SIZE = pack::SIZE };
    const spmm_view<T> &s = g.rows;
    const int64_t f = s.n_features;
    const int longest = warp_max(item.n);
    const bool has_edge = g.edge.at != NULL;
    const bool own_has_value = MODE == GATED_VJP || g.u_has_value;
    const bool other_has_value = MODE == GATED_SUM || g.u_has_value;
    reduce_cursor cursor(s.rowptr, item);
    A done[N_SUMS][SIZE], open[N_SUMS][SIZE]; // of this row; of this chunk
    pack own_gate, own_value;
    const auto enter = [&](bool wanted) {
        const T *own = g.own.at + (item.row + cursor.row) * g.own.stride;
        own_gate = columns.load(own, wanted);
        own_value = columns.load(own + f, wanted && own_has_value);
    };
    const auto clear = [&](A(&sums)[N_SUMS][SIZE]) {
        GNN_UNROLL
        for (int n = 0; n < N_SUMS; n++) {
            GNN_UNROLL
            for (int k = 0; k < SIZE; k++) {
                sums[n][k] = 0;
            }
        }
    };
    // ends a chunk and, at its end, the row
    const auto close = [&]() {
        GNN_UNROLL
        for (int n = 0; n < N_SUMS; n++) {
            GNN_UNROLL
            for (int k = 0; k < SIZE; k++) {
                done[n][k] += open[n][k];
            }
        }
        clear(open);
        if (cursor.cut == cursor.end) {
            store_gated_row<T, Columns, MODE>(g, item, item.row + cursor.row, columns,
                                              done);
            clear(done);
        }
        cursor.advance();
    };
    clear(done);
    clear(open);
    enter(item.n > 0);
    for (int base = 0; base < longest; base += at.lanes) {
        int col = 0;
        int64_t edge = 0;
        A scale = 1;
        if (base + at.member < item.n) {
            const int64_t mine = item.entry + base + at.member;
            col = __ldg(s.col + mine);
            edge = edge_of(s.eid, s.eid_is_64, mine);
            if (MODE == GATED_VJP && g.scale != NULL) {
                scale = __ldg(g.scale + col);
            }
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k++) {
            const bool live = base + k < item.n;
            const int64_t c = __shfl_sync(GNN_FULL_WARP, col, k, at.lanes);
            const int64_t e = __shfl_sync(GNN_FULL_WARP, edge, k, at.lanes);
            const A times = MODE == GATED_VJP
                                ? __shfl_sync(GNN_FULL_WARP, scale, k, at.lanes)
                                : (A)1;
            const T *other = g.gathered.at + c * g.gathered.stride;
            const T *of_edge = g.edge.at + e * g.edge.stride;
            const pack gate = columns.load(other, live);
            const pack value = columns.load(other + f, live && other_has_value);
            const pack edge_gate = columns.load(of_edge, live && has_edge);
            const pack edge_value = columns.load(of_edge + f, live && has_edge);
            const pack grad =
                columns.load(g.grad.at + c * g.grad.stride, live && MODE == GATED_VJP);
            if (live) {
                while (base + k == cursor.cut) {
                    close();
                    enter(true);
                }
                pack d_gate, d_value;
                GNN_UNROLL
                for (int i = 0; i < SIZE; i++) {
                    const A p =
                        sigmoid_of((A)widen(own_gate.at[i]) + (A)widen(gate.at[i]) +
                                   (A)widen(edge_gate.at[i]));
                    A v = (A)widen(own_value.at[i]) + (A)widen(value.at[i]) +
                          (A)widen(edge_value.at[i]);
                    A rise = 1;
                    if (g.softplus) {
                        v = softplus_of(v, &rise);
                    }
                    A by_value = p;
                    if (MODE == GATED_VJP) {
                        by_value *= (A)widen(grad.at[i]) * times;
                    }
                    const A term = by_value * v;
                    const A of_gate = term * (1 - p), of_value = by_value * rise;
                    open[OF_GATE][i] += of_gate;
                    open[OF_VALUE][i] += of_value;
                    if (MODE == GATED_SUM) {
                        open[OF_TERM][i] += term;
                    }
                    narrow(of_gate, &d_gate.at[i]);
                    narrow(of_value, &d_value.at[i]);
                }
                if (MODE == GATED_VJP && g.d_edge != NULL) {
                    T *d_edge = g.d_edge + e * 2 * f;
                    columns.store(d_edge, d_gate);
                    columns.store(d_edge + f, d_value);
                }
            }
        }
    }
    while (cursor.row < item.n_rows) {
        close();
    }
}

/* ----------------------------------------------------------------------------- kernels */

template <typename T, bool WIDE, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    gated_items_kernel(const gated_view<T> g) {
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(s.group_shift);
    const int64_t n_items = s.n_split + s.n_windows;
    for (int slice = (int)blockIdx.y; slice < s.n_slices; slice += (int)gridDim.y) {
        const gnn_columns<T, WIDE, GATED_MOST> columns(slice, at, s.n_features);
        for (int64_t i = at.warp * at.groups; i < n_items; i += at.warps * at.groups) {
            walk_gated<T, WIDE, MODE>(g, find_item(s, i + at.group, at), columns, at);
        }
    }
}

/* Heavy rows from their parts, in order: a lane for each row and number of it. */
template <typename T, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    gated_join_kernel(const gated_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(5);
    const int64_t f = s.n_features, width = g.part_width;
    for (int64_t i = at.warp; i < s.n_split; i += at.warps) {
        if (s.split[2 * i + 1] != 0) {
            continue;
        }
        const int64_t row = s.split[2 * i];
        const int64_t degree = s.rowptr[row + 1] - s.rowptr[row];
        const int64_t n_chunks = (degree + SPMM_CHUNK - 1) / SPMM_CHUNK;
        const A scale =
            MODE == GATED_VJP || g.scale == NULL ? (A)1 : __ldg(g.scale + row);
        for (int64_t k = (int64_t)blockIdx.y * 32 + at.lane; k < width;
             k += (int64_t)gridDim.y * 32) {
            const A *part = g.parts + i * width + k;
            A total = 0;
            GNN_UNROLL_BY(16)
            for (int64_t c = 0; c < n_chunks; c++) {
                total += part[c * width];
            }
            total *= scale;
            if (MODE == GATED_VJP) {
                narrow(total, s.y + row * width + k);
            } else if (k < f) {
                narrow(total, s.y + row * f + k);
            } else if (g.dy_du != NULL) {
                g.dy_du[row * (width - f) + k - f] = total;
            }
        }
    }
}

#endif

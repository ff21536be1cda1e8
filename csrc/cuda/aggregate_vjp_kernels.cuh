/* aggregate_vjp_kernels.cuh: gradients of the statistics of rows on CUDA, in one pass over
 * the transpose.
 *
 * An entry e = (j -> i) adds  a[i] + b[i] * m[e]  for the sums and squares, and what falls
 * to it of the gradients of the extremes (gnn.h has the formulas). Two small kernels come
 * first: aggregate_coefficients_kernel makes a and b of each destination, and
 * aggregate_numbers_kernel the number of each edge in its destination's row, which is what
 * args hold. Rows, items and the join of heavy sources are spmm's.
 *
 *   AGGREGATE_ALL   everything; what is NULL adds nothing
 *   AGGREGATE_MAX   one extreme alone: neither x nor edge is read but where numbers tie
 */
#ifndef GNN_AGGREGATE_VJP_KERNELS_CUH
#define GNN_AGGREGATE_VJP_KERNELS_CUH

#include "cuda/aggregate_kernels.cuh"
#include "cuda/sddmm_kernels.cuh"

/* ---------------------------------------------------------------------------- numbers */

/* number[eid[e]] = e - rowptr[row of e], in the integers I */
struct aggregate_numbers_view {
    const int64_t *rowptr; // [n_rows + 1]
    const void *eid;       // [n_edges] or NULL
    void *number;          // [n_edges]
    int64_t n_rows, n_edges;
    bool eid_is_64;
};

template <int BYTES> struct aggregate_integer {
    typedef int32_t type;
};
template <> struct aggregate_integer<1> {
    typedef int8_t type;
};
template <> struct aggregate_integer<2> {
    typedef int16_t type;
};

template <int BYTES>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    aggregate_numbers_kernel(const aggregate_numbers_view s) {
    typedef typename aggregate_integer<BYTES>::type integer;
    const gnn_place_in_warp at(5);
    const int64_t n_windows = (s.n_edges + SDDMM_WINDOW - 1) / SDDMM_WINDOW;
    for (int64_t w = at.warp; w < n_windows; w += at.warps) {
        const int64_t begin = w * SDDMM_WINDOW, left = s.n_edges - begin;
        const int64_t end = begin + (left < SDDMM_WINDOW ? left : SDDMM_WINDOW);
        const int64_t second =
            first_row_from<false>(s.rowptr, begin + 1, 0, s.n_rows, at);
        const int64_t beyond =
            first_row_from<false>(s.rowptr, end, second, s.n_rows, at);
        for (int64_t e = begin + at.lane; e < end; e += 32) {
            const int64_t row = row_of_entry(s.rowptr, e, second - 1, beyond);
            const int64_t edge = edge_of(s.eid, s.eid_is_64, e);
            ((integer *)s.number)[edge] = (integer)(e - __ldg(s.rowptr + row));
        }
    }
}

/* ------------------------------------------------------------------------ coefficients */

template <typename T> struct aggregate_coefficients_view {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t *rowptr;                        // [n_dst + 1]
    reduce_matrix<T> g_sum, g_mean, g_var, g_std; // [n_dst, F]; NULL: 0
    const A *mean;                                // [n_dst, F] or NULL
    const T *std;                                 // [n_dst, F] or NULL
    A *a, *b;                                     // [n_dst, F]; b NULL: not wanted
    int64_t n_dst;
    int n_features;
};

template <typename T>
static __device__ __forceinline__ typename gnn_accumulator<T>::type
element_or_0(const reduce_matrix<T> &m, int64_t row, int f) {
    typedef typename gnn_accumulator<T>::type A;
    return m.at == NULL ? (A)0 : (A)widen(m.at[row * m.stride + f]);
}

/* A warp for each row and 32 features. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    aggregate_coefficients_kernel(const aggregate_coefficients_view<T> s) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(5);
    for (int64_t row = at.warp; row < s.n_dst; row += at.warps) {
        const int64_t n = s.rowptr[row + 1] - s.rowptr[row];
        const A inverse = n > 0 ? 1 / (A)n : (A)0;
        GNN_UNROLL_BY(1) // more would count its turns, with a division
        for (int f = (int)blockIdx.y * 32 + at.lane; f < s.n_features;
             f += (int)gridDim.y * 32) {
            const int64_t place = row * s.n_features + f;
            A v = element_or_0(s.g_var, row, f), mean = 0;
            if (s.g_std.at != NULL) {
                const A std = widen(s.std[place]);
                const A half = std > 0 ? 1 / (2 * std) : (A)0;
                v += std > 0 ? element_or_0(s.g_std, row, f) * half : (A)0;
            }
            if (s.b != NULL) {
                mean = s.mean[place];
                s.b[place] = 2 * v * inverse;
            }
            s.a[place] = element_or_0(s.g_sum, row, f) +
                         (element_or_0(s.g_mean, row, f) - 2 * mean * v) * inverse;
        }
    }
}

/* --------------------------------------------------------------------------------- walk */

/* One of minimum and maximum; arg NULL: not wanted. */
template <typename T> struct aggregate_extreme {
    const void *arg;       // [n_dst, F]
    const T *y;            // [n_dst, F]
    reduce_matrix<T> grad; // [n_dst, F]
};

/* Rows are sources j, columns destinations i. */
template <typename T> struct aggregate_vjp_view {
    typedef typename gnn_accumulator<T>::type A;
    spmm_view<T> rows;        // y: d_x [n_src, F] or NULL
    reduce_matrix<T> x, edge; // [n_src, F]; [n_edges, F] or NULL
    const A *a, *b;           // [n_dst, F] or NULL
    aggregate_extreme<T> extremes[2];
    const void *number; // [n_edges] in the caller's order
    T *grad_edge;       // [n_edges, F] or NULL
    int arg_bytes;
};

template <typename I, typename Columns>
static __device__ __forceinline__ void load_args_as(const I *row,
                                                    const Columns &columns, bool wanted,
                                                    int (&args)[Columns::pack::SIZE]) {
    enum { SIZE = Columns::pack::SIZE, BYTES = SIZE * (int)sizeof(I) };
    if constexpr (!Columns::IS_WIDE || BYTES < 4) {
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            if (wanted && columns.has(k)) {
                args[k] = row[columns.first + k * columns.step];
            }
        }
    } else if (wanted && columns.has(0)) {
        const unsigned *in = (const unsigned *)(row + columns.first);
        unsigned words[BYTES / 4];
        if constexpr (BYTES == 4) {
            words[0] = __ldg(in);
        } else if constexpr (BYTES == 8) {
            const uint2 raw = __ldg((const uint2 *)in);
            memcpy(words, &raw, sizeof raw);
        } else {
            GNN_UNROLL
            for (int w = 0; w < BYTES / 4; w += 4) {
                const uint4 raw = __ldg((const uint4 *)(in + w));
                memcpy(words + w, &raw, sizeof raw);
            }
        }
        I packed[SIZE];
        memcpy(packed, words, BYTES);
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            args[k] = packed[k];
        }
    }
}

/* -1 where there is none. */
template <typename Columns>
static __device__ __forceinline__ void
load_args(const void *args, int bytes, int64_t row_at, const Columns &columns,
          bool wanted, int (&values)[Columns::pack::SIZE]) {
    GNN_UNROLL
    for (int k = 0; k < Columns::pack::SIZE; k++) {
        values[k] = -1;
    }
    if (bytes == 1) {
        load_args_as((const int8_t *)args + row_at, columns, wanted, values);
    } else if (bytes == 2) {
        load_args_as((const int16_t *)args + row_at, columns, wanted, values);
    } else {
        load_args_as((const int32_t *)args + row_at, columns, wanted, values);
    }
}

static __device__ __forceinline__ int number_of(const void *number, int bytes,
                                                int64_t edge) {
    return bytes == 1   ? __ldg((const int8_t *)number + edge)
           : bytes == 2 ? __ldg((const int16_t *)number + edge)
                        : __ldg((const int32_t *)number + edge);
}

/* The share of a tied gradient that falls to an edge of source j: read one by one, since
 * ties are rare. */
template <typename T>
static __device__ __forceinline__ typename gnn_accumulator<T>::type
tied_share(const aggregate_vjp_view<T> &g, const T *y, int64_t j, int64_t i,
           int64_t edge, int f, int n_tied) {
    typedef typename gnn_accumulator<T>::type A;
    T of_edge;
    narrow(0, &of_edge);
    if (g.edge.at != NULL) {
        of_edge = g.edge.at[edge * g.edge.stride + f];
    }
    const A m = message_of(g.x.at[j * g.x.stride + f], of_edge);
    const A extreme = widen(y[i * g.rows.n_features + f]);
    const bool has_it = m == extreme || (m != m && extreme != extreme);
    return has_it ? 1 / (A)n_tied : (A)0;
}

/* Elements a lane takes at most. */
template <int MODE> struct aggregate_vjp_lane {
    enum { MOST = MODE == AGGREGATE_MAX ? 8 : 4 };
};

template <typename T, bool WIDE, int MODE>
static __device__ __forceinline__ void
walk_gradients(const aggregate_vjp_view<T> &g, const spmm_item &item,
               const gnn_columns<T, WIDE, aggregate_vjp_lane<MODE>::MOST> &columns,
               const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    enum { MOST = aggregate_vjp_lane<MODE>::MOST };
    typedef gnn_pack<T, WIDE, MOST> pack;
    enum {
        SIZE = pack::SIZE,
        IN_FLIGHT = MODE == AGGREGATE_MAX ? 2 : 1,
        EXTREMES = MODE == AGGREGATE_MAX ? 1 : 2,
    };
    const spmm_view<T> &s = g.rows;
    const int longest = warp_max(item.n);
    const bool has_b = MODE == AGGREGATE_ALL && g.b != NULL;
    spmm_row<T, WIDE, MOST> row(s, item, columns);
    pack own = columns.load(g.x.at + item.row * g.x.stride, has_b && item.n > 0);
    for (int base = 0; base < longest; base += at.lanes) {
        int col = 0, number = 0;
        int64_t edge = 0;
        if (base + at.member < item.n) {
            const int64_t mine = item.entry + base + at.member;
            col = __ldg(s.col + mine);
            edge = edge_of(s.eid, s.eid_is_64, mine);
            number = g.number != NULL ? number_of(g.number, g.arg_bytes, edge) : 0;
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += IN_FLIGHT) {
            reduce_elements<A, SIZE> a[IN_FLIGHT], b[IN_FLIGHT];
            pack of_edge[IN_FLIGHT], grad[IN_FLIGHT][EXTREMES];
            int args[IN_FLIGHT][EXTREMES][SIZE], its_number[IN_FLIGHT];
            int64_t to[IN_FLIGHT], e[IN_FLIGHT];
            GNN_UNROLL
            for (int j = 0; j < IN_FLIGHT; j++) {
                const bool live = base + k + j < item.n;
                to[j] = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                e[j] = __shfl_sync(GNN_FULL_WARP, edge, k + j, at.lanes);
                its_number[j] = __shfl_sync(GNN_FULL_WARP, number, k + j, at.lanes);
                const int64_t of_row = to[j] * s.n_features;
                if (MODE == AGGREGATE_ALL) {
                    a[j] = load_elements(g.a + of_row, columns, live && g.a != NULL);
                    b[j] = load_elements(g.b + of_row, columns, live && has_b);
                    of_edge[j] = columns.load(g.edge.at + e[j] * g.edge.stride,
                                              live && has_b && g.edge.at != NULL);
                }
                GNN_UNROLL
                for (int which = 0; which < EXTREMES; which++) {
                    const aggregate_extreme<T> &x = g.extremes[which];
                    const bool wanted = live && x.arg != NULL;
                    load_args(x.arg, g.arg_bytes, of_row, columns, wanted,
                              args[j][which]);
                    grad[j][which] =
                        columns.load(x.grad.at + to[j] * x.grad.stride, wanted);
                }
            }
            GNN_UNROLL
            for (int j = 0; j < IN_FLIGHT; j++) {
                if (base + k + j < item.n) {
                    while (base + k + j == row.cut) {
                        row.close();
                        own = columns.load(g.x.at + (item.row + row.row) * g.x.stride,
                                           has_b);
                    }
                    pack passed;
                    GNN_UNROLL
                    for (int i = 0; i < SIZE; i++) {
                        A term = 0;
                        if (MODE == AGGREGATE_ALL) {
                            const A m = message_of(own.at[i], of_edge[j].at[i]);
                            term = has_b ? a[j].at[i] + b[j].at[i] * m : a[j].at[i];
                        }
                        GNN_UNROLL
                        for (int which = 0; which < EXTREMES; which++) {
                            const A of_extreme = widen(grad[j][which].at[i]);
                            const int arg = args[j][which][i];
                            if (arg == its_number[j]) {
                                term += of_extreme;
                            } else if (arg < -1) {
                                term +=
                                    of_extreme *
                                    tied_share(g, g.extremes[which].y,
                                               item.row + row.row, to[j], e[j],
                                               columns.first + i * columns.step, -arg);
                            }
                        }
                        row.sum[i] += term;
                        narrow(term, &passed.at[i]);
                    }
                    if (g.grad_edge != NULL) {
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
    aggregate_vjp_items_kernel(const aggregate_vjp_view<T> g) {
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(s.group_shift);
    const int64_t n_items = s.n_split + s.n_windows;
    for (int slice = (int)blockIdx.y; slice < s.n_slices; slice += (int)gridDim.y) {
        const gnn_columns<T, WIDE, aggregate_vjp_lane<MODE>::MOST> columns(
            slice, at, s.n_features);
        for (int64_t i = at.warp * at.groups; i < n_items; i += at.warps * at.groups) {
            walk_gradients<T, WIDE, MODE>(g, find_item(s, i + at.group, at), columns,
                                          at);
        }
    }
}

#endif

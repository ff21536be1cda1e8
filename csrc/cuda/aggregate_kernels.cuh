/* aggregate_kernels.cuh: statistics of the messages of each row on CUDA, one gather for
 * all of them.
 *
 * Items are spmm's; a chunk of a heavy row leaves its part in scratch and
 * aggregate_join_kernel joins the parts in order. In a row that stays whole, sums are
 * joined chunk by chunk as well: its bits depend on that row alone.
 *
 *   AGGREGATE_ALL   sums, squares, both extremes; what is not asked for is not written
 *   AGGREGATE_MAX   the maximum alone, or the minimum as that of -m: half the registers
 */
#ifndef GNN_AGGREGATE_KERNELS_CUH
#define GNN_AGGREGATE_KERNELS_CUH

#include "cuda/reduce_rows.cuh"

enum aggregate_mode { AGGREGATE_ALL, AGGREGATE_MAX };

/* The least that var may be for std not to be 0. */
#define AGGREGATE_STD_FLOOR 1e-5

/* Elements a lane takes at most: seven numbers are held for each. */
template <bool WIDE, int MODE> struct aggregate_lane {
    enum { MOST = MODE == AGGREGATE_MAX ? 8 : WIDE ? 4 : 2 };
};

/* Device pointers; what is NULL is not wanted. */
template <typename T> struct aggregate_view {
    typedef typename gnn_accumulator<T>::type A;
    spmm_view<T> rows;       // x [n_cols, F]
    reduce_matrix<T> edge;   // [n_edges, F] in the caller's order
    T *y[GNN_REDUCE_COUNT];  // [n_rows, F]
    void *arg_min, *arg_max; // [n_rows, F] of arg_bytes each
    A *mean;                 // [n_rows, F]
    A *parts;                // [n_split, 4, F] sum, square, low, high
    int *part_args;          // [n_split, 2, F] of low, high
    A sign;                  // AGGREGATE_MAX: -1 for the minimum
    int arg_bytes;
    bool centred; // sums are taken around the row's first message
};

/* ---------------------------------------------------------------------------- one sum */

/* The greatest number so far, and the entry that has it: -1 none, -k where k have it.
 * NaN is greater than any number, and equal to itself. */
template <typename A> struct aggregate_greatest {
    A value;
    int arg;

    __device__ __forceinline__ aggregate_greatest() : value(-(A)INFINITY), arg(-1) {}

    static __device__ __forceinline__ int count(int arg) {
        return arg >= 0 ? 1 : arg == -1 ? 0 : -arg;
    }

    __device__ __forceinline__ void merge(A other, int other_arg) {
        const bool up = !(other <= value) && value == value;
        const bool tie = other == value || (other != other && value != value);
        const int n = count(arg) + count(other_arg);
        const int one = arg == -1 ? other_arg : arg; // where there is one, which?
        arg = up ? other_arg : tie ? (n > 1 ? -n : one) : arg;
        value = up ? other : value;
    }
};

/* What one row's messages m come to in one feature. d = m - centre. */
template <typename A, int MODE> struct aggregate_sum {
    A centre, sum, square;     // of d, chunks that are done
    A open_sum, open_square;   // of this chunk
    aggregate_greatest<A> low; // of -m
    aggregate_greatest<A> high;

    __device__ __forceinline__ aggregate_sum()
        : centre(0), sum(0), square(0), open_sum(0), open_square(0) {}

    __device__ __forceinline__ void centre_on(A m) {
        centre = m - m == 0 ? m : (A)0; // finite
    }

    __device__ __forceinline__ void add(A m, int number) {
        if (MODE == AGGREGATE_ALL) {
            const A d = m - centre;
            open_sum += d;
            open_square += d * d;
            low.merge(-m, number);
        }
        high.merge(m, number);
    }

    __device__ __forceinline__ void close_chunk() {
        sum += open_sum;
        square += open_square;
        open_sum = open_square = 0;
    }

    /* Statistic `which` of a row of n messages. */
    __device__ __forceinline__ A result(int which, int64_t n) const {
        if (n == 0) {
            return 0;
        }
        const A inverse = 1 / (A)n, mean_d = sum * inverse;
        const A var = square * inverse - mean_d * mean_d;
        const A root = var <= (A)AGGREGATE_STD_FLOOR ? (A)0 : root_of(var);
        switch (which) {
        case GNN_SUM:
            return (A)n * centre + sum;
        case GNN_MEAN:
            return centre + mean_d;
        case GNN_MIN:
            return -low.value;
        case GNN_MAX:
            return high.value;
        case GNN_VAR:
            return var;
        default: // the floor's own root is 0, too
            return root <= root_of((A)AGGREGATE_STD_FLOOR) ? (A)0 : root;
        }
    }
};

/* x + edge as a number of T. */
template <typename T>
static __device__ __forceinline__ typename gnn_accumulator<T>::type message_of(T x,
                                                                               T edge) {
    typedef typename gnn_accumulator<T>::type A;
    T rounded;
    narrow((A)widen(x) + (A)widen(edge), &rounded);
    return widen(rounded);
}

/* --------------------------------------------------------------------------- outputs */

/* The args of a lane's elements; side by side, they move in one access of theirs. */
template <typename I, typename Columns>
static __device__ __forceinline__ void
store_args_as(I *row, const Columns &columns, const int (&args)[Columns::pack::SIZE]) {
    enum { SIZE = Columns::pack::SIZE, BYTES = SIZE * (int)sizeof(I) };
    if constexpr (!Columns::IS_WIDE || BYTES < 4) {
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            if (columns.has(k)) {
                row[columns.first + k * columns.step] = (I)args[k];
            }
        }
    } else if (columns.has(0)) {
        I packed[SIZE];
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            packed[k] = (I)args[k];
        }
        unsigned words[BYTES / 4];
        memcpy(words, packed, BYTES);
        unsigned *out = (unsigned *)(row + columns.first);
        if constexpr (BYTES == 4) {
            out[0] = words[0];
        } else if constexpr (BYTES == 8) {
            *(uint2 *)out = make_uint2(words[0], words[1]);
        } else {
            GNN_UNROLL
            for (int w = 0; w < BYTES / 4; w += 4) {
                *(uint4 *)(out + w) =
                    make_uint4(words[w], words[w + 1], words[w + 2], words[w + 3]);
            }
        }
    }
}

template <typename Columns>
static __device__ __forceinline__ void
store_args(void *args, int bytes, int64_t row_at, const Columns &columns,
           const int (&values)[Columns::pack::SIZE]) {
    if (bytes == 1) {
        store_args_as((int8_t *)args + row_at, columns, values);
    } else if (bytes == 2) {
        store_args_as((int16_t *)args + row_at, columns, values);
    } else {
        store_args_as((int32_t *)args + row_at, columns, values);
    }
}

template <int MODE, typename T, typename Columns>
static __device__ __forceinline__ void
store_row(const aggregate_view<T> &g, int64_t row, int64_t n, const Columns &columns,
          const aggregate_sum<typename gnn_accumulator<T>::type, MODE> *sums) {
    typedef typename gnn_accumulator<T>::type A;
    typedef typename Columns::pack pack;
    enum { SIZE = pack::SIZE };
    const int64_t at = row * g.rows.n_features;
    int args[SIZE];
    if constexpr (MODE == AGGREGATE_MAX) {
        pack out;
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            narrow(n == 0 ? (A)0 : g.sign * sums[k].high.value, &out.at[k]);
        }
        columns.store(g.y[GNN_MAX] + at, out);
    } else {
        GNN_UNROLL
        for (int which = 0; which < GNN_REDUCE_COUNT; which++) {
            if (g.y[which] != NULL) {
                pack out;
                GNN_UNROLL
                for (int k = 0; k < SIZE; k++) {
                    narrow(sums[k].result(which, n), &out.at[k]);
                }
                columns.store(g.y[which] + at, out);
            }
        }
        if (g.mean != NULL) {
            reduce_elements<A, SIZE> mean;
            GNN_UNROLL
            for (int k = 0; k < SIZE; k++) {
                mean.at[k] = sums[k].result(GNN_MEAN, n);
            }
            store_elements(g.mean + at, columns, mean);
        }
        if (g.arg_min != NULL) {
            GNN_UNROLL
            for (int k = 0; k < SIZE; k++) {
                args[k] = sums[k].low.arg;
            }
            store_args(g.arg_min, g.arg_bytes, at, columns, args);
        }
    }
    if (g.arg_max != NULL) {
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            args[k] = sums[k].high.arg;
        }
        store_args(g.arg_max, g.arg_bytes, at, columns, args);
    }
}

/* Where part `which` (0 to 3, args 0 and 1) of chunk `slot` begins: [F]. */
template <typename T>
static __device__ __forceinline__ int64_t part_at(const aggregate_view<T> &g,
                                                  int64_t slot, int which) {
    return (slot * 4 + which) * g.rows.n_features;
}
template <typename T>
static __device__ __forceinline__ int64_t part_arg_at(const aggregate_view<T> &g,
                                                      int64_t slot, int which) {
    return (slot * 2 + which) * g.rows.n_features;
}

template <int MODE, typename T, typename Columns>
static __device__ __forceinline__ void
store_part(const aggregate_view<T> &g, int64_t slot, const Columns &columns,
           const aggregate_sum<typename gnn_accumulator<T>::type, MODE> *sums) {
    GNN_UNROLL
    for (int k = 0; k < Columns::pack::SIZE; k++) {
        if (columns.has(k)) {
            const int f = columns.first + k * columns.step;
            if (MODE == AGGREGATE_ALL) {
                g.parts[part_at(g, slot, 0) + f] = sums[k].sum;
                g.parts[part_at(g, slot, 1) + f] = sums[k].square;
                g.parts[part_at(g, slot, 2) + f] = sums[k].low.value;
                g.part_args[part_arg_at(g, slot, 0) + f] = sums[k].low.arg;
            }
            g.parts[part_at(g, slot, 3) + f] = sums[k].high.value;
            g.part_args[part_arg_at(g, slot, 1) + f] = sums[k].high.arg;
        }
    }
}

/* ------------------------------------------------------------------------------ kernels */

template <int MODE, typename T, typename Columns>
static __device__ __forceinline__ void
walk_statistics(const aggregate_view<T> &g, const spmm_item &item,
                const Columns &columns, const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef typename Columns::pack pack;
    enum { IN_FLIGHT = MODE == AGGREGATE_MAX ? 4 : 2 };
    const spmm_view<T> &s = g.rows;
    const int longest = warp_max(item.n);
    const bool has_edge = g.edge.at != NULL;
    reduce_cursor cursor(s.rowptr, item);
    aggregate_sum<A, MODE> sums[pack::SIZE];
    if (MODE == AGGREGATE_ALL && item.slot >= 0 && g.centred) {
        const int64_t first = __ldg(s.rowptr + item.row);
        const int64_t e = has_edge ? edge_of(s.eid, s.eid_is_64, first) : 0;
        const pack x = columns.load(s.x + __ldg(s.col + first) * s.x_stride, true);
        const pack a = columns.load(g.edge.at + e * g.edge.stride, has_edge);
        GNN_UNROLL
        for (int i = 0; i < pack::SIZE; i++) {
            sums[i].centre_on(message_of(x.at[i], a.at[i]));
        }
    }
    // ends a chunk and, at its end, the row
    const auto close = [&]() {
        GNN_UNROLL
        for (int i = 0; i < pack::SIZE; i++) {
            sums[i].close_chunk();
        }
        if (cursor.cut == cursor.end) {
            if (item.slot >= 0) {
                store_part<MODE>(g, item.slot, columns, sums);
            } else {
                store_row<MODE>(g, item.row + cursor.row, cursor.end - cursor.begin,
                                columns, sums);
            }
            GNN_UNROLL
            for (int i = 0; i < pack::SIZE; i++) {
                sums[i] = aggregate_sum<A, MODE>();
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
                const int entry = base + k + j;
                if (entry < item.n) {
                    while (entry == cursor.cut) {
                        close();
                    }
                    GNN_UNROLL
                    for (int i = 0; i < pack::SIZE; i++) {
                        const A m = has_edge ? message_of(x[j].at[i], a[j].at[i])
                                             : (A)widen(x[j].at[i]); // -0 + 0 is 0
                        if (MODE == AGGREGATE_ALL && g.centred &&
                            entry == cursor.begin) {
                            sums[i].centre_on(m);
                        }
                        sums[i].add(MODE == AGGREGATE_MAX ? g.sign * m : m,
                                    entry - cursor.begin);
                    }
                }
            }
        }
    }
    while (cursor.row < item.n_rows) {
        close();
    }
}

template <typename T, bool WIDE, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    aggregate_items_kernel(const aggregate_view<T> g) {
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(s.group_shift);
    const int64_t n_items = s.n_split + s.n_windows;
    for (int slice = (int)blockIdx.y; slice < s.n_slices; slice += (int)gridDim.y) {
        const gnn_columns<T, WIDE, aggregate_lane<WIDE, MODE>::MOST> columns(
            slice, at, s.n_features);
        for (int64_t i = at.warp * at.groups; i < n_items; i += at.warps * at.groups) {
            walk_statistics<MODE>(g, find_item(s, i + at.group, at), columns, at);
        }
    }
}

/* Heavy rows from their parts, in order: a lane for each row and feature. */
template <typename T, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    aggregate_join_kernel(const aggregate_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    const spmm_view<T> &s = g.rows;
    const gnn_place_in_warp at(5);
    for (int64_t slot = at.warp; slot < s.n_split; slot += at.warps) {
        if (s.split[2 * slot + 1] != 0) {
            continue;
        }
        const int64_t row = s.split[2 * slot], first = s.rowptr[row];
        const int64_t degree = s.rowptr[row + 1] - first;
        const int64_t n_chunks = (degree + SPMM_CHUNK - 1) / SPMM_CHUNK;
        for (int64_t slab = blockIdx.y; slab * 32 < s.n_features; slab += gridDim.y) {
            const gnn_columns<T, false, 1> columns((int)slab, at, s.n_features);
            aggregate_sum<A, MODE> sums[1];
            if (columns.has(0)) {
                const int f = columns.first;
                if (MODE == AGGREGATE_ALL && g.centred) {
                    const T x = s.x[s.col[first] * s.x_stride + f];
                    T a;
                    narrow(0, &a);
                    if (g.edge.at != NULL) {
                        const int64_t e = edge_of(s.eid, s.eid_is_64, first);
                        a = g.edge.at[e * g.edge.stride + f];
                    }
                    sums[0].centre_on(message_of(x, a));
                }
                for (int64_t c = 0; c < n_chunks; c++) {
                    const int64_t part = slot + c;
                    if (MODE == AGGREGATE_ALL) {
                        sums[0].sum += g.parts[part_at(g, part, 0) + f];
                        sums[0].square += g.parts[part_at(g, part, 1) + f];
                        sums[0].low.merge(g.parts[part_at(g, part, 2) + f],
                                          g.part_args[part_arg_at(g, part, 0) + f]);
                    }
                    sums[0].high.merge(g.parts[part_at(g, part, 3) + f],
                                       g.part_args[part_arg_at(g, part, 1) + f]);
                }
            }
            store_row<MODE>(g, row, degree, columns, sums);
        }
    }
}

#endif

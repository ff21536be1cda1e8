/* spmm_kernels.cuh: sparse-dense product on CUDA.
 *
 * A work item is a *window*: the rows that start in SPMM_WINDOW consecutive units, where
 * row i starts at unit rowptr[i] + i; or a *chunk*: SPMM_CHUNK entries of a heavy row,
 * counted from the row's own start. One group of lanes walks the entries of its item in
 * order and closes a row where its entries end, so loads stay in flight across short
 * rows; the indices of the next entries are loaded once for all lanes and handed round.
 * Chunks leave their sums in scratch; spmm_join_kernel adds those up in order.
 *
 * A row is always the sum over its chunks, in order, of the sums over their entries, in
 * order: the bits depend on that row alone, not on the grid, the group width or whether
 * the graph brought a list of chunks.
 */
#ifndef GNN_SPMM_KERNELS_CUH
#define GNN_SPMM_KERNELS_CUH

#include "cuda/lanes.cuh"

#include <inttypes.h>

enum {
    SPMM_WINDOW = 128, // units; at most one heavy row starts in a window, as its last
    SPMM_CHUNK = GNN_CUDA_CHUNK,
};
static_assert(SPMM_WINDOW <= SPMM_CHUNK, "two heavy rows would start in one window");

/* Device pointers; strides in elements. */
template <typename T> struct spmm_view {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t *rowptr; // [n_rows + 1]
    const int32_t *col;    // [n_edges]
    const void *eid;       // [n_edges] or NULL
    const int64_t *split;  // [n_split, 2]: row and chunk
    const T *x;            // [n_cols, F], rows x_stride apart
    const T *weight;       // [n_edges] in the caller's order, or NULL
    A scale;               // of every row that has none in row_scale
    const A *row_scale;    // [n_rows] or NULL
    const A *col_scale;    // [n_cols] or NULL
    A *sums;               // [n_split, F]
    T *y;                  // [n_rows, F]
    int64_t n_rows, n_split, n_windows, x_stride;
    int n_features, n_slices, group_shift;
    bool eid_is_64;
};

/* ------------------------------------------------------------------------------- items */

/* Entries [entry, entry + n) of n_rows rows from `row` on; a chunk has one row and a
 * slot. n fits an int: see the launcher. */
struct spmm_item {
    int64_t row, entry, slot; // slot -1: whole rows
    int n_rows, n;
};

template <typename T>
static __device__ __forceinline__ spmm_item find_item(const spmm_view<T> &s, int64_t i,
                                                      const gnn_place_in_warp &at) {
    spmm_item item = {0, 0, -1, 0, 0};
    const int64_t window = i - s.n_split;
    const bool is_window = window >= 0 && window < s.n_windows;
    const int64_t unit = window * SPMM_WINDOW;
    // groups without a window search an empty range
    const int64_t row =
        first_row_from<true>(s.rowptr, unit, 0, is_window ? s.n_rows : 0, at);
    const int64_t reach = row + SPMM_WINDOW < s.n_rows ? row + SPMM_WINDOW : s.n_rows;
    int64_t end_row = first_row_from<true>(s.rowptr, unit + SPMM_WINDOW, row,
                                           is_window ? reach : row, at);
    if (is_window && row < end_row) {
        const int64_t last_start = s.rowptr[end_row - 1];
        int64_t end = s.rowptr[end_row];
        if (s.n_split > 0 && end - last_start > SPMM_CHUNK) { // heavy: in the list
            end = last_start;
            end_row--;
        }
        item.row = row;
        item.n_rows = (int)(end_row - row);
        item.entry = s.rowptr[row];
        item.n = (int)(end - item.entry);
    } else if (i < s.n_split) {
        item.row = s.split[2 * i];
        item.n_rows = 1;
        item.entry = s.rowptr[item.row] + s.split[2 * i + 1] * SPMM_CHUNK;
        const int64_t left = s.rowptr[item.row + 1] - item.entry;
        item.n = left < SPMM_CHUNK ? (int)left : SPMM_CHUNK;
        item.slot = i;
    }
    return item;
}

/* --------------------------------------------------------------------------------- rows */

/* The row a group is in, and its sum so far. Entries are counted from the item's first. */
template <typename T, bool WIDE, int MOST = 8> struct spmm_row {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE, MOST> pack;
    const spmm_view<T> &s;
    const spmm_item &item;
    const gnn_columns<T, WIDE, MOST> &columns;
    int row;                // of the item
    int cut, end, next_end; // ends of this chunk, of this row, of the row after it
    A scale, sum[pack::SIZE], total[pack::SIZE];

    __device__ __forceinline__ spmm_row(const spmm_view<T> &view, const spmm_item &it,
                                        const gnn_columns<T, WIDE, MOST> &c)
        : s(view), item(it), columns(c), row(0), end(0), next_end(0),
          scale(view.scale) {
        GNN_UNROLL
        for (int k = 0; k < pack::SIZE; k++) {
            sum[k] = 0;
            total[k] = 0;
        }
        if (item.slot >= 0) {
            end = item.n;
        } else if (item.n_rows > 0) {
            end = end_of(0);
            look_ahead();
        }
        cut = end < SPMM_CHUNK ? end : (int)SPMM_CHUNK;
    }

    __device__ __forceinline__ int end_of(int r) const {
        return (int)(__ldg(s.rowptr + item.row + r + 1) - item.entry);
    }

    /* Loads what closing this row and entering the next one will need. */
    __device__ __forceinline__ void look_ahead() {
        if (row + 1 < item.n_rows) {
            next_end = end_of(row + 1);
        }
        if (s.row_scale != NULL && row < item.n_rows) {
            scale = __ldg(s.row_scale + item.row + row);
        }
    }

    /* At entry `cut`: ends a chunk and, at its end, the row. */
    __device__ __forceinline__ void close() {
        GNN_UNROLL
        for (int k = 0; k < pack::SIZE; k++) {
            total[k] += sum[k];
            sum[k] = 0;
        }
        if (cut == end) {
            write();
            row++;
            end = next_end;
            look_ahead();
        }
        cut = end < cut + SPMM_CHUNK ? end : cut + SPMM_CHUNK;
    }

    __device__ __forceinline__ void write() {
        if (item.slot >= 0) {
            A *sums = s.sums + item.slot * s.n_features; // [F]
            GNN_UNROLL
            for (int k = 0; k < pack::SIZE; k++) {
                if (columns.has(k)) {
                    sums[columns.first + k * columns.step] = total[k];
                }
            }
            return;
        }
        pack out;
        GNN_UNROLL
        for (int k = 0; k < pack::SIZE; k++) {
            narrow(scale * total[k], &out.at[k]);
            total[k] = 0;
        }
        if (s.y != NULL) { // gine's gradient of the edges alone
            columns.store(s.y + (item.row + row) * s.n_features, out);
        }
    }
};

/* weight[eid[e]] * col_scale[col] */
template <typename T>
static __device__ __forceinline__ typename gnn_accumulator<T>::type
coefficient(const spmm_view<T> &s, int64_t e, int32_t col) {
    typename gnn_accumulator<T>::type c = 1;
    if (s.weight != NULL) {
        c = widen(s.weight[edge_of(s.eid, s.eid_is_64, e)]);
    }
    return s.col_scale != NULL ? c * __ldg(s.col_scale + col) : c;
}

template <typename T, bool WIDE>
static __device__ __forceinline__ void
walk_item(const spmm_view<T> &s, const spmm_item &item,
          const gnn_columns<T, WIDE> &columns, const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE> pack;
    const bool weighted = s.weight != NULL || s.col_scale != NULL;
    const int longest = warp_max(item.n);
    spmm_row<T, WIDE> row(s, item, columns);
    for (int base = 0; base < longest; base += at.lanes) {
        int32_t col = 0;
        A coef = 0;
        if (base + at.member < item.n) {
            const int64_t mine = item.entry + base + at.member;
            col = __ldg(s.col + mine);
            coef = weighted ? coefficient(s, mine, col) : 0;
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += GNN_EDGES_IN_FLIGHT) {
            pack x[GNN_EDGES_IN_FLIGHT];
            GNN_UNROLL
            for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
                const int64_t source = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                x[j] = columns.load(s.x + source * s.x_stride, base + k + j < item.n);
            }
            GNN_UNROLL
            for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
                const A c =
                    weighted ? __shfl_sync(GNN_FULL_WARP, coef, k + j, at.lanes) : 1;
                if (base + k + j < item.n) {
                    while (base + k + j == row.cut) { // rows without entries, too
                        row.close();
                    }
                    GNN_UNROLL
                    for (int i = 0; i < pack::SIZE; i++) { // one fma; c = 1: a sum
                        row.sum[i] += c * widen(x[j].at[i]);
                    }
                }
            }
        }
    }
    while (row.row < item.n_rows) {
        row.close();
    }
}

/* ------------------------------------------------------------------------------ kernels */

/* Items in x, slices in y: all rows of one slice before the next, so that a slice of x
 * may stay in the cache where all of x does not. */
template <typename T, bool WIDE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    spmm_items_kernel(const spmm_view<T> s) {
    const gnn_place_in_warp at(s.group_shift);
    const int64_t n_items = s.n_split + s.n_windows;
    for (int slice = (int)blockIdx.y; slice < s.n_slices; slice += (int)gridDim.y) {
        const gnn_columns<T, WIDE> columns(slice, at, s.n_features);
        for (int64_t i = at.warp * at.groups; i < n_items; i += at.warps * at.groups) {
            walk_item(s, find_item(s, i + at.group, at), columns, at);
        }
    }
}

/* y[row, f] = scale * sum over the row's chunks, in order: a warp for each row and 32
 * features. Warps of chunks that do not start a row have nothing to do. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    spmm_join_kernel(const spmm_view<T> s) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(5);
    for (int64_t i = at.warp; i < s.n_split; i += at.warps) {
        if (s.split[2 * i + 1] != 0) {
            continue;
        }
        const int64_t row = s.split[2 * i];
        const int64_t degree = s.rowptr[row + 1] - s.rowptr[row];
        const int64_t n_chunks = (degree + SPMM_CHUNK - 1) / SPMM_CHUNK;
        const A scale = s.row_scale != NULL ? s.row_scale[row] : s.scale;
        for (int64_t f = (int64_t)blockIdx.y * 32 + at.lane; f < s.n_features;
             f += (int64_t)gridDim.y * 32) {
            const A *sums = s.sums + i * s.n_features + f;
            A total = 0;
            GNN_UNROLL_BY(16)
            for (int64_t c = 0; c < n_chunks; c++) {
                total += sums[c * s.n_features];
            }
            narrow(scale * total, s.y + row * s.n_features + f);
        }
    }
}

/* --------------------------------------------------------------- launches, for gine too */

/* What rows, items and their sums need; x and scales are left to the caller. */
template <typename T>
static inline spmm_view<T> spmm_view_of(const gnn_csr *a, int64_t n_features,
                                        void *scratch, void *y) {
    spmm_view<T> s = {};
    s.rowptr = a->rowptr;
    s.col = a->col;
    s.eid = a->eid;
    s.eid_is_64 = a->eid_dtype == GNN_I64;
    s.scale = 1;
    s.split = a->split;
    s.n_split = a->n_split;
    s.sums = (typename gnn_accumulator<T>::type *)scratch;
    s.y = (T *)y;
    s.n_rows = a->n_rows;
    s.n_windows = (a->n_rows + a->n_edges + SPMM_WINDOW - 1) / SPMM_WINDOW;
    s.n_features = (int)n_features;
    return s;
}

/* Sets how lanes share a row; returns the grid of a kernel over items and slices. */
template <typename T, bool WIDE, int MOST = 8>
static inline dim3 spmm_grid(spmm_view<T> *s) {
    enum { SIZE = gnn_pack<T, WIDE, MOST>::SIZE };
    const int64_t least = gnn_sector_lanes<T, WIDE>();
    s->group_shift = gnn_group_shift(s->n_features, SIZE, least);
    s->n_slices = (int)gnn_slice_count(s->n_features, SIZE, least);
    const int64_t groups = 32 >> s->group_shift;
    const int64_t warps = (s->n_split + s->n_windows + groups - 1) / groups;
    return dim3(gnn_grid_x(warps), gnn_grid_y(s->n_slices));
}

/* Joins the chunks of heavy rows, if there are any and y is wanted. */
template <typename T>
static inline gnn_status spmm_join(const spmm_view<T> &s, gnn_cuda_stream_t stream) {
    if (s.n_split == 0 || s.y == NULL) {
        return GNN_OK;
    }
    const dim3 grid(gnn_grid_x(s.n_split), gnn_grid_y((s.n_features + 31) / 32));
    return gnn_launch(spmm_join_kernel<T>, grid, dim3(GNN_BLOCK_THREADS), 0, stream, s);
}

/* What an op over rows needs of its sizes, for messages that begin with `op`. */
static inline gnn_status spmm_check(const char *op, const gnn_csr *a,
                                    int64_t n_features) {
    int64_t bytes;
    GNN_REQUIRE(n_features >= 0 && n_features < GNN_MAX_FEATURES, GNN_EINVAL,
                "%s: number of features must be in [0, 2^30), got %" PRId64, op,
                n_features);
    // an item's entries are counted in an int
    GNN_REQUIRE(a->n_edges < INT32_MAX || a->n_split > 0, GNN_ENOTSUP,
                "%s: a graph of %" PRId64 " edges must have its heavy rows split", op,
                a->n_edges);
    GNN_REQUIRE(!__builtin_mul_overflow(a->n_rows, n_features, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "%s: bytes of [%" PRId64 ", %" PRId64 "] must be below 2^63", op,
                a->n_rows, n_features);
    return GNN_OK;
}

#endif

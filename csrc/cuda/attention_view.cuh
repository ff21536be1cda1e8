/* attention_view.cuh: what the three passes of attention share.
 *
 * A group of lanes has one row (or one chunk of a heavy row) and one head; its neighbours
 * in the warp have the next heads of that row, so that a warp reads whole rows [H * C]
 * side by side. A lane holds the elements of one *slice* of the head's C channels. Heads
 * that do not fit a warp go to the grid's y, further slices to its z: there each group
 * takes the scores over all slices again and accumulates its own.
 *
 * The members of a group load the indices (and what hangs on an edge and head alone) of as
 * many entries as there are members at once and hand them round. Sums over a row are sums
 * over its chunks of GNN_CUDA_CHUNK entries, in order, whether the graph brought a list of
 * chunks or not.
 */
#ifndef GNN_ATTENTION_VIEW_CUH
#define GNN_ATTENTION_VIEW_CUH

#include "core/philox.h"
#include "cuda/lanes.cuh"
#include "cuda/softmax.cuh"

/* Blocks on a multiprocessor where a kernel needs more than 128 registers: 168. Each has
 * two entries in flight of two rows or three, so fewer warps keep as much in flight. */
enum { ATTENTION_BLOCKS = 3 };

/* gnn.h's kinds; _ATTR: with edge_attr instead of edge. */
enum attention_mode { MODE_GAT, MODE_GATV2, MODE_GATV2_ATTR, MODE_DOT, MODE_DOT_ATTR };

/* A matrix [*, H * C] whose rows are `stride` elements apart; at NULL: absent, zeros. */
template <typename T> struct attention_matrix {
    const T *at;
    int64_t stride;

    __device__ __forceinline__ const T *row(int64_t i, int64_t from) const {
        return at + i * stride + from;
    }
};

/* Device pointers, as in gnn_attention_args. */
template <typename T> struct attention_view {
    typedef typename gnn_accumulator<T>::type A;
    typedef attention_matrix<T> matrix;
    const int64_t *rowptr; // [n_rows + 1]
    const int32_t *col;    // [n_edges]
    const void *eid;       // [n_edges] or NULL
    const int64_t *split;  // [n_split, 2]: row and chunk
    int64_t n_rows, n_split;
    int n_heads, n_channels, n_attr; // H, C, D
    int group_shift, heads_shift;    // lanes of a group; groups of a warp at one row
    int n_head_blocks, n_slices;
    bool eid_is_64;

    A slope, scale, kept; // kept: 1 / (1 - dropout)
    uint64_t seed;
    uint32_t threshold; // of dropout; 0: keep all

    matrix v, k, q, edge; // [*, H * C]
    matrix edge_attr;     // [n_edges, D]
    matrix q_edge;        // [n_dst, H * D]
    matrix grad;          // [n_dst, H * C]
    const A *score_src, *score_dst, *score_edge;
    const T *att, *edge_weight;         // [H * C], [D, H * C]
    const A *in_acc, *in_edge, *in_lse; // dst pass: out_acc, out_edge, lse of forward
    const A *grad_edge;                 // [n_dst, H * D] or NULL
    const A *in_alpha, *in_dscore;      // src pass: [E, H]

    T *out; // [n_dst, H * C]
    A *out_acc, *out_edge, *lse;
    A *alpha, *dscore;       // dst pass: [E, H]
    T *d_edge, *d_edge_attr; // [E, H * C], [E, D]

    // sums over rows, [n_rows, H * n]: d_q and d_q_edge, or d_v and d_k; [n_rows, H]
    T *first, *second;
    A *d_score;
    A first_scale, second_scale;
    int n_first, n_second; // C, or D
    A *sums;               // [n_split, H, sums_width]: what chunks leave
    int sums_width;
    A *parts; // [gridDim.x, parts_width]: what blocks leave of parameters' gradients
    int64_t parts_width;

    __device__ __forceinline__ int64_t edge_number(int64_t entry) const {
        return edge_of(eid, eid_is_64, entry);
    }

    /* 0 where dropout takes (edge, head), else 1 / (1 - dropout). */
    __device__ __forceinline__ A dropout_factor(int64_t edge, int head) const {
        return gnn_dropout_word(seed, edge, head) >= threshold ? kept : (A)0;
    }

    __device__ __forceinline__ A leaky(A x) const {
        return x > 0 ? x : slope * x;
    }
    __device__ __forceinline__ A leaky_slope(A x) const {
        return x > 0 ? (A)1 : slope;
    }
};

/* ------------------------------------------------------------------------------- items */

/* Entries [entry, entry + n) of a row; row -1: nothing to do. n fits an int: see the
 * launcher. */
struct attention_item {
    int64_t row, entry, slot; // slot -1: the whole row
    int n;
};

/* Item i: the chunks of the list, then each row that is not in the list. */
template <typename T>
static __device__ __forceinline__ attention_item
attention_item_at(const attention_view<T> &g, int64_t i, bool wanted) {
    attention_item item = {-1, 0, -1, 0};
    const int64_t row = i - g.n_split;
    if (!wanted || row >= g.n_rows) {
        return item;
    }
    if (row < 0) {
        item.row = g.split[2 * i];
        item.slot = i;
        item.entry = g.rowptr[item.row] + g.split[2 * i + 1] * GNN_CUDA_CHUNK;
        const int64_t left = g.rowptr[item.row + 1] - item.entry;
        item.n = left < GNN_CUDA_CHUNK ? (int)left : GNN_CUDA_CHUNK;
        return item;
    }
    const int64_t begin = __ldg(g.rowptr + row);
    const int64_t degree = __ldg(g.rowptr + row + 1) - begin;
    if (g.n_split == 0 || degree <= GNN_CUDA_CHUNK) { // else in the list
        item.row = row;
        item.entry = begin;
        item.n = (int)degree;
    }
    return item;
}

/* Where a group is: its lanes, its head, the items it takes. */
struct attention_place {
    gnn_place_in_warp at;
    int head;      // -1: none
    int64_t first; // items first, first + stride, ...: the same number for a whole warp
    int64_t stride, sub;

    template <typename T>
    __device__ __forceinline__ attention_place(const attention_view<T> &g,
                                               int head_block)
        : at(g.group_shift) {
        const int side_by_side = 1 << g.heads_shift;
        head = head_block * side_by_side + (at.group & (side_by_side - 1));
        head = head < g.n_heads ? head : -1;
        const int rows = at.groups >> g.heads_shift;
        first = at.warp * rows;
        stride = at.warps * rows;
        sub = at.group >> g.heads_shift;
    }
};

/* The sum of v over the lanes of a group, for all of them. */
template <typename A>
static __device__ __forceinline__ A group_sum(A v, const gnn_place_in_warp &at) {
    for (int offset = at.lanes / 2; offset > 0; offset /= 2) {
        v += __shfl_xor_sync(GNN_FULL_WARP, v, offset);
    }
    return v;
}

/* The lanes' values added over the groups of the warp that have the same head. */
template <typename A>
static __device__ __forceinline__ A sum_over_rows(A v, const gnn_place_in_warp &at,
                                                  int heads_shift) {
    for (int offset = at.lanes << heads_shift; offset < 32; offset *= 2) {
        v += __shfl_xor_sync(GNN_FULL_WARP, v, offset);
    }
    return v;
}

/* The values of the same lane of each warp of the block, added in order. All threads of
 * the block call this together. */
template <typename A> static __device__ __forceinline__ A sum_over_warps(A v) {
    __shared__ A of_warps[GNN_BLOCK_WARPS][32];
    const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32);
    of_warps[warp][lane] = v;
    __syncthreads();
    A sum = 0;
    GNN_UNROLL
    for (int w = 0; w < GNN_BLOCK_WARPS; w++) {
        sum += of_warps[w][lane];
    }
    __syncthreads(); // before the next value
    return sum;
}

/* ---------------------------------------------------------------------- edge features */

/* Adds edge_weight^T edge_attr to f[j] of N entries. The weights come from the nearest
 * cache, once for all of them. */
template <typename T, bool WIDE, int N>
static __device__ __forceinline__ void
project_attr(const attention_view<T> &g, const gnn_columns<T, WIDE> &columns,
             int64_t channel, const int64_t (&edge)[N], const bool (&live)[N],
             typename gnn_accumulator<T>::type (&f)[N][gnn_pack<T, WIDE>::SIZE]) {
    typedef gnn_pack<T, WIDE> pack;
    const int64_t width = (int64_t)g.n_heads * g.n_channels;
    GNN_UNROLL_BY(2) // by more: not enough registers
    for (int d = 0; d < g.n_attr; d++) {
        const pack w = columns.load(g.edge_weight + d * width + channel, true);
        GNN_UNROLL
        for (int j = 0; j < N; j++) {
            if (live[j]) {
                const auto a = widen(g.edge_attr.row(edge[j], d)[0]);
                GNN_UNROLL
                for (int i = 0; i < pack::SIZE; i++) {
                    f[j][i] += a * widen(w.at[i]);
                }
            }
        }
    }
}

/* ------------------------------------------------------------- sums over a row's chunks */

/* What the entries of a chunk add to a row, and the row's total so far. */
template <typename A, int SIZE> struct attention_row_sum {
    A part[SIZE], total[SIZE];

    __device__ __forceinline__ attention_row_sum() {
        GNN_UNROLL
        for (int i = 0; i < SIZE; i++) {
            part[i] = total[i] = 0;
        }
    }

    __device__ __forceinline__ void close(A ours = 1, A theirs = 1) {
        GNN_UNROLL
        for (int i = 0; i < SIZE; i++) {
            total[i] = total[i] * ours + part[i] * theirs;
            part[i] = 0;
        }
    }

    __device__ __forceinline__ void scale_part(A factor) {
        GNN_UNROLL
        for (int i = 0; i < SIZE; i++) {
            part[i] *= factor;
        }
    }

    /* out = scale * total, rounded */
    template <typename T, bool WIDE>
    __device__ __forceinline__ void write(const gnn_columns<T, WIDE> &columns, T *out,
                                          A scale) const {
        gnn_pack<T, WIDE> rounded;
        GNN_UNROLL
        for (int i = 0; i < SIZE; i++) {
            narrow(scale * total[i], &rounded.at[i]);
        }
        columns.store(out, rounded);
    }

    template <typename Columns>
    __device__ __forceinline__ void write_exact(const Columns &columns, A *out,
                                                A scale) const {
        GNN_UNROLL
        for (int i = 0; i < SIZE; i++) {
            if (columns.has(i)) {
                out[columns.first + i * columns.step] = scale * total[i];
            }
        }
    }
};

/* Where a chunk leaves its sums of one head; NULL for a whole row. */
template <typename T>
static __device__ __forceinline__ typename gnn_accumulator<T>::type *
sums_of(const attention_view<T> &g, const attention_item &item, int head) {
    return item.slot < 0 ? NULL
                         : g.sums + (item.slot * g.n_heads + head) * g.sums_width;
}

/* The sums of a row and head in one slice, or of a chunk, to first and second. SECOND:
 * are the columns of second wide? */
template <typename T, bool WIDE, bool SECOND, typename First, typename Second>
static __device__ __forceinline__ void
write_rows(const attention_view<T> &g, const attention_item &item, int head, int slice,
           const gnn_place_in_warp &at, const First &first, const Second &second,
           bool has_second) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_columns<T, WIDE> columns(slice, at, g.n_first);
    const gnn_columns<T, SECOND> others(slice, at, g.n_second);
    const int64_t unit = item.row * g.n_heads + head;
    A *const sums = sums_of(g, item, head);
    if (g.first != NULL) {
        if (sums != NULL) {
            first.write_exact(columns, sums, 1);
        } else {
            first.write(columns, g.first + unit * g.n_first, g.first_scale);
        }
    }
    if (has_second && g.second != NULL) {
        if (sums != NULL) {
            second.write_exact(others, sums + g.n_first, 1);
        } else {
            second.write(others, g.second + unit * g.n_second, g.second_scale);
        }
    }
}

/* first, second and d_score of heavy rows: sums over their chunks, in order. A warp for
 * a row and a head; warps of chunks that do not start a row have nothing to do. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    attention_add_kernel(const attention_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(5);
    const int width = g.n_first + g.n_second + 1;
    for (int head = (int)blockIdx.y; head < g.n_heads; head += (int)gridDim.y) {
        for (int64_t i = at.warp; i < g.n_split; i += at.warps) {
            if (g.split[2 * i + 1] != 0) {
                continue;
            }
            const int64_t row = g.split[2 * i];
            const int64_t degree = g.rowptr[row + 1] - g.rowptr[row];
            const int64_t n_chunks = (degree + GNN_CUDA_CHUNK - 1) / GNN_CUDA_CHUNK;
            const int64_t unit = row * g.n_heads + head;
            for (int f = at.lane; f < width; f += 32) {
                const bool in_first = f < g.n_first;
                const bool is_score = f == width - 1;
                if (is_score   ? g.d_score == NULL
                    : in_first ? g.first == NULL
                               : g.second == NULL) {
                    continue; // not wanted: nobody wrote its sums
                }
                const A *sums = g.sums + (i * g.n_heads + head) * g.sums_width + f;
                A total = 0;
                GNN_UNROLL_BY(8)
                for (int64_t c = 0; c < n_chunks; c++) {
                    total += sums[c * g.n_heads * g.sums_width];
                }
                if (is_score) {
                    g.d_score[unit] = total;
                } else if (in_first) {
                    narrow(g.first_scale * total, g.first + unit * g.n_first + f);
                } else {
                    narrow(g.second_scale * total,
                           g.second + unit * g.n_second + (f - g.n_first));
                }
            }
        }
    }
}

/* out[column] = sum over the n_parts rows of parts; a warp for a column. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    attention_parts_kernel(const typename gnn_accumulator<T>::type *parts, int n_parts,
                           int64_t width, T *out) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(5);
    for (int64_t column = at.warp; column < width; column += at.warps) {
        A sum = 0;
        for (int part = at.lane; part < n_parts; part += 32) {
            sum += parts[part * width + column];
        }
        sum = group_sum(sum, at);
        if (at.lane == 0) {
            narrow(sum, out + column);
        }
    }
}

#endif

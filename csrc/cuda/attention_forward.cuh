/* attention_forward.cuh: attention on CUDA, forward.
 *
 * One pass over the entries of a row: the values of an entry stay in registers while its
 * score decides how they are added (online softmax). A chunk's state is (max, sum of
 * exp(s - max), sum of m * exp(s - max) * value); states are merged in order.
 *   GAT            scores are scalars: each member of a group takes one entry's
 *   GATV2, DOT     scores are dot products: the members of a group share each entry's
 */
#ifndef GNN_ATTENTION_FORWARD_CUH
#define GNN_ATTENTION_FORWARD_CUH

#include "cuda/attention_view.cuh"

/* 1 / sum of exp(s - max). Scores of +inf, or nothing but -inf, make NaN; no entries 0. */
template <typename A>
static __device__ __forceinline__ A one_over(const gnn_exp_sum<A> &sum, bool empty) {
    return empty ? (A)0 : 1 / (sum.sum + (sum.max - sum.max));
}

/* The online softmax of a row in one head, with SIZE of the values and FEW of the edge
 * attributes that it weights. */
template <typename A, int SIZE, int FEW = 1> struct attention_softmax {
    gnn_exp_sum<A> part, total;
    attention_row_sum<A, SIZE> values;
    attention_row_sum<A, FEW> attrs; // unused: gone

    /* Makes room for scores up to `best`: what is held shrinks. */
    __device__ __forceinline__ void raise_to(A best) {
        if (best > part.max) { // the same in all lanes of a group
            const A shrink = exp_of(part.max - best);
            part.max = best;
            part.sum *= shrink;
            values.scale_part(shrink);
            attrs.scale_part(shrink);
        }
    }

    /* exp(s - max) of an entry no higher than that. */
    __device__ __forceinline__ A weight(A s) const {
        return s == part.max ? (A)1 : exp_of(s - part.max); // infinities, too
    }

    /* Ends a chunk. */
    __device__ __forceinline__ void close() {
        A theirs;
        const A ours = total.merge(part, &theirs);
        values.close(ours, theirs);
        attrs.close(ours, theirs);
        part = gnn_exp_sum<A>();
    }
};

template <typename A>
static __device__ __forceinline__ A group_max(A v, const gnn_place_in_warp &at) {
    v = v == v ? v : -(A)INFINITY; // NaN shows up in the sum
    for (int offset = at.lanes / 2; offset > 0; offset /= 2) {
        const A other = __shfl_xor_sync(GNN_FULL_WARP, v, offset);
        v = other > v ? other : v;
    }
    return v;
}

/* A row and head, or a chunk of it: max, sum, values, attributes to its sums; else out,
 * out_acc, lse, out_edge. */
template <typename T, bool WIDE, int MODE, typename State>
static __device__ __forceinline__ void
write_row(const attention_view<T> &g, const attention_item &item, int head, int slice,
          const gnn_place_in_warp &at, const State &state) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_columns<T, WIDE> columns(slice, at, g.n_channels);
    const gnn_columns<A, false> attrs(slice, at, g.n_attr); // same lanes as T's
    const int64_t unit = item.row * g.n_heads + head, from = unit * g.n_channels;
    A *const sums = sums_of(g, item, head);
    const A scale = sums != NULL ? (A)1 : one_over(state.total, item.n == 0);
    if (slice == 0 && at.member == 0) {
        if (sums != NULL) {
            sums[0] = state.total.max;
            sums[1] = state.total.sum;
        } else {
            g.lse[unit] = state.total.log_sum();
        }
    }
    if (sums == NULL) {
        state.values.write(columns, g.out + from, scale);
    }
    A *const exact = sums != NULL ? sums + 2 : g.out_acc;
    if (exact != NULL) {
        state.values.write_exact(columns, sums != NULL ? exact : exact + from, scale);
    }
    if (MODE == MODE_DOT_ATTR) {
        state.attrs.write_exact(attrs,
                                sums != NULL ? sums + 2 + g.n_channels
                                             : g.out_edge + unit * g.n_attr,
                                scale);
    }
}

/* ---------------------------------------------------------------------------------- GAT */

template <typename T, bool WIDE>
static __device__ __forceinline__ void
walk_gat(const attention_view<T> &g, const attention_item &item, int head, int slice,
         const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE> pack;
    enum { N = GNN_EDGES_IN_FLIGHT };
    const gnn_columns<T, WIDE> columns(slice, at, g.n_channels);
    const int64_t channel = (int64_t)head * g.n_channels;
    const A of_row = item.n > 0 ? __ldg(g.score_dst + item.row * g.n_heads + head) : 0;
    attention_softmax<A, pack::SIZE> state; // part.sum: this lane's entries
    const int longest = warp_max(item.n);
    for (int base = 0; base < longest; base += at.lanes) {
        if (base > 0 && base % GNN_CUDA_CHUNK == 0) {
            state.part.sum = group_sum(state.part.sum, at);
            state.close();
        }
        const bool mine = base + at.member < item.n;
        int col = 0;
        A score = -(A)INFINITY, factor = 1;
        if (mine) {
            const int64_t entry = item.entry + base + at.member;
            col = __ldg(g.col + entry);
            score = __ldg(g.score_src + (int64_t)col * g.n_heads + head) + of_row;
            if (g.score_edge != NULL || g.threshold != 0) {
                const int64_t edge = g.edge_number(entry);
                score += g.score_edge != NULL
                             ? __ldg(g.score_edge + edge * g.n_heads + head)
                             : (A)0;
                factor = g.threshold != 0 ? g.dropout_factor(edge, head) : factor;
            }
            score = g.leaky(score);
        }
        state.raise_to(group_max(score, at));
        const A weight = mine ? state.weight(score) : (A)0;
        state.part.sum += weight;
        const A kept = weight * factor;
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += N) {
            pack v[N];
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                const int64_t c = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                v[j] = columns.load(g.v.row(c, channel), base + k + j < item.n);
            }
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                const A w = __shfl_sync(GNN_FULL_WARP, kept, k + j, at.lanes);
                if (base + k + j < item.n) {
                    GNN_UNROLL
                    for (int i = 0; i < pack::SIZE; i++) {
                        state.values.part[i] += w * widen(v[j].at[i]);
                    }
                }
            }
        }
    }
    state.part.sum = group_sum(state.part.sum, at);
    state.close();
    if (item.row >= 0) {
        write_row<T, WIDE, MODE_GAT>(g, item, head, slice, at, state);
    }
}

/* --------------------------------------------------------------------------- GATv2, DOT */

template <typename T, bool WIDE, int MODE>
static __device__ __forceinline__ void
walk_scored(const attention_view<T> &g, const attention_item &item, int head, int slice,
            const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE> pack;
    typedef gnn_pack<T, false> few; // of the D attributes
    const bool gatv2 = MODE == MODE_GATV2 || MODE == MODE_GATV2_ATTR;
    const bool attr = MODE == MODE_DOT_ATTR;
    const bool by_edge = MODE != MODE_DOT && MODE != MODE_GATV2;
    enum {
        SIZE = pack::SIZE,
        FEW = MODE == MODE_DOT_ATTR ? (int)few::SIZE : 1,
        // entries in flight, of one row load to three: as many as registers hold
        N = WIDE && sizeof(T) == 4 ? 4 : 2,
    };
    const int64_t channel = (int64_t)head * g.n_channels;
    const int64_t attr_from = (int64_t)head * g.n_attr;
    const bool row = item.n > 0;
    gnn_columns<T, WIDE> columns(slice, at, g.n_channels);
    gnn_columns<T, false> attrs(slice, at, g.n_attr);
    pack q = columns.load(g.q.row(item.row, channel), row);
    pack att = columns.load(g.att + channel, gatv2);
    few q_edge = attrs.load(g.q_edge.row(item.row, attr_from), row && attr);
    attention_softmax<A, SIZE, FEW> state;
    // scores over the slices in order, and this group's own again
    const int visits = g.n_slices == 1 ? 1 : g.n_slices + 1;
    const int longest = warp_max(item.n);
    for (int base = 0; base < longest; base += at.lanes) {
        if (base > 0 && base % GNN_CUDA_CHUNK == 0) {
            state.close();
        }
        int col = 0;
        int64_t number = 0;
        A factor = 1;
        if (base + at.member < item.n) {
            const int64_t entry = item.entry + base + at.member;
            col = __ldg(g.col + entry);
            if (by_edge || g.edge.at != NULL || g.threshold != 0) {
                number = g.edge_number(entry);
                factor = g.threshold != 0 ? g.dropout_factor(number, head) : factor;
            }
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += N) {
            bool live[N];
            int64_t c[N], e[N];
            A s[N], f[N][SIZE];
            pack v[N];
            few a[N];
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                live[j] = base + k + j < item.n;
                c[j] = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                e[j] = __shfl_sync(GNN_FULL_WARP, number, k + j, at.lanes);
                s[j] = 0;
            }
            for (int t = 0; t < visits; t++) {
                if (g.n_slices > 1) {
                    const int other = t < g.n_slices ? t : slice;
                    columns = gnn_columns<T, WIDE>(other, at, g.n_channels);
                    attrs = gnn_columns<T, false>(other, at, g.n_attr);
                    q = columns.load(g.q.row(item.row, channel), row);
                    att = columns.load(g.att + channel, gatv2);
                    q_edge = attrs.load(g.q_edge.row(item.row, attr_from), row && attr);
                }
                pack key[N], edge[N];
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    v[j] = columns.load(g.v.row(c[j], channel),
                                        live[j] && (gatv2 || t == visits - 1));
                    key[j] = columns.load(g.k.row(c[j], channel), live[j] && !gatv2);
                    edge[j] = columns.load(g.edge.row(e[j], channel),
                                           live[j] && !by_edge && g.edge.at != NULL);
                    a[j] = attrs.load(g.edge_attr.row(e[j], 0), live[j] && attr);
                }
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    GNN_UNROLL
                    for (int i = 0; i < SIZE; i++) {
                        f[j][i] = widen(edge[j].at[i]);
                    }
                }
                if (MODE == MODE_GATV2_ATTR) {
                    project_attr<T, WIDE, N>(g, columns, channel, e, live, f);
                }
                if (t == g.n_slices) {
                    break; // its part of the scores is in
                }
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    GNN_UNROLL
                    for (int i = 0; i < SIZE; i++) {
                        s[j] +=
                            gatv2 ? widen(att.at[i]) * g.leaky(widen(v[j].at[i]) +
                                                               widen(q.at[i]) + f[j][i])
                                  : widen(q.at[i]) * (widen(key[j].at[i]) + f[j][i]);
                    }
                    GNN_UNROLL
                    for (int i = 0; i < FEW; i++) {
                        s[j] += attr ? widen(q_edge.at[i]) * widen(a[j].at[i]) : (A)0;
                    }
                }
            }
            for (int offset = at.lanes / 2; offset > 0; offset /= 2) {
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    s[j] += __shfl_xor_sync(GNN_FULL_WARP, s[j], offset);
                }
            }
            A best = -(A)INFINITY;
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                s[j] = gatv2 ? s[j] : g.scale * s[j];
                best = live[j] && s[j] > best ? s[j] : best;
            }
            state.raise_to(best);
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                const A keep = __shfl_sync(GNN_FULL_WARP, factor, k + j, at.lanes);
                const A weight = live[j] ? state.weight(s[j]) : (A)0;
                state.part.sum += weight;
                const A w = weight * keep;
                if (live[j]) {
                    GNN_UNROLL
                    for (int i = 0; i < SIZE; i++) {
                        const A value =
                            gatv2 ? (A)widen(v[j].at[i]) : widen(v[j].at[i]) + f[j][i];
                        state.values.part[i] += w * value;
                    }
                    GNN_UNROLL
                    for (int i = 0; i < FEW; i++) {
                        state.attrs.part[i] += attr ? w * widen(a[j].at[i]) : (A)0;
                    }
                }
            }
        }
    }
    state.close();
    if (item.row >= 0) {
        write_row<T, WIDE, MODE>(g, item, head, slice, at, state);
    }
}

/* ------------------------------------------------------------------------------ kernels */

/* Items in x, heads in y, slices in z. */
template <typename T, bool WIDE, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS,
                                  MODE == MODE_DOT_ATTR || MODE == MODE_GATV2_ATTR
                                      ? ATTENTION_BLOCKS
                                      : GNN_BLOCKS_AT_LEAST)
    attention_kernel(const attention_view<T> g) {
    const int64_t n_items = g.n_split + g.n_rows;
    for (int slice = (int)blockIdx.z; slice < g.n_slices; slice += (int)gridDim.z) {
        for (int b = (int)blockIdx.y; b < g.n_head_blocks; b += (int)gridDim.y) {
            const attention_place place(g, b);
            for (int64_t i = place.first; i < n_items; i += place.stride) {
                const attention_item item =
                    attention_item_at(g, i + place.sub, place.head >= 0);
                const int head = place.head >= 0 ? place.head : 0;
                if (MODE == MODE_GAT) {
                    walk_gat<T, WIDE>(g, item, head, slice, place.at);
                } else {
                    walk_scored<T, WIDE, MODE>(g, item, head, slice, place.at);
                }
            }
        }
    }
}

/* Rows in chunks: merges what those left, in order. A warp for a row and a head. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    attention_join_kernel(const attention_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(5);
    const int width = g.sums_width - 2; // values, then attributes
    for (int head = (int)blockIdx.y; head < g.n_heads; head += (int)gridDim.y) {
        for (int64_t i = at.warp; i < g.n_split; i += at.warps) {
            if (g.split[2 * i + 1] != 0) {
                continue;
            }
            const int64_t row = g.split[2 * i], unit = row * g.n_heads + head;
            const int64_t degree = g.rowptr[row + 1] - g.rowptr[row];
            const int64_t n_chunks = (degree + GNN_CUDA_CHUNK - 1) / GNN_CUDA_CHUNK;
            for (int f = at.lane; f < width || f == 0; f += 32) {
                attention_softmax<A, 1> state;
                const A *sums = g.sums + (i * g.n_heads + head) * g.sums_width;
                for (int64_t c = 0; c < n_chunks; c++) {
                    state.part = gnn_exp_sum<A>(sums[0], sums[1]);
                    state.values.part[0] = f < width ? sums[2 + f] : 0;
                    state.close();
                    sums += (int64_t)g.n_heads * g.sums_width;
                }
                const A value = one_over(state.total, false) * state.values.total[0];
                if (f == 0) {
                    g.lse[unit] = state.total.log_sum();
                }
                if (f < g.n_channels) {
                    const int64_t to = unit * g.n_channels + f;
                    narrow(value, g.out + to);
                    if (g.out_acc != NULL) {
                        g.out_acc[to] = value;
                    }
                } else if (f < width) {
                    g.out_edge[unit * g.n_attr + (f - g.n_channels)] = value;
                }
            }
        }
    }
}

#endif

/* attention_dst.cuh: gradients of attention on CUDA, of what hangs on destinations.
 *
 * One pass over forward's rows. With delta[i, h] = <grad, out>, which is the sum over the
 * row of alpha * (the gradient of alpha), an entry needs nothing of the others:
 *   p = <grad[i, h], value>     ds = alpha * (m * p - delta),     alpha = exp(s - lse)
 * m * alpha and ds (GAT: times the slope of lrelu) go to [E, H]; of the rest
 *   GATV2   dh = ds * att * lrelu'(h):  d_q += dh,  d_edge = dh,  d_att += ds * lrelu(h)
 *   DOT     d_q += ds * scale * (k + f),  d_edge = ds * scale * q + m * alpha * grad
 *           with attributes  d_q_edge += ds * scale * edge_attr
 */
#ifndef GNN_ATTENTION_DST_CUH
#define GNN_ATTENTION_DST_CUH

#include "cuda/attention_view.cuh"

/* <grad, out> of a row and head, for all lanes of its group. */
template <typename T, bool WITH_ATTR>
static __device__ __forceinline__ typename gnn_accumulator<T>::type
delta_of(const attention_view<T> &g, const attention_item &item, int head,
         const gnn_place_in_warp &at) {
    typename gnn_accumulator<T>::type delta = 0;
    if (item.n > 0) {
        const int64_t unit = item.row * g.n_heads + head;
        const T *grad = g.grad.row(item.row, (int64_t)head * g.n_channels);
        for (int c = at.member; c < g.n_channels; c += at.lanes) {
            delta += widen(grad[c]) * g.in_acc[unit * g.n_channels + c];
        }
        if (WITH_ATTR && g.grad_edge != NULL) {
            for (int d = at.member; d < g.n_attr; d += at.lanes) {
                delta +=
                    g.grad_edge[unit * g.n_attr + d] * g.in_edge[unit * g.n_attr + d];
            }
        }
    }
    return group_sum(delta, at);
}

/* ---------------------------------------------------------------------------------- GAT */

template <typename T, bool WIDE>
static __device__ __forceinline__ void
walk_gat_dst(const attention_view<T> &g, const attention_item &item, int head,
             const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE> pack;
    enum { N = GNN_EDGES_IN_FLIGHT };
    const int64_t channel = (int64_t)head * g.n_channels;
    const int64_t unit = item.row * g.n_heads + head;
    const bool row = item.n > 0;
    const A delta = delta_of<T, false>(g, item, head, at);
    const A lse = row ? __ldg(g.in_lse + unit) : 0;
    const A of_row = row ? __ldg(g.score_dst + unit) : 0;
    gnn_columns<T, WIDE> columns(0, at, g.n_channels);
    pack grad = columns.load(g.grad.row(item.row, channel), row);
    attention_row_sum<A, 1> d_score; // part: this lane's entries
    const int longest = warp_max(item.n);
    for (int base = 0; base < longest; base += at.lanes) {
        if (base > 0 && base % GNN_CUDA_CHUNK == 0) {
            d_score.part[0] = group_sum(d_score.part[0], at);
            d_score.close();
        }
        const bool mine = base + at.member < item.n;
        int col = 0;
        int64_t edge = 0;
        A inside = 0, factor = 1, p_mine = 0;
        if (mine) {
            const int64_t entry = item.entry + base + at.member;
            col = __ldg(g.col + entry);
            edge = g.edge_number(entry);
            inside = __ldg(g.score_src + (int64_t)col * g.n_heads + head) + of_row;
            inside += g.score_edge != NULL
                          ? __ldg(g.score_edge + edge * g.n_heads + head)
                          : (A)0;
            factor = g.threshold != 0 ? g.dropout_factor(edge, head) : factor;
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += N) {
            A p[N];
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                p[j] = 0;
            }
            for (int slice = 0; slice < g.n_slices; slice++) {
                if (g.n_slices > 1) {
                    columns = gnn_columns<T, WIDE>(slice, at, g.n_channels);
                    grad = columns.load(g.grad.row(item.row, channel), row);
                }
                pack v[N];
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    const int64_t c = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                    v[j] = columns.load(g.v.row(c, channel), base + k + j < item.n);
                }
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    GNN_UNROLL
                    for (int i = 0; i < pack::SIZE; i++) {
                        p[j] += widen(grad.at[i]) * widen(v[j].at[i]);
                    }
                }
            }
            for (int offset = at.lanes / 2; offset > 0; offset /= 2) {
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    p[j] += __shfl_xor_sync(GNN_FULL_WARP, p[j], offset);
                }
            }
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                p_mine = at.member == k + j ? p[j] : p_mine;
            }
        }
        if (mine) {
            const A alpha = exp_of(g.leaky(inside) - lse);
            const A d_inside =
                alpha * (factor * p_mine - delta) * g.leaky_slope(inside);
            g.alpha[edge * g.n_heads + head] = factor * alpha;
            g.dscore[edge * g.n_heads + head] = d_inside;
            d_score.part[0] += d_inside;
        }
    }
    d_score.part[0] = group_sum(d_score.part[0], at);
    d_score.close();
    if (item.row >= 0 && at.member == 0 && g.d_score != NULL) {
        A *const sums = sums_of(g, item, head);
        *(sums != NULL ? sums + g.sums_width - 1 : g.d_score + unit) = d_score.total[0];
    }
}

/* --------------------------------------------------------------------------- GATv2, DOT */

/* d_att: this lane's, over all its rows. */
template <typename T, bool WIDE, int MODE>
static __device__ __forceinline__ void
walk_scored_dst(const attention_view<T> &g, const attention_item &item, int head,
                int slice, const gnn_place_in_warp &at,
                typename gnn_accumulator<T>::type (&d_att)[gnn_pack<T, WIDE>::SIZE]) {
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
        N = WIDE && sizeof(T) == 4 && (MODE == MODE_GATV2 || MODE == MODE_DOT) ? 4 : 2,
    };
    const int64_t channel = (int64_t)head * g.n_channels;
    const int64_t attr_from = (int64_t)head * g.n_attr;
    const int64_t unit = item.row * g.n_heads + head;
    const bool row = item.n > 0;
    const A delta = delta_of<T, MODE == MODE_DOT_ATTR>(g, item, head, at);
    const A lse = row ? __ldg(g.in_lse + unit) : 0;
    gnn_columns<T, WIDE> columns(slice, at, g.n_channels);
    gnn_columns<T, false> attrs(slice, at, g.n_attr);
    pack q = columns.load(g.q.row(item.row, channel), row);
    pack grad = columns.load(g.grad.row(item.row, channel), row);
    pack att = columns.load(g.att + channel, gatv2);
    few q_edge = attrs.load(g.q_edge.row(item.row, attr_from), row && attr);
    attention_row_sum<A, SIZE> d_q;
    attention_row_sum<A, FEW> d_q_edge;
    // scores over the slices in order, and this group's own again
    const int visits = g.n_slices == 1 ? 1 : g.n_slices + 1;
    const int longest = warp_max(item.n);
    for (int base = 0; base < longest; base += at.lanes) {
        if (base > 0 && base % GNN_CUDA_CHUNK == 0) {
            d_q.close();
            d_q_edge.close();
        }
        const bool mine = base + at.member < item.n;
        int col = 0;
        int64_t number = 0;
        A factor = 1, alpha_mine = 0, ds_mine = 0;
        if (mine) {
            const int64_t entry = item.entry + base + at.member;
            col = __ldg(g.col + entry);
            number = g.edge_number(entry);
            factor = g.threshold != 0 ? g.dropout_factor(number, head) : factor;
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += N) {
            bool live[N];
            int64_t c[N], e[N];
            A s[N], p[N], f[N][SIZE];
            pack v[N], key[N];
            few a[N];
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                live[j] = base + k + j < item.n;
                c[j] = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                e[j] = __shfl_sync(GNN_FULL_WARP, number, k + j, at.lanes);
                s[j] = p[j] = 0;
            }
            for (int t = 0; t < visits; t++) {
                if (g.n_slices > 1) {
                    const int other = t < g.n_slices ? t : slice;
                    columns = gnn_columns<T, WIDE>(other, at, g.n_channels);
                    attrs = gnn_columns<T, false>(other, at, g.n_attr);
                    q = columns.load(g.q.row(item.row, channel), row);
                    grad = columns.load(g.grad.row(item.row, channel), row);
                    att = columns.load(g.att + channel, gatv2);
                    q_edge = attrs.load(g.q_edge.row(item.row, attr_from), row && attr);
                }
                pack edge[N];
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    v[j] = columns.load(g.v.row(c[j], channel), live[j]);
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
                        const A of_v = widen(v[j].at[i]), of_q = widen(q.at[i]);
                        const A of_grad = widen(grad.at[i]);
                        if (gatv2) {
                            s[j] += widen(att.at[i]) * g.leaky(of_v + of_q + f[j][i]);
                            p[j] += of_grad * of_v;
                        } else {
                            s[j] += of_q * (widen(key[j].at[i]) + f[j][i]);
                            p[j] += of_grad * (of_v + f[j][i]);
                        }
                    }
                    if (attr) {
                        GNN_UNROLL
                        for (int i = 0; i < FEW; i++) {
                            const A of_attr = widen(a[j].at[i]);
                            s[j] += widen(q_edge.at[i]) * of_attr;
                            if (g.grad_edge != NULL && live[j] && attrs.has(i)) {
                                p[j] += __ldg(g.grad_edge + unit * g.n_attr +
                                              attrs.first + i * attrs.step) *
                                        of_attr;
                            }
                        }
                    }
                }
            }
            for (int offset = at.lanes / 2; offset > 0; offset /= 2) {
                GNN_UNROLL
                for (int j = 0; j < N; j++) {
                    s[j] += __shfl_xor_sync(GNN_FULL_WARP, s[j], offset);
                    p[j] += __shfl_xor_sync(GNN_FULL_WARP, p[j], offset);
                }
            }
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                const A keep = __shfl_sync(GNN_FULL_WARP, factor, k + j, at.lanes);
                if (!live[j]) {
                    continue;
                }
                const A alpha = exp_of((gatv2 ? s[j] : g.scale * s[j]) - lse);
                const A kept = keep * alpha, ds = alpha * (keep * p[j] - delta);
                alpha_mine = at.member == k + j ? kept : alpha_mine;
                ds_mine = at.member == k + j ? ds : ds_mine;
                pack d_f;
                GNN_UNROLL
                for (int i = 0; i < SIZE; i++) {
                    if (gatv2) {
                        const A h = widen(v[j].at[i]) + widen(q.at[i]) + f[j][i];
                        const A dh = ds * widen(att.at[i]) * g.leaky_slope(h);
                        d_q.part[i] += dh;
                        d_att[i] += ds * g.leaky(h);
                        narrow(dh, &d_f.at[i]);
                    } else {
                        d_q.part[i] += ds * (widen(key[j].at[i]) + f[j][i]);
                        narrow(g.scale * ds * widen(q.at[i]) + kept * widen(grad.at[i]),
                               &d_f.at[i]);
                    }
                }
                if (attr) {
                    GNN_UNROLL
                    for (int i = 0; i < FEW; i++) {
                        d_q_edge.part[i] += ds * widen(a[j].at[i]);
                    }
                }
                if (!by_edge && g.d_edge != NULL) {
                    const int64_t to = e[j] * g.n_heads + head;
                    columns.store(g.d_edge + to * g.n_channels, d_f);
                }
            }
        }
        if (mine && slice == 0) {
            g.alpha[number * g.n_heads + head] = alpha_mine;
            g.dscore[number * g.n_heads + head] = ds_mine;
        }
    }
    d_q.close();
    d_q_edge.close();
    if (item.row >= 0) {
        columns = gnn_columns<T, WIDE>(slice, at, g.n_channels);
        write_rows<T, WIDE, false>(g, item, head, slice, at, d_q, d_q_edge, attr);
    }
}

/* ------------------------------------------------------------------------------ kernels */

/* Adds d_att over the block and leaves it in the block's part. All threads call. */
template <typename T, bool WIDE>
static __device__ __forceinline__ void
leave_d_att(const attention_view<T> &g, const attention_place &place, int slice,
            typename gnn_accumulator<T>::type (&d_att)[gnn_pack<T, WIDE>::SIZE]) {
    typedef typename gnn_accumulator<T>::type A;
    enum { SIZE = gnn_pack<T, WIDE>::SIZE };
    const gnn_columns<T, WIDE> columns(slice, place.at, g.n_channels);
    A *part = g.parts + blockIdx.x * g.parts_width + (int64_t)place.head * g.n_channels;
    GNN_UNROLL
    for (int i = 0; i < SIZE; i++) {
        const A sum = sum_over_warps(sum_over_rows(d_att[i], place.at, g.heads_shift));
        if (threadIdx.x < 32 && place.sub == 0 && place.head >= 0 && columns.has(i)) {
            part[columns.first + i * columns.step] = sum;
        }
    }
}

/* Items in x, heads in y, slices in z. */
template <typename T, bool WIDE, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, MODE == MODE_GAT
                                                         ? GNN_BLOCKS_AT_LEAST
                                                         : ATTENTION_BLOCKS)
    attention_dst_kernel(const attention_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    enum { SIZE = gnn_pack<T, WIDE>::SIZE };
    const int64_t n_items = g.n_split + g.n_rows;
    const int n_slices = MODE == MODE_GAT ? 1 : g.n_slices; // GAT: no sums of channels
    for (int slice = (int)blockIdx.z; slice < n_slices; slice += (int)gridDim.z) {
        for (int b = (int)blockIdx.y; b < g.n_head_blocks; b += (int)gridDim.y) {
            const attention_place place(g, b);
            const int head = place.head >= 0 ? place.head : 0;
            A d_att[SIZE];
            GNN_UNROLL
            for (int i = 0; i < SIZE; i++) {
                d_att[i] = 0;
            }
            for (int64_t i = place.first; i < n_items; i += place.stride) {
                const attention_item item =
                    attention_item_at(g, i + place.sub, place.head >= 0);
                if (MODE == MODE_GAT) {
                    walk_gat_dst<T, WIDE>(g, item, head, place.at);
                } else {
                    walk_scored_dst<T, WIDE, MODE>(g, item, head, slice, place.at,
                                                   d_att);
                }
            }
            if ((MODE == MODE_GATV2 || MODE == MODE_GATV2_ATTR) && g.parts != NULL) {
                leave_d_att<T, WIDE>(g, place, slice, d_att);
            }
        }
    }
}

#endif

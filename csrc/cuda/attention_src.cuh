/* attention_src.cuh: gradients of attention on CUDA, of what hangs on sources.
 *
 * Rows are sources: the transpose of forward's graph. The dst pass left m * alpha and ds of
 * each edge, so no score is taken again: sums of rows weighted by two scalars.
 *   d_v[j, h] = sum of  m * alpha * grad[i, h]     d_score_src[j, h] = sum of ds   (GAT)
 *   d_k[j, h] = sum of  scale * ds * q[i, h]                                       (DOT)
 *   GATV2: d_v[j, h] also takes  ds * att * lrelu'(v[j, h] + q[i, h] + f)
 */
#ifndef GNN_ATTENTION_SRC_CUH
#define GNN_ATTENTION_SRC_CUH

#include "cuda/attention_view.cuh"

/* MODE_DOT stands for GAT as well, where q is absent. */
template <typename T, bool WIDE, int MODE>
static __device__ __forceinline__ void
walk_src(const attention_view<T> &g, const attention_item &item, int head, int slice,
         const gnn_place_in_warp &at) {
    typedef typename gnn_accumulator<T>::type A;
    typedef gnn_pack<T, WIDE> pack;
    const bool gatv2 = MODE != MODE_DOT;
    enum {
        SIZE = pack::SIZE,
        N = MODE == MODE_DOT && pack::SIZE <= 4
            ? 4
            : 2, // entries in flight, of two row loads or three
    };
    const int64_t channel = (int64_t)head * g.n_channels;
    const bool row = item.n > 0;
    const gnn_columns<T, WIDE> columns(slice, at, g.n_channels);
    const pack own = columns.load(g.v.row(item.row, channel), row && gatv2);
    const pack att = columns.load(g.att + channel, gatv2);
    const bool wants_v = g.first != NULL, wants_k = g.second != NULL;
    attention_row_sum<A, SIZE> d_v, d_k;
    attention_row_sum<A, 1> d_score; // part: this lane's entries
    const int longest = warp_max(item.n);
    for (int base = 0; base < longest; base += at.lanes) {
        if (base > 0 && base % GNN_CUDA_CHUNK == 0) {
            d_v.close();
            d_k.close();
            d_score.part[0] = group_sum(d_score.part[0], at);
            d_score.close();
        }
        int col = 0;
        int64_t number = 0;
        A alpha = 0, ds = 0;
        if (base + at.member < item.n) {
            const int64_t entry = item.entry + base + at.member;
            col = __ldg(g.col + entry);
            number = g.edge_number(entry);
            alpha = __ldg(g.in_alpha + number * g.n_heads + head);
            ds = __ldg(g.in_dscore + number * g.n_heads + head);
            d_score.part[0] += ds;
        }
        const int batch = longest - base < at.lanes ? longest - base : at.lanes;
        for (int k = 0; k < batch; k += N) {
            bool live[N];
            int64_t e[N];
            A f[N][SIZE];
            pack grad[N], q[N], edge[N];
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                live[j] = base + k + j < item.n;
                const int64_t c = __shfl_sync(GNN_FULL_WARP, col, k + j, at.lanes);
                e[j] = __shfl_sync(GNN_FULL_WARP, number, k + j, at.lanes);
                grad[j] = columns.load(g.grad.row(c, channel), live[j] && wants_v);
                q[j] = columns.load(g.q.row(c, channel), live[j] && (gatv2 || wants_k));
                edge[j] =
                    columns.load(g.edge.row(e[j], channel),
                                 live[j] && MODE == MODE_GATV2 && g.edge.at != NULL);
                GNN_UNROLL
                for (int i = 0; i < SIZE; i++) {
                    f[j][i] = widen(edge[j].at[i]);
                }
            }
            if (MODE == MODE_GATV2_ATTR) {
                project_attr<T, WIDE, N>(g, columns, channel, e, live, f);
            }
            GNN_UNROLL
            for (int j = 0; j < N; j++) {
                const A w = __shfl_sync(GNN_FULL_WARP, alpha, k + j, at.lanes);
                const A d = __shfl_sync(GNN_FULL_WARP, ds, k + j, at.lanes);
                if (!live[j]) {
                    continue;
                }
                GNN_UNROLL
                for (int i = 0; i < SIZE; i++) {
                    d_v.part[i] += w * widen(grad[j].at[i]);
                    if (gatv2) {
                        const A h = widen(own.at[i]) + widen(q[j].at[i]) + f[j][i];
                        d_v.part[i] += d * widen(att.at[i]) * g.leaky_slope(h);
                    } else {
                        d_k.part[i] += d * widen(q[j].at[i]);
                    }
                }
            }
        }
    }
    d_v.close();
    d_k.close();
    d_score.part[0] = group_sum(d_score.part[0], at);
    d_score.close();
    if (item.row >= 0) {
        write_rows<T, WIDE, WIDE>(g, item, head, slice, at, d_v, d_k, !gatv2);
        if (slice == 0 && at.member == 0 && g.d_score != NULL) {
            A *const sums = sums_of(g, item, head);
            *(sums != NULL ? sums + g.sums_width - 1
                           : g.d_score + item.row * g.n_heads + head) =
                d_score.total[0];
        }
    }
}

/* Items in x, heads in y, slices in z. */
template <typename T, bool WIDE, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    attention_src_kernel(const attention_view<T> g) {
    const int64_t n_items = g.n_split + g.n_rows;
    for (int slice = (int)blockIdx.z; slice < g.n_slices; slice += (int)gridDim.z) {
        for (int b = (int)blockIdx.y; b < g.n_head_blocks; b += (int)gridDim.y) {
            const attention_place place(g, b);
            for (int64_t i = place.first; i < n_items; i += place.stride) {
                walk_src<T, WIDE, MODE>(
                    g, attention_item_at(g, i + place.sub, place.head >= 0),
                    place.head >= 0 ? place.head : 0, slice, place.at);
            }
        }
    }
}

#endif

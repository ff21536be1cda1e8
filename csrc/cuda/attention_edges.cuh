/* attention_edges.cuh: gradients of raw edge attributes and of their projection on CUDA.
 *
 * These sum over heads, or over all edges, where the passes of attention take heads apart;
 * so they run after the dst pass, from alpha and dscore. Rows are destinations.
 *   DOT    d_edge_attr[e] = sum over h of  ds * scale * q_edge[i, h] + m * alpha * grad_edge
 *   GATV2  dh[e] = ds * att * lrelu'(v[j] + q[i] + f):
 *          d_edge_attr[e] = edge_weight dh[e],   d_edge_weight = sum of edge_attr[e] dh[e]^T
 */
#ifndef GNN_ATTENTION_EDGES_CUH
#define GNN_ATTENTION_EDGES_CUH

#include "cuda/attention_view.cuh"

/* DOT: a group has a row, its lanes the D attributes, one by one in z. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    attention_dot_attr_kernel(const attention_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(g.group_shift);
    const int64_t n_items = g.n_split + g.n_rows;
    for (int64_t i = at.warp * at.groups; i < n_items; i += at.warps * at.groups) {
        const attention_item item = attention_item_at(g, i + at.group, true);
        for (int k = 0; k < item.n; k++) {
            const int64_t edge = g.edge_number(item.entry + k);
            for (int d = at.member; d < g.n_attr; d += at.lanes) {
                A sum = 0;
                for (int head = 0; head < g.n_heads; head++) {
                    const int64_t at_edge = edge * g.n_heads + head;
                    const int64_t at_row = (item.row * g.n_heads + head) * g.n_attr + d;
                    sum += g.scale * __ldg(g.in_dscore + at_edge) *
                           widen(g.q_edge.at[at_row]);
                    if (g.grad_edge != NULL) {
                        sum +=
                            __ldg(g.in_alpha + at_edge) * __ldg(g.grad_edge + at_row);
                    }
                }
                narrow(sum, g.d_edge_attr + edge * g.n_attr + d);
            }
        }
    }
}

/* dh of one channel of an edge. */
template <typename T>
static __device__ __forceinline__ typename gnn_accumulator<T>::type
gatv2_dh(const attention_view<T> &g, int64_t row, int64_t col, int64_t edge, int head,
         int64_t channel) {
    const int64_t width = (int64_t)g.n_heads * g.n_channels;
    auto h = widen(g.v.row(col, channel)[0]) + widen(g.q.row(row, channel)[0]);
    for (int d = 0; d < g.n_attr; d++) {
        h += widen(g.edge_attr.row(edge, d)[0]) *
             widen(g.edge_weight[d * width + channel]);
    }
    return __ldg(g.in_dscore + edge * g.n_heads + head) * widen(g.att[channel]) *
           g.leaky_slope(h);
}

/* GATV2, d_edge_attr: a warp has a row, its lanes the channels of one head after the
 * other. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, 2) // 32 sums of double
    attention_gatv2_attr_kernel(const attention_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(5);
    const int64_t n_items = g.n_split + g.n_rows;
    const int64_t width = (int64_t)g.n_heads * g.n_channels;
    for (int64_t i = at.warp; i < n_items; i += at.warps) {
        const attention_item item = attention_item_at(g, i, true);
        for (int k = 0; k < item.n; k++) {
            const int64_t edge = g.edge_number(item.entry + k);
            const int64_t col = __ldg(g.col + item.entry + k);
            A sum[GNN_MAX_EDGE_FEATURES];
            GNN_UNROLL
            for (int d = 0; d < GNN_MAX_EDGE_FEATURES; d++) {
                sum[d] = 0;
            }
            for (int head = 0; head < g.n_heads; head++) {
                for (int c = at.lane; c < g.n_channels; c += 32) {
                    const int64_t channel = (int64_t)head * g.n_channels + c;
                    const A dh = gatv2_dh(g, item.row, col, edge, head, channel);
                    GNN_UNROLL
                    for (int d = 0; d < GNN_MAX_EDGE_FEATURES; d++) {
                        if (d < g.n_attr) {
                            sum[d] += dh * widen(g.edge_weight[d * width + channel]);
                        }
                    }
                }
            }
            GNN_UNROLL
            for (int d = 0; d < GNN_MAX_EDGE_FEATURES; d++) {
                if (d < g.n_attr) { // the same in all lanes
                    const A total = group_sum(sum[d], at);
                    if (at.lane == 0) {
                        narrow(total, g.d_edge_attr + edge * g.n_attr + d);
                    }
                }
            }
        }
    }
}

/* GATV2, d_edge_weight: a group has rows of one head, a lane one channel of it, and sums
 * over all its rows. Items in x, heads in y, channels in z; parts [gridDim.x, D, H * C]. */
template <typename T>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    attention_gatv2_weight_kernel(const attention_view<T> g) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(5);
    const int64_t n_items = g.n_split + g.n_rows;
    const int64_t width = (int64_t)g.n_heads * g.n_channels;
    for (int first = (int)blockIdx.z * 32; first < g.n_channels;
         first += (int)gridDim.z * 32) {
        const bool mine = first + at.lane < g.n_channels;
        for (int head = (int)blockIdx.y; head < g.n_heads; head += (int)gridDim.y) {
            const int64_t channel = mine
                                        ? (int64_t)head * g.n_channels + first + at.lane
                                        : (int64_t)head * g.n_channels;
            A sum[GNN_MAX_EDGE_FEATURES];
            GNN_UNROLL
            for (int d = 0; d < GNN_MAX_EDGE_FEATURES; d++) {
                sum[d] = 0;
            }
            for (int64_t i = at.warp; i < n_items; i += at.warps) {
                const attention_item item = attention_item_at(g, i, true);
                for (int k = 0; k < item.n; k++) {
                    const int64_t edge = g.edge_number(item.entry + k);
                    const int64_t col = __ldg(g.col + item.entry + k);
                    const A dh = gatv2_dh(g, item.row, col, edge, head, channel);
                    GNN_UNROLL
                    for (int d = 0; d < GNN_MAX_EDGE_FEATURES; d++) {
                        if (d < g.n_attr) {
                            sum[d] += widen(g.edge_attr.row(edge, d)[0]) * dh;
                        }
                    }
                }
            }
            GNN_UNROLL
            for (int d = 0; d < GNN_MAX_EDGE_FEATURES; d++) {
                const A total = sum_over_warps(sum[d]);
                if (threadIdx.x < 32 && mine && d < g.n_attr) {
                    g.parts[blockIdx.x * g.parts_width + d * width + channel] = total;
                }
            }
        }
    }
}

#endif

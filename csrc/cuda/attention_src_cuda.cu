/* attention_src_cuda.cu: launches attention's gradients on the side of sources. */
#include "cuda/attention_launch.cuh"
#include "cuda/attention_src.cuh"

template <typename T, bool WIDE, int MODE>
static gnn_status launch_items(attention_view<T> g, gnn_cuda_stream_t stream) {
    const dim3 grid = attention_grid<T, WIDE>(&g);
    void (*const kernel)(attention_view<T>) = attention_src_kernel<T, WIDE, MODE>;
    GNN_TRY(gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, g));
    return attention_join<T>(attention_add_kernel<T>, g, stream);
}

template <typename T, int MODE>
static gnn_status launch_mode(const attention_view<T> &g, gnn_cuda_stream_t stream) {
    return attention_is_wide(g) ? launch_items<T, true, MODE>(g, stream)
                                : launch_items<T, false, MODE>(g, stream);
}

template <typename T>
static gnn_status launch(const gnn_attention_args *args, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    attention_view<T> g = attention_view_of<T>(args);
    g.in_alpha = (const A *)args->alpha;
    g.in_dscore = (const A *)args->dscore;
    const bool dot = args->kind == GNN_DOT;
    g.q_edge = {NULL, 0}; // nothing here has D columns
    g.first = (T *)args->d_v;
    g.second = dot ? (T *)args->d_k : NULL;
    g.d_score = args->kind == GNN_GAT ? (A *)args->d_score_src : NULL;
    g.first_scale = 1;
    g.second_scale = g.scale;
    g.n_first = g.n_second = g.n_channels;
    g.sums = (A *)args->scratch;
    g.sums_width = 2 * g.n_channels + 1;
    if (args->kind != GNN_GATV2) {
        return launch_mode<T, MODE_DOT>(g, stream);
    }
    return attention_has_attr(args) ? launch_mode<T, MODE_GATV2_ATTR>(g, stream)
                                    : launch_mode<T, MODE_GATV2>(g, stream);
}

extern "C" int64_t gnn_attention_src_vjp_cuda_scratch(const gnn_attention_args *args) {
    return args->a.n_split * args->n_heads * (2 * args->n_channels + 1) *
           attention_sizeof_sum(args);
}

extern "C" gnn_status gnn_attention_src_vjp_cuda(const gnn_attention_args *args,
                                                 uint64_t stream) {
    GNN_TRY(attention_check("attention_src_vjp", args));
    if (args->n_heads == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    ATTENTION_BY_DTYPE("attention_src_vjp", launch)
}

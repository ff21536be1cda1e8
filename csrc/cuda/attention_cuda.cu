/* attention_cuda.cu: launches attention, forward: the items, then the rows in chunks. */
#include "cuda/attention_forward.cuh"
#include "cuda/attention_launch.cuh"

template <typename T, bool WIDE, int MODE>
static gnn_status launch_items(attention_view<T> g, gnn_cuda_stream_t stream) {
    const dim3 grid = attention_grid<T, WIDE>(&g);
    void (*const kernel)(attention_view<T>) = attention_kernel<T, WIDE, MODE>;
    GNN_TRY(gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, g));
    return attention_join<T>(attention_join_kernel<T>, g, stream);
}

template <typename T, int MODE>
static gnn_status launch_mode(const attention_view<T> &g, gnn_cuda_stream_t stream) {
    return attention_is_wide(g) ? launch_items<T, true, MODE>(g, stream)
                                : launch_items<T, false, MODE>(g, stream);
}

static int64_t sums_width(const gnn_attention_args *a) { // max, sum, values, attributes
    const bool attr = a->kind == GNN_DOT && attention_has_attr(a);
    return 2 + a->n_channels + (attr ? a->n_edge_features : 0);
}

template <typename T>
static gnn_status launch(const gnn_attention_args *args, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    attention_view<T> g = attention_view_of<T>(args);
    g.out = (T *)args->out;
    g.out_acc = (A *)args->out_acc;
    g.out_edge = (A *)args->out_edge;
    g.lse = (A *)args->lse;
    g.sums = (A *)args->scratch;
    g.sums_width = (int)sums_width(args);
    const bool attr = attention_has_attr(args);
    switch (args->kind) {
    case GNN_GAT:
        return launch_mode<T, MODE_GAT>(g, stream);
    case GNN_GATV2:
        return attr ? launch_mode<T, MODE_GATV2_ATTR>(g, stream)
                    : launch_mode<T, MODE_GATV2>(g, stream);
    default:
        return attr ? launch_mode<T, MODE_DOT_ATTR>(g, stream)
                    : launch_mode<T, MODE_DOT>(g, stream);
    }
}

extern "C" int64_t gnn_attention_cuda_scratch(const gnn_attention_args *args) {
    return args->a.n_split * args->n_heads * sums_width(args) *
           attention_sizeof_sum(args);
}

extern "C" gnn_status gnn_attention_cuda(const gnn_attention_args *args,
                                         uint64_t stream) {
    GNN_TRY(attention_check("attention", args));
    if (args->n_heads == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    ATTENTION_BY_DTYPE("attention", launch)
}

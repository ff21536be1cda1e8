/* attention_dst_cuda.cu: launches attention's gradients on the side of destinations. */
#include "cuda/attention_dst.cuh"
#include "cuda/attention_edges.cuh"
#include "cuda/attention_launch.cuh"

static int64_t sums_bytes(const gnn_attention_args *a) { // d_q, d_q_edge, d_score_dst
    const int64_t attr = attention_has_attr(a) ? a->n_edge_features : 0;
    return a->a.n_split * a->n_heads * (a->n_channels + attr + 1) *
           attention_sizeof_sum(a);
}

/* Adds up what g.parts holds of each of `width` parameters. */
template <typename T>
static gnn_status launch_parts(const attention_view<T> &g, unsigned n_parts,
                               int64_t width, void *out, gnn_cuda_stream_t stream) {
    return gnn_launch(attention_parts_kernel<T>, dim3(gnn_grid_x(width)),
                      dim3(GNN_BLOCK_THREADS), 0, stream, g.parts, (int)n_parts, width,
                      (T *)out);
}

static unsigned at_most_parts(unsigned blocks) {
    return blocks < (unsigned)ATTENTION_PARTS ? blocks : (unsigned)ATTENTION_PARTS;
}

template <typename T, bool WIDE, int MODE>
static gnn_status launch_items(const gnn_attention_args *args, attention_view<T> g,
                               gnn_cuda_stream_t stream) {
    const bool gatv2 = MODE == MODE_GATV2 || MODE == MODE_GATV2_ATTR;
    dim3 grid = attention_grid<T, WIDE>(&g);
    if (gatv2 && args->d_att != NULL) {
        grid.x = at_most_parts(grid.x);
    } else {
        g.parts = NULL;
    }
    if (MODE == MODE_GAT) {
        grid.z = 1;
    }
    if (args->a.n_rows > 0) {
        void (*const kernel)(attention_view<T>) = attention_dst_kernel<T, WIDE, MODE>;
        GNN_TRY(gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, g));
        GNN_TRY(attention_join<T>(attention_add_kernel<T>, g, stream));
    }
    if (g.parts == NULL) {
        return GNN_OK;
    }
    const unsigned n_parts = args->a.n_rows > 0 ? grid.x : 0;
    return launch_parts<T>(g, n_parts, g.parts_width, args->d_att, stream);
}

template <typename T, int MODE>
static gnn_status launch_mode(const gnn_attention_args *args,
                              const attention_view<T> &g, gnn_cuda_stream_t stream) {
    return attention_is_wide(g) ? launch_items<T, true, MODE>(args, g, stream)
                                : launch_items<T, false, MODE>(args, g, stream);
}

/* After the dst pass, which wrote alpha and dscore. */
template <typename T>
static gnn_status launch_attr(const gnn_attention_args *args, attention_view<T> g,
                              gnn_cuda_stream_t stream) {
    const dim3 block(GNN_BLOCK_THREADS);
    const int64_t n_items = args->a.n_split + args->a.n_rows;
    g.in_alpha = g.alpha;
    g.in_dscore = g.dscore;
    g.d_edge_attr = (T *)args->d_edge_attr;
    if (g.d_edge_attr != NULL && n_items > 0) {
        g.group_shift = gnn_group_shift(g.n_attr, 1);
        void (*const kernel)(attention_view<T>) = args->kind == GNN_DOT
                                                      ? attention_dot_attr_kernel<T>
                                                      : attention_gatv2_attr_kernel<T>;
        const int64_t groups = args->kind == GNN_DOT ? 32 >> g.group_shift : 1;
        const dim3 grid(gnn_grid_x((n_items + groups - 1) / groups));
        GNN_TRY(gnn_launch(kernel, grid, block, 0, stream, g));
    }
    if (args->kind == GNN_GATV2 && args->d_edge_weight != NULL) {
        g.parts_width = args->n_edge_features * args->n_heads * args->n_channels;
        const unsigned n_parts = n_items > 0 ? at_most_parts(gnn_grid_x(n_items)) : 0;
        if (n_parts > 0) {
            const dim3 grid(n_parts, gnn_grid_y(g.n_heads),
                            gnn_grid_y((g.n_channels + 31) / 32));
            GNN_TRY(gnn_launch(attention_gatv2_weight_kernel<T>, grid, block, 0, stream,
                               g));
        }
        GNN_TRY(
            launch_parts<T>(g, n_parts, g.parts_width, args->d_edge_weight, stream));
    }
    return GNN_OK;
}

template <typename T>
static gnn_status launch(const gnn_attention_args *args, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    attention_view<T> g = attention_view_of<T>(args);
    g.in_acc = (const A *)args->out_acc;
    g.in_edge = (const A *)args->out_edge;
    g.in_lse = (const A *)args->lse;
    g.grad_edge = (const A *)args->grad_edge;
    g.alpha = (A *)args->alpha;
    g.dscore = (A *)args->dscore;
    const bool dot = args->kind == GNN_DOT, attr = attention_has_attr(args);
    g.first = args->kind == GNN_GAT ? NULL : (T *)args->d_q;
    g.second = dot && attr ? (T *)args->d_q_edge : NULL;
    g.d_score = args->kind == GNN_GAT ? (A *)args->d_score_dst : NULL;
    g.first_scale = g.second_scale = dot ? g.scale : (A)1;
    g.n_first = g.n_channels;
    g.n_second = g.n_attr;
    g.d_edge = attr || args->kind == GNN_GAT ? NULL : (T *)args->d_edge;
    g.sums = (A *)args->scratch;
    g.sums_width = g.n_first + g.n_second + 1;
    g.parts = (A *)((char *)args->scratch + sums_bytes(args));
    g.parts_width = args->n_heads * args->n_channels;
    switch (args->kind) {
    case GNN_GAT:
        return launch_mode<T, MODE_GAT>(args, g, stream);
    case GNN_GATV2:
        GNN_TRY(attr ? (launch_mode<T, MODE_GATV2_ATTR>(args, g, stream))
                     : (launch_mode<T, MODE_GATV2>(args, g, stream)));
        break;
    default:
        GNN_TRY(attr ? (launch_mode<T, MODE_DOT_ATTR>(args, g, stream))
                     : (launch_mode<T, MODE_DOT>(args, g, stream)));
    }
    return attr ? launch_attr<T>(args, g, stream) : GNN_OK;
}

extern "C" int64_t gnn_attention_dst_vjp_cuda_scratch(const gnn_attention_args *args) {
    const int64_t width = args->n_heads * args->n_channels;
    const int64_t att = args->d_att != NULL ? width : 0;
    const int64_t weight =
        args->d_edge_weight != NULL ? width * args->n_edge_features : 0;
    const int64_t widest = att > weight ? att : weight; // one after the other
    return sums_bytes(args) + ATTENTION_PARTS * widest * attention_sizeof_sum(args);
}

extern "C" gnn_status gnn_attention_dst_vjp_cuda(const gnn_attention_args *args,
                                                 uint64_t stream) {
    GNN_TRY(attention_check("attention_dst_vjp", args));
    if (args->n_heads == 0) {
        return GNN_OK;
    }
    ATTENTION_BY_DTYPE("attention_dst_vjp", launch)
}

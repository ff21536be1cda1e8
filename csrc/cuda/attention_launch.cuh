/* attention_launch.cuh: what the launchers of attention's passes share. */
#ifndef GNN_ATTENTION_LAUNCH_CUH
#define GNN_ATTENTION_LAUNCH_CUH

#include "cuda/attention_view.cuh"

#include <inttypes.h>

/* Blocks that leave parts of a parameter's gradient: a fixed number, so that sums do not
 * depend on the device, and enough for twice what the largest one holds at a time. */
enum { ATTENTION_PARTS = GNN_MAX_BLOCKS < 1024 ? GNN_MAX_BLOCKS : 1024 };

/* Without edges, edge_attr may be NULL and yet have gradients. */
static inline bool attention_has_attr(const gnn_attention_args *a) {
    return a->kind != GNN_GAT && a->n_edge_features > 0 &&
           (a->edge_attr != NULL || a->a.n_edges == 0);
}

static inline int64_t attention_sizeof_sum(const gnn_attention_args *a) {
    return a->dtype == GNN_F64 ? 8 : 4;
}

template <typename T>
static inline attention_view<T> attention_view_of(const gnn_attention_args *a) {
    typedef typename gnn_accumulator<T>::type A;
    attention_view<T> g = {};
    g.rowptr = a->a.rowptr;
    g.col = a->a.col;
    g.eid = a->a.eid;
    g.eid_is_64 = a->a.eid_dtype == GNN_I64;
    g.split = a->a.split;
    g.n_split = a->a.n_split;
    g.n_rows = a->a.n_rows;
    g.n_heads = (int)a->n_heads;
    g.n_channels = (int)a->n_channels;
    g.slope = (A)a->slope;
    g.scale = (A)a->scale;
    g.kept = (A)(1 / (1 - a->dropout));
    g.seed = a->seed;
    g.threshold = gnn_dropout_threshold(a->dropout);
    g.v = {(const T *)a->v, a->v_stride};
    g.score_src = (const A *)a->score_src;
    g.score_dst = (const A *)a->score_dst;
    g.score_edge = (const A *)a->score_edge;
    if (a->kind != GNN_GAT) {
        g.q = {(const T *)a->q, a->q_stride};
        g.edge = {(const T *)a->edge, a->edge_stride};
    }
    if (a->kind == GNN_GATV2) {
        g.att = (const T *)a->att;
        g.edge_weight = (const T *)a->edge_weight;
    }
    if (a->kind == GNN_DOT) {
        g.k = {(const T *)a->k, a->k_stride};
    }
    if (attention_has_attr(a)) {
        g.n_attr = (int)a->n_edge_features;
        g.edge = {NULL, 0};
        g.edge_attr = {(const T *)a->edge_attr, a->edge_attr_stride};
        g.q_edge = {(const T *)a->q_edge, a->n_heads * a->n_edge_features};
    }
    g.grad = {(const T *)a->grad, a->grad_stride};
    return g;
}

/* Can all rows [H * C] of the view move 16 bytes at a time? */
template <typename T> static inline bool attention_is_wide(const attention_view<T> &g) {
    const int64_t c = g.n_channels, width = (int64_t)g.n_heads * c;
    const attention_matrix<T> strided[] = {g.v, g.k, g.q, g.edge, g.grad};
    bool wide = true;
    for (const attention_matrix<T> &m : strided) {
        wide = wide && gnn_is_wide(m.at, m.stride, c, sizeof(T));
    }
    // second is [*, H * C] in the src pass alone; elsewhere it is not wide
    const void *const whole[] = {g.att,   g.edge_weight,
                                 g.out,   g.d_edge,
                                 g.first, g.n_second == c ? g.second : NULL};
    for (const void *p : whole) {
        wide = wide && gnn_is_wide(p, width, c, sizeof(T));
    }
    return wide;
}

/* Sets how lanes share rows; returns the grid over items, heads and slices. */
template <typename T, bool WIDE>
static inline dim3 attention_grid(attention_view<T> *g) {
    enum { SIZE = gnn_pack<T, WIDE>::SIZE, FEW = gnn_pack<T, false>::SIZE };
    g->group_shift = gnn_group_shift(g->n_channels, SIZE);
    g->heads_shift = 0;
    while (g->heads_shift < 5 - g->group_shift && 1 << g->heads_shift < g->n_heads) {
        g->heads_shift++;
    }
    g->n_head_blocks = (g->n_heads + (1 << g->heads_shift) - 1) >> g->heads_shift;
    const int64_t few = (int64_t)FEW << g->group_shift;
    const int64_t of_attr = g->q_edge.at == NULL ? 0 : (g->n_attr + few - 1) / few;
    const int64_t of_row = gnn_slice_count(g->n_channels, SIZE);
    g->n_slices = (int)(of_row > of_attr ? of_row : of_attr);
    g->n_slices = g->n_slices > 0 ? g->n_slices : 1; // no channels: lse all the same
    const int64_t rows = 32 >> g->group_shift >> g->heads_shift;
    const int64_t warps = (g->n_split + g->n_rows + rows - 1) / rows;
    return dim3(gnn_grid_x(warps), gnn_grid_y(g->n_head_blocks),
                gnn_grid_y(g->n_slices));
}

/* A warp for each chunk of the list and each head. */
template <typename T>
static inline gnn_status attention_join(void (*kernel)(attention_view<T>),
                                        const attention_view<T> &g,
                                        gnn_cuda_stream_t stream) {
    if (g.n_split == 0) {
        return GNN_OK;
    }
    const dim3 grid(gnn_grid_x(g.n_split), gnn_grid_y(g.n_heads));
    return gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, g);
}

/* Refuses sizes that the kernels' ints or addresses do not hold. */
static inline gnn_status attention_check(const char *op, const gnn_attention_args *a) {
    const int64_t heads = a->n_heads, channels = a->n_channels;
    const int64_t attr = attention_has_attr(a) ? a->n_edge_features : 0;
    const int64_t most = channels > attr ? channels : attr;
    const int64_t rows = a->a.n_rows > a->a.n_cols ? a->a.n_rows : a->a.n_cols;
    const int64_t units = a->a.n_edges > rows ? a->a.n_edges : rows;
    int64_t bytes;
    GNN_REQUIRE(
        heads >= 0 && channels >= 0 && attr >= 0 && heads < GNN_MAX_FEATURES &&
            most < GNN_MAX_FEATURES,
        GNN_EINVAL,
        "%s: heads, channels and edge features must be in [0, 2^30), got %" PRId64
        ", %" PRId64 " and %" PRId64,
        op, heads, channels, attr);
    GNN_REQUIRE(a->kind != GNN_GATV2 || attr <= GNN_MAX_EDGE_FEATURES, GNN_EINVAL,
                "%s: at most %d edge features are projected here, got %" PRId64, op,
                GNN_MAX_EDGE_FEATURES, attr);
    // an item's entries are counted in an int
    GNN_REQUIRE(a->a.n_edges < INT32_MAX || a->a.n_split > 0, GNN_ENOTSUP,
                "%s: a graph of %" PRId64 " edges must have its heavy rows split", op,
                a->a.n_edges);
    const int64_t strides[] = {a->v_stride,    a->k_stride,         a->q_stride,
                               a->edge_stride, a->edge_attr_stride, a->grad_stride,
                               heads * most};
    for (const int64_t stride : strides) {
        GNN_REQUIRE(!__builtin_mul_overflow(units, stride, &bytes) &&
                        !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                    GNN_EGRAPH,
                    "%s: bytes of a matrix [%" PRId64 ", stride %" PRId64
                    "] must be below 2^63",
                    op, units, stride);
    }
    return GNN_OK;
}

/* function<T>(args, stream) of the dtype; `op` begins the message. */
#define ATTENTION_BY_DTYPE(op, function)                                               \
    switch (args->dtype) {                                                             \
    case GNN_F32:                                                                      \
        return function<float>(args, (gnn_cuda_stream_t)stream);                       \
    case GNN_F64:                                                                      \
        return function<double>(args, (gnn_cuda_stream_t)stream);                      \
    case GNN_BF16:                                                                     \
        return function<__nv_bfloat16>(args, (gnn_cuda_stream_t)stream);               \
    case GNN_F16:                                                                      \
        return function<__half>(args, (gnn_cuda_stream_t)stream);                      \
    default:                                                                           \
        return gnn_fail(                                                               \
            GNN_ETYPE,                                                                 \
            "%s: dtype must be float32, float64, bfloat16 or float16, got "            \
            "%s",                                                                      \
            op, gnn_dtype_text(args->dtype));                                          \
    }

#endif

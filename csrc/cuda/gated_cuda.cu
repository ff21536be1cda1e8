/* gated_cuda.cu: launches sums of gated messages and their gradients. */
#include "cuda/gated_kernels.cuh"

template <typename T, bool WIDE, int MODE>
static gnn_status launch_items(gated_view<T> g, gnn_cuda_stream_t stream) {
    const dim3 grid = spmm_grid<T, WIDE, GATED_MOST>(&g.rows);
    const dim3 block(GNN_BLOCK_THREADS);
    void (*const items)(gated_view<T>) = gated_items_kernel<T, WIDE, MODE>;
    GNN_TRY(gnn_launch(items, grid, block, 0, stream, g));
    if (g.rows.n_split == 0 || g.rows.y == NULL) {
        return GNN_OK;
    }
    const dim3 rows(gnn_grid_x(g.rows.n_split), gnn_grid_y((g.part_width + 31) / 32));
    void (*const join)(gated_view<T>) = gated_join_kernel<T, MODE>;
    return gnn_launch(join, rows, block, 0, stream, g);
}

template <typename T>
static gated_view<T> view_of(const gnn_gated_args *args, void *y, int64_t part_width) {
    typedef typename gnn_accumulator<T>::type A;
    gated_view<T> g = {};
    g.rows = spmm_view_of<T>(&args->a, args->n_features, NULL, y);
    g.edge = reduce_matrix<T>{(const T *)args->edge, args->edge_stride};
    g.scale = (const A *)args->scale;
    g.softplus = args->softplus;
    g.u_has_value = args->u_has_value;
    g.parts = (A *)args->scratch;
    g.part_width = part_width;
    return g;
}

/* Whether what both passes read moves 16 bytes at a time. */
template <typename T> static bool reads_wide(const gnn_gated_args *args) {
    const int64_t f = args->n_features;
    return gnn_is_wide(args->u, args->u_stride, f, sizeof(T)) &&
           gnn_is_wide(args->v, args->v_stride, f, sizeof(T)) &&
           gnn_is_wide(args->edge, args->edge_stride, f, sizeof(T));
}

template <typename T>
static gnn_status launch_sum(const gnn_gated_args *args, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t f = args->n_features;
    gated_view<T> g = view_of<T>(args, args->y, (args->u_has_value ? 3 : 2) * f);
    g.own = reduce_matrix<T>{(const T *)args->u, args->u_stride};
    g.gathered = reduce_matrix<T>{(const T *)args->v, args->v_stride};
    g.dy_du = (A *)args->dy_du;
    const bool wide = reads_wide<T>(args) && gnn_is_wide(args->y, f, f, sizeof(T)) &&
                      gnn_is_wide(args->dy_du, f, f, sizeof(A));
    return wide ? launch_items<T, true, GATED_SUM>(g, stream)
                : launch_items<T, false, GATED_SUM>(g, stream);
}

template <typename T>
static gnn_status launch_vjp(const gnn_gated_args *args, gnn_cuda_stream_t stream) {
    const int64_t f = args->n_features;
    gated_view<T> g = view_of<T>(args, args->d_v, 2 * f);
    g.own = reduce_matrix<T>{(const T *)args->v, args->v_stride};
    g.gathered = reduce_matrix<T>{(const T *)args->u, args->u_stride};
    g.grad = reduce_matrix<T>{(const T *)args->grad, args->grad_stride};
    g.d_edge = (T *)args->d_edge;
    const bool wide = reads_wide<T>(args) &&
                      gnn_is_wide(args->grad, args->grad_stride, f, sizeof(T)) &&
                      gnn_is_wide(args->d_v, f, f, sizeof(T)) &&
                      gnn_is_wide(args->d_edge, f, f, sizeof(T));
    return wide ? launch_items<T, true, GATED_VJP>(g, stream)
                : launch_items<T, false, GATED_VJP>(g, stream);
}

/* ----------------------------------------------------------------------------- entries */

/* Bytes of `rows` rows, `stride` elements apart, fit in an int64. */
static gnn_status check_matrix(const char *name, int64_t rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "gated: bytes of %s [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                name, rows, stride);
    return GNN_OK;
}

static gnn_status check(const gnn_gated_args *args, int64_t n_dst, int64_t n_src) {
    GNN_TRY(check_matrix("u", n_dst, args->u_stride));
    GNN_TRY(check_matrix("v", n_src, args->v_stride));
    GNN_TRY(check_matrix("edge", args->a.n_edges, args->edge_stride));
    return check_matrix("grad", n_dst, args->grad_stride);
}

#define LAUNCH_BY_DTYPE(function)                                                      \
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
            "gated: dtype must be float32, float64, bfloat16 or float16, got %s",      \
            gnn_dtype_text(args->dtype));                                              \
    }

extern "C" int64_t gnn_gated_cuda_scratch(const gnn_gated_args *args) {
    return args->a.n_split * 3 * args->n_features * (args->dtype == GNN_F64 ? 8 : 4);
}

extern "C" gnn_status gnn_gated_cuda(const gnn_gated_args *args, uint64_t stream) {
    GNN_TRY(spmm_check("gated", &args->a, args->n_features));
    GNN_TRY(check(args, args->a.n_rows, args->a.n_cols));
    if (args->n_features == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    LAUNCH_BY_DTYPE(launch_sum)
}

extern "C" gnn_status gnn_gated_vjp_cuda(const gnn_gated_args *args, uint64_t stream) {
    GNN_TRY(spmm_check("gated_vjp", &args->a, args->n_features));
    GNN_TRY(check(args, args->a.n_cols, args->a.n_rows));
    if (args->n_features == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    LAUNCH_BY_DTYPE(launch_vjp)
}

/* gine_cuda.cu: launches the sum of relu messages, its tangent and its gradients. */
#include "cuda/gine_kernels.cuh"

template <typename T> static gine_matrix<T> matrix_of(const void *at, int64_t stride) {
    return gine_matrix<T>{(const T *)at, stride};
}

template <typename T, bool WIDE, int MODE>
static gnn_status launch_items(gine_view<T> g, gnn_cuda_stream_t stream) {
    const dim3 grid = spmm_grid<T, WIDE>(&g.rows);
    void (*const kernel)(gine_view<T>) = gine_items_kernel<T, WIDE, MODE>;
    GNN_TRY(gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, g));
    return spmm_join(g.rows, stream);
}

template <typename T, int MODE>
static gnn_status launch(const gine_view<T> &g, gnn_cuda_stream_t stream) {
    const int64_t f = g.rows.n_features;
    bool wide = gnn_is_wide(g.rows.y, f, f, sizeof(T)) &&
                gnn_is_wide(g.grad_edge, f, f, sizeof(T));
    const gine_matrix<T> matrices[] = {g.gathered, g.edge, g.dx, g.dedge, g.own};
    for (const gine_matrix<T> &m : matrices) {
        wide = wide && gnn_is_wide(m.at, m.stride, f, sizeof(T));
    }
    return wide ? launch_items<T, true, MODE>(g, stream)
                : launch_items<T, false, MODE>(g, stream);
}

template <typename T>
static gnn_status launch_sum(const gnn_gine_args *args, gnn_cuda_stream_t stream) {
    gine_view<T> g = {};
    g.rows = spmm_view_of<T>(&args->a, args->n_features, args->scratch, args->y);
    g.gathered = matrix_of<T>(args->x, args->x_stride);
    g.edge = matrix_of<T>(args->edge, args->edge_stride);
    if (args->dx == NULL && args->dedge == NULL) {
        return launch<T, GINE_SUM>(g, stream);
    }
    g.dx = matrix_of<T>(args->dx, args->dx_stride);
    g.dedge = matrix_of<T>(args->dedge, args->dedge_stride);
    return launch<T, GINE_JVP>(g, stream);
}

template <typename T>
static gnn_status launch_vjp(const gnn_gine_vjp_args *args, gnn_cuda_stream_t stream) {
    gine_view<T> g = {};
    g.rows = spmm_view_of<T>(&args->a, args->n_features, args->scratch, args->grad_x);
    g.gathered = matrix_of<T>(args->grad, args->grad_stride);
    g.edge = matrix_of<T>(args->edge, args->edge_stride);
    g.own = matrix_of<T>(args->x, args->x_stride);
    g.grad_edge = (T *)args->grad_edge;
    return launch<T, GINE_VJP>(g, stream);
}

/* Bytes of `rows` rows, `stride` elements apart, fit in an int64. */
static gnn_status check_matrix(const char *name, int64_t rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "gine: bytes of %s [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                name, rows, stride);
    return GNN_OK;
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
            "gine: dtype must be float32, float64, bfloat16 or float16, got %s",       \
            gnn_dtype_text(args->dtype));                                              \
    }

extern "C" gnn_status gnn_gine_cuda(const gnn_gine_args *args, uint64_t stream) {
    GNN_TRY(spmm_check("gine", &args->a, args->n_features));
    GNN_TRY(check_matrix("x", args->a.n_cols, args->x_stride));
    GNN_TRY(check_matrix("edge", args->a.n_edges, args->edge_stride));
    if (args->n_features == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    LAUNCH_BY_DTYPE(launch_sum)
}

extern "C" gnn_status gnn_gine_vjp_cuda(const gnn_gine_vjp_args *args,
                                        uint64_t stream) {
    GNN_TRY(spmm_check("gine_vjp", &args->a, args->n_features));
    GNN_TRY(check_matrix("x", args->a.n_rows, args->x_stride));
    GNN_TRY(check_matrix("edge", args->a.n_edges, args->edge_stride));
    GNN_TRY(check_matrix("grad", args->a.n_cols, args->grad_stride));
    if (args->n_features == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    LAUNCH_BY_DTYPE(launch_vjp)
}

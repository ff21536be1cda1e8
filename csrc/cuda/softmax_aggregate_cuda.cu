/* softmax_aggregate_cuda.cu: launches softmax aggregation and its gradients. */
#include "cuda/softmax_aggregate_kernels.cuh"

template <typename T>
static softmax_aggregate_view<T> view_of(const gnn_softmax_aggregate_args *args,
                                         void *sums, void *y) {
    typedef typename gnn_accumulator<T>::type A;
    softmax_aggregate_view<T> g = {};
    g.rows = spmm_view_of<T>(&args->a, args->n_features, sums, y);
    g.edge = reduce_matrix<T>{(const T *)args->edge, args->edge_stride};
    g.t = (const A *)args->t;
    g.eps = (A)args->eps;
    g.relu = args->relu;
    g.semi_grad = args->semi_grad;
    return g;
}

/* ------------------------------------------------------------------------------ forward */

template <typename T, bool WIDE>
static gnn_status launch_items(softmax_aggregate_view<T> g, gnn_cuda_stream_t stream) {
    const dim3 grid = spmm_grid<T, WIDE, SOFTMAX_MOST>(&g.rows);
    const dim3 block(GNN_BLOCK_THREADS);
    void (*const items)(softmax_aggregate_view<T>) =
        softmax_aggregate_items_kernel<T, WIDE>;
    GNN_TRY(gnn_launch(items, grid, block, 0, stream, g));
    if (g.rows.n_split == 0) {
        return GNN_OK;
    }
    const dim3 rows(gnn_grid_x(g.rows.n_split),
                    gnn_grid_y((g.rows.n_features + 31) / 32));
    return gnn_launch(softmax_aggregate_join_kernel<T>, rows, block, 0, stream, g);
}

template <typename T>
static gnn_status launch(const gnn_softmax_aggregate_args *args,
                         gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t f = args->n_features;
    softmax_aggregate_view<T> g = view_of<T>(args, NULL, args->y);
    g.rows.x = (const T *)args->x;
    g.rows.x_stride = args->x_stride;
    g.out_acc = (A *)args->out_acc;
    g.lse = (A *)args->lse;
    g.parts = (A *)args->scratch;
    const bool wide = gnn_is_wide(args->x, args->x_stride, f, sizeof(T)) &&
                      gnn_is_wide(args->edge, args->edge_stride, f, sizeof(T)) &&
                      gnn_is_wide(args->y, f, f, sizeof(T)) &&
                      gnn_is_wide(args->t, f, f, sizeof(A)) &&
                      gnn_is_wide(args->out_acc, f, f, sizeof(A)) &&
                      gnn_is_wide(args->lse, f, f, sizeof(A));
    return wide ? launch_items<T, true>(g, stream) : launch_items<T, false>(g, stream);
}

/* ----------------------------------------------------------------------------- backward */

enum { MOST_GROUPS = 8 }; // of a warp

static int64_t partials_of(const gnn_csr *a, bool of_t) {
    const int64_t windows = (a->n_rows + a->n_edges + SPMM_WINDOW - 1) / SPMM_WINDOW;
    const int64_t items = (a->n_split + windows + MOST_GROUPS - 1) / MOST_GROUPS;
    const int64_t n = items > 0 ? items * MOST_GROUPS : (int64_t)MOST_GROUPS;
    return of_t && n > SOFTMAX_PARTIALS ? (int64_t)SOFTMAX_PARTIALS : n;
}

/* d_t [F] from n partials; what lies between goes behind them. */
template <typename A>
static gnn_status add_up(A *parts, int64_t n, int64_t f, A *d_t,
                         gnn_cuda_stream_t stream) {
    while (true) {
        const int64_t rows = (n + SOFTMAX_COLUMN - 1) / SOFTMAX_COLUMN;
        A *const out = rows == 1 ? d_t : parts + n * f;
        const dim3 grid(gnn_grid_x(rows), gnn_grid_y((f + 31) / 32));
        GNN_TRY(gnn_launch(softmax_aggregate_columns_kernel<A>, grid,
                           dim3(GNN_BLOCK_THREADS), 0, stream, parts, out, n, (int)f));
        if (rows == 1) {
            return GNN_OK;
        }
        parts = out;
        n = rows;
    }
}

template <typename T, bool WIDE>
static gnn_status launch_vjp_items(softmax_aggregate_view<T> g,
                                   gnn_cuda_stream_t stream) {
    const dim3 items = spmm_grid<T, WIDE, SOFTMAX_MOST>(&g.rows);
    const int64_t groups = 32 >> g.rows.group_shift;
    const dim3 grid(gnn_grid_x(g.n_partials / groups), items.y);
    void (*const kernel)(softmax_aggregate_view<T>) =
        softmax_aggregate_vjp_items_kernel<T, WIDE>;
    GNN_TRY(gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, g));
    return spmm_join(g.rows, stream);
}

template <typename T>
static gnn_status launch_vjp(const gnn_softmax_aggregate_args *args,
                             gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t f = args->n_features;
    softmax_aggregate_view<T> g = view_of<T>(args, args->scratch, args->d_x);
    g.own = reduce_matrix<T>{(const T *)args->x, args->x_stride};
    g.grad = reduce_matrix<T>{(const T *)args->grad, args->grad_stride};
    g.given_out = (const A *)args->out_acc;
    g.given_lse = (const A *)args->lse;
    g.grad_edge = (T *)args->d_edge;
    g.n_partials = partials_of(&args->a, args->d_t != NULL);
    A *const parts = (A *)args->scratch + args->a.n_split * f;
    g.t_parts = args->d_t != NULL ? parts : NULL;
    const bool wide = gnn_is_wide(args->x, args->x_stride, f, sizeof(T)) &&
                      gnn_is_wide(args->edge, args->edge_stride, f, sizeof(T)) &&
                      gnn_is_wide(args->grad, args->grad_stride, f, sizeof(T)) &&
                      gnn_is_wide(args->d_x, f, f, sizeof(T)) &&
                      gnn_is_wide(args->d_edge, f, f, sizeof(T)) &&
                      gnn_is_wide(args->t, f, f, sizeof(A)) &&
                      gnn_is_wide(args->out_acc, f, f, sizeof(A)) &&
                      gnn_is_wide(args->lse, f, f, sizeof(A));
    const gnn_status status = wide ? launch_vjp_items<T, true>(g, stream)
                                   : launch_vjp_items<T, false>(g, stream);
    if (status != GNN_OK || args->d_t == NULL) {
        return status;
    }
    return add_up<A>(parts, g.n_partials, f, (A *)args->d_t, stream);
}

/* ------------------------------------------------------------------------------- entries */

/* Bytes of `rows` rows, `stride` elements apart, fit in an int64. */
static gnn_status check_matrix(const char *name, int64_t rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "softmax_aggregate: bytes of %s [%" PRId64 ", stride %" PRId64
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
        return gnn_fail(GNN_ETYPE,                                                     \
                        "softmax_aggregate: dtype must be float32, float64, bfloat16 " \
                        "or float16, got %s",                                          \
                        gnn_dtype_text(args->dtype));                                  \
    }

extern "C" int64_t
gnn_softmax_aggregate_cuda_scratch(const gnn_softmax_aggregate_args *args) {
    return args->a.n_split * args->n_features * 3 * (args->dtype == GNN_F64 ? 8 : 4);
}

/* With room for the gradient of t, wanted or not. */
extern "C" int64_t
gnn_softmax_aggregate_vjp_cuda_scratch(const gnn_softmax_aggregate_args *args) {
    const int64_t n = partials_of(&args->a, true);
    const int64_t between = n / SOFTMAX_COLUMN + 1; // rows of the sums on the way
    return (args->a.n_split + n + between) * args->n_features *
           (args->dtype == GNN_F64 ? 8 : 4);
}

extern "C" gnn_status gnn_softmax_aggregate_cuda(const gnn_softmax_aggregate_args *args,
                                                 uint64_t stream) {
    GNN_TRY(spmm_check("softmax_aggregate", &args->a, args->n_features));
    GNN_TRY(check_matrix("x", args->a.n_cols, args->x_stride));
    GNN_TRY(check_matrix("edge", args->a.n_edges, args->edge_stride));
    if (args->n_features == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    LAUNCH_BY_DTYPE(launch)
}

extern "C" gnn_status
gnn_softmax_aggregate_vjp_cuda(const gnn_softmax_aggregate_args *args,
                               uint64_t stream) {
    GNN_TRY(spmm_check("softmax_aggregate_vjp", &args->a, args->n_features));
    GNN_TRY(check_matrix("x", args->a.n_rows, args->x_stride));
    GNN_TRY(check_matrix("edge", args->a.n_edges, args->edge_stride));
    GNN_TRY(check_matrix("grad", args->a.n_cols, args->grad_stride));
    if (args->n_features == 0 || (args->a.n_rows == 0 && args->d_t == NULL)) {
        return GNN_OK;
    }
    LAUNCH_BY_DTYPE(launch_vjp)
}

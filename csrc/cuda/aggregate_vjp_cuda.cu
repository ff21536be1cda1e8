/* aggregate_vjp_cuda.cu: launches the gradients of the statistics of rows. */
#include "cuda/aggregate_vjp_kernels.cuh"

enum {
    LINEAR = 1 << GNN_SUM | 1 << GNN_MEAN | 1 << GNN_VAR | 1 << GNN_STD, // have a
    SQUARES = 1 << GNN_VAR | 1 << GNN_STD,                               // and b
    EXTREMES = 1 << GNN_MIN | 1 << GNN_MAX,                              // have numbers
};

/* Where a, b, numbers and the sums of chunks begin in scratch; its size. */
struct aggregate_scratch {
    int64_t b, number, sums, size;
};

static int64_t round_up(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static aggregate_scratch scratch_of(const gnn_aggregate_args *args) {
    const int64_t size = args->dtype == GNN_F64 ? 8 : 4;
    const int64_t matrix = round_up(args->back.n_cols * args->n_features * size);
    const int64_t numbers = args->back.n_edges * gnn_dtype_size(args->arg_dtype);
    aggregate_scratch s;
    s.b = args->which & LINEAR ? matrix : 0;
    s.number = s.b + (args->which & SQUARES ? matrix : 0);
    s.sums = s.number + (args->which & EXTREMES ? round_up(numbers) : 0);
    s.size = s.sums + args->back.n_split * args->n_features * size;
    return s;
}

/* ----------------------------------------------------------------------------- launches */

static gnn_status launch_numbers(const gnn_aggregate_args *args, void *number,
                                 gnn_cuda_stream_t stream) {
    const gnn_csr *a = &args->a;
    const aggregate_numbers_view s = {a->rowptr, a->eid,     number,
                                      a->n_rows, a->n_edges, a->eid_dtype == GNN_I64};
    const dim3 grid(gnn_grid_x((a->n_edges + SDDMM_WINDOW - 1) / SDDMM_WINDOW));
    const int64_t bytes = gnn_dtype_size(args->arg_dtype);
    void (*const kernel)(aggregate_numbers_view) =
        bytes == 1   ? aggregate_numbers_kernel<1>
        : bytes == 2 ? aggregate_numbers_kernel<2>
                     : aggregate_numbers_kernel<4>;
    return gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, s);
}

template <typename T>
static reduce_matrix<T> grad_of(const gnn_aggregate_args *args, gnn_reduce which) {
    const void *at = args->which >> which & 1 ? args->grad[which] : NULL;
    return reduce_matrix<T>{(const T *)at, args->grad_stride[which]};
}

template <typename T>
static gnn_status launch_coefficients(const gnn_aggregate_args *args,
                                      const aggregate_vjp_view<T> &g,
                                      gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    aggregate_coefficients_view<T> s = {};
    s.rowptr = args->a.rowptr;
    s.g_sum = grad_of<T>(args, GNN_SUM);
    s.g_mean = grad_of<T>(args, GNN_MEAN);
    s.g_var = grad_of<T>(args, GNN_VAR);
    s.g_std = grad_of<T>(args, GNN_STD);
    s.mean = (const A *)args->mean;
    s.std = (const T *)args->y[GNN_STD];
    s.a = (A *)g.a;
    s.b = (A *)g.b;
    s.n_dst = args->a.n_rows;
    s.n_features = (int)args->n_features;
    const dim3 grid(gnn_grid_x(s.n_dst), gnn_grid_y((s.n_features + 31) / 32));
    return gnn_launch(aggregate_coefficients_kernel<T>, grid, dim3(GNN_BLOCK_THREADS),
                      0, stream, s);
}

template <typename T, bool WIDE, int MODE>
static gnn_status launch_items(aggregate_vjp_view<T> g, gnn_cuda_stream_t stream) {
    const dim3 grid = spmm_grid<T, WIDE, aggregate_vjp_lane<MODE>::MOST>(&g.rows);
    void (*const kernel)(aggregate_vjp_view<T>) =
        aggregate_vjp_items_kernel<T, WIDE, MODE>;
    GNN_TRY(gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, g));
    return spmm_join(g.rows, stream);
}

template <typename T> static bool is_wide(const aggregate_vjp_view<T> &g) {
    const int64_t f = g.rows.n_features;
    bool wide = gnn_is_wide(g.rows.y, f, f, sizeof(T)) &&
                gnn_is_wide(g.grad_edge, f, f, sizeof(T)) &&
                gnn_is_wide(g.x.at, g.x.stride, f, sizeof(T)) &&
                gnn_is_wide(g.edge.at, g.edge.stride, f, sizeof(T));
    for (const aggregate_extreme<T> &x : g.extremes) {
        wide = wide && gnn_is_wide(x.grad.at, x.grad.stride, f, sizeof(T)) &&
               (uintptr_t)x.arg % GNN_PACK_BYTES == 0;
    }
    return wide;
}

template <typename T>
static gnn_status launch(const gnn_aggregate_args *args, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    const aggregate_scratch at = scratch_of(args);
    char *const scratch = (char *)args->scratch;
    aggregate_vjp_view<T> g = {};
    g.rows =
        spmm_view_of<T>(&args->back, args->n_features, scratch + at.sums, args->d_x);
    g.x = reduce_matrix<T>{(const T *)args->x, args->x_stride};
    g.edge = reduce_matrix<T>{(const T *)args->edge, args->edge_stride};
    g.grad_edge = (T *)args->d_edge;
    g.arg_bytes = (int)gnn_dtype_size(args->arg_dtype);
    g.a = args->which & LINEAR ? (const A *)scratch : NULL;
    g.b = args->which & SQUARES ? (const A *)(scratch + at.b) : NULL;
    if (g.a != NULL && args->a.n_rows > 0) {
        GNN_TRY(launch_coefficients(args, g, stream));
    }
    int n = 0; // extremes that have a gradient
    for (const gnn_reduce which : {GNN_MIN, GNN_MAX}) {
        const reduce_matrix<T> grad = grad_of<T>(args, which);
        if (grad.at != NULL) {
            const void *arg = which == GNN_MIN ? args->arg_min : args->arg_max;
            g.extremes[n++] =
                aggregate_extreme<T>{arg, (const T *)args->y[which], grad};
        }
    }
    if (n > 0 && args->a.n_edges > 0) {
        g.number = scratch + at.number;
        GNN_TRY(launch_numbers(args, scratch + at.number, stream));
    }
    const bool wide = is_wide(g);
    if (g.a == NULL && n == 1) {
        return wide ? launch_items<T, true, AGGREGATE_MAX>(g, stream)
                    : launch_items<T, false, AGGREGATE_MAX>(g, stream);
    }
    return wide ? launch_items<T, true, AGGREGATE_ALL>(g, stream)
                : launch_items<T, false, AGGREGATE_ALL>(g, stream);
}

/* ------------------------------------------------------------------------------- entries */

/* Bytes of `rows` rows, `stride` elements apart, fit in an int64. */
static gnn_status check_matrix(const char *name, int64_t rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "aggregate_vjp: bytes of %s [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                name, rows, stride);
    return GNN_OK;
}

extern "C" int64_t gnn_aggregate_vjp_cuda_scratch(const gnn_aggregate_args *args) {
    return scratch_of(args).size;
}

extern "C" gnn_status gnn_aggregate_vjp_cuda(const gnn_aggregate_args *args,
                                             uint64_t stream_bits) {
    const gnn_cuda_stream_t stream = (gnn_cuda_stream_t)stream_bits;
    GNN_TRY(spmm_check("aggregate_vjp", &args->back, args->n_features));
    GNN_TRY(spmm_check("aggregate_vjp", &args->a, args->n_features));
    GNN_TRY(check_matrix("x", args->back.n_rows, args->x_stride));
    GNN_TRY(check_matrix("edge", args->back.n_edges, args->edge_stride));
    for (int which = 0; which < GNN_REDUCE_COUNT; which++) {
        GNN_TRY(check_matrix("grad", args->a.n_rows, args->grad_stride[which]));
    }
    if (args->n_features == 0 || args->back.n_rows == 0) {
        return GNN_OK;
    }
    switch (args->dtype) {
    case GNN_F32:
        return launch<float>(args, stream);
    case GNN_F64:
        return launch<double>(args, stream);
    case GNN_BF16:
        return launch<__nv_bfloat16>(args, stream);
    case GNN_F16:
        return launch<__half>(args, stream);
    default:
        return gnn_fail(GNN_ETYPE,
                        "aggregate_vjp: dtype must be float32, float64, bfloat16 or "
                        "float16, got %s",
                        gnn_dtype_text(args->dtype));
    }
}

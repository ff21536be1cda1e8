/* aggregate_cuda.cu: launches the statistics of rows of messages. */
#include "cuda/aggregate_kernels.cuh"

enum { MIN_OR_MAX = 1 << GNN_MIN | 1 << GNN_MAX };

template <typename T, bool WIDE, int MODE>
static gnn_status launch_items(aggregate_view<T> g, gnn_cuda_stream_t stream) {
    const dim3 grid = spmm_grid<T, WIDE, aggregate_lane<WIDE, MODE>::MOST>(&g.rows);
    const dim3 block(GNN_BLOCK_THREADS);
    void (*const items)(aggregate_view<T>) = aggregate_items_kernel<T, WIDE, MODE>;
    GNN_TRY(gnn_launch(items, grid, block, 0, stream, g));
    if (g.rows.n_split == 0) {
        return GNN_OK;
    }
    const dim3 rows(gnn_grid_x(g.rows.n_split),
                    gnn_grid_y((g.rows.n_features + 31) / 32));
    void (*const join)(aggregate_view<T>) = aggregate_join_kernel<T, MODE>;
    return gnn_launch(join, rows, block, 0, stream, g);
}

/* Rows of T and, where present, of A and of args move 16 bytes of T's at a time. */
template <typename T> static bool is_wide(const gnn_aggregate_args *args) {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t f = args->n_features;
    bool wide = gnn_is_wide(args->x, args->x_stride, f, sizeof(T)) &&
                gnn_is_wide(args->edge, args->edge_stride, f, sizeof(T)) &&
                gnn_is_wide(args->mean, f, f, sizeof(A)) &&
                (uintptr_t)args->arg_min % GNN_PACK_BYTES == 0 &&
                (uintptr_t)args->arg_max % GNN_PACK_BYTES == 0;
    for (int which = 0; which < GNN_REDUCE_COUNT; which++) {
        wide = wide && gnn_is_wide(args->y[which], f, f, sizeof(T));
    }
    return wide;
}

template <typename T>
static gnn_status launch(const gnn_aggregate_args *args, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    aggregate_view<T> g = {};
    g.rows = spmm_view_of<T>(&args->a, args->n_features, NULL, NULL);
    g.rows.x = (const T *)args->x;
    g.rows.x_stride = args->x_stride;
    g.edge = reduce_matrix<T>{(const T *)args->edge, args->edge_stride};
    for (int which = 0; which < GNN_REDUCE_COUNT; which++) {
        g.y[which] = args->which >> which & 1 ? (T *)args->y[which] : NULL;
    }
    g.arg_min = args->arg_min;
    g.arg_max = args->arg_max;
    g.arg_bytes = (int)gnn_dtype_size(args->arg_dtype);
    g.mean = (A *)args->mean;
    g.parts = (A *)args->scratch;
    g.part_args = (int *)(g.parts + 4 * args->a.n_split * args->n_features);
    g.sign = 1;
    g.centred = args->which & (1u << GNN_VAR | 1u << GNN_STD);
    const bool wide = is_wide<T>(args);
    const unsigned one = args->which & MIN_OR_MAX;
    if (one != args->which || one == MIN_OR_MAX || args->mean != NULL) {
        return wide ? launch_items<T, true, AGGREGATE_ALL>(g, stream)
                    : launch_items<T, false, AGGREGATE_ALL>(g, stream);
    }
    if (one == 1u << GNN_MIN) { // -max(-m)
        g.sign = -1;
        g.y[GNN_MAX] = g.y[GNN_MIN];
        g.arg_max = g.arg_min;
    }
    return wide ? launch_items<T, true, AGGREGATE_MAX>(g, stream)
                : launch_items<T, false, AGGREGATE_MAX>(g, stream);
}

/* ------------------------------------------------------------------------------ checks */

/* Bytes of `rows` rows, `stride` elements apart, fit in an int64. */
static gnn_status check_matrix(const char *name, int64_t rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "aggregate: bytes of %s [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                name, rows, stride);
    return GNN_OK;
}

extern "C" int64_t gnn_aggregate_cuda_scratch(const gnn_aggregate_args *args) {
    const int64_t sums = args->dtype == GNN_F64 ? 8 : 4;
    return args->a.n_split * args->n_features * (4 * sums + 2 * 4);
}

extern "C" gnn_status gnn_aggregate_cuda(const gnn_aggregate_args *args,
                                         uint64_t stream_bits) {
    const gnn_cuda_stream_t stream = (gnn_cuda_stream_t)stream_bits;
    GNN_TRY(spmm_check("aggregate", &args->a, args->n_features));
    GNN_TRY(check_matrix("x", args->a.n_cols, args->x_stride));
    GNN_TRY(check_matrix("edge", args->a.n_edges, args->edge_stride));
    if (args->n_features == 0 || args->a.n_rows == 0 || args->which == 0) {
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
        return gnn_fail(
            GNN_ETYPE,
            "aggregate: dtype must be float32, float64, bfloat16 or float16, got %s",
            gnn_dtype_text(args->dtype));
    }
}

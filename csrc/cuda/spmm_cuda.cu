/* spmm_cuda.cu: launches the sparse-dense product: the items, then the rows in chunks. */
#include "cuda/spmm_kernels.cuh"

#include <inttypes.h>

template <typename T, bool WIDE>
static gnn_status launch_items(spmm_view<T> s, gnn_cuda_stream_t stream) {
    enum { SIZE = gnn_pack<T, WIDE>::SIZE };
    s.group_shift = gnn_group_shift(s.n_features, SIZE);
    s.n_slices = (int)gnn_slice_count(s.n_features, SIZE);
    const int64_t groups = 32 >> s.group_shift;
    const int64_t warps = (s.n_split + s.n_windows + groups - 1) / groups;
    const dim3 grid(gnn_grid_x(warps), gnn_grid_y(s.n_slices));
    return gnn_launch(spmm_items_kernel<T, WIDE>, grid, dim3(GNN_BLOCK_THREADS), 0,
                      stream, s);
}

template <typename T>
static gnn_status launch_spmm(const gnn_spmm_args *g, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    spmm_view<T> s = {};
    s.rowptr = g->a.rowptr;
    s.col = g->a.col;
    s.eid = g->a.eid;
    s.eid_is_64 = g->a.eid_dtype == GNN_I64;
    s.split = g->a.split;
    s.n_split = g->a.n_split;
    s.x = (const T *)g->x;
    s.weight = (const T *)g->weight;
    s.row_scale = (const A *)g->row_scale;
    s.col_scale = (const A *)g->col_scale;
    s.sums = (A *)g->scratch;
    s.y = (T *)g->y;
    s.n_rows = g->a.n_rows;
    s.n_windows = (g->a.n_rows + g->a.n_edges + SPMM_WINDOW - 1) / SPMM_WINDOW;
    s.n_features = (int)g->n_features;
    s.x_stride = g->x_stride;

    const bool wide = gnn_is_wide(s.x, s.x_stride, s.n_features, sizeof(T)) &&
                      gnn_is_wide(s.y, s.n_features, s.n_features, sizeof(T));
    const gnn_status status =
        wide ? launch_items<T, true>(s, stream) : launch_items<T, false>(s, stream);
    GNN_TRY(status);
    if (s.n_split == 0) {
        return GNN_OK;
    }
    const dim3 grid(gnn_grid_x(s.n_split), gnn_grid_y((s.n_features + 31) / 32));
    return gnn_launch(spmm_join_kernel<T>, grid, dim3(GNN_BLOCK_THREADS), 0, stream, s);
}

static gnn_status check(const gnn_spmm_args *g) {
    int64_t bytes;
    GNN_REQUIRE(g->n_features >= 0 && g->n_features < GNN_MAX_FEATURES, GNN_EINVAL,
                "spmm: number of features must be in [0, 2^30), got %" PRId64,
                g->n_features);
    // an item's entries are counted in an int
    GNN_REQUIRE(g->a.n_edges < INT32_MAX || g->a.n_split > 0, GNN_ENOTSUP,
                "spmm: a graph of %" PRId64 " edges must have its heavy rows split",
                g->a.n_edges);
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_rows, g->n_features, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "spmm: bytes of y [%" PRId64 ", %" PRId64 "] must be below 2^63",
                g->a.n_rows, g->n_features);
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_cols, g->x_stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "spmm: bytes of x [%" PRId64 ", stride %" PRId64 "] must be below 2^63",
                g->a.n_cols, g->x_stride);
    return GNN_OK;
}

extern "C" int64_t gnn_spmm_cuda_scratch(const gnn_csr *a, int64_t n_features,
                                         gnn_dtype dtype) {
    return a->n_split * n_features * (dtype == GNN_F64 ? 8 : 4);
}

extern "C" gnn_status gnn_spmm_cuda(const gnn_spmm_args *args, uint64_t stream_bits) {
    const gnn_cuda_stream_t stream = (gnn_cuda_stream_t)stream_bits;
    GNN_TRY(check(args));
    if (args->n_features == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    switch (args->dtype) {
    case GNN_F32:
        return launch_spmm<float>(args, stream);
    case GNN_F64:
        return launch_spmm<double>(args, stream);
    case GNN_BF16:
        return launch_spmm<__nv_bfloat16>(args, stream);
    case GNN_F16:
        return launch_spmm<__half>(args, stream);
    default:
        return gnn_fail(
            GNN_ETYPE,
            "spmm: dtype must be float32, float64, bfloat16 or float16, got %s",
            gnn_dtype_text(args->dtype));
    }
}

/* spmm_cuda.cu: launches the sparse-dense product: the items, then the rows in chunks. */
#include "cuda/spmm_kernels.cuh"

template <typename T, bool WIDE>
static gnn_status launch_items(spmm_view<T> s, gnn_cuda_stream_t stream) {
    const dim3 grid = spmm_grid<T, WIDE>(&s);
    void (*const kernel)(spmm_view<T>) = spmm_items_kernel<T, WIDE>;
    GNN_TRY(gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, s));
    return spmm_join(s, stream);
}

template <typename T>
static gnn_status launch_spmm(const gnn_spmm_args *g, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    spmm_view<T> s = spmm_view_of<T>(&g->a, g->n_features, g->scratch, g->y);
    s.x = (const T *)g->x;
    s.x_stride = g->x_stride;
    s.weight = (const T *)g->weight;
    s.row_scale = (const A *)g->row_scale;
    s.col_scale = (const A *)g->col_scale;
    const bool wide = gnn_is_wide(s.x, s.x_stride, s.n_features, sizeof(T)) &&
                      gnn_is_wide(s.y, s.n_features, s.n_features, sizeof(T));
    return wide ? launch_items<T, true>(s, stream) : launch_items<T, false>(s, stream);
}

static gnn_status check(const gnn_spmm_args *g) {
    int64_t bytes;
    GNN_TRY(spmm_check("spmm", &g->a, g->n_features));
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

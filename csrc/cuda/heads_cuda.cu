/* heads_cuda.cu: launches the products head by head. */
#include "cuda/heads_kernels.cuh"

/* ------------------------------------------------------------------------- heads_spmm */

template <typename T, typename W, bool WIDE>
static gnn_status launch_items(heads_spmm_view<T, W> g, gnn_cuda_stream_t stream) {
    const dim3 grid = spmm_grid<T, WIDE>(&g.rows);
    void (*const kernel)(heads_spmm_view<T, W>) = heads_spmm_kernel<T, W, WIDE>;
    GNN_TRY(gnn_launch(kernel, grid, dim3(GNN_BLOCK_THREADS), 0, stream, g));
    return spmm_join(g.rows, stream);
}

template <typename T, typename W>
static gnn_status launch_spmm(const gnn_heads_args *args, gnn_cuda_stream_t stream) {
    const int64_t f = args->n_heads * args->n_channels;
    heads_spmm_view<T, W> g = {};
    g.rows = spmm_view_of<T>(&args->a, f, args->scratch, args->y);
    g.rows.x = (const T *)args->x;
    g.rows.x_stride = args->x_stride;
    g.rows.scale = (typename gnn_accumulator<T>::type)args->scale;
    g.w = (const W *)args->w;
    g.by_channels = gnn_divider_of(args->n_channels);
    g.n_heads = (int)args->n_heads;
    const bool wide =
        gnn_is_wide(args->x, args->x_stride, args->n_channels, sizeof(T)) &&
        gnn_is_wide(args->y, f, args->n_channels, sizeof(T));
    return wide ? launch_items<T, W, true>(g, stream)
                : launch_items<T, W, false>(g, stream);
}

/* ------------------------------------------------------------------------ heads_sddmm */

enum { PRODUCTS_A_WARP = 128 }; // at least, of one entry and head each

template <typename T, typename Z, bool WIDE>
static gnn_status launch_entries(heads_sddmm_view<T, Z> s, gnn_cuda_stream_t stream) {
    enum { SIZE = gnn_pack<T, WIDE>::SIZE };
    const int64_t least = gnn_sector_lanes<T, WIDE>();
    s.group_shift = gnn_group_shift(s.n_channels, SIZE, least);
    s.n_slices = (int)gnn_slice_count(s.n_channels, SIZE, least);
    const int64_t warps = (s.n_edges + s.window - 1) / s.window;
    void (*const kernel)(heads_sddmm_view<T, Z>) = heads_sddmm_kernel<T, Z, WIDE>;
    return gnn_launch(kernel, dim3(gnn_grid_x(warps)), dim3(GNN_BLOCK_THREADS), 0,
                      stream, s);
}

template <typename T, typename Z>
static gnn_status launch_sddmm(const gnn_heads_args *args, gnn_cuda_stream_t stream) {
    heads_sddmm_view<T, Z> s = {};
    s.rowptr = args->a.rowptr;
    s.col = args->a.col;
    s.eid = args->a.eid;
    s.eid_is_64 = args->a.eid_dtype == GNN_I64;
    s.u = (const T *)args->u;
    s.v = (const T *)args->v;
    s.z = (Z *)args->z;
    s.scale = (typename gnn_accumulator<T>::type)args->scale;
    s.n_rows = args->a.n_rows;
    s.n_edges = args->a.n_edges;
    s.u_stride = args->u_stride;
    s.v_stride = args->v_stride;
    s.by_heads = gnn_divider_of(args->n_heads);
    s.n_channels = (int)args->n_channels;
    s.window = (int)((PRODUCTS_A_WARP + args->n_heads - 1) / args->n_heads);
    const bool wide = gnn_is_wide(s.u, s.u_stride, s.n_channels, sizeof(T)) &&
                      gnn_is_wide(s.v, s.v_stride, s.n_channels, sizeof(T));
    return wide ? launch_entries<T, Z, true>(s, stream)
                : launch_entries<T, Z, false>(s, stream);
}

/* ------------------------------------------------------------------------------ checks */

/* Bytes of `rows` rows, `stride` elements apart, fit in an int64. */
static gnn_status check_matrix(const char *op, const char *name, int64_t rows,
                               int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "%s: bytes of %s [%" PRId64 ", stride %" PRId64 "] must be below 2^63",
                op, name, rows, stride);
    return GNN_OK;
}

static gnn_status check(const char *op, const gnn_heads_args *args) {
    const int64_t h = args->n_heads, c = args->n_channels;
    const gnn_dtype wide = args->dtype == GNN_F64 ? GNN_F64 : GNN_F32;
    GNN_REQUIRE(
        h >= 0 && c >= 0 && h < GNN_MAX_FEATURES && c < GNN_MAX_FEATURES, GNN_EINVAL,
        "%s: heads and channels must be in [0, 2^30), got %" PRId64 " and %" PRId64, op,
        h, c);
    GNN_TRY(spmm_check(op, &args->a, h * c));
    GNN_TRY(check_matrix(op, "edges", args->a.n_edges, h));
    GNN_REQUIRE(args->dtype == GNN_F32 || args->dtype == GNN_F64 ||
                    args->dtype == GNN_BF16 || args->dtype == GNN_F16,
                GNN_ETYPE,
                "%s: dtype must be float32, float64, bfloat16 or float16, got %s", op,
                gnn_dtype_text(args->dtype));
    GNN_REQUIRE(args->edge_dtype == args->dtype || args->edge_dtype == wide, GNN_ETYPE,
                "%s: dtype of the edges must be %s or %s, got %s", op,
                gnn_dtype_text(args->dtype), gnn_dtype_text(wide),
                gnn_dtype_text(args->edge_dtype));
    return GNN_OK;
}

/* function<T, type of the edges>(args, stream), after check() */
#define LAUNCH_BY_DTYPES(function)                                                     \
    switch (args->dtype) {                                                             \
    case GNN_F64:                                                                      \
        return function<double, double>(args, (gnn_cuda_stream_t)stream);              \
    case GNN_BF16:                                                                     \
        return args->edge_dtype == GNN_F32                                             \
                   ? function<__nv_bfloat16, float>(args, (gnn_cuda_stream_t)stream)   \
                   : function<__nv_bfloat16, __nv_bfloat16>(                           \
                         args, (gnn_cuda_stream_t)stream);                             \
    case GNN_F16:                                                                      \
        return args->edge_dtype == GNN_F32                                             \
                   ? function<__half, float>(args, (gnn_cuda_stream_t)stream)          \
                   : function<__half, __half>(args, (gnn_cuda_stream_t)stream);        \
    default:                                                                           \
        return function<float, float>(args, (gnn_cuda_stream_t)stream);                \
    }

extern "C" int64_t gnn_heads_spmm_cuda_scratch(const gnn_heads_args *args) {
    return gnn_spmm_cuda_scratch(&args->a, args->n_heads * args->n_channels,
                                 args->dtype);
}

extern "C" gnn_status gnn_heads_spmm_cuda(const gnn_heads_args *args, uint64_t stream) {
    GNN_TRY(check("heads_spmm", args));
    GNN_TRY(check_matrix("heads_spmm", "x", args->a.n_cols, args->x_stride));
    if (args->n_heads * args->n_channels == 0 || args->a.n_rows == 0) {
        return GNN_OK;
    }
    LAUNCH_BY_DTYPES(launch_spmm)
}

extern "C" gnn_status gnn_heads_sddmm_cuda(const gnn_heads_args *args,
                                           uint64_t stream) {
    GNN_TRY(check("heads_sddmm", args));
    GNN_TRY(check_matrix("heads_sddmm", "u", args->a.n_rows, args->u_stride));
    GNN_TRY(check_matrix("heads_sddmm", "v", args->a.n_cols, args->v_stride));
    if (args->n_heads == 0 || args->a.n_edges == 0) {
        return GNN_OK;
    }
    LAUNCH_BY_DTYPES(launch_sddmm)
}

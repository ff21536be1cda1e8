/* sddmm_cuda.cu: launches the sampled dense-dense product. */
#include "cuda/sddmm_kernels.cuh"

#include <inttypes.h>

template <typename T, bool WIDE>
static gnn_status launch_entries(sddmm_view<T> s, gnn_cuda_stream_t stream) {
    enum { SIZE = gnn_pack<T, WIDE>::SIZE };
    const int64_t least = gnn_sector_lanes<T, WIDE>();
    s.group_shift = gnn_group_shift(s.n_features, SIZE, least);
    s.n_slices = (int)gnn_slice_count(s.n_features, SIZE, least);
    const int64_t warps = (s.n_edges + SDDMM_WINDOW - 1) / SDDMM_WINDOW;
    return gnn_launch(sddmm_entries_kernel<T, WIDE>, dim3(gnn_grid_x(warps)),
                      dim3(GNN_BLOCK_THREADS), 0, stream, s);
}

template <typename T>
static gnn_status launch_sddmm(const gnn_sddmm_args *g, gnn_cuda_stream_t stream) {
    typedef typename gnn_accumulator<T>::type A;
    sddmm_view<T> s = {};
    s.rowptr = g->a.rowptr;
    s.col = g->a.col;
    s.eid = g->a.eid;
    s.eid_is_64 = g->a.eid_dtype == GNN_I64;
    s.u = (const T *)g->u;
    s.v = (const T *)g->v;
    s.row_scale = (const A *)g->row_scale;
    s.col_scale = (const A *)g->col_scale;
    s.z = (T *)g->z;
    s.n_rows = g->a.n_rows;
    s.n_edges = g->a.n_edges;
    s.u_stride = g->u_stride;
    s.v_stride = g->v_stride;
    s.n_features = (int)g->n_features;
    const bool wide = gnn_is_wide(s.u, s.u_stride, s.n_features, sizeof(T)) &&
                      gnn_is_wide(s.v, s.v_stride, s.n_features, sizeof(T));
    return wide ? launch_entries<T, true>(s, stream)
                : launch_entries<T, false>(s, stream);
}

static gnn_status check(const gnn_sddmm_args *g) {
    int64_t bytes;
    GNN_REQUIRE(g->n_features >= 0 && g->n_features < GNN_MAX_FEATURES, GNN_EINVAL,
                "sddmm: number of features must be in [0, 2^30), got %" PRId64,
                g->n_features);
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_rows, g->u_stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "sddmm: bytes of u [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                g->a.n_rows, g->u_stride);
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_cols, g->v_stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "sddmm: bytes of v [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                g->a.n_cols, g->v_stride);
    return GNN_OK;
}

extern "C" gnn_status gnn_sddmm_cuda(const gnn_sddmm_args *args, uint64_t stream_bits) {
    const gnn_cuda_stream_t stream = (gnn_cuda_stream_t)stream_bits;
    GNN_TRY(check(args));
    if (args->a.n_edges == 0) {
        return GNN_OK;
    }
    switch (args->dtype) {
    case GNN_F32:
        return launch_sddmm<float>(args, stream);
    case GNN_F64:
        return launch_sddmm<double>(args, stream);
    case GNN_BF16:
        return launch_sddmm<__nv_bfloat16>(args, stream);
    case GNN_F16:
        return launch_sddmm<__half>(args, stream);
    default:
        return gnn_fail(
            GNN_ETYPE,
            "sddmm: dtype must be float32, float64, bfloat16 or float16, got %s",
            gnn_dtype_text(args->dtype));
    }
}

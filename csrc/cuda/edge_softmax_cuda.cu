/* edge_softmax_cuda.cu: launches softmax over rows and its gradient: the rows, then those
 * in chunks. */
#include "cuda/edge_softmax_kernels.cuh"

#include <inttypes.h>

static int head_shift(int64_t n_heads) { // lanes that share a row
    int shift = 0;
    while (shift < 5 && (int64_t)1 << shift < n_heads) {
        shift++;
    }
    return shift;
}

template <typename T, int MODE>
static gnn_status launch(const gnn_edge_softmax_args *args, gnn_cuda_stream_t stream) {
    edge_softmax_view<T> s = {};
    s.rowptr = args->a.rowptr;
    s.eid = args->a.eid;
    s.eid_is_64 = args->a.eid_dtype == GNN_I64;
    s.split = args->a.split;
    s.n_split = args->a.n_split;
    s.given = (const T *)(MODE == EDGE_SOFTMAX ? args->scores : args->grad);
    s.alpha = (const T *)(MODE == EDGE_SOFTMAX ? NULL : args->alpha);
    s.out = (T *)(MODE == EDGE_SOFTMAX ? args->alpha : args->d_scores);
    s.parts = (typename gnn_accumulator<T>::type *)args->scratch;
    s.n_rows = args->a.n_rows;
    s.n_heads = (int)args->n_heads;
    s.group_shift = head_shift(args->n_heads);
    const int64_t rows_a_warp = 32 >> s.group_shift;
    const unsigned slabs = gnn_grid_y((args->n_heads + 31) / 32);
    const dim3 block(GNN_BLOCK_THREADS);
    void (*const rows)(edge_softmax_view<T>) = edge_softmax_rows_kernel<T, MODE>;
    void (*const join)(edge_softmax_view<T>) = edge_softmax_join_kernel<T, MODE>;
    void (*const chunks)(edge_softmax_view<T>) = edge_softmax_chunks_kernel<T, MODE>;
    const int64_t n_items = s.n_split + s.n_rows;
    const dim3 grid(gnn_grid_x((n_items + rows_a_warp - 1) / rows_a_warp), slabs);
    GNN_TRY(gnn_launch(rows, grid, block, 0, stream, s));
    if (s.n_split == 0) {
        return GNN_OK;
    }
    const dim3 of_chunks(gnn_grid_x((s.n_split + rows_a_warp - 1) / rows_a_warp),
                         slabs);
    GNN_TRY(gnn_launch(join, of_chunks, block, 0, stream, s));
    return gnn_launch(chunks, of_chunks, block, 0, stream, s);
}

template <int MODE>
static gnn_status check_and_launch(const char *op, const gnn_edge_softmax_args *args,
                                   uint64_t stream_bits) {
    const gnn_cuda_stream_t stream = (gnn_cuda_stream_t)stream_bits;
    int64_t bytes;
    GNN_REQUIRE(args->n_heads >= 0 && args->n_heads < GNN_MAX_FEATURES, GNN_EINVAL,
                "%s: number of heads must be in [0, 2^30), got %" PRId64, op,
                args->n_heads);
    GNN_REQUIRE(!__builtin_mul_overflow(args->a.n_edges, args->n_heads, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "%s: bytes of [%" PRId64 ", %" PRId64 "] must be below 2^63", op,
                args->a.n_edges, args->n_heads);
    if (args->n_heads == 0 || args->a.n_edges == 0) {
        return GNN_OK;
    }
    switch (args->dtype) {
    case GNN_F32:
        return launch<float, MODE>(args, stream);
    case GNN_F64:
        return launch<double, MODE>(args, stream);
    case GNN_BF16:
        return launch<__nv_bfloat16, MODE>(args, stream);
    case GNN_F16:
        return launch<__half, MODE>(args, stream);
    default:
        return gnn_fail(
            GNN_ETYPE,
            "%s: dtype must be float32, float64, bfloat16 or float16, got %s", op,
            gnn_dtype_text(args->dtype));
    }
}

extern "C" int64_t gnn_edge_softmax_cuda_scratch(const gnn_edge_softmax_args *args) {
    return args->a.n_split * args->n_heads * 2 * (args->dtype == GNN_F64 ? 8 : 4);
}

extern "C" gnn_status gnn_edge_softmax_cuda(const gnn_edge_softmax_args *args,
                                            uint64_t stream) {
    return check_and_launch<EDGE_SOFTMAX>("edge_softmax", args, stream);
}

extern "C" gnn_status gnn_edge_softmax_vjp_cuda(const gnn_edge_softmax_args *args,
                                                uint64_t stream) {
    return check_and_launch<EDGE_SOFTMAX_VJP>("edge_softmax_vjp", args, stream);
}

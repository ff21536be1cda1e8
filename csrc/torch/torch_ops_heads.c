/* torch_ops_heads.c: what runs head by head on one number per edge and head, as
 * dispatcher ops: the softmax over the edges of a destination with its gradient, and the
 * products of torch_ops_spmm.c with a weight for each head.
 *
 * Scores, weights and their like are [E, H] in the caller's edge order; features are
 * [rows, H * C]. The products' weights are of the features' dtype or of the accumulator's.
 */
#include "torch/torch_op.h"

#define LL(n) ((long long)(n))

/* [E, H] of *dtype, which is set when `first`; contiguous. */
static gnn_status per_edge(struct torch_op *op, uint64_t i, const char *argument,
                           const gnn_csr *a, bool first, gnn_dtype *dtype,
                           struct torch_view *view) {
    GNN_TRY(torch_op_matrix(op, i, argument, a->n_edges, first, dtype, view));
    GNN_REQUIRE(view->numel == 0 || torch_op_row_stride(view) == view->size[1],
                GNN_EINVAL, "%s: %s must be contiguous", op->name, argument);
    return GNN_OK;
}

static gnn_status softmax_scratch(struct torch_op *op, gnn_edge_softmax_args *args) {
    const int64_t bytes = op->is_cuda ? gnn_edge_softmax_cuda_scratch(args)
                                      : gnn_edge_softmax_scratch(args);
    return torch_op_scratch(op, bytes, &args->scratch);
}

/* edge_softmax(scores, graph...) -> alpha */
static gnn_status edge_softmax(struct torch_op *op) {
    gnn_edge_softmax_args args = {0};
    struct torch_view scores;
    GNN_TRY(torch_op_graph(op, 1, &args.a));
    GNN_TRY(per_edge(op, 0, "scores", &args.a, true, &args.dtype, &scores));
    args.n_heads = scores.size[1];
    args.scores = scores.data;
    GNN_TRY(
        torch_op_empty(op, 0, scores.dtype, args.a.n_edges, args.n_heads, &args.alpha));
    GNN_TRY(softmax_scratch(op, &args));
    return op->is_cuda ? gnn_edge_softmax_cuda(&args, op->stream)
                       : gnn_edge_softmax_cpu(&args);
}

/* edge_softmax_vjp(grad, alpha, graph...) -> d_scores */
static gnn_status edge_softmax_vjp(struct torch_op *op) {
    gnn_edge_softmax_args args = {0};
    struct torch_view grad, alpha;
    GNN_TRY(torch_op_graph(op, 2, &args.a));
    GNN_TRY(per_edge(op, 1, "alpha", &args.a, true, &args.dtype, &alpha));
    GNN_TRY(per_edge(op, 0, "grad", &args.a, false, &args.dtype, &grad));
    GNN_REQUIRE(grad.size[1] == alpha.size[1], GNN_EINVAL,
                "%s: grad must have %lld columns as alpha has, got %lld", op->name,
                LL(alpha.size[1]), LL(grad.size[1]));
    args.n_heads = alpha.size[1];
    args.grad = grad.data;
    args.alpha = (void *)(uintptr_t)alpha.data;
    GNN_TRY(torch_op_empty(op, 0, alpha.dtype, args.a.n_edges, args.n_heads,
                           &args.d_scores));
    GNN_TRY(softmax_scratch(op, &args));
    return op->is_cuda ? gnn_edge_softmax_vjp_cuda(&args, op->stream)
                       : gnn_edge_softmax_vjp_cpu(&args);
}

/* Splits the columns of a matrix into heads. */
static gnn_status split_heads(const struct torch_op *op, const char *argument,
                              int64_t n_columns, gnn_heads_args *args) {
    GNN_REQUIRE(args->n_heads >= 1 && n_columns % args->n_heads == 0, GNN_EINVAL,
                "%s: %s must have a multiple of %lld columns, got %lld", op->name,
                argument, LL(args->n_heads), LL(n_columns));
    args->n_channels = n_columns / args->n_heads;
    args->scale = 1;
    return GNN_OK;
}

/* heads_spmm(x, weight, graph...) -> y [n_rows, H * C]; H is weight's */
static gnn_status heads_spmm(struct torch_op *op) {
    gnn_heads_args args = {0};
    struct torch_view x, weight;
    GNN_TRY(torch_op_graph(op, 2, &args.a));
    GNN_TRY(torch_op_matrix(op, 0, "x", args.a.n_cols, true, &args.dtype, &x));
    GNN_TRY(per_edge(op, 1, "weight", &args.a, true, &args.edge_dtype, &weight));
    GNN_REQUIRE(args.edge_dtype == args.dtype ||
                    (args.edge_dtype == GNN_F32 && args.dtype != GNN_F64),
                GNN_ETYPE, "%s: weight must be %s or its accumulator's type, got %s",
                op->name, gnn_dtype_text(args.dtype), gnn_dtype_text(args.edge_dtype));
    args.n_heads = weight.size[1];
    GNN_TRY(split_heads(op, "x", x.size[1], &args));
    args.x = x.data;
    args.x_stride = torch_op_row_stride(&x);
    args.w = weight.data;
    GNN_TRY(torch_op_empty(op, 0, x.dtype, args.a.n_rows, x.size[1], &args.y));
    const int64_t bytes = op->is_cuda ? gnn_heads_spmm_cuda_scratch(&args)
                                      : gnn_heads_spmm_scratch(&args);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_heads_spmm_cuda(&args, op->stream)
                       : gnn_heads_spmm_cpu(&args);
}

/* heads_sddmm(a, b, graph..., n_heads, wide) -> z [E, H], of the accumulator's dtype
 * when `wide` */
static gnn_status heads_sddmm(struct torch_op *op) {
    gnn_heads_args args = {0};
    struct torch_view u, v;
    GNN_TRY(torch_op_graph(op, 2, &args.a));
    GNN_TRY(torch_op_matrix(op, 0, "a", args.a.n_rows, true, &args.dtype, &u));
    GNN_TRY(torch_op_matrix(op, 1, "b", args.a.n_cols, false, &args.dtype, &v));
    GNN_REQUIRE(u.size[1] == v.size[1], GNN_EINVAL,
                "%s: b must have %lld columns as a has, got %lld", op->name,
                LL(u.size[1]), LL(v.size[1]));
    args.n_heads = torch_op_int(op, 10);
    args.edge_dtype =
        torch_op_int(op, 11) && args.dtype != GNN_F64 ? GNN_F32 : args.dtype;
    GNN_TRY(split_heads(op, "a", u.size[1], &args));
    args.u = u.data;
    args.u_stride = torch_op_row_stride(&u);
    args.v = v.data;
    args.v_stride = torch_op_row_stride(&v);
    GNN_TRY(torch_op_empty(op, 0, torch_dtype_code(args.edge_dtype), args.a.n_edges,
                           args.n_heads, &args.z));
    return op->is_cuda ? gnn_heads_sddmm_cuda(&args, op->stream)
                       : gnn_heads_sddmm_cpu(&args);
}

static void softmax_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("edge_softmax", edge_softmax, 7, stack, n_args, n_outputs);
}

static void softmax_vjp_kernel(StableIValue *stack, uint64_t n_args,
                               uint64_t n_outputs) {
    torch_op_call("edge_softmax_vjp", edge_softmax_vjp, 8, stack, n_args, n_outputs);
}

static void heads_spmm_kernel(StableIValue *stack, uint64_t n_args,
                              uint64_t n_outputs) {
    torch_op_call("heads_spmm", heads_spmm, 8, stack, n_args, n_outputs);
}

static void heads_sddmm_kernel(StableIValue *stack, uint64_t n_args,
                               uint64_t n_outputs) {
    torch_op_call("heads_sddmm", heads_sddmm, 8, stack, n_args, n_outputs);
}

#define GRAPH                                                                          \
    "Tensor rowptr, Tensor col, Tensor eid, Tensor colptr, Tensor row, Tensor ceid, "  \
    "SymInt n_rows, SymInt n_cols"

const struct torch_op_definition torch_ops_heads[] = {
    {"edge_softmax(Tensor scores, " GRAPH ") -> Tensor", "edge_softmax", softmax_kernel,
     true},
    {"edge_softmax_vjp(Tensor grad, Tensor alpha, " GRAPH ") -> Tensor",
     "edge_softmax_vjp", softmax_vjp_kernel, true},
    {"heads_spmm(Tensor x, Tensor weight, " GRAPH ") -> Tensor", "heads_spmm",
     heads_spmm_kernel, true},
    {"heads_sddmm(Tensor a, Tensor b, " GRAPH ", int n_heads, bool wide) -> Tensor",
     "heads_sddmm", heads_sddmm_kernel, true},
    {NULL, NULL, NULL, false},
};

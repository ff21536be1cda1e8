/* torch_ops_gine.c: the sum of relu messages and its two derivatives as dispatcher ops.
 *
 * gine_jvp is the derivative of gine along (dx, dedge), gine_vjp its gradient; each is
 * the gradient of the other, so that the three are closed under differentiation. An empty
 * dx or dedge is an absent one. gine_vjp takes the transposed graph, since its kernel
 * runs by source; an output that is not wanted is empty.
 */
#include "torch/torch_op.h"

/* A matrix that may be absent: numel 0. */
static gnn_status tangent(struct torch_op *op, uint64_t i, const char *argument,
                          int64_t n_rows, int64_t n_features, gnn_dtype dtype,
                          const void **data, int64_t *stride) {
    struct torch_view view;
    GNN_TRY(torch_op_tensor(op, i, &view));
    if (view.numel == 0) {
        return GNN_OK;
    }
    GNN_TRY(torch_op_matrix(op, i, argument, n_rows, false, &dtype, &view));
    GNN_REQUIRE(view.size[1] == n_features, GNN_EINVAL,
                "%s: %s must have %lld columns as x has, got %lld", op->name, argument,
                (long long)n_features, (long long)view.size[1]);
    *data = view.data;
    *stride = torch_op_row_stride(&view);
    return GNN_OK;
}

/* x and edge, the first `n_x` and E rows. */
static gnn_status message(struct torch_op *op, uint64_t first, int64_t n_x,
                          const gnn_csr *a, gnn_dtype *dtype, struct torch_view *x,
                          struct torch_view *edge) {
    GNN_TRY(torch_op_matrix(op, first, "x", n_x, true, dtype, x));
    GNN_TRY(torch_op_matrix(op, first + 1, "edge", a->n_edges, false, dtype, edge));
    GNN_REQUIRE(x->size[1] == edge->size[1], GNN_EINVAL,
                "%s: edge must have %lld columns as x has, got %lld", op->name,
                (long long)x->size[1], (long long)edge->size[1]);
    return GNN_OK;
}

static gnn_status scratch_of(struct torch_op *op, const gnn_csr *a, int64_t n_features,
                             gnn_dtype dtype, void **scratch) {
    const int64_t bytes = op->is_cuda ? gnn_spmm_cuda_scratch(a, n_features, dtype)
                                      : gnn_gine_scratch(a, n_features, dtype);
    return torch_op_scratch(op, bytes, scratch);
}

/* y [n_rows, F] of x, edge and, from argument 2 on, the graph or dx, dedge, graph */
static gnn_status sum(struct torch_op *op, bool has_tangent) {
    gnn_gine_args args = {0};
    struct torch_view x, edge;
    GNN_TRY(torch_op_graph(op, has_tangent ? 4 : 2, &args.a));
    GNN_TRY(message(op, 0, args.a.n_cols, &args.a, &args.dtype, &x, &edge));
    args.n_features = x.size[1];
    args.x = x.data;
    args.x_stride = torch_op_row_stride(&x);
    args.edge = edge.data;
    args.edge_stride = torch_op_row_stride(&edge);
    if (has_tangent) {
        GNN_TRY(tangent(op, 2, "dx", args.a.n_cols, args.n_features, args.dtype,
                        &args.dx, &args.dx_stride));
        GNN_TRY(tangent(op, 3, "dedge", args.a.n_edges, args.n_features, args.dtype,
                        &args.dedge, &args.dedge_stride));
        GNN_REQUIRE(args.dx || args.dedge || args.a.n_edges * args.n_features == 0,
                    GNN_EINVAL, "%s: dx or dedge must be given", op->name);
    }
    GNN_TRY(torch_op_empty(op, 0, x.dtype, args.a.n_rows, args.n_features, &args.y));
    GNN_TRY(scratch_of(op, &args.a, args.n_features, args.dtype, &args.scratch));
    return op->is_cuda ? gnn_gine_cuda(&args, op->stream) : gnn_gine_cpu(&args);
}

/* gine(x, edge, graph...) -> y */
static gnn_status gine(struct torch_op *op) {
    return sum(op, false);
}

/* gine_jvp(x, edge, dx, dedge, graph...) -> y */
static gnn_status gine_jvp(struct torch_op *op) {
    return sum(op, true);
}

/* gine_vjp(grad, x, edge, transposed graph..., wants_x, wants_edge) -> grad_x, grad_edge
 */
static gnn_status gine_vjp(struct torch_op *op) {
    gnn_gine_vjp_args args = {0};
    struct torch_view x, edge, grad;
    const bool wants_x = torch_op_int(op, 11) != 0;
    const bool wants_edge = torch_op_int(op, 12) != 0;
    GNN_TRY(torch_op_graph(op, 3, &args.a));
    GNN_TRY(message(op, 1, args.a.n_rows, &args.a, &args.dtype, &x, &edge));
    GNN_TRY(torch_op_matrix(op, 0, "grad", args.a.n_cols, false, &args.dtype, &grad));
    GNN_REQUIRE(x.size[1] == grad.size[1], GNN_EINVAL,
                "%s: grad must have %lld columns as x has, got %lld", op->name,
                (long long)x.size[1], (long long)grad.size[1]);
    args.n_features = x.size[1];
    args.x = x.data;
    args.x_stride = torch_op_row_stride(&x);
    args.edge = edge.data;
    args.edge_stride = torch_op_row_stride(&edge);
    args.grad = grad.data;
    args.grad_stride = torch_op_row_stride(&grad);

    const int64_t rows = wants_x ? args.a.n_rows : 0;
    const int64_t edges = wants_edge ? args.a.n_edges : 0;
    GNN_TRY(torch_op_empty(op, 0, x.dtype, rows, args.n_features, &args.grad_x));
    GNN_TRY(torch_op_empty(op, 1, x.dtype, edges, args.n_features, &args.grad_edge));
    args.grad_x = wants_x ? args.grad_x : NULL;
    args.grad_edge = wants_edge ? args.grad_edge : NULL;
    GNN_TRY(scratch_of(op, &args.a, args.n_features, args.dtype, &args.scratch));
    return op->is_cuda ? gnn_gine_vjp_cuda(&args, op->stream) : gnn_gine_vjp_cpu(&args);
}

static void gine_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("gine", gine, 8, stack, n_args, n_outputs);
}

static void gine_jvp_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("gine_jvp", gine_jvp, 10, stack, n_args, n_outputs);
}

static void gine_vjp_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("gine_vjp", gine_vjp, 9, stack, n_args, n_outputs);
}

#define GRAPH                                                                          \
    "Tensor rowptr, Tensor col, Tensor eid, Tensor colptr, Tensor row, Tensor ceid, "  \
    "SymInt n_rows, SymInt n_cols"

const struct torch_op_definition torch_ops_gine[] = {
    {"gine(Tensor x, Tensor edge, " GRAPH ") -> Tensor", "gine", gine_kernel, true},
    {"gine_jvp(Tensor x, Tensor edge, Tensor dx, Tensor dedge, " GRAPH ") -> Tensor",
     "gine_jvp", gine_jvp_kernel, true},
    {"gine_vjp(Tensor grad, Tensor x, Tensor edge, " GRAPH
     ", bool wants_x, bool wants_edge) -> (Tensor, Tensor)",
     "gine_vjp", gine_vjp_kernel, true},
    {NULL, NULL, NULL, false},
};

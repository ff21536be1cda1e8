/* torch_ops_gated.c: gated sums and their gradients as dispatcher ops.
 *
 * An empty edge or scale is an absent one; u is as wide as a gate, or as v. gated_vjp
 * takes the transposed graph, since its kernel runs by source; an output that is not
 * wanted is empty.
 */
#include "torch/torch_op.h"

static gnn_dtype accumulator(gnn_dtype dtype) {
    return dtype == GNN_F64 ? GNN_F64 : GNN_F32;
}

/* [n_rows, columns] beside the others, at argument i. */
static gnn_status matrix(struct torch_op *op, uint64_t i, const char *name,
                         int64_t n_rows, int64_t columns, const gnn_gated_args *args,
                         const void **data, int64_t *stride) {
    struct torch_view view;
    gnn_dtype dtype = args->dtype;
    GNN_TRY(torch_op_matrix(op, i, name, n_rows, false, &dtype, &view));
    GNN_REQUIRE(view.size[1] == columns, GNN_EINVAL,
                "%s: %s must have %lld columns, got %lld", op->name, name,
                (long long)columns, (long long)view.size[1]);
    *data = view.data;
    *stride = torch_op_row_stride(&view);
    return GNN_OK;
}

/* u, v, edge and scale, from argument `first` on; *dtype is torch's code. */
static gnn_status operands(struct torch_op *op, uint64_t first, int64_t n_dst,
                           int64_t n_src, gnn_gated_args *args, int32_t *dtype) {
    struct torch_view u, v, edge;
    GNN_TRY(torch_op_matrix(op, first + 1, "v", n_src, true, &args->dtype, &v));
    GNN_REQUIRE(v.size[1] % 2 == 0, GNN_EINVAL,
                "%s: v must have an even number of columns, gates and values, got %lld",
                op->name, (long long)v.size[1]);
    args->n_features = v.size[1] / 2;
    args->v = v.data;
    args->v_stride = torch_op_row_stride(&v);
    *dtype = v.dtype;
    GNN_TRY(torch_op_matrix(op, first, "u", n_dst, false, &args->dtype, &u));
    args->u_has_value = u.size[1] == v.size[1];
    GNN_REQUIRE(args->u_has_value || u.size[1] == args->n_features, GNN_EINVAL,
                "%s: u must have %lld or %lld columns, got %lld", op->name,
                (long long)args->n_features, (long long)v.size[1],
                (long long)u.size[1]);
    args->u = u.data;
    args->u_stride = torch_op_row_stride(&u);
    GNN_TRY(torch_op_tensor(op, first + 2, &edge));
    if (edge.numel > 0) {
        GNN_TRY(matrix(op, first + 2, "edge", args->a.n_edges, v.size[1], args,
                       &args->edge, &args->edge_stride));
    }
    return torch_op_vector(op, first + 3, "scale", n_dst, accumulator(args->dtype),
                           &args->scale);
}

static gnn_status scratch_of(struct torch_op *op, gnn_gated_args *args) {
    const int64_t bytes =
        op->is_cuda ? gnn_gated_cuda_scratch(args) : gnn_gated_scratch(args);
    return torch_op_scratch(op, bytes, &args->scratch);
}

/* gated(u, v, edge, scale, graph..., softplus, wants_dy_du) -> y, dy_du */
static gnn_status gated(struct torch_op *op) {
    gnn_gated_args args = {0};
    int32_t dtype;
    GNN_TRY(torch_op_graph(op, 4, &args.a));
    const int64_t n_rows = args.a.n_rows;
    GNN_TRY(operands(op, 0, n_rows, args.a.n_cols, &args, &dtype));
    args.softplus = torch_op_int(op, 12) != 0;
    const bool wanted = torch_op_int(op, 13) != 0;
    const int64_t f = args.n_features;
    GNN_TRY(torch_op_empty(op, 0, dtype, n_rows, f, &args.y));
    GNN_TRY(torch_op_empty(op, 1, torch_dtype_code(accumulator(args.dtype)),
                           wanted ? n_rows : 0, args.u_has_value ? 2 * f : f,
                           &args.dy_du));
    args.dy_du = wanted ? args.dy_du : NULL;
    GNN_TRY(scratch_of(op, &args));
    return op->is_cuda ? gnn_gated_cuda(&args, op->stream) : gnn_gated_cpu(&args);
}

/* gated_vjp(grad, u, v, edge, scale, transposed graph..., softplus, wants_v, wants_edge)
 *   -> d_v, d_edge */
static gnn_status gated_vjp(struct torch_op *op) {
    gnn_gated_args args = {0};
    int32_t dtype;
    GNN_TRY(torch_op_graph(op, 5, &args.a));
    const int64_t n_src = args.a.n_rows, n_dst = args.a.n_cols;
    GNN_TRY(operands(op, 1, n_dst, n_src, &args, &dtype));
    GNN_TRY(matrix(op, 0, "grad", n_dst, args.n_features, &args, &args.grad,
                   &args.grad_stride));
    args.softplus = torch_op_int(op, 13) != 0;
    const bool wants_v = torch_op_int(op, 14) != 0;
    const bool wants_edge = torch_op_int(op, 15) != 0;
    const int64_t columns = 2 * args.n_features;
    const int64_t edges = wants_edge ? args.a.n_edges : 0;
    GNN_TRY(torch_op_empty(op, 0, dtype, wants_v ? n_src : 0, columns, &args.d_v));
    GNN_TRY(torch_op_empty(op, 1, dtype, edges, columns, &args.d_edge));
    args.d_v = wants_v ? args.d_v : NULL;
    args.d_edge = wants_edge ? args.d_edge : NULL;
    GNN_TRY(scratch_of(op, &args));
    return op->is_cuda ? gnn_gated_vjp_cuda(&args, op->stream)
                       : gnn_gated_vjp_cpu(&args);
}

static void gated_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("gated", gated, 10, stack, n_args, n_outputs);
}

static void gated_vjp_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("gated_vjp", gated_vjp, 11, stack, n_args, n_outputs);
}

#define GRAPH                                                                          \
    "Tensor rowptr, Tensor col, Tensor eid, Tensor colptr, Tensor row, Tensor ceid, "  \
    "SymInt n_rows, SymInt n_cols"

const struct torch_op_definition torch_ops_gated[] = {
    {"gated(Tensor u, Tensor v, Tensor edge, Tensor scale, " GRAPH
     ", bool softplus, bool wants_dy_du) -> (Tensor, Tensor)",
     "gated", gated_kernel, true},
    {"gated_vjp(Tensor grad, Tensor u, Tensor v, Tensor edge, Tensor scale, " GRAPH
     ", bool softplus, bool wants_v, bool wants_edge) -> (Tensor, Tensor)",
     "gated_vjp", gated_vjp_kernel, true},
    {NULL, NULL, NULL, false},
};

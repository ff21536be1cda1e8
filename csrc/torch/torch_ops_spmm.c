/* torch_ops_spmm.c: the sparse-dense product and its companion as dispatcher ops.
 *
 * Both take the graph as the same six tensors (gnn.h: CSR by destination, then CSC by
 * source) and use the first three; the rest rides along for the backward formulas, which
 * swap the halves. An empty weight, scale or eid is an absent one. Index contents were
 * checked when the graph was built; sizes and dtypes are checked here once more, since an
 * op can be called by anyone.
 */
#include "torch/torch_op.h"

#define LL(n) ((long long)(n))

/* spmm(x, weight, row_scale, col_scale, graph...) -> y [n_rows, F] */
static gnn_status spmm(struct torch_op *op) {
    gnn_spmm_args args = {0};
    struct torch_view x;
    GNN_TRY(torch_op_graph(op, 4, &args.a));
    GNN_TRY(torch_op_matrix(op, 0, "x", args.a.n_cols, true, &args.dtype, &x));
    gnn_dtype scale_dtype = args.dtype == GNN_F64 ? GNN_F64 : GNN_F32;
    GNN_TRY(torch_op_vector(op, 1, "weight", args.a.n_edges, args.dtype, &args.weight));
    GNN_TRY(torch_op_vector(op, 2, "row_scale", args.a.n_rows, scale_dtype,
                            &args.row_scale));
    GNN_TRY(torch_op_vector(op, 3, "col_scale", args.a.n_cols, scale_dtype,
                            &args.col_scale));
    args.n_features = x.size[1];
    args.x = x.data;
    args.x_stride = torch_op_row_stride(&x);

    GNN_TRY(torch_op_empty(op, 0, x.dtype, args.a.n_rows, args.n_features, &args.y));
    int64_t bytes = op->is_cuda
                        ? gnn_spmm_cuda_scratch(&args.a, args.n_features, args.dtype)
                        : gnn_spmm_scratch(&args.a, args.n_features, args.dtype);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_spmm_cuda(&args, op->stream) : gnn_spmm_cpu(&args);
}

/* sddmm(u, v, row_scale, col_scale, graph...) -> z [E] in the caller's edge order */
static gnn_status sddmm(struct torch_op *op) {
    gnn_sddmm_args args = {0};
    struct torch_view u, v;
    GNN_TRY(torch_op_graph(op, 4, &args.a));
    GNN_TRY(torch_op_matrix(op, 0, "a", args.a.n_rows, true, &args.dtype, &u));
    GNN_TRY(torch_op_matrix(op, 1, "b", args.a.n_cols, false, &args.dtype, &v));
    GNN_REQUIRE(u.size[1] == v.size[1], GNN_EINVAL,
                "sddmm: b must have %lld columns as a has, got %lld", LL(u.size[1]),
                LL(v.size[1]));
    gnn_dtype scale_dtype = args.dtype == GNN_F64 ? GNN_F64 : GNN_F32;
    GNN_TRY(torch_op_vector(op, 2, "row_scale", args.a.n_rows, scale_dtype,
                            &args.row_scale));
    GNN_TRY(torch_op_vector(op, 3, "col_scale", args.a.n_cols, scale_dtype,
                            &args.col_scale));
    args.n_features = u.size[1];
    args.u = u.data;
    args.u_stride = torch_op_row_stride(&u);
    args.v = v.data;
    args.v_stride = torch_op_row_stride(&v);

    GNN_TRY(torch_op_empty(op, 0, u.dtype, args.a.n_edges, -1, &args.z));
    return op->is_cuda ? gnn_sddmm_cuda(&args, op->stream) : gnn_sddmm_cpu(&args);
}

static void spmm_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("spmm", spmm, 10, stack, n_args, n_outputs);
}

static void sddmm_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("sddmm", sddmm, 10, stack, n_args, n_outputs);
}

#define GRAPH                                                                          \
    "Tensor rowptr, Tensor col, Tensor eid, Tensor colptr, Tensor row, Tensor ceid, "  \
    "SymInt n_rows, SymInt n_cols"

const struct torch_op_definition torch_ops_spmm[] = {
    {"spmm(Tensor x, Tensor weight, Tensor row_scale, Tensor col_scale, " GRAPH
     ") -> Tensor",
     "spmm", spmm_kernel, true},
    {"sddmm(Tensor a, Tensor b, Tensor row_scale, Tensor col_scale, " GRAPH
     ") -> Tensor",
     "sddmm", sddmm_kernel, true},
    {NULL, NULL, NULL, false},
};

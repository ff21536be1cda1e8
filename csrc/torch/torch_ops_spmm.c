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

static bool is_float(gnn_dtype dtype) {
    return dtype == GNN_F32 || dtype == GNN_F64 || dtype == GNN_BF16 ||
           dtype == GNN_F16;
}

/* A dense matrix [n_rows, F] of dtype *dtype; *dtype is set when `first`. */
static gnn_status matrix(struct torch_op *op, uint64_t i, const char *argument,
                         int64_t n_rows, bool first, gnn_dtype *dtype,
                         struct torch_view *view) {
    gnn_dtype own_dtype;
    GNN_TRY(torch_op_tensor(op, i, view));
    GNN_TRY(torch_op_dtype(op, view, argument, &own_dtype));
    GNN_REQUIRE(is_float(own_dtype), GNN_ETYPE, "%s: %s must be floating, got %s",
                op->name, argument, gnn_dtype_text(own_dtype));
    GNN_REQUIRE(first || own_dtype == *dtype, GNN_ETYPE, "%s: %s must be %s, got %s",
                op->name, argument, gnn_dtype_text(*dtype), gnn_dtype_text(own_dtype));
    GNN_REQUIRE(view->dim == 2, GNN_EINVAL, "%s: %s must have 2 dimensions, got %lld",
                op->name, argument, LL(view->dim));
    GNN_REQUIRE(view->size[0] == n_rows, GNN_EINVAL,
                "%s: %s must have %lld rows, got %lld", op->name, argument, LL(n_rows),
                LL(view->size[0]));
    *dtype = own_dtype;
    return torch_op_pack(op, view);
}

/* A vector [n] of dtype, or an empty one: *data is NULL. */
static gnn_status vector(struct torch_op *op, uint64_t i, const char *argument,
                         int64_t n, gnn_dtype dtype, const void **data) {
    struct torch_view view;
    gnn_dtype own_dtype;
    *data = NULL;
    GNN_TRY(torch_op_tensor(op, i, &view));
    if (view.numel == 0) {
        return GNN_OK;
    }
    GNN_TRY(torch_op_dtype(op, &view, argument, &own_dtype));
    GNN_REQUIRE(own_dtype == dtype, GNN_ETYPE, "%s: %s must be %s, got %s", op->name,
                argument, gnn_dtype_text(dtype), gnn_dtype_text(own_dtype));
    GNN_REQUIRE(view.dim == 1 && view.numel == n, GNN_EINVAL,
                "%s: %s must be a vector of length %lld, got %lld", op->name, argument,
                LL(n), LL(view.numel));
    GNN_TRY(torch_op_pack(op, &view));
    *data = view.data;
    return GNN_OK;
}

/* The graph: six tensors from argument `first` on, then n_rows and n_cols. */
static gnn_status graph(struct torch_op *op, uint64_t first, gnn_csr *a) {
    struct torch_view rowptr, col, eid;
    gnn_dtype rowptr_dtype, col_dtype, eid_dtype;
    GNN_TRY(torch_op_tensor(op, first, &rowptr));
    GNN_TRY(torch_op_tensor(op, first + 1, &col));
    GNN_TRY(torch_op_tensor(op, first + 2, &eid));
    GNN_TRY(torch_op_dtype(op, &rowptr, "rowptr", &rowptr_dtype));
    GNN_TRY(torch_op_dtype(op, &col, "col", &col_dtype));
    GNN_TRY(torch_op_dtype(op, &eid, "eid", &eid_dtype));
    a->n_rows = torch_op_int(op, first + 6);
    a->n_cols = torch_op_int(op, first + 7);
    a->n_edges = col.numel;
    GNN_REQUIRE(rowptr_dtype == GNN_I64 && col_dtype == GNN_I32 &&
                    (eid_dtype == GNN_I32 || eid_dtype == GNN_I64),
                GNN_ETYPE, "%s: rowptr must be int64, col int32, eid int32 or int64",
                op->name);
    GNN_REQUIRE(rowptr.dim == 1 && col.dim == 1 && eid.dim == 1 && a->n_rows >= 0 &&
                    a->n_cols >= 0 && rowptr.numel == a->n_rows + 1,
                GNN_EGRAPH, "%s: rowptr must have %lld entries, got %lld", op->name,
                LL(a->n_rows + 1), LL(rowptr.numel));
    GNN_REQUIRE(
        eid.numel == 0 || eid.numel == col.numel, GNN_EGRAPH,
        "%s: the CSR of this direction is not built: eid must have %lld entries, "
        "got %lld",
        op->name, LL(col.numel), LL(eid.numel));
    GNN_TRY(torch_op_pack(op, &rowptr));
    GNN_TRY(torch_op_pack(op, &col));
    GNN_TRY(torch_op_pack(op, &eid));
    a->rowptr = rowptr.data;
    a->col = col.data;
    a->eid = eid.numel ? eid.data : NULL;
    a->eid_dtype = eid_dtype;
    return GNN_OK;
}

/* Row stride in elements; a matrix of one row or none may have any. */
static int64_t row_stride(const struct torch_view *view) {
    return view->size[0] > 1 ? view->stride[0] : view->size[1];
}

/* spmm(x, weight, row_scale, col_scale, graph...) -> y [n_rows, F] */
static gnn_status spmm(struct torch_op *op) {
    gnn_spmm_args args = {0};
    struct torch_view x;
    GNN_TRY(graph(op, 4, &args.a));
    GNN_TRY(matrix(op, 0, "x", args.a.n_cols, true, &args.dtype, &x));
    gnn_dtype scale_dtype = args.dtype == GNN_F64 ? GNN_F64 : GNN_F32;
    GNN_TRY(vector(op, 1, "weight", args.a.n_edges, args.dtype, &args.weight));
    GNN_TRY(vector(op, 2, "row_scale", args.a.n_rows, scale_dtype, &args.row_scale));
    GNN_TRY(vector(op, 3, "col_scale", args.a.n_cols, scale_dtype, &args.col_scale));
    args.n_features = x.size[1];
    args.x = x.data;
    args.x_stride = row_stride(&x);

    GNN_TRY(torch_op_empty(op, 0, x.dtype, args.a.n_rows, args.n_features, &args.y));
    int64_t bytes = gnn_spmm_scratch(&args.a, args.n_features, args.dtype);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return gnn_spmm_cpu(&args);
}

/* sddmm(u, v, row_scale, col_scale, graph...) -> z [E] in the caller's edge order */
static gnn_status sddmm(struct torch_op *op) {
    gnn_sddmm_args args = {0};
    struct torch_view u, v;
    GNN_TRY(graph(op, 4, &args.a));
    GNN_TRY(matrix(op, 0, "a", args.a.n_rows, true, &args.dtype, &u));
    GNN_TRY(matrix(op, 1, "b", args.a.n_cols, false, &args.dtype, &v));
    GNN_REQUIRE(u.size[1] == v.size[1], GNN_EINVAL,
                "sddmm: b must have %lld columns as a has, got %lld", LL(u.size[1]),
                LL(v.size[1]));
    gnn_dtype scale_dtype = args.dtype == GNN_F64 ? GNN_F64 : GNN_F32;
    GNN_TRY(vector(op, 2, "row_scale", args.a.n_rows, scale_dtype, &args.row_scale));
    GNN_TRY(vector(op, 3, "col_scale", args.a.n_cols, scale_dtype, &args.col_scale));
    args.n_features = u.size[1];
    args.u = u.data;
    args.u_stride = row_stride(&u);
    args.v = v.data;
    args.v_stride = row_stride(&v);

    GNN_TRY(torch_op_empty(op, 0, u.dtype, args.a.n_edges, -1, &args.z));
    return gnn_sddmm_cpu(&args);
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
     "spmm", spmm_kernel},
    {"sddmm(Tensor a, Tensor b, Tensor row_scale, Tensor col_scale, " GRAPH
     ") -> Tensor",
     "sddmm", sddmm_kernel},
    {NULL, NULL, NULL},
};

/* torch_op_args.c: the arguments that the message-passing ops share, read and checked. */
#include "torch/torch_op.h"

#define LL(n) ((long long)(n))

static bool is_float(gnn_dtype dtype) {
    return dtype == GNN_F32 || dtype == GNN_F64 || dtype == GNN_BF16 ||
           dtype == GNN_F16;
}

gnn_status torch_op_matrix(struct torch_op *op, uint64_t i, const char *argument,
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

gnn_status torch_op_vector(struct torch_op *op, uint64_t i, const char *argument,
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

/* The half of a graph whose three tensors start at `first`. */
static gnn_status half_graph(struct torch_op *op, uint64_t first, int64_t n_rows,
                             int64_t n_cols, gnn_csr *a) {
    struct torch_view rowptr, col, eid;
    gnn_dtype rowptr_dtype, col_dtype, eid_dtype;
    GNN_TRY(torch_op_tensor(op, first, &rowptr));
    GNN_TRY(torch_op_tensor(op, first + 1, &col));
    GNN_TRY(torch_op_tensor(op, first + 2, &eid));
    GNN_TRY(torch_op_dtype(op, &rowptr, "rowptr", &rowptr_dtype));
    GNN_TRY(torch_op_dtype(op, &col, "col", &col_dtype));
    GNN_TRY(torch_op_dtype(op, &eid, "eid", &eid_dtype));
    a->n_rows = n_rows;
    a->n_cols = n_cols;
    a->n_edges = col.numel;
    GNN_REQUIRE(rowptr_dtype == GNN_I64 && col_dtype == GNN_I32 &&
                    (eid_dtype == GNN_I32 || eid_dtype == GNN_I64),
                GNN_ETYPE, "%s: rowptr must be int64, col int32, eid int32 or int64",
                op->name);
    // behind the row pointers: pairs of row and chunk, see _graph_cuda.split_rows
    const int64_t behind = rowptr.numel - (a->n_rows + 1);
    GNN_REQUIRE(rowptr.dim == 1 && col.dim == 1 && eid.dim == 1 && a->n_rows >= 0 &&
                    a->n_cols >= 0 && behind >= 0 && behind % 2 == 0,
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
    a->split = a->rowptr + a->n_rows + 1;
    a->n_split = behind / 2;
    a->col = col.data;
    a->eid = eid.numel ? eid.data : NULL;
    a->eid_dtype = eid_dtype;
    return GNN_OK;
}

gnn_status torch_op_graph(struct torch_op *op, uint64_t first, gnn_csr *a) {
    return half_graph(op, first, torch_op_int(op, first + 6),
                      torch_op_int(op, first + 7), a);
}

gnn_status torch_op_transpose(struct torch_op *op, uint64_t first, gnn_csr *a) {
    return half_graph(op, first + 3, torch_op_int(op, first + 7),
                      torch_op_int(op, first + 6), a);
}

int64_t torch_op_row_stride(const struct torch_view *view) {
    return view->size[0] > 1 ? view->stride[0] : view->size[1];
}

/* torch_ops_graph.c: dispatcher ops that build the six tensors of a graph.
 *
 * Every edge is checked by the C core while it is read; a bad one raises with its number,
 * value and limit. Outputs have sizes that depend on input sizes alone, so that a fake
 * kernel can tell them: `sorted` is a value, not a shape. These serve CPU tensors;
 * gnnoffload/_graph_cuda.py does the same to CUDA tensors with torch's own ops.
 */
#include "torch/torch_op.h"

static gnn_dtype eid_dtype(int64_t n_edges) {
    return n_edges <= INT32_MAX ? GNN_I32 : GNN_I64;
}

static gnn_status index_vector(struct torch_op *op, uint64_t i, const char *argument,
                               struct torch_view *view, gnn_dtype *dtype) {
    GNN_TRY(torch_op_tensor(op, i, view));
    GNN_REQUIRE(view->dim == 1, GNN_ETYPE, "%s: %s must have 1 dimension, got %lld",
                op->name, argument, (long long)view->dim);
    GNN_TRY(torch_op_dtype(op, view, argument, dtype));
    GNN_REQUIRE(*dtype == GNN_I32 || *dtype == GNN_I64, GNN_ETYPE,
                "%s: %s must be int32 or int64, got %s", op->name, argument,
                gnn_dtype_text(*dtype));
    return GNN_OK;
}

static gnn_status size_of(const struct torch_op *op, const char *argument, int64_t n) {
    GNN_REQUIRE(n >= 0, GNN_EINVAL, "%s: %s must not be negative, got %lld", op->name,
                argument, (long long)n);
    GNN_REQUIRE(n < INT64_MAX / 16, GNN_EINVAL, "%s: %s = %lld is too large", op->name,
                argument, (long long)n);
    return GNN_OK;
}

/* graph_build(source, destination, n_sources, n_destinations)
 *     -> rowptr [N + 1], col [E], eid [E], sorted [1] */
static gnn_status build(struct torch_op *op) {
    struct torch_view source, destination;
    gnn_dtype source_dtype, destination_dtype;
    GNN_TRY(index_vector(op, 0, "source", &source, &source_dtype));
    GNN_TRY(index_vector(op, 1, "destination", &destination, &destination_dtype));
    GNN_REQUIRE(source_dtype == destination_dtype, GNN_ETYPE,
                "%s: source and destination must have one dtype, got %s and %s",
                op->name, gnn_dtype_text(source_dtype),
                gnn_dtype_text(destination_dtype));
    GNN_REQUIRE(
        source.numel == destination.numel, GNN_EGRAPH,
        "%s: source and destination must have the same length, got %lld and %lld",
        op->name, (long long)source.numel, (long long)destination.numel);
    int64_t n_edges = source.numel;
    int64_t n_cols = torch_op_int(op, 2), n_rows = torch_op_int(op, 3);
    GNN_TRY(size_of(op, "the number of sources", n_cols));
    GNN_TRY(size_of(op, "the number of destinations", n_rows));

    gnn_dtype eid_type = eid_dtype(n_edges);
    void *rowptr, *col, *eid, *is_sorted, *scratch;
    int32_t bool_code = torch_abi.aoti_torch_dtype_bool();
    GNN_TRY(torch_op_empty(op, 0, torch_dtype_code(GNN_I64), n_rows + 1, -1, &rowptr));
    GNN_TRY(torch_op_empty(op, 1, torch_dtype_code(GNN_I32), n_edges, -1, &col));
    GNN_TRY(torch_op_empty(op, 2, torch_dtype_code(eid_type), n_edges, -1, &eid));
    GNN_TRY(torch_op_empty(op, 3, bool_code, 1, -1, &is_sorted));
    int64_t bytes = gnn_csr_from_coo_scratch(n_edges, n_rows, n_cols);
    GNN_TRY(torch_op_scratch(op, bytes, &scratch));
    return gnn_csr_from_coo(destination.data, n_edges ? destination.stride[0] : 1,
                            source.data, n_edges ? source.stride[0] : 1, source_dtype,
                            n_edges, n_rows, n_cols, scratch, rowptr, col, eid,
                            eid_type, is_sorted);
}

/* graph_check(rowptr, col, n_rows, n_cols) -> nothing; raises when malformed */
static gnn_status check(struct torch_op *op) {
    struct torch_view rowptr, col;
    gnn_dtype rowptr_dtype, col_dtype;
    GNN_TRY(index_vector(op, 0, "rowptr", &rowptr, &rowptr_dtype));
    GNN_TRY(index_vector(op, 1, "col", &col, &col_dtype));
    GNN_TRY(torch_op_pack(op, &rowptr));
    GNN_TRY(torch_op_pack(op, &col));
    return gnn_csr_check(rowptr.data, rowptr_dtype, rowptr.numel, col.data, col_dtype,
                         col.numel, torch_op_int(op, 2), torch_op_int(op, 3));
}

/* graph_transpose(rowptr, col, eid, n_cols) -> colptr [M + 1], row [E], ceid [E]
 * of arrays that a Graph made: their contents are not checked again. */
static gnn_status transpose(struct torch_op *op) {
    struct torch_view rowptr, col, eid;
    gnn_dtype rowptr_dtype, col_dtype, eid_type;
    GNN_TRY(index_vector(op, 0, "rowptr", &rowptr, &rowptr_dtype));
    GNN_TRY(index_vector(op, 1, "col", &col, &col_dtype));
    GNN_TRY(index_vector(op, 2, "eid", &eid, &eid_type));
    GNN_REQUIRE(rowptr_dtype == GNN_I64 && col_dtype == GNN_I32, GNN_ETYPE,
                "%s: rowptr must be int64 and col int32", op->name);
    GNN_REQUIRE(rowptr.numel >= 1 && (eid.numel == 0 || eid.numel == col.numel),
                GNN_EGRAPH, "%s: rowptr, col and eid do not fit together", op->name);
    GNN_TRY(torch_op_pack(op, &rowptr));
    GNN_TRY(torch_op_pack(op, &col));
    GNN_TRY(torch_op_pack(op, &eid));
    int64_t n_cols = torch_op_int(op, 3);
    GNN_TRY(size_of(op, "the number of columns", n_cols));

    gnn_csr a = {
        .n_rows = rowptr.numel - 1,
        .n_cols = n_cols,
        .n_edges = col.numel,
        .rowptr = rowptr.data,
        .col = col.data,
        .eid = eid.numel ? eid.data : NULL,
        .eid_dtype = eid_type,
    };
    gnn_dtype ceid_type = eid_dtype(a.n_edges);
    void *colptr, *row, *ceid;
    GNN_TRY(torch_op_empty(op, 0, torch_dtype_code(GNN_I64), n_cols + 1, -1, &colptr));
    GNN_TRY(torch_op_empty(op, 1, torch_dtype_code(GNN_I32), a.n_edges, -1, &row));
    GNN_TRY(torch_op_empty(op, 2, torch_dtype_code(ceid_type), a.n_edges, -1, &ceid));
    return gnn_csr_transpose(&a, colptr, row, ceid, ceid_type);
}

static void build_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("graph_build", build, 2, stack, n_args, n_outputs);
}

static void check_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("graph_check", check, 2, stack, n_args, n_outputs);
}

static void transpose_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("graph_transpose", transpose, 3, stack, n_args, n_outputs);
}

const struct torch_op_definition torch_ops_graph[] = {
    {"graph_build(Tensor source, Tensor destination, SymInt n_sources, "
     "SymInt n_destinations) -> (Tensor, Tensor, Tensor, Tensor)",
     "graph_build", build_kernel, false},
    {"graph_check(Tensor rowptr, Tensor col, SymInt n_rows, SymInt n_cols) -> ()",
     "graph_check", check_kernel, false},
    {"graph_transpose(Tensor rowptr, Tensor col, Tensor eid, SymInt n_cols) "
     "-> (Tensor, Tensor, Tensor)",
     "graph_transpose", transpose_kernel, false},
    {NULL, NULL, NULL, false},
};

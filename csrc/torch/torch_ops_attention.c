/* torch_ops_attention.c: attention and its two passes of backward as dispatcher ops.
 *
 * The three read one list of operands into one gnn_attention_args (gnn.h has its
 * formulas); an operand that its kind does not have is an absent one: an empty vector.
 * Sources and destinations are those of forward's graph in all three; the src pass is
 * handed the transposed one and runs by source. An output that is not wanted is empty.
 */
#include "torch/torch_op.h"

#define LL(n) ((long long)(n))

/* Where the operands stand among an op's arguments; then graph and numbers. */
enum { V, K, Q, SCORE_SRC, SCORE_DST, SCORE_EDGE, ATT, EDGE, EDGE_ATTR, EDGE_WEIGHT };
enum { Q_EDGE = EDGE_WEIGHT + 1, SEED, GRAPH_AT };
enum { KIND = GRAPH_AT + 8, N_HEADS, SLOPE, SCALE, DROPOUT, AFTER };

/* What the two passes of backward read besides the operands: arguments before them. */
enum { DST_LEADS = 5, SRC_LEADS = 3 };

static gnn_dtype accumulator(gnn_dtype dtype) {
    return dtype == GNN_F64 ? GNN_F64 : GNN_F32;
}

/* Argument i: [n_rows, n_columns] of dtype, or absent. Without `stride` it must be
 * contiguous. A matrix without elements has data too, so that NULL means absent. */
static gnn_status operand(struct torch_op *op, uint64_t i, const char *argument,
                          int64_t n_rows, int64_t n_columns, gnn_dtype dtype,
                          const void **data, int64_t *stride) {
    static const double nothing;
    struct torch_view view;
    GNN_TRY(torch_op_tensor(op, i, &view));
    if (view.dim == 1 && view.numel == 0) {
        return GNN_OK;
    }
    GNN_TRY(torch_op_matrix(op, i, argument, n_rows, false, &dtype, &view));
    GNN_REQUIRE(view.size[1] == n_columns, GNN_EINVAL,
                "%s: %s must have %lld columns, got %lld", op->name, argument,
                LL(n_columns), LL(view.size[1]));
    const int64_t row_stride = torch_op_row_stride(&view);
    GNN_REQUIRE(stride || view.numel == 0 || row_stride == n_columns, GNN_EINVAL,
                "%s: %s must be contiguous", op->name, argument);
    if (stride) {
        *stride = row_stride;
    }
    *data = view.numel ? view.data : &nothing;
    return GNN_OK;
}

static gnn_status required(const struct torch_op *op, const char *argument,
                           const void *data) {
    GNN_REQUIRE(data, GNN_EINVAL, "%s: %s must be given", op->name, argument);
    return GNN_OK;
}

/* The seed [1] int64, in host memory on every device; read when there is dropout. */
static gnn_status read_seed(struct torch_op *op, uint64_t i, uint64_t *seed) {
    AtenTensorHandle handle = (AtenTensorHandle)(uintptr_t)op->arg[i];
    int32_t device = -1, dtype = -1;
    int64_t dim = 0, *size = NULL;
    const void *data = NULL;
    GNN_REQUIRE(!torch_abi.aoti_torch_get_device_type(handle, &device) &&
                    !torch_abi.aoti_torch_get_dtype(handle, &dtype) &&
                    !torch_abi.aoti_torch_get_dim(handle, &dim) &&
                    !torch_abi.aoti_torch_get_sizes(handle, &size) &&
                    !torch_abi.torch_get_const_data_ptr(handle, &data) &&
                    device == torch_abi.aoti_torch_device_type_cpu() &&
                    dtype == torch_dtype_code(GNN_I64) && dim == 1 && size[0] == 1,
                GNN_ETYPE, "%s: seed must be an int64 tensor [1] on the CPU", op->name);
    *seed = (uint64_t)*(const int64_t *)data;
    return GNN_OK;
}

/* What a kind needs and what it must not have. */
static gnn_status check_kind(const struct torch_op *op,
                             const gnn_attention_args *args) {
    const bool is_gat = args->kind == GNN_GAT;
    const bool is_gatv2 = args->kind == GNN_GATV2, is_dot = args->kind == GNN_DOT;
    GNN_REQUIRE(is_gat || is_gatv2 || is_dot, GNN_EINVAL,
                "%s: kind must be 0, 1 or 2, got %d", op->name, (int)args->kind);
    if (is_gat) {
        GNN_TRY(required(op, "score_src", args->score_src));
        return required(op, "score_dst", args->score_dst);
    }
    GNN_TRY(required(op, "q", args->q));
    GNN_REQUIRE(!args->edge || !args->edge_attr, GNN_EINVAL,
                "%s: edge and edge_attr must not both be given", op->name);
    if (is_dot) {
        GNN_REQUIRE(!args->edge_attr == !args->q_edge, GNN_EINVAL,
                    "%s: edge_attr and q_edge must be given together", op->name);
        return required(op, "k", args->k);
    }
    GNN_REQUIRE(!args->edge_attr == !args->edge_weight, GNN_EINVAL,
                "%s: edge_attr and edge_weight must be given together", op->name);
    GNN_REQUIRE(!args->edge_attr || args->n_edge_features <= GNN_MAX_EDGE_FEATURES,
                GNN_EINVAL, "%s: edge_attr must have at most %d columns, got %lld",
                op->name, GNN_MAX_EDGE_FEATURES, LL(args->n_edge_features));
    return required(op, "att", args->att);
}

/* Operands, graph and numbers from argument `first` on. The graph is forward's, or its
 * transpose where `by_source`. */
static gnn_status read_operands(struct torch_op *op, uint64_t first, bool by_source,
                                gnn_attention_args *args) {
    struct torch_view v, edge_attr;
    GNN_TRY(torch_op_graph(op, first + GRAPH_AT, &args->a));
    const int64_t n_src = by_source ? args->a.n_rows : args->a.n_cols;
    const int64_t n_dst = by_source ? args->a.n_cols : args->a.n_rows;
    const int64_t n_edges = args->a.n_edges;
    args->kind = (gnn_attention_kind)torch_op_int(op, first + KIND);
    args->n_heads = torch_op_int(op, first + N_HEADS);
    args->slope = torch_op_float(op, first + SLOPE);
    args->scale = torch_op_float(op, first + SCALE);
    args->dropout = torch_op_float(op, first + DROPOUT);
    GNN_REQUIRE(args->n_heads >= 1, GNN_EINVAL, "%s: n_heads must be at least 1",
                op->name);
    GNN_REQUIRE(args->dropout >= 0 && args->dropout < 1, GNN_EINVAL,
                "%s: dropout must be in [0, 1), got %g", op->name, args->dropout);
    if (args->dropout > 0) {
        GNN_TRY(read_seed(op, first + SEED, &args->seed));
    }
    GNN_TRY(torch_op_matrix(op, first + V, "v", n_src, true, &args->dtype, &v));
    const int64_t width = v.size[1], heads = args->n_heads;
    const gnn_dtype dtype = args->dtype, wide = accumulator(dtype);
    GNN_REQUIRE(width % heads == 0, GNN_EINVAL,
                "%s: v must have a multiple of %lld columns, got %lld", op->name,
                LL(heads), LL(width));
    args->n_channels = width / heads;
    args->v = v.numel ? v.data : NULL;
    args->v_stride = torch_op_row_stride(&v);
    GNN_TRY(torch_op_tensor(op, first + EDGE_ATTR, &edge_attr));
    const int64_t n_attr = edge_attr.dim == 2 ? edge_attr.size[1] : 0;
    args->n_edge_features = n_attr;

    GNN_TRY(
        operand(op, first + K, "k", n_src, width, dtype, &args->k, &args->k_stride));
    GNN_TRY(
        operand(op, first + Q, "q", n_dst, width, dtype, &args->q, &args->q_stride));
    GNN_TRY(operand(op, first + SCORE_SRC, "score_src", n_src, heads, wide,
                    &args->score_src, NULL));
    GNN_TRY(operand(op, first + SCORE_DST, "score_dst", n_dst, heads, wide,
                    &args->score_dst, NULL));
    GNN_TRY(operand(op, first + SCORE_EDGE, "score_edge", n_edges, heads, wide,
                    &args->score_edge, NULL));
    GNN_TRY(operand(op, first + ATT, "att", 1, width, dtype, &args->att, NULL));
    GNN_TRY(operand(op, first + EDGE, "edge", n_edges, width, dtype, &args->edge,
                    &args->edge_stride));
    GNN_TRY(operand(op, first + EDGE_ATTR, "edge_attr", n_edges, n_attr, dtype,
                    &args->edge_attr, &args->edge_attr_stride));
    GNN_TRY(operand(op, first + EDGE_WEIGHT, "edge_weight", n_attr, width, dtype,
                    &args->edge_weight, NULL));
    GNN_TRY(operand(op, first + Q_EDGE, "q_edge", n_dst, heads * n_attr, dtype,
                    &args->q_edge, NULL));
    return check_kind(op, args);
}

/* Output i: [n_rows, n_columns] when wanted, else empty and *data stays NULL. */
static gnn_status output(struct torch_op *op, int i, bool wanted, gnn_dtype dtype,
                         int64_t n_rows, int64_t n_columns, void **data) {
    void *made = NULL;
    const int32_t code = torch_dtype_code(dtype);
    if (!wanted) {
        return torch_op_empty(op, i, code, 0, -1, &made);
    }
    return torch_op_empty(op, i, code, n_rows, n_columns, data);
}

/* attention(operands..., seed, graph..., numbers..., wants_acc)
 *     -> out, out_edge, lse, out_acc */
static gnn_status attention(struct torch_op *op) {
    gnn_attention_args args = {0};
    GNN_TRY(read_operands(op, 0, false, &args));
    const int64_t n = args.a.n_rows, heads = args.n_heads;
    const int64_t width = heads * args.n_channels;
    const gnn_dtype wide = accumulator(args.dtype);
    GNN_TRY(output(op, 0, true, args.dtype, n, width, &args.out));
    GNN_TRY(output(op, 1, args.kind == GNN_DOT && args.edge_attr, wide, n,
                   heads * args.n_edge_features, &args.out_edge));
    GNN_TRY(output(op, 2, true, wide, n, heads, &args.lse));
    GNN_TRY(output(op, 3, torch_op_int(op, AFTER) != 0, wide, n, width, &args.out_acc));
    const int64_t bytes =
        op->is_cuda ? gnn_attention_cuda_scratch(&args) : gnn_attention_scratch(&args);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_attention_cuda(&args, op->stream)
                       : gnn_attention_cpu(&args);
}

/* grad [n_dst, H * C], argument i */
static gnn_status read_grad(struct torch_op *op, uint64_t i, int64_t n_dst,
                            gnn_attention_args *args) {
    GNN_TRY(operand(op, i, "grad", n_dst, args->n_heads * args->n_channels, args->dtype,
                    &args->grad, &args->grad_stride));
    return required(op, "grad", args->grad);
}

/* What forward wrote and backward only reads. */
static gnn_status written(struct torch_op *op, uint64_t i, const char *argument,
                          int64_t n_rows, int64_t n_columns,
                          const gnn_attention_args *args, void **data) {
    const void *read = NULL;
    GNN_TRY(operand(op, i, argument, n_rows, n_columns, accumulator(args->dtype), &read,
                    NULL));
    *data = (void *)(uintptr_t)read;
    return GNN_OK;
}

/* attention_dst_vjp(grad, grad_edge, out_acc, out_edge, lse, operands..., seed, graph...,
 *     numbers..., wants) -> alpha, dscore, d_q, d_score_dst, d_att, d_edge, d_edge_attr,
 *     d_edge_weight, d_q_edge
 * Bit i of wants asks for the i-th output after dscore. */
static gnn_status attention_dst_vjp(struct torch_op *op) {
    gnn_attention_args args = {0};
    GNN_TRY(read_operands(op, DST_LEADS, false, &args));
    const int64_t n = args.a.n_rows, n_edges = args.a.n_edges, heads = args.n_heads;
    const int64_t width = heads * args.n_channels, n_attr = args.n_edge_features;
    const gnn_dtype dtype = args.dtype, wide = accumulator(dtype);
    const int64_t wants = torch_op_int(op, DST_LEADS + AFTER);
    GNN_TRY(read_grad(op, 0, n, &args));
    GNN_TRY(
        operand(op, 1, "grad_edge", n, heads * n_attr, wide, &args.grad_edge, NULL));
    GNN_TRY(written(op, 2, "out_acc", n, width, &args, &args.out_acc));
    GNN_TRY(written(op, 3, "out_edge", n, heads * n_attr, &args, &args.out_edge));
    GNN_TRY(written(op, 4, "lse", n, heads, &args, &args.lse));
    GNN_TRY(required(op, "out_acc", args.out_acc));
    GNN_TRY(required(op, "lse", args.lse));
    GNN_REQUIRE(!args.grad_edge || args.out_edge, GNN_EINVAL,
                "%s: grad_edge needs out_edge", op->name);

    GNN_TRY(output(op, 0, true, wide, n_edges, heads, &args.alpha));
    GNN_TRY(output(op, 1, true, wide, n_edges, heads, &args.dscore));
    GNN_TRY(output(op, 2, args.q && (wants & 1), dtype, n, width, &args.d_q));
    GNN_TRY(output(op, 3, args.score_dst && (wants & 2), wide, n, heads,
                   &args.d_score_dst));
    GNN_TRY(output(op, 4, args.att && (wants & 4), dtype, 1, width, &args.d_att));
    GNN_TRY(
        output(op, 5, args.edge && (wants & 8), dtype, n_edges, width, &args.d_edge));
    GNN_TRY(output(op, 6, args.edge_attr && (wants & 16), dtype, n_edges, n_attr,
                   &args.d_edge_attr));
    GNN_TRY(output(op, 7, args.edge_weight && (wants & 32), dtype, n_attr, width,
                   &args.d_edge_weight));
    GNN_TRY(output(op, 8, args.q_edge && (wants & 64), dtype, n, heads * n_attr,
                   &args.d_q_edge));
    const int64_t bytes = op->is_cuda ? gnn_attention_dst_vjp_cuda_scratch(&args)
                                      : gnn_attention_dst_vjp_scratch(&args);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_attention_dst_vjp_cuda(&args, op->stream)
                       : gnn_attention_dst_vjp_cpu(&args);
}

/* attention_src_vjp(grad, alpha, dscore, operands..., seed, transposed graph...,
 *     numbers..., wants) -> d_v, d_k, d_score_src */
static gnn_status attention_src_vjp(struct torch_op *op) {
    gnn_attention_args args = {0};
    GNN_TRY(read_operands(op, SRC_LEADS, true, &args));
    const int64_t n = args.a.n_rows, n_edges = args.a.n_edges, heads = args.n_heads;
    const int64_t width = heads * args.n_channels;
    const int64_t wants = torch_op_int(op, SRC_LEADS + AFTER);
    GNN_TRY(read_grad(op, 0, args.a.n_cols, &args));
    GNN_TRY(written(op, 1, "alpha", n_edges, heads, &args, &args.alpha));
    GNN_TRY(written(op, 2, "dscore", n_edges, heads, &args, &args.dscore));
    GNN_TRY(required(op, "alpha", args.alpha));
    GNN_TRY(required(op, "dscore", args.dscore));

    GNN_TRY(output(op, 0, wants & 1, args.dtype, n, width, &args.d_v));
    GNN_TRY(output(op, 1, args.k && (wants & 2), args.dtype, n, width, &args.d_k));
    GNN_TRY(output(op, 2, args.score_src && (wants & 4), accumulator(args.dtype), n,
                   heads, &args.d_score_src));
    const int64_t bytes = op->is_cuda ? gnn_attention_src_vjp_cuda_scratch(&args)
                                      : gnn_attention_src_vjp_scratch(&args);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_attention_src_vjp_cuda(&args, op->stream)
                       : gnn_attention_src_vjp_cpu(&args);
}

enum { N_TENSORS = GRAPH_AT + 6 };

static void attention_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("attention", attention, N_TENSORS, stack, n_args, n_outputs);
}

static void dst_vjp_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("attention_dst_vjp", attention_dst_vjp, DST_LEADS + N_TENSORS, stack,
                  n_args, n_outputs);
}

static void src_vjp_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("attention_src_vjp", attention_src_vjp, SRC_LEADS + N_TENSORS, stack,
                  n_args, n_outputs);
}

#define OPERANDS                                                                       \
    "Tensor v, Tensor k, Tensor q, Tensor score_src, Tensor score_dst, "               \
    "Tensor score_edge, Tensor att, Tensor edge, Tensor edge_attr, "                   \
    "Tensor edge_weight, Tensor q_edge, Tensor seed, Tensor rowptr, Tensor col, "      \
    "Tensor eid, Tensor colptr, Tensor row, Tensor ceid, SymInt n_rows, "              \
    "SymInt n_cols, int kind, int n_heads, float slope, float scale, float dropout"

const struct torch_op_definition torch_ops_attention[] = {
    {"attention(" OPERANDS ", bool wants_acc) -> (Tensor, Tensor, Tensor, Tensor)",
     "attention", attention_kernel, true},
    {"attention_dst_vjp(Tensor grad, Tensor grad_edge, Tensor out_acc, "
     "Tensor out_edge, Tensor lse, " OPERANDS ", int wants) -> (Tensor, Tensor, "
     "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
     "attention_dst_vjp", dst_vjp_kernel, true},
    {"attention_src_vjp(Tensor grad, Tensor alpha, Tensor dscore, " OPERANDS
     ", int wants) -> (Tensor, Tensor, Tensor)",
     "attention_src_vjp", src_vjp_kernel, true},
    {NULL, NULL, NULL, false},
};

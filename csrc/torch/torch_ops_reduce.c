/* torch_ops_reduce.c: aggregation, softmax aggregation and their gradients as dispatcher
 * ops.
 *
 * `which` is the sum of 1 << gnn_reduce. A statistic, an argument or a gradient that is
 * absent or not wanted is an empty tensor. aggregate_vjp reads both halves of the graph,
 * in forward's order.
 */
#include "torch/torch_op.h"

/* A matrix [n_rows, n_features] of dtype that may be absent: numel 0. */
static gnn_status optional(struct torch_op *op, uint64_t i, const char *argument,
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

/* A contiguous [n_rows, n_features] that forward wrote, of any dtype. */
static gnn_status saved(struct torch_op *op, uint64_t i, const char *argument,
                        int64_t n_rows, int64_t n_features, gnn_dtype *dtype,
                        void **data) {
    struct torch_view view;
    GNN_TRY(torch_op_tensor(op, i, &view));
    if (view.numel == 0) {
        return GNN_OK;
    }
    GNN_TRY(torch_op_dtype(op, &view, argument, dtype));
    GNN_REQUIRE(view.dim == 2 && view.size[0] == n_rows && view.size[1] == n_features &&
                    (view.size[0] == 1 || view.stride[0] == n_features) &&
                    (view.size[1] == 1 || view.stride[1] == 1),
                GNN_EINVAL, "%s: %s must be as forward made it", op->name, argument);
    *data = (void *)(uintptr_t)view.data;
    return GNN_OK;
}

static gnn_dtype accumulator(gnn_dtype dtype) {
    return dtype == GNN_F64 ? GNN_F64 : GNN_F32;
}

/* x and edge from argument 0 on, the graph behind them */
static gnn_status message(struct torch_op *op, uint64_t graph, gnn_csr *a,
                          gnn_dtype *dtype, struct torch_view *x, int64_t *x_stride,
                          const void **edge, int64_t *edge_stride) {
    GNN_TRY(torch_op_graph(op, graph, a));
    GNN_TRY(torch_op_matrix(op, 0, "x", a->n_cols, true, dtype, x));
    *x_stride = torch_op_row_stride(x);
    return optional(op, 1, "edge", a->n_edges, x->size[1], *dtype, edge, edge_stride);
}

/* aggregate(x, edge, graph..., which, arg_bits, wants_mean)
 *   -> sum, mean, min, max, var, std, arg_min, arg_max, mean in the accumulator's dtype */
static gnn_status aggregate(struct torch_op *op) {
    gnn_aggregate_args args = {0};
    struct torch_view x;
    GNN_TRY(message(op, 2, &args.a, &args.dtype, &x, &args.x_stride, &args.edge,
                    &args.edge_stride));
    const int64_t n_rows = args.a.n_rows, bits = torch_op_int(op, 11);
    args.which = (unsigned)torch_op_int(op, 10);
    args.n_features = x.size[1];
    args.x = x.data;
    args.arg_dtype = bits == 8 ? GNN_I8 : bits == 16 ? GNN_I16 : GNN_I32;
    GNN_REQUIRE(bits == 0 || bits == 8 || bits == 16 || bits == 32, GNN_EINVAL,
                "%s: arg_bits must be 0, 8, 16 or 32, got %lld", op->name,
                (long long)bits);
    for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
        const bool wanted = args.which & 1U << r;
        GNN_TRY(torch_op_empty(op, r, x.dtype, wanted ? n_rows : 0, args.n_features,
                               &args.y[r]));
    }
    const bool wants_mean = torch_op_int(op, 12) != 0;
    const struct {
        bool wanted;
        gnn_dtype dtype;
        void **data;
    } more[] = {
        {bits > 0 && args.which & 1U << GNN_MIN, args.arg_dtype, &args.arg_min},
        {bits > 0 && args.which & 1U << GNN_MAX, args.arg_dtype, &args.arg_max},
        {wants_mean, accumulator(args.dtype), &args.mean},
    };
    for (int k = 0; k < 3; k++) {
        GNN_TRY(
            torch_op_empty(op, GNN_REDUCE_COUNT + k, torch_dtype_code(more[k].dtype),
                           more[k].wanted ? n_rows : 0, args.n_features, more[k].data));
        *more[k].data = more[k].wanted ? *more[k].data : NULL;
    }
    const int64_t bytes =
        op->is_cuda ? gnn_aggregate_cuda_scratch(&args) : gnn_aggregate_scratch(&args);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_aggregate_cuda(&args, op->stream)
                       : gnn_aggregate_cpu(&args);
}

/* aggregate_vjp(x, edge, grads of sum .. std, min, max, std, arg_min, arg_max, mean,
 *               graph..., which, wants_x, wants_edge) -> grad_x, grad_edge */
static gnn_status aggregate_vjp(struct torch_op *op) {
    static const char *const names[] = {"grad_sum", "grad_mean", "grad_min",
                                        "grad_max", "grad_var",  "grad_std"};
    enum { GRADS = 2, VALUES = 8, MORE = 11, GRAPH_AT = 14 };
    static const gnn_reduce values[] = {GNN_MIN, GNN_MAX, GNN_STD};
    gnn_aggregate_args args = {0};
    struct torch_view x;
    GNN_TRY(message(op, GRAPH_AT, &args.a, &args.dtype, &x, &args.x_stride, &args.edge,
                    &args.edge_stride));
    GNN_TRY(torch_op_transpose(op, GRAPH_AT, &args.back));
    const int64_t n_rows = args.a.n_rows, n_features = x.size[1];
    args.which = (unsigned)torch_op_int(op, GRAPH_AT + 8);
    args.n_features = n_features;
    args.x = x.data;
    for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
        GNN_TRY(optional(op, (uint64_t)(GRADS + r), names[r], n_rows, n_features,
                         args.dtype, &args.grad[r], &args.grad_stride[r]));
    }
    gnn_dtype dtype;
    for (int k = 0; k < 3; k++) {
        dtype = args.dtype;
        GNN_TRY(saved(op, (uint64_t)(VALUES + k), "a saved value", n_rows, n_features,
                      &dtype, &args.y[values[k]]));
        GNN_REQUIRE(dtype == args.dtype, GNN_ETYPE, "%s: a saved value must be %s",
                    op->name, gnn_dtype_text(args.dtype));
    }
    gnn_dtype min_dtype = GNN_I8, max_dtype = GNN_I8;
    dtype = accumulator(args.dtype);
    GNN_TRY(saved(op, MORE, "arg_min", n_rows, n_features, &min_dtype, &args.arg_min));
    GNN_TRY(
        saved(op, MORE + 1, "arg_max", n_rows, n_features, &max_dtype, &args.arg_max));
    GNN_TRY(saved(op, MORE + 2, "mean", n_rows, n_features, &dtype, &args.mean));
    args.arg_dtype = args.arg_min != NULL ? min_dtype : max_dtype;
    GNN_REQUIRE(
        (args.arg_min == NULL || args.arg_max == NULL || min_dtype == max_dtype) &&
            dtype == accumulator(args.dtype),
        GNN_ETYPE, "%s: arg_min, arg_max and mean must be as forward made them",
        op->name);
    const bool full =
        args.a.n_edges > 0 && n_features > 0; // there is something to read
    const unsigned around_mean = 1U << GNN_VAR | 1U << GNN_STD;
    GNN_REQUIRE(
        !full ||
            ((!(args.which & 1U << GNN_MIN) || (args.arg_min && args.y[GNN_MIN])) &&
             (!(args.which & 1U << GNN_MAX) || (args.arg_max && args.y[GNN_MAX])) &&
             (!(args.which & 1U << GNN_STD) || args.y[GNN_STD]) &&
             (!(args.which & around_mean) || args.mean)),
        GNN_EINVAL, "%s: what forward saved of %u is absent", op->name, args.which);

    const bool wants_x = torch_op_int(op, GRAPH_AT + 9) != 0;
    const bool wants_edge = torch_op_int(op, GRAPH_AT + 10) != 0;
    const int64_t rows = wants_x ? args.a.n_cols : 0;
    const int64_t edges = wants_edge ? args.a.n_edges : 0;
    GNN_TRY(torch_op_empty(op, 0, x.dtype, rows, n_features, &args.d_x));
    GNN_TRY(torch_op_empty(op, 1, x.dtype, edges, n_features, &args.d_edge));
    args.d_x = wants_x ? args.d_x : NULL;
    args.d_edge = wants_edge ? args.d_edge : NULL;
    const int64_t bytes = op->is_cuda ? gnn_aggregate_vjp_cuda_scratch(&args)
                                      : gnn_aggregate_vjp_scratch(&args);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_aggregate_vjp_cuda(&args, op->stream)
                       : gnn_aggregate_vjp_cpu(&args);
}

/* t, relu, eps of softmax_aggregate, whose graph is at `graph`; t is argument 2 */
static gnn_status softmax_of(struct torch_op *op, uint64_t graph,
                             gnn_softmax_aggregate_args *args) {
    GNN_TRY(torch_op_vector(op, 2, "t", args->n_features, accumulator(args->dtype),
                            &args->t));
    GNN_REQUIRE(args->t != NULL || args->n_features == 0, GNN_EINVAL,
                "%s: t must be given", op->name);
    args->relu = torch_op_int(op, graph + 8) != 0;
    args->eps = torch_op_float(op, graph + 9);
    return GNN_OK;
}

/* softmax_aggregate(x, edge, t, graph..., relu, eps, semi_grad, saves)
 *   -> y, out_acc, lse: what backward reads is empty unless it `saves`, out_acc also where
 * y is as exact; semi_grad is backward's */
static gnn_status softmax_aggregate(struct torch_op *op) {
    gnn_softmax_aggregate_args args = {0};
    struct torch_view x;
    GNN_TRY(message(op, 3, &args.a, &args.dtype, &x, &args.x_stride, &args.edge,
                    &args.edge_stride));
    const int64_t n_rows = args.a.n_rows;
    args.n_features = x.size[1];
    args.x = x.data;
    GNN_TRY(softmax_of(op, 3, &args));
    const bool saves = torch_op_int(op, 14) != 0;
    const gnn_dtype acc = accumulator(args.dtype);
    const bool wider = saves && acc != args.dtype;
    const int32_t code = torch_dtype_code(acc);
    GNN_TRY(torch_op_empty(op, 0, x.dtype, n_rows, args.n_features, &args.y));
    GNN_TRY(torch_op_empty(op, 1, code, wider ? n_rows : 0, args.n_features,
                           &args.out_acc));
    GNN_TRY(
        torch_op_empty(op, 2, code, saves ? n_rows : 0, args.n_features, &args.lse));
    args.out_acc = wider ? args.out_acc : NULL;
    args.lse = saves ? args.lse : NULL;
    const int64_t bytes = op->is_cuda ? gnn_softmax_aggregate_cuda_scratch(&args)
                                      : gnn_softmax_aggregate_scratch(&args);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_softmax_aggregate_cuda(&args, op->stream)
                       : gnn_softmax_aggregate_cpu(&args);
}

/* softmax_aggregate_vjp(x, edge, t, grad, out, lse, transposed graph..., relu, eps,
 *                       semi_grad, wants_x, wants_edge, wants_t) -> d_x, d_edge, d_t */
static gnn_status softmax_aggregate_vjp(struct torch_op *op) {
    gnn_softmax_aggregate_args args = {0};
    struct torch_view x, grad;
    GNN_TRY(torch_op_graph(op, 6, &args.a));
    const int64_t n_src = args.a.n_rows, n_dst = args.a.n_cols;
    GNN_TRY(torch_op_matrix(op, 0, "x", n_src, true, &args.dtype, &x));
    args.n_features = x.size[1];
    args.x = x.data;
    args.x_stride = torch_op_row_stride(&x);
    GNN_TRY(optional(op, 1, "edge", args.a.n_edges, args.n_features, args.dtype,
                     &args.edge, &args.edge_stride));
    GNN_TRY(torch_op_matrix(op, 3, "grad", n_dst, false, &args.dtype, &grad));
    GNN_REQUIRE(grad.size[1] == args.n_features, GNN_EINVAL,
                "%s: grad must have %lld columns as x has, got %lld", op->name,
                (long long)args.n_features, (long long)grad.size[1]);
    args.grad = grad.data;
    args.grad_stride = torch_op_row_stride(&grad);
    GNN_TRY(softmax_of(op, 6, &args));
    void **const kept[] = {&args.out_acc, &args.lse};
    for (int k = 0; k < 2; k++) {
        gnn_dtype dtype = accumulator(args.dtype);
        GNN_TRY(saved(op, (uint64_t)(4 + k), k == 0 ? "out" : "lse", n_dst,
                      args.n_features, &dtype, kept[k]));
        GNN_REQUIRE((*kept[k] != NULL || n_dst * args.n_features == 0) &&
                        dtype == accumulator(args.dtype),
                    GNN_EINVAL, "%s: out and lse must be as forward made them",
                    op->name);
    }
    args.semi_grad = torch_op_int(op, 16) != 0;
    const bool wants_x = torch_op_int(op, 17) != 0,
               wants_edge = torch_op_int(op, 18) != 0;
    const bool wants_t = torch_op_int(op, 19) != 0;
    GNN_TRY(torch_op_empty(op, 0, x.dtype, wants_x ? n_src : 0, args.n_features,
                           &args.d_x));
    GNN_TRY(torch_op_empty(op, 1, x.dtype, wants_edge ? args.a.n_edges : 0,
                           args.n_features, &args.d_edge));
    GNN_TRY(torch_op_empty(op, 2, torch_dtype_code(accumulator(args.dtype)),
                           wants_t ? args.n_features : 0, -1, &args.d_t));
    args.d_x = wants_x ? args.d_x : NULL;
    args.d_edge = wants_edge ? args.d_edge : NULL;
    args.d_t = wants_t ? args.d_t : NULL;
    const int64_t bytes = op->is_cuda ? gnn_softmax_aggregate_vjp_cuda_scratch(&args)
                                      : gnn_softmax_aggregate_vjp_scratch(&args);
    GNN_TRY(torch_op_scratch(op, bytes, &args.scratch));
    return op->is_cuda ? gnn_softmax_aggregate_vjp_cuda(&args, op->stream)
                       : gnn_softmax_aggregate_vjp_cpu(&args);
}

static void aggregate_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("aggregate", aggregate, 8, stack, n_args, n_outputs);
}

static void aggregate_vjp_kernel(StableIValue *stack, uint64_t n_args,
                                 uint64_t n_outputs) {
    torch_op_call("aggregate_vjp", aggregate_vjp, 20, stack, n_args, n_outputs);
}

static void softmax_kernel(StableIValue *stack, uint64_t n_args, uint64_t n_outputs) {
    torch_op_call("softmax_aggregate", softmax_aggregate, 9, stack, n_args, n_outputs);
}

static void softmax_vjp_kernel(StableIValue *stack, uint64_t n_args,
                               uint64_t n_outputs) {
    torch_op_call("softmax_aggregate_vjp", softmax_aggregate_vjp, 12, stack, n_args,
                  n_outputs);
}

#define GRAPH                                                                          \
    "Tensor rowptr, Tensor col, Tensor eid, Tensor colptr, Tensor row, Tensor ceid, "  \
    "SymInt n_rows, SymInt n_cols"

const struct torch_op_definition torch_ops_reduce[] = {
    {"aggregate(Tensor x, Tensor edge, " GRAPH
     ", int which, int arg_bits, bool wants_mean) -> (Tensor, Tensor, Tensor, Tensor, "
     "Tensor, Tensor, Tensor, Tensor, Tensor)",
     "aggregate", aggregate_kernel, true},
    {"aggregate_vjp(Tensor x, Tensor edge, Tensor grad_sum, Tensor grad_mean, "
     "Tensor grad_min, Tensor grad_max, Tensor grad_var, Tensor grad_std, Tensor min, "
     "Tensor max, Tensor std, Tensor arg_min, Tensor arg_max, Tensor mean, " GRAPH
     ", int which, bool wants_x, bool wants_edge) -> (Tensor, Tensor)",
     "aggregate_vjp", aggregate_vjp_kernel, true},
    {"softmax_aggregate(Tensor x, Tensor edge, Tensor t, " GRAPH
     ", bool relu, float eps, bool semi_grad, bool saves) -> (Tensor, Tensor, Tensor)",
     "softmax_aggregate", softmax_kernel, true},
    {"softmax_aggregate_vjp(Tensor x, Tensor edge, Tensor t, Tensor grad, Tensor out, "
     "Tensor lse, " GRAPH
     ", bool relu, float eps, bool semi_grad, bool wants_x, bool wants_edge, "
     "bool wants_t) -> (Tensor, Tensor, Tensor)",
     "softmax_aggregate_vjp", softmax_vjp_kernel, true},
    {NULL, NULL, NULL, false},
};

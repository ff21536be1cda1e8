/* reduce_softmax_cpu.c: softmax aggregation and its gradients.
 *
 * The chunks of a heavy row leave (shift, sum of exponentials, weighted sum), joined in
 * chunk order. Backward walks the transpose once and makes the weights again from the
 * saved logarithm; each work item has sums of its own for the gradient of t, which are
 * added up in item order, so that no bit depends on the threads.
 */
#include "cpu/reduce_items.h"
#include "cpu/reduce_log.h"

#include <inttypes.h>

enum {
    FEW_VECTORS_avx512 = 4,
    FEW_VECTORS_avx2 = 2,
    FEW_VECTORS_neon = 2,
    FEW_VECTORS_base = 2,
    CACHE_LINE = 64,
    AHEAD = 8 // entries between a prefetch and its use
};

/* What the row kernels see; rows are destinations, in backward sources. Strides in
 * elements. */
typedef struct softmax_view {
    const int64_t *rowptr;
    const int32_t *col;
    const int32_t *eid32; // at most one of the two; neither: the identity
    const int64_t *eid64;
    int64_t n_edges, n_features, x_stride, edge_stride, grad_stride;
    bool relu, semi_grad;
    double eps;
    const void *x, *edge, *t, *grad;
    void *y, *out_acc, *lse; // forward: NULL: not wanted
    void *d_x, *d_edge;      // NULL: not wanted
    void *of_t;              // the item's part of the gradient of t
    void *sums;              // not NULL: a chunk's own numbers go here
} softmax_view;

static inline __attribute__((always_inline)) int64_t edge_at(const softmax_view *s,
                                                             int64_t e) {
    return s->eid32 != NULL ? s->eid32[e] : s->eid64 != NULL ? s->eid64[e] : e;
}

#define ROWS "cpu/reduce_softmax_rows.h"
#include "cpu/row_variants.h"

typedef void (*softmax_rows)(const softmax_view *s, int64_t row, int64_t stop);
typedef void (*softmax_join)(const softmax_view *s, int64_t row, const void *chunks,
                             int64_t n_chunks);
typedef struct softmax_kernel {
    softmax_rows rows, vjp_rows;
    softmax_join join, vjp_join;
} softmax_kernel;

#define KERNEL(isa, d)                                                                 \
    {softmax_rows_##isa##_##d, softmax_vjp_rows_##isa##_##d, softmax_join_##isa##_##d, \
     softmax_vjp_join_##isa##_##d}
#define KERNELS_OF(isa, text, has)                                                     \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32),                                                  \
        [GNN_F64] = KERNEL(isa, f64),                                                  \
        [GNN_BF16] = KERNEL(isa, bf16),                                                \
        [GNN_F16] = KERNEL(isa, f16),                                                  \
    },
static const softmax_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(KERNELS_OF)};

/* ------------------------------------------------------------------------------- items */

typedef struct softmax_job {
    softmax_view view;
    softmax_rows rows;
    softmax_join join;
    int64_t apart;       // bytes from chunk to chunk
    int64_t of_t_row;    // bytes of one item's part of the gradient of t
    int64_t own_row;     // bytes from row to row of x in backward; 0: x is not by row
    char *chunks, *of_t; // of_t NULL: not wanted
} softmax_job;

static softmax_view view_of(const softmax_job *job, int64_t item) {
    softmax_view view = job->view;
    view.of_t = job->of_t == NULL ? NULL : job->of_t + item * job->of_t_row;
    return view;
}

static void run_rows(void *context, int64_t item, int64_t row, int64_t stop) {
    const softmax_job *job = context;
    const softmax_view view = view_of(job, item);
    job->rows(&view, row, stop);
}

static void run_chunk(void *context, int64_t item, int64_t row, int64_t begin,
                      int64_t end, int64_t c) {
    const softmax_job *job = context;
    const int64_t chunk[] = {begin, end};
    softmax_view one_row = view_of(job, item);
    one_row.rowptr = chunk;
    one_row.x = (const char *)one_row.x + row * job->own_row;
    one_row.sums = job->chunks + c * job->apart;
    job->rows(&one_row, 0, 1);
}

static void join_row(void *context, int64_t row, int64_t c, int64_t n_chunks) {
    const softmax_job *job = context;
    job->join(&job->view, row, job->chunks + c * job->apart, n_chunks);
}

/* ------------------------------------------------------------------------------- entry */

static int64_t acc_size(gnn_dtype dtype) {
    return dtype == GNN_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
}

/* Bytes of one item's part of d_t, a multiple of a cache line */
static int64_t of_t_bytes(const gnn_softmax_aggregate_args *args) {
    return (args->n_features * acc_size(args->dtype) + 63) / 64 * 64;
}

int64_t gnn_softmax_aggregate_scratch(const gnn_softmax_aggregate_args *args) {
    int64_t n_chunks;
    const int64_t heavy = reduce_heavy_bytes(&args->a, &n_chunks);
    return heavy + 3 * n_chunks * args->n_features * acc_size(args->dtype);
}

int64_t gnn_softmax_aggregate_vjp_scratch(const gnn_softmax_aggregate_args *args) {
    int64_t n_chunks;
    const int64_t heavy = reduce_heavy_bytes(&args->a, &n_chunks);
    return heavy + gnn_item_count(&args->a) * of_t_bytes(args) +
           n_chunks * args->n_features * acc_size(args->dtype);
}

static gnn_status check(const gnn_softmax_aggregate_args *args) {
    GNN_REQUIRE((unsigned)args->dtype <= GNN_F16, GNN_ETYPE,
                "softmax_aggregate: dtype must be float32, float64, bfloat16 or "
                "float16, got %s",
                gnn_dtype_text(args->dtype));
    GNN_REQUIRE(
        args->n_features >= 0, GNN_EINVAL,
        "softmax_aggregate: number of features must be at least 0, got %" PRId64,
        args->n_features);
    GNN_REQUIRE(!args->semi_grad || args->d_t == NULL, GNN_EINVAL,
                "softmax_aggregate: t has no gradient under semi_grad");
    int64_t bytes;
    const int64_t rows[] = {args->a.n_rows, args->a.n_cols, args->a.n_edges};
    for (int k = 0; k < 3; k++) {
        GNN_REQUIRE(!__builtin_mul_overflow(rows[k], args->n_features, &bytes) &&
                        !__builtin_mul_overflow(bytes, (int64_t)64, &bytes),
                    GNN_EGRAPH,
                    "softmax_aggregate: bytes of [%" PRId64 ", %" PRId64
                    "] must be below 2^63",
                    rows[k], args->n_features);
    }
    return GNN_OK;
}

static softmax_view view_of_args(const gnn_softmax_aggregate_args *args) {
    const gnn_csr *a = &args->a;
    return (softmax_view){.rowptr = a->rowptr,
                          .col = a->col,
                          .eid32 = a->eid_dtype == GNN_I32 ? a->eid : NULL,
                          .eid64 = a->eid_dtype == GNN_I64 ? a->eid : NULL,
                          .n_edges = a->n_edges,
                          .n_features = args->n_features,
                          .x_stride = args->x_stride,
                          .edge_stride = args->edge_stride,
                          .grad_stride = args->grad_stride,
                          .relu = args->relu,
                          .semi_grad = args->semi_grad,
                          .eps = args->eps,
                          .x = args->x,
                          .edge = args->edge,
                          .t = args->t,
                          .grad = args->grad,
                          .y = args->y,
                          .out_acc = args->out_acc,
                          .lse = args->lse,
                          .d_x = args->d_x,
                          .d_edge = args->d_edge};
}

gnn_status gnn_softmax_aggregate_cpu(const gnn_softmax_aggregate_args *args) {
    gnn_isa isa;
    GNN_TRY(check(args));
    GNN_TRY(gnn_isa_get(&isa));
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const softmax_kernel *kernel = &kernels[isa][args->dtype];
    int64_t n_chunks;
    softmax_job job = {.view = view_of_args(args),
                       .rows = kernel->rows,
                       .join = kernel->join,
                       .apart = 3 * args->n_features * acc_size(args->dtype),
                       .chunks = (char *)args->scratch +
                                 reduce_heavy_bytes(&args->a, &n_chunks)};
    reduce_walk walk = {.a = &args->a,
                        .context = &job,
                        .rows = run_rows,
                        .chunk = run_chunk,
                        .join = join_row};
    reduce_run(&walk, args->scratch, args->n_features);
    return GNN_OK;
}

/* d_t[f] = the sum of the items' parts, in order, in double */
static void sum_of_t(const softmax_job *job, const gnn_softmax_aggregate_args *args) {
    const int64_t n_items = gnn_item_count(&args->a);
    for (int64_t f = 0; f < args->n_features; f++) {
        double sum = 0;
        for (int64_t k = 0; k < n_items; k++) {
            const void *part = job->of_t + k * job->of_t_row;
            sum += args->dtype == GNN_F64 ? ((const double *)part)[f]
                                          : (double)((const float *)part)[f];
        }
        if (args->dtype == GNN_F64) {
            ((double *)args->d_t)[f] = sum;
        } else {
            ((float *)args->d_t)[f] = (float)sum;
        }
    }
}

gnn_status gnn_softmax_aggregate_vjp_cpu(const gnn_softmax_aggregate_args *args) {
    gnn_isa isa;
    GNN_TRY(check(args));
    GNN_TRY(gnn_isa_get(&isa));
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const softmax_kernel *kernel = &kernels[isa][args->dtype];
    const int64_t of_t = gnn_item_count(&args->a) * of_t_bytes(args);
    int64_t n_chunks;
    char *parts = (char *)args->scratch + reduce_heavy_bytes(&args->a, &n_chunks);
    softmax_job job = {.view = view_of_args(args),
                       .rows = kernel->vjp_rows,
                       .join = kernel->vjp_join,
                       .apart = args->n_features * acc_size(args->dtype),
                       .of_t_row = of_t_bytes(args),
                       .own_row = args->x_stride * gnn_dtype_size(args->dtype),
                       .chunks = parts + of_t,
                       .of_t = args->d_t == NULL ? NULL : parts};
    if (args->d_t != NULL) {
        memset(parts, 0, (size_t)of_t);
    }
    reduce_walk walk = {.a = &args->a,
                        .context = &job,
                        .rows = run_rows,
                        .chunk = run_chunk,
                        .join = args->d_x == NULL ? NULL : join_row};
    reduce_run(&walk, args->scratch, args->n_features);
    if (args->d_t != NULL) {
        sum_of_t(&job, args);
    }
    return GNN_OK;
}

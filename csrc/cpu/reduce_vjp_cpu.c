/* reduce_vjp_cpu.c: the gradients of aggregation, one pass over the transposed graph.
 *
 * Two loops come first: the coefficients (a, b) of every destination where SUM, MEAN, VAR
 * or STD have a gradient, and the number of every edge within its destination's row where
 * MIN or MAX have. Then row j of the transpose meets every edge that leaves j once: the
 * gradient of x is a row sum, and the gradient of an edge has one writer.
 */
#include "cpu/reduce_items.h"
#include "cpu/reduce_lanes.h"

#include <inttypes.h>

enum {
    FEW_VECTORS_avx512 = 8, // sums per tile
    FEW_VECTORS_avx2 = 4,
    FEW_VECTORS_neon = 4,
    FEW_VECTORS_base = 4,
    CACHE_LINE = 64,
    AHEAD = 8 // entries between a prefetch and its use
};

/* MIN or MAX: what it was, where, and its gradient. */
typedef struct vjp_best {
    const void *y, *arg, *grad; // [n_dst, F]
    int64_t grad_stride;
} vjp_best;

/* What the row kernels see: rows are sources. Strides in elements. */
typedef struct vjp_view {
    const int64_t *rowptr, *dst_rowptr;
    const int32_t *col;
    const int32_t *eid32; // at most one of the two; neither: the identity
    const int64_t *eid64;
    int64_t n_edges, n_features, x_stride, edge_stride;
    const void *x, *edge;
    const void *grad[GNN_REDUCE_COUNT]; // for the coefficients
    int64_t grad_stride[GNN_REDUCE_COUNT];
    const void *std, *mean;
    int n_bests, arg_bytes;
    vjp_best best[2];
    void *numbers; // [n_edges] numbers of arg_bytes, in the caller's edge order
    void *coef;    // [n_dst, n_coefs, F] accumulators; NULL: none
    int64_t n_coefs;
    void *d_x, *d_edge; // NULL: not wanted
    void *sums;         // not NULL: write one row's bare sums here instead of d_x
} vjp_view;

static inline __attribute__((always_inline)) int64_t edge_at(const vjp_view *s,
                                                             int64_t e) {
    return s->eid32 != NULL ? s->eid32[e] : s->eid64 != NULL ? s->eid64[e] : e;
}

static inline __attribute__((always_inline)) int number_at(const vjp_view *s,
                                                           int64_t edge) {
    return (int)reduce_code_at(s->numbers, s->arg_bytes, edge);
}

#define ROWS "cpu/reduce_vjp_rows.h"
#include "cpu/row_variants.h"

typedef void (*vjp_rows)(const vjp_view *s, int64_t row, int64_t stop);
typedef struct vjp_kernel {
    vjp_rows coefs, one, all;
    void (*join)(const vjp_view *s, int64_t row, const void *sums, int64_t n_chunks);
} vjp_kernel;

#define KERNEL(isa, d)                                                                 \
    {coefs_##isa##_##d, vjp_one_##isa##_##d, vjp_all_##isa##_##d, vjp_join_##isa##_##d}
#define KERNELS_OF(isa, text, has)                                                     \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32),                                                  \
        [GNN_F64] = KERNEL(isa, f64),                                                  \
        [GNN_BF16] = KERNEL(isa, bf16),                                                \
        [GNN_F16] = KERNEL(isa, f16),                                                  \
    },
static const vjp_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {GNN_ISA_MAP(KERNELS_OF)};

/* ------------------------------------------------------------------------------- items */

typedef struct vjp_job {
    vjp_view view;
    const vjp_kernel *kernel;
    vjp_rows rows;
    const gnn_csr *forward;
    int64_t itemsize, acc_size;
    char *sums; // [chunks of heavy rows, F] accumulators
} vjp_job;

static void run_rows(void *context, int64_t item, int64_t row, int64_t stop) {
    const vjp_job *job = context;
    (void)item;
    job->rows(&job->view, row, stop);
}

static void run_chunk(void *context, int64_t item, int64_t row, int64_t begin,
                      int64_t end, int64_t c) {
    const vjp_job *job = context;
    const int64_t chunk[] = {begin, end};
    vjp_view one_row = job->view;
    (void)item;
    one_row.rowptr = chunk;
    one_row.x = (const char *)one_row.x + row * one_row.x_stride * job->itemsize;
    one_row.sums = job->sums + c * one_row.n_features * job->acc_size;
    job->rows(&one_row, 0, 1);
}

static void join_row(void *context, int64_t row, int64_t c, int64_t n_chunks) {
    const vjp_job *job = context;
    job->kernel->join(&job->view, row,
                      job->sums + c * job->view.n_features * job->acc_size, n_chunks);
}

static void run_coefs(int64_t first, int64_t stop, void *context) {
    const vjp_job *job = context;
    job->kernel->coefs(&job->view, first, stop);
}

/* numbers[edge] = entry - its row's first entry, for the rows [first, stop) */
static void run_numbers(int64_t first, int64_t stop, void *context) {
    const vjp_job *job = context;
    const gnn_csr *a = job->forward;
    const int32_t *eid32 = a->eid_dtype == GNN_I32 ? a->eid : NULL;
    const int64_t *eid64 = a->eid_dtype == GNN_I64 ? a->eid : NULL;
    const int bytes = job->view.arg_bytes;
    for (int64_t i = first; i < stop; i++) {
        for (int64_t begin = a->rowptr[i], e = begin; e < a->rowptr[i + 1]; e++) {
            const int64_t edge = eid32 != NULL   ? eid32[e]
                                 : eid64 != NULL ? eid64[e]
                                                 : e;
            reduce_put_code(job->view.numbers, bytes, edge, e - begin);
        }
    }
}

/* ------------------------------------------------------------------------------- entry */

static int64_t acc_size(gnn_dtype dtype) {
    return dtype == GNN_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
}

static int64_t aligned(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static const unsigned bests = 1U << GNN_MIN | 1U << GNN_MAX;
static const unsigned around_mean = 1U << GNN_VAR | 1U << GNN_STD;

static int64_t number_bytes(const gnn_aggregate_args *args) {
    return args->which & bests
               ? aligned(args->back.n_edges * gnn_dtype_size(args->arg_dtype))
               : 0;
}

static int64_t coef_bytes(const gnn_aggregate_args *args) {
    const int64_t n = args->which & around_mean ? 2 : args->which & ~bests ? 1 : 0;
    return aligned(n * args->back.n_cols * args->n_features * acc_size(args->dtype));
}

int64_t gnn_aggregate_vjp_scratch(const gnn_aggregate_args *args) {
    int64_t n_chunks;
    const int64_t heavy = reduce_heavy_bytes(&args->back, &n_chunks);
    return heavy + number_bytes(args) + coef_bytes(args) +
           n_chunks * args->n_features * acc_size(args->dtype);
}

static void add_best(vjp_view *view, const gnn_aggregate_args *args, gnn_reduce r) {
    if (args->which & 1U << r && args->grad[r] != NULL) {
        view->best[view->n_bests++] =
            (vjp_best){.y = args->y[r],
                       .arg = r == GNN_MIN ? args->arg_min : args->arg_max,
                       .grad = args->grad[r],
                       .grad_stride = args->grad_stride[r]};
    }
}

gnn_status gnn_aggregate_vjp_cpu(const gnn_aggregate_args *args) {
    gnn_isa isa;
    GNN_TRY(reduce_check(args));
    GNN_TRY(gnn_isa_get(&isa));
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const gnn_csr *back = &args->back;
    const vjp_kernel *kernel = &kernels[isa][args->dtype];
    vjp_job job = {.view = {.rowptr = back->rowptr,
                            .dst_rowptr = args->a.rowptr,
                            .col = back->col,
                            .eid32 = back->eid_dtype == GNN_I32 ? back->eid : NULL,
                            .eid64 = back->eid_dtype == GNN_I64 ? back->eid : NULL,
                            .n_edges = back->n_edges,
                            .n_features = args->n_features,
                            .x = args->x,
                            .x_stride = args->x_stride,
                            .edge = args->edge,
                            .edge_stride = args->edge_stride,
                            .std = args->y[GNN_STD],
                            .mean = args->mean,
                            .arg_bytes = (int)gnn_dtype_size(args->arg_dtype),
                            .d_x = args->d_x,
                            .d_edge = args->d_edge},
                   .kernel = kernel,
                   .forward = &args->a,
                   .itemsize = gnn_dtype_size(args->dtype),
                   .acc_size = acc_size(args->dtype)};
    int64_t n_chunks;
    char *numbers = (char *)args->scratch + reduce_heavy_bytes(back, &n_chunks);
    char *coef = numbers + number_bytes(args);
    job.sums = coef + coef_bytes(args);

    add_best(&job.view, args, GNN_MIN);
    add_best(&job.view, args, GNN_MAX);
    if (job.view.n_bests > 0) {
        job.view.numbers = numbers;
        gnn_parallel_for(args->a.n_rows, GNN_WORK, run_numbers, &job);
    }
    for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
        if (args->which & ~bests & 1U << r && args->grad[r] != NULL) {
            job.view.grad[r] = args->grad[r];
            job.view.grad_stride[r] = args->grad_stride[r];
            job.view.coef = coef;
        }
    }
    if (job.view.coef != NULL) {
        const bool square =
            job.view.grad[GNN_VAR] != NULL || job.view.grad[GNN_STD] != NULL;
        job.view.n_coefs = square ? 2 : 1;
        gnn_parallel_for(args->a.n_rows, 64, run_coefs, &job);
    }
    const bool one = job.view.coef == NULL && job.view.n_bests == 1 &&
                     args->edge == NULL && args->d_edge == NULL;
    job.rows = one ? kernel->one : kernel->all;
    reduce_walk walk = {.a = back,
                        .context = &job,
                        .rows = run_rows,
                        .chunk = run_chunk,
                        .join = args->d_x == NULL ? NULL : join_row};
    reduce_run(&walk, args->scratch, args->n_features);
    return GNN_OK;
}

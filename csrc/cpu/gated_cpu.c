/* gated_cpu.c: gated sums and their gradients.
 *
 * Work items (core/worksplit.h) run in any order on any thread. Whole rows are written at
 * once; the chunks of heavy rows leave partial sums in scratch, and a second loop adds
 * those up in chunk order. Forward runs by destination and sums, beside y, its derivative
 * by the row's own u, for two more operations an entry: backward then needs one pass, by
 * source, with the row's own v in registers and one writer for each edge.
 */
#include "core/worksplit.h"
#include "cpu/gated_math.h"

#include <inttypes.h>

enum {
    MAX_VECTORS_avx512 = 4, // of gates, and as many of values
    MAX_VECTORS_avx2 = 2,
    MAX_VECTORS_neon = 2,
    MAX_VECTORS_base = 2,
    CACHE_LINE = 64,
    AHEAD = 8 // entries between a prefetch and its use
};

/* What the row kernels see. Strides in elements. */
typedef struct gated_view {
    const int64_t *rowptr;
    const int32_t *col;
    const int32_t *eid32; // at most one of the two; neither: the identity
    const int64_t *eid64;
    int64_t n_edges, n_features;
    const void *own, *gathered, *edge, *grad; // forward: u, v; vjp: v, u
    int64_t own_stride, gathered_stride, edge_stride, grad_stride;
    const void *scale; // A, by destination, or NULL
    void *y, *dy_du;   // vjp: d_v in y
    void *d_edge;
    void *sums; // not NULL: write one row's bare sums here instead
} gated_view;

static inline __attribute__((always_inline)) int64_t edge_at(const gated_view *s,
                                                             int64_t e) {
    return s->eid32 != NULL ? s->eid32[e] : s->eid64 != NULL ? s->eid64[e] : e;
}

/* ----------------------------------------------------------- kernels, one per ISA, dtype */

#define ROWS "cpu/gated_rows.h"
#include "cpu/row_variants.h"

typedef void (*gated_rows)(const gated_view *s, int64_t row, int64_t stop);
typedef struct gated_kernel {
    gated_rows sum[2][2], vjp[2][2]; // [softplus][u_has_value]
    void (*join)(void *y, bool wide, const void *sums, int64_t apart, int64_t n_chunks,
                 int64_t n, double scale);
} gated_kernel;

#define KERNEL(isa, d)                                                                 \
    {{{sum_plain_##isa##_##d, sum_plain_both_##isa##_##d},                             \
      {sum_soft_##isa##_##d, sum_soft_both_##isa##_##d}},                              \
     {{vjp_plain_##isa##_##d, vjp_plain_both_##isa##_##d},                             \
      {vjp_soft_##isa##_##d, vjp_soft_both_##isa##_##d}},                              \
     join_##isa##_##d}
#define KERNELS_OF(isa, text, has)                                                     \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32),                                                  \
        [GNN_F64] = KERNEL(isa, f64),                                                  \
        [GNN_BF16] = KERNEL(isa, bf16),                                                \
        [GNN_F16] = KERNEL(isa, f16),                                                  \
    },
static const gated_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(KERNELS_OF)};

/* ------------------------------------------------------------------------------- items */

typedef struct gated_job {
    const gnn_gated_args *args;
    gated_view view;
    gated_rows rows;
    const gated_kernel *kernel;
    const gnn_heavy *heavy;           // [n_heavy]
    int64_t n_heavy, acc_size, width; // numbers that a row sums
    bool is_vjp;
    char *sums; // [chunks of heavy rows, width] of the accumulator type
} gated_job;

/* Entries [begin, end) of a heavy row, chunk c of all heavy rows. */
static void run_chunk(const gated_job *job, int64_t row, int64_t begin, int64_t end,
                      int64_t c) {
    const int64_t chunk[] = {begin, end};
    gated_view one_row = job->view;
    one_row.rowptr = chunk;
    one_row.own = (const char *)one_row.own +
                  row * one_row.own_stride * gnn_dtype_size(job->args->dtype);
    one_row.sums = job->sums + c * job->width * job->acc_size;
    job->rows(&one_row, 0, 1);
}

static void run_items(int64_t first, int64_t stop, void *context) {
    const gated_job *job = context;
    const gnn_csr *a = &job->args->a;
    gnn_place at = gnn_item_start(a, first);
    const gnn_place end = gnn_item_start(a, stop);
    int64_t h = gnn_heavy_at(job->heavy, job->n_heavy, at.row);
    while (at.row < end.row || at.entry < end.entry) {
        const int64_t heavy_row = h < job->n_heavy ? job->heavy[h].row : INT64_MAX;
        if (at.row < heavy_row) { // whole rows up to the next heavy one
            const int64_t row = heavy_row < end.row ? heavy_row : end.row;
            job->rows(&job->view, at.row, row);
            at = (gnn_place){row, a->rowptr[row]};
            continue;
        }
        const int64_t begin = a->rowptr[at.row], last = a->rowptr[at.row + 1];
        const int64_t next = at.entry + GNN_WORK < last ? at.entry + GNN_WORK : last;
        run_chunk(job, at.row, at.entry, next,
                  job->heavy[h].first_chunk + (at.entry - begin) / GNN_WORK);
        at = (gnn_place){next < last ? at.row : at.row + 1, next};
        h += next == last;
    }
}

static double scale_of(const gated_job *job, int64_t row) {
    const void *scale = job->args->scale;
    return scale == NULL                 ? 1
           : job->args->dtype == GNN_F64 ? ((const double *)scale)[row]
                                         : (double)((const float *)scale)[row];
}

static void join_rows(int64_t first, int64_t stop, void *context) {
    const gated_job *job = context;
    const gnn_gated_args *args = job->args;
    const int64_t *rowptr = args->a.rowptr, width = job->width, f = args->n_features;
    for (int64_t h = first; h < stop; h++) {
        const int64_t row = job->heavy[h].row;
        const int64_t n = (rowptr[row + 1] - rowptr[row] + GNN_WORK - 1) / GNN_WORK;
        const char *sums =
            job->sums + job->heavy[h].first_chunk * width * job->acc_size;
        const int64_t itemsize = gnn_dtype_size(args->dtype);
        if (job->is_vjp) {
            char *d_v = (char *)job->view.y + row * width * itemsize;
            job->kernel->join(d_v, false, sums, width, n, width, 1);
            continue;
        }
        const double scale = scale_of(job, row);
        char *y = (char *)args->y + row * f * itemsize;
        job->kernel->join(y, false, sums, width, n, f, scale);
        if (args->dy_du != NULL) {
            char *to = (char *)args->dy_du + row * (width - f) * job->acc_size;
            job->kernel->join(to, true, sums + f * job->acc_size, width, n, width - f,
                              scale);
        }
    }
}

/* ------------------------------------------------------------------------------- entry */

static int64_t acc_size(gnn_dtype dtype) {
    return dtype == GNN_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
}

static int64_t heavy_bytes(int64_t n_heavy) {
    return (n_heavy * (int64_t)sizeof(gnn_heavy) + 63) / 64 * 64;
}

int64_t gnn_gated_scratch(const gnn_gated_args *args) {
    int64_t n_heavy;
    const int64_t chunks = gnn_heavy_rows(&args->a, NULL, &n_heavy);
    return heavy_bytes(n_heavy) + chunks * 3 * args->n_features * acc_size(args->dtype);
}

static gnn_status check_rows(const char *name, int64_t n_rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(n_rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "gated: bytes of %s [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                name, n_rows, stride);
    return GNN_OK;
}

static gnn_status check(const gnn_gated_args *args, int64_t n_dst, int64_t n_src) {
    GNN_REQUIRE((unsigned)args->dtype <= GNN_F16, GNN_ETYPE,
                "gated: dtype must be float32, float64, bfloat16 or float16, got %s",
                gnn_dtype_text(args->dtype));
    GNN_REQUIRE(args->n_features >= 0 && args->n_features < INT64_MAX / 64, GNN_EINVAL,
                "gated: number of features must be at least 0, got %" PRId64,
                args->n_features);
    GNN_TRY(check_rows("y", n_dst, 2 * args->n_features));
    GNN_TRY(check_rows("u", n_dst, args->u_stride));
    GNN_TRY(check_rows("v", n_src, args->v_stride));
    GNN_TRY(check_rows("grad", n_dst, args->grad_stride));
    GNN_TRY(check_rows("edge", args->a.n_edges, args->edge_stride));
    return check_rows("d_edge", args->a.n_edges, 2 * args->n_features);
}

/* Completes the job with what both passes share and does all rows. */
static void run(gated_job *job) {
    const gnn_gated_args *args = job->args;
    const gnn_csr *a = &args->a;
    gated_view *view = &job->view;
    view->rowptr = a->rowptr;
    view->col = a->col;
    view->eid32 = a->eid_dtype == GNN_I32 ? a->eid : NULL;
    view->eid64 = a->eid_dtype == GNN_I64 ? a->eid : NULL;
    view->n_edges = a->n_edges;
    view->n_features = args->n_features;
    view->edge = args->edge;
    view->edge_stride = args->edge_stride;
    view->scale = args->scale;
    job->acc_size = acc_size(args->dtype);
    job->heavy = args->scratch;
    gnn_heavy_rows(a, args->scratch, &job->n_heavy);
    job->sums = (char *)args->scratch + heavy_bytes(job->n_heavy);
    // an item is about GNN_WORK * F loads: let a thread take several when F is small
    const int64_t grain = 1 + 16 / args->n_features;
    gnn_parallel_for(gnn_item_count(a), grain, run_items, job);
    if (view->y != NULL) {
        gnn_parallel_for(job->n_heavy, 1, join_rows, job);
    }
}

gnn_status gnn_gated_cpu(const gnn_gated_args *args) {
    gnn_isa isa;
    GNN_TRY(check(args, args->a.n_rows, args->a.n_cols));
    GNN_TRY(gnn_isa_get(&isa));
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const gated_kernel *kernel = &kernels[isa][args->dtype];
    gated_job job = {.args = args,
                     .view = {.own = args->u,
                              .own_stride = args->u_stride,
                              .gathered = args->v,
                              .gathered_stride = args->v_stride,
                              .y = args->y,
                              .dy_du = args->dy_du},
                     .rows = kernel->sum[args->softplus][args->u_has_value],
                     .kernel = kernel,
                     .width = (args->u_has_value ? 3 : 2) * args->n_features};
    run(&job);
    return GNN_OK;
}

gnn_status gnn_gated_vjp_cpu(const gnn_gated_args *args) {
    gnn_isa isa;
    GNN_TRY(check(args, args->a.n_cols, args->a.n_rows));
    GNN_TRY(gnn_isa_get(&isa));
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const gated_kernel *kernel = &kernels[isa][args->dtype];
    gated_job job = {.args = args,
                     .view = {.own = args->v,
                              .own_stride = args->v_stride,
                              .gathered = args->u,
                              .gathered_stride = args->u_stride,
                              .grad = args->grad,
                              .grad_stride = args->grad_stride,
                              .y = args->d_v,
                              .d_edge = args->d_edge},
                     .rows = kernel->vjp[args->softplus][args->u_has_value],
                     .kernel = kernel,
                     .width = 2 * args->n_features,
                     .is_vjp = true};
    run(&job);
    return GNN_OK;
}

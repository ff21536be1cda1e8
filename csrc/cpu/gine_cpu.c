/* gine_cpu.c: the sum of relu messages with edge features (GINE), and its derivatives.
 *
 * Work items (core/worksplit.h) run in any order on any thread. Whole rows are written
 * at once; the chunks of heavy rows leave partial sums in scratch, and a second loop adds
 * those up in chunk order. The derivative runs over the transposed graph: row j then has
 * its own x[j] in registers and meets every edge that leaves j once, so that the gradient
 * of x is a row sum and the gradient of an edge has one writer.
 */
#include "core/worksplit.h"
#include "cpu/gine_gate.h"

#include <inttypes.h>

enum {
    MAX_VECTORS_avx512 = 8, // accumulators per tile; backward keeps as many own values
    MAX_VECTORS_avx2 = 4,
    MAX_VECTORS_neon = 4,
    MAX_VECTORS_base = 4,
    CACHE_LINE = 64,
    AHEAD = 8,             // entries between a prefetch and its use
    STREAM_BYTES = 1 << 24 // a larger gradient of the edges goes past the caches
};

/* What the row kernels see. Strides in elements. */
typedef struct gine_view {
    const int64_t *rowptr;
    const int32_t *col;
    const int32_t *eid32; // at most one of the two; neither: the identity
    const int64_t *eid64;
    int64_t n_edges, n_features;
    const void *gathered; // rows that the entries point to: x, in backward the gradient
    const void *own;      // backward: x, by row
    const void *edge, *dx, *dedge;
    int64_t gathered_stride, own_stride, edge_stride, dx_stride, dedge_stride;
    void *y;         // NULL: not wanted
    void *grad_edge; // backward; NULL: not wanted
    bool stream;     // grad_edge is too large to stay in cache: write around it
    void *sums;      // not NULL: write one row's bare sums here instead of y
} gine_view;

static inline __attribute__((always_inline)) int64_t edge_at(const gine_view *s,
                                                             int64_t e) {
    return s->eid32 != NULL ? s->eid32[e] : s->eid64 != NULL ? s->eid64[e] : e;
}

/* ----------------------------------------------------------- kernels, one per ISA, dtype */

#define ROWS "cpu/gine_rows.h"
#include "cpu/row_variants.h"

typedef void (*gine_rows)(const gine_view *s, int64_t row, int64_t stop);
typedef struct gine_kernel {
    gine_rows sum, jvp, vjp;
    void (*join)(const gine_view *s, int64_t row, const void *sums, int64_t n_chunks);
} gine_kernel;

#define KERNEL(isa, d)                                                                 \
    {sum_rows_##isa##_##d, jvp_rows_##isa##_##d, vjp_rows_##isa##_##d, join_##isa##_##d}
#define KERNELS_OF(isa, text, has)                                                     \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32),                                                  \
        [GNN_F64] = KERNEL(isa, f64),                                                  \
        [GNN_BF16] = KERNEL(isa, bf16),                                                \
        [GNN_F16] = KERNEL(isa, f16),                                                  \
    },
static const gine_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(KERNELS_OF)};

/* ------------------------------------------------------------------------------- items */

typedef struct gine_job {
    const gnn_csr *a;
    gine_view view;
    gine_rows rows;
    const gine_kernel *kernel;
    const gnn_heavy *heavy; // [n_heavy]
    int64_t n_heavy, acc_size, own_bytes;
    char *sums; // [chunks of heavy rows, F] of the accumulator type
} gine_job;

/* Entries [begin, end) of a heavy row, chunk c of all heavy rows. */
static void run_chunk(const gine_job *job, int64_t row, int64_t begin, int64_t end,
                      int64_t c) {
    const int64_t chunk[] = {begin, end};
    gine_view one_row = job->view;
    one_row.rowptr = chunk;
    if (one_row.own != NULL) {
        one_row.own = (const char *)one_row.own + row * job->own_bytes;
    }
    one_row.sums = job->sums + c * job->view.n_features * job->acc_size;
    job->rows(&one_row, 0, 1);
}

static void run_items(int64_t first, int64_t stop, void *context) {
    const gine_job *job = context;
    const gnn_csr *a = job->a;
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

static void join_rows(int64_t first, int64_t stop, void *context) {
    const gine_job *job = context;
    const int64_t *rowptr = job->a->rowptr;
    for (int64_t h = first; h < stop; h++) {
        const gnn_heavy *heavy = &job->heavy[h];
        const int64_t degree = rowptr[heavy->row + 1] - rowptr[heavy->row];
        job->kernel->join(&job->view, heavy->row,
                          job->sums +
                              heavy->first_chunk * job->view.n_features * job->acc_size,
                          (degree + GNN_WORK - 1) / GNN_WORK);
    }
}

/* ------------------------------------------------------------------------------- entry */

static int64_t acc_size(gnn_dtype dtype) {
    return dtype == GNN_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
}

static int64_t heavy_bytes(int64_t n_heavy) {
    return (n_heavy * (int64_t)sizeof(gnn_heavy) + 63) / 64 * 64;
}

int64_t gnn_gine_scratch(const gnn_csr *a, int64_t n_features, gnn_dtype dtype) {
    int64_t n_heavy;
    const int64_t chunks = gnn_heavy_rows(a, NULL, &n_heavy);
    return heavy_bytes(n_heavy) + chunks * n_features * acc_size(dtype);
}

static gnn_status check_rows(const char *name, int64_t n_rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(n_rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "gine: bytes of %s [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                name, n_rows, stride);
    return GNN_OK;
}

static gnn_status check(gnn_dtype dtype, int64_t n_features) {
    GNN_REQUIRE((unsigned)dtype <= GNN_F16, GNN_ETYPE,
                "gine: dtype must be float32, float64, bfloat16 or float16, got %s",
                gnn_dtype_text(dtype));
    GNN_REQUIRE(n_features >= 0, GNN_EINVAL,
                "gine: number of features must be at least 0, got %" PRId64,
                n_features);
    return GNN_OK;
}

/* Completes the view with the graph and does all rows. */
static void run(gine_job *job, const gnn_csr *a, gnn_dtype dtype, void *scratch) {
    job->a = a;
    job->view.rowptr = a->rowptr;
    job->view.col = a->col;
    job->view.eid32 = a->eid_dtype == GNN_I32 ? a->eid : NULL;
    job->view.eid64 = a->eid_dtype == GNN_I64 ? a->eid : NULL;
    job->view.n_edges = a->n_edges;
    job->acc_size = acc_size(dtype);
    job->heavy = scratch;
    gnn_heavy_rows(a, scratch, &job->n_heavy);
    job->sums = (char *)scratch + heavy_bytes(job->n_heavy);
    // an item is about GNN_WORK * F loads: let a thread take several when F is small
    const int64_t grain = 1 + 64 / job->view.n_features;
    gnn_parallel_for(gnn_item_count(a), grain, run_items, job);
    if (job->view.y != NULL) {
        gnn_parallel_for(job->n_heavy, 1, join_rows, job);
    }
}

gnn_status gnn_gine_cpu(const gnn_gine_args *args) {
    gnn_isa isa;
    GNN_TRY(check(args->dtype, args->n_features));
    GNN_TRY(check_rows("y", args->a.n_rows, args->n_features));
    GNN_TRY(check_rows("x", args->a.n_cols, args->x_stride));
    GNN_TRY(check_rows("edge", args->a.n_edges, args->edge_stride));
    GNN_TRY(check_rows("dx", args->a.n_cols, args->dx_stride));
    GNN_TRY(check_rows("dedge", args->a.n_edges, args->dedge_stride));
    GNN_TRY(gnn_isa_get(&isa));
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const gine_kernel *kernel = &kernels[isa][args->dtype];
    const bool tangent = args->dx != NULL || args->dedge != NULL;
    gine_job job = {.view = {.n_features = args->n_features,
                             .gathered = args->x,
                             .gathered_stride = args->x_stride,
                             .edge = args->edge,
                             .edge_stride = args->edge_stride,
                             .dx = args->dx,
                             .dx_stride = args->dx_stride,
                             .dedge = args->dedge,
                             .dedge_stride = args->dedge_stride,
                             .y = args->y},
                    .rows = tangent ? kernel->jvp : kernel->sum,
                    .kernel = kernel};
    run(&job, &args->a, args->dtype, args->scratch);
    return GNN_OK;
}

gnn_status gnn_gine_vjp_cpu(const gnn_gine_vjp_args *args) {
    gnn_isa isa;
    GNN_TRY(check(args->dtype, args->n_features));
    GNN_TRY(check_rows("x", args->a.n_rows, args->x_stride));
    GNN_TRY(check_rows("grad", args->a.n_cols, args->grad_stride));
    GNN_TRY(check_rows("edge", args->a.n_edges, args->edge_stride));
    GNN_TRY(check_rows("grad_x", args->a.n_rows, args->n_features));
    GNN_TRY(check_rows("grad_edge", args->a.n_edges, args->n_features));
    GNN_TRY(gnn_isa_get(&isa));
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const int64_t itemsize = gnn_dtype_size(args->dtype);
    const int64_t row_bytes = args->n_features * itemsize;
    const gine_kernel *kernel = &kernels[isa][args->dtype];
    gine_job job = {.view = {.n_features = args->n_features,
                             .gathered = args->grad,
                             .gathered_stride = args->grad_stride,
                             .own = args->x,
                             .own_stride = args->x_stride,
                             .edge = args->edge,
                             .edge_stride = args->edge_stride,
                             .y = args->grad_x,
                             .grad_edge = args->grad_edge,
                             .stream = row_bytes % CACHE_LINE == 0 &&
                                       (uintptr_t)args->grad_edge % CACHE_LINE == 0 &&
                                       args->a.n_edges * row_bytes > STREAM_BYTES},
                    .rows = kernel->vjp,
                    .kernel = kernel,
                    .own_bytes = args->x_stride * itemsize};
    run(&job, &args->a, args->dtype, args->scratch);
    return GNN_OK;
}

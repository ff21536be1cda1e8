/* spmm_cpu.c: sparse-dense product on the CPU.
 *
 * Work items (core/worksplit.h) run in any order on any thread. Whole rows are written
 * to y at once; the chunks of heavy rows leave partial sums in scratch, and a second loop
 * adds those up in chunk order. Edge weights and column scales of an item are first
 * multiplied into one small array of coefficients, so the row kernel knows neither.
 */
#include "core/worksplit.h"
#include "cpu/simd.h"
#if defined(__x86_64__)
#include "cpu/simd_pairs.h"
#endif

#include <inttypes.h>

enum {
    ROOM_avx512 = 18 * 64, // bytes of accumulators that stay in registers
    ROOM_narrow = 1 * 32,
    ROOM_avx2 = 8 * 32,
    ROOM_neon = 8 * 16,
    ROOM_base = 4 * 16,
    MOST_LANES = 32, // of any vector
    CACHE_LINE = 64,
    AHEAD_BYTES = 8192, // x rows are asked for this many bytes ahead of their use
    AHEAD_MIN = 8,      // but at least and at most so many entries
    AHEAD_MAX = 32,
    NEAR_BYTES = 1 << 22,     // x up to this size counts as near
    STREAM_BYTES = 1 << 24,   // y beyond this goes past the caches
    MAX_COEFS = 2 * GNN_WORK, // coefficients at hand; a whole row has at most GNN_WORK
};

/* What the row kernels see. Strides in elements. */
typedef struct spmm_view {
    const int64_t *rowptr;
    const int32_t *col;
    int64_t n_rows, n_features, x_stride;
    int64_t ahead; // x rows are asked for so many entries ahead; 0: never
    bool stream;   // y is too large to stay in cache: write around it
    const void *x, *row_scale;
    void *y;
    void *sums; // not NULL: write one row's bare sums here instead of y
} spmm_view;

/* GCC turns a scalar sum into inserts and shuffles at twice the time. */
#if defined(__GNUC__) && !defined(__clang__)
#define SCALAR __attribute__((optimize("no-tree-vectorize")))
#else
#define SCALAR
#endif

/* Do the four rows that end[0..4] delimit have the same length? */
static inline bool four_alike(const int64_t *end) {
    const int64_t length = end[1] - end[0];
    return (((end[2] - end[1]) ^ length) | ((end[3] - end[2]) ^ length) |
            ((end[4] - end[3]) ^ length)) == 0; // one branch, not three
}

/* ----------------------------------------------------------- kernels, one per ISA, dtype */

#if defined(__x86_64__)
#define ISA narrow
#define D f32
#define A f32
#include "cpu/spmm_rows.h"
#endif
#define X86_BF16 bf16x2
#define ROWS "cpu/spmm_rows.h"
#include "cpu/row_variants.h"

typedef struct spmm_kernel {
    void (*rows)(const spmm_view *s, int64_t row, int64_t stop, const void *coef);
    void (*join)(const spmm_view *s, int64_t row, const void *sums, int64_t n_chunks,
                 int64_t apart);
} spmm_kernel;

#define BF16_avx512 bf16x2
#define BF16_avx2 bf16x2
#define BF16_neon bf16
#define BF16_base bf16
#define KERNEL(isa, d) {GNN_GLUE3(rows, isa, d), GNN_GLUE3(join, isa, d)}
#define KERNELS_OF(isa, text, has)                                                     \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32),                                                  \
        [GNN_F64] = KERNEL(isa, f64),                                                  \
        [GNN_BF16] = KERNEL(isa, BF16_##isa),                                          \
        [GNN_F16] = KERNEL(isa, f16),                                                  \
    },
static const spmm_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(KERNELS_OF)};

static const spmm_kernel *kernel_for(gnn_isa isa, gnn_dtype dtype, int64_t n_features) {
#if defined(__x86_64__)
    static const spmm_kernel narrow = KERNEL(narrow, f32);
    if (isa == GNN_ISA_avx512 && dtype == GNN_F32 && n_features > 1 &&
        n_features <= LANES_narrow_f32) {
        return &narrow;
    }
#else
    (void)n_features;
#endif
    return &kernels[isa][dtype];
}

/* ----------------------------------------------------------------------- coefficients */

static inline int64_t edge_of(const gnn_csr *a, int64_t e) {
    if (a->eid == NULL) {
        return e;
    }
    return a->eid_dtype == GNN_I64 ? ((const int64_t *)a->eid)[e]
                                   : ((const int32_t *)a->eid)[e];
}

/* coef[e - begin] = weight[eid[e]] * col_scale[col[e]] */
#define COEFS(dtype, d, acc)                                                           \
    static void coefs_##d(const gnn_spmm_args *g, int64_t begin, int64_t end,          \
                          void *coef) {                                                \
        const store_##d *weight = g->weight; /* [n_edges] */                           \
        const acc_##d *scale = g->col_scale; /* [n_cols] */                            \
        acc_##d *out = coef;                                                           \
        for (int64_t e = begin; e < end; e++) {                                        \
            const acc_##d w = weight != NULL ? up_##d(weight[edge_of(&g->a, e)]) : 1;  \
            out[e - begin] = scale != NULL ? w * scale[g->a.col[e]] : w;               \
        }                                                                              \
    }
GNN_FEATURE_MAP(COEFS)

static void fill_coefs(const gnn_spmm_args *g, int64_t begin, int64_t end, void *coef) {
    static void (*const of_dtype[])(const gnn_spmm_args *, int64_t, int64_t,
                                    void *) = {[GNN_F32] = coefs_f32,
                                               [GNN_F64] = coefs_f64,
                                               [GNN_BF16] = coefs_bf16,
                                               [GNN_F16] = coefs_f16};
    of_dtype[g->dtype](g, begin, end, coef);
}

/* ------------------------------------------------------------------------------- items */

typedef struct spmm_job {
    const gnn_spmm_args *args;
    spmm_view view;
    const spmm_kernel *kernel;
    const gnn_heavy *heavy; // [n_heavy]
    int64_t n_heavy, acc_size, sums_apart;
    bool weighted; // there are coefficients
    char *sums;    // [chunks of heavy rows, sums_apart] of the accumulator type
} spmm_job;

/* Whole rows; `room` holds MAX_COEFS coefficients. */
static void run_rows(const spmm_job *job, const spmm_view *view, int64_t row,
                     int64_t stop, void *room) {
    if (!job->weighted) {
        job->kernel->rows(view, row, stop, NULL);
        return;
    }
    const int64_t *rowptr = job->args->a.rowptr;
    while (row < stop) {
        int64_t next = row + 1; // as many rows as there is room for
        while (next < stop && rowptr[next + 1] - rowptr[row] <= MAX_COEFS) {
            next++;
        }
        fill_coefs(job->args, rowptr[row], rowptr[next], room);
        job->kernel->rows(view, row, next, room);
        row = next;
    }
}

/* The first rows, up to the last from which the prefetch stays inside col. */
static int64_t rows_with_ahead(const spmm_job *job, int64_t row, int64_t stop) {
    const gnn_csr *a = &job->args->a;
    while (stop > row && a->rowptr[stop] + job->view.ahead > a->n_edges) {
        stop--;
    }
    return stop;
}

/* One chunk of a heavy row, entries [begin, end), into its place among the sums. */
static void run_chunk(const spmm_job *job, int64_t chunk, int64_t begin, int64_t end,
                      void *room) {
    const int64_t rowptr[] = {begin, end};
    spmm_view view = job->view;
    view.rowptr = rowptr;
    view.sums = job->sums + chunk * job->sums_apart * job->acc_size;
    if (end + view.ahead > job->args->a.n_edges) {
        view.ahead = 0;
    }
    if (job->weighted) {
        fill_coefs(job->args, begin, end, room);
    }
    job->kernel->rows(&view, 0, 1, job->weighted ? room : NULL);
}

static void run_items(int64_t first, int64_t stop, void *context) {
    const spmm_job *job = context;
    const gnn_csr *a = &job->args->a;
    _Alignas(64) double room[MAX_COEFS]; // floats or doubles
    gnn_place at = gnn_item_start(a, first);
    const gnn_place end = gnn_item_start(a, stop);
    int64_t h = gnn_heavy_at(job->heavy, job->n_heavy, at.row);
    spmm_view last_rows = job->view;
    last_rows.ahead = 0;
    while (at.row < end.row || at.entry < end.entry) {
        const int64_t heavy_row = h < job->n_heavy ? job->heavy[h].row : INT64_MAX;
        if (at.row < heavy_row) { // whole rows up to the next heavy one
            const int64_t row = heavy_row < end.row ? heavy_row : end.row;
            const int64_t middle = rows_with_ahead(job, at.row, row);
            run_rows(job, &job->view, at.row, middle, room);
            run_rows(job, &last_rows, middle, row, room);
            at = (gnn_place){row, a->rowptr[row]};
            continue;
        }
        const int64_t begin = a->rowptr[at.row], last = a->rowptr[at.row + 1];
        const int64_t next = at.entry + GNN_WORK < last ? at.entry + GNN_WORK : last;
        const int64_t chunk = job->heavy[h].first_chunk + (at.entry - begin) / GNN_WORK;
        run_chunk(job, chunk, at.entry, next, room);
        at = (gnn_place){next < last ? at.row : at.row + 1, next};
        h += next == last;
    }
}

static void join_rows(int64_t first, int64_t stop, void *context) {
    const spmm_job *job = context;
    const int64_t *rowptr = job->args->a.rowptr;
    for (int64_t h = first; h < stop; h++) {
        const gnn_heavy *heavy = &job->heavy[h];
        const int64_t degree = rowptr[heavy->row + 1] - rowptr[heavy->row];
        const char *sums =
            job->sums + heavy->first_chunk * job->sums_apart * job->acc_size;
        job->kernel->join(&job->view, heavy->row, sums,
                          (degree + GNN_WORK - 1) / GNN_WORK, job->sums_apart);
    }
}

/* ------------------------------------------------------------------------------- entry */

static int64_t acc_size(gnn_dtype dtype) {
    return dtype == GNN_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
}

static int64_t heavy_bytes(int64_t n_heavy) {
    return (n_heavy * (int64_t)sizeof(gnn_heavy) + 63) / 64 * 64;
}

/* Accumulators of one chunk: whole vectors of any kind. */
static int64_t sums_apart(int64_t n_features) {
    return (n_features + MOST_LANES - 1) / MOST_LANES * MOST_LANES;
}

int64_t gnn_spmm_scratch(const gnn_csr *a, int64_t n_features, gnn_dtype dtype) {
    int64_t n_heavy;
    const int64_t chunks = gnn_heavy_rows(a, NULL, &n_heavy);
    return heavy_bytes(n_heavy) + chunks * sums_apart(n_features) * acc_size(dtype);
}

static gnn_status check(const gnn_spmm_args *g) {
    GNN_REQUIRE((unsigned)g->dtype <= GNN_F16, GNN_ETYPE,
                "spmm: dtype must be float32, float64, bfloat16 or float16, got %s",
                gnn_dtype_text(g->dtype));
    GNN_REQUIRE(g->n_features >= 0, GNN_EINVAL,
                "spmm: number of features must be at least 0, got %" PRId64,
                g->n_features);
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_rows, g->n_features, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "spmm: bytes of y [%" PRId64 ", %" PRId64 "] must be below 2^63",
                g->a.n_rows, g->n_features);
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_cols, g->x_stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "spmm: bytes of x [%" PRId64 ", stride %" PRId64 "] must be below 2^63",
                g->a.n_cols, g->x_stride);
    return GNN_OK;
}

static int64_t entries_ahead(int64_t row_bytes) {
    const int64_t entries = AHEAD_BYTES / row_bytes;
    return entries < AHEAD_MIN ? AHEAD_MIN : entries > AHEAD_MAX ? AHEAD_MAX : entries;
}

gnn_status gnn_spmm_cpu(const gnn_spmm_args *args) {
    gnn_isa isa;
    GNN_TRY(check(args));
    GNN_TRY(gnn_isa_get(&isa));
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const int64_t row_bytes = args->n_features * gnn_dtype_size(args->dtype);
    const bool far = args->a.n_cols * row_bytes > NEAR_BYTES;
    spmm_job job = {
        .args = args,
        .view = {.rowptr = args->a.rowptr,
                 .col = args->a.col,
                 .n_rows = args->a.n_rows,
                 .n_features = args->n_features,
                 .ahead = far ? entries_ahead(row_bytes) : 0,
                 .stream = row_bytes % CACHE_LINE == 0 &&
                           (uintptr_t)args->y % CACHE_LINE == 0 &&
                           args->a.n_rows * row_bytes > STREAM_BYTES,
                 .x_stride = args->x_stride,
                 .x = args->x,
                 .row_scale = args->row_scale,
                 .y = args->y},
        .kernel = kernel_for(isa, args->dtype, args->n_features),
        .heavy = args->scratch,
        .weighted = args->weight != NULL || args->col_scale != NULL,
        .acc_size = acc_size(args->dtype),
        .sums_apart = sums_apart(args->n_features),
    };
    gnn_heavy_rows(&args->a, args->scratch, &job.n_heavy);
    job.sums = (char *)args->scratch + heavy_bytes(job.n_heavy);
    // an item is about GNN_WORK * F loads: let a thread take several when F is small
    const int64_t grain = 1 + 64 / args->n_features;
    gnn_parallel_for(gnn_item_count(&args->a), grain, run_items, &job);
    gnn_parallel_for(job.n_heavy, 1, join_rows, &job);
    return GNN_OK;
}

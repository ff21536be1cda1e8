/* spmm_cpu.c: sparse-dense product on the CPU.
 *
 * Work items (core/worksplit.h) run in any order on any thread. Whole rows are written
 * to y at once; the chunks of heavy rows leave partial sums in scratch, and a second loop
 * adds those up in chunk order. Edge weights and column scales of an item are first
 * multiplied into one small array of coefficients, so the row kernel knows neither.
 */
#include "core/worksplit.h"
#include "cpu/simd.h"

#include <inttypes.h>

enum {
    MAX_VECTORS_avx512 = 8, // accumulators per tile
    MAX_VECTORS_avx2 = 8,
    MAX_VECTORS_base = 4,
    CACHE_LINE = 64,
    AHEAD_BYTES = 8192, // x rows are asked for this many bytes ahead of their use
    AHEAD_MIN = 8,      // but at least and at most so many entries
    AHEAD_MAX = 32,
    AHEAD_NEAR = 8,         // entries ahead when x fits near the core
    NEAR_BYTES = 1 << 22,   // x up to this size counts as near
    STREAM_BYTES = 1 << 24, // y beyond this goes past the caches
    MAX_COEFS = 2 *
        GNN_WORK // the whole rows of an item: starts within one item's units
};

/* What the row kernels see. Strides in elements. */
typedef struct spmm_view {
    const int64_t *rowptr;
    const int32_t *col;
    int64_t n_edges, n_features, x_stride;
    int64_t ahead; // prefetch distance in entries
    bool far;      // x does not stay near the core
    bool stream;   // y is too large to stay in cache: write around it
    const void *x, *row_scale;
    void *y;
    void *sums; // not NULL: write one row's bare sums here instead of y
} spmm_view;

/* ----------------------------------------------------------- kernels, one per ISA, dtype */

#if defined(__x86_64__)
#define ISA avx512
#define D f32
#define A f32
#include "cpu/spmm_rows.h"
#define ISA avx512
#define D f64
#define A f64
#include "cpu/spmm_rows.h"
#define ISA avx512
#define D bf16
#define A f32
#include "cpu/spmm_rows.h"
#define ISA avx512
#define D f16
#define A f32
#include "cpu/spmm_rows.h"
#define ISA avx2
#define D f32
#define A f32
#include "cpu/spmm_rows.h"
#define ISA avx2
#define D f64
#define A f64
#include "cpu/spmm_rows.h"
#define ISA avx2
#define D bf16
#define A f32
#include "cpu/spmm_rows.h"
#define ISA avx2
#define D f16
#define A f32
#include "cpu/spmm_rows.h"
#endif
#define ISA base
#define D f32
#define A f32
#include "cpu/spmm_rows.h"
#define ISA base
#define D f64
#define A f64
#include "cpu/spmm_rows.h"
#define ISA base
#define D bf16
#define A f32
#include "cpu/spmm_rows.h"
#define ISA base
#define D f16
#define A f32
#include "cpu/spmm_rows.h"

typedef struct spmm_kernel {
    void (*rows)(const spmm_view *s, int64_t row, int64_t stop, const void *coef);
    void (*join)(const spmm_view *s, int64_t row, const void *sums, int64_t n_chunks);
} spmm_kernel;

#define KERNEL(isa, d) {rows_##isa##_##d, join_##isa##_##d}
#define KERNELS_OF(isa, text, has)                                                     \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32),                                                  \
        [GNN_F64] = KERNEL(isa, f64),                                                  \
        [GNN_BF16] = KERNEL(isa, bf16),                                                \
        [GNN_F16] = KERNEL(isa, f16),                                                  \
    },
static const spmm_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(KERNELS_OF)};

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
    int64_t n_heavy, acc_size;
    char *sums; // [chunks of heavy rows, F] of the accumulator type
} spmm_job;

static void run_items(int64_t first, int64_t stop, void *context) {
    const spmm_job *job = context;
    const gnn_csr *a = &job->args->a;
    const bool weighted = job->args->weight != NULL || job->args->col_scale != NULL;
    _Alignas(64) double room[MAX_COEFS]; // floats or doubles
    void *coef = weighted ? room : NULL;
    gnn_place at = gnn_item_start(a, first);
    for (int64_t item = first; item < stop; item++) {
        const gnn_place end = gnn_item_start(a, item + 1);
        int64_t h = gnn_heavy_at(job->heavy, job->n_heavy, at.row);
        while (at.row < end.row || at.entry < end.entry) {
            const int64_t heavy_row = h < job->n_heavy ? job->heavy[h].row : INT64_MAX;
            if (at.row < heavy_row) { // whole rows up to the next heavy one
                const int64_t row = heavy_row < end.row ? heavy_row : end.row;
                if (weighted) {
                    fill_coefs(job->args, at.entry, a->rowptr[row], coef);
                }
                job->kernel->rows(&job->view, at.row, row, coef);
                at = (gnn_place){row, a->rowptr[row]};
                continue;
            }
            const int64_t begin = a->rowptr[at.row], last = a->rowptr[at.row + 1];
            const int64_t next =
                at.entry + GNN_WORK < last ? at.entry + GNN_WORK : last;
            const int64_t c = job->heavy[h].first_chunk + (at.entry - begin) / GNN_WORK;
            if (weighted) {
                fill_coefs(job->args, at.entry, next, coef);
            }
            const int64_t chunk[] = {at.entry, next};
            spmm_view one_row = job->view;
            one_row.rowptr = chunk;
            one_row.sums = job->sums + c * job->view.n_features * job->acc_size;
            job->kernel->rows(&one_row, 0, 1, coef);
            at = (gnn_place){next < last ? at.row : at.row + 1, next};
            h += next == last;
        }
    }
}

static void join_rows(int64_t first, int64_t stop, void *context) {
    const spmm_job *job = context;
    const int64_t *rowptr = job->args->a.rowptr;
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

int64_t gnn_spmm_scratch(const gnn_csr *a, int64_t n_features, gnn_dtype dtype) {
    int64_t n_heavy;
    const int64_t chunks = gnn_heavy_rows(a, NULL, &n_heavy);
    return heavy_bytes(n_heavy) + chunks * n_features * acc_size(dtype);
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
                 .n_edges = args->a.n_edges,
                 .n_features = args->n_features,
                 .ahead = far ? entries_ahead(row_bytes) : AHEAD_NEAR,
                 .far = far,
                 .stream = row_bytes % CACHE_LINE == 0 &&
                           (uintptr_t)args->y % CACHE_LINE == 0 &&
                           args->a.n_rows * row_bytes > STREAM_BYTES,
                 .x_stride = args->x_stride,
                 .x = args->x,
                 .row_scale = args->row_scale,
                 .y = args->y},
        .kernel = &kernels[isa][args->dtype],
        .heavy = args->scratch,
        .acc_size = acc_size(args->dtype),
    };
    gnn_heavy_rows(&args->a, args->scratch, &job.n_heavy);
    job.sums = (char *)args->scratch + heavy_bytes(job.n_heavy);
    // an item is about GNN_WORK * F loads: let a thread take several when F is small
    const int64_t grain = 1 + 64 / args->n_features;
    gnn_parallel_for(gnn_item_count(&args->a), grain, run_items, &job);
    gnn_parallel_for(job.n_heavy, 1, join_rows, &job);
    return GNN_OK;
}

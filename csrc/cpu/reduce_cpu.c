/* reduce_cpu.c: sum, mean, min, max, var and std of messages, any subset, in one gather.
 *
 * Whole rows are written at once. The chunks of a heavy row leave four sums or best values
 * and two codes per feature, and a second loop joins those in chunk order. The chunks of a
 * row share its shift, so that sums of squares around it add up.
 */
#include "cpu/reduce_items.h"
#include "cpu/reduce_lanes.h"

#include <inttypes.h>

enum {
    FEW_VECTORS_avx512 = 8, // of a tile that keeps one value and one code per lane
    FEW_VECTORS_avx2 = 4,
    FEW_VECTORS_neon = 4,
    FEW_VECTORS_base = 4,
    CACHE_LINE = 64,
    AHEAD = 8 // entries between a prefetch and its use
};

/* What a tile computes. */
enum { LEAST = 1, MOST = 2, MOMENTS = 4, ARG = 8 };

/* What the row kernels see. Strides in elements. */
typedef struct reduce_view {
    const int64_t *rowptr;
    const int32_t *col;
    const int32_t *eid32; // at most one of the two; neither: the identity
    const int64_t *eid64;
    int64_t n_edges, n_features, x_stride, edge_stride;
    const void *x, *edge;
    unsigned which;
    int arg_bytes;
    void *y[GNN_REDUCE_COUNT]; // NULL: not wanted
    void *arg[2];              // of MIN and of MAX; NULL: not wanted
    void *mean;
    void *sums; // not NULL: a chunk's own numbers go to sums [4, F] and codes [2, F]
    int32_t *codes;
    int64_t first; // the first entry of the chunk's row
} reduce_view;

static inline __attribute__((always_inline)) int64_t edge_at(const reduce_view *s,
                                                             int64_t e) {
    return s->eid32 != NULL ? s->eid32[e] : s->eid64 != NULL ? s->eid64[e] : e;
}

/* The best value seen, the first entry that has it, and how many do (0: none seen). */
typedef struct best {
    double value;
    int64_t at, count;
} best;

static void meet(best *b, double value, int64_t at, int64_t count, bool least) {
    const bool odd = isnan(value), was_odd = isnan(b->value);
    if (b->count == 0 || (odd && !was_odd) ||
        (least ? value < b->value : value > b->value)) {
        *b = (best){value, at, count};
    } else if (value == b->value || (odd && was_odd)) {
        b->count += count;
    }
}

#define ROWS "cpu/reduce_rows.h"
#include "cpu/row_variants.h"

typedef void (*reduce_rows)(const reduce_view *s, int64_t row, int64_t stop);
typedef struct reduce_kernel {
    reduce_rows best[2][2]; // [MIN, MAX][without arguments, with]
    reduce_rows moments, all;
    void (*join)(const reduce_view *s, int64_t row, const char *chunks, int64_t apart,
                 int64_t n_chunks);
} reduce_kernel;

#define KERNEL(isa, d)                                                                 \
    {{{min_rows_##isa##_##d, min_arg_rows_##isa##_##d},                                \
      {max_rows_##isa##_##d, max_arg_rows_##isa##_##d}},                               \
     moment_rows_##isa##_##d,                                                          \
     all_rows_##isa##_##d,                                                             \
     join_##isa##_##d}
#define KERNELS_OF(isa, text, has)                                                     \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32),                                                  \
        [GNN_F64] = KERNEL(isa, f64),                                                  \
        [GNN_BF16] = KERNEL(isa, bf16),                                                \
        [GNN_F16] = KERNEL(isa, f16),                                                  \
    },
static const reduce_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(KERNELS_OF)};

/* ------------------------------------------------------------------------------- items */

typedef struct reduce_job {
    reduce_view view;
    reduce_rows rows;
    const reduce_kernel *kernel;
    int64_t apart,
        codes_at; // bytes from chunk to chunk, from a chunk's sums to its codes
    char *chunks;
} reduce_job;

static void run_rows(void *context, int64_t item, int64_t row, int64_t stop) {
    const reduce_job *job = context;
    (void)item;
    job->rows(&job->view, row, stop);
}

static void run_chunk(void *context, int64_t item, int64_t row, int64_t begin,
                      int64_t end, int64_t c) {
    const reduce_job *job = context;
    const int64_t chunk[] = {begin, end};
    reduce_view one_row = job->view;
    (void)item;
    one_row.first = one_row.rowptr[row];
    one_row.rowptr = chunk;
    one_row.sums = job->chunks + c * job->apart;
    one_row.codes = (int32_t *)(void *)(job->chunks + c * job->apart + job->codes_at);
    job->rows(&one_row, 0, 1);
}

static void join_row(void *context, int64_t row, int64_t c, int64_t n_chunks) {
    const reduce_job *job = context;
    job->kernel->join(&job->view, row, job->chunks + c * job->apart, job->apart,
                      n_chunks);
}

/* ------------------------------------------------------------------------------- entry */

gnn_dtype gnn_arg_dtype(int64_t max_degree) {
    return max_degree <= 1 << 7 ? GNN_I8 : max_degree <= 1 << 15 ? GNN_I16 : GNN_I32;
}

static int64_t codes_at(int64_t n_features, gnn_dtype dtype) {
    return 4 * n_features *
           (dtype == GNN_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float));
}

static int64_t chunk_bytes(int64_t n_features, gnn_dtype dtype) {
    return codes_at(n_features, dtype) + 2 * n_features * (int64_t)sizeof(int32_t);
}

int64_t gnn_aggregate_scratch(const gnn_aggregate_args *args) {
    int64_t n_chunks;
    const int64_t heavy = reduce_heavy_bytes(&args->a, &n_chunks);
    return heavy + n_chunks * chunk_bytes(args->n_features, args->dtype);
}

/* GNN_EINVAL naming the first row too long for arg_dtype's numbers. */
static gnn_status check_degrees(const gnn_aggregate_args *args) {
    const int64_t most = args->arg_dtype == GNN_I8    ? INT64_C(1) << 7
                         : args->arg_dtype == GNN_I16 ? INT64_C(1) << 15
                                                      : INT64_C(1) << 31;
    const int64_t *rowptr = args->a.rowptr;
    int64_t longest = 0;
    for (int64_t i = 0; i < args->a.n_rows; i++) {
        const int64_t degree = rowptr[i + 1] - rowptr[i];
        longest = degree > longest ? degree : longest;
    }
    GNN_REQUIRE(longest <= most, GNN_EINVAL,
                "aggregate: %s arguments need rows of at most %" PRId64
                " entries, got %" PRId64,
                gnn_dtype_text(args->arg_dtype), most, longest);
    return GNN_OK;
}

gnn_status reduce_check(const gnn_aggregate_args *args) {
    GNN_REQUIRE(
        (unsigned)args->dtype <= GNN_F16, GNN_ETYPE,
        "aggregate: dtype must be float32, float64, bfloat16 or float16, got %s",
        gnn_dtype_text(args->dtype));
    GNN_REQUIRE(args->n_features >= 0, GNN_EINVAL,
                "aggregate: number of features must be at least 0, got %" PRId64,
                args->n_features);
    GNN_REQUIRE(args->which > 0 && args->which < 1U << GNN_REDUCE_COUNT, GNN_EINVAL,
                "aggregate: which must name some of %d statistics, got %u",
                GNN_REDUCE_COUNT, args->which);
    GNN_REQUIRE((args->arg_min == NULL && args->arg_max == NULL) ||
                    args->arg_dtype == GNN_I8 || args->arg_dtype == GNN_I16 ||
                    args->arg_dtype == GNN_I32,
                GNN_ETYPE, "aggregate: arguments must be int8, int16 or int32, got %s",
                gnn_dtype_text(args->arg_dtype));
    int64_t bytes; // the largest array there is; scratch's last factor is 8 numbers
    const int64_t rows[] = {args->a.n_rows, args->a.n_cols, args->a.n_edges};
    for (int k = 0; k < 3; k++) {
        GNN_REQUIRE(!__builtin_mul_overflow(rows[k], args->n_features, &bytes) &&
                        !__builtin_mul_overflow(bytes, (int64_t)64, &bytes),
                    GNN_EGRAPH,
                    "aggregate: bytes of [%" PRId64 ", %" PRId64 "] must be below 2^63",
                    rows[k], args->n_features);
    }
    return GNN_OK;
}

gnn_status gnn_aggregate_cpu(const gnn_aggregate_args *args) {
    gnn_isa isa;
    GNN_TRY(reduce_check(args));
    GNN_TRY(gnn_isa_get(&isa));
    const bool wants_arg = args->arg_min != NULL || args->arg_max != NULL;
    if (wants_arg) {
        GNN_TRY(check_degrees(args));
    }
    if (args->n_features == 0) {
        return GNN_OK;
    }
    const gnn_csr *a = &args->a;
    const reduce_kernel *kernel = &kernels[isa][args->dtype];
    reduce_job job = {
        .view = {.rowptr = a->rowptr,
                 .col = a->col,
                 .eid32 = a->eid_dtype == GNN_I32 ? a->eid : NULL,
                 .eid64 = a->eid_dtype == GNN_I64 ? a->eid : NULL,
                 .n_edges = a->n_edges,
                 .n_features = args->n_features,
                 .x = args->x,
                 .x_stride = args->x_stride,
                 .edge = args->edge,
                 .edge_stride = args->edge_stride,
                 .which = args->which,
                 .arg_bytes = wants_arg ? (int)gnn_dtype_size(args->arg_dtype) : 0,
                 .arg = {args->arg_min, args->arg_max},
                 .mean = args->mean},
        .kernel = kernel,
        .codes_at = codes_at(args->n_features, args->dtype),
        .apart = chunk_bytes(args->n_features, args->dtype),
    };
    for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
        job.view.y[r] = args->which & 1U << r ? args->y[r] : NULL;
    }
    const unsigned least = 1U << GNN_MIN, most = 1U << GNN_MAX;
    if (args->which == least || args->which == most) {
        job.rows = kernel->best[args->which == most][wants_arg];
    } else {
        job.rows = args->which & (least | most) ? kernel->all : kernel->moments;
    }
    reduce_walk walk = {.a = a,
                        .context = &job,
                        .rows = run_rows,
                        .chunk = run_chunk,
                        .join = join_row};
    int64_t n_chunks;
    job.chunks = (char *)args->scratch + reduce_heavy_bytes(a, &n_chunks);
    reduce_run(&walk, args->scratch, args->n_features);
    return GNN_OK;
}

/* sddmm_cpu.c: sampled dense-dense product on the CPU: one dot product per entry, written
 * where the caller's edge lives. Entries do not meet, so any split gives the same bits. */
#include "core/worksplit.h"
#include "cpu/simd.h"

#include <inttypes.h>

enum {
    CACHE_LINE = 64,
    PREFETCH_ENTRIES = 12, // v rows are asked for this many entries ahead
};

/* What the row kernels see. Strides in elements. */
typedef struct sddmm_view {
    const int32_t *col;
    int64_t n_edges, n_features, u_stride, v_stride;
    const void *u, *v;
} sddmm_view;

/* ----------------------------------------------------------- kernels, one per ISA, dtype */

#define ROWS "cpu/sddmm_rows.h"
#include "cpu/row_variants.h"

typedef void (*sddmm_kernel)(const sddmm_view *s, int64_t row, int64_t begin,
                             int64_t end, void *dots);

#define KERNELS_OF(isa, text, has)                                                     \
    {[GNN_F32] = dots_##isa##_f32,                                                     \
     [GNN_F64] = dots_##isa##_f64,                                                     \
     [GNN_BF16] = dots_##isa##_bf16,                                                   \
     [GNN_F16] = dots_##isa##_f16},
static const sddmm_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(KERNELS_OF)};

/* ------------------------------------------------------------------------ scale and put */

static inline int64_t edge_of(const gnn_csr *a, int64_t e) {
    if (a->eid == NULL) {
        return e;
    }
    return a->eid_dtype == GNN_I64 ? ((const int64_t *)a->eid)[e]
                                   : ((const int32_t *)a->eid)[e];
}

/* z[eid[e]] = row_scale[row] * col_scale[col[e]] * dots[e - begin] */
#define PUT(dtype, d, acc)                                                             \
    static void put_##d(const gnn_sddmm_args *g, int64_t row, int64_t begin,           \
                        int64_t end, const void *dots) {                               \
        const acc_##d *scale = g->col_scale; /* [n_cols] */                            \
        const acc_##d of_row =                                                         \
            g->row_scale != NULL ? ((const acc_##d *)g->row_scale)[row] : 1;           \
        for (int64_t e = begin; e < end; e++) {                                        \
            const acc_##d dot = of_row * ((const acc_##d *)dots)[e - begin];           \
            ((store_##d *)g->z)[edge_of(&g->a, e)] =                                   \
                down_##d(scale != NULL ? dot * scale[g->a.col[e]] : dot);              \
        }                                                                              \
    }
GNN_FEATURE_MAP(PUT)

typedef void (*sddmm_put)(const gnn_sddmm_args *g, int64_t row, int64_t begin,
                          int64_t end, const void *dots);
static const sddmm_put puts_of[] = {[GNN_F32] = put_f32,
                                    [GNN_F64] = put_f64,
                                    [GNN_BF16] = put_bf16,
                                    [GNN_F16] = put_f16};

/* ------------------------------------------------------------------------------- entry */

typedef struct sddmm_job {
    const gnn_sddmm_args *args;
    sddmm_view view;
    sddmm_kernel kernel;
    sddmm_put put;
} sddmm_job;

static void run_items(int64_t first, int64_t stop, void *context) {
    const sddmm_job *job = context;
    const gnn_csr *a = &job->args->a;
    _Alignas(64) double dots[GNN_WORK]; // of one row or chunk: floats or doubles
    gnn_place at = gnn_item_start(a, first);
    const gnn_place end = gnn_item_start(a, stop);
    while (at.row < end.row || at.entry < end.entry) {
        const int64_t last = at.row < end.row ? a->rowptr[at.row + 1] : end.entry;
        const int64_t next = at.entry + GNN_WORK < last ? at.entry + GNN_WORK : last;
        job->kernel(&job->view, at.row, at.entry, next, dots);
        job->put(job->args, at.row, at.entry, next, dots);
        at = (gnn_place){next < last || at.row == end.row ? at.row : at.row + 1, next};
    }
}

static gnn_status check(const gnn_sddmm_args *g) {
    GNN_REQUIRE((unsigned)g->dtype <= GNN_F16, GNN_ETYPE,
                "sddmm: dtype must be float32, float64, bfloat16 or float16, got %s",
                gnn_dtype_text(g->dtype));
    GNN_REQUIRE(g->n_features >= 0, GNN_EINVAL,
                "sddmm: number of features must be at least 0, got %" PRId64,
                g->n_features);
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_rows, g->u_stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "sddmm: bytes of u [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                g->a.n_rows, g->u_stride);
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_cols, g->v_stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "sddmm: bytes of v [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                g->a.n_cols, g->v_stride);
    return GNN_OK;
}

gnn_status gnn_sddmm_cpu(const gnn_sddmm_args *args) {
    gnn_isa isa;
    GNN_TRY(check(args));
    GNN_TRY(gnn_isa_get(&isa));
    sddmm_job job = {.args = args,
                     .view = {.col = args->a.col,
                              .n_edges = args->a.n_edges,
                              .n_features = args->n_features,
                              .u_stride = args->u_stride,
                              .v_stride = args->v_stride,
                              .u = args->u,
                              .v = args->v},
                     .kernel = kernels[isa][args->dtype],
                     .put = puts_of[args->dtype]};
    const int64_t grain = 1 + 64 / (args->n_features + 1);
    gnn_parallel_for(gnn_item_count(&args->a), grain, run_items, &job);
    return GNN_OK;
}

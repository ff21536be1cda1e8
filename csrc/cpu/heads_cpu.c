/* heads_cpu.c: sparse-dense and sampled dense-dense products head by head on the CPU.
 *
 * Rows are done in batches of entries (cpu/entry_batch.h); the chunks of heavy rows leave
 * partial sums in scratch, which a second loop adds up in chunk order.
 */
#include "cpu/entry_batch.h"
#include "cpu/simd_exp.h"

#include <inttypes.h>

/* What the row kernels see. */
typedef struct heads_view {
    const gnn_heads_args *args;
    bool wide;  // edge numbers are accumulators
    void *sums; // [chunks of heavy rows, H * C] accumulators
} heads_view;

#define ROWS "cpu/heads_rows.h"
#include "cpu/row_variants.h"

typedef struct heads_kernel {
    void (*spmm)(const heads_view *s, const entry_batch *b);
    void (*join)(const heads_view *s, int64_t row, const void *parts, int64_t n_chunks);
    void (*sddmm)(const heads_view *s, const entry_batch *b);
} heads_kernel;

#define KERNEL(isa, d)                                                                 \
    {spmm_batch_##isa##_##d, spmm_join_##isa##_##d, sddmm_batch_##isa##_##d}
#define KERNELS_OF(isa, text, has)                                                     \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32),                                                  \
        [GNN_F64] = KERNEL(isa, f64),                                                  \
        [GNN_BF16] = KERNEL(isa, bf16),                                                \
        [GNN_F16] = KERNEL(isa, f16),                                                  \
    },
static const heads_kernel kernels[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(KERNELS_OF)};

typedef struct heads_job {
    heads_view view;
    const heads_kernel *kernel;
    heavy_rows heavy;
    int64_t acc_size;
} heads_job;

static void spmm_body(const void *context, const entry_batch *b) {
    const heads_job *job = context;
    job->kernel->spmm(&job->view, b);
}

static void sddmm_body(const void *context, const entry_batch *b) {
    const heads_job *job = context;
    job->kernel->sddmm(&job->view, b);
}

static void spmm_items(int64_t first, int64_t stop, void *context) {
    const heads_job *job = context;
    for (int64_t k = first; k < stop; k++) {
        walk_item(&job->view.args->a, &job->heavy, k, spmm_body, job);
    }
}

static void sddmm_items(int64_t first, int64_t stop, void *context) {
    const heads_job *job = context;
    for (int64_t k = first; k < stop; k++) {
        walk_item(&job->view.args->a, &job->heavy, k, sddmm_body, job);
    }
}

static void join_rows(int64_t first, int64_t stop, void *context) {
    const heads_job *job = context;
    const gnn_heads_args *g = job->view.args;
    const int64_t part = g->n_heads * g->n_channels * job->acc_size;
    for (int64_t k = first; k < stop; k++) {
        const gnn_heavy *h = &job->heavy.rows[k];
        job->kernel->join(&job->view, h->row,
                          (const char *)job->view.sums + h->first_chunk * part,
                          heavy_row_chunks(&g->a, h));
    }
}

/* ------------------------------------------------------------------------------- entry */

static gnn_dtype accumulator_of(gnn_dtype dtype) {
    return dtype == GNN_F64 ? GNN_F64 : GNN_F32;
}

static gnn_status check_rows(const char *name, int64_t n_rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(n_rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "heads: bytes of %s [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                name, n_rows, stride);
    return GNN_OK;
}

static gnn_status start(const gnn_heads_args *g, heads_job *job) {
    gnn_isa isa;
    int64_t width;
    GNN_REQUIRE((unsigned)g->dtype <= GNN_F16, GNN_ETYPE,
                "heads: dtype must be float32, float64, bfloat16 or float16, got %s",
                gnn_dtype_text(g->dtype));
    const gnn_dtype acc = accumulator_of(g->dtype);
    GNN_REQUIRE(g->edge_dtype == g->dtype || g->edge_dtype == acc, GNN_ETYPE,
                "heads: dtype of the edges must be %s or %s, got %s",
                gnn_dtype_text(g->dtype), gnn_dtype_text(acc),
                gnn_dtype_text(g->edge_dtype));
    GNN_REQUIRE(g->n_heads >= 0 && g->n_channels >= 0, GNN_EINVAL,
                "heads: heads and channels must be at least 0, got %" PRId64
                " and %" PRId64,
                g->n_heads, g->n_channels);
    GNN_REQUIRE(!__builtin_mul_overflow(g->n_heads, g->n_channels, &width), GNN_EINVAL,
                "heads: heads x channels must be below 2^63, got %" PRId64
                " x %" PRId64,
                g->n_heads, g->n_channels);
    GNN_TRY(check_rows("y", g->a.n_rows, width));
    GNN_TRY(check_rows("x", g->a.n_cols, g->x_stride));
    GNN_TRY(check_rows("u", g->a.n_rows, g->u_stride));
    GNN_TRY(check_rows("v", g->a.n_cols, g->v_stride));
    GNN_TRY(check_rows("edges", g->a.n_edges, g->n_heads));
    GNN_TRY(gnn_isa_get(&isa));
    *job = (heads_job){.view = {.args = g, .wide = g->edge_dtype != g->dtype},
                       .kernel = &kernels[isa][g->dtype],
                       .acc_size = gnn_dtype_size(acc)};
    return GNN_OK;
}

int64_t gnn_heads_spmm_scratch(const gnn_heads_args *args) {
    int64_t chunks;
    const int64_t heavy = heavy_rows_bytes(&args->a, &chunks);
    return heavy + chunks * args->n_heads * args->n_channels *
                       gnn_dtype_size(accumulator_of(args->dtype));
}

gnn_status gnn_heads_spmm_cpu(const gnn_heads_args *args) {
    heads_job job;
    GNN_TRY(start(args, &job));
    if (args->n_heads == 0 || args->n_channels == 0) {
        return GNN_OK;
    }
    job.view.sums = args->scratch;
    job.heavy = heavy_rows_list(&args->a, &job.view.sums);
    gnn_parallel_for(gnn_item_count(&args->a), 1, spmm_items, &job);
    gnn_parallel_for(job.heavy.n_rows, 1, join_rows, &job);
    return GNN_OK;
}

gnn_status gnn_heads_sddmm_cpu(const gnn_heads_args *args) {
    heads_job job;
    GNN_TRY(start(args, &job));
    if (args->n_heads == 0) {
        return GNN_OK;
    }
    gnn_parallel_for(gnn_item_count(&args->a), 1, sddmm_items, &job);
    return GNN_OK;
}

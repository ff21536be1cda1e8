/* edge_softmax_cpu.c: softmax over the entries of each row and its gradient on the CPU.
 *
 * A row's maximum and total need all its scores before the first result: whole rows are
 * done in batches of entries; the chunks of a heavy row leave their maxima and totals,
 * these are joined in chunk order, and a last loop over the chunks writes.
 */
#include "cpu/entry_batch.h"
#include "cpu/simd_exp.h"

#include <inttypes.h>

/* What the row kernels see. */
typedef struct softmax_view {
    const gnn_edge_softmax_args *args;
    void *parts; // [chunks of heavy rows, 2, H] accumulators
} softmax_view;

#define ROWS "cpu/edge_softmax_rows.h"
#include "cpu/row_variants.h"

typedef struct softmax_kernel {
    void (*batch)(const softmax_view *v, const entry_batch *b);
    void (*join)(const softmax_view *v, int64_t first, int64_t n_chunks);
    void (*finish)(const softmax_view *v, const entry_batch *b, int64_t first);
} softmax_kernel;

#define KERNEL(isa, d, pass)                                                           \
    {pass##_batch_##isa##_##d, pass##_join_##isa##_##d, pass##_finish_##isa##_##d}
#define KERNELS_OF(isa, pass)                                                          \
    {                                                                                  \
        [GNN_F32] = KERNEL(isa, f32, pass),                                            \
        [GNN_F64] = KERNEL(isa, f64, pass),                                            \
        [GNN_BF16] = KERNEL(isa, bf16, pass),                                          \
        [GNN_F16] = KERNEL(isa, f16, pass),                                            \
    },
#define FORWARD_OF(isa, text, has) KERNELS_OF(isa, softmax)
#define BACKWARD_OF(isa, text, has) KERNELS_OF(isa, vjp)
static const softmax_kernel forward[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(FORWARD_OF)};
static const softmax_kernel backward[GNN_ISA_COUNT][GNN_F16 + 1] = {
    GNN_ISA_MAP(BACKWARD_OF)};

typedef struct softmax_job {
    softmax_view view;
    const softmax_kernel *kernel;
    heavy_rows heavy;
} softmax_job;

static void run_batch(const void *context, const entry_batch *b) {
    const softmax_job *job = context;
    job->kernel->batch(&job->view, b);
}

static void run_items(int64_t first, int64_t stop, void *context) {
    const softmax_job *job = context;
    for (int64_t k = first; k < stop; k++) {
        walk_item(&job->view.args->a, &job->heavy, k, run_batch, job);
    }
}

static void join_rows(int64_t first, int64_t stop, void *context) {
    const softmax_job *job = context;
    for (int64_t k = first; k < stop; k++) {
        const gnn_heavy *h = &job->heavy.rows[k];
        job->kernel->join(&job->view, h->first_chunk,
                          heavy_row_chunks(&job->view.args->a, h));
    }
}

static void finish_chunks(int64_t first, int64_t stop, void *context) {
    const softmax_job *job = context;
    entry_batch b;
    for (int64_t c = first; c < stop; c++) {
        const int64_t h = take_chunk(&job->view.args->a, &job->heavy, c, &b);
        job->kernel->finish(&job->view, &b, job->heavy.rows[h].first_chunk);
    }
}

/* ------------------------------------------------------------------------------- entry */

int64_t gnn_edge_softmax_scratch(const gnn_edge_softmax_args *args) {
    int64_t chunks;
    const int64_t heavy = heavy_rows_bytes(&args->a, &chunks);
    const int64_t size =
        args->dtype == GNN_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
    return heavy + chunks * 2 * args->n_heads * size;
}

static gnn_status run(const gnn_edge_softmax_args *g,
                      const softmax_kernel table[GNN_ISA_COUNT][GNN_F16 + 1]) {
    gnn_isa isa;
    int64_t bytes;
    GNN_REQUIRE((unsigned)g->dtype <= GNN_F16, GNN_ETYPE,
                "edge_softmax: dtype must be float32, float64, bfloat16 or float16, "
                "got %s",
                gnn_dtype_text(g->dtype));
    GNN_REQUIRE(g->n_heads >= 0, GNN_EINVAL,
                "edge_softmax: number of heads must be at least 0, got %" PRId64,
                g->n_heads);
    GNN_REQUIRE(!__builtin_mul_overflow(g->a.n_edges, g->n_heads, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "edge_softmax: bytes of scores [%" PRId64 ", %" PRId64
                "] must be below 2^63",
                g->a.n_edges, g->n_heads);
    GNN_TRY(gnn_isa_get(&isa));
    if (g->n_heads == 0) {
        return GNN_OK;
    }
    softmax_job job = {.view = {.args = g, .parts = g->scratch},
                       .kernel = &table[isa][g->dtype]};
    job.heavy = heavy_rows_list(&g->a, &job.view.parts);
    gnn_parallel_for(gnn_item_count(&g->a), 1 + 16 / g->n_heads, run_items, &job);
    gnn_parallel_for(job.heavy.n_rows, 1, join_rows, &job);
    gnn_parallel_for(job.heavy.n_chunks, 1, finish_chunks, &job);
    return GNN_OK;
}

gnn_status gnn_edge_softmax_cpu(const gnn_edge_softmax_args *args) {
    return run(args, forward);
}

gnn_status gnn_edge_softmax_vjp_cpu(const gnn_edge_softmax_args *args) {
    return run(args, backward);
}

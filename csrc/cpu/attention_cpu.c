/* attention_cpu.c: forward of attention on the CPU, and what its passes share.
 *
 * A batch of entries (cpu/entry_batch.h) takes three looks: scores, softmax over each row,
 * weighted sum of the values. Backward by destination (attention_dst_cpu.c) computes the
 * scores once more and leaves alpha and the gradient of the scores per edge; backward by
 * source (attention_src_cpu.c) reads them. Nothing of size E x C is written.
 */
#include "cpu/attention_cpu.h"
#include "core/philox.h"
#include "cpu/simd_exp.h"

#include <inttypes.h>

enum { SLOTS = 256 }; // groups of work items: enough for the threads of any machine

#define ROWS "cpu/attention_rows.h"
#include "cpu/row_variants.h"

#define KERNELS_OF(isa, text, has) ATTENTION_KERNELS(isa, ATTENTION_NO_TOTAL)
static const attention_table kernels = {GNN_ISA_MAP(KERNELS_OF)};

/* -------------------------------------------------------------------------------- runs */

typedef struct attention_job {
    attention_view view;
    const attention_kernel *kernel;
    heavy_rows heavy;
    int64_t n_items, n_slots, sums, acc_size;
    char *slots; // [n_slots, sums]
} attention_job;

static void run_batch(const void *context, const entry_batch *b) {
    const attention_job *job = context;
    job->kernel->batch(&job->view, b);
}

static void run_items(int64_t first, int64_t stop, void *context) {
    const attention_job *job = context;
    for (int64_t k = first; k < stop; k++) {
        walk_item(&job->view.args->a, &job->heavy, k, run_batch, job);
    }
}

static void run_slots(int64_t first, int64_t stop, void *context) {
    attention_job job = *(const attention_job *)context;
    const int64_t bytes = job.sums * job.acc_size;
    for (int64_t s = first; s < stop; s++) {
        job.view.sums = memset(job.slots + s * bytes, 0, (size_t)bytes);
        run_items(s * job.n_items / job.n_slots, (s + 1) * job.n_items / job.n_slots,
                  &job);
    }
}

static void join_rows(int64_t first, int64_t stop, void *context) {
    const attention_job *job = context;
    const int64_t bytes = job->view.part * job->acc_size;
    for (int64_t k = first; k < stop; k++) {
        const gnn_heavy *h = &job->heavy.rows[k];
        job->kernel->join(&job->view, h->row,
                          (const char *)job->view.parts + h->first_chunk * bytes,
                          heavy_row_chunks(&job->view.args->a, h));
    }
}

static int64_t acc_size(const gnn_attention_args *g) {
    return g->dtype == GNN_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
}

static int64_t slot_count(const gnn_attention_args *g, int64_t sums) {
    const int64_t items = gnn_item_count(&g->a);
    return sums == 0 ? 0 : items < SLOTS ? items : SLOTS;
}

static int64_t parts_bytes(const gnn_attention_args *g, int64_t chunks, int64_t part) {
    return (chunks * part * acc_size(g) + 63) / 64 * 64;
}

int64_t attention_scratch(const gnn_attention_args *args, attention_count part,
                          attention_count sums) {
    int64_t chunks;
    const int64_t heavy = heavy_rows_bytes(&args->a, &chunks);
    const int64_t n_sums = sums != NULL ? sums(args) : 0;
    return heavy + parts_bytes(args, chunks, part(args)) +
           slot_count(args, n_sums) * n_sums * acc_size(args);
}

/* ------------------------------------------------------------------------------ checks */

static gnn_status check_rows(const char *name, int64_t n_rows, int64_t stride) {
    int64_t bytes;
    GNN_REQUIRE(!__builtin_mul_overflow(n_rows, stride, &bytes) &&
                    !__builtin_mul_overflow(bytes, (int64_t)8, &bytes),
                GNN_EGRAPH,
                "attention: bytes of %s [%" PRId64 ", stride %" PRId64
                "] must be below 2^63",
                name, n_rows, stride);
    return GNN_OK;
}

static gnn_status check(const gnn_attention_args *g) {
    int64_t width, edge_width;
    GNN_REQUIRE((unsigned)g->dtype <= GNN_F16, GNN_ETYPE,
                "attention: dtype must be float32, float64, bfloat16 or float16, got "
                "%s",
                gnn_dtype_text(g->dtype));
    GNN_REQUIRE((unsigned)g->kind <= GNN_DOT, GNN_EINVAL,
                "attention: kind must be 0, 1 or 2, got %d", (int)g->kind);
    GNN_REQUIRE(g->n_heads >= 0 && g->n_channels >= 0 && g->n_edge_features >= 0,
                GNN_EINVAL,
                "attention: heads, channels and edge features must be at least 0, got "
                "%" PRId64 ", %" PRId64 " and %" PRId64,
                g->n_heads, g->n_channels, g->n_edge_features);
    GNN_REQUIRE(
        !__builtin_mul_overflow(g->n_heads, g->n_channels, &width) &&
            !__builtin_mul_overflow(g->n_heads, g->n_edge_features, &edge_width),
        GNN_EINVAL,
        "attention: heads x channels must be below 2^63, got %" PRId64 " x %" PRId64,
        g->n_heads, g->n_channels);
    GNN_REQUIRE(g->dropout >= 0 && g->dropout < 1, GNN_EINVAL,
                "attention: dropout must be in [0, 1), got %g", g->dropout);
    GNN_REQUIRE(g->edge == NULL || g->edge_attr == NULL, GNN_EINVAL,
                "attention: edge and edge_attr exclude each other");
    GNN_REQUIRE(g->kind != GNN_GATV2 || g->edge_attr == NULL ||
                    g->n_edge_features <= GNN_MAX_EDGE_FEATURES,
                GNN_ENOTSUP,
                "attention: edge_attr may have at most %d features here, got %" PRId64,
                GNN_MAX_EDGE_FEATURES, g->n_edge_features);
    const int64_t rows = g->a.n_rows > g->a.n_cols ? g->a.n_rows : g->a.n_cols;
    GNN_TRY(check_rows("out", rows, width));
    GNN_TRY(check_rows("out_edge", rows, edge_width));
    GNN_TRY(check_rows("v", rows, g->v_stride));
    GNN_TRY(check_rows("k", rows, g->k_stride));
    GNN_TRY(check_rows("q", rows, g->q_stride));
    GNN_TRY(check_rows("grad", rows, g->grad_stride));
    GNN_TRY(check_rows("edge", g->a.n_edges, g->edge_stride));
    GNN_TRY(check_rows("d_edge", g->a.n_edges, g->d_edge != NULL ? width : 0));
    GNN_TRY(check_rows("edge_attr", g->a.n_edges, g->edge_attr_stride));
    GNN_TRY(check_rows("alpha", g->a.n_edges, g->n_heads));
    return GNN_OK;
}

gnn_status attention_run(const gnn_attention_args *args, const attention_table *table,
                         attention_count part, attention_count sums) {
    gnn_isa isa;
    GNN_TRY(check(args));
    GNN_TRY(gnn_isa_get(&isa));
    const int64_t n_sums = sums != NULL ? sums(args) : 0;
    attention_job job = {
        .view = {.args = args,
                 .width = args->n_heads * args->n_channels,
                 .part = part(args),
                 .parts = args->scratch,
                 .threshold = gnn_dropout_threshold(args->dropout),
                 .kept = 1 / (1 - args->dropout)},
        .kernel = &(*table)[isa][args->dtype],
        .n_items = gnn_item_count(&args->a),
        .n_slots = slot_count(args, n_sums),
        .sums = n_sums,
        .acc_size = acc_size(args),
    };
    job.heavy = heavy_rows_list(&args->a, &job.view.parts);
    job.slots =
        (char *)job.view.parts + parts_bytes(args, job.heavy.n_chunks, job.view.part);
    if (n_sums > 0) {
        gnn_parallel_for(job.n_slots, 1, run_slots, &job);
        job.kernel->total(&job.view, job.slots, job.n_slots);
    } else {
        gnn_parallel_for(job.n_items, 1, run_items, &job);
    }
    gnn_parallel_for(job.heavy.n_rows, 1, join_rows, &job);
    return GNN_OK;
}

/* ----------------------------------------------------------------------------- forward */

static int64_t part_of(const gnn_attention_args *g) {
    return 2 * g->n_heads + g->n_heads * g->n_channels + edge_width(g);
}

int64_t gnn_attention_scratch(const gnn_attention_args *args) {
    return attention_scratch(args, part_of, NULL);
}

gnn_status gnn_attention_cpu(const gnn_attention_args *args) {
    return attention_run(args, &kernels, part_of, NULL);
}

/* attention_dst_cpu.c: backward of attention by destination on the CPU; see attention_cpu.c. */
#include "core/philox.h"
#include "cpu/attention_cpu.h"
#include "cpu/simd_exp.h"
#include "mutants.h"

#define ROWS "cpu/attention_dst_rows.h"
#include "cpu/row_variants.h"

#define KERNELS_OF(isa, text, has) ATTENTION_KERNELS(isa, ATTENTION_TOTAL)
static const attention_table kernels = {GNN_ISA_MAP(KERNELS_OF)};

static int64_t part_of(const gnn_attention_args *g) {
    return g->kind == GNN_GAT ? g->n_heads : g->n_heads * g->n_channels + edge_width(g);
}

/* d_att and d_edge_weight, sums over all edges */
static int64_t sums_of(const gnn_attention_args *g) {
    const bool any = g->d_att != NULL || g->d_edge_weight != NULL;
    return g->kind == GNN_GATV2 && any
               ? (1 + g->n_edge_features) * g->n_heads * g->n_channels
               : 0;
}

int64_t gnn_attention_dst_vjp_scratch(const gnn_attention_args *args) {
    return attention_scratch(args, part_of, sums_of);
}

gnn_status gnn_attention_dst_vjp_cpu(const gnn_attention_args *args) {
    return attention_run(args, &kernels, part_of, sums_of);
}

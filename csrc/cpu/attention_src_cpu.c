/* attention_src_cpu.c: backward of attention by source on the CPU; see attention_cpu.c. */
#include "core/philox.h"
#include "cpu/attention_cpu.h"
#include "cpu/simd_exp.h"

#define ROWS "cpu/attention_src_rows.h"
#include "cpu/row_variants.h"

#define KERNELS_OF(isa, text, has) ATTENTION_KERNELS(isa, ATTENTION_NO_TOTAL)
static const attention_table kernels = {GNN_ISA_MAP(KERNELS_OF)};

static int64_t part_of(const gnn_attention_args *g) {
    return 2 * g->n_heads * g->n_channels + g->n_heads;
}

int64_t gnn_attention_src_vjp_scratch(const gnn_attention_args *args) {
    return attention_scratch(args, part_of, NULL);
}

gnn_status gnn_attention_src_vjp_cpu(const gnn_attention_args *args) {
    return attention_run(args, &kernels, part_of, NULL);
}

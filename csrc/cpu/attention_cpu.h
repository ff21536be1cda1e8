/* attention_cpu.h: what the three passes of attention on the CPU share. */
#ifndef GNN_ATTENTION_CPU_H
#define GNN_ATTENTION_CPU_H

#include "cpu/entry_batch.h"
#include "cpu/isa.h"

/* What the row kernels see. */
typedef struct attention_view {
    const gnn_attention_args *args;
    int64_t width;      // H * C
    int64_t part;       // numbers that a chunk of a heavy row leaves
    void *parts;        // [chunks of heavy rows, part] accumulators
    void *sums;         // d_att and d_edge_weight of this slot of work items, or NULL
    uint32_t threshold; // of dropout; 0: nothing is dropped
    double kept;        // 1 / (1 - dropout)
} attention_view;

/* One pass for one instruction set and dtype: a batch, then the chunks of a heavy row, then
 * the sums of all slots (total NULL: there are none). */
typedef struct attention_kernel {
    void (*batch)(const attention_view *v, const entry_batch *b);
    void (*join)(const attention_view *v, int64_t row, const void *parts,
                 int64_t n_chunks);
    void (*total)(const attention_view *v, const void *sums, int64_t n_slots);
} attention_kernel;

typedef attention_kernel attention_table[GNN_ISA_COUNT][GNN_F16 + 1];

/* A number of accumulators, from shapes and wanted gradients. */
typedef int64_t (*attention_count)(const gnn_attention_args *args);

/* Refuses what no pass can do, runs one. A chunk of a heavy row leaves part(args)
 * accumulators, joined in chunk order. Where sums is not NULL, work items go in a fixed
 * number of slots that keep sums(args) accumulators each, added up in slot order. */
gnn_status attention_run(const gnn_attention_args *args, const attention_table *table,
                         attention_count part, attention_count sums);
int64_t attention_scratch(const gnn_attention_args *args, attention_count part,
                          attention_count sums);

/* Table [GNN_ISA_COUNT][GNN_F16 + 1] of a pass from its row template's functions. */
#define ATTENTION_KERNEL(isa, d, total)                                                \
    {pass_batch_##isa##_##d, pass_join_##isa##_##d, total(isa, d)}
#define ATTENTION_NO_TOTAL(isa, d) NULL
#define ATTENTION_TOTAL(isa, d) pass_total_##isa##_##d
#define ATTENTION_KERNELS(isa, total)                                                  \
    {                                                                                  \
        [GNN_F32] = ATTENTION_KERNEL(isa, f32, total),                                 \
        [GNN_F64] = ATTENTION_KERNEL(isa, f64, total),                                 \
        [GNN_BF16] = ATTENTION_KERNEL(isa, bf16, total),                               \
        [GNN_F16] = ATTENTION_KERNEL(isa, f16, total),                                 \
    },

enum { V2_SLAB = 16 * GNN_WORK }; // numbers of attention_v2.h's rows

/* Numbers of a row of loaded attributes: whole eights. */
static inline int64_t attr_pitch(const gnn_attention_args *g) {
    return (g->n_edge_features + 7) / 8 * 8;
}

/* How many heads of a batch there is room for. */
static inline int64_t attention_heads_at_once(const gnn_attention_args *g,
                                              const entry_batch *b) {
    const int64_t room = heads_at_once(b, g->n_heads);
    const int64_t of_head = b->n * g->n_channels;
    if (g->kind != GNN_GATV2 || room * of_head <= V2_SLAB) {
        return room;
    }
    return of_head < V2_SLAB ? V2_SLAB / of_head : 1;
}

/* p + n, or NULL where p is: outputs that nobody wants */
#define SHIFTED(type, p, n) ((p) != NULL ? (type *)(p) + (n) : NULL)

/* Numbers of out_edge per row: DOT with raw attributes. */
static inline int64_t edge_width(const gnn_attention_args *g) {
    return g->kind == GNN_DOT && g->edge_attr != NULL ? g->n_heads * g->n_edge_features
                                                      : 0;
}

#endif

/* attention_scores.h: scores and dropout factors of a batch, part of the row templates of
 * attention. Numbers by entry and head lie as s [b->n, n_heads], heads from `first` on.
 */
#include "cpu/entry_rows.h"

#include "cpu/attention_v2.h"

/* GAT: s = lrelu(x) with x = score_src[j] + score_dst[i] + score_edge[eid], or, with
 * `slopes`, the derivative of lrelu there. */
OUTLINE void NAME(gat_scores)(const attention_view *v, const entry_batch *b,
                              int64_t first, int64_t n_heads, bool slopes, ACC *s) {
    const gnn_attention_args *g = v->args;
    const VEC slope = NAME(splat)((ACC)g->slope);
    const T *values = (const T *)g->v + first * g->n_channels; // gathered next
    const int64_t bytes = n_heads * g->n_channels * (int64_t)sizeof(T);
    for (int64_t r = 0; r < b->n_rows; r++) {
        const ACC *dst =
            (const ACC *)g->score_dst + (b->row + r) * g->n_heads + first; // [H]
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const ACC *src =
                (const ACC *)g->score_src + b->col[e] * g->n_heads + first; // [H]
            __builtin_prefetch((const ACC *)g->score_src +
                               b->col[e + SOON] * g->n_heads + first);
            ask_for(values + b->col[e] * g->v_stride, bytes);
            const ACC *edge = NULL; // [H]
            if (g->score_edge != NULL) {
                edge = (const ACC *)g->score_edge + b->edge[e] * g->n_heads + first;
                __builtin_prefetch((const ACC *)g->score_edge +
                                   b->edge[e + SOON] * g->n_heads + first);
            }
            for (int64_t h = 0; h < n_heads; h += LANES) {
                const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
                VEC x = NAME_A(load_heads)(src + h, lanes) +
                        NAME_A(load_heads)(dst + h, lanes);
                if (edge != NULL) {
                    x += NAME_A(load_heads)(edge + h, lanes);
                }
                const VEC gain = NAME_A(gain)(x, slope), value = x * gain;
                x = slopes ? gain : value;
                NAME_A(store_heads)(s + e * n_heads + h, x, lanes);
            }
        }
    }
}

INLINE operand NAME(edge_rows)(const gnn_attention_args *g) {
    return (operand){g->kind == GNN_DOT ? g->edge : NULL, g->edge_stride,
                     g->n_channels};
}

/* edge_attr has one row for all heads */
INLINE operand NAME(attr_rows)(const gnn_attention_args *g) {
    return (operand){g->edge_attr, g->edge_attr_stride, 0};
}

/* Scores of every kind. attr and x are for GATV2, see attention_v2.h. */
OUTLINE void NAME(scores)(const attention_view *v, const entry_batch *b,
                          const ACC *attr, int64_t first, int64_t n_heads, ACC *x,
                          ACC *s) {
    const gnn_attention_args *g = v->args;
    const int64_t n_attr = g->n_edge_features;
    if (g->kind == GNN_GAT) {
        NAME(gat_scores)(v, b, first, n_heads, false, s);
    } else if (g->kind == GNN_GATV2) {
        NAME(v2_scores)(g, b, attr, first, n_heads, x, s);
    } else {
        const operand q = {g->q, g->q_stride, g->n_channels};
        const operand k = {g->k, g->k_stride, g->n_channels};
        const operand values = {g->v, g->v_stride, g->n_channels};
        operand q_edge = {g->q_edge, g->n_heads * n_attr, n_attr};
        if (g->edge_attr == NULL) {
            q_edge.data = NULL;
        } else if (first == 0) {
            ask_for_next(&g->a, b, g->edge_attr,
                         g->edge_attr_stride * (int64_t)sizeof(T));
        }
        NAME(dots_with_edges)(b, q, k, NAME(edge_rows)(g), values, q_edge, false,
                              NAME(attr_rows)(g), n_attr, first, n_heads, g->n_channels,
                              (ACC)g->scale, s);
    }
}

/* m[e, h] = 0 where dropout takes (edge, head), else 1 / (1 - dropout) */
OUTLINE void NAME(dropout_factors)(const attention_view *v, const entry_batch *b,
                                   int64_t first, int64_t n_heads, ACC *m) {
    const uint64_t seed = v->args->seed;
    const ACC kept = (ACC)v->kept;
    for (int64_t e = 0; e < b->n; e++) {
        for (int64_t h = 0; h < n_heads;) {
            const int64_t four = (first + h) / 4;
            const gnn_philox w =
                gnn_philox_words(seed, (uint64_t)b->edge[e], (uint64_t)four);
            const uint32_t words[] = {w.w0, w.w1, w.w2, w.w3};
            do {
                m[e * n_heads + h] =
                    words[(first + h) % 4] >= v->threshold ? kept : (ACC)0;
                h++;
            } while (h < n_heads && (first + h) % 4 != 0);
        }
    }
}

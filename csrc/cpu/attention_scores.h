/* attention_scores.h: scores and dropout factors of a batch, part of the row templates of
 * attention. Numbers by entry and head lie as s [b->n, n_heads], heads from `first` on.
 */
#include "cpu/entry_rows.h"

/* GAT: s = lrelu(x) with x = score_src[j] + score_dst[i] + score_edge[eid], or, with
 * `slopes`, the derivative of lrelu there. */
OUTLINE void NAME(gat_scores)(const attention_view *v, const entry_batch *b,
                              int64_t first, int64_t n_heads, bool slopes, ACC *s) {
    const gnn_attention_args *g = v->args;
    const VEC slope = NAME(splat)((ACC)g->slope);
    for (int64_t r = 0; r < b->n_rows; r++) {
        const ACC *dst =
            (const ACC *)g->score_dst + (b->row + r) * g->n_heads + first; // [H]
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const ACC *src =
                (const ACC *)g->score_src + b->col[e] * g->n_heads + first; // [H]
            __builtin_prefetch((const ACC *)g->score_src +
                               b->col[e + SOON] * g->n_heads + first);
            const ACC *edge = NULL; // [H]
            if (g->score_edge != NULL) {
                edge = (const ACC *)g->score_edge + b->edge[e] * g->n_heads + first;
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

/* The rows that make the input of GATV2's leaky relu at one entry. */
typedef struct NAME(v2_entry) {
    const T *v, *q, *edge; // [H * C]
    const ACC *attr;       // [D]
} NAME(v2_entry);

/* v[j] + q[i] + f[e], lanes from number `at` of the row on */
INLINE VEC NAME(v2_input)(const gnn_attention_args *g, int64_t width,
                          const NAME(v2_entry) * o, int64_t at, int lanes, bool whole,
                          edge_mode mode) {
    VEC x = NAME(part)(o->v + at, lanes, whole) + NAME(part)(o->q + at, lanes, whole);
    if (mode == EDGE_ROWS) {
        x += NAME(part)(o->edge + at, lanes, whole);
    }
    if (mode == EDGE_ATTR) {
        const T *weight = (const T *)g->edge_weight + at; // edge_weight [D, H * C]
        for (int64_t d = 0; d < g->n_edge_features; d++, weight += width) {
            x += NAME(splat)(o->attr[d]) * NAME(part)(weight, lanes, whole);
        }
    }
    return x;
}

/* Raw attributes of a batch as accumulators, attr [b->n, D] */
OUTLINE void NAME(load_attrs)(const gnn_attention_args *g, const entry_batch *b,
                              ACC *attr) {
    const int64_t n = g->n_edge_features;
    for (int64_t e = 0; e < b->n; e++) {
        const T *p = (const T *)g->edge_attr + b->edge[e] * g->edge_attr_stride;
        for (int64_t d = 0; d < n; d++) {
            attr[e * n + d] = GNN_GLUE2(up, D)(p[d]);
        }
    }
}

/* Entry e of a batch whose destination is i and whose source is j. */
INLINE NAME(v2_entry)
    NAME(v2_at)(const gnn_attention_args *g, const entry_batch *b, int64_t e, int64_t i,
                int64_t j, const ACC *attr, edge_mode mode) {
    return (NAME(v2_entry)){
        .v = (const T *)g->v + j * g->v_stride,
        .q = (const T *)g->q + i * g->q_stride,
        .edge =
            mode == EDGE_ROWS ? (const T *)g->edge + b->edge[e] * g->edge_stride : NULL,
        .attr = mode == EDGE_ATTR ? attr + e * g->n_edge_features : NULL,
    };
}

/* The lanes of <att, lrelu(v + q + f)> of the head that starts at number `at`. */
INLINE VEC NAME(v2_lanes)(const gnn_attention_args *g, int64_t width,
                          const NAME(v2_entry) * o, int64_t at, VEC slope,
                          edge_mode mode, int n, bool whole) {
    const int64_t n_channels = g->n_channels;
    const int64_t n_vectors = n > 0 ? n : (n_channels + LANES - 1) / LANES;
    const int tail = (int)(n_channels - (n_vectors - 1) * LANES);
    const T *att = (const T *)g->att + at; // [H * C]
    VEC sum = NAME(splat)(0);
    for (int64_t k = 0; k < n_vectors; k++) {
        const bool full = whole || k < n_vectors - 1;
        const VEC x = NAME(v2_input)(g, width, o, at + k * LANES, tail, full, mode);
        sum += x * NAME_A(gain)(x, slope) * NAME(part)(att + k * LANES, tail, full);
    }
    return sum;
}

/* GATV2: s = <att[h], lrelu(v[j, h] + q[i, h] + f[e, h])> */
INLINE void NAME(v2_scores_of)(const attention_view *v, const entry_batch *b,
                               const ACC *attr, int64_t first, int64_t n_heads, ACC *s,
                               edge_mode mode, int n, bool whole) {
    const gnn_attention_args *g = v->args;
    const int64_t n_channels = g->n_channels;
    const VEC slope = NAME(splat)((ACC)g->slope);
    const T *soon = (const T *)g->v + first * n_channels;
    const int64_t bytes = n_heads * n_channels * (int64_t)sizeof(T);
#define BEFORE(e) ask_for(soon + b->col[(e) + SOON] * g->v_stride, bytes);
#define PAIR(e, h)                                                                     \
    NAME(v2_lanes)(g, v->width,                                                        \
                   &(const NAME(v2_entry)){                                            \
                       (const T *)g->v + b->col[e] * g->v_stride,                      \
                       (const T *)g->q + (b->row + r) * g->q_stride,                   \
                       mode == EDGE_ROWS                                               \
                           ? (const T *)g->edge + b->edge[e] * g->edge_stride          \
                           : NULL,                                                     \
                       mode == EDGE_ATTR ? attr + (e) * g->n_edge_features : NULL},    \
                   (first + (h)) * n_channels, slope, mode, n, whole)
    EACH_PAIR(b, n_heads, 1, false, s, BEFORE, PAIR)
#undef BEFORE
#undef PAIR
}

OUTLINE void NAME(v2_scores)(const attention_view *v, const entry_batch *b,
                             const ACC *attr, int64_t first, int64_t n_heads, ACC *s) {
#define CALL(n, whole)                                                                 \
    NAME(v2_scores_of)(v, b, attr, first, n_heads, s, NO_EDGE, n, whole)
    const edge_mode mode = edge_mode_of(v->args);
    if (mode == NO_EDGE) {
        BY_VECTORS(v->args->n_channels, CALL)
    } else if (mode == EDGE_ROWS) {
        NAME(v2_scores_of)(v, b, attr, first, n_heads, s, EDGE_ROWS, 0, false);
    } else {
        NAME(v2_scores_of)(v, b, attr, first, n_heads, s, EDGE_ATTR, 0, false);
    }
#undef CALL
}

INLINE operand NAME(edge_rows)(const gnn_attention_args *g) {
    return (operand){g->kind == GNN_DOT ? g->edge : NULL, g->edge_stride,
                     g->n_channels};
}

/* edge_attr has one row for all heads */
INLINE operand NAME(attr_rows)(const gnn_attention_args *g) {
    return (operand){g->edge_attr, g->edge_attr_stride, 0};
}

/* Scores of every kind. attr [b->n, D] is for GATV2. */
OUTLINE void NAME(scores)(const attention_view *v, const entry_batch *b,
                          const ACC *attr, int64_t first, int64_t n_heads, ACC *s) {
    const gnn_attention_args *g = v->args;
    const int64_t n_attr = g->n_edge_features;
    if (g->kind == GNN_GAT) {
        NAME(gat_scores)(v, b, first, n_heads, false, s);
    } else if (g->kind == GNN_GATV2) {
        NAME(v2_scores)(v, b, attr, first, n_heads, s);
    } else {
        const operand q = {g->q, g->q_stride, g->n_channels};
        const operand k = {g->k, g->k_stride, g->n_channels};
        NAME(dots)(b, q, false, k, b->col, NAME(edge_rows)(g), first, n_heads,
                   g->n_channels, (ACC)g->scale, false, s);
        if (g->edge_attr != NULL) {
            const operand q_edge = {g->q_edge, g->n_heads * n_attr, n_attr};
            NAME(dots)(b, q_edge, false, NAME(attr_rows)(g), b->edge, (operand){0},
                       first, n_heads, n_attr, (ACC)g->scale, true, s);
        }
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

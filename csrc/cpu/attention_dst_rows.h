/* attention_dst_rows.h: backward of attention by destination for one instruction set and
 * one dtype: alpha, the gradient of the scores, and what hangs on destinations, edges and
 * parameters.
 *
 * The part of a chunk is [H C + H D], the sums d_q and d_q_edge; GAT: [H], d_score_dst.
 * The sums of a slot are [1 + D, H C]: d_att, then d_edge_weight; GATV2 alone.
 */
#include "cpu/row_names.h"

#include "cpu/attention_scores.h"
#include "cpu/softmax_rows.h"

/* delta[r, h] = <grad, out> + <grad_edge, out_edge>: the sum over the row of
 * m * alpha * <grad, value>, without looking at an edge */
OUTLINE void NAME(deltas)(const attention_view *v, const entry_batch *b, int64_t first,
                          int64_t n_heads, ACC *delta) {
    const gnn_attention_args *g = v->args;
    const int64_t n_channels = g->n_channels, n_attr = g->n_edge_features;
    const int64_t bytes = n_heads * n_channels * (int64_t)sizeof(T);
    for (int64_t r = 0; r < b->n_rows; r++) {
        const int64_t soon = b->row + b->n_rows + r;
        if (soon < g->a.n_rows) { // of the next batch
            ask_for((const T *)g->grad + soon * g->grad_stride + first * n_channels,
                    bytes);
            ask_for((const ACC *)g->out_acc + soon * v->width + first * n_channels,
                    n_heads * n_channels * (int64_t)sizeof(ACC));
        }
        for (int64_t h = 0; h < n_heads; h++) {
            const int64_t of_head = (b->row + r) * g->n_heads + first + h;
            const T *grad = (const T *)g->grad + (b->row + r) * g->grad_stride +
                            (first + h) * n_channels;
            const ACC *out = (const ACC *)g->out_acc + of_head * n_channels;
            VEC sum = NAME(splat)(0);
            for (int64_t c = 0; c < n_channels; c += LANES) {
                sum += NAME(load_part)(grad + c, LANES_LEFT(c)) *
                       NAME_A(load_part)(out + c, LANES_LEFT(c));
            }
            ACC dot = NAME(total)(sum);
            if (g->grad_edge != NULL) {
                const ACC *grad_edge = (const ACC *)g->grad_edge + of_head * n_attr;
                const ACC *out_edge = (const ACC *)g->out_edge + of_head * n_attr;
                for (int64_t d = 0; d < n_attr; d++) {
                    dot += grad_edge[d] * out_edge[d];
                }
            }
            delta[r * n_heads + h] = dot;
        }
    }
}

/* s: scores in, m * alpha out. ds: <grad, value> in, alpha * (m * ds - delta) out. */
OUTLINE void NAME(score_gradients)(const attention_view *v, const entry_batch *b,
                                   int64_t first, int64_t n_heads, const ACC *delta,
                                   const ACC *m, ACC *s, ACC *ds) {
    const ACC *lse =
        (const ACC *)v->args->lse + b->row * v->args->n_heads + first; // [N, H]
    for (int64_t r = 0; r < b->n_rows; r++) {
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            const VEC shift = NAME_A(load_heads)(lse + r * v->args->n_heads + h, lanes);
            for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
                ACC *p = s + e * n_heads + h;
                NAME_A(store_heads)(p, NAME_A(load_heads)(p, lanes) - shift, lanes);
            }
        }
    }
    NAME(exp_all)(s, b->n * n_heads);
    for (int64_t r = 0; r < b->n_rows; r++) {
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            const VEC of_row = NAME_A(load_heads)(delta + r * n_heads + h, lanes);
            for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
                const int64_t at = e * n_heads + h;
                const VEC alpha = NAME_A(load_heads)(s + at, lanes);
                VEC dalpha = NAME_A(load_heads)(ds + at, lanes);
                if (m != NULL) {
                    const VEC factor = NAME_A(load_heads)(m + at, lanes);
                    dalpha *= GNN_MUTANT(dropout_not_in_dscore, factor, NAME(splat)(1));
                    NAME_A(store_heads)(s + at, alpha * factor, lanes);
                }
                NAME_A(store_heads)(ds + at, alpha * (dalpha - of_row), lanes);
            }
        }
    }
}

/* --------------------------------------------------------------------------------- DOT */

/* d_edge[eid, h] = scale * ds * q[i, h] + m * alpha * grad[i, h] */
OUTLINE void NAME(dot_edge_gradients)(const attention_view *v, const entry_batch *b,
                                      const ACC *alpha, const ACC *ds, int64_t first,
                                      int64_t n_heads) {
    const gnn_attention_args *g = v->args;
    const int64_t n_channels = g->n_channels;
    for (int64_t r = 0; r < b->n_rows; r++) {
        const int64_t i = b->row + r;
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            T *d_edge = (T *)g->d_edge + b->edge[e] * v->width; // [E, H * C]
            for (int64_t k = 0; k < n_heads; k++) {
                const VEC of_q = NAME(splat)((ACC)g->scale * ds[e * n_heads + k]);
                const VEC of_grad = NAME(splat)(alpha[e * n_heads + k]);
                for (int64_t c = 0; c < n_channels; c += LANES) {
                    const int lanes = LANES_LEFT(c);
                    const int64_t at = (first + k) * n_channels + c;
                    const T *q = (const T *)g->q + i * g->q_stride + at;
                    const T *grad = (const T *)g->grad + i * g->grad_stride + at;
                    NAME(store_part)(d_edge + at,
                                     of_q * NAME(load_part)(q, lanes) +
                                         of_grad * NAME(load_part)(grad, lanes),
                                     lanes);
                }
            }
        }
    }
}

/* d_edge_attr[eid] = sum over h of scale * ds * q_edge[i, h] + m * alpha * grad_edge[i, h],
 * alpha and dscore read back */
OUTLINE void NAME(dot_attr_gradients)(const attention_view *v, const entry_batch *b) {
    const gnn_attention_args *g = v->args;
    const int64_t n_channels = g->n_edge_features; // for LANES_LEFT
    for (int64_t r = 0; r < b->n_rows; r++) {
        const int64_t row = (b->row + r) * g->n_heads * n_channels;
        const T *q_edge = (const T *)g->q_edge + row; // [H, D]
        const ACC *grad_edge = SHIFTED(const ACC, g->grad_edge, row);
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const ACC *ds = (const ACC *)g->dscore + b->edge[e] * g->n_heads;
            const ACC *alpha = (const ACC *)g->alpha + b->edge[e] * g->n_heads;
            T *d_attr = (T *)g->d_edge_attr + b->edge[e] * n_channels; // [E, D]
            for (int64_t c = 0; c < n_channels; c += LANES) {
                const int lanes = LANES_LEFT(c);
                VEC sum = NAME(splat)(0);
                for (int64_t h = 0; h < g->n_heads; h++) {
                    const int64_t at = h * n_channels + c;
                    sum += NAME(splat)((ACC)g->scale * ds[h]) *
                           NAME(load_part)(q_edge + at, lanes);
                    if (grad_edge != NULL) {
                        sum += NAME(splat)(alpha[h]) *
                               NAME_A(load_part)(grad_edge + at, lanes);
                    }
                }
                NAME(store_part)(d_attr + c, sum, lanes);
            }
        }
    }
}

/* --------------------------------------------------------------------------------- GAT */

/* The derivative of lrelu at every score s = lrelu(x): s has the sign of x where the slope
 * is above 0, else x is computed once more. */
OUTLINE void NAME(gat_gains)(const attention_view *v, const entry_batch *b,
                             int64_t first, int64_t n_heads, const ACC *s, ACC *gains) {
    const ACC slope = (ACC)v->args->slope;
    if (!(slope > 0)) {
        NAME(gat_scores)(v, b, first, n_heads, true, gains);
        return;
    }
    for (int64_t k = 0; k < b->n * n_heads; k++) {
        gains[k] =
            GNN_MUTANT(gat_gain_of_negative_scores, s[k] > 0, s[k] < 0) ? 1 : slope;
    }
}

/* -------------------------------------------------------------------------------- pass */

/* What one head block leaves of d_q, d_q_edge, d_edge. */
INLINE void NAME(dot_gradients)(const attention_view *v, const entry_batch *b,
                                const ACC *alpha, const ACC *ds, int64_t first,
                                int64_t n_heads, const result *d_q,
                                const result *d_q_edge) {
    const gnn_attention_args *g = v->args;
    const operand k = {g->k, g->k_stride, g->n_channels};
    if (g->d_q != NULL) {
        NAME(sums)(b, ds, k, b->col, NAME(edge_rows)(g), first, n_heads, g->n_channels,
                   NULL, (ACC)g->scale, d_q);
    }
    if (g->d_q_edge != NULL) {
        NAME(sums)(b, ds, NAME(attr_rows)(g), b->edge, (operand){0}, first, n_heads,
                   g->n_edge_features, NULL, (ACC)g->scale, d_q_edge);
    }
    if (g->d_edge != NULL && g->edge != NULL) {
        NAME(dot_edge_gradients)(v, b, alpha, ds, first, n_heads);
    }
}

/* d_edge_attr [E, D] */
INLINE void NAME(put_attrs)(const gnn_attention_args *g, const entry_batch *b,
                            const ACC *d_attr) {
    const int64_t n_channels = g->n_edge_features;
    for (int64_t e = 0; e < b->n; e++) {
        for (int64_t c = 0; c < n_channels; c += LANES) {
            const ACC *from = d_attr + e * attr_pitch(g) + c;
            NAME(store_part)((T *)g->d_edge_attr + b->edge[e] * n_channels + c,
                             NAME_A(load_part)(from, LANES_LEFT(c)), LANES_LEFT(c));
        }
    }
}

TARGET static void NAME(pass_batch)(const attention_view *v, const entry_batch *b) {
    const gnn_attention_args *g = v->args;
    const int64_t n_heads = g->n_heads, width = v->width, n_attr = g->n_edge_features;
    const operand values = {g->v, g->v_stride, g->n_channels};
    const operand grad = {g->grad, g->grad_stride, g->n_channels};
    const operand grad_edge = {g->grad_edge, n_heads * n_attr, n_attr};
    const bool chunk = b->chunk >= 0;
    ACC *part = chunk ? (ACC *)v->parts + b->chunk * v->part : NULL;
    result d_q = {.stride = width, .apart = g->n_channels};
    result d_q_edge = {.stride = n_heads * n_attr, .apart = n_attr};
    if (chunk) {
        d_q.acc = part;
        d_q_edge.acc = part + width;
    } else {
        d_q.data = SHIFTED(T, g->d_q, b->row * width);
        d_q_edge.data = SHIFTED(T, g->d_q_edge, b->row * d_q_edge.stride);
    }
    _Alignas(64) ACC s[SCORES], ds[SCORES], m[SCORES], delta[SCORES], gains[SCORES];
    _Alignas(64) ACC attr[GNN_WORK * GNN_MAX_EDGE_FEATURES], x[V2_SLAB];
    _Alignas(64) ACC d_attr[GNN_WORK * GNN_MAX_EDGE_FEATURES];
    const bool v2_attr = g->kind == GNN_GATV2 && g->edge_attr != NULL;
    if (v2_attr) {
        NAME(load_attrs)(g, b, attr);
    }
    if (v2_attr && g->d_edge_attr != NULL) {
        memset(d_attr, 0, (size_t)(b->n * attr_pitch(g)) * sizeof *d_attr);
    }
    for (int64_t e = 0; e < b->n; e++) { // both are written at the end of the batch
        __builtin_prefetch((const ACC *)g->alpha + b->edge[e] * n_heads, 1);
        __builtin_prefetch((const ACC *)g->dscore + b->edge[e] * n_heads, 1);
    }
    const int64_t room = attention_heads_at_once(g, b);
    for (int64_t h = 0; h < n_heads; h += room) {
        const int64_t n = n_heads - h < room ? n_heads - h : room;
        NAME(scores)(v, b, attr, h, n, x, s);
        NAME(dots_with_edges)(b, grad, values, NAME(edge_rows)(g), values, grad_edge,
                              true, NAME(attr_rows)(g), n_attr, h, n, g->n_channels, 1,
                              ds);
        if (g->kind == GNN_GAT) {
            NAME(gat_gains)(v, b, h, n, s, gains);
        }
        NAME(deltas)(v, b, h, n, delta);
        if (v->threshold > 0) {
            NAME(dropout_factors)(v, b, h, n, m);
        }
        NAME(score_gradients)(v, b, h, n, delta, v->threshold > 0 ? m : NULL, s, ds);
        if (g->kind == GNN_GAT) {
            for (int64_t k = 0; k < b->n * n; k++) {
                ds[k] *= gains[k];
            }
        }
        NAME(put_edge_numbers)(b, s, true, n_heads, h, n, g->alpha);
        NAME(put_edge_numbers)(b, ds, true, n_heads, h, n, g->dscore);
        if (g->kind == GNN_GAT && g->d_score_dst != NULL) {
            ACC *to = chunk ? part : (ACC *)g->d_score_dst + b->row * n_heads;
            NAME(row_totals)(b, ds, NULL, n, m);
            for (int64_t r = 0; r < b->n_rows; r++) {
                memcpy(to + r * n_heads + h, m + r * n, (size_t)n * sizeof *to);
            }
        } else if (g->kind == GNN_GATV2 &&
                   (g->d_q != NULL || v->sums != NULL || g->d_edge != NULL ||
                    g->d_edge_attr != NULL)) {
            NAME(v2_gradients)(v, b, attr, ds, h, n, &d_q, x, d_attr);
        } else if (g->kind == GNN_DOT) {
            NAME(dot_gradients)(v, b, s, ds, h, n, &d_q, &d_q_edge);
        }
    }
    if (g->d_edge_attr != NULL && v2_attr) {
        NAME(put_attrs)(g, b, d_attr);
    } else if (g->d_edge_attr != NULL && g->kind == GNN_DOT && g->edge_attr != NULL) {
        NAME(dot_attr_gradients)(v, b);
    }
}

TARGET static void NAME(pass_join)(const attention_view *v, int64_t row,
                                   const void *parts, int64_t n_chunks) {
    const gnn_attention_args *g = v->args;
    if (g->kind == GNN_GAT) {
        if (g->d_score_dst != NULL) {
            const result y = {.acc = (ACC *)g->d_score_dst + row * g->n_heads};
            NAME(join_parts)(parts, n_chunks, v->part, g->n_heads, 1, &y);
        }
        return;
    }
    if (g->d_q != NULL) {
        const result y = {.data = (T *)g->d_q + row * v->width};
        NAME(join_parts)(parts, n_chunks, v->part, v->width, 1, &y);
    }
    if (g->d_q_edge != NULL) {
        const int64_t n = edge_width(g);
        const result y = {.data = (T *)g->d_q_edge + row * n};
        NAME(join_parts)((const ACC *)parts + v->width, n_chunks, v->part, n, 1, &y);
    }
}

/* d_att and d_edge_weight from the sums of the slots, in order */
TARGET static void NAME(pass_total)(const attention_view *v, const void *sums,
                                    int64_t n_slots) {
    const gnn_attention_args *g = v->args;
    const int64_t apart = (1 + g->n_edge_features) * v->width;
    if (g->d_att != NULL) {
        const result y = {.data = g->d_att};
        NAME(join_parts)(sums, n_slots, apart, v->width, 1, &y);
    }
    if (g->d_edge_weight != NULL) {
        const result y = {.data = g->d_edge_weight};
        NAME(join_parts)((const ACC *)sums + v->width, n_slots, apart,
                         g->n_edge_features * v->width, 1, &y);
    }
}

#include "cpu/row_names_end.h"

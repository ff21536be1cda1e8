/* attention_src_rows.h: backward of attention by source for one instruction set and one
 * dtype: rows are sources, entries lead to destinations, alpha and dscore are read.
 *
 * The part of a chunk is [2 H C + H]: d_v, d_k, d_score_src.
 */
#include "cpu/row_names.h"

#include "cpu/attention_scores.h"
#include "cpu/softmax_rows.h"

/* GATV2: d_v[j] = sum of m * alpha * grad[i] + att * sum of ds * lrelu'(v[j] + q[i] + f)
 *
 * Numbers [at, at + m * LANES) of a row, the last vector of `lanes` lanes; n vectors a head,
 * or n = 0: all of head k. */
INLINE void NAME(v2_values_tile)(const attention_view *v, const entry_batch *b,
                                 const ACC *attr, const ACC *alpha, const ACC *ds,
                                 int64_t n_heads, const result *d_v, int64_t at,
                                 int64_t k, int lanes, int64_t soon, edge_mode mode,
                                 int n, int m) {
    const gnn_attention_args *g = v->args;
    const VEC slope = NAME(splat)((ACC)g->slope);
    const T *grads = (const T *)g->grad, *qs = (const T *)g->q;
    for (int64_t r = 0; r < b->n_rows; r++) {
        VEC sum[4], slopes[4];
        for (int j = 0; j < m; j++) {
            sum[j] = slopes[j] = NAME(splat)(0);
        }
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const int64_t i = b->col[e];
            const NAME(v2_entry) o = NAME(v2_at)(g, b, e, i, b->row + r, attr, mode);
            const T *grad = grads + i * g->grad_stride + at;
            ask_for(grads + b->col[e + SOON] * g->grad_stride, soon);
            ask_for(qs + b->col[e + SOON] * g->q_stride, soon);
            for (int j = 0; j < m; j++) {
                const bool whole = n > 0;
                const int64_t of = e * n_heads + k + (n > 0 ? j / n : 0);
                const VEC x =
                    NAME(v2_input)(g, v->width, &o, at + j * LANES, lanes, whole, mode);
                sum[j] +=
                    NAME(splat)(alpha[of]) * NAME(part)(grad + j * LANES, lanes, whole);
                slopes[j] += NAME(splat)(ds[of]) * NAME_A(gain)(x, slope);
            }
        }
        for (int j = 0; j < m; j++) {
            const T *att = (const T *)g->att + at + j * LANES;
            sum[j] += slopes[j] * NAME(load_part)(att, lanes);
            NAME(leave)(d_v, r * d_v->stride + at + j * LANES, sum[j], lanes);
        }
    }
}

INLINE void NAME(v2_values_of)(const attention_view *v, const entry_batch *b,
                               const ACC *attr, const ACC *alpha, const ACC *ds,
                               int64_t first, int64_t n_heads, const result *d_v,
                               edge_mode mode, int n, bool whole) {
    const int64_t n_channels = v->args->n_channels;
    const int64_t bytes = n_heads * n_channels * (int64_t)sizeof(T);
    int64_t k = 0;
    for (; whole && k + 4 / n <= n_heads; k += 4 / n) {
        NAME(v2_values_tile)(v, b, attr, alpha, ds, n_heads, d_v,
                             (first + k) * n_channels, k, LANES, k == 0 ? bytes : 0,
                             mode, n, 4);
    }
    for (; k < n_heads; k++) {
        for (int64_t c = 0; c < n_channels; c += LANES) {
            NAME(v2_values_tile)(v, b, attr, alpha, ds, n_heads, d_v,
                                 (first + k) * n_channels + c, k, LANES_LEFT(c),
                                 k + c == 0 ? bytes : 0, mode, 0, 1);
        }
    }
}

OUTLINE void NAME(v2_values)(const attention_view *v, const entry_batch *b,
                             const ACC *attr, const ACC *alpha, const ACC *ds,
                             int64_t first, int64_t n_heads, const result *d_v) {
    const edge_mode mode = edge_mode_of(v->args);
#define CALL(n, whole)                                                                 \
    NAME(v2_values_of)(v, b, attr, alpha, ds, first, n_heads, d_v, NO_EDGE,            \
                       whole ? n : 1, whole)
    if (mode == NO_EDGE) {
        BY_VECTORS(v->args->n_channels, CALL)
    } else if (mode == EDGE_ROWS) {
        NAME(v2_values_of)(v, b, attr, alpha, ds, first, n_heads, d_v, EDGE_ROWS, 1,
                           false);
    } else {
        NAME(v2_values_of)(v, b, attr, alpha, ds, first, n_heads, d_v, EDGE_ATTR, 1,
                           false);
    }
#undef CALL
}

TARGET static void NAME(pass_batch)(const attention_view *v, const entry_batch *b) {
    const gnn_attention_args *g = v->args;
    const int64_t n_heads = g->n_heads, width = v->width, n_channels = g->n_channels;
    const operand grad = {g->grad, g->grad_stride, n_channels};
    const operand q = {g->q, g->q_stride, n_channels};
    const bool chunk = b->chunk >= 0;
    ACC *part = chunk ? (ACC *)v->parts + b->chunk * v->part : NULL;
    result d_v = {.stride = width, .apart = n_channels}, d_k = d_v;
    if (chunk) {
        d_v.acc = part;
        d_k.acc = part + width;
    } else {
        d_v.data = SHIFTED(T, g->d_v, b->row * width);
        d_k.data = SHIFTED(T, g->d_k, b->row * width);
    }
    _Alignas(64) ACC alpha[SCORES], ds[SCORES], total[SCORES];
    _Alignas(64) ACC attr[GNN_WORK * GNN_MAX_EDGE_FEATURES];
    if (g->kind == GNN_GATV2 && g->edge_attr != NULL) {
        NAME(load_attrs)(g, b, attr);
    }
    const int64_t room = heads_at_once(b, n_heads);
    for (int64_t h = 0; h < n_heads; h += room) {
        const int64_t n = n_heads - h < room ? n_heads - h : room;
        NAME(edge_numbers)(b, g->alpha, true, n_heads, h, n, alpha);
        NAME(edge_numbers)(b, g->dscore, true, n_heads, h, n, ds);
        if (g->d_v != NULL && g->kind == GNN_GATV2) {
            NAME(v2_values)(v, b, attr, alpha, ds, h, n, &d_v);
        } else if (g->d_v != NULL) {
            NAME(sums)(b, alpha, grad, b->col, (operand){0}, h, n, n_channels, NULL, 1,
                       &d_v);
        }
        if (g->d_k != NULL && g->kind == GNN_DOT) {
            NAME(sums)(b, ds, q, b->col, (operand){0}, h, n, n_channels, NULL,
                       (ACC)g->scale, &d_k);
        }
        if (g->d_score_src != NULL && g->kind == GNN_GAT) {
            ACC *to =
                chunk ? part + 2 * width : (ACC *)g->d_score_src + b->row * n_heads;
            NAME(row_totals)(b, ds, NULL, n, total);
            for (int64_t r = 0; r < b->n_rows; r++) {
                memcpy(to + r * n_heads + h, total + r * n, (size_t)n * sizeof *to);
            }
        }
    }
}

TARGET static void NAME(pass_join)(const attention_view *v, int64_t row,
                                   const void *parts, int64_t n_chunks) {
    const gnn_attention_args *g = v->args;
    const ACC *d_v = parts, *d_k = d_v + v->width, *d_score = d_k + v->width;
    if (g->d_v != NULL) {
        const result y = {.data = (T *)g->d_v + row * v->width};
        NAME(join_parts)(d_v, n_chunks, v->part, v->width, 1, &y);
    }
    if (g->d_k != NULL && g->kind == GNN_DOT) {
        const result y = {.data = (T *)g->d_k + row * v->width};
        NAME(join_parts)(d_k, n_chunks, v->part, v->width, 1, &y);
    }
    if (g->d_score_src != NULL && g->kind == GNN_GAT) {
        const result y = {.acc = (ACC *)g->d_score_src + row * g->n_heads};
        NAME(join_parts)(d_score, n_chunks, v->part, g->n_heads, 1, &y);
    }
}

#include "cpu/row_names_end.h"

/* attention_src_rows.h: backward of attention by source for one instruction set and one
 * dtype: rows are sources, entries lead to destinations, alpha and dscore are read.
 *
 * The part of a chunk is [2 H C + H]: d_v, d_k, d_score_src.
 */
#include "cpu/row_names.h"

#include "cpu/attention_scores.h"
#include "cpu/softmax_rows.h"

/* alpha and dscore of a batch. On the way the rows of grad and q are asked for. */
OUTLINE void NAME(read_scores)(const gnn_attention_args *g, const entry_batch *b,
                               int64_t first, int64_t n_heads, ACC *alpha, ACC *ds) {
    const ACC *alphas = (const ACC *)g->alpha + first;
    const ACC *dscores = (const ACC *)g->dscore + first;
    const T *grads = (const T *)g->grad + first * g->n_channels;
    const T *qs = g->q != NULL ? (const T *)g->q + first * g->n_channels : NULL;
    const int64_t bytes = n_heads * g->n_channels * (int64_t)sizeof(T);
    for (int64_t e = 0; e < b->n; e++) {
        const int64_t from = b->edge[e] * g->n_heads;
        ask_for(grads + b->col[e] * g->grad_stride, bytes);
        if (qs != NULL) {
            ask_for(qs + b->col[e] * g->q_stride, bytes);
        }
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            const int64_t to = e * n_heads + h;
            NAME_A(store_heads)
            (alpha + to, NAME_A(load_heads)(alphas + from + h, lanes), lanes);
            NAME_A(store_heads)
            (ds + to, NAME_A(load_heads)(dscores + from + h, lanes), lanes);
        }
    }
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
    _Alignas(64) ACC attr[GNN_WORK * GNN_MAX_EDGE_FEATURES], x[V2_SLAB];
    if (g->kind == GNN_GATV2 && g->edge_attr != NULL) {
        NAME(load_attrs)(g, b, attr);
    }
    ask_for_next(&g->a, b, g->alpha, n_heads * (int64_t)sizeof(ACC));
    ask_for_next(&g->a, b, g->dscore, n_heads * (int64_t)sizeof(ACC));
    const int64_t room = attention_heads_at_once(g, b);
    for (int64_t h = 0; h < n_heads; h += room) {
        const int64_t n = n_heads - h < room ? n_heads - h : room;
        NAME(read_scores)(g, b, h, n, alpha, ds);
        if (g->d_v != NULL && g->kind == GNN_GATV2) {
            NAME(v2_values)(v, b, attr, alpha, ds, h, n, &d_v, x);
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

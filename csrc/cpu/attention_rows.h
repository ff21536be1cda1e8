/* attention_rows.h: forward of attention for one instruction set and one dtype.
 *
 * The part of a chunk is [2 H + H C + H D]: maxima, totals, and the sums of
 * exp(s - maximum) * value and of exp(s - maximum) * edge_attr, dropout applied.
 */
#include "cpu/row_names.h"

#include "cpu/attention_scores.h"
#include "cpu/softmax_rows.h"

INLINE ACC NAME(lse_of)(ACC most, ACC total) {
    // +inf scores: total is NaN, lse is +inf; most itself is NaN where a score was
    return most == (ACC)INFINITY ? most : most + GNN_GLUE2(log, A)(total);
}

TARGET static void NAME(pass_batch)(const attention_view *v, const entry_batch *b) {
    const gnn_attention_args *g = v->args;
    const int64_t n_heads = g->n_heads, width = v->width, n_attr = g->n_edge_features;
    const operand values = {g->v, g->v_stride, g->n_channels};
    const bool chunk = b->chunk >= 0, projected = edge_width(g) > 0;
    ACC *part = chunk ? (ACC *)v->parts + b->chunk * v->part : NULL;
    result out = {.stride = width, .apart = g->n_channels};
    result out_edge = {.stride = n_heads * n_attr, .apart = n_attr};
    if (chunk) {
        out.acc = part + 2 * n_heads;
        out_edge.acc = part + 2 * n_heads + width;
    } else {
        out.data = SHIFTED(T, g->out, b->row * width);
        out.acc = SHIFTED(ACC, g->out_acc, b->row * width);
        out_edge.acc = SHIFTED(ACC, g->out_edge, b->row * out_edge.stride);
    }
    _Alignas(64) ACC s[SCORES], most[SCORES], total[SCORES];
    _Alignas(64) ACC attr[GNN_WORK * GNN_MAX_EDGE_FEATURES], factor[SCORES];
    _Alignas(64) ACC x[V2_SLAB];
    if (g->kind == GNN_GATV2 && g->edge_attr != NULL) {
        NAME(load_attrs)(g, b, attr);
    }
    const int64_t room = attention_heads_at_once(g, b);
    for (int64_t h = 0; h < n_heads; h += room) {
        const int64_t n = n_heads - h < room ? n_heads - h : room;
        NAME(scores)(v, b, attr, h, n, x, s);
        NAME(softmax_parts)(b, n, s, most, total);
        if (chunk) {
            memcpy(part + h, most, (size_t)n * sizeof *part);
            memcpy(part + n_heads + h, total, (size_t)n * sizeof *part);
        } else {
            ACC *lse = (ACC *)g->lse + b->row * n_heads + h; // lse [N, H]
            for (int64_t r = 0; r < b->n_rows; r++) {
                const bool empty = b->start[r] == b->start[r + 1];
                for (int64_t k = 0; k < n; k++) {
                    lse[r * n_heads + k] =
                        NAME(lse_of)(most[r * n + k], total[r * n + k]);
                    factor[r * n + k] = empty ? 0 : 1 / total[r * n + k];
                }
            }
        }
        if (v->threshold > 0) { // after the totals; most is free by now
            NAME(dropout_factors)(v, b, h, n, most);
            for (int64_t k = 0; k < b->n * n; k++) {
                s[k] *= most[k];
            }
        }
        NAME(sums)(b, s, values, b->col, NAME(edge_rows)(g), h, n, g->n_channels,
                   chunk ? NULL : factor, 1, &out);
        if (projected) {
            NAME(sums)(b, s, NAME(attr_rows)(g), b->edge, (operand){0}, h, n, n_attr,
                       chunk ? NULL : factor, 1, &out_edge);
        }
    }
}

/* y[k] = sum over chunks c of weight[c] * parts[c * apart + k] / total */
INLINE void NAME(join_weighted)(const ACC *parts, const ACC *most, int64_t n_chunks,
                                int64_t apart, ACC row_most, ACC total, int64_t n,
                                const result *y) {
    for (int64_t k = 0; k < n; k += LANES) {
        const int lanes = n - k < LANES ? (int)(n - k) : LANES;
        VEC sum = NAME(splat)(0);
        for (int64_t c = 0; c < n_chunks; c++) {
            const ACC factor = NAME(chunk_factor)(most[c * apart], row_most);
            sum +=
                NAME(splat)(factor) * NAME_A(load_part)(parts + c * apart + k, lanes);
        }
        NAME(leave)(y, k, sum * NAME(splat)(1 / total), lanes);
    }
}

TARGET static void NAME(pass_join)(const attention_view *v, int64_t row,
                                   const void *parts, int64_t n_chunks) {
    const gnn_attention_args *g = v->args;
    const int64_t n_heads = g->n_heads, n_channels = g->n_channels;
    const int64_t n_attr = edge_width(g) > 0 ? g->n_edge_features : 0;
    for (int64_t h = 0; h < n_heads; h++) {
        const ACC *most = (const ACC *)parts + h;
        const ACC *sums = (const ACC *)parts + 2 * n_heads + h * n_channels;
        const ACC *edge_sums = (const ACC *)parts + 2 * n_heads + v->width + h * n_attr;
        ACC row_most, total;
        NAME(join_softmax)(most, most + n_heads, n_chunks, v->part, &row_most, &total);
        ((ACC *)g->lse)[row * n_heads + h] = NAME(lse_of)(row_most, total);
        const int64_t at = row * v->width + h * n_channels;
        const result out = {
            .data = SHIFTED(T, g->out, at),
            .acc = SHIFTED(ACC, g->out_acc, at),
        };
        NAME(join_weighted)(sums, most, n_chunks, v->part, row_most, total, n_channels,
                            &out);
        if (n_attr > 0) {
            const result out_edge = {.acc = (ACC *)g->out_edge +
                                            (row * n_heads + h) * n_attr};
            NAME(join_weighted)(edge_sums, most, n_chunks, v->part, row_most, total,
                                n_attr, &out_edge);
        }
    }
}

#include "cpu/row_names_end.h"

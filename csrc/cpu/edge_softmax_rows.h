/* edge_softmax_rows.h: the row kernels of edge_softmax for one instruction set and one
 * dtype. The file that includes it defines softmax_view.
 *
 * The part of a chunk is [2, H]: maximum and total in forward, the sum of alpha * dalpha in
 * backward. join leaves the row's in the part of its first chunk, finish writes from it.
 */
#include "cpu/row_names.h"

#include "cpu/entry_rows.h"
#include "cpu/softmax_rows.h"

/* alpha = s / total, s being exp(s - most) */
INLINE void NAME(put_alpha)(const softmax_view *v, const entry_batch *b, int64_t first,
                            int64_t n_heads, ACC *s, const ACC *total) {
    for (int64_t r = 0; r < b->n_rows; r++) {
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            const VEC sum = NAME_A(load_part)(total + r * n_heads + h, lanes);
            for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
                ACC *p = s + e * n_heads + h;
                const VEC some = NAME_A(load_part)(p, lanes);
                NAME_A(store_part)(p, some / sum, lanes);
            }
        }
    }
    const gnn_edge_softmax_args *g = v->args;
    NAME(put_edge_numbers)(b, s, false, g->n_heads, first, n_heads, g->alpha);
}

TARGET static void NAME(softmax_batch)(const softmax_view *v, const entry_batch *b) {
    const gnn_edge_softmax_args *g = v->args;
    _Alignas(64) ACC s[SCORES], most[SCORES], total[SCORES];
    const int64_t room = heads_at_once(b, g->n_heads);
    for (int64_t h = 0; h < g->n_heads; h += room) {
        const int64_t n = g->n_heads - h < room ? g->n_heads - h : room;
        NAME(edge_numbers)(b, g->scores, false, g->n_heads, h, n, s);
        NAME(softmax_parts)(b, n, s, most, total);
        if (b->chunk >= 0) {
            ACC *part = (ACC *)v->parts + b->chunk * 2 * g->n_heads + h;
            memcpy(part, most, (size_t)n * sizeof *part);
            memcpy(part + g->n_heads, total, (size_t)n * sizeof *part);
        } else {
            NAME(put_alpha)(v, b, h, n, s, total);
        }
    }
}

TARGET static void NAME(softmax_join)(const softmax_view *v, int64_t first,
                                      int64_t n_chunks) {
    const int64_t n_heads = v->args->n_heads;
    ACC *part = (ACC *)v->parts + first * 2 * n_heads;
    for (int64_t h = 0; h < n_heads; h++) {
        ACC most, total;
        NAME(join_softmax)(part + h, part + n_heads + h, n_chunks, 2 * n_heads, &most,
                           &total);
        part[h] = most, part[n_heads + h] = total;
    }
}

TARGET static void NAME(softmax_finish)(const softmax_view *v, const entry_batch *b,
                                        int64_t first) {
    const gnn_edge_softmax_args *g = v->args;
    const ACC *part = (const ACC *)v->parts + first * 2 * g->n_heads;
    _Alignas(64) ACC s[SCORES];
    const int64_t room = heads_at_once(b, g->n_heads);
    for (int64_t h = 0; h < g->n_heads; h += room) {
        const int64_t n = g->n_heads - h < room ? g->n_heads - h : room;
        NAME(edge_numbers)(b, g->scores, false, g->n_heads, h, n, s);
        for (int64_t e = 0; e < b->n; e++) {
            for (int64_t k = 0; k < n; k++) {
                s[e * n + k] -= NAME(shift_of)(part[h + k]);
            }
        }
        NAME(exp_all)(s, b->n * n);
        NAME(put_alpha)(v, b, h, n, s, part + g->n_heads + h);
    }
}

/* ds = alpha * (dalpha - dot) */
INLINE void NAME(put_gradient)(const softmax_view *v, const entry_batch *b,
                               int64_t first, int64_t n_heads, const ACC *alpha,
                               ACC *grad, const ACC *dot) {
    for (int64_t r = 0; r < b->n_rows; r++) {
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            const VEC of_row = NAME_A(load_part)(dot + r * n_heads + h, lanes);
            for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
                ACC *p = grad + e * n_heads + h;
                const VEC a = NAME_A(load_part)(alpha + e * n_heads + h, lanes);
                const VEC ds = a * (NAME_A(load_part)(p, lanes) - of_row);
                NAME_A(store_part)(p, ds, lanes);
            }
        }
    }
    const gnn_edge_softmax_args *g = v->args;
    NAME(put_edge_numbers)(b, grad, false, g->n_heads, first, n_heads, g->d_scores);
}

INLINE void NAME(gradient_of)(const softmax_view *v, const entry_batch *b,
                              const ACC *dots) {
    const gnn_edge_softmax_args *g = v->args;
    _Alignas(64) ACC alpha[SCORES], grad[SCORES], dot[SCORES];
    const int64_t room = heads_at_once(b, g->n_heads);
    for (int64_t h = 0; h < g->n_heads; h += room) {
        const int64_t n = g->n_heads - h < room ? g->n_heads - h : room;
        NAME(edge_numbers)(b, g->alpha, false, g->n_heads, h, n, alpha);
        NAME(edge_numbers)(b, g->grad, false, g->n_heads, h, n, grad);
        if (dots != NULL) {
            NAME(put_gradient)(v, b, h, n, alpha, grad, dots + h);
            continue;
        }
        NAME(row_totals)(b, alpha, grad, n, dot);
        if (b->chunk >= 0) {
            ACC *part = (ACC *)v->parts + b->chunk * 2 * g->n_heads + h;
            memcpy(part, dot, (size_t)n * sizeof *part);
        } else {
            NAME(put_gradient)(v, b, h, n, alpha, grad, dot);
        }
    }
}

TARGET static void NAME(vjp_batch)(const softmax_view *v, const entry_batch *b) {
    NAME(gradient_of)(v, b, NULL);
}

TARGET static void NAME(vjp_join)(const softmax_view *v, int64_t first,
                                  int64_t n_chunks) {
    const int64_t n_heads = v->args->n_heads;
    ACC *part = (ACC *)v->parts + first * 2 * n_heads;
    for (int64_t h = 0; h < n_heads; h++) {
        ACC sum = 0;
        for (int64_t c = 0; c < n_chunks; c++) {
            sum += part[c * 2 * n_heads + h];
        }
        part[h] = sum;
    }
}

TARGET static void NAME(vjp_finish)(const softmax_view *v, const entry_batch *b,
                                    int64_t first) {
    const ACC *part = (const ACC *)v->parts + first * 2 * v->args->n_heads;
    NAME(gradient_of)(v, b, part);
}

#include "cpu/row_names_end.h"

/* heads_rows.h: the row kernels of products by head for one instruction set and one
 * dtype. The file that includes it defines heads_view. */
#include "cpu/row_names.h"

#include "cpu/entry_rows.h"

TARGET static void NAME(spmm_batch)(const heads_view *s, const entry_batch *b) {
    const gnn_heads_args *g = s->args;
    const int64_t width = g->n_heads * g->n_channels;
    const operand x = {g->x, g->x_stride, g->n_channels};
    result y = {.stride = width, .apart = g->n_channels};
    if (b->chunk >= 0) {
        y.acc = (ACC *)s->sums + b->chunk * width;
    } else {
        y.data = (T *)g->y + b->row * width;
    }
    _Alignas(64) ACC coef[SCORES];
    const int64_t most = heads_at_once(b, g->n_heads);
    for (int64_t h = 0; h < g->n_heads; h += most) {
        const int64_t n = g->n_heads - h < most ? g->n_heads - h : most;
        NAME(edge_numbers)(b, g->w, s->wide, g->n_heads, h, n, coef);
        NAME(sums)(b, coef, x, b->col, (operand){0}, h, n, g->n_channels, NULL,
                   b->chunk >= 0 ? 1 : (ACC)g->scale, &y);
    }
}

TARGET static void NAME(spmm_join)(const heads_view *s, int64_t row, const void *parts,
                                   int64_t n_chunks) {
    const int64_t width = s->args->n_heads * s->args->n_channels;
    const result y = {.data = (T *)s->args->y + row * width};
    NAME(join_parts)(parts, n_chunks, width, width, (ACC)s->args->scale, &y);
}

TARGET static void NAME(sddmm_batch)(const heads_view *s, const entry_batch *b) {
    const gnn_heads_args *g = s->args;
    const operand u = {g->u, g->u_stride, g->n_channels};
    const operand v = {g->v, g->v_stride, g->n_channels};
    _Alignas(64) ACC dots[SCORES];
    const int64_t most = heads_at_once(b, g->n_heads);
    for (int64_t h = 0; h < g->n_heads; h += most) {
        const int64_t n = g->n_heads - h < most ? g->n_heads - h : most;
        NAME(dots)(b, u, false, v, b->col, (operand){0}, h, n, g->n_channels,
                   (ACC)g->scale, false, dots);
        NAME(put_edge_numbers)(b, dots, s->wide, g->n_heads, h, n, g->z);
    }
}

#include "cpu/row_names_end.h"

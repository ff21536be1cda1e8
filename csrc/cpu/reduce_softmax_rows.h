/* reduce_softmax_rows.h: the row kernels of softmax aggregation and of its gradients for
 * one instruction set and one dtype.
 *
 * Include with ISA, D and A (the accumulator's dtype) defined; they are undefined at the
 * end. Forward goes over a row twice, for the largest exponent and then for the sums; the
 * second time its entries are in cache. The file that includes it defines softmax_view and
 * edge_at.
 */
#include "cpu/row_names.h"
#define FEW_VECTORS GNN_GLUE2(FEW_VECTORS, ISA)
#define YES GNN_GLUE3(yes, ISA, A)
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int k = 0; k < n; k++)
#define WIDTH(k) ((k) < n - 1 ? LANES : tail)

/* relu(v) + eps, NaN staying NaN, or v */
INLINE VEC NAME(of_sum)(const softmax_view *s, VEC v) {
    if (!s->relu) {
        return v;
    }
    const VEC zero = NAME(splat)(0);
    return NAME_A(choose)(NAME_A(below)(v, zero), zero, v) + NAME(splat)((ACC)s->eps);
}

/* x + edge of vector k */
INLINE VEC NAME(sum)(const T *x, const T *edge, int k, int lanes) {
    VEC v = NAME(load_part)(x + k * LANES, lanes);
    if (edge != NULL) {
        v += NAME(load_part)(edge + k * LANES, lanes);
    }
    return v;
}

/* What an exponent is measured from: 0 where all are -inf, so that they vanish. */
INLINE VEC NAME(shift)(VEC most) {
    const VEC least = NAME(splat)(-(ACC)INFINITY);
    return NAME_A(choose)(NAME_A(same)(most, least), NAME(splat)(0), most);
}

/* y, out_acc and lse of one vector of row i */
INLINE void NAME(put)(const softmax_view *s, int64_t at, int lanes, VEC shift,
                      VEC total, VEC sum) {
    const VEC y = sum / total;
    NAME(store_part)((T *)s->y + at, y, lanes);
    if (s->out_acc != NULL) {
        NAME_A(store_part)((ACC *)s->out_acc + at, y, lanes);
    }
    if (s->lse != NULL) {
        NAME_A(store_part)((ACC *)s->lse + at, shift + NAME_A(ln)(total), lanes);
    }
}

INLINE void NAME(prefetch)(const char *p, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += CACHE_LINE) {
        __builtin_prefetch(p + at);
    }
}

TARGET static void NAME(put_empty)(const softmax_view *s, int64_t at, int width) {
    for (int64_t stop = at + width; at < stop; at++) {
        ((T *)s->y)[at] = 0;
        if (s->out_acc != NULL) {
            ((ACC *)s->out_acc)[at] = 0;
        }
        if (s->lse != NULL) {
            ((ACC *)s->lse)[at] = -(ACC)INFINITY;
        }
    }
}

/* Rows [row, stop) and n vectors from f on, the last of `tail` lanes; n is a constant. */
INLINE void NAME(softmax_tile)(const softmax_view *s, int64_t row, int64_t stop,
                               int64_t f, int tail, int n) {
    const T *x = (const T *)s->x + f;                                 // [n_src, F]
    const T *edges = s->edge == NULL ? NULL : (const T *)s->edge + f; // [n_edges, F]
    const int64_t last = s->n_edges - 1;
    const int width = (n - 1) * LANES + tail;
    VEC t[8];
    EACH_VECTOR {
        t[k] = NAME_A(load_part)((const ACC *)s->t + f + k * LANES, WIDTH(k));
    }
    for (int64_t i = row; i < stop; i++) {
        const int64_t begin = s->rowptr[i], end = s->rowptr[i + 1];
        if (begin == end) {
            NAME(put_empty)(s, i * s->n_features + f, width);
            continue;
        }
        VEC most[8], total[8], sum[8];
        EACH_VECTOR {
            most[k] = NAME(splat)(-(ACC)INFINITY);
            total[k] = sum[k] = NAME(splat)(0);
        }
        for (int64_t e = begin; e < end; e++) {
            const int64_t next = e + AHEAD < last ? e + AHEAD : last;
            const T *source = x + s->col[e] * s->x_stride, *edge = edges;
            NAME(prefetch)((const char *)(x + s->col[next] * s->x_stride),
                           width * (int64_t)sizeof(T));
            if (edges != NULL) {
                edge = edges + edge_at(s, e) * s->edge_stride;
                NAME(prefetch)(
                    (const char *)(edges + edge_at(s, next) * s->edge_stride),
                    width * (int64_t)sizeof(T));
            }
            EACH_VECTOR {
                const VEC m = NAME(of_sum)(s, NAME(sum)(source, edge, k, WIDTH(k)));
                most[k] = NAME_A(most)(t[k] * m, most[k]); // passes NaN by
            }
        }
        EACH_VECTOR {
            most[k] = NAME(shift)(most[k]);
        }
        for (int64_t e = begin; e < end; e++) {
            const T *source = x + s->col[e] * s->x_stride, *edge = edges;
            if (edges != NULL) {
                edge = edges + edge_at(s, e) * s->edge_stride;
            }
            EACH_VECTOR {
                const VEC m = NAME(of_sum)(s, NAME(sum)(source, edge, k, WIDTH(k)));
                const VEC p = NAME_A(exp)(t[k] * m - most[k]);
                total[k] += p;
                sum[k] += p * m;
            }
        }
        EACH_VECTOR {
            if (s->sums != NULL) {
                ACC *sums = (ACC *)s->sums + f + k * LANES; // [3, F]
                NAME_A(store_part)(sums, most[k], WIDTH(k));
                NAME_A(store_part)(sums + s->n_features, total[k], WIDTH(k));
                NAME_A(store_part)(sums + 2 * s->n_features, sum[k], WIDTH(k));
            } else {
                NAME(put)(s, i * s->n_features + f + k * LANES, WIDTH(k), most[k],
                          total[k], sum[k]);
            }
        }
    }
}

/* d_x of sources [row, stop) and n vectors from f on, the last of `tail` lanes, d_edge of
 * their entries, and what they add to d_t; n is a constant. */
INLINE void NAME(softmax_vjp_tile)(const softmax_view *s, int64_t row, int64_t stop,
                                   int64_t f, int tail, int n) {
    const int64_t n_features = s->n_features, last = s->n_edges - 1;
    const T *edges = s->edge == NULL ? NULL : (const T *)s->edge + f; // [n_edges, F]
    const T *grads = (const T *)s->grad + f;                          // [n_dst, F]
    const ACC *lse = (const ACC *)s->lse + f, *out = (const ACC *)s->out_acc + f;
    const int width = (n - 1) * LANES + tail;
    const VEC zero = NAME(splat)(0), one = NAME(splat)(1);
    VEC t[8], of_t[8];
    EACH_VECTOR {
        t[k] = NAME_A(load_part)((const ACC *)s->t + f + k * LANES, WIDTH(k));
        of_t[k] = zero;
    }
    for (int64_t i = row; i < stop; i++) {
        const T *own = (const T *)s->x + i * s->x_stride + f; // [n_src, F]
        VEC acc[8];
        EACH_VECTOR {
            acc[k] = zero;
        }
        for (int64_t e = s->rowptr[i]; e < s->rowptr[i + 1]; e++) {
            const int64_t j = s->col[e], at = edge_at(s, e);
            const int64_t soon = e + AHEAD < last ? e + AHEAD : last,
                          next = s->col[soon];
            const T *grad = grads + j * s->grad_stride, *edge = edges;
            NAME(prefetch)((const char *)(grads + next * s->grad_stride),
                           width * (int64_t)sizeof(T));
            NAME(prefetch)((const char *)(lse + next * n_features),
                           width * (int64_t)sizeof(ACC));
            NAME(prefetch)((const char *)(out + next * n_features),
                           width * (int64_t)sizeof(ACC));
            if (edges != NULL) {
                edge = edges + at * s->edge_stride;
                NAME(prefetch)(
                    (const char *)(edges + edge_at(s, soon) * s->edge_stride),
                    width * (int64_t)sizeof(T));
            }
            EACH_VECTOR {
                const VEC v = NAME(sum)(own, edge, k, WIDTH(k));
                const VEC m = NAME(of_sum)(s, v);
                const VEC log_sum =
                    NAME_A(load_part)(lse + j * n_features + k * LANES, WIDTH(k));
                const VEC gp = NAME(load_part)(grad + k * LANES, WIDTH(k)) *
                               NAME_A(exp)(t[k] * m - log_sum);
                const VEC off =
                    m - NAME_A(load_part)(out + j * n_features + k * LANES, WIDTH(k));
                VEC d = gp;
                if (!s->semi_grad) {
                    d *= one + t[k] * off;
                }
                if (s->relu) { // closed where v is a number not above 0
                    const YES closed =
                        NAME_A(either)(NAME_A(below)(v, zero), NAME_A(same)(v, zero));
                    d = NAME_A(choose)(closed, zero, d);
                }
                of_t[k] += gp * m * off;
                acc[k] += d;
                if (s->d_edge != NULL) {
                    NAME(store_part)((T *)s->d_edge + at * n_features + f + k * LANES,
                                     d, WIDTH(k));
                }
            }
        }
        EACH_VECTOR {
            if (s->sums != NULL) {
                NAME_A(store_part)((ACC *)s->sums + f + k * LANES, acc[k], WIDTH(k));
            } else if (s->d_x != NULL) {
                NAME(store_part)((T *)s->d_x + i * n_features + f + k * LANES, acc[k],
                                 WIDTH(k));
            }
        }
    }
    if (s->of_t != NULL) {
        EACH_VECTOR {
            ACC *p = (ACC *)s->of_t + f + k * LANES; // this item's [F]
            NAME_A(store_part)(p, NAME_A(load_part)(p, WIDTH(k)) + of_t[k], WIDTH(k));
        }
    }
}

/* n vectors from f on where that many are left, of rows [begin, end) */
#define TILE(tile, n)                                                                  \
    if ((n) == 1 || left > ((n) - 1) * LANES) {                                        \
        wide = left < (n) * LANES ? left : (n) * LANES;                                \
        NAME(tile)(s, begin, end, f, (int)wide - ((n) - 1) * LANES, n);                \
        continue;                                                                      \
    }
/* A row's tiles together where there are several: its indices stay warm. */
#define ROWS_OF(name, tile)                                                            \
    TARGET static void NAME(name)(const softmax_view *s, int64_t row, int64_t stop) {  \
        const int64_t step = s->n_features <= FEW_VECTORS * LANES ? stop - row : 1;    \
        for (int64_t begin = row; begin < stop; begin += step) {                       \
            const int64_t end = begin + step;                                          \
            for (int64_t f = 0, wide; f < s->n_features; f += wide) {                  \
                const int64_t left = s->n_features - f;                                \
                if (FEW_VECTORS == 4) {                                                \
                    TILE(tile, FEW_VECTORS)                                            \
                }                                                                      \
                TILE(tile, 2)                                                          \
                TILE(tile, 1)                                                          \
            }                                                                          \
        }                                                                              \
    }
ROWS_OF(softmax_rows, softmax_tile)
ROWS_OF(softmax_vjp_rows, softmax_vjp_tile)
#undef TILE
#undef ROWS_OF

/* Row `row` from the (shift, total, sum) [3, F] of its chunks. */
TARGET static void NAME(softmax_join)(const softmax_view *s, int64_t row,
                                      const void *chunks, int64_t n_chunks) {
    const int64_t n_features = s->n_features;
    for (int64_t f = 0; f < n_features; f += LANES) {
        const int lanes = n_features - f < LANES ? (int)(n_features - f) : LANES;
        const ACC *p = (const ACC *)chunks + f;
        VEC most = NAME(splat)(-(ACC)INFINITY), total = NAME(splat)(0), sum = total;
        for (int64_t c = 0; c < n_chunks; c++) {
            most = NAME_A(most)(NAME_A(load_part)(p + 3 * c * n_features, lanes), most);
        }
        for (int64_t c = 0; c < n_chunks; c++, p += 3 * n_features) {
            const VEC by = NAME_A(exp)(NAME_A(load_part)(p, lanes) - most);
            total += by * NAME_A(load_part)(p + n_features, lanes);
            sum += by * NAME_A(load_part)(p + 2 * n_features, lanes);
        }
        NAME(put)(s, row * n_features + f, lanes, most, total, sum);
    }
}

/* d_x[row] = sum over n_chunks of sums[c, :], in order of c */
TARGET static void NAME(softmax_vjp_join)(const softmax_view *s, int64_t row,
                                          const void *sums, int64_t n_chunks) {
    T *d_x = (T *)s->d_x + row * s->n_features;
    for (int64_t f = 0; f < s->n_features; f += LANES) {
        const int64_t left = s->n_features - f;
        const int lanes = left < LANES ? (int)left : LANES;
        const ACC *p = (const ACC *)sums + f; // sums [n_chunks, F]
        VEC acc = NAME(splat)(0);
        for (int64_t c = 0; c < n_chunks; c++, p += s->n_features) {
            acc += NAME_A(load_part)(p, lanes);
        }
        NAME(store_part)(d_x + f, acc, lanes);
    }
}

#undef FEW_VECTORS
#undef YES
#undef EACH_VECTOR
#undef WIDTH
#include "cpu/row_names_end.h"

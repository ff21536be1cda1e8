/* reduce_vjp_rows.h: the row kernels of aggregation's gradients, by source, for one
 * instruction set and one dtype.
 *
 * Include with ISA, D and A (the accumulator's dtype) defined; they are undefined at the
 * end. The file that includes it defines vjp_view, edge_at and number_at.
 */
#include "cpu/row_names.h"
#define FEW_VECTORS GNN_GLUE2(FEW_VECTORS, ISA)
#define CODES GNN_GLUE3(codes, ISA, A)
#define YES GNN_GLUE3(yes, ISA, A)
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int k = 0; k < n; k++)
#define WIDTH(k) ((k) < n - 1 ? LANES : tail)

/* coef[i] = (a, b) of destinations [row, stop): a + b * m[e] is what every entry of row i
 * adds; without VAR and STD a alone. */
TARGET static void NAME(coefs)(const vjp_view *s, int64_t row, int64_t stop) {
    const int64_t n_features = s->n_features;
    for (int64_t i = row; i < stop; i++) {
        const int64_t degree = s->dst_rowptr[i + 1] - s->dst_rowptr[i];
        const VEC count = NAME(splat)((ACC)(degree > 0 ? degree : 1));
        ACC *coef = (ACC *)s->coef + i * s->n_coefs * n_features; // [n_coefs, F]
        for (int64_t f = 0; f < n_features; f += LANES) {
            const int lanes = n_features - f < LANES ? (int)(n_features - f) : LANES;
            VEC g[GNN_REDUCE_COUNT];
            for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
                const T *grad = s->grad[r]; // [n_dst, F]
                g[r] = grad == NULL
                           ? NAME(splat)(0)
                           : NAME(load_part)(grad + i * s->grad_stride[r] + f, lanes);
            }
            VEC of_mean = g[GNN_MEAN];
            if (s->n_coefs == 2) {
                VEC v = g[GNN_VAR];
                if (s->grad[GNN_STD] != NULL) {
                    const VEC zero = NAME(splat)(0);
                    const VEC std =
                        NAME(load_part)((const T *)s->std + i * n_features + f, lanes);
                    v += NAME_A(choose)(NAME_A(same)(std, zero), zero,
                                        g[GNN_STD] / (std + std));
                }
                const VEC mean =
                    NAME_A(load_part)((const ACC *)s->mean + i * n_features + f, lanes);
                of_mean -= mean * (v + v);
                NAME_A(store_part)(coef + n_features + f, (v + v) / count, lanes);
            }
            NAME_A(store_part)(coef + f, g[GNN_SUM] + of_mean / count, lanes);
        }
    }
}

INLINE VEC NAME(part)(const T *p, int k, int lanes) {
    return NAME(load_part)(p + k * LANES, lanes);
}

/* m[e] of vector k, as forward had it */
INLINE VEC NAME(message)(const T *own, const T *edge, int k, int lanes) {
    VEC m = NAME(part)(own, k, lanes);
    if (edge != NULL) {
        m += NAME(part)(edge, k, lanes);
        if (sizeof(T) < sizeof(ACC)) {
            T stored[LANES];
            NAME(store)(stored, m);
            m = NAME(load)(stored);
        }
    }
    return m;
}

/* What MIN or MAX adds to entry `number` of its row: row j of destinations, f.. */
INLINE VEC NAME(of_best)(const vjp_best *b, int64_t j, int64_t f, CODES number,
                         int arg_bytes, int64_t n_features, const T *own, const T *edge,
                         int k, int lanes) {
    const int64_t at = j * n_features + f + k * LANES;
    const CODES code =
        NAME_A(read)((const char *)b->arg + at * arg_bytes, arg_bytes, lanes);
    const VEC g = NAME(part)((const T *)b->grad + j * b->grad_stride + f, k, lanes);
    const YES tied = NAME_A(tied)(code);
    const VEC part = NAME_A(only)(NAME_A(alike)(code, number), g);
    if (__builtin_expect(NAME_A(some)(tied), 0)) {
        const VEC m = NAME(message)(own, edge, k, lanes);
        const VEC y = NAME(load_part)((const T *)b->y + at, lanes);
        const YES has = NAME_A(either)(NAME_A(same)(m, y),
                                       NAME_A(also)(NAME_A(odd)(m), NAME_A(odd)(y)));
        return NAME_A(choose)(NAME_A(also)(tied, has), g / NAME_A(count)(code), part);
    }
    return part;
}

INLINE void NAME(prefetch)(const char *p, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += CACHE_LINE) {
        __builtin_prefetch(p + at);
    }
}

INLINE void NAME(prefetch_best)(const vjp_best *b, int64_t j, int64_t f, int width,
                                int arg_bytes, int64_t n_features) {
    NAME(prefetch)((const char *)((const T *)b->grad + j * b->grad_stride + f),
                   width * (int64_t)sizeof(T));
    NAME(prefetch)((const char *)b->arg + (j * n_features + f) * arg_bytes,
                   width * (int64_t)arg_bytes);
}

/* d_x of rows [row, stop) and n vectors from f on, the last of `tail` lanes, and d_edge of
 * their entries; n is a constant, and so is `one`: one of MIN and MAX, and x alone. */
INLINE void NAME(tile)(const vjp_view *s, int64_t row, int64_t stop, int64_t f,
                       int tail, int n, bool one) {
    const int64_t n_features = s->n_features, last = s->n_edges - 1;
    const int width = (n - 1) * LANES + tail, n_bests = one ? 1 : s->n_bests;
    const ACC *coefs = one ? NULL : s->coef;
    const T *edges = one || s->edge == NULL ? NULL : (const T *)s->edge + f;
    for (int64_t i = row; i < stop; i++) {
        const T *own = (const T *)s->x + i * s->x_stride + f; // x [n_src, F]
        VEC acc[8];
        EACH_VECTOR {
            acc[k] = NAME(splat)(0);
        }
        for (int64_t e = s->rowptr[i]; e < s->rowptr[i + 1]; e++) {
            const int64_t j = s->col[e], at = edge_at(s, e);
            const int64_t soon = e + AHEAD < last ? e + AHEAD : last;
            const int64_t next = s->col[soon];
            for (int b = 0; b < n_bests; b++) {
                NAME(prefetch_best)(&s->best[b], next, f, width, s->arg_bytes,
                                    n_features);
            }
            if (one) {
                const CODES number = NAME_A(number)(number_at(s, at));
                EACH_VECTOR {
                    acc[k] += NAME(of_best)(&s->best[0], j, f, number, s->arg_bytes,
                                            n_features, own, NULL, k, WIDTH(k));
                }
                continue;
            }
            VEC part[8];
            const T *edge = edges;
            if (edges != NULL) {
                edge = edges + at * s->edge_stride;
                NAME(prefetch)(
                    (const char *)(edges + edge_at(s, soon) * s->edge_stride),
                    width * (int64_t)sizeof(T));
            }
            EACH_VECTOR {
                part[k] = NAME(splat)(0);
            }
            if (coefs != NULL) {
                const int64_t stride = s->n_coefs * n_features;
                NAME(prefetch)((const char *)(coefs + next * stride + f),
                               width * (int64_t)sizeof(ACC));
                const ACC *a = coefs + j * stride + f;
                EACH_VECTOR {
                    part[k] = NAME_A(load_part)(a + k * LANES, WIDTH(k));
                }
                if (s->n_coefs == 2) {
                    const ACC *b = a + n_features;
                    NAME(prefetch)(
                        (const char *)(coefs + next * stride + n_features + f),
                        width * (int64_t)sizeof(ACC));
                    EACH_VECTOR {
                        part[k] += NAME_A(load_part)(b + k * LANES, WIDTH(k)) *
                                   NAME(message)(own, edge, k, WIDTH(k));
                    }
                }
            }
            if (n_bests > 0) {
                const CODES number = NAME_A(number)(number_at(s, at));
                for (int b = 0; b < n_bests; b++) {
                    EACH_VECTOR {
                        part[k] +=
                            NAME(of_best)(&s->best[b], j, f, number, s->arg_bytes,
                                          n_features, own, edge, k, WIDTH(k));
                    }
                }
            }
            if (s->d_edge != NULL) {
                T *d_edge = (T *)s->d_edge + at * n_features + f; // [n_edges, F]
                EACH_VECTOR {
                    NAME(store_part)(d_edge + k * LANES, part[k], WIDTH(k));
                }
            }
            EACH_VECTOR {
                acc[k] += part[k];
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
}

/* n vectors from f on where that many are left, of rows [begin, end) */
#define TILE(n, one)                                                                   \
    if ((n) == 1 || left > ((n) - 1) * LANES) {                                        \
        wide = left < (n) * LANES ? left : (n) * LANES;                                \
        NAME(tile)(s, begin, end, f, (int)wide - ((n) - 1) * LANES, n, one);           \
        continue;                                                                      \
    }
/* A row's tiles together where there are several: its indices stay warm. */
#define ROWS_OF(name, one)                                                             \
    TARGET static void NAME(name)(const vjp_view *s, int64_t row, int64_t stop) {      \
        const int64_t step = s->n_features <= FEW_VECTORS * LANES ? stop - row : 1;    \
        for (int64_t begin = row; begin < stop; begin += step) {                       \
            const int64_t end = begin + step;                                          \
            for (int64_t f = 0, wide; f < s->n_features; f += wide) {                  \
                const int64_t left = s->n_features - f;                                \
                if (FEW_VECTORS == 8) {                                                \
                    TILE(FEW_VECTORS, one)                                             \
                }                                                                      \
                TILE(4, one)                                                           \
                TILE(2, one)                                                           \
                TILE(1, one)                                                           \
            }                                                                          \
        }                                                                              \
    }
ROWS_OF(vjp_one, true)
ROWS_OF(vjp_all, false)
#undef TILE
#undef ROWS_OF

/* d_x[row] = sum over n_chunks of sums[c, :], in order of c */
TARGET static void NAME(vjp_join)(const vjp_view *s, int64_t row, const void *sums,
                                  int64_t n_chunks) {
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
#undef CODES
#undef YES
#undef EACH_VECTOR
#undef WIDTH
#include "cpu/row_names_end.h"

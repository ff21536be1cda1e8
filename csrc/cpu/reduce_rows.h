/* reduce_rows.h: the row kernels of aggregation for one instruction set and one dtype.
 *
 * Include with ISA, D and A (the accumulator's dtype) defined; they are undefined at the
 * end. A tile is up to eight vectors of one row, whose statistics stay in registers while
 * the entries go by. The loops take NaN for a number that wins nothing and note that one
 * came by; such a row's MIN and MAX are then done again, slowly.
 * The file that includes it defines reduce_view, edge_at, best and meet.
 */
#include "cpu/row_names.h"
#define FEW_VECTORS GNN_GLUE2(FEW_VECTORS, ISA)
#define CODES GNN_GLUE3(codes, ISA, A)
#define YES GNN_GLUE3(yes, ISA, A)
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int k = 0; k < n; k++)
#define WIDTH(k) ((k) < n - 1 ? LANES : tail)

/* v as dtype has it: 16-bit messages are compared as the outputs they may become */
INLINE VEC NAME(rounded)(VEC v) {
    if (sizeof(T) < sizeof(ACC)) {
        T stored[LANES];
        NAME(store)(stored, v);
        return NAME(load)(stored);
    }
    return v;
}

INLINE VEC NAME(message)(const T *source, const T *edge, int k, int lanes) {
    const VEC v = NAME(load_part)(source + k * LANES, lanes);
    if (edge == NULL) {
        return v;
    }
    return NAME(rounded)(v + NAME(load_part)(edge + k * LANES, lanes));
}

INLINE ACC NAME(one_message)(const reduce_view *s, int64_t e, int64_t f) {
    const ACC v = GNN_GLUE2(up, D)(((const T *)s->x)[s->col[e] * s->x_stride + f]);
    if (s->edge == NULL) {
        return v;
    }
    const T *edge = (const T *)s->edge + edge_at(s, e) * s->edge_stride + f;
    return GNN_GLUE2(up, D)(GNN_GLUE2(down, D)(v + GNN_GLUE2(up, D)(*edge)));
}

/* One number of MIN (side 0) or MAX (1). */
TARGET static void NAME(put_best)(const reduce_view *s, int64_t i, int64_t f,
                                  const best *b, int side) {
    const int64_t at = i * s->n_features + f;
    T *y = s->y[side == 0 ? GNN_MIN : GNN_MAX];
    if (y != NULL) {
        y[at] = GNN_GLUE2(down, D)((ACC)b->value);
    }
    if (s->arg[side] != NULL) {
        reduce_put_code(s->arg[side], s->arg_bytes, at,
                        b->count > 1 ? -b->count : b->at);
    }
}

/* MIN and MAX of features [f, f + width) over entries [begin, end), NaN and all */
TARGET static __attribute__((noinline)) void NAME(slow_bests)(const reduce_view *s,
                                                              int64_t i, int64_t begin,
                                                              int64_t end, int64_t f,
                                                              int width) {
    for (int side = 0; side < 2; side++) {
        if (!(s->which & (side == 0 ? 1U << GNN_MIN : 1U << GNN_MAX))) {
            continue;
        }
        for (int64_t g = f; g < f + width; g++) {
            best b = {0};
            for (int64_t e = begin; e < end; e++) {
                meet(&b, (double)NAME(one_message)(s, e, g), e - begin, 1, side == 0);
            }
            if (s->sums != NULL) {
                ACC *value = (ACC *)s->sums + (2 + side) * s->n_features;
                int32_t *code = s->codes + side * s->n_features;
                value[g] = (ACC)b.value;
                code[g] = (int32_t)(b.at + REDUCE_TIE * (b.count - 1));
            } else {
                NAME(put_best)(s, i, g, &b, side);
            }
        }
    }
}

/* SUM, MEAN, VAR and STD of n_entries messages from their sums around c */
INLINE void NAME(put_moments)(const reduce_view *s, int64_t at, int lanes,
                              int64_t n_entries, VEC c, VEC s1, VEC s2) {
    const VEC count = NAME(splat)((ACC)n_entries);
    const VEC sum = c * count + s1, mean = sum / count, shifted = s1 / count;
    const VEC var = s2 / count - shifted * shifted;
    if (s->y[GNN_SUM] != NULL) {
        NAME(store_part)((T *)s->y[GNN_SUM] + at, sum, lanes);
    }
    if (s->y[GNN_MEAN] != NULL) {
        NAME(store_part)((T *)s->y[GNN_MEAN] + at, mean, lanes);
    }
    if (s->mean != NULL) {
        NAME_A(store_part)((ACC *)s->mean + at, mean, lanes);
    }
    if (s->y[GNN_VAR] != NULL) {
        NAME(store_part)((T *)s->y[GNN_VAR] + at, var, lanes);
    }
    if (s->y[GNN_STD] != NULL) {
        const VEC low = NAME(splat)((ACC)1e-5), zero = NAME(splat)(0);
        const VEC std = NAME_A(root)(NAME_A(choose)(NAME_A(below)(var, low), low, var));
        const VEC least = NAME(splat)((ACC)3.16227766016837952e-3); // sqrt(1e-5)
        const YES seen = NAME_A(either)(NAME_A(above)(std, least), NAME_A(odd)(std));
        NAME(store_part)((T *)s->y[GNN_STD] + at, NAME_A(choose)(seen, std, zero),
                         lanes);
    }
}

/* Rows without entries */
TARGET static void NAME(put_empty)(const reduce_view *s, int64_t i, int64_t f,
                                   int width) {
    for (int64_t at = i * s->n_features + f; at < i * s->n_features + f + width; at++) {
        for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
            if (s->y[r] != NULL) {
                ((T *)s->y[r])[at] = 0;
            }
        }
        if (s->mean != NULL) {
            ((ACC *)s->mean)[at] = 0;
        }
        for (int side = 0; side < 2; side++) {
            if (s->arg[side] != NULL) {
                reduce_put_code(s->arg[side], s->arg_bytes, at, -1);
            }
        }
    }
}

/* Message m, entry `entry` of its row, meets the best value so far and its code. */
INLINE void NAME(challenge)(VEC m, CODES entry, VEC *value, CODES *code, bool least,
                            bool args) {
    const VEC old = *value;
    const YES wins = least ? NAME_A(below)(m, old) : NAME_A(above)(m, old);
    *value = NAME_A(choose)(wins, m, old);
    if (args) {
        *code = NAME_A(pick)(wins, entry, *code);
        *code = NAME_A(tie)(NAME_A(same)(m, old), *code);
    }
}

/* Where the best of one side goes: of a chunk into sums and codes, else y and arg. */
INLINE void NAME(put_bests)(const reduce_view *s, int64_t i, int64_t f, int lanes,
                            VEC value, CODES code, int side) {
    if (s->sums != NULL) {
        const int64_t at = side * s->n_features + f;
        NAME_A(store_part)((ACC *)s->sums + 2 * s->n_features + at, value, lanes);
        NAME_A(write)(s->codes + at, 4, code, lanes);
        return;
    }
    const int64_t at = i * s->n_features + f;
    T *y = s->y[side == 0 ? GNN_MIN : GNN_MAX]; // y [n_dst, F]
    if (y != NULL) {
        NAME(store_part)(y + at, value, lanes);
    }
    if (s->arg[side] != NULL) {
        NAME_A(write)
        ((char *)s->arg[side] + at * s->arg_bytes, s->arg_bytes, NAME_A(told)(code),
         lanes);
    }
}

INLINE void NAME(prefetch)(const T *p, int width) {
    for (int f = 0; f < width; f += CACHE_LINE / (int)sizeof(T)) {
        __builtin_prefetch(p + f);
    }
}

/* The statistics in `what` of rows [row, stop) and n vectors from f on, the last of `tail`
 * lanes; n and what are constants. */
INLINE void NAME(tile)(const reduce_view *s, int64_t row, int64_t stop, int64_t f,
                       int tail, int n, unsigned what) {
    const bool moments = what & MOMENTS, args = what & ARG;
    const bool least = what & LEAST, most = what & MOST;
    const T *x = (const T *)s->x + f;                                 // x [n_src, F]
    const T *edges = s->edge == NULL ? NULL : (const T *)s->edge + f; // [n_edges, F]
    const int64_t last = s->n_edges - 1;
    const int width = (n - 1) * LANES + tail;
    for (int64_t i = row; i < stop; i++) {
        const int64_t begin = s->rowptr[i], end = s->rowptr[i + 1];
        if (begin == end) {
            NAME(put_empty)(s, i, f, width);
            continue;
        }
        VEC c[8], s1[8], s2[8], low[8], high[8];
        CODES low_code[8], high_code[8];
        YES odd = NAME_A(odd)(NAME(splat)(0));
        const int64_t first = s->sums == NULL ? begin : s->first;
        const T *source = x + s->col[first] * s->x_stride;
        const T *edge = edges;
        if (edges != NULL) {
            edge = edges + edge_at(s, first) * s->edge_stride;
        }
        EACH_VECTOR {
            if (moments) { // inf - inf and NaN - NaN are not 0: no shift there
                const VEC m = NAME(message)(source, edge, k, WIDTH(k));
                const VEC zero = NAME(splat)(0);
                c[k] = NAME_A(only)(NAME_A(same)(m - m, zero), m);
                s1[k] = s2[k] = zero;
            }
            low[k] = NAME(splat)((ACC)INFINITY);
            high[k] = NAME(splat)((ACC)-INFINITY);
            low_code[k] = high_code[k] = NAME_A(number)(REDUCE_UNSEEN);
        }
        for (int64_t e = begin; e < end; e++) {
            const int64_t next = e + AHEAD < last ? e + AHEAD : last;
            NAME(prefetch)(x + s->col[next] * s->x_stride, width);
            source = x + s->col[e] * s->x_stride;
            if (edges != NULL) {
                NAME(prefetch)(edges + edge_at(s, next) * s->edge_stride, width);
                edge = edges + edge_at(s, e) * s->edge_stride;
            }
            const CODES entry = NAME_A(number)((int)(e - begin));
            EACH_VECTOR {
                const VEC m = NAME(message)(source, edge, k, WIDTH(k));
                if (moments) {
                    const VEC d = m - c[k];
                    s1[k] += d;
                    s2[k] += d * d;
                }
                if (least || most) {
                    odd = NAME_A(either)(odd, NAME_A(odd)(m));
                }
                if (least) {
                    NAME(challenge)(m, entry, &low[k], &low_code[k], true, args);
                }
                if (most) {
                    NAME(challenge)(m, entry, &high[k], &high_code[k], false, args);
                }
            }
        }
        EACH_VECTOR {
            const int64_t at = f + k * LANES;
            if (moments && s->sums != NULL) {
                NAME_A(store_part)((ACC *)s->sums + at, s1[k], WIDTH(k));
                NAME_A(store_part)
                ((ACC *)s->sums + s->n_features + at, s2[k], WIDTH(k));
            } else if (moments) {
                NAME(put_moments)(s, i * s->n_features + at, WIDTH(k), end - begin,
                                  c[k], s1[k], s2[k]);
            }
            if (least) {
                NAME(put_bests)(s, i, at, WIDTH(k), low[k], low_code[k], 0);
            }
            if (most) {
                NAME(put_bests)(s, i, at, WIDTH(k), high[k], high_code[k], 1);
            }
        }
        if ((least || most) && NAME_A(some)(odd)) {
            NAME(slow_bests)(s, i, begin, end, f, width);
        }
    }
}

/* n vectors from f on where that many are left, of rows [begin, end) */
#define TILE(n, what)                                                                  \
    if ((n) == 1 || left > ((n) - 1) * LANES) {                                        \
        wide = left < (n) * LANES ? left : (n) * LANES;                                \
        NAME(tile)(s, begin, end, f, (int)wide - ((n) - 1) * LANES, n, what);          \
        continue;                                                                      \
    }
/* A row's tiles together where there are several: its indices stay warm. */
#define ROWS_OF(name, what, most)                                                      \
    TARGET static void NAME(name)(const reduce_view *s, int64_t row, int64_t stop) {   \
        const int64_t step = s->n_features <= (most) * LANES ? stop - row : 1;         \
        for (int64_t begin = row; begin < stop; begin += step) {                       \
            const int64_t end = begin + step;                                          \
            for (int64_t f = 0, wide; f < s->n_features; f += wide) {                  \
                const int64_t left = s->n_features - f;                                \
                if ((most) == 8) {                                                     \
                    TILE((most) == 8 ? 8 : 1, what)                                    \
                }                                                                      \
                if ((most) >= 4) {                                                     \
                    TILE((most) >= 4 ? 4 : 1, what)                                    \
                }                                                                      \
                TILE(2, what) TILE(1, what)                                            \
            }                                                                          \
        }                                                                              \
    }
ROWS_OF(min_rows, LEAST, FEW_VECTORS)
ROWS_OF(max_rows, MOST, FEW_VECTORS)
ROWS_OF(min_arg_rows, LEAST | ARG, FEW_VECTORS)
ROWS_OF(max_arg_rows, MOST | ARG, FEW_VECTORS)
ROWS_OF(moment_rows, MOMENTS, FEW_VECTORS / 2)
ROWS_OF(all_rows, MOMENTS | LEAST | MOST | ARG, FEW_VECTORS / 2)
#undef TILE
#undef ROWS_OF

/* Row `row` from the sums and codes of its chunks, `apart` bytes each. */
TARGET static void NAME(join)(const reduce_view *s, int64_t row, const char *chunks,
                              int64_t apart, int64_t n_chunks) {
    const int64_t n_features = s->n_features,
                  degree = s->rowptr[row + 1] - s->rowptr[row];
    const int64_t codes_at = 4 * n_features * (int64_t)sizeof(ACC);
    for (int64_t f = 0; f < n_features; f++) {
        if (s->which & ~(1U << GNN_MIN | 1U << GNN_MAX)) {
            ACC c = NAME(one_message)(s, s->rowptr[row], f), s1 = 0, s2 = 0;
            c = c - c == 0 ? c : 0;
            for (int64_t h = 0; h < n_chunks; h++) {
                const ACC *sums = (const ACC *)(const void *)(chunks + h * apart);
                s1 += sums[f];
                s2 += sums[n_features + f];
            }
            NAME(put_moments)(s, row * n_features + f, 1, degree, NAME(splat)(c),
                              NAME(splat)(s1), NAME(splat)(s2));
        }
        for (int side = 0; side < 2; side++) {
            if (!(s->which & (side == 0 ? 1U << GNN_MIN : 1U << GNN_MAX))) {
                continue;
            }
            best b = {0};
            for (int64_t h = 0; h < n_chunks; h++) {
                const char *chunk = chunks + h * apart;
                const ACC *value = (const ACC *)(const void *)chunk;
                const int32_t *codes =
                    (const int32_t *)(const void *)(chunk + codes_at);
                const int32_t code = codes[side * n_features + f];
                // nobody counted where nobody asks for arguments
                const int64_t count = s->arg_bytes == 0 ? 1 : 1 + code / REDUCE_TIE;
                meet(&b, (double)value[(2 + side) * n_features + f],
                     h * GNN_WORK + code % REDUCE_TIE, count, side == 0);
            }
            NAME(put_best)(s, row, f, &b, side);
        }
    }
}

#undef FEW_VECTORS
#undef CODES
#undef YES
#undef EACH_VECTOR
#undef WIDTH
#include "cpu/row_names_end.h"

/* gated_rows.h: the row kernels of gated sums for one instruction set and one dtype.
 *
 * A tile is n vectors of one row's gates and the same n of its values: 4 or 2 whole ones
 * (AVX-512; elsewhere 2), then one after the other, the last in part. Sums stay in
 * registers while the entries of the row go by. The file that includes it defines
 * gated_view and edge_at.
 */
#include "cpu/row_names.h"

#define MAX_VECTORS GNN_GLUE2(MAX_VECTORS, ISA)
#define VECTOR_BYTES (LANES * (int)sizeof(T))

/* Does DO(k) for the vectors k < n of a tile, each a variable of its own: compilers keep
 * variables in registers, but not the elements of an array. */
#define EACH_VECTOR(DO) DO(0) DO(1) DO(2) DO(3)
#define AT(p, k)                                                                       \
    (tail == LANES ? NAME(load)((p) + (k) * LANES)                                     \
                   : NAME(load_part)((p) + (k) * LANES, tail))
#define START(k) VEC of_gate##k = NAME(splat)(0), of_value##k = NAME(splat)(0);
#define START_SUM(k) VEC sum##k = NAME(splat)(0);
#define OWN(k)                                                                         \
    const VEC own_gate##k = k < n ? AT(own, k) : NAME(splat)(0);                       \
    const VEC own_value##k =                                                           \
        k < n && own_has_value ? AT(own + width, k) : NAME(splat)(0);
#define PREFETCH_AT(p, k) __builtin_prefetch((const char *)(p) + (k) * VECTOR_BYTES)
#define PREFETCH(k)                                                                    \
    if (k < n && (k) * VECTOR_BYTES % CACHE_LINE == 0) {                               \
        PREFETCH_AT(soon, k);                                                          \
        if (second != NULL) {                                                          \
            PREFETCH_AT(second, k);                                                    \
        }                                                                              \
    }
#define EDGE(k)                                                                        \
    if (edge != NULL) {                                                                \
        gate += AT(edge, k);                                                           \
        value += AT(edge + width, k);                                                  \
    }                                                                                  \
    VEC rise = NAME(splat)(1);                                                         \
    gate = NAME_A(sigmoid)(gate);                                                      \
    if (soft) {                                                                        \
        value = NAME_A(softplus)(value, &rise);                                        \
    }
#define ADD(k)                                                                         \
    if (k < n) {                                                                       \
        VEC gate = own_gate##k + AT(source, k);                                        \
        VEC value = own_value##k + AT(source + width, k);                              \
        EDGE(k)                                                                        \
        const VEC m = gate * value;                                                    \
        sum##k += m;                                                                   \
        of_gate##k += m * (1 - gate);                                                  \
        if (both) {                                                                    \
            of_value##k += gate * rise;                                                \
        }                                                                              \
    }
#define PASS(k)                                                                        \
    if (k < n) {                                                                       \
        VEC gate = own_gate##k + AT(ahead, k), value = own_value##k;                   \
        if (both) {                                                                    \
            value += AT(ahead + width, k);                                             \
        }                                                                              \
        EDGE(k)                                                                        \
        const VEC d_value = AT(grad, k) * times * gate;                                \
        const VEC d_gate = d_value * value * (1 - gate);                               \
        const VEC d_arg = d_value * rise;                                              \
        of_gate##k += d_gate;                                                          \
        of_value##k += d_arg;                                                          \
        if (d_edge != NULL) {                                                          \
            NAME(store_part)(d_edge + (k) * LANES, d_gate, tail);                      \
            NAME(store_part)(d_edge + width + (k) * LANES, d_arg, tail);               \
        }                                                                              \
    }
#define KEEP(p, k, v)                                                                  \
    if (k < n) {                                                                       \
        NAME_A(store_part)((p) + (k) * LANES, v, tail);                                \
    }
#define KEEP_SUM(k) KEEP(to, k, sum##k *times)
#define KEEP_GATE(k) KEEP(to, k, of_gate##k *times)
#define KEEP_VALUE(k) KEEP(to, k, of_value##k *times)
#define STORE(p, k, v)                                                                 \
    if (k < n) {                                                                       \
        NAME(store_part)((p) + (k) * LANES, v, tail);                                  \
    }
#define STORE_SUM(k) STORE(y, k, sum##k *times)
#define STORE_GATE(k) STORE(y, k, of_gate##k)
#define STORE_VALUE(k) STORE(y + width, k, of_value##k)

/* y and dy_du of rows [row, stop), n vectors from f on, of `tail` lanes each; n and the
 * flags are constants. */
INLINE void NAME(sum_tile)(const gated_view *s, int64_t row, int64_t stop, int64_t f,
                           int tail, int n, bool soft, bool both) {
    const bool own_has_value = both;
    const int64_t width = s->n_features, last = s->n_edges - 1;
    const T *gathered = (const T *)s->gathered + f; // v [n_cols, 2 F]
    for (int64_t i = row; i < stop; i++) {
        const T *own = (const T *)s->own + i * s->own_stride + f; // u
        EACH_VECTOR(OWN)
        EACH_VECTOR(START)
        EACH_VECTOR(START_SUM)
        const int64_t end = s->rowptr[i + 1];
        for (int64_t e = s->rowptr[i]; e < end; e++) {
            const T *source = gathered + s->col[e] * s->gathered_stride;
            const T *edge = s->edge == NULL ? NULL
                                            : (const T *)s->edge +
                                                  edge_at(s, e) * s->edge_stride + f;
            const int64_t next = e + AHEAD < last ? e + AHEAD : last;
            const T *soon = gathered + s->col[next] * s->gathered_stride;
            const T *second = soon + width;
            EACH_VECTOR(PREFETCH)
            EACH_VECTOR(ADD)
        }
        if (s->sums != NULL) { // [F + columns of u]
            const VEC times = NAME(splat)(1);
            ACC *to = (ACC *)s->sums + f;
            EACH_VECTOR(KEEP_SUM)
            to += width;
            EACH_VECTOR(KEEP_GATE)
            to += width;
            if (both) {
                EACH_VECTOR(KEEP_VALUE)
            }
            continue;
        }
        const ACC *scale = (const ACC *)s->scale;
        const VEC times = NAME(splat)(scale == NULL ? 1 : scale[i]);
        T *y = (T *)s->y + i * width + f;
        EACH_VECTOR(STORE_SUM)
        if (s->dy_du != NULL) {
            ACC *to = (ACC *)s->dy_du + i * (both ? 2 : 1) * width + f;
            EACH_VECTOR(KEEP_GATE)
            to += width;
            if (both) {
                EACH_VECTOR(KEEP_VALUE)
            }
        }
    }
}

/* d_v and d_edge of rows [row, stop) of the transpose, as sum_tile. */
INLINE void NAME(vjp_tile)(const gated_view *s, int64_t row, int64_t stop, int64_t f,
                           int tail, int n, bool soft, bool both) {
    const bool own_has_value = true;
    const int64_t width = s->n_features, last = s->n_edges - 1;
    const T *gathered = (const T *)s->gathered + f; // u [n_cols, F or 2 F]
    const T *grads = (const T *)s->grad + f;        // [n_cols, F]
    const ACC *scale = (const ACC *)s->scale;       // [n_cols]
    for (int64_t i = row; i < stop; i++) {
        const T *own = (const T *)s->own + i * s->own_stride + f; // v
        EACH_VECTOR(OWN)
        EACH_VECTOR(START)
        const int64_t end = s->rowptr[i + 1];
        for (int64_t e = s->rowptr[i]; e < end; e++) {
            const int64_t j = s->col[e];
            const int64_t at = s->edge == NULL && s->d_edge == NULL ? 0 : edge_at(s, e);
            const T *ahead = gathered + j * s->gathered_stride;
            const T *grad = grads + j * s->grad_stride;
            const T *edge =
                s->edge == NULL ? NULL : (const T *)s->edge + at * s->edge_stride + f;
            T *d_edge = s->d_edge == NULL ? NULL : (T *)s->d_edge + at * 2 * width + f;
            const VEC times = NAME(splat)(scale == NULL ? 1 : scale[j]);
            const int64_t next = e + AHEAD < last ? e + AHEAD : last;
            const T *soon = gathered + s->col[next] * s->gathered_stride;
            const T *second = grads + s->col[next] * s->grad_stride;
            EACH_VECTOR(PREFETCH)
            EACH_VECTOR(PASS)
        }
        if (s->sums != NULL) { // [2 F]
            const VEC times = NAME(splat)(1);
            ACC *to = (ACC *)s->sums + f;
            EACH_VECTOR(KEEP_GATE)
            to += width;
            EACH_VECTOR(KEEP_VALUE)
        } else if (s->y != NULL) {
            T *y = (T *)s->y + i * 2 * width + f;
            EACH_VECTOR(STORE_GATE)
            EACH_VECTOR(STORE_VALUE)
        }
    }
}

#undef EACH_VECTOR
#undef AT
#undef START
#undef START_SUM
#undef OWN
#undef PREFETCH_AT
#undef PREFETCH
#undef EDGE
#undef ADD
#undef PASS
#undef KEEP
#undef KEEP_SUM
#undef KEEP_GATE
#undef KEEP_VALUE
#undef STORE
#undef STORE_SUM
#undef STORE_GATE
#undef STORE_VALUE

/* TILE over all features of rows [begin, end): whole vectors in fours and twos, then one
 * by one. */
#define TILES(TILE, soft, both)                                                        \
    for (int64_t f = 0; f < s->n_features;) {                                          \
        const int64_t left = s->n_features - f;                                        \
        if (MAX_VECTORS == 4 && left >= 4 * LANES) {                                   \
            NAME(TILE)(s, begin, end, f, LANES, MAX_VECTORS, soft, both);              \
            f += 4 * LANES;                                                            \
        } else if (left >= 2 * LANES) {                                                \
            NAME(TILE)(s, begin, end, f, LANES, 2, soft, both);                        \
            f += 2 * LANES;                                                            \
        } else {                                                                       \
            const int tail = left < LANES ? (int)left : LANES;                         \
            NAME(TILE)(s, begin, end, f, tail, 1, soft, both);                         \
            f += tail;                                                                 \
        }                                                                              \
    }
/* A row's tiles together where there are several: its indices stay warm. */
#define ROWS_OF(name, TILE, soft, both)                                                \
    TARGET static void NAME(name)(const gated_view *s, int64_t row, int64_t stop) {    \
        const int64_t step = s->n_features <= MAX_VECTORS * LANES ? stop - row : 1;    \
        for (int64_t begin = row; begin < stop; begin += step) {                       \
            const int64_t end = begin + step;                                          \
            TILES(TILE, soft, both)                                                    \
        }                                                                              \
    }
ROWS_OF(sum_plain, sum_tile, false, false)
ROWS_OF(sum_plain_both, sum_tile, false, true)
ROWS_OF(sum_soft, sum_tile, true, false)
ROWS_OF(sum_soft_both, sum_tile, true, true)
ROWS_OF(vjp_plain, vjp_tile, false, false)
ROWS_OF(vjp_plain_both, vjp_tile, false, true)
ROWS_OF(vjp_soft, vjp_tile, true, false)
ROWS_OF(vjp_soft_both, vjp_tile, true, true)
#undef TILES
#undef ROWS_OF

/* y[k] = scale * sum over n_chunks of sums[c * apart + k], in order of c, n numbers: of
 * dtype, or accumulators where `wide`. */
TARGET static void NAME(join)(void *y, bool wide, const void *sums, int64_t apart,
                              int64_t n_chunks, int64_t n, double scale) {
    for (int64_t f = 0; f < n; f += LANES) {
        const int lanes = n - f < LANES ? (int)(n - f) : LANES;
        const ACC *p = (const ACC *)sums + f;
        VEC acc = NAME(splat)(0);
        for (int64_t c = 0; c < n_chunks; c++, p += apart) {
            acc += NAME_A(load_part)(p, lanes);
        }
        acc *= NAME(splat)((ACC)scale);
        if (wide) {
            NAME_A(store_part)((ACC *)y + f, acc, lanes);
        } else {
            NAME(store_part)((T *)y + f, acc, lanes);
        }
    }
}

#undef MAX_VECTORS
#undef VECTOR_BYTES
#include "cpu/row_names_end.h"

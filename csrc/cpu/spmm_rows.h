/* spmm_rows.h: the row kernel of spmm for one instruction set and one dtype.
 *
 * Include with ISA, D and A (the accumulator's dtype) defined; they are undefined at the
 * end. A tile is up to MAX_VECTORS vectors of one row of y: its accumulators stay in
 * registers while the entries of the row go by, and y is written once.
 * The file that includes it defines spmm_view.
 */
#define NAME(base) GNN_GLUE3(base, ISA, D)
#define TARGET GNN_GLUE2(TARGET, ISA)
#define T GNN_GLUE2(store, D)
#define ACC GNN_GLUE2(acc, D)
#define VEC GNN_GLUE3(vec, ISA, D)
#define LANES GNN_GLUE3(LANES, ISA, D)
#define ROOM GNN_GLUE2(ROOM, ISA)
#define MAX_VECTORS (ROOM < 9 * (int)sizeof(VEC) ? ROOM / (int)sizeof(VEC) : 9)
#define VECTOR_BYTES (LANES * (int)sizeof(T))
#define INLINE TARGET static inline __attribute__((always_inline))

/* Does DO(k) for the vectors k < n of a tile, each a variable of its own: compilers
 * keep variables in registers, but not the elements of an array. */
#define EACH_VECTOR(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8)
#define START(k) VEC acc##k = NAME(splat)(0);
/* into L2: L1 tracks too few misses to keep up (arxiv-like F=64: 9 ns an entry, not 19) */
#define PREFETCH(k)                                                                    \
    if (k < n && (k) * VECTOR_BYTES % CACHE_LINE == 0) {                               \
        __builtin_prefetch(soon + (k) * VECTOR_BYTES, 0, 2);                           \
    }
#define ADD(k)                                                                         \
    if (k < n) {                                                                       \
        const VEC v = k < n - 1 ? NAME(load)(source + (k) * LANES)                     \
                                : NAME(load_part)(source + (k) * LANES, tail);         \
        acc##k = has_coef ? NAME(madd)(acc##k, c, v) : NAME(add)(acc##k, v);           \
    }
#define KEEP(k)                                                                        \
    if (k < n) {                                                                       \
        NAME(keep)(sums + (k) * LANES, acc##k);                                        \
    }
#define STREAM(k)                                                                      \
    if (k < n) {                                                                       \
        NAME(stream)(y + (k) * LANES, NAME(times)(acc##k, factor));                    \
    }
#define STORE(k)                                                                       \
    if (k < n - 1) {                                                                   \
        NAME(store)(y + (k) * LANES, NAME(times)(acc##k, factor));                     \
    } else if (k < n) {                                                                \
        NAME(store_part)(y + (k) * LANES, NAME(times)(acc##k, factor), tail);          \
    }

/* y[i, f + k * LANES ...] = scale[i] * sum over entries e of row i of coef[e] * x[col[e]]
 * for rows [row, stop) and n vectors, the last of `tail` lanes. coef counts from the first
 * entry of `row`; NULL: all ones. n, has_coef and prefetch are constants at every call.
 * With sums, one row's sum is kept there as it is. */
INLINE void NAME(tile_rows)(const spmm_view *s, int64_t row, int64_t stop,
                            const ACC *coef, int64_t f, int tail, int n, bool has_coef,
                            bool prefetch) {
    const T *x = (const T *)s->x + f; // x [n_cols, F]
    T *y = (T *)s->y + row * s->n_features + f;
    const int64_t *rowptr = s->rowptr;
    const int32_t *col = s->col;
    const ACC *scale = s->row_scale;
    const int64_t stride = s->x_stride, ahead = s->ahead, n_features = s->n_features;
    const int64_t base = rowptr[row];
    const bool stream = s->stream;
    int64_t e = base;
    for (int64_t i = row; i < stop; i++, y += n_features) {
        EACH_VECTOR(START)
        for (const int64_t end = rowptr[i + 1]; e < end; e++) {
            const T *source = x + col[e] * stride;
            if (prefetch) {
                const char *soon = (const char *)(x + col[e + ahead] * stride);
                EACH_VECTOR(PREFETCH)
            }
            const VEC c = NAME(splat)(has_coef ? coef[e - base] : 0);
            EACH_VECTOR(ADD)
        }
        if (s->sums != NULL) {
            ACC *sums = (ACC *)s->sums + f;
            EACH_VECTOR(KEEP)
            return;
        }
        const VEC factor = NAME(splat)(scale != NULL ? scale[i] : 1);
        if (stream) {
            EACH_VECTOR(STREAM)
        } else {
            EACH_VECTOR(STORE)
        }
    }
}

#undef EACH_VECTOR
#undef START
#undef PREFETCH
#undef ADD
#undef KEEP
#undef STREAM
#undef STORE

/* One tile, `width` features from f on; coef NULL: all ones. */
TARGET static void NAME(tile)(const spmm_view *s, int64_t row, int64_t stop,
                              const ACC *coef, int64_t f, int64_t width) {
    const int n = (int)((width + LANES - 1) / LANES);
    const int tail = (int)width - (n - 1) * LANES;
#define CASE(n, has_coef, prefetch)                                                    \
    case (n) * 4 + (has_coef) * 2 + (prefetch):                                        \
        if (n <= MAX_VECTORS) {                                                        \
            NAME(tile_rows)(s, row, stop, coef, f, tail, n, has_coef, prefetch);       \
        }                                                                              \
        break;
#define CASES(n) CASE(n, 0, 0) CASE(n, 0, 1) CASE(n, 1, 0) CASE(n, 1, 1)
    switch (n * 4 + (coef != NULL) * 2 + (s->ahead > 0)) {
        CASES(1)
        CASES(2)
        CASES(3)
        CASES(4)
        CASES(5)
        CASES(6)
        CASES(7)
        CASES(8)
        CASES(9)
    }
#undef CASES
#undef CASE
}

#include "cpu/spmm_one.h"

/* Rows [row, stop), all of them whole, coef [entries of those rows] or NULL */
TARGET static void NAME(rows)(const spmm_view *s, int64_t row, int64_t stop,
                              const void *coef) {
    const int64_t vectors = (s->n_features + LANES - 1) / LANES;
    const int64_t tiles = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
    if (s->n_features == 1) {
        NAME(one_feature)(s, row, stop, coef);
    } else if (tiles == 1) {
        NAME(tile)(s, row, stop, coef, 0, s->n_features);
    } else {
        const int64_t width = (vectors + tiles - 1) / tiles * LANES;
        for (int64_t i = row; i < stop; i++) { // a row's tiles together: x stays warm
            const ACC *of_row =
                coef != NULL ? (const ACC *)coef + (s->rowptr[i] - s->rowptr[row])
                             : NULL;
            for (int64_t f = 0; f < s->n_features; f += width) {
                const int64_t left = s->n_features - f;
                NAME(tile)(s, i, i + 1, of_row, f, left < width ? left : width);
            }
        }
    }
    GNN_GLUE2(FENCE, ISA)();
}

/* y[row, :] = scale * sum over n_chunks of sums[c, :], in order of c; sums as tile_rows
 * left them, `apart` accumulators from one chunk to the next */
TARGET static void NAME(join)(const spmm_view *s, int64_t row, const void *sums,
                              int64_t n_chunks, int64_t apart) {
    const ACC *scale = s->row_scale;
    T *y = (T *)s->y + row * s->n_features;
    const ACC factor = scale != NULL ? scale[row] : 1;
    if (s->n_features == 1) {
        ACC sum = 0;
        for (int64_t c = 0; c < n_chunks; c++) {
            sum += ((const ACC *)sums)[c * apart];
        }
        *y = GNN_GLUE2(down, D)(factor * sum);
        return;
    }
    for (int64_t f = 0; f < s->n_features; f += LANES) {
        const int64_t left = s->n_features - f;
        const ACC *p = (const ACC *)sums + f; // sums [n_chunks, apart]
        VEC sum = NAME(splat)(0);
        for (int64_t c = 0; c < n_chunks; c++, p += apart) {
            sum = NAME(add)(sum, NAME(kept)(p));
        }
        sum = NAME(times)(sum, NAME(splat)(factor));
        NAME(store_part)(y + f, sum, left < LANES ? (int)left : LANES);
    }
}

#undef NAME
#undef TARGET
#undef T
#undef ACC
#undef VEC
#undef LANES
#undef MAX_VECTORS
#undef ROOM
#undef INLINE
#undef VECTOR_BYTES
#undef ISA
#undef D
#undef A

/* spmm_rows.h: the row kernel of spmm for one instruction set and one dtype.
 *
 * Include with ISA, D and A (the accumulator's dtype) defined; they are undefined at the
 * end. A tile is up to MAX_VECTORS_<isa> vectors of one row of y: its accumulators stay in
 * registers while the entries of the row go by, and y is written once.
 * The file that includes it defines spmm_view.
 */
#define NAME(base) GNN_GLUE3(base, ISA, D)
#define TARGET GNN_GLUE2(TARGET, ISA)
#define T GNN_GLUE2(store, D)
#define ACC GNN_GLUE2(acc, D)
#define VEC GNN_GLUE3(vec, ISA, D)
#define LANES GNN_GLUE3(LANES, ISA, D)
#define MAX_VECTORS GNN_GLUE2(MAX_VECTORS, ISA)
#define VECTOR_BYTES (LANES * (int)sizeof(T))
#define INLINE TARGET static inline __attribute__((always_inline))

/* Does DO(k) for the vectors k < n of a tile, each a variable of its own: compilers keep
 * variables in registers, but not the elements of an array. */
#define EACH_VECTOR(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define START(k) VEC acc##k = NAME(splat)(0);
#define PREFETCH(k)                                                                    \
    if (k < n && (k) * VECTOR_BYTES % CACHE_LINE == 0) {                               \
        if (far) { /* the first level tracks too few misses to keep up */              \
            __builtin_prefetch(soon + (k) * VECTOR_BYTES, 0, 2);                       \
        } else {                                                                       \
            __builtin_prefetch(soon + (k) * VECTOR_BYTES, 0, 3);                       \
        }                                                                              \
    }
#define ADD(k)                                                                         \
    if (k < n) {                                                                       \
        const VEC v = k < n - 1 ? NAME(load)(source + (k) * LANES)                     \
                                : NAME(load_part)(source + (k) * LANES, tail);         \
        acc##k = has_coef ? acc##k + c * v : acc##k + v;                               \
    }
#define KEEP(k)                                                                        \
    if (k < n) {                                                                       \
        GNN_GLUE3(store_part, ISA, A)                                                  \
        (sums + (k) * LANES, acc##k, k < n - 1 ? LANES : tail);                        \
    }
#define STREAM(k)                                                                      \
    if (k < n) {                                                                       \
        NAME(stream)(y + (k) * LANES, factor * acc##k);                                \
    }
#define STORE(k)                                                                       \
    if (k < n - 1) {                                                                   \
        NAME(store)(y + (k) * LANES, factor * acc##k);                                 \
    } else if (k < n) {                                                                \
        NAME(store_part)(y + (k) * LANES, factor * acc##k, tail);                      \
    }

/* y[i, f + k * LANES ...] = scale[i] * sum over entries e of row i of coef[e] * x[col[e]]
 * for rows [row, stop) and n vectors, the last of `tail` lanes. coef counts from the first
 * entry of `row`; NULL: all ones. n, has_coef and far are constants at every call. With
 * s->sums, one row's sum is kept there as it is. */
INLINE void NAME(tile_rows)(const spmm_view *s, int64_t row, int64_t stop,
                            const ACC *coef, int64_t f, int tail, int n, bool has_coef,
                            bool far) {
    const T *x = (const T *)s->x + f; // x [n_cols, F]
    const int32_t *col = s->col;
    const ACC *scale = s->row_scale;
    const int64_t stride = s->x_stride, ahead = s->ahead, last = s->n_edges - 1;
    const int64_t base = s->rowptr[row];
    for (int64_t i = row; i < stop; i++) {
        EACH_VECTOR(START)
        const int64_t end = s->rowptr[i + 1];
        for (int64_t e = s->rowptr[i]; e < end; e++) {
            const T *source = x + col[e] * stride;
            const int64_t next = e + ahead < last ? e + ahead : last;
            const char *soon = (const char *)(x + col[next] * stride);
            EACH_VECTOR(PREFETCH)
            const VEC c = NAME(splat)(has_coef ? coef[e - base] : 0);
            EACH_VECTOR(ADD)
        }
        if (s->sums != NULL) {
            ACC *sums = (ACC *)s->sums + f; // sums [F]
            EACH_VECTOR(KEEP)
            return;
        }
        const VEC factor = NAME(splat)(scale != NULL ? scale[i] : 1);
        T *y = (T *)s->y + i * s->n_features + f; // y [n_rows, F]
        if (s->stream) {
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
#define CASE(n, has_coef, far)                                                         \
    case (n) * 4 + (has_coef) * 2 + (far):                                             \
        if (n <= MAX_VECTORS) {                                                        \
            NAME(tile_rows)(s, row, stop, coef, f, tail, n, has_coef, far);            \
        }                                                                              \
        break;
#define CASES(n) CASE(n, 0, 0) CASE(n, 0, 1) CASE(n, 1, 0) CASE(n, 1, 1)
    switch (n * 4 + (coef != NULL) * 2 + s->far) {
        CASES(1)
        CASES(2)
        CASES(3)
        CASES(4)
        CASES(5)
        CASES(6)
        CASES(7)
        CASES(8)
    }
#undef CASES
#undef CASE
}

/* One feature: the entries' terms are laid side by side first, so that a row is a vector
 * sum (in the order of the lanes) and few branches depend on its degree. */
TARGET static void NAME(one_feature)(const spmm_view *s, int64_t row, int64_t stop,
                                     const ACC *coef) {
    _Alignas(64) ACC terms[MAX_COEFS + LANES];
    const T *x = s->x; // x [n_cols, 1]
    const ACC *scale = s->row_scale;
    const int64_t base = s->rowptr[row], n = s->rowptr[stop] - base;
    const int32_t *col = s->col + base;
    for (int64_t e = 0; e < n; e++) {
        terms[e] = GNN_GLUE2(up, D)(x[col[e] * s->x_stride]);
    }
    for (int64_t e = 0; coef != NULL && e < n; e++) {
        terms[e] *= coef[e];
    }
    for (int64_t i = row; i < stop; i++) {
        const ACC *p = terms + (s->rowptr[i] - base),
                  *end = terms + (s->rowptr[i + 1] - base);
        VEC sum = NAME(splat)(0);
        for (; end - p > LANES; p += LANES) {
            sum += GNN_GLUE3(load, ISA, A)(p);
        }
        if (end > p) {
            sum += GNN_GLUE3(load_part, ISA, A)(p, (int)(end - p));
        }
        const ACC total = NAME(total)(sum);
        if (s->sums != NULL) {
            *(ACC *)s->sums = total;
        } else {
            ((T *)s->y)[i] =
                GNN_GLUE2(down, D)(scale != NULL ? scale[i] * total : total);
        }
    }
}

/* Rows [row, stop), all of them whole, coef [entries of those rows] or NULL */
TARGET static void NAME(rows)(const spmm_view *s, int64_t row, int64_t stop,
                              const void *coef) {
    enum { WIDTH = MAX_VECTORS * LANES };
    if (s->n_features == 1) {
        NAME(one_feature)(s, row, stop, coef);
    } else if (s->n_features <= WIDTH) {
        NAME(tile)(s, row, stop, coef, 0, s->n_features);
    } else {
        for (int64_t i = row; i < stop; i++) { // a row's tiles together: x stays warm
            const ACC *of_row =
                coef != NULL ? (const ACC *)coef + (s->rowptr[i] - s->rowptr[row])
                             : NULL;
            for (int64_t f = 0; f < s->n_features; f += WIDTH) {
                const int64_t left = s->n_features - f;
                NAME(tile)(s, i, i + 1, of_row, f, left < WIDTH ? left : WIDTH);
            }
        }
    }
    GNN_GLUE2(FENCE, ISA)();
}

/* y[row, :] = scale * sum over n_chunks of sums[c, :], in order of c */
TARGET static void NAME(join)(const spmm_view *s, int64_t row, const void *sums,
                              int64_t n_chunks) {
    const ACC *scale = s->row_scale;
    const VEC factor = NAME(splat)(scale != NULL ? scale[row] : 1);
    T *y = (T *)s->y + row * s->n_features;
    for (int64_t f = 0; f < s->n_features; f += LANES) {
        const int64_t left = s->n_features - f;
        const int lanes = left < LANES ? (int)left : LANES;
        const ACC *p = (const ACC *)sums + f; // sums [n_chunks, F]
        VEC acc = NAME(splat)(0);
        for (int64_t c = 0; c < n_chunks; c++, p += s->n_features) {
            acc += GNN_GLUE3(load_part, ISA, A)(p, lanes);
        }
        NAME(store_part)(y + f, factor * acc, lanes);
    }
}

#undef NAME
#undef TARGET
#undef T
#undef ACC
#undef VEC
#undef LANES
#undef MAX_VECTORS
#undef INLINE
#undef VECTOR_BYTES
#undef EACH_WIDTH
#undef EACH_FLAG
#undef ISA
#undef D
#undef A

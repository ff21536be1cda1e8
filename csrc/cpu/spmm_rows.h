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
#define INLINE TARGET static inline __attribute__((always_inline))

/* acc[k] = sum over entries [begin, end) of coef[e - begin] * x[col[e], f + k * LANES]
 * for n vectors, the last of `tail` lanes; coef NULL: all ones. n, whole (tail is LANES)
 * and has_coef are constants at every call. */
INLINE void NAME(sum_tile)(const spmm_view *s, int64_t begin, int64_t end,
                           const ACC *coef, int64_t f, int tail, VEC *acc, int n,
                           bool whole, bool has_coef) {
    const T *x = (const T *)s->x + f; // x [n_cols, F]
    const int64_t last = s->n_edges - 1;
    for (int k = 0; k < n; k++) {
        acc[k] = NAME(splat)(0);
    }
    for (int64_t e = begin; e < end; e++) {
        const T *row = x + s->col[e] * s->x_stride;
        const int64_t ahead = e + s->ahead < last ? e + s->ahead : last;
        const char *soon = (const char *)(x + s->col[ahead] * s->x_stride);
        for (int k = 0; k < n * LANES * (int)sizeof(T); k += CACHE_LINE) {
            __builtin_prefetch(soon + k, 0, 2);
        }
        const VEC c = NAME(splat)(has_coef ? coef[e - begin] : 0);
        for (int k = 0; k < n; k++) {
            const VEC v = k < n - 1 || whole ? NAME(load)(row + k * LANES)
                                             : NAME(load_part)(row + k * LANES, tail);
            acc[k] = has_coef ? acc[k] + c * v : acc[k] + v;
        }
    }
}

/* y[i, f ...] for rows [row, stop); for a chunk, one row whose bare sum goes to s->sums */
INLINE void NAME(tile_rows)(const spmm_view *s, int64_t row, int64_t stop,
                            const ACC *coef, int64_t f, int tail, int n, bool whole,
                            bool has_coef) {
    const ACC *scale = s->row_scale;
    const int64_t base = s->rowptr[row];
    for (int64_t i = row; i < stop; i++) {
        const int64_t begin = s->rowptr[i], end = s->rowptr[i + 1];
        VEC acc[MAX_VECTORS];
        NAME(sum_tile)(s, begin, end, has_coef ? coef + (begin - base) : NULL, f, tail,
                       acc, n, whole, has_coef);
        if (s->sums != NULL) {
            ACC *sums = (ACC *)s->sums + f; // sums [F]
            for (int k = 0; k < n - 1; k++) {
                GNN_GLUE3(store, ISA, A)(sums + k * LANES, acc[k]);
            }
            GNN_GLUE3(store_part, ISA, A)(sums + (n - 1) * LANES, acc[n - 1], tail);
            return;
        }
        const VEC factor = NAME(splat)(scale != NULL ? scale[i] : 1);
        T *y = (T *)s->y + i * s->n_features + f; // y [n_rows, F]
        if (whole && s->stream) {
            for (int k = 0; k < n; k++) {
                NAME(stream)(y + k * LANES, factor * acc[k]);
            }
            continue;
        }
        for (int k = 0; k < n - 1; k++) {
            NAME(store)(y + k * LANES, factor * acc[k]);
        }
        if (whole) {
            NAME(store)(y + (n - 1) * LANES, factor * acc[n - 1]);
        } else {
            NAME(store_part)(y + (n - 1) * LANES, factor * acc[n - 1], tail);
        }
    }
}

/* One tile, `width` features from f on; coef NULL: all ones. */
TARGET static void NAME(tile)(const spmm_view *s, int64_t row, int64_t stop,
                              const ACC *coef, int64_t f, int64_t width) {
    const int n = (int)((width + LANES - 1) / LANES);
    const int tail = (int)width - (n - 1) * LANES;
#define CASE(n, whole, has_coef)                                                       \
    case (n) * 4 + (whole) * 2 + (has_coef):                                           \
        NAME(tile_rows)(s, row, stop, coef, f, tail, n, whole, has_coef);              \
        break;
#define CASES(n) CASE(n, 0, 0) CASE(n, 0, 1) CASE(n, 1, 0) CASE(n, 1, 1)
    switch (n * 4 + (tail == LANES) * 2 + (coef != NULL)) {
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

/* Rows [row, stop), all of them whole, coef [entries of those rows] or NULL */
TARGET static void NAME(rows)(const spmm_view *s, int64_t row, int64_t stop,
                              const void *coef) {
    enum { WIDTH = MAX_VECTORS * LANES };
    if (s->n_features <= WIDTH) {
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
#undef INLINE
#undef EACH_WIDTH
#undef EACH_FLAG
#undef ISA
#undef D
#undef A

/* gine_rows.h: the row kernels of gine for one instruction set and one dtype.
 *
 * Include with ISA, D and A (the accumulator's dtype) defined; they are undefined at the
 * end. A tile is up to MAX_VECTORS_<isa> vectors of one row: its accumulators stay in
 * registers while the entries of the row go by. No message is ever written.
 * The file that includes it defines gine_view and edge_at.
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
#define AT(p, k)                                                                       \
    (k < n - 1 ? NAME(load)((p) + (k) * LANES)                                         \
               : NAME(load_part)((p) + (k) * LANES, tail))
#define START(k) VEC acc##k = NAME(splat)(0);
#define OWN(k) const VEC own##k = k < n ? AT(own, k) : NAME(splat)(0);
#define PREFETCH(k)                                                                    \
    if (k < n && (k) * VECTOR_BYTES % CACHE_LINE == 0) {                               \
        __builtin_prefetch((const char *)soon + (k) * VECTOR_BYTES);                   \
        __builtin_prefetch((const char *)soon_edge + (k) * VECTOR_BYTES);              \
    }
#define ADD(k)                                                                         \
    if (k < n) {                                                                       \
        const VEC v = AT(source, k) + AT(edge, k);                                     \
        acc##k += NAME(gate)(v, v);                                                    \
    }
#define PASS(k)                                                                        \
    if (k < n) {                                                                       \
        const VEC m = NAME(gate)(own##k + AT(edge, k), AT(source, k));                 \
        acc##k += m;                                                                   \
        if (writes_edges && s->stream) {                                               \
            NAME(stream)(grad_edge + (k) * LANES, m);                                  \
        } else if (writes_edges && k < n - 1) {                                        \
            NAME(store)(grad_edge + (k) * LANES, m);                                   \
        } else if (writes_edges) {                                                     \
            NAME(store_part)(grad_edge + (k) * LANES, m, tail);                        \
        }                                                                              \
    }
#define KEEP(k)                                                                        \
    if (k < n) {                                                                       \
        GNN_GLUE3(store_part, ISA, A)                                                  \
        (sums + (k) * LANES, acc##k, k < n - 1 ? LANES : tail);                        \
    }
#define STORE(k)                                                                       \
    if (k < n - 1) {                                                                   \
        NAME(store)(y + (k) * LANES, acc##k);                                          \
    } else if (k < n) {                                                                \
        NAME(store_part)(y + (k) * LANES, acc##k, tail);                               \
    }
/* Ends a row: its sum goes to y, or to s->sums where the row is a chunk of one. */
#define FINISH_ROW                                                                     \
    if (s->sums != NULL) {                                                             \
        ACC *sums = (ACC *)s->sums + f; /* sums [F] */                                 \
        EACH_VECTOR(KEEP)                                                              \
    } else if (s->y != NULL) {                                                         \
        T *y = (T *)s->y + i * s->n_features + f; /* y [n_rows, F] */                  \
        EACH_VECTOR(STORE)                                                             \
    }

/* y[i, f ...] = sum over entries e of row i of relu(x[col[e]] + edge[eid[e]]) for rows
 * [row, stop) and n vectors from f on, the last of `tail` lanes; n is a constant. */
INLINE void NAME(sum_tile)(const gine_view *s, int64_t row, int64_t stop, int64_t f,
                           int tail, int n) {
    const T *gathered = (const T *)s->gathered + f; // x [n_cols, F]
    const T *edges = (const T *)s->edge + f;        // edge [n_edges, F]
    const int64_t last = s->n_edges - 1;
    for (int64_t i = row; i < stop; i++) {
        EACH_VECTOR(START)
        const int64_t end = s->rowptr[i + 1];
        for (int64_t e = s->rowptr[i]; e < end; e++) {
            const T *source = gathered + s->col[e] * s->gathered_stride;
            const T *edge = edges + edge_at(s, e) * s->edge_stride;
            const int64_t next = e + AHEAD < last ? e + AHEAD : last;
            const T *soon = gathered + s->col[next] * s->gathered_stride;
            const T *soon_edge = edges + edge_at(s, next) * s->edge_stride;
            EACH_VECTOR(PREFETCH)
            EACH_VECTOR(ADD)
        }
        FINISH_ROW
    }
}

/* With m_e = grad[col[e]] where own[i] + edge[eid[e]] > 0, else 0:
 * y[i, f ...] = sum over entries e of row i of m_e; grad_edge[eid[e], f ...] = m_e. */
INLINE void NAME(vjp_tile)(const gine_view *s, int64_t row, int64_t stop, int64_t f,
                           int tail, int n, bool writes_edges) {
    const T *gathered = (const T *)s->gathered + f; // grad [n_cols, F]
    const T *edges = (const T *)s->edge + f;        // edge [n_edges, F]
    const int64_t last = s->n_edges - 1;
    for (int64_t i = row; i < stop; i++) {
        const T *own = (const T *)s->own + i * s->own_stride + f; // x [n_rows, F]
        EACH_VECTOR(OWN)
        EACH_VECTOR(START)
        const int64_t end = s->rowptr[i + 1];
        for (int64_t e = s->rowptr[i]; e < end; e++) {
            const int64_t at = edge_at(s, e);
            const T *source = gathered + s->col[e] * s->gathered_stride;
            const T *edge = edges + at * s->edge_stride;
            const int64_t next = e + AHEAD < last ? e + AHEAD : last;
            const T *soon = gathered + s->col[next] * s->gathered_stride;
            const T *soon_edge = edges + edge_at(s, next) * s->edge_stride;
            T *grad_edge = writes_edges ? (T *)s->grad_edge + at * s->n_features + f
                                        : NULL; // [n_edges, F]
            EACH_VECTOR(PREFETCH)
            EACH_VECTOR(PASS)
        }
        FINISH_ROW
    }
}

#undef EACH_VECTOR
#undef AT
#undef START
#undef OWN
#undef PREFETCH
#undef ADD
#undef PASS
#undef KEEP
#undef STORE
#undef FINISH_ROW

/* Calls TILE(row, stop, f, tail, n) with every n a constant for rows [row, stop). */
#define EACH_TILE                                                                      \
    for (int64_t f = 0; f < s->n_features; f += MAX_VECTORS * LANES) {                 \
        const int64_t left = s->n_features - f;                                        \
        const int64_t width = left < MAX_VECTORS * LANES ? left : MAX_VECTORS * LANES; \
        const int n_vectors = (int)((width + LANES - 1) / LANES);                      \
        const int tail = (int)width - (n_vectors - 1) * LANES;                         \
        switch (n_vectors) {                                                           \
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)            \
        }                                                                              \
    }

/* A row's tiles together where there are several: its indices stay warm. */
TARGET static void NAME(sum_rows)(const gine_view *s, int64_t row, int64_t stop) {
#define CASE(n)                                                                        \
    case n:                                                                            \
        if (n <= MAX_VECTORS) {                                                        \
            NAME(sum_tile)(s, begin, end, f, tail, n);                                 \
        }                                                                              \
        break;
    const int64_t step = s->n_features <= MAX_VECTORS * LANES ? stop - row : 1;
    for (int64_t begin = row; begin < stop; begin += step) {
        const int64_t end = begin + step;
        EACH_TILE
    }
#undef CASE
}

TARGET static void NAME(vjp_rows)(const gine_view *s, int64_t row, int64_t stop) {
#define CASE(n)                                                                        \
    case n:                                                                            \
        if (n <= MAX_VECTORS && s->grad_edge != NULL) {                                \
            NAME(vjp_tile)(s, begin, end, f, tail, n, true);                           \
        } else if (n <= MAX_VECTORS) {                                                 \
            NAME(vjp_tile)(s, begin, end, f, tail, n, false);                          \
        }                                                                              \
        break;
    const int64_t step = s->n_features <= MAX_VECTORS * LANES ? stop - row : 1;
    for (int64_t begin = row; begin < stop; begin += step) {
        const int64_t end = begin + step;
        EACH_TILE
    }
#undef CASE
    GNN_GLUE2(FENCE, ISA)();
}
#undef EACH_TILE

/* y[i] = sum over e of dx[col[e]] + dedge[eid[e]] where x[col[e]] + edge[eid[e]] > 0.
 * For second derivatives: one vector at a time, so that one body does any width. */
TARGET static void NAME(jvp_rows)(const gine_view *s, int64_t row, int64_t stop) {
    for (int64_t f = 0; f < s->n_features; f += LANES) {
        const T *gathered = (const T *)s->gathered + f; // x [n_cols, F]
        const T *edges = (const T *)s->edge + f;        // edge [n_edges, F]
        const T *dx = (const T *)s->dx, *dedge = (const T *)s->dedge; // or NULL
        const int64_t left = s->n_features - f;
        const int lanes = left < LANES ? (int)left : LANES;
        for (int64_t i = row; i < stop; i++) {
            VEC acc = NAME(splat)(0);
            for (int64_t e = s->rowptr[i]; e < s->rowptr[i + 1]; e++) {
                const int64_t j = s->col[e], at = edge_at(s, e);
                const VEC v =
                    NAME(load_part)(gathered + j * s->gathered_stride, lanes) +
                    NAME(load_part)(edges + at * s->edge_stride, lanes);
                VEC m = NAME(splat)(0);
                if (dx != NULL) {
                    m += NAME(load_part)(dx + j * s->dx_stride + f, lanes);
                }
                if (dedge != NULL) {
                    m += NAME(load_part)(dedge + at * s->dedge_stride + f, lanes);
                }
                acc += NAME(gate)(v, m);
            }
            if (s->sums != NULL) {
                GNN_GLUE3(store_part, ISA, A)((ACC *)s->sums + f, acc, lanes);
            } else {
                NAME(store_part)((T *)s->y + i * s->n_features + f, acc, lanes);
            }
        }
    }
}

/* y[row, :] = sum over n_chunks of sums[c, :], in order of c */
TARGET static void NAME(join)(const gine_view *s, int64_t row, const void *sums,
                              int64_t n_chunks) {
    T *y = (T *)s->y + row * s->n_features;
    for (int64_t f = 0; f < s->n_features; f += LANES) {
        const int64_t left = s->n_features - f;
        const int lanes = left < LANES ? (int)left : LANES;
        const ACC *p = (const ACC *)sums + f; // sums [n_chunks, F]
        VEC acc = NAME(splat)(0);
        for (int64_t c = 0; c < n_chunks; c++, p += s->n_features) {
            acc += GNN_GLUE3(load_part, ISA, A)(p, lanes);
        }
        NAME(store_part)(y + f, acc, lanes);
    }
}

#undef NAME
#undef TARGET
#undef T
#undef ACC
#undef VEC
#undef LANES
#undef MAX_VECTORS
#undef VECTOR_BYTES
#undef INLINE
#undef ISA
#undef D
#undef A

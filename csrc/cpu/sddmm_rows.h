/* sddmm_rows.h: the row kernel of sddmm for one instruction set and one dtype: the dot
 * product of u[i, :] and v[col[e], :] for every entry e. Include with ISA, D and A defined;
 * they are undefined at the end. The file that includes it defines sddmm_view.
 */
#define NAME(base) GNN_GLUE3(base, ISA, D)
#define TARGET GNN_GLUE2(TARGET, ISA)
#define T GNN_GLUE2(store, D)
#define ACC GNN_GLUE2(acc, D)
#define VEC GNN_GLUE3(vec, ISA, D)
#define LANES GNN_GLUE3(LANES, ISA, D)
#define INLINE TARGET static inline __attribute__((always_inline))

/* Four chains of multiply-adds hide their latency; they meet in one fixed order. */
INLINE ACC NAME(dot)(const T *u, const T *v, int64_t n_features) {
    VEC sum[4] = {NAME(splat)(0), NAME(splat)(0), NAME(splat)(0), NAME(splat)(0)};
    int64_t f = 0;
    for (; f + 4 * LANES <= n_features; f += 4 * LANES) {
        for (int k = 0; k < 4; k++) {
            sum[k] += NAME(load)(u + f + k * LANES) * NAME(load)(v + f + k * LANES);
        }
    }
    for (; f + LANES <= n_features; f += LANES) {
        sum[0] += NAME(load)(u + f) * NAME(load)(v + f);
    }
    if (f < n_features) {
        const int left = (int)(n_features - f);
        sum[1] += NAME(load_part)(u + f, left) * NAME(load_part)(v + f, left);
    }
    return NAME(total)((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* dots[e - begin] for the entries [begin, end) of one row */
TARGET static void NAME(dots)(const sddmm_view *s, int64_t row, int64_t begin,
                              int64_t end, void *dots) {
    const T *u = (const T *)s->u + row * s->u_stride; // u [n_rows, F]
    const T *v = s->v;                                // v [n_cols, F]
    const int64_t last = s->n_edges - 1;
    for (int64_t e = begin; e < end; e++) {
        const int64_t ahead = e + PREFETCH_ENTRIES < last ? e + PREFETCH_ENTRIES : last;
        const char *soon = (const char *)(v + s->col[ahead] * s->v_stride);
        for (int64_t k = 0; k < s->n_features * (int64_t)sizeof(T); k += CACHE_LINE) {
            __builtin_prefetch(soon + k);
        }
        ((ACC *)dots)[e - begin] =
            NAME(dot)(u, v + s->col[e] * s->v_stride, s->n_features);
    }
}

#undef NAME
#undef TARGET
#undef T
#undef ACC
#undef VEC
#undef LANES
#undef INLINE
#undef ISA
#undef D
#undef A

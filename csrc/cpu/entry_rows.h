/* entry_rows.h: dot products and weighted sums by head over a batch of entries, part of
 * the row templates of attention and of products by head.
 *
 * A head's channels are n vectors, the last of `tail` lanes; n up to 4 is a constant of
 * the compiled body, n = 0 stands for any number.
 */

/* Calls CALL(n, whole) with the number of vectors of a head as a constant, and whether all
 * of them are whole; n 0: any number, the only one where ENTRY_SPECIAL_<isa>_<dtype> is
 * not set (a constant more is seconds of compiling more). */
#undef BY_VECTORS
#if GNN_GLUE3(ENTRY_SPECIAL, ISA, D)
#define BY_VECTORS(n_channels, CALL)                                                   \
    if ((n_channels) == LANES) {                                                       \
        CALL(1, true);                                                                 \
    } else if ((n_channels) == 2 * LANES) {                                            \
        CALL(2, true);                                                                 \
    } else if ((n_channels) == 4 * LANES) {                                            \
        CALL(4, true);                                                                 \
    } else if ((n_channels) < LANES && (n_channels) > 0) {                             \
        CALL(1, false);                                                                \
    } else {                                                                           \
        CALL(0, false);                                                                \
    }
#else
#define BY_VECTORS(n_channels, CALL) CALL(0, false);
#endif

/* lanes [c, c + LANES) of n_channels */
#define LANES_LEFT(c) (n_channels - (c) < LANES ? (int)(n_channels - (c)) : LANES)

INLINE VEC NAME(part)(const T *p, int lanes, bool whole) {
    return whole ? NAME(load)(p) : NAME(load_part)(p, lanes);
}

INLINE VEC NAME(part_of)(const void *p, int64_t at, int lanes, bool whole, bool wide) {
    if (wide) {
        return whole ? NAME_A(load)((const ACC *)p + at)
                     : NAME_A(load_heads)((const ACC *)p + at, lanes);
    }
    return NAME(part)((const T *)p + at, lanes, whole);
}

/* ------------------------------------------------------------------------ dot products */

/* Sums by entry and head, s[e, h] = (add ? s[e, h] : 0) + scale * total over the lanes of
 * PAIR(e, h), four at a time: four heads of an entry where they come in fours, else the
 * same head of up to four entries of a row. BEFORE(e) comes first at each entry. */
#define EACH_PAIR(b, n_heads, scale, add, s, BEFORE, PAIR)                             \
    const bool fours = (n_heads) % 4 == 0;                                             \
    for (int64_t r = 0; r < (b)->n_rows; r++) {                                        \
        const int64_t stop = (b)->start[r + 1];                                        \
        for (int64_t e = (b)->start[r]; e < stop; e += fours ? 1 : 4) {                \
            const int64_t count = fours || e + 4 <= stop ? 4 : stop - e;               \
            for (int64_t k = 0; k < (fours ? 1 : count); k++) {                        \
                BEFORE(e + k)                                                          \
            }                                                                          \
            for (int64_t h = 0; h < (n_heads); h += fours ? 4 : 1) {                   \
                VEC lanes[4] = {NAME(splat)(0), NAME(splat)(0), NAME(splat)(0),        \
                                NAME(splat)(0)};                                       \
                for (int64_t k = 0; k < count; k++) {                                  \
                    const int64_t of = fours ? e : e + k, head = fours ? h + k : h;    \
                    lanes[k] = PAIR(of, head);                                         \
                }                                                                      \
                ACC four[4];                                                           \
                NAME_A(totals)(lanes[0], lanes[1], lanes[2], lanes[3], four);          \
                for (int64_t k = 0; k < count; k++) {                                  \
                    ACC *p = fours ? (s) + e * (n_heads) + h + k                       \
                                   : (s) + (e + k) * (n_heads) + h;                    \
                    *p = ((add) ? *p : 0) + (scale) * four[k];                         \
                }                                                                      \
            }                                                                          \
        }                                                                              \
    }

/* The lanes of <u, x + f>, one head; f NULL: none. */
INLINE VEC NAME(dot_lanes)(const void *u, int64_t of_u, bool wide, const T *x,
                           const T *f, bool has_f, int64_t n_channels, int n,
                           bool whole) {
    const int64_t n_vectors = n > 0 ? n : (n_channels + LANES - 1) / LANES;
    const int tail = (int)(n_channels - (n_vectors - 1) * LANES);
    VEC sum = NAME(splat)(0);
    for (int64_t k = 0; k < n_vectors; k++) {
        const bool full = whole || k < n_vectors - 1;
        VEC v = NAME(part)(x + k * LANES, tail, full);
        if (has_f) {
            v += NAME(part)(f + k * LANES, tail, full);
        }
        sum += v * NAME(part_of)(u, of_u + k * LANES, tail, full, wide);
    }
    return sum;
}

INLINE void NAME(dots_of)(const entry_batch *b, operand u, bool wide, operand x,
                          const int64_t *at, operand f, bool has_f, int64_t first,
                          int64_t n_heads, int64_t n_channels, ACC scale, bool add,
                          ACC *s, int n, bool whole) {
    const T *source = (const T *)x.data + first * x.apart;
    const T *edge = has_f ? (const T *)f.data + first * f.apart : NULL;
    const int64_t bytes =
        (x.apart != 0 ? n_heads * n_channels : n_channels) * (int64_t)sizeof(T);
#define BEFORE(e) ask_for(source + at[(e) + SOON] * x.stride, bytes);
#define PAIR(e, h)                                                                     \
    NAME(dot_lanes)(u.data, (b->row + r) * u.stride + (first + (h)) * u.apart, wide,   \
                    source + at[e] * x.stride + (h) * x.apart,                         \
                    has_f ? edge + b->edge[e] * f.stride + (h) * f.apart : NULL,       \
                    has_f, n_channels, n, whole)
    EACH_PAIR(b, n_heads, scale, add, s, BEFORE, PAIR)
#undef BEFORE
#undef PAIR
}

/* s[e, h] = (add ? s[e, h] : 0)
 *           + scale * <u[row of e, first + h], x[at[e], first + h] + f[edge[e], first + h]>
 * s [b->n, n_heads]; u holds accumulators where `wide`; at is b->col or b->edge. */
OUTLINE void NAME(dots)(const entry_batch *b, operand u, bool wide, operand x,
                        const int64_t *at, operand f, int64_t first, int64_t n_heads,
                        int64_t n_channels, ACC scale, bool add, ACC *s) {
#define CALL(n, whole)                                                                 \
    NAME(dots_of)(b, u, false, x, at, f, false, first, n_heads, n_channels, scale,     \
                  add, s, n, whole)
    if (wide) {
        NAME(dots_of)(b, u, true, x, at, f, false, first, n_heads, n_channels, scale,
                      add, s, 0, false);
    } else if (f.data != NULL) {
        NAME(dots_of)(b, u, false, x, at, f, true, first, n_heads, n_channels, scale,
                      add, s, 0, false);
    } else {
        BY_VECTORS(n_channels, CALL)
    }
#undef CALL
}

/* Four heads of n whole vectors from head h on: a row's part of u is in registers. Along
 * the way rows of `next` are asked for, which the next look at the batch gathers. */
INLINE void NAME(dots_tile)(const entry_batch *b, operand u, operand x, operand next,
                            operand u_edge, bool wide, operand edge, bool has_edge,
                            int64_t n_attr, int64_t n_heads, int64_t first, int64_t h,
                            ACC scale, ACC *s, int n) {
    const int64_t head = first + h, bytes = 4 * n * LANES * (int64_t)sizeof(T);
    const T *source = (const T *)x.data + head * x.apart;
    const T *later = (const T *)next.data + head * next.apart;
    const T *attr = edge.data;
    const VEC times = NAME(splat)(scale);
    const int lanes_of_edge = (int)n_attr;
    for (int64_t r = 0; r < b->n_rows; r++) {
        const T *row = (const T *)u.data + (b->row + r) * u.stride + head * u.apart;
        VEC w[16], w_edge[4];
        ask_for((const T *)u.data + row_soon(b, r) * u.stride + head * u.apart, bytes);
        for (int j = 0; j < 4 * n; j++) {
            w[j] = times * NAME(load)(row + j / n * u.apart + j % n * LANES);
        }
        if (has_edge) {
            const int64_t size = wide ? (int64_t)sizeof(ACC) : (int64_t)sizeof(T);
            const int64_t of = row_soon(b, r) * u_edge.stride + head * u_edge.apart;
            ask_for((const char *)u_edge.data + of * size, 4 * n_attr * size);
        }
        for (int j = 0; has_edge && j < 4; j++) {
            const int64_t of = (b->row + r) * u_edge.stride + (head + j) * u_edge.apart;
            w_edge[j] =
                times * NAME(part_of)(u_edge.data, of, lanes_of_edge, false, wide);
        }
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const T *p = source + b->col[e] * x.stride;
            VEC sum[4];
            ask_for(source + b->col[e + SOON] * x.stride, bytes);
            ask_for(later + b->col[e] * next.stride, bytes);
            for (int j = 0; j < 4; j++) {
                sum[j] = w[j * n] * NAME(load)(p + j * x.apart);
                for (int k = 1; k < n; k++) {
                    sum[j] += w[j * n + k] * NAME(load)(p + j * x.apart + k * LANES);
                }
            }
            if (has_edge) {
                __builtin_prefetch(attr + b->edge[e + SOON] * edge.stride);
                const VEC a =
                    NAME(load_part)(attr + b->edge[e] * edge.stride, lanes_of_edge);
                for (int j = 0; j < 4; j++) {
                    sum[j] += w_edge[j] * a;
                }
            }
            NAME_A(totals)(sum[0], sum[1], sum[2], sum[3], s + e * n_heads + h);
        }
    }
}

OUTLINE void NAME(dots_in_turn)(const entry_batch *b, operand u, operand x, operand f,
                                operand u_edge, bool wide, operand edge, int64_t n_attr,
                                int64_t first, int64_t n_heads, int64_t n_channels,
                                ACC scale, ACC *s) {
    NAME(dots)(b, u, false, x, b->col, f, first, n_heads, n_channels, scale, false, s);
    if (u_edge.data != NULL) {
        NAME(dots)(b, u_edge, wide, edge, b->edge, (operand){0}, first, n_heads, n_attr,
                   scale, true, s);
    }
}

/* s[e, h] = scale * (<u[row of e, first + h], x[col[e], first + h] + f[edge[e], first + h]>
 *                    + <u_edge[row of e, first + h], edge[edge[e]]>)
 * u_edge [rows, H * n_attr] holds accumulators where `wide`, absent: without the second
 * product; f absent: 0; next: what is gathered after x, or x itself. */
OUTLINE void NAME(dots_with_edges)(const entry_batch *b, operand u, operand x,
                                   operand f, operand next, operand u_edge, bool wide,
                                   operand edge, int64_t n_attr, int64_t first,
                                   int64_t n_heads, int64_t n_channels, ACC scale,
                                   ACC *s) {
    const bool has_edge = u_edge.data != NULL;
    const bool fours = n_heads % 4 == 0 && f.data == NULL;
    if (!fours || (has_edge && n_attr > LANES)) {
        NAME(dots_in_turn)(b, u, x, f, u_edge, wide, edge, n_attr, first, n_heads,
                           n_channels, scale, s);
        return;
    }
#define TILES(n, has_edge, wide)                                                       \
    for (int64_t h = 0; h < n_heads; h += 4) {                                         \
        NAME(dots_tile)(b, u, x, next, u_edge, wide, edge, has_edge, n_attr, n_heads,  \
                        first, h, scale, s, n);                                        \
    }
#define CALL(n, whole)                                                                 \
    if (!(whole)) {                                                                    \
        NAME(dots_in_turn)(b, u, x, f, u_edge, wide, edge, n_attr, first, n_heads,     \
                           n_channels, scale, s);                                      \
    } else if (!has_edge) {                                                            \
        TILES(n, false, false)                                                         \
    } else if (wide) {                                                                 \
        TILES(n, true, true)                                                           \
    } else {                                                                           \
        TILES(n, true, false)                                                          \
    }
    BY_VECTORS(n_channels, CALL)
#undef CALL
#undef TILES
}

/* ----------------------------------------------------------------------- weighted sums */

/* Leaves v, `lanes` lanes of it, in the places a result asks for. */
INLINE void NAME(leave)(const result *y, int64_t at, VEC v, int lanes) {
    if (y->data != NULL) {
        NAME(store_part)((T *)y->data + at, v, lanes);
    }
    if (y->acc != NULL) {
        NAME_A(store_part)((ACC *)y->acc + at, v, lanes);
    }
}

/* Vector j of a tile that starts at head h: which head, which of its channels. */
#define HEAD_OF(j) ((j) / n)
#define CHANNEL_OF(j) ((j) % n * LANES)

/* n vectors a head, m of them (a multiple of n) at once from head h on */
INLINE void NAME(sums_tile)(const entry_batch *b, const ACC *coef, operand x,
                            const int64_t *at, operand f, bool has_f, int64_t first,
                            int64_t n_heads, int64_t n_channels, const ACC *factor,
                            ACC scale, const result *y, int64_t h, int64_t soon, int n,
                            int m, bool whole) {
    const int lanes = whole ? LANES : (int)n_channels; // in part only for n = 1
    const T *sources = (const T *)x.data + (first + h) * x.apart;
    const T *edges = has_f ? (const T *)f.data + (first + h) * f.apart : NULL;
    for (int64_t r = 0; r < b->n_rows; r++) {
        VEC acc[4];
        for (int j = 0; j < m; j++) {
            acc[j] = NAME(splat)(0);
        }
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const ACC *c = coef + e * n_heads + h;
            const T *source = sources + at[e] * x.stride;
            const T *edge = has_f ? edges + b->edge[e] * f.stride : NULL;
            ask_for(sources + at[e + SOON] * x.stride, soon);
            for (int j = 0; j < m; j++) {
                const int64_t from = HEAD_OF(j) * x.apart + CHANNEL_OF(j);
                VEC v = NAME(part)(source + from, lanes, whole);
                if (has_f) {
                    v += NAME(part)(edge + HEAD_OF(j) * f.apart + CHANNEL_OF(j), lanes,
                                    whole);
                }
                acc[j] += NAME(splat)(c[HEAD_OF(j)]) * v;
            }
        }
        for (int j = 0; j < m; j++) {
            const ACC times =
                factor != NULL ? factor[r * n_heads + h + HEAD_OF(j)] : scale;
            NAME(leave)(
                y, r * y->stride + (first + h + HEAD_OF(j)) * y->apart + CHANNEL_OF(j),
                acc[j] * NAME(splat)(times), lanes);
        }
    }
}

/* any number of channels, four vectors of one head at a time */
INLINE void NAME(sums_any)(const entry_batch *b, const ACC *coef, operand x,
                           const int64_t *at, operand f, bool has_f, int64_t first,
                           int64_t n_heads, int64_t n_channels, const ACC *factor,
                           ACC scale, const result *y, int64_t h) {
    const T *sources = (const T *)x.data + (first + h) * x.apart;
    const T *edges = has_f ? (const T *)f.data + (first + h) * f.apart : NULL;
    for (int64_t r = 0; r < b->n_rows; r++) {
        const VEC times = NAME(splat)(factor ? factor[r * n_heads + h] : scale);
        for (int64_t from = 0; from < n_channels; from += 4 * LANES) {
            const int64_t left = (n_channels - from + LANES - 1) / LANES;
            const int n = left < 4 ? (int)left : 4;
            VEC acc[4];
            for (int k = 0; k < 4; k++) {
                acc[k] = NAME(splat)(0);
            }
            for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
                const VEC c = NAME(splat)(coef[e * n_heads + h]);
                const T *source = sources + at[e] * x.stride + from;
                const T *edge = has_f ? edges + b->edge[e] * f.stride + from : NULL;
                ask_for(sources + at[e + SOON] * x.stride + from,
                        4 * LANES * (int64_t)sizeof(T));
                for (int k = 0; k < 4; k++) {
                    if (k < n) {
                        const int lanes = LANES_LEFT(from + k * LANES);
                        VEC v = NAME(load_part)(source + k * LANES, lanes);
                        if (has_f) {
                            v += NAME(load_part)(edge + k * LANES, lanes);
                        }
                        acc[k] += c * v;
                    }
                }
            }
            for (int k = 0; k < n; k++) {
                NAME(leave)(y,
                            r * y->stride + (first + h) * y->apart + from + k * LANES,
                            acc[k] * times, LANES_LEFT(from + k * LANES));
            }
        }
    }
}

/* y[r, first + h, :] = factor[r, h] * sum over the entries e of row r of
 *                      coef[e, h] * (x[at[e], first + h] + f[edge[e], first + h])
 * coef [b->n, n_heads], factor [b->n_rows, n_heads] or NULL: `scale` everywhere. */
INLINE void NAME(sums_of)(const entry_batch *b, const ACC *coef, operand x,
                          const int64_t *at, operand f, bool has_f, int64_t first,
                          int64_t n_heads, int64_t n_channels, const ACC *factor,
                          ACC scale, const result *y, int n, bool whole) {
    int64_t h = 0;
    const int per_tile = n > 0 ? 4 / n : 1;
    const int64_t soon = n_heads * n_channels * (int64_t)sizeof(T);
    for (; n > 0 && h + per_tile <= n_heads; h += per_tile) {
        NAME(sums_tile)(b, coef, x, at, f, has_f, first, n_heads, n_channels, factor,
                        scale, y, h, h == 0 ? soon : 0, n, 4, whole);
    }
    for (; n > 0 && n < 4 && h < n_heads; h++) {
        NAME(sums_tile)(b, coef, x, at, f, has_f, first, n_heads, n_channels, factor,
                        scale, y, h, h == 0 ? soon : 0, n, n, whole);
    }
    for (; h < n_heads; h++) {
        NAME(sums_any)(b, coef, x, at, f, has_f, first, n_heads, n_channels, factor,
                       scale, y, h);
    }
}

OUTLINE void NAME(sums)(const entry_batch *b, const ACC *coef, operand x,
                        const int64_t *at, operand f, int64_t first, int64_t n_heads,
                        int64_t n_channels, const ACC *factor, ACC scale,
                        const result *y) {
#define CALL(n, whole)                                                                 \
    NAME(sums_of)(b, coef, x, at, f, false, first, n_heads, n_channels, factor, scale, \
                  y, n, whole)
    if (f.data != NULL) {
        NAME(sums_of)(b, coef, x, at, f, true, first, n_heads, n_channels, factor,
                      scale, y, 0, false);
    } else {
        BY_VECTORS(n_channels, CALL)
    }
#undef CALL
}

/* y[:] = scale * sum over n_chunks of parts[c * apart ...], n numbers, in order of c */
OUTLINE void NAME(join_parts)(const ACC *parts, int64_t n_chunks, int64_t apart,
                              int64_t n, ACC scale, const result *y) {
    for (int64_t k = 0; k < n; k += LANES) {
        const int lanes = n - k < LANES ? (int)(n - k) : LANES;
        VEC sum = NAME(splat)(0);
        for (int64_t c = 0; c < n_chunks; c++) {
            sum += NAME_A(load_part)(parts + c * apart + k, lanes);
        }
        NAME(leave)(y, k, sum * NAME(splat)(scale), lanes);
    }
}

/* s[e, h] = w[edge[e], first + h] of E x all_heads numbers, accumulators where `wide` */
OUTLINE void NAME(edge_numbers)(const entry_batch *b, const void *w, bool wide,
                                int64_t all_heads, int64_t first, int64_t n_heads,
                                ACC *s) {
    for (int64_t e = 0; e < b->n; e++) {
        const int64_t from = b->edge[e] * all_heads + first;
        __builtin_prefetch((const char *)w +
                           (b->edge[e + SOON] * all_heads + first) *
                               (wide ? (int64_t)sizeof(ACC) : (int64_t)sizeof(T)));
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            NAME_A(store_heads)
            (s + e * n_heads + h,
             NAME(part_of)(w, from + h, lanes, lanes == LANES, wide), lanes);
        }
    }
}

/* and the reverse */
OUTLINE void NAME(put_edge_numbers)(const entry_batch *b, const ACC *s, bool wide,
                                    int64_t all_heads, int64_t first, int64_t n_heads,
                                    void *w) {
    for (int64_t e = 0; e < b->n; e++) {
        const int64_t to = b->edge[e] * all_heads + first;
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            const VEC v = NAME_A(load_heads)(s + e * n_heads + h, lanes);
            if (wide) {
                NAME_A(store_heads)((ACC *)w + to + h, v, lanes);
            } else {
                NAME(store_part)((T *)w + to + h, v, lanes);
            }
        }
    }
}

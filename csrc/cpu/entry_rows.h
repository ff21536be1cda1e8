/* entry_rows.h: dot products and weighted sums by head over a batch of entries, part of
 * the row templates of attention and of products by head.
 *
 * A head's channels are n vectors, the last of `tail` lanes; n up to 4 is a constant of
 * the compiled body, n = 0 stands for any number.
 */

/* Calls CALL(n) with the number of vectors of a head as a constant. */
#define BY_VECTORS(n_channels, CALL)                                                   \
    switch (((n_channels) + LANES - 1) / LANES) {                                      \
    case 1:                                                                            \
        CALL(1);                                                                       \
        break;                                                                         \
    case 2:                                                                            \
        CALL(2);                                                                       \
        break;                                                                         \
    case 4:                                                                            \
        CALL(4);                                                                       \
        break;                                                                         \
    default:                                                                           \
        CALL(0);                                                                       \
    }

/* lanes [c, c + LANES) of n_channels; with n a constant the last vector alone is part */
#define LANES_LEFT(c) (n_channels - (c) < LANES ? (int)(n_channels - (c)) : LANES)

INLINE VEC NAME(part)(const T *p, int lanes, bool whole) {
    return whole ? NAME(load)(p) : NAME(load_part)(p, lanes);
}

INLINE VEC NAME(part_of)(const void *p, int64_t at, int lanes, bool whole, bool wide) {
    if (wide) {
        return whole ? NAME_A(load)((const ACC *)p + at)
                     : NAME_A(load_part)((const ACC *)p + at, lanes);
    }
    return NAME(part)((const T *)p + at, lanes, whole);
}

/* s[e, h] = (add ? s[e, h] : 0)
 *           + scale * <u[row of e, first + h], x[at[e], first + h] + f[edge[e], first + h]>
 * s [b->n, n_heads]; u holds accumulators where `wide`. */
INLINE void NAME(dots_of)(const entry_batch *b, operand u, bool wide, operand x,
                          const int64_t *at, operand f, bool has_f, int64_t first,
                          int64_t n_heads, int64_t n_channels, ACC scale, bool add,
                          ACC *s, int n) {
    const int64_t n_vectors = n > 0 ? n : (n_channels + LANES - 1) / LANES;
    const int tail = (int)(n_channels - (n_vectors - 1) * LANES);
    for (int64_t r = 0; r < b->n_rows; r++) {
        const int64_t of_row = (b->row + r) * u.stride + first * u.apart;
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const T *source = (const T *)x.data + at[e] * x.stride + first * x.apart;
            const T *edge = NULL;
            if (has_f) {
                edge = (const T *)f.data + b->edge[e] * f.stride + first * f.apart;
            }
            for (int64_t h = 0; h < n_heads; h++) {
                VEC sum = NAME(splat)(0);
                for (int64_t k = 0; k < n_vectors; k++) {
                    const bool whole = k < n_vectors - 1;
                    const int64_t c = k * LANES;
                    VEC v = NAME(part)(source + h * x.apart + c, tail, whole);
                    if (has_f) {
                        v += NAME(part)(edge + h * f.apart + c, tail, whole);
                    }
                    sum += v * NAME(part_of)(u.data, of_row + h * u.apart + c, tail,
                                             whole, wide);
                }
                const ACC dot = scale * NAME(total)(sum);
                ACC *p = s + e * n_heads + h;
                *p = add ? *p + dot : dot;
            }
        }
    }
}

OUTLINE void NAME(dots)(const entry_batch *b, operand u, bool wide, operand x,
                        const int64_t *at, operand f, int64_t first, int64_t n_heads,
                        int64_t n_channels, ACC scale, bool add, ACC *s) {
#define CALL(n)                                                                        \
    if (f.data != NULL) {                                                              \
        NAME(dots_of)(b, u, false, x, at, f, true, first, n_heads, n_channels, scale,  \
                      add, s, n);                                                      \
    } else if (wide) {                                                                 \
        NAME(dots_of)(b, u, true, x, at, f, false, first, n_heads, n_channels, scale,  \
                      add, s, n);                                                      \
    } else {                                                                           \
        NAME(dots_of)(b, u, false, x, at, f, false, first, n_heads, n_channels, scale, \
                      add, s, n);                                                      \
    }
    BY_VECTORS(n_channels, CALL)
#undef CALL
}

/* Leaves v, `lanes` lanes of it, in the places a result asks for. */
INLINE void NAME(leave)(const result *y, int64_t at, VEC v, int lanes) {
    if (y->data != NULL) {
        NAME(store_part)((T *)y->data + at, v, lanes);
    }
    if (y->acc != NULL) {
        NAME_A(store_part)((ACC *)y->acc + at, v, lanes);
    }
}

/* y[r, first + h, :] = factor[r, h] * sum over the entries e of row r of
 *                      coef[e, h] * (x[at[e], first + h] + f[edge[e], first + h])
 * coef [b->n, n_heads], factor [b->n_rows, n_heads] or NULL: `scale` everywhere. */
INLINE void NAME(sums_of)(const entry_batch *b, const ACC *coef, operand x,
                          const int64_t *at, operand f, bool has_f, int64_t first,
                          int64_t n_heads, int64_t n_channels, const ACC *factor,
                          ACC scale, const result *y, int n) {
    const int step = n > 0 ? n : 4;
    for (int64_t r = 0; r < b->n_rows; r++) {
        for (int64_t h = 0; h < n_heads; h++) {
            const T *sources = (const T *)x.data + (first + h) * x.apart;
            const T *edges = has_f ? (const T *)f.data + (first + h) * f.apart : NULL;
            const VEC times = NAME(splat)(factor ? factor[r * n_heads + h] : scale);
            for (int64_t from = 0; from < n_channels; from += step * LANES) {
                VEC acc[4];
                for (int k = 0; k < step; k++) {
                    acc[k] = NAME(splat)(0);
                }
                for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
                    const VEC c = NAME(splat)(coef[e * n_heads + h]);
                    const T *source = sources + at[e] * x.stride + from;
                    const T *edge = has_f ? edges + b->edge[e] * f.stride + from : NULL;
                    for (int k = 0; k < step; k++) {
                        const bool whole = n > 0 && k < n - 1;
                        const int lanes = LANES_LEFT(from + k * LANES);
                        if (n == 0 && lanes <= 0) {
                            break;
                        }
                        VEC v = NAME(part)(source + k * LANES, lanes, whole);
                        if (has_f) {
                            v += NAME(part)(edge + k * LANES, lanes, whole);
                        }
                        acc[k] += c * v;
                    }
                }
                for (int k = 0; k < step; k++) {
                    const int lanes = LANES_LEFT(from + k * LANES);
                    if (n == 0 && lanes <= 0) {
                        break;
                    }
                    NAME(leave)(
                        y, r * y->stride + (first + h) * y->apart + from + k * LANES,
                        acc[k] * times, lanes);
                }
            }
        }
    }
}

OUTLINE void NAME(sums)(const entry_batch *b, const ACC *coef, operand x,
                        const int64_t *at, operand f, int64_t first, int64_t n_heads,
                        int64_t n_channels, const ACC *factor, ACC scale,
                        const result *y) {
#define CALL(n)                                                                        \
    if (f.data != NULL) {                                                              \
        NAME(sums_of)(b, coef, x, at, f, true, first, n_heads, n_channels, factor,     \
                      scale, y, n);                                                    \
    } else {                                                                           \
        NAME(sums_of)(b, coef, x, at, f, false, first, n_heads, n_channels, factor,    \
                      scale, y, n);                                                    \
    }
    BY_VECTORS(n_channels, CALL)
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
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            NAME_A(store_part)
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
            const VEC v = NAME_A(load_part)(s + e * n_heads + h, lanes);
            if (wide) {
                NAME_A(store_part)((ACC *)w + to + h, v, lanes);
            } else {
                NAME(store_part)((T *)w + to + h, v, lanes);
            }
        }
    }
}

/* spmm_one.h: the row kernel of spmm for one feature, part of spmm_rows.h.
 *
 * Four rows at a time. Rows of equal length (a mesh) take one plain loop with a sum each.
 * Otherwise the end of nearly every row is a branch that the core guesses wrong (15-20
 * cycles, about what the row itself takes): where the machine can gather, eight entries
 * go at once, absent ones masked, and the branch is rare.
 */

/* sums[r] = sum over e in [end[r], end[r + 1]) of coef[e] * x[col[e]], four rows. The
 * order of the terms in a row depends on its own length and `alike`. */
INLINE void NAME(four_sums)(const T *x, int64_t stride, const int32_t *col,
                            const ACC *coef, const int64_t *end, ACC *sums, bool alike,
                            bool has_coef) {
#define TERM(e) ((has_coef ? coef[e] : 1) * GNN_GLUE2(up, D)(x[col[e] * stride]))
    if (alike && four_alike(end)) {
        const int64_t length = end[1] - end[0];
        ACC sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
        for (int64_t e = end[0]; e < end[1]; e++) {
            sum0 += TERM(e);
            sum1 += TERM(e + length);
            sum2 += TERM(e + 2 * length);
            sum3 += TERM(e + 3 * length);
        }
        sums[0] = sum0, sums[1] = sum1, sums[2] = sum2, sums[3] = sum3;
        return;
    }
#if GNN_GLUE3(GATHERS, ISA, D)
    if (!alike && stride == 1) {
        NAME(gather_four)(x, col, has_coef ? coef : NULL, end, sums);
        return;
    }
#endif
    for (int r = 0; r < 4; r++) {
        ACC sum = 0;
        for (int64_t e = end[r]; e < end[r + 1]; e++) {
            sum += TERM(e);
        }
        sums[r] = sum;
    }
#undef TERM
}

/* One row's bare sum, in four parts. */
INLINE ACC NAME(chunk_sum)(const spmm_view *s, int64_t begin, int64_t end,
                           const ACC *coef, bool has_coef) {
    const int64_t part = (end - begin) / 4;
    const int64_t ends[] = {begin, begin + part, begin + 2 * part, begin + 3 * part,
                            end};
    ACC sums[4];
    NAME(four_sums)(s->x, s->x_stride, s->col, coef, ends, sums, four_alike(ends),
                    has_coef);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* Rows [row, stop); coef [their entries]. Fours of rows are counted from row 0, so that
 * a row is summed the same way whichever rows come with it. */
INLINE void NAME(one_feature_rows)(const spmm_view *s, int64_t row, int64_t stop,
                                   const ACC *coef, bool has_coef) {
    const int64_t *rowptr = s->rowptr;
    const ACC *scale = s->row_scale;
    const ACC *of_entry = has_coef ? coef - rowptr[row] : NULL;
    T *y = s->y; // y [n_rows, 1]
    if (s->sums != NULL) {
        *(ACC *)s->sums =
            NAME(chunk_sum)(s, rowptr[row], rowptr[row + 1], of_entry, has_coef);
        return;
    }
    for (int64_t four = row & ~3; four < stop; four += 4) {
        const int64_t first = four < row ? row : four;
        const int64_t last = four + 4 < stop ? four + 4 : stop;
        const bool alike = four + 4 <= s->n_rows && four_alike(rowptr + four);
        const int64_t *end = rowptr + four;
        int64_t some[5]; // the rows of this four that are asked for, and empty ones
        if (last - first < 4) {
            for (int64_t r = 0; r < 5; r++) {
                const int64_t i = four + r;
                some[r] = rowptr[i < first ? first : i < last ? i : last];
            }
            end = some;
        }
        ACC sums[4];
        NAME(four_sums)(s->x, s->x_stride, s->col, of_entry, end, sums, alike,
                        has_coef);
        for (int64_t i = first; i < last; i++) {
            const ACC sum = sums[i - four];
            y[i] = GNN_GLUE2(down, D)(scale != NULL ? scale[i] * sum : sum);
        }
    }
}

TARGET SCALAR static void NAME(one_feature)(const spmm_view *s, int64_t row,
                                            int64_t stop, const ACC *coef) {
    if (coef != NULL) {
        NAME(one_feature_rows)(s, row, stop, coef, true);
    } else {
        NAME(one_feature_rows)(s, row, stop, NULL, false);
    }
}

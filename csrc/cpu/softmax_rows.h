/* softmax_rows.h: softmax over the rows of a batch, part of the row templates of
 * attention and of edge_softmax. Numbers by entry and head s [b->n, H] lie together, so
 * the exponentials go over all of them in whole vectors, whatever H is; maxima and sums
 * go entry by entry with the heads in lanes.
 *
 * most is -inf in an empty row; NaN where a row has +inf and NaN; otherwise the largest
 * score that is a number. A row or chunk without a score above -inf is shifted by 0, so
 * that its exponentials are 0 and another chunk of the row can still win.
 */

/* s[k] = exp(s[k]) */
OUTLINE void NAME(exp_all)(ACC *s, int64_t n) {
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) {
        NAME_A(store)(s + k, NAME_A(exp)(NAME_A(load)(s + k)));
    }
    if (k < n) {
        const int lanes = (int)(n - k);
        NAME_A(store_part)(s + k, NAME_A(exp)(NAME_A(load_part)(s + k, lanes)), lanes);
    }
}

INLINE ACC NAME(shift_of)(ACC most) {
    return most == -(ACC)INFINITY ? 0 : most;
}

/* Maxima of one row's heads [h, h + lanes), s shifted by them. */
INLINE void NAME(shift_row)(ACC *s, int64_t n, int64_t n_heads, int lanes, ACC *most) {
    VEC m = NAME(splat)(-(ACC)INFINITY);
    for (int64_t e = 0; e < n; e++) {
        m = NAME_A(most)(NAME_A(load_heads)(s + e * n_heads, lanes), m);
    }
    NAME_A(store_heads)(most, m, lanes);
    ACC shifts[LANES];
    for (int l = 0; l < lanes; l++) {
        if (most[l] == (ACC)INFINITY) {
            for (int64_t e = 0; e < n; e++) {
                const ACC v = s[e * n_heads + l];
                most[l] = v != v ? v : most[l];
            }
        }
        shifts[l] = NAME(shift_of)(most[l]);
    }
    const VEC shift = NAME_A(load_heads)(shifts, lanes);
    for (int64_t e = 0; e < n; e++) {
        ACC *p = s + e * n_heads;
        NAME_A(store_heads)(p, NAME_A(load_heads)(p, lanes) - shift, lanes);
    }
}

/* total[r, h] = sum over the entries e of row r of s[e, h] (times t[e, h]) */
OUTLINE void NAME(row_totals)(const entry_batch *b, const ACC *s, const ACC *t,
                              int64_t n_heads, ACC *total) {
    for (int64_t r = 0; r < b->n_rows; r++) {
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            VEC sum = NAME(splat)(0);
            for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
                VEC v = NAME_A(load_heads)(s + e * n_heads + h, lanes);
                if (t != NULL) {
                    v *= NAME_A(load_heads)(t + e * n_heads + h, lanes);
                }
                sum += v;
            }
            NAME_A(store_heads)(total + r * n_heads + h, sum, lanes);
        }
    }
}

/* s becomes exp(s - most), most and total [b->n_rows, n_heads] those of each row */
OUTLINE void NAME(softmax_parts)(const entry_batch *b, int64_t n_heads, ACC *s,
                                 ACC *most, ACC *total) {
    for (int64_t r = 0; r < b->n_rows; r++) {
        for (int64_t h = 0; h < n_heads; h += LANES) {
            const int lanes = n_heads - h < LANES ? (int)(n_heads - h) : LANES;
            NAME(shift_row)(s + b->start[r] * n_heads + h,
                            b->start[r + 1] - b->start[r], n_heads, lanes,
                            most + r * n_heads + h);
        }
    }
    NAME(exp_all)(s, b->n * n_heads);
    NAME(row_totals)(b, s, NULL, n_heads, total);
}

/* What a chunk's exponentials, taken against its own maximum, count in a row of maximum
 * `most`. */
INLINE ACC NAME(chunk_factor)(ACC own, ACC most) {
    if (own == -(ACC)INFINITY) {
        return 0;
    }
    return NAME_A(exp)(NAME(splat)(own - most))[0];
}

/* One head's maximum and total over the chunks of a heavy row: chunk c has them at
 * most[c * apart] and total[c * apart]. NaN wins over +inf, as it does in a whole row. */
OUTLINE void NAME(join_softmax)(const ACC *most, const ACC *total, int64_t n_chunks,
                                int64_t apart, ACC *row_most, ACC *row_total) {
    ACC m = -(ACC)INFINITY, sum = 0;
    for (int64_t c = 0; c < n_chunks; c++) {
        m = most[c * apart] > m ? most[c * apart] : m;
    }
    for (int64_t c = 0; c < n_chunks; c++) {
        const ACC own = most[c * apart], of_chunk = total[c * apart];
        if (own != own || (of_chunk != of_chunk && own != (ACC)INFINITY)) {
            m = (ACC)NAN;
        }
    }
    for (int64_t c = 0; c < n_chunks; c++) {
        sum += total[c * apart] * NAME(chunk_factor)(most[c * apart], m);
    }
    *row_most = m, *row_total = sum;
}

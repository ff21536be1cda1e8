/* attention_v2.h: what is particular to GATV2, part of the row templates of attention.
 * The input of leaky relu, x[e] = v[j] + q[i] + f[e], is made once a pass for a batch, in
 * rows side by side on the stack; scores and gradients read it there.
 *
 * Raw edge attributes are projected into these rows as a small matrix product: four
 * entries share a load of edge_weight, eight sums are in flight.
 */

/* Numbers [at, at + pitch) of the rows of a batch: `heads` heads of `channels` each, or,
 * where there is no room for a head, some channels of one. */
typedef struct NAME(slab) {
    int64_t at, heads, channels, pitch;
    ACC *x; // [b->n, pitch]
} NAME(slab);

/* The slab that starts at channel c of head `first`. */
INLINE NAME(slab) NAME(slab_at)(const gnn_attention_args *g, const entry_batch *b,
                                int64_t first, int64_t n_heads, int64_t c, ACC *x) {
    const int64_t n_channels = g->n_channels, at = first * n_channels + c;
    if (b->n * n_heads * n_channels <= V2_SLAB) {
        const int64_t pitch = n_heads * n_channels;
        return (NAME(slab)){at, n_heads, n_channels, pitch, x};
    }
    const int64_t most = V2_SLAB / b->n / LANES * LANES, left = n_channels - c;
    const int64_t pitch = left < most ? left : most;
    return (NAME(slab)){at, 1, pitch, pitch, x};
}

INLINE VEC NAME(kept_part)(const ACC *p, int lanes, bool whole) {
    return whole ? NAME_A(load)(p) : NAME_A(load_part)(p, lanes);
}

INLINE void NAME(keep_part)(ACC *p, VEC v, int lanes, bool whole) {
    if (whole) {
        NAME_A(store)(p, v);
    } else {
        NAME_A(store_part)(p, v, lanes);
    }
}

/* ------------------------------------------------------------------------------ inputs */

/* Attributes of a batch, attr [b->n, attr_pitch(g)], zeros beyond D */
OUTLINE void NAME(load_attrs)(const gnn_attention_args *g, const entry_batch *b,
                              ACC *attr) {
    const int64_t n_channels = g->n_edge_features, pitch = attr_pitch(g);
    const T *rows = g->edge_attr;
    ask_for_next(&g->a, b, rows, g->edge_attr_stride * (int64_t)sizeof(T));
    if (b->n > 0) {
        memset(attr, 0, (size_t)(b->n * pitch) * sizeof *attr);
    }
    for (int64_t e = 0; e < b->n; e++) {
        __builtin_prefetch(rows + b->edge[e + SOON] * g->edge_attr_stride);
        for (int64_t c = 0; c < n_channels; c += LANES) {
            const T *p = rows + b->edge[e] * g->edge_attr_stride + c;
            NAME_A(store_part)
            (attr + e * pitch + c, NAME(load_part)(p, LANES_LEFT(c)), LANES_LEFT(c));
        }
    }
}

/* x += attr edge_weight for m entries from e on and n vectors from number k on */
INLINE void NAME(project_tile)(const gnn_attention_args *g, const NAME(slab) * slab,
                               const ACC *attr, int64_t e, int64_t k, int m, int n,
                               int lanes, bool whole) {
    const int64_t pitch = attr_pitch(g), width = g->n_heads * g->n_channels;
    const T *weight = (const T *)g->edge_weight + slab->at + k; // [D, H * C]
    ACC *x = slab->x + e * slab->pitch + k;
    VEC sum[8];
    for (int j = 0; j < m * n; j++) {
        const ACC *p = x + j / n * slab->pitch + j % n * LANES;
        sum[j] = NAME(kept_part)(p, lanes, whole);
    }
    for (int64_t d = 0; d < g->n_edge_features; d++) {
        VEC w[2];
        for (int j = 0; j < n; j++) {
            w[j] = NAME(part)(weight + d * width + j * LANES, lanes, whole);
        }
        for (int j = 0; j < m * n; j++) {
            sum[j] += NAME(splat)(attr[(e + j / n) * pitch + d]) * w[j % n];
        }
    }
    for (int j = 0; j < m * n; j++) {
        ACC *p = x + j / n * slab->pitch + j % n * LANES;
        NAME(keep_part)(p, sum[j], lanes, whole);
    }
}

OUTLINE void NAME(project)(const gnn_attention_args *g, const entry_batch *b,
                           const NAME(slab) * slab, const ACC *attr) {
    const int64_t n_channels = slab->pitch; // for LANES_LEFT
    int64_t k = 0;
    for (; k + 2 * LANES <= n_channels; k += 2 * LANES) {
        int64_t e = 0;
        for (; e + 4 <= b->n; e += 4) {
            NAME(project_tile)(g, slab, attr, e, k, 4, 2, LANES, true);
        }
        for (; e < b->n; e++) {
            NAME(project_tile)(g, slab, attr, e, k, 1, 2, LANES, true);
        }
    }
    for (; k < n_channels; k += LANES) {
        int64_t e = 0;
        for (; e + 4 <= b->n; e += 4) {
            NAME(project_tile)(g, slab, attr, e, k, 4, 1, LANES_LEFT(k), false);
        }
        for (; e < b->n; e++) {
            NAME(project_tile)(g, slab, attr, e, k, 1, 1, LANES_LEFT(k), false);
        }
    }
}

/* of_row and of_col are q and v, or v and q where rows are sources */
INLINE void NAME(v2_inputs_of)(const gnn_attention_args *g, const entry_batch *b,
                               operand of_row, operand of_col, const NAME(slab) * slab,
                               bool has_edge, bool whole) {
    const int64_t n_channels = slab->pitch; // for LANES_LEFT
    const int64_t bytes = n_channels * (int64_t)sizeof(T);
    const T *cols = (const T *)of_col.data + slab->at;
    const T *edges = has_edge ? (const T *)g->edge + slab->at : NULL;
    for (int64_t r = 0; r < b->n_rows; r++) {
        const T *row = (const T *)of_row.data + (b->row + r) * of_row.stride + slab->at;
        ask_for((const T *)of_row.data + row_soon(b, r) * of_row.stride + slab->at,
                bytes);
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const T *col = cols + b->col[e] * of_col.stride;
            const T *edge = has_edge ? edges + b->edge[e] * g->edge_stride : NULL;
            ask_for(cols + b->col[e + SOON] * of_col.stride, bytes);
            for (int64_t k = 0; k < n_channels; k += LANES) {
                const int lanes = whole ? LANES : LANES_LEFT(k);
                VEC x = NAME(part)(row + k, lanes, whole) +
                        NAME(part)(col + k, lanes, whole);
                if (has_edge) {
                    x += NAME(part)(edge + k, lanes, whole);
                }
                NAME(keep_part)(slab->x + e * n_channels + k, x, lanes, whole);
            }
        }
    }
}

OUTLINE void NAME(v2_inputs)(const gnn_attention_args *g, const entry_batch *b,
                             operand of_row, operand of_col, const ACC *attr,
                             const NAME(slab) * slab) {
    if (g->edge != NULL) {
        NAME(v2_inputs_of)(g, b, of_row, of_col, slab, true, false);
    } else if (slab->pitch % LANES == 0) {
        NAME(v2_inputs_of)(g, b, of_row, of_col, slab, false, true);
    } else {
        NAME(v2_inputs_of)(g, b, of_row, of_col, slab, false, false);
    }
    if (g->edge_attr != NULL) {
        NAME(project)(g, b, slab, attr);
    }
}

/* ------------------------------------------------------------------------------ scores */

/* The lanes of <att, lrelu(x)> of one head. */
INLINE VEC NAME(v2_lanes)(const T *att, const ACC *x, int64_t n_channels, VEC slope,
                          int n, bool whole) {
    const int64_t n_vectors = n > 0 ? n : (n_channels + LANES - 1) / LANES;
    const int tail = (int)(n_channels - (n_vectors - 1) * LANES);
    VEC sum = NAME(splat)(0);
    for (int64_t k = 0; k < n_vectors; k++) {
        const bool full = whole || k < n_vectors - 1;
        const VEC at = NAME(kept_part)(x + k * LANES, tail, full);
        sum += at * NAME_A(gain)(at, slope) * NAME(part)(att + k * LANES, tail, full);
    }
    return sum;
}

INLINE void NAME(v2_scores_of)(const gnn_attention_args *g, const entry_batch *b,
                               const NAME(slab) * slab, int64_t n_heads, bool add,
                               ACC *s, int n, bool whole) {
    const VEC slope = NAME(splat)((ACC)g->slope);
    const T *att = (const T *)g->att + slab->at; // att [H * C]
#define BEFORE(e)
#define PAIR(e, h)                                                                     \
    NAME(v2_lanes)(att + (h) * slab->channels,                                         \
                   slab->x + (e) * slab->pitch + (h) * slab->channels, slab->channels, \
                   slope, n, whole)
    EACH_PAIR(b, n_heads, 1, add, s, BEFORE, PAIR)
#undef BEFORE
#undef PAIR
}

/* The same for heads in fours of n whole vectors: att is in registers. */
INLINE void NAME(v2_scores_tile)(const gnn_attention_args *g, const entry_batch *b,
                                 const NAME(slab) * slab, int64_t n_heads, int64_t h,
                                 ACC *s, int n) {
    const VEC slope = NAME(splat)((ACC)g->slope);
    const T *atts = (const T *)g->att + slab->at + h * n * LANES;
    VEC att[16];
    for (int j = 0; j < 4 * n; j++) {
        att[j] = NAME(load)(atts + j * LANES);
    }
    for (int64_t e = 0; e < b->n; e++) {
        const ACC *p = slab->x + e * slab->pitch + h * n * LANES;
        VEC sum[4];
        for (int j = 0; j < 4; j++) {
            sum[j] = NAME(splat)(0);
            for (int k = j * n; k < j * n + n; k++) {
                const VEC x = NAME_A(load)(p + k * LANES);
                sum[j] += x * NAME_A(gain)(x, slope) * att[k];
            }
        }
        NAME_A(totals)(sum[0], sum[1], sum[2], sum[3], s + e * n_heads + h);
    }
}

/* s = <att[h], lrelu(v[j, h] + q[i, h] + f[e, h])>. One slab for all of it: it stays. */
OUTLINE void NAME(v2_scores)(const gnn_attention_args *g, const entry_batch *b,
                             const ACC *attr, int64_t first, int64_t n_heads, ACC *x,
                             ACC *s) {
    const operand v = {g->v, g->v_stride, 0}, q = {g->q, g->q_stride, 0};
    int64_t c = 0;
    do {
        const NAME(slab) slab = NAME(slab_at)(g, b, first, n_heads, c, x);
        NAME(v2_inputs)(g, b, q, v, attr, &slab);
#define CALL(n, whole)                                                                 \
    if ((whole) && slab.heads % 4 == 0) {                                              \
        for (int64_t h = 0; h < n_heads; h += 4) {                                     \
            NAME(v2_scores_tile)(g, b, &slab, n_heads, h, s, n);                       \
        }                                                                              \
    } else {                                                                           \
        NAME(v2_scores_of)(g, b, &slab, n_heads, c > 0, s, n, whole);                  \
    }
        BY_VECTORS(slab.channels, CALL)
#undef CALL
        c += slab.channels;
    } while (c < g->n_channels);
}

/* ------------------------------------------------------- gradients, rows: destinations */

/* n vectors a head, m of them from number k of head h on; n = 0: one vector of `lanes`.
 * With t = ds * lrelu'(x), d_q[i] = att * sum of t, d_att += t * x; x becomes t. */
INLINE void NAME(v2_gradients_tile)(const attention_view *v, const entry_batch *b,
                                    const NAME(slab) * slab, const ACC *ds,
                                    int64_t n_heads, const result *d_q, bool keep,
                                    int64_t h, int64_t k, int lanes, int n, int m) {
    const gnn_attention_args *g = v->args;
    const bool whole = n > 0;
    const VEC slope = NAME(splat)((ACC)g->slope);
    const T *atts = (const T *)g->att + slab->at + k;
    VEC att[4], of_att[4];
    for (int j = 0; j < m; j++) {
        att[j] = NAME(part)(atts + j * LANES, lanes, whole);
        of_att[j] = NAME(splat)(0);
    }
    for (int64_t r = 0; r < b->n_rows; r++) {
        VEC sum[4];
        for (int j = 0; j < m; j++) {
            sum[j] = NAME(splat)(0);
        }
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            ACC *p = slab->x + e * slab->pitch + k;
            for (int j = 0; j < m; j++) {
                const VEC x = NAME(kept_part)(p + j * LANES, lanes, whole);
                const VEC t = NAME(splat)(ds[e * n_heads + h + (n > 0 ? j / n : 0)]) *
                              NAME_A(gain)(x, slope);
                sum[j] += t;
                of_att[j] += t * x;
                if (keep) {
                    NAME(keep_part)(p + j * LANES, t, lanes, whole);
                }
            }
        }
        for (int j = 0; j < m; j++) {
            NAME(leave)(d_q, r * d_q->stride + slab->at + k + j * LANES,
                        att[j] * sum[j], lanes);
        }
    }
    ACC *d_att = v->sums; // [1 + D, H * C]
    for (int j = 0; d_att != NULL && j < m; j++) {
        ACC *p = d_att + slab->at + k + j * LANES;
        const VEC before = NAME(kept_part)(p, lanes, whole);
        NAME(keep_part)(p, before + of_att[j], lanes, whole);
    }
}

INLINE void NAME(v2_gradients_of)(const attention_view *v, const entry_batch *b,
                                  const NAME(slab) * slab, const ACC *ds,
                                  int64_t n_heads, const result *d_q, bool keep, int n,
                                  bool whole) {
    const int64_t n_channels = slab->channels;
    int64_t h = 0;
    for (; whole && h + 4 / n <= slab->heads; h += 4 / n) {
        NAME(v2_gradients_tile)(v, b, slab, ds, n_heads, d_q, keep, h, h * n_channels,
                                LANES, n, 4);
    }
    for (; h < slab->heads; h++) {
        for (int64_t c = 0; c < n_channels; c += LANES) {
            NAME(v2_gradients_tile)(v, b, slab, ds, n_heads, d_q, keep, h,
                                    h * n_channels + c, LANES_LEFT(c), 0, 1);
        }
    }
}

/* d_edge_weight += attr^T (att * t): eight rows of it at once */
OUTLINE void NAME(v2_weight_gradients)(const attention_view *v, const entry_batch *b,
                                       const NAME(slab) * slab, const ACC *attr) {
    const gnn_attention_args *g = v->args;
    const int64_t n_channels = slab->pitch, pitch = attr_pitch(g); // for LANES_LEFT
    for (int64_t k = 0; k < n_channels; k += LANES) {
        const int lanes = LANES_LEFT(k);
        const bool whole = lanes == LANES;
        const VEC att = NAME(part)((const T *)g->att + slab->at + k, lanes, whole);
        for (int64_t d = 0; d < g->n_edge_features; d += 8) {
            VEC sum[8];
            for (int j = 0; j < 8; j++) {
                sum[j] = NAME(splat)(0);
            }
            for (int64_t e = 0; e < b->n; e++) {
                const VEC t =
                    NAME(kept_part)(slab->x + e * slab->pitch + k, lanes, whole);
                for (int j = 0; j < 8; j++) {
                    sum[j] += NAME(splat)(attr[e * pitch + d + j]) * t;
                }
            }
            for (int j = 0; j < 8 && d + j < g->n_edge_features; j++) {
                ACC *p = (ACC *)v->sums + (1 + d + j) * v->width + slab->at + k;
                NAME(keep_part)(p, NAME(kept_part)(p, lanes, whole) + att * sum[j],
                                lanes, whole);
            }
        }
    }
}

/* d_attr[e, d] += <att * t, edge_weight[d]> over the slab, d_attr [b->n, attr_pitch(g)] */
OUTLINE void NAME(v2_attr_gradients)(const attention_view *v, const entry_batch *b,
                                     const NAME(slab) * slab, ACC *d_attr) {
    const gnn_attention_args *g = v->args;
    const int64_t n_channels = slab->pitch; // for LANES_LEFT
    for (int64_t e = 0; e < b->n; e++) {
        for (int64_t d = 0; d < g->n_edge_features; d++) {
            const T *weight = (const T *)g->edge_weight + d * v->width + slab->at;
            VEC sum = NAME(splat)(0);
            for (int64_t k = 0; k < n_channels; k += LANES) {
                const int lanes = LANES_LEFT(k);
                sum += NAME_A(load_part)(slab->x + e * slab->pitch + k, lanes) *
                       NAME(load_part)((const T *)g->att + slab->at + k, lanes) *
                       NAME(load_part)(weight + k, lanes);
            }
            d_attr[e * attr_pitch(g) + d] += NAME(total)(sum);
        }
    }
}

/* d_edge[eid] = att * t */
OUTLINE void NAME(v2_edge_gradients)(const attention_view *v, const entry_batch *b,
                                     const NAME(slab) * slab) {
    const gnn_attention_args *g = v->args;
    const int64_t n_channels = slab->pitch; // for LANES_LEFT
    for (int64_t e = 0; e < b->n; e++) {
        T *d_edge = (T *)g->d_edge + b->edge[e] * v->width + slab->at; // [E, H * C]
        for (int64_t k = 0; k < n_channels; k += LANES) {
            const int lanes = LANES_LEFT(k);
            const VEC att = NAME(load_part)((const T *)g->att + slab->at + k, lanes);
            NAME(store_part)(
                d_edge + k,
                NAME_A(load_part)(slab->x + e * slab->pitch + k, lanes) * att, lanes);
        }
    }
}

/* x [b->n, n_heads * C] as v2_scores left it */
OUTLINE void NAME(v2_gradients)(const attention_view *v, const entry_batch *b,
                                const ACC *attr, const ACC *ds, int64_t first,
                                int64_t n_heads, const result *d_q, ACC *x,
                                ACC *d_attr) {
    const gnn_attention_args *g = v->args;
    const operand of_v = {g->v, g->v_stride, 0}, of_q = {g->q, g->q_stride, 0};
    const bool of_weight = g->d_edge_weight != NULL && g->edge_attr != NULL;
    const bool of_attr = g->d_edge_attr != NULL && g->edge_attr != NULL;
    const bool of_edge = g->d_edge != NULL && g->edge != NULL;
    const bool keep = of_weight || of_attr || of_edge;
    int64_t c = 0;
    do {
        const NAME(slab) slab = NAME(slab_at)(g, b, first, n_heads, c, x);
        if (slab.channels < g->n_channels) { // the scores' last slab is another
            NAME(v2_inputs)(g, b, of_q, of_v, attr, &slab);
        }
#define CALL(n, whole)                                                                 \
    NAME(v2_gradients_of)(v, b, &slab, ds, n_heads, d_q, keep, n, whole)
        BY_VECTORS(slab.channels, CALL)
#undef CALL
        if (of_weight) {
            NAME(v2_weight_gradients)(v, b, &slab, attr);
        }
        if (of_attr) {
            NAME(v2_attr_gradients)(v, b, &slab, d_attr);
        }
        if (of_edge) {
            NAME(v2_edge_gradients)(v, b, &slab);
        }
        c += slab.channels;
    } while (c < g->n_channels);
}

/* ------------------------------------------------------------ gradients, rows: sources */

/* d_v[j] = sum of m * alpha * grad[i] + att * sum of ds * lrelu'(x); tiles as above */
INLINE void NAME(v2_values_tile)(const attention_view *v, const entry_batch *b,
                                 const NAME(slab) * slab, const ACC *alpha,
                                 const ACC *ds, int64_t n_heads, const result *d_v,
                                 int64_t h, int64_t k, int lanes, int64_t soon, int n,
                                 int m) {
    const gnn_attention_args *g = v->args;
    const bool whole = n > 0;
    const VEC slope = NAME(splat)((ACC)g->slope);
    const T *grads = (const T *)g->grad + slab->at + k;
    for (int64_t r = 0; r < b->n_rows; r++) {
        VEC sum[4], slopes[4];
        for (int j = 0; j < m; j++) {
            sum[j] = slopes[j] = NAME(splat)(0);
        }
        for (int64_t e = b->start[r]; e < b->start[r + 1]; e++) {
            const T *grad = grads + b->col[e] * g->grad_stride;
            const ACC *p = slab->x + e * slab->pitch + k;
            ask_for(grads + b->col[e + SOON] * g->grad_stride, soon);
            for (int j = 0; j < m; j++) {
                const int64_t of = e * n_heads + h + (n > 0 ? j / n : 0);
                const VEC x = NAME(kept_part)(p + j * LANES, lanes, whole);
                sum[j] +=
                    NAME(splat)(alpha[of]) * NAME(part)(grad + j * LANES, lanes, whole);
                slopes[j] += NAME(splat)(ds[of]) * NAME_A(gain)(x, slope);
            }
        }
        for (int j = 0; j < m; j++) {
            const int64_t at = slab->at + k + j * LANES;
            const VEC att = NAME(part)((const T *)g->att + at, lanes, whole);
            NAME(leave)(d_v, r * d_v->stride + at, sum[j] + slopes[j] * att, lanes);
        }
    }
}

INLINE void NAME(v2_values_of)(const attention_view *v, const entry_batch *b,
                               const NAME(slab) * slab, const ACC *alpha, const ACC *ds,
                               int64_t n_heads, const result *d_v, int n, bool whole) {
    const int64_t n_channels = slab->channels;
    const int64_t bytes = slab->pitch * (int64_t)sizeof(T);
    int64_t h = 0;
    for (; whole && h + 4 / n <= slab->heads; h += 4 / n) {
        NAME(v2_values_tile)(v, b, slab, alpha, ds, n_heads, d_v, h, h * n_channels,
                             LANES, h == 0 ? bytes : 0, n, 4);
    }
    for (; h < slab->heads; h++) {
        for (int64_t c = 0; c < n_channels; c += LANES) {
            NAME(v2_values_tile)(v, b, slab, alpha, ds, n_heads, d_v, h,
                                 h * n_channels + c, LANES_LEFT(c),
                                 h + c == 0 ? bytes : 0, 0, 1);
        }
    }
}

OUTLINE void NAME(v2_values)(const attention_view *v, const entry_batch *b,
                             const ACC *attr, const ACC *alpha, const ACC *ds,
                             int64_t first, int64_t n_heads, const result *d_v,
                             ACC *x) {
    const gnn_attention_args *g = v->args;
    const operand of_v = {g->v, g->v_stride, 0}, of_q = {g->q, g->q_stride, 0};
    int64_t c = 0;
    do {
        const NAME(slab) slab = NAME(slab_at)(g, b, first, n_heads, c, x);
        NAME(v2_inputs)(g, b, of_v, of_q, attr, &slab);
#define CALL(n, whole)                                                                 \
    NAME(v2_values_of)(v, b, &slab, alpha, ds, n_heads, d_v, n, whole)
        BY_VECTORS(slab.channels, CALL)
#undef CALL
        c += slab.channels;
    } while (c < g->n_channels);
}

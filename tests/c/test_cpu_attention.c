/* test_cpu_attention.c: forward and both passes of backward, of every kind and edge mode,
 * in every instruction set and dtype against a plain computation in double that walks the
 * edge list; hubs, empty rows, dropout, strides, more heads than fit at once; the same bits
 * for every number of threads and order of items. */
/* law: 1 2 */
#include "cpu/isa.h"
#include "kernel_values.h"

typedef struct shape {
    gnn_attention_kind kind;
    enum { NONE, ROWS, ATTR } edge;
    int64_t heads, channels, n_attr, pad;
    double slope, dropout;
} shape;

/* Scratch of that many bytes, full of rubbish. */
static void *dirty(int64_t bytes) {
    return memset(get(bytes, 1), 0xee, (size_t)bytes);
}

/* Arrays of a problem, their number of elements and dtype. */
typedef struct array {
    const char *name;
    void **at; // where the struct of arguments points to it
    int64_t n;
    gnn_dtype dtype;
    double *right; // outputs: what is expected
} array;

typedef struct problem {
    const graph *g;
    gnn_csr transposed;
    shape s;
    gnn_attention_args a;
    array inputs[16], outputs[16];
    int n_inputs, n_outputs;
    double *alpha, *ds; // [E, H]
} problem;

static void *give(problem *p, const void **at, int64_t n, gnn_dtype dtype,
                  uint64_t seed) {
    void *data = random_values(n, dtype, 0, seed);
    *at = data;
    p->inputs[p->n_inputs++] = (array){NULL, (void **)(uintptr_t)at, n, dtype, NULL};
    return data;
}

static double *want(problem *p, const char *name, void **at, int64_t n,
                    gnn_dtype dtype) {
    double *right = get(n, 8);
    *at = get(n, gnn_dtype_size(dtype));
    p->outputs[p->n_outputs++] = (array){name, at, n, dtype, right};
    return right;
}

static gnn_csr transpose(const graph *g) {
    int64_t *colptr = get(g->n_cols + 1, 8);
    int32_t *row = get(g->n_edges, 4);
    int64_t *eid = get(g->n_edges, 8);
    CHECK_OK(gnn_csr_transpose(&g->a, colptr, row, eid, GNN_I64));
    return (gnn_csr){.n_rows = g->n_cols,
                     .n_cols = g->n_rows,
                     .n_edges = g->n_edges,
                     .rowptr = colptr,
                     .col = row,
                     .eid = eid,
                     .eid_dtype = GNN_I64};
}

static void make_inputs(problem *p, gnn_dtype dtype) {
    const graph *g = p->g;
    const shape *s = &p->s;
    const gnn_dtype acc = accumulator(dtype);
    const int64_t heads = s->heads, width = heads * s->channels, apart = width + s->pad;
    gnn_attention_args *a = &p->a;
    *a = (gnn_attention_args){.a = g->a,
                              .kind = s->kind,
                              .dtype = dtype,
                              .n_heads = heads,
                              .n_channels = s->channels,
                              .n_edge_features = s->n_attr,
                              .slope = s->slope,
                              .scale = 0.75,
                              .dropout = s->dropout,
                              .seed = 0x123456789abcdef,
                              .v_stride = apart,
                              .k_stride = width,
                              .q_stride = apart,
                              .grad_stride = apart,
                              .edge_stride = apart,
                              .edge_attr_stride = s->n_attr + s->pad};
    give(p, &a->v, g->n_cols * apart, dtype, 1);
    give(p, &a->grad, g->n_rows * apart, dtype, 2);
    if (s->kind == GNN_GAT) {
        give(p, &a->score_src, g->n_cols * heads, acc, 3);
        give(p, &a->score_dst, g->n_rows * heads, acc, 4);
        if (s->edge != NONE) {
            give(p, &a->score_edge, g->n_edges * heads, acc, 5);
        }
        return;
    }
    give(p, &a->q, g->n_rows * apart, dtype, 6);
    if (s->kind == GNN_GATV2) {
        give(p, &a->att, width, dtype, 7);
    } else {
        give(p, &a->k, g->n_cols * width, dtype, 8);
    }
    if (s->edge == ROWS) {
        give(p, &a->edge, g->n_edges * apart, dtype, 9);
    } else if (s->edge == ATTR) {
        give(p, &a->edge_attr, g->n_edges * a->edge_attr_stride, dtype, 10);
        if (s->kind == GNN_GATV2) {
            give(p, &a->edge_weight, s->n_attr * width, dtype, 11);
        } else {
            give(p, &a->q_edge, g->n_rows * heads * s->n_attr, dtype, 12);
            give(p, &a->grad_edge, g->n_rows * heads * s->n_attr, acc, 13);
        }
    }
}

/* ------------------------------------------------------------------------- plain doubles */

static double number(const problem *p, const void *m, int64_t at) {
    return value_at(m, p->a.dtype, at);
}

static double wide(const problem *p, const void *m, int64_t at) {
    return value_at(m, accumulator(p->a.dtype), at);
}

static double lrelu(double x, double slope) {
    return x > 0 ? x : slope * x;
}

/* f[e, h, c], the projected edge feature */
static double feature(const problem *p, int64_t e, int64_t hc) {
    const gnn_attention_args *a = &p->a;
    const int64_t width = a->n_heads * a->n_channels;
    double f = a->edge != NULL ? number(p, a->edge, e * a->edge_stride + hc) : 0;
    if (a->kind == GNN_GATV2 && a->edge_attr != NULL) {
        for (int64_t d = 0; d < a->n_edge_features; d++) {
            f += number(p, a->edge_attr, e * a->edge_attr_stride + d) *
                 number(p, a->edge_weight, d * width + hc);
        }
    }
    return f;
}

/* what the leaky relu of GAT or GATV2 is given */
static double inside(const problem *p, int64_t e, int64_t h, int64_t c) {
    const gnn_attention_args *a = &p->a;
    const int64_t i = p->g->row[e], j = p->g->col[e], heads = a->n_heads;
    if (a->kind == GNN_GAT) {
        return wide(p, a->score_src, j * heads + h) +
               wide(p, a->score_dst, i * heads + h) +
               (a->score_edge != NULL ? wide(p, a->score_edge, e * heads + h) : 0);
    }
    const int64_t hc = h * a->n_channels + c;
    return number(p, a->v, j * a->v_stride + hc) +
           number(p, a->q, i * a->q_stride + hc) + feature(p, e, hc);
}

static double value_of(const problem *p, int64_t e, int64_t hc) {
    const double v = number(p, p->a.v, p->g->col[e] * p->a.v_stride + hc);
    return p->a.kind == GNN_DOT ? v + feature(p, e, hc) : v;
}

static double attr_of(const problem *p, int64_t e, int64_t d) {
    return number(p, p->a.edge_attr, e * p->a.edge_attr_stride + d);
}

static double score(const problem *p, int64_t e, int64_t h) {
    const gnn_attention_args *a = &p->a;
    const int64_t i = p->g->row[e], j = p->g->col[e], heads = a->n_heads;
    double s = 0;
    if (a->kind == GNN_GAT) {
        return lrelu(inside(p, e, h, 0), a->slope);
    }
    for (int64_t c = 0; c < a->n_channels; c++) {
        const int64_t hc = h * a->n_channels + c;
        s += a->kind == GNN_GATV2
                 ? number(p, a->att, hc) * lrelu(inside(p, e, h, c), a->slope)
                 : number(p, a->q, i * a->q_stride + hc) *
                       (number(p, a->k, j * a->k_stride + hc) + feature(p, e, hc));
    }
    if (a->kind == GNN_DOT && a->edge_attr != NULL) {
        for (int64_t d = 0; d < a->n_edge_features; d++) {
            s += number(p, a->q_edge, (i * heads + h) * a->n_edge_features + d) *
                 attr_of(p, e, d);
        }
    }
    return a->kind == GNN_DOT ? a->scale * s : s;
}

/* Fills p->alpha with alpha (before dropout) and returns lse [N, H]. */
static double *softmax(problem *p) {
    const graph *g = p->g;
    const int64_t heads = p->a.n_heads;
    double *most = get(g->n_rows * heads, 8), *total = get(g->n_rows * heads, 8);
    for (int64_t k = 0; k < g->n_rows * heads; k++) {
        most[k] = -INFINITY;
    }
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t h = 0; h < heads; h++) {
            double *m = &most[g->row[e] * heads + h];
            p->alpha[e * heads + h] = score(p, e, h);
            *m = fmax(*m, p->alpha[e * heads + h]);
        }
    }
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t h = 0; h < heads; h++) {
            const int64_t k = g->row[e] * heads + h;
            total[k] += exp(p->alpha[e * heads + h] - most[k]);
        }
    }
    for (int64_t k = 0; k < g->n_rows * heads; k++) {
        most[k] += log(total[k]);
    }
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t h = 0; h < heads; h++) {
            double *alpha = &p->alpha[e * heads + h];
            *alpha = exp(*alpha - most[g->row[e] * heads + h]);
        }
    }
    free(total);
    return most;
}

/* All that is expected, by the chain rule, edge by edge. */
static void make_outputs(problem *p) {
    const graph *g = p->g;
    gnn_attention_args *a = &p->a;
    const gnn_dtype dtype = a->dtype, acc = accumulator(dtype);
    const int64_t heads = a->n_heads, channels = a->n_channels,
                  width = heads * channels;
    const int64_t n_attr = a->n_edge_features;
    const bool dot = a->kind == GNN_DOT, gat = a->kind == GNN_GAT;
    const bool v2 = a->kind == GNN_GATV2, attr = a->edge_attr != NULL;
    p->alpha = get(g->n_edges * heads, 8), p->ds = get(g->n_edges * heads, 8);
    double *delta = get(g->n_rows * heads, 8);
    double *softmax_lse = softmax(p);
    double *lse = want(p, "lse", &a->lse, g->n_rows * heads, acc);
    memcpy(lse, softmax_lse, (size_t)(g->n_rows * heads) * 8);
    free(softmax_lse);
    double *out = want(p, "out", &a->out, g->n_rows * width, dtype);
    double *out_acc = want(p, "out_acc", &a->out_acc, g->n_rows * width, acc);
    double *alpha = want(p, "alpha", &a->alpha, g->n_edges * heads, acc);
    double *dscore = want(p, "dscore", &a->dscore, g->n_edges * heads, acc);
    double *d_v = want(p, "d_v", &a->d_v, g->n_cols * width, dtype), *d_k = NULL;
    double *d_q = NULL, *d_att = NULL, *d_edge = NULL, *d_attr = NULL, *d_weight = NULL;
    double *out_edge = NULL, *d_q_edge = NULL, *d_src = NULL, *d_dst = NULL;
    if (gat) {
        d_src = want(p, "d_score_src", &a->d_score_src, g->n_cols * heads, acc);
        d_dst = want(p, "d_score_dst", &a->d_score_dst, g->n_rows * heads, acc);
    } else {
        d_q = want(p, "d_q", &a->d_q, g->n_rows * width, dtype);
    }
    if (dot) {
        d_k = want(p, "d_k", &a->d_k, g->n_cols * width, dtype);
    }
    if (v2) {
        d_att = want(p, "d_att", &a->d_att, width, dtype);
    }
    if (a->edge != NULL) {
        d_edge = want(p, "d_edge", &a->d_edge, g->n_edges * width, dtype);
    }
    if (attr) {
        d_attr = want(p, "d_edge_attr", &a->d_edge_attr, g->n_edges * n_attr, dtype);
    }
    if (attr && v2) {
        d_weight = want(p, "d_edge_weight", &a->d_edge_weight, n_attr * width, dtype);
    }
    if (attr && dot) {
        const int64_t n = g->n_rows * heads * n_attr;
        out_edge = want(p, "out_edge", &a->out_edge, n, acc);
        d_q_edge = want(p, "d_q_edge", &a->d_q_edge, n, dtype);
    }
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t h = 0; h < heads; h++) {
            const int64_t i = g->row[e], eh = e * heads + h;
            const bool keeps = gnn_dropout_keeps(a->seed, e, h, a->dropout);
            const double m = keeps ? 1 / (1 - a->dropout) : 0;
            double dalpha = 0;
            alpha[eh] = m * p->alpha[eh];
            for (int64_t c = 0; c < channels; c++) {
                const int64_t hc = h * channels + c;
                const double value = value_of(p, e, hc);
                out[i * width + hc] += alpha[eh] * value;
                dalpha += m * number(p, a->grad, i * a->grad_stride + hc) * value;
            }
            for (int64_t d = 0; out_edge != NULL && d < n_attr; d++) {
                const int64_t at = (i * heads + h) * n_attr + d;
                out_edge[at] += alpha[eh] * attr_of(p, e, d);
                dalpha += m * wide(p, a->grad_edge, at) * attr_of(p, e, d);
            }
            p->ds[eh] = dalpha;
            delta[i * heads + h] += p->alpha[eh] * dalpha;
        }
    }
    memcpy(out_acc, out, (size_t)(g->n_rows * width) * 8);
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t h = 0; h < heads; h++) {
            const int64_t i = g->row[e], j = g->col[e], eh = e * heads + h;
            double ds = p->alpha[eh] * (p->ds[eh] - delta[i * heads + h]);
            if (gat) {
                ds *= inside(p, e, h, 0) > 0 ? 1 : a->slope;
                d_src[j * heads + h] += ds, d_dst[i * heads + h] += ds;
            }
            dscore[eh] = ds;
            for (int64_t c = 0; c < channels; c++) {
                const int64_t hc = h * channels + c;
                const double grad = number(p, a->grad, i * a->grad_stride + hc);
                d_v[j * width + hc] += alpha[eh] * grad;
                if (v2) {
                    const double x = inside(p, e, h, c);
                    const double dh =
                        ds * number(p, a->att, hc) * (x > 0 ? 1 : a->slope);
                    d_v[j * width + hc] += dh, d_q[i * width + hc] += dh;
                    d_att[hc] += ds * lrelu(x, a->slope);
                    if (d_edge != NULL) {
                        d_edge[e * width + hc] = dh;
                    }
                    for (int64_t d = 0; attr && d < n_attr; d++) {
                        d_attr[e * n_attr + d] +=
                            dh * number(p, a->edge_weight, d * width + hc);
                        d_weight[d * width + hc] += dh * attr_of(p, e, d);
                    }
                } else if (dot) {
                    const double q = number(p, a->q, i * a->q_stride + hc);
                    const double k = number(p, a->k, j * a->k_stride + hc);
                    d_q[i * width + hc] += a->scale * ds * (k + feature(p, e, hc));
                    d_k[j * width + hc] += a->scale * ds * q;
                    if (d_edge != NULL) {
                        d_edge[e * width + hc] = a->scale * ds * q + alpha[eh] * grad;
                    }
                }
            }
            for (int64_t d = 0; dot && attr && d < n_attr; d++) {
                const int64_t at = (i * heads + h) * n_attr + d;
                d_q_edge[at] += a->scale * ds * attr_of(p, e, d);
                d_attr[e * n_attr + d] += a->scale * ds * number(p, a->q_edge, at) +
                                          alpha[eh] * wide(p, a->grad_edge, at);
            }
        }
    }
    free(delta);
}

/* --------------------------------------------------------------------------------- checks */

static void check_output(const problem *p, const array *o) {
    const double bound = p->a.dtype == GNN_F64 ? 1e-12 : 5e-5;
    const double store = o->dtype == GNN_BF16  ? 0x1p-8
                         : o->dtype == GNN_F16 ? 0x1p-11
                                               : 0;
    for (int64_t k = 0; k < o->n; k++) {
        const double got = value_at(*o->at, o->dtype, k), right = o->right[k];
        CHECK(got == right || fabs(got - right) <= bound * (1 + fabs(right)) +
                                                       store * fabs(right) +
                                                       (store > 0 ? 0x1p-24 : 0),
              "%s %s kind %d edge %d H=%lld C=%lld D=%lld p=%g %s[%lld]: %.9g not %.9g",
              gnn_isa_text(), gnn_dtype_text(p->a.dtype), (int)p->s.kind,
              (int)p->s.edge, (long long)p->s.heads, (long long)p->s.channels,
              (long long)p->s.n_attr, p->s.dropout, o->name, (long long)k, got, right);
    }
}

/* All three passes, the outputs filled with rubbish first; scratch as asked for. */
static void run_passes(problem *p) {
    for (int k = 0; k < p->n_outputs; k++) {
        const array *o = &p->outputs[k];
        memset(*o->at, 0xee, (size_t)(o->n * gnn_dtype_size(o->dtype)));
    }
    gnn_attention_args *a = &p->a;
    a->a = p->g->a;
    a->scratch = dirty(gnn_attention_scratch(a));
    CHECK_OK(gnn_attention_cpu(a));
    free(a->scratch);
    a->scratch = dirty(gnn_attention_dst_vjp_scratch(a));
    CHECK_OK(gnn_attention_dst_vjp_cpu(a));
    free(a->scratch);
    a->a = p->transposed;
    a->scratch = dirty(gnn_attention_src_vjp_scratch(a));
    CHECK_OK(gnn_attention_src_vjp_cpu(a));
    free(a->scratch);
}

static void check_shape(const graph *g, shape s, gnn_dtype dtype) {
    problem p = {.g = g, .s = s, .transposed = transpose(g)};
    make_inputs(&p, dtype);
    make_outputs(&p);
    void *first[16];
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        n_threads = 1, order_seed = 1;
        run_passes(&p);
        for (int k = 0; k < p.n_outputs; k++) {
            const array *o = &p.outputs[k];
            check_output(&p, o);
            first[k] = get(o->n, gnn_dtype_size(o->dtype));
            memcpy(first[k], *o->at, (size_t)(o->n * gnn_dtype_size(o->dtype)));
        }
        n_threads = 3, order_seed = 5;
        run_passes(&p);
        for (int k = 0; k < p.n_outputs; k++) {
            const array *o = &p.outputs[k];
            CHECK(memcmp(first[k], *o->at, (size_t)(o->n * gnn_dtype_size(o->dtype))) ==
                      0,
                  "%s: threads change %s", gnn_isa_text(), o->name);
            free(first[k]);
        }
    }
    for (int k = 0; k < p.n_inputs; k++) {
        free(*p.inputs[k].at);
    }
    for (int k = 0; k < p.n_outputs; k++) {
        free(*p.outputs[k].at), free(p.outputs[k].right);
    }
    free(p.alpha), free(p.ds), free((void *)p.transposed.rowptr);
    free((void *)p.transposed.col), free((void *)p.transposed.eid);
}

/* A gradient that nobody asks for is not written, and the others do not change. */
static void check_wants(const graph *g, shape s) {
    problem p = {.g = g, .s = s, .transposed = transpose(g)};
    make_inputs(&p, GNN_F32);
    make_outputs(&p);
    gnn_attention_args all = p.a;
    run_passes(&p);
    for (int skip = 0; skip < p.n_outputs; skip++) {
        array *o = &p.outputs[skip];
        if (strncmp(o->name, "d_", 2) != 0 && strcmp(o->name, "out_acc") != 0) {
            continue;
        }
        void *kept = *o->at;
        p.a = all;
        gnn_attention_args *a = &p.a;
        a->a = g->a;
        a->scratch = dirty(gnn_attention_scratch(a));
        CHECK_OK(gnn_attention_cpu(a));
        free(a->scratch);
        void *out_acc = a->out_acc;
        *o->at = NULL;
        a->scratch = dirty(gnn_attention_scratch(a));
        CHECK_OK(gnn_attention_cpu(a));
        free(a->scratch);
        a->out_acc = out_acc;
        a->scratch = dirty(gnn_attention_dst_vjp_scratch(a));
        CHECK_OK(gnn_attention_dst_vjp_cpu(a));
        free(a->scratch);
        a->a = p.transposed;
        a->scratch = dirty(gnn_attention_src_vjp_scratch(a));
        CHECK_OK(gnn_attention_src_vjp_cpu(a));
        free(a->scratch);
        *o->at = kept;
        for (int k = 0; k < p.n_outputs; k++) {
            check_output(&p, &p.outputs[k]);
        }
    }
    for (int k = 0; k < p.n_inputs; k++) {
        free(*p.inputs[k].at);
    }
    for (int k = 0; k < p.n_outputs; k++) {
        free(*p.outputs[k].at), free(p.outputs[k].right);
    }
    free(p.alpha), free(p.ds), free((void *)p.transposed.rowptr);
    free((void *)p.transposed.col), free((void *)p.transposed.eid);
}

/* GAT scores of one row of n entries: lse and out[0] where all values are 1. */
static void check_row(int64_t n, float usual, float odd, float lse, float out) {
    const int64_t degrees[] = {n};
    graph g = make_graph(degrees, 1, 1, false, 1);
    const float one = 1, zero = 0;
    float *edge = get(n, 4), got_lse, got_out;
    for (int64_t e = 0; e < n; e++) {
        edge[e] = e < n - 1 ? usual : odd;
    }
    gnn_attention_args a = {.a = g.a,
                            .kind = GNN_GAT,
                            .n_heads = 1,
                            .n_channels = 1,
                            .slope = 1,
                            .v = &one,
                            .v_stride = 1,
                            .score_src = &zero,
                            .score_dst = &zero,
                            .score_edge = edge,
                            .out = &got_out,
                            .lse = &got_lse};
    a.scratch = dirty(gnn_attention_scratch(&a));
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) == GNN_OK) {
            CHECK_OK(gnn_attention_cpu(&a));
            CHECK(got_lse == lse || fabsf(got_lse - lse) <= 1e-6F * fabsf(lse) ||
                      (isnan(lse) && isnan(got_lse)),
                  "%s %lld x %g, %g: lse %g not %g", gnn_isa_text(), (long long)n,
                  (double)usual, (double)odd, (double)got_lse, (double)lse);
            CHECK(isnan(out) ? isnan(got_out) : fabsf(got_out - out) <= 1e-5F,
                  "%s %lld x %g, %g: out %g not %g", gnn_isa_text(), (long long)n,
                  (double)usual, (double)odd, (double)got_out, (double)out);
        }
    }
    free(edge), free(a.scratch);
    drop_graph(&g);
}

static void check_corners(void) {
    static const int64_t lengths[] = {2, 7, 1025, 2050};
    const float inf = INFINITY;
    for (int64_t k = 0; k < LENGTH(lengths); k++) {
        const int64_t n = lengths[k];
        check_row(n, 3, 3, 3 + logf((float)n), 1);
        check_row(n, -inf, 2, 2, 1);
        check_row(n, -inf, -inf, -inf, NAN);
        check_row(n, 2, inf, inf, NAN);
        check_row(n, inf, inf, inf, NAN);
        check_row(n, 2, NAN, NAN, NAN);
        check_row(n, inf, NAN, NAN, NAN);
        check_row(n, -inf, NAN, NAN, NAN);
        check_row(n, NAN, NAN, NAN, NAN);
        check_row(n, -2000, 0, 0, 1);
    }
    check_row(1, 0, -7, -7, 1);
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0};
    const gnn_attention_args right = {.a = {.rowptr = rowptr}, .n_heads = 2};
    gnn_attention_args a = right;
    CHECK_OK(gnn_attention_cpu(&a));
    a.dtype = GNN_I32;
    CHECK(gnn_attention_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a = right, a.kind = (gnn_attention_kind)3;
    CHECK(gnn_attention_src_vjp_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a = right, a.n_channels = -1;
    CHECK(gnn_attention_dst_vjp_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a = right, a.n_heads = a.n_channels = INT64_MAX / 2;
    CHECK(gnn_attention_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a = right, a.dropout = 1;
    CHECK(gnn_attention_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a = right, a.dropout = NAN;
    CHECK(gnn_attention_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a = right, a.edge = a.edge_attr = rowptr;
    CHECK(gnn_attention_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a = right, a.kind = GNN_GATV2, a.edge_attr = rowptr, a.n_edge_features = 17;
    CHECK(gnn_attention_cpu(&a) == GNN_ENOTSUP, "%s", gnn_message());
    a = right, a.a.n_edges = 9, a.edge_stride = INT64_MAX / 2;
    CHECK(gnn_attention_cpu(&a) == GNN_EGRAPH, "%s", gnn_message());
}

int main(void) {
    static const shape shapes[] = {
        {GNN_GAT, NONE, 4, 16, 0, 0, 0.2, 0},
        {GNN_GAT, ROWS, 1, 1, 0, 3, 0.2, 0.5},
        {GNN_GAT, ROWS, 17, 3, 0, 1, -0.5, 0.25},
        {GNN_GATV2, NONE, 2, 33, 0, 0, 0.2, 0},
        {GNN_GATV2, NONE, 3, 7, 0, 2, 0, 0.6},
        {GNN_GATV2, ROWS, 4, 16, 0, 1, 0.2, 0.1},
        {GNN_GATV2, ATTR, 8, 8, 5, 3, 0.2, 0},
        {GNN_GATV2, ATTR, 5, 1, 16, 0, 2, 0.5},
        {GNN_DOT, NONE, 2, 32, 0, 1, 0, 0.3},
        {GNN_DOT, NONE, 6, 5, 0, 0, 0, 0},
        {GNN_DOT, ROWS, 3, 65, 0, 2, 0, 0.5},
        {GNN_DOT, ATTR, 4, 16, 8, 1, 0, 0},
        {GNN_DOT, ATTR, 1, 150, 19, 0, 0, 0.4},
        {GNN_DOT, ATTR, 70, 2, 1, 0, 0, 0.2},
        {GNN_DOT, ATTR, 8, 32, 5, 2, 0, 0.1},
        {GNN_GATV2, ATTR, 4, 32, 9, 0, 0.2, 0.3},
    };
    const int64_t light[] = {3, 0, 70, 1, 1, 12, 5, 0, 0, 2};
    const int64_t mixed[] = {0, 2, 1024, 1025, 7, 0, 2600, 40};
    gnn_set_parallel_for(scrambled_for);
    graph g = make_graph(mixed, LENGTH(mixed), 3, true, 7);
    graph small = make_graph(light, LENGTH(light), 9, false, 8);
    for (int64_t k = 0; k < LENGTH(shapes); k++) {
        for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
            check_shape(&small, shapes[k], feature_dtypes[d]);
        }
        check_shape(&g, shapes[k], k % 2 ? GNN_F32 : GNN_F64);
        if (k % 3 == 0) {
            check_wants(&small, shapes[k]);
        }
    }
    check_wants(&g, shapes[6]);
    check_wants(&g, shapes[11]);
    check_corners();
    check_refusals();
    drop_graph(&g), drop_graph(&small);
    return 0;
}

/* test_cpu_edge_softmax.c: the exponential of every instruction set against libm, softmax
 * over rows and its gradient against a plain one in double, heavy rows, rows of equal
 * scores, infinities and NaN; the same bits for every number of threads. */
/* law: 1 2 */
#include "cpu/simd_exp.h"
#include "kernel_values.h"

/* exp of one number in every lane of every instruction set this machine runs */
#define EXP_IN(isa, text, has)                                                         \
    TARGET_##isa static void exp_in_##isa(float f, double d, float *of_f,              \
                                          double *of_d) {                              \
        const vec_##isa##_f32 e = exp_##isa##_f32(splat_##isa##_f32(f));               \
        const vec_##isa##_f64 g = exp_##isa##_f64(splat_##isa##_f64(d));               \
        *of_f = e[0], *of_d = g[0];                                                    \
    }
GNN_ISA_MAP(EXP_IN)
#define EXP_TABLE(isa, text, has) exp_in_##isa,
static void (*const exps[])(float, double, float *,
                            double *) = {GNN_ISA_MAP(EXP_TABLE)};

static double ulps(double got, double right, int mantissa, int lowest) {
    if (got == right || (isnan(got) && isnan(right))) {
        return 0;
    }
    int exponent;
    frexp(right, &exponent);
    exponent = exponent - 1 < lowest ? lowest : exponent - 1;
    return fabs(got - right) / ldexp(1, exponent - mantissa);
}

static void check_exps(void) {
    static const double corners[] = {0,     -0.0,   1,      -1,     88.72,  88.73,
                                     -87.3, -103.9, -104.1, -150,   -1e30,  1e30,
                                     709.7, 709.8,  -745.1, -745.2, -708.3, 1e-30};
    uint64_t seed = 3;
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        for (int64_t k = 0; k < 200000; k++) {
            double x = random_unit(&seed) * (k % 2 ? 800 : 20);
            x = k < LENGTH(corners) ? corners[k] : x;
            float e;
            double d;
            exps[isa]((float)x, x, &e, &d);
            const float right = (float)exp((double)(float)x);
            CHECK(ulps((double)e, (double)right, 23, -126) <= 2, "%s exp(%.9g): %.9g",
                  gnn_isa_text(), (double)(float)x, (double)e);
            CHECK(ulps(d, exp(x), 52, -1022) <= 2, "%s exp(%.17g): %.17g not %.17g",
                  gnn_isa_text(), x, d, exp(x));
        }
        float e;
        double d;
        exps[isa](-INFINITY, -INFINITY, &e, &d);
        CHECK(e == 0 && d == 0, "%s exp(-inf): %g %g", gnn_isa_text(), (double)e, d);
        exps[isa](INFINITY, INFINITY, &e, &d);
        CHECK(isinf(e) && isinf(d), "%s exp(inf)", gnn_isa_text());
        exps[isa](NAN, NAN, &e, &d);
        CHECK(isnan(e) && isnan(d), "%s exp(nan)", gnn_isa_text());
    }
}

/* alpha and ds in the caller's edge order, by the definition */
static void reference(const graph *g, int64_t heads, const gnn_edge_softmax_args *a,
                      const void *alpha_in, double *alpha, double *ds) {
    double *most = get(g->n_rows, 8), *total = get(g->n_rows, 8);
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t i = 0; i < g->n_rows; i++) {
            most[i] = -INFINITY, total[i] = 0;
        }
        for (int64_t e = 0; e < g->n_edges; e++) {
            const double s = value_at(a->scores, a->dtype, e * heads + h);
            most[g->row[e]] = fmax(most[g->row[e]], s);
        }
        for (int64_t e = 0; e < g->n_edges; e++) {
            const double s = value_at(a->scores, a->dtype, e * heads + h);
            alpha[e * heads + h] = exp(s - most[g->row[e]]);
            total[g->row[e]] += alpha[e * heads + h];
        }
        for (int64_t e = 0; e < g->n_edges; e++) {
            alpha[e * heads + h] /= total[g->row[e]];
        }
        memset(total, 0, (size_t)g->n_rows * 8);
        for (int64_t e = 0; e < g->n_edges; e++) {
            total[g->row[e]] += value_at(alpha_in, a->dtype, e * heads + h) *
                                value_at(a->grad, a->dtype, e * heads + h);
        }
        for (int64_t e = 0; e < g->n_edges; e++) {
            ds[e * heads + h] =
                value_at(alpha_in, a->dtype, e * heads + h) *
                (value_at(a->grad, a->dtype, e * heads + h) - total[g->row[e]]);
        }
    }
    free(most), free(total);
}

static void check_close(const double *right, const void *got, gnn_dtype dtype,
                        int64_t n, double bound, const char *what) {
    const double store = dtype == GNN_BF16 ? 0x1p-8 : dtype == GNN_F16 ? 0x1p-11 : 0;
    for (int64_t k = 0; k < n; k++) {
        const double v = value_at(got, dtype, k);
        CHECK(fabs(v - right[k]) <= bound * (1 + fabs(right[k])) +
                                        store * fabs(right[k]) +
                                        (dtype == GNN_F16 ? 0x1p-24 : 0),
              "%s %s %s[%lld]: %.9g not %.9g", gnn_isa_text(), gnn_dtype_text(dtype),
              what, (long long)k, v, right[k]);
    }
}

static void check_graph(const graph *g, gnn_dtype dtype, int64_t heads) {
    const int64_t n = g->n_edges * heads;
    const size_t bytes = (size_t)(n * gnn_dtype_size(dtype));
    gnn_edge_softmax_args a = {.a = g->a, .dtype = dtype, .n_heads = heads};
    void *scores = random_values(n, dtype, 9, 1);
    void *grad = random_values(n, dtype, 0, 2);
    void *alpha_in = random_values(n, dtype, 0, 3);
    double *alpha = get(n, 8), *ds = get(n, 8);
    a.scores = scores, a.grad = grad;
    reference(g, heads, &a, alpha_in, alpha, ds);
    a.scratch = get(gnn_edge_softmax_scratch(&a), 1);
    void *first = get((int64_t)bytes, 2), *out = get((int64_t)bytes, 2);
    const double bound = dtype == GNN_F64 ? 1e-13 : 4e-5;
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        for (n_threads = 1; n_threads <= 3; n_threads += 2) {
            order_seed = (uint64_t)n_threads;
            memset(out, 0xee, 2 * bytes);
            a.scores = scores, a.grad = NULL, a.alpha = out;
            CHECK_OK(gnn_edge_softmax_cpu(&a));
            a.scores = NULL, a.grad = grad, a.alpha = alpha_in;
            a.d_scores = (char *)out + bytes;
            CHECK_OK(gnn_edge_softmax_vjp_cpu(&a));
            if (n_threads == 1) {
                memcpy(first, out, 2 * bytes);
            }
            CHECK(memcmp(first, out, 2 * bytes) == 0, "%s: threads", gnn_isa_text());
        }
        check_close(alpha, out, dtype, n, bound, "alpha");
        check_close(ds, (char *)out + bytes, dtype, n, 8 * bound, "ds");
    }
    free(scores), free(grad), free(alpha_in), free(alpha), free(ds);
    free(a.scratch), free(first), free(out);
}

/* One row of n scores, most of them `usual`, the last `odd`: every alpha, NaN counted as
 * -1. A long row is cut into chunks, with `odd` alone in another than most. */
static void check_row(int64_t n, float usual, float odd, float of_usual, float of_odd) {
    const int64_t degrees[] = {n};
    graph g = make_graph(degrees, 1, 1, false, 1);
    float *scores = get(n, 4), *alpha = get(n, 4);
    for (int64_t e = 0; e < n; e++) {
        scores[e] = e < n - 1 ? usual : odd;
    }
    gnn_edge_softmax_args a = {.a = g.a, .dtype = GNN_F32, .n_heads = 1};
    a.scores = scores, a.alpha = alpha;
    a.scratch = get(gnn_edge_softmax_scratch(&a), 1);
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        CHECK_OK(gnn_edge_softmax_cpu(&a));
        for (int64_t e = 0; e < n; e++) {
            const float right = e < n - 1 ? of_usual : of_odd;
            const float got = isnan(alpha[e]) ? -1 : alpha[e];
            CHECK(fabsf(got - right) <= 1e-6F * fabsf(right),
                  "%s %g %g: alpha[%lld] = %g", gnn_isa_text(), (double)usual,
                  (double)odd, (long long)e, (double)got);
        }
    }
    free(scores), free(alpha), free(a.scratch);
    drop_graph(&g);
}

static void check_corners(void) {
    static const int64_t lengths[] = {2, 5, 1025, 2049};
    for (int64_t k = 0; k < LENGTH(lengths); k++) {
        const int64_t n = lengths[k];
        const float equal = 1 / (float)n, inf = INFINITY;
        check_row(n, 3, 3, equal, equal);
        check_row(n, 1e30F, 1e30F, equal, equal);
        check_row(n, -3e38F, -3e38F, equal, equal);
        check_row(n, -inf, 2, 0, 1);
        check_row(n, 2, -inf, 1 / (float)(n - 1), 0);
        check_row(n, -inf, -inf, -1, -1); // NaN
        check_row(n, 2, inf, -1, -1);
        check_row(n, 2, NAN, -1, -1);
        check_row(n, -inf, NAN, -1, -1);
        check_row(n, -1000, 0, 0, 1);
        check_row(n, -inf, -1000, 0, 1);
    }
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0};
    gnn_edge_softmax_args a = {.a = {.rowptr = rowptr}, .n_heads = 3};
    CHECK_OK(gnn_edge_softmax_cpu(&a));
    a.dtype = GNN_I64;
    CHECK(gnn_edge_softmax_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.dtype = GNN_F64, a.n_heads = -2;
    CHECK(gnn_edge_softmax_vjp_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.n_heads = INT64_MAX / 4, a.a.n_edges = 5;
    CHECK(gnn_edge_softmax_vjp_cpu(&a) == GNN_EGRAPH, "%s", gnn_message());
}

int main(void) {
    static const int64_t heads[] = {1, 2, 4, 5, 8, 16, 17, 40};
    const int64_t light[] = {3, 0, 70, 1, 1, 12, 5, 0};
    gnn_set_parallel_for(scrambled_for);
    check_exps();
    graph g = make_graph(edge_degrees, LENGTH(edge_degrees), 37, true, 7);
    graph small = make_graph(light, LENGTH(light), 9, false, 8);
    for (int64_t k = 0; k < LENGTH(heads); k++) {
        for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
            check_graph(&small, feature_dtypes[d], heads[k]);
        }
        check_graph(&g, feature_dtypes[k % 4], heads[k]);
    }
    check_corners();
    check_refusals();
    drop_graph(&g), drop_graph(&small);
    return 0;
}

/* test_cpu_gated.c: gated sums, their derivative by u and their gradients in every
 * instruction set, dtype and width: within the bound of rounding of the formula in double,
 * the same bits for every number of threads and order of items. */
/* law: 1 2 */
#include "cpu/isa.h"
#include "kernel_values.h"

static const int64_t widths[] = {1, 2, 3, 4, 7, 8, 31, 32, 33, 64, 65, 128, 257};
enum { STEPS = 24 }; // roundings in one term: e^x, quotients, the series, products

/* What one case has; `far`: integers up to 30 instead of reals in (-1, 1). */
typedef struct options {
    bool softplus, u_has_value, edge, scale, far;
} options;

/* [n, F], rows `pad` elements apart from each other */
typedef struct matrix {
    void *data;
    int64_t stride;
    gnn_dtype dtype;
} matrix;

static matrix random_matrix(int64_t n, int64_t width, int64_t pad, gnn_dtype dtype,
                            bool far, uint64_t seed) {
    const int64_t stride = width + pad;
    return (matrix){random_values(n * stride, dtype, far ? 30 : 0, seed), stride,
                    dtype};
}

static double at(matrix m, int64_t i, int64_t f) {
    return m.data == NULL ? 0 : value_at(m.data, m.dtype, i * m.stride + f);
}

typedef struct setting {
    const graph *g; // forward's
    gnn_csr back;   // its transpose
    options with;
    int64_t width;
    gnn_dtype dtype;
    matrix u, v, edge, grad;
    void *scale; // of the accumulator's type, or NULL
} setting;

/* What an edge adds to y, and what makes its gradients; `most` bounds what the value's
 * roundings are relative to: its addends may cancel. */
typedef struct term {
    double gate, value, rise, scale, most;
} term;

static term term_of(const setting *s, int64_t e, int64_t f) {
    const int64_t i = s->g->row[e], j = s->g->col[e], w = s->width;
    const double z = at(s->u, i, f) + at(s->v, j, f) + at(s->edge, e, f);
    double b = at(s->v, j, w + f) + at(s->edge, e, w + f), rise = 1;
    double most = fabs(at(s->v, j, w + f)) + fabs(at(s->edge, e, w + f));
    if (s->with.u_has_value) {
        b += at(s->u, i, w + f);
        most += fabs(at(s->u, i, w + f));
    }
    if (s->with.softplus) {
        rise = b > 20 ? 1 : 1 / (1 + exp(-b));
        b = b > 20 ? b : log1p(exp(b));
    }
    const double scale =
        s->scale == NULL ? 1 : value_at(s->scale, accumulator(s->dtype), i);
    return (term){1 / (1 + exp(-z)), b, rise, scale, fabs(b) + rise * most};
}

/* Sums of terms with the sum of their magnitudes, which bounds what rounding does. */
typedef struct sums {
    double *value, *magnitude;
    int64_t *n;
} sums;

static sums new_sums(int64_t n) {
    return (sums){get(n, 8), get(n, 8), get(n, 8)};
}

static void drop_sums(sums s) {
    free(s.value), free(s.magnitude), free(s.n);
}

static void put(sums s, int64_t k, double value, double magnitude) {
    s.value[k] += value;
    s.magnitude[k] += fabs(magnitude);
    s.n[k]++;
}

static void check_sums(sums expected, const void *got, gnn_dtype stored,
                       const setting *s, int64_t n, const char *what) {
    for (int64_t k = 0; k < n; k++) {
        const double value = value_at(got, stored, k), want = expected.value[k];
        const double tiny = 0x1p-118; // subnormal gates lose digits
        const double bound = tiny + error_bound(stored, expected.n[k] + STEPS,
                                                expected.magnitude[k], want);
        CHECK(fabs(value - want) <= bound,
              "%s %s F=%lld softplus %d wide %d edge %d: %s[%lld] %.17g not %.17g, "
              "bound %g",
              gnn_isa_text(), gnn_dtype_text(s->dtype), (long long)s->width,
              s->with.softplus, s->with.u_has_value, s->with.edge, what, (long long)k,
              value, want, bound);
    }
}

/* call in every instruction set, serially and then with threads in another order: the
 * same bits in out [bytes]; what follows it is done for each. */
#define IN_EACH_ISA(call, out, bytes, check)                                           \
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {                                    \
        if (gnn_isa_set((gnn_isa)isa) == GNN_OK) {                                     \
            void *first = get((int64_t)(bytes), 1);                                    \
            gnn_set_parallel_for(NULL);                                                \
            memset(out, 0xee, bytes);                                                  \
            CHECK_OK(call);                                                            \
            memcpy(first, out, bytes);                                                 \
            gnn_set_parallel_for(scrambled_for);                                       \
            n_threads = 3, order_seed = 5;                                             \
            memset(out, 0xee, bytes);                                                  \
            CHECK_OK(call);                                                            \
            CHECK(memcmp(first, out, bytes) == 0, "%s: threads", gnn_isa_text());      \
            free(first);                                                               \
            check;                                                                     \
        }                                                                              \
    }

static gnn_gated_args args_of(const setting *s, gnn_csr a) {
    gnn_gated_args args = {.a = a,
                           .dtype = s->dtype,
                           .softplus = s->with.softplus,
                           .u_has_value = s->with.u_has_value,
                           .n_features = s->width,
                           .u = s->u.data,
                           .u_stride = s->u.stride,
                           .v = s->v.data,
                           .v_stride = s->v.stride,
                           .edge = s->edge.data,
                           .edge_stride = s->edge.stride,
                           .grad = s->grad.data,
                           .grad_stride = s->grad.stride,
                           .scale = s->scale};
    args.scratch = get(gnn_gated_scratch(&args), 1);
    return args;
}

static int64_t rounded_up(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static void check_forward(const setting *s) {
    const graph *g = s->g;
    const int64_t w = s->width, wide = s->with.u_has_value ? 2 * w : w;
    sums y = new_sums(g->n_rows * w), dy_du = new_sums(g->n_rows * wide);
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t f = 0; f < w; f++) {
            const term t = term_of(s, e, f);
            const double m = t.scale * t.gate * t.value;
            const double most = t.scale * t.gate * t.most;
            const int64_t row = g->row[e];
            put(y, row * w + f, m, most);
            put(dy_du, row * wide + f, m * (1 - t.gate), most);
            if (s->with.u_has_value) {
                const double slope = t.scale * t.gate * t.rise;
                put(dy_du, row * wide + w + f, slope, slope);
            }
        }
    }
    gnn_gated_args a = args_of(s, g->a);
    const gnn_dtype acc = accumulator(s->dtype);
    const int64_t y_bytes = rounded_up(g->n_rows * w * gnn_dtype_size(s->dtype));
    const size_t bytes = (size_t)(y_bytes + g->n_rows * wide * gnn_dtype_size(acc));
    char *out = get((int64_t)bytes, 1); // y, then dy_du
    a.y = out;
    a.dy_du = out + y_bytes;
    IN_EACH_ISA(gnn_gated_cpu(&a), out, bytes, {
        check_sums(y, a.y, s->dtype, s, g->n_rows * w, "y");
        check_sums(dy_du, a.dy_du, acc, s, g->n_rows * wide, "dy_du");
    })
    a.dy_du = NULL; // y alone
    CHECK_OK(gnn_gated_cpu(&a));
    check_sums(y, a.y, s->dtype, s, g->n_rows * w, "y alone");
    drop_sums(y), drop_sums(dy_du), free(out), free(a.scratch);
}

static void check_vjp(const setting *s, bool wants_v, bool wants_edge) {
    const graph *g = s->g;
    const int64_t w = s->width;
    sums of_v = new_sums(g->n_cols * 2 * w), of_edge = new_sums(g->n_edges * 2 * w);
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t f = 0; f < w; f++) {
            const term t = term_of(s, e, f);
            const double by_value = t.scale * at(s->grad, g->row[e], f) * t.gate;
            const double by_gate = by_value * t.value * (1 - t.gate);
            const int64_t j = g->col[e];
            put(of_v, j * 2 * w + f, by_gate, by_value * t.most);
            put(of_v, j * 2 * w + w + f, by_value * t.rise, by_value * t.rise);
            put(of_edge, e * 2 * w + f, by_gate, by_value * t.most);
            put(of_edge, e * 2 * w + w + f, by_value * t.rise, by_value * t.rise);
        }
    }
    gnn_gated_args a = args_of(s, s->back);
    const int64_t itemsize = gnn_dtype_size(s->dtype);
    const int64_t v_bytes = rounded_up(g->n_cols * 2 * w * itemsize);
    const size_t bytes = (size_t)(v_bytes + g->n_edges * 2 * w * itemsize);
    char *out = get((int64_t)bytes, 1); // d_v, then d_edge
    a.d_v = wants_v ? out : NULL;
    a.d_edge = wants_edge ? out + v_bytes : NULL;
    IN_EACH_ISA(gnn_gated_vjp_cpu(&a), out, bytes, {
        if (wants_v) {
            check_sums(of_v, a.d_v, s->dtype, s, g->n_cols * 2 * w, "d_v");
        }
        if (wants_edge) {
            check_sums(of_edge, a.d_edge, s->dtype, s, g->n_edges * 2 * w, "d_edge");
        }
    })
    drop_sums(of_v), drop_sums(of_edge), free(out), free(a.scratch);
}

static gnn_csr transposed(const graph *g) {
    int64_t *colptr = get(g->n_cols + 1, 8);
    int32_t *row = get(g->n_edges, 4);
    void *eid = get(g->n_edges, 8);
    CHECK_OK(gnn_csr_transpose(&g->a, colptr, row, eid, GNN_I64));
    return (gnn_csr){.n_rows = g->n_cols,
                     .n_cols = g->n_rows,
                     .n_edges = g->n_edges,
                     .rowptr = colptr,
                     .col = row,
                     .eid = eid,
                     .eid_dtype = GNN_I64};
}

static void check_case(const graph *g, gnn_csr back, options with, gnn_dtype dtype,
                       int64_t width, int64_t turn) {
    setting s = {.g = g, .back = back, .with = with, .width = width, .dtype = dtype};
    const bool far = with.far && dtype != GNN_F16; // whose sums would overflow
    const int64_t pad = turn & 1;
    s.u = random_matrix(g->n_rows, with.u_has_value ? 2 * width : width, pad, dtype,
                        far, 1);
    s.v = random_matrix(g->n_cols, 2 * width, pad, dtype, far, 2);
    if (with.edge) {
        s.edge = random_matrix(g->n_edges, 2 * width, pad, dtype, far, 3);
    }
    s.grad = random_matrix(g->n_rows, width, pad, dtype, false, 4);
    s.scale = with.scale ? random_values(g->n_rows, accumulator(dtype), 0, 5) : NULL;
    check_forward(&s);
    check_vjp(&s, turn % 3 != 0, turn % 3 != 1);
    free(s.u.data), free(s.v.data), free(s.edge.data), free(s.grad.data);
    free(s.scale);
}

/* Small widths in every dtype, large ones in one; k says which options each is given. */
static void check_graph(const graph *g, int64_t k, int64_t width) {
    gnn_csr back = transposed(g);
    for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
        const int64_t turn = k + d;
        if (width > 33 && turn % LENGTH(feature_dtypes) != 0) {
            continue;
        }
        for (int o = 0; o < 4; o++) {
            const options with = {.softplus = o & 1,
                                  .u_has_value = o & 2,
                                  .edge = (turn + o) % 3 != 0,
                                  .scale = (turn + o) % 2 != 0,
                                  .far = turn & 2};
            check_case(g, back, with, feature_dtypes[d], width, turn);
        }
    }
    free((void *)back.rowptr), free((void *)back.col), free((void *)back.eid);
}

/* Gates and values at the ends of the line: sigmoid(-inf) = 0, softplus(inf) = inf, NaN. */
static void check_ends(void) {
    const int64_t rowptr[] = {0, 1, 2, 3, 4};
    const int32_t col[] = {0, 1, 2, 3};
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        float u[] = {0, 0, 0, 0}, y[4], dy_du[4];
        float v[] = {-INFINITY, 1, INFINITY, -INFINITY, NAN, 1, 200, -200};
        gnn_gated_args a = {
            .a = {.n_rows = 4, .n_cols = 4, .n_edges = 4, .rowptr = rowptr, .col = col},
            .softplus = true,
            .n_features = 1,
            .u = u,
            .v = v,
            .u_stride = 1,
            .v_stride = 2,
            .y = y,
            .dy_du = dy_du};
        CHECK_OK(gnn_gated_cpu(&a));
        CHECK(y[0] == 0 && y[1] == 0 && isnan(y[2]) && y[3] == 0, "%s: %g %g %g %g",
              gnn_isa_text(), (double)y[0], (double)y[1], (double)y[2], (double)y[3]);
        CHECK(dy_du[0] == 0 && dy_du[1] == 0 && isnan(dy_du[2]) && dy_du[3] == 0, "%s",
              gnn_isa_text());
        v[3] = INFINITY, v[4] = 1, v[5] = NAN;
        CHECK_OK(gnn_gated_cpu(&a));
        CHECK(y[1] == (float)INFINITY && isnan(y[2]), "%s", gnn_isa_text());
    }
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0};
    gnn_gated_args a = {.a = {.rowptr = rowptr}, .n_features = 3};
    CHECK_OK(gnn_gated_cpu(&a));
    CHECK_OK(gnn_gated_vjp_cpu(&a));
    a.dtype = GNN_I32;
    CHECK(gnn_gated_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.dtype = GNN_F32, a.n_features = -1;
    CHECK(gnn_gated_vjp_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.n_features = 3, a.a.n_edges = 9, a.edge_stride = INT64_MAX / 2;
    CHECK(gnn_gated_cpu(&a) == GNN_EGRAPH &&
              strcmp(gnn_message(), "gated: bytes of edge [9, stride "
                                    "4611686018427387903] must be below 2^63") == 0,
          "%s", gnn_message());
}

int main(void) {
    const int64_t degrees[] = {0, 1, 2, 0, 31, 0, 1023, 4, 1024, 1025, 2049, 0, 5, 0};
    graph g = make_graph(degrees, LENGTH(degrees), 3, false, 31); // heavy both ways
    for (int64_t k = 0; k < LENGTH(widths); k++) {
        check_graph(&g, k, widths[k]);
    }
    drop_graph(&g);
    const int64_t few[] = {1, 3, 0, 0, 9};
    g = make_graph(few, LENGTH(few), 7, true, 32); // int64 edge numbers
    for (int64_t k = 0; k < 4; k++) {
        check_graph(&g, k, 7);
    }
    drop_graph(&g);
    const int64_t empty[] = {0, 0, 0};
    g = make_graph(empty, 3, 4, false, 33);
    check_graph(&g, 0, 5);
    drop_graph(&g);
    check_ends();
    check_refusals();
    return 0;
}

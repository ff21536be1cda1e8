/* test_cpu_spmm.c: the sparse-dense product in every instruction set, dtype and width,
 * against an oracle that walks the edges: equal on integers, inside the error bound on
 * reals, the same bits for every number of threads and order of items. */
/* law: 1 2 */
#include "cpu/isa.h"
#include "kernel_values.h"

static const int64_t widths[] = {1,  2,  3,  4,   7,   8,   31,  32,  33,
                                 63, 64, 65, 127, 128, 129, 256, 257, 1000};

typedef struct problem {
    graph *g;
    gnn_spmm_args args;
    bool integers;
} problem;

/* pad < 0 gives x a negative row stride, pad > 0 a gap between rows */
static problem make_problem(graph *g, gnn_dtype dtype, int64_t width, bool weighted,
                            bool scaled, int64_t pad, bool integers) {
    const int64_t limit = integers ? 3 : 0, rows = g->n_cols;
    const int64_t stride = width + (pad < 0 ? -pad : pad);
    problem p = {.g = g, .integers = integers};
    gnn_spmm_args *a = &p.args;
    *a = (gnn_spmm_args){.a = g->a, .dtype = dtype, .n_features = width};
    a->x_stride = pad < 0 ? -stride : stride;
    a->x = random_values(rows * stride, dtype, limit, 11);
    if (pad < 0) {
        a->x = (const char *)a->x + (rows - 1) * stride * gnn_dtype_size(dtype);
    }
    if (weighted) {
        a->weight = random_values(g->n_edges, dtype, limit, 12);
    }
    if (scaled) {
        a->row_scale = random_values(g->n_rows, accumulator(dtype), limit, 13);
        a->col_scale = random_values(g->n_cols, accumulator(dtype), limit, 14);
    }
    a->scratch = get(gnn_spmm_scratch(&a->a, width, dtype), 1);
    a->y = get(g->n_rows * width, gnn_dtype_size(dtype));
    return p;
}

static void drop_problem(problem *p) {
    const gnn_spmm_args *a = &p->args;
    const int64_t back = a->x_stride < 0 ? (p->g->n_cols - 1) * a->x_stride : 0;
    free((char *)a->x + back * gnn_dtype_size(a->dtype));
    free((void *)a->weight), free((void *)a->row_scale), free((void *)a->col_scale);
    free(a->scratch), free(a->y);
}

/* sums and sums of magnitudes [n_rows, F], edge by edge in the caller's order */
static void oracle(const problem *p, double *sum, double *magnitude) {
    const gnn_spmm_args *a = &p->args;
    const gnn_dtype acc = accumulator(a->dtype);
    const int64_t width = a->n_features;
    for (int64_t e = 0; e < p->g->n_edges; e++) {
        const int64_t i = p->g->row[e], j = p->g->col[e];
        double c = a->weight != NULL ? value_at(a->weight, a->dtype, e) : 1;
        c *= a->row_scale != NULL ? value_at(a->row_scale, acc, i) : 1;
        c *= a->col_scale != NULL ? value_at(a->col_scale, acc, j) : 1;
        for (int64_t f = 0; f < width; f++) {
            const double term = c * value_at(a->x, a->dtype, j * a->x_stride + f);
            sum[i * width + f] += term;
            magnitude[i * width + f] += fabs(term);
        }
    }
}

static void check_result(const problem *p, const double *sum, const double *magnitude) {
    const gnn_spmm_args *a = &p->args;
    const int64_t width = a->n_features;
    char rounded[8];
    for (int64_t k = 0; k < p->g->n_rows * width; k++) {
        const int64_t i = k / width, degree = a->a.rowptr[i + 1] - a->a.rowptr[i];
        const double got = value_at(a->y, a->dtype, k);
        bool right;
        if (p->integers) {
            set_value(rounded, a->dtype, 0, sum[k]);
            right = got == value_at(rounded, a->dtype, 0);
        } else {
            right = fabs(got - sum[k]) <=
                    error_bound(a->dtype, degree, magnitude[k], sum[k]);
        }
        CHECK(right,
              "%s %s F=%lld row %lld (degree %lld) feature %lld: %.17g not %.17g",
              gnn_isa_text(), gnn_dtype_text(a->dtype), (long long)width, (long long)i,
              (long long)degree, (long long)(k % width), got, sum[k]);
    }
}

/* One problem in every instruction set; `orders` runs on several threads each. */
static void check_problem(problem *p, int orders) {
    const gnn_spmm_args *a = &p->args;
    const int64_t cells = p->g->n_rows * a->n_features;
    const size_t bytes = (size_t)(cells * gnn_dtype_size(a->dtype));
    double *sum = get(cells, 8), *magnitude = get(cells, 8);
    void *first = get((int64_t)bytes, 1);
    oracle(p, sum, magnitude);
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        memset(a->y, 0xee, bytes);
        gnn_set_parallel_for(NULL);
        CHECK_OK(gnn_spmm_cpu(a));
        check_result(p, sum, magnitude);
        memcpy(first, a->y, bytes);
        gnn_set_parallel_for(scrambled_for);
        for (int order = 0; order < orders; order++) {
            n_threads = 1 + order, order_seed = 77 + (uint64_t)order;
            memset(a->y, 0xee, bytes);
            CHECK_OK(gnn_spmm_cpu(a));
            CHECK(memcmp(first, a->y, bytes) == 0, "%s %s F=%lld: %d threads differ",
                  gnn_isa_text(), gnn_dtype_text(a->dtype), (long long)a->n_features,
                  n_threads);
        }
    }
    free(sum), free(magnitude), free(first);
}

static void check_widths(void) {
    graph g = make_graph(edge_degrees, LENGTH(edge_degrees), 100, false, 21);
    for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
        for (int64_t k = 0; k < LENGTH(widths); k++) {
            for (int form = 0; form < 4; form++) {
                const bool integers = form & 1, weighted = form & 2;
                problem p = make_problem(&g, feature_dtypes[d], widths[k], weighted,
                                         weighted, 0, integers);
                check_problem(&p, form == 2 ? 3 : 0);
                drop_problem(&p);
            }
        }
    }
    drop_graph(&g);
}

/* Strides, edge numbers as int64 or identity, scales alone, more columns than rows. */
static void check_forms(void) {
    const int64_t degrees[] = {5, 0, 1030, 1, 40}, pads[] = {0, 3, -2};
    for (int form = 0; form < 32; form++) {
        graph g =
            make_graph(degrees, LENGTH(degrees), form & 1 ? 3 : 400, form & 2, 22);
        int64_t *eid = NULL;
        if (form & 4) { // hand the edges over in the order of the entries
            eid = get(g.n_edges, 8);
            for (int64_t e = 0; e < g.n_edges; e++) {
                eid[e] = g.a.eid_dtype == GNN_I64 ? ((const int64_t *)g.a.eid)[e]
                                                  : ((const int32_t *)g.a.eid)[e];
            }
            int64_t *row = get(g.n_edges, 8), *col = get(g.n_edges, 8);
            for (int64_t e = 0; e < g.n_edges; e++) {
                row[e] = g.row[eid[e]], col[e] = g.col[eid[e]];
            }
            free(g.row), free(g.col), free((void *)g.a.eid), free(eid);
            g.row = row, g.col = col, g.a.eid = NULL;
        }
        for (int64_t k = 0; k < LENGTH(pads); k++) {
            problem p = make_problem(&g, feature_dtypes[form & 3], 37, form & 8,
                                     form & 16, pads[k], true);
            check_problem(&p, 1);
            drop_problem(&p);
        }
        drop_graph(&g);
    }
}

/* Runs of equal rows, which one feature sums four at a time: the same bits wherever the
 * work items cut such a four. */
static void check_equal_rows(void) {
    enum { N = 40003 }; // several ranges of items at any grain
    int64_t degrees[N];
    for (int64_t i = 0; i < N; i++) {
        degrees[i] = i % 90 == 50 ? 11 : i == 1000 ? 1500 : 6;
    }
    graph g = make_graph(degrees, N, 500, false, 25);
    for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
        for (int weighted = 0; weighted < 2; weighted++) {
            problem p =
                make_problem(&g, feature_dtypes[d], 1, weighted, false, 0, false);
            check_problem(&p, 8);
            drop_problem(&p);
        }
    }
    drop_graph(&g);
}

/* A hub of 65,537 edges, all of whose chunks meet in one row. x of 257 columns is large
 * enough for prefetches. */
static void check_hub(void) {
    const int64_t degrees[] = {2, 65537, 0, 3}, hub_widths[] = {1, 7, 64, 257};
    graph g = make_graph(degrees, LENGTH(degrees), 5000, false, 23);
    for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
        for (int64_t k = 0; k < LENGTH(hub_widths); k++) {
            problem p = make_problem(&g, feature_dtypes[d], hub_widths[k], true, false,
                                     0, k & 1);
            check_problem(&p, 3);
            drop_problem(&p);
        }
    }
    drop_graph(&g);
}

/* <A x, g> = <x, A^T g>, exactly, on integers: forward and backward belong together. */
static void check_adjoint(void) {
    graph g = make_graph(edge_degrees, LENGTH(edge_degrees), 90, false, 24);
    problem p = make_problem(&g, GNN_F32, 33, true, false, 0, true);
    gnn_spmm_args back = p.args;
    int64_t *colptr = get(g.n_cols + 1, 8);
    int32_t *row = get(g.n_edges, 4), *eid = get(g.n_edges, 4);
    CHECK_OK(gnn_csr_transpose(&g.a, colptr, row, eid, GNN_I32));
    back.a = (gnn_csr){
        .n_rows = g.n_cols,
        .n_cols = g.n_rows,
        .n_edges = g.n_edges,
        .rowptr = colptr,
        .col = row,
        .eid = eid,
        .eid_dtype = GNN_I32,
    };
    back.x = random_values(g.n_rows * 33, GNN_F32, 3, 5);
    back.scratch = get(gnn_spmm_scratch(&back.a, 33, GNN_F32), 1);
    back.y = get(g.n_cols * 33, 4);
    CHECK_OK(gnn_spmm_cpu(&p.args));
    CHECK_OK(gnn_spmm_cpu(&back));
    double left = 0, right = 0;
    for (int64_t k = 0; k < g.n_rows * 33; k++) {
        left += (double)((float *)p.args.y)[k] * (double)((const float *)back.x)[k];
    }
    for (int64_t k = 0; k < g.n_cols * 33; k++) {
        right += (double)((float *)back.y)[k] * (double)((const float *)p.args.x)[k];
    }
    CHECK(left == right, "%.17g and %.17g", left, right);
    free(colptr), free(row), free(eid);
    free((void *)back.x), free(back.scratch), free(back.y);
    drop_problem(&p);
    drop_graph(&g);
}

/* A copy through every instruction set: the identity graph gives back all 65,536 bit
 * patterns of a half type (NaN stays NaN), and row sums of two round as scalars do. */
static void check_half_patterns(void) {
    enum { N = 4096, F = 19 };
    int64_t *ones = get(N, 8);
    for (int64_t i = 0; i < N; i++) {
        ones[i] = 1;
    }
    graph g = make_graph(ones, N, N, false, 6);
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        for (int d = GNN_BF16; gnn_isa_set((gnn_isa)isa) == GNN_OK && d <= GNN_F16;
             d++) {
            uint16_t *x = get(N * F, 2), *y = get(N * F, 2);
            for (int64_t k = 0; k < N * F; k++) {
                x[k] = (uint16_t)k;
            }
            gnn_spmm_args a = {.a = g.a, .dtype = (gnn_dtype)d, .n_features = F};
            a.x_stride = F, a.x = x, a.y = y;
            float half[N];
            for (int64_t i = 0; i < N; i++) {
                half[i] = 0.7F; // so that results need rounding
            }
            for (int scaled = 0; scaled < 2; scaled++) {
                a.row_scale = scaled ? half : NULL;
                CHECK_OK(gnn_spmm_cpu(&a));
                for (int64_t e = 0; e < N; e++) {
                    for (int64_t f = 0; f < F; f++) {
                        uint16_t want[1];
                        const double v = value_at(x, a.dtype, g.col[e] * F + f);
                        const uint16_t got = y[g.row[e] * F + f];
                        set_value(want, a.dtype, 0, scaled ? 0.7F * (float)v : v);
                        // -0 + 0 is 0: sums start from +0
                        const bool zero = ((got | want[0]) & 0x7fff) == 0;
                        CHECK(zero || isnan(v)
                                  ? zero || isnan(value_at(&got, a.dtype, 0))
                                  : got == want[0],
                              "%s %s %a: %04x", gnn_isa_text(), gnn_dtype_text(a.dtype),
                              v, got);
                    }
                }
            }
            free(x), free(y);
        }
    }
    free(ones);
    drop_graph(&g);
}

/* NaN and infinity reach exactly the rows that touch them. */
static void check_special_values(void) {
    const int64_t degrees[] = {3, 4, 1030, 0};
    graph g = make_graph(degrees, LENGTH(degrees), 200, false, 8);
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        problem p = make_problem(&g, GNN_F32, 17, false, false, 0, true);
        const int64_t poisoned = g.a.col[0];
        for (int64_t f = 0; f < 17; f++) {
            ((float *)p.args.x)[poisoned * 17 + f] = f & 1 ? NAN : INFINITY;
        }
        CHECK_OK(gnn_spmm_cpu(&p.args));
        for (int64_t i = 0; i < g.n_rows; i++) {
            bool touched = false;
            for (int64_t e = g.a.rowptr[i]; e < g.a.rowptr[i + 1]; e++) {
                touched = touched || g.a.col[e] == poisoned;
            }
            for (int64_t f = 0; f < 17; f++) {
                const float y = ((float *)p.args.y)[i * 17 + f];
                CHECK(touched ? (f & 1 ? isnan(y) : isinf(y)) : isfinite(y), "row %lld",
                      (long long)i);
            }
        }
        drop_problem(&p);
    }
    drop_graph(&g);
}

static void expect_refusal(gnn_spmm_args a, gnn_status want, const char *text) {
    CHECK(gnn_spmm_cpu(&a) == want && strcmp(gnn_message(), text) == 0, "%s",
          gnn_message());
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0};
    const gnn_spmm_args none = {.a = {.rowptr = rowptr}, .n_features = 3};
    gnn_spmm_args a = none;
    CHECK_OK(gnn_spmm_cpu(&a));
    a.dtype = GNN_I64;
    expect_refusal(
        a, GNN_ETYPE,
        "spmm: dtype must be float32, float64, bfloat16 or float16, got int64");
    a = none, a.n_features = -1;
    expect_refusal(a, GNN_EINVAL,
                   "spmm: number of features must be at least 0, got -1");
    a = none, a.a.n_rows = INT32_MAX, a.n_features = INT64_MAX / 2;
    expect_refusal(a, GNN_EGRAPH,
                   "spmm: bytes of y [2147483647, 4611686018427387903] must be below "
                   "2^63");
    a = none, a.a.n_cols = INT32_MAX, a.x_stride = INT64_MAX / 2;
    expect_refusal(a, GNN_EGRAPH,
                   "spmm: bytes of x [2147483647, stride 4611686018427387903] must be "
                   "below 2^63");
}

int main(void) {
    check_widths();
    check_forms();
    check_equal_rows();
    check_hub();
    check_adjoint();
    check_half_patterns();
    check_special_values();
    check_refusals();
    return 0;
}

/* test_cpu_reduce.c: statistics of messages and their gradients in every instruction set,
 * dtype and width, against doubles; the same bits for every number of threads and order of
 * items; arguments and ties; NaN. */
/* law: 1 2 */
#include "cpu/isa.h"
#include "kernel_values.h"

static const int64_t widths[] = {1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 65, 130, 257};
enum { LIMIT = 3 }; // features are integers in [-LIMIT, LIMIT]: ties everywhere

/* The transpose of g's CSR; free_csr() it. */
static gnn_csr transpose(const gnn_csr *a) {
    int64_t *colptr = get(a->n_cols + 1, 8);
    int32_t *row = get(a->n_edges, 4);
    void *eid = get(a->n_edges, 8);
    CHECK_OK(gnn_csr_transpose(a, colptr, row, eid, GNN_I64));
    return (gnn_csr){.n_rows = a->n_cols,
                     .n_cols = a->n_rows,
                     .n_edges = a->n_edges,
                     .rowptr = colptr,
                     .col = row,
                     .eid = eid,
                     .eid_dtype = GNN_I64};
}

static void free_csr(gnn_csr a) {
    free((void *)(uintptr_t)a.rowptr), free((void *)(uintptr_t)a.col);
    free((void *)(uintptr_t)a.eid);
}

/* One problem: its inputs, what is right in doubles, where the outputs go. */
typedef struct problem {
    const graph *g;
    gnn_aggregate_args args;
    double *y[GNN_REDUCE_COUNT], *arg[2], *d_x, *d_edge; // right
    int64_t width;
    char *out;
    size_t bytes; // of out, y first, then arguments and mean, then gradients
} problem;

static double message(const problem *p, int64_t e, int64_t f) {
    const gnn_aggregate_args *a = &p->args;
    const double edge =
        a->edge ? value_at(a->edge, a->dtype, e * a->edge_stride + f) : 0;
    return value_at(a->x, a->dtype, p->g->col[e] * a->x_stride + f) + edge;
}

/* Slow and obvious: y and arg of every row and feature, then the sum over the edges. */
static void solve(problem *p) {
    const graph *g = p->g;
    const gnn_aggregate_args *a = &p->args;
    const int64_t width = p->width;
    int64_t *number = get(g->n_edges, 8), *degree = get(g->n_rows, 8);
    const int32_t *eid32 = a->a.eid_dtype == GNN_I32 ? a->a.eid : NULL;
    const int64_t *eid64 = a->a.eid;
    for (int64_t i = 0; i < g->n_rows; i++) {
        degree[i] = a->a.rowptr[i + 1] - a->a.rowptr[i];
        for (int64_t e = a->a.rowptr[i]; e < a->a.rowptr[i + 1]; e++) {
            number[eid32 ? eid32[e] : eid64[e]] = e - a->a.rowptr[i];
        }
    }
    for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
        p->y[r] = get(g->n_rows * width, 8);
    }
    p->arg[0] = get(g->n_rows * width, 8), p->arg[1] = get(g->n_rows * width, 8);
    p->d_x = get(g->n_cols * width, 8), p->d_edge = get(g->n_edges * width, 8);
    double *ties[] = {get(g->n_rows * width, 8), get(g->n_rows * width, 8)};
    for (int pass = 0; pass < 2; pass++) { // extremes and sums; then who attains them
        for (int64_t e = 0; e < g->n_edges; e++) {
            for (int64_t f = 0; f < width; f++) {
                const int64_t at = g->row[e] * width + f;
                const double m = message(p, e, f);
                double *y[] = {&p->y[GNN_MIN][at], &p->y[GNN_MAX][at]};
                for (int side = 0; side < 2; side++) {
                    if (pass == 0 && (p->arg[side][at] == 0 ||
                                      (side == 0 ? m < *y[side] : m > *y[side]))) {
                        *y[side] = m, p->arg[side][at] = 1;
                    } else if (pass == 1 && m == *y[side]) {
                        ties[side][at]++;
                        p->arg[side][at] =
                            ties[side][at] > 1 ? -ties[side][at] : (double)number[e];
                    }
                }
                p->y[GNN_SUM][at] += pass == 0 ? m : 0;
                p->y[GNN_VAR][at] += pass == 0 ? m * m : 0;
            }
        }
    }
    for (int64_t at = 0; at < g->n_rows * width; at++) {
        const double n = (double)degree[at / width];
        const double mean = n > 0 ? p->y[GNN_SUM][at] / n : 0;
        const double var = n > 0 ? p->y[GNN_VAR][at] / n - mean * mean : 0;
        p->y[GNN_MEAN][at] = mean;
        p->y[GNN_VAR][at] = var;
        p->y[GNN_STD][at] = var > 1.001e-5 ? sqrt(var) : 0;
        for (int side = 0; side < 2; side++) {
            p->arg[side][at] = n > 0 ? p->arg[side][at] : -1;
        }
    }
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t f = 0; f < width; f++) {
            const int64_t at = g->row[e] * width + f;
            const double m = message(p, e, f), n = (double)degree[g->row[e]];
            double grad[GNN_REDUCE_COUNT], d = 0;
            for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
                grad[r] = a->grad[r] ? value_at(a->grad[r], a->dtype, at) : 0;
            }
            const double std = p->y[GNN_STD][at];
            const double v = grad[GNN_VAR] + (std > 0 ? grad[GNN_STD] / (2 * std) : 0);
            d += grad[GNN_SUM] + grad[GNN_MEAN] / n;
            d += 2 * v * (m - p->y[GNN_MEAN][at]) / n;
            d += m == p->y[GNN_MIN][at] ? grad[GNN_MIN] / ties[0][at] : 0;
            d += m == p->y[GNN_MAX][at] ? grad[GNN_MAX] / ties[1][at] : 0;
            p->d_edge[e * width + f] = d;
            p->d_x[g->col[e] * width + f] += d;
        }
    }
    free(number), free(degree), free(ties[0]), free(ties[1]);
}

static void check_close(const problem *p, const double *right, const void *got,
                        gnn_dtype dtype, int64_t n, const char *what) {
    const double eps = p->args.dtype == GNN_BF16  ? 0x1p-7
                       : p->args.dtype == GNN_F16 ? 0x1p-9
                       : p->args.dtype == GNN_F32 ? 0x1p-13
                                                  : 0x1p-40;
    for (int64_t k = 0; k < n * p->width; k++) {
        const double v = value_at(got, dtype, k);
        CHECK(fabs(v - right[k]) <= eps * (8 + fabs(right[k])),
              "%s %s F=%lld which %u %s[%lld, %lld]: %g not %g", gnn_isa_text(),
              gnn_dtype_text(p->args.dtype), (long long)p->width, p->args.which, what,
              (long long)(k / p->width), (long long)(k % p->width), v, right[k]);
    }
}

static double code_at(const void *arg, gnn_dtype dtype, int64_t k) {
    return dtype == GNN_I8    ? ((const int8_t *)arg)[k]
           : dtype == GNN_I16 ? ((const int16_t *)arg)[k]
                              : ((const int32_t *)arg)[k];
}

static void check_results(const problem *p) {
    static const char *const names[] = {"sum", "mean", "min", "max", "var", "std"};
    const gnn_aggregate_args *a = &p->args;
    for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
        if (a->which & 1U << r) {
            check_close(p, p->y[r], a->y[r], a->dtype, p->g->n_rows, names[r]);
        }
    }
    for (int side = 0; side < 2; side++) {
        const void *arg = side == 0 ? a->arg_min : a->arg_max;
        for (int64_t k = 0; arg != NULL && k < p->g->n_rows * p->width; k++) {
            CHECK(code_at(arg, a->arg_dtype, k) == p->arg[side][k],
                  "%s %s F=%lld arg of %s [%lld, %lld]: %g not %g", gnn_isa_text(),
                  gnn_dtype_text(a->dtype), (long long)p->width, names[2 + side],
                  (long long)(k / p->width), (long long)(k % p->width),
                  code_at(arg, a->arg_dtype, k), p->arg[side][k]);
        }
    }
    if (a->mean != NULL) {
        check_close(p, p->y[GNN_MEAN], a->mean, accumulator(a->dtype), p->g->n_rows,
                    "mean");
    }
    if (a->d_x != NULL) {
        check_close(p, p->d_x, a->d_x, a->dtype, p->g->n_cols, "d_x");
    }
    if (a->d_edge != NULL) {
        check_close(p, p->d_edge, a->d_edge, a->dtype, p->g->n_edges, "d_edge");
    }
}

static void run(problem *p) {
    p->args.scratch = get(gnn_aggregate_scratch(&p->args), 1);
    CHECK_OK(gnn_aggregate_cpu(&p->args));
    free(p->args.scratch);
    p->args.scratch = get(gnn_aggregate_vjp_scratch(&p->args), 1);
    CHECK_OK(gnn_aggregate_vjp_cpu(&p->args));
    free(p->args.scratch);
}

static void check(const graph *g, gnn_dtype dtype, int64_t width, unsigned which,
                  bool has_edge, bool wants_x, bool wants_edge) {
    problem p = {.g = g, .width = width};
    gnn_aggregate_args *a = &p.args;
    *a = (gnn_aggregate_args){.a = g->a,
                              .back = transpose(&g->a),
                              .dtype = dtype,
                              .which = which,
                              .n_features = width,
                              .x_stride = width + 3,
                              .edge_stride = width + 1};
    int64_t most = 0;
    for (int64_t i = 0; i < g->n_rows; i++) {
        const int64_t degree = g->a.rowptr[i + 1] - g->a.rowptr[i];
        most = degree > most ? degree : most;
    }
    a->arg_dtype = gnn_arg_dtype(most);
    a->x = random_values(g->n_cols * a->x_stride, dtype, LIMIT, 1);
    if (has_edge) {
        a->edge = random_values(g->n_edges * a->edge_stride, dtype, 1, 2);
    }
    const int64_t rows = g->n_rows * width, size = gnn_dtype_size(dtype);
    struct {
        void **at;
        int64_t bytes;
    } outputs[GNN_REDUCE_COUNT + 5];
    int n = 0;
    for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
        if (which & 1U << r) {
            outputs[n].at = &a->y[r], outputs[n++].bytes = rows * size;
            a->grad[r] = random_values(rows, dtype, LIMIT, 10 + (uint64_t)r);
            a->grad_stride[r] = width;
        }
    }
    const int64_t arg = rows * gnn_dtype_size(a->arg_dtype);
    outputs[n].at = &a->arg_min;
    outputs[n++].bytes = which & 1U << GNN_MIN ? arg : 0;
    outputs[n].at = &a->arg_max;
    outputs[n++].bytes = which & 1U << GNN_MAX ? arg : 0;
    outputs[n].at = &a->mean;
    outputs[n++].bytes = which & (1U << GNN_VAR | 1U << GNN_STD) ? rows * 8 : 0;
    outputs[n].at = &a->d_x,
    outputs[n++].bytes = wants_x ? g->n_cols * width * size : 0;
    outputs[n].at = &a->d_edge;
    outputs[n++].bytes = wants_edge ? g->n_edges * width * size : 0;
    for (int k = 0; k < n; k++) {
        p.bytes += (size_t)(outputs[k].bytes + 63) / 64 * 64;
    }
    p.out = get((int64_t)p.bytes, 1);
    char *at = p.out, *first = get((int64_t)p.bytes, 1);
    for (int k = 0; k < n; k++) {
        *outputs[k].at = outputs[k].bytes > 0 ? at : NULL;
        at += (outputs[k].bytes + 63) / 64 * 64;
    }
    solve(&p);
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        gnn_set_parallel_for(NULL);
        memset(p.out, 0, p.bytes);
        run(&p);
        check_results(&p);
        memcpy(first, p.out, p.bytes);
        gnn_set_parallel_for(scrambled_for);
        n_threads = 3, order_seed = 5;
        memset(p.out, 0, p.bytes);
        run(&p);
        CHECK(memcmp(first, p.out, p.bytes) == 0, "%s: threads", gnn_isa_text());
    }
    for (int r = 0; r < GNN_REDUCE_COUNT; r++) {
        free(p.y[r]), free((void *)(uintptr_t)a->grad[r]);
    }
    free(p.arg[0]), free(p.arg[1]), free(p.d_x), free(p.d_edge), free(p.out),
        free(first);
    free((void *)(uintptr_t)a->x), free((void *)(uintptr_t)a->edge);
    free_csr(a->back);
}

static void check_graph(const graph *g, int64_t turn, int64_t width) {
    static const unsigned whiches[] = {1U << GNN_MAX,
                                       1U << GNN_MIN,
                                       63,
                                       1U << GNN_VAR,
                                       1U << GNN_MIN | 1U << GNN_STD,
                                       3};
    for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
        if (width > 65 && (turn + d) % LENGTH(feature_dtypes) != 0) {
            continue;
        }
        const int64_t k = turn + d;
        check(g, feature_dtypes[d], width, 1U << (k & 1 ? GNN_MAX : GNN_MIN), false,
              true, false);
        check(g, feature_dtypes[d], width, whiches[k % LENGTH(whiches)], k % 3 != 0,
              k % 5 != 0, k % 3 != 0);
        check(g, feature_dtypes[d], width, 63, k & 1, true, k & 1);
    }
}

/* NaN wins, among NaNs it is shared, and a row without it is none the wiser. */
static void check_nan(void) {
    const int64_t rowptr[] = {0, 3, 4}, colptr[] = {0, 1, 2, 3, 4},
                  eid[] = {0, 1, 2, 3};
    const int32_t col[] = {0, 1, 2, 3}, row[] = {0, 0, 0, 1};
    float x[] = {1, NAN, 2, 3, NAN, -1, 4, 5}, y[4], low[4], grad[] = {6, 6, 6, 6},
          d[8];
    int8_t arg[4], arg_low[4];
    char scratch[4096] __attribute__((aligned(64)));
    gnn_aggregate_args a = {.a = {2, 4, 4, rowptr, col, eid, GNN_I64, NULL, 0},
                            .back = {4, 2, 4, colptr, row, eid, GNN_I64, NULL, 0},
                            .arg_dtype = GNN_I8,
                            .which = 1U << GNN_MAX | 1U << GNN_MIN,
                            .n_features = 2,
                            .x_stride = 2,
                            .x = x,
                            .arg_max = arg,
                            .arg_min = arg_low,
                            .d_x = d,
                            .scratch = scratch};
    a.y[GNN_MAX] = y, a.y[GNN_MIN] = low;
    a.grad[GNN_MAX] = grad, a.grad_stride[GNN_MAX] = 2;
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        CHECK_OK(gnn_aggregate_cpu(&a));
        CHECK(isnan(y[0]) && isnan(y[1]) && y[2] == 4 && y[3] == 5, "%s",
              gnn_isa_text());
        CHECK(isnan(low[0]) && isnan(low[1]) && low[2] == 4 && low[3] == 5, "%s",
              gnn_isa_text());
        CHECK(arg[0] == 2 && arg[1] == 0 && arg_low[0] == 2 && arg_low[1] == 0, "%d %d",
              arg[0], arg[1]);
        CHECK_OK(gnn_aggregate_vjp_cpu(&a));
        CHECK(d[0] == 0 && d[1] == 6 && d[2] == 0 && d[4] == 6 && d[5] == 0 &&
                  d[6] == 6,
              "%s: %g %g", gnn_isa_text(), (double)d[1], (double)d[4]);
        x[2] = NAN; // two of them share column 0
        CHECK_OK(gnn_aggregate_cpu(&a));
        CHECK_OK(gnn_aggregate_vjp_cpu(&a));
        CHECK(arg[0] == -2 && d[0] == 0 && d[2] == 3 && d[4] == 3, "%s: %d, %g %g",
              gnn_isa_text(), arg[0], (double)d[2], (double)d[4]);
        x[2] = 2, x[4] = 0; // the only one comes first
        CHECK_OK(gnn_aggregate_cpu(&a));
        CHECK(y[0] == 2 && isnan(y[1]) && arg[1] == 0, "%s: %g", gnn_isa_text(),
              (double)y[1]);
        x[4] = NAN;
    }
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0, 200};
    int8_t arg;
    gnn_aggregate_args a = {.a = {.rowptr = rowptr}, .n_features = 3, .which = 8};
    CHECK_OK(gnn_aggregate_cpu(&a));
    a.which = 0;
    CHECK(gnn_aggregate_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.which = 8, a.dtype = GNN_I32;
    CHECK(gnn_aggregate_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.dtype = GNN_F32, a.n_features = -1;
    CHECK(gnn_aggregate_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.n_features = 3, a.arg_max = &arg, a.arg_dtype = GNN_I64;
    CHECK(gnn_aggregate_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.arg_dtype = GNN_I8, a.a.n_rows = 1;
    CHECK(gnn_aggregate_cpu(&a) == GNN_EINVAL &&
              strcmp(gnn_message(),
                     "aggregate: int8 arguments need rows of at most 128 "
                     "entries, got 200") == 0,
          "%s", gnn_message());
    a.n_features = INT64_MAX / 64, a.a.n_edges = 200;
    CHECK(gnn_aggregate_cpu(&a) == GNN_EGRAPH, "%s", gnn_message());
    CHECK(gnn_arg_dtype(128) == GNN_I8 && gnn_arg_dtype(129) == GNN_I16 &&
              gnn_arg_dtype(32768) == GNN_I16 && gnn_arg_dtype(32769) == GNN_I32,
          "arg dtypes");
}

int main(void) {
    graph g = make_graph(edge_degrees, LENGTH(edge_degrees), 60, false, 31);
    for (int64_t k = 0; k < LENGTH(widths); k++) {
        check_graph(&g, k, widths[k]);
    }
    drop_graph(&g);
    const int64_t degrees[] = {1, 65537, 0, 0, 9};
    g = make_graph(degrees, LENGTH(degrees), 3, true, 32); // heavy both ways
    check(&g, GNN_F32, 5, 63, false, true, false);
    check(&g, GNN_F64, 2, 8, true, true, true);
    drop_graph(&g);
    const int64_t some[] = {3, 0, 120, 1, 128};
    g = make_graph(some, LENGTH(some), 9, false, 34); // int8 arguments
    check_graph(&g, 0, 7);
    check_graph(&g, 1, 40);
    drop_graph(&g);
    const int64_t empty[] = {0, 0, 0};
    g = make_graph(empty, 3, 4, false, 33);
    check_graph(&g, 0, 5);
    drop_graph(&g);
    check_nan();
    check_refusals();
    return 0;
}

/* test_cpu_softmax_aggregate.c: softmax aggregation and its gradients in every instruction
 * set, dtype and width against doubles; the same bits for every number of threads. */
/* law: 1 2 */
#include "cpu/isa.h"
#include "kernel_values.h"

static const int64_t widths[] = {1, 3, 8, 16, 17, 33, 64, 65, 130};

typedef struct problem {
    const graph *g;
    gnn_softmax_aggregate_args args;      // forward's
    double *y, *lse, *d_x, *d_edge, *d_t; // right
    int64_t width;
} problem;

/* x + edge, and the message */
static double sum_of(const problem *p, int64_t e, int64_t f) {
    const gnn_softmax_aggregate_args *a = &p->args;
    const double edge =
        a->edge ? value_at(a->edge, a->dtype, e * a->edge_stride + f) : 0;
    return value_at(a->x, a->dtype, p->g->col[e] * a->x_stride + f) + edge;
}

static double message(const problem *p, int64_t e, int64_t f) {
    const double v = sum_of(p, e, f);
    return p->args.relu ? (v > 0 ? v : 0) + p->args.eps : v;
}

/* Slow and obvious; exponents here are small enough to need no shift. */
static void solve(problem *p) {
    const graph *g = p->g;
    const gnn_softmax_aggregate_args *a = &p->args;
    const int64_t width = p->width, rows = g->n_rows * width;
    const gnn_dtype acc = accumulator(a->dtype);
    double *total = get(rows, 8);
    p->y = get(rows, 8), p->lse = get(rows, 8), p->d_x = get(g->n_cols * width, 8);
    p->d_edge = get(g->n_edges * width, 8), p->d_t = get(width, 8);
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t f = 0; f < width; f++) {
            const double m = message(p, e, f), w = exp(value_at(a->t, acc, f) * m);
            total[g->row[e] * width + f] += w;
            p->y[g->row[e] * width + f] += w * m;
        }
    }
    for (int64_t k = 0; k < rows; k++) {
        p->y[k] /= total[k] > 0 ? total[k] : 1;
        p->lse[k] = log(total[k]);
    }
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t f = 0; f < width; f++) {
            const int64_t at = g->row[e] * width + f;
            const double m = message(p, e, f), t = value_at(a->t, acc, f);
            const double grad =
                value_at(a->grad, a->dtype, g->row[e] * a->grad_stride + f);
            const double gp = grad * exp(t * m) / total[at];
            const double d = a->semi_grad ? gp : gp * (1 + t * (m - p->y[at]));
            p->d_edge[e * width + f] = a->relu && sum_of(p, e, f) <= 0 ? 0 : d;
            p->d_x[g->col[e] * width + f] += p->d_edge[e * width + f];
            p->d_t[f] += gp * m * (m - p->y[at]);
        }
    }
    free(total);
}

static void check_close(const problem *p, const double *right, const void *got,
                        gnn_dtype dtype, int64_t n, double scale, const char *what) {
    const double eps = dtype == GNN_BF16          ? 0x1p-7
                       : dtype == GNN_F16         ? 0x1p-9
                       : p->args.dtype == GNN_F64 ? 0x1p-40
                                                  : 0x1p-15;
    for (int64_t k = 0; k < n; k++) {
        const double v = value_at(got, dtype, k);
        CHECK(v == right[k] || fabs(v - right[k]) <= eps * (scale + fabs(right[k])),
              "%s %s F=%lld %s[%lld]: %g not %g", gnn_isa_text(),
              gnn_dtype_text(p->args.dtype), (long long)p->width, what, (long long)k, v,
              right[k]);
    }
}

static void check(const graph *g, gnn_dtype dtype, int64_t width, bool relu,
                  bool has_edge, bool semi_grad, bool wants_t) {
    const gnn_dtype acc = accumulator(dtype);
    problem p = {.g = g, .width = width};
    gnn_softmax_aggregate_args *a = &p.args;
    *a = (gnn_softmax_aggregate_args){
        .a = g->a,
        .dtype = dtype,
        .relu = relu,
        .semi_grad = semi_grad,
        .eps = 0.25,
        .n_features = width,
        .x_stride = width + 3,
        .edge_stride = width + 1,
        .grad_stride = width + 2,
        .x = random_values(g->n_cols * (width + 3), dtype, 3, 1),
        .edge = has_edge ? random_values(g->n_edges * (width + 1), dtype, 0, 2) : NULL,
        .t = random_values(width, acc, 0, 3),
        .grad = random_values(g->n_rows * (width + 2), dtype, 3, 4)};

    solve(&p);
    int64_t *colptr = get(g->n_cols + 1, 8);
    int32_t *row = get(g->n_edges, 4);
    int64_t *eid = get(g->n_edges, 8);
    CHECK_OK(gnn_csr_transpose(&g->a, colptr, row, eid, GNN_I64));
    const int64_t size = gnn_dtype_size(dtype), wide = gnn_dtype_size(acc);
    const int64_t bytes[] = {g->n_rows * width * size,  g->n_rows * width * wide,
                             g->n_rows * width * wide,  g->n_cols * width * size,
                             g->n_edges * width * size, wants_t ? width * wide : 0};
    void **const at[] = {&a->y, &a->out_acc, &a->lse, &a->d_x, &a->d_edge, &a->d_t};
    int64_t all = 0;
    for (int k = 0; k < 6; k++) {
        all += (bytes[k] + 63) / 64 * 64;
    }
    char *out = get(all, 1), *first = get(all, 1), *next = out;
    for (int k = 0; k < 6; k++) {
        *at[k] = bytes[k] > 0 ? next : NULL;
        next += (bytes[k] + 63) / 64 * 64;
    }
    gnn_softmax_aggregate_args back = *a;
    back.a = (gnn_csr){.n_rows = g->n_cols,
                       .n_cols = g->n_rows,
                       .n_edges = g->n_edges,
                       .rowptr = colptr,
                       .col = row,
                       .eid = eid,
                       .eid_dtype = GNN_I64};
    a->scratch = get(gnn_softmax_aggregate_scratch(a), 1);
    back.scratch = get(gnn_softmax_aggregate_vjp_scratch(&back), 1);
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        for (int threads = 0; threads < 2; threads++) {
            gnn_set_parallel_for(threads ? scrambled_for : NULL);
            n_threads = 3, order_seed = 5;
            memset(out, 0, (size_t)all);
            CHECK_OK(gnn_softmax_aggregate_cpu(a));
            CHECK_OK(gnn_softmax_aggregate_vjp_cpu(&back));
            if (threads == 0) {
                memcpy(first, out, (size_t)all);
            }
        }
        CHECK(memcmp(first, out, (size_t)all) == 0, "%s: threads", gnn_isa_text());
        check_close(&p, p.y, a->y, dtype, g->n_rows * width, 4, "y");
        check_close(&p, p.y, a->out_acc, acc, g->n_rows * width, 4, "out_acc");
        check_close(&p, p.lse, a->lse, acc, g->n_rows * width, 4, "lse");
        check_close(&p, p.d_x, a->d_x, dtype, g->n_cols * width, 16, "d_x");
        check_close(&p, p.d_edge, a->d_edge, dtype, g->n_edges * width, 4, "d_edge");
        if (wants_t) {
            check_close(&p, p.d_t, a->d_t, acc, width, 64, "d_t");
        }
    }
    free(p.y), free(p.lse), free(p.d_x), free(p.d_edge), free(p.d_t);
    free(out), free(first), free(colptr), free(row), free(eid);
    free(a->scratch), free(back.scratch);
    free((void *)(uintptr_t)a->x), free((void *)(uintptr_t)a->edge);
    free((void *)(uintptr_t)a->t), free((void *)(uintptr_t)a->grad);
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0};
    float t = 0;
    gnn_softmax_aggregate_args a = {.a = {.rowptr = rowptr}, .n_features = 3};
    CHECK_OK(gnn_softmax_aggregate_cpu(&a));
    a.dtype = GNN_I32;
    CHECK(gnn_softmax_aggregate_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.dtype = GNN_F32, a.n_features = -1;
    CHECK(gnn_softmax_aggregate_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.n_features = 3, a.semi_grad = true, a.d_t = &t;
    CHECK(gnn_softmax_aggregate_vjp_cpu(&a) == GNN_EINVAL &&
              strcmp(gnn_message(),
                     "softmax_aggregate: t has no gradient under semi_grad") == 0,
          "%s", gnn_message());
    a.d_t = NULL, a.a.n_edges = 200, a.n_features = INT64_MAX / 64;
    CHECK(gnn_softmax_aggregate_cpu(&a) == GNN_EGRAPH, "%s", gnn_message());
}

int main(void) {
    graph g = make_graph(edge_degrees, LENGTH(edge_degrees), 60, false, 31);
    for (int64_t k = 0; k < LENGTH(widths); k++) {
        for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
            if (widths[k] <= 33 || (k + d) % 4 == 0) {
                check(&g, feature_dtypes[d], widths[k], (k + d) % 2, (k + d) % 3,
                      (k + d) % 4 == 0, (k + d) % 4);
            }
        }
    }
    drop_graph(&g);
    const int64_t degrees[] = {1, 65537, 0, 0, 9};
    g = make_graph(degrees, LENGTH(degrees), 3, true, 32); // heavy both ways
    check(&g, GNN_F32, 5, true, true, false, true);
    drop_graph(&g);
    const int64_t empty[] = {0, 0, 0};
    g = make_graph(empty, 3, 4, false, 33);
    check(&g, GNN_F32, 5, true, false, false, true);
    drop_graph(&g);
    check_refusals();
    return 0;
}

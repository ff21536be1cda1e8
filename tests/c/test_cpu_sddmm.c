/* test_cpu_sddmm.c: the sampled dense-dense product in every instruction set, dtype and
 * width: equal on integers, inside the error bound on reals, the same bits for every
 * number of threads and order of items. */
/* law: 1 2 */
#include "cpu/isa.h"
#include "kernel_values.h"

static const int64_t widths[] = {1,  2,  3,  4,   7,   8,   31,  32,  33,
                                 63, 64, 65, 127, 128, 129, 256, 257, 1000};

static void check_dots(const graph *g, const gnn_sddmm_args *a, bool integers) {
    const gnn_dtype acc = accumulator(a->dtype);
    char rounded[8];
    for (int64_t e = 0; e < g->n_edges; e++) {
        const int64_t i = g->row[e], j = g->col[e];
        double c = a->row_scale != NULL ? value_at(a->row_scale, acc, i) : 1;
        c *= a->col_scale != NULL ? value_at(a->col_scale, acc, j) : 1;
        double dot = 0, magnitude = 0;
        for (int64_t f = 0; f < a->n_features; f++) {
            const double term = c * value_at(a->u, a->dtype, i * a->u_stride + f) *
                                value_at(a->v, a->dtype, j * a->v_stride + f);
            dot += term, magnitude += fabs(term);
        }
        const double got = value_at(a->z, a->dtype, e);
        set_value(rounded, a->dtype, 0, dot);
        CHECK(integers ? got == value_at(rounded, a->dtype, 0)
                       : fabs(got - dot) <=
                             error_bound(a->dtype, a->n_features, magnitude, dot),
              "%s %s F=%lld edge %lld: %.17g not %.17g", gnn_isa_text(),
              gnn_dtype_text(a->dtype), (long long)a->n_features, (long long)e, got,
              dot);
    }
}

static void check_problem(const graph *g, gnn_dtype dtype, int64_t width, bool scaled,
                          int64_t pad, bool integers) {
    const int64_t limit = integers ? 3 : 0, u_stride = width + pad;
    gnn_sddmm_args a = {.a = g->a, .dtype = dtype, .n_features = width};
    a.u_stride = u_stride, a.v_stride = pad > 0 ? -width : width;
    void *u = random_values(g->n_rows * u_stride, dtype, limit, 1);
    void *v = random_values(g->n_cols * width, dtype, limit, 2);
    a.u = u;
    a.v = pad > 0 ? (char *)v + (g->n_cols - 1) * width * gnn_dtype_size(dtype) : v;
    if (scaled) {
        a.row_scale = random_values(g->n_rows, accumulator(dtype), limit, 3);
        a.col_scale = random_values(g->n_cols, accumulator(dtype), limit, 4);
    }
    const size_t bytes = (size_t)(g->n_edges * gnn_dtype_size(dtype));
    a.z = get((int64_t)bytes, 1);
    void *first = get((int64_t)bytes, 1);
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        gnn_set_parallel_for(NULL);
        memset(a.z, 0xee, bytes);
        CHECK_OK(gnn_sddmm_cpu(&a));
        check_dots(g, &a, integers);
        memcpy(first, a.z, bytes);
        gnn_set_parallel_for(scrambled_for);
        n_threads = 3, order_seed = 5;
        memset(a.z, 0xee, bytes);
        CHECK_OK(gnn_sddmm_cpu(&a));
        CHECK(memcmp(first, a.z, bytes) == 0, "%s F=%lld: threads differ",
              gnn_isa_text(), (long long)width);
    }
    free(u), free(v), free(a.z), free(first);
    free((void *)a.row_scale), free((void *)a.col_scale);
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0};
    gnn_sddmm_args a = {.a = {.rowptr = rowptr}, .n_features = 3};
    CHECK_OK(gnn_sddmm_cpu(&a));
    a.dtype = GNN_I32;
    CHECK(gnn_sddmm_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.dtype = GNN_F32, a.n_features = -1;
    CHECK(gnn_sddmm_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.n_features = 3, a.a.n_rows = 9, a.u_stride = INT64_MAX / 2;
    CHECK(gnn_sddmm_cpu(&a) == GNN_EGRAPH &&
              strcmp(gnn_message(), "sddmm: bytes of u [9, stride 4611686018427387903] "
                                    "must be below 2^63") == 0,
          "%s", gnn_message());
}

int main(void) {
    graph g = make_graph(edge_degrees, LENGTH(edge_degrees), 100, false, 31);
    for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
        for (int64_t k = 0; k < LENGTH(widths); k++) {
            check_problem(&g, feature_dtypes[d], widths[k], k & 1, k & 2, true);
            check_problem(&g, feature_dtypes[d], widths[k], false, 0, false);
        }
    }
    drop_graph(&g);
    const int64_t degrees[] = {1, 65537, 0, 0, 9};
    g = make_graph(degrees, LENGTH(degrees), 700, true, 32); // int64 edge numbers
    check_problem(&g, GNN_F32, 7, true, 0, true);
    drop_graph(&g);
    const int64_t empty[] = {0, 0, 0};
    g = make_graph(empty, 3, 4, false, 33);
    check_problem(&g, GNN_F64, 5, false, 0, false);
    drop_graph(&g);
    check_refusals();
    return 0;
}

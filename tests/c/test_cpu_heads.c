/* test_cpu_heads.c: products head by head in every instruction set, dtype, number of
 * heads and of channels: equal on integers, the same bits for every number of threads and
 * order of items. */
/* law: 1 2 */
#include "cpu/isa.h"
#include "kernel_values.h"

static const int64_t shapes[][2] = {{1, 1},  {4, 16}, {3, 7},  {2, 33}, {8, 8},
                                    {1, 64}, {5, 1},  {2, 65}, {13, 3}, {1, 150}};
enum { LIMIT = 2 };

static double element(const void *m, gnn_dtype dtype, int64_t stride, int64_t channels,
                      int64_t i, int64_t h, int64_t c) {
    return value_at(m, dtype, i * stride + h * channels + c);
}

static void check_values(const double *expected, const void *got, gnn_dtype dtype,
                         int64_t n, const char *what) {
    char rounded[8];
    for (int64_t k = 0; k < n; k++) {
        set_value(rounded, dtype, 0, expected[k]);
        CHECK(value_at(got, dtype, k) == value_at(rounded, dtype, 0),
              "%s %s %s[%lld]: %g not %g", gnn_isa_text(), gnn_dtype_text(dtype), what,
              (long long)k, value_at(got, dtype, k), expected[k]);
    }
}

static void check_graph(const graph *g, gnn_dtype dtype, bool wide, int64_t heads,
                        int64_t channels, int64_t pad) {
    const int64_t width = heads * channels, stride = width + pad;
    const gnn_dtype edge_dtype = wide ? accumulator(dtype) : dtype;
    gnn_heads_args a = {.a = g->a,
                        .dtype = dtype,
                        .edge_dtype = edge_dtype,
                        .n_heads = heads,
                        .n_channels = channels,
                        .x_stride = stride,
                        .u_stride = width,
                        .v_stride = stride,
                        .scale = 2,
                        .x = random_values(g->n_cols * stride, dtype, LIMIT, 1),
                        .w = random_values(g->n_edges * heads, edge_dtype, LIMIT, 2),
                        .u = random_values(g->n_rows * width, dtype, LIMIT, 3)};
    a.v = a.x;
    double *y = get(g->n_rows * width, 8), *z = get(g->n_edges * heads, 8);
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t h = 0; h < heads; h++) {
            const double w = value_at(a.w, edge_dtype, e * heads + h);
            for (int64_t c = 0; c < channels; c++) {
                const double x = element(a.x, dtype, stride, channels, g->col[e], h, c);
                y[g->row[e] * width + h * channels + c] += 2 * w * x;
                z[e * heads + h] +=
                    2 * x * element(a.u, dtype, width, channels, g->row[e], h, c);
            }
        }
    }
    a.scratch = get(gnn_heads_spmm_scratch(&a), 1);
    a.y = get(g->n_rows * width, gnn_dtype_size(dtype));
    a.z = get(g->n_edges * heads, gnn_dtype_size(edge_dtype));
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        for (n_threads = 1; n_threads <= 3; n_threads += 2) {
            order_seed = (uint64_t)n_threads;
            memset(a.y, 0xee, (size_t)(g->n_rows * width * gnn_dtype_size(dtype)));
            memset(a.z, 0xee,
                   (size_t)(g->n_edges * heads * gnn_dtype_size(edge_dtype)));
            CHECK_OK(gnn_heads_spmm_cpu(&a));
            CHECK_OK(gnn_heads_sddmm_cpu(&a));
            check_values(y, a.y, dtype, g->n_rows * width, "y");
            check_values(z, a.z, edge_dtype, g->n_edges * heads, "z");
        }
    }
    free((void *)a.x), free((void *)a.w), free((void *)a.u), free(y), free(z);
    free(a.scratch), free(a.y), free(a.z);
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0};
    gnn_heads_args a = {.a = {.rowptr = rowptr}, .n_heads = 2, .n_channels = 3};
    CHECK_OK(gnn_heads_spmm_cpu(&a));
    a.dtype = a.edge_dtype = GNN_I32;
    CHECK(gnn_heads_spmm_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.dtype = GNN_F32;
    CHECK(gnn_heads_sddmm_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.edge_dtype = GNN_F32, a.n_heads = -1;
    CHECK(gnn_heads_sddmm_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.n_heads = INT64_MAX / 2;
    CHECK(gnn_heads_spmm_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.n_heads = 2, a.a.n_cols = 9, a.x_stride = INT64_MAX / 2;
    CHECK(gnn_heads_spmm_cpu(&a) == GNN_EGRAPH, "%s", gnn_message());
}

int main(void) {
    gnn_set_parallel_for(scrambled_for);
    graph g = make_graph(edge_degrees, LENGTH(edge_degrees), 37, false, 7);
    const int64_t light[] = {3, 0, 70, 1, 1, 12, 5};
    graph small = make_graph(light, LENGTH(light), 9, true, 8);
    for (int64_t k = 0; k < LENGTH(shapes); k++) {
        for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
            check_graph(&small, feature_dtypes[d], (k + d) % 2, shapes[k][0],
                        shapes[k][1], (k + d) % 3);
        }
        if (shapes[k][0] * shapes[k][1] <= 65) {
            check_graph(&g, feature_dtypes[k % 4], k % 2, shapes[k][0], shapes[k][1],
                        0);
        }
    }
    check_refusals();
    drop_graph(&g), drop_graph(&small);
    return 0;
}

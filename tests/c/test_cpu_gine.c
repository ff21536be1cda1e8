/* test_cpu_gine.c: the sum of relu messages, its derivative along tangents and its
 * gradients in every instruction set, dtype and width: equal on integers, the same bits
 * for every number of threads and order of items. */
/* law: 1 2 */
#include "cpu/isa.h"
#include "kernel_values.h"

static const int64_t widths[] = {1,  2,  3,  4,   7,   8,   31,  32, 33,
                                 63, 64, 65, 127, 128, 129, 256, 257};
enum { LIMIT = 3 }; // features are integers in [-LIMIT, LIMIT]

/* [n, F] integers, rows `pad` elements apart from each other */
typedef struct matrix {
    void *data;
    int64_t stride;
    gnn_dtype dtype;
} matrix;

static matrix random_matrix(int64_t n, int64_t width, int64_t pad, gnn_dtype dtype,
                            uint64_t seed) {
    const int64_t stride = width + pad;
    return (matrix){random_values(n * stride, dtype, LIMIT, seed), stride, dtype};
}

static double at(matrix m, int64_t i, int64_t f) {
    return value_at(m.data, m.dtype, i * m.stride + f);
}

static void check_all(const double *expected, const void *got, gnn_dtype dtype,
                      int64_t n, int64_t width, const char *what) {
    char rounded[8];
    for (int64_t k = 0; k < n * width; k++) {
        set_value(rounded, dtype, 0, expected[k]);
        CHECK(value_at(got, dtype, k) == value_at(rounded, dtype, 0),
              "%s %s F=%lld %s[%lld, %lld]: %g not %g", gnn_isa_text(),
              gnn_dtype_text(dtype), (long long)width, what, (long long)(k / width),
              (long long)(k % width), value_at(got, dtype, k), expected[k]);
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

static void check_forward(const graph *g, gnn_dtype dtype, int64_t width, int64_t pad,
                          bool has_dx, bool has_dedge) {
    matrix x = random_matrix(g->n_cols, width, pad, dtype, 1);
    matrix edge = random_matrix(g->n_edges, width, 0, dtype, 2);
    matrix dx = random_matrix(g->n_cols, width, 0, dtype, 3);
    matrix dedge = random_matrix(g->n_edges, width, pad, dtype, 4);
    double *expected = get(g->n_rows * width, 8);
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t f = 0; f < width; f++) {
            const double message = at(x, g->col[e], f) + at(edge, e, f);
            const double along =
                (has_dx ? at(dx, g->col[e], f) : 0) + (has_dedge ? at(dedge, e, f) : 0);
            if (message > 0) {
                expected[g->row[e] * width + f] +=
                    has_dx || has_dedge ? along : message;
            }
        }
    }
    gnn_gine_args a = {.a = g->a,
                       .dtype = dtype,
                       .n_features = width,
                       .x = x.data,
                       .x_stride = x.stride,
                       .edge = edge.data,
                       .edge_stride = edge.stride,
                       .dx = has_dx ? dx.data : NULL,
                       .dx_stride = dx.stride,
                       .dedge = has_dedge ? dedge.data : NULL,
                       .dedge_stride = dedge.stride};
    const size_t bytes = (size_t)(g->n_rows * width * gnn_dtype_size(dtype));
    a.scratch = get(gnn_gine_scratch(&g->a, width, dtype), 1);
    a.y = get((int64_t)bytes, 1);
    IN_EACH_ISA(gnn_gine_cpu(&a), a.y, bytes,
                check_all(expected, a.y, dtype, g->n_rows, width, "y"))
    free(x.data), free(edge.data), free(dx.data), free(dedge.data);
    free(expected), free(a.scratch), free(a.y);
}

static void check_vjp(const graph *g, gnn_dtype dtype, int64_t width, int64_t pad,
                      bool wants_x, bool wants_edge) {
    matrix x = random_matrix(g->n_rows, width, pad, dtype, 1);
    matrix edge = random_matrix(g->n_edges, width, pad, dtype, 2);
    matrix grad = random_matrix(g->n_cols, width, 0, dtype, 3);
    double *of_x = get(g->n_rows * width, 8), *of_edge = get(g->n_edges * width, 8);
    for (int64_t e = 0; e < g->n_edges; e++) {
        for (int64_t f = 0; f < width; f++) {
            if (at(x, g->row[e], f) + at(edge, e, f) > 0) {
                of_edge[e * width + f] = at(grad, g->col[e], f);
                of_x[g->row[e] * width + f] += at(grad, g->col[e], f);
            }
        }
    }
    const int64_t itemsize = gnn_dtype_size(dtype);
    const size_t x_bytes = (size_t)(g->n_rows * width * itemsize + 63) / 64 * 64;
    const size_t bytes = x_bytes + (size_t)(g->n_edges * width * itemsize);
    char *out = get((int64_t)bytes, 1); // grad_x, then grad_edge
    gnn_gine_vjp_args a = {.a = g->a,
                           .dtype = dtype,
                           .n_features = width,
                           .x = x.data,
                           .x_stride = x.stride,
                           .edge = edge.data,
                           .edge_stride = edge.stride,
                           .grad = grad.data,
                           .grad_stride = grad.stride,
                           .scratch = get(gnn_gine_scratch(&g->a, width, dtype), 1),
                           .grad_x = wants_x ? out : NULL,
                           .grad_edge = wants_edge ? out + x_bytes : NULL};
    IN_EACH_ISA(gnn_gine_vjp_cpu(&a), out, bytes, {
        if (wants_x) {
            check_all(of_x, out, dtype, g->n_rows, width, "grad_x");
        }
        if (wants_edge) {
            check_all(of_edge, out + x_bytes, dtype, g->n_edges, width, "grad_edge");
        }
    })
    free(x.data), free(edge.data), free(grad.data), free(of_x), free(of_edge);
    free(out), free(a.scratch);
}

/* Small widths in every dtype, large ones in one; k says which options each is given. */
static void check_graph(const graph *g, int64_t k, int64_t width) {
    for (int64_t d = 0; d < LENGTH(feature_dtypes); d++) {
        const gnn_dtype dtype = feature_dtypes[d];
        const int64_t turn = k + d;
        if (width > 65 && turn % LENGTH(feature_dtypes) != 0) {
            continue;
        }
        check_forward(g, dtype, width, turn & 1, false, false);
        check_forward(g, dtype, width, turn & 1, turn % 3 != 0, turn % 3 != 1);
        check_vjp(g, dtype, width, turn & 2, turn % 3 != 0, turn % 3 != 1);
    }
}

/* A gradient of the edges beyond the caches is written around them: rows of 64 bytes. */
static void check_streamed(void) {
    const int64_t degrees[] = {100000, 1, 0, 170000};
    graph g = make_graph(degrees, LENGTH(degrees), 50, true, 41);
    check_vjp(&g, GNN_F32, 16, 0, true, true);
    drop_graph(&g);
}

/* Backward of rows that NaN reaches passes their gradient, of a message of 0 does not. */
static void check_gate(void) {
    const int64_t rowptr[] = {0, 3};
    const int32_t col[] = {0, 1, 2};
    for (int isa = 0; isa < GNN_ISA_COUNT; isa++) {
        if (gnn_isa_set((gnn_isa)isa) != GNN_OK) {
            continue;
        }
        float x[] = {2}, edge[] = {-2, NAN, -1}, grad[] = {10, 20, 40}, of_x[1],
              of_edge[3];
        gnn_gine_vjp_args a = {.a = {1, 3, 3, rowptr, col, NULL, GNN_I32},
                               .n_features = 1,
                               .x_stride = 1,
                               .edge_stride = 1,
                               .grad_stride = 1,
                               .x = x,
                               .edge = edge,
                               .grad = grad,
                               .grad_x = of_x,
                               .grad_edge = of_edge};
        CHECK_OK(gnn_gine_vjp_cpu(&a));
        CHECK(of_x[0] == 60 && of_edge[0] == 0 && of_edge[1] == 20 && of_edge[2] == 40,
              "%s: %g, %g %g %g", gnn_isa_text(), (double)of_x[0], (double)of_edge[0],
              (double)of_edge[1], (double)of_edge[2]);
    }
}

static void check_refusals(void) {
    const int64_t rowptr[] = {0};
    gnn_gine_args a = {.a = {.rowptr = rowptr}, .n_features = 3};
    CHECK_OK(gnn_gine_cpu(&a));
    a.dtype = GNN_I32;
    CHECK(gnn_gine_cpu(&a) == GNN_ETYPE, "%s", gnn_message());
    a.dtype = GNN_F32, a.n_features = -1;
    CHECK(gnn_gine_cpu(&a) == GNN_EINVAL, "%s", gnn_message());
    a.n_features = 3, a.a.n_edges = 9, a.edge_stride = INT64_MAX / 2;
    CHECK(gnn_gine_cpu(&a) == GNN_EGRAPH &&
              strcmp(gnn_message(), "gine: bytes of edge [9, stride "
                                    "4611686018427387903] must be below 2^63") == 0,
          "%s", gnn_message());
    gnn_gine_vjp_args b = {.a = {.rowptr = rowptr}, .n_features = 3};
    CHECK_OK(gnn_gine_vjp_cpu(&b));
    b.a.n_cols = 9, b.grad_stride = INT64_MAX / 2;
    CHECK(gnn_gine_vjp_cpu(&b) == GNN_EGRAPH, "%s", gnn_message());
}

int main(void) {
    graph g = make_graph(edge_degrees, LENGTH(edge_degrees), 100, false, 31);
    for (int64_t k = 0; k < LENGTH(widths); k++) {
        check_graph(&g, k, widths[k]);
    }
    drop_graph(&g);
    const int64_t degrees[] = {1, 65537, 0, 0, 9};
    g = make_graph(degrees, LENGTH(degrees), 700, true, 32); // int64 edge numbers
    check_graph(&g, 0, 7);
    drop_graph(&g);
    const int64_t empty[] = {0, 0, 0};
    g = make_graph(empty, 3, 4, false, 33);
    check_graph(&g, 0, 5);
    drop_graph(&g);
    check_streamed();
    check_gate();
    check_refusals();
    return 0;
}

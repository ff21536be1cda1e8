/* test_core_csr.c: validation, sort and transposition against slow obvious oracles, and
 * the work split's promises. */
/* law: 10 */
#include "core/worksplit.h"
#include "kernel_checks.h"

/* ------------------------------------------------------------------------- validation */

static void expect(gnn_status got, gnn_status want, const char *text) {
    CHECK(got == want, "got %s: %s", gnn_status_text(got), gnn_message());
    CHECK(text == NULL || strcmp(gnn_message(), text) == 0, "%s", gnn_message());
}

/* G1 to G5, G8, G9: what C can see of the rows of the bad-input table. */
static void check_reports(void) {
    const int64_t good[] = {0, 2, 2, 5}, decreasing[] = {0, 3, 2, 5};
    const int64_t negative[] = {0, -1, 2, 5}, late[] = {1, 2, 2, 5};
    const int64_t last_pair[] = {0, 2, 6, 5}, longer[] = {0, 2, 2, 6};
    const int64_t shorter[] = {0, 2, 2, 4}, nothing[] = {0};
    const int32_t wrapped[] = {0, 2, INT32_MIN, 5};
    const int32_t col[] = {3, 0, 3, 3, 1}, low[] = {0, 1, -1, 0, 0};
    const int32_t equal[] = {0, 1, 2, 3, 4}, lowest[] = {INT32_MIN, 0, 0, 0, 0};
    const int64_t huge[] = {0, 0, 0, 0, INT64_MAX}, wraps[] = {0, 1LL << 32, 0, 0, 0};

#define CHECK_CSR(rowptr, n_rowptr, col, dtype, n_edges)                               \
    gnn_csr_check(rowptr, GNN_I64, n_rowptr, col, dtype, n_edges, 3, 4)
    expect(CHECK_CSR(good, 4, col, GNN_I32, 5), GNN_OK, NULL);
    expect(CHECK_CSR(good, 3, col, GNN_I32, 5), GNN_EGRAPH,
           "graph: rowptr must have 4 entries (one more than 3 destinations), got 3");
    expect(CHECK_CSR(good, 0, col, GNN_I32, 5), GNN_EGRAPH,
           "graph: rowptr must have 4 entries (one more than 3 destinations), got 0");
    expect(CHECK_CSR(late, 4, col, GNN_I32, 5), GNN_EGRAPH,
           "graph: rowptr[0] must be 0, got 1");
    expect(CHECK_CSR(shorter, 4, col, GNN_I32, 5), GNN_EGRAPH,
           "graph: rowptr[3] must be the length of col, 5, got 4");
    expect(CHECK_CSR(longer, 4, col, GNN_I32, 5), GNN_EGRAPH,
           "graph: rowptr[3] must be the length of col, 5, got 6");
    expect(CHECK_CSR(decreasing, 4, col, GNN_I32, 5), GNN_EGRAPH,
           "graph: rowptr[2] must be at least rowptr[1] = 3, got 2");
    expect(CHECK_CSR(negative, 4, col, GNN_I32, 5), GNN_EGRAPH,
           "graph: rowptr[1] must be at least rowptr[0] = 0, got -1");
    expect(CHECK_CSR(last_pair, 4, col, GNN_I32, 5), GNN_EGRAPH,
           "graph: rowptr[3] must be at least rowptr[2] = 6, got 5");
    expect(CHECK_CSR(good, 4, low, GNN_I32, 5), GNN_EGRAPH,
           "graph: col[2] must be in [0, 4), got -1");
    expect(CHECK_CSR(good, 4, equal, GNN_I32, 5), GNN_EGRAPH,
           "graph: col[4] must be in [0, 4), got 4");
    expect(CHECK_CSR(good, 4, lowest, GNN_I32, 5), GNN_EGRAPH,
           "graph: col[0] must be in [0, 4), got -2147483648");
    expect(CHECK_CSR(good, 4, huge, GNN_I64, 5), GNN_EGRAPH,
           "graph: col[4] must be in [0, 4), got 9223372036854775807");
    expect(CHECK_CSR(good, 4, wraps, GNN_I64, 5), GNN_EGRAPH,
           "graph: col[1] must be in [0, 4), got 4294967296");
    expect(CHECK_CSR(good, 4, col, GNN_F32, 5), GNN_ETYPE,
           "graph: col must be int32 or int64, got float32");
    expect(gnn_csr_check(wrapped, GNN_I32, 4, col, GNN_I32, 5, 3, 4), GNN_EGRAPH,
           "graph: rowptr[2] must be at least rowptr[1] = 2, got -2147483648 (int32 "
           "overflow? use int64)");
    expect(gnn_csr_check(wrapped, GNN_F64, 4, col, GNN_I32, 5, 3, 4), GNN_ETYPE,
           "graph: rowptr must be int32 or int64, got float64");
    expect(gnn_csr_check(wrapped, GNN_I32, 4, col, GNN_I32, (1LL << 31) + 5, 3, 4),
           GNN_EGRAPH, "graph: rowptr must be int64 for 2147483653 edges, got int32");
    expect(gnn_csr_check(good, GNN_I64, 4, col, GNN_I32, 5, 3, 1LL << 31), GNN_EGRAPH,
           "graph: number of sources must be in [0, 2^31), got 2147483648");
    expect(gnn_csr_check(good, GNN_I64, 4, col, GNN_I32, 5, 1LL << 31, 4), GNN_EGRAPH,
           "graph: number of destinations must be in [0, 2^31), got 2147483648");
    expect(gnn_csr_check(good, GNN_I64, 4, col, GNN_I32, -1, 3, 4), GNN_EGRAPH,
           "graph: number of edges must be in [0, 2^57), got -1");
    expect(gnn_csr_check(nothing, GNN_I64, 1, NULL, GNN_I32, 0, 0, 0), GNN_OK, NULL);
#undef CHECK_CSR
}

/* Random damage: accepted exactly when a slow reading of the rules accepts. */
static void check_against_rules(void) {
    uint64_t seed = 5;
    for (int trial = 0; trial < 20000; trial++) {
        enum { ROWS = 6, COLS = 5, EDGES = 9 };
        int64_t rowptr[ROWS + 1] = {0, 1, 1, 4, 7, 9, 9}, col[EDGES];
        for (int e = 0; e < EDGES; e++) {
            col[e] = random_below(&seed, COLS);
        }
        for (int64_t damage = random_below(&seed, 3); damage > 0; damage--) {
            int64_t *at = random_below(&seed, 2)
                              ? &rowptr[random_below(&seed, ROWS + 1)]
                              : &col[random_below(&seed, EDGES)];
            *at += random_integer(&seed, -3, 3);
        }
        bool valid = rowptr[0] == 0 && rowptr[ROWS] == EDGES;
        for (int i = 0; i < ROWS; i++) {
            valid = valid && rowptr[i] <= rowptr[i + 1];
        }
        for (int e = 0; e < EDGES; e++) {
            valid = valid && 0 <= col[e] && col[e] < COLS;
        }
        const gnn_status got =
            gnn_csr_check(rowptr, GNN_I64, ROWS + 1, col, GNN_I64, EDGES, ROWS, COLS);
        CHECK(got == (valid ? GNN_OK : GNN_EGRAPH), "trial %d: %s", trial,
              gnn_status_text(got));
    }
}

static void check_coo_reports(void) {
    const int64_t row[] = {0, 1, 2}, col[] = {0, 1, 2};
    int64_t rowptr[4];
    int32_t out[3], eid[3];
    bool sorted;
    void *scratch = get(gnn_csr_from_coo_scratch(3, 3, 3), 1);
#define BUILD(row, col, dtype, n_rows, n_cols)                                         \
    gnn_csr_from_coo(row, 1, col, 1, dtype, 3, n_rows, n_cols, scratch, rowptr, out,   \
                     eid, GNN_I32, &sorted)
    const int64_t negative[] = {0, -7, 2};
    expect(BUILD(row, col, GNN_I64, 3, 3), GNN_OK, NULL);
    expect(BUILD(row, col, GNN_I64, 3, 2), GNN_EGRAPH,
           "graph: source of edge 2 must be in [0, 2), got 2");
    expect(BUILD(row, col, GNN_I64, 2, 3), GNN_EGRAPH,
           "graph: destination of edge 2 must be in [0, 2), got 2");
    expect(BUILD(row, negative, GNN_I64, 3, 3), GNN_EGRAPH,
           "graph: source of edge 1 must be in [0, 3), got -7");
    expect(BUILD(negative, col, GNN_I64, 3, 3), GNN_EGRAPH,
           "graph: destination of edge 1 must be in [0, 3), got -7");
    expect(BUILD(row, col, GNN_F32, 3, 3), GNN_ETYPE,
           "graph: edge_index must be int32 or int64, got float32");
    expect(BUILD(row, col, GNN_I64, 3, 1LL << 31), GNN_EGRAPH,
           "graph: number of sources must be in [0, 2^31), got 2147483648");
#undef BUILD
    free(scratch);
}

/* ------------------------------------------------------------------------------- sort */

typedef struct edge {
    int64_t row, col, id;
} edge;

static int by_row_col_id(const void *left, const void *right) {
    const edge *a = left, *b = right;
    const int64_t d = a->row != b->row   ? a->row - b->row
                      : a->col != b->col ? a->col - b->col
                                         : a->id - b->id;
    return d < 0 ? -1 : d > 0;
}

/* One graph through every index type and stride. order: 0 random, 1 sorted, 2 sorted by
 * row only, 3 one edge out of place, 4 reversed, 5 random with a hub that takes half. */
static void check_sort(int64_t n_edges, int64_t n_rows, int64_t n_cols, int order,
                       uint64_t seed) {
    edge *edges = get(n_edges, sizeof *edges);
    for (int64_t e = 0; e < n_edges; e++) {
        edges[e] = (edge){random_below(&seed, n_rows), random_below(&seed, n_cols), e};
        edges[e].col = order == 2 ? 0 : edges[e].col;
        edges[e].row = order == 5 && e % 2 ? n_rows / 2 : edges[e].row;
    }
    if (order != 0 && order != 5) {
        qsort(edges, (size_t)n_edges, sizeof *edges, by_row_col_id);
    }
    for (int64_t e = 0; order == 2 && e < n_edges; e++) {
        edges[e].col = random_below(&seed, n_cols);
    }
    for (int64_t e = 0; order == 4 && e < n_edges / 2; e++) {
        const edge swap = edges[e];
        edges[e] = edges[n_edges - 1 - e], edges[n_edges - 1 - e] = swap;
    }
    if (order == 3 && n_edges > 1) {
        const edge swap = edges[0];
        edges[0] = edges[n_edges - 1], edges[n_edges - 1] = swap;
    }
    bool in_order = true;
    for (int64_t e = 0; e < n_edges; e++) {
        edges[e].id = e;
        in_order = in_order && (e == 0 || by_row_col_id(&edges[e - 1], &edges[e]) < 0);
    }
    int64_t *wide = get(3 * n_edges, 8); // row at 3e, col at 3e + 1
    int32_t *narrow = get(2 * n_edges, 4);
    for (int64_t e = 0; e < n_edges; e++) {
        wide[3 * e] = edges[e].row, wide[3 * e + 1] = edges[e].col;
        narrow[e] = (int32_t)edges[e].row;
        narrow[n_edges + e] = (int32_t)edges[e].col;
    }
    qsort(edges, (size_t)n_edges, sizeof *edges, by_row_col_id);

    void *scratch = get(gnn_csr_from_coo_scratch(n_edges, n_rows, n_cols), 1);
    int64_t *rowptr = get(n_rows + 1, 8);
    int32_t *col = get(n_edges, 4);
    void *eid = get(n_edges, 8);
    for (int form = 0; form < 4; form++) {
        const bool short_index = form & 1, long_eid = form & 2;
        bool sorted = !in_order;
        const gnn_dtype eid_dtype = long_eid ? GNN_I64 : GNN_I32;
        if (short_index) {
            CHECK_OK(gnn_csr_from_coo(narrow, 1, narrow + n_edges, 1, GNN_I32, n_edges,
                                      n_rows, n_cols, scratch, rowptr, col, eid,
                                      eid_dtype, &sorted));
        } else {
            CHECK_OK(gnn_csr_from_coo(wide, 3, wide + 1, 3, GNN_I64, n_edges, n_rows,
                                      n_cols, scratch, rowptr, col, eid, eid_dtype,
                                      &sorted));
        }
        CHECK(sorted == in_order, "order %d", order);
        CHECK(rowptr[0] == 0 && rowptr[n_rows] == n_edges, "ends");
        for (int64_t i = 0, e = 0; i < n_rows; i++) {
            CHECK(rowptr[i] == e, "row %lld starts at %lld, not %lld", (long long)i,
                  (long long)rowptr[i], (long long)e);
            for (; e < n_edges && edges[e].row == i; e++) {
                const int64_t id = long_eid ? ((int64_t *)eid)[e] : ((int32_t *)eid)[e];
                CHECK(col[e] == edges[e].col && id == edges[e].id, "entry %lld",
                      (long long)e);
            }
        }
    }
    free(edges), free(wide), free(narrow), free(scratch);
    free(rowptr), free(col), free(eid);
}

static void check_sorts(void) {
    const int64_t sizes[][3] = {{0, 0, 0},
                                {0, 5, 3},
                                {1, 1, 1},
                                {7, 3, 3},
                                {500, 1, 40},
                                {500, 40, 1},
                                {2000, 70, 90},
                                {5000, 3000, 9},
                                {900, 100000, 1 << 20},
                                {60, 1 << 20, INT32_MAX},
                                {40000, 2048, 2049}};
    for (int64_t k = 0; k < LENGTH(sizes); k++) {
        for (int order = 0; order < 6; order++) {
            check_sort(sizes[k][0], sizes[k][1], sizes[k][2], order, 100 + (uint64_t)k);
        }
    }
}

/* ---------------------------------------------------------------------- transposition */

static void check_transposed(const graph *g, bool drop_eid, gnn_dtype eid_dtype) {
    gnn_csr a = g->a;
    a.eid = drop_eid ? NULL : a.eid;
    int64_t *colptr = get(g->n_cols + 1, 8);
    int32_t *row = get(g->n_edges, 4);
    void *eid = get(g->n_edges, 8);
    CHECK_OK(gnn_csr_transpose(&a, colptr, row, eid, eid_dtype));
    // oracle: the entries of each column, found by looking at all of them
    int64_t at = 0;
    for (int64_t j = 0; j < g->n_cols; j++) {
        CHECK(colptr[j] == at, "column %lld", (long long)j);
        for (int64_t i = 0; i < g->n_rows; i++) {
            for (int64_t e = a.rowptr[i]; e < a.rowptr[i + 1]; e++) {
                if (a.col[e] != j) {
                    continue;
                }
                const int64_t of_a = a.eid == NULL ? e
                                     : a.eid_dtype == GNN_I64
                                         ? ((const int64_t *)a.eid)[e]
                                         : ((const int32_t *)a.eid)[e];
                const int64_t id =
                    eid_dtype == GNN_I64 ? ((int64_t *)eid)[at] : ((int32_t *)eid)[at];
                CHECK(row[at] == i && id == of_a, "entry %lld", (long long)at);
                at++;
            }
        }
    }
    CHECK(colptr[g->n_cols] == at && at == g->n_edges, "end");
    free(colptr), free(row), free(eid);
}

static void check_transposes(void) {
    const int64_t degrees[] = {3, 0, 17, 1, 200, 0, 64, 5};
    for (int form = 0; form < 8; form++) {
        graph g = make_graph(degrees, LENGTH(degrees), 30, form & 1, 9);
        check_transposed(&g, form & 2, form & 4 ? GNN_I64 : GNN_I32);
        drop_graph(&g);
    }
}

/* --------------------------------------------------------------------------- the split */

/* Items cover every row and entry once, cut only heavy rows, at multiples of GNN_WORK
 * from the row's start, and hold at most two items' worth of work. */
static void check_split(const int64_t *degrees, int64_t n_rows) {
    graph g = make_graph(degrees, n_rows, 50, false, 3);
    const int64_t *rowptr = g.a.rowptr, n_items = gnn_item_count(&g.a);
    gnn_place last = gnn_item_start(&g.a, 0);
    CHECK(last.row == 0 && last.entry == 0, "first place");
    for (int64_t k = 1; k <= n_items; k++) {
        const gnn_place p = gnn_item_start(&g.a, k);
        CHECK(p.row >= last.row && p.entry >= last.entry, "item %lld", (long long)k);
        const int64_t units = p.row - last.row + p.entry - last.entry;
        CHECK(units <= 2 * GNN_WORK, "item %lld: %lld", (long long)k, (long long)units);
        if (p.row < n_rows && p.entry != rowptr[p.row]) {
            CHECK(rowptr[p.row + 1] - rowptr[p.row] > GNN_WORK, "light row cut");
            CHECK((p.entry - rowptr[p.row]) % GNN_WORK == 0, "cut inside a chunk");
            CHECK(p.entry < rowptr[p.row + 1], "cut past the row");
        }
        last = p;
    }
    CHECK(last.row == n_rows && last.entry == g.n_edges, "last place");

    int64_t n_heavy, chunks = 0, found = 0;
    const int64_t total = gnn_heavy_rows(&g.a, NULL, &n_heavy);
    gnn_heavy *heavy = get(n_heavy, sizeof *heavy);
    CHECK(gnn_heavy_rows(&g.a, heavy, &n_heavy) == total, "two counts");
    for (int64_t i = 0; i < n_rows; i++) {
        CHECK(gnn_heavy_at(heavy, n_heavy, i) == found, "lookup of %lld", (long long)i);
        if (degrees[i] > GNN_WORK) {
            CHECK(heavy[found].row == i && heavy[found].first_chunk == chunks, "list");
            found++;
            chunks += (degrees[i] + GNN_WORK - 1) / GNN_WORK;
        }
    }
    CHECK(found == n_heavy && chunks == total, "end of list");
    free(heavy);
    drop_graph(&g);
}

static void check_splits(void) {
    check_split(edge_degrees, LENGTH(edge_degrees));
    check_split(edge_degrees, 0);
    int64_t *degrees = get(3000, 8);
    check_split(degrees, 3000); // isolated rows only
    for (uint64_t seed = 1; seed < 40; seed++) {
        uint64_t state = seed;
        const int64_t n_rows = random_below(&state, 300);
        for (int64_t i = 0; i < n_rows; i++) {
            const int64_t kind = random_below(&state, 12);
            degrees[i] = kind == 0   ? random_below(&state, 5000)
                         : kind == 1 ? GNN_WORK * random_below(&state, 4)
                                     : random_below(&state, 9);
        }
        check_split(degrees, n_rows);
    }
    free(degrees);
}

int main(void) {
    check_reports();
    check_against_rules();
    check_coo_reports();
    check_sorts();
    check_transposes();
    check_splits();
    return 0;
}

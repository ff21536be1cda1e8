/* csr_check.c: the validator of a CSR that a caller brings. The fast loops only ask
 * whether anything is wrong; the first bad position is looked for after that. */
#include "core/csr_sizes.h"

#include <inttypes.h>

static int64_t index_at(const void *values, gnn_dtype dtype, int64_t i) {
    return dtype == GNN_I32 ? ((const int32_t *)values)[i]
                            : ((const int64_t *)values)[i];
}

static gnn_status require_index(const char *name, gnn_dtype dtype) {
    GNN_REQUIRE(dtype == GNN_I32 || dtype == GNN_I64, GNN_ETYPE,
                "graph: %s must be int32 or int64, got %s", name,
                gnn_dtype_text(dtype));
    return GNN_OK;
}

gnn_status gnn_csr_check_sizes(int64_t n_rows, int64_t n_cols, int64_t n_edges) {
    GNN_REQUIRE(n_rows >= 0 && n_rows <= INT32_MAX, GNN_EGRAPH,
                "graph: number of destinations must be in [0, 2^31), got %" PRId64,
                n_rows);
    GNN_REQUIRE(n_cols >= 0 && n_cols <= INT32_MAX, GNN_EGRAPH,
                "graph: number of sources must be in [0, 2^31), got %" PRId64, n_cols);
    GNN_REQUIRE(n_edges >= 0 && n_edges < INT64_MAX / 64, GNN_EGRAPH,
                "graph: number of edges must be in [0, 2^57), got %" PRId64, n_edges);
    return GNN_OK;
}

static gnn_status check_rowptr(const void *rowptr, gnn_dtype dtype, int64_t n_rows,
                               int64_t n_edges) {
    const int64_t first = index_at(rowptr, dtype, 0);
    GNN_REQUIRE(first == 0, GNN_EGRAPH, "graph: rowptr[0] must be 0, got %" PRId64,
                first);
    bool decreases = false;
    if (dtype == GNN_I32) {
        const int32_t *p = rowptr;
        for (int64_t i = 0; i < n_rows; i++) {
            decreases |= p[i + 1] < p[i];
        }
    } else {
        const int64_t *p = rowptr;
        for (int64_t i = 0; i < n_rows; i++) {
            decreases |= p[i + 1] < p[i];
        }
    }
    for (int64_t i = 0; decreases && i < n_rows; i++) {
        const int64_t low = index_at(rowptr, dtype, i);
        const int64_t got = index_at(rowptr, dtype, i + 1);
        GNN_REQUIRE(got >= low, GNN_EGRAPH,
                    "graph: rowptr[%" PRId64 "] must be at least rowptr[%" PRId64
                    "] = %" PRId64 ", got %" PRId64 "%s",
                    i + 1, i, low, got,
                    dtype == GNN_I32 && got < 0 ? " (int32 overflow? use int64)" : "");
    }
    const int64_t last = index_at(rowptr, dtype, n_rows);
    GNN_REQUIRE(last == n_edges, GNN_EGRAPH,
                "graph: rowptr[%" PRId64 "] must be the length of col, %" PRId64
                ", got %" PRId64,
                n_rows, n_edges, last);
    return GNN_OK;
}

static gnn_status check_col(const void *col, gnn_dtype dtype, int64_t n_edges,
                            int64_t n_cols) {
    bool outside = false;
    if (dtype == GNN_I32) {
        const int32_t *p = col;
        for (int64_t e = 0; e < n_edges; e++) {
            outside |= (uint32_t)p[e] >= (uint32_t)n_cols; // negative wraps to large
        }
    } else {
        const int64_t *p = col;
        for (int64_t e = 0; e < n_edges; e++) {
            outside |= (uint64_t)p[e] >= (uint64_t)n_cols;
        }
    }
    for (int64_t e = 0; outside && e < n_edges; e++) {
        const int64_t got = index_at(col, dtype, e);
        GNN_REQUIRE(got >= 0 && got < n_cols, GNN_EGRAPH,
                    "graph: col[%" PRId64 "] must be in [0, %" PRId64 "), got %" PRId64,
                    e, n_cols, got);
    }
    return GNN_OK;
}

gnn_status gnn_csr_check(const void *rowptr, gnn_dtype rowptr_dtype, int64_t n_rowptr,
                         const void *col, gnn_dtype col_dtype, int64_t n_edges,
                         int64_t n_rows, int64_t n_cols) {
    GNN_TRY(require_index("rowptr", rowptr_dtype));
    GNN_TRY(require_index("col", col_dtype));
    GNN_TRY(gnn_csr_check_sizes(n_rows, n_cols, n_edges));
    GNN_REQUIRE(n_rowptr == n_rows + 1, GNN_EGRAPH,
                "graph: rowptr must have %" PRId64 " entries (one more than %" PRId64
                " destinations), got %" PRId64,
                n_rows + 1, n_rows, n_rowptr);
    GNN_REQUIRE(rowptr_dtype == GNN_I64 || n_edges <= INT32_MAX, GNN_EGRAPH,
                "graph: rowptr must be int64 for %" PRId64 " edges, got int32",
                n_edges);
    GNN_TRY(check_rowptr(rowptr, rowptr_dtype, n_rows, n_edges));
    return check_col(col, col_dtype, n_edges, n_cols);
}

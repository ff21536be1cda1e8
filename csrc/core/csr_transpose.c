/* csr_transpose.c: a counting sort by column. Rows are visited in order, so each column
 * comes out ordered by (row, position); colptr itself serves as the insertion cursors. */
#include "core/csr_sizes.h"
#include "mutants.h"

#include <inttypes.h>
#include <string.h>

static inline int64_t edge_at(const gnn_csr *a, int64_t e) {
    if (a->eid == NULL) {
        return e;
    }
    return a->eid_dtype == GNN_I64 ? ((const int64_t *)a->eid)[e]
                                   : ((const int32_t *)a->eid)[e];
}

gnn_status gnn_csr_transpose(const gnn_csr *a, int64_t *colptr, int32_t *row, void *eid,
                             gnn_dtype eid_dtype) {
    GNN_TRY(gnn_csr_check_sizes(a->n_rows, a->n_cols, a->n_edges));
    GNN_REQUIRE(eid_dtype == GNN_I64 ||
                    (eid_dtype == GNN_I32 && a->n_edges <= INT32_MAX),
                GNN_EINVAL, "graph: eid must be int64 for %" PRId64 " edges, got %s",
                a->n_edges, gnn_dtype_text(eid_dtype));
    memset(colptr, 0, (size_t)(a->n_cols + 1) * sizeof *colptr);
    for (int64_t e = 0; e < a->n_edges; e++) {
        colptr[a->col[e] + 1]++;
    }
    for (int64_t j = 0; j < a->n_cols; j++) {
        colptr[j + 1] += colptr[j];
    }
    for (int64_t i = 0; i < a->n_rows; i++) {
        for (int64_t e = a->rowptr[i]; e < a->rowptr[i + 1]; e++) {
            const int64_t at = colptr[a->col[e]]++;
            row[at] = (int32_t)i;
            if (eid_dtype == GNN_I64) {
                ((int64_t *)eid)[at] =
                    GNN_MUTANT(transpose_forgets_eid, edge_at(a, e), e);
            } else {
                ((int32_t *)eid)[at] = (int32_t)edge_at(a, e);
            }
        }
    }
    // every cursor stopped where the next column starts
    GNN_MUTANT(transpose_keeps_cursors,
               memmove(colptr + 1, colptr, (size_t)a->n_cols * sizeof *colptr), );
    colptr[0] = 0;
    return GNN_OK;
}

/* worksplit.h: cuts a CSR into work items that depend on the graph alone.
 *
 * The entries of a row plus one for the row itself are its units of work; an item covers
 * about GNN_WORK consecutive units. A row of more than GNN_WORK entries is *heavy* and is
 * cut into chunks of GNN_WORK entries counted from its own start, so that the order of
 * summation in a row depends on that row alone; every other row stays whole. Item k holds
 * the rows and chunks that start in units [k * GNN_WORK, (k + 1) * GNN_WORK).
 *
 *   for (gnn_place p = gnn_item_start(a, k), end = gnn_item_start(a, k + 1); ...)
 */
#ifndef GNN_WORKSPLIT_H
#define GNN_WORKSPLIT_H

#include "gnn.h"

enum { GNN_WORK = 1024 };

/* The start of a row or chunk: entry lies in row (or is its first, or the row is empty). */
typedef struct gnn_place {
    int64_t row, entry;
} gnn_place;

/* A heavy row and the index of its first chunk among the chunks of all heavy rows. */
typedef struct gnn_heavy {
    int64_t row, first_chunk;
} gnn_heavy;

int64_t gnn_item_count(const gnn_csr *a);

/* First row or chunk start at or after unit k * GNN_WORK; the end for k = item count. */
gnn_place gnn_item_start(const gnn_csr *a, int64_t k);

/* Lists heavy rows in order (heavy NULL: only counts) and returns the number of their
 * chunks. Looks at whole blocks of rows first: about n_rows / 32 reads on a mesh. */
int64_t gnn_heavy_rows(const gnn_csr *a, gnn_heavy *heavy, int64_t *n_heavy);

/* Index of the first listed heavy row at or after row, n_heavy if there is none. */
int64_t gnn_heavy_at(const gnn_heavy *heavy, int64_t n_heavy, int64_t row);

#endif

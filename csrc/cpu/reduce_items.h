/* reduce_items.h: runs row kernels over the work items of a CSR (core/worksplit.h), item
 * by item, so that what a kernel leaves per item does not depend on the threads.
 *
 *   rows(context, item, row, stop)          whole rows [row, stop)
 *   chunk(context, item, row, begin, end, c)  entries [begin, end) of a heavy row, chunk c
 *                                           among those of all heavy rows
 *   join(context, row, c, n_chunks)         a heavy row's chunks c .. c + n_chunks, after
 *                                           every item is done
 */
#ifndef GNN_REDUCE_ITEMS_H
#define GNN_REDUCE_ITEMS_H

#include "core/worksplit.h"

typedef struct reduce_walk {
    const gnn_csr *a;
    const gnn_heavy *heavy; // [n_heavy]
    int64_t n_heavy;
    void *context;
    void (*rows)(void *context, int64_t item, int64_t row, int64_t stop);
    void (*chunk)(void *context, int64_t item, int64_t row, int64_t begin, int64_t end,
                  int64_t c);
    void (*join)(void *context, int64_t row, int64_t c, int64_t n_chunks);
} reduce_walk;

static inline void reduce_item(const reduce_walk *w, int64_t item) {
    const int64_t *rowptr = w->a->rowptr;
    gnn_place at = gnn_item_start(w->a, item);
    const gnn_place end = gnn_item_start(w->a, item + 1);
    int64_t h = gnn_heavy_at(w->heavy, w->n_heavy, at.row);
    while (at.row < end.row || at.entry < end.entry) {
        const int64_t heavy_row = h < w->n_heavy ? w->heavy[h].row : INT64_MAX;
        if (at.row < heavy_row) { // whole rows up to the next heavy one
            const int64_t row = heavy_row < end.row ? heavy_row : end.row;
            w->rows(w->context, item, at.row, row);
            at = (gnn_place){row, rowptr[row]};
            continue;
        }
        const int64_t begin = rowptr[at.row], last = rowptr[at.row + 1];
        const int64_t next = at.entry + GNN_WORK < last ? at.entry + GNN_WORK : last;
        w->chunk(w->context, item, at.row, at.entry, next,
                 w->heavy[h].first_chunk + (at.entry - begin) / GNN_WORK);
        at = (gnn_place){next < last ? at.row : at.row + 1, next};
        h += next == last;
    }
}

static inline void reduce_some_items(int64_t first, int64_t stop, void *context) {
    for (int64_t item = first; item < stop; item++) {
        reduce_item(context, item);
    }
}

static inline void reduce_some_joins(int64_t first, int64_t stop, void *context) {
    const reduce_walk *w = context;
    for (int64_t h = first; h < stop; h++) {
        const gnn_heavy *heavy = &w->heavy[h];
        const int64_t degree = w->a->rowptr[heavy->row + 1] - w->a->rowptr[heavy->row];
        w->join(w->context, heavy->row, heavy->first_chunk,
                (degree + GNN_WORK - 1) / GNN_WORK);
    }
}

/* Bytes of the list of heavy rows, and the number of their chunks. */
static inline int64_t reduce_heavy_bytes(const gnn_csr *a, int64_t *n_chunks) {
    int64_t n_heavy;
    *n_chunks = gnn_heavy_rows(a, NULL, &n_heavy);
    return (n_heavy * (int64_t)sizeof(gnn_heavy) + 63) / 64 * 64;
}

/* Lists the heavy rows at `heavy` and runs everything. An item is about GNN_WORK rows of
 * F numbers: a thread takes several when F is small. */
static inline void reduce_run(reduce_walk *w, void *heavy, int64_t n_features) {
    w->heavy = heavy;
    gnn_heavy_rows(w->a, heavy, &w->n_heavy);
    gnn_parallel_for(gnn_item_count(w->a), 1 + 64 / n_features, reduce_some_items, w);
    if (w->join != NULL) {
        gnn_parallel_for(w->n_heavy, 1, reduce_some_joins, w);
    }
}

/* Sizes and dtypes of an aggregation, for both directions (reduce_cpu.c). */
gnn_status reduce_check(const gnn_aggregate_args *args);

#endif

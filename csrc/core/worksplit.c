/* worksplit.c: work items by binary search on rowptr[i] + i, the unit where row i starts. */
#include "core/worksplit.h"

int64_t gnn_item_count(const gnn_csr *a) {
    return (a->n_rows + a->n_edges + GNN_WORK - 1) / GNN_WORK;
}

gnn_place gnn_item_start(const gnn_csr *a, int64_t k) {
    const int64_t unit = k * GNN_WORK;
    const int64_t *rowptr = a->rowptr;
    if (unit >= a->n_rows + a->n_edges) {
        return (gnn_place){a->n_rows, a->n_edges};
    }
    // the row that unit falls into: the last row with rowptr[row] + row <= unit
    int64_t row = 0, beyond = a->n_rows < unit + 1 ? a->n_rows : unit + 1;
    while (beyond - row > 1) {
        const int64_t middle = row + (beyond - row) / 2;
        if (rowptr[middle] + middle <= unit) {
            row = middle;
        } else {
            beyond = middle;
        }
    }
    const int64_t first = rowptr[row], last = rowptr[row + 1];
    const int64_t into = unit - (first + row); // units of this row before the item
    if (into == 0) {
        return (gnn_place){row, first};
    }
    if (last - first > GNN_WORK) {
        const int64_t entry = first + (into + GNN_WORK - 1) / GNN_WORK * GNN_WORK;
        if (entry < last) {
            return (gnn_place){row, entry};
        }
    }
    return (gnn_place){row + 1, last};
}

int64_t gnn_heavy_rows(const gnn_csr *a, gnn_heavy *heavy, int64_t *n_heavy) {
    enum { BLOCK = 32 };
    const int64_t *rowptr = a->rowptr;
    int64_t found = 0, chunks = 0;
    for (int64_t begin = 0; begin < a->n_rows; begin += BLOCK) {
        const int64_t end = begin + BLOCK < a->n_rows ? begin + BLOCK : a->n_rows;
        if (rowptr[end] - rowptr[begin] <= GNN_WORK) {
            continue;
        }
        for (int64_t i = begin; i < end; i++) {
            const int64_t degree = rowptr[i + 1] - rowptr[i];
            if (degree > GNN_WORK) {
                if (heavy != NULL) {
                    heavy[found] = (gnn_heavy){i, chunks};
                }
                found++;
                chunks += (degree + GNN_WORK - 1) / GNN_WORK;
            }
        }
    }
    *n_heavy = found;
    return chunks;
}

int64_t gnn_heavy_at(const gnn_heavy *heavy, int64_t n_heavy, int64_t row) {
    int64_t first = 0, beyond = n_heavy;
    while (first < beyond) {
        const int64_t middle = first + (beyond - first) / 2;
        if (heavy[middle].row < row) {
            first = middle + 1;
        } else {
            beyond = middle;
        }
    }
    return first;
}

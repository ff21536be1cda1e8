/* entry_batch.h: walks the work items of a graph in small batches of entries.
 *
 * A batch is some whole rows, about BATCH entries of them, or one row that has more, or
 * one chunk of a heavy row. Kernels that need several looks at an entry (a score, a
 * softmax over its row, a weighted sum) take all looks at one batch while what it gathers
 * is in cache. Batches start anew in each work item, so they depend on the graph alone.
 */
#ifndef GNN_ENTRY_BATCH_H
#define GNN_ENTRY_BATCH_H

#include "core/worksplit.h"

enum {
    BATCH = 64,
    BATCH_ROWS = 64,
    SOON = 16,            // rows are asked for this many entries ahead of their use
    SCORES = 4 * GNN_WORK // numbers by entry and head at hand; see heads_at_once
};

/* Where entry_rows.h compiles bodies for heads of 1, 2 and 4 vectors. */
#define ENTRY_SPECIAL_avx512_f32 1
#define ENTRY_SPECIAL_avx2_f32 1
#define ENTRY_SPECIAL_neon_f32 1

typedef struct entry_batch {
    int64_t row, n_rows; // rows [row, row + n_rows)
    int64_t last_row;    // of the graph
    int64_t first, n;    // entries [first, first + n) of the graph, n at most GNN_WORK
    int64_t chunk;       // number among the chunks of all heavy rows, or -1: whole rows
    int64_t start[BATCH_ROWS + 1]; // row r of the batch has entries start[r], ...
    // of entry e, and of SOON entries beyond the last (the graph's last again and again)
    int64_t col[GNN_WORK + SOON];
    int64_t edge[GNN_WORK + SOON]; // in the caller's order
} entry_batch;

/* A matrix by row, head and channel: element (i, h, c) is data[i * stride + h * apart + c].
 * Data NULL: absent. */
typedef struct operand {
    const void *data;
    int64_t stride, apart;
} operand;

/* Where a kernel leaves rows: element (r, h, c) of the batch at [r * stride + h * apart + c]
 * of `data` (the dtype) and of `acc` (the accumulator's), each NULL if not wanted. */
typedef struct result {
    void *data, *acc;
    int64_t stride, apart;
} result;

/* How many of n_heads heads there is room for. */
static inline int64_t heads_at_once(const entry_batch *b, int64_t n_heads) {
    const int64_t most = SCORES / (b->n > b->n_rows ? b->n : b->n_rows);
    return n_heads < most ? n_heads : most;
}

/* The heavy rows of a graph, at the front of scratch. */
typedef struct heavy_rows {
    const gnn_heavy *rows;
    int64_t n_rows, n_chunks;
} heavy_rows;

static inline int64_t heavy_rows_bytes(const gnn_csr *a, int64_t *n_chunks) {
    int64_t n_heavy;
    *n_chunks = gnn_heavy_rows(a, NULL, &n_heavy);
    return (n_heavy * (int64_t)sizeof(gnn_heavy) + 63) / 64 * 64;
}

/* Lists them in scratch and moves it past them. */
static inline heavy_rows heavy_rows_list(const gnn_csr *a, void **scratch) {
    heavy_rows heavy = {.rows = *scratch};
    heavy.n_chunks = gnn_heavy_rows(a, *scratch, &heavy.n_rows);
    *scratch =
        (char *)*scratch + (heavy.n_rows * (int64_t)sizeof(gnn_heavy) + 63) / 64 * 64;
    return heavy;
}

/* Number of chunks of heavy row h. */
static inline int64_t heavy_row_chunks(const gnn_csr *a, const gnn_heavy *h) {
    return (a->rowptr[h->row + 1] - a->rowptr[h->row] + GNN_WORK - 1) / GNN_WORK;
}

static inline void fill_batch(const gnn_csr *a, int64_t first, int64_t n,
                              entry_batch *b) {
    const int32_t *eid32 = a->eid_dtype == GNN_I32 ? a->eid : NULL;
    const int64_t *eid64 = a->eid_dtype == GNN_I64 ? a->eid : NULL;
    const int64_t left = a->n_edges - first;
    const int64_t known = n + SOON < left ? n + SOON : left;
    b->first = first, b->n = n, b->last_row = a->n_rows - 1;
    for (int64_t e = 0; e < known; e++) {
        b->col[e] = a->col[first + e];
    }
    for (int64_t e = 0; e < known; e++) {
        b->edge[e] = eid32 != NULL   ? eid32[first + e]
                     : eid64 != NULL ? eid64[first + e]
                                     : first + e;
    }
    for (int64_t e = known; e < n + SOON && known > 0; e++) {
        b->col[e] = b->col[known - 1];
        b->edge[e] = b->edge[known - 1];
    }
}

static inline void ask_for(const void *p, int64_t bytes) {
    for (int64_t k = 0; k < bytes; k += 64) {
        __builtin_prefetch((const char *)p + k);
    }
}

/* A row a little after row r of the batch, to ask for what is read by row. */
static inline int64_t row_soon(const entry_batch *b, int64_t r) {
    const int64_t row = b->row + r + 4;
    return row < b->last_row ? row : b->last_row;
}

/* Asks for what the next batch reads of p, `bytes` by edge in the caller's order: such
 * rows are short, so a look at them is over before SOON entries ahead have come. */
static inline void ask_for_next(const gnn_csr *a, const entry_batch *b, const void *p,
                                int64_t bytes) {
    const int32_t *eid32 = a->eid_dtype == GNN_I32 ? a->eid : NULL;
    const int64_t *eid64 = a->eid_dtype == GNN_I64 ? a->eid : NULL;
    const int64_t first = b->first + b->n, left = a->n_edges - first;
    for (int64_t k = first; p != NULL && k < first + (left < BATCH ? left : BATCH);
         k++) {
        const int64_t e = eid32 != NULL ? eid32[k] : eid64 != NULL ? eid64[k] : k;
        __builtin_prefetch((const char *)p + e * bytes);
    }
}

typedef void (*entry_body)(const void *job, const entry_batch *b);

/* Calls body for every batch of item k, in order. A list without rows: nobody asks for
 * the numbers of chunks. */
static inline void walk_item(const gnn_csr *a, const heavy_rows *heavy, int64_t k,
                             entry_body body, const void *job) {
    entry_batch b;
    const int64_t *rowptr = a->rowptr;
    gnn_place at = gnn_item_start(a, k);
    const gnn_place end = gnn_item_start(a, k + 1);
    while (at.row < end.row || at.entry < end.entry) {
        const int64_t degree = rowptr[at.row + 1] - rowptr[at.row];
        b.row = at.row;
        b.start[0] = 0;
        if (degree <= GNN_WORK) {
            int64_t r = 0;
            do {
                r++;
                b.start[r] = rowptr[at.row + r] - at.entry;
            } while (r < BATCH_ROWS && at.row + r < end.row &&
                     rowptr[at.row + r + 1] - at.entry <= BATCH);
            b.n_rows = r;
            b.chunk = -1;
            fill_batch(a, at.entry, b.start[r], &b);
            at = (gnn_place){at.row + r, at.entry + b.start[r]};
        } else {
            const int64_t into = at.entry - rowptr[at.row];
            const int64_t n = into + GNN_WORK < degree ? GNN_WORK : degree - into;
            b.n_rows = 1;
            b.start[1] = n;
            b.chunk = into / GNN_WORK;
            if (heavy->n_rows > 0) {
                const int64_t h = gnn_heavy_at(heavy->rows, heavy->n_rows, at.row);
                b.chunk += heavy->rows[h].first_chunk;
            }
            fill_batch(a, at.entry, n, &b);
            at = (gnn_place){into + n < degree ? at.row : at.row + 1, at.entry + n};
        }
        body(job, &b);
    }
}

/* Makes chunk c of all heavy rows a batch and returns the row's place in the list. */
static inline int64_t take_chunk(const gnn_csr *a, const heavy_rows *heavy, int64_t c,
                                 entry_batch *b) {
    int64_t first = 0, beyond = heavy->n_rows; // the last row with first_chunk <= c
    while (beyond - first > 1) {
        const int64_t middle = first + (beyond - first) / 2;
        if (heavy->rows[middle].first_chunk <= c) {
            first = middle;
        } else {
            beyond = middle;
        }
    }
    const gnn_heavy *h = &heavy->rows[first];
    const int64_t begin = a->rowptr[h->row] + (c - h->first_chunk) * GNN_WORK;
    const int64_t left = a->rowptr[h->row + 1] - begin;
    b->row = h->row, b->n_rows = 1, b->chunk = c;
    b->start[0] = 0, b->start[1] = left < GNN_WORK ? left : GNN_WORK;
    fill_batch(a, begin, b->start[1], b);
    return first;
}

#endif

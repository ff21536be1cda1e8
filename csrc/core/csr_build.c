/* csr_build.c: edge list -> CSR, ordered by (row, col), ties by input position.
 *
 * One pass validates, counts the rows and finds out whether the input is in order
 * already. If it is not, a least-significant-digit radix sort of (row, col) follows. Up
 * to 64 bits, row, col and edge number share one word: 8 bytes move per edge and pass.
 * Passes whose digit is the same everywhere are skipped; the last one writes the result.
 */
#include "core/csr_sizes.h"
#include "mutants.h"

#include <inttypes.h>
#include <string.h>

enum { DIGIT_BITS = 11, MAX_PASSES = 6 }; // 2 * 31 key bits fit in 6 digits of 11

#define INLINE static inline __attribute__((always_inline))

typedef struct edge_list {
    const void *row, *col;
    int64_t row_stride, col_stride, n_edges, n_rows, n_cols;
    gnn_dtype dtype;
} edge_list;

/* Where the fields of a sort key lie: [row | col | edge] in one word, or [row | col]
 * with the edge number beside it. */
typedef struct key_layout {
    int col_bits, edge_bits, key_bits;
    bool narrow;
} key_layout;

typedef struct wide_key {
    uint64_t key, edge;
} wide_key;

static int bits_for(int64_t n) { // bits that hold 0 .. n - 1
    return n <= 1 ? 0 : 64 - __builtin_clzll((uint64_t)(n - 1));
}

static key_layout layout_of(int64_t n_edges, int64_t n_rows, int64_t n_cols) {
    key_layout l = {.col_bits = bits_for(n_cols), .edge_bits = bits_for(n_edges)};
    l.key_bits = bits_for(n_rows) + l.col_bits;
    l.narrow = l.key_bits + l.edge_bits <= 64;
    return l;
}

static int64_t round_up_64(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static int64_t histogram_bytes(void) {
    return round_up_64((int64_t)sizeof(int64_t) * MAX_PASSES << DIGIT_BITS);
}

int64_t gnn_csr_from_coo_scratch(int64_t n_edges, int64_t n_rows, int64_t n_cols) {
    const bool narrow = layout_of(n_edges, n_rows, n_cols).narrow;
    const int64_t key = narrow ? (int64_t)sizeof(uint64_t) : (int64_t)sizeof(wide_key);
    return histogram_bytes() + 2 * round_up_64(n_edges * key);
}

INLINE int64_t index_at(const void *values, int64_t i, bool is_int64) {
    return is_int64 ? ((const int64_t *)values)[i] : ((const int32_t *)values)[i];
}

INLINE void put_edge(void *eid, int64_t i, int64_t edge, bool is_int64) {
    if (is_int64) {
        ((int64_t *)eid)[i] = edge;
    } else {
        ((int32_t *)eid)[i] = (int32_t)edge;
    }
}

/* ------------------------------------------------------- pass 0: check, count, order */

static gnn_status fail_edge(const char *end, int64_t e, int64_t limit, int64_t got) {
    return gnn_fail(GNN_EGRAPH,
                    "graph: %s of edge %" PRId64 " must be in [0, %" PRId64
                    "), got %" PRId64,
                    end, e, limit, got);
}

INLINE gnn_status scan(const edge_list *l, int64_t *rowptr, bool *sorted,
                       bool is_int64) {
    int64_t last_row = 0, last_col = 0;
    bool in_order = true;
    for (int64_t e = 0; e < l->n_edges; e++) {
        const int64_t row = index_at(l->row, e * l->row_stride, is_int64);
        const int64_t col = index_at(l->col, e * l->col_stride, is_int64);
        if ((uint64_t)col >= (uint64_t)l->n_cols) {
            return fail_edge("source", e, l->n_cols, col);
        }
        if ((uint64_t)row >= (uint64_t)l->n_rows) {
            return fail_edge("destination", e, l->n_rows, row);
        }
        in_order &= (row > last_row) | ((row == last_row) & (col >= last_col));
        last_row = row, last_col = col;
        rowptr[row + 1]++;
    }
    *sorted = in_order;
    return GNN_OK;
}

INLINE void copy_sorted(const edge_list *l, int32_t *out_col, void *eid, bool eid_int64,
                        bool is_int64) {
    for (int64_t e = 0; e < l->n_edges; e++) {
        out_col[e] = (int32_t)index_at(l->col, e * l->col_stride, is_int64);
        put_edge(eid, e, e, eid_int64);
    }
}

/* ------------------------------------------------------------------------ radix sort */

typedef struct digits {
    int n_passes, width, shift; // pass p looks at bits [shift + p * width, + width)
    int64_t (*count)[1 << DIGIT_BITS];
} digits;

INLINE size_t digit_of(uint64_t word, const digits *d, int pass) {
    return (size_t)(word >> (d->shift + pass * d->width)) &
           (((size_t)1 << d->width) - 1);
}

INLINE void pack(const edge_list *l, key_layout layout, const digits *d, void *keys,
                 bool is_int64, bool narrow) {
    for (int64_t e = 0; e < l->n_edges; e++) {
        const uint64_t row = (uint64_t)index_at(l->row, e * l->row_stride, is_int64);
        const uint64_t col = (uint64_t)index_at(l->col, e * l->col_stride, is_int64);
        uint64_t word = row << layout.col_bits | col;
        if (narrow) {
            word = word << layout.edge_bits | (uint64_t)e;
            ((uint64_t *)keys)[e] = word;
        } else {
            ((wide_key *)keys)[e] = (wide_key){word, (uint64_t)e};
        }
        for (int p = 0; p < d->n_passes; p++) {
            d->count[p][digit_of(word, d, p)]++;
        }
    }
}

/* Counts -> first positions. False if one digit value holds every edge. */
static bool positions(int64_t *count, int width, int64_t n_edges) {
    int64_t sum = 0;
    for (size_t v = 0; v < (size_t)1 << width; v++) {
        const int64_t n = count[v];
        if (n == n_edges) {
            return false;
        }
        count[v] = sum;
        sum += n;
    }
    return true;
}

INLINE void move_keys(const void *from, void *to, int64_t n, const digits *d, int pass,
                      bool narrow) {
    int64_t *position = d->count[pass];
    for (int64_t i = 0; i < n; i++) {
        if (narrow) {
            const uint64_t word = ((const uint64_t *)from)[i];
            ((uint64_t *)to)[position[digit_of(word, d, pass)]++] = word;
        } else {
            const wide_key k = ((const wide_key *)from)[i];
            ((wide_key *)to)[position[digit_of(k.key, d, pass)]++] = k;
        }
    }
}

INLINE void move_out(const void *from, int64_t n, key_layout layout, const digits *d,
                     int pass, int32_t *out_col, void *eid, bool eid_int64,
                     bool narrow) {
    int64_t *position = d->count[pass];
    const uint64_t col_mask = ((uint64_t)1 << layout.col_bits) - 1;
    const uint64_t edge_mask = narrow ? ((uint64_t)1 << layout.edge_bits) - 1 : 0;
    for (int64_t i = 0; i < n; i++) {
        const uint64_t word =
            narrow ? ((const uint64_t *)from)[i] : ((const wide_key *)from)[i].key;
        const uint64_t edge =
            narrow ? word & edge_mask : ((const wide_key *)from)[i].edge;
        const int64_t at = position[digit_of(word, d, pass)]++;
        out_col[at] = (int32_t)(word >> (narrow ? layout.edge_bits : 0) & col_mask);
        put_edge(eid, at, (int64_t)edge, eid_int64);
    }
}

INLINE void sort_edges(const edge_list *l, key_layout layout, char *scratch,
                       int32_t *out_col, void *eid, bool eid_int64, bool narrow) {
    digits d = {.shift = narrow ? layout.edge_bits : 0, .count = (void *)scratch};
    d.n_passes = (layout.key_bits + DIGIT_BITS - 1) / DIGIT_BITS;
    d.width = (layout.key_bits + d.n_passes - 1) / d.n_passes;
    memset(scratch, 0, (size_t)histogram_bytes());

    const int64_t key = narrow ? (int64_t)sizeof(uint64_t) : (int64_t)sizeof(wide_key);
    char *from = scratch + histogram_bytes();
    char *to = from + round_up_64(l->n_edges * key);
    if (l->dtype == GNN_I64) {
        pack(l, layout, &d, from, true, narrow);
    } else {
        pack(l, layout, &d, from, false, narrow);
    }
    // unsorted input has two different keys, so at least one pass is needed
    int needed[MAX_PASSES], n_needed = 0;
    for (int p = 0; p < d.n_passes; p++) {
        if (positions(d.count[p], d.width, l->n_edges)) {
            needed[n_needed++] = p;
        }
    }
    for (int i = 0; i < n_needed - 1; i++) {
        move_keys(from, to, l->n_edges, &d, needed[i], narrow);
        char *swap = from;
        from = to, to = swap;
    }
    move_out(from, l->n_edges, layout, &d, needed[n_needed - 1], out_col, eid,
             eid_int64, narrow);
}

gnn_status gnn_csr_from_coo(const void *row, int64_t row_stride, const void *col,
                            int64_t col_stride, gnn_dtype index_dtype, int64_t n_edges,
                            int64_t n_rows, int64_t n_cols, void *scratch,
                            int64_t *rowptr, int32_t *out_col, void *eid,
                            gnn_dtype eid_dtype, bool *sorted) {
    GNN_REQUIRE(index_dtype == GNN_I32 || index_dtype == GNN_I64, GNN_ETYPE,
                "graph: edge_index must be int32 or int64, got %s",
                gnn_dtype_text(index_dtype));
    GNN_TRY(gnn_csr_check_sizes(n_rows, n_cols, n_edges));
    GNN_REQUIRE(eid_dtype == GNN_I64 || (eid_dtype == GNN_I32 && n_edges <= INT32_MAX),
                GNN_EINVAL, "graph: eid must be int64 for %" PRId64 " edges, got %s",
                n_edges, gnn_dtype_text(eid_dtype));
    const edge_list l = {row,     col,    row_stride, col_stride,
                         n_edges, n_rows, n_cols,     index_dtype};
    const bool is_int64 = index_dtype == GNN_I64, eid_int64 = eid_dtype == GNN_I64;

    GNN_MUTANT(coo_no_zeroing,
               memset(rowptr, 0, (size_t)(n_rows + 1) * sizeof *rowptr), );
    GNN_TRY(is_int64 ? scan(&l, rowptr, sorted, true)
                     : scan(&l, rowptr, sorted, false));
    for (int64_t i = 0; i < n_rows; i++) {
        rowptr[i + 1] += rowptr[i];
    }
    if (*sorted) {
        if (is_int64) {
            copy_sorted(&l, out_col, eid, eid_int64, true);
        } else {
            copy_sorted(&l, out_col, eid, eid_int64, false);
        }
        return GNN_OK;
    }
    const key_layout layout = layout_of(n_edges, n_rows, n_cols);
    if (layout.narrow) {
        sort_edges(&l, layout, scratch, out_col, eid, eid_int64, true);
    } else {
        sort_edges(&l, layout, scratch, out_col, eid, eid_int64, false);
    }
    return GNN_OK;
}

/* test_core_fuzz.c: the two doors of a graph on random bytes. gnn_csr_check and
 * gnn_csr_from_coo accept exactly what a slow reading of the rules accepts, and what
 * from_coo makes of it is the same edges, in order, as the check accepts them.
 *
 * Run as a test it makes its own bytes, most of them nearly valid; `make nightly` lets
 * libFuzzer choose them (-DGNN_LIBFUZZER).
 * law: 10 */
#include "kernel_checks.h"

enum { MOST = 24 }; // rows, columns, edges

/* Bytes to be eaten one at a time, zeros when there are none left. */
typedef struct food {
    const uint8_t *at, *end;
} food;

static int64_t eat(food *f, int64_t n) { // in [0, n)
    return f->at < f->end ? *f->at++ % n : 0;
}

/* In [0, n) mostly; else a little or far outside, in either direction. */
static int64_t eat_index(food *f, int64_t n) {
    static const int64_t far[] = {-1,        -2,        INT32_MIN, INT32_MAX,
                                  INT64_MIN, INT64_MAX, 1LL << 32, (1LL << 32) + 1};
    switch (eat(f, 64)) {
    case 0:
        return n;
    case 1:
        return n + eat(f, 4);
    case 2:
        return far[eat(f, LENGTH(far))];
    default:
        return eat(f, n > 0 ? n : 1);
    }
}

/* Values as an array of int32 or int64 of exactly that size, so that a read behind it
 * is seen. `values` takes what fitted. */
static void *narrow(int64_t *values, int64_t n, gnn_dtype dtype) {
    const int64_t size = gnn_dtype_size(dtype);
    char *array = malloc((size_t)(n * size + (n == 0)));
    for (int64_t i = 0; i < n; i++) {
        const int32_t low = (int32_t)values[i];
        memcpy(array + i * size, dtype == GNN_I32 ? (const void *)&low : &values[i],
               (size_t)size);
        values[i] = dtype == GNN_I32 ? low : values[i];
    }
    return array;
}

static bool all_in(const int64_t *values, int64_t n, int64_t limit) {
    for (int64_t i = 0; i < n; i++) {
        if (values[i] < 0 || values[i] >= limit) {
            return false;
        }
    }
    return true;
}

static void feed_check(food *f) {
    const gnn_dtype ptr_type = eat(f, 2) ? GNN_I32 : GNN_I64;
    const gnn_dtype col_type = eat(f, 2) ? GNN_I32 : GNN_I64;
    const int64_t n_rows = eat(f, MOST), n_cols = eat(f, MOST);
    int64_t rowptr[MOST + 2] = {0}, col[4 * MOST], n_edges = 0;
    for (int64_t i = 0; i < n_rows; i++) { // degrees up to 3
        n_edges += eat(f, 4);
        rowptr[i + 1] = n_edges;
    }
    for (int64_t e = 0; e < n_edges; e++) {
        col[e] = eat_index(f, n_cols);
    }
    int64_t n_rowptr = n_rows + 1, n_col = n_edges;
    switch (eat(f, 8)) { // most of the time one thing is wrong, or none
    case 0:
        n_rowptr += eat(f, 2) ? 1 : -1;
        break;
    case 1:
        n_col -= n_col > 0;
        break;
    case 2:
        rowptr[eat(f, n_rows + 1)] = eat_index(f, n_edges);
        break;
    default:
        break;
    }
    void *p = narrow(rowptr, n_rowptr, ptr_type), *c = narrow(col, n_col, col_type);
    bool valid = n_rowptr == n_rows + 1 && rowptr[0] == 0 && rowptr[n_rows] == n_col;
    for (int64_t i = 0; valid && i < n_rows; i++) {
        valid = rowptr[i] <= rowptr[i + 1];
    }
    valid = valid && all_in(col, n_col, n_cols);
    const gnn_status got =
        gnn_csr_check(p, ptr_type, n_rowptr, c, col_type, n_col, n_rows, n_cols);
    CHECK(got == (valid ? GNN_OK : GNN_EGRAPH), "check: %s", gnn_status_text(got));
    free(p), free(c);
}

static void feed_from_coo(food *f) {
    const gnn_dtype type = eat(f, 2) ? GNN_I32 : GNN_I64;
    const gnn_dtype eid_type = eat(f, 2) ? GNN_I32 : GNN_I64;
    const int64_t n = eat(f, MOST), n_rows = eat(f, MOST), n_cols = eat(f, MOST);
    int64_t row[MOST], col[MOST];
    for (int64_t e = 0; e < n; e++) {
        row[e] = eat_index(f, n_rows);
        col[e] = eat_index(f, n_cols);
    }
    void *r = narrow(row, n, type), *c = narrow(col, n, type);
    void *scratch = get(gnn_csr_from_coo_scratch(n, n_rows, n_cols), 1);
    int64_t *rowptr = malloc((size_t)(n_rows + 1) * 8);
    int32_t *out = malloc((size_t)n * 4 + (n == 0));
    void *eid = malloc((size_t)(n * gnn_dtype_size(eid_type)) + (n == 0));
    bool sorted;
    const bool valid = all_in(row, n, n_rows) && all_in(col, n, n_cols);
    const gnn_status got =
        gnn_csr_from_coo(r, 1, c, 1, type, n, n_rows, n_cols, scratch, rowptr, out, eid,
                         eid_type, &sorted);
    CHECK(got == (valid ? GNN_OK : GNN_EGRAPH), "coo: %s", gnn_status_text(got));
    if (valid) {
        CHECK_OK(gnn_csr_check(rowptr, GNN_I64, n_rows + 1, out, GNN_I32, n, n_rows,
                               n_cols));
        int64_t last = -1; // (row, col, edge) as one number, which must grow
        for (int64_t i = 0; i < n_rows; i++) {
            for (int64_t e = rowptr[i]; e < rowptr[i + 1]; e++) {
                const int64_t id =
                    eid_type == GNN_I64 ? ((int64_t *)eid)[e] : ((int32_t *)eid)[e];
                CHECK(id >= 0 && id < n && row[id] == i && col[id] == out[e], "edge");
                const int64_t now = (i * MOST + out[e]) * MOST + id;
                CHECK(now > last, "order of entry %lld", (long long)e);
                CHECK(!sorted || id == e, "not sorted");
                last = now;
            }
        }
    }
    free(r), free(c), free(scratch), free(rowptr), free(out), free(eid);
}

static void feed(const uint8_t *bytes, size_t n) {
    food f = {bytes, bytes + n};
    if (eat(&f, 2)) {
        feed_check(&f);
    } else {
        feed_from_coo(&f);
    }
}

#ifdef GNN_LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    feed(bytes, n);
    return 0;
}
#else
int main(void) {
    uint64_t state = 7;
    for (int trial = 0; trial < 30000; trial++) {
        uint8_t bytes[160];
        for (size_t b = 0; b < sizeof bytes; b++) {
            bytes[b] = (uint8_t)random_bits(&state);
        }
        feed(bytes, (size_t)random_below(&state, sizeof bytes));
    }
    return 0;
}
#endif

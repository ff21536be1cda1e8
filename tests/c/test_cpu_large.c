/* test_cpu_large.c: features of more than 2^31 elements, and a split of more than 2^31
 * entries, without the memory for them: address space is reserved without access and
 * only the rows in use are enabled, so an int product faults. */
#include "core/worksplit.h"
#include "kernel_checks.h"

#include <sys/mman.h>
#include <unistd.h>

enum { N = 8643286, F = 256 }; // N * F = 2.2e9
static const int64_t used[] = {0, 4000000, N / 2 + 1, N - 1};

/* [N, F] of elem bytes with access to the rows in use alone */
static char *reserve(int64_t elem) {
    const int64_t row = F * elem, page = sysconf(_SC_PAGESIZE);
    char *base = mmap(NULL, (size_t)(N * row), PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED, "cannot reserve %lld bytes", (long long)(N * row));
    for (int64_t k = 0; k < LENGTH(used); k++) {
        const int64_t begin = used[k] * row / page * page;
        const int64_t end = ((used[k] + 1) * row + page - 1) / page * page;
        CHECK(mprotect(base + begin, (size_t)(end - begin), PROT_READ | PROT_WRITE) ==
                  0,
              "cannot enable row %lld", (long long)used[k]);
    }
    return base;
}

/* [N, F] of bfloat16 whose address space is one small file over and over */
static uint16_t *fold(void) {
    const int64_t piece = 1 << 24, bytes = (int64_t)N * F * 2;
    const int file = memfd_create("folded", 0);
    CHECK(file >= 0 && ftruncate(file, piece) == 0, "memfd");
    char *base = mmap(NULL, (size_t)bytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED, "cannot reserve");
    for (int64_t at = 0; at < bytes; at += piece) {
        const int64_t size = bytes - at < piece ? bytes - at : piece;
        CHECK(mmap(base + at, (size_t)size, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED,
              "cannot map");
    }
    close(file);
    return (uint16_t *)(void *)base;
}

static void check_large_sources(void) {
    float *x = (float *)(void *)reserve(4);
    const int32_t col[] = {(int32_t)used[0], (int32_t)used[1], (int32_t)used[2],
                           (int32_t)used[3]};
    const int64_t rowptr[] = {0, 4, 4};
    for (int64_t k = 0; k < 4; k++) {
        for (int64_t f = 0; f < F; f++) {
            x[used[k] * F + f] = (float)(f + 1000 * k);
        }
    }
    float y[2 * F], z[4];
    const gnn_csr a = {.n_rows = 2, .n_cols = N, .n_edges = 4, rowptr, col};
    const gnn_spmm_args spmm = {a, GNN_F32, F, F, x, .y = y};
    CHECK_OK(gnn_spmm_cpu(&spmm));
    const float *u = x + used[1] * F; // row 0; row 1 has no entries
    const gnn_sddmm_args sddmm = {a, GNN_F32, F, F, F, u, x, .z = z};
    CHECK_OK(gnn_sddmm_cpu(&sddmm));
    for (int64_t f = 0; f < F; f++) {
        CHECK(y[f] == (float)(4 * f + 6000) && y[F + f] == 0, "feature %lld",
              (long long)f);
    }
    for (int64_t k = 0; k < 4; k++) {
        double dot = 0;
        for (int64_t f = 0; f < F; f++) {
            dot += (double)(f + 1000) * (double)(f + 1000 * k);
        }
        CHECK(z[k] > 0.999999 * dot && z[k] < 1.000001 * dot, "edge %lld",
              (long long)k);
    }
    munmap(x, (size_t)N * F * 4);
}

static void check_large_destinations(void) {
    uint16_t *y = fold();
    int64_t *rowptr = get(N + 1, 8);
    const int32_t col[] = {0, 1};
    rowptr[N - 1] = 0, rowptr[N] = 2;
    uint16_t x[2 * F];
    for (int64_t f = 0; f < F; f++) {
        x[f] = 0x3f80, x[F + f] = 0x4000; // 1 and 2
    }
    const gnn_csr a = {.n_rows = N, .n_cols = 2, .n_edges = 2, rowptr, col};
    const gnn_spmm_args spmm = {a, GNN_BF16, F, F, x, .y = y};
    CHECK_OK(gnn_spmm_cpu(&spmm)); // serial: the last row is written last
    for (int64_t f = 0; f < F; f++) {
        CHECK(y[(int64_t)(N - 1) * F + f] == 0x4040, "feature %lld", (long long)f); // 3
    }
    munmap(y, (size_t)N * F * 2);
    free(rowptr);
}

/* The split reads row pointers only, so it can be asked about 2^31 + 5 entries. */
static void check_large_split(void) {
    const int64_t rowptr[] = {0, 5, (1LL << 31) + 1, (1LL << 31) + 5};
    const gnn_csr a = {.n_rows = 3, .n_cols = 1, .n_edges = (1LL << 31) + 5, rowptr};
    gnn_heavy heavy;
    int64_t n_heavy;
    const int64_t chunks = gnn_heavy_rows(&a, &heavy, &n_heavy);
    CHECK(n_heavy == 1 && heavy.row == 1 && chunks == (1LL << 21), "chunks");
    const int64_t n_items = gnn_item_count(&a);
    CHECK(n_items == (1LL << 21) + 1, "items");
    gnn_place p = gnn_item_start(&a, n_items - 1);
    CHECK(p.row == 2 && p.entry == rowptr[2], "last item");
    p = gnn_item_start(&a, n_items);
    CHECK(p.row == 3 && p.entry == a.n_edges, "end");
    p = gnn_item_start(&a, 1LL << 20);
    CHECK(p.row == 1 && p.entry == 5 + (1LL << 30), "middle: %lld", (long long)p.entry);
    CHECK(gnn_spmm_scratch(&a, 1000, GNN_F64) > chunks * 8000, "scratch");
}

int main(void) {
    check_large_sources();
    check_large_destinations();
    check_large_split();
    return 0;
}

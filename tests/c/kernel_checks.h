/* kernel_checks.h: what the tests of core and cpu share: a check that says what failed,
 * seeded random numbers, graphs with given degrees, threads in a scrambled order. */
#ifndef KERNEL_CHECKS_H
#define KERNEL_CHECKS_H

#include "gnn.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition, ...)                                                          \
    do {                                                                               \
        if (!(condition)) {                                                            \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition);                     \
            printf(__VA_ARGS__);                                                       \
            printf("\n");                                                              \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

#define CHECK_OK(call) CHECK((call) == GNN_OK, "%s", gnn_message())
#define LENGTH(array) ((int64_t)(sizeof(array) / sizeof((array)[0])))

static inline uint64_t random_bits(uint64_t *state) { // splitmix64
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static inline int64_t random_below(uint64_t *state, int64_t n) {
    return (int64_t)(random_bits(state) % (uint64_t)n);
}

static inline int64_t random_integer(uint64_t *state, int64_t low, int64_t high) {
    return low + random_below(state, high - low + 1);
}

static inline double random_unit(uint64_t *state) { // in (-1, 1)
    return (double)(int64_t)random_bits(state) * 0x1p-63;
}

/* Zeroed, 64-byte aligned; free() it. Not inlined: gcc 12 for Arm warns of a dangling
 * pointer to `p`, which nobody keeps. */
static __attribute__((noinline, unused)) void *get(int64_t n, int64_t size) {
    const size_t bytes = (size_t)(n * size);
    void *p = NULL; // no byte more than asked for: the sanitizer sees the first one
    CHECK(posix_memalign(&p, 64, bytes) == 0, "%zu bytes", bytes);
    return memset(p, 0, bytes);
}

/* ---------------------------------------------------------------------------- graphs */

/* A graph with its edges in the caller's order and as CSR. */
typedef struct graph {
    int64_t n_rows, n_cols, n_edges;
    int64_t *row, *col; // [n_edges], the caller's order
    gnn_csr a;
} graph;

/* Row i gets degrees[i] random columns; edges are shuffled, eid is int64 if asked. */
static inline graph make_graph(const int64_t *degrees, int64_t n_rows, int64_t n_cols,
                               bool long_eid, uint64_t seed) {
    graph g = {.n_rows = n_rows, .n_cols = n_cols};
    for (int64_t i = 0; i < n_rows; i++) {
        g.n_edges += degrees[i];
    }
    g.row = get(g.n_edges, 8), g.col = get(g.n_edges, 8);
    int64_t e = 0;
    for (int64_t i = 0; i < n_rows; i++) {
        for (int64_t k = 0; k < degrees[i]; k++, e++) {
            g.row[e] = i, g.col[e] = random_below(&seed, n_cols);
        }
    }
    for (e = g.n_edges - 1; e > 0; e--) {
        const int64_t other = random_below(&seed, e + 1), row = g.row[e];
        g.row[e] = g.row[other], g.row[other] = row;
    }
    const gnn_dtype eid_dtype = long_eid ? GNN_I64 : GNN_I32;
    int64_t *rowptr = get(n_rows + 1, 8);
    int32_t *col = get(g.n_edges, 4);
    void *eid = get(g.n_edges, 8);
    void *scratch = get(gnn_csr_from_coo_scratch(g.n_edges, n_rows, n_cols), 1);
    bool sorted;
    CHECK_OK(gnn_csr_from_coo(g.row, 1, g.col, 1, GNN_I64, g.n_edges, n_rows, n_cols,
                              scratch, rowptr, col, eid, eid_dtype, &sorted));
    free(scratch);
    g.a = (gnn_csr){
        .n_rows = n_rows,
        .n_cols = n_cols,
        .n_edges = g.n_edges,
        .rowptr = rowptr,
        .col = col,
        .eid = eid,
        .eid_dtype = eid_dtype,
    };
    return g;
}

static inline void drop_graph(graph *g) {
    free(g->row), free(g->col);
    free((void *)g->a.rowptr), free((void *)g->a.col), free((void *)g->a.eid);
}

/* Degrees around every boundary of the split, and isolated rows between them. */
static const int64_t edge_degrees[] = {0,    1,    2,    0,    31,   32, 33,   0,
                                       0,    1023, 4,    1024, 1025, 7,  2047, 2048,
                                       2049, 1,    3073, 0,    16,   5,  0,    0};

/* --------------------------------------------------------------------------- threads */

/* Set these, then gnn_set_parallel_for(scrambled_for): ranges of `grain` items are taken
 * by n_threads threads in an order shuffled by order_seed. */
static int n_threads = 1;
static uint64_t order_seed = 0;

typedef struct scrambled {
    int64_t n, grain, n_ranges, *order;
    _Atomic int64_t next;
    gnn_range_body body;
    void *context;
} scrambled;

static inline void *scrambled_worker(void *argument) {
    scrambled *s = argument;
    for (int64_t k; (k = atomic_fetch_add(&s->next, 1)) < s->n_ranges;) {
        const int64_t begin = s->order[k] * s->grain;
        const int64_t end = begin + s->grain < s->n ? begin + s->grain : s->n;
        s->body(begin, end, s->context);
    }
    return NULL;
}

static inline void scrambled_for(int64_t n, int64_t grain, gnn_range_body body,
                                 void *context) {
    scrambled s = {.n = n, .grain = grain, .body = body, .context = context};
    s.n_ranges = (n + grain - 1) / grain;
    s.order = get(s.n_ranges, 8);
    uint64_t seed = order_seed;
    for (int64_t k = 0; k < s.n_ranges; k++) {
        const int64_t other = random_below(&seed, k + 1);
        s.order[k] = s.order[other], s.order[other] = k;
    }
    pthread_t threads[16];
    for (int t = 0; t < n_threads; t++) {
        CHECK(pthread_create(&threads[t], NULL, scrambled_worker, &s) == 0, "thread");
    }
    for (int t = 0; t < n_threads; t++) {
        pthread_join(threads[t], NULL);
    }
    free(s.order);
}

#endif

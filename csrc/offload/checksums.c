/* checksums.c: Fletcher's sum on eight lanes of 64-bit words: a adds the words, b
 * adds the a's, so that position counts as well as value; compilers turn the lanes
 * into vector adds. */
#include "offload/checksums.h"

#include <stdlib.h>
#include <string.h>

enum { UNIT = 4096, UNITS_PER_REGION = 1 << 16, LANES = 8, BLOCK = LANES * 8 };
static const int64_t REGION_BYTES = (int64_t)UNIT * UNITS_PER_REGION;

gnn_status gnn_checksums_init(gnn_checksums *checksums, int64_t limit) {
    checksums->n_regions = limit / REGION_BYTES + 1;
    checksums->regions =
        calloc((size_t)checksums->n_regions, sizeof *checksums->regions);
    GNN_REQUIRE(checksums->regions, GNN_ENOMEM, "link: no memory for checksums");
    return GNN_OK;
}

void gnn_checksums_clear(gnn_checksums *checksums) {
    for (int64_t r = 0; checksums->regions && r < checksums->n_regions; r++) {
        free(checksums->regions[r]);
    }
    free(checksums->regions);
    checksums->regions = NULL;
}

gnn_status gnn_checksums_grow(gnn_checksums *checksums, int64_t end) {
    int64_t wanted = (end + REGION_BYTES - 1) / REGION_BYTES;
    for (int64_t r = wanted - 1; r >= 0 && !checksums->regions[r]; r--) {
        checksums->regions[r] = calloc(UNITS_PER_REGION, sizeof(uint64_t));
        GNN_REQUIRE(checksums->regions[r], GNN_ENOMEM, "link: no memory for checksums");
    }
    return GNN_OK;
}

uint64_t *gnn_checksum_at(const gnn_checksums *checksums, int64_t offset) {
    return &checksums->regions[offset / REGION_BYTES][offset % REGION_BYTES / UNIT];
}

typedef uint64_t pair __attribute__((vector_size(16)));

typedef struct sums {
    pair a0, b0, a1, b1, a2, b2, a3, b3; // by name, so that they stay in registers
} sums;

static inline void add_block(sums *s, const char *bytes) {
    pair words[LANES / 2];
    memcpy(words, bytes, BLOCK);
    s->b0 += s->a0 += words[0];
    s->b1 += s->a1 += words[1];
    s->b2 += s->a2 += words[2];
    s->b3 += s->a3 += words[3];
}

uint64_t gnn_checksum(const char *bytes, int64_t count) {
    sums s = {.a0 = {0}};
    int64_t whole = count - count % BLOCK;
    for (int64_t at = 0; at < whole; at += BLOCK) {
        add_block(&s, bytes + at);
    }
    if (whole < count) {
        char last[BLOCK] = {0};
        memcpy(last, bytes + whole, (size_t)(count - whole));
        add_block(&s, last);
    }
    uint64_t parts[2 * LANES], sum = (uint64_t)count;
    memcpy(parts, &s, sizeof parts);
    for (int p = 0; p < 2 * LANES; p++) {
        sum = (sum ^ sum >> 32 ^ parts[p]) * 0x9e3779b97f4a7c15u;
    }
    sum ^= sum >> 29;
    return sum ? sum : 1;
}

/* checksums.h: what was written where, so that a read of anything else is found out: a
 * file cut and grown again, a flipped bit, a slot used twice.
 *
 * One 64-bit sum per chunk, kept in memory by the chunk's place in the tier: 8 bytes
 * for each 4096 of the tier are addressable, and the pages touched come to 0.2 % of it.
 */
#ifndef GNN_CHECKSUMS_H
#define GNN_CHECKSUMS_H

#include "gnn.h"

typedef struct gnn_checksums {
    uint64_t **regions; // [n_regions] tables of one region's sums, NULL until grown to
    int64_t n_regions;
} gnn_checksums;

gnn_status gnn_checksums_init(gnn_checksums *checksums, int64_t limit);
void gnn_checksums_clear(gnn_checksums *checksums);
/* Makes room for sums up to `end` bytes. Guarded by the link's mutex; a chunk in the
 * new room is read and written only later. */
gnn_status gnn_checksums_grow(gnn_checksums *checksums, int64_t end);
/* The place of the sum of the chunk at `offset`, a multiple of 4096. 0: never
 * written. */
uint64_t *gnn_checksum_at(const gnn_checksums *checksums, int64_t offset);

/* Sum of a chunk; never 0. Runs at the speed of memory. */
uint64_t gnn_checksum(const char *bytes, int64_t count);

#endif

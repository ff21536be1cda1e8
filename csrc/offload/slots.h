/* slots.h: which bytes of a far tier are in use. Best fit with coalescing over a tier
 * that only grows; knows offsets, touches no memory or file itself.
 *
 * Holes are one array sorted by offset, so freeing is a binary search and taking is a
 * scan: with 10,000 live slots a scan costs microseconds, a copy milliseconds. Not
 * thread-safe: the link's mutex guards it.
 */
#ifndef GNN_SLOTS_H
#define GNN_SLOTS_H

#include "gnn.h"

typedef struct gnn_hole {
    int64_t offset, bytes;
} gnn_hole;

typedef struct gnn_slots {
    int64_t align;      // offsets and sizes are multiples of this power of two
    int64_t limit;      // the tier never grows beyond this
    int64_t end;        // bytes of the tier as grown so far
    int64_t used, peak; // bytes in live slots, now and the most ever
    int64_t n_live;
    gnn_hole *holes; // [n_holes], sorted by offset, never adjacent
    int64_t n_holes, capacity;
} gnn_slots;

void gnn_slots_init(gnn_slots *slots, int64_t limit, int64_t align);
void gnn_slots_clear(gnn_slots *slots);

/* Bytes that a slot for `bytes` takes. */
int64_t gnn_slots_round(const gnn_slots *slots, int64_t bytes);

/* Takes the smallest hole that fits. *offset is -1 when none does: grow and call again.
 * Returns GNN_OK or GNN_ENOMEM (host memory for the hole table). */
gnn_status gnn_slots_take(gnn_slots *slots, int64_t bytes, int64_t *offset);

/* The size the tier must have for `bytes` more to fit at its end. May exceed the
 * limit. */
int64_t gnn_slots_end_for(const gnn_slots *slots, int64_t bytes);

/* Tells that the tier has grown to `end` bytes; call after a take that found no
 * hole. */
void gnn_slots_grow(gnn_slots *slots, int64_t end);

/* Gives a slot back. GNN_ESTATE, changing nothing, when the range is not wholly in use
 * (freed twice, or never taken). Allocates nothing. */
gnn_status gnn_slots_give(gnn_slots *slots, int64_t offset, int64_t bytes);

#endif

/* pinned_slab.h: the far side of link_cuda: page-locked host memory cut into slots.
 *
 * A few segments, each page-locked by itself, because one copy must not cross from one
 * registration to the next. It grows while a first pass finds out what is needed, then
 * gnn_slab_merge makes one segment of the size that was: afterwards no pass grows it.
 * Not thread-safe: the link's mutex guards it.
 */
#ifndef GNN_PINNED_SLAB_H
#define GNN_PINNED_SLAB_H

#include "offload/cuda_api.h"
#include "offload/link.h"
#include "offload/slots.h"

typedef struct gnn_segment {
    char *memory;
    bool mapped;  // by us and registered; else from host_alloc
    int64_t base; // offset of its first byte in the tier
    gnn_slots slots;
} gnn_segment;

typedef struct gnn_slab {
    const gnn_cuda_api *api;
    int device, nearest_node, own_node;
    int64_t page; // bytes of a host page
    int64_t limit;
    gnn_segment *segments; // [n], by base
    int32_t n, merges;
    int64_t bytes;      // of all segments
    int64_t used, peak; // bytes in live slots, now and the most ever
    bool unbound;       // pages should be on certain nodes, and the kernel refused
} gnn_slab;

void gnn_slab_init(gnn_slab *slab, const gnn_cuda_api *api, int device, int64_t limit);
/* GNN_EFULL: over the limit, or no more memory can be page-locked. */
gnn_status gnn_slab_take(gnn_slab *slab, int64_t bytes, gnn_slot *slot);
gnn_status gnn_slab_give(gnn_slab *slab, gnn_slot slot); // GNN_ESTATE: not in use
char *gnn_slab_address(const gnn_slab *slab, gnn_slot slot);
/* Would a merge make one exact segment of several? Only while no slot is in use. */
bool gnn_slab_wants_merge(const gnn_slab *slab);
/* No copy may be under way. On failure the slab is empty and grows again. */
gnn_status gnn_slab_merge(gnn_slab *slab);
void gnn_slab_clear(gnn_slab *slab); // no copy may be under way

#endif

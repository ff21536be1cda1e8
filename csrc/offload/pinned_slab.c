/* pinned_slab.c: segments of page-locked memory and the slots in them. */
#include "offload/pinned_slab.h"

#include "offload/host_nodes.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    ALIGN = 512, // of a slot: reloads keep their address modulo it
    MERGES = 2,  // then the sizes change from pass to pass, and merging is in vain
};
static const int64_t SMALLEST = 16
                                << 20; // bytes of a segment, unless the limit is near

void gnn_slab_init(gnn_slab *slab, const gnn_cuda_api *api, int device, int64_t limit) {
    *slab = (gnn_slab){.api = api, .device = device};
    slab->page = sysconf(_SC_PAGESIZE);
    slab->limit = limit & ~(slab->page - 1);
    slab->nearest_node = slab->own_node = -1;
    api->device_attribute(device, GNN_CUDA_HOST_NUMA_ID, &slab->nearest_node);
    api->device_attribute(device, GNN_CUDA_NUMA_ID, &slab->own_node);
}

/* ------------------------------------------------------------------- pinned segments */

/* Pages on the GPU's CPU node, then page-locked. GNN_ENOTSUP: cannot be registered. */
static gnn_status map_pinned(gnn_slab *slab, int64_t bytes, char **memory) {
    void *pages = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    GNN_REQUIRE(pages != MAP_FAILED, GNN_EFULL, "link: no address space for %lld bytes",
                (long long)bytes);
    gnn_node_set nodes;
    gnn_nodes_for_slab("", slab->nearest_node, slab->own_node, bytes, &nodes);
    if (nodes.n > 0 && !gnn_nodes_bind(&nodes, pages, bytes)) {
        slab->unbound = true;
    }
    madvise(pages, (size_t)bytes, MADV_DONTFORK); // the GPU writes them behind a child
    gnn_status status = slab->api->host_register(slab->device, pages, bytes);
    if (status != GNN_OK) {
        munmap(pages, (size_t)bytes);
        return status == GNN_ENOMEM ? status : GNN_ENOTSUP;
    }
    *memory = pages;
    return GNN_OK;
}

static gnn_status pin(gnn_slab *slab, int64_t bytes, gnn_segment *segment) {
    gnn_status status = map_pinned(slab, bytes, &segment->memory);
    segment->mapped = status == GNN_OK;
    if (status == GNN_ENOTSUP) {
        void *memory = NULL;
        status = slab->api->host_alloc(slab->device, bytes, &memory);
        segment->memory = memory;
    }
    return status == GNN_ENOMEM
               ? gnn_fail(GNN_EFULL,
                          "link: tier is full: %lld bytes more cannot be page-locked "
                          "(%lld are; see ulimit -l and the memory limits)",
                          (long long)bytes, (long long)slab->bytes)
               : status;
}

static void unpin(gnn_slab *slab, gnn_segment *segment) {
    if (segment->mapped) {
        slab->api->host_unregister(slab->device, segment->memory);
        munmap(segment->memory, (size_t)segment->slots.end);
    } else {
        slab->api->host_free(slab->device, segment->memory);
    }
    gnn_slots_clear(&segment->slots);
}

static gnn_status add_segment(gnn_slab *slab, int64_t bytes) {
    size_t room = (size_t)slab->n + 1;
    gnn_segment *segments = realloc(slab->segments, room * sizeof *segments);
    GNN_REQUIRE(segments, GNN_ENOMEM, "link: no memory for a segment");
    slab->segments = segments;
    gnn_segment *segment = &segments[slab->n];
    *segment = (gnn_segment){0};
    gnn_slots_init(&segment->slots, bytes, ALIGN);
    int64_t none; // a first take, which makes room for the hole
    GNN_TRY(gnn_slots_take(&segment->slots, 1, &none));
    gnn_status status = pin(slab, bytes, segment);
    if (status != GNN_OK) {
        gnn_slots_clear(&segment->slots);
        return status;
    }
    gnn_slots_grow(&segment->slots, bytes);
    segment->base =
        slab->n ? segments[slab->n - 1].base + segments[slab->n - 1].slots.end : 0;
    slab->n++;
    slab->bytes += bytes;
    return GNN_OK;
}

static int64_t whole_pages(const gnn_slab *slab, int64_t bytes) {
    return (bytes + slab->page - 1) & ~(slab->page - 1);
}

/* Half of what there is, so that a first pass grows a dozen times; just what is needed
 * where that does not fit. */
static gnn_status grow_for(gnn_slab *slab, int64_t bytes) {
    int64_t left = slab->limit - slab->bytes, needed = whole_pages(slab, bytes);
    GNN_REQUIRE(needed <= left, GNN_EFULL,
                "link: tier is full: %lld of %lld bytes page-locked, %lld more do not "
                "fit",
                (long long)slab->bytes, (long long)slab->limit, (long long)bytes);
    int64_t ample = slab->bytes / 2 > SMALLEST ? slab->bytes / 2 : SMALLEST;
    ample = whole_pages(slab, ample > needed ? ample : needed);
    ample = ample < left ? ample : left;
    if (ample > needed && add_segment(slab, ample) == GNN_OK) {
        return GNN_OK;
    }
    return add_segment(slab, needed);
}

/* ---------------------------------------------------------------------------- slots */

static gnn_status take_from(gnn_slab *slab, int32_t first, int64_t bytes,
                            gnn_slot *slot, bool *found) {
    *found = false;
    for (int32_t s = first; s < slab->n && !*found; s++) {
        int64_t offset;
        GNN_TRY(gnn_slots_take(&slab->segments[s].slots, bytes, &offset));
        *found = offset >= 0;
        *slot = (gnn_slot){slab->segments[s].base + offset, bytes};
    }
    return GNN_OK;
}

gnn_status gnn_slab_take(gnn_slab *slab, int64_t bytes, gnn_slot *slot) {
    bool found;
    GNN_TRY(take_from(slab, 0, bytes, slot, &found));
    if (!found) {
        GNN_TRY(grow_for(slab, bytes));
        GNN_TRY(take_from(slab, slab->n - 1, bytes, slot, &found));
    }
    slab->used += (bytes + ALIGN - 1) & ~(int64_t)(ALIGN - 1);
    slab->peak = slab->used > slab->peak ? slab->used : slab->peak;
    return GNN_OK;
}

static gnn_segment *segment_of(const gnn_slab *slab, int64_t offset) {
    for (int32_t s = slab->n - 1; s >= 0; s--) {
        if (offset >= slab->segments[s].base) {
            return &slab->segments[s];
        }
    }
    return NULL;
}

gnn_status gnn_slab_give(gnn_slab *slab, gnn_slot slot) {
    gnn_segment *segment = segment_of(slab, slot.offset);
    GNN_REQUIRE(segment, GNN_ESTATE, "link: slot at %lld of %lld bytes is not in use",
                (long long)slot.offset, (long long)slot.bytes);
    GNN_TRY(gnn_slots_give(&segment->slots, slot.offset - segment->base, slot.bytes));
    slab->used -= (slot.bytes + ALIGN - 1) & ~(int64_t)(ALIGN - 1);
    return GNN_OK;
}

char *gnn_slab_address(const gnn_slab *slab, gnn_slot slot) {
    const gnn_segment *segment = segment_of(slab, slot.offset);
    return segment->memory + (slot.offset - segment->base);
}

/* ---------------------------------------------------------------------------- whole */

bool gnn_slab_wants_merge(const gnn_slab *slab) {
    return slab->used == 0 && slab->n > 1 && slab->merges < MERGES;
}

void gnn_slab_clear(gnn_slab *slab) {
    for (int32_t s = 0; s < slab->n; s++) {
        unpin(slab, &slab->segments[s]);
    }
    free(slab->segments);
    slab->segments = NULL;
    slab->n = 0;
    slab->bytes = 0;
}

gnn_status gnn_slab_merge(gnn_slab *slab) {
    int64_t bytes = whole_pages(slab, slab->peak + slab->peak / 32);
    bytes = bytes < slab->limit ? bytes : slab->limit;
    slab->merges++;
    gnn_slab_clear(slab);
    return add_segment(slab, bytes);
}

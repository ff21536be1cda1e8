/* link_cuda.h: the two parts of link_cuda: the link (link_cuda.c) and its copies
 * (link_cuda_copies.c). */
#ifndef GNN_LINK_CUDA_H
#define GNN_LINK_CUDA_H

#include "offload/copy_lane.h"
#include "offload/cuda_stalls.h"
#include "offload/fork_count.h"
#include "offload/link.h"
#include "offload/pinned_slab.h"

#include <pthread.h>

typedef struct gnn_cuda_link {
    gnn_link link; // first: a gnn_link * is a gnn_cuda_link *
    unsigned forks;
    const gnn_cuda_api *api;
    int device;
    pthread_mutex_t mutex;         // guards everything below
    gnn_cuda_events marks, clocks; // without and with timing
    gnn_copy_lane lanes[2];        // [0] in, [1] out
    gnn_slab slab;
    uint64_t in_seen; // copies in below this number end before later copies out begin
    gnn_cuda_stalls stalls;
    char fault[400]; // "" while the device works
} gnn_cuda_link;

static inline gnn_cuda_link *gnn_as_cuda(gnn_link *link) {
    return (gnn_cuda_link *)link;
}

static inline bool gnn_is_forked(const gnn_cuda_link *link) {
    return link->forks != gnn_fork_count();
}

#define REQUIRE_OWNER(link)                                                            \
    GNN_REQUIRE(!gnn_is_forked(link), GNN_ESTATE,                                      \
                "link: opened in the parent process, used in its child after a fork")

/* ------------------------------------------------------------------------ the link's */

/* GNN_EDEVICE with the text of the first fault. */
gnn_status gnn_cuda_link_working(const gnn_cuda_link *link);
/* What cannot be known any more is a fault; the first one is kept. */
gnn_status gnn_cuda_link_fault(gnn_cuda_link *link, gnn_status status);
/* Before memory of a copy goes, about which a call failed: waits until no copy is under
 * way. The status and its message stay. */
gnn_status gnn_cuda_link_rest(gnn_cuda_link *link, gnn_status status);
gnn_cuda_event gnn_cuda_link_event(gnn_cuda_link *link, gnn_mark mark);

/* ------------------------------------------------------------------------ its copies' */

typedef struct gnn_cuda_request {
    bool out, probe;
    gnn_slot slot;
    void *near;
    gnn_mark after;
    gnn_ticket after_put;
} gnn_cuda_request;

gnn_status gnn_cuda_link_start(gnn_cuda_link *link, const gnn_cuda_request *copy,
                               gnn_ticket *ticket);
gnn_status gnn_cuda_link_put(gnn_link *self, gnn_slot slot, const void *near,
                             gnn_mark after, gnn_ticket *ticket);
gnn_status gnn_cuda_link_get(gnn_link *self, gnn_slot slot, void *near, gnn_mark after,
                             gnn_ticket after_put, gnn_ticket *ticket);
gnn_status gnn_cuda_link_poll(gnn_link *self, gnn_ticket ticket, bool *done);
gnn_status gnn_cuda_link_order(gnn_link *self, gnn_ticket ticket, gnn_stream stream);
gnn_status gnn_cuda_link_wait(gnn_link *self, gnn_ticket ticket);
gnn_status gnn_cuda_link_wait_for(gnn_link *self, gnn_ticket ticket, double seconds,
                                  bool *done);

#endif

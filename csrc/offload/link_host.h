/* link_host.h: what links share whose near side is host memory and whose compute stream
 * is the host thread: slots, copies, marks that are immediate, `order` that waits,
 * fork. A link adds how to grow its far tier and how to copy one chunk.
 */
#ifndef GNN_LINK_HOST_H
#define GNN_LINK_HOST_H

#include "offload/copy_queue.h"
#include "offload/slots.h"

#include <pthread.h>
#include <sys/types.h>

typedef struct gnn_host_link {
    gnn_link link;  // first: a gnn_link * is a gnn_host_link *
    pid_t owner;    // the process whose threads these are,
    unsigned forks; // and its place in the line of forks
    gnn_copy_queue *copies;
    pthread_mutex_t mutex; // guards slots
    gnn_slots slots;
    /* Makes the far tier `bytes` long. GNN_EFULL when it cannot. */
    gnn_status (*grow)(struct gnn_host_link *link, int64_t bytes);
    int64_t page_cache; // as in gnn_link_stats
} gnn_host_link;

/* Fills what is shared and starts the workers; `ops`, grow and page_cache are the
 * caller's. */
gnn_status gnn_host_link_open(gnn_host_link *link, int64_t limit, int64_t align,
                              gnn_chunk_fn copy, int threads, int64_t chunk_bytes);
/* Waits for copies, ends the workers, frees what is shared. */
void gnn_host_link_close(gnn_host_link *link);
/* True in a child of the process that opened the link. */
bool gnn_host_link_forked(const gnn_host_link *link);

gnn_status gnn_host_slot_alloc(gnn_link *link, int64_t bytes, gnn_slot *slot);
gnn_status gnn_host_slot_free(gnn_link *link, gnn_slot slot);
gnn_status gnn_host_mark(gnn_link *link, gnn_stream stream, gnn_mark *mark);
void gnn_host_mark_free(gnn_link *link, gnn_mark mark);
gnn_status gnn_host_put(gnn_link *link, gnn_slot slot, const void *near, gnn_mark after,
                        gnn_ticket *ticket);
gnn_status gnn_host_get(gnn_link *link, gnn_slot slot, void *near, gnn_mark after,
                        gnn_ticket after_put, gnn_ticket *ticket);
gnn_status gnn_host_poll(gnn_link *link, gnn_ticket ticket, bool *done);
gnn_status gnn_host_order(gnn_link *link, gnn_ticket ticket, gnn_stream stream);
gnn_status gnn_host_wait(gnn_link *link, gnn_ticket ticket);
gnn_status gnn_host_wait_for(gnn_link *link, gnn_ticket ticket, double seconds,
                             bool *done);
void gnn_host_ticket_free(gnn_link *link, gnn_ticket ticket);
void gnn_host_stats(gnn_link *link, gnn_link_stats *stats);
gnn_status gnn_host_measure(gnn_link *link, int64_t bytes, double *rate_out,
                            double *rate_in);

/* The shared entries of a host link's table; put, get and close are named beside. */
#define GNN_HOST_LINK_OPS                                                              \
    .slot_alloc = gnn_host_slot_alloc, .slot_free = gnn_host_slot_free,                \
    .mark = gnn_host_mark, .mark_free = gnn_host_mark_free, .poll = gnn_host_poll,     \
    .order = gnn_host_order, .wait = gnn_host_wait, .wait_for = gnn_host_wait_for,     \
    .ticket_free = gnn_host_ticket_free, .stats = gnn_host_stats,                      \
    .measure = gnn_host_measure

#endif

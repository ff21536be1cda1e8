/* cuda_events.h: a pool of CUDA events, named by small numbers.
 *
 * A mark, the begin and end of a copy and the two ends of a stall each hold an event
 * for a while. An event goes back as soon as nobody will ask about it; a wait that a
 * stream has made on it is not changed by the next record. Not thread-safe: the link's
 * mutex guards it.
 */
#ifndef GNN_CUDA_EVENTS_H
#define GNN_CUDA_EVENTS_H

#include "offload/cuda_api.h"

typedef struct gnn_cuda_events {
    const gnn_cuda_api *api;
    int device;
    bool timing;
    gnn_cuda_event *events; // [n], all ever made
    int32_t *idle;          // [n_idle] of [capacity], numbers of events not in use
    int32_t n, n_idle, capacity;
} gnn_cuda_events;

/* Records an event on `stream`; *number >= 0 names it until it is put back. */
gnn_status gnn_events_record(gnn_cuda_events *pool, gnn_cuda_stream stream,
                             int32_t *number);
void gnn_events_put(gnn_cuda_events *pool, int32_t number); // -1: nothing
gnn_cuda_event gnn_events_get(const gnn_cuda_events *pool, int32_t number);
/* Destroys all of them, those in use too. */
void gnn_events_clear(gnn_cuda_events *pool);

#endif

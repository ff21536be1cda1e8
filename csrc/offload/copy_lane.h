/* copy_lane.h: one direction of link_cuda: a stream and the copies queued on it.
 *
 * Copies of a lane end in the order of their issue, so a ticket is a number and "done"
 * is a comparison; the events of copies not yet known to have ended stand in a ring.
 * Not thread-safe: the link's mutex guards it.
 */
#ifndef GNN_COPY_LANE_H
#define GNN_COPY_LANE_H

#include "offload/cuda_events.h"

typedef struct gnn_flight {
    int32_t begin, end; // events around the copy
    int32_t waiters;    // threads inside event_wait: the event must stay
    int64_t bytes;      // -1: a probe, which no statistics count
} gnn_flight;

typedef struct gnn_copy_lane {
    gnn_cuda_events *clocks; // the link's, with timing
    gnn_cuda_stream stream;
    gnn_flight *ring;     // [capacity], a power of two; copy n is at n % capacity
    uint64_t first, next; // copies [first, next) are not known to have ended
    uint64_t capacity;
    int64_t copies, bytes; // ended, as in gnn_link_stats
    double busy;
} gnn_copy_lane;

gnn_status gnn_lane_open(gnn_copy_lane *lane, gnn_cuda_events *clocks);
/* Destroys the stream; its events are the pool's. */
void gnn_lane_close(gnn_copy_lane *lane);
/* Around the call that queues the copy: makes room and records its begin, records its
 * end and gives it its number. */
gnn_status gnn_lane_begin(gnn_copy_lane *lane, int32_t *begin);
gnn_status gnn_lane_end(gnn_copy_lane *lane, int32_t begin, int64_t bytes,
                        uint64_t *number);
/* Asks the device which copies have ended. */
gnn_status gnn_lane_reap(gnn_copy_lane *lane);
gnn_flight *gnn_lane_flight(gnn_copy_lane *lane, uint64_t number); // NULL: has ended

#endif

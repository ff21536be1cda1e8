/* cuda_stalls.h: how long compute streams wait for copies, without asking the host to
 * wait too: each wait stands between two timed events, read when both have passed.
 * Not thread-safe: the link's mutex guards it.
 */
#ifndef GNN_CUDA_STALLS_H
#define GNN_CUDA_STALLS_H

#include "offload/cuda_events.h"

typedef struct gnn_cuda_stall {
    int32_t before, behind; // events on the stream around the wait
    bool out;               // for a copy out
} gnn_cuda_stall;

typedef struct gnn_cuda_stalls {
    gnn_cuda_events *clocks; // with timing
    gnn_cuda_stall *stalls;  // [n] of [capacity], oldest first
    int32_t n, capacity;
    double seconds[2]; // of those that have passed: for copies in, for copies out
} gnn_cuda_stalls;

/* Makes `stream` wait for `end`, the end of a copy, and measures for how long. */
gnn_status gnn_stalls_wait(gnn_cuda_stalls *stalls, gnn_cuda_stream stream,
                           gnn_cuda_event end, bool out);
void gnn_stalls_reap(gnn_cuda_stalls *stalls);  // reads those that have passed
void gnn_stalls_clear(gnn_cuda_stalls *stalls); // the events are the pool's

#endif

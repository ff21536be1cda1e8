/* cuda_stalls.c: a queue of waits, read oldest first. */
#include "offload/cuda_stalls.h"

#include <stdlib.h>
#include <string.h>

void gnn_stalls_reap(gnn_cuda_stalls *stalls) {
    const gnn_cuda_api *api = stalls->clocks->api;
    int device = stalls->clocks->device;
    int32_t n = 0;
    for (; n < stalls->n; n++) {
        const gnn_cuda_stall *oldest = &stalls->stalls[n];
        gnn_cuda_event before = gnn_events_get(stalls->clocks, oldest->before);
        gnn_cuda_event behind = gnn_events_get(stalls->clocks, oldest->behind);
        bool done = false;
        double seconds = 0;
        if (api->event_done(device, behind, &done) != GNN_OK || !done) {
            break;
        }
        api->event_seconds(device, before, behind, &seconds);
        stalls->seconds[oldest->out] += seconds;
        gnn_events_put(stalls->clocks, oldest->before);
        gnn_events_put(stalls->clocks, oldest->behind);
    }
    if (n > 0) {
        stalls->n -= n;
        memmove(stalls->stalls, stalls->stalls + n,
                (size_t)stalls->n * sizeof *stalls->stalls);
    }
}

static gnn_status make_room(gnn_cuda_stalls *stalls) {
    if (stalls->n < stalls->capacity) {
        return GNN_OK;
    }
    int32_t capacity = stalls->capacity ? 2 * stalls->capacity : 64;
    gnn_cuda_stall *grown =
        realloc(stalls->stalls, (size_t)capacity * sizeof *stalls->stalls);
    GNN_REQUIRE(grown, GNN_ENOMEM, "link: no memory for %d stalls", (int)capacity);
    stalls->stalls = grown;
    stalls->capacity = capacity;
    return GNN_OK;
}

gnn_status gnn_stalls_wait(gnn_cuda_stalls *stalls, gnn_cuda_stream stream,
                           gnn_cuda_event end, bool out) {
    gnn_cuda_events *clocks = stalls->clocks;
    gnn_cuda_stall stall = {.out = out};
    gnn_stalls_reap(stalls);
    GNN_TRY(make_room(stalls));
    GNN_TRY(gnn_events_record(clocks, stream, &stall.before));
    gnn_status status = clocks->api->stream_after(clocks->device, stream, end);
    if (status == GNN_OK) {
        status = gnn_events_record(clocks, stream, &stall.behind);
    }
    if (status != GNN_OK) {
        gnn_events_put(clocks, stall.before);
        return status;
    }
    stalls->stalls[stalls->n++] = stall;
    return GNN_OK;
}

void gnn_stalls_clear(gnn_cuda_stalls *stalls) {
    free(stalls->stalls);
    stalls->stalls = NULL;
    stalls->n = stalls->capacity = 0;
}

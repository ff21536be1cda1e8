/* copy_lane.c: a ring of flights, oldest first. */
#include "offload/copy_lane.h"

#include <stdlib.h>

gnn_status gnn_lane_open(gnn_copy_lane *lane, gnn_cuda_events *clocks) {
    *lane = (gnn_copy_lane){.clocks = clocks, .first = 1, .next = 1, .capacity = 64};
    lane->ring = calloc(lane->capacity, sizeof *lane->ring);
    GNN_REQUIRE(lane->ring, GNN_ENOMEM, "link: no memory for a copy lane");
    gnn_status status = clocks->api->stream_create(clocks->device, true, &lane->stream);
    if (status != GNN_OK) {
        free(lane->ring);
        lane->ring = NULL;
    }
    return status;
}

void gnn_lane_close(gnn_copy_lane *lane) {
    if (lane->ring) {
        lane->clocks->api->stream_destroy(lane->clocks->device, lane->stream);
        free(lane->ring);
        lane->ring = NULL;
    }
}

static gnn_flight *place(gnn_copy_lane *lane, uint64_t number) {
    return &lane->ring[number & (lane->capacity - 1)];
}

static gnn_status make_room(gnn_copy_lane *lane) {
    if (lane->next - lane->first < lane->capacity) {
        return GNN_OK;
    }
    uint64_t capacity = 2 * lane->capacity;
    gnn_flight *ring = calloc(capacity, sizeof *ring);
    GNN_REQUIRE(ring, GNN_ENOMEM, "link: no memory for %lld copies under way",
                (long long)capacity);
    for (uint64_t n = lane->first; n < lane->next; n++) {
        ring[n & (capacity - 1)] = *place(lane, n);
    }
    free(lane->ring);
    lane->ring = ring;
    lane->capacity = capacity;
    return GNN_OK;
}

gnn_status gnn_lane_begin(gnn_copy_lane *lane, int32_t *begin) {
    GNN_TRY(make_room(lane));
    return gnn_events_record(lane->clocks, lane->stream, begin);
}

gnn_status gnn_lane_end(gnn_copy_lane *lane, int32_t begin, int64_t bytes,
                        uint64_t *number) {
    gnn_flight flight = {.begin = begin, .bytes = bytes};
    GNN_TRY(gnn_events_record(lane->clocks, lane->stream, &flight.end));
    *number = lane->next++;
    *place(lane, *number) = flight;
    return GNN_OK;
}

gnn_flight *gnn_lane_flight(gnn_copy_lane *lane, uint64_t number) {
    return number < lane->first ? NULL : place(lane, number);
}

gnn_status gnn_lane_reap(gnn_copy_lane *lane) {
    const gnn_cuda_api *api = lane->clocks->api;
    int device = lane->clocks->device;
    while (lane->first < lane->next) {
        gnn_flight *oldest = place(lane, lane->first);
        gnn_cuda_event end = gnn_events_get(lane->clocks, oldest->end);
        bool done;
        double seconds = 0;
        if (oldest->waiters > 0) {
            return GNN_OK; // the waiter will see to it
        }
        GNN_TRY(api->event_done(device, end, &done));
        if (!done) {
            return GNN_OK;
        }
        GNN_TRY(api->event_seconds(device, gnn_events_get(lane->clocks, oldest->begin),
                                   end, &seconds));
        if (oldest->bytes >= 0) {
            lane->copies++;
            lane->bytes += oldest->bytes;
            lane->busy += seconds;
        }
        gnn_events_put(lane->clocks, oldest->begin);
        gnn_events_put(lane->clocks, oldest->end);
        lane->first++;
    }
    return GNN_OK;
}

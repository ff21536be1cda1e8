/* cuda_events.c: a stack of idle numbers over an array of events. */
#include "offload/cuda_events.h"

#include <stdlib.h>

/* Room for one event more in both arrays, so that giving one back cannot fail. */
static gnn_status make_room(gnn_cuda_events *pool) {
    if (pool->n < pool->capacity) {
        return GNN_OK;
    }
    size_t capacity = pool->capacity ? 2 * (size_t)pool->capacity : 64;
    gnn_cuda_event *events = realloc(pool->events, capacity * sizeof *events);
    pool->events = events ? events : pool->events;
    int32_t *idle = realloc(pool->idle, capacity * sizeof *idle);
    pool->idle = idle ? idle : pool->idle;
    GNN_REQUIRE(events && idle, GNN_ENOMEM, "link: no memory for %lld events",
                (long long)capacity);
    pool->capacity = (int32_t)capacity;
    return GNN_OK;
}

static gnn_status take(gnn_cuda_events *pool, int32_t *number) {
    if (pool->n_idle > 0) {
        *number = pool->idle[--pool->n_idle];
        return GNN_OK;
    }
    GNN_TRY(make_room(pool));
    GNN_TRY(
        pool->api->event_create(pool->device, pool->timing, &pool->events[pool->n]));
    *number = pool->n++;
    return GNN_OK;
}

gnn_status gnn_events_record(gnn_cuda_events *pool, gnn_cuda_stream stream,
                             int32_t *number) {
    int32_t taken;
    *number = -1;
    GNN_TRY(take(pool, &taken));
    gnn_status status =
        pool->api->event_record(pool->device, pool->events[taken], stream);
    if (status != GNN_OK) {
        gnn_events_put(pool, taken);
        return status;
    }
    *number = taken;
    return GNN_OK;
}

void gnn_events_put(gnn_cuda_events *pool, int32_t number) {
    if (number >= 0) {
        pool->idle[pool->n_idle++] = number;
    }
}

gnn_cuda_event gnn_events_get(const gnn_cuda_events *pool, int32_t number) {
    return pool->events[number];
}

void gnn_events_clear(gnn_cuda_events *pool) {
    for (int32_t e = 0; e < pool->n; e++) {
        pool->api->event_destroy(pool->device, pool->events[e]);
    }
    free(pool->events);
    free(pool->idle);
    pool->events = NULL;
    pool->idle = NULL;
    pool->n = pool->n_idle = pool->capacity = 0;
}

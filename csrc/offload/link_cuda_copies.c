/* link_cuda_copies.c: copies out and in of link_cuda, and how their ends are known. */
#include "offload/link_cuda.h"

#include <stdio.h>
#include <time.h>

/* -------------------------------------------------------------------------- tickets */

static gnn_ticket ticket_of(bool out, uint64_t number) {
    return number << 1 | out;
}

static gnn_copy_lane *lane_of(gnn_cuda_link *link, gnn_ticket ticket) {
    return &link->lanes[ticket & 1];
}

/* The copy while it is not known to have ended, else NULL. */
static gnn_flight *flight_of(gnn_cuda_link *link, gnn_ticket ticket) {
    return ticket ? gnn_lane_flight(lane_of(link, ticket), ticket >> 1) : NULL;
}

/* --------------------------------------------------------------------------- copies */

/* Makes the lane's stream wait for what the copy must follow. */
static gnn_status order_copy(gnn_cuda_link *link, const gnn_cuda_request *copy) {
    const gnn_cuda_api *api = link->api;
    gnn_copy_lane *in = &link->lanes[0], *lane = &link->lanes[copy->out];
    if (copy->after) {
        GNN_TRY(api->stream_after(link->device, lane->stream,
                                  gnn_cuda_link_event(link, copy->after)));
    }
    if (copy->out && in->next > link->in_seen && in->first < in->next) {
        const gnn_flight *last = gnn_lane_flight(in, in->next - 1);
        GNN_TRY(api->stream_after(link->device, lane->stream,
                                  gnn_events_get(&link->clocks, last->end)));
        link->in_seen = in->next;
    }
    const gnn_flight *put = flight_of(link, copy->after_put);
    if (put) {
        GNN_TRY(api->stream_after(link->device, lane->stream,
                                  gnn_events_get(&link->clocks, put->end)));
    }
    return GNN_OK;
}

static gnn_status issue(gnn_cuda_link *link, const gnn_cuda_request *copy,
                        gnn_ticket *ticket) {
    const gnn_cuda_api *api = link->api;
    gnn_copy_lane *lane = &link->lanes[copy->out];
    char *host = gnn_slab_address(&link->slab, copy->slot);
    int64_t bytes = copy->slot.bytes;
    int32_t begin;
    uint64_t number;
    *ticket = 0;
    GNN_TRY(gnn_cuda_link_working(link));
    GNN_TRY(gnn_cuda_link_fault(link, gnn_lane_reap(lane)));
    GNN_TRY(order_copy(link, copy));
    GNN_TRY(gnn_lane_begin(lane, &begin));
    gnn_status status =
        copy->out ? api->copy_out(link->device, host, copy->near, bytes, lane->stream)
                  : api->copy_in(link->device, copy->near, host, bytes, lane->stream);
    if (status != GNN_OK) {
        gnn_events_put(&link->clocks, begin);
        return status;
    }
    status = gnn_lane_end(lane, begin, copy->probe ? -1 : bytes, &number);
    if (status != GNN_OK) { // a copy under way of which nobody can tell when it ends
        snprintf(link->fault, sizeof link->fault, "%s", gnn_message());
        return gnn_cuda_link_rest(link, gnn_fail(GNN_EDEVICE, "%s", link->fault));
    }
    *ticket = ticket_of(copy->out, number);
    return GNN_OK;
}

gnn_status gnn_cuda_link_start(gnn_cuda_link *link, const gnn_cuda_request *copy,
                               gnn_ticket *ticket) {
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = issue(link, copy, ticket);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

gnn_status gnn_cuda_link_put(gnn_link *self, gnn_slot slot, const void *near,
                             gnn_mark after, gnn_ticket *ticket) {
    gnn_cuda_request copy = {.out = true, .slot = slot, .after = after};
    copy.near = (void *)(uintptr_t)near;
    return gnn_cuda_link_start(gnn_as_cuda(self), &copy, ticket);
}

gnn_status gnn_cuda_link_get(gnn_link *self, gnn_slot slot, void *near, gnn_mark after,
                             gnn_ticket after_put, gnn_ticket *ticket) {
    gnn_cuda_request copy = {.slot = slot, .near = near, .after = after};
    copy.after_put = after_put;
    return gnn_cuda_link_start(gnn_as_cuda(self), &copy, ticket);
}

/* ------------------------------------------------------------------------- the ends */

gnn_status gnn_cuda_link_poll(gnn_link *self, gnn_ticket ticket, bool *done) {
    gnn_cuda_link *link = gnn_as_cuda(self);
    *done = ticket == 0;
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = gnn_cuda_link_working(link);
    if (status == GNN_OK && !*done) {
        status = gnn_cuda_link_fault(link, gnn_lane_reap(lane_of(link, ticket)));
        *done = !flight_of(link, ticket);
    }
    *done = *done || status != GNN_OK;
    pthread_mutex_unlock(&link->mutex);
    return status;
}

static gnn_status order_after(gnn_cuda_link *link, gnn_ticket ticket,
                              gnn_stream stream) {
    GNN_TRY(gnn_cuda_link_working(link));
    GNN_TRY(gnn_cuda_link_fault(link, gnn_lane_reap(lane_of(link, ticket))));
    const gnn_flight *flight = flight_of(link, ticket);
    if (!flight) {
        return GNN_OK; // ended: what comes later comes after it
    }
    gnn_cuda_event end = gnn_events_get(&link->clocks, flight->end);
    return gnn_cuda_link_rest(link,
                              gnn_stalls_wait(&link->stalls, stream, end, ticket & 1));
}

gnn_status gnn_cuda_link_order(gnn_link *self, gnn_ticket ticket, gnn_stream stream) {
    gnn_cuda_link *link = gnn_as_cuda(self);
    REQUIRE_OWNER(link);
    if (!ticket) {
        return GNN_OK;
    }
    pthread_mutex_lock(&link->mutex);
    gnn_status status = order_after(link, ticket, stream);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* CUDA knows no wait with a limit: asks again and again, sleeping longer each time. */
static gnn_status ask_until(const gnn_cuda_link *link, gnn_cuda_event end,
                            double seconds, bool *done) {
    enum { FIRST = 20000, LONGEST = 500000 }; // nanoseconds
    struct timespec pause = {.tv_nsec = FIRST};
    for (double stop = now() + seconds;;) {
        GNN_TRY(link->api->event_done(link->device, end, done));
        if (*done || now() >= stop) {
            return GNN_OK;
        }
        nanosleep(&pause, NULL);
        pause.tv_nsec = pause.tv_nsec < LONGEST ? 2 * pause.tv_nsec : LONGEST;
    }
}

/* At most so many seconds; negative: for ever. *done: the copy ended, well or not. */
static gnn_status wait_at_most(gnn_link *self, gnn_ticket ticket, double seconds,
                               bool *done) {
    gnn_cuda_link *link = gnn_as_cuda(self);
    *done = true;
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = gnn_cuda_link_working(link);
    gnn_flight *flight = status == GNN_OK ? flight_of(link, ticket) : NULL;
    if (flight) {
        gnn_cuda_event end = gnn_events_get(&link->clocks, flight->end);
        flight->waiters++;
        pthread_mutex_unlock(&link->mutex);
        status = seconds < 0 ? link->api->event_wait(link->device, end)
                             : ask_until(link, end, seconds, done);
        pthread_mutex_lock(&link->mutex);
        flight_of(link, ticket)->waiters--; // the ring may have moved
        gnn_cuda_link_fault(link, status);
        if (status == GNN_OK && *done) {
            status = gnn_cuda_link_fault(link, gnn_lane_reap(lane_of(link, ticket)));
        }
        *done = *done || status != GNN_OK;
    }
    pthread_mutex_unlock(&link->mutex);
    return status;
}

gnn_status gnn_cuda_link_wait(gnn_link *self, gnn_ticket ticket) {
    bool done;
    return wait_at_most(self, ticket, -1, &done);
}

gnn_status gnn_cuda_link_wait_for(gnn_link *self, gnn_ticket ticket, double seconds,
                                  bool *done) {
    return wait_at_most(self, ticket, seconds > 0 ? seconds : 0, done);
}

/* link_cuda.c: device memory to a pinned slab, ordered by events; the host runs on.
 *
 * Two lanes, out and in, each a stream of its own. The orders between them, all made
 * when a copy is issued:
 *     put   after `after` (the values are ready), and after every copy in queued so
 *           far, because the slot may be one that a copy in still reads
 *     get   after `after` (the target is free) and after its own put
 * Puts into a slot used before follow its earlier puts by being on one stream.
 *
 * A failed question about a copy, or a copy whose end could not be recorded, is a fault
 * of the device: its text is kept and every later wait returns it. No copy is under way
 * then: the link waits for that first, the one time that it waits with its mutex.
 */
#include "offload/link.h"

#include "offload/copy_lane.h"
#include "offload/cuda_stalls.h"
#include "offload/fork_count.h"
#include "offload/pinned_slab.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct cuda_link {
    gnn_link link; // first: a gnn_link * is a cuda_link *
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
} cuda_link;

static cuda_link *cuda(gnn_link *link) {
    return (cuda_link *)link;
}

static bool is_forked(const cuda_link *link) {
    return link->forks != gnn_fork_count();
}

#define REQUIRE_OWNER(link)                                                            \
    GNN_REQUIRE(!is_forked(link), GNN_ESTATE,                                          \
                "link: opened in the parent process, used in its child after a fork")

/* -------------------------------------------------------------------------- tickets */

static gnn_ticket ticket_of(bool out, uint64_t number) {
    return number << 1 | out;
}

static gnn_copy_lane *lane_of(cuda_link *link, gnn_ticket ticket) {
    return &link->lanes[ticket & 1];
}

/* The copy while it is not known to have ended, else NULL. */
static gnn_flight *flight_of(cuda_link *link, gnn_ticket ticket) {
    return ticket ? gnn_lane_flight(lane_of(link, ticket), ticket >> 1) : NULL;
}

/* ---------------------------------------------------------------------------- fault */

static gnn_status is_working(const cuda_link *link) {
    GNN_REQUIRE(!link->fault[0], GNN_EDEVICE, "%s", link->fault);
    return GNN_OK;
}

/* Before memory goes. A wait that fails alone is asked again in another way; after a
 * fault of the device both fail at once, and nothing runs then. */
static void wait_for_lanes(cuda_link *link) {
    for (int l = 0; l < 2; l++) {
        if (link->api->stream_wait(link->device, link->lanes[l].stream) != GNN_OK) {
            link->api->device_wait(link->device);
        }
    }
}

/* A call about a copy failed, and the caller will give up the memory that the copy
 * reads or writes. So the host waits until none is under way; the message stays. */
static gnn_status come_to_rest(cuda_link *link, gnn_status status) {
    char text[sizeof link->fault];
    if (status != GNN_EDEVICE) {
        return status;
    }
    snprintf(text, sizeof text, "%s", gnn_message());
    wait_for_lanes(link);
    return gnn_fail(status, "%s", text);
}

/* What cannot be known any more is a fault; the first one is kept. */
static gnn_status note_fault(cuda_link *link, gnn_status status) {
    if (status == GNN_EDEVICE && !link->fault[0]) {
        snprintf(link->fault, sizeof link->fault, "%s", gnn_message());
        return come_to_rest(link, status);
    }
    return status;
}

/* ---------------------------------------------------------------------------- slots */

/* A merge needs idle lanes. Asked, never waited for: a host function that needs the
 * caller's locks may stand before the copies. */
static void try_merge(cuda_link *link) {
    for (int l = 0; l < 2; l++) {
        bool done = false;
        if (link->api->stream_done(link->device, link->lanes[l].stream, &done) !=
                GNN_OK ||
            !done) {
            return;
        }
    }
    gnn_slab_merge(&link->slab); // if it fails the slab grows again
}

static gnn_status slot_alloc(gnn_link *self, int64_t bytes, gnn_slot *slot) {
    cuda_link *link = cuda(self);
    REQUIRE_OWNER(link);
    GNN_REQUIRE(bytes > 0, GNN_EINVAL, "link: slot must have at least 1 byte, got %lld",
                (long long)bytes);
    GNN_REQUIRE(bytes <= link->slab.limit, GNN_EFULL,
                "link: tier is full: %lld bytes are more than its limit of %lld",
                (long long)bytes, (long long)link->slab.limit);
    pthread_mutex_lock(&link->mutex);
    if (gnn_slab_wants_merge(&link->slab)) {
        try_merge(link);
    }
    gnn_status status = gnn_slab_take(&link->slab, bytes, slot);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

static gnn_status slot_free(gnn_link *self, gnn_slot slot) {
    cuda_link *link = cuda(self);
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = gnn_slab_give(&link->slab, slot);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

/* ---------------------------------------------------------------------------- marks */

/* A mark is 1 + twice the event's number, plus one if the event knows its time. */
static gnn_cuda_events *pool_of(cuda_link *link, gnn_mark mark) {
    return (mark - 1) & 1 ? &link->clocks : &link->marks;
}

static int32_t number_of(gnn_mark mark) {
    return (int32_t)((mark - 1) >> 1);
}

static gnn_cuda_event event_of(cuda_link *link, gnn_mark mark) {
    return gnn_events_get(pool_of(link, mark), number_of(mark));
}

static gnn_status record_mark(gnn_link *self, gnn_stream stream, bool timed,
                              gnn_mark *mark) {
    cuda_link *link = cuda(self);
    int32_t number;
    *mark = 0;
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = is_working(link);
    if (status == GNN_OK) {
        status =
            gnn_events_record(timed ? &link->clocks : &link->marks, stream, &number);
    }
    if (status == GNN_OK) {
        *mark = 1 + ((gnn_mark)number << 1 | timed);
    }
    pthread_mutex_unlock(&link->mutex);
    return status;
}

static gnn_status mark_now(gnn_link *self, gnn_stream stream, gnn_mark *mark) {
    return record_mark(self, stream, false, mark);
}

static gnn_status clock_now(gnn_link *self, gnn_stream stream, gnn_mark *mark) {
    return record_mark(self, stream, true, mark);
}

static void mark_free(gnn_link *self, gnn_mark mark) {
    cuda_link *link = cuda(self);
    if (mark && !is_forked(link)) {
        pthread_mutex_lock(&link->mutex);
        gnn_events_put(pool_of(link, mark), number_of(mark));
        pthread_mutex_unlock(&link->mutex);
    }
}

static gnn_status capturing(gnn_link *self, gnn_stream stream, bool *is_capturing) {
    cuda_link *link = cuda(self);
    REQUIRE_OWNER(link);
    return link->api->stream_capturing(link->device, stream, is_capturing);
}

/* The caller owns both marks, so their events stay while the mutex is not held. */
static gnn_status seconds_between(gnn_link *self, gnn_mark from, gnn_mark to, bool wait,
                                  bool *done, double *seconds) {
    cuda_link *link = cuda(self);
    const gnn_cuda_api *api = link->api;
    *done = false;
    *seconds = 0;
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = is_working(link);
    gnn_cuda_event ends[2] = {0};
    if (status == GNN_OK) {
        ends[0] = event_of(link, from), ends[1] = event_of(link, to);
    }
    pthread_mutex_unlock(&link->mutex);
    bool both = status == GNN_OK;
    for (int e = 0; e < 2 && both && status == GNN_OK; e++) {
        if (wait) {
            status = api->event_wait(link->device, ends[e]);
        } else {
            status = api->event_done(link->device, ends[e], &both);
        }
    }
    *done = both;
    if (both && status == GNN_OK) {
        status = api->event_seconds(link->device, ends[0], ends[1], seconds);
        pthread_mutex_lock(&link->mutex); // who asks for times will want the books too
        gnn_stalls_reap(&link->stalls);
        for (int l = 0; l < 2 && status == GNN_OK; l++) {
            status = note_fault(link, gnn_lane_reap(&link->lanes[l]));
        }
        pthread_mutex_unlock(&link->mutex);
    }
    return status;
}

/* --------------------------------------------------------------------------- copies */

typedef struct request {
    bool out, probe;
    gnn_slot slot;
    void *near;
    gnn_mark after;
    gnn_ticket after_put;
} request;

/* Makes the lane's stream wait for what the copy must follow. */
static gnn_status order_copy(cuda_link *link, const request *copy) {
    const gnn_cuda_api *api = link->api;
    gnn_copy_lane *in = &link->lanes[0], *lane = &link->lanes[copy->out];
    if (copy->after) {
        GNN_TRY(
            api->stream_after(link->device, lane->stream, event_of(link, copy->after)));
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

static gnn_status issue(cuda_link *link, const request *copy, gnn_ticket *ticket) {
    const gnn_cuda_api *api = link->api;
    gnn_copy_lane *lane = &link->lanes[copy->out];
    char *host = gnn_slab_address(&link->slab, copy->slot);
    int64_t bytes = copy->slot.bytes;
    int32_t begin;
    uint64_t number;
    *ticket = 0;
    GNN_TRY(is_working(link));
    GNN_TRY(note_fault(link, gnn_lane_reap(lane)));
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
        return come_to_rest(link, gnn_fail(GNN_EDEVICE, "%s", link->fault));
    }
    *ticket = ticket_of(copy->out, number);
    return GNN_OK;
}

static gnn_status start(cuda_link *link, const request *copy, gnn_ticket *ticket) {
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = issue(link, copy, ticket);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

static gnn_status put(gnn_link *self, gnn_slot slot, const void *near, gnn_mark after,
                      gnn_ticket *ticket) {
    request copy = {.out = true, .slot = slot, .after = after};
    copy.near = (void *)(uintptr_t)near;
    return start(cuda(self), &copy, ticket);
}

static gnn_status get(gnn_link *self, gnn_slot slot, void *near, gnn_mark after,
                      gnn_ticket after_put, gnn_ticket *ticket) {
    request copy = {.slot = slot, .near = near, .after = after};
    copy.after_put = after_put;
    return start(cuda(self), &copy, ticket);
}

/* ------------------------------------------------------------------------- the ends */

static gnn_status poll(gnn_link *self, gnn_ticket ticket, bool *done) {
    cuda_link *link = cuda(self);
    *done = ticket == 0;
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = is_working(link);
    if (status == GNN_OK && !*done) {
        status = note_fault(link, gnn_lane_reap(lane_of(link, ticket)));
        *done = !flight_of(link, ticket);
    }
    *done = *done || status != GNN_OK;
    pthread_mutex_unlock(&link->mutex);
    return status;
}

static gnn_status order_after(cuda_link *link, gnn_ticket ticket, gnn_stream stream) {
    GNN_TRY(is_working(link));
    GNN_TRY(note_fault(link, gnn_lane_reap(lane_of(link, ticket))));
    const gnn_flight *flight = flight_of(link, ticket);
    if (!flight) {
        return GNN_OK; // ended: what comes later comes after it
    }
    gnn_cuda_event end = gnn_events_get(&link->clocks, flight->end);
    return come_to_rest(link, gnn_stalls_wait(&link->stalls, stream, end, ticket & 1));
}

static gnn_status order(gnn_link *self, gnn_ticket ticket, gnn_stream stream) {
    cuda_link *link = cuda(self);
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
static gnn_status ask_until(const cuda_link *link, gnn_cuda_event end, double seconds,
                            bool *done) {
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
    cuda_link *link = cuda(self);
    *done = true;
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = is_working(link);
    gnn_flight *flight = status == GNN_OK ? flight_of(link, ticket) : NULL;
    if (flight) {
        gnn_cuda_event end = gnn_events_get(&link->clocks, flight->end);
        flight->waiters++;
        pthread_mutex_unlock(&link->mutex);
        status = seconds < 0 ? link->api->event_wait(link->device, end)
                             : ask_until(link, end, seconds, done);
        pthread_mutex_lock(&link->mutex);
        flight_of(link, ticket)->waiters--; // the ring may have moved
        note_fault(link, status);
        if (status == GNN_OK && *done) {
            status = note_fault(link, gnn_lane_reap(lane_of(link, ticket)));
        }
        *done = *done || status != GNN_OK;
    }
    pthread_mutex_unlock(&link->mutex);
    return status;
}

static gnn_status wait(gnn_link *self, gnn_ticket ticket) {
    bool done;
    return wait_at_most(self, ticket, -1, &done);
}

static gnn_status wait_for(gnn_link *self, gnn_ticket ticket, double seconds,
                           bool *done) {
    return wait_at_most(self, ticket, seconds > 0 ? seconds : 0, done);
}

static void ticket_free(gnn_link *self, gnn_ticket ticket) {
    (void)self, (void)ticket; // a number
}

/* What is known without a question: this is also called while a graph is captured. */
static void stats(gnn_link *self, gnn_link_stats *stats) {
    cuda_link *link = cuda(self);
    memset(stats, 0, sizeof *stats);
    if (is_forked(link)) {
        return;
    }
    pthread_mutex_lock(&link->mutex);
    const gnn_copy_lane *in = &link->lanes[0], *out = &link->lanes[1];
    stats->bytes_out = out->bytes, stats->bytes_in = in->bytes;
    stats->copies_out = out->copies, stats->copies_in = in->copies;
    stats->busy_out = out->busy, stats->busy_in = in->busy;
    stats->stall_out = link->stalls.seconds[1];
    stats->stall_in = link->stalls.seconds[0];
    stats->slot_bytes = link->slab.used;
    stats->slot_peak = link->slab.peak;
    stats->tier_bytes = link->slab.bytes;
    pthread_mutex_unlock(&link->mutex);
}

/* -------------------------------------------------------------------------- measure */

enum { PROBES = 4 };

/* Seconds for PROBES copies of the whole slot one way, after one that warms up. */
static gnn_status probe(cuda_link *link, bool out, gnn_slot slot, void *near,
                        double *rate) {
    request copy = {.out = out, .probe = true, .slot = slot, .near = near};
    gnn_mark from = 0, to = 0;
    gnn_ticket ticket;
    bool done;
    double seconds = 0;
    gnn_status status = start(link, &copy, &ticket);
    if (status == GNN_OK) {
        status = clock_now(&link->link, link->lanes[out].stream, &from);
    }
    for (int p = 0; p < PROBES && status == GNN_OK; p++) {
        status = start(link, &copy, &ticket);
    }
    if (status == GNN_OK) {
        status = clock_now(&link->link, link->lanes[out].stream, &to);
    }
    if (status == GNN_OK) {
        status = seconds_between(&link->link, from, to, true, &done, &seconds);
    }
    mark_free(&link->link, from);
    mark_free(&link->link, to);
    *rate = (double)(PROBES * slot.bytes) / (seconds > 1e-9 ? seconds : 1e-9);
    return status;
}

static gnn_status measure(gnn_link *self, int64_t bytes, double *rate_out,
                          double *rate_in) {
    cuda_link *link = cuda(self);
    gnn_slot slot;
    void *near = NULL;
    GNN_TRY(slot_alloc(self, bytes, &slot));
    gnn_status status = link->api->device_alloc(link->device, bytes, &near);
    if (status == GNN_OK) {
        status = probe(link, true, slot, near, rate_out);
        if (status == GNN_OK) {
            status = probe(link, false, slot, near, rate_in);
        }
        wait_for_lanes(link);
        link->api->device_free(link->device, near);
    }
    slot_free(self, slot);
    return status;
}

/* ------------------------------------------------------------------------ the whole */

static void release(cuda_link *link) {
    gnn_lane_close(&link->lanes[1]);
    gnn_lane_close(&link->lanes[0]);
    gnn_events_clear(&link->clocks);
    gnn_events_clear(&link->marks);
    gnn_slab_clear(&link->slab);
    gnn_stalls_clear(&link->stalls);
    pthread_mutex_destroy(&link->mutex);
    free(link);
}

static void close_link(gnn_link *self) {
    cuda_link *link = cuda(self);
    if (is_forked(link)) { // streams and pages are the parent's
        gnn_stalls_clear(&link->stalls);
        free(link);
        return;
    }
    wait_for_lanes(link);
    release(link);
}

static const gnn_link_ops cuda_ops = {
    .name = "cuda",
    .ordered = true,
    .slot_alloc = slot_alloc,
    .slot_free = slot_free,
    .mark = mark_now,
    .mark_free = mark_free,
    .capturing = capturing,
    .clock = clock_now,
    .seconds = seconds_between,
    .put = put,
    .get = get,
    .poll = poll,
    .order = order,
    .wait = wait,
    .wait_for = wait_for,
    .ticket_free = ticket_free,
    .stats = stats,
    .measure = measure,
    .close = close_link,
};

gnn_status gnn_link_cuda_open(const gnn_link_cuda_options *options, gnn_link **opened) {
    GNN_REQUIRE(options->limit > 0, GNN_EINVAL,
                "link: limit must be at least 1 byte, got %lld",
                (long long)options->limit);
    cuda_link *link = calloc(1, sizeof *link);
    GNN_REQUIRE(link, GNN_ENOMEM, "link: no memory for a link");
    link->link.ops = &cuda_ops;
    link->forks = gnn_fork_count();
    link->api = options->api;
    link->device = options->device;
    link->in_seen = 1;
    pthread_mutex_init(&link->mutex, NULL);
    gnn_cuda_events pool = {.api = options->api, .device = options->device};
    link->marks = pool;
    pool.timing = true;
    link->clocks = pool;
    link->stalls.clocks = &link->clocks;
    gnn_slab_init(&link->slab, options->api, options->device, options->limit);
    gnn_status status = gnn_lane_open(&link->lanes[0], &link->clocks);
    if (status == GNN_OK) {
        status = gnn_lane_open(&link->lanes[1], &link->clocks);
    }
    if (status != GNN_OK) {
        release(link);
        return status;
    }
    *opened = &link->link;
    return GNN_OK;
}

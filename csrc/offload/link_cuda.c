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
#include "offload/link_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------- fault */

gnn_status gnn_cuda_link_working(const gnn_cuda_link *link) {
    GNN_REQUIRE(!link->fault[0], GNN_EDEVICE, "%s", link->fault);
    return GNN_OK;
}

/* Before memory goes. A wait that fails alone is asked again in another way; after a
 * fault of the device both fail at once, and nothing runs then. */
static void wait_for_lanes(gnn_cuda_link *link) {
    for (int l = 0; l < 2; l++) {
        if (link->api->stream_wait(link->device, link->lanes[l].stream) != GNN_OK) {
            link->api->device_wait(link->device);
        }
    }
}

gnn_status gnn_cuda_link_rest(gnn_cuda_link *link, gnn_status status) {
    char text[sizeof link->fault];
    if (status != GNN_EDEVICE) {
        return status;
    }
    snprintf(text, sizeof text, "%s", gnn_message());
    wait_for_lanes(link);
    return gnn_fail(status, "%s", text);
}

gnn_status gnn_cuda_link_fault(gnn_cuda_link *link, gnn_status status) {
    if (status == GNN_EDEVICE && !link->fault[0]) {
        snprintf(link->fault, sizeof link->fault, "%s", gnn_message());
        return gnn_cuda_link_rest(link, status);
    }
    return status;
}

/* ---------------------------------------------------------------------------- slots */

/* A merge needs idle lanes. Asked, never waited for: a host function that needs the
 * caller's locks may stand before the copies. */
static void try_merge(gnn_cuda_link *link) {
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
    gnn_cuda_link *link = gnn_as_cuda(self);
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
    gnn_cuda_link *link = gnn_as_cuda(self);
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = gnn_slab_give(&link->slab, slot);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

/* ---------------------------------------------------------------------------- marks */

/* A mark is 1 + twice the event's number, plus one if the event knows its time. */
static gnn_cuda_events *pool_of(gnn_cuda_link *link, gnn_mark mark) {
    return (mark - 1) & 1 ? &link->clocks : &link->marks;
}

static int32_t number_of(gnn_mark mark) {
    return (int32_t)((mark - 1) >> 1);
}

gnn_cuda_event gnn_cuda_link_event(gnn_cuda_link *link, gnn_mark mark) {
    return gnn_events_get(pool_of(link, mark), number_of(mark));
}

static gnn_status record_mark(gnn_link *self, gnn_stream stream, bool timed,
                              gnn_mark *mark) {
    gnn_cuda_link *link = gnn_as_cuda(self);
    int32_t number;
    *mark = 0;
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = gnn_cuda_link_working(link);
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
    gnn_cuda_link *link = gnn_as_cuda(self);
    if (mark && !gnn_is_forked(link)) {
        pthread_mutex_lock(&link->mutex);
        gnn_events_put(pool_of(link, mark), number_of(mark));
        pthread_mutex_unlock(&link->mutex);
    }
}

static gnn_status capturing(gnn_link *self, gnn_stream stream, bool *is_capturing) {
    gnn_cuda_link *link = gnn_as_cuda(self);
    REQUIRE_OWNER(link);
    return link->api->stream_capturing(link->device, stream, is_capturing);
}

/* The caller owns both marks, so their events stay while the mutex is not held. */
static gnn_status seconds_between(gnn_link *self, gnn_mark from, gnn_mark to, bool wait,
                                  bool *done, double *seconds) {
    gnn_cuda_link *link = gnn_as_cuda(self);
    const gnn_cuda_api *api = link->api;
    *done = false;
    *seconds = 0;
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = gnn_cuda_link_working(link);
    gnn_cuda_event ends[2] = {0};
    if (status == GNN_OK) {
        ends[0] = gnn_cuda_link_event(link, from),
        ends[1] = gnn_cuda_link_event(link, to);
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
            status = gnn_cuda_link_fault(link, gnn_lane_reap(&link->lanes[l]));
        }
        pthread_mutex_unlock(&link->mutex);
    }
    return status;
}

static void ticket_free(gnn_link *self, gnn_ticket ticket) {
    (void)self, (void)ticket; // a number
}

/* What is known without a question: this is also called while a graph is captured. */
static void stats(gnn_link *self, gnn_link_stats *stats) {
    gnn_cuda_link *link = gnn_as_cuda(self);
    memset(stats, 0, sizeof *stats);
    if (gnn_is_forked(link)) {
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
static gnn_status probe(gnn_cuda_link *link, bool out, gnn_slot slot, void *near,
                        double *rate) {
    gnn_cuda_request copy = {.out = out, .probe = true, .slot = slot, .near = near};
    gnn_mark from = 0, to = 0;
    gnn_ticket ticket;
    bool done;
    double seconds = 0;
    gnn_status status = gnn_cuda_link_start(link, &copy, &ticket);
    if (status == GNN_OK) {
        status = clock_now(&link->link, link->lanes[out].stream, &from);
    }
    for (int p = 0; p < PROBES && status == GNN_OK; p++) {
        status = gnn_cuda_link_start(link, &copy, &ticket);
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
    gnn_cuda_link *link = gnn_as_cuda(self);
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

static void release(gnn_cuda_link *link) {
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
    gnn_cuda_link *link = gnn_as_cuda(self);
    if (gnn_is_forked(link)) { // streams and pages are the parent's
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
    .put = gnn_cuda_link_put,
    .get = gnn_cuda_link_get,
    .poll = gnn_cuda_link_poll,
    .order = gnn_cuda_link_order,
    .wait = gnn_cuda_link_wait,
    .wait_for = gnn_cuda_link_wait_for,
    .ticket_free = ticket_free,
    .stats = stats,
    .measure = measure,
    .close = close_link,
};

gnn_status gnn_link_cuda_open(const gnn_link_cuda_options *options, gnn_link **opened) {
    GNN_REQUIRE(options->limit > 0, GNN_EINVAL,
                "link: limit must be at least 1 byte, got %lld",
                (long long)options->limit);
    gnn_cuda_link *link = calloc(1, sizeof *link);
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

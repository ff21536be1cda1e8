/* link_host.c: the calls of link.h over a copy queue and a slot table. */
#include "offload/link_host.h"

#include "offload/fork_count.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static gnn_host_link *host(gnn_link *link) {
    return (gnn_host_link *)link;
}

bool gnn_host_link_forked(const gnn_host_link *link) {
    return link->forks != gnn_fork_count();
}

#define REQUIRE_OWNER(link)                                                            \
    GNN_REQUIRE(!gnn_host_link_forked(link), GNN_ESTATE,                               \
                "link: opened in process %d, used in its child %d after a fork",       \
                (int)(link)->owner, (int)getpid())

gnn_status gnn_host_link_open(gnn_host_link *link, int64_t limit, int64_t align,
                              gnn_chunk_fn copy, int threads, int64_t chunk_bytes) {
    GNN_REQUIRE(threads >= 1 && threads <= 64, GNN_EINVAL,
                "link: threads must be in 1..64, got %d", threads);
    link->owner = getpid();
    link->forks = gnn_fork_count();
    gnn_slots_init(&link->slots, limit, align);
    GNN_TRY(gnn_copy_queue_open(copy, link, threads, chunk_bytes, &link->copies));
    pthread_mutex_init(&link->mutex, NULL);
    return GNN_OK;
}

void gnn_host_link_close(gnn_host_link *link) {
    gnn_copy_queue_close(link->copies);
    pthread_mutex_destroy(&link->mutex);
    gnn_slots_clear(&link->slots);
}

/* ---------------------------------------------------------------------------- slots */

/* A little more than is needed, so that a first pass of many slots grows the tier a
 * few dozen times; a thirty-second keeps the high-water within 5 % of the peak. */
static gnn_status grow_for(gnn_host_link *link, int64_t bytes) {
    gnn_slots *slots = &link->slots;
    int64_t needed = gnn_slots_end_for(slots, bytes);
    GNN_REQUIRE(needed <= slots->limit, GNN_EFULL,
                "link: tier is full: %lld of %lld bytes in use, %lld more do not fit",
                (long long)slots->used, (long long)slots->limit, (long long)bytes);
    int64_t ample = gnn_slots_round(slots, needed + slots->end / 32);
    ample = ample < slots->limit ? ample : slots->limit;
    if (ample == needed || link->grow(link, ample) != GNN_OK) {
        GNN_TRY(link->grow(link, needed));
        ample = needed;
    }
    gnn_slots_grow(slots, ample);
    return GNN_OK;
}

static gnn_status take_slot(gnn_host_link *link, int64_t bytes, int64_t *offset) {
    GNN_TRY(gnn_slots_take(&link->slots, bytes, offset));
    if (*offset >= 0) {
        return GNN_OK;
    }
    GNN_TRY(grow_for(link, bytes));
    return gnn_slots_take(&link->slots, bytes, offset);
}

gnn_status gnn_host_slot_alloc(gnn_link *self, int64_t bytes, gnn_slot *slot) {
    gnn_host_link *link = host(self);
    REQUIRE_OWNER(link);
    GNN_REQUIRE(bytes > 0, GNN_EINVAL, "link: slot must have at least 1 byte, got %lld",
                (long long)bytes);
    GNN_REQUIRE(bytes <= link->slots.limit, GNN_EFULL,
                "link: tier is full: %lld bytes are more than its limit of %lld",
                (long long)bytes, (long long)link->slots.limit);
    slot->bytes = bytes;
    pthread_mutex_lock(&link->mutex);
    gnn_status status = take_slot(link, bytes, &slot->offset);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

gnn_status gnn_host_slot_free(gnn_link *self, gnn_slot slot) {
    gnn_host_link *link = host(self);
    REQUIRE_OWNER(link);
    pthread_mutex_lock(&link->mutex);
    gnn_status status = gnn_slots_give(&link->slots, slot.offset, slot.bytes);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

/* ----------------------------------------------------------------- marks and copies */

gnn_status gnn_host_mark(gnn_link *self, gnn_stream stream, gnn_mark *mark) {
    (void)self, (void)stream;
    *mark = 0; // the host thread's work is done when it returns
    return GNN_OK;
}

void gnn_host_mark_free(gnn_link *self, gnn_mark mark) {
    (void)self, (void)mark;
}

gnn_status gnn_host_put(gnn_link *self, gnn_slot slot, const void *near, gnn_mark after,
                        gnn_ticket *ticket) {
    (void)after;
    REQUIRE_OWNER(host(self));
    gnn_copy copy = {.out = true, .slot = slot, .near = (void *)(uintptr_t)near};
    return gnn_copy_start(host(self)->copies, &copy, ticket);
}

gnn_status gnn_host_get(gnn_link *self, gnn_slot slot, void *near, gnn_mark after,
                        gnn_ticket after_put, gnn_ticket *ticket) {
    (void)after;
    REQUIRE_OWNER(host(self));
    gnn_copy copy = {.slot = slot, .near = near, .after = after_put};
    return gnn_copy_start(host(self)->copies, &copy, ticket);
}

gnn_status gnn_host_wait_for(gnn_link *self, gnn_ticket ticket, double seconds,
                             bool *done) {
    REQUIRE_OWNER(host(self));
    return gnn_copy_wait(host(self)->copies, ticket, seconds < 0 ? 0 : seconds, done);
}

gnn_status gnn_host_poll(gnn_link *self, gnn_ticket ticket, bool *done) {
    return gnn_host_wait_for(self, ticket, 0, done);
}

gnn_status gnn_host_wait(gnn_link *self, gnn_ticket ticket) {
    bool done;
    REQUIRE_OWNER(host(self));
    return gnn_copy_wait(host(self)->copies, ticket, -1, &done);
}

gnn_status gnn_host_order(gnn_link *self, gnn_ticket ticket, gnn_stream stream) {
    (void)stream;
    return gnn_host_wait(self, ticket);
}

void gnn_host_ticket_free(gnn_link *self, gnn_ticket ticket) {
    if (!gnn_host_link_forked(host(self))) {
        gnn_copy_forget(host(self)->copies, ticket);
    }
}

void gnn_host_stats(gnn_link *self, gnn_link_stats *stats) {
    gnn_host_link *link = host(self);
    memset(stats, 0, sizeof *stats);
    stats->page_cache = link->page_cache;
    if (gnn_host_link_forked(link)) {
        return;
    }
    gnn_copy_stats(link->copies, stats);
    pthread_mutex_lock(&link->mutex);
    stats->slot_bytes = link->slots.used;
    stats->slot_peak = link->slots.peak;
    stats->tier_bytes = link->slots.end;
    pthread_mutex_unlock(&link->mutex);
}

/* -------------------------------------------------------------------------- measure */

enum { PROBE_PIECES = 8, PROBE_PIECE = 4 << 20 };
static const double PROBE_SECONDS = 0.7;

/* Copies the pieces of `slot` one way, all of one lap queued at once so that every
 * worker has work; stops after the lap that passes the time limit. */
static gnn_status probe_lap(gnn_host_link *link, bool out, gnn_slot slot, char *near) {
    gnn_ticket tickets[PROBE_PIECES] = {0};
    gnn_status status = GNN_OK;
    int64_t piece = slot.bytes / PROBE_PIECES;
    for (int p = 0; p < PROBE_PIECES; p++) {
        gnn_copy copy = {.out = out, .probe = true, .near = near + p * piece};
        copy.slot = (gnn_slot){slot.offset + p * piece, piece};
        gnn_status started = gnn_copy_start(link->copies, &copy, &tickets[p]);
        status = status == GNN_OK ? started : status;
    }
    for (int p = 0; p < PROBE_PIECES; p++) {
        bool done;
        gnn_status ended = gnn_copy_wait(link->copies, tickets[p], -1, &done);
        status = status == GNN_OK ? ended : status;
        gnn_copy_forget(link->copies, tickets[p]);
    }
    return status;
}

static gnn_status probe(gnn_host_link *link, bool out, gnn_slot slot, int64_t lap_bytes,
                        int64_t *laps, char *near, double *rate) {
    double begin = gnn_seconds(), seconds = 0;
    int64_t n = 0;
    while (n < *laps && (n == 0 || seconds < PROBE_SECONDS)) {
        gnn_slot lap = {slot.offset + n * lap_bytes, lap_bytes};
        GNN_TRY(probe_lap(link, out, lap, near));
        seconds = gnn_seconds() - begin;
        n++;
    }
    *rate = (double)(n * lap_bytes) / (seconds > 1e-9 ? seconds : 1e-9);
    *laps = n; // read back only what was written
    return GNN_OK;
}

/* Noise, since some file systems and disks compress. */
static void fill_noise(char *near, int64_t bytes) {
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (int64_t b = 0; b + 8 <= bytes; b += 8) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        memcpy(near + b, &state, 8);
    }
}

gnn_status gnn_host_measure(gnn_link *self, int64_t bytes, double *rate_out,
                            double *rate_in) {
    gnn_host_link *link = host(self);
    REQUIRE_OWNER(link);
    int64_t piece = gnn_slots_round(&link->slots, PROBE_PIECE);
    int64_t lap_bytes = piece * PROBE_PIECES, laps = bytes / lap_bytes;
    laps = laps < 1 ? 1 : laps;
    gnn_slot slot;
    GNN_TRY(gnn_host_slot_alloc(self, laps * lap_bytes, &slot));
    void *near = NULL;
    gnn_status status = GNN_OK;
    if (posix_memalign(&near, 4096, (size_t)lap_bytes)) {
        status = gnn_fail(GNN_ENOMEM, "link: no memory for %lld bytes of probe data",
                          (long long)lap_bytes);
    } else {
        fill_noise(near, lap_bytes);
        for (int pass = 0; pass < 2 && status == GNN_OK; pass++) { // the first touches
            status = probe(link, true, slot, lap_bytes, &laps, near, rate_out);
        }
        if (status == GNN_OK) {
            status = probe(link, false, slot, lap_bytes, &laps, near, rate_in);
        }
    }
    free(near);
    gnn_status freed = gnn_host_slot_free(self, slot);
    return status == GNN_OK ? freed : status;
}

/* engine_order.c: passes, the order in which their blocks come back, and prefetch.
 *
 * A pass numbers its blocks in the order of their first save. Backward is expected to
 * want them in reverse; after a pass of the same length the observed order of that pass
 * is expected instead. Only the order is learned: bytes are always the current pass's,
 * and a wrong guess costs time, never correctness.
 */
#include "engine_inner.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

double gnn_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

gnn_pass_stats *gnn_active_stats(gnn_engine *e) {
    return e->active ? &e->active->stats : &e->spare;
}

static void read_link(gnn_engine *e, gnn_link_stats *stats) {
    memset(stats, 0, sizeof *stats);
    if (e->link) {
        e->link->ops->stats(e->link, stats);
    }
}

/* -------------------------------------------------------------------------- learned */

static gnn_learned *find_learned(gnn_engine *e, int32_t n) {
    for (int i = 0; i < GNN_LEARNED; i++) {
        if (e->learned[i].n == n && n > 0) {
            return &e->learned[i];
        }
    }
    return NULL;
}

/* The place of length n, or the least recently used one. */
static gnn_learned *make_learned(gnn_engine *e, int32_t n) {
    gnn_learned *place = find_learned(e, n);
    if (place) {
        return place;
    }
    place = &e->learned[0];
    for (int i = 1; i < GNN_LEARNED; i++) {
        if (e->learned[i].used_at < place->used_at) {
            place = &e->learned[i];
        }
    }
    free(place->order);
    free(place->rank);
    *place = (gnn_learned){0};
    int32_t *order = calloc((size_t)n, sizeof *order);
    int32_t *rank = calloc((size_t)n, sizeof *rank);
    if (!order || !rank) {
        free(order), free(rank);
        return NULL; // the reverse order serves
    }
    *place = (gnn_learned){.n = n, .order = order, .rank = rank};
    return place;
}

/* Observed positions first, then what was never unpacked, newest first. */
static void learn(gnn_engine *e, const gnn_pass *pass) {
    if (pass->n_observed == 0) {
        return;
    }
    gnn_learned *place = make_learned(e, pass->n);
    if (!place) {
        return;
    }
    int32_t n = pass->n_observed;
    memcpy(place->order, pass->observed, (size_t)n * sizeof *place->order);
    for (int32_t position = pass->n - 1; position >= 0; position--) {
        if (!pass->entries[position].touched) {
            place->order[n++] = position;
        }
    }
    for (int32_t i = 0; i < pass->n; i++) {
        place->rank[place->order[i]] = i;
    }
    place->used_at = ++e->tick;
}

static int32_t predict(gnn_engine *e, const gnn_pass *pass, int32_t i) {
    const gnn_learned *learned = find_learned(e, pass->n);
    return learned ? learned->order[i] : pass->n - 1 - i;
}

static int32_t rank_of(gnn_engine *e, const gnn_pass *pass, int32_t position) {
    const gnn_learned *learned = find_learned(e, pass->n);
    return learned ? learned->rank[position] : pass->n - 1 - position;
}

/* --------------------------------------------------------------------------- passes */

/* On the compute stream, where the link can tell its time; a missing clock costs only
 * the report's seconds. */
static void start_clock(gnn_engine *e, gnn_pass *p, int which, gnn_stream stream) {
    if (gnn_engine_is_ordered(e) && !gnn_engine_is_captured(e, stream) &&
        e->link->ops->clock(e->link, stream, &p->clocks[which]) != GNN_OK) {
        p->clocks[which] = 0;
    }
}

static void free_pass(gnn_engine *e, gnn_pass *p) {
    for (int c = 0; c < GNN_CLOCKS; c++) {
        if (p->clocks[c] && e->link) {
            e->link->ops->mark_free(e->link, p->clocks[c]);
        }
    }
    free(p->entries);
    free(p->observed);
    free(p);
}

static void unlink_pass(gnn_engine *e, gnn_pass *p) {
    *(p->newer ? &p->newer->older : &e->newest) = p->older;
    if (p->older) {
        p->older->newer = p->newer;
    }
    e->active = e->active == p ? e->newest : e->active;
    e->n_passes--;
}

/* Ends a pass whose counters are complete. */
static void retire(gnn_engine *e, gnn_pass *p) {
    gnn_link_stats now;
    read_link(e, &now);
    if (e->link) {
        p->stats.busy_out = now.busy_out - p->link_at_begin.busy_out;
        p->stats.busy_in = now.busy_in - p->link_at_begin.busy_in;
    }
    if (gnn_engine_is_ordered(e)) {
        p->stats.stall_out += now.stall_out - p->link_at_begin.stall_out;
        p->stats.stall_in += now.stall_in - p->link_at_begin.stall_in;
    }
    if (e->history_n == GNN_HISTORY) { // nobody reads them: the oldest goes
        e->history_begin = (e->history_begin + 1) % GNN_HISTORY;
        e->history_n--;
    }
    e->history[(e->history_begin + e->history_n++) % GNN_HISTORY] = p->stats;
    free_pass(e, p);
}

/* Seconds between two clocks replace the host's. False: not yet, ask again. */
static bool read_clock(gnn_engine *e, gnn_pass *p, int from, bool wait,
                       double *seconds) {
    gnn_mark begin = p->clocks[from], end = p->clocks[from + 1];
    bool done = true;
    double measured = 0;
    if (!e->link || !begin || !end ||
        e->link->ops->seconds(e->link, begin, end, wait, &done, &measured) != GNN_OK) {
        return true; // the host's will do
    }
    *seconds = done ? measured : *seconds;
    return done;
}

/* Retires finished passes that the device is done with. */
static void settle_ending(gnn_engine *e, bool wait) {
    for (gnn_pass *p; (p = e->ending);) {
        if (!read_clock(e, p, GNN_AT_BEGIN, wait, &p->stats.forward_seconds) ||
            !read_clock(e, p, GNN_AT_UNPACK, wait, &p->stats.backward_seconds)) {
            return;
        }
        e->ending = p->newer;
        retire(e, p);
    }
}

static void finish_pass(gnn_engine *e, gnn_pass *p) {
    p->stats.forward_seconds = p->left_at - p->begin_at;
    p->stats.backward_seconds = p->unpacked ? gnn_now() - p->unpack_at : 0;
    start_clock(e, p, GNN_AT_END, e->stream);
    learn(e, p);
    unlink_pass(e, p);
    gnn_pass **last = &e->ending;
    while (*last) {
        last = &(*last)->newer;
    }
    p->newer = NULL;
    *last = p;
    if (!gnn_engine_is_ordered(e)) {
        settle_ending(e, false);
    }
}

gnn_status gnn_pass_begin(gnn_engine *e, gnn_stream stream, gnn_pass **pass) {
    gnn_pass *p = calloc(1, sizeof *p);
    GNN_REQUIRE(p, GNN_ENOMEM, "offload: no memory for a pass");
    gnn_engine_see(e, stream);
    settle_ending(e, false);
    start_clock(e, p, GNN_AT_BEGIN, stream);
    p->older = e->newest;
    if (e->newest) {
        e->newest->newer = p;
    }
    e->newest = e->active = p;
    e->n_passes++;
    p->begin_at = gnn_now();
    read_link(e, &p->link_at_begin);
    p->stats.number = ++e->pass_number;
    p->stats.budget = e->budget;
    p->stats.out_window = e->out_window;
    p->stats.in_window = e->in_window;
    *pass = p;
    return GNN_OK;
}

void gnn_pass_end(gnn_engine *e, gnn_pass *p, gnn_stream stream) {
    start_clock(e, p, GNN_AT_LEFT, stream);
    p->left = true;
    p->left_at = gnn_now();
    if (p->live == 0) {
        finish_pass(e, p);
    }
}

void gnn_pass_release(gnn_engine *e, gnn_pass *p, int32_t position) {
    gnn_entry *entry = &p->entries[position];
    if (--entry->uses == 0) {
        entry->block = NULL;
    }
    if (--p->live == 0 && p->left) {
        finish_pass(e, p);
    }
}

void gnn_pass_free_all(gnn_engine *e) {
    while (e->newest) {
        gnn_pass *p = e->newest;
        unlink_pass(e, p);
        free_pass(e, p);
    }
    for (gnn_pass *p = e->ending, *next; p; p = next) {
        next = p->newer;
        free_pass(e, p);
    }
    for (int i = 0; i < GNN_LEARNED; i++) {
        free(e->learned[i].order);
        free(e->learned[i].rank);
    }
}

gnn_pass_stats *gnn_pass_counters(gnn_pass *pass) {
    return &pass->stats;
}

bool gnn_engine_take_finished(gnn_engine *e, bool wait, gnn_pass_stats *stats) {
    settle_ending(e, wait);
    if (e->history_n == 0) {
        return false;
    }
    *stats = e->history[e->history_begin];
    e->history_begin = (e->history_begin + 1) % GNN_HISTORY;
    e->history_n--;
    return true;
}

/* ------------------------------------------------------------------------- prefetch */

void gnn_engine_touch(gnn_engine *e, const gnn_use *use, gnn_stream stream) {
    gnn_pass *p = use->pass;
    gnn_entry *entry = &p->entries[use->position];
    e->active = p;
    gnn_engine_refresh(e);
    if (!p->unpacked) {
        p->unpacked = true;
        p->unpack_at = gnn_now();
        start_clock(e, p, GNN_AT_UNPACK, stream);
    }
    if (!entry->touched) {
        entry->touched = true;
        p->observed[p->n_observed++] = use->position;
    }
    int32_t rank = rank_of(e, p, use->position);
    if (rank < p->last_rank || rank >= p->scan) { // a second backward, or a jump ahead
        p->scan = rank + 1;
    }
    p->last_rank = rank;
}

void gnn_engine_ahead(gnn_engine *e, const gnn_use *use, gnn_action *action) {
    *action = (gnn_action){.kind = GNN_ACT_NONE};
    if (!e->link || e->in_window == 0) {
        return;
    }
    for (gnn_pass *p = use->pass; p; p = p->older) {
        for (; p->scan < p->n; p->scan++) {
            gnn_block *b = p->entries[predict(e, p, p->scan)].block;
            if (!b || b->state != GNN_OUT || b->error) {
                continue;
            }
            int64_t bytes = b->hi - b->lo;
            const gnn_block_list *inward = &e->lists[GNN_INWARD];
            if (inward->head && inward->bytes + bytes > e->in_window) {
                return;
            }
            p->scan++;
            *action = gnn_act_pinned(GNN_ACT_ALLOCATE, b);
            action->ahead = true;
            return;
        }
    }
}

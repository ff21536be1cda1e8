/* exec_warp.cpp: barriers and warp collectives.
 *
 * A collective completes when every lane of its mask that has not exited waits at it, at
 * the same place with the same mask. Lanes that wait for each other elsewhere will never
 * meet: that is reported, not waited for.
 */
#include "exec_state.h"

#include <cstdio>

namespace exec {

#define EXEC_TEXT(name, text) text,
static const char *const collective_texts[] = {EXEC_COLLECTIVES(EXEC_TEXT)};

const char *text_of(Collective what) {
    return collective_texts[what];
}

static bool same_place(const Thread *a, const Thread *b) {
    return a->what == b->what && a->site.line == b->site.line &&
           std::strcmp(a->site.file, b->site.file) == 0;
}

static Thread *lane_of(unsigned warp, unsigned lane) {
    return &ex.threads[warp * WARP + lane];
}

static void check_budget(const Site &site) {
    if (ex.over_budget()) {
        fail(site, EXEC_ENDLESS, (unsigned long long)ex.budget);
    }
}

/* ------------------------------------------------------------------------ __syncthreads */

static void try_block() {
    if (ex.n_at_barrier == 0 || ex.n_at_barrier < ex.n_alive) {
        return;
    }
    uint32_t clock = 0;
    for (unsigned id = 0; id < ex.n_threads; id++) {
        Thread *t = &ex.threads[id];
        clock = std::max(clock, t->clock);
        if (t->waiting == AT_BLOCK) {
            t->waiting = READY;
        }
    }
    ex.n_at_barrier = 0;
    ex.base_clock = clock + 1;
    for (unsigned id = 0; id < ex.n_threads; id++) {
        ex.threads[id].clock = ex.base_clock;
    }
}

void block_barrier(Site site) {
    Thread *t = ex.current;
    check_budget(site);
    t->what = SYNCTHREADS, t->site = site;
    t->phase++;
    for (unsigned id = 0; ex.n_at_barrier > 0 && id < ex.n_threads; id++) {
        const Thread *other = &ex.threads[id];
        if (other->waiting == AT_BLOCK) {
            if (!same_place(other, t)) {
                fail(site, "divergent barrier: thread %s waits at %s",
                     text_of(other->index).c_str(), where(other->site).c_str());
            }
            break; // the others were compared when they came
        }
    }
    t->waiting = AT_BLOCK;
    ex.n_at_barrier++;
    try_block();
    if (t->waiting != READY) {
        leave();
    }
}

/* -------------------------------------------------------------------- warp collectives */

/* PTX's shfl: the segment of a lane, clamped. Returns the lane that is read. */
static unsigned source_lane(const Thread *t) {
    const unsigned width = unsigned(t->width),
                   bits = unsigned(t->argument) & (WARP - 1);
    const unsigned first = t->lane & ~(width - 1), last = first + width - 1;
    switch (t->what) {
    case SHFL:
        return first + (bits & (width - 1));
    case SHFL_UP:
        return t->lane >= first + bits ? t->lane - bits : t->lane;
    case SHFL_DOWN:
        return t->lane + bits <= last ? t->lane + bits : t->lane;
    default: // xor: an earlier segment may be read, a later one not
        return (t->lane ^ bits) <= last ? t->lane ^ bits : t->lane;
    }
}

static void shuffle(Thread *t, unsigned present) {
    const unsigned from = source_lane(t);
    if (!(present >> from & 1)) {
        ex.current = t; // the one to blame
        const bool named = t->mask >> from & 1;
        fail(t->site, "%s reads lane %u, which %s", text_of(t->what), from,
             named ? "has exited" : "is not in the mask");
    }
    t->result = lane_of(t->warp, from)->value;
}

/* Every access of a lane before __syncwarp comes before those of the others after it. */
static void order_memory(unsigned warp, unsigned lanes) {
    uint32_t known[WARP] = {0};
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (lanes >> lane & 1) {
            Thread *t = lane_of(warp, lane);
            t->known[lane] = t->clock++;
            for (unsigned i = 0; i < WARP; i++) {
                known[i] = std::max(known[i], t->known[i]);
            }
        }
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (lanes >> lane & 1) {
            std::copy(known, known + WARP, lane_of(warp, lane)->known);
        }
    }
}

static void complete(Thread *first, unsigned lanes) {
    unsigned votes = 0;
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (lanes >> lane & 1) {
            votes |= unsigned(lane_of(first->warp, lane)->value & 1) << lane;
        }
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(lanes >> lane & 1)) {
            continue;
        }
        Thread *t = lane_of(first->warp, lane);
        switch (t->what) {
        case SYNCTHREADS:
        case SYNCWARP:
            break;
        case SHFL:
        case SHFL_UP:
        case SHFL_DOWN:
        case SHFL_XOR:
            shuffle(t, lanes);
            break;
        case BALLOT:
            t->result = votes;
            break;
        case ANY:
            t->result = votes != 0;
            break;
        case ALL:
            t->result = votes == lanes;
            break;
        }
        t->waiting = READY;
    }
    if (first->what == SYNCWARP) {
        order_memory(first->warp, lanes);
    }
    ex.warp_waiting[first->warp] &= ~lanes;
}

/* Completes the collective at which t waits, if all lanes that it names are there. */
static void try_lane(Thread *t) {
    const unsigned lanes = t->mask & ex.warp_alive[t->warp];
    bool all_here = (lanes & ~ex.warp_waiting[t->warp]) == 0;
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(lanes & ex.warp_waiting[t->warp] & 1u << lane)) {
            continue;
        }
        const Thread *other = lane_of(t->warp, lane);
        if (same_place(t, other) && t->mask == other->mask) {
            if (!all_here) {
                return; // the usual case: compared with the others when they came
            }
        } else if (other->mask >> t->lane & 1) {
            ex.current = t;
            if (same_place(t, other)) {
                fail(t->site, "%s with mask %08x, but lane %u named mask %08x",
                     text_of(t->what), t->mask, other->lane, other->mask);
            }
            fail(t->site, "divergent %s: lane %u of its mask waits in %s at %s",
                 text_of(t->what), other->lane, text_of(other->what),
                 where(other->site).c_str());
        } else {
            all_here = false; // that lane will come later
        }
    }
    if (all_here) {
        complete(t, lanes);
    }
}

uint64_t collective(Collective what, unsigned mask, uint64_t value, int argument,
                    int width, Site site) {
    Thread *t = ex.current;
    check_budget(site);
    if (!(mask >> t->lane & 1)) {
        fail(site, "%s with mask %08x by lane %u, which is not in it", text_of(what),
             mask, t->lane);
    }
    if (width < 1 || width > WARP || (width & (width - 1)) != 0) {
        fail(site, "%s with width %d: a power of two up to 32", text_of(what), width);
    }
    t->what = what, t->mask = mask, t->value = value, t->argument = argument;
    t->width = width, t->site = site;
    t->phase++;
    t->waiting = AT_WARP;
    ex.warp_waiting[t->warp] |= 1u << t->lane;
    try_lane(t);
    if (t->waiting != READY) {
        leave();
    }
    return t->result;
}

/* --------------------------------------------------------------------------------- exit */

void thread_done(Thread *t) {
    t->waiting = DONE;
    ex.n_alive--;
    ex.warp_alive[t->warp] &= ~(1u << t->lane);
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (ex.warp_waiting[t->warp] >> lane & 1) {
            try_lane(lane_of(t->warp, lane));
        }
    }
    try_block();
}

/* "thread (0,0,0) waits in __shfl_sync at a.cu:3 for lane 5, which waits in ..." */
std::string who_waits() {
    for (unsigned id = 0; id < ex.n_threads; id++) {
        const Thread *t = &ex.threads[id];
        if (t->waiting != AT_WARP) {
            continue;
        }
        std::string text = "thread " + text_of(t->index) + " waits in " +
                           text_of(t->what) + " at " + where(t->site);
        const unsigned lanes = t->mask & ex.warp_alive[t->warp];
        for (unsigned lane = 0; lane < WARP; lane++) {
            const Thread *other = lane_of(t->warp, lane);
            if (lanes >> lane & 1 &&
                !(same_place(t, other) && t->mask == other->mask)) {
                return text + " for lane " + std::to_string(lane) +
                       ", which waits in " + text_of(other->what) + " at " +
                       where(other->site);
            }
        }
    }
    return "no thread can run";
}

} // namespace exec

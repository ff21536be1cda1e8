/* engine_rig.h: what the engine's tests share: a fake link whose copies end when the test
 * says so, and a caller whose owners are plain structs, so that what tensors do elsewhere
 * (being owned by somebody else, changing in place, dying) is one assignment. */
#ifndef GNN_ENGINE_RIG_H
#define GNN_ENGINE_RIG_H

#include "offload/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                     \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

enum { BYTES = 100, MANY = 64, TICKETS = 1 << 16 };

/* ------------------------------------------------------------------------- fake link */

typedef struct copy {
    char *to;
    const char *from;
    int64_t bytes;
    bool done, freed;
    gnn_status status;
} copy;

typedef struct fake_link {
    gnn_link base;
    int64_t limit, used;
    int64_t n_slots;
    copy copies[TICKETS];
    uint64_t n_copies;
    bool instant;           // copies end at once
    bool at_once;           // and some have no ticket
    unsigned chance;        // else: a poll ends the copy once in `chance`
    int fail_put, fail_get; // counted down; at 1 the copy fails
} fake_link;

static unsigned seed = 1;
static inline unsigned draw(unsigned n) {
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

static inline gnn_status slot_alloc(gnn_link *base, int64_t bytes, gnn_slot *slot) {
    fake_link *link = (fake_link *)base;
    GNN_REQUIRE(link->used + bytes <= link->limit, GNN_EFULL, "fake: full");
    link->used += bytes;
    link->n_slots++;
    *slot =
        (gnn_slot){.offset = (int64_t)(intptr_t)malloc((size_t)bytes), .bytes = bytes};
    return GNN_OK;
}

static inline gnn_status slot_free(gnn_link *base, gnn_slot slot) {
    fake_link *link = (fake_link *)base;
    link->used -= slot.bytes;
    link->n_slots--;
    free((void *)(intptr_t)slot.offset);
    return GNN_OK;
}

static inline gnn_status mark(gnn_link *link, gnn_stream stream, gnn_mark *to) {
    (void)link, (void)stream;
    *to = 0;
    return GNN_OK;
}

static inline void mark_free(gnn_link *link, gnn_mark which) {
    (void)link, (void)which;
}

static inline void finish(copy *c) {
    if (!c->done && c->status == GNN_OK) {
        memcpy(c->to, c->from, (size_t)c->bytes);
    }
    c->done = true;
}

static inline gnn_status start(fake_link *link, char *to, const char *from,
                               int64_t bytes, int *countdown, gnn_ticket *ticket) {
    CHECK(link->n_copies < TICKETS);
    if (link->at_once && draw(2) == 0) {
        memcpy(to, from, (size_t)bytes);
        *ticket = 0;
        return GNN_OK;
    }
    bool fails = *countdown > 0 && --*countdown == 0;
    copy *c = &link->copies[link->n_copies++];
    *c = (copy){to, from, bytes, false, false, fails ? GNN_EIO : GNN_OK};
    *ticket = link->n_copies;
    if (link->instant) {
        finish(c);
    }
    return GNN_OK;
}

static inline gnn_status put(gnn_link *base, gnn_slot slot, const void *near,
                             gnn_mark after, gnn_ticket *ticket) {
    fake_link *link = (fake_link *)base;
    (void)after;
    return start(link, (char *)(intptr_t)slot.offset, near, slot.bytes, &link->fail_put,
                 ticket);
}

static inline gnn_status get(gnn_link *base, gnn_slot slot, void *near, gnn_mark after,
                             gnn_ticket after_put, gnn_ticket *ticket) {
    fake_link *link = (fake_link *)base;
    (void)after, (void)after_put;
    return start(link, near, (char *)(intptr_t)slot.offset, slot.bytes, &link->fail_get,
                 ticket);
}

static inline gnn_status ended(copy *c) {
    CHECK(!c->freed);
    return c->status == GNN_OK ? GNN_OK : gnn_fail(c->status, "fake: broken");
}

static inline gnn_status poll(gnn_link *base, gnn_ticket ticket, bool *done) {
    fake_link *link = (fake_link *)base;
    copy *c = &link->copies[ticket - 1];
    if (!c->done && link->chance && draw(link->chance) == 0) {
        finish(c);
    }
    *done = c->done;
    return *done ? ended(c) : GNN_OK;
}

static inline gnn_status wait(gnn_link *base, gnn_ticket ticket) {
    copy *c = &((fake_link *)base)->copies[ticket - 1];
    finish(c);
    return ended(c);
}

static inline void ticket_free(gnn_link *base, gnn_ticket ticket) {
    copy *c = &((fake_link *)base)->copies[ticket - 1];
    CHECK(c->done && !c->freed); // the engine frees a ticket once, after the copy
    c->freed = true;
}

static inline void stats(gnn_link *link, gnn_link_stats *to) {
    (void)link;
    memset(to, 0, sizeof *to);
}

static inline void close_link(gnn_link *base) {
    fake_link *link = (fake_link *)base;
    CHECK(link->n_slots == 0 && link->used == 0);
    for (uint64_t i = 0; i < link->n_copies; i++) {
        CHECK(link->copies[i].done && link->copies[i].freed);
    }
    free(link);
}

static const gnn_link_ops fake_ops = {
    .name = "fake",
    .slot_alloc = slot_alloc,
    .slot_free = slot_free,
    .mark = mark,
    .mark_free = mark_free,
    .put = put,
    .get = get,
    .poll = poll,
    .wait = wait,
    .ticket_free = ticket_free,
    .stats = stats,
    .close = close_link,
};

/* --------------------------------------------------------------- the caller's tensors */

typedef struct tensor {
    char data[BYTES];
    int64_t version;
    bool owned; // by somebody else too
} tensor;

static int64_t n_tensors;

static inline tensor *make_tensor(int value) {
    tensor *t = calloc(1, sizeof *t);
    memset(t->data, value, sizeof t->data);
    n_tensors++;
    return t;
}

static inline void drop(void *owner) {
    if (owner) {
        n_tensors--;
        free(owner);
    }
}

static fake_link *link_now;
static gnn_engine *engine;
static int64_t n_full; // statuses that settle reported

static inline void open_engine(int64_t budget, int64_t out_window, int64_t in_window) {
    link_now = calloc(1, sizeof *link_now);
    CHECK(link_now);
    link_now->base.ops = &fake_ops;
    link_now->limit = 1 << 20;
    link_now->instant = true;
    gnn_engine_options options = {&link_now->base, budget, out_window, in_window};
    CHECK(gnn_engine_open(&options, &engine) == GNN_OK);
    n_full = 0;
}

static inline void answer(const gnn_action *a) {
    tensor *t = a->owner;
    if (a->kind == GNN_ACT_DROP) {
        drop(t);
    } else if (a->kind == GNN_ACT_TEST) {
        gnn_verdict verdict = t->version != a->version ? GNN_CHANGED
                              : t->owned               ? GNN_STILL_OWNED
                                                       : GNN_FREE;
        gnn_engine_tested(engine, a->block, verdict, t->version);
    } else if (a->kind == GNN_ACT_WAIT) {
        gnn_status status = wait(&link_now->base, a->ticket);
        gnn_engine_waited(engine, a->block, true, status, 0.25);
    } else {
        CHECK(a->kind == GNN_ACT_ALLOCATE && a->bytes == BYTES);
        tensor *room = make_tensor(0xEE);
        bool taken;
        CHECK(gnn_engine_allocated(engine, a, (uintptr_t)room, room->data, BYTES, 0, 0,
                                   room, &taken) == GNN_OK);
        if (!taken) {
            drop(room);
        }
    }
}

static inline void settle(void) {
    for (gnn_action action;;) {
        gnn_status status = gnn_engine_next(engine, &action);
        if (status != GNN_OK) {
            n_full++;
        } else if (action.kind == GNN_ACT_NONE) {
            return;
        } else {
            answer(&action);
        }
    }
}

static inline gnn_use save(gnn_pass *pass, tensor *t) {
    gnn_block *b = gnn_engine_find(engine, (uintptr_t)t);
    gnn_use use;
    if (!b) {
        CHECK(gnn_engine_add(engine, pass, (uintptr_t)t, t->data, BYTES, t->version, 0,
                             t, &b) == GNN_OK);
    }
    CHECK(gnn_engine_save(engine, pass, b, 0, BYTES, &use) == GNN_OK);
    settle();
    return use;
}

/* Unpack; the first byte, or minus the status. */
static inline int unpack(const gnn_use *use) {
    gnn_engine_touch(engine, use, 0);
    for (gnn_action action;;) {
        gnn_status status = gnn_engine_fetch(engine, use, 0, &action);
        if (status != GNN_OK) {
            return -(int)status;
        }
        if (action.kind == GNN_ACT_NONE) {
            break;
        }
        answer(&action);
    }
    char *base = gnn_block_base(use->block);
    for (int i = 1; i < BYTES; i++) {
        CHECK(base[i] == base[0]);
    }
    int value = (unsigned char)base[0];
    for (gnn_action action;;) {
        gnn_engine_ahead(engine, use, &action);
        if (action.kind == GNN_ACT_NONE) {
            break;
        }
        answer(&action);
    }
    settle();
    return value;
}

static inline int64_t held(gnn_account account) {
    return gnn_engine_bytes(engine, account);
}

static inline void close_engine(void) {
    gnn_engine_shut(engine);
    settle();
    CHECK(gnn_engine_live_blocks(engine) == 0 && gnn_engine_live_passes(engine) == 0);
    gnn_engine_free(engine);
    CHECK(n_tensors == 0);
}

static inline gnn_pass *begin(void) {
    gnn_pass *pass;
    CHECK(gnn_pass_begin(engine, 0, &pass) == GNN_OK);
    return pass;
}

static inline gnn_pass_stats last_finished(void) {
    gnn_pass_stats s, found = {0};
    while (gnn_engine_take_finished(engine, false, &s)) {
        found = s;
    }
    return found;
}

static inline void release(gnn_use *use) {
    drop(gnn_engine_release(engine, use));
}

#endif

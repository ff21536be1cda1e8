/* test_offload_engine.c: the policy engine against a fake link whose copies end when the
 * test says so. Owners are plain structs, so that what tensors do elsewhere (being owned by
 * somebody else, changing in place, dying) is one assignment here.
 * law: 4 6 7 9 */
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
    unsigned chance;        // else: a poll ends the copy once in `chance`
    int fail_put, fail_get; // counted down; at 1 the copy fails
} fake_link;

static unsigned seed = 1;
static unsigned draw(unsigned n) {
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

static gnn_status slot_alloc(gnn_link *base, int64_t bytes, gnn_slot *slot) {
    fake_link *link = (fake_link *)base;
    GNN_REQUIRE(link->used + bytes <= link->limit, GNN_EFULL, "fake: full");
    link->used += bytes;
    link->n_slots++;
    *slot =
        (gnn_slot){.offset = (int64_t)(intptr_t)malloc((size_t)bytes), .bytes = bytes};
    return GNN_OK;
}

static gnn_status slot_free(gnn_link *base, gnn_slot slot) {
    fake_link *link = (fake_link *)base;
    link->used -= slot.bytes;
    link->n_slots--;
    free((void *)(intptr_t)slot.offset);
    return GNN_OK;
}

static gnn_status mark(gnn_link *link, gnn_stream stream, gnn_mark *to) {
    (void)link, (void)stream;
    *to = 0;
    return GNN_OK;
}

static void mark_free(gnn_link *link, gnn_mark which) {
    (void)link, (void)which;
}

static void finish(copy *c) {
    if (!c->done && c->status == GNN_OK) {
        memcpy(c->to, c->from, (size_t)c->bytes);
    }
    c->done = true;
}

static gnn_status start(fake_link *link, char *to, const char *from, int64_t bytes,
                        int *countdown, gnn_ticket *ticket) {
    CHECK(link->n_copies < TICKETS);
    bool fails = *countdown > 0 && --*countdown == 0;
    copy *c = &link->copies[link->n_copies++];
    *c = (copy){to, from, bytes, false, false, fails ? GNN_EIO : GNN_OK};
    *ticket = link->n_copies;
    if (link->instant) {
        finish(c);
    }
    return GNN_OK;
}

static gnn_status put(gnn_link *base, gnn_slot slot, const void *near, gnn_mark after,
                      gnn_ticket *ticket) {
    fake_link *link = (fake_link *)base;
    (void)after;
    return start(link, (char *)(intptr_t)slot.offset, near, slot.bytes, &link->fail_put,
                 ticket);
}

static gnn_status get(gnn_link *base, gnn_slot slot, void *near, gnn_mark after,
                      gnn_ticket after_put, gnn_ticket *ticket) {
    fake_link *link = (fake_link *)base;
    (void)after, (void)after_put;
    return start(link, near, (char *)(intptr_t)slot.offset, slot.bytes, &link->fail_get,
                 ticket);
}

static gnn_status ended(copy *c) {
    CHECK(!c->freed);
    return c->status == GNN_OK ? GNN_OK : gnn_fail(c->status, "fake: broken");
}

static gnn_status poll(gnn_link *base, gnn_ticket ticket, bool *done) {
    fake_link *link = (fake_link *)base;
    copy *c = &link->copies[ticket - 1];
    if (!c->done && link->chance && draw(link->chance) == 0) {
        finish(c);
    }
    *done = c->done;
    return *done ? ended(c) : GNN_OK;
}

static gnn_status wait(gnn_link *base, gnn_ticket ticket) {
    copy *c = &((fake_link *)base)->copies[ticket - 1];
    finish(c);
    return ended(c);
}

static void ticket_free(gnn_link *base, gnn_ticket ticket) {
    copy *c = &((fake_link *)base)->copies[ticket - 1];
    CHECK(c->done && !c->freed); // the engine frees a ticket once, after the copy
    c->freed = true;
}

static void stats(gnn_link *link, gnn_link_stats *to) {
    (void)link;
    memset(to, 0, sizeof *to);
}

static void close_link(gnn_link *base) {
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

static tensor *make_tensor(int value) {
    tensor *t = calloc(1, sizeof *t);
    memset(t->data, value, sizeof t->data);
    n_tensors++;
    return t;
}

static void drop(void *owner) {
    if (owner) {
        n_tensors--;
        free(owner);
    }
}

static fake_link *link_now;
static gnn_engine *engine;
static int64_t n_full; // statuses that settle reported

static void open_engine(int64_t budget, int64_t out_window, int64_t in_window) {
    link_now = calloc(1, sizeof *link_now);
    CHECK(link_now);
    link_now->base.ops = &fake_ops;
    link_now->limit = 1 << 20;
    link_now->instant = true;
    gnn_engine_options options = {&link_now->base, budget, out_window, in_window};
    CHECK(gnn_engine_open(&options, &engine) == GNN_OK);
    n_full = 0;
}

static void answer(const gnn_action *a) {
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

static void settle(void) {
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

static gnn_use save(gnn_pass *pass, tensor *t) {
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
static int unpack(const gnn_use *use) {
    gnn_engine_touch(engine, use);
    for (gnn_action action;;) {
        gnn_status status = gnn_engine_fetch(engine, use, &action);
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

static int64_t held(gnn_account account) {
    return gnn_engine_bytes(engine, account);
}

static void close_engine(void) {
    gnn_engine_shut(engine);
    settle();
    CHECK(gnn_engine_live_blocks(engine) == 0 && gnn_engine_live_passes(engine) == 0);
    gnn_engine_free(engine);
    CHECK(n_tensors == 0);
}

static gnn_pass *begin(void) {
    gnn_pass *pass;
    CHECK(gnn_pass_begin(engine, &pass) == GNN_OK);
    return pass;
}

static gnn_pass_stats last_finished(void) {
    gnn_pass_stats s, found = {0};
    while (gnn_engine_take_finished(engine, &s)) {
        found = s;
    }
    return found;
}

static void release(gnn_use *use) {
    drop(gnn_engine_release(engine, use));
}

/* ------------------------------------------------------------------------------ tests */

static void test_budget_and_windows(void) {
    open_engine(3 * BYTES, 2 * BYTES, 2 * BYTES);
    link_now->instant = false; // copies end only when waited for
    gnn_pass *pass = begin();
    gnn_use uses[10];
    for (int i = 0; i < 10; i++) {
        uses[i] = save(pass, make_tensor(i));
        CHECK(held(GNN_RESIDENT) <= 3 * BYTES && held(GNN_OUTWARD) <= 2 * BYTES);
    }
    CHECK(held(GNN_RESIDENT) == 3 * BYTES && link_now->n_slots == 7);
    gnn_pass_end(engine, pass);
    for (int i = 9; i >= 0; i--) {
        CHECK(unpack(&uses[i]) == i);
        CHECK(held(GNN_INWARD) <= 2 * BYTES);
        release(&uses[i]);
    }
    settle();
    gnn_pass_stats s = last_finished();
    CHECK(s.copies_out == 7 && s.copies_in >= 5 && s.prefetched == s.copies_in);
    CHECK(s.copies_in + s.forwarded == 7 && s.stall_out >= 0.25);
    CHECK(s.peak_counted <= 7 * BYTES + BYTES && s.over_budget <= 0);
    close_engine();
}

static void test_what_fits_is_never_copied(void) {
    open_engine(10 * BYTES, BYTES, BYTES);
    gnn_pass *pass = begin();
    gnn_use uses[10];
    for (int i = 0; i < 10; i++) {
        uses[i] = save(pass, make_tensor(i));
    }
    CHECK(link_now->n_copies == 0);
    gnn_pass_end(engine, pass);
    for (int i = 0; i < 10; i++) {
        CHECK(unpack(&uses[i]) == i);
        release(&uses[i]);
    }
    close_engine();
}

static void test_owned_blocks_stay_until_they_are_free(void) {
    open_engine(0, BYTES, BYTES);
    gnn_pass *pass = begin();
    tensor *shared = make_tensor(1);
    shared->owned = true;
    gnn_use a = save(pass, shared), again = save(pass, shared);
    CHECK(held(GNN_OWNED) == BYTES && link_now->n_copies == 0);
    CHECK(a.block == again.block && gnn_pass_counters(pass)->deduplicated == 1);
    shared->owned = false;
    gnn_use b = save(pass, make_tensor(2)); // looks at it again
    CHECK(held(GNN_OWNED) == 0 && link_now->n_slots == 2);
    gnn_pass_end(engine, pass);
    CHECK(unpack(&b) == 2 && unpack(&a) == 1 && unpack(&again) == 1);
    release(&a);
    CHECK(unpack(&again) == 1); // one use is left
    release(&again), release(&b);
    close_engine();
}

static void test_changes_in_place_poison(void) {
    open_engine(0, BYTES, BYTES);
    gnn_pass *pass = begin();
    tensor *t = make_tensor(1);
    t->owned = true;
    gnn_use a = save(pass, t);
    t->version++;
    gnn_use b = save(pass, make_tensor(2)); // tests t's block: changed
    CHECK(gnn_block_changed(a.block) == 1 && gnn_block_owner(a.block) == NULL);
    CHECK(unpack(&a) == -GNN_ESTATE && unpack(&b) == 2 && unpack(&a) == -GNN_ESTATE);
    gnn_pass_end(engine, pass);
    release(&a), release(&b);
    CHECK(last_finished().poisoned == 1);
    close_engine();
}

static void test_a_change_while_leaving_poisons(void) {
    open_engine(0, 10 * BYTES, BYTES);
    link_now->instant = false;
    gnn_pass *pass = begin();
    tensor *t = make_tensor(1);
    gnn_use a = save(pass, t);
    CHECK(held(GNN_OUTWARD) == BYTES);
    t->version++;
    CHECK(gnn_engine_poison(engine, a.block, 1) == NULL); // the copy still reads it
    CHECK(unpack(&a) == -GNN_ESTATE);
    gnn_pass_end(engine, pass);
    release(&a);
    close_engine();
}

static void test_unpack_is_repeatable_and_clean_blocks_drop(void) {
    open_engine(0, BYTES, BYTES);
    gnn_pass *pass = begin();
    gnn_use uses[5];
    for (int i = 0; i < 5; i++) {
        uses[i] = save(pass, make_tensor(i));
    }
    gnn_pass_end(engine, pass);
    for (int round = 0; round < 3; round++) {
        for (int i = 4; i >= 0; i--) {
            CHECK(unpack(&uses[i]) == i);
        }
    }
    uint64_t puts = 5;
    for (int i = 0; i < 5; i++) {
        release(&uses[i]);
    }
    gnn_pass_stats s = last_finished();
    CHECK((uint64_t)s.copies_out == puts && s.copies_in >= 13 && s.dropped_clean >= 15);
    close_engine();
}

static void test_the_observed_order_is_learned(void) {
    open_engine(0, BYTES, 2 * BYTES);
    const int order[6] = {5, 2, 4, 0, 3, 1};
    int64_t late[2];
    for (int round = 0; round < 2; round++) {
        gnn_pass *pass = begin();
        gnn_use uses[6];
        for (int i = 0; i < 6; i++) {
            uses[i] = save(pass, make_tensor(i));
        }
        gnn_pass_end(engine, pass);
        int64_t demanded = 0;
        for (int i = 0; i < 6; i++) {
            demanded += gnn_block_owner(uses[order[i]].block) == NULL;
            CHECK(unpack(&uses[order[i]]) == order[i]);
            release(&uses[order[i]]);
        }
        late[round] = demanded;
    }
    CHECK(late[0] > 1 && late[1] == 1); // then only the first was not there yet
    close_engine();
}

static void test_prefetch_goes_on_into_older_passes(void) {
    open_engine(0, BYTES, BYTES);
    gnn_pass *old = begin();
    gnn_use first = save(old, make_tensor(1));
    gnn_pass_end(engine, old);
    gnn_pass *young = begin();
    gnn_use second = save(young, make_tensor(2));
    gnn_pass_end(engine, young);
    CHECK(gnn_engine_live_passes(engine) == 2);
    CHECK(unpack(&second) == 2);
    CHECK(gnn_block_owner(first.block) != NULL);
    CHECK(unpack(&first) == 1);
    release(&second), release(&first);
    CHECK(gnn_engine_live_passes(engine) == 0);
    close_engine();
}

static void test_a_full_tier_keeps(void) {
    open_engine(0, BYTES, BYTES);
    link_now->limit = 2 * BYTES;
    gnn_pass *pass = begin();
    gnn_use uses[5];
    for (int i = 0; i < 5; i++) {
        uses[i] = save(pass, make_tensor(i));
    }
    CHECK(n_full == 3 && held(GNN_KEPT) == 3 * BYTES);
    CHECK(gnn_engine_take_warning(engine) && !gnn_engine_take_warning(engine));
    gnn_pass_end(engine, pass);
    for (int i = 4; i >= 0; i--) {
        CHECK(unpack(&uses[i]) == i);
        release(&uses[i]);
    }
    CHECK(last_finished().full == 3);
    close_engine();
}

static void test_failed_copies(void) {
    open_engine(0, BYTES, BYTES);
    link_now->fail_put = 1;
    gnn_pass *pass = begin();
    gnn_use a = save(pass, make_tensor(1)), b = save(pass, make_tensor(2));
    CHECK(held(GNN_KEPT) == BYTES && gnn_engine_take_warning(engine));
    CHECK(unpack(&a) == 1); // a failed write loses nothing
    link_now->fail_get = 1;
    CHECK(unpack(&b) == -GNN_EIO && strstr(gnn_message(), "broken"));
    CHECK(unpack(&b) == -GNN_EIO); // no retry into success
    gnn_pass_end(engine, pass);
    release(&a), release(&b);
    gnn_pass_stats s = last_finished();
    CHECK(s.failed_writes == 1 && s.failed_reads == 1);
    close_engine();
}

static void test_release_in_flight(void) {
    open_engine(0, 10 * BYTES, BYTES);
    link_now->instant = false;
    gnn_pass *pass = begin();
    gnn_use a = save(pass, make_tensor(1));
    gnn_pass_end(engine, pass);
    release(&a);
    CHECK(n_tensors == 1 && link_now->n_slots == 1); // the copy still reads it
    wait(&link_now->base, 1);
    settle();
    CHECK(n_tensors == 0 && link_now->n_slots == 0);
    close_engine();
}

static void test_shut_loses_what_is_out_and_says_so(void) {
    open_engine(0, BYTES, 0);
    gnn_pass *pass = begin();
    gnn_use a = save(pass, make_tensor(1));
    gnn_pass_end(engine, pass);
    link_now->n_slots = 0, link_now->used = 0; // the link frees its slots itself
    char *leaked = link_now->copies[0].to;
    gnn_engine_shut(engine);
    free(leaked);
    CHECK(unpack(&a) == -GNN_EIO && strstr(gnn_message(), "shut down"));
    release(&a);
    close_engine();
}

/* Random saves, shared tensors, owners that come and go, unpacks in any order, releases at any
 * time, copies that end at any time: values, windows and leaks are checked throughout. */
static void test_random_schedules(unsigned first_seed) {
    seed = first_seed;
    int64_t budget = (int64_t)draw(6) * BYTES, window = (int64_t)draw(4) * BYTES;
    open_engine(budget, window, window);
    link_now->instant = false;
    link_now->chance = 1 + draw(4);
    link_now->limit = (int64_t)(8 + draw(60)) * BYTES;
    for (int round = 0; round < 6; round++) {
        gnn_pass *passes[2] = {begin(), begin()};
        gnn_use uses[MANY];
        int values[MANY], n = 0;
        bool alive[MANY];
        for (int i = 0; i < MANY; i++) {
            tensor *shared =
                n > 0 && alive[n - 1] ? gnn_block_owner(uses[n - 1].block) : NULL;
            bool again =
                shared && gnn_block_reloads(uses[n - 1].block) == 0 && draw(4) == 0;
            tensor *t = again ? shared : make_tensor(values[n] = 1 + (int)draw(200));
            values[n] = again ? values[n - 1] : values[n];
            t->owned = draw(3) == 0;
            uses[n] = save(passes[draw(2)], t);
            alive[n++] = true;
            int64_t one = window > BYTES ? window : BYTES;
            CHECK(held(GNN_RESIDENT) <= budget && held(GNN_OUTWARD) <= one);
            tensor *other = gnn_block_owner(uses[draw((unsigned)n)].block);
            if (other) {
                other->owned = false;
            }
            int k = (int)draw((unsigned)n);
            if (draw(5) == 0 && alive[k]) {
                CHECK(unpack(&uses[k]) == values[k]);
            }
        }
        gnn_pass_end(engine, passes[0]), gnn_pass_end(engine, passes[1]);
        for (int left = n; left > 0;) {
            int k = draw(2) ? left - 1 : (int)draw((unsigned)n);
            while (!alive[k]) {
                k = (k + 1) % n;
            }
            CHECK(unpack(&uses[k]) == values[k]);
            if (draw(3)) {
                release(&uses[k]);
                alive[k] = false;
                left--;
            }
        }
    }
    close_engine();
}

int main(void) {
    test_budget_and_windows();
    test_what_fits_is_never_copied();
    test_owned_blocks_stay_until_they_are_free();
    test_changes_in_place_poison();
    test_a_change_while_leaving_poisons();
    test_unpack_is_repeatable_and_clean_blocks_drop();
    test_the_observed_order_is_learned();
    test_prefetch_goes_on_into_older_passes();
    test_a_full_tier_keeps();
    test_failed_copies();
    test_release_in_flight();
    test_shut_loses_what_is_out_and_says_so();
    for (unsigned s = 1; s <= 300; s++) {
        test_random_schedules(s);
    }
    printf("test_offload_engine: 12 cases, 300 random schedules\n");
    return 0;
}

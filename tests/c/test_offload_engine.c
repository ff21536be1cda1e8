/* test_offload_engine.c: the policy engine, case by case, against the rig's fake link.
 * law: 4 6 7 9 */
#include "engine_rig.h"

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
    gnn_pass_end(engine, pass, 0);
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
    gnn_pass_end(engine, pass, 0);
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
    gnn_pass_end(engine, pass, 0);
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
    gnn_pass_end(engine, pass, 0);
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
    gnn_engine_set_budget(engine, BYTES); // nothing has to leave any more
    wait(&link_now->base, 1);
    settle();
    CHECK(n_tensors == 0 && link_now->n_slots == 0); // nobody can want it again
    gnn_pass_end(engine, pass, 0);
    release(&a);
    close_engine();
}

/* A second save of more of the storage than the copy under way takes. */
static void test_a_save_widens_what_is_leaving(void) {
    open_engine(0, 10 * BYTES, BYTES);
    link_now->instant = false;
    gnn_pass *pass = begin();
    tensor *t = make_tensor(1);
    gnn_block *b;
    gnn_use part, whole;
    CHECK(gnn_engine_add(engine, pass, (uintptr_t)t, t->data, BYTES, 0, 0, t, &b) ==
          GNN_OK);
    CHECK(gnn_engine_save(engine, pass, b, 0, 40, &part) == GNN_OK);
    settle();
    CHECK(gnn_engine_save(engine, pass, b, 0, BYTES, &whole) == GNN_OK);
    wait(&link_now->base, 1);
    link_now->instant = true;
    settle();
    CHECK(gnn_block_owner(b) == NULL && link_now->used == BYTES); // copied once more
    gnn_pass_end(engine, pass, 0);
    CHECK(unpack(&whole) == 1 && unpack(&part) == 1);
    release(&whole), release(&part);
    close_engine();
}

/* Two unpacks wait for one copy: its ticket lives until the second has seen the end. */
static void test_two_waiters(void) {
    open_engine(0, BYTES, BYTES);
    gnn_pass *pass = begin();
    gnn_use use = save(pass, make_tensor(1));
    gnn_pass_end(engine, pass, 0);
    link_now->instant = false;
    gnn_action allocate, first, second;
    CHECK(gnn_engine_fetch(engine, &use, 0, &allocate) == GNN_OK);
    answer(&allocate);
    CHECK(gnn_engine_fetch(engine, &use, 0, &first) == GNN_OK);
    CHECK(gnn_engine_fetch(engine, &use, 0, &second) == GNN_OK);
    CHECK(first.kind == GNN_ACT_WAIT && second.kind == GNN_ACT_WAIT);
    answer(&second);
    answer(&first); // the fake link refuses a ticket that was freed
    CHECK(unpack(&use) == 1);
    release(&use);
    close_engine();
}

static void test_unpack_is_repeatable_and_clean_blocks_drop(void) {
    open_engine(0, BYTES, BYTES);
    gnn_pass *pass = begin();
    gnn_use uses[5];
    for (int i = 0; i < 5; i++) {
        uses[i] = save(pass, make_tensor(i));
    }
    gnn_pass_end(engine, pass, 0);
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
        gnn_pass_end(engine, pass, 0);
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
    gnn_pass_end(engine, old, 0);
    gnn_pass *young = begin();
    gnn_use second = save(young, make_tensor(2));
    gnn_pass_end(engine, young, 0);
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
    gnn_pass_end(engine, pass, 0);
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
    gnn_pass_end(engine, pass, 0);
    release(&a), release(&b);
    gnn_pass_stats s = last_finished();
    CHECK(s.failed_writes == 1 && s.failed_reads == 1);
    CHECK(link_now->n_slots == 1); // where the write failed nothing is put again
    slot_free(&link_now->base, (gnn_slot){(intptr_t)link_now->copies[0].to, BYTES});
    close_engine();
}

static void test_release_in_flight(void) {
    open_engine(0, 10 * BYTES, BYTES);
    link_now->instant = false;
    gnn_pass *pass = begin();
    gnn_use a = save(pass, make_tensor(1));
    gnn_pass_end(engine, pass, 0);
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
    gnn_pass_end(engine, pass, 0);
    link_now->n_slots = 0, link_now->used = 0; // the link frees its slots itself
    char *leaked = link_now->copies[0].to;
    gnn_engine_shut(engine);
    free(leaked);
    CHECK(unpack(&a) == -GNN_EIO && strstr(gnn_message(), "shut down"));
    release(&a);
    close_engine();
}

/* A link may copy at once, without a ticket: nothing is ever under way. */
static void test_copies_without_tickets(void) {
    open_engine(0, BYTES, 2 * BYTES);
    link_now->at_once = true;
    gnn_pass *pass = begin();
    gnn_use uses[20];
    for (int i = 0; i < 20; i++) {
        uses[i] = save(pass, make_tensor(i));
    }
    CHECK(held(GNN_RESIDENT) == 0 && link_now->n_copies < 20);
    gnn_pass_end(engine, pass, 0);
    for (int i = 19; i >= 0; i--) {
        CHECK(unpack(&uses[i]) == i);
        release(&uses[i]);
    }
    gnn_pass_stats s = last_finished();
    CHECK(s.copies_out == 20 && s.copies_in + s.forwarded >= 19 && s.over_budget <= 0);
    close_engine();
}

int main(void) {
    test_budget_and_windows();
    test_what_fits_is_never_copied();
    test_owned_blocks_stay_until_they_are_free();
    test_changes_in_place_poison();
    test_a_change_while_leaving_poisons();
    test_a_save_widens_what_is_leaving();
    test_two_waiters();
    test_unpack_is_repeatable_and_clean_blocks_drop();
    test_the_observed_order_is_learned();
    test_prefetch_goes_on_into_older_passes();
    test_a_full_tier_keeps();
    test_failed_copies();
    test_release_in_flight();
    test_copies_without_tickets();
    test_shut_loses_what_is_out_and_says_so();
    printf("test_offload_engine: 15 cases\n");
    return 0;
}

/* test_link_ram.c: the calls of link.h on the RAM link: copies arrive whole, tickets
 * tell the truth, limits and failures are statuses, nothing blocks that should not.
 * law: 9 */
#include "link_checks.h"

static gnn_link *open_link(int64_t limit, int threads) {
    gnn_link *link;
    CHECK(gnn_link_ram_open(limit, threads, &link) == GNN_OK);
    return link;
}

static void test_sizes(void) {
    static const int64_t sizes[] = {1,       7,   4095,    4096,       4097,
                                    MIB - 1, MIB, MIB + 1, 5 * MIB + 3};
    gnn_link *link = open_link(16 * MIB, 2);
    gnn_link_stats stats;
    int64_t total = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        roundtrip(link, sizes[s], 0);
        roundtrip(link, sizes[s], 3);
        total += 2 * sizes[s];
    }
    link->ops->stats(link, &stats);
    CHECK(stats.bytes_out == total && stats.bytes_in == total);
    CHECK(stats.copies_out == 18 && stats.copies_in == 18);
    CHECK(stats.busy_out > 0 && stats.busy_in > 0);
    CHECK(stats.slot_bytes == 0 && stats.slot_peak == 5 * MIB + 4096);
    CHECK(stats.tier_bytes <= stats.slot_peak + stats.slot_peak / 20);
    link->ops->close(link);
}

/* A held copy is not done; a get that waits for it neither; a later one overtakes. */
static void test_order(void) {
    gnn_link *link = open_link(4 * MIB, 1);
    char near[64], back[64], other[64] = {0};
    gnn_slot a, b;
    gnn_ticket put, first, get, overtaking;
    bool done;
    gnn_link_stats stats;
    fill(near, 64, 1);
    CHECK(link->ops->slot_alloc(link, 64, &a) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, 64, &b) == GNN_OK && b.offset != a.offset);
    CHECK(link->ops->put(link, b, near, 0, &first) == GNN_OK);
    finish(link, first);
    gnn_link_ram_hold(link, true);
    CHECK(link->ops->put(link, a, near, 0, &put) == GNN_OK);
    CHECK(link->ops->get(link, a, back, 0, put, &get) == GNN_OK);
    CHECK(link->ops->get(link, b, other, 0, 0, &overtaking) == GNN_OK);
    CHECK(link->ops->poll(link, put, &done) == GNN_OK && !done);
    CHECK(link->ops->wait_for(link, get, 0.01, &done) == GNN_OK && !done);
    link->ops->ticket_free(link, put); // the get still waits for its copy
    gnn_link_ram_hold(link, false);
    finish(link, overtaking);
    finish(link, get);
    CHECK(memcmp(near, back, 64) == 0 && memcmp(near, other, 64) == 0);
    link->ops->stats(link, &stats);
    CHECK(stats.stall_in >= 0.01);
    CHECK(link->ops->poll(link, 0, &done) == GNN_OK && done);
    CHECK(link->ops->poll(link, put, &done) == GNN_ESTATE);
    link->ops->close(link);
}

/* A small copy is made by its caller and has no ticket, unless a test holds copies or
 * has armed a failure; the next size up is a worker's. */
static void test_at_once(void) {
    enum { SMALL = 32 << 10 };
    gnn_link *link = open_link(4 * MIB, 1);
    char *near = malloc(SMALL + 1), *back = calloc(1, SMALL + 1);
    gnn_slot small, more = {0};
    gnn_ticket put = 7, get = 7;
    gnn_link_stats stats;
    fill(near, SMALL + 1, 5);
    CHECK(link->ops->slot_alloc(link, SMALL, &small) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, SMALL + 1, &more) == GNN_OK);
    CHECK(link->ops->put(link, small, near, 0, &put) == GNN_OK && put == 0);
    CHECK(link->ops->get(link, small, back, 0, put, &get) == GNN_OK && get == 0);
    CHECK(memcmp(near, back, SMALL) == 0 && back[SMALL] == 0);
    link->ops->stats(link, &stats);
    CHECK(stats.bytes_out == SMALL && stats.copies_in == 1 && stats.busy_out > 0);
    CHECK(link->ops->put(link, more, near, 0, &put) == GNN_OK && put != 0);
    finish(link, put);
    gnn_link_ram_fail(link, true, 1, GNN_EIO);
    CHECK(link->ops->put(link, small, near, 0, &put) == GNN_OK && put != 0);
    CHECK(link->ops->wait(link, put) == GNN_EIO);
    CHECK(link->ops->put(link, small, NULL, 0, &put) == GNN_EINVAL);
    link->ops->close(link);
    free(near);
    free(back);
}

static void test_limit(void) {
    gnn_link *link = open_link(2 * MIB, 1);
    gnn_slot a, b, c;
    CHECK(link->ops->slot_alloc(link, MIB, &a) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, MIB, &b) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, 1, &c) == GNN_EFULL);
    CHECK(strstr(gnn_message(), "tier is full"));
    CHECK(link->ops->slot_free(link, a) == GNN_OK);
    CHECK(link->ops->slot_free(link, a) == GNN_ESTATE);
    CHECK(link->ops->slot_alloc(link, MIB, &c) == GNN_OK && c.offset == a.offset);
    CHECK(link->ops->slot_alloc(link, 0, &c) == GNN_EINVAL);
    CHECK(link->ops->slot_alloc(link, INT64_MAX, &c) == GNN_EFULL);
    link->ops->close(link);
    CHECK(gnn_link_ram_open(0, 1, &link) == GNN_EINVAL);
    CHECK(gnn_link_ram_open(MIB, 0, &link) == GNN_EINVAL);
    CHECK(gnn_link_ram_open((int64_t)1 << 62, 1, &link) == GNN_ENOMEM);
}

/* A failed chunk fails its copy, and the copy that waits for it, and no other. */
static void test_failure(void) {
    gnn_link *link = open_link(16 * MIB, 1);
    char *near = calloc(4, (size_t)MIB);
    gnn_slot slot;
    gnn_ticket put, get, again;
    gnn_link_stats stats;
    CHECK(link->ops->slot_alloc(link, 4 * MIB, &slot) == GNN_OK);
    gnn_link_ram_fail(link, true, 2, GNN_EFULL);
    CHECK(link->ops->put(link, slot, near, 0, &put) == GNN_OK);
    CHECK(link->ops->get(link, slot, near, 0, put, &get) == GNN_OK);
    CHECK(link->ops->wait(link, put) == GNN_EFULL);
    CHECK(strstr(gnn_message(), "injected failure of a put"));
    CHECK(link->ops->wait(link, get) == GNN_EFULL);
    CHECK(link->ops->put(link, slot, near, 0, &again) == GNN_OK);
    finish(link, again);
    link->ops->stats(link, &stats);
    CHECK(stats.bytes_out == 4 * MIB && stats.bytes_in == 0);
    link->ops->ticket_free(link, put);
    link->ops->ticket_free(link, put); // stale: harmless
    link->ops->ticket_free(link, get);
    link->ops->close(link);
    free(near);
}

static void test_threads(void) {
    gnn_link *link = open_link(64 * MIB, 3);
    hammer(link, 60);
    link->ops->close(link);
}

/* Close with copies in flight finishes them; the last put is long, so that its get
 * still waits for it when the workers hear of the close. */
static void test_close(void) {
    enum { SHORT = 8, LONG = 112 };
    gnn_link *link = open_link((SHORT + LONG) * MIB, 2);
    char *near = malloc((SHORT + LONG) * (size_t)MIB);
    char *back = calloc(SHORT + LONG, (size_t)MIB);
    fill(near, (SHORT + LONG) * MIB, 3);
    gnn_link_ram_hold(link, true);
    for (int i = 0; i <= SHORT; i++) {
        gnn_slot slot;
        gnn_ticket put, get;
        int64_t bytes = i < SHORT ? MIB : LONG * MIB;
        CHECK(link->ops->slot_alloc(link, bytes, &slot) == GNN_OK);
        CHECK(link->ops->put(link, slot, near + i * MIB, 0, &put) == GNN_OK);
        CHECK(link->ops->get(link, slot, back + i * MIB, 0, put, &get) == GNN_OK);
    }
    link->ops->close(link);
    CHECK(memcmp(near, back, (SHORT + LONG) * (size_t)MIB) == 0);
    free(near);
    free(back);
}

static void test_fork(void) {
    gnn_link *link = open_link(MIB, 1);
    char near[64] = {0};
    gnn_slot slot;
    gnn_ticket put;
    CHECK(link->ops->slot_alloc(link, 64, &slot) == GNN_OK);
    gnn_link_ram_hold(link, true);
    CHECK(link->ops->put(link, slot, near, 0, &put) == GNN_OK);
    check_child(link, slot, put);
    gnn_link_ram_hold(link, false);
    finish(link, put);
    link->ops->close(link);
}

static void test_measure(void) {
    gnn_link *link = open_link(64 * MIB, 2);
    double out = 0, in = 0;
    gnn_link_stats stats;
    CHECK(link->ops->measure(link, 64 * MIB, &out, &in) == GNN_OK && out > 0 && in > 0);
    link->ops->stats(link, &stats);
    CHECK(stats.bytes_out == 0 && stats.copies_in == 0 && stats.slot_bytes == 0);
    CHECK(stats.busy_out == 0 && stats.stall_in == 0);
    link->ops->close(link);
    link = open_link(MIB, 1);
    CHECK(link->ops->measure(link, MIB, &out, &in) == GNN_EFULL);
    link->ops->close(link);
}

int main(void) {
    test_sizes();
    test_order();
    test_at_once();
    test_limit();
    test_failure();
    test_threads();
    test_close();
    test_fork();
    test_measure();
    printf("test_link_ram: ok\n");
    return 0;
}

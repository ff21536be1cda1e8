/* test_link_cuda.c: the calls of link.h on the CUDA link over a fake table: every order
 * that the link owes holds under random stream progress, steady state makes nothing
 * and waits for nothing, a fault ends every wait. law: 5 8 9 */
#include "link_checks.h"

#include "fake_cuda.h"
#include "offload/host_nodes.h"

enum { SIZE = 1000, BLOCKS = 24 };

static gnn_link *open_link(int64_t limit) {
    gnn_link *link;
    gnn_link_cuda_options options = {.api = &fake_api, .limit = limit};
    CHECK(gnn_link_cuda_open(&options, &link) == GNN_OK);
    return link;
}

static void close_link(gnn_link *link) {
    link->ops->close(link);
    CHECK(fake.live_events == 0 && fake.live_streams == 0 && fake.live_pinned == 0);
}

/* One pass: BLOCKS tensors are made by kernels, leave, and their memory is reused at
 * once by a kernel that runs on the same stream after order(); all come back in reverse
 * into reused memory, and a kernel copies each to where it is checked. */
static void pass(gnn_link *link, char *made, char *far, char *seen) {
    static gnn_slot slots[BLOCKS];
    static char garbage[SIZE];
    gnn_ticket puts[BLOCKS], get;
    gnn_mark ready, room;
    memset(garbage, 0x5A, SIZE);
    for (int b = 0; b < BLOCKS; b++) {
        int64_t bytes = SIZE - b; // every slot its own size
        fake_kernel(0, far, made + b * SIZE, SIZE);
        CHECK(link->ops->mark(link, 0, &ready) == GNN_OK);
        CHECK(link->ops->slot_alloc(link, bytes, &slots[b]) == GNN_OK);
        CHECK(link->ops->put(link, slots[b], far, ready, &puts[b]) == GNN_OK);
        link->ops->mark_free(link, ready);
        CHECK(link->ops->order(link, puts[b], 0) == GNN_OK);
        fake_kernel(0, far, garbage, SIZE); // the allocator gave the memory away
    }
    for (int b = BLOCKS - 1; b >= 0; b--) {
        fake_kernel(0, seen + b * SIZE, far, SIZE); // the target's last use
        CHECK(link->ops->mark(link, 0, &room) == GNN_OK);
        CHECK(link->ops->get(link, slots[b], far, room, puts[b], &get) == GNN_OK);
        link->ops->mark_free(link, room);
        CHECK(link->ops->order(link, get, 0) == GNN_OK);
        CHECK(link->ops->slot_free(link, slots[b]) == GNN_OK); // while it is copied
        fake_kernel(0, seen + b * SIZE, far, SIZE - b);
    }
}

static void test_steady_state(unsigned seed) {
    static char made[BLOCKS * SIZE], seen[BLOCKS * SIZE], far[SIZE];
    fake_reset(seed);
    gnn_link *link = open_link(MIB);
    int64_t was_made = 0, waits = 0;
    for (int round = 0; round < 6; round++) {
        fill(made, sizeof made, seed + (unsigned)round);
        pass(link, made, far, seen);
        if (round == 2) { // events settle after two passes
            was_made = fake.made, waits = fake.host_waits;
        }
        CHECK(round < 2 || fake.made == was_made);
        CHECK(round < 2 || fake.host_waits == waits);
        CHECK(fake_stream_wait(0, 0) == GNN_OK); // the training loop's own, each step
        fake.host_waits--;
        for (int b = 0; b < BLOCKS; b++) {
            CHECK(!memcmp(made + b * SIZE, seen + b * SIZE, (size_t)(SIZE - b)));
        }
    }
    gnn_link_stats stats;
    gnn_ticket last;
    gnn_slot slot;
    bool done = false;
    CHECK(link->ops->slot_alloc(link, SIZE, &slot) == GNN_OK);
    CHECK(link->ops->put(link, slot, far, 0, &last) == GNN_OK);
    while (!done) {
        CHECK(link->ops->poll(link, last, &done) == GNN_OK);
    }
    CHECK(link->ops->slot_free(link, slot) == GNN_OK);
    link->ops->stats(link, &stats);
    CHECK(stats.copies_out == 6 * BLOCKS + 1 && stats.busy_out > 0);
    CHECK(stats.copies_in >= 5 * BLOCKS);
    CHECK(stats.stall_out > 0 && stats.stall_in > 0);
    CHECK(stats.slot_bytes == 0 && stats.slot_peak >= BLOCKS * 512);
    close_link(link);
}

/* Without room in its own stream's past: the slot that a copy in still reads is given
 * to a put whose values were ready long before. Only the link can order these. */
static void test_slot_reuse(unsigned seed) {
    static char first[SIZE], second[SIZE], back[SIZE];
    fake_reset(seed);
    gnn_link *link = open_link(MIB);
    gnn_slot slot, again;
    gnn_ticket put, get, other;
    fill(first, SIZE, 1);
    fill(second, SIZE, 2);
    CHECK(link->ops->slot_alloc(link, SIZE, &slot) == GNN_OK);
    CHECK(link->ops->put(link, slot, first, 0, &put) == GNN_OK);
    CHECK(link->ops->get(link, slot, back, 0, put, &get) == GNN_OK);
    CHECK(link->ops->slot_free(link, slot) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, SIZE, &again) == GNN_OK);
    CHECK(again.offset == slot.offset);
    CHECK(link->ops->put(link, again, second, 0, &other) == GNN_OK);
    finish(link, other);
    finish(link, get);
    CHECK(!memcmp(back, first, SIZE));
    CHECK(link->ops->slot_free(link, again) == GNN_OK);
    close_link(link);
}

/* Two growing passes, then one segment of the size they needed. */
static void test_slab(void) {
    fake_reset(1);
    gnn_link *link = open_link(64 * MIB);
    gnn_slot slots[40], odd;
    gnn_link_stats stats;
    for (int round = 0; round < 3; round++) {
        for (int s = 0; s < 40; s++) {
            CHECK(link->ops->slot_alloc(link, MIB - s, &slots[s]) == GNN_OK);
        }
        for (int s = 0; s < 40; s++) {
            CHECK(link->ops->slot_free(link, slots[s]) == GNN_OK);
        }
        CHECK(link->ops->slot_free(link, slots[0]) == GNN_ESTATE);
        link->ops->stats(link, &stats);
        CHECK(round == 0 || fake.live_pinned == 1);
        CHECK(round == 0 || stats.tier_bytes <= stats.slot_peak * 21 / 20);
    }
    CHECK(link->ops->slot_alloc(link, 65 * MIB, &odd) == GNN_EFULL);
    CHECK(link->ops->slot_alloc(link, 0, &odd) == GNN_EINVAL);
    CHECK(link->ops->slot_alloc(link, 60 * MIB, &odd) == GNN_EFULL);
    CHECK(strstr(gnn_message(), "tier is full"));
    close_link(link);
    fake_reset(1);
    fake.pin_limit = 20 * MIB; // the machine pins less than the limit says
    link = open_link(64 * MIB);
    CHECK(link->ops->slot_alloc(link, 10 * MIB, &slots[0]) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, 10 * MIB, &odd) == GNN_EFULL);
    CHECK(strstr(gnn_message(), "cannot be page-locked"));
    CHECK(link->ops->slot_alloc(link, 4 * MIB, &slots[1]) == GNN_OK);
    close_link(link);
    fake_reset(1);
    fake.refuse_register = true; // then the runtime allocates
    link = open_link(MIB);
    roundtrip(link, 5000, 3);
    close_link(link);
}

/* Whatever call fails, once or for good: a status, no hang, no leak. */
static void test_faults(bool sticky) {
    static char near[SIZE], back[SIZE];
    int64_t calls = INT64_MAX;
    for (int64_t n = 1; n <= calls; n++) {
        gnn_link *link;
        gnn_link_cuda_options options = {.api = &fake_api, .limit = MIB};
        gnn_slot slot;
        gnn_ticket put = 0, get = 0;
        gnn_mark mark = 0;
        bool done, right = true;
        double rate_out, rate_in;
        fake_reset(7);
        fake.sticky = sticky;
        fake.fail_at = n;
        fill(near, SIZE, (uint32_t)n);
        if (gnn_link_cuda_open(&options, &link) == GNN_OK) {
            right = link->ops->mark(link, 1, &mark) == GNN_OK;
            bool has_slot = link->ops->slot_alloc(link, SIZE, &slot) == GNN_OK;
            right = right && has_slot;
            right = right && link->ops->put(link, slot, near, mark, &put) == GNN_OK;
            right = right && link->ops->order(link, put, 1) == GNN_OK;
            right =
                right && link->ops->get(link, slot, back, mark, put, &get) == GNN_OK;
            right = right && link->ops->wait_for(link, get, 1, &done) == GNN_OK;
            CHECK(!right || !memcmp(near, back, SIZE));
            right = right && link->ops->poll(link, put, &done) == GNN_OK && done;
            right =
                right && link->ops->measure(link, 4096, &rate_out, &rate_in) == GNN_OK;
            link->ops->mark_free(link, mark);
            if (has_slot) {
                CHECK(link->ops->slot_free(link, slot) == GNN_OK);
            }
            calls = fake.fail_at > 0 ? n : calls; // the countdown was not reached
            link->ops->close(link);
        }
        CHECK(fake.live_events == 0 && fake.live_streams == 0 && fake.live_pinned == 0);
    }
}

/* The device dies under a copy: whatever is asked from then on says so. */
static void test_dead_device(void) {
    static char near[SIZE];
    fake_reset(7);
    gnn_link *link = open_link(MIB);
    gnn_slot slot;
    gnn_ticket put, get;
    gnn_mark mark;
    bool done;
    CHECK(link->ops->slot_alloc(link, SIZE, &slot) == GNN_OK);
    CHECK(link->ops->put(link, slot, near, 0, &put) == GNN_OK);
    fake.fail_at = 1, fake.sticky = true;
    CHECK(link->ops->poll(link, put, &done) == GNN_EDEVICE && done);
    CHECK(link->ops->wait(link, put) == GNN_EDEVICE);
    CHECK(strstr(gnn_message(), "cudaErrorFake"));
    CHECK(link->ops->wait_for(link, put, 1, &done) == GNN_EDEVICE && done);
    CHECK(link->ops->order(link, put, 0) == GNN_EDEVICE);
    CHECK(link->ops->get(link, slot, near, 0, put, &get) == GNN_EDEVICE);
    CHECK(link->ops->put(link, slot, near, 0, &get) == GNN_EDEVICE);
    CHECK(link->ops->mark(link, 0, &mark) == GNN_EDEVICE && mark == 0);
    CHECK(link->ops->slot_free(link, slot) == GNN_OK);
    close_link(link);
}

/* So that a host that waits can look at signals, however long the queue is. */
static void test_wait_with_a_limit(void) {
    static char near[SIZE];
    fake_reset(5);
    gnn_link *link = open_link(MIB);
    gnn_slot slot;
    gnn_ticket put;
    bool done = true;
    CHECK(link->ops->slot_alloc(link, SIZE, &slot) == GNN_OK);
    CHECK(link->ops->put(link, slot, near, 0, &put) == GNN_OK);
    int64_t waits = fake.host_waits;
    fake.held = true;
    for (int k = 0; k < 3; k++) {
        CHECK(link->ops->wait_for(link, put, 0.001 * k, &done) == GNN_OK && !done);
    }
    fake.held = false;
    CHECK(link->ops->wait_for(link, put, 10, &done) == GNN_OK && done);
    CHECK(fake.host_waits == waits); // it asks
    CHECK(link->ops->wait_for(link, put, 0, &done) == GNN_OK && done);
    CHECK(link->ops->slot_free(link, slot) == GNN_OK);
    close_link(link);
}

static void test_capture_and_clock(void) {
    static char near[SIZE];
    fake_reset(3);
    gnn_link *link = open_link(MIB);
    gnn_mark from, to;
    bool flag = true;
    double seconds, rate_out, rate_in;
    CHECK(link->ops->capturing(link, 0, &flag) == GNN_OK && !flag);
    fake.capturing = true;
    CHECK(link->ops->capturing(link, 0, &flag) == GNN_OK && flag);
    int64_t calls = fake.calls;
    gnn_link_stats stats;
    link->ops->stats(link, &stats); // asks the device nothing
    CHECK(fake.calls == calls);
    CHECK(link->ops->clock(link, 0, &from) == GNN_OK);
    for (int k = 0; k < 5; k++) {
        fake_kernel(0, near, near, 0);
    }
    CHECK(link->ops->clock(link, 0, &to) == GNN_OK && to != from);
    CHECK(link->ops->seconds(link, from, to, false, &flag, &seconds) == GNN_OK &&
          !flag);
    CHECK(link->ops->seconds(link, from, to, true, &flag, &seconds) == GNN_OK && flag);
    CHECK(seconds >= 5);
    link->ops->mark_free(link, from);
    link->ops->mark_free(link, to);
    CHECK(link->ops->measure(link, 8192, &rate_out, &rate_in) == GNN_OK);
    CHECK(rate_out > 0 && rate_in > 0);
    link->ops->stats(link, &stats);
    CHECK(stats.copies_out == 0 && stats.slot_bytes == 0);
    close_link(link);
}

static void write_text(const char *folder, const char *name, const char *text) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

/* Grace Hopper: nodes 0 and 1 have CPUs, node 8 is the GPU's memory. */
static void test_nodes(void) {
    char root[] = "/tmp/gnn_nodes_XXXXXX", folder[200], command[300];
    gnn_node_set nodes;
    CHECK(gnn_nodes_parse("0-1,8\n", &nodes) && nodes.n == 3 &&
          gnn_nodes_has(&nodes, 8));
    CHECK(!gnn_nodes_parse("1-", &nodes) && !gnn_nodes_parse("0;1", &nodes));
    CHECK(gnn_nodes_parse("\n", &nodes) && nodes.n == 0);
    CHECK(mkdtemp(root));
    snprintf(folder, sizeof folder, "%s/sys/devices/system/node", root);
    snprintf(command, sizeof command, "mkdir -p %s/node1", folder);
    CHECK(system(command) == 0);
    write_text(folder, "has_cpu", "0-1\n");
    write_text(folder, "has_memory", "0-1,8\n");
    write_text(folder, "node1/meminfo", "Node 1 MemFree:      1024 kB\n");
    gnn_nodes_for_slab(root, 1, 8, 4096, &nodes); // the nearest has room
    CHECK(nodes.n == 1 && gnn_nodes_has(&nodes, 1));
    gnn_nodes_for_slab(root, 1, 8, 2 * MIB, &nodes); // it has not: never node 8
    CHECK(nodes.n == 2 && !gnn_nodes_has(&nodes, 8));
    gnn_nodes_for_slab(root, 8, 8, 4096, &nodes);
    CHECK(nodes.n == 2 && !gnn_nodes_has(&nodes, 8));
    write_text(folder, "has_memory", "0\n");
    gnn_nodes_for_slab(root, 0, -1, 4096, &nodes); // one node: nothing to choose
    CHECK(nodes.n == 0);
    snprintf(command, sizeof command, "rm -r %s", root);
    CHECK(system(command) == 0);
}

static void test_fork(void) {
    static char near[64];
    fake_reset(1);
    gnn_link *link = open_link(MIB);
    gnn_slot slot;
    gnn_ticket ticket;
    CHECK(link->ops->slot_alloc(link, 64, &slot) == GNN_OK);
    CHECK(link->ops->put(link, slot, near, 0, &ticket) == GNN_OK);
    check_child(link, slot, ticket);
    finish(link, ticket);
    CHECK(link->ops->slot_free(link, slot) == GNN_OK);
    close_link(link);
}

int main(void) {
    for (unsigned seed = 1; seed <= 50; seed++) {
        test_steady_state(seed);
        test_slot_reuse(seed);
    }
    test_slab();
    test_faults(false);
    test_faults(true);
    test_dead_device();
    test_wait_with_a_limit();
    test_capture_and_clock();
    test_nodes();
    test_fork();
    printf("test_link_cuda: orders under 50 schedules, a fault at every call\n");
    return 0;
}

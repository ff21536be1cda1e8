/* test_offload_streams.c: the engine over link_cuda over a fake table whose streams run
 * in random order: memory is reused as a caching allocator does, at once and by stream
 * order alone, and every value comes back right without the host ever waiting. With a
 * second compute stream, nothing goes before the host knows. law: 4 5 8 */
#include "link_checks.h"

#include "fake_cuda.h"
#include "offload/engine.h"

enum { SIZE = 640, TENSORS = 20 };

/* ------------------------------------------------------------- an allocator's blocks */

typedef struct tensor {
    char *data;
    struct tensor *next; // in the free list
    gnn_stream home;     // where it goes back to
    bool in_use;
} tensor;

static tensor *idle[2]; // by stream, the last one given back first
static int64_t n_live;

static tensor *allocate(gnn_stream stream) {
    tensor *t = idle[stream];
    if (t) {
        idle[stream] = t->next;
    } else {
        t = calloc(1, sizeof *t);
        CHECK(t && (t->data = malloc(SIZE)));
        t->home = stream;
    }
    CHECK(!t->in_use);
    t->in_use = true;
    n_live++;
    return t;
}

static void give(tensor *t) {
    if (t) {
        CHECK(t->in_use);
        t->in_use = false;
        t->next = idle[t->home];
        idle[t->home] = t;
        n_live--;
    }
}

static void free_idle(void) {
    for (int stream = 0; stream < 2; stream++) {
        for (tensor *t = idle[stream], *next; t; t = next) {
            next = t->next;
            free(t->data), free(t);
        }
        idle[stream] = NULL;
    }
}

/* ------------------------------------------------------------------------ the caller */

static gnn_engine *engine;
static int64_t n_waits;

static void answer(const gnn_action *a, gnn_stream stream) {
    if (a->kind == GNN_ACT_DROP) {
        give(a->owner);
    } else if (a->kind == GNN_ACT_TEST) {
        gnn_engine_tested(engine, a->block, GNN_FREE, a->version);
    } else if (a->kind == GNN_ACT_WAIT) {
        gnn_link *link = gnn_engine_link(engine);
        n_waits++;
        gnn_status status = link->ops->wait(link, a->ticket);
        gnn_engine_waited(engine, a->block, true, status, 0);
    } else {
        tensor *room = allocate(stream);
        bool taken;
        CHECK(gnn_engine_allocated(engine, a, (uintptr_t)room, room->data, SIZE, 0,
                                   stream, room, &taken) == GNN_OK);
        if (!taken) {
            give(room);
        }
    }
}

static void settle(gnn_stream stream) {
    for (gnn_action action;;) {
        CHECK(gnn_engine_next(engine, &action) == GNN_OK);
        if (action.kind == GNN_ACT_NONE) {
            return;
        }
        answer(&action, stream);
    }
}

static gnn_use save(gnn_pass *pass, tensor *t, gnn_stream stream) {
    gnn_block *b;
    gnn_use use;
    CHECK(gnn_engine_add(engine, pass, (uintptr_t)t, t->data, SIZE, 0, stream, t, &b) ==
          GNN_OK);
    CHECK(gnn_engine_save(engine, pass, b, 0, SIZE, &use) == GNN_OK);
    settle(stream);
    return use;
}

/* The kernel that wanted the tensor copies it to `seen`. */
static void use_it(gnn_use *use, char *seen, gnn_stream stream) {
    gnn_engine_touch(engine, use, stream);
    for (gnn_action action;;) {
        CHECK(gnn_engine_fetch(engine, use, stream, &action) == GNN_OK);
        if (action.kind == GNN_ACT_NONE) {
            break;
        }
        answer(&action, stream);
    }
    fake_kernel(stream, seen, gnn_block_base(use->block), SIZE);
    for (gnn_action action;;) {
        gnn_engine_ahead(engine, use, &action);
        if (action.kind == GNN_ACT_NONE) {
            break;
        }
        answer(&action, stream);
    }
    settle(stream);
    give(gnn_engine_release(engine, use));
}

static void open_engine(int64_t budget, int64_t out_window, int64_t in_window) {
    gnn_link_cuda_options cuda = {.api = &fake_api, .limit = 4 * MIB};
    gnn_engine_options options = {NULL, budget, out_window, in_window};
    CHECK(gnn_link_cuda_open(&cuda, &options.link) == GNN_OK);
    CHECK(gnn_engine_open(&options, &engine) == GNN_OK);
    n_waits = 0;
}

static void close_engine(void) {
    gnn_pass_stats counters;
    while (gnn_engine_take_finished(engine, true, &counters)) {
    }
    gnn_engine_shut(engine);
    settle(0);
    gnn_engine_free(engine);
    CHECK(n_live == 0 && fake.live_events == 0 && fake.live_pinned == 0);
    free_idle();
}

/* The caller's own order: `later` goes on after what `first` has queued. */
static void join(gnn_stream first, gnn_stream later) {
    gnn_cuda_event event;
    CHECK(fake_event_create(0, false, &event) == GNN_OK);
    CHECK(fake_event_record(0, event, first) == GNN_OK);
    CHECK(fake_stream_after(0, later, event) == GNN_OK);
    fake_event_destroy(0, event);
}

static char made[TENSORS][SIZE], seen[TENSORS][SIZE];

static void train_step(unsigned seed, gnn_stream saving, gnn_stream using) {
    gnn_pass *pass;
    gnn_use uses[TENSORS];
    fill(made[0], sizeof made, seed);
    memset(seen, 0, sizeof seen);
    CHECK(gnn_pass_begin(engine, saving, &pass) == GNN_OK);
    for (int i = 0; i < TENSORS; i++) {
        tensor *t = allocate(saving);
        fake_kernel(saving, t->data, made[i], SIZE);
        uses[i] = save(pass, t, saving);
    }
    gnn_pass_end(engine, pass, saving);
    join(saving, using);
    for (int i = TENSORS - 1; i >= 0; i--) {
        use_it(&uses[i], seen[i], using);
    }
}

/* ----------------------------------------------------------------------------- tests */

static void test_one_stream(unsigned seed) {
    int64_t windows[] = {0, 1, 3, TENSORS};
    int64_t out = windows[seed % 4] * SIZE, in = windows[seed / 4 % 4] * SIZE;
    fake_reset(seed);
    open_engine((int64_t)(seed % 5) * SIZE, out, in);
    for (unsigned round = 0; round < 4; round++) {
        train_step(seed + round, 0, 0);
        CHECK(n_waits == 0 && fake.host_waits == 0); // however far the host runs ahead
        CHECK(fake_stream_wait(0, 0) == GNN_OK);
        fake.host_waits = 0;
        CHECK(!memcmp(made, seen, sizeof made));
    }
    close_engine();
}

/* Saved on one stream and used on another, which the caller orders after it; memory
 * goes back to the first: only what the host knows is safe then. */
static void test_two_streams(unsigned seed) {
    fake_reset(seed);
    open_engine(0, SIZE, 2 * SIZE);
    for (unsigned round = 0; round < 3; round++) {
        bool swap = round % 2;
        train_step(seed + round, 0, swap);
        CHECK(fake_stream_wait(0, 0) == GNN_OK && fake_stream_wait(0, 1) == GNN_OK);
        CHECK(!memcmp(made, seen, sizeof made));
    }
    CHECK(n_waits > 0);
    close_engine();
}

/* What is near when the device dies stays usable; what is out says why it is lost. */
static void test_dead_device(void) {
    gnn_pass *pass;
    gnn_use uses[3];
    gnn_action action;
    fake_reset(1);
    open_engine(0, SIZE, 0);
    CHECK(gnn_pass_begin(engine, 0, &pass) == GNN_OK);
    for (int i = 0; i < 3; i++) {
        uses[i] = save(pass, allocate(0), 0);
    }
    gnn_pass_end(engine, pass, 0);
    CHECK(gnn_engine_fetch(engine, &uses[0], 0, &action) == GNN_OK);
    CHECK(action.kind == GNN_ACT_ALLOCATE);
    answer(&action, 0);
    fake.fail_at = 1, fake.sticky = true;
    CHECK(gnn_engine_fetch(engine, &uses[0], 0, &action) == GNN_OK);
    CHECK(action.kind == GNN_ACT_DROP); // the target, which nothing will fill
    answer(&action, 0);
    CHECK(gnn_engine_fetch(engine, &uses[0], 0, &action) == GNN_EDEVICE);
    CHECK(strstr(gnn_message(), "cudaErrorFake"));
    CHECK(gnn_engine_fetch(engine, &uses[2], 0, &action) == GNN_OK);
    CHECK(action.kind == GNN_ACT_NONE && gnn_block_owner(uses[2].block));
    for (int i = 0; i < 3; i++) {
        give(gnn_engine_release(engine, &uses[i]));
    }
    gnn_engine_shut(engine);
    settle(0);
    gnn_engine_free(engine);
    CHECK(n_live == 0 && fake.live_events == 0 && fake.live_pinned == 0);
    free_idle();
}

int main(void) {
    for (unsigned seed = 1; seed <= 200; seed++) {
        test_one_stream(seed);
        test_two_streams(seed);
    }
    test_dead_device();
    printf("test_offload_streams: 200 schedules on one stream and on two\n");
    return 0;
}

/* fake_cuda.h: a table of CUDA calls for the link's own tests. Each stream is a queue;
 * nothing runs until somebody waits, then streams advance one step at a time in seeded
 * random order, so a missing order between two copies shows as wrong bytes. Memory is
 * malloc's. (tests/sim has the full simulator: time, a checker, profiles.) */
#ifndef GNN_FAKE_CUDA_H
#define GNN_FAKE_CUDA_H

#include "offload/cuda_api.h"

#include <stdlib.h>
#include <string.h>

enum { STREAMS = 8, STEPS = 1 << 16, EVENTS = 4096 };

typedef enum step_kind { STEP_COPY, STEP_RECORD, STEP_AFTER } step_kind;
typedef struct step {
    step_kind kind;
    void *to;
    const void *from;
    int64_t bytes;
    gnn_cuda_event event;
    int64_t record; // which record of the event
} step;

typedef struct fake_cuda {
    step steps[STREAMS][STEPS];
    int64_t queued[STREAMS], ran[STREAMS];
    int n_streams; // 0 and 1 are compute streams of the tests
    int64_t recorded[EVENTS], passed[EVENTS];
    int n_events, live_events, live_streams;
    int64_t now[EVENTS], clock; // a step is a second
    int64_t pinned, live_pinned, pin_limit;
    int64_t host_waits, made; // waits of the host; things made
    int64_t calls, fail_at;   // the fail_at-th call from now fails,
    bool sticky, dead;        // and if sticky, all after it
    bool capturing, refuse_register;
    bool held; // nothing that is queued runs
    unsigned seed;
} fake_cuda;

static fake_cuda fake;

static inline void fake_reset(unsigned seed) {
    memset(&fake, 0, sizeof fake);
    fake.n_streams = 2;
    fake.n_events = 1;
    fake.seed = seed;
    fake.pin_limit = (int64_t)1 << 30;
}

static inline unsigned fake_draw(unsigned n) {
    fake.seed = fake.seed * 1664525u + 1013904223u;
    return (fake.seed >> 8) % n;
}

/* Every call counts: what the countdown hits fails. */
static inline gnn_status fake_call(const char *name) {
    bool hit = fake.fail_at > 0 && --fake.fail_at == 0;
    fake.calls++;
    fake.dead = fake.dead || (hit && fake.sticky);
    GNN_REQUIRE(!hit && !fake.dead, GNN_EDEVICE, "cuda: %s: cudaErrorFake", name);
    return GNN_OK;
}
#define FAKE_CALL() GNN_TRY(fake_call(__func__))

/* One step of a stream, if it is not held up. */
static inline bool fake_step(int s) {
    if (fake.ran[s] == fake.queued[s]) {
        return false;
    }
    const step *one = &fake.steps[s][fake.ran[s]];
    if (one->kind == STEP_AFTER && fake.passed[one->event] < one->record) {
        return false;
    }
    if (one->kind == STEP_COPY) {
        memcpy(one->to, one->from, (size_t)one->bytes);
    } else if (one->kind == STEP_RECORD) {
        fake.passed[one->event] = one->record;
        fake.now[one->event] = fake.clock;
    }
    fake.clock++;
    fake.ran[s]++;
    return true;
}

static inline bool fake_advance(void) {
    int first = (int)fake_draw((unsigned)fake.n_streams);
    for (int i = 0; i < fake.n_streams && !fake.held; i++) {
        if (fake_step((first + i) % fake.n_streams)) {
            return true;
        }
    }
    return false;
}

static inline void fake_push(gnn_cuda_stream stream, step one) {
    if (fake.queued[stream] == STEPS) {
        abort();
    }
    fake.steps[stream][fake.queued[stream]++] = one;
}

/* A "kernel": a copy on a compute stream, which tests verify afterwards. */
static inline void fake_kernel(gnn_cuda_stream stream, void *to, const void *from,
                               int64_t bytes) {
    fake_push(stream, (step){STEP_COPY, to, from, bytes, 0, 0});
}

static inline gnn_status fake_attribute(int device, gnn_cuda_attribute which,
                                        int *value) {
    (void)device;
    FAKE_CALL();
    *value = which == GNN_CUDA_COPY_ENGINES ? 2 : -1;
    return GNN_OK;
}

static inline gnn_status fake_stream_create(int device, bool urgent,
                                            gnn_cuda_stream *stream) {
    (void)device, (void)urgent;
    FAKE_CALL();
    fake.made++;
    fake.live_streams++;
    *stream = (gnn_cuda_stream)fake.n_streams++;
    return fake.n_streams <= STREAMS ? GNN_OK : gnn_fail(GNN_EDEVICE, "fake: streams");
}

static inline gnn_status fake_stream_destroy(int device, gnn_cuda_stream stream) {
    (void)device, (void)stream;
    fake.live_streams--;
    FAKE_CALL();
    return GNN_OK;
}

static inline gnn_status fake_stream_done(int device, gnn_cuda_stream stream,
                                          bool *done) {
    (void)device;
    FAKE_CALL();
    *done = fake.ran[stream] == fake.queued[stream];
    return GNN_OK;
}

static inline gnn_status fake_stream_wait(int device, gnn_cuda_stream stream) {
    (void)device;
    fake.host_waits++;
    FAKE_CALL();
    while (fake.ran[stream] < fake.queued[stream] && fake_advance()) {
    }
    return fake.ran[stream] == fake.queued[stream] ? GNN_OK
                                                   : gnn_fail(GNN_EDEVICE, "deadlock");
}

static inline gnn_status fake_device_wait(int device) {
    (void)device;
    fake.host_waits++;
    FAKE_CALL();
    while (fake_advance()) {
    }
    return GNN_OK;
}

static inline gnn_status fake_stream_after(int device, gnn_cuda_stream stream,
                                           gnn_cuda_event event) {
    (void)device;
    FAKE_CALL();
    fake_push(stream, (step){STEP_AFTER, NULL, NULL, 0, event, fake.recorded[event]});
    return GNN_OK;
}

static inline gnn_status fake_stream_capturing(int device, gnn_cuda_stream stream,
                                               bool *capturing) {
    (void)device, (void)stream;
    *capturing = fake.capturing;
    return GNN_OK;
}

static inline gnn_status fake_event_create(int device, bool timing,
                                           gnn_cuda_event *event) {
    (void)device, (void)timing;
    FAKE_CALL();
    if (fake.n_events == EVENTS) {
        return gnn_fail(GNN_EDEVICE, "fake: too many events");
    }
    fake.made++;
    fake.live_events++;
    *event = (gnn_cuda_event)fake.n_events++;
    return GNN_OK;
}

static inline gnn_status fake_event_destroy(int device, gnn_cuda_event event) {
    (void)device, (void)event;
    fake.live_events--;
    FAKE_CALL();
    return GNN_OK;
}

static inline gnn_status fake_event_record(int device, gnn_cuda_event event,
                                           gnn_cuda_stream stream) {
    (void)device;
    FAKE_CALL();
    fake_push(stream,
              (step){STEP_RECORD, NULL, NULL, 0, event, ++fake.recorded[event]});
    return GNN_OK;
}

static inline gnn_status fake_event_done(int device, gnn_cuda_event event, bool *done) {
    (void)device;
    FAKE_CALL();
    fake_advance(); // time passes
    *done = fake.passed[event] == fake.recorded[event];
    return GNN_OK;
}

static inline gnn_status fake_event_wait(int device, gnn_cuda_event event) {
    (void)device;
    fake.host_waits++;
    FAKE_CALL();
    int64_t record = fake.recorded[event];
    while (fake.passed[event] < record && fake_advance()) {
    }
    return fake.passed[event] >= record ? GNN_OK : gnn_fail(GNN_EDEVICE, "deadlock");
}

static inline gnn_status fake_event_seconds(int device, gnn_cuda_event from,
                                            gnn_cuda_event to, double *seconds) {
    (void)device;
    FAKE_CALL();
    *seconds = (double)(fake.now[to] - fake.now[from]);
    return GNN_OK;
}

static inline gnn_status fake_pin(int64_t bytes) {
    GNN_REQUIRE(fake.pinned + bytes <= fake.pin_limit, GNN_ENOMEM,
                "cuda: cudaHostRegister: cudaErrorMemoryAllocation");
    fake.pinned += bytes;
    fake.live_pinned++;
    fake.made++;
    return GNN_OK;
}

static inline gnn_status fake_host_alloc(int device, int64_t bytes, void **host) {
    (void)device;
    FAKE_CALL();
    GNN_TRY(fake_pin(bytes));
    *host = malloc((size_t)bytes);
    return GNN_OK;
}

static inline gnn_status fake_host_free(int device, void *host) {
    (void)device;
    free(host);
    fake.live_pinned--;
    FAKE_CALL();
    return GNN_OK;
}

static inline gnn_status fake_host_register(int device, void *host, int64_t bytes) {
    (void)device, (void)host;
    FAKE_CALL();
    GNN_REQUIRE(!fake.refuse_register, GNN_EDEVICE, "cuda: cudaErrorNotSupported");
    return fake_pin(bytes);
}

static inline gnn_status fake_host_unregister(int device, void *host) {
    (void)device, (void)host;
    fake.live_pinned--;
    FAKE_CALL();
    return GNN_OK;
}

static inline gnn_status fake_device_alloc(int device, int64_t bytes, void **memory) {
    (void)device;
    FAKE_CALL();
    *memory = malloc((size_t)bytes);
    return GNN_OK;
}

static inline gnn_status fake_device_free(int device, void *memory) {
    (void)device;
    free(memory);
    FAKE_CALL();
    return GNN_OK;
}

static inline gnn_status fake_copy_out(int device, void *host, const void *memory,
                                       int64_t bytes, gnn_cuda_stream stream) {
    (void)device;
    FAKE_CALL();
    fake_push(stream, (step){STEP_COPY, host, memory, bytes, 0, 0});
    return GNN_OK;
}

static inline gnn_status fake_copy_in(int device, void *memory, const void *host,
                                      int64_t bytes, gnn_cuda_stream stream) {
    (void)device;
    FAKE_CALL();
    fake_push(stream, (step){STEP_COPY, memory, host, bytes, 0, 0});
    return GNN_OK;
}

static const gnn_cuda_api fake_api = {
    .device_attribute = fake_attribute,
    .device_wait = fake_device_wait,
    .stream_create = fake_stream_create,
    .stream_destroy = fake_stream_destroy,
    .stream_done = fake_stream_done,
    .stream_wait = fake_stream_wait,
    .stream_after = fake_stream_after,
    .stream_capturing = fake_stream_capturing,
    .event_create = fake_event_create,
    .event_destroy = fake_event_destroy,
    .event_record = fake_event_record,
    .event_done = fake_event_done,
    .event_wait = fake_event_wait,
    .event_seconds = fake_event_seconds,
    .host_alloc = fake_host_alloc,
    .host_free = fake_host_free,
    .host_register = fake_host_register,
    .host_unregister = fake_host_unregister,
    .device_alloc = fake_device_alloc,
    .device_free = fake_device_free,
    .copy_out = fake_copy_out,
    .copy_in = fake_copy_in,
};

#endif

/* test_copy_matrix.c: the matrix reads back the rates of a machine with known ones. */
#include "link_checks.h"

#include "offload/copy_matrix.h"

/* Time is arithmetic: a stream is the time at which it is free. Pinned copies run both
 * ways at once, pageable ones hold the host, system ones need pageable access. */
static struct {
    double host, streams[8], events[64];
    int n_streams, n_events, live, pageable_access;
    char *pinned, *managed;
    int64_t pinned_bytes, managed_bytes, device_bytes, device_limit;
    int fail_copies;
} box;

static const double OUT = 200e9, IN = 300e9, STAGED = 10e9, DIRECT = 150e9, SLOW = 4e9;

static void reset(void) {
    memset(&box, 0, sizeof box);
    box.n_streams = box.n_events = 1;
    box.device_limit = INT64_MAX;
    box.pageable_access = 1;
}

static gnn_status attribute(int device, gnn_cuda_attribute which, int *value) {
    (void)device;
    *value = which == GNN_CUDA_PAGEABLE_ACCESS ? box.pageable_access : -1;
    return GNN_OK;
}

static gnn_status make_stream(int device, bool urgent, gnn_cuda_stream *stream) {
    (void)device, (void)urgent;
    box.live++;
    *stream = (gnn_cuda_stream)box.n_streams++;
    return GNN_OK;
}

static gnn_status end_handle(int device, uint64_t handle) {
    (void)device, (void)handle;
    box.live--;
    return GNN_OK;
}

static gnn_status make_event(int device, bool timing, gnn_cuda_event *event) {
    (void)device;
    CHECK(timing);
    box.live++;
    *event = (gnn_cuda_event)box.n_events++;
    return GNN_OK;
}

static gnn_status record(int device, gnn_cuda_event event, gnn_cuda_stream stream) {
    (void)device;
    if (box.streams[stream] < box.host) { // the host comes to it later
        box.streams[stream] = box.host;
    }
    box.events[event] = box.streams[stream];
    return GNN_OK;
}

static gnn_status after(int device, gnn_cuda_stream stream, gnn_cuda_event event) {
    (void)device;
    if (box.streams[stream] < box.events[event]) {
        box.streams[stream] = box.events[event];
    }
    return GNN_OK;
}

static gnn_status wait_event(int device, gnn_cuda_event event) {
    (void)device;
    box.host = box.events[event] > box.host ? box.events[event] : box.host;
    return GNN_OK;
}

static gnn_status wait_stream(int device, gnn_cuda_stream stream) {
    (void)device, (void)stream;
    return GNN_OK;
}

static gnn_status seconds(int device, gnn_cuda_event from, gnn_cuda_event to,
                          double *passed) {
    (void)device;
    *passed = box.events[to] - box.events[from];
    return GNN_OK;
}

static gnn_status pin(int device, void *host, int64_t bytes) {
    (void)device;
    box.live++;
    if (box.pinned == NULL || (char *)host < box.pinned) {
        box.pinned = host;
    }
    box.pinned_bytes += bytes;
    return GNN_OK;
}

static gnn_status unpin(int device, void *host) {
    (void)device, (void)host;
    box.live--;
    return GNN_OK;
}

static gnn_status alloc(int device, int64_t bytes, void **memory) {
    (void)device;
    GNN_REQUIRE(box.device_bytes + bytes <= box.device_limit, GNN_ENOMEM, "full");
    box.device_bytes += bytes;
    box.live++;
    *memory = malloc((size_t)bytes);
    return GNN_OK;
}

static gnn_status give(int device, void *memory) {
    (void)device;
    box.live--;
    free(memory);
    return GNN_OK;
}

static gnn_status give_device(int device, void *memory) {
    box.device_bytes = 0;
    return give(device, memory);
}

static gnn_status managed(int device, int64_t bytes, void **memory) {
    (void)device;
    box.live++;
    *memory = malloc((size_t)bytes);
    return GNN_OK;
}

static gnn_status move(double rate, bool holds_host, int64_t bytes,
                       gnn_cuda_stream stream) {
    GNN_REQUIRE(!box.fail_copies, GNN_EDEVICE, "cuda: cudaMemcpyAsync: broken");
    double begin = box.streams[stream];
    begin = holds_host && box.host > begin ? box.host : begin;
    box.streams[stream] = begin + (double)bytes / rate;
    box.host = holds_host ? box.streams[stream] : box.host;
    return GNN_OK;
}

static gnn_host_kind kind_now;

static gnn_status out(int device, void *host, const void *memory, int64_t bytes,
                      gnn_cuda_stream stream) {
    (void)device, (void)host, (void)memory;
    bool staged = kind_now == GNN_HOST_PAGEABLE;
    return move(staged ? STAGED : OUT, staged, bytes, stream);
}

static gnn_status in(int device, void *memory, const void *host, int64_t bytes,
                     gnn_cuda_stream stream) {
    (void)device, (void)host, (void)memory;
    bool staged = kind_now == GNN_HOST_PAGEABLE;
    return move(staged ? STAGED : IN, staged, bytes, stream);
}

static gnn_status any(int device, void *to, const void *from, int64_t bytes,
                      gnn_cuda_stream stream) {
    (void)device, (void)to, (void)from;
    return move(kind_now == GNN_HOST_SYSTEM ? DIRECT : SLOW, false, bytes, stream);
}

static const gnn_cuda_api api = {
    .device_attribute = attribute,
    .stream_create = make_stream,
    .stream_destroy = end_handle,
    .stream_wait = wait_stream,
    .stream_after = after,
    .event_create = make_event,
    .event_destroy = end_handle,
    .event_record = record,
    .event_wait = wait_event,
    .event_seconds = seconds,
    .host_register = pin,
    .host_unregister = unpin,
    .device_alloc = alloc,
    .device_free = give_device,
    .managed_alloc = managed,
    .managed_free = give,
    .copy_out = out,
    .copy_in = in,
    .copy_any = any,
};

enum { SIZES = 3 };
static const int64_t sizes[SIZES] = {64 << 10, 1 << 20, 8 << 20};

static bool near_to(double a, double b) {
    return a > 0.999 * b && a < 1.001 * b;
}

static void check_kind(gnn_host_kind kind, double rate_out, double rate_in,
                       double rate_both) {
    double rates[SIZES][GNN_COPY_WAYS];
    reset();
    kind_now = kind;
    CHECK(gnn_copy_rates(&api, 0, kind, sizes, SIZES, 1e-3, rates[0]) == GNN_OK);
    for (int s = 0; s < SIZES; s++) {
        CHECK(near_to(rates[s][GNN_COPY_OUT], rate_out));
        CHECK(near_to(rates[s][GNN_COPY_IN], rate_in));
        CHECK(near_to(rates[s][GNN_COPY_BOTH], rate_both));
    }
    CHECK(box.live == 0);
}

int main(void) {
    double rates[SIZES][GNN_COPY_WAYS];
    check_kind(GNN_HOST_PINNED, OUT, IN, 2 * OUT); // the slower way decides
    check_kind(GNN_HOST_PAGEABLE, STAGED, STAGED, STAGED);
    check_kind(GNN_HOST_MANAGED, SLOW, SLOW, 2 * SLOW);
    check_kind(GNN_HOST_SYSTEM, DIRECT, DIRECT, 2 * DIRECT);
    reset();
    box.pageable_access = 0;
    CHECK(gnn_copy_rates(&api, 0, GNN_HOST_SYSTEM, sizes, SIZES, 1e-3, rates[0]) ==
          GNN_ENOTSUP);
    reset();
    kind_now = GNN_HOST_PINNED;
    box.device_limit = 3 << 20; // two buffers of 8 MiB do not fit
    CHECK(gnn_copy_rates(&api, 0, GNN_HOST_PINNED, sizes, SIZES, 1e-3, rates[0]) ==
          GNN_OK);
    CHECK(rates[2][GNN_COPY_OUT] == 0 && near_to(rates[1][GNN_COPY_OUT], OUT));
    CHECK(box.live == 0);
    reset();
    box.fail_copies = 1;
    CHECK(gnn_copy_rates(&api, 0, GNN_HOST_PINNED, sizes, SIZES, 1e-3, rates[0]) ==
          GNN_EDEVICE);
    CHECK(box.live == 0);
    printf("test_copy_matrix: four kinds read back\n");
    return 0;
}

/* recorder.c: see recorder.h. One function per entry, which all look alike. */
#include "recorder.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ENTRY_NUMBER(name) ENTRY_##name,
enum { GNN_CUDA_API_ENTRIES(ENTRY_NUMBER) };

typedef struct trace {
    rec_call *calls;
    rec_range *ranges;
    char **names;
    int64_t n_calls, n_ranges, n_names, lost;
} trace;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static const gnn_cuda_api *inner;
static trace seen;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Room for one more in an array that doubles; NULL: no memory. */
static void *room(void *array, int64_t n, size_t size) {
    bool full = n == 0 || (n >= 64 && (n & (n - 1)) == 0);
    return full ? realloc(array, (size_t)(n ? 2 * n : 64) * size) : array;
}

/* Returns its place, -1 without memory. The mutex is held. */
static int64_t append(rec_call call) {
    rec_call *calls = room(seen.calls, seen.n_calls, sizeof *calls);
    if (!calls) {
        seen.lost++;
        return -1;
    }
    seen.calls = calls;
    calls[seen.n_calls] = call;
    return seen.n_calls++;
}

static gnn_status write_down(rec_call call, gnn_status status) {
    call.status = status;
    call.end = now();
    pthread_mutex_lock(&mutex);
    append(call);
    pthread_mutex_unlock(&mutex);
    return status;
}

/* Forwards `entry` with the arguments in brackets; what follows fills the call. */
#define FORWARD(entry_, arguments, ...)                                                \
    rec_call call = {.entry = ENTRY_##entry_, .begin = now(), __VA_ARGS__};            \
    gnn_status status = inner->entry_ arguments

/* ------------------------------------------------------------------ versions, devices */

static gnn_status runtime_version(int *version) {
    FORWARD(runtime_version, (version), .device = -1);
    return write_down(call, status);
}

static gnn_status driver_version(int *version) {
    FORWARD(driver_version, (version), .device = -1);
    return write_down(call, status);
}

static gnn_status device_count(int *count) {
    FORWARD(device_count, (count), .device = -1);
    return write_down(call, status);
}

static gnn_status device_name(int device, char *name, size_t bytes) {
    FORWARD(device_name, (device, name, bytes), .device = device);
    return write_down(call, status);
}

static gnn_status device_pci(int device, char *address, size_t bytes) {
    FORWARD(device_pci, (device, address, bytes), .device = device);
    return write_down(call, status);
}

static gnn_status device_attribute(int device, gnn_cuda_attribute which, int *value) {
    FORWARD(device_attribute, (device, which, value), .device = device);
    return write_down(call, status);
}

static gnn_status device_memory(int device, int64_t *free_bytes, int64_t *total_bytes) {
    FORWARD(device_memory, (device, free_bytes, total_bytes), .device = device);
    return write_down(call, status);
}

static gnn_status device_in_use(int device, bool *in_use) {
    FORWARD(device_in_use, (device, in_use), .device = device);
    return write_down(call, status);
}

static gnn_status device_wait(int device) {
    FORWARD(device_wait, (device), .device = device);
    return write_down(call, status);
}

/* --------------------------------------------------------------------------- streams */

static gnn_status stream_create(int device, bool urgent, gnn_cuda_stream *stream) {
    FORWARD(stream_create, (device, urgent, stream), .device = device);
    call.stream = status == GNN_OK ? *stream : 0;
    return write_down(call, status);
}

static gnn_status stream_destroy(int device, gnn_cuda_stream stream) {
    FORWARD(stream_destroy, (device, stream), .device = device, .stream = stream);
    return write_down(call, status);
}

static gnn_status stream_done(int device, gnn_cuda_stream stream, bool *done) {
    FORWARD(stream_done, (device, stream, done), .device = device, .stream = stream);
    call.answer = status == GNN_OK && *done;
    return write_down(call, status);
}

static gnn_status stream_wait(int device, gnn_cuda_stream stream) {
    FORWARD(stream_wait, (device, stream), .device = device, .stream = stream);
    return write_down(call, status);
}

static gnn_status stream_after(int device, gnn_cuda_stream stream,
                               gnn_cuda_event event) {
    FORWARD(stream_after, (device, stream, event), .device = device, .stream = stream,
            .event = event);
    return write_down(call, status);
}

static gnn_status stream_capturing(int device, gnn_cuda_stream stream,
                                   bool *capturing) {
    FORWARD(stream_capturing, (device, stream, capturing), .device = device,
            .stream = stream);
    call.answer = status == GNN_OK && *capturing;
    return write_down(call, status);
}

/* ---------------------------------------------------------------------------- events */

static gnn_status event_create(int device, bool timing, gnn_cuda_event *event) {
    FORWARD(event_create, (device, timing, event), .device = device);
    call.event = status == GNN_OK ? *event : 0;
    return write_down(call, status);
}

static gnn_status event_destroy(int device, gnn_cuda_event event) {
    FORWARD(event_destroy, (device, event), .device = device, .event = event);
    return write_down(call, status);
}

static gnn_status event_record(int device, gnn_cuda_event event,
                               gnn_cuda_stream stream) {
    FORWARD(event_record, (device, event, stream), .device = device, .event = event,
            .stream = stream);
    return write_down(call, status);
}

static gnn_status event_done(int device, gnn_cuda_event event, bool *done) {
    FORWARD(event_done, (device, event, done), .device = device, .event = event);
    call.answer = status == GNN_OK && *done;
    return write_down(call, status);
}

static gnn_status event_wait(int device, gnn_cuda_event event) {
    FORWARD(event_wait, (device, event), .device = device, .event = event);
    return write_down(call, status);
}

static gnn_status event_seconds(int device, gnn_cuda_event from, gnn_cuda_event to,
                                double *seconds) {
    FORWARD(event_seconds, (device, from, to, seconds), .device = device,
            .event = from);
    return write_down(call, status);
}

/* ---------------------------------------------------------------------------- memory */

static uint64_t address_of(const void *memory) {
    return (uintptr_t)memory;
}

static gnn_status host_alloc(int device, int64_t bytes, void **host) {
    FORWARD(host_alloc, (device, bytes, host), .device = device, .bytes = bytes);
    call.to = status == GNN_OK ? address_of(*host) : 0;
    return write_down(call, status);
}

static gnn_status host_free(int device, void *host) {
    FORWARD(host_free, (device, host), .device = device, .to = address_of(host));
    return write_down(call, status);
}

static gnn_status host_register(int device, void *host, int64_t bytes) {
    FORWARD(host_register, (device, host, bytes), .device = device,
            .to = address_of(host), .bytes = bytes);
    return write_down(call, status);
}

static gnn_status host_unregister(int device, void *host) {
    FORWARD(host_unregister, (device, host), .device = device, .to = address_of(host));
    return write_down(call, status);
}

static gnn_status device_alloc(int device, int64_t bytes, void **memory) {
    FORWARD(device_alloc, (device, bytes, memory), .device = device, .bytes = bytes);
    call.to = status == GNN_OK ? address_of(*memory) : 0;
    return write_down(call, status);
}

static gnn_status device_free(int device, void *memory) {
    FORWARD(device_free, (device, memory), .device = device, .to = address_of(memory));
    return write_down(call, status);
}

static gnn_status managed_alloc(int device, int64_t bytes, void **memory) {
    FORWARD(managed_alloc, (device, bytes, memory), .device = device, .bytes = bytes);
    call.to = status == GNN_OK ? address_of(*memory) : 0;
    return write_down(call, status);
}

static gnn_status managed_free(int device, void *memory) {
    FORWARD(managed_free, (device, memory), .device = device, .to = address_of(memory));
    return write_down(call, status);
}

static gnn_status pointer_device(const void *pointer, int *device) {
    FORWARD(pointer_device, (pointer, device), .device = -1,
            .from = address_of(pointer));
    call.answer = status == GNN_OK ? *device : -1;
    return write_down(call, status);
}

/* ---------------------------------------------------------------------------- copies */

#define COPIED                                                                         \
    .device = device, .to = address_of(to), .from = address_of(from), .bytes = bytes,  \
    .stream = stream

static gnn_status copy_out(int device, void *to, const void *from, int64_t bytes,
                           gnn_cuda_stream stream) {
    FORWARD(copy_out, (device, to, from, bytes, stream), COPIED);
    return write_down(call, status);
}

static gnn_status copy_in(int device, void *to, const void *from, int64_t bytes,
                          gnn_cuda_stream stream) {
    FORWARD(copy_in, (device, to, from, bytes, stream), COPIED);
    return write_down(call, status);
}

static gnn_status copy_any(int device, void *to, const void *from, int64_t bytes,
                           gnn_cuda_stream stream) {
    FORWARD(copy_any, (device, to, from, bytes, stream), COPIED);
    return write_down(call, status);
}

static const gnn_cuda_api table = {GNN_CUDA_API_ENTRIES(GNN_CUDA_API_OWN)};

/* ----------------------------------------------------------------------------- trace */

const gnn_cuda_api *rec_open(const gnn_cuda_api *api) {
    pthread_mutex_lock(&mutex);
    for (int64_t i = 0; i < seen.n_names; i++) {
        free(seen.names[i]);
    }
    free(seen.names), free(seen.ranges), free(seen.calls);
    seen = (trace){0};
    inner = api;
    pthread_mutex_unlock(&mutex);
    return &table;
}

static bool add_name(const char *name) {
    char **names = room(seen.names, seen.n_names, sizeof *names);
    seen.names = names ? names : seen.names;
    char *copy = names ? strdup(name) : NULL;
    if (copy) {
        seen.names[seen.n_names++] = copy;
    }
    return copy != NULL;
}

static bool add_range(rec_range range) {
    rec_range *ranges = room(seen.ranges, seen.n_ranges, sizeof *ranges);
    if (ranges) {
        seen.ranges = ranges;
        seen.ranges[seen.n_ranges++] = range;
    }
    return ranges != NULL;
}

int64_t rec_kernel(int device, uint64_t stream, const char *name, int64_t n,
                   const rec_range *ranges) {
    rec_call call = {.entry = REC_KERNEL, .device = device, .stream = stream};
    call.n_ranges = n, call.cost = -1, call.begin = now();
    pthread_mutex_lock(&mutex);
    call.name = seen.n_names, call.ranges = seen.n_ranges;
    bool kept = add_name(name);
    for (int64_t i = 0; i < n && kept; i++) {
        kept = add_range(ranges[i]);
    }
    call.end = now();
    seen.lost += !kept;
    int64_t place = kept ? append(call) : -1;
    pthread_mutex_unlock(&mutex);
    return place;
}

void rec_set_cost(int64_t place, int64_t nanoseconds) {
    pthread_mutex_lock(&mutex);
    if (place >= 0 && place < seen.n_calls) {
        seen.calls[place].cost = nanoseconds;
    }
    pthread_mutex_unlock(&mutex);
}

int64_t rec_calls(const rec_call **calls) {
    *calls = seen.calls;
    return seen.n_calls;
}

int64_t rec_ranges(const rec_range **ranges) {
    *ranges = seen.ranges;
    return seen.n_ranges;
}

const char *rec_name(int64_t index) {
    return seen.names[index];
}

int64_t rec_lost(void) {
    return seen.lost;
}

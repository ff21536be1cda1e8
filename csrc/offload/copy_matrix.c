/* copy_matrix.c: timed copies on two streams between events. */
#include "offload/copy_matrix.h"

#include "offload/pinned_slab.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_COPIES = 64, TRACKS = 2 }; // a track for each direction

typedef struct bench {
    const gnn_cuda_api *api;
    int device;
    gnn_host_kind kind;
    int64_t bytes;          // of each buffer
    gnn_slab slabs[TRACKS]; // for pinned memory
    void *host[TRACKS], *near[TRACKS];
    gnn_cuda_stream streams[TRACKS];
    gnn_cuda_event begin, end[TRACKS];
} bench;

/* -------------------------------------------------------------------------- buffers */

static gnn_status take_host(bench *b, int track) {
    void **host = &b->host[track];
    if (b->kind == GNN_HOST_PINNED) {
        gnn_slot slot;
        gnn_slab_init(&b->slabs[track], b->api, b->device, b->bytes + (2 << 20));
        GNN_TRY(gnn_slab_take(&b->slabs[track], b->bytes, &slot));
        *host = gnn_slab_address(&b->slabs[track], slot);
    } else if (b->kind == GNN_HOST_MANAGED) {
        GNN_TRY(b->api->managed_alloc(b->device, b->bytes, host));
    } else {
        void *pages = mmap(NULL, (size_t)b->bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        GNN_REQUIRE(pages != MAP_FAILED, GNN_ENOMEM, "copies: no memory");
        *host = pages;
    }
    memset(*host, 1, (size_t)b->bytes); // the host touches its pages first
    return GNN_OK;
}

static void give_host(bench *b, int track) {
    if (b->kind == GNN_HOST_PINNED) {
        gnn_slab_clear(&b->slabs[track]);
    } else if (b->host[track] && b->kind == GNN_HOST_MANAGED) {
        b->api->managed_free(b->device, b->host[track]);
    } else if (b->host[track]) {
        munmap(b->host[track], (size_t)b->bytes);
    }
    b->host[track] = NULL;
}

static void give_buffers(bench *b) {
    for (int t = 0; t < TRACKS; t++) {
        give_host(b, t);
        if (b->near[t]) {
            b->api->device_free(b->device, b->near[t]);
            b->near[t] = NULL;
        }
    }
}

static gnn_status take_buffers(bench *b, int64_t bytes) {
    gnn_status status = GNN_OK;
    b->bytes = bytes;
    for (int t = 0; t < TRACKS && status == GNN_OK; t++) {
        status = b->api->device_alloc(b->device, bytes, &b->near[t]);
        status = status == GNN_OK ? take_host(b, t) : status;
    }
    if (status != GNN_OK) {
        give_buffers(b);
    }
    return status;
}

/* --------------------------------------------------------------------------- timing */

static gnn_status copy(bench *b, bool out, int64_t bytes) {
    void *host = b->host[out], *near = b->near[out];
    gnn_cuda_stream stream = b->streams[out];
    if (b->kind == GNN_HOST_MANAGED || b->kind == GNN_HOST_SYSTEM) {
        return b->api->copy_any(b->device, out ? host : near, out ? near : host, bytes,
                                stream);
    }
    return out ? b->api->copy_out(b->device, host, near, bytes, stream)
               : b->api->copy_in(b->device, near, host, bytes, stream);
}

/* Seconds for `n` copies on each track of the way, begun together. */
static gnn_status time_copies(bench *b, int way, int64_t bytes, int n,
                              double *seconds) {
    const gnn_cuda_api *api = b->api;
    bool used[TRACKS] = {way != GNN_COPY_OUT, way != GNN_COPY_IN};
    gnn_cuda_stream first = b->streams[!used[0]];
    GNN_TRY(api->event_record(b->device, b->begin, first));
    GNN_TRY(api->stream_after(b->device, b->streams[1], b->begin));
    for (int i = 0; i < n; i++) {
        for (int t = 0; t < TRACKS; t++) {
            if (used[t]) {
                GNN_TRY(copy(b, t, bytes));
            }
        }
    }
    *seconds = 0;
    for (int t = 0; t < TRACKS; t++) {
        double passed = 0;
        if (used[t]) {
            GNN_TRY(api->event_record(b->device, b->end[t], b->streams[t]));
            GNN_TRY(api->event_wait(b->device, b->end[t]));
            GNN_TRY(api->event_seconds(b->device, b->begin, b->end[t], &passed));
        }
        *seconds = passed > *seconds ? passed : *seconds;
    }
    *seconds = *seconds > 1e-9 ? *seconds : 1e-9;
    return GNN_OK;
}

static gnn_status measure(bench *b, int way, int64_t bytes, double budget,
                          double *rate) {
    double seconds;
    int directions = way == GNN_COPY_BOTH ? 2 : 1;
    GNN_TRY(time_copies(b, way, bytes, 1, &seconds)); // warms up
    GNN_TRY(time_copies(b, way, bytes, 1, &seconds));
    double fits = budget / seconds;
    int n = fits < 1 ? 1 : fits > MOST_COPIES ? MOST_COPIES : (int)fits;
    GNN_TRY(time_copies(b, way, bytes, n, &seconds));
    *rate = (double)(directions * n) * (double)bytes / seconds;
    return GNN_OK;
}

static gnn_status open_bench(bench *b) {
    const gnn_cuda_api *api = b->api;
    int reaches = 1;
    if (b->kind == GNN_HOST_SYSTEM) {
        GNN_TRY(api->device_attribute(b->device, GNN_CUDA_PAGEABLE_ACCESS, &reaches));
    }
    GNN_REQUIRE(reaches > 0, GNN_ENOTSUP,
                "copies: the device does not reach plain host memory by itself");
    GNN_TRY(api->event_create(b->device, true, &b->begin));
    for (int t = 0; t < TRACKS; t++) {
        GNN_TRY(api->event_create(b->device, true, &b->end[t]));
        GNN_TRY(api->stream_create(b->device, false, &b->streams[t]));
    }
    return GNN_OK;
}

static void close_bench(bench *b) {
    const gnn_cuda_api *api = b->api;
    for (int t = 0; t < TRACKS; t++) {
        if (b->streams[t]) {
            api->stream_wait(b->device, b->streams[t]);
            api->stream_destroy(b->device, b->streams[t]);
        }
        if (b->end[t]) {
            api->event_destroy(b->device, b->end[t]);
        }
    }
    if (b->begin) {
        api->event_destroy(b->device, b->begin);
    }
    give_buffers(b);
}

gnn_status gnn_copy_rates(const gnn_cuda_api *api, int device, gnn_host_kind kind,
                          const int64_t *sizes, int n, double seconds, double *rates) {
    bench b = {.api = api, .device = device, .kind = kind};
    memset(rates, 0, (size_t)(n * GNN_COPY_WAYS) * sizeof *rates);
    gnn_status status = open_bench(&b);
    bool has_memory = false;
    for (int s = n - 1; s >= 0 && status == GNN_OK; s--) {
        if (!has_memory) { // the largest that fits serves the smaller ones too
            gnn_status taken = take_buffers(&b, sizes[s]);
            has_memory = taken == GNN_OK;
            status = taken == GNN_ENOMEM || taken == GNN_EFULL ? GNN_OK : taken;
        }
        for (int way = 0; way < GNN_COPY_WAYS && has_memory && status == GNN_OK;
             way++) {
            status =
                measure(&b, way, sizes[s], seconds, &rates[s * GNN_COPY_WAYS + way]);
        }
    }
    close_bench(&b);
    return status;
}

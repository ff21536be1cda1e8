/* cuda_api.c: the judgement whether there is CUDA, and the table for when not. */
#include "offload/cuda_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int gnn_cuda_built_version(void) {
    int major = 0, minor = 0;
    int found = sscanf(gnn_build_facts().cuda, "%d.%d", &major, &minor);
    return found == 2 ? major * 1000 + minor * 10 : 0;
}

/* A driver serves every runtime of its own major version and of older ones. */
gnn_cuda_absence gnn_cuda_judge(int runtime_version, int driver_version, int devices) {
    if (runtime_version == 0) {
        return GNN_CUDA_NOT_BUILT;
    }
    if (driver_version == 0) {
        return GNN_CUDA_NO_DRIVER;
    }
    if (driver_version / 1000 < runtime_version / 1000) {
        return GNN_CUDA_DRIVER_TOO_OLD;
    }
    return devices > 0 ? GNN_CUDA_PRESENT : GNN_CUDA_NO_DEVICE;
}

void gnn_cuda_absence_text(gnn_cuda_absence absence, int runtime_version,
                           int driver_version, char *text, size_t bytes) {
    switch (absence) {
    case GNN_CUDA_PRESENT:
        snprintf(text, bytes, "%s", "");
        return;
    case GNN_CUDA_NOT_BUILT:
        snprintf(text, bytes, "this gnnoffload was built without CUDA");
        return;
    case GNN_CUDA_NO_DRIVER:
        snprintf(text, bytes, "no NVIDIA driver was found on this machine");
        return;
    case GNN_CUDA_DRIVER_TOO_OLD:
        snprintf(
            text, bytes,
            "the NVIDIA driver is too old: it serves CUDA %d.%d, this gnnoffload was "
            "built with CUDA %d.%d",
            driver_version / 1000, driver_version % 1000 / 10, runtime_version / 1000,
            runtime_version % 1000 / 10);
        return;
    case GNN_CUDA_NO_DEVICE:
        snprintf(text, bytes, "the NVIDIA driver shows no GPU to this process");
        return;
    }
}

/* ------------------------------------------------------------------ the empty table */

static char why[200];

static gnn_status refuse(const char *call) {
    return gnn_fail(GNN_EDEVICE, "cuda: %s: %s", call, why);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define NONE(name, ...)                                                                \
    static gnn_status name(__VA_ARGS__) {                                              \
        return refuse(#name);                                                          \
    }
NONE(runtime_version, int *version)
NONE(driver_version, int *version)
NONE(device_count, int *count)
NONE(device_name, int device, char *name, size_t bytes)
NONE(device_pci, int device, char *address, size_t bytes)
NONE(device_attribute, int device, gnn_cuda_attribute which, int *value)
NONE(device_memory, int device, int64_t *free_bytes, int64_t *total_bytes)
NONE(device_in_use, int device, bool *in_use)
NONE(device_wait, int device)
NONE(stream_create, int device, bool urgent, gnn_cuda_stream *stream)
NONE(stream_destroy, int device, gnn_cuda_stream stream)
NONE(stream_done, int device, gnn_cuda_stream stream, bool *done)
NONE(stream_wait, int device, gnn_cuda_stream stream)
NONE(stream_after, int device, gnn_cuda_stream stream, gnn_cuda_event event)
NONE(stream_capturing, int device, gnn_cuda_stream stream, bool *capturing)
NONE(event_create, int device, bool timing, gnn_cuda_event *event)
NONE(event_destroy, int device, gnn_cuda_event event)
NONE(event_record, int device, gnn_cuda_event event, gnn_cuda_stream stream)
NONE(event_done, int device, gnn_cuda_event event, bool *done)
NONE(event_wait, int device, gnn_cuda_event event)
NONE(event_seconds, int device, gnn_cuda_event from, gnn_cuda_event to, double *seconds)
NONE(host_alloc, int device, int64_t bytes, void **host)
NONE(host_free, int device, void *host)
NONE(host_register, int device, void *host, int64_t bytes)
NONE(host_unregister, int device, void *host)
NONE(device_alloc, int device, int64_t bytes, void **memory)
NONE(device_free, int device, void *memory)
NONE(managed_alloc, int device, int64_t bytes, void **memory)
NONE(managed_free, int device, void *memory)
NONE(pointer_device, const void *pointer, int *device)
NONE(copy_out, int device, void *host, const void *memory, int64_t bytes,
     gnn_cuda_stream stream)
NONE(copy_in, int device, void *memory, const void *host, int64_t bytes,
     gnn_cuda_stream stream)
NONE(copy_any, int device, void *to, const void *from, int64_t bytes,
     gnn_cuda_stream stream)
#pragma GCC diagnostic pop

static const gnn_cuda_api none = {GNN_CUDA_API_ENTRIES(GNN_CUDA_API_OWN)};

const gnn_cuda_api *gnn_cuda_api_none(gnn_cuda_absence absence, int driver) {
    gnn_cuda_absence_text(absence, gnn_cuda_built_version(), driver, why, sizeof why);
    return &none;
}

/* cuda_api.h: every CUDA call the offload engine makes, as one table.
 *
 * link_cuda calls through it and knows no CUDA header. The product fills it from the
 * CUDA runtime, tests from a simulator with virtual time, a machine without CUDA from
 * gnn_cuda_api_none(), whose entries say why.
 *
 * Contract of all entries: `device` is explicit and the thread's current device is the
 * same after the call as before. Handles belong to the device they were made on. A
 * failure returns GNN_EDEVICE with the call and CUDA's error name in the message and
 * leaves no error behind for the next caller; out of memory, which a caller can answer,
 * returns GNN_ENOMEM. After a fault of the device itself every call fails, destroy and
 * free included. No entry waits for the device unless it says so.
 */
#ifndef GNN_CUDA_API_H
#define GNN_CUDA_API_H

#include "gnn.h"

typedef uint64_t gnn_cuda_stream; // cudaStream_t as an integer; 0: the default stream
typedef uint64_t gnn_cuda_event;  // cudaEvent_t as an integer; never 0

/* What the engine asks about a device. The memory model follows from the attributes,
 * never from a device's name: pageable 0 is a discrete device; pageable 1 with host
 * page tables 0 is software coherence; host page tables 1 is hardware coherence
 * (Grace Hopper). */
typedef enum gnn_cuda_attribute {
    GNN_CUDA_COMPUTE_MAJOR,
    GNN_CUDA_COMPUTE_MINOR,
    GNN_CUDA_COPY_ENGINES,     // 2 or more: copies both ways run at once
    GNN_CUDA_PAGEABLE_ACCESS,  // the device reads any host memory
    GNN_CUDA_HOST_PAGE_TABLES, // and does so through the host's page tables
    GNN_CUDA_NUMA_ID,          // NUMA node of the device's memory, -1: none
    GNN_CUDA_HOST_NUMA_ID,     // nearest NUMA node of the host, -1: unknown
    GNN_CUDA_INTEGRATED,       // shares its memory with the host
} gnn_cuda_attribute;

typedef struct gnn_cuda_api {
    /* ------------------------------------------------------------ versions, devices */
    gnn_status (*runtime_version)(int *version); // 13000: CUDA 13.0
    gnn_status (*driver_version)(int *version);  // newest CUDA that the driver serves
    gnn_status (*device_count)(int *count);
    gnn_status (*device_name)(int device, char *name, size_t bytes);
    gnn_status (*device_pci)(int device, char *address, size_t bytes); // 0000:01:00.0
    gnn_status (*device_attribute)(int device, gnn_cuda_attribute which, int *value);
    gnn_status (*device_memory)(int device, int64_t *free_bytes, int64_t *total_bytes);
    /* False before anybody has used the device: the engine never is the first. */
    gnn_status (*device_in_use)(int device, bool *in_use);
    /* Waits until the device is idle. Shutdown only. */
    gnn_status (*device_wait)(int device);

    /* ---------------------------------------------------------------------- streams */
    /* A stream that does not join the default stream; urgent: highest priority. */
    gnn_status (*stream_create)(int device, bool urgent, gnn_cuda_stream *stream);
    /* Work queued on it still runs to its end. */
    gnn_status (*stream_destroy)(int device, gnn_cuda_stream stream);
    gnn_status (*stream_done)(int device, gnn_cuda_stream stream, bool *done);
    /* Waits for all work queued on the stream. */
    gnn_status (*stream_wait)(int device, gnn_cuda_stream stream);
    /* Later work on the stream runs after what `event` captured at its last record;
     * an event never recorded orders nothing. */
    gnn_status (*stream_after)(int device, gnn_cuda_stream stream,
                               gnn_cuda_event event);
    /* While a graph is captured the engine must not query, allocate or copy. */
    gnn_status (*stream_capturing)(int device, gnn_cuda_stream stream, bool *capturing);

    /* ----------------------------------------------------------------------- events */
    gnn_status (*event_create)(int device, bool timing, gnn_cuda_event *event);
    gnn_status (*event_destroy)(int device, gnn_cuda_event event);
    /* Captures the work queued on the stream up to this call; recording again does not
     * change waits made before. */
    gnn_status (*event_record)(int device, gnn_cuda_event event,
                               gnn_cuda_stream stream);
    /* "Not ready" is an answer, not a failure. Never recorded: done. */
    gnn_status (*event_done)(int device, gnn_cuda_event event, bool *done);
    /* Waits for the event. */
    gnn_status (*event_wait)(int device, gnn_cuda_event event);
    /* Seconds between two timing events that are done. */
    gnn_status (*event_seconds)(int device, gnn_cuda_event from, gnn_cuda_event to,
                                double *seconds);

    /* ----------------------------------------------------------------------- memory */
    /* Page-locked host memory of exactly `bytes`, for every device. May wait for the
     * device; made at the start and kept. GNN_ENOMEM. */
    gnn_status (*host_alloc)(int device, int64_t bytes, void **host);
    gnn_status (*host_free)(int device, void *host);
    /* Page-locks [host, host + bytes), both multiples of the page size. GNN_ENOMEM. */
    gnn_status (*host_register)(int device, void *host, int64_t bytes);
    gnn_status (*host_unregister)(int device, void *host);
    /* Device memory for measurements; tensors come from torch's allocator.
     * GNN_ENOMEM. */
    gnn_status (*device_alloc)(int device, int64_t bytes, void **memory);
    gnn_status (*device_free)(int device, void *memory);
    /* Managed memory that prefers to stay on the host and is mapped on the device: for
     * measurements. GNN_ENOMEM. */
    gnn_status (*managed_alloc)(int device, int64_t bytes, void **memory);
    gnn_status (*managed_free)(int device, void *memory);
    /* The device whose memory `pointer` is, -1 for host memory. */
    gnn_status (*pointer_device)(const void *pointer, int *device);

    /* ----------------------------------------------------------------------- copies */
    /* Queues a copy on the stream. host must be page-locked: then the call returns
     * at once, and neither side may be touched before the stream has passed the
     * copy. Other host memory is for measurements: then the call may wait. */
    gnn_status (*copy_out)(int device, void *host, const void *memory, int64_t bytes,
                           gnn_cuda_stream stream);
    gnn_status (*copy_in)(int device, void *memory, const void *host, int64_t bytes,
                          gnn_cuda_stream stream);
    /* Between any two addresses that the device reaches: managed memory, and any host
     * memory where GNN_CUDA_PAGEABLE_ACCESS. For measurements; may wait. */
    gnn_status (*copy_any)(int device, void *to, const void *from, int64_t bytes,
                           gnn_cuda_stream stream);
} gnn_cuda_api;

/* The entries of the table, for a file that has a function of each entry's name:
 *     static const gnn_cuda_api table = {GNN_CUDA_API_ENTRIES(GNN_CUDA_API_OWN)}; */
#define GNN_CUDA_API_OWN(name) .name = name,
#define GNN_CUDA_API_ENTRIES(X)                                                        \
    X(runtime_version)                                                                 \
    X(driver_version)                                                                  \
    X(device_count)                                                                    \
    X(device_name)                                                                     \
    X(device_pci)                                                                      \
    X(device_attribute)                                                                \
    X(device_memory)                                                                   \
    X(device_in_use)                                                                   \
    X(device_wait)                                                                     \
    X(stream_create)                                                                   \
    X(stream_destroy)                                                                  \
    X(stream_done)                                                                     \
    X(stream_wait)                                                                     \
    X(stream_after)                                                                    \
    X(stream_capturing)                                                                \
    X(event_create)                                                                    \
    X(event_destroy)                                                                   \
    X(event_record)                                                                    \
    X(event_done)                                                                      \
    X(event_wait)                                                                      \
    X(event_seconds)                                                                   \
    X(host_alloc)                                                                      \
    X(host_free)                                                                       \
    X(host_register)                                                                   \
    X(host_unregister)                                                                 \
    X(device_alloc)                                                                    \
    X(device_free)                                                                     \
    X(managed_alloc)                                                                   \
    X(managed_free)                                                                    \
    X(pointer_device)                                                                  \
    X(copy_out)                                                                        \
    X(copy_in)                                                                         \
    X(copy_any)

/* Why there is no CUDA, each its own case: an old driver is not a missing GPU. */
typedef enum gnn_cuda_absence {
    GNN_CUDA_PRESENT,
    GNN_CUDA_NOT_BUILT,      // this library was built without CUDA
    GNN_CUDA_NO_DRIVER,      // no NVIDIA driver on this machine
    GNN_CUDA_DRIVER_TOO_OLD, // a driver of an older major version than our runtime
    GNN_CUDA_NO_DEVICE,      // a driver, but no device that it shows us
} gnn_cuda_absence;

/* Decides from versions (13000 is CUDA 13.0; 0 is none) and the number of devices. */
gnn_cuda_absence gnn_cuda_judge(int runtime_version, int driver_version, int devices);

/* One sentence for people, with the versions where they matter. At most `bytes` with
 * the final zero; "" for GNN_CUDA_PRESENT. */
void gnn_cuda_absence_text(gnn_cuda_absence absence, int runtime_version,
                           int driver_version, char *text, size_t bytes);

/* The CUDA version this library was built with, 13000 for 13.0; 0: without CUDA. */
int gnn_cuda_built_version(void);

/* A table whose entries return GNN_EDEVICE with that sentence. The reason is one for
 * the process: the last call's. Lives for ever. */
const gnn_cuda_api *gnn_cuda_api_none(gnn_cuda_absence absence, int driver_version);

/* The CUDA runtime's table; the empty one where this library was built without CUDA. */
const gnn_cuda_api *gnn_cuda_api_runtime(void);

#endif

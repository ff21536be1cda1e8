/* cuda_runtime.c: the table of CUDA calls, filled from the (static) CUDA runtime.
 *
 * Each entry is a call or two between `enter` and `leave`, which make the device current
 * and give the thread back the one it had. Without CUDA in the build this file is the
 * empty table.
 */
#include "offload/cuda_api.h"

#ifdef GNN_WITH_CUDA

#include <cuda_runtime_api.h>
#include <stdio.h>

/* --------------------------------------------------------------------------- errors */

/* Clears what the runtime remembers, so that torch's next check does not find it. */
static gnn_status judge(const char *call, cudaError_t error) {
    if (error == cudaSuccess) {
        return GNN_OK;
    }
    cudaGetLastError();
    return gnn_fail(error == cudaErrorMemoryAllocation ? GNN_ENOMEM : GNN_EDEVICE,
                    "cuda: %s: %s (%s)", call, cudaGetErrorName(error),
                    cudaGetErrorString(error));
}

static cudaError_t enter(int device, int *before) {
    cudaError_t error = cudaGetDevice(before);
    return error == cudaSuccess && *before != device ? cudaSetDevice(device) : error;
}

static void leave(int device, int before) {
    if (before != device) {
        cudaSetDevice(before);
    }
}

/* Returns from the entry with the outcome of one call made on `device`. */
#define ON_DEVICE(name, call)                                                          \
    do {                                                                               \
        int before_ = device;                                                          \
        cudaError_t error_ = enter(device, &before_);                                  \
        error_ = error_ == cudaSuccess ? (call) : error_;                              \
        leave(device, before_);                                                        \
        return judge(name, error_);                                                    \
    } while (0)

/* Questions and allocations that do not touch a capture are forbidden while any thread
 * captures in global mode, unless the asking thread says it knows. */
static cudaError_t relax(enum cudaStreamCaptureMode *mode) {
    return cudaThreadExchangeStreamCaptureMode(mode);
}

#define RELAXED(name, call)                                                            \
    do {                                                                               \
        enum cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;               \
        relax(&mode_);                                                                 \
        int before_ = device;                                                          \
        cudaError_t error_ = enter(device, &before_);                                  \
        error_ = error_ == cudaSuccess ? (call) : error_;                              \
        leave(device, before_);                                                        \
        relax(&mode_);                                                                 \
        return judge(name, error_);                                                    \
    } while (0)

/* ---------------------------------------------------------------- versions, devices */

static gnn_status runtime_version(int *version) {
    *version = 0;
    return judge("cudaRuntimeGetVersion", cudaRuntimeGetVersion(version));
}

static gnn_status driver_version(int *version) {
    *version = 0;
    return judge("cudaDriverGetVersion", cudaDriverGetVersion(version));
}

static gnn_status device_count(int *count) {
    *count = 0; // left alone by a call that fails
    return judge("cudaGetDeviceCount", cudaGetDeviceCount(count));
}

static gnn_status device_name(int device, char *name, size_t bytes) {
    static struct cudaDeviceProp facts; // a kilobyte; the caller's lock guards it
    gnn_status status =
        judge("cudaGetDeviceProperties", cudaGetDeviceProperties(&facts, device));
    snprintf(name, bytes, "%s", status == GNN_OK ? facts.name : "");
    return status;
}

static gnn_status device_pci(int device, char *address, size_t bytes) {
    return judge("cudaDeviceGetPCIBusId",
                 cudaDeviceGetPCIBusId(address, (int)bytes, device));
}

static gnn_status device_attribute(int device, gnn_cuda_attribute which, int *value) {
    static const enum cudaDeviceAttr attributes[] = {
        [GNN_CUDA_COMPUTE_MAJOR] = cudaDevAttrComputeCapabilityMajor,
        [GNN_CUDA_COMPUTE_MINOR] = cudaDevAttrComputeCapabilityMinor,
        [GNN_CUDA_COPY_ENGINES] = cudaDevAttrAsyncEngineCount,
        [GNN_CUDA_PAGEABLE_ACCESS] = cudaDevAttrPageableMemoryAccess,
        [GNN_CUDA_HOST_PAGE_TABLES] = cudaDevAttrPageableMemoryAccessUsesHostPageTables,
        [GNN_CUDA_NUMA_ID] = cudaDevAttrNumaId,
        [GNN_CUDA_HOST_NUMA_ID] = cudaDevAttrHostNumaId,
        [GNN_CUDA_INTEGRATED] = cudaDevAttrIntegrated,
    };
    int is_node = cudaDeviceNumaConfigNumaNode;
    if (which == GNN_CUDA_NUMA_ID) { // means something only where its memory is a node
        gnn_status status =
            judge("cudaDeviceGetAttribute",
                  cudaDeviceGetAttribute(&is_node, cudaDevAttrNumaConfig, device));
        if (status != GNN_OK || is_node != cudaDeviceNumaConfigNumaNode) {
            *value = -1;
            return status;
        }
    }
    return judge("cudaDeviceGetAttribute",
                 cudaDeviceGetAttribute(value, attributes[which], device));
}

static cudaError_t memory_of(int64_t *free_bytes, int64_t *total_bytes) {
    size_t free_ = 0, total = 0;
    cudaError_t error = cudaMemGetInfo(&free_, &total);
    *free_bytes = (int64_t)free_;
    *total_bytes = (int64_t)total;
    return error;
}

static gnn_status device_memory(int device, int64_t *free_bytes, int64_t *total_bytes) {
    ON_DEVICE("cudaMemGetInfo", memory_of(free_bytes, total_bytes));
}

/* The runtime has no such question: the driver's, found through the runtime. */
static gnn_status device_in_use(int device, bool *in_use) {
    int (*state)(int, unsigned *, int *) = NULL;
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    unsigned flags = 0;
    int active = 0;
    void *entry = NULL;
    gnn_status status =
        judge("cudaGetDriverEntryPointByVersion",
              cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &entry,
                                               12000, cudaEnableDefault, &found));
    *in_use = false;
    if (status != GNN_OK || found != cudaDriverEntryPointSuccess) {
        return status;
    }
    *(void **)&state = entry;
    GNN_REQUIRE(state(device, &flags, &active) == 0, GNN_EDEVICE,
                "cuda: cuDevicePrimaryCtxGetState failed for device %d", device);
    *in_use = active != 0;
    return GNN_OK;
}

static gnn_status device_wait(int device) {
    ON_DEVICE("cudaDeviceSynchronize", cudaDeviceSynchronize());
}

/* -------------------------------------------------------------------------- streams */

static cudaStream_t stream_of(gnn_cuda_stream stream) {
    return (cudaStream_t)(uintptr_t)stream;
}

static cudaError_t create_stream(bool urgent, gnn_cuda_stream *stream) {
    int least = 0, greatest = 0;
    cudaStream_t made = NULL;
    cudaDeviceGetStreamPriorityRange(&least, &greatest);
    cudaError_t error = cudaStreamCreateWithPriority(&made, cudaStreamNonBlocking,
                                                     urgent ? greatest : least);
    *stream = (gnn_cuda_stream)(uintptr_t)made;
    return error;
}

static gnn_status stream_create(int device, bool urgent, gnn_cuda_stream *stream) {
    ON_DEVICE("cudaStreamCreateWithPriority", create_stream(urgent, stream));
}

static gnn_status stream_destroy(int device, gnn_cuda_stream stream) {
    ON_DEVICE("cudaStreamDestroy", cudaStreamDestroy(stream_of(stream)));
}

/* "Not ready" is an answer; the runtime remembers it as an error all the same. */
static cudaError_t answer(cudaError_t error, bool *done) {
    *done = error == cudaSuccess;
    if (error == cudaErrorNotReady) {
        cudaGetLastError();
        return cudaSuccess;
    }
    return error;
}

static gnn_status stream_done(int device, gnn_cuda_stream stream, bool *done) {
    RELAXED("cudaStreamQuery", answer(cudaStreamQuery(stream_of(stream)), done));
}

static gnn_status stream_wait(int device, gnn_cuda_stream stream) {
    ON_DEVICE("cudaStreamSynchronize", cudaStreamSynchronize(stream_of(stream)));
}

static cudaEvent_t event_of(gnn_cuda_event event) {
    return (cudaEvent_t)(uintptr_t)event;
}

static gnn_status stream_after(int device, gnn_cuda_stream stream,
                               gnn_cuda_event event) {
    ON_DEVICE("cudaStreamWaitEvent",
              cudaStreamWaitEvent(stream_of(stream), event_of(event), 0));
}

/* The legacy default stream cannot be asked while another stream captures in global
 * mode: then it is part of that capture as far as we are concerned. */
static gnn_status stream_capturing(int device, gnn_cuda_stream stream,
                                   bool *capturing) {
    enum cudaStreamCaptureStatus state = cudaStreamCaptureStatusNone;
    (void)device;
    cudaError_t error = cudaStreamIsCapturing(stream_of(stream), &state);
    *capturing =
        error == cudaErrorStreamCaptureImplicit || state != cudaStreamCaptureStatusNone;
    if (error == cudaErrorStreamCaptureImplicit) {
        cudaGetLastError();
        return GNN_OK;
    }
    return judge("cudaStreamIsCapturing", error);
}

/* --------------------------------------------------------------------------- events */

static cudaError_t create_event(bool timing, gnn_cuda_event *event) {
    cudaEvent_t made = NULL;
    cudaError_t error = cudaEventCreateWithFlags(
        &made, timing ? cudaEventDefault : cudaEventDisableTiming);
    *event = (gnn_cuda_event)(uintptr_t)made;
    return error;
}

static gnn_status event_create(int device, bool timing, gnn_cuda_event *event) {
    ON_DEVICE("cudaEventCreateWithFlags", create_event(timing, event));
}

static gnn_status event_destroy(int device, gnn_cuda_event event) {
    ON_DEVICE("cudaEventDestroy", cudaEventDestroy(event_of(event)));
}

static gnn_status event_record(int device, gnn_cuda_event event,
                               gnn_cuda_stream stream) {
    ON_DEVICE("cudaEventRecord", cudaEventRecord(event_of(event), stream_of(stream)));
}

static gnn_status event_done(int device, gnn_cuda_event event, bool *done) {
    RELAXED("cudaEventQuery", answer(cudaEventQuery(event_of(event)), done));
}

static gnn_status event_wait(int device, gnn_cuda_event event) {
    ON_DEVICE("cudaEventSynchronize", cudaEventSynchronize(event_of(event)));
}

static gnn_status event_seconds(int device, gnn_cuda_event from, gnn_cuda_event to,
                                double *seconds) {
    float milliseconds = 0;
    (void)device;
    gnn_status status =
        judge("cudaEventElapsedTime",
              cudaEventElapsedTime(&milliseconds, event_of(from), event_of(to)));
    *seconds = 1e-3 * (double)milliseconds;
    return status;
}

/* --------------------------------------------------------------------------- memory */

static gnn_status host_alloc(int device, int64_t bytes, void **host) {
    RELAXED("cudaHostAlloc", cudaHostAlloc(host, (size_t)bytes, cudaHostAllocPortable));
}

static gnn_status host_free(int device, void *host) {
    RELAXED("cudaFreeHost", cudaFreeHost(host));
}

static gnn_status host_register(int device, void *host, int64_t bytes) {
    RELAXED("cudaHostRegister",
            cudaHostRegister(host, (size_t)bytes, cudaHostRegisterPortable));
}

static gnn_status host_unregister(int device, void *host) {
    RELAXED("cudaHostUnregister", cudaHostUnregister(host));
}

static gnn_status device_alloc(int device, int64_t bytes, void **memory) {
    RELAXED("cudaMalloc", cudaMalloc(memory, (size_t)bytes));
}

static gnn_status device_free(int device, void *memory) {
    RELAXED("cudaFree", cudaFree(memory));
}

static cudaError_t advise(void *memory, size_t bytes, int device) {
#if CUDART_VERSION >= 13000
    struct cudaMemLocation host = {.type = cudaMemLocationTypeHost};
    struct cudaMemLocation own = {.type = cudaMemLocationTypeDevice, .id = device};
#else
    int host = cudaCpuDeviceId, own = device;
#endif
    cudaError_t error =
        cudaMemAdvise(memory, bytes, cudaMemAdviseSetPreferredLocation, host);
    return error == cudaSuccess
               ? cudaMemAdvise(memory, bytes, cudaMemAdviseSetAccessedBy, own)
               : error;
}

static cudaError_t make_managed(int device, size_t bytes, void **memory) {
    cudaError_t error = cudaMallocManaged(memory, bytes, cudaMemAttachGlobal);
    if (error == cudaSuccess && (error = advise(*memory, bytes, device))) {
        cudaFree(*memory);
        *memory = NULL;
    }
    return error;
}

static gnn_status managed_alloc(int device, int64_t bytes, void **memory) {
    RELAXED("cudaMallocManaged", make_managed(device, (size_t)bytes, memory));
}

static gnn_status managed_free(int device, void *memory) {
    RELAXED("cudaFree", cudaFree(memory));
}

static gnn_status pointer_device(const void *pointer, int *device) {
    struct cudaPointerAttributes facts;
    gnn_status status =
        judge("cudaPointerGetAttributes", cudaPointerGetAttributes(&facts, pointer));
    *device =
        status == GNN_OK && facts.type == cudaMemoryTypeDevice ? facts.device : -1;
    return status;
}

/* --------------------------------------------------------------------------- copies */

static gnn_status copy_out(int device, void *host, const void *memory, int64_t bytes,
                           gnn_cuda_stream stream) {
    ON_DEVICE("cudaMemcpyAsync",
              cudaMemcpyAsync(host, memory, (size_t)bytes, cudaMemcpyDeviceToHost,
                              stream_of(stream)));
}

static gnn_status copy_in(int device, void *memory, const void *host, int64_t bytes,
                          gnn_cuda_stream stream) {
    ON_DEVICE("cudaMemcpyAsync",
              cudaMemcpyAsync(memory, host, (size_t)bytes, cudaMemcpyHostToDevice,
                              stream_of(stream)));
}

static gnn_status copy_any(int device, void *to, const void *from, int64_t bytes,
                           gnn_cuda_stream stream) {
    ON_DEVICE("cudaMemcpyAsync", cudaMemcpyAsync(to, from, (size_t)bytes,
                                                 cudaMemcpyDefault, stream_of(stream)));
}

static const gnn_cuda_api runtime = {GNN_CUDA_API_ENTRIES(GNN_CUDA_API_OWN)};

const gnn_cuda_api *gnn_cuda_api_runtime(void) {
    return &runtime;
}

#else

const gnn_cuda_api *gnn_cuda_api_runtime(void) {
    return gnn_cuda_api_none(GNN_CUDA_NOT_BUILT, 0);
}

#endif

/* call.h: one call of an entry of cuda_api.h, as the simulated machine answers it.
 *
 * A `Call` counts it, lets an armed fault answer, refuses handles that are dead or of
 * another device, and spends the host's time. The entries are in api.cpp, those for
 * memory and copies in api_memory.cpp.
 */
#pragma once

#include "machine.h"

extern "C" {
#include "offload/cuda_api.h"
}

namespace sim {

struct Call {
    Call(const char *entry, const void *caller);

    gnn_status outcome() const; // of a call that gives something back
    gnn_status failed() const;

    /* After a fault of the device there is nothing left to give back: who tries has done
     * what can be done. */
    bool lost() const {
        return !m.sticky.empty();
    }

    /* The table's user did what CUDA leaves undefined or refuses. */
    void misuse(const std::string &kind, const std::string &text, uintptr_t lo = 0);
    int stream(int device, uint64_t handle); // its index; 0 and an error
    int event(int device, uint64_t handle);  // -1 and an error
    bool capturing();                        // then the call is not allowed

    std::lock_guard<std::recursive_mutex> lock;
    Machine &m;
    const char *name;
    int site;
    std::string error; // empty: it works
};

#define BEGIN(entry)                                                                   \
    Call call(entry, __builtin_return_address(0));                                     \
    Machine &m = call.m;                                                               \
    (void)m
#define REFUSE_BAD()                                                                   \
    if (!call.error.empty())                                                           \
    return call.failed()
/* How an entry begins. One that gives something back goes on after a fault of the
 * device, and ends with `call.outcome()`. */
#define CALL(entry)                                                                    \
    BEGIN(entry);                                                                      \
    REFUSE_BAD()
#define GIVE_BACK(entry)                                                               \
    BEGIN(entry);                                                                      \
    if (!call.error.empty() && !call.lost())                                           \
    return call.failed()

gnn_status host_alloc(int device, int64_t bytes, void **host);
gnn_status host_free(int device, void *host);
gnn_status host_register(int device, void *host, int64_t bytes);
gnn_status host_unregister(int device, void *host);
gnn_status device_alloc(int device, int64_t bytes, void **memory);
gnn_status device_free(int device, void *memory);
gnn_status managed_alloc(int device, int64_t bytes, void **memory);
gnn_status managed_free(int device, void *memory);
gnn_status pointer_device(const void *pointer, int *device);
gnn_status copy_out(int device, void *host, const void *memory, int64_t bytes,
                    gnn_cuda_stream stream);
gnn_status copy_in(int device, void *memory, const void *host, int64_t bytes,
                   gnn_cuda_stream stream);
gnn_status copy_any(int device, void *to, const void *from, int64_t bytes,
                    gnn_cuda_stream stream);

} // namespace sim

/* api_memory.cpp: memory and copies of the table of cuda_api.h over the machine. */
#include "call.h"

namespace sim {

static bool is_of(Machine &m, const void *p, const char *kind, const char *or_kind) {
    const Region *r = m.checker.find_region(reinterpret_cast<uintptr_t>(p));
    return r && (r->kind == kind || r->kind == or_kind);
}

/* Queued copies need it; in a measurement other memory may be copied. */
static bool is_pinned(Machine &m, const void *host) {
    return is_of(m, host, "pinned", "registered");
}

static bool is_on_device(Machine &m, const void *memory) {
    return is_of(m, memory, "device", "tensor");
}

/* ---------------------------------------------------------------------------- memory */

static gnn_status open_memory(Call &call, const char *kind, int64_t limit,
                              int64_t &used, int64_t bytes, void **memory) {
    *memory = used + bytes <= limit ? map_host(bytes) : nullptr;
    if (!*memory) {
        call.error = "cudaErrorMemoryAllocation";
        return call.failed();
    }
    used += bytes;
    call.m.checker.open_region(reinterpret_cast<uintptr_t>(*memory), bytes, kind,
                               call.site);
    call.m.memory_of[*memory] = {bytes, &used};
    return GNN_OK;
}

/* A real free: it must come after every access, and what is pending happens first so
 * that the test survives a free that came too early. */
static gnn_status close_memory(Call &call, void *memory) {
    Machine &m = call.m;
    auto lo = reinterpret_cast<uintptr_t>(memory);
    Epoch epoch = m.checker.tick(m.host(), call.site);
    m.checker.close_region(lo, epoch, call.site, !call.lost());
    m.finish_all();
    auto found = m.memory_of.find(memory);
    if (found != m.memory_of.end()) {
        *found->second.second -= found->second.first;
        m.memory_of.erase(found);
    }
    return call.outcome();
}

gnn_status host_alloc(int, int64_t bytes, void **host) {
    CALL("host_alloc");
    return open_memory(call, "pinned", m.profile.host_bytes, m.host_used, bytes, host);
}

gnn_status host_free(int, void *host) {
    GIVE_BACK("host_free");
    return close_memory(call, host);
}

gnn_status host_register(int, void *host, int64_t bytes) {
    CALL("host_register");
    auto lo = reinterpret_cast<uintptr_t>(host);
    if (lo % 4096 || bytes % 4096) {
        call.misuse("bad range", "host_register of a range that is not whole pages",
                    lo);
        return call.failed();
    }
    if (m.host_used + bytes > m.profile.host_bytes) {
        call.error = "cudaErrorMemoryAllocation";
        return call.failed();
    }
    m.host_used += bytes;
    m.checker.open_region(lo, bytes, "registered", call.site);
    m.memory_of[host] = {bytes, &m.host_used};
    return GNN_OK;
}

gnn_status host_unregister(int, void *host) {
    GIVE_BACK("host_unregister");
    return close_memory(call, host);
}

gnn_status device_alloc(int, int64_t bytes, void **memory) {
    CALL("device_alloc");
    return open_memory(call, "device", m.profile.device_bytes - sim_allocated(0),
                       m.device_used, bytes, memory);
}

gnn_status device_free(int, void *memory) {
    GIVE_BACK("device_free");
    return close_memory(call, memory);
}

gnn_status managed_alloc(int, int64_t bytes, void **memory) {
    CALL("managed_alloc");
    return open_memory(call, "managed", m.profile.host_bytes, m.host_used, bytes,
                       memory);
}

gnn_status managed_free(int, void *memory) {
    GIVE_BACK("managed_free");
    return close_memory(call, memory);
}

gnn_status pointer_device(const void *pointer, int *device) {
    CALL("pointer_device");
    *device = is_on_device(m, pointer) ? 0 : -1;
    return GNN_OK;
}

/* ---------------------------------------------------------------------------- copies */

/* pageable: the call returns when the copy has ended, or stages the source and returns;
 * no program may rely on either, so neither is an edge for the other side. */
static gnn_status queue_copy(Call &call, int device, Kind kind, void *to,
                             const void *from, int64_t bytes, uint64_t stream,
                             bool pageable) {
    Machine &m = call.m;
    int s = call.stream(device, stream);
    const void *host = kind == Kind::copy_out ? to : from;
    if (!pageable && !is_pinned(m, host)) {
        call.misuse("pageable",
                    "an asynchronous copy of host memory that is not pinned",
                    reinterpret_cast<uintptr_t>(host));
    }
    REFUSE_BAD();
    auto lo = [](const void *p) { return reinterpret_cast<uintptr_t>(p); };
    auto n = static_cast<uintptr_t>(bytes);
    Op op;
    op.kind = kind;
    op.stream = s;
    op.to = to;
    op.from = from;
    op.bytes = bytes;
    op.pageable = pageable;
    op.site = call.site;
    op.name = call.name;
    op.accesses = {{lo(from), lo(from) + n, false}, {lo(to), lo(to) + n, true}};
    int id = m.issue(std::move(op));
    if (pageable && (kind == Kind::copy_out || m.profile.pageable_waits)) {
        m.finish(id);
        m.join_host(m.clock_of(s), call.site);
    }
    return GNN_OK;
}

gnn_status copy_out(int device, void *host, const void *memory, int64_t bytes,
                    gnn_cuda_stream stream) {
    CALL("copy_out");
    return queue_copy(call, device, Kind::copy_out, host, memory, bytes, stream, false);
}

gnn_status copy_in(int device, void *memory, const void *host, int64_t bytes,
                   gnn_cuda_stream stream) {
    CALL("copy_in");
    return queue_copy(call, device, Kind::copy_in, memory, host, bytes, stream, false);
}

gnn_status copy_any(int device, void *to, const void *from, int64_t bytes,
                    gnn_cuda_stream stream) {
    CALL("copy_any");
    bool inward = is_on_device(m, to);
    const void *host = inward ? from : to;
    return queue_copy(call, device, inward ? Kind::copy_in : Kind::copy_out, to, from,
                      bytes, stream, !is_pinned(m, host));
}

} // namespace sim

/* api.cpp: the table of cuda_api.h over the machine: devices, streams, events. */
#include "call.h"

#include <cstdio>
#include <memory>
#include <sys/mman.h>

namespace sim {

using Fail = gnn_status (*)(gnn_status, const char *, ...);
static Fail fail_of_library = nullptr;
static std::unique_ptr<Machine> the_machine;
static std::vector<std::pair<void *, size_t>> arenas; // host memory that was handed out

static const uint64_t STREAM = 0x51000000, EVENT = 0xE1000000;

Machine &machine() {
    return *the_machine;
}

void *map_host(int64_t bytes) {
    size_t size = (static_cast<size_t>(bytes) + 4095) & ~static_cast<size_t>(4095);
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) {
        arenas.emplace_back(p, size);
    }
    return p == MAP_FAILED ? nullptr : p;
}

int stream_index(int device, uint64_t handle) {
    return handle == 0 ? device : static_cast<int>(handle - STREAM);
}

uint64_t stream_handle(int index) {
    return STREAM + static_cast<uint64_t>(index);
}

static bool is_sticky(const std::string &error) {
    static const std::set<std::string> names{"cudaErrorIllegalAddress",
                                             "cudaErrorLaunchFailure",
                                             "cudaErrorMisalignedAddress",
                                             "cudaErrorHardwareStackError",
                                             "cudaErrorAssert",
                                             "cudaErrorECCUncorrectable"};
    return names.count(error) > 0;
}

/* ----------------------------------------------------------------------------- calls */

Call::Call(const char *entry, const void *caller)
    : lock(machine().mutex), m(machine()), name(entry), site(m.here(entry, caller)) {
    m.calls[""]++;
    m.calls[name]++;
    m.spend(m.profile.call_cost);
    for (Fault &f : m.faults) {
        if ((f.entry.empty() || f.entry == name) && f.times != 0 && --f.nth <= 0) {
            f.times -= f.times > 0;
            error = f.error;
        }
    }
    if (is_sticky(error)) {
        m.sticky = error;
    }
    error = m.sticky.empty() ? error : m.sticky;
}

gnn_status Call::outcome() const {
    return error.empty() ? GNN_OK : failed();
}

gnn_status Call::failed() const {
    gnn_status status = error == "cudaErrorMemoryAllocation" ? GNN_ENOMEM : GNN_EDEVICE;
    return fail_of_library
               ? fail_of_library(status, "cuda: %s: %s", name, error.c_str())
               : status;
}

void Call::misuse(const std::string &kind, const std::string &text, uintptr_t lo) {
    Violation v;
    v.kind = kind;
    v.text = text;
    v.second = {m.host(), 0, false, site};
    v.lo = v.hi = lo;
    m.checker.report(v);
    error = "cudaErrorInvalidResourceHandle";
}

int Call::stream(int device, uint64_t handle) {
    int index = stream_index(device, handle);
    if (index < 0 || index >= static_cast<int>(m.streams.size())) {
        misuse("bad handle", "no such stream");
        return 0;
    }
    if (!m.streams[index].live || m.streams[index].device != device) {
        misuse("bad handle", m.streams[index].live ? "a stream of another device"
                                                   : "the stream was destroyed");
    }
    return index;
}

int Call::event(int device, uint64_t handle) {
    int index = static_cast<int>(handle - EVENT);
    if (index < 0 || index >= static_cast<int>(m.events.size())) {
        misuse("bad handle", "no such event");
        return -1;
    }
    if (!m.events[index].live || m.events[index].device != device) {
        misuse("bad handle", m.events[index].live ? "an event of another device"
                                                  : "the event was destroyed");
    }
    return index;
}

bool Call::capturing() {
    for (const Stream &s : m.streams) {
        if (s.capturing) {
            misuse("capture", "a call that is not allowed while a graph is captured");
            error = "cudaErrorStreamCaptureUnsupported";
            return true;
        }
    }
    return false;
}

/* ------------------------------------------------------------------ versions, devices */

static gnn_status runtime_version(int *version) {
    CALL("runtime_version");
    *version = 13000;
    return GNN_OK;
}

static gnn_status driver_version(int *version) {
    CALL("driver_version");
    *version = 13000;
    return GNN_OK;
}

static gnn_status device_count(int *count) {
    CALL("device_count");
    *count = static_cast<int>(m.profile.devices);
    return GNN_OK;
}

static gnn_status device_name(int device, char *name, size_t bytes) {
    CALL("device_name");
    snprintf(name, bytes, "simulated device %d", device);
    return GNN_OK;
}

static gnn_status device_pci(int device, char *address, size_t bytes) {
    CALL("device_pci");
    snprintf(address, bytes, "0000:%02x:00.0", device + 1);
    return GNN_OK;
}

static gnn_status device_attribute(int, gnn_cuda_attribute which, int *value) {
    CALL("device_attribute");
    const sim_profile &p = m.profile;
    const std::map<int, int64_t> values{{GNN_CUDA_COMPUTE_MAJOR, p.compute_major},
                                        {GNN_CUDA_COMPUTE_MINOR, p.compute_minor},
                                        {GNN_CUDA_COPY_ENGINES, p.copy_engines},
                                        {GNN_CUDA_PAGEABLE_ACCESS, p.pageable_access},
                                        {GNN_CUDA_HOST_PAGE_TABLES, p.host_page_tables},
                                        {GNN_CUDA_NUMA_ID, p.numa_id},
                                        {GNN_CUDA_HOST_NUMA_ID, p.host_numa_id},
                                        {GNN_CUDA_INTEGRATED, p.integrated}};
    auto found = values.find(which);
    if (found == values.end()) {
        call.error = "cudaErrorInvalidValue";
        return call.failed();
    }
    *value = static_cast<int>(found->second);
    return GNN_OK;
}

static gnn_status device_memory(int, int64_t *free_bytes, int64_t *total_bytes) {
    CALL("device_memory");
    *total_bytes = m.profile.device_bytes;
    *free_bytes = m.profile.device_bytes - sim_allocated(0);
    return GNN_OK;
}

static gnn_status device_in_use(int, bool *in_use) {
    CALL("device_in_use");
    *in_use = true;
    return GNN_OK;
}

static gnn_status device_wait(int device) {
    CALL("device_wait");
    if (call.capturing()) {
        return call.failed();
    }
    for (int s = 0; s < static_cast<int>(m.streams.size()); s++) {
        if (m.streams[s].device == device && !m.streams[s].worker) {
            m.finish(m.streams[s].last);
            m.join_host(m.clock_of(s), call.site);
        }
    }
    return GNN_OK;
}

/* --------------------------------------------------------------------------- streams */

static gnn_status stream_create(int device, bool urgent, gnn_cuda_stream *stream) {
    CALL("stream_create");
    int n = static_cast<int>(m.streams.size());
    std::string name = (urgent ? "urgent stream " : "stream ") + std::to_string(n);
    *stream = stream_handle(m.add_stream(device, name, false, false));
    m.streams.back().from_api = true;
    return GNN_OK;
}

static gnn_status stream_destroy(int device, gnn_cuda_stream stream) {
    GIVE_BACK("stream_destroy");
    int s = call.stream(device, stream);
    if (call.error.empty() || call.lost()) {
        m.streams[s].live = false;
    }
    return call.outcome();
}

static gnn_status stream_done(int device, gnn_cuda_stream stream, bool *done) {
    CALL("stream_done");
    int s = call.stream(device, stream);
    if (!call.error.empty() || call.capturing()) {
        return call.failed();
    }
    *done = m.ask(m.streams[s].last);
    if (*done) {
        m.join_host(m.clock_of(s), call.site);
    }
    return GNN_OK;
}

static gnn_status stream_wait(int device, gnn_cuda_stream stream) {
    CALL("stream_wait");
    int s = call.stream(device, stream);
    if (!call.error.empty() || call.capturing()) {
        return call.failed();
    }
    m.finish(m.streams[s].last);
    m.join_host(m.clock_of(s), call.site);
    return GNN_OK;
}

static gnn_status stream_after(int device, gnn_cuda_stream stream,
                               gnn_cuda_event event) {
    CALL("stream_after");
    int s = call.stream(device, stream), e = call.event(device, event);
    REFUSE_BAD();
    Op op;
    op.kind = Kind::wait;
    op.stream = s;
    op.site = call.site;
    op.name = "wait";
    if (m.events[e].op >= 0) { // an event never recorded orders nothing
        op.after.push_back(m.events[e].op);
        m.clock_of(s).join(m.events[e].clock);
    }
    m.issue(std::move(op));
    return GNN_OK;
}

static gnn_status stream_capturing(int device, gnn_cuda_stream stream,
                                   bool *capturing) {
    CALL("stream_capturing");
    int s = call.stream(device, stream);
    REFUSE_BAD();
    *capturing = m.streams[s].capturing;
    return GNN_OK;
}

/* ---------------------------------------------------------------------------- events */

static gnn_status event_create(int device, bool timing, gnn_cuda_event *event) {
    CALL("event_create");
    Event e;
    e.device = device;
    e.timing = timing;
    *event = EVENT + m.events.size();
    m.events.push_back(e);
    return GNN_OK;
}

static gnn_status event_destroy(int device, gnn_cuda_event event) {
    GIVE_BACK("event_destroy");
    int e = call.event(device, event);
    if (e >= 0 && (call.error.empty() || call.lost())) {
        m.events[e].live = false;
    }
    return call.outcome();
}

static gnn_status event_record(int device, gnn_cuda_event event,
                               gnn_cuda_stream stream) {
    CALL("event_record");
    int s = call.stream(device, stream), e = call.event(device, event);
    REFUSE_BAD();
    Op op;
    op.kind = Kind::record;
    op.stream = s;
    op.site = call.site;
    op.name = "record";
    m.events[e].op = m.issue(std::move(op));
    m.events[e].clock = m.clock_of(s);
    return GNN_OK;
}

static gnn_status event_done(int device, gnn_cuda_event event, bool *done) {
    CALL("event_done");
    int e = call.event(device, event);
    if (!call.error.empty() || call.capturing()) {
        return call.failed();
    }
    *done = m.ask(m.events[e].op);
    if (*done) {
        m.join_host(m.events[e].clock, call.site);
    }
    return GNN_OK;
}

static gnn_status event_wait(int device, gnn_cuda_event event) {
    CALL("event_wait");
    int e = call.event(device, event);
    if (!call.error.empty() || call.capturing()) {
        return call.failed();
    }
    m.finish(m.events[e].op);
    m.join_host(m.events[e].clock, call.site);
    return GNN_OK;
}

static gnn_status event_seconds(int device, gnn_cuda_event from, gnn_cuda_event to,
                                double *seconds) {
    CALL("event_seconds");
    int a = call.event(device, from), b = call.event(device, to);
    REFUSE_BAD();
    int first = m.events[a].op, last = m.events[b].op;
    bool timing = m.events[a].timing && m.events[b].timing;
    if (!timing || first < 0 || last < 0) {
        call.error = "cudaErrorInvalidResourceHandle";
        return call.failed();
    }
    if (m.ops[first].state != State::done || m.ops[last].state != State::done) {
        call.error = "cudaErrorNotReady";
        return call.failed();
    }
    *seconds = 1e-9 * static_cast<double>(m.ops[last].ended - m.ops[first].ended);
    return GNN_OK;
}

static const gnn_cuda_api table = {GNN_CUDA_API_ENTRIES(GNN_CUDA_API_OWN)};

} // namespace sim

extern "C" {

const gnn_cuda_api *gnn_sim_api(void) {
    return &sim::table;
}

void sim_set_fail(void *address) {
    sim::fail_of_library = reinterpret_cast<sim::Fail>(address);
}

void sim_open(const sim_profile *profile, int mode, uint64_t seed, int changes) {
    for (auto &[memory, bytes] : sim::arenas) {
        munmap(memory, bytes);
    }
    sim::arenas.clear();
    sim::reset_allocator();
    sim::the_machine.reset(
        new sim::Machine(*profile, static_cast<sim_mode>(mode), seed, changes));
}
}

/* program.cpp: what a test's program does besides CUDA calls, and what the machine saw. */
#include "machine.h"

#include <cstring>
#include <dlfcn.h>

using namespace sim;

#define LOCKED                                                                         \
    Machine &m = machine();                                                            \
    std::lock_guard<std::recursive_mutex> lock(m.mutex)

static Op make(Machine &m, Kind kind, uint64_t stream, const std::string &name) {
    Op op;
    op.kind = kind;
    op.stream = stream_index(0, stream);
    op.name = name;
    op.site = m.here(name, nullptr);
    return op;
}

static void add_ranges(Op &op, int64_t n, const sim_range *ranges) {
    for (int64_t i = 0; i < n; i++) {
        op.accesses.push_back(
            {ranges[i].address,
             ranges[i].address + static_cast<uint64_t>(ranges[i].bytes),
             ranges[i].write != 0});
    }
}

extern "C" {

void sim_label(const char *text) {
    label = text;
}

sim_time sim_now(void) {
    return machine().now;
}

uint64_t sim_stream(int device, const char *name, int blocking) {
    LOCKED;
    return stream_handle(m.add_stream(device, name, blocking != 0, false));
}

uint64_t sim_default_stream(int device) {
    return stream_handle(device);
}

uint64_t sim_worker(const char *name) {
    LOCKED;
    return stream_handle(m.add_stream(0, name, false, true));
}

void sim_name_stream(uint64_t stream, const char *name) {
    LOCKED;
    m.checker.rename(m.streams[stream_index(0, stream)].actor, name);
}

int64_t sim_kernel(uint64_t stream, const char *name, int64_t n,
                   const sim_range *ranges, sim_time cost, sim_effect effect,
                   void *context) {
    LOCKED;
    Op op = make(m, Kind::kernel, stream, name);
    add_ranges(op, n, ranges);
    op.cost = cost;
    op.mixes = !effect;
    op.effect = effect;
    op.context = context;
    return m.issue(std::move(op));
}

void sim_launch_begin(uint64_t stream) {
    LOCKED;
    const Stream &s = m.streams[stream_index(0, stream)];
    m.finish(s.last);
    bool legacy = stream_index(0, stream) < m.profile.devices;
    for (size_t other = 0; s.blocking && other < m.streams.size(); other++) {
        const Stream &o = m.streams[other];
        if (o.blocking && (legacy || static_cast<int64_t>(other) < m.profile.devices)) {
            m.finish(o.last);
        }
    }
}

void sim_launch_end(uint64_t stream, const char *name, int64_t n,
                    const sim_range *ranges) {
    LOCKED;
    Op op = make(m, Kind::kernel, stream, name);
    add_ranges(op, n, ranges);
    op.cost = -1;
    m.finish(m.issue(std::move(op)));
}

int64_t sim_announce(uint64_t stream, const char *name, int64_t n,
                     const sim_range *ranges, sim_time cost) {
    LOCKED;
    Op op = make(m, Kind::kernel, stream, name);
    add_ranges(op, n, ranges);
    op.cost = cost;
    return m.issue(std::move(op));
}

void sim_spend(void) {
    LOCKED;
    m.spend(m.profile.call_cost);
}

int64_t sim_copy(uint64_t stream, int out, uint64_t to, uint64_t from, int64_t bytes) {
    LOCKED;
    Op op = make(m, out ? Kind::copy_out : Kind::copy_in, stream,
                 out ? "copy_out" : "copy_in");
    auto n = static_cast<uint64_t>(bytes);
    op.bytes = bytes;
    op.accesses = {{from, from + n, false}, {to, to + n, true}};
    return m.issue(std::move(op));
}

void sim_region(uint64_t address, int64_t bytes, const char *kind) {
    LOCKED;
    m.checker.open_region(address, bytes, kind, m.here(kind, nullptr));
}

void sim_region_end(uint64_t address) {
    LOCKED;
    int site = m.here("free", nullptr);
    m.checker.close_region(address, m.checker.tick(m.host(), site), site, true);
}

int64_t sim_disk(uint64_t worker, int write, void *to, const void *from,
                 int64_t bytes) {
    LOCKED;
    Op op = make(m, write ? Kind::disk_write : Kind::disk_read, worker,
                 write ? "disk write" : "disk read");
    auto lo = [](const void *p) { return reinterpret_cast<uintptr_t>(p); };
    auto n = static_cast<uintptr_t>(bytes);
    op.to = to;
    op.from = from;
    op.bytes = bytes;
    op.accesses = {{lo(from), lo(from) + n, false}, {lo(to), lo(to) + n, true}};
    return m.issue(std::move(op));
}

void sim_host_access(uint64_t address, int64_t bytes, int write) {
    LOCKED;
    int site = m.here(write ? "host write" : "host read", nullptr);
    Epoch epoch = m.checker.tick(m.host(), site);
    m.checker.access(
        epoch, {address, address + static_cast<uint64_t>(bytes), write != 0}, site);
}

void sim_join(uint64_t stream, uint64_t other) {
    LOCKED;
    int from = stream_index(0, other);
    Op op = make(m, Kind::wait, stream, "wait");
    if (m.streams[from].last >= 0) {
        op.after.push_back(m.streams[from].last);
    }
    m.clock_of(op.stream).join(m.clock_of(from));
    m.issue(std::move(op));
}

uint64_t sim_token(void) {
    LOCKED;
    m.tokens.push_back(-1);
    return m.tokens.size() - 1;
}

void sim_signal(uint64_t stream, uint64_t token) {
    LOCKED;
    Op op = make(m, Kind::token, stream, "signal");
    op.token = static_cast<int>(token);
    m.tokens[token] = m.issue(std::move(op));
}

/* An await before its signal gets no edge: tokens are here to make cycles. */
void sim_await(uint64_t stream, uint64_t token) {
    LOCKED;
    Op op = make(m, Kind::wait, stream, "await");
    op.token = static_cast<int>(token);
    m.issue(std::move(op));
}

void sim_separate_hosts(int yes) {
    LOCKED;
    m.separate_hosts = yes != 0;
}

void sim_publish(int64_t key) {
    LOCKED;
    int site = m.here("publish", nullptr);
    m.published[key].join(m.checker.clock(m.host()));
    m.checker.tick(m.host(), site);
}

void sim_acquire(int64_t key) {
    LOCKED;
    m.join_host(m.published[key], m.here("acquire", nullptr));
}

void sim_capture(uint64_t stream, int yes) {
    LOCKED;
    m.streams[stream_index(0, stream)].capturing = yes != 0;
}

void sim_finish_all(void) {
    LOCKED;
    m.finish_all();
}

void sim_set_limits(int64_t device_bytes, int64_t host_bytes) {
    LOCKED;
    m.profile.device_bytes = device_bytes;
    m.profile.host_bytes = host_bytes;
}

/* ------------------------------------------------------------------ faults and choices */

void sim_fail(const char *entry, int64_t nth, int64_t times, const char *error) {
    LOCKED;
    m.faults.clear();
    if (nth > 0) {
        m.faults.push_back({entry, error, nth, times});
    }
}

void sim_stick(const char *error) {
    LOCKED;
    m.sticky = error;
}

int64_t sim_calls(const char *entry) {
    LOCKED;
    return m.calls[entry];
}

void sim_script(const uint8_t *answers, int64_t n) {
    LOCKED;
    m.answers.assign(answers, answers + n);
    m.n_answers = 0;
}

void sim_behind(int yes) {
    LOCKED;
    m.behind = yes != 0;
}

int64_t sim_asked(void) {
    LOCKED;
    return static_cast<int64_t>(m.n_answers);
}

/* -------------------------------------------------------------------------- what it saw */

int64_t sim_violations(void) {
    LOCKED;
    return m.checker.n_violations();
}

int64_t sim_intervals(void) {
    LOCKED;
    return m.checker.intervals();
}
}

static std::string quote(const std::string &text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
        }
        out += c == '\n' ? ' ' : c;
    }
    return out + "\"";
}

static std::string number(const std::string &key, int64_t value) {
    return "\"" + key + "\": " + std::to_string(value);
}

static std::string write_site(Machine &m, int index) {
    if (index < 0) {
        return "null";
    }
    const Site &site = m.checker.site(index);
    std::string text =
        "{\"label\": " + quote(site.label) + ", \"what\": " + quote(site.what);
    Dl_info info;
    if (site.caller && dladdr(site.caller, &info) && info.dli_fname) {
        auto offset = reinterpret_cast<intptr_t>(site.caller) -
                      reinterpret_cast<intptr_t>(info.dli_fbase);
        text +=
            ", \"file\": " + quote(info.dli_fname) + ", " + number("offset", offset);
    }
    return text + "}";
}

static std::string write_party(Machine &m, const Party &p) {
    std::string actor = p.actor < 0 ? "null" : quote(m.checker.name(p.actor));
    return "{\"actor\": " + actor + ", " + number("write", p.write) +
           ", \"site\": " + write_site(m, p.site) + ", " + number("site_id", p.site) +
           "}";
}

static std::string write_violation(Machine &m, const Violation &v) {
    return "{\"kind\": " + quote(v.kind) + ", \"first\": " + write_party(m, v.first) +
           ", \"second\": " + write_party(m, v.second) + ", " +
           number("lo", static_cast<int64_t>(v.lo)) + ", " +
           number("hi", static_cast<int64_t>(v.hi)) +
           ", \"common\": " + write_site(m, v.common) + ", \"text\": " + quote(v.text) +
           "}";
}

static std::string write_op(Machine &m, int id) {
    static const char *const names[] = {"kernel",     "copy_out",  "copy_in",
                                        "disk_write", "disk_read", "record",
                                        "wait",       "token"};
    const Op &op = m.ops[id];
    const Stream &s = m.streams[op.stream];
    std::string after, accesses;
    for (int before : op.after) {
        after += (after.empty() ? "" : ", ") + std::to_string(before);
    }
    for (const Access &a : op.accesses) {
        accesses += (accesses.empty() ? "" : ", ") + ("[" + std::to_string(a.lo)) +
                    ", " + std::to_string(a.hi) + ", " + std::to_string(a.write) + "]";
    }
    return "{" + number("id", id) +
           ", \"kind\": " + quote(names[static_cast<int>(op.kind)]) +
           ", \"stream\": " + quote(m.checker.name(s.actor)) +
           ", \"name\": " + quote(op.name) +
           ", \"label\": " + quote(m.checker.site(op.site).label) + ", " +
           number("issued", op.issued) + ", " + number("begun", op.begun) + ", " +
           number("ended", op.ended) + ", " + number("site", op.site) + ", " +
           number("bytes", op.bytes) + ", \"after\": [" + after + "], \"accesses\": [" +
           accesses + "]}";
}

/* What the library under test made and did not give back. */
static std::string write_leaks(Machine &m) {
    int64_t streams = 0, events = 0;
    for (const Stream &s : m.streams) {
        streams += s.from_api && s.live;
    }
    for (const Event &e : m.events) {
        events += e.live;
    }
    return "{" + number("streams", streams) + ", " + number("events", events) + ", " +
           number("pinned", m.checker.live_regions("pinned")) + ", " +
           number("registered", m.checker.live_regions("registered")) + ", " +
           number("device", m.checker.live_regions("device")) + "}";
}

extern "C" {

char *sim_report(int trace) {
    LOCKED;
    static const char *const modes[] = {"timed", "lazy", "eager", "random"};
    std::string text = "{\"mode\": " + quote(modes[m.mode]) + ", " +
                       number("seed", static_cast<int64_t>(m.seed)) + ", " +
                       number("now", m.now) + ", " +
                       number("n_violations", m.checker.n_violations()) +
                       ", \"leaks\": " + write_leaks(m) + ", \"violations\": [";
    const char *comma = "";
    for (const Violation &v : m.checker.violations()) {
        text += comma + write_violation(m, v);
        comma = ",\n";
    }
    text += "], \"ops\": [";
    comma = "";
    for (size_t id = 0; trace && id < m.ops.size(); id++) {
        text += comma + write_op(m, static_cast<int>(id));
        comma = ",\n";
    }
    text += "]}";
    return strdup(text.c_str());
}

void sim_free_text(char *text) {
    free(text);
}
}

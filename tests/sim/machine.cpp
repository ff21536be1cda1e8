/* machine.cpp: the four ways in which virtual time goes on. The rules are in machine.h. */
#include "machine.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <thread>

namespace sim {

thread_local std::string label;

static const sim_time NEVER = std::numeric_limits<sim_time>::max();
static const int PATIENCE = 4;  // unanswered questions in a row until progress is made
static const int POISON = 0xCB; // as float32 -2.7e7, as float64 -1.2e57
static const int64_t HORIZON = 300; // steps over which change points are spread

uint64_t sum_of(const void *bytes, int64_t n) { // FNV-1a over words, then bytes
    const unsigned char *p = static_cast<const unsigned char *>(bytes);
    uint64_t sum = 1469598103934665603u, word;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&word, p, 8);
        sum = (sum ^ word) * 1099511628211u;
    }
    for (; n > 0; n--) {
        sum = (sum ^ *p++) * 1099511628211u;
    }
    return sum;
}

Machine::Machine(const sim_profile &p, sim_mode m, uint64_t s, int changes)
    : profile(p), mode(m), seed(s), random_(s) {
    for (int i = 0; i < changes; i++) {
        changes_.insert(static_cast<int64_t>(random_() % HORIZON));
    }
    for (int device = 0; device < p.devices; device++) {
        add_stream(device, device ? "default " + std::to_string(device) : "default",
                   true, false);
    }
}

/* -------------------------------------------------------------------------- who acts */

int Machine::host() {
    std::thread::id id =
        separate_hosts ? std::this_thread::get_id() : std::thread::id();
    auto found = hosts.find(id);
    if (found == hosts.end()) {
        std::string name =
            hosts.empty() ? "host" : "host " + std::to_string(hosts.size());
        found = hosts.emplace(id, checker.add_actor(name)).first;
    }
    return found->second;
}

int Machine::here(const std::string &what, const void *caller) {
    return checker.add_site({label, what, caller});
}

int Machine::add_stream(int device, const std::string &name, bool blocking,
                        bool worker) {
    Stream s;
    s.device = device;
    s.actor = checker.add_actor(name);
    s.blocking = blocking;
    s.worker = worker;
    s.priority = static_cast<int>(random_() % 1000000);
    streams.push_back(s);
    return static_cast<int>(streams.size()) - 1;
}

void Machine::join_host(const Clock &clock, int site) {
    int h = host();
    checker.clock(h).join(clock);
    checker.tick(h, site);
}

/* ----------------------------------------------------------------------------- issue */

int Machine::issue(Op op) {
    int id = static_cast<int>(ops.size());
    Stream &s = streams[op.stream];
    checker.tick(host(), op.site);
    checker.clock(s.actor).join(checker.clock(host()));
    bool legacy = op.stream < profile.devices;
    for (int other = 0; s.blocking && other < static_cast<int>(streams.size());
         other++) {
        const Stream &o = streams[other]; // the default stream and the blocking ones
        bool joins = o.blocking && o.device == s.device && other != op.stream &&
                     (legacy || other < profile.devices);
        if (joins && o.last >= 0) {
            checker.clock(s.actor).join(checker.clock(o.actor));
            op.after.push_back(o.last);
        }
    }
    op.previous = s.last;
    op.issued = now;
    op.epoch = checker.tick(s.actor, op.site);
    for (const Access &access : op.accesses) {
        checker.access(op.epoch, access, op.site);
    }
    s.last = id;
    s.queued.push_back(id);
    ops.push_back(std::move(op));
    switch (mode) {
    case SIM_TIMED:
        while (step_timed(now)) {
        }
        break;
    case SIM_EAGER:
        step_eager();
        break;
    case SIM_RANDOM:
        for (uint64_t n = random_() % 4; n > 0 && step_random(); n--) {
        }
        break;
    case SIM_LAZY:
        break;
    }
    return id;
}

/* ----------------------------------------------------------------- starts and ends */

bool Machine::ready(const Op &op) const {
    return ready_at(op) < NEVER;
}

sim_time Machine::ready_at(const Op &op) const {
    sim_time at = op.issued;
    auto look = [&](int before) {
        if (before >= 0) {
            const Op &b = ops[before];
            at = b.state == State::done ? std::max(at, b.ended) : NEVER;
        }
        return at < NEVER;
    };
    if (!look(op.previous)) {
        return NEVER;
    }
    for (int before : op.after) {
        if (!look(before)) {
            return NEVER;
        }
    }
    if (op.kind == Kind::wait && op.token >= 0) {
        return tokens[op.token] < 0 || !look(tokens[op.token]) ? NEVER : at;
    }
    return at;
}

sim_time &Machine::engine_of(const Op &op) {
    std::string name = "none " + std::to_string(op.stream);
    int device = streams[op.stream].device;
    bool one = profile.copy_engines < 2;
    if (op.kind == Kind::kernel) {
        name = "compute " + std::to_string(device);
    } else if (op.kind == Kind::copy_out || op.kind == Kind::copy_in) {
        name = (op.kind == Kind::copy_out || one ? "out " : "in ") +
               std::to_string(device);
    } else if (op.kind == Kind::disk_write || op.kind == Kind::disk_read) {
        name = op.kind == Kind::disk_write ? "write" : "read";
    }
    return engines_[name];
}

static sim_time over(int64_t bytes, int64_t rate) {
    return rate > 0
               ? static_cast<sim_time>(static_cast<__int128>(bytes) * 1000000000 / rate)
               : 0;
}

sim_time Machine::cost_of(const Op &op) {
    if (op.cost >= 0 && op.kind == Kind::kernel) {
        return op.cost;
    }
    int device = streams[op.stream].device;
    std::string other = op.kind == Kind::copy_out ? "in " : "out ";
    bool both = engines_[other + std::to_string(device)] > now;
    int64_t percent = both ? profile.both_percent : 100, touched = 0;
    if (op.pageable) {
        return profile.copy_latency + over(op.bytes, profile.pageable_rate);
    }
    switch (op.kind) {
    case Kind::copy_out:
        return profile.copy_latency + over(op.bytes * 100 / percent, profile.out_rate);
    case Kind::copy_in:
        return profile.copy_latency + over(op.bytes * 100 / percent, profile.in_rate);
    case Kind::disk_read:
    case Kind::disk_write:
        return profile.disk_latency + over(op.bytes, profile.disk_rate);
    case Kind::kernel:
        for (const Access &a : op.accesses) {
            touched += static_cast<int64_t>(a.hi - a.lo);
        }
        return profile.kernel_latency + over(touched, profile.memory_rate);
    default:
        return 0;
    }
}

void Machine::begin(int id, sim_time at) {
    Op &op = ops[id];
    op.state = State::started;
    op.begun = at;
    op.ended = at + cost_of(op);
    engine_of(op) = op.ended;
    if (op.to) {
        op.sum = sum_of(op.from, op.bytes);
        memset(op.to, POISON, static_cast<size_t>(op.bytes));
    }
}

/* A stand-in for arithmetic: equal inputs give equal outputs, anything else does not. */
static void mix(const Op &op) {
    uint64_t sum = sum_of(op.name.data(), static_cast<int64_t>(op.name.size()));
    for (const Access &a : op.accesses) {
        if (!a.write) {
            auto n = static_cast<int64_t>(a.hi - a.lo);
            sum = sum * 31 + sum_of(reinterpret_cast<const void *>(a.lo), n);
        }
    }
    sum = (sum ^ (sum >> 30)) * 0xbf58476d1ce4e5b9u; // splitmix64: FNV's last bytes
    sum = (sum ^ (sum >> 27)) * 0x94d049bb133111ebu; // have reached a few bits only
    sum ^= sum >> 31;
    for (const Access &a : op.accesses) {
        for (uintptr_t at = a.lo; a.write && at < a.hi; at += sizeof sum) {
            size_t n = std::min(sizeof sum, a.hi - at);
            memcpy(reinterpret_cast<void *>(at), &sum, n);
        }
    }
}

void Machine::end(int id) {
    Op &op = ops[id];
    op.state = State::done;
    asked_.erase(id);
    auto &queued = streams[op.stream].queued;
    queued.pop_front(); // an operation ends as the oldest of its stream
    if (op.to) {
        if (sum_of(op.from, op.bytes) != op.sum) {
            Violation v;
            v.kind = "torn copy";
            v.second = {streams[op.stream].actor, 0, false, op.site};
            v.lo = reinterpret_cast<uintptr_t>(op.from);
            v.hi = v.lo + static_cast<uintptr_t>(op.bytes);
            v.text = "the source changed between the copy's start and its end";
            checker.report(v);
        }
        memcpy(op.to, op.from, static_cast<size_t>(op.bytes));
    }
    if (op.mixes) {
        mix(op);
    }
    if (op.effect) {
        op.effect(op.context);
    }
}

/* Runs one operation after everything it needs, deepest first. */
void Machine::run(int id) {
    std::vector<int> stack{id};
    std::set<int> open;
    while (!stack.empty()) {
        int top = stack.back();
        if (ops[top].state == State::done) {
            stack.pop_back();
            continue;
        }
        std::vector<int> needs = ops[top].after;
        needs.push_back(ops[top].previous);
        bool waits = ops[top].kind == Kind::wait && ops[top].token >= 0;
        if (waits) {
            needs.push_back(tokens[ops[top].token]);
        }
        bool missing = waits && tokens[ops[top].token] < 0;
        int next = -1;
        for (int need : needs) {
            if (need >= 0 && ops[need].state != State::done) {
                next = need;
            }
        }
        if (missing || open.count(next)) {
            Violation v;
            v.kind = missing ? "waits for ever" : "wait cycle";
            v.first.site = next >= 0 ? ops[next].site : -1;
            v.second = {streams[ops[top].stream].actor, 0, false, ops[top].site};
            checker.report(v);
            for (int waiting : stack) { // let them pass, so that the test goes on
                ops[waiting].kind =
                    ops[waiting].kind == Kind::wait ? Kind::record : ops[waiting].kind;
            }
            continue;
        }
        if (next >= 0) {
            open.insert(top);
            stack.push_back(next);
            continue;
        }
        if (ops[top].state == State::queued) {
            sim_time at = mode == SIM_TIMED
                              ? std::max(ready_at(ops[top]), engine_of(ops[top]))
                              : std::max(now, ready_at(ops[top]));
            begin(top, at);
        }
        now = std::max(now, mode == SIM_TIMED ? now : ops[top].ended);
        end(top);
        open.erase(top);
        stack.pop_back();
    }
}

/* ------------------------------------------------------------------- the four modes */

/* The next start or end at or before `until`, in the order of time. */
bool Machine::step_timed(sim_time until) {
    sim_time best = NEVER, best_ready = NEVER;
    int chosen = -1;
    for (const Stream &s : streams) {
        if (s.queued.empty()) {
            continue;
        }
        const Op &op = ops[s.queued.front()];
        sim_time ready = op.state == State::started ? 0 : ready_at(op);
        sim_time at = op.state == State::started ? op.ended
                      : ready == NEVER           ? NEVER
                                                 : std::max(ready, engine_of(op));
        if (at < best || (at == best && at < NEVER && ready < best_ready)) {
            best = at;
            best_ready = ready;
            chosen = s.queued.front();
        }
    }
    if (chosen < 0 || best > until) {
        return false;
    }
    if (ops[chosen].state == State::started) {
        end(chosen);
    } else {
        begin(chosen, best);
    }
    return true;
}

void Machine::step_eager() {
    for (bool progress = true; progress;) {
        progress = false;
        for (const Stream &s : streams) {
            while (!s.queued.empty() && ops[s.queued.front()].kind != Kind::kernel &&
                   ready(ops[s.queued.front()])) {
                run(s.queued.front());
                progress = true;
            }
        }
    }
}

bool Machine::step_random() {
    Stream *chosen = nullptr;
    for (Stream &s : streams) {
        bool can =
            !s.queued.empty() && (ops[s.queued.front()].state == State::started ||
                                  ready(ops[s.queued.front()]));
        if (can && (!chosen || s.priority > chosen->priority)) {
            chosen = &s;
        }
    }
    if (!chosen) {
        return false;
    }
    if (changes_.count(steps_++)) {
        chosen->priority = --lowest_;
    }
    int id = chosen->queued.front();
    if (ops[id].state == State::queued) {
        begin(id, now);
    } else {
        now = std::max(now, ops[id].ended);
        end(id);
    }
    return true;
}

void Machine::finish(int id) {
    if (id < 0) {
        return;
    }
    while (mode == SIM_TIMED && ops[id].state != State::done && step_timed(NEVER - 1)) {
    }
    while (mode == SIM_RANDOM && ops[id].state != State::done && step_random()) {
    }
    run(id);
    now = mode == SIM_TIMED ? std::max(now, ops[id].ended) : now;
}

/* Is the host doing nothing but ask about this operation? Then it is waiting. */
bool Machine::polled(int id) {
    bool again = polled_.op == id && polled_.calls + 1 == calls[""];
    polled_ = {id, calls[""], again ? polled_.times + 1 : 1};
    if (polled_.times <= PATIENCE) {
        return false;
    }
    finish(id);
    return true;
}

bool Machine::ask(int id) {
    if (behind && id >= 0) {
        return checker.clock(host()).covers(ops[id].epoch) || polled(id);
    }
    if (id < 0 || ops[id].state == State::done) {
        return true;
    }
    if (n_answers < answers.size()) { // scripted
        bool yes = answers[n_answers++] != 0;
        if (yes) {
            finish(id);
        }
        return yes;
    }
    n_answers++;
    int times = ++asked_[id];
    if (mode == SIM_TIMED) {
        spend(profile.call_cost << std::min(times, 20)); // a host that polls sleeps
    } else if (mode == SIM_RANDOM) {
        step_random();
    }
    if (ops[id].state != State::done && times >= PATIENCE && mode != SIM_TIMED) {
        finish(id);
    }
    return ops[id].state == State::done;
}

void Machine::finish_all() {
    for (size_t s = 0; s < streams.size(); s++) {
        finish(streams[s].last);
    }
}

void Machine::spend(sim_time cost) {
    now += cost;
    while (mode == SIM_TIMED && step_timed(now)) {
    }
}

} // namespace sim

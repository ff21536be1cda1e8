/* machine.h: streams of operations in virtual time, over the checker.
 *
 * An operation starts when everything before it on its stream and everything it waits
 * for is done. Its effect has two moments, because real copies do: at the start the
 * destination is poisoned and the source summed, at the end the bytes move and the
 * source is summed again. When those moments come is the mode's choice:
 *
 *   timed   at the times of a machine profile, in integer nanoseconds
 *   lazy    only when somebody must wait for it: finds missing waits
 *   eager   copies as early as their edges allow, kernels as late: finds copies that
 *           run before the work they belong after
 *   random  a stream with the highest of seeded random priorities goes first, with a few
 *           change points (PCT): finds a bug of depth d with a known probability
 */
#pragma once

#include "checker.h"
#include "sim.h"

#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <set>
#include <thread>

namespace sim {

enum class Kind {
    kernel,
    copy_out,
    copy_in,
    disk_write,
    disk_read,
    record,
    wait,
    token
};
enum class State { queued, started, done };

struct Op {
    Kind kind = Kind::kernel;
    int stream = 0;
    int previous = -1;      // on the same stream
    std::vector<int> after; // what else must be done before
    int token = -1;         // waits for the token (kind wait) or sets it (kind token)
    void *to = nullptr;
    const void *from = nullptr;
    int64_t bytes = 0;
    sim_time cost = 0;
    bool pageable = false; // at the rate of staged copies
    bool mixes = false;    // writes what follows from what it read
    sim_effect effect = nullptr;
    void *context = nullptr;
    int site = -1;
    std::string name;
    std::vector<Access> accesses;

    Epoch epoch;
    State state = State::queued;
    sim_time issued = 0, begun = 0, ended = 0;
    uint64_t sum = 0; // of the source at the start
};

struct Stream {
    int device = 0;
    int actor = 0;
    bool blocking = false; // joins the legacy default stream
    bool worker = false;   // a host thread with a queue, no CUDA stream
    bool live = true;
    bool capturing = false;
    bool from_api = false;  // made by the library under test
    int last = -1;          // newest operation
    std::deque<int> queued; // operations not done, oldest first
    int priority = 0;
};

struct Event {
    int device = 0;
    bool timing = false;
    bool live = true;
    int op = -1; // captured by the last record; -1: never recorded
    Clock clock;
};

struct Fault {                // of a call, armed by a test
    std::string entry, error; // entry "": any
    int64_t nth = 0, times = 0;
};

class Machine {
  public:
    Machine(const sim_profile &profile, sim_mode mode, uint64_t seed, int changes);

    /* Who acts, and where from. */
    int host();
    int here(const std::string &what, const void *caller);

    int add_stream(int device, const std::string &name, bool blocking, bool worker);
    /* Queues work: gives it its place on the stream and checks its accesses. */
    int issue(Op op);
    void join_host(const Clock &clock, int site);
    Clock &clock_of(int stream) {
        return checker.clock(streams[stream].actor);
    }

    /* Makes virtual time go on until the operation is done, as a waiting host does. */
    void finish(int op);
    /* Has it ended? May make progress, and does so when asked again and again. */
    bool ask(int op);
    void finish_all();
    void spend(sim_time cost); // on the host

    std::recursive_mutex mutex;
    sim_profile profile;
    sim_mode mode;
    uint64_t seed;
    Checker checker;
    std::vector<Op> ops;
    std::vector<Stream> streams;
    std::vector<Event> events;
    std::vector<int> tokens; // the operation that sets it, -1: none yet
    std::vector<Fault> faults;
    std::map<std::string, int64_t> calls; // by entry; "" all
    std::string sticky;                   // the error that every call returns
    std::vector<uint8_t> answers;         // scripted answers of queries
    size_t n_answers = 0;
    sim_time now = 0;
    int64_t host_used = 0, device_used = 0; // bytes of pinned and plain device memory
    std::map<void *, std::pair<int64_t, int64_t *>>
        memory_of;                      // -> bytes, their account
    std::map<int64_t, Clock> published; // by a test's own key
    std::map<std::thread::id, int> hosts;
    bool separate_hosts = false;
    bool behind = false; // queries say "not yet" until the host has waited

  private:
    bool ready(const Op &op) const;
    sim_time ready_at(const Op &op) const;
    void begin(int op, sim_time at);
    void end(int op);
    void run(int op); // with all it needs
    bool step_timed(sim_time until);
    void step_eager();
    bool step_random();
    bool polled(int op);
    sim_time &engine_of(const Op &op);
    sim_time cost_of(const Op &op);

    std::mt19937_64 random_;
    std::set<int64_t> changes_;
    int64_t steps_ = 0;
    int lowest_ = 0;
    struct {
        int op = -1;
        int64_t calls = 0, times = 0; // all calls until then; times in a row
    } polled_;
    std::map<int, int> asked_;                // unfinished operation -> times in a row
    std::map<std::string, sim_time> engines_; // resource -> when it is free
};

extern thread_local std::string label; // what this thread's test says it is doing
Machine &machine();                    // of this process
uint64_t stream_handle(int index);
int stream_index(int device, uint64_t handle);
void *map_host(int64_t bytes); // stays mapped until the next sim_open
void reset_allocator();

uint64_t sum_of(const void *bytes, int64_t n);

} // namespace sim

/* allocator.cpp: a caching allocator with torch's rules, which three of the public bugs
 * turn on.
 *
 * A block has a home stream. It is freed at host time, whatever the device still does
 * with it, and given to the next request on its home stream without any wait: reuse is
 * ordered by that stream alone. A block that other streams used is safe only after
 * record_stream, which keeps it until those streams have passed the free.
 */
#include "machine.h"

#include <algorithm>

namespace sim {

struct Block {
    int64_t bytes;
    int home; // stream
    bool live;
    std::set<int> also;       // streams of record_stream
    std::vector<int> pending; // their operations that must end before reuse
    Clock clock;              // what the host knows once they have
};

static const int64_t ROUND = 512, SEGMENT = 1 << 21;
static std::map<char *, Block> blocks; // by address
static int64_t allocated, peak;

void reset_allocator() {
    blocks.clear();
    allocated = peak = 0;
}

static bool is_free(Machine &m, Block &b, bool force) {
    for (int op : b.pending) {
        if (force) {
            m.finish(op);
        }
        if (m.ops[op].state != State::done) {
            return false;
        }
    }
    if (!b.live && !b.pending.empty()) { // the allocator saw the events: the host knows
        m.join_host(b.clock, m.here("process_events", nullptr));
        b.pending.clear();
    }
    return !b.live;
}

/* The smallest free block of this stream that fits. */
static char *take(Machine &m, int64_t bytes, int home, bool force) {
    char *best = nullptr;
    for (auto &[address, b] : blocks) {
        if (!b.live && b.home == home && b.bytes >= bytes &&
            (!best || b.bytes < blocks[best].bytes) && is_free(m, b, force)) {
            best = address;
        }
    }
    return best;
}

static void add(char *address, int64_t bytes, int home) {
    Block b;
    b.bytes = bytes;
    b.home = home;
    b.live = false;
    blocks[address] = b;
}

/* Neighbours that are free and of one home become one block. Segments do not touch. */
static void merge(std::map<char *, Block>::iterator it) {
    auto joins = [](const Block &a, const Block &b) {
        return !a.live && !b.live && a.home == b.home && a.pending.empty() &&
               b.pending.empty();
    };
    auto next = std::next(it);
    if (next != blocks.end() && it->first + it->second.bytes == next->first &&
        joins(it->second, next->second)) {
        it->second.bytes += next->second.bytes;
        blocks.erase(next);
    }
    if (it != blocks.begin()) {
        auto before = std::prev(it);
        if (before->first + before->second.bytes == it->first &&
            joins(before->second, it->second)) {
            before->second.bytes += it->second.bytes;
            blocks.erase(it);
        }
    }
}

static void *allocate(Machine &m, int64_t bytes, int home, int site) {
    int64_t size = std::max(ROUND, (bytes + ROUND - 1) / ROUND * ROUND);
    if (allocated + size > m.profile.device_bytes - m.device_used) {
        return nullptr;
    }
    char *address = take(m, size, home, false);
    if (!address) {
        int64_t segment = std::max(SEGMENT, size);
        address = static_cast<char *>(map_host(segment + 4096)); // a gap behind it
        if (!address) {
            return nullptr;
        }
        add(address, segment, home);
    }
    Block &b = blocks[address];
    if (b.bytes > size) {
        add(address + size, b.bytes - size, home);
        b.bytes = size;
    }
    b.live = true;
    allocated += size;
    peak = std::max(peak, allocated);
    m.checker.open_region(reinterpret_cast<uintptr_t>(address), size, "tensor", site);
    return address;
}

} // namespace sim

using namespace sim;

extern "C" {

void *sim_alloc(int device, int64_t bytes, uint64_t stream) {
    Machine &m = machine();
    std::lock_guard<std::recursive_mutex> lock(m.mutex);
    return allocate(m, bytes, stream_index(device, stream), m.here("alloc", nullptr));
}

void sim_free(void *memory) {
    Machine &m = machine();
    std::lock_guard<std::recursive_mutex> lock(m.mutex);
    int site = m.here("free", nullptr);
    auto it = blocks.find(static_cast<char *>(memory));
    Epoch epoch = m.checker.tick(m.host(), site);
    m.checker.close_region(reinterpret_cast<uintptr_t>(memory), epoch, site, false);
    if (it == blocks.end() || !it->second.live) {
        return;
    }
    Block &b = it->second;
    b.live = false;
    allocated -= b.bytes;
    for (int stream : b.also) {
        Op op;
        op.kind = Kind::record;
        op.stream = stream;
        op.site = site;
        op.name = "record";
        b.pending.push_back(m.issue(std::move(op)));
        b.clock.join(m.clock_of(stream));
    }
    b.also.clear();
    merge(it);
}

void sim_record_stream(void *memory, uint64_t stream) {
    Machine &m = machine();
    std::lock_guard<std::recursive_mutex> lock(m.mutex);
    auto it = blocks.upper_bound(static_cast<char *>(memory));
    if (it != blocks.begin() && (--it)->second.live) {
        int index = stream_index(m.streams[it->second.home].device, stream);
        if (index != it->second.home) {
            it->second.also.insert(index);
        }
    }
}

int64_t sim_allocated(int of_peak) {
    return of_peak ? peak : allocated;
}

void sim_reset_peak(void) {
    peak = allocated;
}
}

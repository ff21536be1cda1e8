/* checker.h: happens-before over everything that acts: host threads, streams, workers.
 *
 * Each actor has a vector clock; each action ticks its actor's own component. Accesses
 * are kept per byte interval, for device and host memory alike: the last write, and the
 * last read of each actor since then. Two overlapping accesses, one of them a write,
 * are a violation when the later one's clock does not cover the earlier one.
 *
 * Clocks follow the order in which the host issues work, never the time at which it
 * runs. So a clean trace is race-free for every timing that the device may choose.
 */
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace sim {

struct Epoch { // one action of one actor
    int actor = -1;
    uint32_t tick = 0;
};

struct Clock {
    std::vector<uint32_t> ticks; // by actor; what is missing is 0

    uint32_t at(int actor) const;
    bool covers(Epoch epoch) const;
    void join(const Clock &other);
};

struct Site {           // where an action came from
    std::string label;  // what the test says it is doing
    std::string what;   // "copy_out", "kernel loss"
    const void *caller; // return address of the call
};

struct Access {
    uintptr_t lo, hi; // bytes [lo, hi)
    bool write;
};

struct Party { // one side of a violation
    int actor = -1;
    uint32_t tick = 0;
    bool write = false;
    int site = -1;
};

struct Violation {
    std::string kind; // "race", "freed memory", "torn copy", ...
    Party first, second;
    uintptr_t lo = 0, hi = 0;
    int common = -1; // site of the last action of first's actor that second knew of
    std::string text;
};

struct Region { // memory somebody may free
    uintptr_t hi;
    std::string kind; // "device", "tensor", "pinned", "registered"
    bool live;
    int site; // where it was made, or freed when it is not live
};

class Checker {
  public:
    int add_actor(const std::string &name);
    int add_site(const Site &site);
    /* The actor does something: a new tick of its own. */
    Epoch tick(int actor, int site);
    Clock &clock(int actor) {
        return actors_[actor].clock;
    }
    void access(Epoch epoch, const Access &access, int site);
    void report(const Violation &violation);

    void open_region(uintptr_t lo, int64_t bytes, const std::string &kind, int site);
    /* ordered: the end must come after every access before it (a real free); else it
     * is a caching allocator's, whose next tenant is checked instead. */
    void close_region(uintptr_t lo, Epoch epoch, int site, bool ordered);
    const Region *find_region(uintptr_t address, uintptr_t *lo = nullptr) const;
    int64_t live_regions(const std::string &kind) const;

    const std::vector<Violation> &violations() const {
        return violations_;
    }
    int64_t n_violations() const {
        return n_violations_;
    }
    const Site &site(int index) const {
        return sites_[index];
    }
    const std::string &name(int actor) const {
        return actors_[actor].name;
    }
    void rename(int actor, const std::string &name) {
        actors_[actor].name = name;
    }
    int64_t intervals() const {
        return static_cast<int64_t>(intervals_.size());
    }

  private:
    struct Actor {
        std::string name;
        Clock clock;
        std::vector<int> sites; // by tick
    };
    struct Interval { // of the bytes [key, hi)
        uintptr_t hi;
        Party write;
        std::vector<Party> reads;
    };
    using Intervals = std::map<uintptr_t, Interval>;

    void check(const Party &before, const Party &now, uintptr_t lo, uintptr_t hi);
    void check_live(const Party &now, const Access &access);
    Intervals::iterator split(uintptr_t at);

    std::vector<Actor> actors_;
    std::vector<Site> sites_;
    std::map<std::tuple<std::string, std::string, const void *>, int> site_index_;
    Intervals intervals_; // by first byte, disjoint
    std::map<uintptr_t, Region> regions_;
    std::vector<Violation> violations_; // the first of each pair of sites
    int64_t n_violations_ = 0;
};

} // namespace sim

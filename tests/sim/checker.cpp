/* checker.cpp: vector clocks and the interval map. The rules are in checker.h.
 *
 * A write that is ordered after an interval's accesses replaces them, and intervals
 * that one write covers become one, so the map stays as large as the number of
 * different ranges in use, however long the trace is.
 */
#include "checker.h"

#include <algorithm>

namespace sim {

/* --------------------------------------------------------------------------- clocks */

uint32_t Clock::at(int actor) const {
    return actor < static_cast<int>(ticks.size()) ? ticks[actor] : 0;
}

bool Clock::covers(Epoch epoch) const {
    return epoch.actor < 0 || at(epoch.actor) >= epoch.tick;
}

void Clock::join(const Clock &other) {
    if (ticks.size() < other.ticks.size()) {
        ticks.resize(other.ticks.size());
    }
    for (size_t i = 0; i < other.ticks.size(); i++) {
        ticks[i] = std::max(ticks[i], other.ticks[i]);
    }
}

int Checker::add_actor(const std::string &name) {
    actors_.push_back({name, {}, {-1}});
    return static_cast<int>(actors_.size()) - 1;
}

int Checker::add_site(const Site &site) {
    auto key = std::make_tuple(site.label, site.what, site.caller);
    auto [found, is_new] = site_index_.emplace(key, static_cast<int>(sites_.size()));
    if (is_new) {
        sites_.push_back(site);
    }
    return found->second;
}

Epoch Checker::tick(int actor, int site) {
    Actor &a = actors_[actor];
    if (static_cast<int>(a.clock.ticks.size()) <= actor) {
        a.clock.ticks.resize(actor + 1);
    }
    a.sites.push_back(site);
    return {actor, ++a.clock.ticks[actor]};
}

/* ------------------------------------------------------------------------- accesses */

/* Makes `at` a border; returns the first interval that begins at or after it. */
Checker::Intervals::iterator Checker::split(uintptr_t at) {
    auto it = intervals_.lower_bound(at);
    if (it != intervals_.begin()) {
        auto before = std::prev(it);
        if (before->second.hi > at) {
            it = intervals_.emplace_hint(it, at, before->second);
            before->second.hi = at;
        }
    }
    return it;
}

void Checker::check(const Party &before, const Party &now, uintptr_t lo, uintptr_t hi) {
    const Clock &knows = actors_[now.actor].clock;
    if (before.actor < 0 || knows.covers({before.actor, before.tick})) {
        return;
    }
    Violation v;
    v.kind = "race";
    v.first = before;
    v.second = now;
    v.lo = lo;
    v.hi = hi;
    v.common = actors_[before.actor].sites[knows.at(before.actor)];
    report(v);
}

void Checker::report(const Violation &v) {
    n_violations_++;
    for (const Violation &old : violations_) {
        if (old.kind == v.kind && old.first.site == v.first.site &&
            old.second.site == v.second.site) {
            return;
        }
    }
    if (violations_.size() < 100) {
        violations_.push_back(v);
    }
}

void Checker::access(Epoch epoch, const Access &a, int site) {
    Party now{epoch.actor, epoch.tick, a.write, site};
    check_live(now, a);
    auto it = split(a.lo);
    split(a.hi);
    uintptr_t at = a.lo;
    while (at < a.hi) {
        if (it == intervals_.end() || it->first > at) { // bytes nobody touched yet
            uintptr_t hi = it == intervals_.end() ? a.hi : std::min(it->first, a.hi);
            it = intervals_.emplace_hint(it, at, Interval{hi, {}, {}});
        }
        Interval &interval = it->second;
        check(interval.write, now, at, interval.hi);
        if (a.write) {
            for (const Party &read : interval.reads) {
                check(read, now, at, interval.hi);
            }
        } else {
            auto same = [&](const Party &r) { return r.actor == now.actor; };
            auto mine =
                std::find_if(interval.reads.begin(), interval.reads.end(), same);
            if (mine == interval.reads.end()) {
                interval.reads.push_back(now);
            } else {
                *mine = now;
            }
        }
        at = interval.hi;
        ++it;
    }
    if (a.write && a.lo < a.hi) { // all of it is one interval now
        intervals_.erase(intervals_.find(a.lo), it);
        intervals_.emplace(a.lo, Interval{a.hi, now, {}});
    }
}

/* -------------------------------------------------------------------------- regions */

const Region *Checker::find_region(uintptr_t address, uintptr_t *lo) const {
    auto it = regions_.upper_bound(address);
    if (it == regions_.begin() || std::prev(it)->second.hi <= address) {
        return nullptr;
    }
    --it;
    if (lo) {
        *lo = it->first;
    }
    return &it->second;
}

void Checker::check_live(const Party &now, const Access &a) {
    uintptr_t lo;
    const Region *region = find_region(a.lo, &lo);
    if (!region || (region->live && a.hi <= region->hi)) {
        return;
    }
    Violation v;
    v.kind = region->live ? "out of bounds" : "freed memory";
    v.first.site = region->site;
    v.first.write = true;
    v.second = now;
    v.lo = a.lo;
    v.hi = a.hi;
    report(v);
}

void Checker::open_region(uintptr_t lo, int64_t bytes, const std::string &kind,
                          int site) {
    uintptr_t hi = lo + static_cast<uintptr_t>(bytes);
    auto it = regions_.lower_bound(lo);
    if (it != regions_.begin() && std::prev(it)->second.hi > lo) {
        --it;
    }
    while (it != regions_.end() && it->first < hi) { // what was freed there before
        it = regions_.erase(it);
    }
    regions_[lo] = {hi, kind, true, site};
}

void Checker::close_region(uintptr_t lo, Epoch epoch, int site, bool ordered) {
    auto it = regions_.find(lo);
    if (it == regions_.end() || !it->second.live) {
        Violation v;
        v.kind = "freed twice";
        v.first.site = it == regions_.end() ? site : it->second.site;
        v.second = {epoch.actor, epoch.tick, true, site};
        v.lo = v.hi = lo;
        report(v);
        return;
    }
    if (ordered) {
        access(epoch, {lo, it->second.hi, true}, site);
    }
    it->second.live = false;
    it->second.site = site;
}

int64_t Checker::live_regions(const std::string &kind) const {
    int64_t n = 0;
    for (const auto &[lo, region] : regions_) {
        n += region.live && region.kind == kind;
    }
    return n;
}

} // namespace sim

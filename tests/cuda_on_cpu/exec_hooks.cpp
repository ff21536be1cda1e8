/* exec_hooks.cpp: sees every load and store of a kernel.
 *
 * Kernel files are compiled with gcc's thread-sanitizer instrumentation; the callbacks it
 * inserts are defined here instead of in the sanitizer's runtime. Each access is checked
 * against the registry, then against the last write and read of its cells:
 *   - a read of an output or of shared memory that nobody wrote is an error;
 *   - two accesses, one of them a write, by threads that no barrier orders are a race.
 * Order comes from __syncthreads, __syncwarp and the end of a launch; shuffles give none.
 * Cells are two bytes wide, and one in memory of which a single byte was ever written.
 * When asked, the 32-byte sectors of each warp's accesses are counted too.
 */
#include "exec_memory.h"
#include "exec_state.h"

#include <algorithm>
#include <unordered_map>

namespace exec {

/* -------------------------------------------------------------------------- the checker */

/* Stamp::who is a thread, or several readers of which only the group is remembered. */
static constexpr uint32_t READERS_OF_WARP = MAX_THREADS, READERS_OF_BLOCK = 4094,
                          READERS_OF_BLOCKS = 4095, MAX_CLOCK = (1 << 20) - 1;

static std::vector<uint3> blocks_run; // of this launch, by serial number

static Stamp stamp_of(const Thread *t) {
    return {ex.block_serial, t->id, t->clock};
}

/* Did the accesses of the stamp, if by several lanes by these, come before what t does
 * now? */
static bool ordered(Stamp s, uint32_t lanes, const Thread *t) {
    if (s.block < ex.first_serial) {
        return true;
    }
    if (s.block != ex.block_serial || s.who == READERS_OF_BLOCKS) {
        return false;
    }
    if (s.who == t->id || s.clock < ex.base_clock) {
        return true;
    }
    if (s.who < MAX_THREADS) {
        return s.who / WARP == t->warp && s.clock <= t->known[s.who % WARP];
    }
    if (s.who != READERS_OF_WARP + t->warp) {
        return false;
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (lanes >> lane & 1 && lane != t->lane && s.clock > t->known[lane]) {
            return false;
        }
    }
    return true;
}

/* Adds a read by t to those of the cell that are still unordered with it. */
static void add_reader(Cell *cell, const Thread *t) {
    const Stamp s = cell->read;
    if (ordered(s, cell->lanes, t)) {
        cell->read = stamp_of(t);
        cell->lanes = 1u << t->lane;
        return;
    }
    const bool same_warp = s.block == ex.block_serial &&
                           (s.who < MAX_THREADS ? s.who / WARP == t->warp
                                                : s.who == READERS_OF_WARP + t->warp);
    uint32_t who = READERS_OF_BLOCKS;
    if (same_warp) {
        who = READERS_OF_WARP + t->warp;
    } else if (s.block == ex.block_serial && s.who != READERS_OF_BLOCKS) {
        who = READERS_OF_BLOCK;
    }
    cell->lanes |= 1u << t->lane;
    cell->read = {ex.block_serial, who, std::max<uint32_t>(s.clock, t->clock)};
}

static std::string text_of(Stamp s) {
    if (s.who >= READERS_OF_WARP) {
        return "several threads";
    }
    const dim3 n = ex.launch->block;
    const uint3 index = {s.who % n.x, s.who / n.x % n.y, s.who / n.x / n.y};
    return "thread " + text_of(index) + " of block " +
           text_of(blocks_run[s.block - ex.first_serial]);
}

static void check_cells(Region *r, uintptr_t a, size_t bytes, bool write,
                        const void *pc) {
    Thread *t = ex.current;
    if (t->clock > MAX_CLOCK) {
        fail_at(pc, "more than %u barriers in a block", MAX_CLOCK);
    }
    if (write && bytes == 1) {
        r->cells_of_bytes();
    }
    Cell *cell = r->cells_at(a), *end = r->cells_at(a + bytes - 1) + 1;
    for (; cell < end; cell++) {
        const Stamp w = cell->written;
        const bool stale = r->kind == SHARED && w.block != ex.block_serial;
        if (!write && (w.block == 0 || stale)) {
            fail_at(pc, "read before written: %zu bytes at %s", bytes,
                    describe(a).c_str());
        }
        if (!stale && !ordered(w, 0, t)) {
            fail_at(pc, "race: %s of %zu bytes at %s, written by %s",
                    write ? "write" : "read", bytes, describe(a).c_str(),
                    text_of(w).c_str());
        }
        const bool old = r->kind == SHARED && cell->read.block != ex.block_serial;
        if (!write) {
            if (old) {
                cell->read = {0, 0, 0};
            }
            add_reader(cell, t);
            continue;
        }
        if (!old && !ordered(cell->read, cell->lanes, t)) {
            fail_at(pc, "race: write of %zu bytes at %s, read by %s", bytes,
                    describe(a).c_str(), text_of(cell->read).c_str());
        }
        cell->written = stamp_of(t);
    }
}

/* ----------------------------------------------------------------------------- traffic */

/* The n-th time since a collective that a lane comes to an access is one request with the
 * n-th time of the other lanes of its warp since then. */
struct Touch {
    const void *pc;
    uint32_t warp, phase, turn;
    Region *region;
    uintptr_t sector;
    bool write;
    bool same_request(const Touch &b) const {
        return pc == b.pc && warp == b.warp && phase == b.phase && turn == b.turn &&
               region == b.region;
    }
    bool operator<(const Touch &b) const {
        return std::tie(pc, warp, phase, turn, region, sector) <
               std::tie(b.pc, b.warp, b.phase, b.turn, b.region, b.sector);
    }
};
static bool counting;
static std::vector<Touch> touches; // of this block
struct Turns { // of a thread, since it has been in `phase` collectives
    uint32_t phase;
    std::unordered_map<const void *, uint32_t> at;
};
static Turns turns[MAX_THREADS];

static void count(Region *r, uintptr_t a, size_t bytes, bool write, const void *pc) {
    const Thread *t = ex.current;
    Turns *own = &turns[t->id];
    if (own->phase != t->phase) {
        own->phase = t->phase;
        own->at.clear();
    }
    const uint32_t turn = own->at[pc]++;
    for (uintptr_t s = a / 32; s <= (a + bytes - 1) / 32; s++) {
        touches.push_back({pc, t->warp, t->phase, turn, r, s, write});
    }
}

void hooks_block_done() {
    std::sort(touches.begin(), touches.end());
    const Touch *last = nullptr;
    for (const Touch &touch : touches) {
        const bool same = last != nullptr && touch.same_request(*last);
        touch.region->requests[touch.write] += !same;
        touch.region->sectors[touch.write] += !same || touch.sector != last->sector;
        last = &touch;
    }
    touches.clear();
    for (unsigned id = 0; counting && id < ex.n_threads; id++) {
        turns[id].at.clear();
    }
}

/* ------------------------------------------------------------------------------ access */

static void access(const void *p, size_t bytes, size_t alignment, bool write,
                   const void *pc) {
    Thread *t = ex.current;
    const uintptr_t a = uintptr_t(p);
    if (t == nullptr || t->fiber.owns(a)) {
        return; // a launcher on the host; a local variable
    }
    if (ex.order == RANDOM && random_bits() % 64 == 0) {
        leave();
    }
    if (ex.over_budget()) {
        fail_at(pc, EXEC_ENDLESS, (unsigned long long)ex.budget);
    }
    const char *what = write ? "write" : "read";
    Region *r = region_of(a);
    if (r == nullptr && !write && is_constant(a, bytes)) {
        return;
    }
    if (r == nullptr || a + bytes > r->end) {
        fail_at(pc, "out of bounds: %s of %zu bytes, %s", what, bytes,
                describe(r == nullptr ? a : a + bytes - 1).c_str());
    }
    if (a % alignment != 0) {
        fail_at(pc, "misaligned: %s of %zu bytes at %s", what, bytes,
                describe(a).c_str());
    }
    if (counting && r->kind != SHARED) {
        count(r, a, bytes, write, pc);
    }
    switch (r->kind) {
    case INPUT:
        if (write) {
            fail_at(pc, "write to an input: %zu bytes at %s", bytes,
                    describe(a).c_str());
        }
        return;
    case FREED:
        fail_at(pc, "use after free: %s of %zu bytes at %s", what, bytes,
                describe(a).c_str());
    default:
        check_cells(r, a, bytes, write, pc);
    }
}

void hooks_launch() {
    blocks_run.clear();
}

void hooks_block() {
    blocks_run.push_back(ex.block);
}

void check_access(const void *p, size_t bytes, size_t alignment, bool write,
                  Site site) {
    const uintptr_t a = uintptr_t(p);
    if (a % alignment != 0) {
        fail(site, "misaligned: %s of %zu bytes at %s", write ? "write" : "read", bytes,
             describe(a).c_str());
    }
}

} // namespace exec

extern "C" void exec_count_traffic(int on) {
    exec::counting = on != 0;
}

/* -------------------------------------------------- what gcc calls (-fsanitize=thread) */

#define PC __builtin_return_address(0)
#define HOOKS(n)                                                                       \
    void __tsan_read##n(void *p) {                                                     \
        exec::access(p, n, n, false, PC);                                              \
    }                                                                                  \
    void __tsan_write##n(void *p) {                                                    \
        exec::access(p, n, n, true, PC);                                               \
    }                                                                                  \
    void __tsan_unaligned_read##n(void *p) {                                           \
        exec::access(p, n, 1, false, PC);                                              \
    }                                                                                  \
    void __tsan_unaligned_write##n(void *p) {                                          \
        exec::access(p, n, 1, true, PC);                                               \
    }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void *p, size_t bytes) {
    exec::access(p, bytes, 1, false, PC);
}
void __tsan_write_range(void *p, size_t bytes) {
    exec::access(p, bytes, 1, true, PC);
}
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}

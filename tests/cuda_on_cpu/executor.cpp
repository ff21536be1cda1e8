/* executor.cpp: launches. Blocks run one after another, the threads of a block as fibers
 * that are taken in turn, in one of four orders, until all have ended.
 */
#include "exec_state.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <numeric>

namespace exec {

Executor ex;

#define EXEC_TEXT(name, text) text,
static const char *const order_texts[] = {EXEC_ORDERS(EXEC_TEXT)};

uint64_t random_bits() { // splitmix64
    uint64_t z = ex.random_state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

uint3 thread_index() {
    return ex.current->index;
}
uint3 block_index() {
    return ex.block;
}
dim3 block_size() {
    return ex.launch->block;
}
dim3 grid_size() {
    return ex.launch->grid;
}

/* ---------------------------------------------------------------------------- errors */

static void record(const std::string &place, const char *format, va_list args) {
    char what[300];
    vsnprintf(what, sizeof what, format, args);
    const std::string kernel = name_of_kernel(ex.launch->kernel);
    const std::string thread =
        ex.current ? ", thread " + text_of(ex.current->index) : std::string();
    snprintf(ex.message, sizeof ex.message, "%s; %s, block %s%s%s, order %s, seed %llu",
             what, kernel.c_str(), text_of(ex.block).c_str(), thread.c_str(),
             place.empty() ? "" : (" at " + place).c_str(), order_texts[ex.order],
             (unsigned long long)ex.seed);
    ex.failed = true;
}

[[noreturn]] static void stop_thread() {
    for (;;) {
        leave();
    }
}

void fail(const Site &site, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(where(site), format, args);
    va_end(args);
    stop_thread();
}

void fail_at(const void *pc, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(place_of_pc(pc), format, args);
    va_end(args);
    stop_thread();
}

/* Of the launch as a whole: no thread runs. */
static void fail_launch(const char *format, ...) {
    va_list args;
    va_start(args, format);
    record("", format, args);
    va_end(args);
}

/* --------------------------------------------------------------------------- threads */

void leave() {
    Thread *t = ex.current;
    fiber_switch(&t->fiber, &ex.host, false);
}

static void thread_main() {
    fiber_entered();
    ex.launch->run(ex.launch->call);
    Thread *t = ex.current;
    thread_done(t);
    fiber_switch(&t->fiber, &ex.host, true);
    __builtin_unreachable();
}

static void start_threads() {
    const dim3 size = ex.launch->block;
    ex.n_threads = ex.n_alive = size.x * size.y * size.z;
    ex.n_at_barrier = 0;
    ex.base_clock = 1;
    std::fill(ex.warp_alive, ex.warp_alive + MAX_WARPS, 0);
    std::fill(ex.warp_waiting, ex.warp_waiting + MAX_WARPS, 0);
    for (unsigned id = 0; id < ex.n_threads; id++) {
        Thread *t = &ex.threads[id];
        t->index = {id % size.x, id / size.x % size.y, id / size.x / size.y};
        t->id = id, t->lane = id % WARP, t->warp = id / WARP;
        t->waiting = READY;
        t->clock = ex.base_clock;
        t->phase = 0;
        std::fill(t->known, t->known + WARP, 0);
        ex.warp_alive[t->warp] |= 1u << t->lane;
        fiber_start(&t->fiber, thread_main);
    }
}

static std::vector<unsigned> turn_order() {
    std::vector<unsigned> turn(ex.n_threads);
    std::iota(turn.begin(), turn.end(), 0u);
    if (ex.order == DESCENDING || ex.order == WARPS_REVERSED) {
        std::reverse(turn.begin(), turn.end());
    }
    if (ex.order == WARPS_REVERSED) { // and the lanes of each warp ascend
        std::stable_sort(turn.begin(), turn.end(), [](unsigned a, unsigned b) {
            return a / WARP != b / WARP ? a / WARP > b / WARP : a < b;
        });
    }
    return turn;
}

static void shuffle(std::vector<unsigned> *turn) {
    for (size_t i = turn->size(); i > 1; i--) {
        std::swap((*turn)[i - 1], (*turn)[random_bits() % i]);
    }
}

static void run_block() {
    start_threads();
    shared_memory_poison();
    std::vector<unsigned> turn = turn_order();
    while (!ex.failed && ex.n_alive > 0) {
        bool ran = false;
        if (ex.order == RANDOM) {
            shuffle(&turn);
        }
        for (unsigned id : turn) {
            Thread *t = &ex.threads[id];
            if (t->waiting != READY) {
                continue;
            }
            ran = true;
            ex.current = t;
            fiber_switch(&ex.host, &t->fiber, false);
            if (ex.failed) {
                break;
            }
        }
        ex.current = nullptr;
        if (!ran) {
            fail_launch("deadlock: %s", who_waits().c_str());
        }
        turn.erase(
            std::remove_if(turn.begin(), turn.end(),
                           [](unsigned id) { return ex.threads[id].waiting == DONE; }),
            turn.end());
    }
    ex.current = nullptr;
}

/* ---------------------------------------------------------------------------- blocks */

static bool within_limits(const Launch &l) {
    const dim3 g = l.grid, b = l.block;
    const uint64_t threads = uint64_t(b.x) * b.y * b.z;
    if (threads == 0 || threads > MAX_THREADS || b.x > 1024 || b.y > 1024 || b.z > 64) {
        fail_launch("block of %ux%ux%u threads: 1 to 1024, at most 1024x1024x64", b.x,
                    b.y, b.z);
    } else if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 ||
               g.z > 65535) {
        fail_launch(
            "grid of %ux%ux%u blocks: at least 1, at most 2147483647x65535x65535", g.x,
            g.y, g.z);
    } else if (!shared_memory_start(l.shared_bytes)) {
        fail_launch("%zu bytes of dynamic shared memory: at most 49152",
                    l.shared_bytes);
    }
    return !ex.failed;
}

static uint64_t gcd(uint64_t a, uint64_t b) {
    return b == 0 ? a : gcd(b, a % b);
}

/* The i-th of n blocks in the order of this launch; random ones are an affine walk. */
static uint64_t block_in_turn(uint64_t i, uint64_t n, uint64_t step, uint64_t start) {
    switch (ex.order) {
    case ASCENDING:
        return i;
    case RANDOM:
        return uint64_t(((unsigned __int128)i * step + start) % n);
    default:
        return n - 1 - i;
    }
}

gnn_status launch(const Launch &l) {
    ex.launch = &l;
    ex.current = nullptr;
    ex.failed = false;
    ex.spent = 0;
    ex.block = {0, 0, 0};
    ex.random_state = ex.seed;
    const std::vector<int64_t> &columns = ex.chosen_columns;
    const uint64_t width = columns.empty() ? l.grid.x : columns.size();
    const uint64_t n = width * l.grid.y * l.grid.z;
    if (within_limits(l)) {
        ex.first_serial = ex.block_serial + 1;
        launch_memory(l.call, l.call_bytes);
        hooks_launch();
        uint64_t step = random_bits() % n + 1;
        while (gcd(step, n) != 1) {
            step = step % n + 1;
        }
        const uint64_t start = random_bits() % n;
        for (uint64_t i = 0; i < n && !ex.failed; i++) {
            const uint64_t b = block_in_turn(i, n, step, start);
            int64_t x = int64_t(b % width);
            if (!columns.empty()) {
                x = columns[size_t(x)] + (columns[size_t(x)] < 0 ? l.grid.x : 0);
            }
            if (x < 0 || x >= int64_t(l.grid.x)) {
                continue; // a launcher may start several kernels of different size
            }
            ex.block = {unsigned(x), unsigned(b / width % l.grid.y),
                        unsigned(b / width / l.grid.y)};
            ex.block_serial++;
            hooks_block();
            run_block();
            hooks_block_done();
        }
    }
    ex.launch = nullptr;
    return ex.failed ? gnn_fail(GNN_EDEVICE, "%s", ex.message) : GNN_OK;
}

} // namespace exec

/* ------------------------------------------------------------- control, for the tests */

extern "C" {
void exec_set_order(int order, uint64_t seed) {
    exec::ex.order = exec::Order(order);
    exec::ex.seed = seed;
}
const char *exec_order_text(int order) { // NULL past the last
    return order >= 0 && order < exec::ORDER_COUNT ? exec::order_texts[order] : nullptr;
}
void exec_set_budget(uint64_t budget) {
    exec::ex.budget = budget;
}
/* Only blocks with these blockIdx.x run, negative ones counted from the end; n 0: all. */
void exec_set_blocks(const int64_t *columns, int64_t n) {
    exec::ex.chosen_columns.assign(columns, columns + n);
}
}

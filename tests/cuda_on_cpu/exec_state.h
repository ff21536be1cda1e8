/* exec_state.h: what the files of the executor share. Kernels do not see it. */
#ifndef EXEC_STATE_H
#define EXEC_STATE_H

#include "exec_fiber.h"
#include "executor.h"

#undef threadIdx // the executor calls its own functions by name
#undef blockIdx
#undef blockDim
#undef gridDim

#include <string>
#include <vector>

namespace exec {

enum { WARP = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / WARP };

/* name, text */
#define EXEC_ORDERS(X)                                                                 \
    X(ASCENDING, "ascending")                                                          \
    X(DESCENDING, "descending")                                                        \
    X(WARPS_REVERSED, "warps reversed")                                                \
    X(RANDOM, "random")
#define EXEC_ENUM(name, text) name,
enum Order { EXEC_ORDERS(EXEC_ENUM) ORDER_COUNT };
#undef EXEC_ENUM

enum Waiting { READY, AT_WARP, AT_BLOCK, DONE };

struct Thread {
    Fiber fiber;
    uint3 index;
    unsigned id, lane, warp; // linear in the block, in the warp, warp in the block
    Waiting waiting;
    Collective what; // the collective it waits at, its mask, inputs and result
    unsigned mask;
    int argument, width;
    uint64_t value, result;
    Site site;
    uint32_t phase; // collectives and barriers it has been in
    /* Vector clock for the race checker (exec_hooks.cpp): its own time, and the time of
     * each lane of its warp up to which that lane's accesses come before its next ones. */
    uint32_t clock, known[WARP];
};

struct Executor {
    Order order = ASCENDING;
    uint64_t seed = 0;
    uint64_t budget = uint64_t(1) << 36; // accesses and collectives of a launch
    std::vector<int64_t> chosen_columns; // of the grid; empty: all

    const Launch *launch = nullptr; // running, or the last one
    Fiber host;
    Thread threads[MAX_THREADS];
    Thread *current = nullptr; // the thread whose code runs now
    unsigned n_threads = 0, n_alive = 0, n_at_barrier = 0;
    unsigned warp_alive[MAX_WARPS], warp_waiting[MAX_WARPS]; // lanes, as bits
    uint3 block;
    uint32_t block_serial = 0, first_serial = 0; // of all launches; of this launch
    uint32_t base_clock = 0;                     // of the last __syncthreads
    uint64_t spent = 0, random_state = 0;
    bool failed = false;
    bool over_budget() {
        return ++spent > budget;
    }
    char message[480];
};
extern Executor ex;

/* Stops the launch with an error; from a GPU thread it does not return. */
[[noreturn]] void fail(const Site &site, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
[[noreturn]] void fail_at(const void *pc, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void leave(); // gives the processor to the scheduler; returns when it is this one's turn
uint64_t random_bits();

#define EXEC_ENDLESS "more than %llu accesses and collectives: an endless loop?"

std::string text_of(uint3 index);    // "(1,0,0)"
std::string where(const Site &site); // "file.cu:12"
std::string place_of_pc(const void *pc);
std::string name_of_kernel(const void *kernel);
const char *text_of(Collective what);

/* exec_warp.cpp */
void try_warp(unsigned warp); // completes what can be completed
void thread_done(Thread *t);
std::string who_waits(); // for a deadlock

/* exec_memory.cpp */
bool shared_memory_start(size_t dynamic_bytes); // false: over the limit
void shared_memory_poison();
void launch_memory(const void *call, size_t bytes);

/* exec_hooks.cpp */
void hooks_launch();
void hooks_block();
void hooks_block_done();

} // namespace exec

#endif

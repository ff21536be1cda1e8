/* sim.h: a CUDA device that exists only in the tests: what tests ask of it.
 *
 * gnn_sim_api() is the table that link_cuda calls through. One machine per process;
 * sim_open makes it anew. Memory is the host's: a "device pointer" is an address.
 */
#ifndef GNN_SIM_H
#define GNN_SIM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int64_t sim_time; // virtual nanoseconds
typedef enum sim_mode { SIM_TIMED, SIM_LAZY, SIM_EAGER, SIM_RANDOM } sim_mode;

/* profiles/<name>.json; rates in bytes per second. */
typedef struct sim_profile {
    int64_t out_rate, in_rate; // pinned copies
    int64_t both_percent;      // of a rate while the other direction copies too
    int64_t pageable_rate;     // copies of pageable memory, staged
    int64_t memory_rate;       // device memory, for kernels that give no cost
    int64_t disk_rate;         // each way
    int64_t copy_latency, disk_latency, kernel_latency, call_cost; // nanoseconds
    int64_t device_bytes, host_bytes; // limits; exceeding them is out of memory
    int64_t copy_engines, pageable_access, host_page_tables;
    int64_t numa_id, host_numa_id, integrated, compute_major, compute_minor;
    int64_t devices;
    int64_t pageable_waits; // 1: a pageable copy in waits; 0: it is staged at the call
} sim_profile;

typedef struct sim_range {
    uint64_t address;
    int64_t bytes;
    int64_t write; // 0: read
} sim_range;

/* Runs when a kernel ends; may read and write what it declared. */
typedef void (*sim_effect)(void *context);

/* changes: random mode's change points. */
void sim_open(const sim_profile *profile, int mode, uint64_t seed, int changes);
const struct gnn_cuda_api *gnn_sim_api(void);
/* gnn_fail of the library under test, which prints into its own message. */
void sim_set_fail(void *gnn_fail_address);
void sim_label(const char *text); // of this thread's next actions
sim_time sim_now(void);

/* ------------------------------------------------------------ what a program would do */
uint64_t sim_stream(int device, const char *name, int blocking);
uint64_t sim_default_stream(int device);
uint64_t sim_worker(const char *name); // a disk thread: its own queue, no CUDA stream
void sim_name_stream(uint64_t stream, const char *name);
/* cost < 0: from the bytes. effect NULL: fills what it writes with a value that follows
 * from its name and every byte it reads. Returns the operation's number. */
int64_t sim_kernel(uint64_t stream, const char *name, int64_t n,
                   const sim_range *ranges, sim_time cost, sim_effect effect,
                   void *context);
/* Work that the caller itself does at once, between these two, as a CPU op that stands
 * for a kernel: first everything that the stream waits for happens. */
void sim_launch_begin(uint64_t stream);
void sim_launch_end(uint64_t stream, const char *name, int64_t n,
                    const sim_range *ranges);
/* Of a recorded trace, whose addresses are another process's: work that takes its time
 * and its place but touches no byte, memory that comes and, really, goes. */
int64_t sim_announce(uint64_t stream, const char *name, int64_t n,
                     const sim_range *ranges, sim_time cost);
void sim_spend(void); // the time of a call that changes nothing
int64_t sim_copy(uint64_t stream, int out, uint64_t to, uint64_t from, int64_t bytes);
void sim_region(uint64_t address, int64_t bytes, const char *kind);
void sim_region_end(uint64_t address);
int64_t sim_disk(uint64_t worker, int write, void *to, const void *from, int64_t bytes);
void sim_host_access(uint64_t address, int64_t bytes, int write);
/* Later work on `stream` runs after what `other`, of any device, has queued. */
void sim_join(uint64_t stream, uint64_t other);
uint64_t sim_token(void);
void sim_signal(uint64_t stream, uint64_t token); // later work may pass await
void sim_await(uint64_t stream, uint64_t token);
void sim_separate_hosts(int yes); // host threads are actors of their own
void sim_publish(int64_t key);    // between host threads: release
void sim_acquire(int64_t key);    // and acquire
void sim_capture(uint64_t stream, int yes);
void sim_finish_all(void); // all work is done; no edge

/* ------------------------------------------------------------- the caching allocator */
void *sim_alloc(int device, int64_t bytes, uint64_t stream); // NULL: out of memory
void sim_free(void *memory);
void sim_record_stream(void *memory, uint64_t stream);
int64_t sim_allocated(int peak); // bytes of live blocks, now or the most ever
void sim_reset_peak(void);
void sim_set_limits(int64_t device_bytes, int64_t host_bytes);

/* ------------------------------------------------------------------ faults and choices */
/* The nth call of `entry` ("": of any) from now fails `times` times (negative: for ever)
 * with a CUDA error. Errors of the device itself stick: all later calls return them. */
void sim_fail(const char *entry, int64_t nth, int64_t times, const char *error);
void sim_stick(const char *error); // as an asynchronous fault of the device; "": heals
int64_t sim_calls(const char *entry);
/* Answers of the next queries, 1: make it so and say done, 0: not yet. */
void sim_script(const uint8_t *answers, int64_t n);
/* The device is always far behind the host: every query says "not yet", unless the host
 * has waited for that. The fewest edges a program can get; loops that poll never end. */
void sim_behind(int yes);
int64_t sim_asked(void); // queries that had both answers

/* -------------------------------------------------------------------------- what it saw */
int64_t sim_violations(void);
int64_t sim_intervals(void);
/* JSON of violations, leaks, and with trace != 0 every operation. Free by sim_free_text. */
char *sim_report(int trace);
void sim_free_text(char *text);

#ifdef __cplusplus
}
#endif
#endif

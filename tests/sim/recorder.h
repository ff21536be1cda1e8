/* recorder.h: a table of CUDA calls that forwards to another one and writes down each
 * call, so that what ran on a real device can be checked afterwards.
 *
 * A call stands in the trace at the moment it returned. Calls of several threads that
 * order each other (by the link's mutex, by Python's lock) are in that order.
 */
#ifndef GNN_RECORDER_H
#define GNN_RECORDER_H

#include "offload/cuda_api.h"

/* One call, or one kernel that the program announced. What does not apply is 0. */
typedef struct rec_call {
    int32_t entry;          // of cuda_api.h in its order; REC_KERNEL
    int32_t device;         // -1: the entry has none
    int32_t status, answer; // gnn_status; of a question: 1 yes, 0 no
    uint64_t stream, event;
    uint64_t to, from;
    int64_t bytes;
    int64_t begin, end;     // nanoseconds of CLOCK_MONOTONIC
    int64_t ranges, name;   // of a kernel: its first range and its name, by index
    int64_t n_ranges, cost; // cost in nanoseconds, -1: unknown
} rec_call;

typedef struct rec_range {
    uint64_t address;
    int64_t bytes;
    int64_t write; // 0: read
} rec_range;

enum { REC_KERNEL = -1 };

/* Forgets the trace before; calls of the table now go to `inner`. */
const gnn_cuda_api *rec_open(const gnn_cuda_api *inner);
/* Work that the program queued itself. Returns its place in the trace, -1: no memory. */
int64_t rec_kernel(int device, uint64_t stream, const char *name, int64_t n,
                   const rec_range *ranges);
void rec_set_cost(int64_t place, int64_t nanoseconds);

/* The trace so far; valid until the next call of the table. */
int64_t rec_calls(const rec_call **calls);
int64_t rec_ranges(const rec_range **ranges);
const char *rec_name(int64_t index);
/* Calls that could not be written down, for want of memory. */
int64_t rec_lost(void);

#endif

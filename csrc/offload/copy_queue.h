/* copy_queue.h: worker threads that copy between host memory and a far tier, and the
 * tickets that tell when. link_ram and link_file share it.
 *
 * Two lanes, out and in, each first in first out with its own workers, so that a reload
 * never queues behind a write. A copy is cut into chunks: idle workers of the lane help
 * with the oldest copy. A copy that waits for another (a reload of what is still
 * leaving) is overtaken.
 *
 * Threads: every call may come from any thread. The mutex is never held during a copy.
 * After the tables have grown to the most copies alive at once, nothing allocates.
 */
#ifndef GNN_COPY_QUEUE_H
#define GNN_COPY_QUEUE_H

#include "offload/link.h"

typedef struct gnn_chunk {
    bool out;       // near to far
    int worker;     // [0, 2 * threads): picks the worker's own buffers; -1: none
    int64_t offset; // of the chunk in the far tier
    char *near;
    int64_t bytes;
} gnn_chunk;

/* Copies one chunk, blocking; on failure gives its text to gnn_fail. */
typedef gnn_status (*gnn_chunk_fn)(void *context, const gnn_chunk *chunk);

typedef struct gnn_copy {
    bool out;
    bool probe; // a measurement: not counted in the statistics
    gnn_slot slot;
    void *near;
    gnn_ticket after; // starts when this one is done, fails when it failed; 0: at once
} gnn_copy;

typedef struct gnn_copy_queue gnn_copy_queue;

/* Starts `threads` workers per lane. chunk_bytes is a multiple of the tier's
 * alignment. */
gnn_status gnn_copy_queue_open(gnn_chunk_fn fn, void *context, int threads,
                               int64_t chunk_bytes, gnn_copy_queue **queue);
/* Finishes every copy, then ends the workers and frees the queue and its tickets. */
void gnn_copy_queue_close(gnn_copy_queue *queue);

gnn_status gnn_copy_start(gnn_copy_queue *queue, const gnn_copy *copy,
                          gnn_ticket *ticket);
/* Copies in the calling thread, as one chunk of worker -1: for copies that cost less
 * than waking a worker. Returns how the copy ended; it has no ticket. */
gnn_status gnn_copy_now(gnn_copy_queue *queue, const gnn_copy *copy);
/* Waits at most `seconds` (0: polls, negative: for ever). *done, and how the copy
 * ended. */
gnn_status gnn_copy_wait(gnn_copy_queue *queue, gnn_ticket ticket, double seconds,
                         bool *done);
/* Forgets a ticket; a copy under way goes on. */
void gnn_copy_forget(gnn_copy_queue *queue, gnn_ticket ticket);
/* Fills the copy, busy and stall fields. */
void gnn_copy_stats(gnn_copy_queue *queue, gnn_link_stats *stats);

double gnn_seconds(void); // monotonic clock

#endif

/* link.h: a path between two memory tiers, as the offload engine sees it.
 *
 * The near side is addressed by pointers, the far side by slots. A link copies
 * asynchronously and orders its copies against marks (points in time of a compute
 * stream) and tickets (its own earlier copies). link_cuda (device to pinned host)
 * orders streams by events; link_file (RAM to an unnamed spill file) and link_ram (RAM
 * to RAM, for tests) have one compute stream, the host thread, so `mark` is immediate
 * and `order` waits.
 *
 * Threads: every call may come from any thread; a link has its own mutex and never
 * holds it while it waits for a copy. No call touches Python.
 */
#ifndef GNN_LINK_H
#define GNN_LINK_H

#include "gnn.h"

typedef struct gnn_link gnn_link;
typedef uint64_t gnn_stream; // a cudaStream_t as an integer; 0 where the host computes
typedef uint64_t gnn_mark;   // 0: nothing to wait for
typedef uint64_t gnn_ticket; // 0: nothing to wait for

typedef struct gnn_slot {
    int64_t offset; // bytes from the start of the far tier
    int64_t bytes;  // as asked for; the link rounds internally
} gnn_slot;

typedef struct gnn_link_stats {
    int64_t bytes_out, bytes_in; // completed copies
    int64_t copies_out, copies_in;
    double busy_out, busy_in;   // seconds during which a copy was under way
    double stall_out, stall_in; // seconds a compute stream waited in order() or wait()
    int64_t slot_bytes, slot_peak; // far-side bytes in use now, and the most ever
    int64_t tier_bytes;            // far-side bytes reserved (file size, slab size)
    int64_t page_cache; // 1: copies go through the page cache (no direct I/O)
} gnn_link_stats;

typedef struct gnn_link_ops {
    const char *name; // "file", "ram", "cuda"
    /* True: `order` makes a stream wait and the host runs on, `get` may follow a `put`
     * that is under way, and a slot may be given back while copies of it are: what is
     * copied there next comes after them. False: `order` waits like `wait`. */
    bool ordered;

    /* Reserves far-side space. GNN_EFULL when the tier is full (not an error of the
     * caller). */
    gnn_status (*slot_alloc)(gnn_link *link, int64_t bytes, gnn_slot *slot);
    /* Gives far-side space back; no copy of the slot may be under way unless the link
     * is `ordered`. GNN_ESTATE, changing nothing, for a slot that is not in use. */
    gnn_status (*slot_free)(gnn_link *link, gnn_slot slot);

    /* Marks "all work queued on `stream` up to now". Freed by mark_free. Host links:
     * 0. */
    gnn_status (*mark)(gnn_link *link, gnn_stream stream, gnn_mark *mark);
    void (*mark_free)(gnn_link *link, gnn_mark mark);

    /* NULL in host links. *capturing: a graph is captured on the stream, so nothing may
     * be asked, marked or copied now. */
    gnn_status (*capturing)(gnn_link *link, gnn_stream stream, bool *capturing);
    /* A mark that knows its time, and the time between two of them once both have
     * passed (*done); `wait` waits for that. NULL in host links. */
    gnn_status (*clock)(gnn_link *link, gnn_stream stream, gnn_mark *mark);
    gnn_status (*seconds)(gnn_link *link, gnn_mark from, gnn_mark to, bool wait,
                          bool *done, double *seconds);

    /* Starts near[0:slot.bytes) -> slot once `after` has passed. near stays valid
     * and unchanged until the ticket is done. Ticket 0: the copy was made at once. */
    gnn_status (*put)(gnn_link *link, gnn_slot slot, const void *near, gnn_mark after,
                      gnn_ticket *ticket);
    /* Starts slot -> near[0:slot.bytes) once `after` has passed and `after_put` is
     * done. */
    gnn_status (*get)(gnn_link *link, gnn_slot slot, void *near, gnn_mark after,
                      gnn_ticket after_put, gnn_ticket *ticket);

    /* *done tells whether the copy ended; the status tells how (GNN_EIO, GNN_EFULL:
     * a write found no space). Never blocks. */
    gnn_status (*poll)(gnn_link *link, gnn_ticket ticket, bool *done);
    /* Later work on `stream` runs after the copy. Host streams: waits, like `wait`. */
    gnn_status (*order)(gnn_link *link, gnn_ticket ticket, gnn_stream stream);
    /* Blocks the host until the copy ended; call it without the GIL. Returns how it
     * ended. */
    gnn_status (*wait)(gnn_link *link, gnn_ticket ticket);
    /* Blocks for at most `seconds`, so that signals can be looked at in between. */
    gnn_status (*wait_for)(gnn_link *link, gnn_ticket ticket, double seconds,
                           bool *done);
    /* Forgets a ticket (0: nothing). A copy under way goes on and still needs
     * `near`. */
    void (*ticket_free)(gnn_link *link, gnn_ticket ticket);

    void (*stats)(gnn_link *link, gnn_link_stats *stats);
    /* Measured rates in bytes per second: writes `bytes` of probe data twice, the
     * second time counts (steady state overwrites), then reads them; less where that
     * would take over 0.7 seconds each. Needs the space in the tier; not counted in
     * the statistics. Blocks. */
    gnn_status (*measure)(gnn_link *link, int64_t bytes, double *rate_out,
                          double *rate_in);
    /* Waits for copies under way, then frees everything. */
    void (*close)(gnn_link *link);
} gnn_link_ops;

struct gnn_link {
    const gnn_link_ops *ops; // first member of every link
};

/* After a fork the child's calls return GNN_ESTATE: the worker threads and the file
 * position of every slot belong to the parent. `close` in the child only releases
 * memory and descriptors. */

/* A RAM-to-RAM link for tests and benchmarks; `limit` far-side bytes at most,
 * `threads` workers per direction. */
gnn_status gnn_link_ram_open(int64_t limit, int threads, gnn_link **link);

/* Controls of the RAM link, for tests. Hold: copies start but do not end until it is
 * lifted (close lifts it). Fail: of the copies' chunks (1 MiB) in that direction,
 * counted from now, the nth (1: the next) fails with `status`; 0 disarms. */
void gnn_link_ram_hold(gnn_link *link, bool hold);
void gnn_link_ram_fail(gnn_link *link, bool out, int64_t nth, gnn_status status);

/* RAM to an unnamed file in `directory`; `limit` bytes at most (0: always full). The
 * file holds activations, that is training data, unencrypted; no name leads to it
 * and it goes with the last descriptor. GNN_EIO naming the directory when it is
 * missing, unwritable, not a directory, or memory-backed (tmpfs, ramfs) unless
 * allow_memory_backed. */
typedef struct gnn_link_file_options {
    const char *directory;
    int64_t limit;
    int threads; // I/O workers per direction; 0: chosen
    bool allow_memory_backed;
    bool direct; // use direct I/O where the file system takes it
} gnn_link_file_options;
gnn_status gnn_link_file_open(const gnn_link_file_options *options, gnn_link **link);
/* "ext4", and whether copies bypass the page cache, which a trial at opening has
 * shown. */
void gnn_link_file_info(gnn_link *link, const char **file_system, bool *direct);

/* Device memory to page-locked host memory on the device's nearest CPU node, over a
 * table of CUDA calls that outlives the link; `limit` bytes at most. One stream each
 * way; the host waits in `wait`, `wait_for` and `close` only. After a fault of the
 * device every wait returns GNN_EDEVICE, and close still frees everything. */
struct gnn_cuda_api;
typedef struct gnn_link_cuda_options {
    const struct gnn_cuda_api *api;
    int device;
    int64_t limit;
} gnn_link_cuda_options;
gnn_status gnn_link_cuda_open(const gnn_link_cuda_options *options, gnn_link **link);

#endif

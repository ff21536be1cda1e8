/* engine.h: the policy of activation offload, as plain data. No Python, no torch.
 *
 * A write-back cache over saved tensors. A block is one storage at one version, owning
 * the union of the byte ranges saved of it. The engine never touches a tensor: it
 * decides, and returns actions (test an owner, wait, drop, allocate) that its caller
 * carries out and answers. The caller's lock (the GIL) is the engine's lock; every call
 * leaves the engine in a complete state, so that whatever the caller does for an action
 * may call in again.
 *
 *     pack:   gnn_engine_find | gnn_engine_add, gnn_engine_save, then settle
 *     unpack: gnn_engine_touch, gnn_engine_fetch until NONE, gnn_engine_ahead until
 *     NONE, settle
 *     settle: gnn_engine_next until NONE
 *     dealloc of a saved tensor: gnn_engine_release
 *
 * Identity: a storage's address is a key only while the engine holds an owner of that
 * storage, so an address that is used again can never hit. A source is dropped only
 * when the engine is its only owner and its version has not moved; then it dies at once
 * and nobody can change it.
 *
 * What is held, each block in exactly one account:
 *     RESIDENT <= budget, OUTWARD <= out_window, INWARD <= in_window (one block always
 *     fits),
 *     OWNED (somebody else holds the storage too: copying it would free nothing),
 *     KEPT (the far tier is full or failed).
 */
#ifndef GNN_ENGINE_H
#define GNN_ENGINE_H

#include "link.h"

typedef struct gnn_engine gnn_engine;
typedef struct gnn_block gnn_block;
typedef struct gnn_pass gnn_pass;

typedef enum gnn_account {
    GNN_NOWHERE, // nothing near is held: out, or poisoned
    GNN_RESIDENT,
    GNN_OUTWARD,
    GNN_INWARD,
    GNN_OWNED,
    GNN_KEPT,
    GNN_ACCOUNT_COUNT
} gnn_account;

/* Why a saved tensor is not the engine's business. */
#define GNN_SKIP_MAP(X)                                                                \
    X(GNN_SKIP_SMALL, "small")         /* below min_bytes */                           \
    X(GNN_SKIP_PARAMETER, "parameter") /* or a view of one */                          \
    X(GNN_SKIP_CAST, "parameter_cast") /* a parameter in another dtype, by autocast */ \
    X(GNN_SKIP_TYPE, "subclass")                                                       \
    X(GNN_SKIP_LAYOUT, "layout") /* sparse, meta, functorch wrapper, no storage */     \
    X(GNN_SKIP_DEVICE, "device") /* no lane for it */                                  \
    X(GNN_SKIP_BITS, "conj_or_neg")                                                    \
    X(GNN_SKIP_ALIAS, "alias")     /* another version counter over the same storage */ \
    X(GNN_SKIP_KEEP, "keep")       /* inside go.keep() */                              \
    X(GNN_SKIP_CAPTURE, "capture") /* while a CUDA graph is captured */

#define GNN_SKIP_ENUM(name, text) name,
typedef enum gnn_skip { GNN_SKIP_MAP(GNN_SKIP_ENUM) GNN_SKIP_COUNT } gnn_skip;
#undef GNN_SKIP_ENUM

/* Counters of one pass, all int64. */
#define GNN_COUNTER_MAP(X)                                                             \
    X(saves)       /* saved tensors seen */                                            \
    X(saved_bytes) /* their extents */                                                 \
    X(blocks)      /* different storages of at least min_bytes */                      \
    X(block_bytes)                                                                     \
    X(deduplicated) /* saves that found their block */                                 \
    X(deduplicated_bytes)                                                              \
    X(copies_out) /* begun; the failed ones are counted below too */                   \
    X(bytes_out)                                                                       \
    X(copies_in)                                                                       \
    X(bytes_in)                                                                        \
    X(prefetched)    /* of copies_in, those begun ahead */                             \
    X(late)          /* unpacks that waited for a copy */                              \
    X(forwarded)     /* unpacks served by a source still on its way out */             \
    X(dropped_clean) /* evictions that needed no copy */                               \
    X(owned)         /* blocks met at eviction that somebody else holds */             \
    X(owned_bytes)                                                                     \
    X(full) /* blocks kept: far tier full */                                           \
    X(full_bytes)                                                                      \
    X(failed_writes)                                                                   \
    X(failed_reads)                                                                    \
    X(poisoned)         /* blocks changed in place after they were saved */            \
    X(prefetch_dropped) /* prefetches that found no memory */                          \
    X(other_stream)     /* unpacks on another stream than the reload's */              \
    X(peak_held)        /* most bytes in all accounts */                               \
    X(peak_counted)     /* most bytes in RESIDENT, OUTWARD and INWARD */               \
    X(peak_out)         /* most far-side bytes of live blocks */                       \
    X(over_budget)      /* most bytes over budget and windows after settling */        \
    X(checkpoint_saves) /* region inputs of torch.utils.checkpoint seen */             \
    X(checkpoint_bytes)

#define GNN_SIZE_CLASSES 48 // class c counts saved tensors of [2^c, 2^(c+1)) bytes

typedef struct gnn_pass_stats {
#define GNN_COUNTER_FIELD(name) int64_t name;
    GNN_COUNTER_MAP(GNN_COUNTER_FIELD)
#undef GNN_COUNTER_FIELD
    int64_t skipped[GNN_SKIP_COUNT], skipped_bytes[GNN_SKIP_COUNT];
    int64_t class_saves[GNN_SIZE_CLASSES], class_bytes[GNN_SIZE_CLASSES];
    double stall_out, stall_in; // seconds the host or a compute stream waited for one
    double busy_out, busy_in;   // seconds the link was copying while the pass lived
    double forward_seconds, backward_seconds; // entry to exit; first unpack to the end
    int64_t budget, out_window, in_window;
    int64_t number; // 1, 2, ...
} gnn_pass_stats;

typedef struct gnn_engine_options {
    gnn_link *link; // the engine closes it
    int64_t budget, out_window, in_window;
} gnn_engine_options;

/* One thing to do. `owner` is the caller's own reference. The block of a TEST, WAIT or
 * ALLOCATE is pinned until it is answered, which must happen; gnn_engine_next follows
 * gnn_engine_tested. */
typedef enum gnn_action_kind {
    GNN_ACT_NONE,
    GNN_ACT_TEST,     // is `owner` the only owner, at its version? gnn_engine_tested
    GNN_ACT_WAIT,     // wait for `ticket` without the lock; gnn_engine_waited
    GNN_ACT_DROP,     // give up `owner`; no answer, the engine has forgotten it
    GNN_ACT_ALLOCATE, // near memory for `bytes`; gnn_engine_allocated
} gnn_action_kind;

typedef struct gnn_action {
    gnn_action_kind kind;
    gnn_block *block;
    void *owner;
    gnn_ticket ticket;
    int64_t bytes;
    uintptr_t address; // ALLOCATE: the source's, whose alignment the copy should share
    uintptr_t storage; // TEST: the owner's key
    int64_t version;   // TEST: what the version was
    bool ahead;        // ALLOCATE: a prefetch, which may fail quietly
} gnn_action;

typedef enum gnn_verdict { GNN_FREE, GNN_STILL_OWNED, GNN_CHANGED } gnn_verdict;

/* One saved tensor's hold on its block. */
typedef struct gnn_use {
    gnn_pass *pass;
    gnn_block *block;
    int32_t position; // of the block in the pass
} gnn_use;

double gnn_now(void); // seconds on a clock that never goes back

/* ---------------------------------------------------------------- engine and passes */

gnn_status gnn_engine_open(const gnn_engine_options *options, gnn_engine **engine);
/* WAIT for a copy that is still under way, NONE when there is none: before
 * gnn_engine_shut. */
void gnn_engine_drain(gnn_engine *engine, gnn_action *action);
/* Waits for every copy and closes the link. Blocks that are out can no longer be
 * fetched (GNN_ESTATE); what is near stays usable. Call without a lock that a link
 * thread could need. */
void gnn_engine_shut(gnn_engine *engine);
/* Forgets the link without touching it: a forked child does not own its threads and
 * locks. */
void gnn_engine_abandon(gnn_engine *engine);
void gnn_engine_free(gnn_engine *engine);      // after the last release and pass end
gnn_link *gnn_engine_link(gnn_engine *engine); // NULL once shut
void gnn_engine_set_budget(gnn_engine *engine, int64_t budget);
int64_t gnn_engine_budget(const gnn_engine *engine);
int64_t gnn_engine_bytes(const gnn_engine *engine, gnn_account account);
int64_t gnn_engine_live_blocks(const gnn_engine *engine);
int64_t gnn_engine_live_passes(const gnn_engine *engine);

/* `stream` here and below: the compute stream of the moment; 0 for host links. */
gnn_status gnn_pass_begin(gnn_engine *engine, gnn_stream stream, gnn_pass **pass);
/* The context was left. The pass is finished when its last use is released too; its
 * counters then go to the history and `pass` is gone. */
void gnn_pass_end(gnn_engine *engine, gnn_pass *pass, gnn_stream stream);
gnn_pass_stats *gnn_pass_counters(gnn_pass *pass);
/* Finished passes, oldest first; false when there is none left. A pass over an ordered
 * link is finished when the device is done with it: `wait` waits for that. */
bool gnn_engine_take_finished(gnn_engine *engine, bool wait, gnn_pass_stats *stats);
/* The compute streams seen so far (0: they do not matter, as for host links): whatever
 * owner is given up, its allocator must know that they have used it. */
int32_t gnn_engine_streams(const gnn_engine *engine, const gnn_stream **streams);
/* True while a graph is captured on the stream: then call nothing that could ask, mark
 * or copy, which is everything but find, release and gnn_block_is_settled. */
bool gnn_engine_is_captured(gnn_engine *engine, gnn_stream stream);
/* The text of the first failure to move something out since the last call, or NULL. */
const char *gnn_engine_take_warning(gnn_engine *engine);

/* ----------------------------------------------------------------------------- pack */

/* The block that holds an owner of this storage, or NULL. */
gnn_block *gnn_engine_find(gnn_engine *engine, uintptr_t storage);
/* A new resident block.
 *   storage  key of the storage     base, bytes  its memory     version  at the save
 *   owner    the caller's reference to it; comes back by DROP or release
 *   stream   where the saved values are ready once its queued work has run */
gnn_status gnn_engine_add(gnn_engine *engine, gnn_pass *pass, uintptr_t storage,
                          void *base, int64_t bytes, int64_t version, gnn_stream stream,
                          void *owner, gnn_block **block);
/* Bytes [lo, hi) of the block's storage were saved in this pass. */
gnn_status gnn_engine_save(gnn_engine *engine, gnn_pass *pass, gnn_block *block,
                           int64_t lo, int64_t hi, gnn_use *use);
/* The saved tensor died. Returns an owner to give up, or NULL. */
void *gnn_engine_release(gnn_engine *engine, gnn_use *use);

void *gnn_block_owner(const gnn_block *block); // NULL: out or poisoned
/* What the caller wants to find again in an ALLOCATE; the engine never looks at it. */
void gnn_block_set_note(gnn_block *block, void *note);
void *gnn_block_note(const gnn_block *block);
char *gnn_block_base(const gnn_block *block);      // address of the storage's byte 0
int32_t gnn_block_reloads(const gnn_block *block); // 0: the owner is the source
/* Was the owner saved or allocated on this stream? */
bool gnn_block_is_home(const gnn_block *block, gnn_stream stream);
/* Can its owner be used without anything being asked, ordered or copied? */
bool gnn_block_is_settled(const gnn_block *block);
int64_t gnn_block_version(const gnn_block *block);
/* -1, or the version that an in-place change left it at. */
int64_t gnn_block_changed(const gnn_block *block);
/* An in-place change was seen at `version`. Only unpack of its saves will raise; the
 * owner, if any, comes back to be given up. */
void *gnn_engine_poison(gnn_engine *engine, gnn_block *block, int64_t version);

/* --------------------------------------------------------------------------- settle */

/* The next thing that the budget and the windows ask for. GNN_EFULL and GNN_EIO report
 * a block that could not leave (once each; it is KEPT); call again to go on. */
gnn_status gnn_engine_next(gnn_engine *engine, gnn_action *action);
/* Owners may have changed since the last save: settle looks at owned blocks again. */
void gnn_engine_refresh(gnn_engine *engine);
/* `version` is what the owner is at now (for GNN_CHANGED). */
void gnn_engine_tested(gnn_engine *engine, gnn_block *block, gnn_verdict verdict,
                       int64_t version);
/* done: the copy ended, with `status`; false: interrupted. `seconds` were spent
 * waiting. */
void gnn_engine_waited(gnn_engine *engine, gnn_block *block, bool done,
                       gnn_status status, double seconds);

/* --------------------------------------------------------------------------- unpack */

/* An unpack of this use begins: the observed order learns of it. */
void gnn_engine_touch(gnn_engine *engine, const gnn_use *use, gnn_stream stream);
/* What is missing until the block is near for `stream`; NONE: gnn_block_owner is valid.
 * GNN_EIO or GNN_EDEVICE when its bytes cannot be read back, GNN_ESTATE when it is
 * poisoned or the engine is shut. */
gnn_status gnn_engine_fetch(gnn_engine *engine, const gnn_use *use, gnn_stream stream,
                            gnn_action *action);
/* The next prefetch that fits the inward window. */
void gnn_engine_ahead(gnn_engine *engine, const gnn_use *use, gnn_action *action);
/* Answers ALLOCATE: near memory at `address` for action.bytes, `held` bytes in all, or
 * owner NULL. *taken false: not needed any more, the caller keeps its owner. */
gnn_status gnn_engine_allocated(gnn_engine *engine, const gnn_action *action,
                                uintptr_t storage, void *address, int64_t held,
                                int64_t version, gnn_stream stream, void *owner,
                                bool *taken);

#endif

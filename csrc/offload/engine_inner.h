/* engine_inner.h: what engine.c (copies, budget), engine_block.c (blocks, saves) and
 * engine_order.c (passes, order, prefetch) share. Nobody else includes it. */
#ifndef GNN_ENGINE_INNER_H
#define GNN_ENGINE_INNER_H

#include "engine.h"

enum { GNN_AT_BEGIN, GNN_AT_LEFT, GNN_AT_UNPACK, GNN_AT_END, GNN_CLOCKS };

#define GNN_LEARNED 8   // sequence lengths whose unpack order is remembered
#define GNN_HISTORY 256 // finished passes kept for the report
#define GNN_STREAMS 80  // compute streams remembered; torch has 65 of a device
#define GNN_RETESTS 16  // owned blocks that one settle looks at again

typedef enum gnn_block_state {
    GNN_NEAR, // the values are in `owner`; with a slot it is clean, without it dirty
    GNN_LEAVING,
    GNN_OUT,
    GNN_RETURNING,
    GNN_POISONED,
} gnn_block_state;

struct gnn_block {
    gnn_block *prev, *next; // in the list of its account
    gnn_block *chain;       // in its bucket of the storage table
    gnn_account account;
    gnn_block_state state;
    uintptr_t storage; // key; 0 when not in the table
    void *owner, *note;
    char *base; // address of byte 0 of the storage as first saved; moves with a reload
    int64_t lo, hi;  // union of the saved ranges
    int64_t held;    // near bytes that `owner` keeps alive
    int64_t version; // of `owner`
    int64_t changed; // version seen after an in-place change, or -1
    gnn_slot slot;   // holds [lo, hi), or what that was when it was made
    bool has_slot;
    gnn_mark ready;
    gnn_ticket ticket;
    gnn_ticket left, back; // copies that streams wait for and the host knows not to end
    gnn_stream home;       // where its owner was saved or allocated
    gnn_stream back_stream; // the stream that waits for `back`
    int32_t uses, pins, reloads;
    uint64_t tested_at;  // tick of the last ownership test
    gnn_pass *last_pass; // where it was saved last
    int32_t last_position;
    bool counted_owned;
    char *error; // why it cannot be read back
    gnn_status error_status;
};

typedef struct gnn_entry {
    gnn_block *block; // NULL when no use of this pass is left
    int32_t uses;
    bool touched;
} gnn_entry;

typedef struct gnn_learned {
    int32_t n;
    uint64_t used_at;
    int32_t *order, *rank; // order[i]: position unpacked i-th; rank[order[i]] = i
} gnn_learned;

struct gnn_pass {
    gnn_pass *older, *newer; // passes alive
    gnn_entry *entries;      // blocks in the order of their first save
    int32_t n, capacity;
    int32_t *observed; // positions in the order of their first unpack
    int32_t n_observed;
    int32_t scan, last_rank; // prefetch goes on at predicted index `scan`
    int64_t live;            // uses
    bool left, unpacked;
    double begin_at, left_at, unpack_at;
    gnn_mark clocks[GNN_CLOCKS]; // the same and the end on the compute stream
    gnn_link_stats link_at_begin;
    gnn_pass_stats stats;
};

typedef struct gnn_block_list {
    gnn_block *head, *tail;
    int64_t bytes;
} gnn_block_list;

struct gnn_engine {
    gnn_link *link;
    int64_t budget, out_window, in_window;
    gnn_block_list lists[GNN_ACCOUNT_COUNT];
    gnn_block **table; // by storage
    int64_t n_buckets, n_keys;
    int64_t n_blocks, n_passes;
    int64_t dead_inward; // blocks without uses whose copy in is still under way
    void **drops;        // owners to give up at the next action
    int64_t n_drops, drops_capacity;
    int64_t out_bytes;   // far-side bytes of live blocks
    int64_t n_waiters;   // callers inside a WAIT
    gnn_block *approved; // tested free, and nothing happened since
    uint64_t tick;
    int32_t retests;   // left in this settle
    gnn_stream stream; // the compute stream seen last
    gnn_stream seen[GNN_STREAMS];
    int32_t n_seen;
    bool several_streams;
    gnn_pass *newest;
    gnn_pass *ending;     // finished, oldest first, whose clocks have not all passed
    gnn_pass *active;     // what counters go to
    gnn_pass_stats spare; // counters when no pass is active
    int64_t pass_number;
    gnn_learned learned[GNN_LEARNED];
    gnn_pass_stats *history; // ring of GNN_HISTORY
    int64_t history_begin, history_n;
    char warning[512];
    bool warned, warning_new;
};

/* engine_block.c */
void gnn_block_move(gnn_engine *engine, gnn_block *block, gnn_account account,
                    int64_t held, bool at_head); // held: what its owner now keeps alive
void gnn_block_set_key(gnn_engine *engine, gnn_block *block, uintptr_t storage);
void gnn_block_free_slot(gnn_engine *engine, gnn_block *block);
/* Leaves the far-side place unused from now on. */
void gnn_block_retire_slot(gnn_engine *engine, gnn_block *block);
void gnn_block_free_ticket(gnn_engine *engine, gnn_block *block);
void gnn_block_free_ready(gnn_engine *engine, gnn_block *block);
/* From here on its storage's address is nobody's key. */
void *gnn_block_take_owner(gnn_engine *engine, gnn_block *block);
/* Ends a block without uses if nothing holds it up. Returns its owner. */
void *gnn_block_end(gnn_engine *engine, gnn_block *block);
bool gnn_block_is_copying(const gnn_block *block);
bool gnn_block_is_covered(const gnn_block *block); // by its slot
void gnn_engine_drop_later(gnn_engine *engine, void *owner);
void gnn_engine_note_peaks(gnn_engine *engine);

/* engine_copies.c */
gnn_action gnn_act(gnn_action_kind kind, gnn_block *block);
gnn_action gnn_act_pinned(gnn_action_kind kind, gnn_block *block);
gnn_action gnn_act_wait(gnn_engine *engine, gnn_block *block);
bool gnn_engine_take_drop(gnn_engine *engine, gnn_action *action);
/* The caller answered. False: the block's story ended meanwhile, or others hold it. */
bool gnn_engine_unpin(gnn_engine *engine, gnn_block *block);
void gnn_engine_warn(gnn_engine *engine); // keeps gnn_message() for the caller, once
/* Its bytes can no longer come back: unpack says why. */
void gnn_block_lose(gnn_block *block, gnn_status status, const char *why);
void gnn_engine_finish_put(gnn_engine *engine, gnn_block *block, gnn_status status);
void gnn_engine_finish_get(gnn_engine *engine, gnn_block *block, gnn_status status);
void gnn_engine_reap(gnn_engine *engine); // copies that have ended, without waiting
bool gnn_engine_is_ordered(const gnn_engine *engine);
void gnn_engine_see(gnn_engine *engine, gnn_stream stream);
/* The copy under way is ordered before later work of the compute stream. */
gnn_status gnn_engine_order_put(gnn_engine *engine, gnn_block *block);
void gnn_engine_order_get(gnn_engine *engine, gnn_block *block, gnn_stream stream);
/* A copy of a block that is near or out and that the host does not know to have ended,
 * or 0. */
gnn_ticket gnn_block_pending(gnn_engine *engine, gnn_block *block);
void gnn_block_forget_copies(gnn_engine *engine, gnn_block *block);

/* engine_order.c */
gnn_pass_stats *gnn_active_stats(gnn_engine *engine);
void gnn_pass_release(gnn_engine *engine, gnn_pass *pass, int32_t position);
void gnn_pass_free_all(gnn_engine *engine);

#endif

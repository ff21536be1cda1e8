/* engine.c: the engine's life, the ends of copies, and the policy: gnn_engine_next
 * decides what leaves, gnn_engine_fetch what comes back. The contract is in engine.h.
 */
#include "engine_inner.h"
#include "mutants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------- engine life */

gnn_status gnn_engine_open(const gnn_engine_options *options, gnn_engine **engine) {
    gnn_engine *e = calloc(1, sizeof *e);
    gnn_block **table = calloc(64, sizeof *table);
    gnn_pass_stats *history = calloc(GNN_HISTORY, sizeof *history);
    void **drops = calloc(64, sizeof *drops);
    if (!e || !table || !history || !drops) {
        free(e), free(table), free(history), free(drops);
        return gnn_fail(GNN_ENOMEM, "offload: no memory for the engine");
    }
    e->link = options->link;
    e->budget = options->budget;
    e->out_window = options->out_window;
    e->in_window = options->in_window;
    e->table = table;
    e->n_buckets = 64;
    e->history = history;
    e->drops = drops;
    e->drops_capacity = 64;
    *engine = e;
    return GNN_OK;
}

void gnn_engine_drain(gnn_engine *e, gnn_action *action) {
    *action = (gnn_action){.kind = GNN_ACT_NONE};
    for (gnn_account account = GNN_OUTWARD; account <= GNN_INWARD; account++) {
        for (gnn_block *b = e->lists[account].head; b && e->link; b = b->next) {
            if (gnn_block_is_copying(b)) {
                *action = gnn_act_wait(e, b);
                return;
            }
        }
    }
}

void gnn_engine_shut(gnn_engine *e) {
    gnn_link *link = e->link;
    if (!link) {
        return;
    }
    for (gnn_account account = GNN_OUTWARD; account <= GNN_INWARD; account++) {
        for (gnn_block *b = e->lists[account].head, *next; b; b = next) {
            next = b->next;
            if (b->state == GNN_LEAVING) {
                gnn_engine_finish_put(e, b, link->ops->wait(link, b->ticket));
            } else if (b->state == GNN_RETURNING) {
                gnn_engine_finish_get(e, b, link->ops->wait(link, b->ticket));
            }
        }
    }
    for (gnn_block *b = e->lists[GNN_NOWHERE].head; b; b = b->next) {
        gnn_block_lose(b, GNN_EIO,
                       "offload: the engine was shut down while this tensor was out");
    }
    e->link = NULL;
    if (e->n_waiters ==
        0) { // else a thread is still inside the link: the process ends with it
        link->ops->close(link);
    }
}

void gnn_engine_abandon(gnn_engine *e) {
    e->link = NULL;
    for (int account = 0; account < GNN_ACCOUNT_COUNT; account++) {
        for (gnn_block *b = e->lists[account].head; b; b = b->next) {
            b->pins = 0;
            b->left = b->back = 0;
            if (b->state != GNN_NEAR && b->state != GNN_LEAVING) {
                gnn_block_lose(b, GNN_EIO,
                               "offload: this tensor was saved in the parent process");
            }
            b->state = gnn_block_is_copying(b) ? GNN_NEAR : b->state;
        }
    }
}

void gnn_engine_free(gnn_engine *e) {
    gnn_engine_shut(e);
    gnn_pass_free_all(e);
    free(e->table);
    free(e->history);
    free(e->drops);
    free(e);
}

gnn_link *gnn_engine_link(gnn_engine *e) {
    return e->link;
}

void gnn_engine_set_budget(gnn_engine *e, int64_t budget) {
    e->budget = budget;
}

int64_t gnn_engine_budget(const gnn_engine *e) {
    return e->budget;
}

int64_t gnn_engine_bytes(const gnn_engine *e, gnn_account account) {
    return e->lists[account].bytes;
}

int64_t gnn_engine_live_blocks(const gnn_engine *e) {
    return e->n_blocks;
}

int64_t gnn_engine_live_passes(const gnn_engine *e) {
    return e->n_passes;
}

const char *gnn_engine_take_warning(gnn_engine *e) {
    bool is_new = e->warning_new;
    e->warning_new = false;
    return is_new ? e->warning : NULL;
}

/* --------------------------------------------------------------------------- settle */

/* Gives up the owner of a block whose bytes are on the far side. */
static void drop_clean(gnn_engine *e, gnn_block *b, gnn_action *action) {
    gnn_active_stats(e)->dropped_clean++;
    b->state = GNN_OUT;
    *action = (gnn_action){.kind = GNN_ACT_DROP, .owner = gnn_block_take_owner(e, b)};
}

/* The head of the queue may go: a clean block by dropping it, a dirty one by a copy. */
static gnn_status evict(gnn_engine *e, gnn_block *b, gnn_action *action) {
    gnn_link *link = e->link;
    gnn_pass_stats *stats = gnn_active_stats(e);
    if (b->has_slot) {
        gnn_ticket pending = e->several_streams ? gnn_block_pending(e, b) : 0;
        if (pending) { // nobody knows which stream its memory goes back to
            *action = gnn_act_wait(e, b);
            action->ticket = pending;
        } else {
            drop_clean(e, b, action);
        }
        return GNN_OK;
    }
    const gnn_block_list *outward = &e->lists[GNN_OUTWARD];
    if (outward->head && outward->bytes + b->held > e->out_window) {
        // Oldest first; b is tested again afterwards.
        if (gnn_engine_is_ordered(e) && !e->several_streams) {
            return gnn_engine_order_put(e, outward->head);
        }
        *action = gnn_act_wait(e, outward->head);
        return GNN_OK;
    }
    gnn_status status = link->ops->slot_alloc(link, b->hi - b->lo, &b->slot);
    double begin = gnn_now();
    if (status == GNN_OK) {
        b->has_slot = true;
        e->out_bytes += b->slot.bytes;
        status = link->ops->put(link, b->slot, b->base + b->lo, b->ready, &b->ticket);
    }
    if (status != GNN_OK) {
        gnn_block_free_slot(e, b);
        stats->full++;
        stats->full_bytes += b->held;
        gnn_engine_warn(e);
        gnn_block_move(e, b, GNN_KEPT, b->held, false);
        return status;
    }
    stats->copies_out++;
    stats->bytes_out += b->slot.bytes;
    gnn_engine_note_peaks(e);
    if (b->ticket) {
        b->state = GNN_LEAVING;
        gnn_block_move(e, b, GNN_OUTWARD, b->held, false);
    } else { // made at once: the test that approved b still holds
        stats->stall_out += gnn_now() - begin;
        gnn_block_free_ready(e, b);
        drop_clean(e, b, action);
    }
    return GNN_OK;
}

void gnn_engine_refresh(gnn_engine *e) {
    e->tick++;
    e->retests = GNN_RETESTS;
}

gnn_status gnn_engine_next(gnn_engine *e, gnn_action *action) {
    gnn_block *approved = e->approved;
    e->approved = NULL;
    *action = (gnn_action){.kind = GNN_ACT_NONE};
    if (approved && e->link && e->lists[GNN_RESIDENT].bytes > e->budget) {
        GNN_TRY(evict(e, approved, action));
    }
    if (action->kind != GNN_ACT_NONE || gnn_engine_take_drop(e, action) || !e->link) {
        return GNN_OK;
    }
    gnn_engine_reap(e);
    while (!gnn_engine_take_drop(e, action)) {
        gnn_block *owned = e->lists[GNN_OWNED].head;
        gnn_block *oldest = e->lists[GNN_RESIDENT].head;
        gnn_block *candidate = NULL;
        if (owned && owned->tested_at != e->tick && e->retests > 0) {
            e->retests--;
            candidate = owned;
        } else if (oldest && e->lists[GNN_RESIDENT].bytes > e->budget) {
            candidate = oldest;
        } else {
            break;
        }
        if (candidate->pins > 0) { // pinned: as good as owned
            candidate->tested_at = e->tick;
            gnn_block_move(e, candidate, GNN_OWNED, candidate->held, false);
        } else {
            *action = gnn_act_pinned(GNN_ACT_TEST, candidate);
            return GNN_OK;
        }
    }
    if (action->kind == GNN_ACT_NONE) {
        gnn_pass_stats *stats = gnn_active_stats(e);
        int64_t over = e->lists[GNN_RESIDENT].bytes - e->budget;
        stats->over_budget = over > stats->over_budget ? over : stats->over_budget;
    }
    return GNN_OK;
}

void gnn_engine_tested(gnn_engine *e, gnn_block *b, gnn_verdict verdict,
                       int64_t version) {
    gnn_pass_stats *stats = gnn_active_stats(e);
    b->tested_at = e->tick;
    if (!gnn_engine_unpin(e, b) || b->state != GNN_NEAR || b->pins > 0) {
        return; // things moved on
    }
    if (verdict == GNN_CHANGED) {
        gnn_engine_drop_later(e, gnn_engine_poison(e, b, version));
    } else if (verdict == GNN_STILL_OWNED) {
        if (!b->counted_owned) {
            b->counted_owned = true;
            stats->owned++;
            stats->owned_bytes += b->held;
        }
        gnn_block_move(e, b, GNN_OWNED, b->held, false);
    } else {
        if (b->account == GNN_OWNED) { // free meanwhile: the oldest again
            gnn_block_move(e, b, GNN_RESIDENT, b->held, true);
        }
        e->approved = b; // gnn_engine_next, called next, evicts it if it must go
    }
}

/* --------------------------------------------------------------------------- unpack */

gnn_status gnn_engine_fetch(gnn_engine *e, const gnn_use *use, gnn_stream stream,
                            gnn_action *action) {
    gnn_block *b = use->block;
    gnn_engine_see(e, stream);
    e->approved = NULL;
    *action = gnn_act(GNN_ACT_NONE, b);
    if (gnn_engine_take_drop(e, action)) {
        return GNN_OK;
    }
    if (b->state == GNN_RETURNING && e->link) {
        bool done = false;
        gnn_status status = e->link->ops->poll(e->link, b->ticket, &done);
        bool under_way =
            GNN_MUTANT(fetch_does_not_wait, !done && status == GNN_OK, false);
        if (under_way && !gnn_engine_is_ordered(e)) {
            gnn_active_stats(e)->late++;
            *action = gnn_act_wait(e, b);
            return GNN_OK;
        }
        if (under_way) {
            gnn_engine_order_get(e, b, stream);
        } else {
            gnn_engine_finish_get(e, b, status);
        }
        if (gnn_engine_take_drop(e, action)) {
            return GNN_OK;
        }
    }
    GNN_REQUIRE(b->changed < 0, GNN_ESTATE,
                "offload: changed in place after it was saved");
    GNN_REQUIRE(!b->error, b->error_status, "%s", b->error);
    switch (b->state) {
    case GNN_OUT:
        *action = gnn_act_pinned(GNN_ACT_ALLOCATE, b);
        return GNN_OK;
    case GNN_LEAVING:
        gnn_active_stats(e)->forwarded++;
        return GNN_OK;
    case GNN_NEAR:
        if (b->back && b->back_stream != stream && gnn_block_pending(e, b)) {
            GNN_TRY(e->link->ops->order(e->link, b->back, stream));
            b->back_stream = stream;
        }
        // fall through
    default: // near: clean and used, it is the first to go again
        if (b->account == GNN_INWARD) {
            gnn_block_move(e, b, GNN_RESIDENT, b->held, true);
        }
        return GNN_OK;
    }
}

gnn_status gnn_engine_allocated(gnn_engine *e, const gnn_action *action,
                                uintptr_t storage, void *address, int64_t held,
                                int64_t version, gnn_stream stream, void *owner,
                                bool *taken) {
    gnn_block *b = action->block;
    gnn_link *link = e->link;
    *taken = false;
    if (!gnn_engine_unpin(e, b)) {
        return GNN_OK;
    }
    if (!owner) {
        gnn_active_stats(e)->prefetch_dropped += action->ahead;
        return GNN_OK;
    }
    if (b->state != GNN_OUT || b->error || !link) {
        return GNN_OK;
    }
    gnn_engine_see(e, stream);
    gnn_mark room =
        0; // the target's memory is free once the stream's queued work has run
    GNN_TRY(link->ops->mark(link, stream, &room));
    double begin = gnn_now();
    gnn_status status =
        link->ops->get(link, b->slot, address, room, b->left, &b->ticket);
    if (room) {
        link->ops->mark_free(link, room);
    }
    GNN_TRY(status);
    gnn_block_forget_copies(e, b); // later copies in follow this one
    *taken = true;
    b->home = stream;
    b->state = b->ticket ? GNN_RETURNING : GNN_NEAR; // 0: made at once
    b->owner = owner;
    b->base = (char *)address - b->lo;
    b->version = version;
    b->reloads++;
    gnn_block_move(e, b, GNN_INWARD, held, false);
    gnn_block_set_key(e, b, storage);
    gnn_pass_stats *stats = gnn_active_stats(e);
    stats->copies_in++;
    stats->bytes_in += b->slot.bytes;
    stats->prefetched += action->ahead;
    stats->stall_in += b->ticket ? 0 : gnn_now() - begin;
    gnn_engine_note_peaks(e);
    return GNN_OK;
}

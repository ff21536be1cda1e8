/* engine_copies.c: actions, and the ends of copies.
 *
 * A copy ends in one of two ways. The host learns that it has ended (a poll, a wait):
 * then everything later comes after it. Or, over an ordered link, the compute stream is
 * made to wait for it (gnn_engine_order): then what that stream does later comes after
 * it, memory freed to that stream included, and the host has waited for nothing. The
 * ticket of such a copy stays with its block, as `left` or `back`, until the host knows.
 *
 * Giving up a source to the caching allocator is giving it to the stream it was
 * allocated on, which nobody tells us and which need not be a compute stream (a loader's
 * brought the batch). So the caller tells the allocator of every compute stream seen
 * when it gives up an owner; on the owner's own stream that is nothing. And the second
 * way is for an engine that has seen one compute stream only; with several a source
 * goes when the host knows.
 */
#include "engine_inner.h"
#include "mutants.h"

#include <stdio.h>
#include <string.h>

/* -------------------------------------------------------------------------- actions */

gnn_action gnn_act(gnn_action_kind kind, gnn_block *b) {
    return (gnn_action){.kind = kind, .block = b, .owner = b ? b->owner : NULL};
}

/* A pinned block outlives whatever the caller's Python calls set off. */
gnn_action gnn_act_pinned(gnn_action_kind kind, gnn_block *b) {
    gnn_action action = gnn_act(kind, b);
    action.bytes = b->hi - b->lo;
    action.address = (uintptr_t)(b->base + b->lo);
    action.storage = b->storage;
    action.version = b->version;
    action.ticket = b->ticket;
    b->pins++;
    return action;
}

gnn_action gnn_act_wait(gnn_engine *e, gnn_block *b) {
    e->n_waiters++;
    return gnn_act_pinned(GNN_ACT_WAIT, b);
}

/* A block whose bytes can no longer come back says so at unpack. */
void gnn_block_lose(gnn_block *b, gnn_status status, const char *why) {
    if (!b->error) {
        b->error = strdup(why);
        b->error_status = status == GNN_EDEVICE ? GNN_EDEVICE : GNN_EIO;
    }
}

/* --------------------------------------------------------------------- copies ended */

void gnn_engine_warn(gnn_engine *e) {
    if (!e->warned) {
        snprintf(e->warning, sizeof e->warning, "%s", gnn_message());
        e->warned = e->warning_new = true;
    }
}

void gnn_engine_finish_put(gnn_engine *e, gnn_block *b, gnn_status status) {
    gnn_pass_stats *stats = gnn_active_stats(e);
    gnn_block_free_ready(e, b);
    b->state = GNN_NEAR;
    if (status != GNN_OK) {
        stats->failed_writes++;
        gnn_engine_warn(e);
        if (status == GNN_EIO) { // the next tenant would meet the same bad place
            GNN_MUTANT(bad_place_used_again, gnn_block_retire_slot(e, b),
                       gnn_block_free_slot(e, b));
        } else {
            gnn_block_free_slot(e, b);
        }
    }
    gnn_block_free_ticket(e, b);
    if (b->uses == 0) {
        gnn_block_move(e, b, GNN_RESIDENT, b->held, true);
        gnn_engine_drop_later(e, gnn_block_end(e, b));
    } else if (GNN_MUTANT(changed_while_leaving, b->changed >= 0, false)) {
        b->state = GNN_POISONED;
        gnn_block_free_slot(e, b);
        gnn_engine_drop_later(e, gnn_block_take_owner(e, b));
    } else if (status != GNN_OK) {
        stats->full++;
        stats->full_bytes += b->held;
        gnn_block_move(e, b, GNN_KEPT, b->held, false);
    } else {
        bool clean = gnn_block_is_covered(b);
        if (!clean) {
            gnn_block_free_slot(e, b);
        }
        gnn_block_move(e, b, GNN_RESIDENT, b->held, clean);
    }
}

void gnn_engine_finish_get(gnn_engine *e, gnn_block *b, gnn_status status) {
    gnn_pass_stats *stats = gnn_active_stats(e);
    if (status == GNN_OK) {
        b->state = GNN_NEAR;
    } else {
        b->state = GNN_OUT;
        stats->failed_reads++;
        GNN_MUTANT(failed_read_unsaid, gnn_block_lose(b, status, gnn_message()), );
        gnn_engine_drop_later(e, gnn_block_take_owner(e, b));
    }
    gnn_block_free_ticket(e, b);
    if (b->uses == 0) {
        e->dead_inward--;
        gnn_engine_drop_later(e, gnn_block_end(e, b));
    }
}

bool gnn_engine_take_drop(gnn_engine *e, gnn_action *action) {
    if (e->n_drops == 0) {
        return false;
    }
    *action = (gnn_action){.kind = GNN_ACT_DROP, .owner = e->drops[--e->n_drops]};
    return true;
}

/* The caller answered. False: the block's story ended meanwhile, or others still hold
 * it. */
bool gnn_engine_unpin(gnn_engine *e, gnn_block *b) {
    b->pins--;
    if (!gnn_block_is_copying(b)) {
        gnn_block_free_ticket(e, b);
    }
    bool alive = b->uses > 0;
    gnn_engine_drop_later(e, gnn_block_end(e, b));
    return alive;
}

void gnn_engine_waited(gnn_engine *e, gnn_block *b, bool done, gnn_status status,
                       double seconds) {
    e->n_waiters--;
    gnn_pass_stats *stats = gnn_active_stats(e);
    if (b->state == GNN_LEAVING || b->account == GNN_RESIDENT) {
        stats->stall_out += seconds;
    } else {
        stats->stall_in += seconds;
    }
    if (done && b->state == GNN_LEAVING) {
        gnn_engine_finish_put(e, b, status);
    } else if (done && b->state == GNN_RETURNING) {
        gnn_engine_finish_get(e, b, status);
    } // else interrupted, or another waiter saw the end
    gnn_engine_unpin(e, b);
}

/* Looks at copies that may have ended, without waiting. */
void gnn_engine_reap(gnn_engine *e) {
    bool done = true;
    for (gnn_block *b; done && (b = e->lists[GNN_OUTWARD].head);) {
        gnn_status status = e->link->ops->poll(e->link, b->ticket, &done);
        if (done || status != GNN_OK) {
            gnn_engine_finish_put(e, b, status);
            done = true;
        }
    }
    for (gnn_block *b = e->lists[GNN_INWARD].head, *next; b && e->dead_inward;
         b = next) {
        next = b->next;
        if (b->uses == 0 && b->state == GNN_RETURNING) {
            gnn_status status = e->link->ops->poll(e->link, b->ticket, &done);
            if (done || status != GNN_OK) {
                gnn_engine_finish_get(e, b, status);
            }
        }
    }
}

/* -------------------------------------------------------------------- ordered links */

bool gnn_engine_is_ordered(const gnn_engine *e) {
    return e->link && e->link->ops->ordered;
}

bool gnn_engine_is_captured(gnn_engine *e, gnn_stream stream) {
    bool captured = false;
    if (e->link && e->link->ops->capturing) {
        // A question that fails is no answer: the next call to the device says why.
        if (e->link->ops->capturing(e->link, stream, &captured) != GNN_OK) {
            return false;
        }
    }
    return captured;
}

void gnn_engine_see(gnn_engine *e, gnn_stream stream) {
    e->stream = stream;
    for (int32_t s = e->n_seen; s-- > 0;) {
        if (e->seen[s] == stream) {
            return;
        }
    }
    e->several_streams = e->n_seen > 0;
    e->seen[e->n_seen < GNN_STREAMS ? e->n_seen++ : GNN_STREAMS - 1] = stream;
}

int32_t gnn_engine_streams(const gnn_engine *e, const gnn_stream **streams) {
    *streams = e->seen;
    return gnn_engine_is_ordered(e) ? e->n_seen : 0;
}

gnn_status gnn_engine_order_put(gnn_engine *e, gnn_block *b) {
    gnn_status status = e->link->ops->order(e->link, b->ticket, e->stream);
    b->left = b->ticket;
    b->ticket = 0;
    gnn_engine_finish_put(e, b, status);
    return status;
}

void gnn_engine_order_get(gnn_engine *e, gnn_block *b, gnn_stream stream) {
    gnn_status status = e->link->ops->order(e->link, b->ticket, stream);
    b->back = b->ticket;
    b->ticket = 0;
    b->back_stream = stream;
    gnn_engine_finish_get(e, b, status);
}

static void forget(gnn_engine *e, gnn_ticket *ticket) {
    if (*ticket && e->link) {
        e->link->ops->ticket_free(e->link, *ticket);
    }
    *ticket = 0;
}

void gnn_block_forget_copies(gnn_engine *e, gnn_block *b) {
    forget(e, &b->left);
    forget(e, &b->back);
}

gnn_ticket gnn_block_pending(gnn_engine *e, gnn_block *b) {
    gnn_ticket *const tickets[] = {&b->left, &b->back};
    for (int t = 0; t < 2; t++) {
        bool done = false;
        if (*tickets[t] && e->link) {
            gnn_status status = e->link->ops->poll(e->link, *tickets[t], &done);
            if (!done && status == GNN_OK) {
                return *tickets[t];
            }
        }
        forget(e, tickets[t]);
    }
    return 0;
}

/* engine_block.c: what a block is made of: its account, its key, its slot, its owner,
 * its uses.
 *
 * Each block is in one account, which is also a list. RESIDENT is the eviction queue
 * (oldest first; what unpack has just used goes to its head, because dropping it again
 * is free), OUTWARD the copies under way in issue order, INWARD what was fetched and
 * not yet used.
 */
#include "engine_inner.h"
#include "mutants.h"

#include <stdlib.h>

/* ----------------------------------------------------------------------- accounting */

static void unlink_block(gnn_engine *e, gnn_block *b) {
    gnn_block_list *list = &e->lists[b->account];
    *(b->prev ? &b->prev->next : &list->head) = b->next;
    *(b->next ? &b->next->prev : &list->tail) = b->prev;
    list->bytes -= b->held;
    b->prev = b->next = NULL;
}

/* Puts b at the head or tail of an account; held is what its owner now keeps alive. */
void gnn_block_move(gnn_engine *e, gnn_block *b, gnn_account account, int64_t held,
                    bool at_head) {
    unlink_block(e, b);
    gnn_block_list *list = &e->lists[account];
    b->account = account;
    b->held = held;
    if (at_head) {
        b->next = list->head;
        *(list->head ? &list->head->prev : &list->tail) = b;
        list->head = b;
    } else {
        b->prev = list->tail;
        *(list->tail ? &list->tail->next : &list->head) = b;
        list->tail = b;
    }
    list->bytes += held;
}

void gnn_engine_note_peaks(gnn_engine *e) {
    gnn_pass_stats *stats = gnn_active_stats(e);
    const gnn_block_list *lists = e->lists;
    int64_t counted =
        lists[GNN_RESIDENT].bytes + lists[GNN_OUTWARD].bytes + lists[GNN_INWARD].bytes;
    int64_t held = counted + lists[GNN_OWNED].bytes + lists[GNN_KEPT].bytes;
    stats->peak_counted = counted > stats->peak_counted ? counted : stats->peak_counted;
    stats->peak_held = held > stats->peak_held ? held : stats->peak_held;
    stats->peak_out = e->out_bytes > stats->peak_out ? e->out_bytes : stats->peak_out;
}

/* -------------------------------------------------------------------- storage table */

static gnn_block **bucket_of(gnn_engine *e, uintptr_t storage) {
    uint64_t hash = (uint64_t)storage * 0x9E3779B97F4A7C15u;
    return &e->table[(hash >> 20) & (uint64_t)(e->n_buckets - 1)];
}

static gnn_status grow_table(gnn_engine *e) {
    int64_t n_old = e->n_buckets;
    gnn_block **old = e->table;
    gnn_block **table = calloc((size_t)(2 * n_old), sizeof *table);
    GNN_REQUIRE(table, GNN_ENOMEM, "offload: no memory for the table of storages");
    e->table = table;
    e->n_buckets = 2 * n_old;
    for (int64_t i = 0; i < n_old; i++) {
        for (gnn_block *b = old[i], *next; b; b = next) {
            next = b->chain;
            gnn_block **bucket = bucket_of(e, b->storage);
            b->chain = *bucket;
            *bucket = b;
        }
    }
    free(old);
    return GNN_OK;
}

void gnn_block_set_key(gnn_engine *e, gnn_block *b, uintptr_t storage) {
    b->storage = storage;
    gnn_block **bucket = bucket_of(e, storage);
    b->chain = *bucket;
    *bucket = b;
    e->n_keys++;
}

static void clear_key(gnn_engine *e, gnn_block *b) {
    if (b->storage == 0) {
        return;
    }
    for (gnn_block **link = bucket_of(e, b->storage); *link; link = &(*link)->chain) {
        if (*link == b) {
            *link = b->chain;
            break;
        }
    }
    b->storage = 0;
    e->n_keys--;
}

gnn_block *gnn_engine_find(gnn_engine *e, uintptr_t storage) {
    gnn_block *b = *bucket_of(e, storage);
    while (b && b->storage != storage) {
        b = b->chain;
    }
    return b;
}

/* -------------------------------------------------------------- slots, owners, ends */

void gnn_block_retire_slot(gnn_engine *e, gnn_block *b) {
    if (b->has_slot) {
        e->out_bytes -= b->slot.bytes;
        b->has_slot = false;
    }
}

void gnn_block_free_slot(gnn_engine *e, gnn_block *b) {
    bool had_slot = b->has_slot;
    gnn_block_retire_slot(e, b);
    if (had_slot && e->link) {
        e->link->ops->slot_free(e->link, b->slot);
    }
}

void gnn_block_free_ticket(gnn_engine *e, gnn_block *b) {
    if (b->ticket && b->pins == 0) { // else the last waiter does
        if (e->link) {
            e->link->ops->ticket_free(e->link, b->ticket);
        }
        b->ticket = 0;
    }
}

void gnn_block_free_ready(gnn_engine *e, gnn_block *b) {
    if (b->ready && e->link) {
        e->link->ops->mark_free(e->link, b->ready);
    }
    b->ready = 0;
}

/* Takes the owner away: from here on its storage's address is nobody's key. */
void *gnn_block_take_owner(gnn_engine *e, gnn_block *b) {
    void *owner = b->owner;
    b->owner = NULL;
    GNN_MUTANT(stale_key, clear_key(e, b), );
    gnn_block_move(e, b, GNN_NOWHERE, 0, false);
    return owner;
}

void gnn_engine_drop_later(gnn_engine *e, void *owner) {
    if (owner) {
        e->drops[e->n_drops++] = owner; // gnn_engine_add reserved the place
    }
}

static void free_block(gnn_engine *e, gnn_block *b) {
    e->approved = e->approved == b ? NULL : e->approved;
    gnn_block_free_ticket(e, b);
    gnn_block_forget_copies(e, b);
    gnn_block_free_ready(e, b);
    gnn_block_free_slot(e, b);
    unlink_block(e, b);
    free(b->error);
    free(b);
    e->n_blocks--;
}

bool gnn_block_is_copying(const gnn_block *b) {
    return b->state == GNN_LEAVING || b->state == GNN_RETURNING;
}

/* Ends a block without uses if nothing holds it up. Returns its owner. */
void *gnn_block_end(gnn_engine *e, gnn_block *b) {
    if (b->uses > 0 || b->pins > 0 ||
        GNN_MUTANT(slot_freed_early, gnn_block_is_copying(b), false)) {
        return NULL;
    }
    void *owner = gnn_block_take_owner(e, b);
    free_block(e, b);
    return owner;
}

/* ----------------------------------------------------------------------------- pack */

gnn_status gnn_engine_add(gnn_engine *e, gnn_pass *pass, uintptr_t storage, void *base,
                          int64_t bytes, int64_t version, gnn_stream stream,
                          void *owner, gnn_block **block) {
    e->active = pass;
    if (e->n_keys >= e->n_buckets) {
        GNN_TRY(grow_table(e));
    }
    if (e->n_drops + 2 * (e->n_blocks + 1) > e->drops_capacity) {
        int64_t capacity = 2 * (e->n_drops + 2 * (e->n_blocks + 1));
        void **drops = realloc(e->drops, (size_t)capacity * sizeof *drops);
        GNN_REQUIRE(drops, GNN_ENOMEM, "offload: no memory for %lld blocks",
                    (long long)e->n_blocks);
        e->drops = drops;
        e->drops_capacity = capacity;
    }
    gnn_block *b = calloc(1, sizeof *b);
    GNN_REQUIRE(b, GNN_ENOMEM, "offload: no memory for a block");
    b->owner = owner;
    b->base = base;
    b->version = version;
    b->changed = -1;
    b->home = stream;
    gnn_engine_see(e, stream);
    if (e->link) {
        // Recorded here, on the saving stream: at the copy's issue another one may be
        // current.
        gnn_status status = e->link->ops->mark(e->link, stream, &b->ready);
        if (status != GNN_OK) {
            free(b);
            return status;
        }
    }
    b->next = e->lists[GNN_NOWHERE].head; // a list to move from
    *(b->next ? &b->next->prev : &e->lists[GNN_NOWHERE].tail) = b;
    e->lists[GNN_NOWHERE].head = b;
    gnn_block_move(e, b, GNN_RESIDENT, bytes, false);
    gnn_block_set_key(e, b, storage);
    e->n_blocks++;
    pass->stats.blocks++;
    pass->stats.block_bytes += bytes;
    gnn_engine_note_peaks(e);
    *block = b;
    return GNN_OK;
}

/* The slot was made for the union of its time, and the union only grows. */
bool gnn_block_is_covered(const gnn_block *b) {
    return b->slot.bytes == b->hi - b->lo;
}

/* The saved range grew over what the slot holds: the block is dirty again. While a copy
 * is under way finish_put sees to it. */
static void widen(gnn_engine *e, gnn_block *b, int64_t lo, int64_t hi) {
    bool first = b->hi == 0 && b->lo == 0;
    b->lo = first || lo < b->lo ? lo : b->lo;
    b->hi = first || hi > b->hi ? hi : b->hi;
    if (b->state == GNN_NEAR && b->has_slot && !gnn_block_is_covered(b)) {
        gnn_block_free_slot(e, b);
    }
}

gnn_status gnn_engine_save(gnn_engine *e, gnn_pass *pass, gnn_block *b, int64_t lo,
                           int64_t hi, gnn_use *use) {
    e->active = pass;
    gnn_engine_refresh(e);
    if (b->uses > 0) {
        pass->stats.deduplicated++;
        pass->stats.deduplicated_bytes += hi - lo;
    }
    gnn_status status = GNN_OK;
    if (b->last_pass != pass) {
        if (pass->n == pass->capacity) {
            int32_t capacity = pass->capacity ? 2 * pass->capacity : 64;
            size_t n = (size_t)capacity;
            gnn_entry *entries = realloc(pass->entries, n * sizeof *entries);
            pass->entries = entries ? entries : pass->entries;
            int32_t *observed = realloc(pass->observed, n * sizeof *observed);
            pass->observed = observed ? observed : pass->observed;
            if (!entries || !observed) {
                status = gnn_fail(GNN_ENOMEM, "offload: no memory for a pass of %lld",
                                  (long long)capacity);
                gnn_engine_drop_later(e, gnn_block_end(e, b));
                return status;
            }
            pass->capacity = capacity;
        }
        pass->entries[pass->n] = (gnn_entry){.block = b};
        b->last_pass = pass;
        b->last_position = pass->n++;
    }
    widen(e, b, lo, hi);
    *use = (gnn_use){.pass = pass, .block = b, .position = b->last_position};
    b->uses++;
    pass->entries[use->position].uses++;
    pass->live++;
    return GNN_OK;
}

void *gnn_engine_release(gnn_engine *e, gnn_use *use) {
    gnn_block *b = use->block;
    gnn_pass *pass = use->pass;
    if (pass->entries[use->position].uses == 1 && b->last_pass == pass) {
        b->last_pass = NULL;
    }
    b->uses--;
    if (b->uses == 0 && b->state == GNN_RETURNING) {
        e->dead_inward++;
    }
    // The end of a copy that only a stream waits for: its source goes by a DROP.
    bool copied = b->left && b->reloads == 0;
    void *owner = gnn_block_end(e, b);
    if (copied) {
        gnn_engine_drop_later(e, owner);
        owner = NULL;
    }
    gnn_pass_release(e, pass, use->position);
    use->block = NULL;
    use->pass = NULL;
    return owner;
}

void *gnn_block_owner(const gnn_block *b) {
    return b->owner;
}

void gnn_block_set_note(gnn_block *b, void *note) {
    b->note = note;
}

void *gnn_block_note(const gnn_block *b) {
    return b->note;
}

char *gnn_block_base(const gnn_block *b) {
    return b->base;
}

int32_t gnn_block_reloads(const gnn_block *b) {
    return b->reloads;
}

bool gnn_block_is_home(const gnn_block *b, gnn_stream stream) {
    return b->home == stream;
}

bool gnn_block_is_settled(const gnn_block *b) {
    return b->owner && b->changed < 0 &&
           (b->state == GNN_LEAVING || (b->state == GNN_NEAR && !b->back));
}

int64_t gnn_block_version(const gnn_block *b) {
    return b->version;
}

int64_t gnn_block_changed(const gnn_block *b) {
    return b->changed;
}

void *gnn_engine_poison(gnn_engine *e, gnn_block *b, int64_t version) {
    if (b->changed < 0) {
        gnn_active_stats(e)->poisoned++;
    }
    b->changed = version;
    if (b->state == GNN_LEAVING) {
        return NULL; // the copy reads the source until it ends; finish_put gives it up
    }
    if (b->state == GNN_NEAR) {
        b->state = GNN_POISONED;
        gnn_block_free_slot(e, b);
        return gnn_block_take_owner(e, b);
    }
    return NULL;
}

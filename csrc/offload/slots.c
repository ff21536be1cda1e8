/* slots.c: best fit over an array of holes sorted by offset. A tier with n live
 * slots has at most n + 1 holes, so room for the next hole is made when a slot is
 * taken and giving one back cannot fail. */
#include "offload/slots.h"

#include <stdlib.h>
#include <string.h>

void gnn_slots_init(gnn_slots *slots, int64_t limit, int64_t align) {
    *slots = (gnn_slots){.align = align, .limit = limit & ~(align - 1)};
}

void gnn_slots_clear(gnn_slots *slots) {
    free(slots->holes);
    slots->holes = NULL;
    slots->n_holes = slots->capacity = 0;
}

int64_t gnn_slots_round(const gnn_slots *slots, int64_t bytes) {
    return (bytes + slots->align - 1) & ~(slots->align - 1);
}

static gnn_status make_room(gnn_slots *slots) {
    int64_t wanted =
        slots->n_live + 3; // holes after this take and its growth, and one more
    if (wanted <= slots->capacity) {
        return GNN_OK;
    }
    int64_t capacity = wanted > 2 * slots->capacity ? wanted : 2 * slots->capacity;
    gnn_hole *holes = realloc(slots->holes, (size_t)capacity * sizeof *holes);
    GNN_REQUIRE(holes, GNN_ENOMEM, "link: no memory for %lld holes",
                (long long)capacity);
    slots->holes = holes;
    slots->capacity = capacity;
    return GNN_OK;
}

static void remove_hole(gnn_slots *slots, int64_t at) {
    slots->n_holes--;
    memmove(slots->holes + at, slots->holes + at + 1,
            (size_t)(slots->n_holes - at) * sizeof *slots->holes);
}

gnn_status gnn_slots_take(gnn_slots *slots, int64_t bytes, int64_t *offset) {
    int64_t wanted = gnn_slots_round(slots, bytes), best = -1;
    *offset = -1;
    GNN_TRY(make_room(slots));
    for (int64_t h = 0; h < slots->n_holes; h++) {
        int64_t size = slots->holes[h].bytes;
        if (size >= wanted && (best < 0 || size < slots->holes[best].bytes)) {
            best = h;
        }
    }
    if (best < 0) {
        return GNN_OK;
    }
    gnn_hole *hole = &slots->holes[best];
    *offset = hole->offset;
    hole->offset += wanted;
    hole->bytes -= wanted;
    if (hole->bytes == 0) {
        remove_hole(slots, best);
    }
    slots->n_live++;
    slots->used += wanted;
    slots->peak = slots->used > slots->peak ? slots->used : slots->peak;
    return GNN_OK;
}

int64_t gnn_slots_end_for(const gnn_slots *slots, int64_t bytes) {
    int64_t end = slots->end;
    if (slots->n_holes) {
        const gnn_hole *last = &slots->holes[slots->n_holes - 1];
        if (last->offset + last->bytes == slots->end) {
            end = last->offset;
        }
    }
    return end + gnn_slots_round(slots, bytes);
}

void gnn_slots_grow(gnn_slots *slots, int64_t end) {
    int64_t added = end - slots->end;
    gnn_hole *last = slots->n_holes ? &slots->holes[slots->n_holes - 1] : NULL;
    if (last && last->offset + last->bytes == slots->end) {
        last->bytes += added;
    } else {
        slots->holes[slots->n_holes++] = (gnn_hole){slots->end, added};
    }
    slots->end = end;
}

gnn_status gnn_slots_give(gnn_slots *slots, int64_t offset, int64_t bytes) {
    int64_t size = gnn_slots_round(slots, bytes), low = 0, high = slots->n_holes;
    while (low < high) { // the first hole at or behind offset
        int64_t middle = low + (high - low) / 2;
        if (slots->holes[middle].offset < offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    gnn_hole *left = low > 0 ? &slots->holes[low - 1] : NULL;
    gnn_hole *right = low < slots->n_holes ? &slots->holes[low] : NULL;
    int64_t floor = left ? left->offset + left->bytes : 0;
    int64_t ceiling = right ? right->offset : slots->end;
    GNN_REQUIRE(bytes > 0 && offset % slots->align == 0 && offset >= floor &&
                    size <= ceiling - offset,
                GNN_ESTATE, "link: slot at %lld of %lld bytes is not in use",
                (long long)offset, (long long)bytes);
    bool joins_left = left && floor == offset;
    bool joins_right = right && offset + size == ceiling;
    if (joins_left && joins_right) {
        left->bytes += size + right->bytes;
        remove_hole(slots, low);
    } else if (joins_left) {
        left->bytes += size;
    } else if (joins_right) {
        right->offset = offset;
        right->bytes += size;
    } else {
        memmove(slots->holes + low + 1, slots->holes + low,
                (size_t)(slots->n_holes - low) * sizeof *slots->holes);
        slots->holes[low] = (gnn_hole){offset, size};
        slots->n_holes++;
    }
    slots->n_live--;
    slots->used -= size;
    return GNN_OK;
}

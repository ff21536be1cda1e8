/* test_link_slots.c: the slot table against a slow map of single units; the
 * high-water of a steady workload. */
#include "link_checks.h"
#include "offload/slots.h"

enum { ALIGN = 64, UNITS = 512, LIVE = 96 };

typedef struct live {
    int64_t offset, bytes;
} live;

static char map[2 * UNITS]; // the oracle: 1 where a unit of ALIGN bytes is in use

/* The size of the smallest run of free units below `end` that holds `units`; 0:
 * none. */
static int64_t best_run(int64_t end, int64_t units) {
    int64_t best = 0, run = 0;
    for (int64_t u = 0; u <= end; u++) {
        if (u < end && !map[u]) {
            run++;
            continue;
        }
        if (run >= units && (best == 0 || run < best)) {
            best = run;
        }
        run = 0;
    }
    return best;
}

static int64_t run_at(int64_t unit, int64_t end) {
    int64_t run = 0;
    while (unit + run < end && !map[unit + run]) {
        run++;
    }
    return run;
}

static int64_t take(gnn_slots *slots, int64_t bytes) {
    int64_t units = (bytes + ALIGN - 1) / ALIGN, offset;
    int64_t best = best_run(slots->end / ALIGN, units);
    CHECK(gnn_slots_take(slots, bytes, &offset) == GNN_OK);
    CHECK((offset >= 0) == (best > 0));
    if (offset < 0) {
        int64_t end = gnn_slots_end_for(slots, bytes);
        CHECK(end > slots->end && best_run(end / ALIGN, units) == units);
        if (end > slots->limit) {
            return -1;
        }
        gnn_slots_grow(slots, end);
        CHECK(gnn_slots_take(slots, bytes, &offset) == GNN_OK && offset >= 0);
        best = units;
    }
    CHECK(offset % ALIGN == 0 && offset + units * ALIGN <= slots->end);
    CHECK(run_at(offset / ALIGN, slots->end / ALIGN) ==
          best); // the best fit, from its start
    memset(map + offset / ALIGN, 1, (size_t)units);
    return offset;
}

static void give(gnn_slots *slots, live slot) {
    CHECK(gnn_slots_give(slots, slot.offset, slot.bytes) == GNN_OK);
    memset(map + slot.offset / ALIGN, 0, (size_t)((slot.bytes + ALIGN - 1) / ALIGN));
    int64_t used = slots->used, holes = slots->n_holes;
    CHECK(gnn_slots_give(slots, slot.offset, slot.bytes) == GNN_ESTATE);
    CHECK(slots->used == used && slots->n_holes == holes);
}

static void test_random(unsigned seed) {
    gnn_slots slots;
    live taken[LIVE];
    int64_t n = 0, full = 0;
    memset(map, 0, sizeof map);
    gnn_slots_init(&slots, UNITS * ALIGN + 5, ALIGN);
    for (int step = 0; step < 4000; step++) {
        if (n < LIVE && rand_r(&seed) % 100 < 55) {
            int64_t bytes = 1 + rand_r(&seed) % (step % 7 ? 400 : 4000);
            int64_t offset = take(&slots, bytes);
            full += offset < 0;
            if (offset >= 0) {
                taken[n++] = (live){offset, bytes};
            }
        } else if (n > 0) {
            int64_t at = rand_r(&seed) % n;
            give(&slots, taken[at]);
            taken[at] = taken[--n];
        }
        int64_t used = 0;
        for (int u = 0; u < UNITS; u++) {
            used += map[u];
        }
        CHECK(slots.used == used * ALIGN && slots.n_live == n);
    }
    CHECK(full > 0); // the limit was met
    while (n > 0) {
        give(&slots, taken[--n]);
    }
    CHECK(slots.used == 0 && slots.n_holes == 1 && slots.holes[0].bytes == slots.end);
    gnn_slots_clear(&slots);
}

static void test_wrong_gives(void) {
    gnn_slots slots;
    int64_t offset;
    gnn_slots_init(&slots, 1024, ALIGN);
    CHECK(gnn_slots_give(&slots, 0, 64) == GNN_ESTATE);
    CHECK(gnn_slots_take(&slots, 640, &offset) == GNN_OK && offset == -1);
    gnn_slots_grow(&slots, 640);
    CHECK(gnn_slots_take(&slots, 640, &offset) == GNN_OK && offset == 0);
    CHECK(gnn_slots_give(&slots, 32, 64) == GNN_ESTATE);  // not at a boundary
    CHECK(gnn_slots_give(&slots, 0, 641) == GNN_ESTATE);  // longer than the tier
    CHECK(gnn_slots_give(&slots, 0, 0) == GNN_ESTATE);    // nothing
    CHECK(gnn_slots_give(&slots, -64, 64) == GNN_ESTATE); // before it
    CHECK(gnn_slots_give(&slots, 0, 640) == GNN_OK);
    gnn_slots_clear(&slots);
}

/* Passes of the same sizes, freed in reverse as a backward does, two of them
 * overlapping by half: after the first two the tier grows no more. */
static void test_steady(void) {
    gnn_slots slots;
    live passes[2][40];
    int64_t settled = 0;
    memset(map, 0, sizeof map);
    gnn_slots_init(&slots, UNITS * ALIGN, ALIGN);
    for (int pass = 0; pass < 50; pass++) {
        live *mine = passes[pass % 2], *last = passes[(pass + 1) % 2];
        for (int s = 0; s < 40; s++) {
            mine[s].bytes = ALIGN * (1 + s * 7 % 5);
            if (pass > 0 && s >= 20) { // the last pass's backward runs meanwhile
                give(&slots, last[59 - s]);
            }
            mine[s].offset = take(&slots, mine[s].bytes);
            CHECK(mine[s].offset >= 0);
        }
        for (int s = 39; s >= 20; s--) {
            give(&slots, mine[s]);
        }
        settled = pass == 2 ? slots.end : settled;
    }
    CHECK(slots.end == settled);
    CHECK(20 * slots.end <= 21 * slots.peak);
    gnn_slots_clear(&slots);
}

int main(void) {
    for (unsigned seed = 1; seed <= 20; seed++) {
        test_random(seed);
    }
    test_wrong_gives();
    test_steady();
    printf("test_link_slots: ok\n");
    return 0;
}

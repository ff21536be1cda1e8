/* isa.c: picks the best variant the machine has, once, or the one the user forces. */
#include "cpu/isa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ISA_TEXT(name, text, has) text,
static const char *const texts[] = {GNN_ISA_MAP(ISA_TEXT)};

static atomic_int chosen = GNN_ISA_COUNT; // GNN_ISA_COUNT: not yet

static bool machine_has(gnn_isa isa) {
#define ISA_HAS(name, text, has) has,
    const bool table[] = {GNN_ISA_MAP(ISA_HAS)};
    return table[isa];
}

static gnn_status pick(gnn_isa *isa) {
    const char *forced = getenv("GNNOFFLOAD_ISA");
    const bool any = forced == NULL || forced[0] == '\0';
    for (int i = 0; i < GNN_ISA_COUNT; i++) {
        if (machine_has((gnn_isa)i) && (any || strcmp(forced, texts[i]) == 0)) {
            *isa = (gnn_isa)i;
            return GNN_OK;
        }
    }
    char have[64] = "";
    for (int i = 0; i < GNN_ISA_COUNT; i++) {
        if (machine_has((gnn_isa)i)) {
            strcat(have, have[0] == '\0' ? "" : ", ");
            strcat(have, texts[i]);
        }
    }
    return gnn_fail(GNN_EINVAL, "GNNOFFLOAD_ISA: must be one of %s here, got %s", have,
                    forced);
}

gnn_status gnn_isa_get(gnn_isa *isa) {
    const int now = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (now != GNN_ISA_COUNT) {
        *isa = (gnn_isa)now;
        return GNN_OK;
    }
    GNN_TRY(pick(isa));
    atomic_store_explicit(&chosen, (int)*isa, memory_order_relaxed);
    return GNN_OK;
}

gnn_status gnn_isa_set(gnn_isa isa) {
    GNN_REQUIRE((unsigned)isa < GNN_ISA_COUNT && machine_has(isa), GNN_ENOTSUP,
                "isa: must be one this machine has, got %s", gnn_isa_name(isa));
    atomic_store_explicit(&chosen, (int)isa, memory_order_relaxed);
    return GNN_OK;
}

const char *gnn_isa_name(gnn_isa isa) {
    return (unsigned)isa < GNN_ISA_COUNT ? texts[isa] : "unknown";
}

const char *gnn_isa_text(void) {
    gnn_isa isa;
    return gnn_isa_get(&isa) == GNN_OK ? texts[isa] : "none";
}

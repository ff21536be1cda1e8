/* test_offload_schedules.c: the policy engine under random schedules. law: 4 6 7 9 */
#include "engine_rig.h"

/* Random saves, shared tensors, owners that come and go, unpacks in any order, releases at any
 * time, copies that end at any time: values, windows and leaks are checked throughout. */
static void test_random_schedules(unsigned first_seed) {
    seed = first_seed;
    int64_t budget = (int64_t)draw(6) * BYTES, window = (int64_t)draw(4) * BYTES;
    open_engine(budget, window, window);
    link_now->instant = false;
    link_now->chance = 1 + draw(4);
    link_now->at_once = draw(3) == 0;
    link_now->limit = (int64_t)(8 + draw(60)) * BYTES;
    for (int round = 0; round < 6; round++) {
        gnn_pass *passes[2] = {begin(), begin()};
        gnn_use uses[MANY];
        int values[MANY], n = 0;
        bool alive[MANY];
        for (int i = 0; i < MANY; i++) {
            tensor *shared =
                n > 0 && alive[n - 1] ? gnn_block_owner(uses[n - 1].block) : NULL;
            bool again =
                shared && gnn_block_reloads(uses[n - 1].block) == 0 && draw(4) == 0;
            tensor *t = again ? shared : make_tensor(values[n] = 1 + (int)draw(200));
            values[n] = again ? values[n - 1] : values[n];
            t->owned = draw(3) == 0;
            uses[n] = save(passes[draw(2)], t);
            alive[n++] = true;
            int64_t one = window > BYTES ? window : BYTES;
            CHECK(held(GNN_RESIDENT) <= budget && held(GNN_OUTWARD) <= one);
            tensor *other = gnn_block_owner(uses[draw((unsigned)n)].block);
            if (other) {
                other->owned = false;
            }
            int k = (int)draw((unsigned)n);
            if (draw(5) == 0 && alive[k]) {
                CHECK(unpack(&uses[k]) == values[k]);
            }
        }
        gnn_pass_end(engine, passes[0], 0), gnn_pass_end(engine, passes[1], 0);
        for (int left = n; left > 0;) {
            int k = draw(2) ? left - 1 : (int)draw((unsigned)n);
            while (!alive[k]) {
                k = (k + 1) % n;
            }
            CHECK(unpack(&uses[k]) == values[k]);
            if (draw(3)) {
                release(&uses[k]);
                alive[k] = false;
                left--;
            }
        }
    }
    close_engine();
}

int main(void) {
    const char *asked = getenv("GNN_TEST_SEEDS");
    const unsigned seeds = asked ? (unsigned)atoi(asked) : 300;
    for (unsigned s = 1; s <= seeds; s++) {
        test_random_schedules(s);
    }
    printf("test_offload_schedules: %u random schedules\n", seeds);
    return 0;
}

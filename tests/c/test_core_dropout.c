/* test_core_dropout.c: Philox against its authors' known answers (Random123's kat_vectors),
 * and what dropout makes of it. */
#include "core/philox.h"
#include "gnn.h"

#include <math.h>
#include <stdio.h>

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                     \
            return 1;                                                                  \
        }                                                                              \
    } while (0)

static const struct {
    uint64_t key, low, high;
    uint32_t words[4];
} KNOWN[] = {
    {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {UINT64_MAX,
     UINT64_MAX,
     UINT64_MAX,
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {0x299f31d0a4093822,
     0x85a308d3243f6a88,
     0x0370734413198a2e,
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static int known_answers(void) {
    for (size_t i = 0; i < sizeof KNOWN / sizeof KNOWN[0]; i++) {
        const gnn_philox w =
            gnn_philox_words(KNOWN[i].key, KNOWN[i].low, KNOWN[i].high);
        const uint32_t got[4] = {w.w0, w.w1, w.w2, w.w3};
        for (int k = 0; k < 4; k++) {
            CHECK(got[k] == KNOWN[i].words[k]);
        }
        // four heads share a counter, the next four have the next one
        for (int k = 0; k < 4; k++) {
            const int64_t head = (int64_t)(KNOWN[i].high * 4 + (uint64_t)k);
            CHECK(KNOWN[i].high > INT64_MAX / 4 ||
                  gnn_dropout_word(KNOWN[i].key, (int64_t)KNOWN[i].low, head) ==
                      got[k]);
        }
    }
    return 0;
}

/* Kept with probability 1 - p: within ten standard deviations, for edges, for heads and
 * for pairs of neighbours. */
static int frequencies(void) {
    enum { N = 100000 };
    static const double DROPOUTS[] = {0.1, 0.5, 0.75};
    for (size_t i = 0; i < 3; i++) {
        const double p = DROPOUTS[i];
        int kept[3] = {0, 0, 0};
        for (int64_t e = 0; e < N; e++) {
            const bool one = gnn_dropout_keeps(7, e, 0, p);
            kept[0] += one;
            kept[1] += gnn_dropout_keeps(7, 0, e, p);
            kept[2] += one && gnn_dropout_keeps(7, e + 1, 0, p);
        }
        const double expected[3] = {1 - p, 1 - p, (1 - p) * (1 - p)};
        for (int k = 0; k < 3; k++) {
            const double q = expected[k];
            CHECK(fabs(kept[k] - N * q) < 10 * sqrt(N * q * (1 - q)));
        }
    }
    return 0;
}

int main(void) {
    CHECK(known_answers() == 0);
    CHECK(frequencies() == 0);
    CHECK(gnn_dropout_threshold(0.5) == 0x80000000u);
    CHECK(gnn_dropout_threshold(1 - ldexp(1, -53)) == UINT32_MAX);
    for (int64_t e = 0; e < 1000; e++) {
        CHECK(gnn_dropout_keeps(3, e, 1, 0));
    }
    // both halves of every number count
    const uint32_t word = gnn_dropout_word(1, 2, 3);
    CHECK(word != gnn_dropout_word(1 + (1ull << 32), 2, 3));
    CHECK(word != gnn_dropout_word(1, 2 + (1ll << 32), 3));
    CHECK(word != gnn_dropout_word(1, 2, 3 + (1ll << 34)));
    return 0;
}

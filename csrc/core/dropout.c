/* dropout.c: which attention weights dropout keeps. */
#include "core/philox.h"
#include "gnn.h"

bool gnn_dropout_keeps(uint64_t seed, int64_t edge, int64_t head, double dropout) {
    return gnn_dropout_word(seed, edge, head) >= gnn_dropout_threshold(dropout);
}

/* philox.h: the random numbers of dropout, in C and on the device.
 *
 * Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
 * section 3.3): ten rounds of multiply and exchange make four words of a 128-bit counter
 * under a 64-bit key. No state: a word depends on key and counter alone. Attention takes
 * key = seed, counter = (edge, head / 4) and word head % 4, so four heads share a call.
 */
#ifndef GNN_PHILOX_H
#define GNN_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define GNN_HOST_DEVICE static __host__ __device__ __forceinline__
#else
#define GNN_HOST_DEVICE static inline
#endif

typedef struct gnn_philox {
    uint32_t w0, w1, w2, w3; // fields, not an array: they stay in registers
} gnn_philox;

GNN_HOST_DEVICE gnn_philox gnn_philox_round(gnn_philox c, uint32_t k0, uint32_t k1) {
    const uint64_t a = (uint64_t)0xD2511F53u * c.w0;
    const uint64_t b = (uint64_t)0xCD9E8D57u * c.w2;
    gnn_philox next;
    next.w0 = (uint32_t)(b >> 32) ^ c.w1 ^ k0;
    next.w1 = (uint32_t)b;
    next.w2 = (uint32_t)(a >> 32) ^ c.w3 ^ k1;
    next.w3 = (uint32_t)a;
    return next;
}

/* The four words of counter (low, high) under `key`; numbers by their low halves first. */
GNN_HOST_DEVICE gnn_philox gnn_philox_words(uint64_t key, uint64_t low, uint64_t high) {
    gnn_philox c;
    c.w0 = (uint32_t)low;
    c.w1 = (uint32_t)(low >> 32);
    c.w2 = (uint32_t)high;
    c.w3 = (uint32_t)(high >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        c = gnn_philox_round(c, k0, k1);
        k0 += 0x9E3779B9u; // golden ratio
        k1 += 0xBB67AE85u; // sqrt(3) - 1
    }
    return c;
}

/* The word that decides about (edge, head): the edge is kept where this is at least
 * gnn_dropout_threshold. */
GNN_HOST_DEVICE uint32_t gnn_dropout_word(uint64_t seed, int64_t edge, int64_t head) {
    const gnn_philox w =
        gnn_philox_words(seed, (uint64_t)edge, (uint64_t)head / 4); // see above
    const uint32_t even = (head & 2) != 0 ? w.w2 : w.w0;
    const uint32_t odd = (head & 2) != 0 ? w.w3 : w.w1;
    return (head & 1) != 0 ? odd : even;
}

/* floor(dropout * 2^32) of a probability in [0, 1): exact, and 0 drops nothing. */
GNN_HOST_DEVICE uint32_t gnn_dropout_threshold(double dropout) {
    return (uint32_t)(dropout * 4294967296.0);
}

#endif

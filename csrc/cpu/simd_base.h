/* simd_base.h: 16-byte vectors in the compiler's own vector type: SSE2 on x86-64, NEON on
 * aarch64, whatever the target has elsewhere.
 *
 * Every simd_<isa>.h gives, for each dtype D:
 *   vec_<isa>_D           vector of accumulators, LANES_<isa>_D of them
 *   load_<isa>_D(p)       LANES elements at p, widened
 *   load_part_<isa>_D(p, n)   the first n of them, 1 <= n <= LANES, zeros beyond;
 *                         nothing past p + n is touched
 *   store_*, store_part_* the reverse, narrowed with round to nearest even
 *   stream_<isa>_D(p, v)  store past the caches where the machine can; p 64-byte aligned
 *                         for the first vector of a row; followed by FENCE_<isa>()
 *   splat_<isa>_D(s)      all lanes s
 *   total_<isa>_D(v)      sum over the lanes, in one fixed order
 * and TARGET_<isa>, the attribute that every function using them must carry.
 */
#ifndef GNN_SIMD_BASE_H
#define GNN_SIMD_BASE_H

#include "cpu/scalar.h"

#define TARGET_base
#define FENCE_base() ((void)0)
#define SIMD_BASE static inline __attribute__((always_inline))

typedef float vec_base_f32 __attribute__((vector_size(16)));
typedef double vec_base_f64 __attribute__((vector_size(16)));
typedef vec_base_f32 vec_base_bf16;
typedef vec_base_f32 vec_base_f16;

enum {
    LANES_base_f32 = 4,
    LANES_base_f64 = 2,
    LANES_base_bf16 = 4,
    LANES_base_f16 = 4
};

/* full vectors of f32 and f64 are one unaligned move */
#define BASE_WHOLE(D)                                                                  \
    SIMD_BASE vec_base_##D load_base_##D(const store_##D *p) {                         \
        vec_base_##D v;                                                                \
        memcpy(&v, p, sizeof v);                                                       \
        return v;                                                                      \
    }                                                                                  \
    SIMD_BASE void store_base_##D(store_##D *p, vec_base_##D v) {                      \
        memcpy(p, &v, sizeof v);                                                       \
    }

/* half types go through the scalar conversions */
#define BASE_HALF(D)                                                                   \
    SIMD_BASE vec_base_##D load_base_##D(const store_##D *p) {                         \
        return (vec_base_##D){up_##D(p[0]), up_##D(p[1]), up_##D(p[2]), up_##D(p[3])}; \
    }                                                                                  \
    SIMD_BASE void store_base_##D(store_##D *p, vec_base_##D v) {                      \
        for (int k = 0; k < LANES_base_##D; k++) {                                     \
            p[k] = down_##D(v[k]);                                                     \
        }                                                                              \
    }

#define BASE_PART(D)                                                                   \
    SIMD_BASE void stream_base_##D(store_##D *p, vec_base_##D v) {                     \
        store_base_##D(p, v);                                                          \
    }                                                                                  \
    SIMD_BASE vec_base_##D load_part_base_##D(const store_##D *p, int n) {             \
        if (n == LANES_base_##D) {                                                     \
            return load_base_##D(p);                                                   \
        }                                                                              \
        vec_base_##D v = {0};                                                          \
        for (int k = 0; k < n; k++) {                                                  \
            v[k] = up_##D(p[k]);                                                       \
        }                                                                              \
        return v;                                                                      \
    }                                                                                  \
    SIMD_BASE void store_part_base_##D(store_##D *p, vec_base_##D v, int n) {          \
        for (int k = 0; k < n; k++) {                                                  \
            p[k] = down_##D(v[k]);                                                     \
        }                                                                              \
    }                                                                                  \
    SIMD_BASE vec_base_##D splat_base_##D(acc_##D s) {                                 \
        return s - (vec_base_##D){0};                                                  \
    }                                                                                  \
    SIMD_BASE acc_##D total_base_##D(vec_base_##D v) {                                 \
        acc_##D sum = v[0];                                                            \
        for (int k = 1; k < LANES_base_##D; k++) {                                     \
            sum += v[k];                                                               \
        }                                                                              \
        return sum;                                                                    \
    }

BASE_WHOLE(f32)
BASE_WHOLE(f64)
BASE_HALF(bf16)
BASE_HALF(f16)
BASE_PART(f32)
BASE_PART(f64)
BASE_PART(bf16)
BASE_PART(f16)

#endif

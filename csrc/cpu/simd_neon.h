/* simd_neon.h: the 16-byte vectors that every 64-bit Arm has, Grace among them; the names
 * are those of simd_base.h. bf16 goes by shifts, since its conversion instruction is not
 * in every Arm; half's is. */
#ifndef GNN_SIMD_NEON_H
#define GNN_SIMD_NEON_H

#include "cpu/scalar.h"

#include <arm_neon.h>

#define TARGET_neon
#define FENCE_neon() ((void)0)
#define SIMD_NEON static inline __attribute__((always_inline))

typedef float32x4_t vec_neon_f32;
typedef float64x2_t vec_neon_f64;
typedef float32x4_t vec_neon_bf16;
typedef float32x4_t vec_neon_f16;

enum {
    LANES_neon_f32 = 4,
    LANES_neon_f64 = 2,
    LANES_neon_bf16 = 4,
    LANES_neon_f16 = 4
};

/* bf16 is the upper half of a float */
SIMD_NEON float32x4_t widen_neon_bf16(uint16x4_t v) {
    return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
}

SIMD_NEON uint16x4_t narrow_neon_bf16(float32x4_t v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16);
}

SIMD_NEON float32x4_t widen_neon_f16(uint16x4_t v) {
    return vcvt_f32_f16(vreinterpret_f16_u16(v));
}

SIMD_NEON uint16x4_t narrow_neon_f16(float32x4_t v) {
    return vreinterpret_u16_f16(vcvt_f16_f32(v));
}

SIMD_NEON float32x4_t load_neon_f32(const float *p) {
    return vld1q_f32(p);
}
SIMD_NEON void store_neon_f32(float *p, float32x4_t v) {
    vst1q_f32(p, v);
}
SIMD_NEON float32x4_t splat_neon_f32(float s) {
    return vdupq_n_f32(s);
}
SIMD_NEON float total_neon_f32(float32x4_t v) {
    return vaddvq_f32(v); // pairs first
}

SIMD_NEON float64x2_t load_neon_f64(const double *p) {
    return vld1q_f64(p);
}
SIMD_NEON void store_neon_f64(double *p, float64x2_t v) {
    vst1q_f64(p, v);
}
SIMD_NEON float64x2_t splat_neon_f64(double s) {
    return vdupq_n_f64(s);
}
SIMD_NEON double total_neon_f64(float64x2_t v) {
    return vaddvq_f64(v);
}

#define NEON_HALF(D)                                                                   \
    SIMD_NEON float32x4_t load_neon_##D(const uint16_t *p) {                           \
        return widen_neon_##D(vld1_u16(p));                                            \
    }                                                                                  \
    SIMD_NEON void store_neon_##D(uint16_t *p, float32x4_t v) {                        \
        vst1_u16(p, narrow_neon_##D(v));                                               \
    }                                                                                  \
    SIMD_NEON float32x4_t splat_neon_##D(float s) {                                    \
        return vdupq_n_f32(s);                                                         \
    }                                                                                  \
    SIMD_NEON float total_neon_##D(float32x4_t v) {                                    \
        return vaddvq_f32(v);                                                          \
    }

NEON_HALF(bf16)
NEON_HALF(f16)

/* no masked moves here: a tail goes through a buffer of one vector; no stores past the
 * caches that a 16-byte vector could use */
#define NEON_PART(D)                                                                   \
    SIMD_NEON vec_neon_##D load_part_neon_##D(const store_##D *p, int n) {             \
        if (n == LANES_neon_##D) {                                                     \
            return load_neon_##D(p);                                                   \
        }                                                                              \
        store_##D part[LANES_neon_##D] = {0};                                          \
        for (int k = 0; k < n; k++) {                                                  \
            part[k] = p[k];                                                            \
        }                                                                              \
        return load_neon_##D(part);                                                    \
    }                                                                                  \
    SIMD_NEON void store_part_neon_##D(store_##D *p, vec_neon_##D v, int n) {          \
        store_##D part[LANES_neon_##D];                                                \
        store_neon_##D(part, v);                                                       \
        for (int k = 0; k < n; k++) {                                                  \
            p[k] = part[k];                                                            \
        }                                                                              \
    }                                                                                  \
    SIMD_NEON void stream_neon_##D(store_##D *p, vec_neon_##D v) {                     \
        store_neon_##D(p, v);                                                          \
    }

NEON_PART(f32)
NEON_PART(f64)
NEON_PART(bf16)
NEON_PART(f16)

#endif

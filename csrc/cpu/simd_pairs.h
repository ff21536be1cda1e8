/* simd_pairs.h: bfloat16 as pairs of vectors, "bf16x2", for sums over many rows.
 *
 * A bf16 is the upper half of a float, so of two neighbours in one 32-bit word the odd one
 * needs a mask and the even one a shift to become floats: no element moves to another
 * word, and a pair is folded the same way back. Half the instructions of widening into
 * consecutive lanes, which take a shuffle each. Names as in simd_base.h, and the
 * arithmetic of simd.h, since a pair is no vector of the compiler's.
 */
#ifndef GNN_SIMD_PAIRS_H
#define GNN_SIMD_PAIRS_H

#include "cpu/simd_avx2.h"
#include "cpu/simd_avx512.h"

typedef uint16_t store_bf16x2;
typedef float acc_bf16x2;

static inline float up_bf16x2(uint16_t v) {
    return up_bf16(v);
}

static inline uint16_t down_bf16x2(float v) {
    return down_bf16(v);
}

typedef struct vec_avx512_bf16x2 {
    __m512 even, odd;
} vec_avx512_bf16x2;

typedef struct vec_avx2_bf16x2 {
    __m256 even, odd;
} vec_avx2_bf16x2;

enum { LANES_avx512_bf16x2 = 32, LANES_avx2_bf16x2 = 16 };

#define PAIR_OPS(isa, function)                                                        \
    function vec_##isa##_bf16x2 add_##isa##_bf16x2(vec_##isa##_bf16x2 a,               \
                                                   vec_##isa##_bf16x2 b) {             \
        return (vec_##isa##_bf16x2){a.even + b.even, a.odd + b.odd};                   \
    }                                                                                  \
    function vec_##isa##_bf16x2 madd_##isa##_bf16x2(                                   \
        vec_##isa##_bf16x2 a, vec_##isa##_bf16x2 c, vec_##isa##_bf16x2 v) {            \
        return (vec_##isa##_bf16x2){a.even + c.even * v.even, a.odd + c.odd * v.odd};  \
    }                                                                                  \
    function vec_##isa##_bf16x2 times_##isa##_bf16x2(vec_##isa##_bf16x2 a,             \
                                                     vec_##isa##_bf16x2 c) {           \
        return (vec_##isa##_bf16x2){a.even * c.even, a.odd * c.odd};                   \
    }                                                                                  \
    function vec_##isa##_bf16x2 splat_##isa##_bf16x2(float s) {                        \
        return (vec_##isa##_bf16x2){splat_##isa##_f32(s), splat_##isa##_f32(s)};       \
    }                                                                                  \
    function void keep_##isa##_bf16x2(float *p, vec_##isa##_bf16x2 v) {                \
        store_##isa##_f32(p, v.even);                                                  \
        store_##isa##_f32(p + LANES_##isa##_f32, v.odd);                               \
    }                                                                                  \
    function vec_##isa##_bf16x2 kept_##isa##_bf16x2(const float *p) {                  \
        return (vec_##isa##_bf16x2){load_##isa##_f32(p),                               \
                                    load_##isa##_f32(p + LANES_##isa##_f32)};          \
    }
PAIR_OPS(avx512, SIMD_AVX512)
PAIR_OPS(avx2, SIMD_AVX2)
#undef PAIR_OPS

/* ------------------------------------------------------------------------------ avx512 */

SIMD_AVX512 vec_avx512_bf16x2 unfold_avx512(__m512i words) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    return (vec_avx512_bf16x2){_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
                               _mm512_castsi512_ps(_mm512_and_si512(words, upper))};
}

SIMD_AVX512 __m512i fold_avx512(vec_avx512_bf16x2 v) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa,
                                   _mm512_srli_epi32(round_avx512_bf16(v.even), 16),
                                   round_avx512_bf16(v.odd));
}

SIMD_AVX512 __mmask32 first_avx512_16(int n) {
    return (__mmask32)((1ULL << n) - 1);
}

SIMD_AVX512 vec_avx512_bf16x2 load_avx512_bf16x2(const uint16_t *p) {
    return unfold_avx512(_mm512_loadu_si512(p));
}
SIMD_AVX512 vec_avx512_bf16x2 load_part_avx512_bf16x2(const uint16_t *p, int n) {
    return unfold_avx512(_mm512_maskz_loadu_epi16(first_avx512_16(n), p));
}
SIMD_AVX512 void store_avx512_bf16x2(uint16_t *p, vec_avx512_bf16x2 v) {
    _mm512_storeu_si512(p, fold_avx512(v));
}
SIMD_AVX512 void store_part_avx512_bf16x2(uint16_t *p, vec_avx512_bf16x2 v, int n) {
    _mm512_mask_storeu_epi16(p, first_avx512_16(n), fold_avx512(v));
}
SIMD_AVX512 void stream_avx512_bf16x2(uint16_t *p, vec_avx512_bf16x2 v) {
    _mm512_stream_si512((void *)p, fold_avx512(v));
}

/* -------------------------------------------------------------------------------- avx2 */

SIMD_AVX2 vec_avx2_bf16x2 unfold_avx2(__m256i words) {
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
    return (vec_avx2_bf16x2){_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
                             _mm256_castsi256_ps(_mm256_and_si256(words, upper))};
}

SIMD_AVX2 __m256i fold_avx2(vec_avx2_bf16x2 v) {
    return _mm256_blend_epi16(_mm256_srli_epi32(round_avx2_bf16(v.even), 16),
                              round_avx2_bf16(v.odd), 0xaa);
}

SIMD_AVX2 vec_avx2_bf16x2 load_avx2_bf16x2(const uint16_t *p) {
    return unfold_avx2(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
SIMD_AVX2 vec_avx2_bf16x2 load_part_avx2_bf16x2(const uint16_t *p, int n) {
    if (n == LANES_avx2_bf16x2) {
        return load_avx2_bf16x2(p);
    }
    uint16_t part[LANES_avx2_bf16x2] = {0};
    for (int k = 0; k < n; k++) {
        part[k] = p[k];
    }
    return load_avx2_bf16x2(part);
}
SIMD_AVX2 void store_avx2_bf16x2(uint16_t *p, vec_avx2_bf16x2 v) {
    _mm256_storeu_si256((__m256i *)(void *)p, fold_avx2(v));
}
SIMD_AVX2 void store_part_avx2_bf16x2(uint16_t *p, vec_avx2_bf16x2 v, int n) {
    uint16_t part[LANES_avx2_bf16x2];
    store_avx2_bf16x2(part, v);
    for (int k = 0; k < n; k++) {
        p[k] = part[k];
    }
}
SIMD_AVX2 void stream_avx2_bf16x2(uint16_t *p, vec_avx2_bf16x2 v) {
    _mm256_stream_si256((__m256i *)(void *)p, fold_avx2(v));
}

#endif

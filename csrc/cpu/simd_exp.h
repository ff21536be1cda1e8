/* simd_exp.h: what softmax and leaky relu need of vectors, beside simd_base.h's names:
 *   exp_<isa>_D(x)       e^x of each lane, within 2 ulp; 0 and subnormal below, inf above,
 *                        exp(-inf) = 0, exp(inf) = inf, NaN stays NaN
 *   most_<isa>_D(a, b)   the larger of a and b; b where either is NaN
 *   gain_<isa>_D(x, s)   derivative of leaky relu: 1 where x > 0, else (and for NaN) s, so
 *                        that x * gain(x, s) is leaky relu itself
 *   load_heads, store_heads_<isa>_D(p, n)   load_part and store_part for the heads of one
 *                        entry: four are one short move, without a mask. A masked store
 *                        is not forwarded to the load that follows
 *   totals_<isa>_D(a, b, c, d, p)   p[0..3] = sums over the lanes of a, b, c and d
 *
 * e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln(2) / 2. e^r is 1 + r + r^2 p(r), p
 * interpolating (e^r - 1 - r) / r^2 at Chebyshev points (relative error 2.2e-10 for
 * float, 1.7e-17 for double). n comes from adding 1.5 * 2^(mantissa bits), whose low bits
 * then hold it. 2^n is applied as two factors, each in range for every clamped x.
 */
#ifndef GNN_SIMD_EXP_H
#define GNN_SIMD_EXP_H

#include "cpu/simd.h"

#include <math.h>

static inline float log_f32(float v) {
    return logf(v);
}

static inline double log_f64(double v) {
    return log(v);
}

#define EXP_LOW_f32 -104.0F // e^x rounds to 0 below, overflows above
#define EXP_HIGH_f32 89.0F
#define EXP_LOW_f64 -746.0
#define EXP_HIGH_f64 710.0

/* p(r) by Horner's rule in P, the vector type's own arithmetic */
#define EXP_POLYNOMIAL_f32(P, r)                                                       \
    (P(0.50000000134658092F) +                                                         \
     r * (P(0.166666666816232314F) +                                                   \
          r * (P(0.0416664649252859054F) +                                             \
               r * (P(0.00833331092548090083F) +                                       \
                    r * (P(0.00139336499963092504F) +                                  \
                         r * P(0.000198909908246736538F))))))
#define EXP_POLYNOMIAL_f64(P, r)                                                       \
    (P(0.500000000000000102) +                                                         \
     r * (P(0.166666666666666675) +                                                    \
          r * (P(0.0416666666666241279) +                                              \
               r * (P(0.00833333333333006183) +                                        \
                    r * (P(0.00138888889172137169) +                                   \
                         r * (P(0.000198412698630536169) +                             \
                              r * (P(0.0000248015212959543751) +                       \
                                   r * (P(2.75572684599970648e-6) +                    \
                                        r * (P(2.76200884454097482e-7) +               \
                                             r * P(2.51003854955103191e-8))))))))))

/* log2 e, ln 2 in two parts (the high one has trailing zeros: n * high is exact), the
 * rounding constant, bits of the exponent field */
#define EXP_LOG2E_f32 1.44269504F
#define EXP_LN2_HIGH_f32 0.693359375F
#define EXP_LN2_LOW_f32 -2.12194440e-4F
#define EXP_ROUND_f32 12582912.0F
#define EXP_LOG2E_f64 1.4426950408889634
#define EXP_LN2_HIGH_f64 0.693147180369123816490
#define EXP_LN2_LOW_f64 1.90821492927058770002e-10
#define EXP_ROUND_f64 6755399441055744.0

#define EXP_OF(isa, D, bits_t, mantissa, bias)                                         \
    GNN_VECTOR_OP(isa, vec_##isa##_##D) exp_##isa##_##D(vec_##isa##_##D x) {           \
        typedef bits_t bits __attribute__((vector_size(sizeof(x))));                   \
        x = most_##isa##_##D(splat_##isa##_##D(EXP_LOW_##D), x);                       \
        x = -most_##isa##_##D(splat_##isa##_##D(-EXP_HIGH_##D), -x);                   \
        const vec_##isa##_##D round = splat_##isa##_##D(EXP_ROUND_##D);                \
        const vec_##isa##_##D shifted = x * EXP_LOG2E_##D + round;                     \
        const vec_##isa##_##D n = shifted - round;                                     \
        vec_##isa##_##D r = x - n * EXP_LN2_HIGH_##D;                                  \
        r = r - n * EXP_LN2_LOW_##D;                                                   \
        const vec_##isa##_##D p = EXP_POLYNOMIAL_##D(splat_##isa##_##D, r);            \
        vec_##isa##_##D y = 1 + (r + r * r * p), scale;                                \
        bits whole, zero, half;                                                        \
        memcpy(&whole, &shifted, sizeof whole);                                        \
        memcpy(&zero, &round, sizeof zero);                                            \
        whole = whole - zero + 2 * bias;                                               \
        half = whole >> 1;                                                             \
        const bits first = half << mantissa, second = (whole - half) << mantissa;      \
        memcpy(&scale, &first, sizeof scale);                                          \
        y *= scale;                                                                    \
        memcpy(&scale, &second, sizeof scale);                                         \
        return y * scale;                                                              \
    }

/* yes where a > b, else no: a comparison of the compiler's own vectors gives all ones or
 * all zeros per lane. */
#define CHOICE_OF(isa, D, bits_t)                                                      \
    SIMD_BASE vec_##isa##_##D where_above_##isa##_##D(                                 \
        vec_##isa##_##D a, vec_##isa##_##D b, vec_##isa##_##D yes,                     \
        vec_##isa##_##D no) {                                                          \
        typedef bits_t bits __attribute__((vector_size(sizeof(a))));                   \
        const bits test = (bits)(a > b);                                               \
        bits of_yes, of_no;                                                            \
        memcpy(&of_yes, &yes, sizeof of_yes);                                          \
        memcpy(&of_no, &no, sizeof of_no);                                             \
        of_yes = (of_yes & test) | (of_no & ~test);                                    \
        memcpy(&yes, &of_yes, sizeof yes);                                             \
        return yes;                                                                    \
    }                                                                                  \
    SIMD_BASE vec_##isa##_##D most_##isa##_##D(vec_##isa##_##D a, vec_##isa##_##D b) { \
        return where_above_##isa##_##D(a, b, a, b);                                    \
    }                                                                                  \
    SIMD_BASE vec_##isa##_##D gain_##isa##_##D(vec_##isa##_##D x, vec_##isa##_##D s) { \
        const vec_##isa##_##D zero = {0};                                              \
        return where_above_##isa##_##D(x, zero, splat_##isa##_##D(1), s);              \
    }

#define EXP_OF_ISA(isa)                                                                \
    EXP_OF(isa, f32, uint32_t, 23, 127)                                                \
    EXP_OF(isa, f64, uint64_t, 52, 1023)

#define TOTALS_OF(isa, D)                                                              \
    SIMD_BASE void totals_##isa##_##D(vec_##isa##_##D a, vec_##isa##_##D b,            \
                                      vec_##isa##_##D c, vec_##isa##_##D d,            \
                                      acc_##D *p) {                                    \
        p[0] = total_##isa##_##D(a), p[1] = total_##isa##_##D(b);                      \
        p[2] = total_##isa##_##D(c), p[3] = total_##isa##_##D(d);                      \
    }

#define load_heads_base_f32 load_part_base_f32 // their whole vectors need no mask
#define load_heads_base_f64 load_part_base_f64
#define store_heads_base_f32 store_part_base_f32
#define store_heads_base_f64 store_part_base_f64
#define load_heads_neon_f32 load_part_neon_f32
#define load_heads_neon_f64 load_part_neon_f64
#define store_heads_neon_f32 store_part_neon_f32
#define store_heads_neon_f64 store_part_neon_f64

CHOICE_OF(base, f32, uint32_t)
CHOICE_OF(base, f64, uint64_t)
TOTALS_OF(base, f32)
TOTALS_OF(base, f64)
EXP_OF_ISA(base)

#if defined(__x86_64__)
SIMD_AVX2 __m256 most_avx2_f32(__m256 a, __m256 b) {
    return _mm256_max_ps(a, b);
}
SIMD_AVX2 __m256d most_avx2_f64(__m256d a, __m256d b) {
    return _mm256_max_pd(a, b);
}
SIMD_AVX2 __m256 gain_avx2_f32(__m256 x, __m256 s) {
    const __m256 above = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ);
    return _mm256_blendv_ps(s, _mm256_set1_ps(1), above);
}
SIMD_AVX2 __m256d gain_avx2_f64(__m256d x, __m256d s) {
    const __m256d above = _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_GT_OQ);
    return _mm256_blendv_pd(s, _mm256_set1_pd(1), above);
}
SIMD_AVX512 __m512 most_avx512_f32(__m512 a, __m512 b) {
    return _mm512_max_ps(a, b);
}
SIMD_AVX512 __m512d most_avx512_f64(__m512d a, __m512d b) {
    return _mm512_max_pd(a, b);
}
SIMD_AVX512 __m512 gain_avx512_f32(__m512 x, __m512 s) {
    const __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_mov_ps(s, above, _mm512_set1_ps(1));
}
SIMD_AVX512 __m512d gain_avx512_f64(__m512d x, __m512d s) {
    const __mmask8 above = _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_GT_OQ);
    return _mm512_mask_mov_pd(s, above, _mm512_set1_pd(1));
}
SIMD_AVX2 void totals_avx2_f32(__m256 a, __m256 b, __m256 c, __m256 d, float *p) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(p, _mm256_castps256_ps128(pairs) + _mm256_extractf128_ps(pairs, 1));
}
SIMD_AVX2 void totals_avx2_f64(__m256d a, __m256d b, __m256d c, __m256d d, double *p) {
    const __m256d ab = _mm256_hadd_pd(a, b), cd = _mm256_hadd_pd(c, d);
    _mm_storeu_pd(p, _mm256_castpd256_pd128(ab) + _mm256_extractf128_pd(ab, 1));
    _mm_storeu_pd(p + 2, _mm256_castpd256_pd128(cd) + _mm256_extractf128_pd(cd, 1));
}
SIMD_AVX512 void totals_avx512_f32(__m512 a, __m512 b, __m512 c, __m512 d, float *p) {
    const __m512d ab =
        _mm512_castps_pd(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
    const __m512d cd =
        _mm512_castps_pd(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
    const __m512 quads = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)) +
                         _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    const __m256 half =
        _mm512_castps512_ps256(quads) + _mm512_extractf32x8_ps(quads, 1);
    _mm_storeu_ps(p, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
}
SIMD_AVX512 void totals_avx512_f64(__m512d a, __m512d b, __m512d c, __m512d d,
                                   double *p) {
    const __m512d ab = _mm512_unpacklo_pd(a, b) + _mm512_unpackhi_pd(a, b);
    const __m512d cd = _mm512_unpacklo_pd(c, d) + _mm512_unpackhi_pd(c, d);
    const __m256d ab4 = _mm512_castpd512_pd256(ab) + _mm512_extractf64x4_pd(ab, 1);
    const __m256d cd4 = _mm512_castpd512_pd256(cd) + _mm512_extractf64x4_pd(cd, 1);
    _mm_storeu_pd(p, _mm256_castpd256_pd128(ab4) + _mm256_extractf128_pd(ab4, 1));
    _mm_storeu_pd(p + 2, _mm256_castpd256_pd128(cd4) + _mm256_extractf128_pd(cd4, 1));
}
SIMD_AVX2 __m256 load_heads_avx2_f32(const float *p, int n) {
    return n == 4 ? _mm256_zextps128_ps256(_mm_loadu_ps(p)) : load_part_avx2_f32(p, n);
}
SIMD_AVX2 void store_heads_avx2_f32(float *p, __m256 v, int n) {
    if (n == 4) {
        _mm_storeu_ps(p, _mm256_castps256_ps128(v));
    } else {
        store_part_avx2_f32(p, v, n);
    }
}
SIMD_AVX512 __m512 load_heads_avx512_f32(const float *p, int n) {
    return n == 4 ? _mm512_zextps128_ps512(_mm_loadu_ps(p))
                  : load_part_avx512_f32(p, n);
}
SIMD_AVX512 void store_heads_avx512_f32(float *p, __m512 v, int n) {
    if (n == 4) {
        _mm_storeu_ps(p, _mm512_castps512_ps128(v));
    } else if (n == 8) {
        _mm256_storeu_ps(p, _mm512_castps512_ps256(v));
    } else {
        store_part_avx512_f32(p, v, n);
    }
}
#define load_heads_avx2_f64 load_part_avx2_f64
#define store_heads_avx2_f64 store_part_avx2_f64
#define load_heads_avx512_f64 load_part_avx512_f64
#define store_heads_avx512_f64 store_part_avx512_f64
EXP_OF_ISA(avx2)
EXP_OF_ISA(avx512)
#elif defined(__aarch64__)
CHOICE_OF(neon, f32, uint32_t)
CHOICE_OF(neon, f64, uint64_t)
TOTALS_OF(neon, f32)
TOTALS_OF(neon, f64)
EXP_OF_ISA(neon)
#endif
#undef EXP_OF
#undef EXP_OF_ISA
#undef CHOICE_OF
#undef TOTALS_OF

#endif

/* simd_exp.h: what softmax and leaky relu need of vectors, beside simd_base.h's names:
 *   exp_<isa>_D(x)       e^x of each lane, within 2 ulp; 0 and subnormal below, inf above,
 *                        exp(-inf) = 0, exp(inf) = inf, NaN stays NaN
 *   most_<isa>_D(a, b)   the larger of a and b; b where either is NaN
 *   gain_<isa>_D(x, s)   derivative of leaky relu: 1 where x > 0, else (and for NaN) s, so
 *                        that x * gain(x, s) is leaky relu itself
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

CHOICE_OF(base, f32, uint32_t)
CHOICE_OF(base, f64, uint64_t)
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
EXP_OF_ISA(avx2)
EXP_OF_ISA(avx512)
#elif defined(__aarch64__)
CHOICE_OF(neon, f32, uint32_t)
CHOICE_OF(neon, f64, uint64_t)
EXP_OF_ISA(neon)
#endif
#undef EXP_OF
#undef EXP_OF_ISA
#undef CHOICE_OF

#endif

/* gine_gate.h: the gate of relu on vectors, beside the names of simd_base.h:
 *   gate_<isa>_D(v, m)   lanes of m where v is above 0 or NaN, zeros elsewhere
 * NaN passes because torch's relu and its derivative pass it: gate(v, v) is relu(v).
 */
#ifndef GNN_GINE_GATE_H
#define GNN_GINE_GATE_H

#include "cpu/simd.h"

/* A comparison of the compiler's own vectors gives all ones or all zeros per lane. */
#define GATE_OF(isa, D, bits_t)                                                        \
    SIMD_BASE vec_##isa##_##D gate_##isa##_##D(vec_##isa##_##D v, vec_##isa##_##D m) { \
        typedef bits_t bits __attribute__((vector_size(sizeof(vec_##isa##_##D))));     \
        bits closed, kept;                                                             \
        const vec_##isa##_##D zero = {0};                                              \
        const bits test = (bits)(v <= zero);                                           \
        memcpy(&closed, &test, sizeof closed);                                         \
        memcpy(&kept, &m, sizeof kept);                                                \
        kept &= ~closed;                                                               \
        memcpy(&m, &kept, sizeof m);                                                   \
        return m;                                                                      \
    }
GATE_OF(base, f32, int32_t)
GATE_OF(base, f64, int64_t)
GATE_OF(base, bf16, int32_t)
GATE_OF(base, f16, int32_t)

#if defined(__x86_64__)
SIMD_AVX2 __m256 gate_avx2_f32(__m256 v, __m256 m) {
    return _mm256_and_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NLE_UQ), m);
}
SIMD_AVX2 __m256d gate_avx2_f64(__m256d v, __m256d m) {
    return _mm256_and_pd(_mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_NLE_UQ), m);
}
SIMD_AVX512 __m512 gate_avx512_f32(__m512 v, __m512 m) {
    const __mmask16 open = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NLE_UQ);
    return _mm512_maskz_mov_ps(open, m);
}
SIMD_AVX512 __m512d gate_avx512_f64(__m512d v, __m512d m) {
    const __mmask8 open = _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NLE_UQ);
    return _mm512_maskz_mov_pd(open, m);
}
#define gate_avx2_bf16 gate_avx2_f32 // both half types are floats in a register
#define gate_avx2_f16 gate_avx2_f32
#define gate_avx512_bf16 gate_avx512_f32
#define gate_avx512_f16 gate_avx512_f32
#elif defined(__aarch64__)
GATE_OF(neon, f32, int32_t)
GATE_OF(neon, f64, int64_t)
GATE_OF(neon, bf16, int32_t)
GATE_OF(neon, f16, int32_t)
#endif

#endif

/* simd_avx512.h: 64-byte vectors; the names are those of simd_base.h. Masked moves make
 * every tail one instruction. */
#ifndef GNN_SIMD_AVX512_H
#define GNN_SIMD_AVX512_H

#include "cpu/scalar.h"

#include <immintrin.h>

#define TARGET_avx512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define FENCE_avx512() _mm_sfence()
#define SIMD_AVX512 static inline __attribute__((always_inline)) TARGET_avx512

typedef __m512 vec_avx512_f32;
typedef __m512d vec_avx512_f64;
typedef __m512 vec_avx512_bf16;
typedef __m512 vec_avx512_f16;

enum {
    LANES_avx512_f32 = 16,
    LANES_avx512_f64 = 8,
    LANES_avx512_bf16 = 16,
    LANES_avx512_f16 = 16
};

SIMD_AVX512 __mmask16 first_avx512(int n) {
    return (__mmask16)((1U << n) - 1);
}

/* bf16 is the upper half of a float */
SIMD_AVX512 __m512 widen_avx512_bf16(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* rounded: the bf16 is the upper half of each word */
SIMD_AVX512 __m512i round_avx512_bf16(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd =
        _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    return _mm512_mask_mov_epi32(rounded, nan, quiet);
}

SIMD_AVX512 __m256i narrow_avx512_bf16(__m512 v) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_avx512_bf16(v), 16));
}

SIMD_AVX512 __m512 widen_avx512_f16(__m256i v) {
    return _mm512_cvtph_ps(v);
}

SIMD_AVX512 __m256i narrow_avx512_f16(__m512 v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

SIMD_AVX512 __m512 load_avx512_f32(const float *p) {
    return _mm512_loadu_ps(p);
}
SIMD_AVX512 __m512 load_part_avx512_f32(const float *p, int n) {
    if (n <= 8) { // a long load that crosses a cache line costs two, masked or not
        return _mm512_zextps256_ps512(
            _mm256_maskz_loadu_ps((__mmask8)first_avx512(n), p));
    }
    return _mm512_maskz_loadu_ps(first_avx512(n), p);
}
SIMD_AVX512 void store_avx512_f32(float *p, __m512 v) {
    _mm512_storeu_ps(p, v);
}
SIMD_AVX512 void stream_avx512_f32(float *p, __m512 v) {
    _mm512_stream_ps(p, v);
}
SIMD_AVX512 void store_part_avx512_f32(float *p, __m512 v, int n) {
    _mm512_mask_storeu_ps(p, first_avx512(n), v);
}
SIMD_AVX512 __m512 splat_avx512_f32(float s) {
    return _mm512_set1_ps(s);
}
SIMD_AVX512 float total_avx512_f32(__m512 v) {
    return _mm512_reduce_add_ps(v);
}

SIMD_AVX512 __m512d load_avx512_f64(const double *p) {
    return _mm512_loadu_pd(p);
}
SIMD_AVX512 __m512d load_part_avx512_f64(const double *p, int n) {
    return _mm512_maskz_loadu_pd((__mmask8)first_avx512(n), p);
}
SIMD_AVX512 void store_avx512_f64(double *p, __m512d v) {
    _mm512_storeu_pd(p, v);
}
SIMD_AVX512 void stream_avx512_f64(double *p, __m512d v) {
    _mm512_stream_pd(p, v);
}
SIMD_AVX512 void store_part_avx512_f64(double *p, __m512d v, int n) {
    _mm512_mask_storeu_pd(p, (__mmask8)first_avx512(n), v);
}
SIMD_AVX512 __m512d splat_avx512_f64(double s) {
    return _mm512_set1_pd(s);
}
SIMD_AVX512 double total_avx512_f64(__m512d v) {
    return _mm512_reduce_add_pd(v);
}

#define AVX512_HALF(D)                                                                 \
    SIMD_AVX512 __m512 load_avx512_##D(const uint16_t *p) {                            \
        return widen_avx512_##D(_mm256_loadu_si256((const __m256i *)(const void *)p)); \
    }                                                                                  \
    SIMD_AVX512 __m512 load_part_avx512_##D(const uint16_t *p, int n) {                \
        return widen_avx512_##D(_mm256_maskz_loadu_epi16(first_avx512(n), p));         \
    }                                                                                  \
    SIMD_AVX512 void store_avx512_##D(uint16_t *p, __m512 v) {                         \
        _mm256_storeu_si256((__m256i *)(void *)p, narrow_avx512_##D(v));               \
    }                                                                                  \
    SIMD_AVX512 void stream_avx512_##D(uint16_t *p, __m512 v) {                        \
        _mm256_stream_si256((__m256i *)(void *)p, narrow_avx512_##D(v));               \
    }                                                                                  \
    SIMD_AVX512 void store_part_avx512_##D(uint16_t *p, __m512 v, int n) {             \
        _mm256_mask_storeu_epi16(p, first_avx512(n), narrow_avx512_##D(v));            \
    }                                                                                  \
    SIMD_AVX512 __m512 splat_avx512_##D(float s) {                                     \
        return _mm512_set1_ps(s);                                                      \
    }                                                                                  \
    SIMD_AVX512 float total_avx512_##D(__m512 v) {                                     \
        return _mm512_reduce_add_ps(v);                                                \
    }

AVX512_HALF(bf16)
AVX512_HALF(f16)

/* as in simd_avx2.h: a row has few entries, half a vector gathers them sooner */
SIMD_AVX512 __m256 gather_row_avx512_f32(const float *x, const int32_t *col,
                                         const float *coef, int64_t begin,
                                         int64_t end) {
    __m256 sum = _mm256_setzero_ps();
    int64_t left = end - begin;
    do {
        const __mmask8 some = (__mmask8)first_avx512(left < 8 ? (int)left : 8);
        const __m256i at = _mm256_maskz_loadu_epi32(some, col + begin);
        __m256 v = _mm256_mmask_i32gather_ps(_mm256_setzero_ps(), some, at, x, 4);
        if (coef != NULL) {
            v *= _mm256_maskz_loadu_ps(some, coef + begin);
        }
        sum += v;
        begin += 8, left -= 8;
    } while (left > 0);
    return sum;
}

#define GATHERS_avx512_f32 1
SIMD_AVX512 void gather_four_avx512_f32(const float *x, const int32_t *col,
                                        const float *coef, const int64_t *end,
                                        float *sums) {
    const __m256 row0 = gather_row_avx512_f32(x, col, coef, end[0], end[1]);
    const __m256 row1 = gather_row_avx512_f32(x, col, coef, end[1], end[2]);
    const __m256 row2 = gather_row_avx512_f32(x, col, coef, end[2], end[3]);
    const __m256 row3 = gather_row_avx512_f32(x, col, coef, end[3], end[4]);
    const __m256 pairs =
        _mm256_hadd_ps(_mm256_hadd_ps(row0, row1), _mm256_hadd_ps(row2, row3));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs),
                                   _mm256_extractf128_ps(pairs, 1)));
}

/* "narrow": half vectors with masks, for rows of at most 8 floats. A long load that
 * crosses a cache line costs two, masked or not. */
#define TARGET_narrow TARGET_avx512
#define FENCE_narrow FENCE_avx512
typedef __m256 vec_narrow_f32;
enum { LANES_narrow_f32 = 8 };

SIMD_AVX512 __m256 load_narrow_f32(const float *p) {
    return _mm256_loadu_ps(p);
}
SIMD_AVX512 __m256 load_part_narrow_f32(const float *p, int n) {
    return _mm256_maskz_loadu_ps((__mmask8)first_avx512(n), p);
}
SIMD_AVX512 void store_narrow_f32(float *p, __m256 v) {
    _mm256_storeu_ps(p, v);
}
SIMD_AVX512 void stream_narrow_f32(float *p, __m256 v) {
    _mm256_stream_ps(p, v);
}
SIMD_AVX512 void store_part_narrow_f32(float *p, __m256 v, int n) {
    _mm256_mask_storeu_ps(p, (__mmask8)first_avx512(n), v);
}
SIMD_AVX512 __m256 splat_narrow_f32(float s) {
    return _mm256_set1_ps(s);
}

#endif

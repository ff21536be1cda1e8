/* simd_avx2.h: 32-byte vectors; the names are those of simd_base.h. */
#ifndef GNN_SIMD_AVX2_H
#define GNN_SIMD_AVX2_H

#include "cpu/scalar.h"

#include <immintrin.h>

#define TARGET_avx2 __attribute__((target("avx2,fma,f16c")))
#define FENCE_avx2() _mm_sfence()
#define SIMD_AVX2 static inline __attribute__((always_inline)) TARGET_avx2

typedef __m256 vec_avx2_f32;
typedef __m256d vec_avx2_f64;
typedef __m256 vec_avx2_bf16;
typedef __m256 vec_avx2_f16;

enum {
    LANES_avx2_f32 = 8,
    LANES_avx2_f64 = 4,
    LANES_avx2_bf16 = 8,
    LANES_avx2_f16 = 8
};

SIMD_AVX2 __m256i first_avx2_32(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

SIMD_AVX2 __m256i first_avx2_64(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

/* bf16 is the upper half of a float */
SIMD_AVX2 __m256 widen_avx2_bf16(__m128i v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* rounded: the bf16 is the upper half of each word */
SIMD_AVX2 __m256i round_avx2_bf16(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd =
        _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}

SIMD_AVX2 __m128i narrow_avx2_bf16(__m256 v) {
    const __m256i kept = _mm256_srli_epi32(round_avx2_bf16(v), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(kept),
                            _mm256_extracti128_si256(kept, 1));
}

SIMD_AVX2 __m256 widen_avx2_f16(__m128i v) {
    return _mm256_cvtph_ps(v);
}

SIMD_AVX2 __m128i narrow_avx2_f16(__m256 v) {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

SIMD_AVX2 float total_avx2_f32(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

SIMD_AVX2 __m256 load_avx2_f32(const float *p) {
    return _mm256_loadu_ps(p);
}
SIMD_AVX2 __m256 load_part_avx2_f32(const float *p, int n) {
    return _mm256_maskload_ps(p, first_avx2_32(n));
}
SIMD_AVX2 void store_avx2_f32(float *p, __m256 v) {
    _mm256_storeu_ps(p, v);
}
SIMD_AVX2 void stream_avx2_f32(float *p, __m256 v) {
    _mm256_stream_ps(p, v);
}
SIMD_AVX2 void store_part_avx2_f32(float *p, __m256 v, int n) {
    _mm256_maskstore_ps(p, first_avx2_32(n), v);
}
SIMD_AVX2 __m256 splat_avx2_f32(float s) {
    return _mm256_set1_ps(s);
}

SIMD_AVX2 __m256d load_avx2_f64(const double *p) {
    return _mm256_loadu_pd(p);
}
SIMD_AVX2 __m256d load_part_avx2_f64(const double *p, int n) {
    return _mm256_maskload_pd(p, first_avx2_64(n));
}
SIMD_AVX2 void store_avx2_f64(double *p, __m256d v) {
    _mm256_storeu_pd(p, v);
}
SIMD_AVX2 void stream_avx2_f64(double *p, __m256d v) {
    _mm256_stream_pd(p, v);
}
SIMD_AVX2 void store_part_avx2_f64(double *p, __m256d v, int n) {
    _mm256_maskstore_pd(p, first_avx2_64(n), v);
}
SIMD_AVX2 __m256d splat_avx2_f64(double s) {
    return _mm256_set1_pd(s);
}
SIMD_AVX2 double total_avx2_f64(__m256d v) {
    const __m128d half =
        _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}

/* no masked 16-bit moves here: a tail goes through a buffer of one vector */
#define AVX2_HALF(D)                                                                   \
    SIMD_AVX2 __m256 load_avx2_##D(const uint16_t *p) {                                \
        return widen_avx2_##D(_mm_loadu_si128((const __m128i *)(const void *)p));      \
    }                                                                                  \
    SIMD_AVX2 __m256 load_part_avx2_##D(const uint16_t *p, int n) {                    \
        if (n == 8) {                                                                  \
            return load_avx2_##D(p);                                                   \
        }                                                                              \
        uint16_t part[8] = {0};                                                        \
        for (int k = 0; k < n; k++) {                                                  \
            part[k] = p[k];                                                            \
        }                                                                              \
        return load_avx2_##D(part);                                                    \
    }                                                                                  \
    SIMD_AVX2 void store_avx2_##D(uint16_t *p, __m256 v) {                             \
        _mm_storeu_si128((__m128i *)(void *)p, narrow_avx2_##D(v));                    \
    }                                                                                  \
    SIMD_AVX2 void stream_avx2_##D(uint16_t *p, __m256 v) {                            \
        _mm_stream_si128((__m128i *)(void *)p, narrow_avx2_##D(v));                    \
    }                                                                                  \
    SIMD_AVX2 void store_part_avx2_##D(uint16_t *p, __m256 v, int n) {                 \
        uint16_t part[8];                                                              \
        store_avx2_##D(part, v);                                                       \
        for (int k = 0; k < n; k++) {                                                  \
            p[k] = part[k];                                                            \
        }                                                                              \
    }                                                                                  \
    SIMD_AVX2 __m256 splat_avx2_##D(float s) {                                         \
        return _mm256_set1_ps(s);                                                      \
    }                                                                                  \
    SIMD_AVX2 float total_avx2_##D(__m256 v) {                                         \
        return total_avx2_f32(v);                                                      \
    }

AVX2_HALF(bf16)
AVX2_HALF(f16)

/* Lane k is the sum of coef[e] * x[col[e]] over e = begin + k, begin + k + 8, ... */
SIMD_AVX2 __m256 gather_row_avx2_f32(const float *x, const int32_t *col,
                                     const float *coef, int64_t begin, int64_t end) {
    __m256 sum = _mm256_setzero_ps();
    do {
        const __m256i some = first_avx2_32((int)(end - begin));
        const __m256i at = _mm256_maskload_epi32(col + begin, some);
        __m256 v = _mm256_mask_i32gather_ps(_mm256_setzero_ps(), x, at,
                                            _mm256_castsi256_ps(some), 4);
        if (coef != NULL) {
            v *= _mm256_maskload_ps(coef + begin, some);
        }
        sum += v;
        begin += 8;
    } while (begin < end);
    return sum;
}

/* sums[r] = sum of coef[e] * x[col[e]] over e in [end[r], end[r + 1]), four rows of fewer
 * than 2^31 entries; coef NULL: all ones. */
#define GATHERS_avx2_f32 1
SIMD_AVX2 void gather_four_avx2_f32(const float *x, const int32_t *col,
                                    const float *coef, const int64_t *end,
                                    float *sums) {
    const __m256 row0 = gather_row_avx2_f32(x, col, coef, end[0], end[1]);
    const __m256 row1 = gather_row_avx2_f32(x, col, coef, end[1], end[2]);
    const __m256 row2 = gather_row_avx2_f32(x, col, coef, end[2], end[3]);
    const __m256 row3 = gather_row_avx2_f32(x, col, coef, end[3], end[4]);
    const __m256 pairs =
        _mm256_hadd_ps(_mm256_hadd_ps(row0, row1), _mm256_hadd_ps(row2, row3));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs),
                                   _mm256_extractf128_ps(pairs, 1)));
}

#endif

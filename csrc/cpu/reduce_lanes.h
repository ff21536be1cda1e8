/* reduce_lanes.h: comparisons and choices on vectors, and vectors of entry numbers, beside
 * the names of simd_base.h. For each accumulator type A (half types are floats here):
 *   yes_<isa>_A    an answer per lane      codes_<isa>_A   a number per lane
 *   above, below, same (a, b), odd(a)      a > b, a < b, a == b, a is NaN
 *   also, either (y, z), some(y)           y and z, y or z, any lane of y
 *   only(y, a), choose(y, a, b)            a where y, else zero or b
 *   root(a)                                square root
 *   number(c)                              a number in every lane
 *   pick(y, c, d)                          c where y, else d
 *   tie(y, c)                              c + REDUCE_TIE where y
 *   told(c)                                c as arg has it: ties 0: the entry, else -count
 *   alike(c, d), tied(c), count(c)         c == d; c < -1; -c as a vector
 *   read(p, bytes, n), write(p, bytes, c, n)  n numbers of 1, 2 or 4 bytes
 */
#ifndef GNN_REDUCE_LANES_H
#define GNN_REDUCE_LANES_H

#include "cpu/simd.h"

#include <math.h>

/* While a row goes by, a lane's code is entry + REDUCE_TIE * (other entries that tie), of
 * at most GNN_WORK entries. */
#define REDUCE_TIE 0x10000
#define REDUCE_UNSEEN (-REDUCE_TIE) // one more entry, the first: no tie

static inline int64_t reduce_code_at(const void *p, int bytes, int64_t k) {
    return bytes == 1   ? ((const int8_t *)p)[k]
           : bytes == 2 ? ((const int16_t *)p)[k]
                        : ((const int32_t *)p)[k];
}

static inline void reduce_put_code(void *p, int bytes, int64_t k, int64_t code) {
    if (bytes == 1) {
        ((int8_t *)p)[k] = (int8_t)code;
    } else if (bytes == 2) {
        ((int16_t *)p)[k] = (int16_t)code;
    } else {
        ((int32_t *)p)[k] = (int32_t)code;
    }
}

/* The compiler's own vectors: an answer is all ones or all zeros. */
#define LANES_ANSWERS(isa, A, int_t)                                                   \
    typedef int_t codes_##isa##_##A                                                    \
        __attribute__((vector_size(sizeof(vec_##isa##_##A))));                         \
    typedef codes_##isa##_##A yes_##isa##_##A;                                         \
    GNN_VECTOR_OP(isa, yes_##isa##_##A)                                                \
    above_##isa##_##A(vec_##isa##_##A a, vec_##isa##_##A b) {                          \
        return (yes_##isa##_##A)(a > b);                                               \
    }                                                                                  \
    GNN_VECTOR_OP(isa, yes_##isa##_##A)                                                \
    below_##isa##_##A(vec_##isa##_##A a, vec_##isa##_##A b) {                          \
        return (yes_##isa##_##A)(a < b);                                               \
    }                                                                                  \
    GNN_VECTOR_OP(isa, yes_##isa##_##A)                                                \
    same_##isa##_##A(vec_##isa##_##A a, vec_##isa##_##A b) {                           \
        return (yes_##isa##_##A)(a == b);                                              \
    }                                                                                  \
    GNN_VECTOR_OP(isa, yes_##isa##_##A) odd_##isa##_##A(vec_##isa##_##A a) {           \
        return (yes_##isa##_##A)(a != a);                                              \
    }                                                                                  \
    GNN_VECTOR_OP(isa, yes_##isa##_##A)                                                \
    also_##isa##_##A(yes_##isa##_##A y, yes_##isa##_##A z) {                           \
        return y & z;                                                                  \
    }                                                                                  \
    GNN_VECTOR_OP(isa, yes_##isa##_##A)                                                \
    either_##isa##_##A(yes_##isa##_##A y, yes_##isa##_##A z) {                         \
        return y | z;                                                                  \
    }                                                                                  \
    GNN_VECTOR_OP(isa, vec_##isa##_##A)                                                \
    only_##isa##_##A(yes_##isa##_##A y, vec_##isa##_##A a) {                           \
        return (vec_##isa##_##A)(y & (codes_##isa##_##A)a);                            \
    }                                                                                  \
    GNN_VECTOR_OP(isa, vec_##isa##_##A)                                                \
    choose_##isa##_##A(yes_##isa##_##A y, vec_##isa##_##A a, vec_##isa##_##A b) {      \
        return (vec_##isa##_##A)((y & (codes_##isa##_##A)a) |                          \
                                 (~y & (codes_##isa##_##A)b));                         \
    }                                                                                  \
    GNN_VECTOR_OP(isa, codes_##isa##_##A) number_##isa##_##A(int c) {                  \
        return (int_t)c - (codes_##isa##_##A){0};                                      \
    }                                                                                  \
    GNN_VECTOR_OP(isa, codes_##isa##_##A)                                              \
    pick_##isa##_##A(yes_##isa##_##A y, codes_##isa##_##A c, codes_##isa##_##A d) {    \
        return (y & c) | (~y & d);                                                     \
    }                                                                                  \
    GNN_VECTOR_OP(isa, codes_##isa##_##A)                                              \
    tie_##isa##_##A(yes_##isa##_##A y, codes_##isa##_##A c) {                          \
        return c + (y & REDUCE_TIE);                                                   \
    }                                                                                  \
    GNN_VECTOR_OP(isa, codes_##isa##_##A) told_##isa##_##A(codes_##isa##_##A c) {      \
        const codes_##isa##_##A ties = c >> 16;                                        \
        return pick_##isa##_##A((yes_##isa##_##A)(ties != 0), -1 - ties, c);           \
    }                                                                                  \
    GNN_VECTOR_OP(isa, yes_##isa##_##A)                                                \
    alike_##isa##_##A(codes_##isa##_##A c, codes_##isa##_##A d) {                      \
        return (yes_##isa##_##A)(c == d);                                              \
    }                                                                                  \
    GNN_VECTOR_OP(isa, yes_##isa##_##A) tied_##isa##_##A(codes_##isa##_##A c) {        \
        return (yes_##isa##_##A)(c < -1);                                              \
    }                                                                                  \
    GNN_VECTOR_OP(isa, vec_##isa##_##A) count_##isa##_##A(codes_##isa##_##A c) {       \
        return (vec_##isa##_##A) __builtin_convertvector(-c, vec_##isa##_##A);         \
    }                                                                                  \
    GNN_VECTOR_OP(isa, void)                                                           \
    write_##isa##_##A(void *p, int bytes, codes_##isa##_##A c, int n) {                \
        for (int k = 0; k < n; k++) {                                                  \
            reduce_put_code(p, bytes, k, c[k]);                                        \
        }                                                                              \
    }

#define LANES_PLAIN(isa, A)                                                            \
    GNN_VECTOR_OP(isa, bool) some_##isa##_##A(yes_##isa##_##A y) {                     \
        int64_t any = 0;                                                               \
        for (int k = 0; k < LANES_##isa##_##A; k++) {                                  \
            any |= y[k];                                                               \
        }                                                                              \
        return any != 0;                                                               \
    }                                                                                  \
    GNN_VECTOR_OP(isa, codes_##isa##_##A)                                              \
    read_##isa##_##A(const void *p, int bytes, int n) {                                \
        __typeof__((codes_##isa##_##A){0}[0]) lanes[LANES_##isa##_##A] = {0};          \
        codes_##isa##_##A c;                                                           \
        for (int k = 0; k < n; k++) {                                                  \
            lanes[k] = (__typeof__(lanes[0]))reduce_code_at(p, bytes, k);              \
        }                                                                              \
        memcpy(&c, lanes, sizeof c);                                                   \
        return c;                                                                      \
    }                                                                                  \
    GNN_VECTOR_OP(isa, vec_##isa##_##A) root_##isa##_##A(vec_##isa##_##A a) {          \
        for (int k = 0; k < LANES_##isa##_##A; k++) {                                  \
            a[k] = (acc_##A)sqrt((double)a[k]);                                        \
        }                                                                              \
        return a;                                                                      \
    }

LANES_ANSWERS(base, f32, int32_t)
LANES_ANSWERS(base, f64, int64_t)
LANES_PLAIN(base, f32)
LANES_PLAIN(base, f64)
#if defined(__aarch64__)
LANES_ANSWERS(neon, f32, int32_t)
LANES_ANSWERS(neon, f64, int64_t)
LANES_PLAIN(neon, f32)
LANES_PLAIN(neon, f64)
#elif defined(__x86_64__)
LANES_ANSWERS(avx2, f32, int32_t)
LANES_ANSWERS(avx2, f64, int64_t)

SIMD_AVX2 bool some_avx2_f32(yes_avx2_f32 y) {
    return _mm256_movemask_epi8((__m256i)y) != 0;
}
SIMD_AVX2 bool some_avx2_f64(yes_avx2_f64 y) {
    return _mm256_movemask_epi8((__m256i)y) != 0;
}
SIMD_AVX2 __m256 root_avx2_f32(__m256 a) {
    return _mm256_sqrt_ps(a);
}
SIMD_AVX2 __m256d root_avx2_f64(__m256d a) {
    return _mm256_sqrt_pd(a);
}

/* n numbers as the lower bytes of 16, nothing beyond them touched */
SIMD_AVX2 __m128i some_bytes_avx2(const void *p, int bytes, int n) {
    __m128i v = _mm_setzero_si128();
    memcpy(&v, p, (size_t)(bytes * n));
    return v;
}
SIMD_AVX2 codes_avx2_f32 read_avx2_f32(const void *p, int bytes, int n) {
    if (bytes == 1) {
        return (codes_avx2_f32)_mm256_cvtepi8_epi32(n == 8 ? _mm_loadl_epi64(p)
                                                           : some_bytes_avx2(p, 1, n));
    }
    if (bytes == 2) {
        return (codes_avx2_f32)_mm256_cvtepi16_epi32(n == 8 ? _mm_loadu_si128(p)
                                                            : some_bytes_avx2(p, 2, n));
    }
    return (codes_avx2_f32)_mm256_maskload_epi32(p, first_avx2_32(n));
}
SIMD_AVX2 codes_avx2_f64 read_avx2_f64(const void *p, int bytes, int n) {
    const __m128i v = some_bytes_avx2(p, bytes, n);
    return (codes_avx2_f64)(bytes == 1   ? _mm256_cvtepi8_epi64(v)
                            : bytes == 2 ? _mm256_cvtepi16_epi64(v)
                                         : _mm256_cvtepi32_epi64(v));
}

/* avx512: answers are mask registers */
#define LANES_AVX512(A, v, mask, ps, epi, epi_set, n_lanes)                            \
    typedef __m512i codes_avx512_##A;                                                  \
    typedef mask yes_avx512_##A;                                                       \
    SIMD_AVX512 mask above_avx512_##A(v a, v b) {                                      \
        return _mm512_cmp_##ps##_mask(a, b, _CMP_GT_OQ);                               \
    }                                                                                  \
    SIMD_AVX512 mask below_avx512_##A(v a, v b) {                                      \
        return _mm512_cmp_##ps##_mask(a, b, _CMP_LT_OQ);                               \
    }                                                                                  \
    SIMD_AVX512 mask same_avx512_##A(v a, v b) {                                       \
        return _mm512_cmp_##ps##_mask(a, b, _CMP_EQ_OQ);                               \
    }                                                                                  \
    SIMD_AVX512 mask odd_avx512_##A(v a) {                                             \
        return _mm512_cmp_##ps##_mask(a, a, _CMP_UNORD_Q);                             \
    }                                                                                  \
    SIMD_AVX512 mask also_avx512_##A(mask y, mask z) {                                 \
        return (mask)(y & z);                                                          \
    }                                                                                  \
    SIMD_AVX512 mask either_avx512_##A(mask y, mask z) {                               \
        return (mask)(y | z);                                                          \
    }                                                                                  \
    SIMD_AVX512 bool some_avx512_##A(mask y) {                                         \
        return y != 0;                                                                 \
    }                                                                                  \
    SIMD_AVX512 v only_avx512_##A(mask y, v a) {                                       \
        return _mm512_maskz_mov_##ps(y, a);                                            \
    }                                                                                  \
    SIMD_AVX512 v choose_avx512_##A(mask y, v a, v b) {                                \
        return _mm512_mask_mov_##ps(b, y, a);                                          \
    }                                                                                  \
    SIMD_AVX512 v root_avx512_##A(v a) {                                               \
        return _mm512_sqrt_##ps(a);                                                    \
    }                                                                                  \
    SIMD_AVX512 __m512i number_avx512_##A(int c) {                                     \
        return _mm512_set1_##epi_set(c);                                               \
    }                                                                                  \
    SIMD_AVX512 __m512i pick_avx512_##A(mask y, __m512i c, __m512i d) {                \
        return _mm512_mask_mov_##epi(d, y, c);                                         \
    }                                                                                  \
    SIMD_AVX512 __m512i tie_avx512_##A(mask y, __m512i c) {                            \
        return _mm512_mask_add_##epi(c, y, c, _mm512_set1_##epi_set(REDUCE_TIE));      \
    }                                                                                  \
    SIMD_AVX512 __m512i told_avx512_##A(__m512i c) {                                   \
        const __m512i ties = _mm512_srai_##epi(c, 16);                                 \
        return _mm512_mask_sub_##epi(c, _mm512_test_##epi##_mask(ties, ties),          \
                                     _mm512_set1_##epi_set(-1), ties);                 \
    }                                                                                  \
    SIMD_AVX512 mask alike_avx512_##A(__m512i c, __m512i d) {                          \
        return _mm512_cmpeq_##epi##_mask(c, d);                                        \
    }                                                                                  \
    SIMD_AVX512 mask tied_avx512_##A(__m512i c) {                                      \
        return _mm512_cmplt_##epi##_mask(c, _mm512_set1_##epi_set(-1));                \
    }                                                                                  \
    SIMD_AVX512 v count_avx512_##A(__m512i c) {                                        \
        return -_mm512_cvt##epi##_##ps(c);                                             \
    }                                                                                  \
    SIMD_AVX512 __m512i read_avx512_##A(const void *p, int bytes, int n) {             \
        const __mmask16 first = first_avx512(n);                                       \
        if (bytes == 1) {                                                              \
            return _mm512_cvtepi8_##epi(_mm_maskz_loadu_epi8(first, p));               \
        }                                                                              \
        if (bytes == 2) {                                                              \
            return LANES_WIDEN_16_##A(first, p);                                       \
        }                                                                              \
        return LANES_WIDEN_32_##A(first, p);                                           \
    }                                                                                  \
    SIMD_AVX512 void write_avx512_##A(void *p, int bytes, __m512i c, int n) {          \
        const mask first = (mask)first_avx512(n);                                      \
        if (bytes == 1) {                                                              \
            _mm512_mask_cvt##epi##_storeu_epi8(p, first, c);                           \
        } else if (bytes == 2) {                                                       \
            _mm512_mask_cvt##epi##_storeu_epi16(p, first, c);                          \
        } else {                                                                       \
            LANES_NARROW_32_##A(p, first, c);                                          \
        }                                                                              \
    }
#define LANES_WIDEN_16_f32(m, p) _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(m, p))
#define LANES_WIDEN_32_f32(m, p) _mm512_maskz_loadu_epi32(m, p)
#define LANES_NARROW_32_f32(p, m, c) _mm512_mask_storeu_epi32(p, m, c)
#define LANES_WIDEN_16_f64(m, p)                                                       \
    _mm512_cvtepi16_epi64(_mm_maskz_loadu_epi16((__mmask8)(m), p))
#define LANES_WIDEN_32_f64(m, p)                                                       \
    _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32((__mmask8)(m), p))
#define LANES_NARROW_32_f64(p, m, c) _mm512_mask_cvtepi64_storeu_epi32(p, m, c)
LANES_AVX512(f32, __m512, __mmask16, ps, epi32, epi32, 16)
LANES_AVX512(f64, __m512d, __mmask8, pd, epi64, epi64, 8)
#undef LANES_AVX512
#endif
#undef LANES_ANSWERS
#undef LANES_PLAIN

#endif

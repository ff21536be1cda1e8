/* reduce_log.h: natural logarithms of vectors, beside the names of simd_exp.h:
 *   ln_<isa>_A(v)   of v in [0, 2^100]; -inf of 0, NaN of NaN
 *
 * v = 2^k m with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s), s = (m - 1) / (m + 1), by
 * its series in s^2 <= 0.0295: five terms leave 3e-9 of it (float), eleven 2e-18 (double).
 */
#ifndef GNN_REDUCE_LOG_H
#define GNN_REDUCE_LOG_H

#include "cpu/reduce_lanes.h"
#include "cpu/simd_exp.h"

#define LN_SERIES_f32(q)                                                               \
    (1 +                                                                               \
     q * (0.333333333F +                                                               \
          q * (0.2F + q * (0.142857143F + q * (0.111111111F + q * 0.0909090909F)))))
#define LN_SERIES_f64(q)                                                               \
    (1 +                                                                               \
     q * (1.0 / 3 +                                                                    \
          q * (1.0 / 5 +                                                               \
               q * (1.0 / 7 +                                                          \
                    q * (1.0 / 9 +                                                     \
                         q * (1.0 / 11 +                                               \
                              q * (1.0 / 13 +                                          \
                                   q * (1.0 / 15 +                                     \
                                        q * (1.0 / 17 +                                \
                                             q * (1.0 / 19 +                           \
                                                  q * (1.0 / 21 + q / 23)))))))))))

/* half: the bits of sqrt(1/2); one: those of 1 */
#define LN_OF(isa, A, bits_t, mantissa, half, one)                                     \
    GNN_VECTOR_OP(isa, vec_##isa##_##A) ln_##isa##_##A(vec_##isa##_##A v) {            \
        typedef bits_t bits __attribute__((vector_size(sizeof(v))));                   \
        bits word;                                                                     \
        memcpy(&word, &v, sizeof word);                                                \
        word += one - half;                                                            \
        const bits exponent = (word >> mantissa) - (one >> mantissa);                  \
        word = (word & (((bits_t)1 << mantissa) - 1)) + half;                          \
        vec_##isa##_##A m;                                                             \
        memcpy(&m, &word, sizeof m);                                                   \
        const vec_##isa##_##A k =                                                      \
            (vec_##isa##_##A) __builtin_convertvector(exponent, vec_##isa##_##A);      \
        const vec_##isa##_##A s = (m - 1) / (m + 1), q = s * s;                        \
        const vec_##isa##_##A ln =                                                     \
            k * EXP_LN2_HIGH_##A + (2 * s * LN_SERIES_##A(q) + k * EXP_LN2_LOW_##A);   \
        const vec_##isa##_##A zero = splat_##isa##_##A(0);                             \
        const vec_##isa##_##A least = splat_##isa##_##A(-(acc_##A)INFINITY);           \
        return choose_##isa##_##A(same_##isa##_##A(v, zero), least, ln) + (v - v);     \
    }
#define LN_OF_ISA(isa, text, has)                                                      \
    LN_OF(isa, f32, int32_t, 23, 0x3f3504f3, 0x3f800000)                               \
    LN_OF(isa, f64, int64_t, 52, 0x3fe6a09e667f3bcd, 0x3ff0000000000000)
GNN_ISA_MAP(LN_OF_ISA)
#undef LN_OF
#undef LN_OF_ISA

#endif

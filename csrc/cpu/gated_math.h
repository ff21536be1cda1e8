/* gated_math.h: the two functions of gated sums on vectors, beside the names of simd_exp.h:
 *   sigmoid_<isa>_A(z)            1 / (1 + e^-z)
 *   softplus_<isa>_A(z, &rise)    log(1 + e^z), above 20 z itself as torch has it, and its
 *                                 derivative, the sigmoid of z (1 above 20)
 * NaN stays NaN.
 *
 * softplus z = max(z, 0) + log(1 + t) with t = e^-|z| in (0, 1]. log(1 + t) is
 * 2 artanh(t / (2 + t)), or where t is above sqrt 2 - 1, log 2 + 2 artanh((t - 1) / (t + 3)):
 * the argument is below 0.172 either way, in reach of the series of reduce_log.h, and
 * nothing cancels where t is small.
 */
#ifndef GNN_GATED_MATH_H
#define GNN_GATED_MATH_H

#include "cpu/reduce_log.h"

#define GATED_OF(isa, A)                                                               \
    GNN_VECTOR_OP(isa, vec_##isa##_##A) sigmoid_##isa##_##A(vec_##isa##_##A z) {       \
        return 1 / (1 + exp_##isa##_##A(-z));                                          \
    }                                                                                  \
    GNN_VECTOR_OP(isa, vec_##isa##_##A)                                                \
    softplus_##isa##_##A(vec_##isa##_##A z, vec_##isa##_##A *rise) {                   \
        const vec_##isa##_##A zero = splat_##isa##_##A(0), one = zero + 1;             \
        const yes_##isa##_##A up = above_##isa##_##A(z, zero);                         \
        const yes_##isa##_##A far = above_##isa##_##A(z, zero + 20);                   \
        vec_##isa##_##A t = exp_##isa##_##A(choose_##isa##_##A(up, -z, z));            \
        t = choose_##isa##_##A(far, zero, t);                                          \
        const yes_##isa##_##A big =                                                    \
            above_##isa##_##A(t, zero + (acc_##A)0.41421356237309505);                 \
        const vec_##isa##_##A s = choose_##isa##_##A(big, t - 1, t) /                  \
                                  (t + choose_##isa##_##A(big, one + 2, one + 1));     \
        const vec_##isa##_##A q = s * s;                                               \
        *rise = choose_##isa##_##A(up, one, t) / (1 + t);                              \
        return choose_##isa##_##A(up, z, zero) +                                       \
               (choose_##isa##_##A(big, zero + (acc_##A)0.69314718055994531, zero) +   \
                2 * s * LN_SERIES_##A(q));                                             \
    }
#define GATED_OF_ISA(isa, text, has) GATED_OF(isa, f32) GATED_OF(isa, f64)
GNN_ISA_MAP(GATED_OF_ISA)
#undef GATED_OF
#undef GATED_OF_ISA

#endif

/* simd.h: every vector variant this machine's compiler can make, and the table of all
 * (instruction set, dtype) pairs that the row templates are instantiated for. */
#ifndef GNN_SIMD_H
#define GNN_SIMD_H

#include "cpu/isa.h"
#include "cpu/simd_base.h"
#if defined(__x86_64__)
#include "cpu/simd_avx2.h"
#include "cpu/simd_avx512.h"
#elif defined(__aarch64__)
#include "cpu/simd_neon.h"
#endif

#define GNN_GLUE3_(a, b, c) a##_##b##_##c
#define GNN_GLUE3(a, b, c) GNN_GLUE3_(a, b, c)
#define GNN_GLUE2_(a, b) a##_##b
#define GNN_GLUE2(a, b) GNN_GLUE2_(a, b)

/* The four feature dtypes, as suffixes, and the dtype each accumulates in. */
#define GNN_FEATURE_MAP(X)                                                             \
    X(GNN_F32, f32, f32)                                                               \
    X(GNN_F64, f64, f64)                                                               \
    X(GNN_BF16, bf16, f32)                                                             \
    X(GNN_F16, f16, f32)

/* The arithmetic of vectors that are the compiler's own: add a + b, madd a + c * v, times
 * a * c; keep writes the lanes as they are, kept reads them back. */
#define GNN_VECTOR_OP(isa, type)                                                       \
    TARGET_##isa static inline __attribute__((always_inline)) type
#define GNN_VECTOR_OPS(isa, d)                                                         \
    GNN_VECTOR_OP(isa, vec_##isa##_##d)                                                \
    add_##isa##_##d(vec_##isa##_##d a, vec_##isa##_##d b) {                            \
        return a + b;                                                                  \
    }                                                                                  \
    GNN_VECTOR_OP(isa, vec_##isa##_##d)                                                \
    madd_##isa##_##d(vec_##isa##_##d a, vec_##isa##_##d c, vec_##isa##_##d v) {        \
        return a + c * v;                                                              \
    }                                                                                  \
    GNN_VECTOR_OP(isa, vec_##isa##_##d)                                                \
    times_##isa##_##d(vec_##isa##_##d a, vec_##isa##_##d c) {                          \
        return a * c;                                                                  \
    }                                                                                  \
    GNN_VECTOR_OP(isa, void) keep_##isa##_##d(acc_##d *p, vec_##isa##_##d v) {         \
        memcpy(p, &v, sizeof v);                                                       \
    }                                                                                  \
    GNN_VECTOR_OP(isa, vec_##isa##_##d) kept_##isa##_##d(const acc_##d *p) {           \
        vec_##isa##_##d v;                                                             \
        memcpy(&v, p, sizeof v);                                                       \
        return v;                                                                      \
    }
#define GNN_VECTOR_OPS_OF(isa, text, has)                                              \
    GNN_VECTOR_OPS(isa, f32)                                                           \
    GNN_VECTOR_OPS(isa, f64)                                                           \
    GNN_VECTOR_OPS(isa, bf16)                                                          \
    GNN_VECTOR_OPS(isa, f16)
GNN_ISA_MAP(GNN_VECTOR_OPS_OF)
#if defined(__x86_64__)
GNN_VECTOR_OPS(narrow, f32)
#endif

#endif

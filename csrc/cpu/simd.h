/* simd.h: every vector variant this machine's compiler can make, and the table of all
 * (instruction set, dtype) pairs that the row templates are instantiated for. */
#ifndef GNN_SIMD_H
#define GNN_SIMD_H

#include "cpu/isa.h"
#include "cpu/simd_base.h"
#if defined(__x86_64__)
#include "cpu/simd_avx2.h"
#include "cpu/simd_avx512.h"
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

#endif

/* isa.h: which compiled variant of the CPU kernels runs. One row per instruction set:
 * name, text, what the machine must have. The best comes first. */
#ifndef GNN_ISA_H
#define GNN_ISA_H

#include "gnn.h"

#if defined(__x86_64__)
#define GNN_ISA_MAP(X)                                                                 \
    X(avx512, "avx512",                                                                \
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&       \
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&  \
          __builtin_cpu_supports("fma"))                                               \
    X(avx2, "avx2",                                                                    \
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&               \
          __builtin_cpu_supports("f16c"))                                              \
    X(base, "c", true)
#elif defined(__aarch64__)
#define GNN_ISA_MAP(X) X(neon, "neon", true) X(base, "c", true)
#else
#define GNN_ISA_MAP(X) X(base, "c", true)
#endif

#define GNN_ISA_ENUM(name, text, has) GNN_ISA_##name,
typedef enum gnn_isa { GNN_ISA_MAP(GNN_ISA_ENUM) GNN_ISA_COUNT } gnn_isa;
#undef GNN_ISA_ENUM

/* The variant in use. GNN_EINVAL if GNNOFFLOAD_ISA names one this machine lacks. */
gnn_status gnn_isa_get(gnn_isa *isa);

/* Tests only: use this variant from now on. GNN_ENOTSUP if the machine lacks it. */
gnn_status gnn_isa_set(gnn_isa isa);

const char *gnn_isa_name(gnn_isa isa); // "avx512"

#endif

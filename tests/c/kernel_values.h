/* kernel_values.h: arrays of any feature dtype as doubles and back, and the bound rule. */
#ifndef KERNEL_VALUES_H
#define KERNEL_VALUES_H

#include "cpu/scalar.h"
#include "kernel_checks.h"

#include <math.h>

static const gnn_dtype feature_dtypes[] = {GNN_F32, GNN_F64, GNN_BF16, GNN_F16};

static inline double value_at(const void *values, gnn_dtype dtype, int64_t i) {
    switch (dtype) {
    case GNN_F32:
        return ((const float *)values)[i];
    case GNN_F64:
        return ((const double *)values)[i];
    case GNN_BF16:
        return up_bf16(((const uint16_t *)values)[i]);
    default:
        return up_f16(((const uint16_t *)values)[i]);
    }
}

static inline void set_value(void *values, gnn_dtype dtype, int64_t i, double v) {
    switch (dtype) {
    case GNN_F32:
        ((float *)values)[i] = (float)v;
        break;
    case GNN_F64:
        ((double *)values)[i] = v;
        break;
    case GNN_BF16:
        ((uint16_t *)values)[i] = down_bf16((float)v);
        break;
    default:
        ((uint16_t *)values)[i] = down_f16((float)v);
    }
}

static inline gnn_dtype accumulator(gnn_dtype dtype) {
    return dtype == GNN_F64 ? GNN_F64 : GNN_F32;
}

/* n values: integers in [-limit, limit], or reals in (-1, 1) for limit 0 */
static inline void *random_values(int64_t n, gnn_dtype dtype, int64_t limit,
                                  uint64_t seed) {
    void *values = get(n, gnn_dtype_size(dtype));
    for (int64_t i = 0; i < n; i++) {
        set_value(values, dtype, i,
                  limit > 0 ? (double)random_integer(&seed, -limit, limit)
                            : random_unit(&seed));
    }
    return values;
}

/* What a sum of n terms with the given sum of magnitudes may miss: gamma of n plus the
 * three products of weight and scales, then rounding on storing. */
static inline double error_bound(gnn_dtype dtype, int64_t n, double magnitude,
                                 double value) {
    const double u = dtype == GNN_F64 ? 0x1p-53 : 0x1p-24;
    const double gamma = (double)(n + 3) * u / (1 - (double)(n + 3) * u);
    const double store = dtype == GNN_BF16 ? 0x1p-8 : dtype == GNN_F16 ? 0x1p-11 : u;
    const double tiny = dtype == GNN_F16 ? 0x1p-25 : 0; // half's subnormals
    return gamma * magnitude + store * (fabs(value) + gamma * magnitude) + tiny;
}

#endif

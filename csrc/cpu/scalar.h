/* scalar.h: one element of each dtype to and from its accumulator, and conversions of
 * half types in plain integer arithmetic: exact up, round to nearest even down, NaN stays
 * NaN. The vector variants in simd_*.h do the same to whole vectors. */
#ifndef GNN_SCALAR_H
#define GNN_SCALAR_H

#include <stdint.h>
#include <string.h>

typedef float store_f32;
typedef double store_f64;
typedef uint16_t store_bf16;
typedef uint16_t store_f16;

typedef float acc_f32;
typedef double acc_f64;
typedef float acc_bf16;
typedef float acc_f16;

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float up_f32(float v) {
    return v;
}

static inline double up_f64(double v) {
    return v;
}

static inline float up_bf16(uint16_t v) {
    return float_of_bits((uint32_t)v << 16);
}

static inline float up_f16(uint16_t v) {
    const uint32_t sign = (uint32_t)(v & 0x8000) << 16, rest = v & 0x7fff;
    if (rest >= 0x7c00) { // inf, NaN
        return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    }
    if (rest < 0x0400) { // zero, subnormal: rest * 2^-24 is exact in float
        const float magnitude = (float)rest * 0x1p-24F;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    return float_of_bits(sign | ((rest << 13) + ((127 - 15) << 23)));
}

static inline float down_f32(float v) {
    return v;
}

static inline double down_f64(double v) {
    return v;
}

static inline uint16_t down_bf16(float v) {
    const uint32_t bits = bits_of_float(v);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (uint16_t)(bits >> 16 | 0x0040); // quiet NaN
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline uint16_t down_f16(float v) {
    const uint32_t bits = bits_of_float(v), sign = bits >> 16 & 0x8000;
    const uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) {
        return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x1ff));
    }
    if (rest >= 0x477ff000) { // rounds to 2^16 or above
        return (uint16_t)(sign | 0x7c00);
    }
    if (rest < 0x38800000) { // below 2^-14: adding 0.5 rounds to multiples of 2^-24
        const float rounded = float_of_bits(rest) + 0.5F;
        return (uint16_t)(sign | (bits_of_float(rounded) - 0x3f000000));
    }
    return (uint16_t)(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
}

#endif

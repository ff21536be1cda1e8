/* test_cpu_scalar.c: half types to float and back: every bit pattern, and rounding to
 * nearest even decided by looking at both neighbours. */
#include "kernel_values.h"

/* The value of a half or bfloat16 from its fields, in double. */
static double slow_value(uint16_t bits, int exponent_bits, int fraction_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
    const double fraction = bits & ((1 << fraction_bits) - 1);
    const double sign = bits >> 15 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) {
        return fraction != 0 ? NAN : sign * INFINITY;
    }
    return exponent == 0 ? sign * ldexp(fraction, 1 - bias - fraction_bits)
                         : sign * ldexp(ldexp(1, fraction_bits) + fraction,
                                        exponent - bias - fraction_bits);
}

static void check_round_trip(void) {
    for (unsigned bits = 0; bits < 65536; bits++) {
        const uint16_t b = (uint16_t)bits;
        const double half = slow_value(b, 5, 10), brain = slow_value(b, 8, 7);
        const float got_half = up_f16(b), got_brain = up_bf16(b);
        CHECK(isnan(half) ? isnan(got_half) : half == (double)got_half, "f16 %u", bits);
        CHECK(isnan(brain) ? isnan(got_brain) : brain == (double)got_brain, "bf16 %u",
              bits);
        CHECK(isnan(half) ? isnan(up_f16(down_f16(got_half))) : down_f16(got_half) == b,
              "f16 %u", bits);
        CHECK(isnan(brain) ? isnan(up_bf16(down_bf16(got_brain)))
                           : down_bf16(got_brain) == b,
              "bf16 %u", bits);
    }
}

/* Between the pattern below and the one above, the nearer wins, the even one on a tie;
 * half's first value beyond the largest finite one stands for infinity. */
static void check_nearest(double v, uint16_t got, int exponent_bits,
                          int fraction_bits) {
    const double limit = ldexp(2 - ldexp(1, -fraction_bits - 1),
                               (1 << (exponent_bits - 1)) - 1); // rounds to infinity
    const double rounded = slow_value(got, exponent_bits, fraction_bits);
    if (fabs(v) >= limit) {
        CHECK(isinf(rounded) && signbit(rounded) == signbit(v), "%a", v);
        return;
    }
    const double here = fabs(v - rounded);
    for (int step = -1; step <= 1; step += 2) {
        if ((got & 0x7fff) == 0 && step < 0) {
            continue; // below zero is the other sign
        }
        const double other =
            slow_value((uint16_t)(got + step), exponent_bits, fraction_bits);
        CHECK(here < fabs(v - other) || (here == fabs(v - other) && (got & 1) == 0),
              "%a became %a, %a is as near", v, rounded, other);
    }
}

static void check_rounding(void) {
    uint64_t seed = 1;
    for (int k = 0; k < 2000000; k++) {
        float v = float_of_bits((uint32_t)random_bits(&seed));
        if (k & 1) { // exactly between, or next to it
            const uint16_t low = (uint16_t)random_bits(&seed);
            v = k & 2 ? (up_f16(low) + up_f16((uint16_t)(low + 1))) / 2
                      : float_of_bits((uint32_t)low << 16 | 0x8000);
            v = float_of_bits(bits_of_float(v) +
                              (uint32_t)random_integer(&seed, -1, 1));
        }
        if (!isfinite(v)) {
            continue;
        }
        check_nearest(v, down_f16(v), 5, 10);
        check_nearest(v, down_bf16(v), 8, 7);
    }
}

int main(void) {
    check_round_trip();
    check_rounding();
    return 0;
}

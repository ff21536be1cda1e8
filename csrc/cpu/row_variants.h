/* row_variants.h: includes the row template ROWS once for every instruction set and
 * dtype of this machine's compiler, with ISA, D (a dtype) and A (its accumulator's)
 * defined; the template undefines those three, this file ROWS.
 *
 *   #define ROWS "cpu/heads_rows.h"
 *   #include "cpu/row_variants.h"
 *
 * X86_BF16, undefined as well, may name another form of bfloat16 for AVX.
 */
#ifndef X86_BF16
#define X86_BF16 bf16
#endif
#if defined(__x86_64__)
#define ISA avx512
#define D f32
#define A f32
#include ROWS
#define ISA avx512
#define D f64
#define A f64
#include ROWS
#define ISA avx512
#define D X86_BF16
#define A f32
#include ROWS
#define ISA avx512
#define D f16
#define A f32
#include ROWS
#define ISA avx2
#define D f32
#define A f32
#include ROWS
#define ISA avx2
#define D f64
#define A f64
#include ROWS
#define ISA avx2
#define D X86_BF16
#define A f32
#include ROWS
#define ISA avx2
#define D f16
#define A f32
#include ROWS
#elif defined(__aarch64__)
#define ISA neon
#define D f32
#define A f32
#include ROWS
#define ISA neon
#define D f64
#define A f64
#include ROWS
#define ISA neon
#define D bf16
#define A f32
#include ROWS
#define ISA neon
#define D f16
#define A f32
#include ROWS
#endif
#define ISA base
#define D f32
#define A f32
#include ROWS
#define ISA base
#define D f64
#define A f64
#include ROWS
#define ISA base
#define D bf16
#define A f32
#include ROWS
#define ISA base
#define D f16
#define A f32
#include ROWS
#undef ROWS
#undef X86_BF16

/* exec_undefined.cpp: what gcc calls where a kernel's C++ is undefined
 * (-fsanitize=alignment,bounds,signed-integer-overflow,...): a strict error like the others.
 */
#include "exec_memory.h"
#include "exec_state.h"

#include <cstdio>
#include <cstdlib>

#if !defined(__SANITIZE_ADDRESS__) // there the sanitizer's own runtime answers

struct UbPlace {
    const char *file;
    uint32_t line, column;
};
struct UbType {
    uint16_t kind, info;
    char name[1];
};
struct UbMisaligned {
    UbPlace place;
    const UbType *type;
    uint8_t log_alignment, kind;
};
struct UbIndex {
    UbPlace place;
    const UbType *array, *index;
};
struct UbOverflow {
    UbPlace place;
    const UbType *type;
};

static void undefined(const UbPlace &place, const char *what, const char *type) {
    if (exec::ex.current == nullptr) {
        fprintf(stderr, "%s:%u: %s %s on the host\n", place.file, place.line, what,
                type);
        abort();
    }
    exec::fail({place.file, int(place.line)}, "%s %s", what, type);
}

extern "C" {
void __ubsan_handle_type_mismatch_v1(UbMisaligned *u, uintptr_t a) {
    const std::string what = "misaligned: " + std::to_string(1 << u->log_alignment) +
                             "-byte alignment at " + exec::describe(a) + " for";
    undefined(u->place, what.c_str(), u->type->name);
}
void __ubsan_handle_out_of_bounds(UbIndex *u, uintptr_t index) {
    const std::string what = "index " + std::to_string(intptr_t(index)) + " of";
    undefined(u->place, what.c_str(), u->array->name);
}
#define ARITHMETIC(event, text)                                                        \
    void __ubsan_handle_##event(UbOverflow *u, uintptr_t, uintptr_t) {                 \
        undefined(u->place, text " of", u->type->name);                                \
    }
ARITHMETIC(add_overflow, "overflowing sum")
ARITHMETIC(sub_overflow, "overflowing difference")
ARITHMETIC(mul_overflow, "overflowing product")
ARITHMETIC(negate_overflow, "overflowing negation")
ARITHMETIC(divrem_overflow, "division by zero or overflow")
ARITHMETIC(shift_out_of_bounds, "shift out of range")
}

#endif

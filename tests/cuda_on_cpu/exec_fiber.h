/* exec_fiber.h: a stack of its own for each GPU thread, and the switch between them.
 *
 * x86-64 has its own switch (7 ns; swapcontext makes a system call and takes 220 ns), every
 * other machine uses ucontext. Builds with AddressSanitizer tell it about each switch.
 */
#ifndef EXEC_FIBER_H
#define EXEC_FIBER_H

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(EXEC_UCONTEXT) // a test defines it anywhere
#define EXEC_UCONTEXT
#endif
#if defined(EXEC_UCONTEXT)
#include <ucontext.h>
#endif

namespace exec {

enum { FIBER_STACK = 1 << 16 };

struct Fiber {
    char *stack = nullptr; // [FIBER_STACK], a page without access below it
#if !defined(EXEC_UCONTEXT)
    void *sp = nullptr;
#else
    ucontext_t context;
#endif
    void *asan_fake_stack = nullptr;

    bool owns(uintptr_t address) const {
        return address - uintptr_t(stack) < FIBER_STACK;
    }
};

/* Sets the fiber to start entry() at its next turn; allocates its stack the first time.
 * entry must not return. */
void fiber_start(Fiber *fiber, void (*entry)());
/* Saves the caller in `from` and goes on in `to`. `last`: `from` never runs on. */
void fiber_switch(Fiber *from, Fiber *to, bool last);
void fiber_entered(); // the first thing entry() calls

} // namespace exec

#endif

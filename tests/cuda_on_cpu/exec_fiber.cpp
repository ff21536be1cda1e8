/* exec_fiber.cpp: stacks and the switch. */
#include "exec_fiber.h"

#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace exec {

static char *new_stack() {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    char *p =
        static_cast<char *>(mmap(nullptr, FIBER_STACK + page, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE) != 0) {
        perror("executor: the stack of a GPU thread");
        abort();
    }
    return p + page;
}

#if !defined(EXEC_UCONTEXT)
/* Callee-saved registers go onto the old stack, and come from the new one. */
extern "C" void exec_swap(void **save_sp, void *sp);
asm(R"(
    .text
    .globl exec_swap
    .hidden exec_swap
    .type exec_swap, @function
exec_swap:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size exec_swap, .-exec_swap
)");

void fiber_start(Fiber *fiber, void (*entry)()) {
    if (fiber->stack == nullptr) {
        fiber->stack = new_stack();
    }
    // six registers, the address to return to, and the end of the call chain
    void **sp = reinterpret_cast<void **>(fiber->stack + FIBER_STACK) - 8;
    for (int i = 0; i < 8; i++) {
        sp[i] = nullptr;
    }
    sp[6] = reinterpret_cast<void *>(entry);
    fiber->sp = sp;
}

static void swap(Fiber *from, Fiber *to) {
    exec_swap(&from->sp, to->sp);
}
#else
void fiber_start(Fiber *fiber, void (*entry)()) {
    if (fiber->stack == nullptr) {
        fiber->stack = new_stack();
    }
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = FIBER_STACK;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, entry, 0);
}

static void swap(Fiber *from, Fiber *to) {
    swapcontext(&from->context, &to->context);
}
#endif

#if defined(__SANITIZE_ADDRESS__)
/* The scheduler runs on the stack of the process, which ASan itself describes. */
static const void *host_stack;
static size_t host_size;

void fiber_switch(Fiber *from, Fiber *to, bool last) {
    const bool to_host = to->stack == nullptr;
    __sanitizer_start_switch_fiber(last ? nullptr : &from->asan_fake_stack,
                                   to_host ? host_stack : to->stack,
                                   to_host ? host_size : size_t(FIBER_STACK));
    swap(from, to);
    __sanitizer_finish_switch_fiber(from->asan_fake_stack, nullptr, nullptr);
}

void fiber_entered() {
    __sanitizer_finish_switch_fiber(nullptr, &host_stack, &host_size);
}
#else
void fiber_switch(Fiber *from, Fiber *to, bool) {
    swap(from, to);
}

void fiber_entered() {}
#endif

} // namespace exec

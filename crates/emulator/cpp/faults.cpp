// A kernel that touches memory which is not its own: says where and ends.
#include "scheduler.h"

#include "launch.h"

#include <csignal>
#include <dlfcn.h>

namespace emulated {

static struct sigaction before_segv;
static struct sigaction before_bus;
static struct sigaction before_ill;

static void describe(const void* address) {
    char nearby[160];
    for (const Guarded* stack : running->stacks) {
        if (stack->guards(address)) {
            fail("the emulated thread's stack of %zu bytes is too small", STACK_BYTES);
        }
    }
    if (running->dynamic.guards(address) || running->statics.guards(address)) {
        fail("touches %p, outside of shared memory", address);
    }
    describe_global(address, nearby, sizeof(nearby));
    fail("touches %p, %s", address, nearby);
}

// The compiler ends what it found to be at no multiple of its size so.
[[noreturn]] static void describe_unaligned(const void* code) {
    Dl_info info;
    if (dladdr(code, &info) && info.dli_fname) {
        fail("a variable or vector is at an address that is no multiple of its size [addr2line -ife %s 0x%tx]",
             info.dli_fname, (const u8*)code - (const u8*)info.dli_fbase);
    }
    fail("a variable or vector is at an address that is no multiple of its size, at %p", code);
}

static void on_fault(int signal, siginfo_t* info, void*) {
    if (running && current) {
        if (signal == SIGILL) {
            describe_unaligned(info->si_addr);
        }
        describe(info->si_addr);
    }
    // Not a kernel's: the instruction runs again, under the handler from before.
    sigaction(signal, signal == SIGSEGV ? &before_segv : signal == SIGBUS ? &before_bus : &before_ill, nullptr);
}

// A fiber's stack may be what is full, so the handler has one of its own.
static void give_handler_a_stack() {
    static thread_local std::unique_ptr<Guarded> stack;
    if (stack) {
        return;
    }
    stack.reset(new Guarded(64 * 1024));
    stack_t description{};
    description.ss_sp = stack->begin();
    description.ss_size = stack->bytes();
    sigaltstack(&description, nullptr);
}

void catch_faults() {
    static const bool installed = [] {
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        return sigaction(SIGSEGV, &action, &before_segv) == 0 && sigaction(SIGBUS, &action, &before_bus) == 0 &&
               sigaction(SIGILL, &action, &before_ill) == 0;
    }();
    (void)installed;
    give_handler_a_stack();
}

}  // namespace emulated

// A fiber: a stack of its own, and a switch that leaves one and enters another. x86-64 and arm64, System V.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Saves the registers that a call preserves on the current stack, keeps its pointer in *from, and returns on
// the other stack from the call that once left it.
extern "C" void metal_sim_switch(void** from, void* to);

#if defined(__x86_64__)
extern "C"
    __attribute__((naked, noinline, visibility("hidden"))) inline void metal_sim_switch(void**, void*) {
  asm(R"(
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
  )");
}

// What metal_sim_switch pops when it enters a fiber for the first time: six registers, then where to begin.
// The word above is the return address that `entry` never uses; it keeps the stack aligned as after a call.
inline void* fresh_stack(char* top, void (*entry)()) {
  void** p = reinterpret_cast<void**>(top);
  *--p = nullptr;
  *--p = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--p = nullptr;
  return p;
}
#elif defined(__aarch64__)
extern "C"
    __attribute__((naked, noinline, visibility("hidden"))) inline void metal_sim_switch(void**, void*) {
  asm(R"(
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
  )");
}

// The registers as metal_sim_switch keeps them, all zero but x30, the link register.
inline void* fresh_stack(char* top, void (*entry)()) {
  void** p = reinterpret_cast<void**>(top) - 20;
  for (int i = 0; i < 20; ++i) p[i] = nullptr;
  p[11] = reinterpret_cast<void*>(entry);
  return p;
}
#else
#error "metal_sim: this processor has no metal_sim_switch yet; add one above"
#endif

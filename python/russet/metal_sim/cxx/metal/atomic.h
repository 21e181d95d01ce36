// Atomics. Threads take turns, so any access is atomic; they are real ones for ThreadSanitizer's sake, which
// takes two plain accesses for a race.
#pragma once
#include "../thread.h"
#include "vector.h"

namespace metal {

enum memory_order {
  memory_order_relaxed,
  memory_order_acquire,
  memory_order_release,
  memory_order_acq_rel,
  memory_order_seq_cst
};
enum thread_scope {
  thread_scope_thread,
  thread_scope_simdgroup,
  thread_scope_threadgroup,
  thread_scope_device
};

template <class T>
struct atomic {
  T value;
};
template <class T>
using _atomic = atomic<T>;
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_ulong = atomic<ulong>;
using atomic_bool = atomic<bool>;
using atomic_float = atomic<float>;

// Says to the counting of accesses that this one is atomic.
struct AtomicAccess {
#if METAL_SIM_COUNT
  METAL_SIM_INLINE AtomicAccess() { metal_sim::in_atomic = true; }
  METAL_SIM_INLINE ~AtomicAccess() { metal_sim::in_atomic = false; }
#endif
};

template <class T>
METAL_SIM_INLINE T atomic_load_explicit(const volatile atomic<T>* from, memory_order) {
  T value;
  const AtomicAccess atomic_access;
  __atomic_load(&from->value, &value, __ATOMIC_RELAXED);
  return value;
}
template <class T, class U>
METAL_SIM_INLINE void atomic_store_explicit(volatile atomic<T>* to, U desired, memory_order) {
  T value = T(desired);
  const AtomicAccess atomic_access;
  __atomic_store(&to->value, &value, __ATOMIC_RELAXED);
}

// Gives what was there, and leaves `value`, an expression in old and operand.
#define METAL_SIM_ATOMIC(name, result)                                                                  \
  template <class T, class U>                                                                           \
  METAL_SIM_INLINE T atomic_##name##_explicit(volatile atomic<T>* at, U operand_, memory_order order) { \
    const T old = atomic_load_explicit(at, order), operand = T(operand_);                               \
    (void)operand;                                                                                      \
    atomic_store_explicit(at, T(result), order);                                                        \
    return old;                                                                                         \
  }
METAL_SIM_ATOMIC(exchange, operand)
METAL_SIM_ATOMIC(fetch_add, old + operand)
METAL_SIM_ATOMIC(fetch_sub, old - operand)
METAL_SIM_ATOMIC(fetch_and, old& operand)
METAL_SIM_ATOMIC(fetch_or, old | operand)
METAL_SIM_ATOMIC(fetch_xor, old ^ operand)
METAL_SIM_ATOMIC(fetch_min, operand < old ? operand : old)
METAL_SIM_ATOMIC(fetch_max, old < operand ? operand : old)
#undef METAL_SIM_ATOMIC

template <class T, class U>
METAL_SIM_INLINE bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* at, T* expected, U desired,
                                                            memory_order order, memory_order) {
  const T old = atomic_load_explicit(at, order);
  const bool same = !__builtin_memcmp(&old, expected, sizeof(T));
  if (same) atomic_store_explicit(at, desired, order);
  *expected = old;
  return same;
}
METAL_SIM_INLINE void atomic_thread_fence(auto, memory_order, thread_scope = thread_scope_device) {}

}  // namespace metal

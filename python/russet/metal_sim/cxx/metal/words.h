// The words of translated Metal text. Included last: `device` and `threadgroup` are common names elsewhere.
#pragma once
#include "kernel.h"

// What translate.py writes in place of Metal's own words.
#define METAL_SIM_KERNEL_BEGINS(max_threads)                               \
  if (::metal_sim::only_naming) [[unlikely]] {                             \
    ::metal_sim::enter_kernel(__PRETTY_FUNCTION__, uint32_t(max_threads)); \
    return;                                                                \
  }
#define METAL_SIM_SHARED static
#define METAL_SIM_THREADGROUP_VARIABLE(name)                                                                 \
  static const ::metal_sim::ThreadgroupVariable name##_record_                                               \
      __attribute__((section("metal_sim_tg"), used, retain, no_sanitize("address"))) = {__PRETTY_FUNCTION__, \
                                                                                        &name, sizeof name};
#define METAL_SIM_FUNCTION_CONSTANT(type, name, index) \
  static ::metal_sim::Constant<type> name = {type(), false, index};
#define METAL_SIM_DERIVED_CONSTANT(type, name, ...) \
  static const auto name = ::metal_sim::derived_constant<type>([] { return type(__VA_ARGS__); });
#define is_function_constant_defined(name) (::metal_sim::is_defined(name))

// Address spaces are checked by the strict pass; here all memory is the same.
#define device
#define constant const
#define threadgroup
#define thread
#define kernel

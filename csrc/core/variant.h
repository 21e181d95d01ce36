// Variant: one implementation of an op. Every op has one table of them, fastest first, "ref" last; pick() is
// the only dispatch. RUSSET_VARIANT="matmul=ref,matvec=avx2" forces one by name.
#pragma once
#include <span>
#include <string_view>

#include "core/cpu.h"

namespace russet {

template <typename Fn>
struct Variant {
  const char* name;
  unsigned needs;  // Feature bits
  Fn* run;
};

inline bool runs_here(unsigned needs) {
  return (cpu_features() & needs) == needs;
}

// The variant RUSSET_VARIANT names for this op, or "". Throws Error{usage} on malformed text.
std::string_view forced_variant(std::string_view op);
[[noreturn]] void no_such_variant(std::string_view op, std::string_view name);

template <typename Fn>
const Variant<Fn>& pick(std::string_view op, std::span<const Variant<Fn>> table) {
  const std::string_view forced = forced_variant(op);
  for (const Variant<Fn>& variant : table)
    if (runs_here(variant.needs) && (forced.empty() || forced == variant.name)) return variant;
  no_such_variant(op, forced);
}

// What a variant of AMX needs: where its instructions are emulated, only what surrounds them (core/amx.h).
#if defined(RUSSET_AMX_EMULATED)
constexpr unsigned kNeedsAmx = kVnni;
#else
constexpr unsigned kNeedsAmx = kAmx;
#endif

// An op whose loop is <op>_simd.cpp: declares its variants, and gives their rows of the table.
#if defined(__x86_64__)
#define RUSSET_DECLARE_SIMD(op, Args) \
  void op##_avx512(const Args& args); \
  void op##_avx2(const Args& args)
#define RUSSET_SIMD_ROWS(op) {"avx512", kAvx512, op##_avx512}, {"avx2", kAvx2, op##_avx2},
#elif defined(__aarch64__)
#define RUSSET_DECLARE_SIMD(op, Args) void op##_neon(const Args& args)
#define RUSSET_SIMD_ROWS(op) {"neon", kNeon, op##_neon},
#else
#define RUSSET_DECLARE_SIMD(op, Args) static_assert(true)
#define RUSSET_SIMD_ROWS(op)
#endif

}  // namespace russet

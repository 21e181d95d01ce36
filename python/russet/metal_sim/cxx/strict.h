// Metal for the strict pass: only declarations, with the address spaces and the overloads that Metal has.
// Nothing here runs; what clang accepts with it is far more likely to be accepted by Metal's compiler than
// what the shim accepts.
//
// Vectors are clang's own, because objects of a class cannot be copied out of an address space. make_vec
// stands for their constructors: strict.py writes it in their place.
#pragma once
#include "metal/types.h"

#define METAL_SIM_DEVICE __attribute__((address_space(1)))
#define METAL_SIM_CONSTANT __attribute__((address_space(2)))
#define METAL_SIM_THREADGROUP __attribute__((address_space(3)))

// A packed vector is one like the others here; only of three elements is its size another in Metal.
#define METAL_SIM_VECTORS(T)                          \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4))); \
  typedef T##2 packed_##T##2;                         \
  typedef T##3 packed_##T##3;                         \
  typedef T##4 packed_##T##4;
METAL_SIM_VECTORS(float)
METAL_SIM_VECTORS(half)
METAL_SIM_VECTORS(bfloat)
METAL_SIM_VECTORS(char)
METAL_SIM_VECTORS(uchar)
METAL_SIM_VECTORS(short)
METAL_SIM_VECTORS(ushort)
METAL_SIM_VECTORS(int)
METAL_SIM_VECTORS(uint)
METAL_SIM_VECTORS(long)
METAL_SIM_VECTORS(ulong)
METAL_SIM_VECTORS(bool)

// F for a type and its vectors; for the types that functions are overloaded on.
#define METAL_SIM_WIDTHS(F, T) F(T) F(T##2) F(T##3) F(T##4)
#define METAL_SIM_FLOATS(F) METAL_SIM_WIDTHS(F, float) METAL_SIM_WIDTHS(F, half)
#define METAL_SIM_SMALL_INTEGERS(F) \
  METAL_SIM_WIDTHS(F, char)         \
  METAL_SIM_WIDTHS(F, uchar)        \
  METAL_SIM_WIDTHS(F, short) METAL_SIM_WIDTHS(F, ushort) METAL_SIM_WIDTHS(F, int) METAL_SIM_WIDTHS(F, uint)
#define METAL_SIM_INTEGERS(F) METAL_SIM_SMALL_INTEGERS(F) METAL_SIM_WIDTHS(F, long) METAL_SIM_WIDTHS(F, ulong)
#define METAL_SIM_NUMBERS(F) METAL_SIM_FLOATS(F) METAL_SIM_INTEGERS(F)

namespace metal {

template <class T, int n>
using vec = T __attribute__((ext_vector_type(n)));
template <class T, int n>
using packed_vec = vec<T, n>;
template <class Vector, class... Elements>
Vector make_vec(Elements...);

// ---- math: of float and half alone

#define METAL_SIM_MATH1(name) \
  float name(float);          \
  float2 name(float2);        \
  float3 name(float3);        \
  float4 name(float4);        \
  half name(half);            \
  half2 name(half2);          \
  half3 name(half3);          \
  half4 name(half4);          \
  bfloat name(bfloat) = delete;
#define METAL_SIM_MATH2(name)  \
  float name(float, float);    \
  float2 name(float2, float2); \
  float3 name(float3, float3); \
  float4 name(float4, float4); \
  half name(half, half);       \
  half2 name(half2, half2);    \
  half3 name(half3, half3);    \
  half4 name(half4, half4);    \
  bfloat name(bfloat, bfloat) = delete;
// clang-format off
#define METAL_SIM_MATH                                                                             \
  METAL_SIM_MATH1(exp) METAL_SIM_MATH1(exp2) METAL_SIM_MATH1(exp10) METAL_SIM_MATH1(log)           \
  METAL_SIM_MATH1(log2) METAL_SIM_MATH1(log10) METAL_SIM_MATH1(sqrt) METAL_SIM_MATH1(rsqrt)        \
  METAL_SIM_MATH1(sin) METAL_SIM_MATH1(cos) METAL_SIM_MATH1(tan) METAL_SIM_MATH1(asin)             \
  METAL_SIM_MATH1(acos) METAL_SIM_MATH1(atan) METAL_SIM_MATH1(sinh) METAL_SIM_MATH1(cosh)          \
  METAL_SIM_MATH1(tanh) METAL_SIM_MATH1(asinh) METAL_SIM_MATH1(acosh) METAL_SIM_MATH1(atanh)       \
  METAL_SIM_MATH1(sinpi) METAL_SIM_MATH1(cospi) METAL_SIM_MATH1(floor) METAL_SIM_MATH1(ceil)       \
  METAL_SIM_MATH1(round) METAL_SIM_MATH1(rint) METAL_SIM_MATH1(trunc) METAL_SIM_MATH1(fract)       \
  METAL_SIM_MATH1(fabs) METAL_SIM_MATH1(sign) METAL_SIM_MATH1(saturate) METAL_SIM_MATH2(pow)       \
  METAL_SIM_MATH2(powr) METAL_SIM_MATH2(fmod) METAL_SIM_MATH2(atan2) METAL_SIM_MATH2(fmin)         \
  METAL_SIM_MATH2(fmax) METAL_SIM_MATH2(fdim) METAL_SIM_MATH2(copysign) METAL_SIM_MATH2(nextafter) \
  METAL_SIM_MATH2(step) METAL_SIM_MATH2(divide)
// clang-format on
METAL_SIM_MATH
namespace fast {
METAL_SIM_MATH
}
namespace precise {
METAL_SIM_MATH
}

#define METAL_SIM_DECLARE(T) \
  T fma(T, T, T);            \
  T mix(T, T, T);            \
  T smoothstep(T, T, T);     \
  T sincos(T, T&);           \
  T modf(T, T&);
METAL_SIM_FLOATS(METAL_SIM_DECLARE)
#undef METAL_SIM_DECLARE
bfloat fma(bfloat, bfloat, bfloat) = delete;
float ldexp(float, int);
half ldexp(half, int);
float frexp(float, int&);
half frexp(half, int&);

// ---- on all numbers but bfloat

#define METAL_SIM_DECLARE(T) \
  T max(T, T);               \
  T min(T, T);               \
  T max3(T, T, T);           \
  T min3(T, T, T);           \
  T clamp(T, T, T);          \
  T abs(T);
METAL_SIM_NUMBERS(METAL_SIM_DECLARE)
#undef METAL_SIM_DECLARE
bfloat max(bfloat, bfloat) = delete;
bfloat min(bfloat, bfloat) = delete;
bfloat clamp(bfloat, bfloat, bfloat) = delete;
bfloat abs(bfloat) = delete;
#define METAL_SIM_DECLARE(T)     \
  T popcount(T);                 \
  T clz(T);                      \
  T ctz(T);                      \
  T reverse_bits(T);             \
  T rotate(T, T);                \
  T mulhi(T, T);                 \
  T absdiff(T, T);               \
  T addsat(T, T);                \
  T subsat(T, T);                \
  T extract_bits(T, uint, uint); \
  T insert_bits(T, T, uint, uint);
METAL_SIM_INTEGERS(METAL_SIM_DECLARE)
#undef METAL_SIM_DECLARE
int mul24(int, int);
uint mul24(uint, uint);
int mad24(int, int, int);
uint mad24(uint, uint, uint);
float4 unpack_unorm4x8_to_float(uint);
float4 unpack_snorm4x8_to_float(uint);

// A comparison of clang's vectors is a vector of integers, where Metal has one of bool: any mask is taken.
#define METAL_SIM_DECLARE(T)     \
  T select(T, T, bool);          \
  template <class Mask>          \
  T##2 select(T##2, T##2, Mask); \
  template <class Mask>          \
  T##3 select(T##3, T##3, Mask); \
  template <class Mask>          \
  T##4 select(T##4, T##4, Mask);
METAL_SIM_DECLARE(float)
METAL_SIM_DECLARE(half)
METAL_SIM_DECLARE(bfloat)
METAL_SIM_DECLARE(char)
METAL_SIM_DECLARE(uchar)
METAL_SIM_DECLARE(short)
METAL_SIM_DECLARE(ushort)
METAL_SIM_DECLARE(int)
METAL_SIM_DECLARE(uint)
METAL_SIM_DECLARE(long)
METAL_SIM_DECLARE(ulong)
METAL_SIM_DECLARE(bool)
#undef METAL_SIM_DECLARE
#define METAL_SIM_DECLARE(T) \
  bool isnan(T);             \
  bool isinf(T);             \
  bool isfinite(T);          \
  bool signbit(T);
METAL_SIM_DECLARE(float)
METAL_SIM_DECLARE(half)
#undef METAL_SIM_DECLARE
bool isnan(bfloat) = delete;
bool isinf(bfloat) = delete;
template <class Mask>
bool any(Mask);
template <class Mask>
bool all(Mask);

#define METAL_SIM_DECLARE(T) \
  T dot(T##2, T##2);         \
  T dot(T##3, T##3);         \
  T dot(T##4, T##4);         \
  T length(T##2);            \
  T length(T##3);            \
  T length(T##4);            \
  T##2 normalize(T##2);      \
  T##3 normalize(T##3);      \
  T##4 normalize(T##4);
METAL_SIM_DECLARE(float)
METAL_SIM_DECLARE(half)
#undef METAL_SIM_DECLARE

template <class To, class From>
To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs two types of equal size");
  return __builtin_bit_cast(To, from);
}

// ---- barriers and SIMD-groups: no bool, no 64-bit integers, no bfloat

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define METAL_SIM_DECLARE(T)                  \
  T simd_sum(T);                              \
  T simd_product(T);                          \
  T simd_max(T);                              \
  T simd_min(T);                              \
  T simd_prefix_inclusive_sum(T);             \
  T simd_prefix_exclusive_sum(T);             \
  T simd_prefix_inclusive_product(T);         \
  T simd_prefix_exclusive_product(T);         \
  T simd_broadcast(T, ushort);                \
  T simd_broadcast_first(T);                  \
  T simd_shuffle(T, ushort);                  \
  T simd_shuffle_xor(T, ushort);              \
  T simd_shuffle_down(T, ushort);             \
  T simd_shuffle_up(T, ushort);               \
  T simd_shuffle_rotate_down(T, ushort);      \
  T simd_shuffle_rotate_up(T, ushort);        \
  T simd_shuffle_and_fill_down(T, T, ushort); \
  T simd_shuffle_and_fill_up(T, T, ushort);   \
  T quad_sum(T);                              \
  T quad_max(T);                              \
  T quad_min(T);                              \
  T quad_broadcast(T, ushort);                \
  T quad_shuffle(T, ushort);                  \
  T quad_shuffle_xor(T, ushort);
METAL_SIM_FLOATS(METAL_SIM_DECLARE)
METAL_SIM_SMALL_INTEGERS(METAL_SIM_DECLARE)
#undef METAL_SIM_DECLARE
bfloat simd_sum(bfloat) = delete;
bfloat simd_max(bfloat) = delete;
bfloat simd_min(bfloat) = delete;
bfloat simd_product(bfloat) = delete;
bfloat simd_broadcast(bfloat, ushort) = delete;
bfloat simd_shuffle(bfloat, ushort) = delete;
bfloat simd_shuffle_xor(bfloat, ushort) = delete;
bfloat simd_shuffle_down(bfloat, ushort) = delete;
bfloat simd_shuffle_up(bfloat, ushort) = delete;
#define METAL_SIM_DECLARE(T) \
  T simd_and(T);             \
  T simd_or(T);              \
  T simd_xor(T);
METAL_SIM_SMALL_INTEGERS(METAL_SIM_DECLARE)
#undef METAL_SIM_DECLARE
struct simd_vote {
  explicit operator ulong() const;
  bool any() const;
  bool all() const;
};
simd_vote simd_ballot(bool);
simd_vote simd_active_threads_mask();
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();

// ---- simdgroup_matrix

template <class T, int n_rows, int n_columns>
struct simdgroup_matrix {
  static_assert(n_rows == 8 && n_columns == 8, "Metal has simdgroup matrices of 8 x 8");
  static_assert(is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>,
                "Metal has simdgroup matrices of float, half and bfloat");
  simdgroup_matrix();
  explicit simdgroup_matrix(T diagonal);
  vec<T, 2>& thread_elements();
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;
template <class T, int n_rows, int n_columns>
simdgroup_matrix<T, n_rows, n_columns> make_filled_simdgroup_matrix(T);
#define METAL_SIM_DECLARE(space)                                                                        \
  template <class T>                                                                                    \
  void simdgroup_load(simdgroup_matrix<T, 8, 8>&, const space T*, ulong = 8, ulong2 = 0, bool = false); \
  template <class T>                                                                                    \
  void simdgroup_store(simdgroup_matrix<T, 8, 8>, space T*, ulong = 8, ulong2 = 0, bool = false);
METAL_SIM_DECLARE(METAL_SIM_DEVICE)
METAL_SIM_DECLARE(METAL_SIM_THREADGROUP)
#undef METAL_SIM_DECLARE
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                                   simdgroup_matrix<B, 8, 8>, simdgroup_matrix<C, 8, 8>);
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>, simdgroup_matrix<B, 8, 8>);

// ---- atomics: relaxed; of int and uint all, of float sums, of bool loads and stores

enum memory_order { memory_order_relaxed };
template <class T>
using atomic = _Atomic(T);  // of a class, an array in threadgroup memory could not be declared
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_float = atomic<float>;
using atomic_bool = atomic<bool>;
#define METAL_SIM_DECLARE(space, T)                                        \
  T atomic_load_explicit(const volatile space _Atomic(T)*, memory_order);  \
  void atomic_store_explicit(volatile space _Atomic(T)*, T, memory_order); \
  T atomic_exchange_explicit(volatile space _Atomic(T)*, T, memory_order); \
  bool atomic_compare_exchange_weak_explicit(volatile space _Atomic(T)*, T*, T, memory_order, memory_order);
#define METAL_SIM_DECLARE_SUMS(space, T)                                    \
  METAL_SIM_DECLARE(space, T)                                               \
  T atomic_fetch_add_explicit(volatile space _Atomic(T)*, T, memory_order); \
  T atomic_fetch_sub_explicit(volatile space _Atomic(T)*, T, memory_order);
#define METAL_SIM_DECLARE_ALL(space, T)                                     \
  METAL_SIM_DECLARE_SUMS(space, T)                                          \
  T atomic_fetch_and_explicit(volatile space _Atomic(T)*, T, memory_order); \
  T atomic_fetch_or_explicit(volatile space _Atomic(T)*, T, memory_order);  \
  T atomic_fetch_xor_explicit(volatile space _Atomic(T)*, T, memory_order); \
  T atomic_fetch_min_explicit(volatile space _Atomic(T)*, T, memory_order); \
  T atomic_fetch_max_explicit(volatile space _Atomic(T)*, T, memory_order);
METAL_SIM_DECLARE_ALL(METAL_SIM_DEVICE, int)
METAL_SIM_DECLARE_ALL(METAL_SIM_DEVICE, uint)
METAL_SIM_DECLARE_SUMS(METAL_SIM_DEVICE, float)
METAL_SIM_DECLARE(METAL_SIM_DEVICE, bool)
METAL_SIM_DECLARE_ALL(METAL_SIM_THREADGROUP, int)
METAL_SIM_DECLARE_ALL(METAL_SIM_THREADGROUP, uint)
METAL_SIM_DECLARE(METAL_SIM_THREADGROUP, float)
METAL_SIM_DECLARE(METAL_SIM_THREADGROUP, bool)
#undef METAL_SIM_DECLARE
#undef METAL_SIM_DECLARE_SUMS
#undef METAL_SIM_DECLARE_ALL

}  // namespace metal

using metal::as_type;

// The words of translated Metal text; words.h has those of the pass that runs.
#define METAL_SIM_KERNEL_BEGINS(max_threads)
#define METAL_SIM_SHARED static METAL_SIM_THREADGROUP
#define METAL_SIM_THREADGROUP_VARIABLE(name) \
  static_assert(sizeof name <= 32768, "a threadgroup has 32 KiB of threadgroup memory");
#define METAL_SIM_FUNCTION_CONSTANT(type, name, index) extern const METAL_SIM_CONSTANT type name;
#define METAL_SIM_DERIVED_CONSTANT(type, name, ...) static const METAL_SIM_CONSTANT type name = __VA_ARGS__;
#define is_function_constant_defined(name) (sizeof(name) != 0)

#define device METAL_SIM_DEVICE
#define constant const METAL_SIM_CONSTANT
#define threadgroup METAL_SIM_THREADGROUP
#define thread
#define kernel

// Scalar types, the type traits that Metal has under metal::, and the limits of its types.
//
// No header of the C++ library is included anywhere in the shim: its functions would stand beside Metal's
// own.
#pragma once
#include <stddef.h>
#include <stdint.h>

using half = _Float16;
using bfloat = __bf16;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;

// Small functions are inlined always: a call between fibers costs more than what they do.
#define METAL_SIM_INLINE inline __attribute__((always_inline))

namespace metal {

using ::bfloat;
using ::half;
using ::int16_t;
using ::int32_t;
using ::int64_t;
using ::int8_t;
using ::ptrdiff_t;
using ::size_t;
using ::uchar;
using ::uint;
using ::uint16_t;
using ::uint32_t;
using ::uint64_t;
using ::uint8_t;
using ::ulong;
using ::ushort;

// ---- type traits

template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return v; }
  constexpr T operator()() const { return v; }
};
template <bool b>
using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool condition, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool condition, class T = void>
using enable_if_t = typename enable_if<condition, T>::type;

template <bool condition, class A, class B>
struct conditional {
  using type = A;
};
template <class A, class B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool condition, class A, class B>
using conditional_t = typename conditional<condition, A, B>::type;

template <class... T>
using void_t = void;
template <class T>
T&& declval();

#define METAL_SIM_TRANSFORM(name) \
  template <class T>              \
  using name##_t = __##name(T);   \
  template <class T>              \
  struct name {                   \
    using type = __##name(T);     \
  };
METAL_SIM_TRANSFORM(remove_cv)
METAL_SIM_TRANSFORM(remove_const)
METAL_SIM_TRANSFORM(remove_volatile)
METAL_SIM_TRANSFORM(remove_cvref)
METAL_SIM_TRANSFORM(remove_pointer)
METAL_SIM_TRANSFORM(decay)
METAL_SIM_TRANSFORM(make_signed)
METAL_SIM_TRANSFORM(make_unsigned)
METAL_SIM_TRANSFORM(underlying_type)
template <class T>
using remove_reference_t = __remove_reference_t(T);
template <class T>
struct remove_reference {
  using type = __remove_reference_t(T);
};
template <class T>
using remove_addrspace_t = T;

#define METAL_SIM_TRAIT(name, expression) \
  template <class T>                      \
  constexpr bool name##_v = expression;   \
  template <class T>                      \
  struct name : bool_constant<name##_v<T>> {};
METAL_SIM_TRAIT(is_integral, __is_integral(T))
METAL_SIM_TRAIT(is_floating_point, __is_floating_point(T) || __is_same(__remove_cv(T), half) ||
                                       __is_same(__remove_cv(T), bfloat))
METAL_SIM_TRAIT(is_arithmetic, is_integral_v<T> || is_floating_point_v<T>)
METAL_SIM_TRAIT(is_signed, is_floating_point_v<T> || __is_signed(T))
METAL_SIM_TRAIT(is_unsigned, __is_unsigned(T))
METAL_SIM_TRAIT(is_pointer, __is_pointer(T))
METAL_SIM_TRAIT(is_reference, __is_reference(T))
METAL_SIM_TRAIT(is_const, __is_const(T))
METAL_SIM_TRAIT(is_void, __is_void(T))
METAL_SIM_TRAIT(is_enum, __is_enum(T))
METAL_SIM_TRAIT(is_class, __is_class(T))
METAL_SIM_TRAIT(is_empty, __is_empty(T))
METAL_SIM_TRAIT(is_scalar, __is_scalar(T) || is_floating_point_v<T>)
METAL_SIM_TRAIT(is_trivially_copyable, __is_trivially_copyable(T))

#define METAL_SIM_RELATION(name)            \
  template <class A, class B>               \
  constexpr bool name##_v = __##name(A, B); \
  template <class A, class B>               \
  struct name : bool_constant<name##_v<A, B>> {};
METAL_SIM_RELATION(is_same)
METAL_SIM_RELATION(is_base_of)
template <class A, class B>
constexpr bool is_convertible_v = __is_convertible_to(A, B);
template <class A, class B>
struct is_convertible : bool_constant<is_convertible_v<A, B>> {};

template <class... T>
struct _disjunction : bool_constant<(... || T::value)> {};
template <class... T>
struct _conjunction : bool_constant<(... && T::value)> {};

#undef METAL_SIM_TRANSFORM
#undef METAL_SIM_TRAIT
#undef METAL_SIM_RELATION

// ---- numeric_limits

template <class T>
struct numeric_limits {  // of integers, and of bool
  static constexpr bool is_specialized = true, is_signed = T(-1) < T(0), is_integer = true;
  static constexpr bool has_infinity = false, has_quiet_NaN = false;
  static constexpr int digits = is_same_v<T, bool> ? 1 : 8 * sizeof(T) - is_signed;
  static constexpr T max() { return is_signed ? T((1ull << digits) - 1) : T(-1); }
  static constexpr T min() { return is_signed ? T(-max() - 1) : T(0); }
  static constexpr T lowest() { return min(); }
  static constexpr T infinity() { return T(0); }
  static constexpr T epsilon() { return T(0); }
};

#define METAL_SIM_FLOAT_LIMITS(T, bits, n_digits, smallest, largest, infinite, nan, step) \
  template <>                                                                             \
  struct numeric_limits<T> {                                                              \
    static constexpr bool is_specialized = true, is_signed = true, is_integer = false;    \
    static constexpr bool has_infinity = true, has_quiet_NaN = true;                      \
    static constexpr int digits = n_digits;                                               \
    static constexpr T of(bits pattern) { return __builtin_bit_cast(T, pattern); }        \
    static constexpr T min() { return of(smallest); }                                     \
    static constexpr T max() { return of(largest); }                                      \
    static constexpr T lowest() { return -of(largest); }                                  \
    static constexpr T infinity() { return of(infinite); }                                \
    static constexpr T quiet_NaN() { return of(nan); }                                    \
    static constexpr T epsilon() { return of(step); }                                     \
  };
METAL_SIM_FLOAT_LIMITS(float, uint32_t, 24, 0x00800000, 0x7f7fffff, 0x7f800000, 0x7fc00000, 0x34000000)
METAL_SIM_FLOAT_LIMITS(half, uint16_t, 11, 0x0400, 0x7bff, 0x7c00, 0x7e00, 0x1400)
METAL_SIM_FLOAT_LIMITS(bfloat, uint16_t, 8, 0x0080, 0x7f7f, 0x7f80, 0x7fc0, 0x3c00)

#undef METAL_SIM_FLOAT_LIMITS

template <class T>
using uniform = T;
template <class T>
METAL_SIM_INLINE constexpr T make_uniform(T value) {
  return value;
}

template <class T, size_t n>
struct array {
  T elements[n];
  constexpr T& operator[](size_t i) { return elements[i]; }
  constexpr const T& operator[](size_t i) const { return elements[i]; }
  static constexpr size_t size() { return n; }
};

}  // namespace metal

#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST
#define METAL_PURE
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXFLOAT 3.40282347e+38f
#define FLT_MAX 3.40282347e+38f
#define FLT_MIN 1.17549435e-38f
#define FLT_EPSILON 1.19209290e-07f
#define HALF_MAX half(65504.0f)
#define HALF_MIN half(6.103515625e-05f)
#define HALF_EPSILON half(9.765625e-04f)
#define CHAR_BIT 8
#define SCHAR_MAX 127
#define UCHAR_MAX 255
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295u
#define LONG_MAX 9223372036854775807l
#define ULONG_MAX 18446744073709551615ul
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.78539816339744830962f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f

// Metal's math functions for float, half and bfloat and their vectors; those on common numbers, integers and
// vectors.
//
// half and bfloat are computed in float and rounded once. Metal has no exp(bfloat) and its like: here they
// exist, so that what others wrote runs; the strict pass refuses them. fast:: and precise:: give the same
// values.
#pragma once
#include "vector.h"

namespace metal {

// f, element by element.
template <class T, int n, class F, class... Vectors>
METAL_SIM_INLINE vec<T, n> each(F f, const vec<T, n>& first, const Vectors&... others) {
  vec<T, n> result;
  for (int i = 0; i < n; ++i) result[i] = f(first[i], others[i]...);
  return result;
}

// ---- functions of one float: `value` is an expression in float x

#define METAL_SIM_MATH1(name, value)                    \
  METAL_SIM_INLINE float name(float x) {                \
    return float(value);                                \
  }                                                     \
  METAL_SIM_INLINE half name(half x_) {                 \
    const float x = float(x_);                          \
    return half(float(value));                          \
  }                                                     \
  METAL_SIM_INLINE bfloat name(bfloat x_) {             \
    const float x = float(x_);                          \
    return bfloat(float(value));                        \
  }                                                     \
  template <class T>                                    \
    requires is_integral_v<T>                           \
  METAL_SIM_INLINE float name(T x_) {                   \
    const float x = float(x_);                          \
    return float(value);                                \
  }                                                     \
  template <class T, int n>                             \
  METAL_SIM_INLINE vec<T, n> name(const vec<T, n>& x) { \
    return each([](T e) { return name(e); }, x);        \
  }

#define METAL_SIM_MATH2(name, value)                                        \
  METAL_SIM_INLINE float name(float x, float y) {                           \
    return float(value);                                                    \
  }                                                                         \
  METAL_SIM_INLINE half name(half x_, half y_) {                            \
    const float x = float(x_), y = float(y_);                               \
    return half(float(value));                                              \
  }                                                                         \
  METAL_SIM_INLINE bfloat name(bfloat x_, bfloat y_) {                      \
    const float x = float(x_), y = float(y_);                               \
    return bfloat(float(value));                                            \
  }                                                                         \
  template <class T, int n>                                                 \
  METAL_SIM_INLINE vec<T, n> name(const vec<T, n>& x, const vec<T, n>& y) { \
    return each([](T a, T b) { return name(a, b); }, x, y);                 \
  }

#define METAL_SIM_MATH                                         \
  METAL_SIM_MATH1(exp, __builtin_expf(x))                      \
  METAL_SIM_MATH1(exp2, __builtin_exp2f(x))                    \
  METAL_SIM_MATH1(exp10, __builtin_powf(10.0f, x))             \
  METAL_SIM_MATH1(log, __builtin_logf(x))                      \
  METAL_SIM_MATH1(log2, __builtin_log2f(x))                    \
  METAL_SIM_MATH1(log10, __builtin_log10f(x))                  \
  METAL_SIM_MATH1(sqrt, __builtin_sqrtf(x))                    \
  METAL_SIM_MATH1(rsqrt, 1.0f / __builtin_sqrtf(x))            \
  METAL_SIM_MATH1(sin, __builtin_sinf(x))                      \
  METAL_SIM_MATH1(cos, __builtin_cosf(x))                      \
  METAL_SIM_MATH1(tan, __builtin_tanf(x))                      \
  METAL_SIM_MATH1(asin, __builtin_asinf(x))                    \
  METAL_SIM_MATH1(acos, __builtin_acosf(x))                    \
  METAL_SIM_MATH1(atan, __builtin_atanf(x))                    \
  METAL_SIM_MATH1(sinh, __builtin_sinhf(x))                    \
  METAL_SIM_MATH1(cosh, __builtin_coshf(x))                    \
  METAL_SIM_MATH1(tanh, __builtin_tanhf(x))                    \
  METAL_SIM_MATH1(asinh, __builtin_asinhf(x))                  \
  METAL_SIM_MATH1(acosh, __builtin_acoshf(x))                  \
  METAL_SIM_MATH1(atanh, __builtin_atanhf(x))                  \
  METAL_SIM_MATH1(sinpi, __builtin_sinf(x* M_PI_F))            \
  METAL_SIM_MATH1(cospi, __builtin_cosf(x* M_PI_F))            \
  METAL_SIM_MATH1(floor, __builtin_floorf(x))                  \
  METAL_SIM_MATH1(ceil, __builtin_ceilf(x))                    \
  METAL_SIM_MATH1(round, __builtin_roundf(x))                  \
  METAL_SIM_MATH1(rint, __builtin_rintf(x))                    \
  METAL_SIM_MATH1(trunc, __builtin_truncf(x))                  \
  METAL_SIM_MATH1(fract, x - __builtin_floorf(x))              \
  METAL_SIM_MATH1(fabs, __builtin_fabsf(x))                    \
  METAL_SIM_MATH1(sign, (x > 0) - (x < 0))                     \
  METAL_SIM_MATH1(saturate, x > 0 ? (x < 1 ? x : 1.0f) : 0.0f) \
  METAL_SIM_MATH2(pow, __builtin_powf(x, y))                   \
  METAL_SIM_MATH2(powr, __builtin_powf(x, y))                  \
  METAL_SIM_MATH2(fmod, __builtin_fmodf(x, y))                 \
  METAL_SIM_MATH2(atan2, __builtin_atan2f(x, y))               \
  METAL_SIM_MATH2(fmin, __builtin_fminf(x, y))                 \
  METAL_SIM_MATH2(fmax, __builtin_fmaxf(x, y))                 \
  METAL_SIM_MATH2(fdim, __builtin_fdimf(x, y))                 \
  METAL_SIM_MATH2(copysign, __builtin_copysignf(x, y))         \
  METAL_SIM_MATH2(nextafter, __builtin_nextafterf(x, y))       \
  METAL_SIM_MATH2(divide, x / y)                               \
  METAL_SIM_MATH2(step, y < x ? 0.0f : 1.0f)

METAL_SIM_MATH

// One rounding: a product of two 16-bit floats is exact in float, and of two floats in double.
METAL_SIM_INLINE float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
METAL_SIM_INLINE half fma(half a, half b, half c) {
  return half(__builtin_fmaf(float(a), float(b), float(c)));
}
METAL_SIM_INLINE bfloat fma(bfloat a, bfloat b, bfloat c) {
  return bfloat(__builtin_fmaf(float(a), float(b), float(c)));
}
template <class T, int n>
METAL_SIM_INLINE vec<T, n> fma(const vec<T, n>& a, const vec<T, n>& b, const vec<T, n>& c) {
  return each([](T x, T y, T z) { return fma(x, y, z); }, a, b, c);
}

template <class T>
METAL_SIM_INLINE T ldexp(T x, int exponent) {
  return T(__builtin_ldexpf(float(x), exponent));
}
template <class T>
METAL_SIM_INLINE T frexp(T x, int& exponent) {
  return T(__builtin_frexpf(float(x), &exponent));
}
template <class T>
METAL_SIM_INLINE T modf(T x, T& whole) {
  whole = trunc(x);
  return copysign(x - whole, x);
}
template <class T>
METAL_SIM_INLINE T sincos(T x, T& cosine) {
  cosine = cos(x);
  return sin(x);
}

// ---- comparisons

template <Scalar T>
METAL_SIM_INLINE bool isnan(T x) {
  return x != x;
}
template <Scalar T>
METAL_SIM_INLINE bool isinf(T x) {
  return __builtin_isinf(float(x));
}
template <Scalar T>
METAL_SIM_INLINE bool isfinite(T x) {
  return __builtin_isfinite(float(x));
}
template <Scalar T>
METAL_SIM_INLINE bool signbit(T x) {
  return __builtin_signbit(float(x));
}

// Of a number and a NaN, the number.
template <Scalar T>
METAL_SIM_INLINE T max(T a, T b) {
  if constexpr (is_floating_point_v<T>)
    if (a != a || b != b) return a != a ? b : a;
  return a < b ? b : a;
}
template <Scalar T>
METAL_SIM_INLINE T min(T a, T b) {
  if constexpr (is_floating_point_v<T>)
    if (a != a || b != b) return a != a ? b : a;
  return b < a ? b : a;
}
template <Scalar A, Scalar B>
  requires(!is_same_v<A, B>)
METAL_SIM_INLINE auto max(A a, B b) {
  using T = decltype(a + b);
  return max(T(a), T(b));
}
template <Scalar A, Scalar B>
  requires(!is_same_v<A, B>)
METAL_SIM_INLINE auto min(A a, B b) {
  using T = decltype(a + b);
  return min(T(a), T(b));
}
template <class T, int n>
METAL_SIM_INLINE vec<T, n> max(const vec<T, n>& a, const vec<T, n>& b) {
  return each([](T x, T y) { return max(x, y); }, a, b);
}
template <class T, int n>
METAL_SIM_INLINE vec<T, n> min(const vec<T, n>& a, const vec<T, n>& b) {
  return each([](T x, T y) { return min(x, y); }, a, b);
}
template <class T, int n, Scalar U>
METAL_SIM_INLINE vec<T, n> max(const vec<T, n>& a, U b) {
  return max(a, vec<T, n>(b));
}
template <class T, int n, Scalar U>
METAL_SIM_INLINE vec<T, n> min(const vec<T, n>& a, U b) {
  return min(a, vec<T, n>(b));
}
template <class T>
METAL_SIM_INLINE T max3(T a, T b, T c) {
  return max(a, max(b, c));
}
template <class T>
METAL_SIM_INLINE T min3(T a, T b, T c) {
  return min(a, min(b, c));
}
template <class T>
METAL_SIM_INLINE T median3(T a, T b, T c) {
  return max(min(a, b), min(max(a, b), c));
}
template <class T, class Low, class High>
METAL_SIM_INLINE T clamp(T x, Low low, High high) {
  return min(max(x, T(low)), T(high));
}

template <Scalar T>
METAL_SIM_INLINE T abs(T x) {
  if constexpr (is_floating_point_v<T>)
    return fabs(x);
  else
    return T(x < T(0) ? -x : x);
}
template <class T, int n>
METAL_SIM_INLINE vec<T, n> abs(const vec<T, n>& x) {
  return each([](T e) { return abs(e); }, x);
}
template <Scalar T>
METAL_SIM_INLINE auto absdiff(T a, T b) {
  using U = make_unsigned_t<T>;
  return a < b ? U(U(b) - U(a)) : U(U(a) - U(b));
}

template <class T, class U>
METAL_SIM_INLINE T mix(T x, T y, U a) {
  return x + (y - x) * T(a);
}
template <class T>
METAL_SIM_INLINE T smoothstep(T edge0, T edge1, T x) {
  const T t = clamp((x - edge0) / (edge1 - edge0), T(0), T(1));
  return t * t * (T(3) - T(2) * t);
}
template <Scalar T>
METAL_SIM_INLINE T select(T a, T b, bool choose_b) {
  return choose_b ? b : a;
}
template <class T, int n>
METAL_SIM_INLINE vec<T, n> select(const vec<T, n>& a, const vec<T, n>& b, const vec<bool, n>& choose_b) {
  return each([](T x, T y, bool c) { return c ? y : x; }, a, b, choose_b);
}
template <int n>
METAL_SIM_INLINE bool any(const vec<bool, n>& v) {
  bool result = false;
  for (int i = 0; i < n; ++i) result |= v[i];
  return result;
}
template <int n>
METAL_SIM_INLINE bool all(const vec<bool, n>& v) {
  bool result = true;
  for (int i = 0; i < n; ++i) result &= v[i];
  return result;
}

// ---- vectors in space

template <class T, int n>
METAL_SIM_INLINE T dot(const vec<T, n>& a, const vec<T, n>& b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
template <class T, int n>
METAL_SIM_INLINE T length_squared(const vec<T, n>& v) {
  return dot(v, v);
}
template <class T, int n>
METAL_SIM_INLINE T length(const vec<T, n>& v) {
  return sqrt(dot(v, v));
}
template <class T, int n>
METAL_SIM_INLINE T distance(const vec<T, n>& a, const vec<T, n>& b) {
  return length(a - b);
}
template <class T, int n>
METAL_SIM_INLINE vec<T, n> normalize(const vec<T, n>& v) {
  return v * rsqrt(dot(v, v));
}
template <class T>
METAL_SIM_INLINE vec<T, 3> cross(const vec<T, 3>& a, const vec<T, 3>& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// ---- integers

template <Scalar T>
METAL_SIM_INLINE T popcount(T x) {
  return T(__builtin_popcountll(make_unsigned_t<T>(x)));
}
template <Scalar T>
METAL_SIM_INLINE T clz(T x) {
  constexpr int n_bits = 8 * sizeof(T);
  return T(x ? __builtin_clzll(make_unsigned_t<T>(x)) - (64 - n_bits) : n_bits);
}
template <Scalar T>
METAL_SIM_INLINE T ctz(T x) {
  return T(x ? __builtin_ctzll(make_unsigned_t<T>(x)) : 8 * int(sizeof(T)));
}
METAL_SIM_INLINE int mulhi(int a, int b) {
  return int(int64_t(a) * b >> 32);
}
METAL_SIM_INLINE uint mulhi(uint a, uint b) {
  return uint(uint64_t(a) * b >> 32);
}
METAL_SIM_INLINE int64_t mulhi(int64_t a, int64_t b) {
  return int64_t(__int128(a) * b >> 64);
}
METAL_SIM_INLINE uint64_t mulhi(uint64_t a, uint64_t b) {
  return uint64_t((unsigned __int128)(a)*b >> 64);
}
METAL_SIM_INLINE int mul24(int a, int b) {
  return a * b;
}
METAL_SIM_INLINE uint mul24(uint a, uint b) {
  return a * b;
}
METAL_SIM_INLINE int mad24(int a, int b, int c) {
  return a * b + c;
}
METAL_SIM_INLINE uint mad24(uint a, uint b, uint c) {
  return a * b + c;
}
template <Scalar T>
METAL_SIM_INLINE T extract_bits(T x, uint offset, uint n_bits) {
  if (!n_bits) return T(0);
  constexpr uint width = 8 * sizeof(T);
  return T(T(make_unsigned_t<T>(x) << (width - offset - n_bits)) >> (width - n_bits));
}
template <Scalar T>
METAL_SIM_INLINE T insert_bits(T base, T insert, uint offset, uint n_bits) {
  using U = make_unsigned_t<T>;
  if (!n_bits) return base;
  const U mask = U(U(U(~U(0)) >> (8 * sizeof(T) - n_bits)) << offset);
  return T((U(base) & ~mask) | (U(U(insert) << offset) & mask));
}
template <Scalar T>
METAL_SIM_INLINE T reverse_bits(T x) {
  T result = 0;
  for (size_t i = 0; i < 8 * sizeof(T); ++i) result |= T(((x >> i) & 1) << (8 * sizeof(T) - 1 - i));
  return result;
}
template <Scalar T>
METAL_SIM_INLINE T rotate(T x, T n_bits) {
  using U = make_unsigned_t<T>;
  constexpr U width = 8 * sizeof(T);
  const U left = U(n_bits) % width;
  return left ? T(U(x) << left | U(x) >> (width - left)) : x;
}
template <Scalar T>
METAL_SIM_INLINE T addsat(T a, T b) {
  T sum;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return b < T(0) ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
template <Scalar T>
METAL_SIM_INLINE T subsat(T a, T b) {
  T difference;
  if (!__builtin_sub_overflow(a, b, &difference)) return difference;
  return b < T(0) ? numeric_limits<T>::max() : numeric_limits<T>::min();
}

// ---- 8-bit colours, which quantised formats are sometimes read with

METAL_SIM_INLINE float4 unpack_unorm4x8_to_float(uint x) {
  return float4(x & 255, x >> 8 & 255, x >> 16 & 255, x >> 24) / 255.0f;
}
METAL_SIM_INLINE float4 unpack_snorm4x8_to_float(uint x) {
  return max(float4(int8_t(x), int8_t(x >> 8), int8_t(x >> 16), int8_t(x >> 24)) / 127.0f, -1.0f);
}

#define METAL_SIM_ALSO \
  using metal::abs;    \
  using metal::clamp;  \
  using metal::fma;    \
  using metal::isinf;  \
  using metal::isnan;  \
  using metal::max;    \
  using metal::min;    \
  using metal::mix;    \
  using metal::sincos;
namespace fast {
METAL_SIM_MATH
METAL_SIM_ALSO
}  // namespace fast
namespace precise {
METAL_SIM_MATH
METAL_SIM_ALSO
}  // namespace precise

#undef METAL_SIM_MATH
#undef METAL_SIM_MATH1
#undef METAL_SIM_MATH2
#undef METAL_SIM_ALSO

}  // namespace metal

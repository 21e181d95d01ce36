// vec<T, N>: float4, half2, uchar4 and their like, element by element, with Metal's sizes and alignments.
//
// Of the swizzles there are all of two elements, and of three and four those that shaders write.
#pragma once
#include "types.h"

namespace metal {

template <class T, int n>
struct vec;

// A view of some elements of a vector, v.xz: reads as a vector of them, and may be assigned to.
template <class T, int n, int... indices>
struct Swizzle {
  using Vector = vec<T, int(sizeof...(indices))>;
  T elements[n];

  METAL_SIM_INLINE operator Vector() const { return Vector(elements[indices]...); }
  METAL_SIM_INLINE Swizzle& operator=(const Vector& other) {
    int i = 0;
    ((elements[indices] = other[i++]), ...);
    return *this;
  }
  METAL_SIM_INLINE Swizzle& operator=(const Swizzle& other) { return *this = Vector(other); }
  Swizzle() = default;
  Swizzle(const Swizzle&) = default;

  template <class U>
  METAL_SIM_INLINE Swizzle& operator+=(const U& other) {
    return *this = Vector(*this) + other;
  }
  template <class U>
  METAL_SIM_INLINE Swizzle& operator-=(const U& other) {
    return *this = Vector(*this) - other;
  }
  template <class U>
  METAL_SIM_INLINE Swizzle& operator*=(const U& other) {
    return *this = Vector(*this) * other;
  }
  template <class U>
  METAL_SIM_INLINE Swizzle& operator/=(const U& other) {
    return *this = Vector(*this) / other;
  }
};

// ---- what is a vector, and how many elements something brings to a constructor

template <class T>
struct VectorTraits {
  static constexpr bool is_vector = false;
  static constexpr int n = 1;
};
template <class T, int size>
struct VectorTraits<vec<T, size>> {
  static constexpr bool is_vector = true;
  static constexpr int n = size;
  using Vector = vec<T, size>;
  using Element = T;
};
template <class T, int size, int... indices>
struct VectorTraits<Swizzle<T, size, indices...>> : VectorTraits<vec<T, int(sizeof...(indices))>> {};

template <class T>
concept AnyVector = VectorTraits<remove_cv_t<T>>::is_vector;
template <class T>
concept Scalar = is_arithmetic_v<T> || is_enum_v<T>;
template <class T>
constexpr int n_elements = VectorTraits<remove_cv_t<T>>::n;

// ---- storage

// The compiler's own vector gives size and alignment. It has a bool of one bit, where Metal's has a byte.
template <class T, int n>
using NativeVector = conditional_t<is_same_v<T, bool>, uchar, T> __attribute__((ext_vector_type(n)));

template <class T, int n>
struct VectorStorage;

template <class T>
struct VectorStorage<T, 2> {
  union {
    T elements[2];
    NativeVector<T, 2> native;
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    Swizzle<T, 2, 0, 0> xx;
    Swizzle<T, 2, 0, 1> xy;
    Swizzle<T, 2, 1, 0> yx;
    Swizzle<T, 2, 1, 1> yy;
    Swizzle<T, 2, 0, 1> rg;
  };
};

template <class T>
struct VectorStorage<T, 3> {
  union {
    T elements[3];
    NativeVector<T, 3> native;
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    Swizzle<T, 3, 0, 0> xx;
    Swizzle<T, 3, 0, 1> xy;
    Swizzle<T, 3, 0, 2> xz;
    Swizzle<T, 3, 1, 0> yx;
    Swizzle<T, 3, 1, 1> yy;
    Swizzle<T, 3, 1, 2> yz;
    Swizzle<T, 3, 2, 0> zx;
    Swizzle<T, 3, 2, 1> zy;
    Swizzle<T, 3, 2, 2> zz;
    Swizzle<T, 3, 0, 1, 2> xyz;
    Swizzle<T, 3, 2, 1, 0> zyx;
    Swizzle<T, 3, 0, 1, 2> rgb;
  };
};

template <class T>
struct VectorStorage<T, 4> {
  union {
    T elements[4];
    NativeVector<T, 4> native;
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    Swizzle<T, 4, 0, 0> xx;
    Swizzle<T, 4, 0, 1> xy;
    Swizzle<T, 4, 0, 2> xz;
    Swizzle<T, 4, 0, 3> xw;
    Swizzle<T, 4, 1, 0> yx;
    Swizzle<T, 4, 1, 1> yy;
    Swizzle<T, 4, 1, 2> yz;
    Swizzle<T, 4, 1, 3> yw;
    Swizzle<T, 4, 2, 0> zx;
    Swizzle<T, 4, 2, 1> zy;
    Swizzle<T, 4, 2, 2> zz;
    Swizzle<T, 4, 2, 3> zw;
    Swizzle<T, 4, 3, 0> wx;
    Swizzle<T, 4, 3, 1> wy;
    Swizzle<T, 4, 3, 2> wz;
    Swizzle<T, 4, 3, 3> ww;
    Swizzle<T, 4, 0, 1, 2> xyz;
    Swizzle<T, 4, 1, 2, 3> yzw;
    Swizzle<T, 4, 2, 1, 0> zyx;
    Swizzle<T, 4, 0, 1, 2> rgb;
    Swizzle<T, 4, 0, 1, 2, 3> xyzw;
    Swizzle<T, 4, 3, 2, 1, 0> wzyx;
    Swizzle<T, 4, 0, 1, 2, 3> rgba;
  };
};

template <class T, int n>
struct vec : VectorStorage<T, n> {
  using Storage = VectorStorage<T, n>;
  using Storage::elements;

  constexpr vec() = default;
  constexpr vec(const vec&) = default;
  METAL_SIM_INLINE constexpr vec& operator=(const vec& other) {
    for (int i = 0; i < n; ++i) elements[i] = other.elements[i];
    return *this;
  }

  // The same value everywhere; the elements of another type of vector; elements and vectors in a row.
  template <Scalar U>
  METAL_SIM_INLINE constexpr vec(U value) : Storage{} {
    for (int i = 0; i < n; ++i) elements[i] = T(value);
  }
  template <class U>
    requires(!is_same_v<U, T>)
  METAL_SIM_INLINE constexpr explicit vec(const vec<U, n>& other) : Storage{} {
    for (int i = 0; i < n; ++i) elements[i] = T(other.elements[i]);
  }
  template <class U, int m, int... indices>
    requires(sizeof...(indices) == n && !is_same_v<U, T>)
  METAL_SIM_INLINE explicit vec(const Swizzle<U, m, indices...>& other) : vec(vec<U, n>(other)) {}
  template <class A, class B, class... More>
    requires(n_elements<A> + n_elements<B> + (0 + ... + n_elements<More>) == n)
  METAL_SIM_INLINE constexpr vec(const A& a, const B& b, const More&... more) : Storage{} {
    int i = 0;
    append(i, a);
    append(i, b);
    (append(i, more), ...);
  }

  METAL_SIM_INLINE constexpr T& operator[](int i) { return elements[i]; }
  METAL_SIM_INLINE constexpr const T& operator[](int i) const { return elements[i]; }

  METAL_SIM_INLINE vec operator+() const { return *this; }
  METAL_SIM_INLINE vec operator-() const {
    vec result;
    for (int i = 0; i < n; ++i) result[i] = T(-elements[i]);
    return result;
  }
  METAL_SIM_INLINE vec operator~() const {
    vec result;
    for (int i = 0; i < n; ++i) result[i] = T(~elements[i]);
    return result;
  }
  METAL_SIM_INLINE vec<bool, n> operator!() const {
    vec<bool, n> result;
    for (int i = 0; i < n; ++i) result[i] = !elements[i];
    return result;
  }
  METAL_SIM_INLINE vec& operator++() { return *this = *this + T(1); }
  METAL_SIM_INLINE vec& operator--() { return *this = *this - T(1); }

 private:
  template <class U>
  METAL_SIM_INLINE constexpr void append(int& i, const U& value) {
    if constexpr (AnyVector<U>) {
      const typename VectorTraits<U>::Vector vector(value);
      for (int k = 0; k < n_elements<U>; ++k) elements[i++] = T(vector[k]);
    } else {
      elements[i++] = T(value);
    }
  }
};

// ---- operators between vectors, and between a vector and a scalar

template <class A, class B>
concept VectorAndOther = (AnyVector<A> && (AnyVector<B> || Scalar<B>)) || (Scalar<A> && AnyVector<B>);
template <class A, class B>
using ResultVector = typename VectorTraits<conditional_t<AnyVector<A>, A, B>>::Vector;

#define METAL_SIM_OPERATOR(op)                                              \
  template <class A, class B>                                               \
    requires VectorAndOther<A, B>                                           \
  METAL_SIM_INLINE auto operator op(const A& left, const B& right) {        \
    using Vector = ResultVector<A, B>;                                      \
    const Vector a(left), b(right);                                         \
    Vector result;                                                          \
    for (int i = 0; i < n_elements<Vector>; ++i) result[i] = a[i] op b[i];  \
    return result;                                                          \
  }                                                                         \
  template <class T, int n, class B>                                        \
  METAL_SIM_INLINE vec<T, n>& operator op## = (vec<T, n> & a, const B& b) { \
    return a = a op b;                                                      \
  }
METAL_SIM_OPERATOR(+)
METAL_SIM_OPERATOR(-)
METAL_SIM_OPERATOR(*)
METAL_SIM_OPERATOR(/)
METAL_SIM_OPERATOR(%)
METAL_SIM_OPERATOR(&)
METAL_SIM_OPERATOR(|)
METAL_SIM_OPERATOR(^)
METAL_SIM_OPERATOR(<<)
METAL_SIM_OPERATOR(>>)

#define METAL_SIM_COMPARISON(op)                                           \
  template <class A, class B>                                              \
    requires VectorAndOther<A, B>                                          \
  METAL_SIM_INLINE auto operator op(const A& left, const B& right) {       \
    using Vector = ResultVector<A, B>;                                     \
    const Vector a(left), b(right);                                        \
    vec<bool, n_elements<Vector>> result;                                  \
    for (int i = 0; i < n_elements<Vector>; ++i) result[i] = a[i] op b[i]; \
    return result;                                                         \
  }
METAL_SIM_COMPARISON(==)
METAL_SIM_COMPARISON(!=)
METAL_SIM_COMPARISON(<)
METAL_SIM_COMPARISON(>)
METAL_SIM_COMPARISON(<=)
METAL_SIM_COMPARISON(>=)
METAL_SIM_COMPARISON(&&)
METAL_SIM_COMPARISON(||)

#undef METAL_SIM_OPERATOR
#undef METAL_SIM_COMPARISON

// ---- packed_float3 and its like: the same elements, aligned as one of them

template <class T, int n>
struct packed_vec {
  T elements[n];
  packed_vec() = default;
  METAL_SIM_INLINE packed_vec(const vec<T, n>& other) { *this = other; }
  template <Scalar... U>
    requires(sizeof...(U) == n)
  METAL_SIM_INLINE constexpr packed_vec(U... values) : elements{T(values)...} {}
  METAL_SIM_INLINE operator vec<T, n>() const {
    vec<T, n> result;
    for (int i = 0; i < n; ++i) result[i] = elements[i];
    return result;
  }
  METAL_SIM_INLINE packed_vec& operator=(const vec<T, n>& other) {
    for (int i = 0; i < n; ++i) elements[i] = other[i];
    return *this;
  }
  METAL_SIM_INLINE T& operator[](int i) { return elements[i]; }
  METAL_SIM_INLINE const T& operator[](int i) const { return elements[i]; }
};
template <class T, int size>
struct VectorTraits<packed_vec<T, size>> : VectorTraits<vec<T, size>> {};

template <class To, class From>
METAL_SIM_INLINE To as_type(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs two types of equal size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace metal

#define METAL_SIM_VECTORS(T)                     \
  using T##2 = metal::vec<T, 2>;                 \
  using T##3 = metal::vec<T, 3>;                 \
  using T##4 = metal::vec<T, 4>;                 \
  using packed_##T##2 = metal::packed_vec<T, 2>; \
  using packed_##T##3 = metal::packed_vec<T, 3>; \
  using packed_##T##4 = metal::packed_vec<T, 4>;
// clang-format off
#define METAL_SIM_ALL_VECTORS                                                                        \
  METAL_SIM_VECTORS(float) METAL_SIM_VECTORS(half) METAL_SIM_VECTORS(bfloat) METAL_SIM_VECTORS(char) \
  METAL_SIM_VECTORS(uchar) METAL_SIM_VECTORS(short) METAL_SIM_VECTORS(ushort) METAL_SIM_VECTORS(int) \
  METAL_SIM_VECTORS(uint) METAL_SIM_VECTORS(long) METAL_SIM_VECTORS(ulong) METAL_SIM_VECTORS(bool)
// clang-format on
METAL_SIM_ALL_VECTORS
namespace metal {  // metal::float4 is a name, too
METAL_SIM_ALL_VECTORS
}
#undef METAL_SIM_VECTORS
#undef METAL_SIM_ALL_VECTORS

using metal::as_type;  // a part of the language, and not of metal::

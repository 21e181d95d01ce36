// f16 (IEEE binary16) and bf16 (the upper half of an f32) as plain bits, their exact widening to float, and
// the nearest of them to a float (ties to even; f16 beyond 65,504 becomes infinite).
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

namespace russet {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline float to_float(float x) {
  return x;
}

inline float to_float(bf16 x) {
  return std::bit_cast<float>(uint32_t(x.bits) << 16);
}

// Moves the 15 bits below the sign into place and multiplies by 2^112, which re-biases the exponent and makes
// subnormals right at once; an exponent of all ones (inf, NaN) is then put back by hand.
inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x007fffffu));
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

inline bf16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40)};  // NaN stays one
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

// Subnormals are rounded by the float's own addition; others by adding just under half of the last place
// kept.
inline f16 to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const auto sign = uint16_t(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u | (bits >> 13 & 0x1ffu))};  // NaN stays one
  if (magnitude >= 0x47800000u) return {uint16_t(sign | 0x7c00u)};                         // 2^16 and more
  if (magnitude < 0x38800000u) {                                                           // below 2^-14
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;  // whose last place is 2^-24
    return {uint16_t(sign | (std::bit_cast<uint32_t>(rounded) - 0x3f000000u))};
  }
  return {uint16_t(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13))};
}

// The element at p, of any alignment: a checkpoint's tensors lie where its file has them.
template <typename T>
inline float float_at(const T* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return to_float(x);
}

}  // namespace russet

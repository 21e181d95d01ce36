// Sixteen columns at a time, eight codes in a word: plain shifts and masks, which compilers make vectors of.
#include <cstddef>
#include <cstring>

#include "core/simd.h"
#include "kernels/merge/merge.h"

namespace russet {
namespace {

constexpr uint64_t each(uint64_t byte) {
  return byte * 0x0101010101010101u;
}
constexpr uint64_t kHigh = each(0xf0), kMiddle = each(0x0c), kLow = each(0x03), kSign = each(0x80);
constexpr size_t kTile = 64, kWord = sizeof(uint64_t);

inline uint64_t word_at(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, kWord);
  return word;
}
inline void put(uint8_t* bytes, uint64_t word) {
  std::memcpy(bytes, &word, kWord);
}

}  // namespace

void RUSSET_FOR_ISA(merge)(const MergeArgs& a) {
  const uint8_t* __restrict high = a.slices[0], * __restrict middle = a.slices[1], * __restrict low = a.slices[2];
  uint8_t* __restrict tiles = a.tiles;
  for (int c = 0; c < a.n_cols; c += 16, high += 2 * kTile, middle += kTile, low += kTile, tiles += 4 * kTile)
    for (size_t w = 0; w < kTile; w += kWord) {
      const uint64_t early = word_at(high + w), late = word_at(high + kTile + w);
      const uint64_t m = word_at(middle + w), l = word_at(low + w);
      put(tiles + w, ((early << 4 & kHigh) ^ kSign) | (m << 2 & kMiddle) | (l & kLow));
      put(tiles + kTile + w, ((early & kHigh) ^ kSign) | (m & kMiddle) | (l >> 2 & kLow));
      put(tiles + 2 * kTile + w, ((late << 4 & kHigh) ^ kSign) | (m >> 2 & kMiddle) | (l >> 4 & kLow));
      put(tiles + 3 * kTile + w, ((late & kHigh) ^ kSign) | (m >> 4 & kMiddle) | (l >> 6 & kLow));
    }
}

}  // namespace russet

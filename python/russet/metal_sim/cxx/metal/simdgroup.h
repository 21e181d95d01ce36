// Barriers, and the functions by which the lanes of a SIMD-group see each other's values.
//
// All 32 lanes must take part (all there are, in the last SIMD-group of an odd threadgroup): a GPU would
// compute with those that do, and a kernel that means that is rare enough to be called wrong here.
#pragma once
#include "../thread.h"
#include "math.h"

namespace metal {

using metal_sim::Site;

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16,
};
METAL_SIM_INLINE mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(uint(a) | uint(b));
}

METAL_SIM_INLINE void threadgroup_barrier(mem_flags flags, Site site = Site::here()) {
  metal_sim::barrier(metal_sim::Barrier::of_threadgroup, flags != mem_flags::mem_none, site);
}
METAL_SIM_INLINE void simdgroup_barrier(mem_flags flags, Site site = Site::here()) {
  metal_sim::barrier(metal_sim::Barrier::of_simdgroup, flags != mem_flags::mem_none, site);
}

// The values of all lanes, and who asked.
template <class T>
struct Lanes {
  const T* values;
  uint n, mine;

  Lanes(const T& value, Site site) {
    static_assert(__is_trivially_copyable(T) || AnyVector<T>);
    values = static_cast<const T*>(metal_sim::exchange(&value, sizeof(T), site));
    const metal_sim::Place& place = metal_sim::place();
    mine = place.thread_index_in_simdgroup;
    const uint n_threads = place.threads_per_threadgroup[0] * place.threads_per_threadgroup[1] *
                           place.threads_per_threadgroup[2];
    const uint n_left = n_threads - place.simdgroup_index_in_threadgroup * kMetalSimSimdWidth;
    n = n_left < kMetalSimSimdWidth ? n_left : kMetalSimSimdWidth;
  }

  // The value of a lane that must be there.
  T from(uint lane, Site site) const {
    if (lane >= n) metal_sim::fail("a value is taken from a lane that does not exist", site);
    return values[lane];
  }

  template <class F>
  T reduce(F f) const {
    T result = values[0];
    for (uint i = 1; i < n; ++i) result = f(result, values[i]);
    return result;
  }
};

// ---- reductions and prefixes

#define METAL_SIM_REDUCTION(name, value)                                   \
  template <class T>                                                       \
  inline T simd_##name(T mine, Site site = Site::here()) {                 \
    return Lanes<T>(mine, site).reduce([](T a, T b) { return T(value); }); \
  }                                                                        \
  template <class T>                                                       \
  inline T quad_##name(T mine, Site site = Site::here()) {                 \
    const Lanes<T> lanes(mine, site);                                      \
    const uint first = lanes.mine & ~3u;                                   \
    T result = lanes.values[first];                                        \
    for (uint i = first + 1; i < first + 4 && i < lanes.n; ++i) {          \
      const T a = result, b = lanes.values[i];                             \
      result = T(value);                                                   \
    }                                                                      \
    return result;                                                         \
  }
METAL_SIM_REDUCTION(sum, a + b)
METAL_SIM_REDUCTION(product, a* b)
METAL_SIM_REDUCTION(max, max(a, b))
METAL_SIM_REDUCTION(min, min(a, b))
METAL_SIM_REDUCTION(and, a& b)
METAL_SIM_REDUCTION(or, a | b)
METAL_SIM_REDUCTION(xor, a ^ b)

#define METAL_SIM_PREFIX(name, identity, value)                             \
  template <class T>                                                        \
  inline T simd_prefix_inclusive_##name(T mine, Site site = Site::here()) { \
    const Lanes<T> lanes(mine, site);                                       \
    T a = lanes.values[0];                                                  \
    for (uint i = 1; i <= lanes.mine; ++i) {                                \
      const T b = lanes.values[i];                                          \
      a = T(value);                                                         \
    }                                                                       \
    return a;                                                               \
  }                                                                         \
  template <class T>                                                        \
  inline T simd_prefix_exclusive_##name(T mine, Site site = Site::here()) { \
    const Lanes<T> lanes(mine, site);                                       \
    T a = T(identity);                                                      \
    for (uint i = 0; i < lanes.mine; ++i) {                                 \
      const T b = lanes.values[i];                                          \
      a = T(value);                                                         \
    }                                                                       \
    return a;                                                               \
  }
METAL_SIM_PREFIX(sum, 0, a + b)
METAL_SIM_PREFIX(product, 1, a* b)

#undef METAL_SIM_REDUCTION
#undef METAL_SIM_PREFIX

// ---- shuffles

template <class T>
inline T simd_shuffle(T mine, ushort lane, Site site = Site::here()) {
  return Lanes<T>(mine, site).from(lane, site);
}
template <class T>
inline T simd_broadcast(T mine, ushort lane, Site site = Site::here()) {
  return Lanes<T>(mine, site).from(lane, site);
}
template <class T>
inline T simd_broadcast_first(T mine, Site site = Site::here()) {
  return Lanes<T>(mine, site).values[0];
}
template <class T>
inline T simd_shuffle_xor(T mine, ushort mask, Site site = Site::here()) {
  const Lanes<T> lanes(mine, site);
  return lanes.from(lanes.mine ^ mask, site);
}
// Nothing wraps around: the lanes at the end keep what they have.
template <class T>
inline T simd_shuffle_down(T mine, ushort delta, Site site = Site::here()) {
  const Lanes<T> lanes(mine, site);
  return lanes.mine + delta < lanes.n ? lanes.values[lanes.mine + delta] : mine;
}
template <class T>
inline T simd_shuffle_up(T mine, ushort delta, Site site = Site::here()) {
  const Lanes<T> lanes(mine, site);
  return lanes.mine >= delta ? lanes.values[lanes.mine - delta] : mine;
}
template <class T>
inline T simd_shuffle_rotate_down(T mine, ushort delta, Site site = Site::here()) {
  const Lanes<T> lanes(mine, site);
  return lanes.from((lanes.mine + delta) % kMetalSimSimdWidth, site);
}
template <class T>
inline T simd_shuffle_rotate_up(T mine, ushort delta, Site site = Site::here()) {
  const Lanes<T> lanes(mine, site);
  return lanes.from((lanes.mine + kMetalSimSimdWidth - delta % kMetalSimSimdWidth) % kMetalSimSimdWidth,
                    site);
}
// Past the end lie the values of `fill`: of its first lanes going down, of its last going up.
template <class T>
inline T simd_shuffle_and_fill_down(T mine, T fill, ushort delta, Site site = Site::here()) {
  const Lanes<T> lanes(mine, site), fills(fill, site);
  const uint from = lanes.mine + delta;
  return from < kMetalSimSimdWidth ? lanes.from(from, site) : fills.from(from - kMetalSimSimdWidth, site);
}
template <class T>
inline T simd_shuffle_and_fill_up(T mine, T fill, ushort delta, Site site = Site::here()) {
  const Lanes<T> lanes(mine, site), fills(fill, site);
  return lanes.mine >= delta ? lanes.values[lanes.mine - delta]
                             : fills.from(lanes.mine + kMetalSimSimdWidth - delta, site);
}
template <class T>
inline T quad_shuffle_xor(T mine, ushort mask, Site site = Site::here()) {
  return simd_shuffle_xor(mine, mask & 3, site);
}
template <class T>
inline T quad_broadcast(T mine, ushort lane, Site site = Site::here()) {
  const Lanes<T> lanes(mine, site);
  return lanes.from((lanes.mine & ~3u) + lane, site);
}
template <class T>
inline T quad_shuffle(T mine, ushort lane, Site site = Site::here()) {
  return quad_broadcast(mine, lane, site);
}

// ---- votes

struct simd_vote {
  uint64_t lanes;
  explicit operator uint64_t() const { return lanes; }
  bool any() const { return lanes != 0; }
  bool all() const { return lanes == 0xffffffffu; }
};
inline simd_vote simd_ballot(bool mine, Site site = Site::here()) {
  const Lanes<bool> lanes(mine, site);
  uint64_t result = 0;
  for (uint i = 0; i < lanes.n; ++i) result |= uint64_t(lanes.values[i]) << i;
  return {result};
}
inline bool simd_any(bool mine, Site site = Site::here()) {
  return Lanes<bool>(mine, site).reduce([](bool a, bool b) { return a || b; });
}
inline bool simd_all(bool mine, Site site = Site::here()) {
  return Lanes<bool>(mine, site).reduce([](bool a, bool b) { return a && b; });
}
inline bool simd_is_first(Site site = Site::here()) {
  return Lanes<bool>(true, site).mine == 0;
}
inline simd_vote simd_active_threads_mask(Site site = Site::here()) {
  return simd_ballot(true, site);
}

}  // namespace metal

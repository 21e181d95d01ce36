// simdgroup_matrix<T, 8, 8>: 64 elements, two of them in each lane, where an Apple GPU has them.
#pragma once
#include "simdgroup.h"

namespace metal {

// Where the two elements of a lane are: (row, column) and (row, column + 1). The bits of the lane's index
// are, from the highest: row 4, column 4, row 2, row 1, column 2.
struct MatrixPlace {
  uint row, column;
  METAL_SIM_INLINE explicit MatrixPlace(uint lane)
      : row((lane >> 4 & 1) * 4 + (lane >> 1 & 3)), column((lane >> 3 & 1) * 4 + (lane & 1) * 2) {}
  static METAL_SIM_INLINE MatrixPlace mine() {
    return MatrixPlace(metal_sim::place().thread_index_in_simdgroup);
  }
  static METAL_SIM_INLINE uint lane_of(uint row, uint column) {
    return (row >> 2) << 4 | (column >> 2) << 3 | (row & 3) << 1 | (column >> 1 & 1);
  }
};

template <class T, int n_rows, int n_columns>
struct simdgroup_matrix {
  static_assert(n_rows == 8 && n_columns == 8, "Metal has simdgroup matrices of 8 x 8");
  static_assert(is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>,
                "Metal has simdgroup matrices of float, half and bfloat");
  using storage_type = vec<T, 2>;

  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    const MatrixPlace place = MatrixPlace::mine();
    for (uint i = 0; i < 2; ++i) mine[i] = place.row == place.column + i ? diagonal : T(0);
  }
  METAL_SIM_INLINE storage_type& thread_elements() { return mine; }
  METAL_SIM_INLINE const storage_type& thread_elements() const { return mine; }

 private:
  storage_type mine;
};

using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class T, int n_rows, int n_columns>
METAL_SIM_INLINE simdgroup_matrix<T, n_rows, n_columns> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, n_rows, n_columns> result;
  result.thread_elements() = vec<T, 2>(value);
  return result;
}

// Loads and stores are SIMD operations, too: every lane must be there.
METAL_SIM_INLINE void meet(Site site) {
  Lanes<bool>(true, site);
}

template <class T, class Memory>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& to, const Memory* from, ulong elements_per_row = 8,
                           ulong2 origin = ulong2(0), bool transpose = false, Site site = Site::here()) {
  meet(site);
  const MatrixPlace place = MatrixPlace::mine();
  for (uint i = 0; i < 2; ++i) {
    const ulong row = transpose ? place.column + i : place.row,
                column = transpose ? place.row : place.column + i;
    to.thread_elements()[int(i)] = T(from[(origin.y + row) * elements_per_row + origin.x + column]);
  }
}

template <class T, class Memory>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& from, Memory* to, ulong elements_per_row = 8,
                            ulong2 origin = ulong2(0), bool transpose = false, Site site = Site::here()) {
  meet(site);
  const MatrixPlace place = MatrixPlace::mine();
  for (uint i = 0; i < 2; ++i) {
    const ulong row = transpose ? place.column + i : place.row,
                column = transpose ? place.row : place.column + i;
    to[(origin.y + row) * elements_per_row + origin.x + column] = Memory(from.thread_elements()[int(i)]);
  }
}

// d = a * b + c, summed in float.
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                          const simdgroup_matrix<B, 8, 8>& b,
                                          const simdgroup_matrix<C, 8, 8>& c, Site site = Site::here()) {
  struct Pair {
    A a[2];
    B b[2];
  };
  const Pair mine = {{a.thread_elements()[0], a.thread_elements()[1]},
                     {b.thread_elements()[0], b.thread_elements()[1]}};
  const Lanes<Pair> lanes(mine, site);
  if (lanes.n != kMetalSimSimdWidth) metal_sim::fail("a matrix product needs a SIMD-group of 32 lanes", site);
  const MatrixPlace place(lanes.mine);
  for (uint i = 0; i < 2; ++i) {
    float sum = float(c.thread_elements()[int(i)]);
    for (uint k = 0; k < 8; ++k)
      sum += float(lanes.values[MatrixPlace::lane_of(place.row, k)].a[k % 2]) *
             float(lanes.values[MatrixPlace::lane_of(k, place.column)].b[i]);
    d.thread_elements()[int(i)] = D(sum);
  }
}

template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                               const simdgroup_matrix<B, 8, 8>& b, Site site = Site::here()) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), site);
}

}  // namespace metal

// Screening: the logits of one token that matter, from as little of the head as shows that the others do not.
//
// The head is sliced (weights/packed.h). Band after band, its first slice gives an estimate of sixteen logits
// and a bound on how far each is off. Where even estimate + bound is below the floor, the k-th largest of the
// exact logits so far, no row of the band is wanted, and its other slices are never read; else the next one
// is, and so on. With the last the logits are exact, to the bit what the whole head gives.
//
// The floor is that of the threshold algorithm (Fagin, Lotem, Naor, PODS 2001), with bits for attributes. How
// much it saves is up to the logits: where estimates are in vain they are left out, and what it costs is the
// whole head.
#pragma once
#include <atomic>
#include <cstddef>

#include "kernels/qmatmul/qmatmul.h"
#include "model/wanted.h"

namespace russet {

// What was read since the start, for all threads.
struct ScreenCounts {
  std::atomic<size_t> tokens{0};  // that were screened for
  std::atomic<size_t> bytes{0};   // of slices, scales and radii
  std::atomic<size_t> rows{0};    // computed exactly
};

// All of them: y = w x for one token; sums [n_groups, 16], 64-byte aligned.
void sliced_product(const Packed& w, const QuantizedX& x, float* y, int32_t* sums);

struct ScreenArgs {
  Packed head;   // rows [first, first + n_rows) of it, sliced
  int first;     // a multiple of kBandRows
  QuantizedX x;  // one token
  const Wanted& wanted;
  double margin;  // the wanted one, in what the head gives before it is scaled
  double trust;   // bounds are multiplied with it: 1, and nothing wanted is ever missed
  float* logits;  // [n_rows]
  int32_t* sums;  // [n_groups, 16], 64-byte aligned
};

void screen(const ScreenArgs& args, ScreenCounts& counts);

}  // namespace russet

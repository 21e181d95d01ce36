// The two limits of this machine that a model's speed is held against, measured.
//
// Each takes some tenths of a second and gives the best of several passes: what the machine can do when
// nobody else is at it. Both throw Error{usage} unless 1 <= n_threads <= 1024.
#pragma once

namespace russet {

// GB/s (1e9 bytes) that n_threads together read from memory, out of a buffer far larger than the caches: a
// quarter of a gigabyte or more. Throws Error{memory} where the system refuses it.
double read_bandwidth(int n_threads);

// 1e9 operations per second of int8 products summed in int32, 2 operations per product and sum, by the best
// instruction that this chip has and RUSSET_ISA allows; operands stay in registers.
double int8_peak(int n_threads);

}  // namespace russet

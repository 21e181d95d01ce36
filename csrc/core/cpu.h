// What this chip can do, asked once. RUSSET_ISA holds russet below what the chip has: each of
// scalar, avx2, avx512, vnni, amx and of scalar, neon, dotprod, i8mm includes those before it.
#pragma once
#include <string>
#include <vector>

namespace russet {

enum Feature : unsigned {
  kBaseline = 0,
  kNeon = 1,
  kDotprod = 2,  // sdot: sums of four products of int8
  kI8mm = 4,     // smmla: 2 x 8 by 8 x 2 matrices of int8
  kAvx2 = 8,     // with fma and f16c
  kAvx512 = 16,  // f, bw, vl and dq
  kVnni = 32,    // vpdpbusd on 512 bits
  kAmx = 64,     // tiles of int8 and bf16, allowed by the system
};

unsigned cpu_features();                       // Feature bits russet may use
std::vector<std::string> cpu_feature_names();  // the same, to be shown
std::string cpu_name();                        // as the chip calls itself
int n_physical_cores();                        // cores to compute on: performance cores on Apple chips

}  // namespace russet

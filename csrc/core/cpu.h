// What this chip can do, asked once. RUSSET_ISA=scalar|neon|avx2|avx512 holds russet below what the chip has.
#pragma once
#include <string>
#include <vector>

namespace russet {

enum Feature : unsigned { kBaseline = 0, kNeon = 1, kAvx2 = 2, kAvx512 = 4 };  // avx2 includes fma and f16c

unsigned cpu_features();                       // Feature bits russet may use
std::vector<std::string> cpu_feature_names();  // the same, to be shown
std::string cpu_name();                        // as the chip calls itself
int n_physical_cores();                        // cores to compute on: performance cores on Apple chips

}  // namespace russet

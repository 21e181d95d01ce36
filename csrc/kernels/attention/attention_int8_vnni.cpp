// vpdpbusd: attention_int8_avx512.h has the instructions, attention_int8_steps.h the steps.
#include "kernels/attention/attention_int8_avx512.h"

namespace russet {
namespace {

constexpr int kTileRows = 0;

}  // namespace
}  // namespace russet

#include "kernels/attention/attention_int8_steps.h"

namespace russet {

void attention_sage_vnni(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  run<false>(args, of_keys, partial);
}
void attention_integer_vnni(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  run<true>(args, of_keys, partial);
}

}  // namespace russet

// embed: x[t] = table[tokens[t]] * scale + positions[pos[t]]
//   table [vocab_size, dim] W    positions [n_positions, dim] P, may be absent    x [n_tokens, dim] float
//   a token of -1, which is what argmax makes of NaN, makes NaN again
//   grid: (ceil(dim / kEmbedThreads), n_tokens) threadgroups of kEmbedThreads; an element a thread
//
// Bound by the launch: of a token it reads a row, 1,088 bytes for 1,024 columns of int8 (groups of 64, f16
// scales and biases), and writes 4 dim bytes.
#include "args.h"
#include "common/weights.h"

using namespace russet::metal;

template <typename W, typename P>
[[kernel]] void embed(
    constant EmbedArgs& args               [[buffer(0)]],
    device const typename W::Codes* codes  [[buffer(1)]],
    device const typename W::Scale* scales [[buffer(2)]],
    device const typename W::Scale* biases [[buffer(3)]],
    device const P* positions              [[buffer(4)]],
    device const int* tokens               [[buffer(5)]],
    device const int* pos                  [[buffer(6)]],
    device float* x                        [[buffer(7)]],
    uint2 group [[threadgroup_position_in_grid]], uint thread_id [[thread_index_in_threadgroup]]) {
  const uint token = group.y, col = group.x * kEmbedThreads + thread_id;
  if (col >= args.dim) return;
  device float& out = x[ulong(token) * args.dim + col];
  if (tokens[token] < 0) {
    out = NAN;
    return;
  }
  const W row = W(codes, scales, biases, args.dim, args.group_size).from_row(tokens[token]);
  float sum = row.element(0, col) * args.scale;
  if (args.has_positions) sum += float(positions[ulong(pos[token]) * args.dim + col]);
  out = sum;
}

#define INSTANTIATE(W, P, p) \
  template [[host_name("embed_" #W "_" #p)]] [[kernel]] decltype(embed<w_##W, P>) embed<w_##W, P>;
#define EMBED(W) INSTANTIATE(W, float, f32) INSTANTIATE(W, half, f16) INSTANTIATE(W, bfloat, bf16)
EMBED(f32)
EMBED(f16)
EMBED(bf16)
EMBED(int8_f32)
EMBED(int8_f16)
EMBED(int8_bf16)
EMBED(int4_f32)
EMBED(int4_f16)
EMBED(int4_bf16)

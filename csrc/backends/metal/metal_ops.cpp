#include "backends/metal/metal_ops.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "kv_cache/kv_cache.h"
#include "model/forward.h"

namespace russet::metal {

static_assert(int(kCacheBlock) == int(kBlockTokens) && int(kNoBlock) == int(russet::kNoBlock));

// Up to this many tokens products read the weights for every kMatvecTokens of them; above, in tiles.
static constexpr int kFewTokens = 2 * kMatvecTokens;

// Keys that are worth a threadgroup of their own in decode.
static constexpr int kPartKeys = 256;

// Logits of this many tokens at a time are held for the host.
static constexpr int kLogitRows = 64;

// ---- memory ----

static size_t whole_pages(size_t n_bytes) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  return (n_bytes + page - 1) / page * page;
}

Mapping::Mapping(Device& device, const void* begin, size_t n_bytes)
    : device_(&device), begin_(begin), n_bytes_(whole_pages(n_bytes)) {
  device.map(begin, n_bytes_);
}
Mapping::~Mapping() {
  if (device_) device_->unmap(begin_);
}
Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(begin_, other.begin_);
  std::swap(n_bytes_, other.n_bytes_);
  return *this;
}

std::byte* MetalOps::reserve(Room& room, size_t n_bytes) {
  if (n_bytes > room.buffer.size()) {
    room.mapping = {};
    room.buffer.reserve(whole_pages(n_bytes));
    room.mapping = Mapping(device_, room.buffer.bytes(), room.buffer.size());
  }
  return reinterpret_cast<std::byte*>(room.buffer.bytes());
}

void MetalOps::commit() {
  last_pass_ = device_.commit();
  ++n_passes_;
}
void MetalOps::finish() {
  commit();
  device_.wait(last_pass_);
}

// A pool is shown as far as it has been in use, in powers of two of its blocks: a GPU keeps all it is shown
// in memory, while the pool has reserved addresses for all there may be.
void MetalOps::show(const KvCache& cache) {
  Mapping& table = tables_[&cache];
  if (!table.size()) table = Mapping(device_, cache.tables().bytes(), cache.tables().size());
  const BlockPool& pool = cache.pool();
  const size_t needed = pool.touched_bytes();
  if (needed <= pool_.size()) return;
  size_t n_bytes = pool.block_bytes();
  while (n_bytes < needed) n_bytes *= 2;
  pool_ = {};  // which waits for the passes that see it
  pool_ = Mapping(device_, pool.data(), std::min(n_bytes, pool.reserved_bytes()));
}

void MetalOps::forget(const KvCache& cache) {
  settle();  // a pass may be writing to blocks that others will have
  tables_.erase(&cache);
  if (tables_.empty()) pool_ = {};  // and the system can have the pages
}

// ---- kernels ----

Storage Storage::of(const Matrix& w) {
  check(!w.packed, ErrorKind::weights, "metal: a matrix is packed for the CPU");
  return w.affine ? Storage{w.affine.bits, w.affine.dtype} : Storage{0, w.floats.dtype};
}
std::string Storage::name() const {
  const char* kinds[] = {"", "int4_", "int8_"};
  return std::string(kinds[bits / 4]) += name_of(dtype);
}

// {"matvec", "f16", "int8_bf16"} -> "matvec_f16_int8_bf16"
static std::string joined(std::initializer_list<std::string_view> parts) {
  std::string name;
  for (const std::string_view part : parts) (name += name.empty() ? "" : "_") += part;
  return name;
}

// What registers of the attention kernels are laid out for.
static int head_dim_kernel(int head_dim) {
  for (const int d : {32, 64, 128, 256})
    if (head_dim <= d) return d;
  fail(ErrorKind::device, "metal: head_dim ", head_dim, " is above the largest, 256; use backend=\"cpu\"");
}

MetalOps::MetalOps(const Config& config, const Weights& weights, DType dtype, KvType in_cache, Device& device)
    : config_(config), dtype_(dtype), device_(device) {
  const char *t = name_of(dtype), *k = in_cache == KvType::int8 ? "int8" : t;
  const std::string d = std::to_string(head_dim_kernel(config.head_dim));
  const auto kernel = [&](const auto&... parts) { return device.pipeline(joined({parts...})); };
  argmax_parts_ = kernel("argmax_parts");
  argmax_ = kernel("argmax");
  embed_ = kernel("embed", Storage::of(weights.embed).name(),
                  name_of(weights.positions ? weights.positions.dtype : DType::f32));
  norm_ = kernel("norm", t);
  norm_float_ = kernel("norm", "f32");
  norm_self_ = kernel("norm_self", t);
  norm_residual_ = kernel("norm_residual");
  rope_store_ = kernel("rope_store", t, k);
  attention_decode_ = kernel("attention_decode", t, k, d);
  attention_merge_ = kernel("attention_merge", t);
  attention_prefill_ = kernel("attention_prefill", t, k, d);

  const auto add = [&](const Linear& linear) {
    if (!linear || products_.contains(Storage::of(linear.w))) return;
    const std::string w = Storage::of(linear.w).name();
    Products& p = products_[Storage::of(linear.w)];
    p.matvec = kernel("matvec", t, w);
    p.matvec_residual = kernel("matvec_residual", t, w);
    p.matvec_gate = kernel("matvec_gate", t, w);
    p.matvec_float = kernel("matvec_float", t, w);
    p.matvec_float_x = kernel("matvec_float", "f32", w);
    p.matmul = kernel("matmul", t, w);
    p.matmul_residual = kernel("matmul_residual", t, w);
    p.matmul_gate = kernel("matmul_gate", t, w);
    p.matmul_float = kernel("matmul_float", t, w);
  };
  add(weights.head);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& w = weights.layers[i];
    for (const Linear* linear : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down}) add(*linear);
    check(!w.up || Storage::of(w.up.w) == Storage::of(w.gate.w), ErrorKind::weights, "metal: layers.", i,
          ": gate is stored as ", Storage::of(w.gate.w).name(), " and up as ", Storage::of(w.up.w).name(),
          "; quantise them alike, or use backend=\"cpu\"");
  }
}

template <typename Args>
void MetalOps::encode(const Pipeline& pipeline, const Args& args, std::span<const void* const> pointers,
                      Grid groups, Grid threads) {
  device_.dispatch({pipeline, std::as_bytes(std::span(&args, 1)), pointers, groups, threads});
}

static unsigned ceil_div(int n, uint32_t step) {
  return (unsigned(n) + step - 1) / step;
}

// ---- activations ----

static size_t q_dim(const Config& c) {
  return size_t(c.n_heads) * size_t(c.head_dim);
}
static size_t kv_dim(const Config& c) {
  return size_t(c.n_kv_heads) * size_t(c.head_dim);
}

Activations MetalOps::activations(int n_tokens) {
  // Whole cache lines each: 64 bytes for 16 tokens of whatever width.
  const size_t n = size_t(n_tokens + 15) / 16 * 16, element = size_of(dtype_), dim = size_t(config_.dim);
  const size_t few = std::min<size_t>(n, kFewTokens);
  const size_t partial = few * size_t(config_.n_heads) * kMaxParts * (size_t(config_.head_dim) + 2);
  const size_t of_t = dim + 2 * q_dim(config_) + 2 * kv_dim(config_) + size_t(config_.ffn_dim);
  std::byte* at =
      reserve(activations_, n * (2 * dim * sizeof(float) + of_t * element) + partial * sizeof(float) + 64);
  const auto take = [&](size_t n_bytes) { return std::exchange(at, at + n_bytes); };
  const auto take_t = [&](size_t width) { return take(n * width * element); };
  Activations a{};
  a.x = reinterpret_cast<float*>(take(n * dim * sizeof(float)));
  whole_ = reinterpret_cast<float*>(take(n * dim * sizeof(float)));
  normed_ = take_t(dim);
  a.q = take_t(q_dim(config_));
  a.k = take_t(kv_dim(config_));
  a.v = take_t(kv_dim(config_));
  a.attended = take_t(q_dim(config_));
  a.hidden = take_t(size_t(config_.ffn_dim));
  partial_ = reinterpret_cast<float*>(take(partial * sizeof(float)));
  return a;
}

// Where a token's row begins.
template <typename Pointer>
static Pointer row(Pointer rows, int token, size_t width, DType dtype) {
  return static_cast<std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char*, char*>>(
             rows) +
         size_t(token) * width * size_of(dtype);
}

// Writes what the kernels must know of the batch, then begins the pass.
void MetalOps::embed(const Batch& batch, const Matrix& table, float scale, const View& positions, float* x) {
  if (last_pass_ > 1) device_.settle(last_pass_ - 1);  // which reads its inputs in the same place
  places_.choose(config_, batch);
  const size_t n = batch.tokens.size();
  size_t n_floats = 0;
  for (const Rope& rope : config_.ropes) n_floats += 2 * n * rope.inv_freq.size();
  std::byte* at =
      reserve(slot().inputs, (2 * n + batch.logit_rows.size()) * sizeof(int32_t) + n_floats * sizeof(float));
  const auto put = [&](const auto* values, size_t n_values) {
    const size_t n_bytes = n_values * sizeof(*values);
    std::memcpy(at, values, n_bytes);
    return reinterpret_cast<decltype(values)>(std::exchange(at, at + n_bytes));
  };
  const int32_t* tokens = put(batch.tokens.data(), n);
  if (next_token_) tokens = next_token_;
  const int32_t* pos = put(places_.pos().data(), n);
  rows_ = put(batch.logit_rows.data(), batch.logit_rows.size());
  cos_.clear();
  sin_.clear();
  for (size_t r = 0; r < config_.ropes.size(); ++r) {
    const size_t half = config_.ropes[r].inv_freq.size();
    cos_.push_back(put(places_.cos(int(r)), n * half));
    sin_.push_back(put(places_.sin(int(r)), n * half));
  }
  for (const Segment& s : batch.segments) show(*s.cache);
  if (batch.x) {
    device_.settle(last_pass_);  // which has an x in the same place
    std::copy_n(batch.x, n * size_t(config_.dim), x);
    return;
  }

  const Affine& a = table.affine;
  const EmbedArgs args{uint32_t(config_.dim), uint32_t(a ? a.group_size : 0), bool(positions), scale};
  encode(embed_, args,
         {a ? static_cast<const void*>(a.codes) : table.floats.data, a.scales, a.biases, positions.data,
          tokens, pos, x},
         {ceil_div(config_.dim, kEmbedThreads), unsigned(n)}, {kEmbedThreads});
  device_.barrier();
}

// ---- norms ----

// norm(x), of the given rows or of all, in T.
const void* MetalOps::normed(const NormWeights& n, const float* x, const int32_t* rows, int n_tokens) {
  const NormArgs args{
      uint32_t(config_.dim), config_.norm == NormKind::layer, bool(n), n.bias != nullptr, rows != nullptr,
      config_.norm_eps};
  encode(norm_, args, {x, n.w, n.bias, rows, normed_}, {unsigned(n_tokens)}, {kNormThreads});
  device_.barrier();
  return normed_;
}

// The same in float, for the products of few tokens: where their own norm, which is rms, will not do.
const float* MetalOps::normed_float(const NormWeights& n, const float* x, int n_tokens) {
  if (!n || config_.norm == NormKind::rms) return x;
  const NormArgs args{uint32_t(config_.dim), true, true, n.bias != nullptr, false, config_.norm_eps};
  encode(norm_float_, args, {x, n.w, n.bias, nullptr, whole_}, {unsigned(n_tokens)}, {kNormThreads});
  device_.barrier();
  return whole_;
}

// ---- products ----

namespace {

// A matrix's part of a list of buffers.
void append(std::vector<const void*>& pointers, const Linear& linear) {
  const Affine& a = linear.w.affine;
  pointers.insert(pointers.end(), {a ? static_cast<const void*>(a.codes) : linear.w.floats.data, a.scales,
                                   a.biases, linear.bias});
}

constexpr Grid kMatvecGroup{kSimd, kMatvecSimds}, kMatmulGroup{kSimd, kMatmulSimds};

}  // namespace

MatvecArgs MetalOps::matvec_args(const NormWeights& norm, const Linear& linear, int n_tokens) const {
  MatvecArgs args{};
  args.n_tokens = uint32_t(n_tokens);
  args.n_cols = uint32_t(linear.n_inputs());
  args.group_size = uint32_t(linear.w.affine ? linear.w.affine.group_size : 0);
  args.has_norm = norm && config_.norm == NormKind::rms;
  args.n_rows[0] = uint32_t(linear.n_outputs());
  args.has_linear_bias[0] = linear.bias != nullptr;
  args.eps = config_.norm_eps;
  args.scale = 1;
  return args;
}

MatmulArgs MetalOps::matmul_args(const Linear& linear, int n_tokens) const {
  MatmulArgs args{};
  args.n_tokens = uint32_t(n_tokens);
  args.n_rows = uint32_t(linear.n_outputs());
  args.n_cols = uint32_t(linear.n_inputs());
  args.group_size = uint32_t(linear.w.affine ? linear.w.affine.group_size : 0);
  args.has_linear_bias[0] = linear.bias != nullptr;
  args.scale = 1;
  return args;
}

static Grid matvec_groups(int n_rows, int n_tokens, unsigned n_matrices = 1) {
  return {ceil_div(n_rows, kMatvecRows), ceil_div(n_tokens, kMatvecTokens), n_matrices};
}
static Grid matmul_groups(int n_rows, int n_tokens) {
  return {ceil_div(n_rows, kMatmulRows), ceil_div(n_tokens, kMatmulTokens)};
}

void MetalOps::norm_linear(const NormWeights& norm, const float* x, int n_tokens,
                           std::initializer_list<LinearOut> outputs) {
  if (n_tokens > kFewTokens) {
    const void* n = normed(norm, x, nullptr, n_tokens);
    for (const auto& [linear, y] : outputs) {
      std::vector<const void*> pointers{n};
      append(pointers, linear);
      pointers.push_back(y);
      encode(products(linear.w).matmul, matmul_args(linear, n_tokens), pointers,
             matmul_groups(linear.n_outputs(), n_tokens), kMatmulGroup);
    }
    device_.barrier();
    return;
  }
  x = normed_float(norm, x, n_tokens);
  // Matrices that are stored alike go together, up to three of them.
  for (auto first = outputs.begin(); first != outputs.end();) {
    const Linear& like = first->linear;
    MatvecArgs args = matvec_args(norm, like, n_tokens);
    std::vector<const void*> pointers{x, norm.w};
    unsigned n_matrices = 0;
    int most_rows = 0;
    for (; first != outputs.end() && n_matrices < 3; ++first) {
      const Linear& linear = first->linear;
      if (Storage::of(linear.w) != Storage::of(like.w) ||
          linear.w.affine.group_size != like.w.affine.group_size)
        break;
      args.n_rows[n_matrices] = uint32_t(linear.n_outputs());
      args.has_linear_bias[n_matrices] = linear.bias != nullptr;
      most_rows = std::max(most_rows, linear.n_outputs());
      append(pointers, linear);
      pointers.push_back(first->y);
      ++n_matrices;
    }
    pointers.resize(2 + 3 * 5);
    encode(products(like.w).matvec, args, pointers, matvec_groups(most_rows, n_tokens, n_matrices),
           kMatvecGroup);
  }
  device_.barrier();
}

void MetalOps::norm_gate(const NormWeights& norm, const Linear& gate, const Linear& up, const float* x,
                         int n_tokens, void* hidden) {
  const bool many = n_tokens > kFewTokens;
  const void* in = many ? normed(norm, x, nullptr, n_tokens) : normed_float(norm, x, n_tokens);
  std::vector<const void*> pointers{in};
  if (!many) pointers.push_back(norm.w);
  append(pointers, gate);
  append(pointers, up);
  pointers.push_back(hidden);
  const auto complete = [&](auto args) {
    args.has_linear_bias[1] = up.bias != nullptr;
    args.has_up = bool(up);
    args.activation = uint32_t(config_.activation);
    return args;
  };
  if (many) {
    encode(products(gate.w).matmul_gate, complete(matmul_args(gate, n_tokens)), pointers,
           matmul_groups(up ? 2 * gate.n_outputs() : gate.n_outputs(), n_tokens), kMatmulGroup);
  } else {
    encode(products(gate.w).matvec_gate, complete(matvec_args(norm, gate, n_tokens)), pointers,
           matvec_groups(gate.n_outputs(), n_tokens), kMatvecGroup);
  }
  device_.barrier();
}

// out = softcap(scale * linear(input)) in float; see matvec_float and matmul_float in metal/args.h.
void MetalOps::linear_float(const Linear& linear, const FloatInput& in, int n_tokens, float scale,
                            float softcap, float* out) {
  const Products& p = products(linear.w);
  const bool many = n_tokens > kFewTokens;
  std::vector<const void*> pointers{in.data};
  if (!many) pointers.push_back(in.norm.w);
  append(pointers, linear);
  if (!many) pointers.push_back(in.rows);
  pointers.push_back(out);
  const auto complete = [&](auto args) {
    args.scale = scale;
    args.softcap = softcap;
    return args;
  };
  if (many) {
    encode(p.matmul_float, complete(matmul_args(linear, n_tokens)), pointers,
           matmul_groups(linear.n_outputs(), n_tokens), kMatmulGroup);
  } else {
    MatvecArgs args = complete(matvec_args(in.norm, linear, n_tokens));
    args.has_rows = in.rows != nullptr;
    encode(in.is_float ? p.matvec_float_x : p.matvec_float, args, pointers,
           matvec_groups(linear.n_outputs(), n_tokens), kMatvecGroup);
  }
}

void MetalOps::linear_residual(const Linear& linear, const NormWeights& post_norm, const void* y,
                               int n_tokens, float* x) {
  const float scale = config_.residual_scale;
  if (post_norm) {
    linear_float(linear, {.data = y}, n_tokens, 1, 0, whole_);
    device_.barrier();
    const NormResidualArgs args{uint32_t(config_.dim), config_.norm == NormKind::layer,
                                post_norm.bias != nullptr, config_.norm_eps, scale};
    encode(norm_residual_, args, {whole_, post_norm.w, post_norm.bias, x}, {unsigned(n_tokens)},
           {kNormThreads});
  } else {
    const Products& p = products(linear.w);
    std::vector<const void*> pointers{y};
    append(pointers, linear);
    pointers.push_back(x);
    const auto scaled = [&](auto args) {
      args.scale = scale;
      return args;
    };
    if (n_tokens > kFewTokens)
      encode(p.matmul_residual, scaled(matmul_args(linear, n_tokens)), pointers,
             matmul_groups(linear.n_outputs(), n_tokens), kMatmulGroup);
    else
      encode(p.matvec_residual, scaled(matvec_args({}, linear, n_tokens)), pointers,
             matvec_groups(linear.n_outputs(), n_tokens), kMatvecGroup);
  }
  device_.barrier();
}

// All tokens' logits may be more than memory holds: they go to the host some rows at a time.
void MetalOps::norm_logits(const Batch& batch, const NormWeights& norm, const Linear& head, const float* x,
                           float* logits) {
  const int n_rows = int(batch.logit_rows.size());
  const size_t vocab_size = size_t(head.n_outputs());
  auto* out = reinterpret_cast<float*>(
      reserve(logits_, size_t(std::min(n_rows, kLogitRows)) * vocab_size * sizeof(float)));
  for (int begin = 0; begin < n_rows; begin += kLogitRows) {
    const int n = std::min(kLogitRows, n_rows - begin);
    const int32_t* rows = rows_ + begin;
    const bool fused = n <= kFewTokens && (!norm || config_.norm == NormKind::rms);
    const FloatInput in = fused ? FloatInput{.data = x, .is_float = true, .norm = norm, .rows = rows}
                                : FloatInput{.data = normed(norm, x, rows, n)};
    linear_float(head, in, n, config_.logits_scale, config_.logits_softcap, out);
    if (!logits) return find_likeliest(out, head.n_outputs());
    finish();
    std::memcpy(logits + size_t(begin) * vocab_size, out, size_t(n) * vocab_size * sizeof(float));
  }
}

// ---- the likeliest token ----

void MetalOps::find_likeliest(const float* logits, int vocab_size) {
  auto* values = reinterpret_cast<float*>(reserve(slot().likeliest, (2 * kArgmaxParts + 1) * sizeof(float)));
  auto* indices = reinterpret_cast<int32_t*>(values + kArgmaxParts);
  int32_t* token = indices + kArgmaxParts;
  const ArgmaxArgs args{uint32_t(vocab_size)};
  device_.barrier();
  encode(argmax_parts_, args, {logits, values, indices}, {kArgmaxParts, 1}, {kArgmaxThreads});
  device_.barrier();
  encode(argmax_, args, {values, indices, token}, Grid{1}, Grid{kSimd});
  commit();
  likeliest_ = {last_pass_, token};
}

MetalOps::Likeliest MetalOps::forward_likeliest(const Weights& weights, const Batch& batch,
                                                const int32_t* token) {
  const struct UntilReturn {  // or until forward() throws
    const int32_t*& token;
    ~UntilReturn() { token = nullptr; }
  } until_return{next_token_};
  next_token_ = token;
  forward(config_, weights, *this, batch, nullptr);
  return likeliest_;
}

int32_t MetalOps::wait(const Likeliest& likeliest) {
  device_.wait(likeliest.pass);
  return *likeliest.token;
}

// ---- attention ----

Cache MetalOps::cache_args(const KvCache& cache, int layer) const {
  return {uint32_t(layer * config_.n_kv_heads), uint32_t(cache.table_size()), uint32_t(config_.n_kv_heads),
          uint32_t(config_.head_dim)};
}

void MetalOps::rope_store(const Batch& batch, int layer, const LayerWeights& w, void* q, void* k,
                          const void* v) {
  // A norm over all heads at once must be done before any of them is rotated.
  bool whole_norms = false;
  const auto norm_whole = [&](const NormWeights& norm, void* heads) {
    if (!norm || norm.dim == config_.head_dim) return;
    const NormArgs args{uint32_t(norm.dim), false, true, false, false, config_.norm_eps};
    encode(norm_self_, args, {heads, norm.w}, {unsigned(batch.n_tokens())}, {kNormThreads});
    whole_norms = true;
  };
  norm_whole(w.q_norm, q);
  norm_whole(w.k_norm, k);
  if (whole_norms) device_.barrier();

  const int rope = config_.layer_rope[size_t(layer)];
  const size_t half = rope < 0 ? 0 : config_.ropes[size_t(rope)].inv_freq.size();
  const bool q_norm = w.q_norm && w.q_norm.dim == config_.head_dim;
  const bool k_norm = w.k_norm && w.k_norm.dim == config_.head_dim;
  for (const Segment& s : batch.segments) {
    const RopeStoreArgs args{cache_args(*s.cache, layer),
                             uint32_t(config_.n_heads),
                             uint32_t(s.pos),
                             uint32_t(2 * half),
                             q_norm,
                             k_norm,
                             config_.norm_eps};
    const size_t angles = size_t(s.begin) * half;
    encode(rope_store_, args,
           {row(q, s.begin, q_dim(config_), dtype_), row(k, s.begin, kv_dim(config_), dtype_),
            row(v, s.begin, kv_dim(config_), dtype_), w.q_norm.w, w.k_norm.w,
            half ? cos_[size_t(rope)] + angles : nullptr, half ? sin_[size_t(rope)] + angles : nullptr,
            s.cache->pool().data(), s.cache->tables().bytes()},
           {unsigned(config_.n_heads + 2 * config_.n_kv_heads), unsigned(s.n_tokens)}, {kSimd});
  }
  device_.barrier();
}

void MetalOps::attention(const Batch& batch, int layer, const void* q, void* out) {
  const int window = config_.layer_window[size_t(layer)];
  const int heads_per_kv = config_.n_heads / config_.n_kv_heads;
  bool merges = false;
  // First all segments' attention, then the merging of those that were split.
  for (const bool merging : {false, true}) {
    int partial_token = 0;  // tokens whose parts lie before this segment's
    if (merging && !merges) break;
    if (merging) device_.barrier();
    for (const Segment& s : batch.segments) {
      AttentionArgs args{cache_args(*s.cache, layer),
                         uint32_t(s.n_tokens),
                         uint32_t(config_.n_heads),
                         uint32_t(s.pos),
                         uint32_t(window),
                         1,
                         config_.attention_scale,
                         config_.attention_softcap};
      const void* qs = row(q, s.begin, q_dim(config_), dtype_);
      void* outs = row(out, s.begin, q_dim(config_), dtype_);
      if (s.n_tokens > kFewTokens) {
        if (!merging)
          encode(attention_prefill_, args, {qs, s.cache->pool().data(), outs, s.cache->tables().bytes()},
                 {ceil_div(s.n_tokens, kPrefillQueries), unsigned(config_.n_heads)}, {kSimd, kPrefillSimds});
        continue;
      }
      const int length = s.pos + s.n_tokens, n_keys = window > 0 ? std::min(length, window) : length;
      const bool room = partial_token + s.n_tokens <= kFewTokens;
      args.n_parts = room ? std::clamp(ceil_div(n_keys, kPartKeys), 1u, uint32_t(kMaxParts)) : 1;
      float* partial = partial_ + size_t(partial_token) * size_t(config_.n_heads) * kMaxParts *
                                      size_t(config_.head_dim + 2);
      if (args.n_parts > 1) partial_token += s.n_tokens;
      if (!merging)
        encode(attention_decode_, args,
               {qs, s.cache->pool().data(), outs, partial, s.cache->tables().bytes()},
               {unsigned(config_.n_kv_heads) * ceil_div(heads_per_kv, kDecodeHeads), unsigned(s.n_tokens),
                args.n_parts},
               {kSimd, kDecodeSimds});
      else if (args.n_parts > 1)
        encode(attention_merge_, args, {partial, outs}, {unsigned(config_.n_heads), unsigned(s.n_tokens)},
               {kSimd});
      merges |= args.n_parts > 1;
    }
  }
  device_.barrier();
}

}  // namespace russet::metal

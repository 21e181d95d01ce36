// forward(): one pass of the transformer over a ragged batch.
#pragma once
#include <functional>

#include "backends/ops.h"

namespace russet {

// Appends the batch's tokens to their caches and writes logits [n_logit_rows, vocab_size]. Of a model cut in
// two the second half has no embedding: its batch brings x. Throws, before anything has changed,
// Error{context_full} when a cache has too little room and Error{usage} on an id out of range, or where
// neither the weights have an embedding nor the batch an x. What `before_layer` throws gives the pass up: the
// caches hold the tokens that they held.
void forward(const Config& config, const Weights& weights, Ops& ops, const Batch& batch, float* logits,
             const std::function<void()>& before_layer = {});

// Throws Error{weights} where a weight's shape is not what config says, or one that must be there is missing.
void check_weights(const Config& config, const Weights& weights);

}  // namespace russet

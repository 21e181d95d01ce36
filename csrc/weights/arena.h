// Arena: one piece of memory for all packed weights of a model, filled from its beginning.
//
// A single mapping can be given huge pages from end to end, and can be written to a file and mapped again as
// it stands. More may be reserved than will be used: memory is taken as it is touched.
#pragma once
#include "core/buffer.h"
#include "core/check.h"

namespace russet {

class Arena {
 public:
  explicit Arena(size_t n_bytes) : memory_(n_bytes) {}

  // The next n_bytes, 64-byte aligned. Throws Error{memory} when the reservation is too small.
  char* take(size_t n_bytes) {
    n_bytes = (n_bytes + 63) / 64 * 64;
    check(n_bytes <= memory_.size() - used_, ErrorKind::memory, "arena: reserved ", memory_.size(),
          " bytes, asked for ", used_ + n_bytes);
    used_ += n_bytes;
    return memory_.bytes() + used_ - n_bytes;
  }
  const char* bytes() const { return memory_.bytes(); }
  size_t used() const { return used_; }

 private:
  Buffer memory_;
  size_t used_ = 0;
};

}  // namespace russet

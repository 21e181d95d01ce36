// Buffer: owns memory that comes straight from the operating system.
//
// Aligned to 64 bytes and more, zero, and given pages only as they are touched: a buffer may be far larger
// than what is used of it, which is how the cache reserves its whole context. On Linux huge pages are advised
// for buffers of 4 MiB and more: they should be filled from their beginning.
#pragma once
#include <cstddef>
#include <utility>

namespace russet {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t n_bytes);  // throws Error{memory}
  ~Buffer();
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  float* floats() const { return static_cast<float*>(data_); }
  char* bytes() const { return static_cast<char*>(data_); }
  size_t size() const { return n_bytes_; }

  // The first n_bytes are no longer needed: the system may take their pages, and give zero or old ones later.
  void forget(size_t n_bytes) const;

  // Makes room for n_bytes; the contents are lost when it has to grow.
  void reserve(size_t n_bytes) {
    if (n_bytes > n_bytes_) *this = Buffer(n_bytes);
  }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_bytes_, other.n_bytes_);
  }
  void* data_ = nullptr;
  size_t n_bytes_ = 0;
};

}  // namespace russet

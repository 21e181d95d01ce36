#include "core/buffer.h"

#include <sys/mman.h>

#include <cstdint>

#include "core/check.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace russet {

Buffer::Buffer(size_t n_bytes) {
  if (n_bytes == 0) return;
  void* data =
      mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check(data != MAP_FAILED, ErrorKind::memory, "memory: the system refused ", n_bytes / 1000000,
        " MB; free some, or load with a smaller n_ctx");
#ifdef MADV_HUGEPAGE
  if (n_bytes >= (size_t(4) << 20)) madvise(data, n_bytes, MADV_HUGEPAGE);
#endif
  data_ = data;
  n_bytes_ = n_bytes;
}

void Buffer::forget(size_t n_bytes) const {
#if defined(__APPLE__)
  madvise(data_, n_bytes, MADV_FREE);
#else
  madvise(data_, n_bytes, MADV_DONTNEED);
#endif
}

Buffer::~Buffer() {
  if (data_) munmap(data_, n_bytes_);
}

}  // namespace russet

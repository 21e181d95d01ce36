// Where there is no Metal.
#if !defined(__APPLE__)
#include "backends/metal/device.h"
#include "core/check.h"

namespace russet::metal {

std::unique_ptr<Device> apple_device(const std::vector<std::string>&) {
  fail(ErrorKind::device, "metal: this is no Mac; take backend=\"cpu\", or \"metal-sim\" to try the kernels");
}

}  // namespace russet::metal
#endif

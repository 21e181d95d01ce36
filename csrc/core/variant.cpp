#include "core/variant.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "core/check.h"

namespace russet {

std::string_view forced_variant(std::string_view op) {
  const char* env = std::getenv("RUSSET_VARIANT");
  std::string_view rest = env ? env : "";
  std::string_view found;
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find(','));
    const size_t equals = item.find('=');
    check(equals != item.npos, ErrorKind::usage, "RUSSET_VARIANT: expected op=name[,op=name], got '", env,
          "'");
    if (item.substr(0, equals) == op) found = item.substr(equals + 1);
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
  }
  return found;
}

void no_such_variant(std::string_view op, std::string_view name) {
  fail(ErrorKind::usage, "RUSSET_VARIANT: ", op, " has no variant '", name,
       "' on this machine; `russet doctor` lists them");
}

}  // namespace russet

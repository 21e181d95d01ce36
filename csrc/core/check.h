// Error: the one exception the core throws. Its text says where, what was expected, what was found, what to
// do.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace russet {

// Which Python class the bindings raise.
enum class ErrorKind { usage, weights, context_full, memory, numerical, device };

struct Error : std::runtime_error {
  Error(ErrorKind k, const std::string& text) : std::runtime_error(text), kind(k) {}
  ErrorKind kind;
};

template <typename... Parts>
[[noreturn]] void fail(ErrorKind kind, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(kind, text.str());
}

template <typename... Parts>
void check(bool ok, ErrorKind kind, const Parts&... parts) {
  if (!ok) fail(kind, parts...);
}

}  // namespace russet

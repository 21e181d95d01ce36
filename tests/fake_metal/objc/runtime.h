// Of Apple's header, what metal-cpp asks for.
#pragma once
#include <cmath>

#if defined(__aarch64__) && !defined(__arm64__)
#define __arm64__ 1  // as Apple calls it
#endif

struct objc_object {};
using SEL = const char*;  // the name itself, the same pointer each time
using Protocol = objc_object;

extern "C" {
SEL sel_registerName(const char* name);
objc_object* objc_lookUpClass(const char* name);
Protocol* objc_getProtocol(const char* name);
}

// Of Apple's header, what metal-cpp asks for.
#pragma once
#include <cmath>

struct objc_object {};
using SEL = const char*;  // the name itself, the same pointer each time
using Protocol = objc_object;

extern "C" {
SEL sel_registerName(const char* name);
objc_object* objc_lookUpClass(const char* name);
Protocol* objc_getProtocol(const char* name);
}

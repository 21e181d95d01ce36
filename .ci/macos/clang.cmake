# Debian's clang, lld and libc++ 19: near to Xcode 16, with libc++ taken from macOS.
include(${CMAKE_CURRENT_LIST_DIR}/macos.cmake)
set(CMAKE_CXX_COMPILER clang++-19)
set(CMAKE_CXX_COMPILER_TARGET arm64-apple-macos14.0)
set(CMAKE_CXX_FLAGS_INIT
    "-nostdinc++ -isystem $ENV{SDK}/libcxx -isystem /usr/lib/llvm-19/include/c++/v1 -include $ENV{SDK}/clang_19.h")
# Without a version of Apple's linker clang leaves out what lld needs.
string(APPEND CMAKE_CXX_FLAGS_INIT " -mlinker-version=1000")
set(CMAKE_EXE_LINKER_FLAGS_INIT -fuse-ld=lld)
set(CMAKE_MODULE_LINKER_FLAGS_INIT -fuse-ld=lld)
foreach(tool AR RANLIB STRIP INSTALL_NAME_TOOL)
  string(TOLOWER llvm-${tool}-19 name)
  string(REPLACE _ - name ${name})
  set(CMAKE_${tool} /usr/bin/${name})
endforeach()

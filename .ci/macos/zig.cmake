# The ziglang wheel's clang 22, newer than Xcode's, with a libc++ of its own linked in.
include(${CMAKE_CURRENT_LIST_DIR}/macos.cmake)
set(CMAKE_CXX_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig/c++)
set(CMAKE_AR ${CMAKE_CURRENT_LIST_DIR}/zig/ar)
set(CMAKE_RANLIB ${CMAKE_CURRENT_LIST_DIR}/zig/ranlib)
set(CMAKE_STRIP /bin/true)  # none at hand that can read what zig writes
set(CMAKE_INSTALL_NAME_TOOL /bin/true)

# macOS 14 on arm64, for both compilers. SDK is what sdk.py has made.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_VERSION 23.0)  # the kernel of macOS 14
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_SYSROOT $ENV{SDK})
set(CMAKE_SYSTEM_FRAMEWORK_PATH $ENV{SDK}/System/Library/Frameworks)

# Libraries are the SDK's, programs this machine's, headers and CMake packages of either.
set(CMAKE_FIND_ROOT_PATH $ENV{SDK})
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)

set(PYTHON_MODULE_EXTENSION $ENV{SETUPTOOLS_EXT_SUFFIX})  # pybind11 would ask the Python that runs here

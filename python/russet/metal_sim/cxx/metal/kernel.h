// How a kernel is called: its arguments, function constants, variables in threadgroup memory.
#pragma once
#include "../thread.h"
#include "vector.h"

namespace metal_sim {

// ---- function constants

// A value that the launch gives; to read one that it does not give ends the run.
template <class T>
struct Constant {
  T value;
  bool defined;
  uint32_t index;
  METAL_SIM_INLINE operator T() const {
    if (!defined) fail_undefined_constant(index);
    return value;
  }
};
template <class T>
bool is_defined(const Constant<T>& constant) {
  return constant.defined;
}

// A constant that is computed from others: anew at every use, because those change from run to run.
template <class T, class F>
struct DerivedConstant {
  F compute;
  METAL_SIM_INLINE operator T() const { return compute(); }
};
template <class T, class F>
constexpr DerivedConstant<T, F> derived_constant(F compute) {
  return {compute};
}

// ---- arguments

// What the attribute of an argument binds it to.
template <uint32_t index_>
struct Buffer {
  static_assert(index_ < kMetalSimMaxBuffers, "Metal has buffers 0 to 30");
};
template <uint32_t index_>
struct ThreadgroupMemory {
  static_assert(index_ < kMetalSimMaxBuffers, "Metal has threadgroup memory 0 to 30");
};

// The attributes of a thread's place are types of their own.
template <class Attribute>
struct PlaceOf;
#define METAL_SIM_PLACE(attribute, value)                                             \
  struct attribute;                                                                   \
  template <>                                                                         \
  struct PlaceOf<attribute> {                                                         \
    static METAL_SIM_INLINE decltype(auto) of(const Place& place) { return (value); } \
  };
METAL_SIM_PLACE(thread_position_in_grid, place.thread_position_in_grid)
METAL_SIM_PLACE(thread_position_in_threadgroup, place.thread_position_in_threadgroup)
METAL_SIM_PLACE(threadgroup_position_in_grid, place.threadgroup_position_in_grid)
METAL_SIM_PLACE(threads_per_threadgroup, place.threads_per_threadgroup)
METAL_SIM_PLACE(dispatch_threads_per_threadgroup, place.threads_per_threadgroup)
METAL_SIM_PLACE(threads_per_grid, place.threads_per_grid)
METAL_SIM_PLACE(threadgroups_per_grid, place.threadgroups_per_grid)
METAL_SIM_PLACE(thread_index_in_threadgroup, place.thread_index_in_threadgroup)
METAL_SIM_PLACE(thread_index_in_simdgroup, place.thread_index_in_simdgroup)
METAL_SIM_PLACE(simdgroup_index_in_threadgroup, place.simdgroup_index_in_threadgroup)
METAL_SIM_PLACE(simdgroups_per_threadgroup, place.simdgroups_per_threadgroup)
METAL_SIM_PLACE(dispatch_simdgroups_per_threadgroup, place.simdgroups_per_threadgroup)
METAL_SIM_PLACE(threads_per_simdgroup, uint32_t(kMetalSimSimdWidth))
METAL_SIM_PLACE(thread_execution_width, uint32_t(kMetalSimSimdWidth))
METAL_SIM_PLACE(thread_index_in_quadgroup, place.thread_index_in_simdgroup % 4)
METAL_SIM_PLACE(quadgroup_index_in_threadgroup, place.thread_index_in_threadgroup / 4)
METAL_SIM_PLACE(quadgroup_index_in_simdgroup, place.thread_index_in_simdgroup / 4)
#undef METAL_SIM_PLACE

alignas(16) inline char unbound[64 << 10];  // what a reference refers to where nothing is bound

template <class T>
METAL_SIM_INLINE T bound(void* memory) {
  if constexpr (metal::is_pointer_v<T>)
    return static_cast<T>(memory);
  else
    return *static_cast<metal::remove_reference_t<T>*>(memory ? memory : unbound);
}

// The argument of type T for an attribute.
template <class T, class Attribute>
struct Argument {
  static METAL_SIM_INLINE T get(const Bindings&) {
    const auto& value = PlaceOf<Attribute>::of(place());
    using Plain = metal::remove_cv_t<T>;
    if constexpr (metal::AnyVector<Plain>) {
      Plain result;
      for (int i = 0; i < metal::n_elements<Plain>; ++i)
        result[i] = typename metal::VectorTraits<Plain>::Element(value[i]);
      return result;
    } else if constexpr (__is_array(metal::remove_reference_t<decltype(value)>)) {
      return T(value[0]);
    } else {
      return T(value);
    }
  }
  static constexpr MetalSimArgumentKind kind = kMetalSimPlace;
  static constexpr uint32_t index = 0, writable = 0;
  static constexpr uint64_t bytes = 0;
};
template <class T, uint32_t index_>
struct Argument<T, Buffer<index_>> {
  using Checked = decltype(Buffer<index_>{});
  static METAL_SIM_INLINE T get(const Bindings& bindings) { return bound<T>(bindings.buffers[index_]); }
  using Pointee = metal::remove_pointer_t<metal::remove_reference_t<T>>;
  static constexpr MetalSimArgumentKind kind = metal::is_pointer_v<T> ? kMetalSimBuffer : kMetalSimReference;
  static constexpr uint32_t index = index_, writable = !metal::is_const_v<Pointee>;
  static constexpr uint64_t bytes = [] {
    if constexpr (metal::is_void_v<Pointee>)
      return 1;
    else
      return sizeof(Pointee);
  }();
};
template <class T, uint32_t index_>
struct Argument<T, ThreadgroupMemory<index_>> {
  using Checked = decltype(ThreadgroupMemory<index_>{});
  static METAL_SIM_INLINE T get(const Bindings& bindings) {
    return bound<T>(bindings.threadgroup_memory[index_]);
  }
  static constexpr MetalSimArgumentKind kind = kMetalSimThreadgroup;
  static constexpr uint32_t index = index_, writable = 1;
  static constexpr uint64_t bytes = Argument<T, Buffer<index_>>::bytes;
};

// ---- kernels

template <class... Attributes>
struct Attributed {
  template <class... T>
  static METAL_SIM_INLINE void call(void (*function)(T...), const Bindings& bindings) {
    function(Argument<T, Attributes>::get(bindings)...);
  }
  // Completes what the translator knows of the arguments with what their types say.
  template <class... T>
  static constexpr uint32_t describe(void (*)(T...), MetalSimArgument* arguments) {
    ((arguments->kind = Argument<T, Attributes>::kind, arguments->index = Argument<T, Attributes>::index,
      arguments->writable = Argument<T, Attributes>::writable,
      arguments->bytes = Argument<T, Attributes>::bytes, ++arguments),
     ...);
    return sizeof...(T);
  }
};

}  // namespace metal_sim

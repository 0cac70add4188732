// What mlx-rs expects of MLX's C interface and does not get on Linux.
//
// mlx-c declares its half-precision accessors on ARM only (mlx/c/half.h), and mlx-rs calls them on every target. A
// value crosses as its 16 bits. The number of BLAS threads is ours (src/ffi). The clock seeds mlx-rs's random numbers, which we do not use, but it must link.

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <ctime>
#include <exception>

#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"

namespace {

template <typename Half>
int item_bits(uint16_t* bits, mlx_array array) {
  try {
    Half value = mlx_array_get_(array).item<Half>();
    static_assert(sizeof(Half) == sizeof(uint16_t));
    std::memcpy(bits, &value, sizeof(value));
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
  return 0;
}

template <typename Half>
const uint16_t* data_bits(mlx_array array) {
  try {
    return reinterpret_cast<const uint16_t*>(mlx_array_get_(array).data<Half>());
  } catch (std::exception& e) {
    mlx_error(e.what());
    return nullptr;
  }
}

} // namespace

#ifndef HAS_FLOAT16
extern "C" int mlx_array_item_float16(uint16_t* res, const mlx_array arr) {
  return item_bits<mlx::core::float16_t>(res, arr);
}
extern "C" const uint16_t* mlx_array_data_float16(const mlx_array arr) {
  return data_bits<mlx::core::float16_t>(arr);
}
#endif

#ifndef HAS_BFLOAT16
extern "C" int mlx_array_item_bfloat16(uint16_t* res, const mlx_array arr) {
  return item_bits<mlx::core::bfloat16_t>(res, arr);
}
extern "C" const uint16_t* mlx_array_data_bfloat16(const mlx_array arr) {
  return data_bits<mlx::core::bfloat16_t>(arr);
}
#endif

extern "C" uint64_t mach_approximate_time() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

// Sets the number of threads of OpenBLAS, 0 for as many as it began with. Nothing happens with another BLAS.
extern "C" void ollmlx_blas_threads(int count) {
  using Set = void (*)(int);
  using Get = int (*)();
  static const auto set = reinterpret_cast<Set>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"));
  static const auto get = reinterpret_cast<Get>(dlsym(RTLD_DEFAULT, "openblas_get_num_threads"));
  static const int all = get ? get() : 0;
  if (set && all > 0) {
    set(count > 0 ? count : all);
  }
}

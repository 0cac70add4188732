/* The accessors of shim.cpp, for the bindings: mlx-rs takes float16_t as bindgen's own half type and bfloat16_t as a
 * plain 16-bit integer. */
#include "mlx/c/array.h"
#ifndef HAS_FLOAT16
typedef _Float16 float16_t;
int mlx_array_item_float16(float16_t *res, const mlx_array arr);
const float16_t *mlx_array_data_float16(const mlx_array arr);
#endif
#ifndef HAS_BFLOAT16
typedef unsigned short bfloat16_t;
int mlx_array_item_bfloat16(bfloat16_t *res, const mlx_array arr);
const bfloat16_t *mlx_array_data_bfloat16(const mlx_array arr);
#endif

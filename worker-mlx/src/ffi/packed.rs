//! Products with packed weights, in every mode MLX has.
//!
//! mlx-rs 0.33 writes the mode `affine` into these three calls; the others (`mxfp4` and its kin) are reached here.
//! Shapes are MLX's own business: what it refuses comes back as an error.

use std::ffi::CStr;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, Stream};
use mlx_sys::{mlx_array, mlx_array_free, mlx_array_new, mlx_optional_dtype, mlx_optional_int};

use crate::quant::{Mode, Packing, Result};

/// A packed weight as MLX takes it.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// The values, 32-bit words.
    pub values: &'a Array,
    /// Factor of each group.
    pub scales: &'a Array,
    /// Offset of each group, where the mode has one.
    pub biases: Option<&'a Array>,
    /// Mode and geometry.
    pub packing: Packing,
}

fn name(mode: Mode) -> &'static CStr {
    match mode {
        Mode::Affine => c"affine",
        Mode::Mxfp4 => c"mxfp4",
        Mode::Mxfp8 => c"mxfp8",
        Mode::Nvfp4 => c"nvfp4",
    }
}

fn number(value: i32) -> mlx_optional_int {
    mlx_optional_int { value, has_value: true }
}

/// An optional argument: an array of the caller, or MLX's null array, which owns nothing.
fn optional(array: Option<&Array>) -> mlx_array {
    match array {
        Some(array) => array.as_ptr(),
        None => mlx_array { ctx: std::ptr::null_mut() },
    }
}

/// Runs one call of MLX's C interface that writes an array and returns zero where it went well.
#[expect(unsafe_code, reason = "the result of a foreign call is taken over here, once for all calls")]
fn result(what: &str, call: impl FnOnce(*mut mlx_array) -> i32) -> Result<Array> {
    // JUSTIFICATION: mlx-rs keeps its own wrapper of this private.
    // SAFETY: makes an empty array, which owns nothing.
    let mut made = unsafe { mlx_array_new() };
    if call(&raw mut made) == 0 {
        // SAFETY: the call has filled it in, and nobody else has it.
        return Ok(unsafe { Array::from_ptr(made) });
    }
    // SAFETY: it is ours and is not used any more.
    unsafe { mlx_array_free(made) };
    Err(Exception::custom(format!("MLX refuses the {what} of a packed weight")))
}

/// `x · weightᵀ`, or `x[…] · weight[expert]ᵀ` where `experts` are given.
///
/// # Errors
/// MLX refused the shapes.
#[expect(unsafe_code, reason = "see the module")]
pub fn product(x: &Array, weight: Packed<'_>, experts: Option<&Array>) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    let Packing { mode, group_size, bits } = weight.packing;
    let (values, scales, biases) = (weight.values.as_ptr(), weight.scales.as_ptr(), optional(weight.biases));
    result("product", |made| match experts {
        // JUSTIFICATION: see the module.
        // SAFETY: every array and the stream live until the call returns; MLX counts its own references.
        None => unsafe {
            mlx_sys::mlx_quantized_matmul(
                made,
                x.as_ptr(),
                values,
                scales,
                biases,
                true,
                number(group_size),
                number(bits),
                name(mode).as_ptr(),
                stream.as_ptr(),
            )
        },
        // SAFETY: as above.
        Some(experts) => unsafe {
            mlx_sys::mlx_gather_qmm(
                made,
                x.as_ptr(),
                values,
                scales,
                biases,
                optional(None),
                experts.as_ptr(),
                true,
                number(group_size),
                number(bits),
                name(mode).as_ptr(),
                false,
                stream.as_ptr(),
            )
        },
    })
}

/// The weight as a dense array of `dtype`.
///
/// # Errors
/// MLX refused the shapes.
#[expect(unsafe_code, reason = "see the module")]
pub fn dense(weight: Packed<'_>, dtype: Dtype) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    let Packing { mode, group_size, bits } = weight.packing;
    result("unpacking", |made| {
        // JUSTIFICATION: see the module.
        // SAFETY: every array and the stream live until the call returns; MLX counts its own references.
        unsafe {
            mlx_sys::mlx_dequantize(
                made,
                weight.values.as_ptr(),
                weight.scales.as_ptr(),
                optional(weight.biases),
                number(group_size),
                number(bits),
                name(mode).as_ptr(),
                optional(None),
                mlx_optional_dtype { value: dtype.into(), has_value: true },
                stream.as_ptr(),
            )
        }
    })
}

//! The MLX engine of ollmlx: safetensors checkpoints on mlx-rs.
//!
//! On macOS it computes on the GPU; on Linux on the CPU, prepared by `linux/setup.sh`. Everything that comes out of a
//! model folder is hostile and is checked before MLX sees it ([`checkpoint`], [`config`]). One thread owns every MLX
//! object. `unsafe` is in [`ffi`] only.

pub mod card;
pub mod checkpoint;
pub mod config;
pub mod engine;
pub mod ffi;
pub mod kv;
pub mod limits;
pub mod memory;
pub mod model;
pub mod quant;
pub mod tokenizer;
pub mod weights;

//! The worker process of MLX models.

#![forbid(unsafe_code)]

fn main() {}

//! Foreign calls that mlx-rs does not have: products with packed weights ([`packed`]), and how many threads BLAS takes on
//! Linux.
//!
//! The number of threads belongs to the process. It is changed between two evaluations only, by the thread that owns
//! MLX.

pub mod packed;

/// How many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One.
    One,
    /// As many as BLAS began with.
    All,
}

/// Sets the number of threads of OpenBLAS; with another BLAS, and on macOS, nothing happens.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a foreign call")]
pub fn set_blas_threads(threads: Threads) {
    unsafe extern "C" {
        /// In `linux/shim.cpp`.
        fn ollmlx_blas_threads(count: std::ffi::c_int);
    }
    let count = match threads {
        Threads::One => 1,
        Threads::All => 0,
    };
    // JUSTIFICATION: neither MLX nor its C interface knows of BLAS threads.
    // SAFETY: the function takes a plain integer, keeps nothing, and is linked by `linux/setup.sh`'s description.
    unsafe { ollmlx_blas_threads(count) }
}

/// Nothing to set.
#[cfg(not(target_os = "linux"))]
pub fn set_blas_threads(_threads: Threads) {}

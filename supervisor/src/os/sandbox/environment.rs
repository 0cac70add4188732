//! Which variables a worker gets. A list of what is allowed, since nobody knows all names of secrets.

use std::ffi::OsString;

/// Language, time, diagnosis, and where libraries lie.
const NAMES: [&str; 12] = [
    "LANG",
    "LANGUAGE",
    "TZ",
    "TZDIR",
    "RUST_BACKTRACE",
    "RUST_LIB_BACKTRACE",
    "RUST_MIN_STACK",
    "LD_LIBRARY_PATH",
    "GLIBC_TUNABLES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_TF32_OVERRIDE",
    "ROCR_VISIBLE_DEVICES",
];
/// How engines and the libraries beneath them compute.
const PREFIXES: [&str; 19] = [
    "LC_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "GGML_",
    "MLX_",
    "OPENBLAS_",
    "GOTO_",
    "MKL_",
    "CUDA_",
    "CUBLAS_",
    "HIP_",
    "HSA_",
    "SYCL_",
    "ONEAPI_",
    "VK_",
    "METAL_",
    "MTL_",
    "MALLOC_",
];
/// Whatever it is called otherwise, it is none of a worker's business.
const SECRETS: [&str; 6] = ["KEY", "TOKEN", "SECRET", "PASS", "AUTH", "CREDENTIAL"];

fn is_allowed(name: &str) -> bool {
    let listed = NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    listed && !SECRETS.iter().any(|secret| name.contains(secret))
}

/// Those of our own that a worker gets.
pub(super) fn allowed() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_to_compute_is_told_and_what_would_be_of_use_to_a_thief_is_not() {
        for name in
            ["LANG", "LC_ALL", "TZ", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "GGML_NO_BACKTRACE", "CUDA_VISIBLE_DEVICES"]
        {
            assert!(is_allowed(name), "{name}");
        }
        for name in [
            "HF_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "OLLMLX_API_KEY",
            "OPENAI_API_KEY",
            "NVIDIA_API_KEY",
            "CUDA_LICENSE_KEY",
            "LD_PRELOAD",
            "PATH",
            "HOME",
            "SSH_AUTH_SOCK",
            "NOTIFY_SOCKET",
            "DBUS_SESSION_BUS_ADDRESS",
            "lang",
            "",
        ] {
            assert!(!is_allowed(name), "{name}");
        }
    }
}

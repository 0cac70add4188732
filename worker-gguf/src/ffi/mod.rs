//! llama.cpp: its library ([`Library`]), models ([`model`]), contexts ([`context`]) and log ([`log`]).
//!
//! The library and models are those of the safe crate, `llama-cpp-2`. What it lacks is called below it and owned here:
//! contexts (it hides their address, and with it signs of life and hidden states beside logits), their batches, one named
//! backend module, and the log without a global subscriber.
//!
//! Must not know what the engine does with them. C types stay here; a panic never crosses the boundary. What llama.cpp
//! would abort the process for is refused before the call.

#![expect(unsafe_code, reason = "the only place where C is called directly")]

pub mod batch;
pub mod context;
pub mod log;
pub mod model;

use std::ffi::CStr;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::{LlamaBackendDeviceType, list_llama_ggml_backend_devices};

/// llama.cpp, started.
#[derive(Debug)]
pub struct Library(LlamaBackend);

impl Library {
    /// Starts it. Backend modules that are loaded later are not seen.
    ///
    /// # Panics
    /// It is started already.
    #[must_use]
    pub fn start() -> Self {
        Self(LlamaBackend::init().expect("`crate::cpu` starts it once, inside a `OnceLock` initialiser"))
    }

    /// Whether layers can be put on an accelerator.
    #[must_use]
    pub fn can_offload(&self) -> bool {
        self.0.supports_gpu_offload()
    }

    /// What the first GPU's backend is called, where there is a GPU.
    #[must_use]
    pub fn gpu_backend(&self) -> Option<String> {
        let is_gpu = |kind| matches!(kind, LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu);
        let gpu = list_llama_ggml_backend_devices().into_iter().find(|device| is_gpu(device.device_type))?;
        Some(gpu.backend)
    }
}

/// Loads a backend module, such as one CPU level. `false` where it can't be loaded or this CPU does not have what it
/// needs; the log says why.
#[must_use]
pub fn load_backend(path: &CStr) -> bool {
    // JUSTIFICATION: the safe crate loads the best module of a folder, which may be one that dies of SIGILL.
    // SAFETY: the path is a C string that outlives the call; llama.cpp's registry is used from one thread at a time,
    // because `crate::cpu` calls this inside a `OnceLock` initialiser.
    let registered = unsafe { llama_cpp_sys_2::ggml_backend_load(path.as_ptr()) };
    !registered.is_null()
}

/// Gives pages of the heap that hold nothing back to the system, where the C library can.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn release_free_heap() {
    use std::ffi::c_int;

    // JUSTIFICATION: glibc keeps freed memory for itself, and no safe crate asks for it.
    // SAFETY: this is the signature of glibc's `malloc_trim`.
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> c_int;
    }
    // JUSTIFICATION: as above.
    // SAFETY: safe to call from any thread at any time; it touches no memory that is in use.
    let _released = unsafe { malloc_trim(0) };
}

/// Other C libraries do it by themselves, or have no call for it.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_free_heap() {}

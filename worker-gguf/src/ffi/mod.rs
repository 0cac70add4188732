//! llama.cpp: its library ([`Library`]), models ([`model`]), contexts ([`context`]) and log ([`log`]), owned here and given
//! back here.
//!
//! Must not know what the engine does with them. C types stay here; a panic never crosses the boundary. What llama.cpp
//! would abort the process for is refused before the call. The safe crate on top of the same bindings is not used: it hides
//! its pointers, and with them signs of life, hidden states beside logits, and one named backend module.

#![expect(unsafe_code, reason = "the only place where C is called directly")]

pub mod batch;
pub mod context;
pub mod log;
pub mod model;

use std::ffi::CStr;

/// llama.cpp, started.
#[derive(Debug)]
pub struct Library {
    _started: (),
}

impl Library {
    /// Starts it. Backend modules that are loaded later are not seen.
    #[must_use]
    pub fn start() -> Self {
        // JUSTIFICATION: llama.cpp asks for it before anything else.
        // SAFETY: it fills tables and may be called again; only `crate::cpu` does, inside a `OnceLock` initialiser.
        unsafe { llama_cpp_sys_2::llama_backend_init() }
        Self { _started: () }
    }

    /// Whether layers can be put on an accelerator.
    #[must_use]
    pub fn can_offload(&self) -> bool {
        // JUSTIFICATION: only llama.cpp knows how it was built and what it found.
        // SAFETY: it reads a list that is complete since the start.
        unsafe { llama_cpp_sys_2::llama_supports_gpu_offload() }
    }

    /// What the first GPU's backend is called, where there is a GPU.
    #[must_use]
    pub fn gpu_backend(&self) -> Option<String> {
        // JUSTIFICATION: only llama.cpp knows which devices it computes on.
        // SAFETY: it reads a list that is complete since the start.
        let count = unsafe { llama_cpp_sys_2::ggml_backend_dev_count() };
        (0..count).find_map(|index| {
            // JUSTIFICATION: as above.
            // SAFETY: as above, and the index is below the count.
            let device = unsafe { llama_cpp_sys_2::ggml_backend_dev_get(index) };
            // JUSTIFICATION: as above.
            // SAFETY: a device of the list lives for ever.
            let kind = unsafe { llama_cpp_sys_2::ggml_backend_dev_type(device) };
            let is_gpu = kind == llama_cpp_sys_2::GGML_BACKEND_DEVICE_TYPE_GPU
                || kind == llama_cpp_sys_2::GGML_BACKEND_DEVICE_TYPE_IGPU;
            if !is_gpu {
                return None;
            }
            // JUSTIFICATION: as above.
            // SAFETY: a device of the list lives for ever, and so does what registered it.
            let backend = unsafe { llama_cpp_sys_2::ggml_backend_dev_backend_reg(device) };
            // JUSTIFICATION: as above.
            // SAFETY: each device was registered by a backend.
            let name = unsafe { llama_cpp_sys_2::ggml_backend_reg_name(backend) };
            if name.is_null() {
                return None;
            }
            // JUSTIFICATION: this is how llama.cpp hands over a name.
            // SAFETY: not null, and a terminated string that lives as long as its backend, which is for ever.
            Some(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
        })
    }
}

/// Loads a backend module, such as one CPU level. `false` where it can't be loaded or this CPU does not have what it
/// needs; the log says why.
#[must_use]
pub fn load_backend(path: &CStr) -> bool {
    // JUSTIFICATION: llama.cpp's own choice is the best module of a folder, which may be one that dies of SIGILL.
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

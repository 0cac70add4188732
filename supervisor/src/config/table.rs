//! Every knob, once: what it is called as a flag, in the environment and in the file, what it is without any, in which
//! unit, and what it does. `--help`, `ollmlx config` and the table of `docs/settings.md` come from here.

/// One setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Knob {
    /// Name in the file, in `ollmlx config` and, with dashes, as a flag of `ollmlx serve`.
    pub name: &'static str,
    /// Our variable.
    pub env: &'static str,
    /// Ollama's variable of the same meaning, read where ours is not set.
    pub ollama_env: Option<&'static str>,
    /// Variables of other programs that say the same, strongest first, each with the path below its value.
    pub foreign_env: &'static [(&'static str, &'static str)],
    /// Value where nobody says anything; empty means that the program decides.
    pub default: &'static str,
    /// Unit or form.
    pub unit: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
    /// Whether the value must not be shown.
    pub secret: bool,
}

const fn knob(
    name: &'static str,
    env: &'static str,
    ollama_env: Option<&'static str>,
    [default, unit, help]: [&'static str; 3],
) -> Knob {
    Knob { name, env, ollama_env, foreign_env: &[], default, unit, help, secret: false }
}

/// Where the server listens, and where the other commands find it.
pub const HOST: Knob = knob(
    "host",
    "OLLMLX_HOST",
    Some("OLLAMA_HOST"),
    ["127.0.0.1:11434", "host:port", "Address to listen on, and where commands find the server"],
);
/// The store.
pub const MODELS: Knob = knob(
    "models",
    "OLLMLX_MODELS",
    Some("OLLAMA_MODELS"),
    ["~/.ollmlx/models", "folder", "Model store that is written to, in Ollama's own layout"],
);
/// Stores of others.
pub const READ_MODELS: Knob = knob(
    "read_models",
    "OLLMLX_READ_MODELS",
    None,
    [
        "~/.ollama/models",
        "list of folders",
        "Further stores whose models are served and never changed, separated by commas",
    ],
);
/// What `hf download` fills.
pub const HUB_CACHE: Knob = Knob {
    foreign_env: &[
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ],
    ..knob(
        "hub_cache",
        "OLLMLX_HUB_CACHE",
        None,
        ["~/.cache/huggingface/hub", "folder", "Hugging Face cache whose models are served by their `owner/name`"],
    )
};
/// Our own files.
pub const STATE_DIR: Knob = knob(
    "state_dir",
    "OLLMLX_STATE_DIR",
    None,
    ["~/.ollmlx", "folder", "Folder for history, settings file and caches of ollmlx itself"],
);
/// The workers' binaries.
pub const WORKER_DIR: Knob = knob(
    "worker_dir",
    "OLLMLX_WORKER_DIR",
    None,
    ["", "folder", "Folder of the ollmlx-worker-… programs; empty is the folder of ollmlx itself"],
);
/// Walls around workers.
pub const WORKER_SANDBOX: Knob = knob(
    "worker_sandbox",
    "OLLMLX_WORKER_SANDBOX",
    None,
    [
        "auto",
        "auto, require or off",
        "Walls around worker processes, so that they can only compute: as many as the system has, all or no worker, or none",
    ],
);
/// How long idle models stay.
pub const KEEP_ALIVE: Knob = knob(
    "keep_alive",
    "OLLMLX_KEEP_ALIVE",
    Some("OLLAMA_KEEP_ALIVE"),
    ["5m", "duration", "How long a model stays loaded after its last request; negative is for ever, 0 not at all"],
);
/// Slots of a worker.
pub const NUM_PARALLEL: Knob = knob(
    "num_parallel",
    "OLLMLX_NUM_PARALLEL",
    Some("OLLAMA_NUM_PARALLEL"),
    ["4", "requests", "Requests that one model answers at the same time"],
);
/// Workers at once.
pub const MAX_LOADED_MODELS: Knob = knob(
    "max_loaded_models",
    "OLLMLX_MAX_LOADED_MODELS",
    Some("OLLAMA_MAX_LOADED_MODELS"),
    ["3", "models", "Models loaded at the same time"],
);
/// The waiting room.
pub const MAX_QUEUE: Knob = knob(
    "max_queue",
    "OLLMLX_MAX_QUEUE",
    Some("OLLAMA_MAX_QUEUE"),
    [
        "512",
        "requests",
        "Requests that may wait; more are refused with 503, but for keys, addresses or models with less than an even part",
    ],
);
/// Patience with a load.
pub const LOAD_TIMEOUT: Knob = knob(
    "load_timeout",
    "OLLMLX_LOAD_TIMEOUT",
    Some("OLLAMA_LOAD_TIMEOUT"),
    ["5m", "duration", "How long a load may go without progress; zero or less is for ever"],
);
/// Patience with a worker that works.
pub const HANG_TIMEOUT: Knob = knob(
    "hang_timeout",
    "OLLMLX_HANG_TIMEOUT",
    None,
    ["1m", "duration", "How long a model at work may give no sign of life before its process is replaced, at least 2s"],
);
/// Default window.
pub const CONTEXT_LENGTH: Knob = knob(
    "context_length",
    "OLLMLX_CONTEXT_LENGTH",
    Some("OLLAMA_CONTEXT_LENGTH"),
    ["4096", "tokens", "Context of a request that does not set num_ctx"],
);
/// Cache element type.
pub const KV_CACHE_TYPE: Knob = knob(
    "kv_cache_type",
    "OLLMLX_KV_CACHE_TYPE",
    Some("OLLAMA_KV_CACHE_TYPE"),
    ["f16", "f16, q8_0 or q4_0", "Type of the key/value cache"],
);
/// Flash attention.
pub const FLASH_ATTENTION: Knob = knob(
    "flash_attention",
    "OLLMLX_FLASH_ATTENTION",
    Some("OLLAMA_FLASH_ATTENTION"),
    [
        "",
        "boolean",
        "Flash attention of the GGUF engine, without which its caches stay f16; empty lets llama.cpp decide; MLX always \
         fuses attention",
    ],
);
/// CPU threads.
pub const THREADS: Knob =
    knob("threads", "OLLMLX_THREADS", None, ["", "threads", "CPU threads of a worker; empty is one per core"]);
/// Layers on the accelerator.
pub const GPU_LAYERS: Knob = knob(
    "gpu_layers",
    "OLLMLX_GPU_LAYERS",
    None,
    ["", "layers", "Layers to put on an accelerator; empty is all that fit"],
);
/// The budget.
pub const MEMORY_LIMIT: Knob = knob(
    "memory_limit",
    "OLLMLX_MEMORY_LIMIT",
    None,
    [
        "auto",
        "bytes, percentage, auto or none",
        "Memory that all loaded models together may take, such as 12GiB or 80%; none is no limit",
    ],
);
/// What gives way to the budget.
pub const MEMORY_SHRINK: Knob = knob(
    "memory_shrink",
    "OLLMLX_MEMORY_SHRINK",
    None,
    [
        "slots",
        "none, slots or context",
        "What may be given up for a model that doesn't fit: requests at once, or then the context as well, down to what \
         the request needs",
    ],
);
/// Memory that MLX wires down.
pub const MLX_WIRED_LIMIT: Knob = knob(
    "mlx_wired_limit",
    "OLLMLX_MLX_WIRED_LIMIT",
    None,
    [
        "",
        "bytes",
        "Memory that MLX may wire down on an Apple GPU; empty is none, since wiring has crashed some macOS releases",
    ],
);
/// CORS.
pub const ORIGINS: Knob = knob(
    "origins",
    "OLLMLX_ORIGINS",
    Some("OLLAMA_ORIGINS"),
    ["", "list", "Further origins whose web pages may call the server, separated by commas"],
);
/// Names.
pub const ALLOWED_HOSTS: Knob = knob(
    "allowed_hosts",
    "OLLMLX_ALLOWED_HOSTS",
    None,
    [
        "",
        "list",
        "Further names (.example.com is all below it) that requests may call the server; where set, other names are refused \
         on every address, else on loopback only",
    ],
);
/// Access.
pub const API_KEY: Knob = Knob {
    secret: true,
    ..knob(
        "api_key",
        "OLLMLX_API_KEY",
        None,
        ["", "text", "Key that clients must send as a bearer token; empty lets everybody in who can connect"],
    )
};
/// Access of several.
pub const API_KEYS_FILE: Knob = knob(
    "api_keys_file",
    "OLLMLX_API_KEYS_FILE",
    None,
    [
        "",
        "file",
        "Private file of further keys, a line each: its name, use or manage, and the key or sha256: and its hash",
    ],
);
/// Pruning.
pub const NOPRUNE: Knob = knob(
    "noprune",
    "OLLMLX_NOPRUNE",
    Some("OLLAMA_NOPRUNE"),
    ["false", "boolean", "Keep blobs that no model uses when the server starts"],
);
/// History.
pub const NOHISTORY: Knob = knob(
    "nohistory",
    "OLLMLX_NOHISTORY",
    Some("OLLAMA_NOHISTORY"),
    ["false", "boolean", "Keep no history of the interactive session"],
);
/// Faults on purpose.
pub const FAULT: Knob = knob(
    "fault",
    "OLLMLX_FAULT",
    None,
    ["", "list of faults", "Faults that workers commit on purpose, for tests only, such as crash@20;times=1"],
);
/// Log level.
pub const DEBUG: Knob = knob(
    "debug",
    "OLLMLX_DEBUG",
    Some("OLLAMA_DEBUG"),
    ["0", "0, 1 or 2", "Log detail: 0 is life events, 1 decisions, 2 frames"],
);

/// All of them, in the order in which they are printed.
pub const KNOBS: &[&Knob] = &[
    &HOST,
    &MODELS,
    &READ_MODELS,
    &HUB_CACHE,
    &STATE_DIR,
    &WORKER_DIR,
    &WORKER_SANDBOX,
    &KEEP_ALIVE,
    &NUM_PARALLEL,
    &MAX_LOADED_MODELS,
    &MAX_QUEUE,
    &LOAD_TIMEOUT,
    &HANG_TIMEOUT,
    &CONTEXT_LENGTH,
    &KV_CACHE_TYPE,
    &FLASH_ATTENTION,
    &THREADS,
    &GPU_LAYERS,
    &MEMORY_LIMIT,
    &MEMORY_SHRINK,
    &MLX_WIRED_LIMIT,
    &ORIGINS,
    &ALLOWED_HOSTS,
    &API_KEY,
    &API_KEYS_FILE,
    &NOPRUNE,
    &NOHISTORY,
    &FAULT,
    &DEBUG,
];

impl Knob {
    /// The flag of `ollmlx serve`, without its dashes in front.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }
}

/// The table of `docs/settings.md`, which a test compares with the page.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from("| flag of `serve` | variable | or | default | meaning |\n|---|---|---|---|---|\n");
    for knob in KNOBS {
        let names = knob.ollama_env.into_iter().chain(knob.foreign_env.iter().map(|(name, _)| *name));
        let other = names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let default = if knob.default.is_empty() { "–".to_owned() } else { format!("`{}`", knob.default) };
        out.push_str(&format!(
            "| `--{}` | `{}` | {other} | {default} | {} ({}) |\n",
            knob.flag(),
            knob.env,
            knob.help,
            knob.unit
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_variables_follow_them() {
        for (index, knob) in KNOBS.iter().enumerate() {
            assert_eq!(knob.env, format!("OLLMLX_{}", knob.name.to_uppercase()));
            assert!(KNOBS[..index].iter().all(|other| other.name != knob.name), "{}", knob.name);
        }
    }
}

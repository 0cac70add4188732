//! Settings: read once, at the start, from flags, environment and file, and from then on values.
//!
//! Nobody else reads the environment. Precedence: flag, `OLLMLX_…`, `OLLAMA_…`, file, default; every value remembers
//! its origin. A flag that makes no sense is an error; a variable or line that makes none is a warning and the default,
//! as in Ollama, so that a stray variable does not keep the server from starting.
//!
//! Decision: a server that takes over from another one (`ollmlx upgrade`) refuses a settings file with a line that makes no
//! sense. The old one goes on with what it has, so nothing is lost, and whoever changed the file is there to be told.

pub mod keys;
pub mod manager;
pub mod memory_limit;
pub mod raw;
pub mod rules;
pub mod table;
pub mod value;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};

use ollmlx_proto::FlashAttention;
use thiserror::Error;

pub use keys::{Key, Keys, KeysError, Right};
pub use manager::Manager;
pub use memory_limit::{EffectiveLimit, Machine, MemoryLimit};
pub use raw::{Complaint, Origin, Raw, SettingsFile, Sources};
pub use rules::{Rule, Rules};
pub use table::{KNOBS, Knob};
pub use value::{HostUrl, Scheme, Span, ValueError};

/// Settings that make no sense.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A flag.
    #[error("invalid value for --{flag}: {reason}")]
    Flag {
        /// Without dashes.
        flag: String,
        /// Why.
        reason: ValueError,
    },
    /// A line of the settings file, where none is ignored.
    #[error("line {line} of the settings file: {name}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What it sets.
        name: String,
        /// Why.
        reason: String,
    },
    /// The settings file, likewise.
    #[error("the settings file can't be read: {0}")]
    Unreadable(String),
}

/// The key/value cache's element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// 16-bit floats.
    F16,
    /// 8-bit blocks.
    Q8_0,
    /// 4-bit blocks.
    Q4_0,
}

impl CacheType {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    fn parse(text: &str) -> Result<Self, ValueError> {
        match text.to_ascii_lowercase().as_str() {
            "f16" => Ok(Self::F16),
            "q8_0" => Ok(Self::Q8_0),
            "q4_0" => Ok(Self::Q4_0),
            _ => Err(ValueError::WordUnknown { text: text.to_owned(), allowed: "f16, q8_0, q4_0" }),
        }
    }
}

/// What may be given up for a model that doesn't fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryShrink {
    /// Nothing.
    None,
    /// Slots.
    Slots,
    /// Slots, then the window.
    Context,
}

impl MemoryShrink {
    fn parse(text: &str) -> Result<Self, ValueError> {
        match text.to_ascii_lowercase().as_str() {
            "none" => Ok(Self::None),
            "slots" => Ok(Self::Slots),
            "context" => Ok(Self::Context),
            _ => Err(ValueError::WordUnknown { text: text.to_owned(), allowed: "none, slots, context" }),
        }
    }
}

/// Walls around workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerSandbox {
    /// As many as the system has.
    Auto,
    /// All of them, or no worker.
    Require,
    /// None.
    Off,
}

impl WorkerSandbox {
    fn parse(text: &str) -> Result<Self, ValueError> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "require" => Ok(Self::Require),
            "off" => Ok(Self::Off),
            _ => Err(ValueError::WordUnknown { text: text.to_owned(), allowed: "auto, require, off" }),
        }
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Life events.
    Info,
    /// Decisions too.
    Debug,
    /// Frames too.
    Trace,
}

impl LogLevel {
    fn parse(text: &str) -> Self {
        match text {
            "2" => Self::Trace,
            text if value::parse_bool(text) => Self::Debug,
            _ => Self::Info,
        }
    }
}

/// One line of `ollmlx config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub knob: &'static Knob,
    /// In force; secrets are only said to be set.
    pub value: String,
    /// Who said so.
    pub origin: Origin,
}

/// All settings, valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen, or where the server is.
    pub host: HostUrl,
    /// The store that is written to.
    pub models_dir: PathBuf,
    /// Stores that are only read: Ollama's own, unless told otherwise.
    pub read_models_dirs: Vec<PathBuf>,
    /// The cache that `hf download` fills.
    pub hub_cache_dir: PathBuf,
    /// Our own files.
    pub state_dir: PathBuf,
    /// The workers' binaries; `None` is beside our own.
    pub worker_dir: Option<PathBuf>,
    /// Walls around workers.
    pub worker_sandbox: WorkerSandbox,
    /// Of Landlock no more is used than was there in this version (`OLLMLX_LANDLOCK_ABI_MAX`), to try what older kernels have.
    pub landlock_abi_max: Option<i32>,
    /// How long idle models stay.
    pub keep_alive: Span,
    /// Slots of a worker.
    pub num_parallel: NonZeroU32,
    /// Models loaded at once.
    pub max_loaded_models: NonZeroUsize,
    /// Requests waiting.
    pub max_queue: usize,
    /// Patience with a load that shows no progress.
    pub load_timeout: Span,
    /// Patience with a worker that gives no sign of life while it works.
    pub hang_timeout: Span,
    /// Default window, in tokens.
    pub context_length: NonZeroU32,
    /// Cache type.
    pub kv_cache_type: CacheType,
    /// How attention is computed.
    pub flash_attention: FlashAttention,
    /// CPU threads of a worker; `None` is one per core.
    pub threads: Option<NonZeroU32>,
    /// Layers on an accelerator; `None` is all that fit.
    pub gpu_layers: Option<u32>,
    /// Memory of all loaded models together, as asked for.
    pub memory_limit: MemoryLimit,
    /// What may be given up for a model that doesn't fit.
    pub memory_shrink: MemoryShrink,
    /// What the settings file says of single models.
    pub rules: Rules,
    /// Bytes that MLX may wire down on a GPU.
    pub wired_limit_bytes: Option<u64>,
    /// Origins beside the built-in ones.
    pub origins: Vec<String>,
    /// Further names in the `Host` header; where there are any, no others are answered on any address.
    pub allowed_hosts: Vec<String>,
    /// The key that clients must send.
    pub api_key: Option<String>,
    /// Where further keys are.
    pub api_keys_file: Option<PathBuf>,
    /// Keep unused blobs.
    pub noprune: bool,
    /// Keep no history.
    pub nohistory: bool,
    /// Faults that workers commit on purpose, as text that [`ollmlx_proto::fault::parse`] understands.
    pub fault: Option<String>,
    /// Whether a predecessor hands its socket over, as standard input (`OLLMLX_LISTEN_FD=0`).
    pub inherits_socket: bool,
    /// Whether it hands the state folder's lock over as well, through standard output (`OLLMLX_LOCK_FD=1`).
    pub inherits_lock: bool,
    /// Who started us.
    pub manager: Manager,
    /// Log detail.
    pub log_level: LogLevel,
    /// What was ignored, and why; for the log.
    pub warnings: Vec<String>,
    /// Everything, as `ollmlx config` prints it.
    pub entries: Vec<Entry>,
}

impl Config {
    /// From the process: environment, and the settings file in the state folder.
    ///
    /// # Errors
    /// A flag that makes no sense.
    pub fn from_process(flags: std::collections::BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let sources = Sources::from_process().with_flags(flags);
        let state_dir = expand_home(&sources.raw(&table::STATE_DIR).text, sources.home());
        Self::from_sources(&sources.with_file(&state_dir.join("config")))
    }

    /// Reads, parses and checks every knob.
    ///
    /// # Errors
    /// A flag that makes no sense.
    pub fn from_sources(sources: &Sources) -> Result<Self, ConfigError> {
        let mut reader = Reader { sources, complaints: Vec::new(), entries: Vec::new() };
        for (name, line) in sources.unknown_file_names() {
            let (name, reason) = (format!("{name:?}"), "there is no such setting".to_owned());
            reader.complaints.push(Complaint { name, origin: Origin::File, line: Some(line), reason });
        }
        let config = Self {
            host: reader.read(&table::HOST, HostUrl::parse)?,
            models_dir: reader.path(&table::MODELS)?,
            read_models_dirs: reader.paths(&table::READ_MODELS)?,
            hub_cache_dir: reader.path(&table::HUB_CACHE)?,
            state_dir: reader.path(&table::STATE_DIR)?,
            worker_dir: Some(reader.path(&table::WORKER_DIR)?).filter(|path| !path.as_os_str().is_empty()),
            worker_sandbox: reader.sandbox()?,
            landlock_abi_max: sources.env.get("OLLMLX_LANDLOCK_ABI_MAX").and_then(|text| text.parse().ok()),
            keep_alive: reader.read(&table::KEEP_ALIVE, value::parse_span)?,
            // In Ollama 0 means "decide yourself"; here that is the default.
            num_parallel: NonZeroU32::new(reader.read(&table::NUM_PARALLEL, value::parse_u32)?)
                .unwrap_or(NonZeroU32::new(4).expect("not zero")),
            max_loaded_models: NonZeroUsize::new(reader.read(&table::MAX_LOADED_MODELS, value::parse_u32)? as usize)
                .unwrap_or(NonZeroUsize::new(3).expect("not zero")),
            max_queue: reader.read(&table::MAX_QUEUE, value::parse_u32)? as usize,
            load_timeout: match reader.read(&table::LOAD_TIMEOUT, value::parse_span)? {
                Span::For(duration) if duration.is_zero() => Span::Forever,
                span => span,
            },
            hang_timeout: reader.read(&table::HANG_TIMEOUT, value::parse_hang_timeout)?,
            context_length: NonZeroU32::new(reader.read(&table::CONTEXT_LENGTH, value::parse_u32)?)
                .unwrap_or(NonZeroU32::new(4096).expect("not zero")),
            kv_cache_type: reader.read(&table::KV_CACHE_TYPE, CacheType::parse)?,
            flash_attention: reader.read(&table::FLASH_ATTENTION, |text| Ok(value::parse_flash_attention(text)))?,
            threads: reader.optional(&table::THREADS, value::parse_u32)?.and_then(NonZeroU32::new),
            gpu_layers: reader.optional(&table::GPU_LAYERS, value::parse_u32)?,
            memory_limit: reader.read(&table::MEMORY_LIMIT, MemoryLimit::parse)?,
            memory_shrink: reader.read(&table::MEMORY_SHRINK, MemoryShrink::parse)?,
            rules: Rules::read(sources, &mut reader.complaints),
            wired_limit_bytes: reader.optional(&table::MLX_WIRED_LIMIT, value::parse_bytes)?,
            origins: reader.read(&table::ORIGINS, |text| Ok(list(text)))?,
            allowed_hosts: reader.read(&table::ALLOWED_HOSTS, |text| Ok(list(text)))?,
            api_key: reader.optional(&table::API_KEY, |text| Ok(text.to_owned()))?,
            api_keys_file: Some(reader.path(&table::API_KEYS_FILE)?).filter(|path| !path.as_os_str().is_empty()),
            noprune: reader.read(&table::NOPRUNE, |text| Ok(value::parse_bool(text)))?,
            nohistory: reader.read(&table::NOHISTORY, |text| Ok(value::parse_bool(text)))?,
            fault: reader.fault()?,
            inherits_socket: sources.inherits_socket(),
            inherits_lock: sources.env.get("OLLMLX_LOCK_FD").is_some_and(|fd| fd == "1"),
            manager: Manager::read(sources),
            log_level: reader.read(&table::DEBUG, |text| Ok(LogLevel::parse(text)))?,
            warnings: Vec::new(),
            entries: Vec::new(),
        };
        let Reader { complaints, entries, .. } = reader;
        if config.inherits_socket {
            refuse_broken(&sources.file, &complaints)?;
        }
        let unreadable = sources.file.unreadable.iter();
        let unreadable = unreadable.map(|reason| format!("the settings file can't be read and was ignored: {reason}"));
        let warnings = unreadable.chain(complaints.iter().map(Complaint::to_string)).collect();
        Ok(Self { warnings, entries, ..config })
    }
}

impl Config {
    /// All stores in the order of search, the one that is written to first, none twice.
    #[must_use]
    pub fn stores(&self) -> Vec<PathBuf> {
        let others = self.read_models_dirs.iter().filter(|path| **path != self.models_dir);
        std::iter::once(&self.models_dir).chain(others).cloned().collect()
    }
}

/// Where somebody else goes on, no line of the settings file may be ignored. The first one that makes no sense is named.
fn refuse_broken(file: &SettingsFile, complaints: &[Complaint]) -> Result<(), ConfigError> {
    if let Some(reason) = &file.unreadable {
        return Err(ConfigError::Unreadable(reason.clone()));
    }
    let broken = complaints.iter().filter_map(|complaint| Some((complaint.line?, complaint)));
    match broken.min_by_key(|(line, _)| *line) {
        None => Ok(()),
        Some((line, Complaint { name, reason, .. })) => {
            Err(ConfigError::Line { line, name: name.clone(), reason: reason.clone() })
        }
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

/// `~/x` with the home folder in place of `~`.
fn expand_home(text: &str, home: Option<&str>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => PathBuf::from(text),
    }
}

struct Reader<'a> {
    sources: &'a Sources,
    complaints: Vec<Complaint>,
    entries: Vec<Entry>,
}

impl Reader<'_> {
    /// Parses a knob whose default is a value.
    fn read<T>(
        &mut self,
        knob: &'static Knob,
        parse: impl Fn(&str) -> Result<T, ValueError>,
    ) -> Result<T, ConfigError> {
        let raw = self.sources.raw(knob);
        match parse(&raw.text) {
            Ok(value) => {
                self.note(knob, raw.text, raw.origin);
                Ok(value)
            }
            Err(reason) if matches!(raw.origin, Origin::Flag | Origin::Default) => {
                Err(ConfigError::Flag { flag: knob.flag(), reason })
            }
            Err(reason) => {
                self.complain(knob, raw.origin, &reason);
                self.note(knob, knob.default.to_owned(), Origin::Default);
                parse(knob.default).map_err(|reason| ConfigError::Flag { flag: knob.flag(), reason })
            }
        }
    }

    /// Parses a knob whose default is that nothing is said.
    fn optional<T>(
        &mut self,
        knob: &'static Knob,
        parse: impl Fn(&str) -> Result<T, ValueError>,
    ) -> Result<Option<T>, ConfigError> {
        self.read(knob, |text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) })
    }

    /// Strict wherever it comes from: a fault that is misspelt would prove that the server survives it.
    fn fault(&mut self) -> Result<Option<String>, ConfigError> {
        let text = self.optional(&table::FAULT, |text| Ok(text.to_owned()))?;
        ollmlx_proto::fault::parse(text.as_deref().unwrap_or_default()).map_err(|error| ConfigError::Flag {
            flag: table::FAULT.flag(),
            reason: ValueError::FaultInvalid(error.to_string()),
        })?;
        Ok(text)
    }

    /// Strict wherever it comes from: a wall that is misspelt would not stand.
    fn sandbox(&mut self) -> Result<WorkerSandbox, ConfigError> {
        let text = self.read(&table::WORKER_SANDBOX, |text| Ok(text.to_owned()))?;
        let flag = |reason| ConfigError::Flag { flag: table::WORKER_SANDBOX.flag(), reason };
        WorkerSandbox::parse(&text).map_err(flag)
    }

    fn path(&mut self, knob: &'static Knob) -> Result<PathBuf, ConfigError> {
        let home = self.sources.home().map(str::to_owned);
        let path = self.read(knob, |text| Ok(expand_home(text, home.as_deref())))?;
        if let Some(entry) = self.entries.last_mut() {
            entry.value = path.display().to_string();
        }
        Ok(path)
    }

    fn paths(&mut self, knob: &'static Knob) -> Result<Vec<PathBuf>, ConfigError> {
        let home = self.sources.home().map(str::to_owned);
        self.read(knob, |text| Ok(list(text).iter().map(|path| expand_home(path, home.as_deref())).collect()))
    }

    fn complain(&mut self, knob: &Knob, origin: Origin, reason: &ValueError) {
        let line = if origin == Origin::File { self.sources.file.line_of(knob.name) } else { None };
        let (name, reason) = (knob.name.to_owned(), reason.to_string());
        self.complaints.push(Complaint { name, origin, line, reason });
    }

    fn note(&mut self, knob: &'static Knob, text: String, origin: Origin) {
        let value = if knob.secret && !text.is_empty() { "(set)".to_owned() } else { text };
        self.entries.push(Entry { knob, value, origin });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn with_env(list: &[(&str, &str)]) -> Config {
        let env = list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::from_sources(&Sources { env, ..Sources::default() }).unwrap()
    }

    #[test]
    fn defaults_stand_where_nobody_speaks() {
        let config = with_env(&[("HOME", "/h")]);
        assert_eq!(config.host.to_string(), "http://127.0.0.1:11434");
        assert_eq!(config.models_dir, Path::new("/h/.ollmlx/models"));
        assert_eq!(config.read_models_dirs, [Path::new("/h/.ollama/models")]);
        assert_eq!(config.state_dir, Path::new("/h/.ollmlx"));
        assert_eq!(config.worker_dir, None);
        assert_eq!(config.keep_alive, Span::For(Duration::from_secs(300)));
        assert_eq!((config.num_parallel.get(), config.max_loaded_models.get(), config.max_queue), (4, 3, 512));
        assert_eq!(config.context_length.get(), 4096);
        assert_eq!((config.memory_limit, config.threads, config.gpu_layers), (MemoryLimit::Auto, None, None));
        assert_eq!(config.log_level, LogLevel::Info);
        assert_eq!(config.entries.len(), KNOBS.len());
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn ollama_s_variables_are_honoured_and_ours_are_stronger() {
        let config = with_env(&[("OLLAMA_NUM_PARALLEL", "2"), ("OLLAMA_DEBUG", "2"), ("OLLAMA_MODELS", "/m")]);
        assert_eq!(config.num_parallel.get(), 2);
        assert_eq!(config.log_level, LogLevel::Trace);
        assert_eq!(config.models_dir, Path::new("/m"));
        let shared = with_env(&[("HOME", "/h"), ("OLLAMA_MODELS", "/h/.ollama/models")]);
        assert_eq!(shared.stores(), [Path::new("/h/.ollama/models")]);
        let config = with_env(&[("OLLAMA_NUM_PARALLEL", "2"), ("OLLMLX_NUM_PARALLEL", "8")]);
        assert_eq!(config.num_parallel.get(), 8);
    }

    #[test]
    fn the_hugging_face_cache_is_where_its_own_variables_say() {
        let dir = |list: &[(&str, &str)]| with_env(&[list, &[("HOME", "/h")]].concat()).hub_cache_dir;
        assert_eq!(dir(&[]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(dir(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(dir(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf/")]), Path::new("/h/hf/hub"));
        assert_eq!(dir(&[("HF_HOME", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b")]), Path::new("/b"));
        assert_eq!(dir(&[("HUGGINGFACE_HUB_CACHE", "/b"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(dir(&[("HF_HUB_CACHE", "/c"), ("OLLMLX_HUB_CACHE", "/d")]), Path::new("/d"));
    }

    #[test]
    fn a_variable_without_sense_is_a_warning_and_the_default() {
        let config =
            with_env(&[("OLLAMA_MAX_QUEUE", "many"), ("OLLAMA_HOST", "h:99999"), ("OLLAMA_NUM_PARALLEL", "0")]);
        assert_eq!(config.max_queue, 512);
        assert_eq!(config.host.port, 11_434);
        assert_eq!(config.num_parallel.get(), 4);
        assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    }

    #[test]
    fn a_flag_without_sense_is_an_error() {
        let flags = [("max_queue".to_owned(), "many".to_owned())].into();
        let error = Config::from_sources(&Sources { flags, ..Sources::default() }).unwrap_err();
        assert_eq!(error.to_string(), r#"invalid value for --max-queue: must be a whole number, not "many""#);
    }

    #[test]
    fn row_44_a_server_that_takes_over_refuses_a_line_without_sense_and_names_it() {
        let with = |text: &str, takes_over: &str| {
            let env = [("OLLMLX_LISTEN_FD".to_owned(), takes_over.to_owned())].into();
            Config::from_sources(&Sources { env, file: SettingsFile::parse(text), ..Sources::default() })
        };
        for (text, words) in [
            (
                "# mine\nmax_queue = many",
                r#"line 2 of the settings file: max_queue: must be a whole number, not "many""#,
            ),
            ("hots = x\nmax_queue = many", r#"line 1 of the settings file: "hots": there is no such setting"#),
            ("\0rubbish", r#"line 1 of the settings file: "\0rubbish": there is no such setting"#),
            (
                "priority.m = high",
                r#"line 1 of the settings file: priority of "m": must be a whole number from -1000 to 1000, not "high""#,
            ),
        ] {
            assert_eq!(with(text, "0").unwrap_err().to_string(), words);
            let config = with(text, "").unwrap();
            assert!(!config.warnings.is_empty() && config.max_queue == 512, "at the first start it is a warning");
        }
        assert_eq!(with("max_queue = 7\npriority.m = 5", "0").unwrap().max_queue, 7);
        let file = SettingsFile { unreadable: Some("is a directory".to_owned()), ..SettingsFile::default() };
        let sources = Sources { file, ..Sources::default() };
        assert!(Config::from_sources(&sources).unwrap().warnings[0].ends_with("was ignored: is a directory"));
        let env = [("OLLMLX_LISTEN_FD".to_owned(), "0".to_owned())].into();
        let error = Config::from_sources(&Sources { env, ..sources }).unwrap_err();
        assert_eq!(error.to_string(), "the settings file can't be read: is a directory");
    }

    #[test]
    fn a_load_timeout_of_zero_is_for_ever() {
        assert_eq!(with_env(&[("OLLAMA_LOAD_TIMEOUT", "0")]).load_timeout, Span::Forever);
        assert_eq!(with_env(&[("OLLAMA_LOAD_TIMEOUT", "-1s")]).load_timeout, Span::Forever);
    }

    #[test]
    fn a_hang_timeout_leaves_time_for_a_sign_of_life() {
        assert_eq!(with_env(&[]).hang_timeout, Span::For(std::time::Duration::from_secs(60)));
        assert_eq!(
            with_env(&[("OLLMLX_HANG_TIMEOUT", "2s")]).hang_timeout,
            Span::For(std::time::Duration::from_secs(2))
        );
        assert_eq!(with_env(&[("OLLMLX_HANG_TIMEOUT", "-1")]).hang_timeout, Span::Forever);
        let config = with_env(&[("OLLMLX_HANG_TIMEOUT", "1999ms")]);
        assert_eq!((config.hang_timeout, config.warnings.len()), (with_env(&[]).hang_timeout, 1));
    }

    #[test]
    fn a_misspelt_fault_is_an_error_wherever_it_comes_from() {
        let sources =
            |text: &str| Sources { env: [("OLLMLX_FAULT".to_owned(), text.to_owned())].into(), ..Sources::default() };
        let error = Config::from_sources(&sources("crush@3")).unwrap_err().to_string();
        assert!(error.starts_with("invalid value for --fault: unknown fault \"crush\""), "{error}");
        assert_eq!(Config::from_sources(&sources("crash@3")).unwrap().fault.as_deref(), Some("crash@3"));
    }

    #[test]
    fn a_misspelt_wall_is_an_error_wherever_it_comes_from() {
        let sources = |text: &str| Sources {
            env: [("OLLMLX_WORKER_SANDBOX".to_owned(), text.to_owned())].into(),
            ..Sources::default()
        };
        let error = Config::from_sources(&sources("required")).unwrap_err().to_string();
        assert!(error.starts_with("invalid value for --worker-sandbox: "), "{error}");
        assert_eq!(Config::from_sources(&sources("require")).unwrap().worker_sandbox, WorkerSandbox::Require);
        assert_eq!(with_env(&[]).worker_sandbox, WorkerSandbox::Auto);
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = with_env(&[("OLLMLX_API_KEY", "hunter2")]);
        assert_eq!(config.api_key.as_deref(), Some("hunter2"));
        let entry = config.entries.iter().find(|entry| entry.knob.name == "api_key").unwrap();
        assert_eq!((entry.value.as_str(), entry.origin), ("(set)", Origin::Env));
    }
}

//! The command line's grammar, and its errors in the words that scripts know (`docs/conformance.md`, Command line).
//!
//! Arity is checked by the commands themselves, since clap words it differently.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand};

use super::error::CliError;
use crate::config::KNOBS;
use crate::os::sandbox::Policy;

/// Ollama-compatible model server that keeps every engine in a process of its own.
#[derive(Debug, Parser)]
#[command(name = "ollmlx", disable_version_flag = true, disable_help_subcommand = false)]
pub struct Cli {
    /// Show version information
    #[arg(short = 'v', long)]
    pub version: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Subcommands>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Subcommands {
    /// Start the server
    #[command(alias = "start")]
    Serve(ServeArgs),
    /// Create a model from a Modelfile
    Create(CreateArgs),
    /// Show information for a model
    Show(ShowArgs),
    /// Run a model
    Run(RunArgs),
    /// Stop a running model
    Stop(Names),
    /// Pull a model from a registry
    Pull(TransferArgs),
    /// Push a model to a registry
    Push(TransferArgs),
    /// List models
    #[command(alias = "ls")]
    List(ListArgs),
    /// List running models
    Ps(PsArgs),
    /// Say whether a model fits into memory, before it is loaded (exit status 1: it doesn't, 2: it can't be told)
    Fit(FitArgs),
    /// Tell why a model's processes died, and what comes next
    Why(WhyArgs),
    /// Show what a model's processes printed
    Logs(LogsArgs),
    /// Give a model a new process, once what it runs has ended
    Restart(Inspect),
    /// Replace the running server by the program that lies at its path now, refusing no connection
    Upgrade(UpgradeArgs),
    /// Commit every fault of OLLMLX_FAULT against a private server, and tell what became of it
    Chaos(ChaosArgs),
    /// Copy a model
    Cp(Names),
    /// Remove a model
    Rm(Names),
    /// Show the settings in force and where each comes from
    Config(ConfigArgs),
    /// Become a worker, behind its walls; what the server calls
    #[command(hide = true)]
    Launch(LaunchArgs),
}

/// Positional names.
#[derive(Debug, Args)]
pub struct Names {
    /// Model names
    #[arg(value_name = "MODEL")]
    pub names: Vec<String>,
}

/// `serve`: every knob of the table is a flag.
#[derive(Debug)]
pub struct ServeArgs {
    /// Text by knob name.
    pub flags: BTreeMap<String, String>,
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |name: &str| matches.get_one::<String>(name).cloned();
        let flags = KNOBS.iter().filter_map(|knob| Some((knob.name.to_owned(), given(knob.name)?))).collect();
        Ok(Self { flags })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        KNOBS.iter().fold(command, |command, knob| {
            let default = if knob.default.is_empty() { "none" } else { knob.default };
            let other = knob.ollama_env.map_or_else(String::new, |name| format!(" or {name}"));
            let help = format!("{} [{}; default {default}; {}{other}]", knob.help, knob.unit, knob.env);
            command.arg(Arg::new(knob.name).long(knob.flag()).value_name("VALUE").allow_hyphen_values(true).help(help))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Model name
    #[arg(value_name = "MODEL")]
    pub names: Vec<String>,
    /// Name of the Modelfile (default "Modelfile")
    #[arg(short, long)]
    pub file: Option<String>,
    /// Quantize model to this level (e.g. Q4_K_M)
    #[arg(short, long)]
    pub quantize: Option<String>,
}

/// `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Model name
    #[arg(value_name = "MODEL")]
    pub names: Vec<String>,
    /// Show license of a model
    #[arg(long)]
    pub license: bool,
    /// Show Modelfile of a model
    #[arg(long)]
    pub modelfile: bool,
    /// Show parameters of a model
    #[arg(long)]
    pub parameters: bool,
    /// Show system message of a model
    #[arg(long)]
    pub system: bool,
    /// Show template of a model
    #[arg(long)]
    pub template: bool,
    /// Show detailed model information
    #[arg(short, long)]
    pub verbose: bool,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Model name or path of a GGUF file or MLX folder, then the prompt
    #[arg(value_name = "MODEL [PROMPT]")]
    pub words: Vec<String>,
    /// Duration to keep a model loaded (e.g. 5m)
    #[arg(long)]
    pub keepalive: Option<String>,
    /// Show timings for response
    #[arg(long)]
    pub verbose: bool,
    /// Use an insecure registry
    #[arg(long)]
    pub insecure: bool,
    /// Don't wrap words to the next line automatically
    #[arg(long)]
    pub nowordwrap: bool,
    /// Response format (e.g. json)
    #[arg(long)]
    pub format: Option<String>,
    /// Enable thinking mode: true/false or high/medium/low/max
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub think: Option<String>,
    /// Hide thinking output
    #[arg(long)]
    pub hidethinking: bool,
    /// For embedding models: truncate inputs exceeding context length
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub truncate: Option<bool>,
    /// Output dimensions for embedding models
    #[arg(long)]
    pub dimensions: Option<u32>,
}

/// `pull` and `push`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Model name
    #[arg(value_name = "MODEL")]
    pub names: Vec<String>,
    /// Use an insecure registry
    #[arg(long)]
    pub insecure: bool,
}

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only names that begin so
    #[arg(value_name = "PREFIX")]
    pub names: Vec<String>,
    /// Show backend and format too
    #[arg(short, long)]
    pub verbose: bool,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Only names that begin so
    #[arg(value_name = "PREFIX")]
    pub names: Vec<String>,
    /// Show the worker processes too: backend, state, restarts, last death
    #[arg(short, long)]
    pub verbose: bool,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// `fit`.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Model name or path
    #[arg(value_name = "MODEL")]
    pub names: Vec<String>,
    /// Context, in tokens (default: as the model or the settings say)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// Requests at the same time (default: as the settings say)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub slots: Option<u16>,
    /// Type of the caches: f16, q8_0 or q4_0
    #[arg(long)]
    pub kv_type: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Model name; not needed with --record
    #[arg(value_name = "MODEL")]
    pub names: Vec<String>,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the server's last events and decisions, of all models and without prompts or outputs, into a new file
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Write that file in the place of one that is there
    #[arg(long, requires = "record")]
    pub force: bool,
}

/// `restart`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Model name
    #[arg(value_name = "MODEL")]
    pub names: Vec<String>,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// `upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// Print the new server's answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// `chaos`.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// Model name or path (default: the first local one), then what to try (default: all): faults or requests, or some of
    /// them, such as crash, hang or prompt-letter
    #[arg(value_name = "MODEL [FAULT]")]
    pub words: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Model name
    #[arg(value_name = "MODEL")]
    pub names: Vec<String>,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    pub follow: bool,
    /// Print lines of JSON
    #[arg(long)]
    pub json: bool,
}

/// `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `launch`: see [`crate::os::sandbox::Launch`].
#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// What is asked of the walls
    #[arg(long, value_parser = |text: &str| Policy::parse(text).ok_or("no such policy"))]
    pub policy: Policy,
    /// Version of Landlock
    #[arg(long)]
    pub landlock_abi_max: Option<i32>,
    /// Memory
    #[arg(long)]
    pub data_bytes_max: Option<u64>,
    /// What to dial
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Dynamic linker
    #[arg(long)]
    pub loader: Option<PathBuf>,
    /// What may be read
    #[arg(long)]
    pub read: Vec<PathBuf>,
    /// What to become
    pub program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Exactly this many words.
///
/// # Errors
/// More or fewer.
pub fn exactly<const N: usize>(words: Vec<String>) -> Result<[String; N], CliError> {
    <[String; N]>::try_from(words)
        .map_err(|words| CliError::Usage(format!("accepts {N} arg(s), received {}", words.len())))
}

/// At least one word.
///
/// # Errors
/// None.
pub fn at_least_one(words: Vec<String>) -> Result<Vec<String>, CliError> {
    if words.is_empty() {
        return Err(CliError::Usage("requires at least 1 arg(s), only received 0".to_owned()));
    }
    Ok(words)
}

/// No more than one word.
///
/// # Errors
/// Two or more.
pub fn at_most_one(words: Vec<String>) -> Result<Option<String>, CliError> {
    if words.len() > 1 {
        return Err(CliError::Usage(format!("accepts at most 1 arg(s), received {}", words.len())));
    }
    Ok(words.into_iter().next())
}

/// Whether a command line, understood or not, is meant to start the server.
#[must_use]
pub fn is_server(words: impl Iterator<Item = OsString>) -> bool {
    words.into_iter().nth(1).is_some_and(|word| word == "serve" || word == "start")
}

/// Whether the command line, which may make no sense, is that of `fit`.
#[must_use]
pub fn is_fit(words: impl Iterator<Item = OsString>) -> bool {
    words.into_iter().nth(1).is_some_and(|word| word == "fit")
}

/// A clap error in one line, in the words that scripts know.
#[must_use]
pub fn one_line(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            format!("unknown command {:?} for \"ollmlx\"", context(ContextKind::InvalidSubcommand))
        }
        ErrorKind::UnknownArgument => {
            let argument = context(ContextKind::InvalidArg);
            match argument.strip_prefix('-').filter(|rest| !rest.starts_with('-')) {
                Some(short) => {
                    let letter = short.chars().next().unwrap_or('-');
                    format!("unknown shorthand flag: '{letter}' in {argument}")
                }
                None if argument.starts_with("--") => format!("unknown flag: {argument}"),
                None => format!("unknown command {argument:?} for \"ollmlx\""),
            }
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(words: &[&str]) -> String {
        one_line(&Cli::try_parse_from(std::iter::once(&"ollmlx").chain(words)).unwrap_err())
    }

    #[test]
    fn the_grammar_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn strangers_are_named_as_cobra_names_them() {
        assert_eq!(error_of(&["bogus"]), "unknown command \"bogus\" for \"ollmlx\"");
        assert_eq!(error_of(&["ps", "--bogus"]), "unknown flag: --bogus");
        assert_eq!(error_of(&["ps", "-x"]), "unknown shorthand flag: 'x' in -x");
    }

    #[test]
    fn arity_is_worded_as_cobra_words_it() {
        let text = |error: CliError| error.to_string();
        assert_eq!(text(exactly::<1>(vec![]).unwrap_err()), "accepts 1 arg(s), received 0");
        assert_eq!(text(exactly::<2>(vec!["a".into()]).unwrap_err()), "accepts 2 arg(s), received 1");
        assert_eq!(text(at_least_one(vec![]).unwrap_err()), "requires at least 1 arg(s), only received 0");
        assert!(at_most_one(vec!["a".into(), "b".into()]).is_err());
    }

    #[test]
    fn every_knob_is_a_flag_of_serve() {
        let cli = Cli::try_parse_from(["ollmlx", "serve", "--keep-alive", "-1", "--host=:5000"]).unwrap();
        let Some(Subcommands::Serve(serve)) = cli.command else { panic!("not serve") };
        assert_eq!(serve.flags.get("keep_alive").map(String::as_str), Some("-1"));
        assert_eq!(serve.flags.get("host").map(String::as_str), Some(":5000"));
        assert_eq!(serve.flags.len(), 2);
    }

    #[test]
    fn row_38_a_command_line_that_starts_the_server_is_known_even_if_it_is_wrong() {
        let is_server = |words: &[&str]| is_server(words.iter().map(OsString::from));
        assert!(is_server(&["ollmlx", "serve", "--bogus"]) && is_server(&["ollmlx", "start"]));
        assert!(!is_server(&["ollmlx", "stop", "serve"]) && !is_server(&["ollmlx"]) && !is_server(&[]));
    }

    #[test]
    fn thinking_may_have_a_level_after_an_equals_sign_only() {
        let run = |words: &[&str]| match Cli::try_parse_from(words).unwrap().command {
            Some(Subcommands::Run(run)) => (run.think, run.words),
            _ => panic!("not run"),
        };
        assert_eq!(
            run(&["ollmlx", "run", "m", "--think", "why"]),
            (Some("true".into()), vec!["m".into(), "why".into()])
        );
        assert_eq!(run(&["ollmlx", "run", "m", "--think=low"]), (Some("low".into()), vec!["m".into()]));
        assert_eq!(run(&["ollmlx", "run", "m"]).0, None);
    }
}

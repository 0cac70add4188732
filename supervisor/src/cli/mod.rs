//! The command line: one file per command. All but `serve`, which starts [`crate::server`], and `config` talk to a server over HTTP
//! like any client.
//!
//! Errors are one line on standard error that begins with `Error: `, and exit status 1; 78 where settings make no sense,
//! so that a service manager does not try them again, and 2 where `fit`, whose 1 is an answer, can't tell (see [`error`]).

pub mod answer;
pub mod args;
pub mod chaos;
pub mod client;
pub mod config;
pub mod copy;
pub mod create;
pub mod error;
pub mod fit;
pub mod human;
mod launch;
pub mod list;
pub mod logs;
pub mod model_path;
pub mod output;
pub mod progress;
pub mod ps;
pub mod remove;
pub mod restart;
pub mod run;
pub mod show;
pub mod stop;
pub mod text_table;
pub mod transfer;
pub mod upgrade;
pub mod version;
pub mod why;
pub mod wrap;

mod images;
mod repl;
mod repl_command;

use std::collections::BTreeMap;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use args::{Cli, Subcommands};
use client::Client;
use error::CliError;

use crate::config::Config;
use crate::server;

/// Parses the process's arguments and does what they say.
///
/// # Errors
/// The one line to print after `Error: `.
pub fn main() -> Result<(), CliError> {
    match Cli::try_parse() {
        Ok(cli) => dispatch(cli),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            output::print(&error.render().to_string())
        }
        Err(error) if args::is_server(std::env::args_os()) => Err(CliError::ServeUsage(args::one_line(&error))),
        Err(error) if args::is_fit(std::env::args_os()) => {
            Err(CliError::Untold(Box::new(CliError::Usage(args::one_line(&error)))))
        }
        Err(error) => Err(CliError::Usage(args::one_line(&error))),
    }
}

fn dispatch(cli: Cli) -> Result<(), CliError> {
    let command = match cli.command {
        Some(Subcommands::Serve(serve)) => {
            let config = Config::from_process(serve.flags).map_err(CliError::from);
            return config.and_then(|config| Ok(server::run(config)?)).inspect_err(server::say_why);
        }
        Some(Subcommands::Launch(launch)) => return launch::run(launch),
        Some(Subcommands::Config(config)) => return config::run(&settings()?, &config),
        Some(command) => Some(command),
        None if cli.version => None,
        None => return output::print(&Cli::command().render_help().to_string()),
    };
    let config = settings()?;
    let client = Client::new(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::System { step: "start the runtime", source })?;
    runtime.block_on(async {
        match command {
            None => version::run(&client).await,
            Some(command) => call(&client, &config, command).await,
        }
    })
}

fn settings() -> Result<Config, CliError> {
    Ok(Config::from_process(BTreeMap::new())?)
}

async fn call(client: &Client, config: &Config, command: Subcommands) -> Result<(), CliError> {
    match command {
        Subcommands::Create(args) => create::run(client, args).await,
        Subcommands::Show(args) => show::run(client, args).await,
        Subcommands::Run(args) => run::run(client, config, args).await,
        Subcommands::Stop(args) => stop::run(client, args).await,
        Subcommands::Pull(args) => transfer::pull(client, args).await,
        Subcommands::Push(args) => transfer::push(client, args).await,
        Subcommands::List(args) => list::run(client, args).await,
        Subcommands::Ps(args) => ps::run(client, args).await,
        Subcommands::Fit(args) => fit::run(client, config, args).await,
        Subcommands::Why(args) => why::run(client, args).await,
        Subcommands::Logs(args) => logs::run(client, args).await,
        Subcommands::Restart(args) => restart::run(client, args).await,
        Subcommands::Upgrade(args) => upgrade::run(client, args).await,
        Subcommands::Chaos(args) => chaos::run(config, args).await,
        Subcommands::Cp(args) => copy::run(client, args).await,
        Subcommands::Rm(args) => remove::run(client, args).await,
        // These need no server, and were answered before.
        Subcommands::Serve(_) | Subcommands::Config(_) | Subcommands::Launch(_) => Ok(()),
    }
}

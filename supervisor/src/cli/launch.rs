//! `ollmlx launch`: becomes a worker, behind its walls. For the server only, which starts each worker through it.

use super::args::LaunchArgs;
use super::error::CliError;
use crate::os::sandbox::Launch;

/// Returns only where that failed.
pub(super) fn run(args: LaunchArgs) -> Result<(), CliError> {
    match launch(args).run() {
        Ok(never) => match never {},
        Err(source) => Err(CliError::System { step: "start a worker behind its walls", source }),
    }
}

fn launch(args: LaunchArgs) -> Launch {
    let LaunchArgs { policy, landlock_abi_max, data_bytes_max, socket, loader, read, program, arguments } = args;
    Launch { policy, landlock_abi_max, data_bytes_max, socket, loader, read, program, arguments }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Subcommands};
    use crate::os::sandbox::Policy;

    #[test]
    fn what_the_server_says_arrives() {
        let told = |launch: &Launch| {
            let words = std::iter::once(OsString::from("ollmlx")).chain(launch.to_arguments());
            match Cli::try_parse_from(words).unwrap().command {
                Some(Subcommands::Launch(args)) => super::launch(args),
                _ => panic!("not launch"),
            }
        };
        let full = Launch {
            policy: Policy::Require,
            landlock_abi_max: Some(2),
            data_bytes_max: Some(7),
            socket: Some("/run/a b/=w.sock".into()),
            loader: Some("/lib/ld".into()),
            read: vec!["/models/--a.gguf".into(), "-b".into()],
            program: "/bin/worker".into(),
            arguments: vec!["inspect".into(), "--version".into(), "/m".into()],
        };
        assert_eq!(told(&full), full);
        let bare = Launch {
            policy: Policy::Off,
            landlock_abi_max: None,
            data_bytes_max: None,
            socket: None,
            loader: None,
            read: Vec::new(),
            program: "-worker".into(),
            arguments: Vec::new(),
        };
        assert_eq!(told(&bare), bare);
    }
}

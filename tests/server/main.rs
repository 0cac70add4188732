//! `ollmlx` itself, where tests find it: the real command, server and launcher.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use ollmlx_supervisor::os::stderr::tell;

fn main() -> ExitCode {
    match ollmlx_supervisor::cli::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("Error: {error}"));
            ExitCode::from(error.exit_status())
        }
    }
}

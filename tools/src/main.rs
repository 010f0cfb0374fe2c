//! `replctl`: the operator's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(tools::cli::main(std::env::args_os()))
}

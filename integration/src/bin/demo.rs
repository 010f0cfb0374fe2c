//! `cargo demo`: builds what the demo needs in release mode and becomes `replctl demo`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let programs = match integration::build_programs() {
        Ok(programs) => programs,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let error = Command::new(&programs.replctl)
        .arg("demo")
        .args(std::env::args_os().skip(1))
        .exec();
    eprintln!("demo: can not run {}: {error}", programs.replctl.display());
    ExitCode::FAILURE
}

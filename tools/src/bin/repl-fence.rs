//! `repl-fence`: fences nodes. Under the name `fence_repl` it is a fence agent for Pacemaker.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(tools::fence::main(std::env::args_os()))
}

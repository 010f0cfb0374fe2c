//! `cargo pages -- DIR`: writes man pages and shell completions.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("pages: no directory is given; write cargo pages -- DIR");
        return ExitCode::from(2);
    };
    match integration::pages::generate(&dir) {
        Ok(files) => {
            println!("{} files in {}", files.len(), dir.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pages: {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

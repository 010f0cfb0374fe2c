//! Man pages and shell completions, made from the command lines of the programs: so they say what `--help` says.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The manual's section of commands for administrators.
const SECTION: &str = "8";
/// What is completed, in these shells.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// The programs' command lines.
#[must_use]
pub fn commands() -> Vec<Command> {
    vec![
        nbd_server::args::command(),
        tools::cli::command(),
        tools::fence::command(),
    ]
}

/// The verbs of a program that its help names, with the name of their page.
pub fn verbs(command: &Command) -> impl Iterator<Item = (&Command, String)> {
    let shown = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help");
    shown.map(|verb| {
        let page = format!("{}-{}", command.get_name(), verb.get_name());
        (verb, page)
    })
}

/// Writes a page for each program and each verb to `DIR/man/man8`, and completions to `DIR/completions/SHELL`; the files.
///
/// # Errors
/// If something can not be written.
pub fn generate(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let man = dir.join("man").join(format!("man{SECTION}"));
    fs::create_dir_all(&man)?;
    for mut command in commands() {
        // Options that every verb has are on its page too.
        command.build();
        for shell in SHELLS {
            let place = dir.join("completions").join(shell.to_string());
            fs::create_dir_all(&place)?;
            let name = command.get_name().to_owned();
            files.push(clap_complete::generate_to(
                shell,
                &mut command,
                name,
                &place,
            )?);
        }
        for (verb, page) in verbs(&command) {
            files.push(write(&man, verb.clone(), &page)?);
        }
        let page = command.get_name().to_owned();
        files.push(write(&man, command, &page)?);
    }
    Ok(files)
}

fn write(dir: &Path, command: Command, page: &str) -> io::Result<PathBuf> {
    let path = dir.join(format!("{page}.{SECTION}"));
    Man::new(command)
        .section(SECTION)
        .source(concat!("replicator ", env!("CARGO_PKG_VERSION")))
        .manual("Replicated disk")
        .render(&mut File::create(&path)?)?;
    Ok(path)
}

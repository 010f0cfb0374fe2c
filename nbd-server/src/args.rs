//! The command line of `repld`.

use std::path::PathBuf;

use clap::{CommandFactory, Parser};

use crate::config::DEFAULT_FILE;

/// The daemon of the replicated disk: serves the volumes over NBD on the Primary, keeps a copy everywhere.
#[derive(Debug, Parser)]
#[command(name = "repld", version, about)]
pub struct Args {
    /// The config file, the same on every node.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub config: PathBuf,
    /// Which node of the config this is; the host's name if not given.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}

/// The whole command line, for completions and man pages.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
}

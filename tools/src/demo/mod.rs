//! `replctl demo`: a three-node cluster on loopback that shows the main job.

use std::path::PathBuf;

use crate::Failure;

/// What can be said about a demo.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DemoArgs {
    /// Where the nodes keep their files; default: a directory of its own that is removed afterwards
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the files in place afterwards
    #[arg(long)]
    pub keep: bool,
    /// Print what was seen as JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo.
///
/// # Errors
/// What went wrong, in one sentence.
pub fn run(_args: DemoArgs) -> Result<(), Failure> {
    Err(Failure::NotSupported("demo"))
}

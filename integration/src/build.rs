//! Builds the programs that the demo and the tests start.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tools::cluster::{ClusterError, Programs};

/// Names a directory with the programs ready to use; nothing is built then.
pub const PROGRAMS_DIR: &str = "REPLICATOR_PROGRAMS";

/// Why there are no programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Cargo did not start.
    #[error("can not run {}: {source}", cargo.display())]
    Cargo {
        /// What was run.
        cargo: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It does not compile.
    #[error("`cargo build --release -p nbd-server -p tools` failed; its messages are above")]
    Failed,
    /// Cargo did not say where the programs are.
    #[error("cargo built no program {0}")]
    NoProgram(&'static str),
    /// They are not where they should be.
    #[error(transparent)]
    Programs(#[from] ClusterError),
}

/// Builds `repld` and the tools in release mode, and says where they are.
pub fn build_programs() -> Result<Programs, BuildError> {
    if let Some(dir) = std::env::var_os(PROGRAMS_DIR) {
        return Ok(Programs::in_dir(Path::new(&dir))?);
    }
    let cargo = PathBuf::from(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let output = Command::new(&cargo)
        .args([
            "build",
            "--release",
            "--bins",
            "-p",
            "nbd-server",
            "-p",
            "tools",
        ])
        .args([
            "--message-format",
            "json-render-diagnostics",
            "--manifest-path",
        ])
        .arg(workspace)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| BuildError::Cargo { cargo, source })?;
    if !output.status.success() {
        return Err(BuildError::Failed);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let executables: Vec<PathBuf> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .collect();
    let find = |name: &'static str| {
        let found = executables
            .iter()
            .find(|path| path.file_name() == Some(name.as_ref()));
        found.cloned().ok_or(BuildError::NoProgram(name))
    };
    Ok(Programs {
        repld: find("repld")?,
        replctl: find("replctl")?,
    })
}

/// The programs, built once in this process. For tests: panics with the reason if there are none.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| build_programs().unwrap_or_else(|error| panic!("{error}")))
}

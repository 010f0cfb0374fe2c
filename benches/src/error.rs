//! Why there is no comparison.

use std::io;
use std::path::{Path, PathBuf};

use tools::cluster::ClusterError;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A file operation.
    #[error("can not {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program that nothing goes without.
    #[error("{0} is needed; Debian has it in the package {1}")]
    Missing(&'static str, &'static str),
    /// A program ended with an error.
    #[error("{program}: {message}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        message: String,
    },
    /// A server does not answer.
    #[error("{0} does not answer: {1}")]
    NotReady(&'static str, String),
    /// Our own nodes.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Our own programs.
    #[error(transparent)]
    Build(#[from] integration::BuildError),
    /// The signals can not be handled.
    #[error(transparent)]
    Signals(#[from] tools::demo::DemoError),
    /// A system call that should not fail did.
    #[error("{what}: {source}")]
    Os {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// A failed file operation.
#[must_use]
pub fn io_error(what: &'static str, path: &Path, source: io::Error) -> BenchError {
    let path = path.to_owned();
    BenchError::Io { what, path, source }
}

//! Why a verb failed: one line for stderr, and the exit code.

use nbd_server::admin::client::ClientError;
use nbd_server::admin::{AdminError, ExitCode};
use nbd_server::config::ConfigError;

use crate::create::CreateError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The command line makes no sense.
    #[error("{0}; see replctl --help")]
    Usage(String),
    /// The config is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A peer that the config does not have.
    #[error("there is no peer {name:?}; the peers of {node} are {known}")]
    NoSuchPeer {
        /// The name that was given.
        name: String,
        /// The node.
        node: String,
        /// Its peers.
        known: String,
    },
    /// `repld` did not answer.
    #[error(transparent)]
    Daemon(#[from] ClientError),
    /// `repld` refused.
    #[error(transparent)]
    Refused(#[from] AdminError),
    /// `repld` answered something else than was asked for.
    #[error("repld answered something unexpected; use the replctl of its version")]
    UnexpectedAnswer,
    /// `create` failed.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The answer could not be written.
    #[error("can not write to stdout: {0}")]
    Output(std::io::Error),
    /// Anything else that failed, in one sentence.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// What to exit with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Config(_) | Self::NoSuchPeer { .. } => ExitCode::Usage,
            Self::Create(CreateError::Config(_)) => ExitCode::Usage,
            Self::Daemon(_) => ExitCode::Unreachable,
            Self::Refused(error) => error.code,
            _ => ExitCode::Failed,
        }
    }

    /// The text as one line, whatever went into it.
    pub fn line(&self) -> String {
        self.to_string()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }
}

//! What can go wrong with a small cluster, and the exit codes that it is judged by.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// The exit codes of `replctl` that scripts rely on.
pub mod exit {
    /// Done.
    pub const DONE: i32 = 0;
    /// Failed; the message says why.
    pub const FAILED: i32 = 1;
    /// A usage or config error.
    pub const USAGE: i32 = 2;
    /// `repld` of this node can not be reached.
    pub const UNREACHABLE: i32 = 3;
    /// A majority of voters can not be reached, or did not promise.
    pub const NO_QUORUM: i32 = 10;
    /// Another node is Primary.
    pub const OTHER_PRIMARY: i32 = 11;
    /// An NBD client is attached.
    pub const IN_USE: i32 = 12;
    /// No access to up-to-date data.
    pub const NO_DATA: i32 = 17;
}

/// What went wrong with the cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
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
    /// No place for the stores.
    #[error("no directory that can do O_DIRECT; tried {tried}; name another one with --dir")]
    NoDirectIo {
        /// The directories, each with its error.
        tried: String,
    },
    /// No loopback port.
    #[error("no free TCP port on 127.0.0.1 between 20000 and 32000: {source}")]
    NoPort {
        /// The last attempt's error.
        source: io::Error,
    },
    /// The system's random numbers failed.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// A program is missing.
    #[error("{} is not there: build it with `cargo build --release -p nbd-server -p tools`", path.display())]
    NoProgram {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// `replctl` ended with a code that was not expected.
    #[error("`replctl {verb}` on {node}: exit {code}: {message}")]
    Command {
        /// The verb with its arguments.
        verb: String,
        /// The node.
        node: String,
        /// The exit code.
        code: i32,
        /// What it said.
        message: String,
    },
    /// A daemon ended by itself.
    #[error("repld of {node} ended by itself: {status}; the end of its log:\n{log}")]
    Ended {
        /// The node.
        node: String,
        /// How.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// A bound passed.
    #[error("{what}: not within {} s; last seen: {last}", bound.as_secs())]
    TooLate {
        /// What was waited for.
        what: String,
        /// How long.
        bound: Duration,
        /// The state at the end.
        last: String,
    },
    /// `status --json` was not what the contract says.
    #[error("`replctl status --json` of {node} is not as documented: {source}: {text}")]
    Status {
        /// The node.
        node: String,
        /// What is wrong with it.
        source: serde_json::Error,
        /// What was printed.
        text: String,
    },
    /// The node is not running.
    #[error("{node} is not running")]
    NotRunning {
        /// The node.
        node: String,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

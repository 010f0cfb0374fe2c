//! The admin protocol: what `replctl` and `repld` say to each other over `RUN_DIR/admin.sock`.
//!
//! One JSON object per line each way, a line at most [`LINE_BYTES_MAX`]. The client sends one [`Request`]; it is
//! answered by one [`Response`], or for `watch` and `events` by one after the other until the client hangs up.
//! After an answer that is not an error the client may send its next request on the same connection.

pub mod client;
mod event;
mod line;
mod status;
#[cfg(test)]
mod tests;
mod verify;

pub use event::{Event, EventKind, EventObject, changes, timestamp};
pub use line::{LineBuffer, LineError};
pub use status::{
    Connection, DiskState, Health, IntegrityStatus, JournalStatus, Limits, Membership,
    MemoryStatus, PeerStatus, Replication, Role, SeqStatus, Status, Suspended, VolumeStatus,
};

pub use verify::{VerifyCounts, VerifyFinding, VerifyResult, VerifyRun, VerifyStatus};

use serde::{Deserialize, Serialize};

/// The longest line, newline included.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// How long `promote` tries where nothing is said.
pub const PROMOTE_TIMEOUT_MS_DEFAULT: u64 = 30_000;

/// How long `suspend-io` tries where nothing is said.
pub const SUSPEND_TIMEOUT_MS_DEFAULT: u64 = 10_000;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The node's view, once: [`Response::Status`].
    Status,
    /// The node's view, at each change and each second.
    Watch,
    /// The present state as `exists` events, then every change: [`Response::Event`].
    Events,
    /// Makes the node Primary; answers when the exports serve.
    Promote {
        /// How long to try, in milliseconds.
        timeout_ms: u64,
        /// Alone, with the data that is here, in a history of its own. Whoever asks has made sure that it is meant.
        #[serde(default)]
        force: bool,
    },
    /// Stops serving.
    Demote {
        /// Also while clients are attached.
        #[serde(default)]
        force: bool,
    },
    /// Takes a node out of members and voters; answers when that is committed.
    Drop {
        /// Its name.
        peer: String,
        /// How long to try, in milliseconds.
        timeout_ms: u64,
    },
    /// Takes a node that was dropped back; answers when it counts.
    Return {
        /// Its name.
        peer: String,
        /// How long to wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Admits a node with new disks; answers when it counts. Whoever asks has made sure that it is meant.
    Replace {
        /// Its name.
        peer: String,
        /// How long to wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Gives this node's data up and fetches it anew; answers when it is given up. Whoever asks has made sure that it is meant.
    Invalidate {
        /// How long to wait for the Primary's consent, in milliseconds.
        timeout_ms: u64,
        /// Also where no Primary is connected.
        #[serde(default)]
        force: bool,
    },
    /// Makes sure that a node commits nothing more; answers when it does not, whatever it does itself.
    Fence {
        /// Its name.
        peer: String,
        /// How long to try, in milliseconds.
        timeout_ms: u64,
    },
    /// Lets a node that was fenced be promoted again; answers when enough voters do.
    Unfence {
        /// Its name; this node's too.
        peer: String,
        /// How long to try, in milliseconds.
        timeout_ms: u64,
    },
    /// Fences the Primary and promotes the node with the best data; answers when that one serves.
    Failover {
        /// How long to try, in milliseconds.
        timeout_ms: u64,
    },
    /// Somebody answers for it that a node is off: an operator, or a fence that cut its power. Whoever asks has made sure of it.
    ConfirmStopped {
        /// Its name.
        peer: String,
    },
    /// Gives a volume another size; answers when clients of this node can have it. Who makes one smaller has made sure that it is
    /// meant.
    Resize {
        /// Its name.
        volume: String,
        /// Its size in bytes.
        size: u64,
        /// Whether it may get smaller.
        force: bool,
        /// How long to try, in milliseconds.
        timeout_ms: u64,
    },
    /// Adds a volume that the config file of every node has; answers when clients of this node can have it.
    AddVolume {
        /// Its name.
        volume: String,
        /// How long to try, in milliseconds.
        timeout_ms: u64,
    },
    /// Removes a volume; answers when that is committed. Who asks has made sure that it is meant.
    RemoveVolume {
        /// Its name.
        volume: String,
        /// How long to try, in milliseconds.
        timeout_ms: u64,
    },
    /// Holds writes; answers when the stores are the image, and stay so.
    SuspendIo {
        /// How long to try, in milliseconds.
        timeout_ms: u64,
    },
    /// Lets writes go on.
    ResumeIo,
    /// Reads all blocks of all data nodes and compares them; answers when it has begun, the rest is in the status.
    Verify {
        /// Mend what is found.
        #[serde(default)]
        repair: bool,
        /// How fast at most; 0 for as fast as clients leave room for.
        #[serde(default)]
        bytes_per_second: u64,
    },
    /// Ends the verification that this node runs.
    StopVerify,
    /// Restores replication with a peer.
    Connect {
        /// Its name.
        peer: String,
    },
    /// Ends replication with a peer.
    Disconnect {
        /// Its name.
        peer: String,
    },
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To `status` and `watch`.
    Status(Box<Status>),
    /// To `events`.
    Event(Event),
    /// A command was carried out.
    Done {
        /// What the operator should know besides, for example that the quorum is lost now.
        notice: Option<String>,
    },
    /// It was refused, or failed.
    Error(AdminError),
}

/// Why something was refused, or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// What `replctl` exits with.
    pub code: ExitCode,
    /// One line: what is wrong and what to do.
    pub message: String,
}

impl AdminError {
    /// An error with its code.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The exit codes of `replctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// Failed; the message says why.
    Failed = 1,
    /// Usage or config error.
    Usage = 2,
    /// `repld` of this node can not be reached.
    Unreachable = 3,
    /// No quorum: a majority of voters can not be reached, or did not promise.
    NoQuorum = 10,
    /// Another node is Primary.
    OtherPrimary = 11,
    /// In use: an NBD client is attached.
    InUse = 12,
    /// No access to up-to-date data.
    NotUpToDate = 17,
}

impl ExitCode {
    /// Every code.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Unreachable,
        Self::NoQuorum,
        Self::OtherPrimary,
        Self::InUse,
        Self::NotUpToDate,
    ];
}

impl From<ExitCode> for u8 {
    fn from(code: ExitCode) -> Self {
        code as Self
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(u8::from(code))
    }
}

/// A number that is no exit code of `replctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no exit code of replctl")]
pub struct UnknownExitCode(u8);

impl TryFrom<u8> for ExitCode {
    type Error = UnknownExitCode;

    fn try_from(code: u8) -> Result<Self, UnknownExitCode> {
        Self::ALL
            .into_iter()
            .find(|known| u8::from(*known) == code)
            .ok_or(UnknownExitCode(code))
    }
}

/// A message as a line, newline included; `None` if it would be too long.
pub fn to_line<M: Serialize>(message: &M) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(message).ok()?;
    line.push(b'\n');
    (line.len() <= LINE_BYTES_MAX).then_some(line)
}

//! The one door between the control thread and the data thread.
//!
//! The control thread sends [`ToData`] messages and rings the data thread's bell (an eventfd that its ring polls).
//! The data thread answers operators through their [`oneshot`] senders, reports what the control thread has to act
//! upon as [`ToControl`], and publishes a [`Snapshot`] each turn, so that status is answered also when the data
//! thread hangs. The data thread never waits for the control thread: it only ever tries the lock.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::EventFd;
use replicator::io::DropReason;
use replicator::meta::config::Name;
use replicator::meta::volumes::Volumes;
use replicator::types::{AdminId, NODES_MAX, NodeId, Time, VOLUMES_MAX, VolumeId};
use replicator::view::View;
use tokio::sync::{mpsc, oneshot};

use crate::meters::Meters;
use crate::nbd::Terms;

/// A connected stream socket, with no operation in flight on it.
#[derive(Debug)]
pub enum Stream {
    /// A Unix socket.
    Unix(UnixStream),
    /// A TCP socket, TCP_NODELAY set.
    Tcp(TcpStream),
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Unix(s) => s.into(),
            Stream::Tcp(s) => s.into(),
        }
    }
}

/// What an operator may ask of the data thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataCommand {
    /// Become Primary, trying for `timeout_ms`.
    Promote {
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Become Primary alone, with what is here, in a history of its own.
    Force {
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Stop being Primary; refused as in use (12) while a client is attached, unless `force`.
    Demote {
        /// Drop the clients.
        force: bool,
    },
    /// Replicate with this peer again.
    Connect {
        /// Which.
        peer: NodeId,
    },
    /// End replication with this peer.
    Disconnect {
        /// Which.
        peer: NodeId,
    },
    /// Take a node out of members and voters, trying for `timeout_ms`.
    Drop {
        /// Which.
        peer: NodeId,
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Take a node that was dropped back, waiting for `timeout_ms`.
    Return {
        /// Which.
        peer: NodeId,
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Admit a node with new disks, waiting for `timeout_ms`.
    Replace {
        /// Which.
        peer: NodeId,
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Give this node's data up, waiting for `timeout_ms` for the Primary's consent.
    Invalidate {
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
        /// Also where no Primary is connected.
        force: bool,
    },
    /// Make sure that a node commits nothing more, trying for `timeout_ms`.
    Fence {
        /// Which.
        peer: NodeId,
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Let a node that was fenced be promoted again, trying for `timeout_ms`.
    Unfence {
        /// Which.
        peer: NodeId,
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Fence the Primary and promote the node with the best data, trying for `timeout_ms`.
    Failover {
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Take it that a node is off.
    ConfirmStopped {
        /// Which.
        peer: NodeId,
    },
    /// Give a volume another size, trying for `timeout_ms`; refused as in use (12) while a client is attached to one that gets
    /// smaller.
    Resize {
        /// Which volume.
        volume: Name,
        /// The size in bytes.
        bytes: u64,
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Add a volume, trying for `timeout_ms`.
    AddVolume {
        /// Its name.
        volume: Name,
        /// Its size in bytes.
        bytes: u64,
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Remove a volume, trying for `timeout_ms`; refused as in use (12) while a client is attached to it.
    RemoveVolume {
        /// Which volume.
        volume: Name,
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Drop all clients, without an answer to what they wait for.
    DropClients,
    /// Hold writes and bring the stores up to date, trying for `timeout_ms`.
    SuspendIo {
        /// When to give up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// Let writes go on.
    ResumeIo,
    /// Verify.
    Verify {
        /// Mend what is found.
        repair: bool,
        /// How fast at most; 0 for as fast as it goes.
        bytes_per_second: u64,
    },
    /// End that.
    StopVerify,
    /// Demote, apply, make durable, and end the data thread.
    Stop,
}

/// Why the data thread refused. `code` is an exit code of `replctl`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataError {
    /// 1, 10, 11, 12 or 17.
    pub code: u8,
    /// One sentence.
    pub message: String,
}

/// What the control thread tells the data thread.
#[derive(Debug)]
pub enum ToData {
    /// A client has negotiated.
    Client {
        /// Its socket.
        stream: Stream,
        /// The export it chose.
        volume: VolumeId,
        /// What else was agreed on.
        terms: Terms,
        /// Bytes that were read past the negotiation.
        leftover: Vec<u8>,
    },
    /// A peer has said hello, and the hellos fit.
    Peer {
        /// Its socket.
        stream: Stream,
        /// Who it is.
        peer: NodeId,
        /// Bytes that were read past the hello.
        leftover: Vec<u8>,
    },
    /// An operator's command.
    Command {
        /// What to do.
        command: DataCommand,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), DataError>>,
    },
}

/// What the data thread tells the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// The connection to this peer ended; dial again or await it, if it is wanted.
    PeerDown {
        /// Which.
        peer: NodeId,
    },
    /// Whether this peer is to be dialled and accepted (`connect`), or not (`disconnect`).
    Reach {
        /// Which.
        peer: NodeId,
        /// Whether to.
        wanted: bool,
    },
    /// The connection to this peer was ended for something that does not pass by itself: it is not dialled nor accepted until an
    /// operator connects again.
    StandAlone {
        /// Which.
        peer: NodeId,
        /// What it was.
        why: DropReason,
    },
    /// State changed in a way that status watchers and `events` want to see: read the snapshot.
    Changed,
    /// The data thread has ended. `failed` says why if it was not asked to.
    Ended {
        /// Why.
        failed: Option<String>,
    },
}

/// What is wrong with the disks of this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trouble {
    /// What failed, of which file or device, and why; the worst since the start.
    pub failure: Option<Arc<str>>,
    /// What to do about that.
    pub advice: &'static str,
    /// Which operation is not answered.
    pub silence: Option<Arc<str>>,
}

/// What the data thread publishes each turn.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The core's own view.
    pub view: View,
    /// When it was published, on CLOCK_BOOTTIME: older than a moment means that the data thread hangs.
    pub at: Time,
    /// The volumes, as the stores have them.
    pub volumes: Arc<Volumes>,
    /// NBD connections in transmission, per volume.
    pub nbd_clients: [u32; VOLUMES_MAX],
    /// Whether the memory of the data path is locked.
    pub memory_locked: bool,
    /// Whether its buffers are registered with the ring.
    pub buffers_registered: bool,
    /// Bytes of memory set aside for the data path.
    pub memory_bytes: u64,
    /// Bytes of it in use.
    pub memory_used_bytes: u64,
    /// How full the data thread's queues are.
    pub queues: Queues,
    /// What is wrong with the disks.
    pub trouble: Trouble,
}

/// How much of something bounded is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// How much is used.
    pub used: u32,
    /// How much there is.
    pub limit: u32,
}

/// How full the queues and shares of the data thread are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Queues {
    /// The shares of the memory, in blocks: what clients send and read, blocks that they cover in part, batches of the core, what is being applied, batches of peers,
    /// connections' own buffers.
    pub memory: [Usage; 6],
    /// Blocks of answers to reads that were not sent yet.
    pub read_answers: Usage,
    /// Operations that the ring has.
    pub operations: Usage,
    /// Disk operations that the ring has.
    pub disk_operations: Usage,
    /// Disk operations that wait for others to end.
    pub disk_waiting: u32,
    /// How long the oldest disk operation has not been answered, in nanoseconds, once that is noteworthy.
    pub disk_silent_nanos: u64,
    /// NBD connections, those on their way out included.
    pub nbd_connections: Usage,
    /// Connections to peers, those on their way out included.
    pub peer_connections: Usage,
    /// Connections that wait for memory or for the core.
    pub starved: u32,
    /// Frames that wait to be sent, by node.
    pub peer_frames: [u32; NODES_MAX],
    /// The bound of each of `peer_frames`.
    pub peer_frames_max: u32,
    /// Since when a peer has not acknowledged something, by node; the beginning of time if it has acknowledged everything.
    pub unacknowledged_since: [Time; NODES_MAX],
}

/// The control thread's end.
#[derive(Clone, Debug)]
pub struct DataHandle {
    /// Messages to the data thread.
    pub sender: std::sync::mpsc::Sender<ToData>,
    /// Rings the data thread's bell.
    pub bell: Arc<EventFd>,
    /// What it published last.
    pub snapshot: Arc<Mutex<Snapshot>>,
    /// What it counts.
    pub meters: Arc<Meters>,
}

impl DataHandle {
    /// Sends a message and rings the bell. `false` if the data thread has ended.
    pub fn send(&self, message: ToData) -> bool {
        self.sender.send(message).is_ok() && self.bell.write(1).is_ok()
    }

    /// What the data thread published last.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

/// The data thread's end.
#[derive(Debug)]
pub struct ControlHandle {
    /// Messages from the control thread.
    pub receiver: std::sync::mpsc::Receiver<ToData>,
    /// Readable when there are messages.
    pub bell: Arc<EventFd>,
    /// Where to publish.
    pub snapshot: Arc<Mutex<Snapshot>>,
    /// Where to count.
    pub meters: Arc<Meters>,
    /// Messages to the control thread. Unbounded, but only a handful per connection or command are ever sent.
    pub sender: mpsc::UnboundedSender<ToControl>,
}

/// Names for commands on their way through the core.
pub type CommandId = AdminId;

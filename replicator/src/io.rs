//! What goes into a [`Replica`](crate::Replica) and what comes out: the vocabulary between core and driver.

use arrayvec::ArrayVec;

use crate::meta::config::Name;
use crate::meta::volumes::Volumes;
use crate::types::*;
use crate::wire::frame::Frame;

/// The most buffers in one vectored disk write.
pub const PARTS_MAX: usize = 16;

/// The most payload that one client write may carry, in bytes. The driver cuts larger requests into pieces, each
/// answered for itself.
pub const WRITE_BYTES_MAX: u32 = 1 << 20;

/// The most that one client read may ask for, in bytes.
pub const READ_BYTES_MAX: u32 = 1 << 20;

/// The most that one client trim or write-zeroes may cover, in bytes.
pub const ZERO_BYTES_MAX: u64 = 64 << 20;

/// Blocks that an owned request buffer leaves free in front of its payload, for the header of its batch.
pub const HEADER_BLOCKS: u32 = 1;

/// Buffers of one vectored disk operation, in order of their place on the disk. Each is a multiple of 4 KiB.
pub type Parts<B> = ArrayVec<B, PARTS_MAX>;

/// The payload of a client write.
#[derive(Debug)]
pub enum WriteData<'a, B> {
    /// Bytes that are valid during the call only: the core copies them. For small writes.
    Borrowed(&'a [u8]),
    /// A buffer of [`Purpose::Client`](crate::memory::Purpose) with one free block in front; the payload begins at byte `4096 + offset % 4096`,
    /// where `offset` is the request's, and the buffer ends with the block in which the payload ends. The driver
    /// has filled the payload only and keeps no handle. It is journaled and sent from here, without a copy.
    Owned(B),
}

/// A request of a client. Offsets and lengths are in bytes, within the volume, not 0; the driver has checked them.
#[derive(Debug)]
pub enum ClientOp<'a, B> {
    /// Reads at most [`READ_BYTES_MAX`].
    Read {
        /// From which volume.
        volume: VolumeId,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// Writes at most [`WRITE_BYTES_MAX`]. Every write is durable when it is answered, so FUA changes nothing.
    Write {
        /// To which volume.
        volume: VolumeId,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u32,
        /// The bytes.
        data: WriteData<'a, B>,
    },
    /// Makes at most [`ZERO_BYTES_MAX`] read as zeroes.
    Zero {
        /// On which volume.
        volume: VolumeId,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Whether the stores may deallocate the range (TRIM, and WRITE_ZEROES without NO_HOLE).
        may_deallocate: bool,
    },
    /// Everything that was answered is durable already; answered as soon as the lease allows.
    Flush,
}

/// What happens to a replica.
#[derive(Debug)]
pub enum Input<'a, B> {
    /// A client asks. Only while [`Replica::capacity`](crate::Replica::capacity) says so.
    Client {
        /// The name that the answer will carry.
        req: ReqId,
        /// What it wants.
        op: ClientOp<'a, B>,
    },
    /// A connection to a peer stands: both sides have exchanged and checked their hellos.
    PeerUp {
        /// The new connection.
        conn: ConnId,
        /// Who is at its other end.
        peer: NodeId,
    },
    /// A connection is gone. Also after the core itself asked for it by [`Output::Drop`].
    PeerDown {
        /// Which.
        conn: ConnId,
    },
    /// A frame arrived, decoded and its checksum compared. An append or a fetched batch comes with its buffer, of
    /// [`Purpose::Peer`](crate::memory::Purpose), still unverified.
    Frame {
        /// On which connection.
        conn: ConnId,
        /// What it says.
        frame: Frame,
        /// The batch after it, if the frame says that one follows.
        batch: Option<B>,
    },
    /// A batch that was given out by [`Output::Send`] has left for the peer, in the order of sending.
    BatchSent {
        /// On which connection.
        conn: ConnId,
    },
    /// A disk operation ended. A read's buffer now has its bytes. Anything short of the whole is an error.
    DiskDone {
        /// Which.
        ticket: Ticket,
        /// How.
        result: Result<(), DiskError>,
    },
    /// A disk operation has not ended for longer than anybody should wait (`true`), or all that were so late have ended.
    DisksHang(bool),
    /// An operator commands.
    Admin {
        /// The name that the answer will carry.
        id: AdminId,
        /// What to do.
        command: AdminCommand,
    },
}

/// What an operator can ask of a replica. (Status is a [`View`](crate::view::View), not a command.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminCommand {
    /// Become Primary; keep trying until `deadline`.
    Promote {
        /// When to give up.
        deadline: Time,
    },
    /// Become Primary alone, with the data that is here, in a history of its own, until `deadline` (protocol D2). The driver has
    /// made sure that the operator means it.
    Force {
        /// When to give up.
        deadline: Time,
    },
    /// Stop being Primary. The driver has checked that no client is attached, or that it is forced.
    Demote,
    /// Replicate with this peer again.
    Connect {
        /// Which peer.
        peer: NodeId,
    },
    /// End replication with this peer, until `Connect` or a restart.
    Disconnect {
        /// Which peer.
        peer: NodeId,
    },
    /// Take a node out of the members and the voters, until it is returned. Answered when that is committed and durable here.
    Drop {
        /// Which node.
        peer: NodeId,
        /// When to stop waiting.
        deadline: Time,
    },
    /// Take a node that was dropped, with the disks that it had, back among members and voters. Answered when it counts again;
    /// if that takes longer, it goes on behind.
    Return {
        /// Which node.
        peer: NodeId,
        /// When to stop waiting.
        deadline: Time,
    },
    /// Admit a node that was wiped, or is new, in place of whatever counted under its name (protocol D4). Answered when it counts;
    /// if that takes longer, it goes on behind. The driver has made sure that the operator means it.
    Replace {
        /// Which node.
        peer: NodeId,
        /// When to stop waiting.
        deadline: Time,
    },
    /// Give this node's data up, and come back as a new incarnation that is given everything anew, with what the stores hold as a
    /// seed. Answered when the data is given up. The driver has made sure that the operator means it.
    Invalidate {
        /// When to stop waiting for the Primary's consent.
        deadline: Time,
        /// Also where no Primary is connected.
        insists: bool,
    },
    /// This node is off: somebody made sure of that, and answers for it (protocol F0). Void as soon as it is heard of.
    ConfirmStopped {
        /// Which node.
        peer: NodeId,
    },
    /// Make sure that a node commits nothing more, and is not promoted before it is unfenced (protocol F1). Answered when that holds,
    /// whatever that node does.
    Fence {
        /// Which node.
        peer: NodeId,
        /// When to give up.
        deadline: Time,
    },
    /// Let a node that was fenced be promoted again. Answered when enough voters do.
    Unfence {
        /// Which node; this one too.
        peer: NodeId,
        /// When to give up.
        deadline: Time,
    },
    /// Fence the present Primary, and promote the node with the best data. Answered when that one serves.
    Failover {
        /// When to give up.
        deadline: Time,
    },
    /// Give a volume another size, on all data nodes or on none. Answered when it is committed, and clients of this node can have it.
    /// For a smaller size the driver has made sure that no client is attached, and that the operator means it.
    Resize {
        /// Which volume.
        volume: Name,
        /// The size.
        bytes: u64,
        /// When to stop waiting.
        deadline: Time,
    },
    /// Add a volume, on all data nodes or on none.
    AddVolume {
        /// Its name.
        volume: Name,
        /// Its size.
        bytes: u64,
        /// When to stop waiting.
        deadline: Time,
    },
    /// Remove a volume, on all data nodes or on none. The driver has made sure that no client is attached, and that the operator
    /// means it.
    RemoveVolume {
        /// Which volume.
        volume: Name,
        /// When to stop waiting.
        deadline: Time,
    },
    /// Admit no more writes; commit and apply what was admitted, here and on the peers that keep up. Answered when this
    /// node's stores are the images and stay so until [`AdminCommand::ResumeIo`]. Reads go on.
    SuspendIo {
        /// When to stop waiting: for peers, then it is done without them; for this node, then writes go on.
        deadline: Time,
    },
    /// Read all blocks of all data nodes and compare them by their checksums. Answered when it has begun; what it comes to is in
    /// the [`View`](crate::view::View).
    Verify {
        /// Mend what is found.
        repair: bool,
        /// How fast at most; 0 if as fast as clients leave room for.
        bytes_per_second: u64,
    },
    /// End the verification that this node runs.
    StopVerify,
    /// Admit writes again. Refused if the hold ended by itself meanwhile: the stores may have changed since.
    ResumeIo,
    /// Demote if Primary, apply what is committed, make the floors durable. Answered when a stop loses nothing and
    /// the stores are the images. Clients are dropped.
    Drain,
}

/// What an operator gets.
pub type AdminResult = Result<(), AdminError>;

/// Why an operator's command was refused. The numbers are the exit codes of `replctl`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdminError {
    /// 1: failed; the text says why.
    #[error("{0}")]
    Failed(String),
    /// 10: a majority of voters can not be reached, or did not promise.
    #[error("{0}")]
    NoQuorum(String),
    /// 11: another node is Primary.
    #[error("{0}")]
    OtherPrimary(String),
    /// 17: no access to up-to-date data.
    #[error("{0}")]
    NoData(String),
}

/// Why a disk operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system's error number.
    #[error("operating system error {0}")]
    Os(i32),
    /// The device moved fewer bytes than asked, and went on doing so.
    #[error("fewer bytes than asked for were moved")]
    Short,
    /// A store can not have the volume that it should.
    #[error(transparent)]
    Volume(#[from] VolumeTrouble),
}

/// Why a store can not have the volume that it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VolumeTrouble {
    /// A device has its own size.
    #[error(
        "the store's device has {bytes} bytes, less than the volume: make the device larger first"
    )]
    Device {
        /// How many.
        bytes: u64,
    },
    /// The config file does not say where it goes.
    #[error(
        "its config file has no volume of this name, or can not be read: write it there first, on every node"
    )]
    NotInConfig,
    /// The config file says otherwise.
    #[error(
        "its config file gives the volume {bytes} bytes: write the same size there on every node"
    )]
    OtherSize {
        /// How many.
        bytes: u64,
    },
    /// There is something that may be needed.
    #[error(
        "there is something at the place of the new volume's store already: move it away, or wipe it"
    )]
    NotBlank,
}

/// What the driver has to do to a disk. Offsets are bytes from the start of the file or device, all multiples of
/// 4 KiB.
#[derive(Debug)]
pub enum DiskOp<B> {
    /// Write to the journal; durable (RWF_DSYNC, or write and flush) before it is reported done.
    JournalWrite {
        /// Where the first part goes; the others follow it.
        offset: u64,
        /// What to write.
        parts: Parts<B>,
    },
    /// Fill `buffer` from the journal. The driver returns its handle before it reports this done.
    JournalRead {
        /// From where.
        offset: u64,
        /// Where to. The core holds handles to it, but looks only after completion.
        buffer: B,
    },
    /// Write to the metadata file; durable before it is reported done.
    MetaWrite {
        /// Where.
        offset: u64,
        /// What.
        parts: Parts<B>,
    },
    /// Fill `buffer` from a store.
    StoreRead {
        /// From which volume's.
        volume: VolumeId,
        /// From where.
        offset: u64,
        /// Where to.
        buffer: B,
    },
    /// Write to a store; need not be durable until [`DiskOp::StoreFlush`].
    StoreWrite {
        /// To which volume's.
        volume: VolumeId,
        /// Where the first part goes; the others follow it.
        offset: u64,
        /// What.
        parts: Parts<B>,
    },
    /// Make a range of a store read as zeroes; need not be durable until [`DiskOp::StoreFlush`].
    StoreZero {
        /// Of which volume's.
        volume: VolumeId,
        /// From where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Whether the range may be deallocated.
        may_deallocate: bool,
    },
    /// Make all completed writes to a store durable.
    StoreFlush {
        /// Of which volume's.
        volume: VolumeId,
    },
    /// Fill `buffer` from a file beside the stores.
    SideRead {
        /// Which file.
        file: SideFile,
        /// From where.
        offset: u64,
        /// Where to.
        buffer: B,
    },
    /// Write to a file beside the stores; need not be durable until [`DiskOp::SideFlush`].
    SideWrite {
        /// Which file.
        file: SideFile,
        /// Where the first part goes; the others follow it.
        offset: u64,
        /// What.
        parts: Parts<B>,
    },
    /// Make all completed writes to a file beside the stores durable.
    SideFlush {
        /// Which file.
        file: SideFile,
    },
    /// Make stores, and the files beside them, as long as these volumes need, durably, and never shorter. What is new need not read
    /// as zeroes. Where a volume can not have its place yet ([`Volumes::may_have`]), the store that is there stays, and the new
    /// one is made by [`DiskOp::Fit`].
    MakeRoom {
        /// Those whose stores they are.
        own: Box<Volumes>,
        /// Those that are to come.
        volumes: Box<Volumes>,
    },
    /// Give back what stores and files have beyond these volumes; put aside the stores of volumes that are gone, and make those that
    /// are not there. What is new need not read as zeroes.
    Fit {
        /// The volumes.
        volumes: Box<Volumes>,
    },
    /// Give back the room of a range of a file beside the stores; it reads as zeroes then.
    SideDiscard {
        /// Which file.
        file: SideFile,
        /// From where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
}

/// A file beside the stores, one for all volumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SideFile {
    /// The checksums of the stores' blocks, [`sums::file_bytes`](crate::store::sums::file_bytes) long.
    Sums,
    /// What a resync has brought until it is whole: sparse, as long as all volumes together, in their order.
    Stage,
}

/// The answer to a client.
#[derive(Debug)]
pub enum Answer<B> {
    /// Done.
    Done,
    /// What was read: `length` bytes from byte `start` of `buffer` on.
    Data {
        /// The memory.
        buffer: B,
        /// Where the bytes begin in it.
        start: usize,
        /// How many bytes.
        length: usize,
    },
}

/// Why a client gets an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// A device failed, or the quorum is lost and the policy is to fail I/O then.
    #[error("input/output error")]
    Io,
}

/// Why the core wants a connection closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DropReason {
    /// Nothing was heard for too long.
    #[error("the peer was silent for too long")]
    Silent,
    /// A frame that breaks the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// A newer connection to the same peer replaced it.
    #[error("a newer connection to this peer replaced it")]
    Replaced,
    /// An operator asked for it.
    #[error("disconnected by an operator")]
    Operator,
    /// This node begins a history of its own.
    #[error("this node begins a history of its own")]
    Forked,
    /// This node gives its data up.
    #[error("this node gives its data up")]
    Renewed,
    /// The peer belongs to another resource or history.
    #[error("the peer's data has another identity: {0}")]
    Unrelated(&'static str),
    /// This node failed.
    #[error("this node has failed and stepped aside")]
    Failed,
}

/// What a replica wants done, in this order.
#[derive(Debug)]
pub enum Output<B> {
    /// Start a disk operation. Operations may run and end in any order.
    Disk {
        /// The name to report it done by.
        ticket: Ticket,
        /// What to do.
        op: DiskOp<B>,
    },
    /// Send a frame, and the batch behind it if there is one. Frames of a connection leave in this order.
    Send {
        /// On which connection.
        conn: ConnId,
        /// What to say.
        frame: Frame,
        /// The bytes that follow.
        batch: Option<B>,
    },
    /// Close a connection to a peer; [`Input::PeerDown`] is still expected.
    Drop {
        /// Which.
        conn: ConnId,
        /// Why, for the log.
        reason: DropReason,
        /// Whether to stay away (StandAlone) until an operator connects again.
        stand_alone: bool,
    },
    /// Stop dialling and accepting this peer (`false`), or begin again (`true`).
    Reach {
        /// Which peer.
        peer: NodeId,
        /// Whether to.
        wanted: bool,
    },
    /// Answer a client.
    Reply {
        /// Which request.
        req: ReqId,
        /// What to say.
        result: Result<Answer<B>, ClientError>,
    },
    /// Close every client connection, without answering what is pending. No reply follows for those requests, nor for those
    /// that were handed in after the event that caused this and before the driver has seen it.
    DropClients,
    /// Answer an operator.
    AdminReply {
        /// Which command.
        id: AdminId,
        /// What to say.
        result: AdminResult,
    },
    /// Something that an operator may want to read in the log.
    Log(LogLine),
}

/// How loud a log line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogLevel {
    /// As expected.
    Info,
    /// Unusual; redundancy or time is being lost.
    Warn,
    /// Something is broken.
    Error,
}

/// A sentence for the log. Never made per request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogLine {
    /// How loud.
    pub level: LogLevel,
    /// The sentence.
    pub text: String,
}

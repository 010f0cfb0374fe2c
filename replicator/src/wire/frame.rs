//! Frames between nodes.
//!
//! A frame is a [`FrameHeader`] of 32 bytes, a body of at most [`BODY_BYTES_MAX`] bytes, and, after some kinds, a
//! journal batch of `batch_blocks` blocks, byte for byte as it is in the journal. Header and body have a checksum
//! each; the batch carries its own. All integers are little-endian. Nothing in a frame is trusted because of its
//! checksum: the core checks what it says.

use arrayvec::ArrayVec;

use crate::io::DiskError;
use crate::memory::ALLOC_BLOCKS_MAX;
use crate::meta::config::ConfigAt;
use crate::meta::fences::FenceMarks;
use crate::meta::volumes::Volumes;
use crate::types::*;

pub use codec::{FrameHeader, encode};
use codec::{epoch, node_from_wire, node_to_wire, seq};
pub use compare::{Compare, Compared};
pub use resync::{ASKED_BLOCKS_MAX, ASKED_GROUPS_MAX, Blocks, Changed, ResyncFrom};
pub use verify::{
    BAD_NAMED_MAX, CHECKED_BLOCKS_MAX, CheckAsk, Checked, Mend, Verified, VerifyFrame,
};

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 32;

/// The most bytes of a body.
pub const BODY_BYTES_MAX: usize = 4096;

/// The most bytes of a frame without its batch.
pub const FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + BODY_BYTES_MAX;

/// The most entries of an epoch history in a report. Older epochs lie below the committed floor long since.
pub const EPOCH_HISTORY_MAX: usize = 64;

/// The first record of each epoch in a log, oldest first.
pub type EpochHistory = ArrayVec<RecordId, EPOCH_HISTORY_MAX>;

/// What a node says of itself: its answer to [`Frame::Ask`] and [`Frame::Promise`], and the first frame on a connection. What it
/// asserts is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The question that this answers; 0 if unasked.
    pub token: u64,
    /// The epoch that is granted to the asker by this report; `Epoch(0)` if none is.
    pub granted: Epoch,
    /// The resource, 0 while fresh.
    pub uuid: ResourceUuid,
    /// The history, 0 while fresh.
    pub history: HistoryId,
    /// This life of the node's disks.
    pub incarnation: Incarnation,
    /// The highest epoch promised, and to whom.
    pub promised: Epoch,
    /// To whom; `None` if nobody ever.
    pub promised_to: Option<NodeId>,
    /// The last durable record.
    pub tail: RecordId,
    /// The committed floor.
    pub committed: Seq,
    /// The oldest record in the journal.
    pub journal_floor: Seq,
    /// What this node knows that the receiver has acknowledged as durable.
    pub you_acked: RecordId,
    /// How long, in milliseconds, until the lease rule lets this node promise a newer epoch; 0 if it may.
    pub lease_wait_ms: u32,
    /// Holds no config and no record.
    pub fresh: bool,
    /// Is Primary and its lease runs.
    pub serving: bool,
    /// Is Primary, whether or not its lease runs.
    pub primary: bool,
    /// Is trying to become Primary right now.
    pub candidate: bool,
    /// Counts for nothing until it is repaired: its grants are void.
    pub damaged: bool,
    /// Its stores are no image: it can not be fed from its log on, nor be Primary, before a resync has ended (protocol C3).
    pub inconsistent: bool,
    /// The newest Primary that it knows has committed a demote record.
    pub demoted: Epoch,
    /// The latest config and the record that brought it.
    pub config: Option<ConfigAt>,
    /// The epoch history, back to the committed floor at least.
    pub epochs: EpochHistory,
    /// Who is fenced.
    pub fences: FenceMarks,
    /// A number that is the same for the same volumes: those of the stores.
    pub volumes: u32,
}

/// A config for a witness, which has no log to find it in, from the Primary of the epoch of its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// The resource.
    pub uuid: ResourceUuid,
    /// The history.
    pub history: HistoryId,
    /// The config and its record.
    pub config: ConfigAt,
}

/// Marks for all nodes of who is fenced, and with them the request for an epoch that a fenced node does not own (protocol F1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    /// Comes back in the report; 0 if none is wanted.
    pub token: u64,
    /// The epoch to promise to the sender; 0 if none is.
    pub epoch: Epoch,
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// What the sender knows.
    pub marks: FenceMarks,
}

/// What nodes say to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Who I am and what I have.
    Report(Box<Report>),
    /// Send me a report with this token. Promises nothing.
    Ask {
        /// Comes back in the report.
        token: u64,
    },
    /// Promise me this epoch.
    Promise {
        /// Comes back in the report.
        token: u64,
        /// The epoch.
        epoch: Epoch,
        /// The candidate's incarnation.
        incarnation: Incarnation,
    },
    /// Send me what follows this record in your log (one answer: [`Frame::Fetched`]).
    Fetch {
        /// Comes back in the answer.
        token: u64,
        /// The last record that both logs hold.
        after: Seq,
    },
    /// A batch for a candidate that asked; a batch follows unless `batch_blocks` of the header is 0 (no more there).
    Fetched {
        /// From the question.
        token: u64,
    },
    /// The next batch of the log, from a Primary (or the winner of a promotion) of this epoch; a batch follows.
    Append {
        /// The sender's epoch.
        epoch: Epoch,
        /// The sender's committed floor.
        committed: Seq,
    },
    /// My log equals yours through this record, durably. From a witness: the config that this record brought is durable.
    Ack {
        /// The Primary's epoch.
        epoch: Epoch,
        /// Through this record.
        seq: Seq,
    },
    /// The Primary lives. Also carries the committed floor when no batch does.
    Heartbeat {
        /// The Primary's epoch.
        epoch: Epoch,
        /// Comes back in the answer.
        number: u64,
        /// The sender's committed floor.
        committed: Seq,
        /// The newest record of its log.
        tail: Seq,
        /// The length of the lease, in milliseconds.
        lease_ms: u32,
        /// The record of its latest config, if that is committed and no change of it is pending; else none.
        settled: RecordId,
    },
    /// I heard that heartbeat and support the lease.
    HeartbeatAck {
        /// The Primary's epoch.
        epoch: Epoch,
        /// From the heartbeat.
        number: u64,
        /// The stores have all records through this one, flushed; 0 from a witness.
        applied: Seq,
        /// The sender's disks do not answer.
        disks_hang: bool,
    },
    /// Your epoch is over for me: I promised a newer one.
    Refused {
        /// The epoch promised.
        promised: Epoch,
        /// To whom.
        promised_to: Option<NodeId>,
    },
    /// My demote record of this epoch is committed; I answer nothing any more.
    Demoted {
        /// The epoch that ended.
        epoch: Epoch,
        /// Its last record.
        committed: Seq,
    },
    /// What you lack is no longer in my journal.
    TooFarBehind {
        /// The oldest record that is.
        journal_floor: Seq,
    },
    /// I live.
    Ping,
    /// Keep this config, witness; answered by [`Frame::Ack`].
    Config(Box<Told>),
    /// What do these blocks hold? Answered by [`Frame::Blocks`].
    BlocksAsk {
        /// Comes back in the answer.
        token: u64,
        /// The volume.
        volume: VolumeId,
        /// The first block.
        block: u64,
        /// How many.
        blocks: u32,
    },
    /// This; the blocks follow, unless all are zeroes.
    Blocks(Box<Blocks>),
    /// Which record changed each group from this one on last? Answered by [`Frame::Changed`], in its place among the
    /// appends: what was changed by records that were sent before is in it.
    ChangedAsk {
        /// Comes back in the answer.
        token: u64,
        /// The volume.
        volume: VolumeId,
        /// The first group.
        group: u64,
    },
    /// These.
    Changed(Box<Changed>),
    /// I am past your journal. I have staged what goes through this record; go on from there if you can.
    ResyncAsk {
        /// Comes back in the answer.
        token: u64,
        /// The last record staged.
        staged: RecordId,
        /// What of it is known to be committed, or in the sender's stores.
        committed: Seq,
    },
    /// I go on from here: appends follow.
    ResyncFrom(Box<ResyncFrom>),
    /// I have staged your log through this record. It counts for no commit: it is only room for more.
    Staged {
        /// The Primary's epoch.
        epoch: Epoch,
        /// Through this record.
        seq: Seq,
        /// Bytes of which it is not known whether they have to come, or known that they have to.
        left_bytes: u64,
        /// The same when the resync began.
        total_bytes: u64,
    },
    /// You are to join: this committed config lists you as joining. The log follows.
    Invite(Box<Told>),
    /// What do these blocks hold, if not this? Answered by [`Frame::Compared`], in its place among the appends.
    Compare(Box<Compare>),
    /// This; those blocks follow that hold something else.
    Compared(Box<Compared>),
    /// I want to give my data up and come back as this life: let the present one go. Answered by [`Frame::Renewed`].
    Renew {
        /// Comes back in the answer.
        token: u64,
        /// The next life.
        incarnation: Incarnation,
    },
    /// It is out of the membership, for good; or not.
    Renewed {
        /// From the question.
        token: u64,
        /// 0 if it is; else an exit code that says why not.
        refused: u32,
    },
    /// Keep these marks where yours are older, and promise me this epoch, if there is one; answered by [`Frame::Report`].
    Fence(Box<Fence>),
    /// You have the best data: become Primary.
    Stand {
        /// How long to try, in milliseconds.
        for_ms: u32,
    },
    /// Something of a verification.
    Verify(VerifyFrame),
    /// Make room for these volumes. Answered by [`Frame::Prepared`].
    Prepare {
        /// Comes back in the answer.
        token: u64,
        /// The volumes.
        volumes: Box<Volumes>,
    },
    /// There is room, or there is none.
    Prepared {
        /// From the question.
        token: u64,
        /// Why there is none.
        result: Result<(), DiskError>,
    },
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The magic number is wrong: this is no peer, or the stream is out of step.
    #[error("not a frame of this protocol")]
    Magic,
    /// The header's checksum is wrong.
    #[error("the frame's header is damaged")]
    HeaderChecksum,
    /// The body's checksum is wrong.
    #[error("the frame's body is damaged")]
    BodyChecksum,
    /// No such kind.
    #[error("unknown kind of frame {0}")]
    Kind(u16),
    /// A length beyond its bound, or one that does not fit the kind.
    #[error("the frame has a length that its kind can not have")]
    Length,
    /// A field has a value that it can not have.
    #[error("the frame has a field with an impossible value")]
    Field,
}

mod codec;
mod compare;
mod epochs;
mod fence;
mod report;
mod resync;
#[cfg(test)]
mod tests;
mod told;
mod verify;
mod volumes;

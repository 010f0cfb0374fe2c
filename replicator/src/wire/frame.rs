//! Frames between nodes.
//!
//! A frame is a [`FrameHeader`] of 32 bytes, a body of at most [`BODY_BYTES_MAX`] bytes, and, after some kinds, a
//! journal batch of `batch_blocks` blocks, byte for byte as it is in the journal. Header and body have a checksum
//! each; the batch carries its own. All integers are little-endian. Nothing in a frame is trusted because of its
//! checksum: the core checks what it says.

use std::mem::offset_of;

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::io::DiskError;
use crate::memory::ALLOC_BLOCKS_MAX;
use crate::meta::config::ConfigAt;
use crate::meta::fences::FenceMarks;
use crate::meta::volumes::Volumes;
use crate::types::*;

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

const MAGIC: u32 = 0x4d_46_50_52; // "RPFM"

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

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    kind: U16,
    body_bytes: U16,
    batch_blocks: U32,
    body_crc: U32,
    reserved: [u8; 12],
    header_crc: U32,
}
const _: () = assert!(size_of::<RawHeader>() == FRAME_HEADER_BYTES);
const _: () = {
    assert!(offset_of!(RawHeader, kind) == 4);
    assert!(offset_of!(RawHeader, body_bytes) == 6);
    assert!(offset_of!(RawHeader, batch_blocks) == 8);
    assert!(offset_of!(RawHeader, body_crc) == 12);
    assert!(offset_of!(RawHeader, header_crc) == 28);
};

/// The small frames: up to four numbers.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawNumbers {
    a: U64,
    b: U64,
    c: U64,
    d: U64,
    wide: U128,
    small: U32,
    node: u8,
    reserved: [u8; 3],
}
const _: () = assert!(size_of::<RawNumbers>() == 56);
const _: () = {
    assert!(offset_of!(RawNumbers, b) == 8);
    assert!(offset_of!(RawNumbers, c) == 16);
    assert!(offset_of!(RawNumbers, d) == 24);
    assert!(offset_of!(RawNumbers, wide) == 32);
    assert!(offset_of!(RawNumbers, small) == 48);
    assert!(offset_of!(RawNumbers, node) == 52);
};

const NOBODY: u8 = 0xff;

const KIND_REPORT: u16 = 1;
const KIND_ASK: u16 = 2;
const KIND_PROMISE: u16 = 3;
const KIND_FETCH: u16 = 4;
const KIND_FETCHED: u16 = 5;
const KIND_APPEND: u16 = 6;
const KIND_ACK: u16 = 7;
const KIND_HEARTBEAT: u16 = 8;
const KIND_HEARTBEAT_ACK: u16 = 9;
const KIND_REFUSED: u16 = 10;
const KIND_DEMOTED: u16 = 11;
const KIND_TOO_FAR_BEHIND: u16 = 12;
const KIND_PING: u16 = 13;
const KIND_CONFIG: u16 = 14;
const KIND_BLOCKS_ASK: u16 = 20;
const KIND_BLOCKS: u16 = 21;
const KIND_CHANGED_ASK: u16 = 22;
const KIND_CHANGED: u16 = 23;
const KIND_RESYNC_ASK: u16 = 24;
const KIND_RESYNC_FROM: u16 = 25;
const KIND_STAGED: u16 = 26;
const KIND_INVITE: u16 = 40;
const KIND_COMPARE: u16 = 50;
const KIND_COMPARED: u16 = 51;
const KIND_RENEW: u16 = 52;
const KIND_RENEWED: u16 = 53;
const KIND_PREPARE: u16 = 60;
const KIND_PREPARED: u16 = 61;
const KIND_FENCE: u16 = 70;
const KIND_STAND: u16 = 71;

/// A frame's header, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    kind: u16,
    body_crc: u32,
    /// Bytes of the body that follows.
    pub body_bytes: usize,
    /// Blocks of the batch that follows the body; 0 if none does.
    pub batch_blocks: u32,
}

impl FrameHeader {
    /// Checks the first [`FRAME_HEADER_BYTES`] of a frame.
    ///
    /// # Errors
    /// What is wrong with them; the stream is lost then.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, FrameError> {
        let raw = RawHeader::read_from_bytes(bytes).map_err(|_| FrameError::Length)?;
        if raw.magic.get() != MAGIC {
            return Err(FrameError::Magic);
        }
        if raw.header_crc.get() != crc32fast::hash(&bytes[..FRAME_HEADER_BYTES - 4]) {
            return Err(FrameError::HeaderChecksum);
        }
        let kind = raw.kind.get();
        let body_bytes = usize::from(raw.body_bytes.get());
        let batch_blocks = raw.batch_blocks.get();
        let with_batch = kind == KIND_APPEND
            || (matches!(kind, KIND_FETCHED | KIND_BLOCKS | KIND_COMPARED) && batch_blocks > 0);
        let known = [
            KIND_REPORT..=KIND_CONFIG,
            KIND_BLOCKS_ASK..=KIND_STAGED,
            KIND_INVITE..=KIND_INVITE,
            KIND_COMPARE..=KIND_RENEWED,
            KIND_FENCE..=KIND_STAND,
            verify::KIND_ASK..=verify::KIND_VERIFIED,
            KIND_PREPARE..=KIND_PREPARED,
        ];
        if !known.iter().any(|kinds| kinds.contains(&kind)) {
            return Err(FrameError::Kind(kind));
        }
        if body_bytes > BODY_BYTES_MAX
            || batch_blocks > ALLOC_BLOCKS_MAX
            || with_batch != (batch_blocks > 0)
        {
            return Err(FrameError::Length);
        }
        Ok(Self {
            kind,
            body_crc: raw.body_crc.get(),
            body_bytes,
            batch_blocks,
        })
    }

    /// Checks and reads the body.
    ///
    /// # Errors
    /// What is wrong with it; the stream is lost then.
    pub fn decode_body(&self, body: &[u8]) -> Result<Frame, FrameError> {
        if body.len() != self.body_bytes {
            return Err(FrameError::Length);
        }
        if crc32fast::hash(body) != self.body_crc && !planted!(BodyUnchecked) {
            return Err(FrameError::BodyChecksum);
        }
        if self.kind == KIND_REPORT {
            return report::decode(body).map(|r| Frame::Report(Box::new(r)));
        }
        if self.kind == KIND_CONFIG {
            return told::decode(body).map(|t| Frame::Config(Box::new(t)));
        }
        match self.kind {
            KIND_INVITE => return told::decode(body).map(|t| Frame::Invite(Box::new(t))),
            KIND_FENCE => return fence::decode(body).map(|f| Frame::Fence(Box::new(f))),
            KIND_PREPARE => return volumes::decode(body),
            KIND_BLOCKS => return resync::decode_blocks(body).map(|b| Frame::Blocks(Box::new(b))),
            KIND_CHANGED => {
                return resync::decode_changed(body).map(|c| Frame::Changed(Box::new(c)));
            }
            KIND_COMPARE => return compare::decode(body).map(|c| Frame::Compare(Box::new(c))),
            KIND_COMPARED => {
                let blocks = self.batch_blocks;
                return compare::decode_answer(body, blocks).map(|c| Frame::Compared(Box::new(c)));
            }
            verify::KIND_ASK..=verify::KIND_VERIFIED => {
                return verify::decode(self.kind, body).map(Frame::Verify);
            }
            KIND_RESYNC_FROM => {
                return resync::decode_from(body).map(|f| Frame::ResyncFrom(Box::new(f)));
            }
            _ => {}
        }
        let n = RawNumbers::read_from_bytes(body).map_err(|_| FrameError::Length)?;
        let (a, b, c, d) = (n.a.get(), n.b.get(), n.c.get(), n.d.get());
        Ok(match self.kind {
            KIND_ASK => Frame::Ask { token: a },
            KIND_PROMISE => Frame::Promise {
                token: a,
                epoch: epoch(b)?,
                incarnation: Incarnation(n.wide.get()),
            },
            KIND_FETCH => Frame::Fetch {
                token: a,
                after: seq(b)?,
            },
            KIND_FETCHED => Frame::Fetched { token: a },
            KIND_APPEND => Frame::Append {
                epoch: epoch(a)?,
                committed: seq(b)?,
            },
            KIND_ACK => Frame::Ack {
                epoch: epoch(a)?,
                seq: seq(b)?,
            },
            KIND_HEARTBEAT => Frame::Heartbeat {
                epoch: epoch(a)?,
                number: b,
                committed: seq(c)?,
                tail: seq(d)?,
                lease_ms: n.small.get(),
                settled: record_from_wire(n.wide.get())?,
            },
            KIND_HEARTBEAT_ACK => Frame::HeartbeatAck {
                epoch: epoch(a)?,
                number: b,
                applied: seq(c)?,
                disks_hang: match n.small.get() {
                    0 => false,
                    1 => true,
                    _ => return Err(FrameError::Field),
                },
            },
            KIND_REFUSED => Frame::Refused {
                promised: epoch(a)?,
                promised_to: node_from_wire(n.node)?,
            },
            KIND_DEMOTED => Frame::Demoted {
                epoch: epoch(a)?,
                committed: seq(b)?,
            },
            KIND_TOO_FAR_BEHIND => Frame::TooFarBehind {
                journal_floor: seq(a)?,
            },
            KIND_PING => Frame::Ping,
            KIND_BLOCKS_ASK => Frame::BlocksAsk {
                token: a,
                volume: VolumeId(u16::try_from(b).map_err(|_| FrameError::Field)?),
                block: c,
                blocks: n.small.get(),
            },
            KIND_CHANGED_ASK => Frame::ChangedAsk {
                token: a,
                volume: VolumeId(u16::try_from(b).map_err(|_| FrameError::Field)?),
                group: c,
            },
            KIND_RESYNC_ASK => Frame::ResyncAsk {
                token: a,
                staged: RecordId {
                    epoch: epoch(b)?,
                    seq: seq(c)?,
                },
                committed: seq(d)?,
            },
            KIND_RENEW => Frame::Renew {
                token: a,
                incarnation: Incarnation(n.wide.get()),
            },
            KIND_RENEWED => Frame::Renewed {
                token: a,
                refused: n.small.get(),
            },
            KIND_STAND => Frame::Stand {
                for_ms: n.small.get(),
            },
            KIND_STAGED => Frame::Staged {
                epoch: epoch(a)?,
                seq: seq(b)?,
                left_bytes: c,
                total_bytes: d,
            },
            KIND_PREPARED => Frame::Prepared {
                token: a,
                result: volumes::result_from_wire(b, c)?,
            },
            other => return Err(FrameError::Kind(other)),
        })
    }
}

/// A field that must be an epoch.
fn epoch(n: u64) -> Result<Epoch, FrameError> {
    Epoch::checked(n).ok_or(FrameError::Field)
}

/// A field that must be a sequence number.
fn seq(n: u64) -> Result<Seq, FrameError> {
    Seq::checked(n).ok_or(FrameError::Field)
}

/// A record's name in one number: its epoch above, its own below.
fn record_from_wire(wide: u128) -> Result<RecordId, FrameError> {
    let low = |n: u128| u64::try_from(n & u128::from(u64::MAX)).expect("64 bits");
    RecordId::checked(low(wide >> 64), low(wide)).ok_or(FrameError::Field)
}

fn record_to_wire(id: RecordId) -> u128 {
    u128::from(id.epoch.0) << 64 | u128::from(id.seq.0)
}

fn node_from_wire(byte: u8) -> Result<Option<NodeId>, FrameError> {
    match byte {
        NOBODY => Ok(None),
        n if usize::from(n) < NODES_MAX => Ok(Some(NodeId(n))),
        _ => Err(FrameError::Field),
    }
}

fn node_to_wire(node: Option<NodeId>) -> u8 {
    node.map_or(NOBODY, |n| n.0)
}

/// Writes `frame`, without its batch of `batch_blocks` blocks, to the start of `out`; returns how many bytes it took.
///
/// # Panics
/// If `out` is shorter than [`FRAME_BYTES_MAX`].
#[must_use]
pub fn encode(frame: &Frame, batch_blocks: u32, out: &mut [u8]) -> usize {
    let (header, body) = out[..FRAME_BYTES_MAX].split_at_mut(FRAME_HEADER_BYTES);
    let mut n = RawNumbers::read_from_bytes(&[0; size_of::<RawNumbers>()])
        .expect("the length is the type's own");
    let kind = match frame {
        Frame::Report(_) => KIND_REPORT,
        Frame::Ask { token } => {
            n.a = U64::new(*token);
            KIND_ASK
        }
        Frame::Promise {
            token,
            epoch,
            incarnation,
        } => {
            n.a = U64::new(*token);
            n.b = U64::new(epoch.0);
            n.wide = U128::new(incarnation.0);
            KIND_PROMISE
        }
        Frame::Fetch { token, after } => {
            n.a = U64::new(*token);
            n.b = U64::new(after.0);
            KIND_FETCH
        }
        Frame::Fetched { token } => {
            n.a = U64::new(*token);
            KIND_FETCHED
        }
        Frame::Append { epoch, committed } => {
            n.a = U64::new(epoch.0);
            n.b = U64::new(committed.0);
            KIND_APPEND
        }
        Frame::Ack { epoch, seq } => {
            n.a = U64::new(epoch.0);
            n.b = U64::new(seq.0);
            KIND_ACK
        }
        Frame::Heartbeat {
            epoch,
            number,
            committed,
            tail,
            lease_ms,
            settled,
        } => {
            n.a = U64::new(epoch.0);
            n.b = U64::new(*number);
            n.c = U64::new(committed.0);
            n.d = U64::new(tail.0);
            n.small = U32::new(*lease_ms);
            n.wide = U128::new(record_to_wire(*settled));
            KIND_HEARTBEAT
        }
        Frame::HeartbeatAck {
            epoch,
            number,
            applied,
            disks_hang,
        } => {
            n.a = U64::new(epoch.0);
            n.b = U64::new(*number);
            n.c = U64::new(applied.0);
            n.small = U32::new(u32::from(*disks_hang));
            KIND_HEARTBEAT_ACK
        }
        Frame::Refused {
            promised,
            promised_to,
        } => {
            n.a = U64::new(promised.0);
            n.node = node_to_wire(*promised_to);
            KIND_REFUSED
        }
        Frame::Demoted { epoch, committed } => {
            n.a = U64::new(epoch.0);
            n.b = U64::new(committed.0);
            KIND_DEMOTED
        }
        Frame::TooFarBehind { journal_floor } => {
            n.a = U64::new(journal_floor.0);
            KIND_TOO_FAR_BEHIND
        }
        Frame::Ping => KIND_PING,
        Frame::Config(_) => KIND_CONFIG,
        Frame::Invite(_) => KIND_INVITE,
        Frame::Compare(_) => KIND_COMPARE,
        Frame::Compared(_) => KIND_COMPARED,
        Frame::Fence(_) => KIND_FENCE,
        Frame::Stand { for_ms } => {
            n.small = U32::new(*for_ms);
            KIND_STAND
        }
        Frame::Verify(verify) => verify.kind(),
        Frame::Prepare { .. } => KIND_PREPARE,
        Frame::Prepared { token, result } => {
            let (code, number) = volumes::result_to_wire(*result);
            n.a = U64::new(*token);
            n.b = U64::new(code);
            n.c = U64::new(number);
            KIND_PREPARED
        }
        Frame::BlocksAsk {
            token,
            volume,
            block,
            blocks,
        } => {
            n.a = U64::new(*token);
            n.b = U64::new(u64::from(volume.0));
            n.c = U64::new(*block);
            n.small = U32::new(*blocks);
            KIND_BLOCKS_ASK
        }
        Frame::Blocks(_) => KIND_BLOCKS,
        Frame::Renew { token, incarnation } => {
            n.a = U64::new(*token);
            n.wide = U128::new(incarnation.0);
            KIND_RENEW
        }
        Frame::Renewed { token, refused } => {
            n.a = U64::new(*token);
            n.small = U32::new(*refused);
            KIND_RENEWED
        }
        Frame::ChangedAsk {
            token,
            volume,
            group,
        } => {
            n.a = U64::new(*token);
            n.b = U64::new(u64::from(volume.0));
            n.c = U64::new(*group);
            KIND_CHANGED_ASK
        }
        Frame::Changed(_) => KIND_CHANGED,
        Frame::ResyncAsk {
            token,
            staged,
            committed,
        } => {
            n.a = U64::new(*token);
            n.b = U64::new(staged.epoch.0);
            n.c = U64::new(staged.seq.0);
            n.d = U64::new(committed.0);
            KIND_RESYNC_ASK
        }
        Frame::ResyncFrom(_) => KIND_RESYNC_FROM,
        Frame::Staged {
            epoch,
            seq,
            left_bytes,
            total_bytes,
        } => {
            n.a = U64::new(epoch.0);
            n.b = U64::new(seq.0);
            n.c = U64::new(*left_bytes);
            n.d = U64::new(*total_bytes);
            KIND_STAGED
        }
    };
    let body_bytes = match frame {
        Frame::Report(report) => report::encode(report, body),
        Frame::Config(told) | Frame::Invite(told) => told::encode(told, body),
        Frame::Fence(fence) => fence::encode(fence, body),
        Frame::Prepare { token, volumes } => volumes::encode(*token, volumes, body),
        Frame::Blocks(blocks) => resync::encode_blocks(blocks, body),
        Frame::Changed(changed) => resync::encode_changed(changed, body),
        Frame::ResyncFrom(from) => resync::encode_from(from, body),
        Frame::Compare(compare) => compare::encode(compare, body),
        Frame::Compared(compared) => compare::encode_answer(compared, body),
        Frame::Verify(verify) => verify::encode(verify, body),
        _ => {
            body[..size_of::<RawNumbers>()].copy_from_slice(n.as_bytes());
            size_of::<RawNumbers>()
        }
    };
    let mut raw = RawHeader {
        magic: U32::new(MAGIC),
        kind: U16::new(kind),
        body_bytes: U16::new(u16::try_from(body_bytes).expect("a body has at most 4096 bytes")),
        batch_blocks: U32::new(batch_blocks),
        body_crc: U32::new(crc32fast::hash(&body[..body_bytes])),
        reserved: [0; 12],
        header_crc: U32::new(0),
    };
    raw.header_crc = U32::new(crc32fast::hash(&raw.as_bytes()[..FRAME_HEADER_BYTES - 4]));
    header.copy_from_slice(raw.as_bytes());
    FRAME_HEADER_BYTES + body_bytes
}

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

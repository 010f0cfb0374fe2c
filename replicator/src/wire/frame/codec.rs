//! Frames as bytes: header and body are read and written here, whatever is longer than a few numbers beside it.

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::*;

pub(super) const MAGIC: u32 = 0x4d_46_50_52; // "RPFM"

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
pub(super) fn epoch(n: u64) -> Result<Epoch, FrameError> {
    Epoch::checked(n).ok_or(FrameError::Field)
}

/// A field that must be a sequence number.
pub(super) fn seq(n: u64) -> Result<Seq, FrameError> {
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

pub(super) fn node_from_wire(byte: u8) -> Result<Option<NodeId>, FrameError> {
    match byte {
        NOBODY => Ok(None),
        n if usize::from(n) < NODES_MAX => Ok(Some(NodeId(n))),
        _ => Err(FrameError::Field),
    }
}

pub(super) fn node_to_wire(node: Option<NodeId>) -> u8 {
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

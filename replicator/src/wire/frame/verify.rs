//! The frames in which nodes compare what is known of their blocks: checksums, never data.

use std::mem::offset_of;

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BODY_BYTES_MAX, FRAME_HEADER_BYTES, FrameError, seq};
use crate::store::sums::{BlockSum, PAGE_BLOCKS};
use crate::types::*;

pub(super) const KIND_ASK: u16 = 41;
pub(super) const KIND_CHECKED: u16 = 42;
pub(super) const KIND_MEND: u16 = 43;
pub(super) const KIND_VERIFIED: u16 = 44;

/// The most blocks that one answer is about: a page of the table of checksums.
pub const CHECKED_BLOCKS_MAX: usize = PAGE_BLOCKS as usize;

/// So many bad blocks of a page are named one by one.
pub const BAD_NAMED_MAX: usize = 8;

/// What nodes say to each other while they verify.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VerifyFrame {
    /// Look at a page, and say what is known of it. Answered by [`VerifyFrame::Checked`].
    Ask(CheckAsk),
    /// This is known.
    Checked(Box<Checked>),
    /// Your copy of a block is not what it should be: have another one.
    Mend(Mend),
    /// A verification that this node ran is over.
    Verified(Verified),
}

/// A question about a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckAsk {
    /// Comes back in the answer.
    pub token: u64,
    /// The volume.
    pub volume: VolumeId,
    /// Which page of it.
    pub page: u32,
    /// The answer is to be that of this record's image, if the table has not gone past it; of any if it is 0.
    pub as_of: Seq,
    /// All its blocks are to be read, and compared with their sums.
    pub read: bool,
    /// What is bad is to be mended before the answer.
    pub repair: bool,
    /// Every sum is wanted, not only what they come to.
    pub sums: bool,
}

/// What a node knows of a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    /// From the question.
    pub token: u64,
    /// The table of sums is as of this record.
    pub as_of: Seq,
    /// What the page's sums come to.
    pub digest: u64,
    /// How many blocks it has; 0 if the node can not tell anything of it now.
    pub blocks: u16,
    /// Blocks of which nothing is known.
    pub unknown: u16,
    /// Blocks that the store gave back otherwise than they were written.
    pub bad: u16,
    /// Those of them that are bad still.
    pub left: u16,
    /// The first of the bad ones, counted from the page's first block.
    pub named: ArrayVec<u16, BAD_NAMED_MAX>,
    /// The sums, if they were asked for and the table was as of the record that was named.
    pub sums: ArrayVec<BlockSum, CHECKED_BLOCKS_MAX>,
}

/// A block whose sum differs from that of the right copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mend {
    /// The volume.
    pub volume: VolumeId,
    /// The block.
    pub block: u64,
    /// By the image of this record.
    pub as_of: Seq,
    /// The sum of the right copy.
    pub sum: BlockSum,
}

/// What a verification came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Bytes of the volumes that were compared.
    pub bytes: u64,
    /// Bytes that went over the wire for it.
    pub wire_bytes: u64,
    /// Blocks of stores that were not what was recorded of them.
    pub bad: u64,
    /// Blocks of which the nodes had recorded different things, or one of them nothing.
    pub differing: u64,
    /// Blocks of either kind that are as before.
    pub left: u64,
    /// Nodes that were not compared in whole, by their number.
    pub missed: u8,
    /// What was found was to be mended.
    pub repair: bool,
    /// It came to its end.
    pub finished: bool,
}

impl Verified {
    /// Whether all copies are known to be equal and sound.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.finished && self.left == 0 && self.missed == 0
    }
}

impl VerifyFrame {
    pub(super) fn kind(&self) -> u16 {
        match self {
            Self::Ask(_) => KIND_ASK,
            Self::Checked(_) => KIND_CHECKED,
            Self::Mend(_) => KIND_MEND,
            Self::Verified(_) => KIND_VERIFIED,
        }
    }

    /// Bytes that it takes on the wire.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        let body = match self {
            Self::Ask(_) => size_of::<RawAsk>(),
            Self::Checked(checked) => size_of::<RawChecked>() + 4 * checked.sums.len(),
            Self::Mend(_) => size_of::<RawMend>(),
            Self::Verified(_) => size_of::<RawVerified>(),
        };
        (FRAME_HEADER_BYTES + body) as u64
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawAsk {
    token: U64,
    as_of: U64,
    page: U32,
    volume: U16,
    flags: u8,
    reserved: u8,
}
const _: () = assert!(size_of::<RawAsk>() == 24);

const FLAG_READ: u8 = 1;
const FLAG_REPAIR: u8 = 2;
const FLAG_SUMS: u8 = 4;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawChecked {
    token: U64,
    as_of: U64,
    digest: U64,
    blocks: U16,
    unknown: U16,
    bad: U16,
    left: U16,
    sums: U16,
    named: [U16; BAD_NAMED_MAX],
    named_count: u8,
    reserved: [u8; 5],
}
const _: () = assert!(size_of::<RawChecked>() == 56);
const _: () = {
    assert!(offset_of!(RawChecked, blocks) == 24);
    assert!(offset_of!(RawChecked, sums) == 32);
    assert!(offset_of!(RawChecked, named) == 34);
    assert!(offset_of!(RawChecked, named_count) == 50);
};
const _: () = assert!(size_of::<RawChecked>() + 4 * CHECKED_BLOCKS_MAX <= BODY_BYTES_MAX);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawMend {
    block: U64,
    as_of: U64,
    sum: U32,
    volume: U16,
    reserved: [u8; 2],
}
const _: () = assert!(size_of::<RawMend>() == 24);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawVerified {
    bytes: U64,
    wire_bytes: U64,
    bad: U64,
    differing: U64,
    left: U64,
    missed: u8,
    flags: u8,
    reserved: [u8; 6],
}
const _: () = assert!(size_of::<RawVerified>() == 48);

const FLAG_FINISHED: u8 = 1;
const FLAG_REPAIRED: u8 = 2;

pub(super) fn decode(kind: u16, body: &[u8]) -> Result<VerifyFrame, FrameError> {
    Ok(match kind {
        KIND_ASK => {
            let raw = RawAsk::read_from_bytes(body).map_err(|_| FrameError::Length)?;
            if raw.flags & !(FLAG_READ | FLAG_REPAIR | FLAG_SUMS) != 0 {
                return Err(FrameError::Field);
            }
            VerifyFrame::Ask(CheckAsk {
                token: raw.token.get(),
                volume: VolumeId(raw.volume.get()),
                page: raw.page.get(),
                as_of: seq(raw.as_of.get())?,
                read: raw.flags & FLAG_READ != 0,
                repair: raw.flags & FLAG_REPAIR != 0,
                sums: raw.flags & FLAG_SUMS != 0,
            })
        }
        KIND_CHECKED => VerifyFrame::Checked(Box::new(decode_checked(body)?)),
        KIND_MEND => {
            let raw = RawMend::read_from_bytes(body).map_err(|_| FrameError::Length)?;
            VerifyFrame::Mend(Mend {
                volume: VolumeId(raw.volume.get()),
                block: raw.block.get(),
                as_of: seq(raw.as_of.get())?,
                sum: BlockSum::from_wire(raw.sum.get()),
            })
        }
        KIND_VERIFIED => {
            let raw = RawVerified::read_from_bytes(body).map_err(|_| FrameError::Length)?;
            if raw.flags & !(FLAG_FINISHED | FLAG_REPAIRED) != 0 {
                return Err(FrameError::Field);
            }
            VerifyFrame::Verified(Verified {
                bytes: raw.bytes.get(),
                wire_bytes: raw.wire_bytes.get(),
                bad: raw.bad.get(),
                differing: raw.differing.get(),
                left: raw.left.get(),
                missed: raw.missed,
                repair: raw.flags & FLAG_REPAIRED != 0,
                finished: raw.flags & FLAG_FINISHED != 0,
            })
        }
        other => return Err(FrameError::Kind(other)),
    })
}

fn decode_checked(body: &[u8]) -> Result<Checked, FrameError> {
    let (raw, rest) = RawChecked::ref_from_prefix(body).map_err(|_| FrameError::Length)?;
    let (blocks, sums) = (raw.blocks.get(), usize::from(raw.sums.get()));
    if sums > CHECKED_BLOCKS_MAX || rest.len() != 4 * sums {
        return Err(FrameError::Length);
    }
    let counts = [raw.unknown.get(), raw.bad.get()];
    let named = raw.named.get(..usize::from(raw.named_count));
    let named: ArrayVec<u16, BAD_NAMED_MAX> = named
        .ok_or(FrameError::Field)?
        .iter()
        .map(|n| n.get())
        .collect();
    let fits = usize::from(blocks) <= CHECKED_BLOCKS_MAX
        && counts.iter().all(|&n| n <= blocks)
        && raw.left.get() <= raw.bad.get()
        && named.iter().all(|&n| n < blocks)
        && (sums == 0 || sums == usize::from(blocks));
    if !fits {
        return Err(FrameError::Field);
    }
    let sums = <[U32]>::ref_from_bytes(rest).map_err(|_| FrameError::Length)?;
    Ok(Checked {
        token: raw.token.get(),
        as_of: seq(raw.as_of.get())?,
        digest: raw.digest.get(),
        blocks,
        unknown: raw.unknown.get(),
        bad: raw.bad.get(),
        left: raw.left.get(),
        named,
        sums: sums.iter().map(|s| BlockSum::from_wire(s.get())).collect(),
    })
}

pub(super) fn encode(frame: &VerifyFrame, out: &mut [u8]) -> usize {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    match frame {
        VerifyFrame::Ask(ask) => put(
            out,
            &RawAsk {
                token: U64::new(ask.token),
                as_of: U64::new(ask.as_of.0),
                page: U32::new(ask.page),
                volume: U16::new(ask.volume.0),
                flags: flag(ask.read, FLAG_READ)
                    | flag(ask.repair, FLAG_REPAIR)
                    | flag(ask.sums, FLAG_SUMS),
                reserved: 0,
            },
        ),
        VerifyFrame::Checked(checked) => encode_checked(checked, out),
        VerifyFrame::Mend(mend) => put(
            out,
            &RawMend {
                block: U64::new(mend.block),
                as_of: U64::new(mend.as_of.0),
                sum: U32::new(mend.sum.to_wire()),
                volume: U16::new(mend.volume.0),
                reserved: [0; 2],
            },
        ),
        VerifyFrame::Verified(verified) => put(
            out,
            &RawVerified {
                bytes: U64::new(verified.bytes),
                wire_bytes: U64::new(verified.wire_bytes),
                bad: U64::new(verified.bad),
                differing: U64::new(verified.differing),
                left: U64::new(verified.left),
                missed: verified.missed,
                flags: flag(verified.finished, FLAG_FINISHED)
                    | flag(verified.repair, FLAG_REPAIRED),
                reserved: [0; 6],
            },
        ),
    }
}

fn encode_checked(checked: &Checked, out: &mut [u8]) -> usize {
    let mut named = [U16::new(0); BAD_NAMED_MAX];
    for (raw, n) in named.iter_mut().zip(&checked.named) {
        *raw = U16::new(*n);
    }
    let mut at = put(
        out,
        &RawChecked {
            token: U64::new(checked.token),
            as_of: U64::new(checked.as_of.0),
            digest: U64::new(checked.digest),
            blocks: U16::new(checked.blocks),
            unknown: U16::new(checked.unknown),
            bad: U16::new(checked.bad),
            left: U16::new(checked.left),
            sums: U16::new(u16::try_from(checked.sums.len()).expect("at most 896")),
            named,
            named_count: u8::try_from(checked.named.len()).expect("at most 8"),
            reserved: [0; 5],
        },
    );
    for sum in &checked.sums {
        out[at..at + 4].copy_from_slice(U32::new(sum.to_wire()).as_bytes());
        at += 4;
    }
    at
}

fn put<T: IntoBytes + Immutable>(out: &mut [u8], raw: &T) -> usize {
    let bytes = raw.as_bytes();
    out[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

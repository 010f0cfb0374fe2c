//! The bodies of the frames with which a node in resync compares blocks: it says what it has, and is given what differs.

use std::mem::offset_of;

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::resync::ASKED_BLOCKS_MAX;
use super::{BODY_BYTES_MAX, FrameError, seq};
use crate::store::block_set::BlockSet;
use crate::store::sums::BlockSum;
use crate::types::*;

/// A question for blocks of which the asker has something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    /// Comes back in the answer.
    pub token: u64,
    /// The volume.
    pub volume: VolumeId,
    /// The first block.
    pub block: u64,
    /// What the asker has of each block from that one on, for sure; [`BlockSum::UNKNOWN`] if it wants it anyway.
    pub sums: ArrayVec<BlockSum, ASKED_BLOCKS_MAX>,
}

/// The newest contents of a range of blocks, compared with what the asker has. The blocks that are given follow, in their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compared {
    /// From the question.
    pub token: u64,
    /// The newest record that may have changed the groups in which the range lies.
    pub changed: Seq,
    /// Everything through this record is in the contents, if it is about these blocks.
    pub through: Seq,
    /// The sums of the blocks, in order; empty if the node can not give them.
    pub sums: ArrayVec<BlockSum, ASKED_BLOCKS_MAX>,
    /// Which of them are given. Of the others the sum is what the asker said, or they are all zeroes, or they are lost.
    pub given: BlockSet,
    /// Of which of the others no good copy is within reach: only the sum is known.
    pub lost: BlockSet,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawCompare {
    token: U64,
    block: U64,
    volume: U16,
    count: U16,
    reserved: [u8; 4],
}
const _: () = assert!(size_of::<RawCompare>() == 24);
const _: () = {
    assert!(offset_of!(RawCompare, block) == 8);
    assert!(offset_of!(RawCompare, volume) == 16);
    assert!(offset_of!(RawCompare, count) == 18);
};
const _: () = assert!(size_of::<RawCompare>() + 4 * ASKED_BLOCKS_MAX <= BODY_BYTES_MAX);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawCompared {
    token: U64,
    changed: U64,
    through: U64,
    count: U16,
    reserved: [u8; 6],
    given: [U64; ASKED_BLOCKS_MAX / 64],
    lost: [U64; ASKED_BLOCKS_MAX / 64],
}
const _: () = assert!(size_of::<RawCompared>() == 96);
const _: () = {
    assert!(offset_of!(RawCompared, changed) == 8);
    assert!(offset_of!(RawCompared, through) == 16);
    assert!(offset_of!(RawCompared, count) == 24);
    assert!(offset_of!(RawCompared, given) == 32);
    assert!(offset_of!(RawCompared, lost) == 64);
};
const _: () = assert!(size_of::<RawCompared>() + 4 * ASKED_BLOCKS_MAX <= BODY_BYTES_MAX);

type Sums = ArrayVec<BlockSum, ASKED_BLOCKS_MAX>;

fn sums(count: u16, rest: &[u8]) -> Result<Sums, FrameError> {
    let count = usize::from(count);
    if count > ASKED_BLOCKS_MAX || rest.len() != 4 * count {
        return Err(FrameError::Length);
    }
    let raw = <[U32]>::ref_from_bytes(rest).map_err(|_| FrameError::Length)?;
    Ok(raw.iter().map(|s| BlockSum::from_wire(s.get())).collect())
}

fn put(sums: &Sums, out: &mut [u8], mut at: usize) -> usize {
    for sum in sums {
        out[at..at + 4].copy_from_slice(U32::new(sum.to_wire()).as_bytes());
        at += 4;
    }
    at
}

fn count(sums: &Sums) -> U16 {
    U16::new(u16::try_from(sums.len()).expect("at most 256"))
}

pub(super) fn decode(body: &[u8]) -> Result<Compare, FrameError> {
    let (raw, rest) = RawCompare::ref_from_prefix(body).map_err(|_| FrameError::Length)?;
    Ok(Compare {
        token: raw.token.get(),
        volume: VolumeId(raw.volume.get()),
        block: raw.block.get(),
        sums: sums(raw.count.get(), rest)?,
    })
}

pub(super) fn encode(compare: &Compare, out: &mut [u8]) -> usize {
    let raw = RawCompare {
        token: U64::new(compare.token),
        block: U64::new(compare.block),
        volume: U16::new(compare.volume.0),
        count: count(&compare.sums),
        reserved: [0; 4],
    };
    let at = size_of::<RawCompare>();
    out[..at].copy_from_slice(raw.as_bytes());
    put(&compare.sums, out, at)
}

fn set(words: &[U64]) -> BlockSet {
    let mut set = BlockSet::default();
    for (word, at) in words.iter().zip(0u32..) {
        for bit in (0..64).filter(|bit| word.get() >> bit & 1 == 1) {
            set.add(64 * at + bit, 1);
        }
    }
    set
}

fn words(set: BlockSet) -> [U64; ASKED_BLOCKS_MAX / 64] {
    let mut words = [0u64; ASKED_BLOCKS_MAX / 64];
    for n in set.iter() {
        words[n as usize / 64] |= 1 << (n % 64);
    }
    words.map(U64::new)
}

/// Reads an answer that so many blocks follow.
pub(super) fn decode_answer(body: &[u8], blocks: u32) -> Result<Compared, FrameError> {
    let (raw, rest) = RawCompared::ref_from_prefix(body).map_err(|_| FrameError::Length)?;
    let compared = Compared {
        token: raw.token.get(),
        changed: seq(raw.changed.get())?,
        through: seq(raw.through.get())?,
        sums: sums(raw.count.get(), rest)?,
        given: set(&raw.given),
        lost: set(&raw.lost),
    };
    let (given, lost) = (compared.given, compared.lost);
    let within = |set: BlockSet| set.iter().all(|n| (n as usize) < compared.sums.len());
    let apart = lost.iter().all(|n| !given.has(n));
    if !within(given) || !within(lost) || !apart || given.iter().count() != blocks as usize {
        return Err(FrameError::Length);
    }
    let says = |n: u32| ![BlockSum::UNKNOWN, BlockSum::ZERO].contains(&compared.sums[n as usize]);
    if !lost.iter().all(says) {
        return Err(FrameError::Field);
    }
    Ok(compared)
}

pub(super) fn encode_answer(compared: &Compared, out: &mut [u8]) -> usize {
    let raw = RawCompared {
        token: U64::new(compared.token),
        changed: U64::new(compared.changed.0),
        through: U64::new(compared.through.0),
        count: count(&compared.sums),
        reserved: [0; 6],
        given: words(compared.given),
        lost: words(compared.lost),
    };
    let at = size_of::<RawCompared>();
    out[..at].copy_from_slice(raw.as_bytes());
    put(&compared.sums, out, at)
}

//! Clients: each keeps some requests going at whichever node lets it in.

use std::ops::Range;

use crate::oracle::UNITS_PER_BLOCK;
use crate::rng::Rng;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write { owned: bool },
    Zero { may_deallocate: bool },
    Flush,
}

/// A request that a client wants, or has, under way.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) client: Option<usize>,
    pub(crate) kind: Kind,
    pub(crate) volume: usize,
    pub(crate) units: Range<u64>,
    pub(crate) stamp: u64,
    pub(crate) asked: u64,
    pub(crate) node: usize,
    /// The core has it.
    pub(crate) handed_in: bool,
    /// With a flush the first blocks are mapped: which of them the core calls zeroes, and on which the store has the last word.
    pub(crate) map: Vec<Mapped>,
}

/// What the core says of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mapped {
    Zeroes,
    Anything,
    AsStored,
}

/// What a client does.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) volume: usize,
    pub(crate) depth: usize,
    /// The mean pause between requests, in nanoseconds.
    pub(crate) pause: u64,
    pub(crate) under_way: usize,
    pub(crate) stopped: bool,
}

/// A request at random on a volume of so many blocks.
pub(crate) fn draw(rng: &mut Rng, blocks: u64, big_percent: u64) -> (Kind, Range<u64>) {
    let dice = rng.below(100);
    let big = rng.chance(big_percent);
    let span = if big {
        rng.between(16, 255)
    } else {
        rng.between(1, 5)
    }
    .min(blocks - 1);
    // Most of it happens in the first blocks, so that requests meet each other.
    let reach = if rng.chance(70) && !big { 12 } else { blocks };
    let start = rng
        .below((reach - span.min(reach - 1)).max(1))
        .min(blocks - span);
    let mut units = start * UNITS_PER_BLOCK..(start + span) * UNITS_PER_BLOCK;
    if rng.chance(40) {
        units.start += rng.below(UNITS_PER_BLOCK);
        units.end -= rng.below(UNITS_PER_BLOCK);
        if units.start >= units.end {
            units.end = units.start + 1;
        }
    }
    let kind = match dice {
        0..=24 => Kind::Read,
        25..=34 => Kind::Zero {
            may_deallocate: rng.chance(50),
        },
        35..=36 => Kind::Flush,
        _ => Kind::Write {
            owned: big || rng.chance(15),
        },
    };
    (kind, units)
}

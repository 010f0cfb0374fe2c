//! What clients may see. Every unit of a volume is a register, and every history of it must be linearizable: a write
//! that was answered is never lost, a value once read is never taken back, nothing appears out of nowhere.
//!
//! The judgement is Gibbons and Korach's (1997) for registers with unique values: all operations of one value span a
//! zone; two forward zones may not overlap, and no backward zone may lie within a forward one. Zeroes are not unique, so
//! a read of zeroes is only compared with what must lie between it and each write of zeroes.

use std::collections::BTreeMap;
use std::ops::Range;

use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64};

/// Where the units of a block begin. Odd on purpose.
const CUTS: [u64; 4] = [0, 1000, 1009, 3333];
pub(crate) const UNITS_PER_BLOCK: u64 = CUTS.len() as u64;

/// The byte at which a unit begins.
pub(crate) fn unit_offset(unit: u64) -> u64 {
    let cut = usize::try_from(unit % UNITS_PER_BLOCK).expect("below 4");
    unit / UNITS_PER_BLOCK * BLOCK_BYTES_U64 + CUTS[cut]
}

fn filler(stamp: u64, unit: u64) -> u8 {
    let mixed = (stamp ^ unit.wrapping_mul(0x9e37_79b9)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed >> 56) as u8 | 1
}

/// The bytes that write `stamp` puts into units.
pub(crate) fn content(stamp: u64, units: Range<u64>) -> Vec<u8> {
    let begin = unit_offset(units.start);
    let at = |unit| usize::try_from(unit_offset(unit) - begin).expect("1 MiB");
    let mut out = Vec::with_capacity(at(units.end));
    for unit in units {
        out.extend_from_slice(&stamp.to_le_bytes());
        out.resize(at(unit + 1), filler(stamp, unit));
    }
    out
}

/// The stamp in a unit's bytes; 0 for zeroes.
fn stamp_of(bytes: &[u8], unit: u64) -> Result<u64, String> {
    let (head, rest) = bytes.split_at(8);
    let stamp = u64::from_le_bytes(head.try_into().expect("8 bytes"));
    let fill = if stamp == 0 { 0 } else { filler(stamp, unit) };
    // Without a way out in the inner loop it is done many bytes at a time.
    let differs = |chunk: &[u8]| chunk.iter().fold(0, |acc, &b| acc | (b ^ fill)) != 0;
    if !rest.chunks(256).any(differs) {
        Ok(stamp)
    } else {
        Err(format!(
            "unit {unit} holds torn or foreign bytes, stamp {stamp}"
        ))
    }
}

/// The stamps in a whole block.
pub(crate) fn stamps_of_block(bytes: &[u8], block: u64) -> Result<Vec<u64>, String> {
    (block * UNITS_PER_BLOCK..(block + 1) * UNITS_PER_BLOCK)
        .map(|unit| {
            let base = block * BLOCK_BYTES_U64;
            let at = usize::try_from(unit_offset(unit) - base).expect("in a block");
            let end = usize::try_from(unit_offset(unit + 1) - base).expect("in a block");
            stamp_of(&bytes[at..end.min(BLOCK_BYTES)], unit)
        })
        .collect()
}

const NEVER: u64 = u64::MAX;

/// A write, or a zeroing.
#[derive(Debug)]
struct Write {
    volume: usize,
    units: Range<u64>,
    zero: bool,
    asked: u64,
    /// Answered, or decided by a later epoch.
    ended: u64,
    acknowledged: bool,
    /// The epoch in which its outcome became unknown.
    doubt: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    /// The earliest end of an operation of this value.
    first_end: u64,
    /// The latest begin of one.
    last_begin: u64,
    asked: u64,
    /// Shown when it is out of place.
    _stamp: u64,
}

/// The zones of a unit, and the zeroings.
type History<'a> = (Vec<Zone>, Vec<&'a Write>);

/// All that clients did.
#[derive(Default)]
pub(crate) struct Oracle {
    writes: BTreeMap<u64, Write>,
    /// Values read, by volume and unit: stamp, first end and last begin of the reads.
    reads: BTreeMap<(usize, u64), BTreeMap<u64, (u64, u64)>>,
    zero_reads: BTreeMap<(usize, u64), Vec<(u64, u64)>>,
    next: u64,
    /// When a node went on alone with what it had, and the newest write that may be in that.
    forked: Option<(u64, u64)>,
    /// What units are found to have had then.
    bases: BTreeMap<(usize, u64), u64>,
    pub(crate) acknowledged: u64,
    pub(crate) read: u64,
}

/// Writes of a world that has forked are numbered from so much further on.
const FORK_STAMPS: u64 = 1 << 40;

impl Oracle {
    /// The history that begins when a node goes on alone. Which of the writes before are in it is not known here, but that each unit
    /// has one value to begin with.
    pub(crate) fn fork(&self, now: u64) -> Self {
        Self {
            next: self.next + FORK_STAMPS,
            forked: Some((now, self.next)),
            ..Self::default()
        }
    }

    /// A write from before the fork was read; whether that can be.
    fn base(&mut self, key: (usize, u64), stamp: u64) -> Result<(), String> {
        let (volume, unit) = key;
        let Some((_, newest)) = self.forked.filter(|(_, newest)| stamp <= *newest) else {
            return Err(format!(
                "unit {unit} of volume {volume} reads as write {stamp}, which never was"
            ));
        };
        let base = *self.bases.entry(key).or_insert(stamp);
        if base != stamp {
            return Err(format!(
                "unit {unit} of volume {volume} began as write {base}, and reads as {stamp}, both from before {newest}"
            ));
        }
        Ok(())
    }

    /// A write is asked for; its stamp.
    pub(crate) fn write(&mut self, volume: usize, units: Range<u64>, zero: bool, now: u64) -> u64 {
        self.next += 1;
        let write = Write {
            volume,
            units,
            zero,
            asked: now,
            ended: NEVER,
            acknowledged: false,
            doubt: None,
        };
        self.writes.insert(self.next, write);
        self.next
    }

    pub(crate) fn answered(&mut self, stamp: u64, now: u64) {
        let write = self.writes.get_mut(&stamp).expect("it was asked for");
        write.ended = now;
        write.acknowledged = true;
        self.acknowledged += 1;
    }

    /// The core never saw it.
    pub(crate) fn never_happened(&mut self, stamp: u64) {
        self.writes.remove(&stamp);
    }

    /// It may have happened, or happen until an epoch above `epoch` begins.
    pub(crate) fn in_doubt(&mut self, stamp: u64, epoch: u64) {
        self.writes.get_mut(&stamp).expect("it was asked for").doubt = Some(epoch);
    }

    /// An epoch serves: whatever older ones left open is decided.
    pub(crate) fn epoch_serves(&mut self, epoch: u64, now: u64) {
        for write in self.writes.values_mut() {
            if write.doubt.is_some_and(|d| d < epoch) && write.ended == NEVER {
                write.ended = now;
            }
        }
    }

    /// A read was answered with `bytes`.
    pub(crate) fn was_read(
        &mut self,
        volume: usize,
        units: Range<u64>,
        bytes: &[u8],
        asked: u64,
        now: u64,
    ) -> Result<(), String> {
        let begin = unit_offset(units.start);
        self.read += 1;
        for unit in units {
            let at = usize::try_from(unit_offset(unit) - begin).expect("1 MiB");
            let end = usize::try_from(unit_offset(unit + 1) - begin).expect("1 MiB");
            let stamp = stamp_of(&bytes[at..end], unit)?;
            if stamp == 0 {
                let reads = self.zero_reads.entry((volume, unit)).or_default();
                reads.push((asked, now));
                continue;
            }
            let write = self
                .writes
                .get(&stamp)
                .filter(|w| w.volume == volume && w.units.contains(&unit));
            if write.is_none() {
                self.base((volume, unit), stamp)?;
            }
            let reads = self.reads.entry((volume, unit)).or_default();
            let zone = reads.entry(stamp).or_insert((now, asked));
            *zone = (zone.0.min(now), zone.1.max(asked));
        }
        Ok(())
    }

    /// Judges all histories.
    pub(crate) fn judge(&self) -> Result<(), String> {
        let mut by_unit: BTreeMap<(usize, u64), History<'_>> = BTreeMap::new();
        for (&stamp, write) in &self.writes {
            for unit in write.units.clone() {
                let key = (write.volume, unit);
                let read = self.reads.get(&key).and_then(|r| r.get(&stamp));
                let (zones, zeroes) = by_unit.entry(key).or_default();
                if write.zero {
                    zeroes.push(write);
                }
                if read.is_none() && !write.acknowledged {
                    continue; // It need never have happened.
                }
                let (end, begin) = read.copied().unwrap_or((NEVER, 0));
                zones.push(Zone {
                    first_end: end.min(write.ended),
                    last_begin: begin.max(write.asked),
                    asked: write.asked,
                    _stamp: stamp,
                });
            }
        }
        for (&key, stamp) in &self.bases {
            let (forked, _) = self.forked.expect("only then there are any");
            let read = self.reads.get(&key).and_then(|r| r.get(stamp));
            let (end, begin) = read.copied().unwrap_or((NEVER, 0));
            by_unit.entry(key).or_default().0.push(Zone {
                first_end: end.min(forked),
                last_begin: begin.max(1),
                asked: 1,
                _stamp: *stamp,
            });
        }
        for ((volume, unit), (zones, zeroes)) in &by_unit {
            judge_zones(zones).map_err(|e| format!("volume {volume} unit {unit}: {e}"))?;
            if let Some(reads) = self.zero_reads.get(&(*volume, *unit)) {
                judge_zeroes(zones, zeroes, reads)
                    .map_err(|e| format!("volume {volume} unit {unit}: {e}: {zones:?}"))?;
            }
        }
        Ok(())
    }
}

/// The largest second number of all pairs whose first is below (or at) some bound, by bound: sorted pairs of bound and maximum.
fn running_maximum(mut pairs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    pairs.sort_unstable();
    let mut most = 0;
    for (_, second) in &mut pairs {
        most = most.max(*second);
        *second = most;
    }
    pairs
}

/// Every read of zeroes needs a write of zeroes, or the beginning, that was asked for before the read was answered and after which no
/// other value must have come: none that was written later and was there before the read was asked for.
fn judge_zeroes(zones: &[Zone], zeroes: &[&Write], reads: &[(u64, u64)]) -> Result<(), String> {
    let newest_by_end = running_maximum(zones.iter().map(|z| (z.first_end, z.asked)).collect());
    let end_by_asked = running_maximum(zeroes.iter().map(|w| (w.asked, w.ended)).collect());
    for &(asked, answered) in reads {
        let there = newest_by_end.partition_point(|&(end, _)| end < asked);
        let newest = there.checked_sub(1).map_or(0, |i| newest_by_end[i].1);
        let begun = end_by_asked.partition_point(|&(at, _)| at <= answered);
        let zeroed = begun.checked_sub(1).map_or(0, |i| end_by_asked[i].1);
        if newest > zeroed {
            return Err(format!(
                "zeroes read at {asked}..{answered} are older than what was there"
            ));
        }
    }
    Ok(())
}

fn judge_zones(zones: &[Zone]) -> Result<(), String> {
    let mut forward: Vec<Zone> = zones
        .iter()
        .copied()
        .filter(|z| z.first_end < z.last_begin)
        .collect();
    forward.sort_by_key(|z| z.first_end);
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_begin {
            return Err(format!("a value came back: {pair:?}"));
        }
    }
    for zone in zones {
        if zone.first_end < zone.asked {
            return Err(format!("read before it was written: {zone:?}"));
        }
        if zone.first_end < zone.last_begin {
            continue;
        }
        // Forward zones do not overlap, so the last that begins before this one also ends last of those.
        let before = forward.partition_point(|f| f.first_end < zone.last_begin);
        if let Some(around) = before.checked_sub(1).map(|i| forward[i])
            && zone.first_end < around.last_begin
        {
            return Err(format!("lost: {zone:?} lies within {around:?}"));
        }
    }
    Ok(())
}

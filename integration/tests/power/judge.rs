//! Whether an image is one that a node may start from.

use std::collections::HashMap;

use nbd_server::reactor::record::tape::Part;
use replicator::journal::batch::Kind;
use replicator::journal::scan::Decision;
use replicator::recover::{Recovered, recover};
use replicator::store::sums::GROUP_BLOCKS;
use replicator::types::*;

use crate::cluster::{VOLUMES, config};
use crate::media::Reader;
use crate::truth::Truth;
use crate::walk::{RING_BLOCKS, Walk, ring};

/// What a node has after a cut, as far as others are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    /// The end of its log.
    pub(crate) tail: RecordId,
    /// How much of the log that came to be it holds.
    pub(crate) through: Seq,
}

/// What a node recovers from its disks.
pub(crate) fn recovered(node: usize, walk: &Walk) -> Result<Recovered, String> {
    let file = |part| Reader(walk.media.bytes(part));
    let (mut meta, mut journal) = (file(Part::Meta), file(Part::Journal));
    recover(
        &mut meta,
        &mut journal,
        &mut file(Part::Sums),
        &config(node),
    )
    .map_err(|error| error.to_string())
}

/// Judges what is on the disks of a node now, at a time when `nanos` was the last moment.
pub(crate) fn judge(
    node: usize,
    walk: &Walk,
    truth: &Truth,
    nanos: u64,
) -> Result<Verdict, String> {
    let found = recovered(node, walk)?;
    check_superblock(walk, &found)?;
    let through = check_log(walk, truth, &found)?;
    check_committed(truth, &found, nanos)?;
    let replay = replay(truth, &found, nanos);
    check_stores(walk, truth, &found, &replay)?;
    check_sums(truth, &found, &replay)?;
    let entries = &found.scanned.parts.entries;
    let tail = entries
        .last()
        .map_or(found.scanned.parts.start.id, |entry| entry.id());
    Ok(Verdict { tail, through })
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// The old one or the new one, and nothing that was said is forgotten.
fn check_superblock(walk: &Walk, found: &Recovered) -> Result<(), String> {
    let (durable, chosen) = (walk.version, &found.superblock);
    let newest = *walk.versions.keys().last().expect("there is the first");
    ensure(newest <= durable + 1, || {
        format!("superblock {newest} was begun when {durable} was the last that is durable")
    })?;
    ensure((durable..=newest).contains(&chosen.version), || {
        format!(
            "superblock {} of {durable}..={newest} was chosen",
            chosen.version
        )
    })?;
    ensure(walk.versions.get(&chosen.version) == Some(chosen), || {
        format!("superblock {} is not what was written", chosen.version)
    })?;
    ensure(chosen.promised >= walk.promised, || {
        format!(
            "promised {}, a peer was told {}",
            chosen.promised, walk.promised
        )
    })
}

/// A chain of what was written, with all that was durable; how much of the common log it holds.
fn check_log(walk: &Walk, truth: &Truth, found: &Recovered) -> Result<Seq, String> {
    let (scanned, superblock) = (&found.scanned, &found.superblock);
    let parts = &scanned.parts;
    ensure(
        scanned.end.decision != Decision::Damaged && scanned.damaged_until == RecordId::NONE,
        || {
            format!(
                "row {}: damaged until {} by a mere power cut",
                scanned.end.label, scanned.damaged_until
            )
        },
    )?;
    let applied = superblock.applied;
    ensure(
        applied.id == RecordId::NONE || truth.in_log(applied.checksum) == Some(applied.id.seq),
        || format!("applied {}, which is not in the log", applied.id),
    )?;
    let mut before = parts.start;
    for entry in &parts.entries {
        let Some((header, place)) = walk.submitted.get(&entry.checksum) else {
            return Err(format!("batch {} was never written", entry.id()));
        };
        ensure(*place == entry.position % RING_BLOCKS, || {
            format!("batch {} was written to another place", entry.id())
        })?;
        ensure(
            header.last_id() == entry.id()
                && header.prev_id() == before.id
                && header.prev_checksum == before.checksum
                && entry.position == before.position,
            || format!("{} does not follow {}", entry.id(), before.id),
        )?;
        before.id = entry.id();
        before.checksum = entry.checksum;
        before.position = entry.end();
    }
    // Together with the chain this is everything that was durable, and so everything that was acknowledged.
    if let Some(last) = walk.chain.last().map(|link| link.header) {
        let mut entries = parts.entries.iter();
        let there = entries.any(|entry| entry.checksum == last.checksum)
            || applied.checksum == last.checksum;
        ensure(there, || {
            format!(
                "{} was durable, the log ends with {} (row {}, applied {})",
                last.last_id(),
                before.id,
                scanned.end.label,
                applied.id
            )
        })?;
    }
    ensure(superblock.promised >= before.id.epoch, || {
        format!("promised {}, has {} (S2)", superblock.promised, before.id)
    })?;
    let names = parts.entries.iter().rev().map(|entry| entry.checksum);
    let through = names.filter_map(|name| truth.in_log(name)).next();
    Ok(through.unwrap_or(applied.id.seq))
}

fn check_committed(truth: &Truth, found: &Recovered, nanos: u64) -> Result<(), String> {
    let (committed, known) = (found.scanned.committed, found.superblock.committed);
    ensure(committed >= known, || {
        format!("{committed} is committed, the superblock says {known}")
    })?;
    let possible = truth.majority_at(nanos);
    ensure(committed <= possible, || {
        format!("{committed} is said to be committed, a majority has {possible}")
    })
}

/// What is on the disks, and what the journal has in its place.
struct Replay {
    /// The last record that is committed, as far as can be known.
    through: Seq,
    /// By block that one of the records after the floor changes: the place of its contents in the ring, `None` for zeroes.
    blocks: HashMap<(VolumeId, u64), Option<u64>>,
}

/// Goes through the records that follow what is applied, as far as they can be committed.
fn replay(truth: &Truth, found: &Recovered, nanos: u64) -> Replay {
    let parts = &found.scanned.parts;
    let most = truth.majority_at(nanos);
    let mut through = parts.applied.id.seq;
    let mut records = parts.descriptors.iter();
    let mut blocks = HashMap::new();
    for entry in &parts.entries[parts.applied_entries..] {
        let in_log = truth.in_log(entry.checksum).is_some();
        for (seq, record) in (entry.first.0..=entry.last.0).map(Seq).zip(&mut records) {
            if !in_log || seq > most {
                continue;
            }
            through = seq;
            for index in 0..record.blocks {
                let block = (record.volume, record.block + u64::from(index));
                let place = entry.position + u64::from(record.payload + index);
                match record.kind {
                    Kind::Write => blocks.insert(block, Some(place)),
                    Kind::Zero { .. } => blocks.insert(block, None),
                    Kind::Epoch | Kind::Membership | Kind::Demote | Kind::Volumes => None,
                };
            }
        }
    }
    Replay { through, blocks }
}

/// P3: with the records that follow what is applied, as far as they can be committed, replayed from the journal, the
/// stores are the replay of the log from its beginning.
fn check_stores(
    walk: &Walk,
    truth: &Truth,
    found: &Recovered,
    replay: &Replay,
) -> Result<(), String> {
    let Replay { through, blocks } = replay;
    let journal = walk.media.bytes(Part::Journal);
    for (volume, bytes) in (0..).map(VolumeId).zip(VOLUMES) {
        let store = walk.media.bytes(Part::Store(volume));
        for block in 0..bytes / BLOCK_BYTES_U64 {
            let wanted = truth.block(volume, block, *through);
            let same = match blocks.get(&(volume, block)) {
                Some(Some(place)) => ring(journal, *place, 1)[..] == *wanted,
                Some(None) => wanted.iter().all(|byte| *byte == 0),
                None => store[block as usize * BLOCK_BYTES..][..BLOCK_BYTES] == *wanted,
            };
            ensure(same, || {
                format!(
                    "block {block} of volume {volume} is not what records 1 to {through} make of it (applied {})",
                    found.scanned.parts.applied.id
                )
            })?;
        }
    }
    Ok(())
}

/// P6: no page of the table of checksums is lost by a mere power cut; the sum of each block that the journal does not have
/// newer is that of what the stores hold, and no group was changed later than is known.
fn check_sums(truth: &Truth, found: &Recovered, replay: &Replay) -> Result<(), String> {
    let (sums, lost) = (&found.sums, found.sums_found.lost);
    ensure(lost == 0, || format!("{lost} pages of checksums are lost"))?;
    let applied = found.scanned.parts.applied.id;
    for (volume, bytes) in (0..).map(VolumeId).zip(VOLUMES) {
        let blocks = bytes / BLOCK_BYTES_U64;
        for block in 0..blocks {
            let newer = replay.blocks.contains_key(&(volume, block));
            let sum = sums.sum(volume, block);
            ensure(
                newer || truth.is_sum(volume, block, replay.through, sum),
                || {
                    format!(
                        "{sum:?} is not the sum of block {block} of volume {volume} (applied {applied})"
                    )
                },
            )?;
        }
        for group in 0..sums.groups(volume) {
            let of_group = group * GROUP_BLOCKS..blocks.min((group + 1) * GROUP_BLOCKS);
            let last = of_group.map(|block| truth.changed(volume, block, applied.seq));
            let last = last.max().unwrap_or_default();
            // Where a page was torn nobody knows whether the version before it is the newest: its groups count as changed by
            // all that is applied. A change that is not known would be one that a peer is never told of.
            let changed = sums.changed(volume, group);
            ensure((last..=replay.through).contains(&changed), || {
                format!(
                    "group {group} of volume {volume} is said to be changed by record {changed}, and was by {last} (applied {applied})"
                )
            })?;
        }
    }
    Ok(())
}

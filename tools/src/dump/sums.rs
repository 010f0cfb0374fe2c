//! The table of checksums, and whether the stores are what it says.

use std::ops::Range;

use nbd_server::config::{self, Config, Node};
use replicator::journal::batch::{Descriptor, Kind};
use replicator::journal::scan::{Decision, scan};
use replicator::meta::superblock::Superblock;
use replicator::recover::BlockRead;
use replicator::store::sums::{BlockSum, Found, PageRead, SumTable, Table, file_bytes};
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64, Seq, VOLUMES_MAX, VolumeId};

use super::line::{self, Damage, Line};
use super::{Disk, Out, reading};
use crate::Failure;

/// Blocks read at once.
const CHUNK_BLOCKS: u64 = 256;

/// Ranges of blocks of a volume that are shown one by one; of those that differ there may be very many.
const RANGES_MAX: usize = 100;

/// A volume, as the table has it.
struct Volume {
    id: VolumeId,
    name: String,
    bytes: u64,
}

/// Both tables of a node.
pub(super) struct Tables {
    volumes: Vec<Volume>,
    stores: SumTable,
    staged: SumTable,
}

/// Shows in what state the tables are; the sizes of the volumes are the superblock's, or else the config's.
pub(super) fn dump(
    disk: &mut Disk,
    config: &Config,
    superblock: Option<&Superblock>,
    out: &mut Out,
) -> Result<Tables, Failure> {
    let path = disk.path.display().to_string();
    out.line(Line::File {
        kind: "checksums",
        path: path.clone(),
        bytes: disk.bytes,
    })?;
    let named: Vec<(String, u64)> = match superblock {
        Some(superblock) => {
            let volumes = superblock.volumes.slots();
            volumes.map(|v| (v.name.to_string(), v.bytes)).collect()
        }
        None => {
            let volumes = config.volumes.iter();
            volumes.map(|v| (v.name.clone(), v.size_bytes)).collect()
        }
    };
    let volumes: Vec<Volume> = (0..)
        .map(VolumeId)
        .zip(named)
        .map(|(id, (name, bytes))| Volume { id, name, bytes })
        .collect();
    let needed = file_bytes(volumes.iter().map(|v| v.bytes));
    if disk.bytes < needed {
        out.line(Line::Damage(Damage {
            path: path.clone(),
            offset: disk.bytes,
            text: format!("the file was {needed} bytes long; it is cut short"),
        }))?;
    }
    let applied = superblock.map_or(Seq(0), |s| s.applied.id.seq);
    let mut load = |table| {
        let mut pages = Vec::new();
        let sizes = volumes.iter().map(|v| v.bytes);
        let loaded = SumTable::load_each(table, sizes, disk, applied, |page| pages.push(page));
        (loaded, pages)
    };
    let (stores, pages) = load(Table::Stores);
    show("stores", &volumes, &stores, &pages, &path, out)?;
    let (mut staged, pages) = load(Table::Staged);
    let of_others = |s: &Superblock| {
        let sizes = s.volumes.sizes().chain(std::iter::repeat(0));
        s.resync
            .is_none_or(|r| !sizes.take(r.sizes.len()).eq(r.sizes))
    };
    if superblock.is_some_and(of_others) {
        // What an earlier one left means nothing.
        let sizes = volumes.iter().map(|v| v.bytes);
        staged = SumTable::new(Table::Staged, sizes);
    } else if pages.iter().any(|page| page.found != Found::default()) {
        show("staged", &volumes, &staged, &pages, &path, out)?;
    }
    Ok(Tables {
        volumes,
        stores,
        staged,
    })
}

fn show(
    table: &'static str,
    volumes: &[Volume],
    loaded: &SumTable,
    pages: &[PageRead],
    path: &str,
    out: &mut Out,
) -> Result<(), Failure> {
    for volume in volumes.iter().filter(|v| v.bytes > 0) {
        let mut found = Found::default();
        let of_volume = || pages.iter().filter(|page| page.volume == volume.id);
        for page in of_volume() {
            found += page.found;
        }
        let groups = loaded.groups(volume.id);
        let changed = || (0..groups).map(|group| loaded.changed(volume.id, group));
        out.line(Line::Checksums(line::Checksums {
            table,
            volume: volume.name.clone(),
            pages: of_volume().count(),
            whole: found.whole,
            torn: found.doubtful,
            lost: found.lost,
            groups,
            groups_never_written: changed().filter(|&seq| seq == Seq(0)).count(),
            newest: changed().max().unwrap_or(Seq(0)).0,
        }))?;
        for page in of_volume().filter(|page| page.found.lost > 0) {
            let text = format!(
                "both versions of a page of volume {} are damaged, the other one is at byte {}: nothing is known of its \
                 blocks until they are written again",
                volume.name, page.slots[1]
            );
            // What is staged can be had again: a crash may leave such a page there.
            out.line(match table {
                "stores" => Line::Damage(Damage {
                    path: path.to_owned(),
                    offset: page.slots[0],
                    text,
                }),
                _ => Line::Note {
                    text: format!("{path} at byte {}: {text}", page.slots[0]),
                },
            })?;
        }
    }
    Ok(())
}

/// The blocks of which the stores do not have the last word.
struct Elsewhere {
    /// By volume, in order: ranges that records of the journal change, which may or may not be in the stores.
    unapplied: Vec<Vec<Range<u64>>>,
}

impl Elsewhere {
    fn of(superblock: &Superblock, journal: &mut Disk, out: &mut Out) -> Result<Self, Failure> {
        let scanned = scan(superblock, journal);
        let parts = &scanned.parts;
        let mut unapplied = vec![Vec::new(); VOLUMES_MAX];
        let data = |record: &&Descriptor| matches!(record.kind, Kind::Write | Kind::Zero { .. });
        for record in parts.descriptors.iter().filter(data) {
            if let Some(ranges) = unapplied.get_mut(usize::from(record.volume.0)) {
                ranges.push(record.block..record.block + u64::from(record.blocks));
            }
        }
        for ranges in &mut unapplied {
            *ranges = merged(std::mem::take(ranges));
        }
        if scanned.end.decision == Decision::Damaged {
            let text = "the journal is damaged: blocks that differ may be of records that are missing there";
            out.line(Line::Note { text: text.into() })?;
        }
        Ok(Self { unapplied })
    }

    fn has(&self, volume: VolumeId, block: u64) -> bool {
        let ranges = &self.unapplied[usize::from(volume.0)];
        let at = ranges.partition_point(|range| range.end <= block);
        ranges.get(at).is_some_and(|range| range.start <= block)
    }
}

/// The same blocks, in order and each once.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Reads the stores and compares each block with its sum, but for those that the journal or a resync has newer.
pub(super) fn verify(
    tables: &Tables,
    node: &Node,
    superblock: &Superblock,
    journal: &mut Disk,
    out: &mut Out,
) -> Result<(), Failure> {
    let elsewhere = Elsewhere::of(superblock, journal, out)?;
    for volume in tables.volumes.iter().filter(|v| v.bytes > 0) {
        let path = node.store_path(&config::Volume::named(&volume.name, volume.bytes));
        let mut store = Disk::open(&path)?;
        verify_volume(tables, volume, &elsewhere, &mut store, out)?;
        if out.gone {
            return Ok(());
        }
    }
    Ok(())
}

fn verify_volume(
    tables: &Tables,
    volume: &Volume,
    elsewhere: &Elsewhere,
    store: &mut Disk,
    out: &mut Out,
) -> Result<(), Failure> {
    let path = store.path.display().to_string();
    out.line(Line::File {
        kind: "store",
        path: path.clone(),
        bytes: store.bytes,
    })?;
    let blocks = volume.bytes / BLOCK_BYTES_U64;
    let mut counts = line::Verified {
        volume: volume.name.clone(),
        blocks,
        same: 0,
        skipped: 0,
        unknown: 0,
        differ: 0,
        unreadable: 0,
    };
    let mut faults = Faults::new(path);
    let mut chunk = Vec::new();
    for first in (0..blocks).step_by(CHUNK_BLOCKS as usize) {
        let count = CHUNK_BLOCKS.min(blocks - first);
        chunk.resize(count as usize * BLOCK_BYTES, 0);
        let whole = store.read(first * BLOCK_BYTES_U64, &mut chunk).is_ok();
        for (block, bytes) in (first..).zip(chunk.chunks_exact_mut(BLOCK_BYTES)) {
            let sum = tables.stores.sum(volume.id, block);
            let staged = tables.staged.sum(volume.id, block) != BlockSum::UNKNOWN;
            let skipped = staged || elsewhere.has(volume.id, block);
            let offset = block * BLOCK_BYTES_U64;
            let read = if whole {
                Ok(())
            } else {
                store.read(offset, bytes).map_err(reading)
            };
            match read {
                Err(text) => {
                    counts.unreadable += 1;
                    faults.add(block, format!("can not be read: {text}"), out)?;
                }
                Ok(()) if skipped => counts.skipped += 1,
                Ok(()) if sum == BlockSum::UNKNOWN => counts.unknown += 1,
                Ok(()) if sum.admits(volume.id, block, bytes) => counts.same += 1,
                Ok(()) => {
                    counts.differ += 1;
                    let text = "not what was recorded when it was written".to_owned();
                    faults.add(block, text, out)?;
                }
            }
        }
        if out.gone {
            return Ok(());
        }
    }
    faults.end(out)?;
    out.line(Line::Verified(counts))
}

/// What is wrong with a store, in ranges.
struct Faults {
    path: String,
    last: Option<(Range<u64>, String)>,
    ranges: usize,
}

impl Faults {
    fn new(path: String) -> Self {
        Self {
            path,
            last: None,
            ranges: 0,
        }
    }

    fn add(&mut self, block: u64, text: String, out: &mut Out) -> Result<(), Failure> {
        match &mut self.last {
            Some((range, same)) if range.end == block && *same == text => range.end += 1,
            _ => {
                self.flush(out)?;
                self.last = Some((block..block + 1, text));
            }
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Out) -> Result<(), Failure> {
        let Some((range, text)) = self.last.take() else {
            return Ok(());
        };
        self.ranges += 1;
        if self.ranges > RANGES_MAX {
            return Ok(());
        }
        let blocks = match range.end - range.start {
            1 => format!("block {}", range.start),
            count => format!("{count} blocks from block {} on", range.start),
        };
        out.line(Line::Damage(Damage {
            path: self.path.clone(),
            offset: range.start * BLOCK_BYTES_U64,
            text: format!("{blocks}: {text}"),
        }))
    }

    fn end(mut self, out: &mut Out) -> Result<(), Failure> {
        self.flush(out)?;
        match self.ranges.checked_sub(RANGES_MAX) {
            None | Some(0) => Ok(()),
            Some(more) => out.line(Line::Note {
                text: format!("and {more} more ranges of blocks of {}", self.path),
            }),
        }
    }
}

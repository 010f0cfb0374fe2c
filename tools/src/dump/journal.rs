//! The journal: its label, the log as `repld` would read it, where that ends and why, and what lies behind.

use std::collections::BTreeMap;

use replicator::journal::batch::{self, BATCH_BLOCKS_MAX, BatchFault, Header, Kind};
use replicator::journal::log::INFLIGHT_BLOCKS_MAX;
use replicator::journal::scan::{Decision, Seen, scan};
use replicator::meta::label;
use replicator::meta::superblock::Superblock;
use replicator::recover::BlockRead;
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64};

use super::line::{self, Damage, Line};
use super::meta::id;
use super::{Disk, Out, reading};
use crate::Failure;

/// The ring of a journal, on a disk.
struct Ring<'a> {
    disk: &'a mut Disk,
    blocks: u64,
    /// A part of the ring in memory, without the wrap: its first block and its bytes.
    part: (u64, Vec<u8>),
}

/// Blocks read at once.
const PART_BLOCKS: u64 = 1024;

impl Ring<'_> {
    fn offset(&self, position: u64) -> u64 {
        (1 + position % self.blocks) * BLOCK_BYTES_U64
    }

    /// One block; `Err` with the reason if it can not be read.
    fn block(&mut self, position: u64) -> Result<&[u8], String> {
        let at = position % self.blocks;
        let (from, bytes) = &self.part;
        let there = at >= *from && (at - from) * BLOCK_BYTES_U64 < bytes.len() as u64;
        if !there {
            let count = PART_BLOCKS.min(self.blocks - at);
            if self.fill(at, count).is_err() {
                // Where the disk fails, block by block.
                self.fill(at, 1)?;
            }
        }
        let begin =
            usize::try_from((at - self.part.0) * BLOCK_BYTES_U64).map_err(|e| e.to_string())?;
        Ok(&self.part.1[begin..begin + BLOCK_BYTES])
    }

    fn fill(&mut self, at: u64, count: u64) -> Result<(), String> {
        let length = usize::try_from(count * BLOCK_BYTES_U64).map_err(|e| e.to_string())?;
        let mut bytes = std::mem::take(&mut self.part.1);
        bytes.resize(length, 0);
        let offset = self.offset(at);
        let result = self.disk.read(offset, &mut bytes).map_err(reading);
        self.part = match result {
            Ok(()) => (at, bytes),
            Err(_) => (0, Vec::new()),
        };
        result
    }

    /// The batch that begins at a place, whole, and what is wrong with it.
    fn batch(&mut self, position: u64) -> Result<(Header, Vec<u8>, Option<BatchFault>), String> {
        let mut bytes = self.block(position)?.to_vec();
        let header = batch::read_header(&bytes).map_err(|fault| fault.to_string())?;
        for block in 1..u64::from(header.blocks().min(BATCH_BLOCKS_MAX)) {
            let next = self.block(position + block)?.to_vec();
            bytes.extend(next);
        }
        let fault = batch::verify(&bytes).err();
        Ok((header, bytes, fault))
    }
}

pub(super) fn dump(
    disk: &mut Disk,
    superblock: Option<&Superblock>,
    out: &mut Out,
) -> Result<(), Failure> {
    let path = disk.path.display().to_string();
    out.line(Line::File {
        kind: "journal",
        path: path.clone(),
        bytes: disk.bytes,
    })?;
    let damage = |offset, text: String| {
        Line::Damage(Damage {
            path: path.clone(),
            offset,
            text,
        })
    };
    let mut block = [0; BLOCK_BYTES];
    let label = disk.read(0, &mut block).map_err(reading);
    let label = label.and_then(|()| match superblock {
        Some(superblock) => label::check(superblock, &block).map_err(|error| error.to_string()),
        None => Ok(()),
    });
    match label {
        Ok(()) => {
            let state = match superblock {
                Some(_) => "intact, of this node",
                None => "not compared: there is no metadata that says whose it should be",
            };
            let state = state.to_owned();
            out.line(Line::Label { state })?;
        }
        Err(text) => {
            let state = "wrong".to_owned();
            out.line(Line::Label { state })?;
            out.line(damage(0, text))?;
        }
    }
    let bytes = superblock.map_or(disk.bytes, |s| s.journal_bytes);
    if bytes > disk.bytes {
        let text = format!("the journal was {bytes} bytes long; it is cut short");
        out.line(damage(disk.bytes, text))?;
    }
    let blocks = (bytes / BLOCK_BYTES_U64).saturating_sub(1);
    if blocks == 0 {
        return Ok(());
    }
    let scanned = superblock.map(|superblock| (superblock, scan(superblock, disk)));
    let mut ring = Ring {
        disk,
        blocks,
        part: (0, Vec::new()),
    };
    let Some((superblock, scanned)) = scanned else {
        return without_metadata(&mut ring, out);
    };
    let names: Vec<String> = superblock
        .volumes
        .slots()
        .map(|v| v.name.to_string())
        .collect();
    let parts = &scanned.parts;
    if parts.start.blocks > 0 {
        let end = parts
            .entries
            .last()
            .map_or(parts.start.position, |e| e.end());
        before_the_log(
            &mut ring,
            parts.start.position,
            parts.start.blocks,
            end,
            out,
        )?;
    }
    for (number, entry) in parts.entries.iter().enumerate() {
        let applied = number < parts.applied_entries;
        match ring.batch(entry.position) {
            Ok((header, bytes, None)) => {
                let offset = ring.offset(entry.position);
                out.line(Line::Batch(shown(&header, &bytes, offset, applied, &names)))?;
            }
            Ok((_, _, Some(fault))) => {
                out.line(damage(ring.offset(entry.position), fault.to_string()))?;
            }
            Err(text) => out.line(damage(ring.offset(entry.position), text))?,
        }
        if out.gone {
            return Ok(());
        }
    }
    let end = parts
        .entries
        .last()
        .map_or(parts.start.position, |e| e.end());
    let tail = parts.entries.last().map_or(parts.start.id, |e| e.id());
    let offset = ring.offset(end);
    let (found, meaning) = (seen(scanned.seen), decided(scanned.end.decision));
    if scanned.end.decision == Decision::Damaged {
        let why = match ring.batch(end) {
            Ok((_, _, Some(fault))) => fault.to_string(),
            Ok(_) => "a batch that does not follow".to_owned(),
            Err(text) => text,
        };
        let text = format!(
            "here the record after {} should be, up to {} was acknowledged, and {why}",
            id(tail),
            id(scanned.damaged_until.max(superblock.acked))
        );
        out.line(damage(offset, text))?;
    }
    out.line(Line::End {
        offset,
        after: id(tail),
        row: scanned.end.label,
        found,
        meaning,
    })?;
    behind_the_end(&mut ring, superblock, end, tail.seq.0, &names, out)
}

/// Why the log begins where it does: usually what was before is overwritten.
fn before_the_log(
    ring: &mut Ring<'_>,
    position: u64,
    blocks: u32,
    end: u64,
    out: &mut Out,
) -> Result<(), Failure> {
    let Some(before) = position.checked_sub(u64::from(blocks)) else {
        return Ok(());
    };
    let offset = ring.offset(before);
    let why = match ring.batch(before) {
        Ok((_, _, Some(fault))) => fault.to_string(),
        Ok((_, _, None)) => "another batch is there".into(),
        Err(text) => text,
    };
    // What was in flight past the end may have taken it, nothing else, before the ring has come round.
    let in_flight = INFLIGHT_BLOCKS_MAX + u64::from(BATCH_BLOCKS_MAX);
    if end + in_flight <= before + ring.blocks {
        let path = ring.disk.path.display().to_string();
        let text = format!(
            "{why}; the stores have it, but peers can not be fed from there or from before"
        );
        return out.line(Line::Damage(Damage { path, offset, text }));
    }
    out.line(Line::Note {
        text: format!("{offset:>10} what was before is overwritten ({why}); the stores have it"),
    })
}

/// Batches of this log behind its end: nothing can be read from there on by itself, but they tell what was there.
fn behind_the_end(
    ring: &mut Ring<'_>,
    superblock: &Superblock,
    end: u64,
    tail: u64,
    names: &[String],
    out: &mut Out,
) -> Result<(), Failure> {
    let mut later = 0;
    let mut unreadable = BTreeMap::<String, (u64, u64)>::new();
    for position in end..end + ring.blocks {
        let offset = ring.offset(position);
        let header = match ring.block(position) {
            Ok(block) => batch::read_header(block),
            Err(text) => {
                unreadable.entry(text).or_insert((offset, 0)).1 += 1;
                continue;
            }
        };
        let Ok(header) = header else { continue };
        let ours = header.uuid == superblock.uuid && header.history == superblock.history;
        if !ours || header.first.0 <= tail {
            continue;
        }
        later += 1;
        if later > 20 {
            continue;
        }
        let state = match ring.batch(position) {
            Ok((_, _, Some(fault))) => fault.to_string(),
            Ok((_, bytes, None)) => {
                let batch = shown(&header, &bytes, offset, false, names);
                Line::Batch(batch).to_string().trim().to_owned()
            }
            Err(text) => text,
        };
        out.line(Line::Note {
            text: format!(
                "behind the end, at byte {offset}: records {}.{}..{}: {state}",
                header.epoch,
                header.first,
                header.last()
            ),
        })?;
    }
    if later > 20 {
        let text = format!("and {} more batches behind the end", later - 20);
        out.line(Line::Note { text })?;
    }
    for (text, (first, count)) in unreadable {
        let path = ring.disk.path.display().to_string();
        let text = format!("{count} blocks from here on can not be read: {text}");
        out.line(Line::Damage(Damage {
            path,
            offset: first,
            text,
        }))?;
    }
    Ok(())
}

/// Every batch that is there, in the order of the file, when nothing says where the log begins.
fn without_metadata(ring: &mut Ring<'_>, out: &mut Out) -> Result<(), Failure> {
    out.line(Line::Note {
        text: "without metadata nothing says where the log begins: these are all batches, in the order of the file".into(),
    })?;
    let mut position = 0;
    let mut unreadable = None;
    while position < ring.blocks && !out.gone {
        match ring.batch(position) {
            Ok((header, bytes, fault)) => {
                let offset = ring.offset(position);
                let mut batch = shown(&header, &bytes, offset, false, &[]);
                if fault.is_none() {
                    position += u64::from(header.blocks());
                } else {
                    batch.records.clear();
                    position += 1;
                }
                out.line(Line::Batch(batch))?;
                if let Some(fault) = fault {
                    let text = format!("{:>12} its payload is overwritten or damaged: {fault}", "");
                    out.line(Line::Note { text })?;
                }
            }
            Err(text) => {
                if ring.block(position).is_err() {
                    unreadable.get_or_insert((ring.offset(position), text));
                }
                position += 1;
            }
        }
    }
    if let Some((offset, text)) = unreadable {
        let path = ring.disk.path.display().to_string();
        out.line(Line::Damage(Damage { path, offset, text }))?;
    }
    Ok(())
}

fn shown(
    header: &Header,
    bytes: &[u8],
    offset: u64,
    applied: bool,
    names: &[String],
) -> line::Batch {
    let records = batch::descriptors(bytes, header).flatten().map(|record| {
        let (kind, about) = match record.kind {
            Kind::Write => ("write", true),
            Kind::Zero {
                may_deallocate: true,
            } => ("trim", true),
            Kind::Zero { .. } => ("zero", true),
            Kind::Epoch => ("epoch", false),
            Kind::Membership => ("membership", false),
            Kind::Demote => ("demote", false),
            Kind::Volumes => ("volumes", false),
        };
        let volume = usize::from(record.volume.0);
        let name = || {
            names
                .get(volume)
                .cloned()
                .unwrap_or(format!("volume {volume}"))
        };
        line::Record {
            kind,
            volume: about.then(name),
            offset: record.block * BLOCK_BYTES_U64,
            bytes: u64::from(record.blocks) * BLOCK_BYTES_U64,
        }
    });
    line::Batch {
        offset,
        bytes: u64::from(header.blocks()) * BLOCK_BYTES_U64,
        epoch: header.epoch.0,
        first: header.first.0,
        last: header.last().0,
        committed: header.committed.0,
        applied,
        records: records.collect(),
    }
}

fn seen(seen: Seen) -> &'static str {
    match seen {
        Seen::Next => "the next batch is there",
        Seen::NextTorn => "the next batch's header is there, its payload does not verify",
        Seen::Blank => "zeroes, never written",
        Seen::Stale => "what an earlier lap or a cut tail left",
        Seen::Garbage => "neither zeroes nor a batch",
        Seen::Unreadable => "the disk does not give it",
    }
}

fn decided(decision: Decision) -> &'static str {
    match decision {
        Decision::Accept => "it goes on",
        Decision::End => "nothing was lost",
        Decision::Cut => "a write that nobody was told about was torn and is cut",
        Decision::Damaged => {
            "acknowledged records are missing: repld starts, and counts for nothing until it has caught up"
        }
    }
}

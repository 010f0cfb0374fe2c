//! What a disk may hold after the power was cut.
//!
//! # The rule
//!
//! A *sector* is 512 bytes; it is written whole or not at all. Of the operations that were submitted before the cut, a
//! change (a write, or a range of zeroes) is **durable** if
//!
//! - it was a write with RWF_DSYNC whose end was seen before the cut (as far as it moved bytes), or
//! - its end was seen before a flush of the same file was submitted, and the end of that flush before the cut.
//!
//! Neither kind makes anything else durable: not the other writes in flight, and a durable write not the plain ones
//! before it.
//!
//! No two operations that change the same sector are ever in flight at once; a stream in which they are is refused. (The
//! core relies on no order among operations in flight, so that would be a mistake of its own.) So all changes of a
//! sector have one order, that of their submission. After the cut it holds what the last durable change made of it,
//! **or any later change that was submitted**, whichever: each change that is not durable is, for each of its sectors
//! by itself, kept or lost, and what is kept is laid down in the order of submission. A change that an already
//! durable one of the same sector came after is gone for good.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nbd_server::reactor::record::tape::Part;
use replicator::io::DiskError;
use replicator::recover::BlockRead;

use crate::chance::Chance;
use crate::cluster::{JOURNAL_BYTES, VOLUMES, created, sums_bytes};
use crate::stream::{Op, OpId, Step, Work};

const SECTOR: usize = 512;

/// A file as it is for certain.
#[derive(Clone, Debug)]
struct File {
    bytes: Vec<u8>,
    /// By sector: the operation that made it what it is, and one; 0 for none.
    owners: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    InFlight,
    Ended,
    /// Or fell short.
    Failed,
}

/// A change that is not durable.
#[derive(Clone, Debug)]
struct Loose {
    op: Arc<Op>,
    state: State,
}

/// The disks of a node at some place of its recording.
#[derive(Clone, Debug)]
pub(crate) struct Media {
    files: BTreeMap<Part, File>,
    loose: BTreeMap<OpId, Loose>,
    /// Flushes in flight, and what each makes durable.
    flushes: HashMap<OpId, Vec<OpId>>,
    durable_writes_count: bool,
    /// The files of which flushes do nothing.
    flushes_ignored: Vec<Part>,
}

/// What becomes of changes that are not durable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// All are lost.
    Lost,
    /// All are kept.
    Kept,
    /// Each is kept or lost whole.
    Whole,
    /// Of each, so many eighths of the sectors are kept.
    Torn(u64),
    /// Each has a fate of its own.
    Mixed,
}

impl Fate {
    pub(crate) fn draw(chance: &mut Chance) -> Self {
        match chance.below(8) {
            0 => Self::Lost,
            1 => Self::Kept,
            2 => Self::Whole,
            3 | 4 => Self::Torn(1 + chance.below(7)),
            _ => Self::Mixed,
        }
    }
}

/// What a tearing replaced.
#[derive(Debug)]
pub(crate) struct Torn(Vec<(Part, usize, [u8; SECTOR])>);

impl Media {
    /// The disks of a node that was just created.
    pub(crate) fn created(node: usize) -> Self {
        let (meta, mut journal) = created(node);
        journal.resize(JOURNAL_BYTES as usize, 0);
        let stores = (0..).zip(VOLUMES).map(|(volume, bytes)| {
            let part = Part::Store(replicator::types::VolumeId(volume));
            (part, vec![0; bytes as usize])
        });
        let zeroes = |bytes: u64| vec![0; bytes as usize];
        let files = [
            (Part::Meta, meta),
            (Part::Journal, journal),
            (Part::Sums, zeroes(sums_bytes())),
            (Part::Stage, zeroes(VOLUMES.iter().sum())),
        ];
        let files = files.into_iter().chain(stores).map(|(part, bytes)| {
            let owners = vec![0; bytes.len() / SECTOR];
            (part, File { bytes, owners })
        });
        Self {
            files: files.collect(),
            loose: BTreeMap::new(),
            flushes: HashMap::new(),
            durable_writes_count: true,
            flushes_ignored: Vec::new(),
        }
    }

    /// From now on, a write with RWF_DSYNC is like any other. To show that this would be noticed.
    pub(crate) fn ignore_durable_writes(&mut self) {
        self.durable_writes_count = false;
    }

    /// From now on, a flush of this file does nothing.
    pub(crate) fn ignore_flushes(&mut self, part: Part) {
        self.flushes_ignored.push(part);
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, part: Part) -> &[u8] {
        &self.files[&part].bytes
    }

    /// Takes what happened to the disks. An error if two operations get in each other's way, or outside of their file.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Begin(id, op) => self.begin(*id, op),
            Step::End(id, moved) => {
                self.end(*id, *moved);
                Ok(())
            }
            Step::Acked(_) | Step::Reported(..) => Ok(()),
        }
    }

    fn begin(&mut self, id: OpId, op: &Arc<Op>) -> Result<(), String> {
        let of_file = self.loose.iter().filter(|(_, l)| l.op.part == op.part);
        if op.work == Work::Flush {
            let counts = !self.flushes_ignored.contains(&op.part);
            let covered = of_file.filter(|(_, l)| l.state == State::Ended && counts);
            let covered = covered.map(|(id, _)| *id).collect();
            self.flushes.insert(id, covered);
            return Ok(());
        }
        let end = op.offset + op.length();
        let in_flight = of_file.filter(|(_, l)| l.state == State::InFlight);
        let mut in_flight = in_flight.map(|(_, l)| &l.op);
        let clash = in_flight.find(|o| o.offset < end && op.offset < o.offset + o.length());
        if let Some(other) = clash {
            return Err(format!(
                "two operations on {:?} in flight at once: {}..{end} and {}..{}",
                op.part,
                op.offset,
                other.offset,
                other.offset + other.length()
            ));
        }
        let aligned = |bytes: u64| bytes.is_multiple_of(SECTOR as u64);
        if !aligned(op.offset) || !aligned(op.length()) || end > self.bytes(op.part).len() as u64 {
            return Err(format!("{:?} has no range {}..{end}", op.part, op.offset));
        }
        let op = Arc::clone(op);
        let state = State::InFlight;
        self.loose.insert(id, Loose { op, state });
        Ok(())
    }

    fn end(&mut self, id: OpId, moved: Option<u64>) {
        if let Some(covered) = self.flushes.remove(&id) {
            if moved.is_some() {
                for id in covered {
                    if let Some(loose) = self.loose.remove(&id) {
                        self.settle(id, &loose.op, loose.op.length());
                    }
                }
            }
            return;
        }
        let Some(loose) = self.loose.get_mut(&id) else {
            return;
        };
        // What failed or fell short may still have changed anything.
        let complete = match loose.op.work {
            Work::Write(_) => moved == Some(loose.op.length()),
            Work::Zero(_) | Work::Flush => moved.is_some(),
        };
        loose.state = if complete {
            State::Ended
        } else {
            State::Failed
        };
        if loose.op.durable && self.durable_writes_count {
            let op = Arc::clone(&loose.op);
            if complete {
                self.loose.remove(&id);
            }
            self.settle(id, &op, moved.unwrap_or(0));
        }
    }

    /// Makes the first `length` bytes of an operation durable.
    fn settle(&mut self, id: OpId, op: &Op, length: u64) {
        let file = self.files.get_mut(&op.part).expect("it has begun");
        let first = op.offset as usize / SECTOR;
        for sector in 0..length as usize / SECTOR {
            let owner = &mut file.owners[first + sector];
            if *owner <= id.0 {
                *owner = id.0 + 1;
                let to = &mut file.bytes[(first + sector) * SECTOR..][..SECTOR];
                lay_down(op, sector, to);
            }
        }
    }

    /// Cuts the power: lays down of the loose changes what `fate` keeps.
    pub(crate) fn tear(&mut self, fate: Fate, chance: &mut Chance) -> Torn {
        let mut before = Vec::new();
        for (id, loose) in &self.loose {
            let fate = match fate {
                Fate::Mixed => match chance.below(4) {
                    0 => Fate::Lost,
                    1 => Fate::Kept,
                    _ => Fate::Torn(1 + chance.below(7)),
                },
                Fate::Whole if chance.in_eight(4) => Fate::Kept,
                Fate::Whole => Fate::Lost,
                other => other,
            };
            let op = &loose.op;
            let file = self.files.get_mut(&op.part).expect("it has begun");
            let first = op.offset as usize / SECTOR;
            for sector in 0..op.length() as usize / SECTOR {
                let kept = match fate {
                    Fate::Kept => true,
                    Fate::Torn(eighths) => chance.in_eight(eighths),
                    Fate::Lost | Fate::Whole | Fate::Mixed => false,
                };
                if kept && file.owners[first + sector] <= id.0 {
                    let at = (first + sector) * SECTOR;
                    let to = &mut file.bytes[at..][..SECTOR];
                    let mut old = [0; SECTOR];
                    old.copy_from_slice(to);
                    before.push((op.part, at, old));
                    lay_down(op, sector, to);
                }
            }
        }
        Torn(before)
    }

    /// Takes a tearing back.
    pub(crate) fn mend(&mut self, torn: Torn) {
        for (part, at, old) in torn.0.into_iter().rev() {
            let file = self.files.get_mut(&part).expect("it was torn");
            file.bytes[at..][..SECTOR].copy_from_slice(&old);
        }
    }

    /// After a cut: what is on the disks is all there is.
    pub(crate) fn restarted(&self) -> Self {
        let mut after = self.clone();
        after.loose.clear();
        after.flushes.clear();
        for file in after.files.values_mut() {
            file.owners.fill(0);
        }
        after
    }
}

fn lay_down(op: &Op, sector: usize, to: &mut [u8]) {
    match &op.work {
        Work::Write(bytes) => to.copy_from_slice(&bytes[sector * SECTOR..][..SECTOR]),
        Work::Zero(_) | Work::Flush => to.fill(0),
    }
}

/// Reads a file of an image.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl BlockRead for Reader<'_> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let at = usize::try_from(offset).map_err(|_| DiskError::Short)?;
        let bytes = self.0.get(at..at + buffer.len()).ok_or(DiskError::Short)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Reading the ring when the node starts: which batches are there, where the log ends, and why.
//!
//! A place where the log does not go on can be the end of what was written, a write that the crash tore, or damage to
//! something that was acknowledged. [`CASES`] tells them apart. Only what can not have been acknowledged is cut; a
//! damaged record that may have been makes the node count for nothing until its log reaches that far again.

use crate::io::DiskError;
use crate::journal::batch::{self, BATCH_BLOCKS_MAX, BatchFault, Header};
use crate::journal::log::{
    Entry, INFLIGHT_BATCHES_MAX, INFLIGHT_BLOCKS_MAX, LogParts, TableAt, Tail,
};
use crate::meta::config::ConfigAt;
use crate::meta::label::LABEL_BLOCKS;
use crate::meta::superblock::Superblock;
use crate::recover::BlockRead;
use crate::types::*;

/// What is at the place where the next batch would begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The next batch, whole.
    Next,
    /// The next batch's header, with a payload that does not verify.
    NextTorn,
    /// Zeroes: never written.
    Blank,
    /// A sound header that does not follow: an earlier lap, a tail that was cut, a stray write.
    Stale,
    /// Neither zeroes nor a sound header.
    Garbage,
    /// The disk does not give it.
    Unreadable,
}

/// What is to be done there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Take the batch and go on.
    Accept,
    /// The log ends here; nothing was lost.
    End,
    /// The log ends here; a write that nobody was told about was torn.
    Cut,
    /// Something that may have been acknowledged is damaged: the log ends here, and the node counts for nothing until it
    /// has caught up.
    Damaged,
}

/// One row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// The row's name, for logs and tests.
    pub label: char,
    /// What is there; `None`: whatever.
    pub seen: Option<Seen>,
    /// Whether a record at or after this place is known to have been acknowledged or committed; `None`: whatever.
    pub acknowledged: Option<bool>,
    /// Whether a later batch of this log was found within reach; `None`: whatever.
    pub survivors: Option<bool>,
    /// What to do.
    pub decision: Decision,
}

const fn case(
    label: char,
    seen: Option<Seen>,
    acknowledged: Option<bool>,
    survivors: Option<bool>,
    decision: Decision,
) -> Case {
    Case {
        label,
        seen,
        acknowledged,
        survivors,
        decision,
    }
}

/// The table; the first row that fits counts.
pub const CASES: [Case; 10] = [
    // The next batch verifies.
    case('A', Some(Seen::Next), None, None, Decision::Accept),
    // It does not, but something at or behind this place was acknowledged: rot, a lost or a stray write.
    case('B', None, Some(true), None, Decision::Damaged),
    // The disk refuses: what is there can not be known.
    case(
        'C',
        Some(Seen::Unreadable),
        Some(false),
        None,
        Decision::Damaged,
    ),
    // Never written, and nothing follows.
    case(
        'D',
        Some(Seen::Blank),
        Some(false),
        Some(false),
        Decision::End,
    ),
    // What an earlier lap or a cut tail left, and nothing follows.
    case(
        'E',
        Some(Seen::Stale),
        Some(false),
        Some(false),
        Decision::End,
    ),
    // The header is there and the payload is torn.
    case(
        'F',
        Some(Seen::NextTorn),
        Some(false),
        Some(false),
        Decision::Cut,
    ),
    // The header is torn.
    case(
        'G',
        Some(Seen::Garbage),
        Some(false),
        Some(false),
        Decision::Cut,
    ),
    // Several writes were in flight, a later one made it: none of them was acknowledged.
    case(
        'H',
        Some(Seen::Blank),
        Some(false),
        Some(true),
        Decision::Cut,
    ),
    case(
        'I',
        Some(Seen::Stale),
        Some(false),
        Some(true),
        Decision::Cut,
    ),
    case('J', None, Some(false), Some(true), Decision::Cut),
];

/// The row for a combination.
///
/// # Panics
/// Never: a test enumerates all combinations.
#[must_use]
pub fn decide(seen: Seen, acknowledged: bool, survivors: bool) -> &'static Case {
    CASES
        .iter()
        .find(|c| {
            c.seen.is_none_or(|s| s == seen)
                && c.acknowledged.is_none_or(|a| a == acknowledged)
                && c.survivors.is_none_or(|s| s == survivors)
        })
        .expect("the table covers every combination")
}

/// What the scan found.
#[derive(Debug)]
pub struct Scanned {
    /// The log.
    pub parts: LogParts,
    /// What is committed, as far as the log and the superblock say.
    pub committed: Seq,
    /// If not none: the node is damaged until its log reaches this.
    pub damaged_until: RecordId,
    /// The row by which the scan ended.
    pub end: &'static Case,
    /// What was at the end.
    pub seen: Seen,
    /// Whether the newest epoch's Primary is known to have committed its demote record.
    pub demoted: bool,
}

impl Scanned {
    /// What a witness has: the config that it was told and no log.
    pub(crate) fn no_log(superblock: &Superblock) -> Self {
        Self {
            parts: LogParts {
                ring_blocks: 0,
                start: Tail::default(),
                entries: Vec::new(),
                applied_entries: 0,
                applied: superblock.applied,
                descriptors: Vec::new(),
                epochs: superblock.epochs.clone(),
                configs: superblock.config.iter().cloned().collect(),
                tables: vec![table_of(superblock)],
            },
            committed: superblock.committed,
            damaged_until: superblock.damaged_until,
            end: decide(Seen::Blank, false, false),
            seen: Seen::Blank,
            demoted: false,
        }
    }
}

/// Blocks of the ring of a journal.
#[must_use]
pub fn ring_blocks(journal_bytes: u64) -> u64 {
    journal_bytes / BLOCK_BYTES_U64 - LABEL_BLOCKS
}

/// A window on the ring that is moved in large reads.
struct Window<'a, R> {
    disk: &'a mut R,
    ring_blocks: u64,
    from: u64,
    bytes: Vec<u8>,
    /// Blocks that one read takes: few at first, since the log may end soon, then more and more.
    ahead: u64,
    /// The most that they become. A fault further on must not hide what is before it, so they become fewer where the
    /// disk fails; and since a failing disk takes its time for each failure, they stay few.
    ahead_max: u64,
}

const WINDOW_BLOCKS_FIRST: u64 = 32;
const WINDOW_BLOCKS_MAX: u64 = 1024;

impl<'a, R: BlockRead> Window<'a, R> {
    fn new(disk: &'a mut R, ring_blocks: u64) -> Self {
        Self {
            disk,
            ring_blocks,
            from: 0,
            bytes: Vec::new(),
            ahead: WINDOW_BLOCKS_FIRST,
            ahead_max: WINDOW_BLOCKS_MAX,
        }
    }

    fn get(&mut self, position: u64, blocks: u32) -> Result<&[u8], DiskError> {
        let blocks = u64::from(blocks);
        let have = self.bytes.len() as u64 / BLOCK_BYTES_U64;
        if position < self.from || position + blocks > self.from + have {
            while let Err(error) = self.fill(position, self.ahead.max(blocks)) {
                if self.ahead <= blocks {
                    return Err(error);
                }
                self.ahead /= 2;
                self.ahead_max = self.ahead;
            }
            self.ahead = (self.ahead * 2).min(self.ahead_max);
        }
        let at = usize::try_from((position - self.from) * BLOCK_BYTES_U64).expect("4 MiB");
        let length = usize::try_from(blocks * BLOCK_BYTES_U64).expect("4 MiB");
        Ok(&self.bytes[at..at + length])
    }

    fn fill(&mut self, position: u64, blocks: u64) -> Result<(), DiskError> {
        let at = position % self.ring_blocks;
        let before = (self.ring_blocks - at).min(blocks);
        let offset = |block: u64| (LABEL_BLOCKS + block) * BLOCK_BYTES_U64;
        let cut = usize::try_from(before * BLOCK_BYTES_U64).expect("4 MiB");
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(usize::try_from(blocks * BLOCK_BYTES_U64).expect("4 MiB"), 0);
        let (head, rest) = bytes.split_at_mut(cut);
        self.disk.read(offset(at), head)?;
        if !rest.is_empty() {
            self.disk.read(offset(0), rest)?;
        }
        self.bytes = bytes;
        self.from = position;
        Ok(())
    }
}

fn belongs(header: &Header, superblock: &Superblock) -> bool {
    header.uuid == superblock.uuid && header.history == superblock.history_of(header.last())
}

/// What follows `tail`.
fn look<R: BlockRead>(
    window: &mut Window<'_, R>,
    superblock: &Superblock,
    tail: &Tail,
) -> (Seen, Option<Header>) {
    let block = match window.get(tail.position, 1) {
        Ok(block) => block,
        Err(_) => return (Seen::Unreadable, None),
    };
    let header = match batch::read_header(block) {
        Ok(header) => header,
        Err(_) if block.iter().all(|&b| b == 0) => return (Seen::Blank, None),
        Err(BatchFault::Magic | BatchFault::HeaderChecksum) => return (Seen::Garbage, None),
        Err(_) => return (Seen::Stale, None),
    };
    if !belongs(&header, superblock)
        || header.prev_id() != tail.id
        || header.prev_checksum != tail.checksum
    {
        return (Seen::Stale, None);
    }
    match window
        .get(tail.position, header.blocks())
        .map(batch::verify)
    {
        Ok(Err(_)) if planted!(ScanTrustsPayload) => (Seen::Next, Some(header)),
        Ok(Ok(verified)) => (Seen::Next, Some(verified)),
        Ok(Err(_)) => (Seen::NextTorn, None),
        Err(_) => (Seen::Unreadable, None),
    }
}

/// Batches that can only have been written after the end that was found.
#[derive(Clone, Copy, Default)]
struct Survivors {
    /// Whether there are any.
    found: bool,
    /// A floor that proves what was committed, or durable here.
    proven: Seq,
    /// The newest of their records.
    last: RecordId,
}

/// How many blocks of the ring may be unreadable before the search for survivors is given up.
const FAULTS_MAX: u32 = 64;

/// Looks for survivors in the `reach` blocks past the end.
fn survivors<R: BlockRead>(
    window: &mut Window<'_, R>,
    superblock: &Superblock,
    tail: &Tail,
    reach: u64,
) -> Survivors {
    let next = tail.id.seq.next();
    let mut survivors = Survivors::default();
    let mut batches = 0;
    let mut faults = 0;
    for position in tail.position + 1..tail.position + reach.min(window.ring_blocks) {
        let Ok(block) = window.get(position, 1) else {
            faults += 1;
            if faults == FAULTS_MAX {
                break;
            }
            continue;
        };
        if let Ok(header) = batch::read_header(block)
            && belongs(&header, superblock)
            && header.epoch >= tail.id.epoch
            && header.first > next
        {
            survivors.found = true;
            survivors.last = survivors.last.max(header.last_id());
            batches += 1;
            let too_far = position >= tail.position + INFLIGHT_BLOCKS_MAX;
            if too_far || batches >= INFLIGHT_BATCHES_MAX {
                // The last of more than can have been in flight, in blocks or in batches, was only begun when what is
                // missing was durable. A nearer one proves nothing, whatever floor it knew: that can be the peers' doing.
                survivors.proven = survivors.proven.max(header.committed).max(next);
            }
        }
    }
    survivors
}

/// Reads the log of a node.
pub fn scan<R: BlockRead>(superblock: &Superblock, journal: &mut R) -> Scanned {
    let ring_blocks = ring_blocks(superblock.journal_bytes);
    let mut window = Window::new(journal, ring_blocks);
    let applied = superblock.applied;
    let mut tail = Tail::from(applied);
    // As far as the log itself says.
    let mut committed = applied.id.seq;
    let mut parts = LogParts {
        ring_blocks,
        start: tail,
        entries: Vec::new(),
        applied_entries: 0,
        applied,
        descriptors: Vec::new(),
        epochs: superblock.epochs.clone(),
        configs: superblock.config.iter().cloned().collect(),
        tables: vec![table_of(superblock)],
    };
    // What a node without a log has in its ring is of a life that it gave up.
    let given_up = superblock.resync.is_some_and(|r| r.in_place);
    if given_up && applied.id == RecordId::NONE {
        return Scanned {
            parts,
            committed: committed.max(superblock.committed),
            damaged_until: RecordId::NONE,
            end: decide(Seen::Blank, false, false),
            seen: Seen::Blank,
            demoted: false,
        };
    }
    let mut demoted_at = None;
    let (end, seen, proven) = loop {
        let (seen, header) = look(&mut window, superblock, &tail);
        let Some(header) = header else {
            let reach = INFLIGHT_BLOCKS_MAX + u64::from(BATCH_BLOCKS_MAX);
            let survivors = survivors(&mut window, superblock, &tail, reach);
            let mut proven = superblock
                .acked
                .seq
                .max(superblock.committed)
                .max(survivors.proven);
            if planted!(CutAcknowledged) {
                proven = survivors.proven;
            }
            // By its full name: the tail of an older epoch that was cut for this record may still be there, and as long.
            let forgotten = superblock.acked > tail.id && !planted!(CutAcknowledged);
            let acknowledged = proven >= tail.id.seq.next() || forgotten;
            let case = decide(seen, acknowledged, survivors.found);
            break (case, seen, proven);
        };
        let bytes = window
            .get(tail.position, header.blocks())
            .expect("it was just read");
        parts
            .descriptors
            .extend(batch::descriptors(bytes, &header).flatten());
        if let Some(config) = batch::config_of(bytes, &header) {
            parts.configs.push(ConfigAt {
                at: header.last_id(),
                config,
            });
        }
        if let Some(volumes) = batch::volumes_of(bytes, &header) {
            parts.tables.push(TableAt {
                at: header.last(),
                volumes,
            });
        }
        // What a forced promotion decided stands in the superblock and not in a record (protocol D2).
        if superblock.fork.is_some_and(|f| f.at == header.last_id()) {
            parts.configs.push(ConfigAt {
                at: header.last_id(),
                config: superblock.alone_after(parts.configs.last()),
            });
            committed = committed.max(header.last());
        }
        if batch::descriptors(bytes, &header)
            .flatten()
            .any(|d| d.kind == batch::Kind::Demote)
        {
            demoted_at = Some(header.last_id());
        }
        if parts.epochs.last().is_none_or(|e| e.epoch < header.epoch) {
            if parts.epochs.is_full() {
                parts.epochs.remove(0);
            }
            parts.epochs.push(RecordId {
                epoch: header.epoch,
                seq: header.first,
            });
        }
        committed = committed.max(header.committed);
        parts.entries.push(entry_of(&header, tail.position));
        tail = Tail {
            id: header.last_id(),
            position: tail.position + u64::from(header.blocks()),
            blocks: header.blocks(),
            checksum: header.checksum,
        };
    };
    let damaged_until = if end.decision == Decision::Damaged {
        // Everything that is left of the log behind the damage may have been acknowledged too.
        let reach = parts.applied.position + ring_blocks - tail.position;
        let lost = survivors(&mut window, superblock, &tail, reach).last;
        let least = if superblock.acked > tail.id && proven <= tail.id.seq {
            superblock.acked
        } else {
            RecordId {
                epoch: tail.id.epoch.max(superblock.acked.epoch),
                seq: proven.max(tail.id.seq.next()),
            }
        };
        least.max(lost).max(superblock.damaged_until)
    } else if tail.id >= superblock.damaged_until {
        RecordId::NONE
    } else {
        superblock.damaged_until
    };
    // The floor in the superblock is of the log that it speaks of. If that went on in a newer epoch, this one may end with the tail
    // that was cut for it: those records were never committed, others with their numbers were.
    let same_log = superblock.acked.epoch <= tail.id.epoch;
    let known = if same_log {
        superblock.committed
    } else {
        Seq(0)
    };
    let committed = committed.max(known).min(tail.id.seq);
    let demoted_below = older(&mut window, superblock, &mut parts, tail.position);
    let demoted = demoted_at
        .or(demoted_below)
        .is_some_and(|id| id == tail.id && committed >= id.seq);
    Scanned {
        parts,
        committed,
        damaged_until,
        end,
        seen,
        demoted,
    }
}

/// The volumes at the applied floor.
fn table_of(superblock: &Superblock) -> TableAt {
    TableAt {
        at: superblock.volumes_at,
        volumes: superblock.volumes.clone(),
    }
}

fn entry_of(header: &Header, position: u64) -> Entry<()> {
    Entry {
        first: header.first,
        last: header.last(),
        epoch: header.epoch,
        position,
        blocks: header.blocks(),
        checksum: header.checksum,
        records: header.records,
        buffer: None,
    }
}

/// Walks back from the applied floor along the chain, over batches that the stores have and the ring still holds: a
/// peer that is behind catches up from them. Each is checked whole, since a write that was in flight past the end may
/// have taken the payload of one whose header is still there. Returns the record at the floor if it is a demotion.
fn older<R: BlockRead>(
    window: &mut Window<'_, R>,
    superblock: &Superblock,
    parts: &mut LogParts,
    end: u64,
) -> Option<RecordId> {
    let mut before = Vec::new();
    let mut at = parts.start;
    let mut demoted = None;
    while at.blocks > 0 {
        let Some(position) = at.position.checked_sub(u64::from(at.blocks)) else {
            break;
        };
        if end - position > window.ring_blocks {
            break;
        }
        // The window is filled forwards; begin it so that it holds what comes next on the way back.
        if position < window.from {
            let ahead = window.ahead.saturating_sub(u64::from(BATCH_BLOCKS_MAX));
            let _ = window.get(position.saturating_sub(ahead), 1);
        }
        let Ok(bytes) = window.get(position, at.blocks) else {
            break;
        };
        let Ok(header) = batch::verify(bytes) else {
            break;
        };
        if header.checksum != at.checksum
            || header.last_id() != at.id
            || !belongs(&header, superblock)
        {
            break;
        }
        let kinds = batch::descriptors(bytes, &header).flatten();
        if before.is_empty() && kinds.map(|d| d.kind).any(|k| k == batch::Kind::Demote) {
            demoted = Some(at.id);
        }
        before.push(entry_of(&header, position));
        at = Tail {
            id: header.prev_id(),
            position,
            blocks: header.prev_blocks,
            checksum: header.prev_checksum,
        };
    }
    before.reverse();
    parts.applied_entries = before.len();
    parts.start = at;
    before.append(&mut parts.entries);
    parts.entries = before;
    demoted
}

#[cfg(test)]
mod tests;

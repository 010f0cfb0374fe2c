//! Bringing batches back from the journal into memory: for a peer that is behind, for an apply, for a read. Whatever
//! comes from the disk is verified against the log before anybody sees it.

use super::{Pending, Replica};
use crate::io::{DiskError, DiskOp};
use crate::journal::batch;
use crate::memory::{Buffer, Memory, Purpose};
use crate::types::*;

/// Batches being read at once, over all reasons.
const LOADS_MAX: usize = 32;

/// Blocks of one read of several batches, at most, unless a single one is larger (1 MiB).
const LOAD_BLOCKS_MAX: u32 = 256;

/// Why a batch is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LoadFor {
    /// To be applied: it is put back into the log's entry.
    Apply,
    /// To be read by a client: the same.
    Read,
    /// To be sent as an append.
    Feed(ConnId),
    /// To be sent to a candidate that asked.
    Fetch(ConnId, u64),
}

/// Consecutive batches being read at once.
#[derive(Debug)]
pub(super) struct Load<B> {
    number: u64,
    count: u64,
    /// Of the last: the chain makes it the name of all of them.
    checksum: u32,
    buffer: B,
    left: u8,
    error: Option<DiskError>,
    why: LoadFor,
}

/// Batches being read.
#[derive(Debug)]
pub(super) struct Loads<B>(Vec<Option<Load<B>>>);

impl<B> Loads<B> {
    pub(super) fn new() -> Self {
        Self((0..LOADS_MAX).map(|_| None).collect())
    }

    /// Whether this entry is being brought back.
    pub(super) fn is_loading(&self, number: u64) -> bool {
        self.0.iter().flatten().any(|l| {
            (l.number..l.number + l.count).contains(&number)
                && matches!(l.why, LoadFor::Apply | LoadFor::Read)
        })
    }
}

impl<M: Memory> Replica<M> {
    /// Starts to read entry `number`. `false` if that must be tried again later.
    pub(super) fn start_load(&mut self, number: u64, why: LoadFor) -> bool {
        let Some(blocks) = self.log.entry(number).map(|e| e.blocks) else {
            return false;
        };
        self.start_loads(number, 1, blocks, why)
    }

    /// Starts to read entry `number`, and in the same read those before `end` that follow it and are not in memory
    /// either. Returns the number of the first entry after them, or `None` if that must be tried again later.
    pub(super) fn start_load_until(&mut self, number: u64, end: u64, why: LoadFor) -> Option<u64> {
        let (mut next, mut blocks) = (number, 0);
        while next < end {
            let entry = self.log.entry(next)?;
            let fits = blocks + entry.blocks <= LOAD_BLOCKS_MAX || blocks == 0;
            let coming = why == LoadFor::Apply && self.loads.is_loading(next);
            if !fits || entry.buffer.is_some() || coming {
                break;
            }
            blocks += entry.blocks;
            next += 1;
        }
        self.start_loads(number, next - number, blocks, why)
            .then_some(next)
    }

    fn start_loads(&mut self, number: u64, count: u64, blocks: u32, why: LoadFor) -> bool {
        let Some(slot) = self.loads.0.iter().position(Option::is_none) else {
            return false;
        };
        let (Some(first), Some(last)) =
            (self.log.entry(number), self.log.entry(number + count - 1))
        else {
            return false;
        };
        let (position, checksum) = (first.position, last.checksum);
        let purpose = match why {
            LoadFor::Apply => Purpose::Apply,
            LoadFor::Read | LoadFor::Feed(_) | LoadFor::Fetch(..) => Purpose::Core,
        };
        let Some(buffer) = self.memory.alloc(purpose, blocks) else {
            return false;
        };
        let mut left = 0;
        for (offset, first, count) in self.log.ring_parts(position, blocks) {
            let op = DiskOp::JournalRead {
                offset,
                buffer: buffer.slice(first, count),
            };
            self.disk(Pending::Load { slot }, op);
            left += 1;
        }
        self.loads.0[slot] = Some(Load {
            number,
            count,
            checksum,
            buffer,
            left,
            error: None,
            why,
        });
        true
    }

    pub(super) fn load_done(&mut self, slot: usize, result: Result<(), DiskError>) {
        let Some(load) = self.loads.0[slot].as_mut() else {
            return;
        };
        load.left -= 1;
        load.error = load.error.or(result.err());
        if load.left > 0 {
            return;
        }
        let load = self.loads.0[slot].take().expect("it was just there");
        let last = self.log.entry(load.number + load.count - 1);
        let current = self.log.entry(load.number).is_some()
            && last.is_some_and(|e| e.checksum == load.checksum);
        if !current {
            // The ring went on, or a cut came, meanwhile. Whoever waits looks again and finds it gone.
            self.load_gone(load.why);
            return;
        }
        let mut at = 0;
        for number in load.number..load.number + load.count {
            let entry = self.log.entry(number).expect("the log has no gaps");
            let buffer = load.buffer.slice(at, entry.blocks);
            at += entry.blocks;
            let sound = load.error.is_none()
                && batch::verify(buffer.bytes()).is_ok_and(|h| h.checksum == entry.checksum);
            if !sound && !planted!(LoadTrusted) {
                self.load_failed(number, load.why, load.error);
                return;
            }
            self.loaded(number, buffer, load.why);
        }
        if let LoadFor::Feed(conn) = load.why {
            self.feed_goes_on(conn);
        }
    }

    /// A batch is not on the disk as it was written. If it is applied, only a peer that lacks it misses it. If not, then this
    /// node can not do its work any more.
    fn load_failed(&mut self, number: u64, why: LoadFor, error: Option<DiskError>) {
        const TEXT: &str = "a batch of the journal can not be read back as it was written";
        let applied = number < self.log.applied_number();
        match why {
            LoadFor::Feed(conn) if applied => {
                self.log_error(format!("{TEXT}; it is applied, and a peer needs it"));
                self.feed_ends(conn);
            }
            LoadFor::Fetch(conn, token) if applied => {
                self.log_error(format!("{TEXT}; it is applied, and a candidate needs it"));
                self.fetch_loaded(conn, token, None);
            }
            _ => self.fail(TEXT, error),
        }
    }

    fn loaded(&mut self, number: u64, buffer: M::Buffer, why: LoadFor) {
        match why {
            LoadFor::Apply | LoadFor::Read => {
                let unapplied = number >= self.log.applied_number();
                let entry = self.log.entry_mut(number).expect("it was just found");
                entry.buffer = unapplied.then_some(buffer);
                self.evict_from = self.evict_from.min(number);
            }
            LoadFor::Feed(conn) => self.feed_loaded(conn, number, buffer),
            LoadFor::Fetch(conn, token) => self.fetch_loaded(conn, token, Some(buffer)),
        }
    }

    fn load_gone(&mut self, why: LoadFor) {
        match why {
            LoadFor::Apply | LoadFor::Read => {}
            LoadFor::Feed(conn) => self.feed_goes_on(conn),
            LoadFor::Fetch(conn, token) => self.fetch_loaded(conn, token, None),
        }
    }

    /// Gives memory back while it is short: batches that are durable can be read again.
    pub(super) fn pump_evict(&mut self) {
        let scarce = |purpose, part: u32| {
            // What is to be read back, or comes from a peer, may be one large batch.
            self.memory.free_blocks(purpose)
                < (self.memory.total_blocks(purpose) / part).max(batch::BATCH_BLOCKS_MAX)
        };
        // Batches from a peer are large and need a gap that holds them whole, so half is kept for those.
        if !scarce(Purpose::Client, 4) && !scarce(Purpose::Core, 4) && !scarce(Purpose::Peer, 2) {
            return;
        }
        let from = self
            .evict_from
            .max(self.log.applied_number())
            .max(self.applier.window_end());
        for number in from..self.log.durable_number().min(from + 64) {
            if planted!(BuffersWaitForPeers)
                && self
                    .peers
                    .iter()
                    .any(|p| p.conn.is_some() && self.log.number_of(p.acked) < Some(number))
            {
                break;
            }
            self.evict_from = number + 1;
            if let Some(entry) = self.log.entry_mut(number) {
                entry.buffer = None;
            }
        }
    }
}

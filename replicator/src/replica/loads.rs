//! Bringing batches back from the journal into memory: for a peer that is behind, for an apply, for a read. Whatever
//! comes from the disk is verified against the log before anybody sees it.

use super::{Pending, Replica};
use crate::io::{DiskError, DiskOp};
use crate::journal::batch;
use crate::memory::{Buffer, Memory, Purpose};
use crate::types::*;

/// Batches being read at once, over all reasons.
const LOADS_MAX: usize = 32;

/// Why a batch is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LoadFor {
    /// To be applied, or read by a client: it is put back into the log's entry.
    Entry,
    /// To be sent as an append.
    Feed(ConnId),
    /// To be sent to a candidate that asked.
    Fetch(ConnId, u64),
}

#[derive(Debug)]
pub(super) struct Load<B> {
    number: u64,
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
        self.0
            .iter()
            .flatten()
            .any(|l| l.number == number && l.why == LoadFor::Entry)
    }
}

impl<M: Memory> Replica<M> {
    /// Starts to read entry `number`. `false` if that must be tried again later.
    pub(super) fn start_load(&mut self, number: u64, why: LoadFor) -> bool {
        let Some(slot) = self.loads.0.iter().position(Option::is_none) else {
            return false;
        };
        let Some(entry) = self.log.entry(number) else {
            return false;
        };
        let (position, blocks, checksum) = (entry.position, entry.blocks, entry.checksum);
        let Some(buffer) = self.memory.alloc(Purpose::Core, blocks) else {
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
        let sound = load.error.is_none()
            && batch::verify(load.buffer.bytes()).is_ok_and(|h| h.checksum == load.checksum);
        let current = self
            .log
            .entry(load.number)
            .is_some_and(|e| e.checksum == load.checksum);
        if !current {
            // The ring went on meanwhile. Whoever waits looks again and finds it gone.
            self.load_gone(load.why);
            return;
        }
        if !sound {
            self.fail(
                "a batch of the journal can not be read back as it was written",
                load.error,
            );
            return;
        }
        match load.why {
            LoadFor::Entry => {
                let unapplied = load.number >= self.log.applied_number();
                let entry = self.log.entry_mut(load.number).expect("it was just found");
                entry.buffer = unapplied.then_some(load.buffer);
                self.evict_from = self.evict_from.min(load.number);
            }
            LoadFor::Feed(conn) => self.feed_loaded(conn, load.number, load.buffer),
            LoadFor::Fetch(conn, token) => self.fetch_loaded(conn, token, Some(load.buffer)),
        }
    }

    fn load_gone(&mut self, why: LoadFor) {
        match why {
            LoadFor::Entry => {}
            LoadFor::Feed(conn) => self.feed_gone(conn),
            LoadFor::Fetch(conn, token) => self.fetch_loaded(conn, token, None),
        }
    }

    /// Gives memory back while it is short: batches that are durable can be read again.
    pub(super) fn pump_evict(&mut self) {
        let short = [Purpose::Client, Purpose::Core, Purpose::Peer]
            .into_iter()
            .any(|purpose| {
                self.memory.free_blocks(purpose) < self.memory.total_blocks(purpose) / 4
            });
        if !short {
            return;
        }
        let from = self
            .evict_from
            .max(self.log.applied_number())
            .max(self.applier.window_end());
        for number in from..self.log.durable_number().min(from + 64) {
            self.evict_from = number + 1;
            if let Some(entry) = self.log.entry_mut(number) {
                entry.buffer = None;
            }
        }
    }
}

//! The journal writer: takes the batches that wait, consecutive in the ring, as one durable write each time one of its
//! few slots is free. No timer: a lone batch goes at once, a slow disk makes bigger groups.

use arrayvec::ArrayVec;

use super::{Pending, Replica};
use crate::io::{DiskError, DiskOp, PARTS_MAX, Parts};
use crate::journal::log::{INFLIGHT_BATCHES_MAX, INFLIGHT_BLOCKS_MAX};
use crate::memory::{Buffer, Memory};

/// Journal writes in flight at most.
const GROUPS_MAX: usize = 2;

/// Blocks of one journal write at most.
const GROUP_BLOCKS_MAX: u64 = INFLIGHT_BLOCKS_MAX / GROUPS_MAX as u64;

/// A batch takes one part at least.
const _: () = assert!(GROUPS_MAX * PARTS_MAX <= INFLIGHT_BATCHES_MAX);

#[derive(Debug)]
struct Group {
    id: u64,
    end: u64,
    left: u8,
}

/// Journal writes in flight, oldest first.
#[derive(Debug, Default)]
pub(super) struct Writer {
    groups: ArrayVec<Group, GROUPS_MAX>,
    next_id: u64,
    /// The number of the first entry that was not given to the disk.
    issued: u64,
}

impl Writer {
    /// A writer to which everything before entry `number` is written already.
    pub(super) fn from_entry(number: u64) -> Self {
        Self {
            issued: number,
            ..Self::default()
        }
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.groups.is_empty()
    }

    /// Entries from `number` on were cut; they are no longer to be written.
    pub(super) fn cut(&mut self, number: u64) {
        assert!(self.is_idle(), "a cut waits for the writes in flight");
        self.issued = self.issued.min(number);
    }
}

impl<M: Memory> Replica<M> {
    /// Starts journal writes while there are slots and batches. After a cut, only once the cut is durable.
    pub(super) fn pump_writer(&mut self) {
        while !self.writer.groups.is_full() && self.writer.issued < self.log.next_number() {
            if self.failed.is_some() {
                return;
            }
            self.write_group();
        }
    }

    fn write_group(&mut self) {
        let id = self.writer.next_id;
        self.writer.next_id += 1;
        let mut parts: Parts<M::Buffer> = Parts::new();
        let mut offset = None;
        let mut blocks = 0u64;
        let mut left = 0;
        // One part is kept for the piece of a batch that goes on at the start of the ring.
        while let Some(entry) = self.log.entry(self.writer.issued) {
            if parts.len() == PARTS_MAX
                || (blocks > 0 && blocks + u64::from(entry.blocks) > GROUP_BLOCKS_MAX)
            {
                break;
            }
            let buffer = entry
                .buffer
                .clone()
                .expect("what is not durable is in memory");
            let mut pieces = self.log.ring_parts(entry.position, entry.blocks);
            let (at, _, count) = pieces.next().expect("an entry has a block");
            if blocks > 0 && at < offset.unwrap_or(0) {
                break; // The ring's end lies between this batch and the last.
            }
            offset.get_or_insert(at);
            blocks += u64::from(entry.blocks);
            self.writer.issued += 1;
            match pieces.next() {
                None => parts.push(buffer),
                Some((wrapped_at, first, wrapped_blocks)) => {
                    parts.push(buffer.slice(0, count));
                    let mut wrapped = Parts::new();
                    wrapped.push(buffer.slice(first, wrapped_blocks));
                    let op = DiskOp::JournalWrite {
                        offset: wrapped_at,
                        parts: wrapped,
                    };
                    self.disk(Pending::Journal { group: id }, op);
                    left += 1;
                    break;
                }
            }
        }
        let offset = offset.expect("there was an entry to write");
        self.disk(
            Pending::Journal { group: id },
            DiskOp::JournalWrite { offset, parts },
        );
        let group = Group {
            id,
            end: self.writer.issued,
            left: left + 1,
        };
        self.writer.groups.push(group);
    }

    pub(super) fn journal_written(&mut self, group: u64, result: Result<(), DiskError>) {
        if let Err(error) = result {
            self.fail("the journal can not be written", Some(error));
            return;
        }
        let groups = &mut self.writer.groups;
        let group = groups
            .iter_mut()
            .find(|g| g.id == group)
            .expect("a group has its writes");
        group.left -= 1;
        while let Some(first) = groups.first()
            && first.left == 0
        {
            self.log.set_durable(first.end);
            groups.remove(0);
        }
    }
}

//! Disk operations in flight: which ticket is for what.

use crate::types::{Ticket, VolumeId};

/// What a disk operation in flight is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pending {
    Journal {
        group: u64,
    },
    Metadata,
    Load {
        slot: usize,
    },
    Apply,
    /// A page of a table of checksums.
    Page {
        index: usize,
    },
    /// A piece of a client's read: blocks of it, from its first one on.
    Read {
        index: u32,
        generation: u32,
        first: u32,
        blocks: u32,
    },
    /// A piece of an answer to a peer.
    Serve {
        serial: u64,
        first: u32,
        blocks: u32,
    },
    /// A piece of a page that is verified.
    Check {
        serial: u64,
        first: u32,
        blocks: u32,
    },
    /// A good copy on its way to the place of a bad one.
    Repair {
        volume: VolumeId,
        block: u64,
    },
    /// Something of a resync.
    Resync {
        serial: u64,
    },
    /// Blocks of the stage on their way to the stores.
    MergeRead,
    /// Room for volumes that are to come.
    Room,
    /// That nothing is taken for known of what the stores lack.
    Doubts,
    /// What volumes have no more is given back.
    Fit,
    MergeWrite,
    Edge {
        index: u32,
        generation: u32,
        which: usize,
    },
}

/// Room for so many operations is made at the start: more than are in flight in practice, so that the table does not grow under load.
const ROOM: usize = 1024;

/// Disk operations in flight, by ticket.
#[derive(Debug)]
pub(super) struct PendingTable {
    slots: Vec<Option<Pending>>,
    generations: Vec<u32>,
    free: Vec<u32>,
}

impl PendingTable {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::with_capacity(ROOM),
            generations: Vec::with_capacity(ROOM),
            free: Vec::with_capacity(ROOM),
        }
    }

    pub(super) fn add(&mut self, pending: Pending) -> Ticket {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.generations.push(0);
            u32::try_from(self.slots.len() - 1).expect("far fewer than 2^32 operations")
        });
        self.slots[index as usize] = Some(pending);
        Ticket(u64::from(self.generations[index as usize]) << 32 | u64::from(index))
    }

    pub(super) fn take(&mut self, ticket: Ticket) -> Pending {
        let index = (ticket.0 & u64::from(u32::MAX)) as usize;
        assert_eq!(
            u64::from(self.generations[index]),
            ticket.0 >> 32,
            "one completion each"
        );
        self.generations[index] = self.generations[index].wrapping_add(1);
        self.free
            .push(u32::try_from(index).expect("it came from a u32"));
        self.slots[index].take().expect("one completion each")
    }
}

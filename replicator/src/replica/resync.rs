//! Getting what is past a Primary's journal.

use super::Replica;
use crate::memory::Memory;
use crate::types::*;
use crate::wire::frame::Blocks;

impl<M: Memory> Replica<M> {
    /// Whether what a resync brought is being laid over the stores.
    pub(super) fn merging(&self) -> bool {
        false
    }

    pub(super) fn got_blocks(&mut self, conn: ConnId, blocks: Blocks, data: Option<M::Buffer>) {
        let _ = self.got_repair(conn, &blocks, data.as_ref());
    }
}

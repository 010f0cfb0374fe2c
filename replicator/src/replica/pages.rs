//! Pages of the tables of checksums on their way to the disk. One round at a time: every page that memory and disk do not
//! agree about is written once, then the file is flushed by whoever asked for the round. So no page is ever on its way twice,
//! and a crash tears one of its two slots at most.

use super::{Pending, Replica};
use crate::io::{DiskError, DiskOp, Parts, SideFile};
use crate::memory::{Buffer, Memory, Purpose};
use crate::store::sums::SumTable;

/// Pages being written at once.
const PAGES_MAX: usize = 16;

/// The memory that pages are written from.
#[derive(Debug)]
pub(super) struct Pages<B> {
    blocks: Vec<Option<B>>,
    free: Vec<usize>,
}

impl<B: Buffer> Pages<B> {
    pub(super) fn new(memory: &mut impl Memory<Buffer = B>) -> Self {
        let blocks = (0..PAGES_MAX)
            .map(|_| {
                let block = memory.alloc(Purpose::Core, 1);
                Some(block.expect("the memory is still unused"))
            })
            .collect();
        Self {
            blocks,
            free: (0..PAGES_MAX).collect(),
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.blocks.len()
    }
}

impl<M: Memory> Replica<M> {
    pub(super) fn pages_are_idle(&self) -> bool {
        self.pages.is_idle()
    }

    /// Writes what is dirty of a table, as far as there is room. `true` once all of it has been written.
    pub(super) fn write_pages(&mut self, choose: impl Fn(&mut Self) -> &mut SumTable) -> bool {
        while let Some(&index) = self.pages.free.last() {
            let mut block = self.pages.blocks[index]
                .take()
                .expect("a free place has its memory");
            let offset = choose(self).take_dirty(block.bytes_mut());
            let mut parts = Parts::new();
            parts.push(block.clone());
            self.pages.blocks[index] = Some(block);
            let Some(offset) = offset else { break };
            self.pages.free.pop();
            let op = DiskOp::SideWrite {
                file: SideFile::Sums,
                offset,
                parts,
            };
            self.disk(Pending::Page { index }, op);
        }
        self.pages.is_idle() && choose(self).is_clean()
    }

    pub(super) fn page_written(&mut self, index: usize, result: Result<(), DiskError>) {
        if let Err(error) = result {
            self.fail("the checksums can not be written", Some(error));
            return;
        }
        self.pages.free.push(index);
        self.apply_goes_on();
    }
}

//! Blocks that the store does not give: a peer's copy goes to the requests that wait for it, whether or not the disk then keeps what is put
//! in its place.

use super::Work;
use super::edges::span;
use crate::memory::{Buffer, Memory, Purpose};
use crate::replica::Replica;
use crate::store::sums::GROUP_BLOCKS;
use crate::types::*;

/// Which block of a request's this one is, if it is one of them.
pub(super) fn place_of(offset: u64, length: u32, block: u64) -> Option<u32> {
    let start = offset / BLOCK_BYTES_U64;
    let inside = (start..start + span(offset, u64::from(length))).contains(&block);
    inside.then(|| u32::try_from(block - start).expect("at most 257 blocks"))
}

fn fill<B: Buffer>(target: &mut [u8], data: Option<&B>) {
    match data {
        Some(data) => target.copy_from_slice(&data.bytes()[..BLOCK_BYTES]),
        None => target.fill(0),
    }
}

impl<M: Memory> Replica<M> {
    /// Gives a good copy of a committed block, of zeroes if there is no `data`, to all requests that wait for it. `false` if there was no
    /// memory for one of them.
    pub(in crate::replica) fn lend(
        &mut self,
        volume: VolumeId,
        block: u64,
        data: Option<&M::Buffer>,
    ) -> bool {
        let changed = self.sums.changed(volume, block / GROUP_BLOCKS);
        let mut all = true;
        for op in &mut self.clients.ops {
            match &mut op.work {
                Work::Read {
                    volume: v,
                    offset,
                    length,
                    buffer: None,
                    given,
                    kept,
                    ..
                } if *v == volume => {
                    let Some(n) = place_of(*offset, *length, block).filter(|&n| !given.has(n))
                    else {
                        continue;
                    };
                    if kept.is_none() {
                        let blocks = span(*offset, u64::from(*length));
                        let blocks = u32::try_from(blocks).expect("at most 257 blocks");
                        *kept = self.memory.alloc(Purpose::Client, blocks);
                    }
                    let Some(kept) = kept else {
                        all = false;
                        continue;
                    };
                    let at = n as usize * BLOCK_BYTES;
                    fill(&mut kept.bytes_mut()[at..at + BLOCK_BYTES], data);
                    given.add(n, 1);
                }
                Work::Write {
                    volume: v, edges, ..
                }
                | Work::Zero {
                    volume: v, edges, ..
                } if *v == volume => {
                    for edge in edges.iter_mut().flatten().filter(|e| e.waits_for(block)) {
                        edge.content = self.memory.alloc(Purpose::Edge, 1);
                        let Some(content) = &mut edge.content else {
                            all = false;
                            continue;
                        };
                        fill(content.bytes_mut(), data);
                        edge.lent = Some(changed);
                    }
                }
                _ => {}
            }
        }
        all
    }
}

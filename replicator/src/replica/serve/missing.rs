//! Answers for a peer in resync of which this node's disk does not give all blocks: what the disk does not keep is had from another
//! peer, and what nobody has is told by its checksum alone.

use super::*;

impl<M: Memory> Replica<M> {
    /// A node in resync need not wait for blocks that were sought in vain: it is told what they should hold, and has them as bad
    /// ones until somebody comes who has them. `false` if one of these may still be found.
    pub(super) fn serve_without(&mut self, plan: &mut Plan<M::Buffer>, bad: &[u64]) -> bool {
        let Some(front) = self.serves.queue.front() else {
            return false;
        };
        let (volume, first) = (front.volume, front.block);
        let lost = |block: u64| {
            let at = usize::try_from(block - first).expect("256 blocks");
            plan.sums[at] != BlockSum::UNKNOWN && self.repairs.is_lost(volume, block, self.now)
        };
        if front.has.is_empty() || !bad.iter().all(|&block| lost(block)) {
            return false;
        }
        // What is given moves together.
        let is_bad = |at: u16| bad.contains(&(first + u64::from(at)));
        let mut to = 0;
        for (from, &at) in plan.given.iter().enumerate() {
            if !is_bad(at) {
                let bytes = from * BLOCK_BYTES..(from + 1) * BLOCK_BYTES;
                let buffer = plan.buffer.bytes_mut();
                buffer.copy_within(bytes, to * BLOCK_BYTES);
                to += 1;
            }
        }
        plan.given.retain(|at| !is_bad(*at));
        for &block in bad {
            let at = u32::try_from(block - first).expect("256 blocks");
            plan.lost.add(at, 1);
        }
        true
    }

    /// Whether the first answer is still being made. It may wait for copies of blocks that the disk does not keep.
    pub(super) fn serve_waits(&mut self) -> bool {
        let Some(front) = self.serves.queue.front() else {
            return false;
        };
        let Some(plan) = front.plan.as_ref().filter(|p| !p.waits.is_empty()) else {
            return true;
        };
        let (volume, first) = (front.volume, front.block);
        let waits: ArrayVec<u64, ASKED_BLOCKS_MAX> = plan
            .waits
            .iter()
            .map(|n| first + u64::from(plan.given[n as usize]))
            .collect();
        let moot = plan.generation != self.applier.generation
            || !self.may_serve()
            || waits.iter().any(|&b| self.rewritten(volume, b));
        if moot {
            self.serve_nothing();
            return false;
        }
        // Only so many are seen to at once: the others follow.
        for b in waits {
            self.found_bad(volume, b);
        }
        true
    }

    /// A peer's copy of a block, or zeroes, for an answer that waits for it.
    pub(in crate::replica) fn serve_lent(
        &mut self,
        volume: VolumeId,
        block: u64,
        data: Option<&M::Buffer>,
    ) {
        let generation = self.applier.generation;
        let Some(front) = self.serves.queue.front_mut() else {
            return;
        };
        let first = front.block;
        let Some(plan) = front.plan.as_mut() else {
            return;
        };
        let at_block = |n: &u32| first + u64::from(plan.given[*n as usize]) == block;
        let found = plan.waits.iter().find(at_block);
        let Some(n) = found.filter(|_| front.volume == volume && plan.generation == generation)
        else {
            return;
        };
        let at = usize::from(plan.given[n as usize]);
        let place = n as usize * BLOCK_BYTES;
        let target = &mut plan.buffer.bytes_mut()[place..place + BLOCK_BYTES];
        match data {
            Some(data) => {
                target.copy_from_slice(&data.bytes()[..BLOCK_BYTES]);
                plan.sums[at] = BlockSum::of(volume, block, target);
            }
            None => {
                target.fill(0);
                plan.sums[at] = BlockSum::ZERO;
            }
        }
        let mut waits = BlockSet::default();
        for other in plan.waits.iter().filter(|&other| other != n) {
            waits.add(other, 1);
        }
        plan.waits = waits;
        if plan.waits.is_empty()
            && let Some(plan) = front.plan.take()
        {
            self.serve_given(plan);
        }
    }

    /// Nobody has a good copy of a block: an answer that waits for it is none.
    pub(in crate::replica) fn serve_lost(&mut self, volume: VolumeId, block: u64) {
        let waits = self.serves.queue.front().is_some_and(|front| {
            let plan = front.plan.as_ref().filter(|_| front.volume == volume);
            plan.is_some_and(|p| {
                let at = |n: u32| front.block + u64::from(p.given[n as usize]);
                p.waits.iter().any(|n| at(n) == block)
            })
        });
        if waits {
            self.serve_nothing();
        }
    }
}

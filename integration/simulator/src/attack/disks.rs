//! Attacks on disks: those that say so, and those that do not.

use replicator::io::DiskError;
use replicator::meta::superblock::copy_offset;
use replicator::types::BLOCK_BYTES_U64;

use super::*;
use crate::disk::{EIO, ENOSPC, Fate};
use crate::drive::{JOURNAL, KINDS, META, STORE, SUMS};

pub(super) fn slow_disk(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = node(c, rng);
    c.nodes[node].slow[rng.index(KINDS)] = rng.between(1, 60);
    true
}

pub(super) fn hang_disk(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = node(c, rng);
    let time = rng.below(6 * lease(c));
    c.nodes[node].hung_until[rng.index(KINDS)] = c.now + time;
    true
}

pub(super) fn disks_recover(c: &mut Cluster, _rng: &mut Rng) -> bool {
    for node in &mut c.nodes {
        node.slow = [1; KINDS];
    }
    c.net.slow.clear();
    false
}

pub(super) fn failing_write(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    let error = rng.pick(&[DiskError::Os(EIO), DiskError::Os(ENOSPC), DiskError::Short]);
    let kind = rng.pick(&[JOURNAL, STORE, META, SUMS]);
    c.nodes[node].next_fate[kind] = Some(Fate::Fails(error));
    true
}

/// The next write to the stage finds no room, if something is being staged.
pub(super) fn no_room(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = rng.index(c.options.nodes);
    if !c.up(node) || !c.nodes[node].resyncs {
        return false;
    }
    c.nodes[node].stage_full = true;
    true
}

/// One copy of four, while the node is down: that must not be noticed at all.
pub(super) fn rot_superblock(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    // A copy that an interrupted update left behind is a fault too, and two are too many.
    if !c.superblock_is_settled(node) || c.nodes[node].hurt {
        return false;
    }
    let power = rng.chance(50);
    c.crash(node, power);
    let block = copy_offset(rng.index(4)) / BLOCK_BYTES_U64;
    let bit = rng.index(4096 * 8);
    c.nodes[node].disks.meta.rot(block, bit);
    c.restart(node);
    true
}

pub(super) fn rot_journal(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    let Some(block) = c.some_journal_block(node, rng) else {
        return false;
    };
    let restart = rng.chance(50);
    if restart {
        let power = rng.chance(50);
        c.crash(node, power);
    }
    let n = &mut c.nodes[node];
    (n.hurt, n.may_fail) = (true, true);
    n.disks.journal.rot(block, rng.index(4096 * 8));
    if restart {
        c.restart(node);
    }
    true
}

pub(super) fn spoil_journal(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    let Some(block) = c.some_journal_block(node, rng) else {
        return false;
    };
    let n = &mut c.nodes[node];
    (n.hurt, n.may_fail) = (true, true);
    n.disks.journal.spoil(block);
    true
}

pub(super) fn lost_write(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    let kind = rng.pick(&[JOURNAL, META]);
    c.nodes[node].next_fate[kind] = Some(Fate::Lost);
    true
}

pub(super) fn stray_write(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    let by = rng.between(1, 300);
    c.nodes[node].next_fate[JOURNAL] = Some(Fate::Stray(by));
    true
}

pub(super) fn lie(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    c.nodes[node].hurt = true;
    c.nodes[node].disks.journal.lies = true;
    true
}

pub(super) fn wipe(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    c.crash(node, true);
    if rng.chance(50) {
        c.wipe_for_a_seed(node, rng);
    } else {
        c.wipe(node);
    }
    let within = lease(c);
    restart_later(c, rng, node, within);
    true
}

pub(super) fn roll_back(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    c.crash(node, false);
    match c.nodes[node].snapshot.take() {
        // First a snapshot, and the next time it is put back.
        None => c.nodes[node].snapshot = Some(c.snapshot(node)),
        Some(snapshot) => c.roll_back(node, snapshot),
    }
    let within = lease(c);
    restart_later(c, rng, node, within);
    true
}

pub(super) fn rot_all_superblocks(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    c.crash(node, true);
    c.nodes[node].hurt = true;
    for copy in 0..4 {
        if rng.chance(80) {
            let block = copy_offset(copy) / BLOCK_BYTES_U64;
            c.nodes[node].disks.meta.rot(block, rng.index(4096 * 8));
        }
    }
    c.restart(node);
    true
}

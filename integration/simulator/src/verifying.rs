//! Verifications: what one reports is so, and what one calls clean is. The disks remember what they harmed.

use std::collections::{BTreeMap, BTreeSet};

use replicator::io::AdminCommand;
#[cfg(test)]
use replicator::types::VolumeId;
use replicator::view::{FindingKind, Membership};

use crate::disk::Disk;
use crate::drive::{STORE, SUMS};
use crate::harness::*;
use crate::rng::Rng;

/// One that a node runs.
#[derive(Clone, Copy, Debug)]
struct Running {
    life: u64,
    /// What harm there was when it began.
    harms: u64,
    /// How many had ended before.
    ended: u64,
    /// What it has reported so far.
    seen: usize,
}

#[derive(Default)]
pub(crate) struct Verifying {
    /// Commands that are not answered: to which node.
    asked: BTreeMap<u64, usize>,
    running: BTreeMap<usize, Running>,
    /// How many came to their end, and how many found everything in order.
    pub(crate) finished: u64,
    pub(crate) clean: u64,
}

impl Verifying {
    pub(crate) fn asked(&mut self, id: u64, node: usize) {
        self.asked.insert(id, node);
    }
}

/// Somebody verifies, or ends that.
pub(crate) fn verify(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = rng.index(c.options.nodes);
    let (repair, stop) = (rng.chance(70), rng.chance(10));
    let bytes_per_second = rng.pick(&[0, 0, 20 << 20]);
    if !c.up(node) {
        return false;
    }
    let command = if stop {
        AdminCommand::StopVerify
    } else {
        AdminCommand::Verify {
            repair,
            bytes_per_second,
        }
    };
    c.admin(node, command);
    true
}

impl Cluster {
    /// How often any disk of data did harm.
    fn harms(&self) -> u64 {
        let of = |n: &Node| n.disks.stores.iter().map(Disk::harms).sum::<u64>();
        self.nodes.iter().map(of).sum()
    }

    /// A command to verify is answered.
    pub(crate) fn verify_begins(&mut self, id: u64, done: bool) {
        let Some(node) = self.verifying.asked.remove(&id).filter(|_| done) else {
            return;
        };
        let running = Running {
            life: self.nodes[node].life,
            harms: self.harms(),
            ended: self.nodes[node].view.verify.ended,
            seen: 0,
        };
        self.verifying.running.insert(node, running);
    }

    /// A node has ended a turn.
    pub(crate) fn verify_is_true(&mut self, node: usize) {
        let n = &self.nodes[node];
        let Some(mut running) = self.verifying.running.remove(&node) else {
            return;
        };
        let view = n.view.verify.clone();
        if n.life != running.life || self.checks.is_beyond() {
            return;
        }
        for finding in view.findings.iter().skip(running.seen) {
            let other = usize::from(finding.node.0);
            let of = &self.nodes[other];
            let store = &of.disks.stores[usize::from(finding.volume.0)];
            let harmed = match finding.kind {
                FindingKind::Bad => store.was_harmed(finding.block),
                FindingKind::Differs => false,
                FindingKind::Unknown => self.sums_suffered(other),
            };
            // Of a node that lost more than single blocks any may differ.
            let excused = of.hurt || of.sums_rotted || self.nodes.iter().any(|n| n.forced);
            assert!(
                harmed || excused,
                "P6: the verification of node {node} reports {finding:?}, and that is a false alarm"
            );
        }
        running.seen = view.findings.len();
        let ended = view.ended > running.ended;
        match view.last.filter(|_| ended) {
            Some((by, verified)) if by == node_id(node) => {
                self.verifying.finished += u64::from(verified.finished);
                if verified.is_clean() {
                    self.verifying.clean += 1;
                    self.is_clean(node, running);
                }
            }
            // Another one's came to its end meanwhile.
            Some(_) if view.running.is_some() => {
                running.ended = view.ended;
                self.verifying.running.insert(node, running);
            }
            Some(_) => {}
            None => {
                self.verifying.running.insert(node, running);
            }
        }
    }

    fn sums_suffered(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.sums_rotted || n.next_fate[SUMS].is_some() || n.hurt
    }

    /// A node says that all copies are sound and equal: then no block is bad that was so when it began to look.
    fn is_clean(&self, node: usize, running: Running) {
        let quiet = self.harms() == running.harms
            && self.nodes.iter().all(|n| n.next_fate[STORE].is_none())
            && !self.nodes.iter().any(|n| n.hurt || n.forced || n.wiped);
        if !quiet {
            return;
        }
        for other in 0..self.options.nodes {
            let n = &self.nodes[other];
            if n.view.applied.0 < self.checks.chain_end().max(n.view.admitted.0) {
                continue; // What is bad may just be written over.
            }
            if self.is_out_for(node, other) {
                continue; // An operator dropped it: its copy is none of those.
            }
            for (volume, store) in n.disks.stores.iter().enumerate() {
                let bad = store.harmed().find(|&b| self.is_bad(other, volume, b));
                assert!(
                    bad.is_none(),
                    "P6: node {node} calls all copies sound, and block {bad:?} of volume {volume} of node {other} is bad"
                );
            }
        }
    }

    /// Whether a peer counts for nothing, as a node knows: a verification leaves it out.
    fn is_out_for(&self, node: usize, peer: usize) -> bool {
        let peers = &self.nodes[node].view.peers;
        let mut peers = peers.iter().filter(|p| p.node == node_id(peer));
        peers.any(|p| p.membership == Membership::Out)
    }

    /// A node that sees all others verifies: that comes to an end, and finds nothing that is not mended, unless nobody has it.
    pub(crate) fn verify_all(&mut self, node: usize) {
        let before = self.nodes[node].view.verify.ended;
        let command = AdminCommand::Verify {
            repair: true,
            bytes_per_second: 0,
        };
        // One that is under way has to end first.
        let mut begun = false;
        for _ in 0..200 {
            for other in 0..self.options.nodes {
                if self.up(other) {
                    self.admin(other, AdminCommand::StopVerify);
                }
            }
            self.run_for(50 * MS);
            if self.command(node, command).is_ok() {
                begun = true;
                break;
            }
            self.run_for(SECOND);
        }
        if self.checks.is_beyond() {
            return;
        }
        assert!(
            begun,
            "P6: node {node} verifies nothing: {:?}",
            self.nodes[node].view
        );
        let done = |c: &Self| {
            let verify = &c.nodes[node].view.verify;
            verify.running.is_none() && verify.ended > before
        };
        let ended = self.run_until(300 * SECOND, done);
        assert!(
            ended || self.checks.is_beyond(),
            "P7: the verification of node {node} does not end: {:?}",
            self.nodes[node].view.verify
        );
        let view = &self.nodes[node].view.verify;
        let of_these = |n: usize| !self.is_out_for(node, n);
        let whole = (0..self.options.nodes).filter(|&n| of_these(n)).all(|n| {
            let of = &self.nodes[n];
            let worn = |s: &Disk| s.harmed().any(|b| s.is_worn(b));
            (n == node || self.is_fed(node, n))
                && !of.hurt
                && !of.forced
                && !of.sums_rotted
                && !of.disks.stores.iter().any(worn)
        });
        if whole && self.options.nodes > 1 && !self.checks.is_beyond() {
            let mut bad = self.bad_blocks();
            bad.retain(|&(n, _, _)| of_these(n));
            let nodes = (0..self.options.nodes).filter(|&n| of_these(n));
            let has = |v, b| nodes.clone().any(|n| !bad.contains(&(n, v, b)));
            let mendable = bad.iter().find(|&&(_, v, b)| has(v, b));
            // Of what is left nobody has a good copy: it was told of, and nothing else was.
            let told = view
                .last
                .is_some_and(|(_, v)| v.finished && v.missed == 0 && v.left == bad.len() as u64);
            assert!(
                told && mendable.is_none(),
                "P6: a repair of everything left {bad:?}: {view:?}"
            );
        }
    }

    /// The blocks of all stores that are not what the log says: of which node and volume.
    fn bad_blocks(&self) -> BTreeSet<(usize, usize, u64)> {
        let mut bad = BTreeSet::new();
        for (node, n) in self.nodes.iter().enumerate().take(self.options.nodes) {
            for (volume, store) in n.disks.stores.iter().enumerate() {
                let harmed = store.harmed().filter(|&b| self.is_bad(node, volume, b));
                bad.extend(harmed.map(|b| (node, volume, b)));
            }
        }
        bad
    }

    /// The blocks that a verification of this node named.
    #[cfg(test)]
    pub(crate) fn found(&self, node: usize) -> Vec<(usize, u64, FindingKind)> {
        let findings = &self.nodes[node].view.verify.findings;
        let of = |v: VolumeId| assert_eq!(v, VolumeId(0));
        findings
            .iter()
            .map(|f| {
                of(f.volume);
                (usize::from(f.node.0), f.block, f.kind)
            })
            .collect()
    }
}

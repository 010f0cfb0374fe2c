//! Fences (protocol F1): once one is reported, the node answers nothing more in its reign, and serves in no other before
//! somebody lets it. What is held against the node here is what operators were told, not what nodes think of each other.

use std::collections::BTreeMap;

use replicator::io::{AdminCommand, AdminResult};

use crate::harness::*;

#[derive(Default)]
pub(crate) struct Fences {
    /// Fences that were asked for and not reported, by the command: whom, and how often he had been let go by then.
    asked: BTreeMap<u64, (usize, u64)>,
    /// Whoever is fenced, as was reported, and when.
    fenced: BTreeMap<usize, u64>,
    /// How often somebody asked to let each node go.
    let_go: BTreeMap<usize, u64>,
    /// Who was asked so and has not answered, and for whom: that may come after a fence that was asked for later.
    letting_go: BTreeMap<u64, (usize, usize)>,
}

impl Cluster {
    /// An operator commands something.
    pub(crate) fn note_fencing(&mut self, node: usize, id: u64, command: AdminCommand) {
        let fences = &mut self.fences;
        match command {
            AdminCommand::Fence { peer, .. } => {
                let peer = usize::from(peer.0);
                let before = fences.let_go.get(&peer).copied().unwrap_or(0);
                fences.asked.insert(id, (peer, before));
            }
            AdminCommand::Unfence { peer, .. } => {
                let peer = usize::from(peer.0);
                *fences.let_go.entry(peer).or_default() += 1;
                fences.letting_go.insert(id, (node, peer));
                fences.fenced.remove(&peer);
            }
            _ => {}
        }
    }

    /// And is answered. What a node that went on alone says is about its own history.
    pub(crate) fn note_fenced(&mut self, node: usize, id: u64, result: &AdminResult) {
        self.fences.letting_go.remove(&id);
        let Some((peer, before)) = self.fences.asked.remove(&id) else {
            return;
        };
        let now = self.fences.let_go.get(&peer).copied().unwrap_or(0);
        let mut letting_go = self.fences.letting_go.values();
        let contested = before != now || letting_go.any(|&(_, p)| p == peer);
        if result.is_ok() && !contested && !self.nodes[node].forced {
            self.fences.fenced.entry(peer).or_insert(self.now);
        }
    }

    /// Whoever was asked there is never answered.
    pub(crate) fn forget_fencing_at(&mut self, node: usize) {
        self.fences.letting_go.retain(|_, &mut (at, _)| at != node);
    }

    /// What an operator was told of a node does not hold for the world of those that went on alone.
    fn is_held_to_it(&self, node: usize) -> Option<u64> {
        let since = self.fences.fenced.get(&node)?;
        let excused = self.is_exile(node) || self.nodes[node].forced || self.checks.is_beyond();
        (!excused).then_some(*since)
    }

    /// A node answers a client.
    pub(crate) fn answers_unfenced(&self, node: usize, reads: bool) {
        // What only reads has the lease alone to keep to.
        if reads && self.options.loose_clocks {
            return;
        }
        if let Some(since) = self.is_held_to_it(node) {
            let ago = self.now - since;
            panic!("F1: node {node} answers a client, {ago} ns after it was reported to be fenced");
        }
    }

    /// A node serves a new epoch.
    pub(crate) fn serves_unfenced(&self, node: usize, epoch: u64) {
        if self.is_held_to_it(node).is_some() {
            panic!("F1: node {node} serves epoch {epoch}, and is fenced");
        }
    }

    /// Everybody may be promoted again.
    pub(crate) fn unfence_all(&mut self, nodes: &[usize]) {
        for round in 0..3 {
            // Who is new knows nobody to let go.
            let fresh = |n: usize| {
                self.nodes[n]
                    .disks
                    .meta
                    .superblock()
                    .is_some_and(|s| s.fresh())
            };
            let able = |&&n: &&usize| self.up(n) && !self.is_exile(n) && !fresh(n);
            let able: Vec<usize> = nodes.iter().filter(able).copied().collect();
            // One that is told to give its data up does not do it.
            let Some(&teller) = able.get(round % able.len().max(1)) else {
                return;
            };
            let known = nodes.iter().map(|&n| &self.nodes[n].view);
            let peers = known.flat_map(|v| v.peers.iter().filter(|p| p.fenced).map(|p| p.node));
            let own = nodes.iter().filter(|&&n| self.nodes[n].view.fenced);
            let mut fenced: Vec<_> = peers.chain(own.map(|&n| node_id(n))).collect();
            fenced.sort_unstable();
            fenced.dedup();
            for peer in fenced {
                let deadline = self.deadline(teller, 2 * SECOND);
                self.command(teller, AdminCommand::Unfence { peer, deadline })
                    .ok();
            }
        }
    }
}

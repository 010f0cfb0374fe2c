//! Nodes that were told to go on alone (protocol D2). From the moment in which a node's superblock says so, it is another world: it has
//! a log, an order of epochs and clients' histories of its own, which begin with what it had. For the world that it left
//! it is a node whose disks are gone. Whatever a node does is judged by the rules of its world.

use replicator::io::AdminCommand;
use replicator::meta::superblock::Superblock;
use replicator::types::HistoryId;

use crate::checks::Checks;
use crate::harness::*;
use crate::oracle::Oracle;
use crate::watch::Watch;

/// What must hold in one world.
pub(crate) struct World {
    pub(crate) checks: Checks,
    pub(crate) watch: Watch,
    pub(crate) oracle: Oracle,
}

/// A world of one node.
pub(crate) struct Exile {
    world: World,
    history: HistoryId,
}

impl Cluster {
    /// Does something in the world that a node lives in.
    pub(crate) fn within<T>(&mut self, node: usize, act: impl FnOnce(&mut Self) -> T) -> T {
        if self.inside == Some(node) || !self.exiles.contains_key(&node) {
            assert!(self.inside.is_none_or(|n| n == node), "one world at a time");
            return act(self);
        }
        self.swap_world(node);
        self.inside = Some(node);
        let result = act(self);
        self.inside = None;
        self.swap_world(node);
        result
    }

    fn swap_world(&mut self, node: usize) {
        let exile = self.exiles.get_mut(&node).expect("it was just there");
        std::mem::swap(&mut self.checks, &mut exile.world.checks);
        std::mem::swap(&mut self.watch, &mut exile.world.watch);
        std::mem::swap(&mut self.oracle, &mut exile.world.oracle);
    }

    pub(crate) fn is_exile(&self, node: usize) -> bool {
        self.exiles.contains_key(&node)
    }

    /// Tells a node to go on alone.
    pub(crate) fn force(&mut self, node: usize, time: u64) -> u64 {
        self.nodes[node].forced = true;
        let deadline = self.deadline(node, time);
        self.admin(node, AdminCommand::Force { deadline })
    }

    /// A node's superblock may say that its history has forked. Called in the world that it was in until then.
    pub(crate) fn note_fork(&mut self, node: usize) {
        if !self.nodes[node].forced || self.checks.is_beyond() {
            return;
        }
        let Some(superblock) = self.nodes[node].disks.meta.superblock() else {
            return;
        };
        let Superblock { fork, history, .. } = superblock;
        let Some(fork) = fork else { return };
        let before = self.exiles.get(&node).map(|e| e.history);
        if before == Some(history) {
            return;
        }
        self.trace(|| format!("-- {node} is alone from {} on", fork.at));
        let world = World {
            checks: self.checks.fork(node, fork.at),
            watch: self.watch.fork(node, fork.at),
            oracle: self.oracle.fork(self.now),
        };
        if before.is_some() {
            // What it was until now is over.
            if let Err(error) = self.oracle.judge() {
                panic!("{error}");
            }
        } else {
            self.checks.wiped(node);
            self.watch.replaced(node);
        }
        let Some(exile) = self.exiles.get_mut(&node) else {
            self.exiles.insert(node, Exile { world, history });
            return;
        };
        exile.history = history;
        // This is looked at from inside: the world in force is replaced.
        assert_eq!(self.inside, Some(node));
        World {
            checks: self.checks,
            watch: self.watch,
            oracle: self.oracle,
        } = world;
    }

    /// What all worlds of single nodes came to: writes and reads that were answered, and epochs.
    pub(crate) fn exiles_tally(&self) -> (u64, u64, u64) {
        self.exiles.values().fold((0, 0, 0), |sum, exile| {
            let World { checks, oracle, .. } = &exile.world;
            (
                sum.0 + oracle.acknowledged,
                sum.1 + oracle.read,
                sum.2 + checks.epochs_served(),
            )
        })
    }

    /// Nothing is promised any more, in no world.
    pub(crate) fn all_end_beyond(&mut self) {
        self.checks.ends_beyond();
        for exile in self.exiles.values_mut() {
            exile.world.checks.ends_beyond();
        }
    }

    /// The last judgement of those that went alone: each serves again when it is told to, has what it had, and its stores
    /// are the images of it.
    pub(crate) fn conclude_exiles(&mut self) {
        let alone: Vec<usize> = self.exiles.keys().copied().collect();
        for node in alone {
            let promoted = self.promote(node, 8 * SECOND);
            assert_eq!(promoted, Ok(()), "node {node} is alone and needs nobody");
            self.must_write(node, 0, 3, 2);
            self.read_all(node);
            assert_eq!(self.command(node, AdminCommand::Demote), Ok(()));
            assert_eq!(self.command(node, AdminCommand::Drain), Ok(()));
            self.within(node, |c| {
                c.compare(&[node]);
                if let Err(error) = c.oracle.judge() {
                    panic!("node {node}, alone: {error}");
                }
            });
            self.leaks_nothing(node);
        }
    }
}

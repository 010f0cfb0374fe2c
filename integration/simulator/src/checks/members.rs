//! Who counts, by the configs in the nodes' logs; who may be made a member, and who may be told of that (M4).

use std::rc::Rc;

use replicator::meta::config::{ClusterConfig, Standing, majority};
use replicator::types::Incarnation;

use super::{Checks, NodeLog};

impl Checks {
    /// The last config that is known to be committed.
    pub(crate) fn committed_config(&self) -> Option<&ClusterConfig> {
        self.config.as_ref().map(|(_, config)| &**config)
    }

    /// The configs whose rules hold for a node that knows what is committed up to a record: the last one up to there, and all that
    /// follow in its log.
    pub(crate) fn rules_of(&self, node: usize, committed: u64) -> Vec<Rc<ClusterConfig>> {
        let Some(log) = self.logs.get(node) else {
            return Vec::new();
        };
        let mut in_log: Vec<_> = self
            .configs_in(log)
            .map(|(at, c)| (at, c.clone()))
            .collect();
        in_log.sort_unstable_by_key(|(at, _)| *at);
        let pending = in_log.iter().filter(|(at, _)| *at > committed);
        let known = in_log.iter().rev().find(|(at, _)| *at <= committed);
        // What a node's journal no longer holds, or what was before it went on alone, is committed.
        let chained = self.config.as_ref().filter(|(at, _)| *at <= committed);
        let base = known.into_iter().chain(chained).max_by_key(|(at, _)| *at);
        base.into_iter()
            .chain(pending)
            .map(|(_, c)| c.clone())
            .collect()
    }

    /// The record of the newest config in a node's log, if it is of this epoch.
    pub(crate) fn newest_config_of(&self, node: usize, epoch: u64) -> Option<u64> {
        let log = self.logs.get(node)?;
        let newest = self.configs_in(log).map(|(at, _)| at).max()?;
        let first = log.batches.get(&newest)?;
        (first.batch.epoch == epoch).then_some(newest)
    }

    /// Whether a node is a member by the newest config in another one's log.
    pub(crate) fn newest_lists(&self, node: usize, life: Incarnation) -> bool {
        let Some(log) = self.logs.get(node) else {
            return false;
        };
        let newest = self.configs_in(log).max_by_key(|(at, _)| *at);
        newest.is_some_and(|(_, config)| config.is_member(life))
    }

    /// The configs in a log, with the numbers of their records.
    fn configs_in<'a>(
        &'a self,
        log: &'a NodeLog,
    ) -> impl Iterator<Item = (u64, &'a Rc<ClusterConfig>)> {
        self.configs.iter().filter_map(|((epoch, first), config)| {
            let there = log.batches.get(first);
            there
                .is_some_and(|j| j.batch.epoch == *epoch)
                .then_some((*first, config))
        })
    }

    /// Somebody who has no part in the config of a record is told of it (M4).
    pub(crate) fn tells_outsider(&self, node: usize, (epoch, seq): (u64, u64), knows: u64) {
        // A committed one was in enough journals, and may have left them since.
        // What it takes for committed is judged at the end of its turn.
        let committed = self.chain.get(&seq).is_some_and(|b| b.epoch == epoch) || seq <= knows;
        // What was pending when a later config came is told with that one.
        let later = self.logs[node].batches.range(seq..);
        let later = later.filter(|(first, j)| self.configs.contains_key(&(j.batch.epoch, **first)));
        let mut at = later.map(|(first, j)| (j.batch.epoch, *first));
        let safe = at.any(|(epoch, seq)| self.is_beyond_loss(epoch, seq));
        assert!(
            committed || self.beyond || safe,
            "M4: node {node} tells the config of {epoch}.{seq}, and a promotion may miss its record"
        );
    }

    /// Whether the record of a config is where every promotion that knows of the config finds it (M4).
    fn is_beyond_loss(&self, epoch: u64, seq: u64) -> bool {
        let Some(config) = self.configs.get(&(epoch, seq)) else {
            return false;
        };
        let has = |i| self.had(i, |j| j.batch.epoch == epoch && j.batch.last == seq, seq);
        let members = || config.nodes.iter().filter(|n| n.member);
        let copies = members().filter(|n| has(n.incarnation)).count();
        let before = self.committed_config();
        let mut added = members().filter(|n| before.is_some_and(|b| !b.is_member(n.incarnation)));
        copies >= majority(config.members()) && added.all(|n| has(n.incarnation))
    }

    /// A Primary makes a membership record, of which nothing is in its log yet: whom it makes a member has everything from before the
    /// record by which that node was to join, and from before the Primary's reign (M4).
    pub(super) fn admits(&self, node: usize, (epoch, seq): (u64, u64), committed: u64) {
        let Some(config) = self.configs.get(&(epoch, seq)) else {
            return;
        };
        let log = &self.logs[node];
        let before = self.rules_of(node, committed);
        let new = |n: &&Standing| n.member && !before.iter().any(|c| c.is_member(n.incarnation));
        for added in config.nodes.iter().filter(new) {
            let joins = self.stands_since(log, added.incarnation);
            let Some((_, last)) = joins.and_then(|at| log.batches.range(..at).next_back()) else {
                continue;
            };
            let reached = |log: &NodeLog| {
                let tail = log.batches.values().rev().find(|j| j.durable);
                // A log that begins anew with the end of a resync has nothing of its own yet.
                tail.map_or(log.checked >= last.batch.last, |j| {
                    (j.batch.epoch, j.batch.last) >= (last.batch.epoch, last.batch.last)
                })
            };
            let is = self
                .node_of(added.incarnation)
                .and_then(|n| self.logs.get(n));
            let was = self
                .gone
                .iter()
                .filter(|(life, _)| *life == added.incarnation);
            assert!(
                is.into_iter().chain(was.map(|(_, log)| log)).any(reached),
                "M4: node {node} makes {} a member in {epoch}.{seq}, which lacks what is before {}",
                added.name,
                last.batch.last + 1
            );
        }
    }

    /// The record of the config in a log since which a node stands as it does by the newest one there, or with which the reign began:
    /// what changed the standing of others since is none of it.
    fn stands_since(&self, log: &NodeLog, life: Incarnation) -> Option<u64> {
        let stood = |(at, config): (u64, &Rc<ClusterConfig>)| {
            let epoch = log.batches.get(&at).map(|j| j.batch.epoch);
            (at, epoch, config.standing(life).copied())
        };
        let mut in_log: Vec<_> = self.configs_in(log).map(stood).collect();
        in_log.sort_unstable_by_key(|(at, ..)| *at);
        let (_, epoch, standing) = in_log.last().copied()?;
        let as_now =
            |(_, e, s): &&(u64, Option<u64>, Option<Standing>)| (*e, *s) == (epoch, standing);
        let since = in_log.iter().rev().take_while(as_now).last();
        since.map(|(at, ..)| *at)
    }
}

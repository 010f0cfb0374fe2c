//! What is called committed: by the rules (P1, N4, M2, M3), and the same on every node (P2).

use std::rc::Rc;

use replicator::meta::config::{ClusterConfig, Standing, majority};

use super::{Batch, Checks};

impl Checks {
    /// How many members of a config have a batch.
    fn copies(&self, config: &ClusterConfig, batch: &Batch) -> usize {
        let members = config.nodes.iter().filter(|n| n.member);
        let has = |n: &&Standing| self.had(n.incarnation, |j| j.batch == *batch, batch.first);
        members.filter(has).count()
    }

    /// How many voters of a config have a batch that carries one; those count too whose confirmed stop it names.
    fn votes(&self, config: &ClusterConfig, batch: &Batch, carried: &ClusterConfig) -> usize {
        let voters = config.nodes.iter().filter(|n| n.voter);
        let votes = |n: &&Standing| {
            let stopped = carried.standing(n.incarnation).is_some_and(|s| s.stopped);
            let witness = self.node_of(n.incarnation);
            let witness = witness.and_then(|w| w.checked_sub(self.logs.len()));
            let told = witness.is_some_and(|w| self.witnesses[w] >= (batch.epoch, batch.last));
            stopped || told || self.had(n.incarnation, |j| j.batch == *batch, batch.first)
        };
        voters.filter(votes).count()
    }

    /// A node says that it knows everything up to `committed` to be committed.
    pub(crate) fn committed(&mut self, node: usize, committed: u64) {
        let Some(log) = self.logs.get(node).filter(|_| !self.beyond) else {
            return;
        };
        let mut news = Vec::new();
        let mut checked = log.checked;
        for (&first, journaled) in log.batches.range(log.checked + 1..) {
            let batch = &journaled.batch;
            if batch.last > committed {
                break;
            }
            let end = news.last().map_or(self.chain_end, |b: &Batch| b.last);
            if first > end + 1 {
                break; // Another node knows what lies between and will say so.
            }
            if first == end + 1 {
                news.push(batch.clone());
            } else {
                assert_eq!(
                    self.chain.get(&first),
                    Some(batch),
                    "P2: node {node} holds another batch than the committed one"
                );
            }
            checked = batch.last;
        }
        if !news.is_empty() {
            self.may_be_committed(node, &news);
        }
        for batch in news {
            self.extend_chain(batch);
        }
        let log = &mut self.logs[node];
        log.checked = log.checked.max(checked);
        self.judged[node] = log
            .batches
            .last_key_value()
            .map_or(0, |(_, j)| j.batch.last);
    }

    fn config_in(&self, batch: &Batch) -> Option<&Rc<ClusterConfig>> {
        self.configs.get(&(batch.epoch, batch.first))
    }

    /// Whether these batches, the next ones of the committed log, are committed by the rules (P1, N4, M2, M3): a change of the
    /// membership by the voters of all configs since the last committed one and a majority of its own members, and with it all
    /// before; other records by the members.
    fn may_be_committed(&self, node: usize, news: &[Batch]) {
        let base = self.config.as_ref().map(|(_, config)| config);
        let carries = |b: &&Batch| self.config_in(b).is_some();
        let change = news.iter().rposition(|b| carries(&b));
        let carried = change.and_then(|at| self.config_in(&news[at]));
        if let (Some(at), Some(carried)) = (change, carried) {
            let batch = &news[at];
            let copies = self.copies(carried, batch);
            assert!(
                copies >= majority(carried.members()),
                "P1: node {node} says that {batch:?} is committed, {copies} journals have it"
            );
            let within = news[..=at].iter().filter_map(|b| self.config_in(b));
            for config in base.into_iter().chain(within) {
                let votes = self.votes(config, batch, carried);
                assert!(
                    votes >= majority(config.voters()),
                    "M3, N4: node {node} says that {batch:?} is committed, {votes} voters of {config:?} have it"
                );
            }
        }
        let Some(config) = carried.or(base) else {
            panic!("P1: node {node} calls {news:?} committed, and there is no config");
        };
        // N4: what an older epoch left is committed with this one's first record, not by counting.
        let log = &self.logs[node].batches;
        let reign = log.last_key_value().map_or(0, |(_, j)| j.batch.epoch);
        let rest = &news[change.map_or(0, |at| at + 1)..];
        if rest.iter().any(|b| b.epoch < reign) {
            let of_reign = log.values().rev().take_while(|j| j.batch.epoch == reign);
            let begin = &of_reign.last().expect("the last is one of them").batch;
            let carried = self.config_in(begin).unwrap_or(config);
            let copies = self.copies(carried, begin);
            assert!(
                copies >= majority(carried.members()),
                "N4: node {node} says that {rest:?} is committed, {copies} journals have the first record of epoch {reign}"
            );
        }
        // Who makes the records knows which changes are pending. What it committed in this turn may have come before a new one.
        let end = news.last().map_or(0, |b| b.last);
        let leads = self.makers.get(&reign) == Some(&node);
        let pending = log
            .range(end + 1..)
            .filter(|(first, _)| leads && **first <= self.judged[node]);
        let pending = pending.filter_map(|(_, j)| self.config_in(&j.batch));
        let pending: Vec<_> = pending.collect();
        for batch in rest {
            for config in [config].into_iter().chain(pending.iter().copied()) {
                let copies = self.copies(config, batch);
                assert!(
                    copies >= majority(config.members()),
                    "P1, M2: node {node} says that {batch:?} is committed, {copies} journals of {config:?} have it"
                );
            }
        }
    }

    fn extend_chain(&mut self, batch: Batch) {
        if let Some(config) = self.config_in(&batch) {
            self.config = Some((batch.last, config.clone()));
        }
        let (_, changes) = self.made[&(batch.epoch, batch.first)].clone();
        self.note_changes(&batch, &changes);
        self.chain_end = batch.last;
        self.chain.insert(batch.first, batch);
    }
}

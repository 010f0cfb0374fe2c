//! The last judgement: what must become true once everything works again, and what excuses a cluster.

use replicator::io::*;
use replicator::meta::config::majority;
use replicator::types::*;
use replicator::view::PeerView;

use crate::disk::Disk;
use crate::drive::KINDS;
use crate::harness::*;
use crate::oracle::stamps_of_block;
use crate::resync::Image;

impl Cluster {
    /// These nodes work again: they run, their disks are fast, and frames pass between them.
    pub(crate) fn mend(&mut self, nodes: &[usize]) {
        self.net.snags.clear();
        for &a in nodes {
            for &b in nodes {
                self.net.slow.remove(&(a, b));
                self.net.spoil.remove(&(a, b));
                self.net.forge.remove(&(a, b));
                self.heal_link(a, b);
            }
        }
        for &node in nodes {
            let n = &mut self.nodes[node];
            n.slow = [1; KINDS];
            n.next_fate = [None; KINDS];
            n.hung_until = [0; KINDS];
            n.disks.meta.settle();
            n.disks.journal.settle();
            let hung: Vec<u64> = n.flights.keys().copied().collect();
            let life = n.life;
            for flight in hung {
                let wait = self.rng.disks.below(self.options.disk_ns);
                self.after(wait, Event::Disk { node, life, flight });
            }
            let n = &mut self.nodes[node];
            n.frozen_until = n.frozen_until.min(self.now);
            let stopped = n.view.failed || n.drained;
            if self.up(node) && stopped {
                self.crash(node, false);
            }
            if !self.up(node) && !self.nodes[node].ruined {
                self.restart(node);
            }
            self.admin(node, AdminCommand::ResumeIo);
            for &peer in nodes.iter().filter(|&&p| p != node) {
                let peer = node_id(peer);
                self.admin(node, AdminCommand::Connect { peer });
            }
            self.wake_by(node, self.now);
        }
        self.run_for(300 * MS);
    }

    fn all(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    /// The data nodes among these.
    fn data_of(&self, nodes: &[usize]) -> Vec<usize> {
        let data = |n: &usize| *n < self.options.nodes;
        nodes.iter().copied().filter(data).collect()
    }

    /// Promotes one of these nodes, whichever can be; `None` if the life ends here: more was lost than anything can keep.
    pub(crate) fn promote_any(&mut self, nodes: &[usize]) -> Option<usize> {
        let mut data = self.data_of(nodes);
        data.retain(|&n| !self.is_exile(n));
        if data.is_empty() {
            self.stuck = true;
            return None;
        }
        self.unfence_all(nodes);
        let began = self.now;
        let mut said = Vec::new();
        for attempt in 0..40 {
            let node = data[attempt % data.len()];
            if !self.up(node) {
                continue;
            }
            match self.promote(node, 3 * SECOND) {
                Ok(()) => return (!self.checks.is_beyond()).then_some(node),
                Err(error) => {
                    // It was told to give its data up, and waits for the Primary's word: until that comes, or its connection ends.
                    if matches!(&error, AdminError::Failed(why) if why.contains("being given up")) {
                        self.run_for(SECOND);
                    }
                    said.push((node, error));
                }
            }
            if self.checks.is_beyond() {
                return None;
            }
        }
        // The first config is known to nodes that do not have its record, and the disk that held that is harmed, or its node went
        // on alone. Nothing was ever committed; such nodes are created anew.
        let hurt = self.nodes.iter().any(|n| n.hurt || n.forced);
        if self.checks.chain_end() == 0 && hurt {
            self.checks.ends_beyond();
            return None;
        }
        if self.too_few_are_left()
            || self.too_many_are_lost(nodes)
            || self.bad_block_holds_up(nodes, began)
            || self.never_heard(nodes)
        {
            return None;
        }
        said.truncate(8);
        panic!("nobody can be promoted: {said:?}");
    }

    /// Whether a majority has gone: nodes went on alone, or count for nothing since their disks were replaced.
    fn too_few_are_left(&mut self) -> bool {
        let gone = |n: usize| self.nodes[n].wiped || self.is_exile(n);
        let there = (0..self.options.nodes).filter(|&n| self.up(n) && !gone(n));
        let too_few = there.count() <= self.options.nodes / 2;
        self.stuck |= too_few;
        too_few
    }

    /// Liveness: a majority works and sees each other, of the others nothing is heard. Somebody can be promoted and writes are
    /// answered, whatever happened before.
    fn a_majority_goes_on(&mut self) {
        // Who drops a node just now may do so with the help of those that are about to be cut off.
        if !self.run_until(10 * SECOND, |c| !c.changes_are_under_way()) {
            return;
        }
        let (members, voters) = (self.options.nodes, self.nodes.len());
        let whole = |n: &usize| !self.nodes[*n].hurt && !self.nodes[*n].forced;
        let mut core: Vec<usize> = (0..members).filter(whole).collect();
        while core.len() > members / 2 + 1 {
            core.remove(self.rng.turns.index(core.len()));
        }
        if core.len() <= members / 2 || self.options.loose_clocks {
            return;
        }
        let mut witnesses: Vec<usize> =
            (members..voters).filter(|&n| !self.nodes[n].hurt).collect();
        while core.len() <= voters / 2 {
            if witnesses.is_empty() {
                return;
            }
            core.push(witnesses.remove(self.rng.turns.index(witnesses.len())));
        }
        if !self.is_majority(&core) {
            return; // The membership was changed, and these are too few by one of the configs.
        }
        for a in 0..voters {
            for b in 0..voters {
                if core.contains(&a) != core.contains(&b) {
                    self.cut(a, b);
                }
            }
        }
        self.mend(&core);
        self.mend(&core); // What was about to fail has failed by now.
        // The first promotion needs all.
        if self.checks.chain_end() == 0 {
            return;
        }
        let Some(primary) = self.promote_any(&core) else {
            return;
        };
        self.trace(|| format!("-- {core:?} go on, with {primary} as Primary"));
        // Nobody is attached while an operator takes something away from the volumes, which waits for all nodes for so long.
        self.run_until(20 * SECOND, |c| {
            let replica = c.nodes[primary].replica.as_ref();
            replica.is_none_or(|r| !r.exports_wait())
        });
        let began = self.now;
        // What was held up by a slow link may still make the lease lapse for a moment; and where writes do not wait, they fail
        // until a change of the membership that nobody can commit is taken back (M5).
        let mut outcome = None;
        while self.now - began < 20 * SECOND {
            let id = self.write(primary, 0, 5, 2);
            outcome = self.outcome(id, 20 * SECOND);
            if outcome != Some(Outcome::Error) {
                break;
            }
            self.run_for(300 * MS);
        }
        let held_up = core.len() > 1 && self.bad_block_holds_up(&core, began);
        // A voter that was about to be let go when the others were cut off may be needed for that very change.
        let too_few = !self.is_majority(&core);
        assert!(
            held_up || too_few || self.checks.is_beyond() || outcome == Some(Outcome::Done),
            "with {core:?} healthy, a write at {primary} came to {outcome:?}"
        );
    }

    /// Whether one of these nodes holds nothing yet, since it was away from the beginning, and what the others know of the
    /// membership may yet be lost: so it can not join them before more nodes are there.
    fn never_heard(&self, nodes: &[usize]) -> bool {
        let all = nodes.len() == self.nodes.len() && self.exiles.is_empty();
        let fresh = |n: &usize| {
            let superblock = self.nodes[*n].disks.meta.superblock();
            superblock.is_some_and(|s| s.fresh())
        };
        !all && nodes.iter().any(fresh)
    }

    /// Whether operators dropped so many nodes that of the others too many are lost with their disks, or alone.
    fn too_many_are_lost(&mut self, nodes: &[usize]) -> bool {
        let whole = |n: &usize| !self.nodes[*n].hurt && !self.is_exile(*n);
        let whole: Vec<usize> = nodes.iter().copied().filter(whole).collect();
        let lost = !self.is_majority(&whole);
        self.stuck |= lost;
        lost
    }

    /// Whether these nodes are a majority of the voters and of the members by every config that may still count.
    fn is_majority(&self, nodes: &[usize]) -> bool {
        let rules = |n| self.checks.rules_of(n, self.nodes[n].view.committed.0);
        let configs = (0..self.options.nodes).flat_map(rules);
        let lives = || nodes.iter().map(|&n| self.checks.life_of(n));
        configs.into_iter().all(|config| {
            let voters = lives().filter(|&l| config.is_voter(l)).count();
            let members = lives().filter(|&l| config.is_member(l)).count();
            voters >= majority(config.voters()) && members >= majority(config.members())
        })
    }

    /// The last judgement: first a majority is mended and has to go on; then everything is mended, somebody is promoted, all
    /// requests are answered, all nodes catch up; then all stores are drained and compared. A cluster that has lost more than
    /// anything can keep is not judged.
    pub(crate) fn conclude(&mut self) {
        if !self.checks.is_beyond() {
            self.a_majority_goes_on();
        }
        self.mend(&self.all());
        self.mend(&self.all());
        if self.checks.is_beyond() {
            return;
        }
        self.judge_those_together();
        self.stop_clients();
        if !self.checks.is_beyond() {
            self.conclude_exiles();
        }
    }

    fn judge_those_together(&mut self) {
        let Some(primary) = self.promote_any(&self.all()) else {
            return;
        };
        if !self.everything_is_answered(primary) {
            return;
        }
        let id = self.write(primary, 0, 3, 2);
        let outcome = self.outcome(id, 20 * SECOND);
        // A node whose journal is harmed may step aside only now, when it is to read there.
        let alone = !self.nodes[primary].view.quorum;
        if outcome != Some(Outcome::Done) && alone && self.too_many_are_lost(&self.all()) {
            return;
        }
        assert_eq!(outcome, Some(Outcome::Done));
        let mut fed = self.run_until(30 * SECOND, |c| c.fed(primary));
        if !fed {
            // A resync waits for blocks that the source's disk does not keep: that is replaced. For a minute after it was
            // last mended such a block is not put in place again.
            for node in &mut self.nodes {
                node.disks.stores.iter_mut().for_each(Disk::renew);
            }
            // A node trusts such a disk again a minute after it was last found not to keep a block.
            let trusted = self.now + 61 * SECOND;
            fed = self.run_until(100 * SECOND, |c| c.fed(primary));
            // Until then its bad blocks are given to whoever reads them, and not mended.
            self.run_for(trusted.saturating_sub(self.now));
        }
        // What nobody has can not be brought.
        if !fed && self.bad_block_holds_up(&self.all(), self.now - 5 * SECOND) {
            return;
        }
        assert!(
            fed,
            "not all peers catch up: {:?}",
            self.nodes[primary].view.peers
        );
        // Who lays what a resync brought over its stores gives nobody a good copy until that is done.
        let laid = self.run_until(20 * SECOND, |c| {
            let merges = |n: &Node| {
                let resync = n.disks.meta.superblock().and_then(|s| s.resync);
                resync.is_some_and(|r| r.merging)
            };
            !(0..c.options.nodes).any(|n| c.is_fed(primary, n) && merges(&c.nodes[n]))
        });
        assert!(laid, "P7: a resync is not laid over its stores");
        self.calm = true;
        self.read_all(primary);
        // What is bad and about to be written over is nobody's business.
        self.run_for(SECOND);
        self.nothing_bad_is_left(primary);
        self.verify_all(primary);
        self.calm = false;
        let equal: Vec<usize> = (0..self.nodes.len())
            .filter(|&n| n == primary || self.is_fed(primary, n))
            .collect();
        // Nobody writes any more: what is fed comes to have all of it.
        let there = |c: &Self, n: usize| {
            let view = &c.nodes[primary].view;
            let has = |p: &PeerView| p.durable == Some(view.admitted);
            let of_node = |p: &&PeerView| usize::from(p.node.0) == n;
            n == primary || view.peers.iter().find(of_node).is_some_and(has)
        };
        let all_there = self.run_until(20 * SECOND, |c| equal.iter().all(|&n| there(c, n)));
        assert!(
            all_there || self.nodes.iter().any(|n| n.hurt),
            "not all peers have everything: {:?}",
            self.nodes[primary].view
        );
        // One that lost its connection meanwhile may need what a harmed disk can no longer give.
        let whole: Vec<usize> = equal
            .iter()
            .copied()
            .filter(|&n| (!self.nodes[n].hurt || all_there) && there(self, n))
            .collect();
        assert_eq!(self.command(primary, AdminCommand::Demote), Ok(()));
        self.run_for(SECOND);
        let mut equal = equal;
        equal.retain(|n| whole.contains(n));
        for node in 0..self.nodes.len() {
            if self.up(node) && !self.is_exile(node) {
                let drained = self.command(node, AdminCommand::Drain);
                assert!(
                    drained == Ok(()) || self.nodes[node].hurt,
                    "node {node}: {drained:?}"
                );
                equal.retain(|&n| n != node || drained.is_ok());
            }
        }
        self.compare(&equal);
        self.run_for(SECOND);
        for node in (0..self.nodes.len()).filter(|&n| !self.is_exile(n)) {
            self.leaks_nothing(node);
        }
        if let Err(error) = self.oracle.judge() {
            panic!("{error}");
        }
    }

    /// Whether that comes true; else there is nobody to do it.
    fn everything_is_answered(&mut self, primary: usize) -> bool {
        let nothing_waits = |c: &Self| c.requests.values().all(|r| r.client.is_none());
        let answered = self.run_until(30 * SECOND, |c| {
            c.nodes[primary].view.serving && nothing_waits(c)
        });
        self.stop_clients();
        if answered || self.run_until(20 * SECOND, nothing_waits) {
            return true;
        }
        if self.too_few_are_left() || self.bad_source_holds_up(primary) {
            return false;
        }
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|n| (n.replica.as_ref().map(|r| r.memory()), &n.view))
            .collect();
        panic!(
            "requests are never answered at {primary}: {:?}\n{nodes:?}",
            self.requests
        );
    }

    /// P10: drained stores hold what was committed, but for blocks that a disk harmed and nobody has read since.
    pub(crate) fn compare(&self, equal: &[usize]) {
        let end = self.checks.chain_end();
        for &node in equal {
            let volumes = self.volumes_at(node);
            assert_eq!(volumes, *self.checks.table_at(end), "node {node}");
            for (id, _) in volumes.iter() {
                let volume = usize::from(id.0);
                let store = &self.nodes[node].disks.stores[volume];
                let image = Image::of(&self.nodes[node].disks, volume, None, &volumes);
                self.checks.store_is_prefix(node, volume, &image, end, end);
                for block in (0..volumes.blocks(id)).filter(|&b| !store.is_harmed(b)) {
                    let zeroes = [0; BLOCK_BYTES];
                    let bytes = store.block(block).map_or(zeroes.as_slice(), |b| b);
                    stamps_of_block(bytes, block)
                        .unwrap_or_else(|e| panic!("node {node} volume {volume}: {e}"));
                }
            }
        }
    }
}

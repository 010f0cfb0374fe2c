//! What happens to a cluster from outside: operators, crashes, cuts; and the last judgement.

use replicator::io::*;
use replicator::meta::superblock::{COPIES, Superblock, copy_offset};
use replicator::recover::read_superblock;
use replicator::types::*;
use replicator::view::{DiskState, ReplicationState};

use crate::client::{Client, Kind, Request};
use crate::disk::{Disk, Disks, Reading};
use crate::harness::*;
use crate::oracle::{UNITS_PER_BLOCK, stamps_of_block};
use crate::rng::Rng;

impl Cluster {
    pub(crate) fn admin(&mut self, node: usize, command: AdminCommand) -> u64 {
        let id = self.next_id();
        if command == AdminCommand::Drain {
            self.bounds.drains.insert(id);
        }
        self.post(node, Happening::Admin(AdminId(id), command));
        id
    }

    /// Commands a node and waits for its answer.
    pub(crate) fn command(&mut self, node: usize, command: AdminCommand) -> AdminResult {
        let id = self.admin(node, command);
        let answered = self.run_until(60 * SECOND, |c| c.admin_results.contains_key(&id));
        assert!(
            answered,
            "node {node} never answered {command:?}: {:?} {:?}",
            self.nodes[node].view,
            self.nodes[node].replica.as_ref().map(|r| r.memory())
        );
        self.admin_results[&id].clone()
    }

    /// Promotes a node; it may try for `time`.
    pub(crate) fn promote(&mut self, node: usize, time: u64) -> AdminResult {
        let deadline = self.deadline(node, time);
        self.command(node, AdminCommand::Promote { deadline })
    }

    pub(crate) fn up(&self, node: usize) -> bool {
        self.nodes[node].replica.is_some()
    }

    /// A node stops without a word: its process is killed, or its power fails.
    pub(crate) fn crash(&mut self, node: usize, power: bool) {
        assert!(self.up(node));
        self.trace(|| format!("{node} crashes (power: {power})"));
        self.tear_flights(node);
        if power {
            let disks = &mut self.nodes[node].disks;
            for disk in disks
                .stores
                .iter_mut()
                .chain([&mut disks.meta, &mut disks.journal])
            {
                disk.power_cut(&mut self.rng.disks);
            }
            self.new_clock(node);
        }
        self.checks.crashed(node);
        self.drop_clients(node);
        let n = &mut self.nodes[node];
        n.replica = None;
        n.inbox.clear();
        n.waiting.clear();
        n.life += 1;
        for (conn, side) in self.net.of(node) {
            self.net.conns[conn].closed[side] = true;
            self.net.conns[conn].up[side] = false;
            if power {
                self.nodes[node].orphans.push((conn, 1 - side));
            } else {
                self.hang_up(conn, 1 - side);
            }
        }
    }

    pub(crate) fn freeze(&mut self, node: usize, time: u64) {
        self.trace(|| format!("{node} freezes for {time}"));
        self.nodes[node].frozen_until = self.now + time;
    }

    /// Cuts what goes from one node to another.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.net.cut.insert((from, to));
    }

    /// Cuts what goes between two nodes, both ways. Nobody is told.
    pub(crate) fn cut_both(&mut self, a: usize, b: usize) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Cuts a node off from all others, both ways.
    pub(crate) fn isolate(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|&o| o != node) {
            self.cut_both(node, other);
        }
    }

    /// Lets everything pass again. What was held up arrives late.
    pub(crate) fn heal(&mut self) {
        self.net.cut.clear();
        for conn in 0..self.net.conns.len() {
            for side in 0..2 {
                if !self.net.conns[conn].closed[side] {
                    let wait = self.rng.net.below(MS);
                    self.after(wait, Event::Readable(conn, side));
                }
            }
        }
    }

    /// Lets everything pass again between two nodes.
    pub(crate) fn heal_link(&mut self, a: usize, b: usize) {
        self.net.cut.remove(&(a, b));
        self.net.cut.remove(&(b, a));
        let mut ends = self.net.of(a);
        ends.extend(self.net.of(b));
        ends.retain(|(conn, _)| self.net.conns[*conn].nodes == [a.min(b), a.max(b)]);
        for (conn, side) in ends {
            let wait = self.rng.net.below(MS);
            self.after(wait, Event::Readable(conn, side));
        }
    }

    /// Draws which nodes' durable data may be harmed: a minority of the members, and no witness.
    pub(crate) fn choose_victims(&mut self, rng: &mut Rng) {
        let members = self.options.nodes;
        let most = members - (members / 2 + 1);
        let first = rng.index(members);
        self.victims = (0..most).map(|i| (first + i) % members).collect();
    }

    /// Whether all copies of a node's superblock are the same version.
    pub(crate) fn superblock_is_settled(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        let version = |copy| {
            let block = n.disks.meta.block(copy_offset(copy) / BLOCK_BYTES_U64)?;
            Some(Superblock::decode(copy, block).ok()??.version)
        };
        n.flights.values().all(|f| !f.is_of_meta())
            && version(0).is_some()
            && (1..COPIES).all(|copy| version(copy) == version(0))
    }

    /// A block of a node's journal that a record was written to, at random.
    pub(crate) fn some_journal_block(&self, node: usize, rng: &mut Rng) -> Option<u64> {
        let journal = &self.nodes[node].disks.journal;
        let count = journal
            .written()
            .count()
            .checked_sub(1)
            .filter(|&c| c > 0)?;
        // Not the label: that is another story.
        journal.written().nth(1 + rng.index(count)).map(|(b, _)| b)
    }

    /// Resets the connection between two nodes.
    pub(crate) fn reset(&mut self, a: usize, b: usize) {
        for (conn, _) in self.net.of(a) {
            if self.net.conns[conn].nodes.contains(&b) {
                let side = self.rng.net.index(2);
                self.close(conn, side);
            }
        }
    }

    /// Gives a node new, empty disks.
    pub(crate) fn wipe(&mut self, node: usize) {
        assert!(!self.up(node));
        let config = self.nodes[node].config.clone();
        self.nodes[node].disks = self.format(&config);
        self.nodes[node].hurt = true;
        self.nodes[node].ruined = false;
        self.nodes[node].wiped = true;
        self.checks.wiped(node);
        // Before the first promotion all disks are blank.
        let blank = self.checks.newest_epoch() > 0;
        self.watch.replaced(node, blank);
    }

    /// A copy of a node's disks.
    pub(crate) fn snapshot(&self, node: usize) -> Disks {
        assert!(!self.up(node));
        let disks = &self.nodes[node].disks;
        Disks {
            meta: disks.meta.copy(),
            journal: disks.journal.copy(),
            stores: disks.stores.iter().map(Disk::copy).collect(),
        }
    }

    /// What must not be done to a node: its disks are put back to a snapshot.
    pub(crate) fn roll_back(&mut self, node: usize, snapshot: Disks) {
        assert!(!self.up(node));
        self.nodes[node].hurt = true;
        self.nodes[node].disks = snapshot;
        self.watch.replaced(node, false);
        if node >= self.options.nodes {
            self.checks.wiped(node);
        }
    }

    /// The record of the config on a witness's disk.
    pub(crate) fn witness_config(&self, node: usize) -> Option<RecordId> {
        let meta = &mut Reading(&self.nodes[node].disks.meta);
        let chosen = read_superblock(meta).expect("two copies are always intact");
        chosen.superblock.config.map(|c| c.at)
    }

    /// Starts clients that work until they are stopped.
    pub(crate) fn start_clients(&mut self, count: usize, depth: usize, pause: u64) {
        for i in 0..count {
            self.clients.push(Client {
                volume: i % self.options.volumes.len(),
                depth,
                pause,
                under_way: 0,
                stopped: false,
            });
            let client = self.clients.len() - 1;
            self.after(MS, Event::Tick(client));
        }
    }

    pub(crate) fn stop_clients(&mut self) {
        for client in &mut self.clients {
            client.stopped = true;
        }
    }

    pub(crate) fn request(
        &mut self,
        node: usize,
        kind: Kind,
        volume: usize,
        units: std::ops::Range<u64>,
    ) -> u64 {
        let request = Request {
            client: None,
            kind,
            volume,
            units,
            stamp: 0,
            asked: 0,
            node,
            handed_in: false,
        };
        self.ask(node, request)
    }

    /// A scripted write of whole blocks.
    pub(crate) fn write(&mut self, node: usize, volume: usize, block: u64, blocks: u64) -> u64 {
        let units = block * UNITS_PER_BLOCK..(block + blocks) * UNITS_PER_BLOCK;
        let owned = blocks >= 16;
        self.request(node, Kind::Write { owned }, volume, units)
    }

    /// A scripted read of whole blocks.
    pub(crate) fn read(&mut self, node: usize, volume: usize, block: u64, blocks: u64) -> u64 {
        let units = block * UNITS_PER_BLOCK..(block + blocks) * UNITS_PER_BLOCK;
        self.request(node, Kind::Read, volume, units)
    }

    /// How a scripted request ends, within a time; `None` if it does not.
    pub(crate) fn outcome(&mut self, id: u64, time: u64) -> Option<Outcome> {
        self.run_until(time, |c| c.outcomes.contains_key(&id));
        self.outcomes.get(&id).copied()
    }

    /// Writes and waits for the answer.
    pub(crate) fn must_write(&mut self, node: usize, volume: usize, block: u64, blocks: u64) {
        let id = self.write(node, volume, block, blocks);
        assert_eq!(self.outcome(id, 20 * SECOND), Some(Outcome::Done));
    }

    /// Reads everything, at a node that serves.
    pub(crate) fn read_all(&mut self, node: usize) {
        for volume in 0..self.options.volumes.len() {
            let blocks = self.options.volumes[volume];
            let mut at = 0;
            while at < blocks {
                let count = (blocks - at).min(64);
                let id = self.read(node, volume, at, count);
                let outcome = self.outcome(id, 20 * SECOND);
                let spoilt = self.nodes[node].disks.stores[volume].is_spoilt();
                assert!(
                    outcome == Some(Outcome::Done) || spoilt && outcome == Some(Outcome::Error),
                    "a read of volume {volume} from block {at} at node {node}: {outcome:?}"
                );
                at += count;
            }
        }
    }

    /// The node that serves, if one does.
    pub(crate) fn primary(&self) -> Option<usize> {
        (0..self.nodes.len())
            .filter(|&n| self.up(n) && self.nodes[n].view.serving)
            .max_by_key(|&n| self.nodes[n].view.epoch)
    }

    /// Whether the Primary feeds a peer live, or says that it can not.
    pub(crate) fn fed(&self, primary: usize) -> bool {
        self.nodes[primary].view.peers.iter().all(|p| {
            let node = usize::from(p.node.0);
            let told = p.disk_state == DiskState::Diskless
                && p.replication == ReplicationState::Established;
            p.disk_state == DiskState::UpToDate
                || told
                || self.is_too_far(primary, node)
                || self.nodes[node].ruined
                || self.nodes[node].wiped
        })
    }

    /// Whether the Primary says that a peer has everything.
    fn is_fed(&self, primary: usize, peer: usize) -> bool {
        self.nodes[primary]
            .view
            .peers
            .iter()
            .any(|p| usize::from(p.node.0) == peer && p.disk_state == DiskState::UpToDate)
    }

    pub(crate) fn is_too_far(&self, primary: usize, peer: usize) -> bool {
        self.nodes[primary].view.peers.iter().any(|p| {
            usize::from(p.node.0) == peer
                && p.disk_state == DiskState::Outdated
                && p.replication == ReplicationState::Off
        })
    }

    /// These nodes work again: they run, their disks are fast, and frames pass between them.
    pub(crate) fn mend(&mut self, nodes: &[usize]) {
        self.net.snags.clear();
        for &a in nodes {
            for &b in nodes {
                self.net.slow.remove(&(a, b));
                self.net.spoil.remove(&(a, b));
                self.heal_link(a, b);
            }
        }
        for &node in nodes {
            let n = &mut self.nodes[node];
            n.slow = [1; 3];
            n.next_fate = [None; 3];
            n.hung_until = [0; 3];
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
            let stopped = n.view.disk_state == DiskState::Failed || n.drained;
            if self.up(node) && stopped {
                self.crash(node, false);
            }
            if !self.up(node) && !self.nodes[node].ruined {
                self.restart(node);
            }
            for &peer in nodes.iter().filter(|&&p| p != node) {
                let peer = node_id(peer);
                self.admin(node, AdminCommand::Connect { peer });
            }
            self.wake_by(node, self.now);
        }
        self.run_for(600 * MS);
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
        let data = self.data_of(nodes);
        let mut said = Vec::new();
        for attempt in 0..40 {
            let node = data[attempt % data.len()];
            if !self.up(node) {
                continue;
            }
            match self.promote(node, 3 * SECOND) {
                Ok(()) => return (!self.checks.is_beyond()).then_some(node),
                Err(error) => said.push((node, error)),
            }
            if self.checks.is_beyond() {
                return None;
            }
        }
        // The first config is known to nodes that do not have its record, and the disk that held that is harmed. Nothing was
        // ever committed; such nodes are created anew.
        let hurt = self.nodes.iter().any(|n| n.hurt);
        if self.checks.chain_end() == 0 && hurt {
            self.checks.ends_beyond();
            return None;
        }
        if self.needs_resync() {
            return None;
        }
        said.truncate(8);
        panic!("nobody can be promoted: {said:?}");
    }

    /// How many of these nodes can be fed from the journal of the one among them that has trimmed its own furthest. The others need a
    /// resync, which does not exist yet: until then they do not count.
    fn within_the_journal(&self, nodes: &[usize]) -> usize {
        let there = |n: &&usize| self.up(**n) && !self.nodes[**n].wiped;
        let floor = |n: &usize| self.nodes[*n].view.journal_floor.0;
        let highest = nodes.iter().filter(there).map(floor).max().unwrap_or(0);
        let near = |n: &&usize| self.nodes[**n].view.committed.0 + 1 >= highest;
        nodes.iter().filter(there).filter(near).count()
    }

    /// Whether too few members are left that can be fed from a journal.
    fn needs_resync(&mut self) -> bool {
        let needs = self.within_the_journal(&self.data_of(&self.all())) <= self.options.nodes / 2;
        self.stuck |= needs;
        needs
    }

    /// Liveness: a majority works and sees each other, of the others nothing is heard. Somebody can be promoted and writes are
    /// answered, whatever happened before.
    fn a_majority_goes_on(&mut self) {
        let (members, voters) = (self.options.nodes, self.nodes.len());
        let mut core: Vec<usize> = (0..members).filter(|&n| !self.nodes[n].hurt).collect();
        while core.len() > members / 2 + 1 {
            core.remove(self.rng.turns.index(core.len()));
        }
        if core.len() <= members / 2 || self.options.loose_clocks {
            return;
        }
        let data = core.clone();
        let mut witnesses: Vec<usize> =
            (members..voters).filter(|&n| !self.nodes[n].hurt).collect();
        while core.len() <= voters / 2 {
            if witnesses.is_empty() {
                return;
            }
            core.push(witnesses.remove(self.rng.turns.index(witnesses.len())));
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
        // The first promotion needs all; and one that is past the journal needs a resync.
        let floor = |n: &usize| self.nodes[*n].view.journal_floor.0;
        let knows = |n: &usize| self.nodes[*n].view.committed.0;
        let past_the_journal =
            data.iter().map(floor).max() > data.iter().map(|n| knows(n) + 1).min();
        if self.checks.chain_end() == 0 || past_the_journal {
            return;
        }
        let Some(primary) = self.promote_any(&core) else {
            return;
        };
        self.trace(|| format!("-- {core:?} go on, with {primary} as Primary"));
        let behind = |c: &Self| {
            core.iter()
                .any(|&n| n != primary && c.is_too_far(primary, n))
        };
        let id = self.write(primary, 0, 5, 2);
        let done = self.run_until(20 * SECOND, |c| c.outcomes.contains_key(&id) || behind(c));
        let outcome = self.outcomes.get(&id);
        assert!(
            behind(self) || self.checks.is_beyond() || done && outcome == Some(&Outcome::Done),
            "with {core:?} healthy, a write at {primary} came to {outcome:?}"
        );
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
        let Some(primary) = self.promote_any(&self.all()) else {
            return;
        };
        if !self.everything_is_answered(primary) {
            return;
        }
        self.must_write(primary, 0, 3, 2);
        let fed = self.run_until(30 * SECOND, |c| c.fed(primary));
        assert!(
            fed,
            "not all peers catch up: {:?}",
            self.nodes[primary].view.peers
        );
        self.read_all(primary);
        let equal: Vec<usize> = (0..self.nodes.len())
            .filter(|&n| n == primary || self.is_fed(primary, n))
            .collect();
        assert_eq!(self.command(primary, AdminCommand::Demote), Ok(()));
        self.run_for(SECOND);
        let mut equal = equal;
        for node in 0..self.nodes.len() {
            if self.up(node) {
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
        (0..self.nodes.len()).for_each(|n| self.leaks_nothing(n));
        if let Err(error) = self.oracle.judge() {
            panic!("{error}");
        }
    }

    /// Whether that comes true; else it is excused.
    fn everything_is_answered(&mut self, primary: usize) -> bool {
        let nothing_waits = |c: &Self| c.requests.values().all(|r| r.client.is_none());
        let answered = self.run_until(30 * SECOND, |c| {
            c.nodes[primary].view.serving && nothing_waits(c)
        });
        self.stop_clients();
        if answered || self.run_until(20 * SECOND, nothing_waits) {
            return true;
        }
        if self.needs_resync() {
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

    /// P10: drained stores are equal, and hold what was committed.
    fn compare(&mut self, equal: &[usize]) {
        let end = self.checks.chain_end();
        let Some(&primary) = equal.first() else {
            return;
        };
        for &node in equal {
            for volume in 0..self.options.volumes.len() {
                let store = &self.nodes[node].disks.stores[volume];
                self.checks.store_is_prefix(node, volume, store, end, end);
                let best = &self.nodes[primary].disks.stores[volume];
                for block in 0..self.options.volumes[volume] {
                    let zeroes = [0; BLOCK_BYTES];
                    let bytes = store.block(block).map_or(zeroes.as_slice(), |b| b);
                    let other = best.block(block).map_or(zeroes.as_slice(), |b| b);
                    assert!(
                        bytes == other,
                        "P10: nodes {node} and {primary} differ in volume {volume} block {block}"
                    );
                    stamps_of_block(bytes, block)
                        .unwrap_or_else(|e| panic!("node {node} volume {volume}: {e}"));
                }
            }
        }
    }
}

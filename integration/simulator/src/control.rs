//! What happens to a cluster from outside: operators, crashes, cuts; and the last judgement.

use replicator::io::*;
use replicator::meta::superblock::{COPIES, Superblock, copy_offset};
use replicator::recover::read_superblock;
use replicator::types::*;
use replicator::view::{DiskState, Membership, ReplicationState};

use crate::disk::Reading;
use crate::disks::Disks;
use crate::harness::*;
use crate::rng::Rng;

impl Cluster {
    pub(crate) fn admin(&mut self, node: usize, command: AdminCommand) -> u64 {
        let id = self.next_id();
        if command == AdminCommand::Drain {
            self.bounds.drains.insert(id);
        }
        if matches!(command, AdminCommand::Verify { .. }) {
            self.verifying.asked(id, node);
        }
        if matches!(command, AdminCommand::SuspendIo { .. }) {
            self.bounds.suspends.insert(id);
        }
        self.nodes[node].renews |= matches!(command, AdminCommand::Invalidate { .. });
        self.note_fencing(node, id, command);
        if let AdminCommand::ConfirmStopped { peer } = command {
            self.told_off(node, usize::from(peer.0));
        }
        if let AdminCommand::Drop { .. }
        | AdminCommand::Replace { .. }
        | AdminCommand::Fence { .. }
        | AdminCommand::Failover { .. } = command
        {
            let life = self.nodes[node].life;
            self.bounds.changes.insert(id, (node, life));
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
        self.forget_fencing_at(node);
        if power {
            for disk in self.nodes[node].disks.all_mut() {
                disk.power_cut(&mut self.rng.disks);
            }
            self.new_clock(node);
        }
        self.within(node, |c| {
            c.volumes_unanswered(node);
            c.checks.crashed(node);
            c.drop_clients(node);
        });
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
        self.checks.wiped(node);
        self.nodes[node].disks = self.format(&config, false);
        self.nodes[node].hurt = true;
        self.nodes[node].ruined = false;
        self.nodes[node].wiped = true;
        self.nodes[node].sums_rotted = false;
        self.nodes[node].not_given.clear();
        self.watch.replaced(node);
    }

    /// A copy of a node's disks.
    pub(crate) fn snapshot(&self, node: usize) -> Disks {
        assert!(!self.up(node));
        self.nodes[node].disks.copy()
    }

    /// What must not be done to a node: its disks are put back to a snapshot.
    pub(crate) fn roll_back(&mut self, node: usize, snapshot: Disks) {
        assert!(!self.up(node));
        self.nodes[node].hurt = true;
        self.nodes[node].disks = snapshot;
        // It may be older than the present life of the node's disks.
        let life = self.nodes[node]
            .disks
            .meta
            .superblock()
            .map(|s| s.incarnation);
        if let Some(life) = life.filter(|&l| l != self.checks.life_of(node)) {
            self.checks.wiped(node);
            self.checks.born(node, life);
        }
        self.watch.replaced(node);
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

    /// The node that serves, if one does. Those that went on alone are not meant.
    pub(crate) fn primary(&self) -> Option<usize> {
        (0..self.nodes.len())
            .filter(|&n| self.up(n) && self.nodes[n].view.serving && !self.is_exile(n))
            .max_by_key(|&n| self.nodes[n].view.epoch)
    }

    /// Whether the Primary feeds all peers live, but for those that have nothing that it can go on from.
    pub(crate) fn fed(&self, primary: usize) -> bool {
        self.nodes[primary].view.peers.iter().all(|p| {
            let node = usize::from(p.node.0);
            let told = p.disk_state == DiskState::Diskless
                && p.replication == ReplicationState::Established;
            p.disk_state == DiskState::UpToDate
                || told
                || self.nodes[node].ruined
                || p.membership == Membership::Out
                || self.is_exile(node)
                || self.nodes[node].hurt && self.nodes[node].view.failed
        })
    }

    /// Whether the Primary says that a peer has everything.
    pub(crate) fn is_fed(&self, primary: usize, peer: usize) -> bool {
        self.nodes[primary]
            .view
            .peers
            .iter()
            .any(|p| usize::from(p.node.0) == peer && p.disk_state == DiskState::UpToDate)
    }

    #[cfg(test)]
    pub(crate) fn is_too_far(&self, primary: usize, peer: usize) -> bool {
        self.nodes[primary].view.peers.iter().any(|p| {
            usize::from(p.node.0) == peer
                && p.disk_state == DiskState::Outdated
                && p.replication == ReplicationState::Off
        })
    }
}

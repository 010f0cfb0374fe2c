//! What happens to a cluster from outside: operators, crashes, cuts; and the last judgement.

use replicator::io::*;
use replicator::recover::read_superblock;
use replicator::types::*;
use replicator::view::{DiskState, ReplicationState};

use crate::client::{Client, Kind, Request};
use crate::disk::{Disk, Disks, Reading, block_at};
use crate::harness::*;
use crate::oracle::{UNITS_PER_BLOCK, stamps_of_block};

impl Cluster {
    pub(crate) fn admin(&mut self, node: usize, command: AdminCommand) -> u64 {
        let id = self.next_id();
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
            for store in &mut self.nodes[node].disks.stores {
                store.power_cut(&mut self.rng);
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

    /// Cuts a node off from all others, both ways.
    pub(crate) fn isolate(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|&o| o != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Lets everything pass again. What was held up arrives late.
    pub(crate) fn heal(&mut self) {
        self.net.cut.clear();
        for conn in 0..self.net.conns.len() {
            for side in 0..2 {
                if !self.net.conns[conn].closed[side] {
                    let wait = self.rng.below(MS);
                    self.after(wait, Event::Readable(conn, side));
                }
            }
        }
    }

    /// Resets the connection between two nodes.
    pub(crate) fn reset(&mut self, a: usize, b: usize) {
        for (conn, _) in self.net.of(a) {
            if self.net.conns[conn].nodes.contains(&b) {
                let side = self.rng.index(2);
                self.close(conn, side);
            }
        }
    }

    /// Gives a node new, empty disks.
    pub(crate) fn wipe(&mut self, node: usize) {
        assert!(!self.up(node));
        let config = self.nodes[node].config.clone();
        self.nodes[node].disks = self.format(&config);
        self.checks.wiped(node);
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
        self.checks.wiped(node);
        self.nodes[node].may_be_damaged = true;
        self.nodes[node].disks = snapshot;
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

    fn request(
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
                assert_eq!(
                    self.outcome(id, 20 * SECOND),
                    Some(Outcome::Done),
                    "a read of volume {volume} from block {at} at node {node}"
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
            p.disk_state == DiskState::UpToDate
                || p.disk_state == DiskState::Diskless
                    && p.replication == ReplicationState::Established
                || self.is_too_far(primary, usize::from(p.node.0))
        })
    }

    pub(crate) fn is_too_far(&self, primary: usize, peer: usize) -> bool {
        self.nodes[primary].view.peers.iter().any(|p| {
            usize::from(p.node.0) == peer
                && p.disk_state == DiskState::Outdated
                && p.replication == ReplicationState::Off
        })
    }

    /// Everything works again: nodes run, disks are fast, frames pass.
    pub(crate) fn mend(&mut self) {
        self.heal();
        for node in 0..self.nodes.len() {
            let n = &mut self.nodes[node];
            n.slow = [1, 1];
            n.fail_next = None;
            if n.frozen_until > self.now {
                n.frozen_until = self.now;
            }
            if self.up(node) && self.nodes[node].view.disk_state == DiskState::Failed {
                self.crash(node, false);
            }
            if !self.up(node) {
                self.restart(node);
            }
            for peer in (0..self.nodes.len()).filter(|&p| p != node) {
                let peer = node_id(peer);
                self.admin(node, AdminCommand::Connect { peer });
            }
            self.wake_by(node, self.now);
        }
    }

    /// Promotes somebody, whoever can be.
    pub(crate) fn promote_any(&mut self) -> usize {
        for attempt in 0..40 {
            let node = attempt % self.options.nodes;
            if self.promote(node, 3 * SECOND).is_ok() {
                return node;
            }
        }
        panic!("nobody can be promoted");
    }

    /// The last judgement: everything is mended, somebody is promoted, all requests are answered, all nodes catch up; then all
    /// stores are drained and compared.
    pub(crate) fn conclude(&mut self) {
        self.mend();
        self.run_for(SECOND);
        self.mend(); // What was about to fail has failed by now.
        self.run_for(SECOND);
        let primary = self.promote_any();
        let answered = self.run_until(30 * SECOND, |c| {
            c.nodes[primary].view.serving && c.requests.values().all(|r| r.client.is_none())
        });
        self.stop_clients();
        let answered = answered
            || self.run_until(20 * SECOND, |c| {
                c.requests.values().all(|r| r.client.is_none())
            });
        if !answered {
            for node in &self.nodes {
                let memory = node.replica.as_ref().map(|r| r.memory());
                eprintln!("{memory:?}\n{:?}\n", node.view);
            }
            panic!(
                "requests are never answered at {primary}: {:?}",
                self.requests
            );
        }
        self.must_write(primary, 0, 3, 2);
        let fed = self.run_until(30 * SECOND, |c| c.fed(primary));
        assert!(
            fed,
            "not all peers catch up: {:?}",
            self.nodes[primary].view.peers
        );
        self.read_all(primary);
        let far: Vec<usize> = (0..self.nodes.len())
            .filter(|&n| n != primary && self.is_too_far(primary, n))
            .collect();
        assert_eq!(self.command(primary, AdminCommand::Demote), Ok(()));
        self.run_for(SECOND);
        for node in 0..self.nodes.len() {
            assert_eq!(self.command(node, AdminCommand::Drain), Ok(()));
        }
        self.compare(primary, &far);
        if let Err(error) = self.oracle.judge() {
            panic!("{error}");
        }
    }

    /// P10: drained stores are equal, and hold what was committed.
    fn compare(&mut self, primary: usize, far: &[usize]) {
        let end = self.checks.chain_end();
        for node in 0..self.options.nodes {
            if far.contains(&node) || self.nodes[node].may_be_damaged {
                continue;
            }
            for volume in 0..self.options.volumes.len() {
                let store = &self.nodes[node].disks.stores[volume];
                self.checks.store_is_prefix(node, volume, store, end);
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

    /// Rots a block of a node's journal that holds the batch beginning with the newest record.
    pub(crate) fn rot_journal(&mut self, node: usize, offset: u64) {
        assert!(!self.up(node));
        self.nodes[node].may_be_damaged = true;
        self.nodes[node].disks.journal.rot(block_at(offset));
    }
}

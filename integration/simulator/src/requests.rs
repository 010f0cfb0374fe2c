//! Requests: clients' own, those of stories, and how they end.

use replicator::io::*;
use replicator::memory::Buffer;

use crate::client::{Client, Kind, Mapped, Request, draw};
use crate::disk::Block;
use crate::harness::*;
use crate::memory::SimBuffer;
use crate::oracle::UNITS_PER_BLOCK;
use crate::volumes::STORES;

impl Cluster {
    pub(crate) fn reply(
        &mut self,
        node: usize,
        id: u64,
        result: Result<Answer<SimBuffer>, ClientError>,
    ) {
        let request = self.requests.remove(&id).expect("it waits for an answer");
        self.operations += 1;
        self.hash.number(self.now);
        self.hash.number(id << 1 | u64::from(result.is_ok()));
        assert_eq!(request.node, node);
        let epoch = self.nodes[node].reign;
        if let Some(client) = request.client {
            self.clients[client].under_way -= 1;
        }
        let done = result.is_ok();
        match result {
            Ok(answer) => {
                let reads = matches!(request.kind, Kind::Read | Kind::Flush);
                self.answers_unfenced(node, reads);
                if !self.options.loose_clocks {
                    self.checks.answers(node, epoch);
                    self.answers_in_time(node);
                }
                match (request.kind, answer) {
                    (Kind::Flush, Answer::Done) => self.was_mapped(node, &request),
                    (Kind::Write { .. } | Kind::Zero { .. }, Answer::Done) => {
                        self.oracle.answered(request.stamp, self.now);
                    }
                    (
                        Kind::Read,
                        Answer::Data {
                            buffer,
                            start,
                            length,
                        },
                    ) => {
                        let first = request.units.start / UNITS_PER_BLOCK;
                        self.was_committed(node, buffer.bytes(), first);
                        let bytes = &buffer.bytes()[start..start + length];
                        let units = request.units.clone();
                        if !self.options.loose_clocks && !self.checks.is_beyond() {
                            self.oracle
                                .was_read(request.volume, units, bytes, request.asked, self.now)
                                .unwrap_or_else(|e| panic!("node {node}: {e}"));
                        }
                    }
                    (kind, _) => panic!("{kind:?} was answered as something else"),
                }
            }
            Err(_) => {
                self.fails_with_reason(node, &request);
                if matches!(request.kind, Kind::Write { .. } | Kind::Zero { .. }) {
                    self.oracle.in_doubt(request.stamp, epoch);
                }
            }
        }
        if request.client.is_none() {
            let outcome = if done { Outcome::Done } else { Outcome::Error };
            self.outcomes.insert(id, outcome);
        }
    }

    /// A map of holes is complete: the store was looked at, and then the flush was answered. Each hole is a read of zeroes.
    fn was_mapped(&mut self, node: usize, request: &Request) {
        if self.options.loose_clocks || self.checks.is_beyond() {
            return;
        }
        for (block, mapped) in (0..).zip(&request.map) {
            let stored = self.nodes[node].disks.stores[request.volume].block(block);
            let zeroes = match mapped {
                Mapped::Zeroes => true,
                Mapped::Anything => false,
                Mapped::AsStored => stored.is_none_or(|bytes| bytes.iter().all(|&b| b == 0)),
            };
            if zeroes {
                let units = block * UNITS_PER_BLOCK..(block + 1) * UNITS_PER_BLOCK;
                self.oracle
                    .was_read(
                        request.volume,
                        units,
                        &Block::zero(),
                        request.asked,
                        self.now,
                    )
                    .expect("zeroes are nobody's write");
            }
        }
    }

    /// A request will never be answered.
    pub(crate) fn drop_request(&mut self, id: u64) {
        let Some(request) = self.requests.remove(&id) else {
            return;
        };
        self.operations += 1;
        if let Some(client) = request.client {
            self.clients[client].under_way -= 1;
        } else {
            self.outcomes.insert(id, Outcome::Dropped);
        }
        if matches!(request.kind, Kind::Write { .. } | Kind::Zero { .. }) {
            if request.handed_in {
                let epoch = self.nodes[request.node].reign;
                self.oracle.in_doubt(request.stamp, epoch);
            } else {
                self.oracle.never_happened(request.stamp);
            }
        }
    }

    pub(crate) fn drop_clients(&mut self, node: usize) {
        self.nodes[node].accepting = false;
        let ids: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, r)| r.node == node)
            .map(|(&id, _)| id)
            .collect();
        for id in ids {
            self.drop_request(id);
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Sends a request to a node.
    pub(crate) fn ask(&mut self, node: usize, mut request: Request) -> u64 {
        let id = self.next_id();
        request.node = node;
        request.asked = self.now;
        if matches!(request.kind, Kind::Write { .. } | Kind::Zero { .. }) {
            let zero = matches!(request.kind, Kind::Zero { .. });
            let (volume, units, now) = (request.volume, request.units.clone(), self.now);
            request.stamp = self.within(node, |c| c.oracle.write(volume, units, zero, now));
        }
        if let Some(client) = request.client {
            self.clients[client].under_way += 1;
        }
        self.requests.insert(id, request);
        self.post(node, Happening::Client(id));
        id
    }

    pub(crate) fn tick(&mut self, client: usize) {
        let c = self.clients[client].clone();
        if c.stopped {
            return;
        }
        let wait = self.rng.clients.between(1, 2 * c.pause);
        self.after(wait, Event::Tick(client));
        let open: Vec<usize> = (0..self.nodes.len())
            .filter(|&n| self.nodes[n].replica.is_some() && self.nodes[n].accepting)
            .collect();
        if c.under_way >= c.depth || open.is_empty() {
            return;
        }
        let node = open[self.rng.clients.index(open.len())];
        let blocks = self.blocks_at(node, c.volume);
        if blocks < 2 {
            return; // It is not there at present.
        }
        let (kind, units) = draw(&mut self.rng.clients, blocks, self.big_percent);
        let request = Request {
            client: Some(client),
            kind,
            volume: c.volume,
            units,
            stamp: 0,
            asked: 0,
            node,
            handed_in: false,
            map: Vec::new(),
        };
        self.ask(node, request);
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
            map: Vec::new(),
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
        for volume in 0..STORES {
            let blocks = self.blocks_at(node, volume);
            for at in (0..blocks).step_by(64) {
                let count = (blocks - at).min(64);
                // One block that nobody has ends the whole read, and may end it before another one is found to be bad.
                if !self.reads_well(node, volume, at, count) {
                    (at..at + count).for_each(|block| {
                        self.reads_well(node, volume, block, 1);
                    });
                }
            }
        }
    }

    /// Whether blocks can be read: they can, unless a disk was harmed.
    fn reads_well(&mut self, node: usize, volume: usize, at: u64, count: u64) -> bool {
        let id = self.read(node, volume, at, count);
        let outcome = self.outcome(id, 20 * SECOND);
        let bad = self.is_suspect(node, volume, at, count);
        assert!(
            outcome == Some(Outcome::Done) || bad && outcome == Some(Outcome::Error),
            "a read of volume {volume} from block {at} at node {node}: {outcome:?}"
        );
        outcome == Some(Outcome::Done)
    }
}

//! Carrying out what a replica wants: disks, streams, answers.

use replicator::io::*;
use replicator::journal::batch;
use replicator::memory::Buffer;
use replicator::types::*;
use replicator::wire::frame::{FRAME_BYTES_MAX, Frame, encode};

use crate::client::{Kind, Request, draw};
use crate::disk::{Block, Disk, Disks, Fate, block_at};
use crate::harness::*;
use crate::memory::{SimBuffer, flip};
use crate::net::{Net, Packet};
use crate::oracle::UNITS_PER_BLOCK;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    Meta,
    Journal,
    Store(usize),
}

enum What {
    Write {
        block: u64,
        data: Vec<Block>,
        /// The core's handles, until the end.
        _hold: Vec<SimBuffer>,
        fate: Fate,
    },
    Read {
        block: u64,
        buffer: SimBuffer,
        early: Option<Result<Vec<u8>, DiskError>>,
    },
    Flush {
        mark: u64,
    },
}

/// Kinds of disks, as far as faults are concerned.
pub(crate) const JOURNAL: usize = 0;
pub(crate) const STORE: usize = 1;
pub(crate) const META: usize = 2;

impl Which {
    fn kind(self) -> usize {
        match self {
            Self::Journal => JOURNAL,
            Self::Store(_) => STORE,
            Self::Meta => META,
        }
    }
}

fn read(disk: &Disk, block: u64, buffer: &SimBuffer) -> Result<Vec<u8>, DiskError> {
    disk.read_new(block, u64::from(buffer.blocks()))
}

impl Flight {
    /// Whether it is of a disk of some kind, and writes.
    pub(crate) fn writes_to(&self, kind: usize) -> bool {
        self.which.kind() == kind && matches!(self.what, What::Write { .. })
    }

    /// The same of reads.
    pub(crate) fn reads_from(&self, kind: usize) -> bool {
        self.which.kind() == kind && matches!(self.what, What::Read { .. })
    }

    pub(crate) fn is_of_meta(&self) -> bool {
        self.which == Which::Meta
    }
}

impl What {
    fn fingerprint(&self) -> u64 {
        match self {
            Self::Write { block, data, .. } => block << 20 | (data.len() as u64) << 2,
            Self::Read { block, .. } => block << 20 | 1,
            Self::Flush { mark } => mark << 20 | 2,
        }
    }
}

/// A disk operation in flight.
pub(crate) struct Flight {
    ticket: Ticket,
    which: Which,
    what: What,
    /// First records of the batches that are durable after it.
    batches: Vec<u64>,
}

fn disk_of(disks: &mut Disks, which: Which) -> &mut Disk {
    match which {
        Which::Meta => &mut disks.meta,
        Which::Journal => &mut disks.journal,
        Which::Store(volume) => &mut disks.stores[volume],
    }
}

fn blocks_of(parts: &[SimBuffer]) -> Vec<Block> {
    let mut blocks = Vec::new();
    for part in parts {
        blocks.extend(part.share().blocks());
    }
    blocks
}

fn write_of(block: u64, parts: Parts<SimBuffer>) -> What {
    What::Write {
        block,
        data: blocks_of(&parts),
        _hold: parts.into_iter().collect(),
        fate: Fate::Done,
    }
}

impl Cluster {
    pub(crate) fn carry_out(&mut self, node: usize, output: Output<SimBuffer>) {
        match output {
            Output::Disk { ticket, op } => self.start_flight(node, ticket, op),
            Output::Send { conn, frame, batch } => self.send(node, conn, &frame, batch),
            Output::Drop {
                conn,
                reason,
                stand_alone,
            } => {
                self.trace(|| format!("{node} drops {conn:?}: {reason}"));
                let (conn, side) = Net::find(conn);
                assert!(
                    !matches!(reason, DropReason::Protocol(_) | DropReason::Unrelated(_))
                        || self.net.conns[conn].spoilt
                        || self.checks.is_beyond(),
                    "node {node} takes offence at a sound peer: {reason}"
                );
                if stand_alone {
                    let peer = self.net.conns[conn].nodes[1 - side];
                    self.nodes[node].wanted[peer] = false;
                }
                self.close(conn, side);
            }
            Output::Reach { peer, wanted } => {
                self.nodes[node].wanted[usize::from(peer.0)] = wanted;
            }
            Output::Reply { req, result } => self.reply(node, req.0, result),
            Output::DropClients => {
                self.trace(|| format!("{node} drops its clients"));
                self.drop_clients(node);
            }
            Output::AdminReply { id, result } => {
                self.trace(|| format!("{node} answers {id:?}: {result:?}"));
                self.answers_drain(node, id.0, result.is_ok());
                let twice = self.admin_results.insert(id.0, result);
                assert!(twice.is_none(), "one answer each");
            }
            Output::Log(line) => {
                self.trace(|| format!("{node} {:?}: {}", line.level, line.text));
                self.lines.push((node, line.text));
            }
        }
    }

    fn start_flight(&mut self, node: usize, ticket: Ticket, op: DiskOp<SimBuffer>) {
        let id = self.next_id();
        let mut batches = Vec::new();
        let (which, what) = match op {
            DiskOp::JournalWrite { offset, parts } => {
                batches = self.journal_write(node, id, offset, &parts);
                (Which::Journal, write_of(block_at(offset), parts))
            }
            DiskOp::MetaWrite { offset, parts } => (Which::Meta, write_of(block_at(offset), parts)),
            DiskOp::StoreWrite {
                volume,
                offset,
                parts,
            } => (
                Which::Store(usize::from(volume.0)),
                write_of(block_at(offset), parts),
            ),
            DiskOp::StoreZero {
                volume,
                offset,
                length,
                ..
            } => {
                let count = usize::try_from(block_at(length)).expect("64 MiB");
                let what = What::Write {
                    block: block_at(offset),
                    data: vec![Block::zero(); count],
                    _hold: Vec::new(),
                    fate: Fate::Done,
                };
                (Which::Store(usize::from(volume.0)), what)
            }
            DiskOp::JournalRead { offset, buffer } => {
                let what = self.read_of(node, Which::Journal, block_at(offset), buffer);
                (Which::Journal, what)
            }
            DiskOp::StoreRead {
                volume,
                offset,
                buffer,
            } => {
                let which = Which::Store(usize::from(volume.0));
                (which, self.read_of(node, which, block_at(offset), buffer))
            }
            DiskOp::StoreFlush { volume } => {
                let volume = usize::from(volume.0);
                let mark = self.nodes[node].disks.stores[volume].flush_mark();
                (Which::Store(volume), What::Flush { mark })
            }
        };
        self.launch(node, id, ticket, which, what, batches);
        self.disk_is_bounded(node);
    }

    fn launch(
        &mut self,
        node: usize,
        id: u64,
        ticket: Ticket,
        which: Which,
        mut what: What,
        batches: Vec<u64>,
    ) {
        let early = self.rng.disks.chance(50);
        let kind = which.kind();
        let n = &mut self.nodes[node];
        if let What::Write {
            block, data, fate, ..
        } = &mut what
        {
            disk_of(&mut n.disks, which).begin(*block, data, early);
            if let Some(next) = n.next_fate[kind].take() {
                *fate = next;
                n.may_fail |= matches!(next, Fate::Fails(_));
                n.hurt |= matches!(next, Fate::Lost | Fate::Stray(_));
            }
        }
        let mean = self.options.disk_ns * n.slow[kind];
        let life = n.life;
        self.hash.number(self.now);
        self.hash.number(what.fingerprint());
        let flight = Flight {
            ticket,
            which,
            what,
            batches,
        };
        n.flights.insert(id, flight);
        let wait = if self.rng.disks.chance(2) {
            mean * 10
        } else {
            self.rng.disks.between(mean / 4, mean * 2)
        };
        let event = Event::Disk {
            node,
            life,
            flight: id,
        };
        self.after(wait, event);
    }

    fn read_of(&mut self, node: usize, which: Which, block: u64, buffer: SimBuffer) -> What {
        let disk = disk_of(&mut self.nodes[node].disks, which);
        let early = self
            .rng
            .disks
            .chance(50)
            .then(|| read(disk, block, &buffer));
        What::Read {
            block,
            buffer,
            early,
        }
    }

    /// Which batches a journal write makes durable. A batch across the ring's end takes two writes, its second part first.
    fn journal_write(
        &mut self,
        node: usize,
        id: u64,
        offset: u64,
        parts: &Parts<SimBuffer>,
    ) -> Vec<u64> {
        let wrapped = self.nodes[node].wrapped.take();
        let mut batches = Vec::new();
        let mut at = block_at(offset);
        for part in parts {
            let Some(first) = self.checks.saw(node, part.bytes(), false) else {
                assert_eq!(offset, BLOCK_BYTES_U64, "journal writes begin with headers");
                self.nodes[node].wrapped = Some(id);
                return batches;
            };
            batches.push(first);
            if let Ok(header) = batch::read_header(part.bytes()) {
                self.journals(node, at, &header);
                if header.blocks() == part.blocks() {
                    self.watch.batch(node, part.bytes(), "its journal");
                }
            }
            at += u64::from(part.blocks());
        }
        // The split batch, if there is one, is durable with the later of its two writes.
        if let Some(wrapped) = wrapped
            && let Some(flight) = self.nodes[node].flights.get_mut(&wrapped)
            && let Some(last) = batches.last()
        {
            flight.batches.push(*last);
        }
        batches
    }

    pub(crate) fn flight_ends(&mut self, node: usize, life: u64, id: u64) {
        let n = &mut self.nodes[node];
        if n.life != life || n.replica.is_none() {
            return;
        }
        let Some(flight) = n.flights.get(&id) else {
            return;
        };
        let hung_until = n.hung_until[flight.which.kind()];
        if hung_until > self.now {
            let event = Event::Disk {
                node,
                life,
                flight: id,
            };
            self.at(hung_until, event);
            return;
        }
        let Some(flight) = n.flights.remove(&id) else {
            return;
        };
        let disk = disk_of(&mut n.disks, flight.which);
        let mut result = Ok(());
        match flight.what {
            What::Write {
                block, data, fate, ..
            } => result = disk.end(block, &data, fate, &mut self.rng.disks),
            What::Read {
                block,
                buffer,
                early,
            } => match early.unwrap_or_else(|| read(disk, block, &buffer)) {
                Ok(bytes) => buffer.fill(bytes),
                Err(error) => {
                    result = Err(error);
                    self.nodes[node].may_fail = true;
                }
            },
            What::Flush { mark } => disk.flushed(mark),
        }
        if result.is_err() {
            // A batch in two parts is not durable by the other one alone.
            for other in self.nodes[node].flights.values_mut() {
                other.batches.retain(|b| !flight.batches.contains(b));
            }
        } else {
            for first in flight.batches {
                let elsewhere = self.nodes[node]
                    .flights
                    .values()
                    .any(|f| f.batches.contains(&first));
                if !elsewhere {
                    self.checks.durable(node, first);
                }
            }
        }
        if node >= self.options.nodes
            && let Some(at) = self.witness_config(node)
        {
            self.checks.witness_holds(node, at.epoch.0, at.seq.0);
        }
        self.post(node, Happening::Disk(flight.ticket, result));
    }

    /// What was in flight when a node stopped.
    pub(crate) fn tear_flights(&mut self, node: usize) {
        let flights = std::mem::take(&mut self.nodes[node].flights);
        for flight in flights.into_values() {
            if let What::Write { block, data, .. } = flight.what {
                let disk = disk_of(&mut self.nodes[node].disks, flight.which);
                disk.tear(block, &data, &mut self.rng.disks);
            }
        }
    }

    fn send(&mut self, node: usize, conn: ConnId, frame: &Frame, batch: Option<SimBuffer>) {
        let (conn, side) = Net::find(conn);
        self.says(node, conn, side, frame);
        if let Some(batch) = &batch {
            self.watch.batch(node, batch.bytes(), "a peer");
            if let Frame::Append { epoch, .. } = frame
                && let Ok(header) = batch::read_header(batch.bytes())
            {
                self.feeds(node, (conn, side), epoch.0, &header);
            }
        }
        if let Some(batch) = &batch
            && let Frame::Append { epoch, .. } = frame
            && batch::read_header(batch.bytes()).is_ok_and(|h| h.epoch == *epoch)
        {
            self.checks.saw(node, batch.bytes(), true);
        }
        if let Frame::Config(told) = frame {
            let at = told.config.at;
            self.checks.tells_witness(node, at.epoch.0, at.seq.0);
        }
        let blocks = batch.as_ref().map_or(0, Buffer::blocks);
        self.trace(|| {
            let to = self.net.conns[conn].nodes[1 - side];
            format!("{node} to {to} on {conn}: {frame:?} and {blocks} blocks")
        });
        let mut bytes = vec![0; FRAME_BYTES_MAX];
        let length = encode(frame, blocks, &mut bytes);
        bytes.truncate(length);
        self.hash.number(self.now);
        self.hash.bytes(&bytes);
        let link = self.net.link(conn, side);
        let mean = self.options.net_ns * self.net.slow.get(&link).copied().unwrap_or(1);
        let delay = if self.rng.net.chance(2) {
            mean * 20
        } else {
            self.rng.net.between(mean / 4, mean * 2)
        };
        let c = &mut self.net.conns[conn];
        if !c.up[side] || c.closed[side] {
            return;
        }
        let way = (node, c.nodes[1 - side]);
        *self.net.sent_blocks.entry(way).or_default() += u64::from(blocks);
        let due = (self.now + delay).max(c.pipes[side].back().map_or(0, |p| p.due));
        let mut spoilt = false;
        let mut shared = batch.as_ref().map(SimBuffer::share);
        let forgery = self.net.forge.get(&link);
        if let Some((forged, batch)) = forgery.and_then(|f| f.of(frame, shared.as_ref())) {
            self.net.forge.remove(&link);
            self.net.conns[conn].spoilt = true;
            bytes.resize(FRAME_BYTES_MAX, 0);
            let length = encode(&forged, blocks, &mut bytes);
            bytes.truncate(length);
            shared = batch;
        }
        if let Some(spoil) = self.net.spoil.get(&link).copied()
            && (shared.is_some() || !spoil.batch)
        {
            self.net.spoil.remove(&link);
            self.net.conns[conn].spoilt = true;
            match &mut shared {
                Some(shared) if spoil.batch => shared.flip(spoil.bit),
                _ => {
                    flip(&mut bytes, spoil.bit);
                    spoilt = true;
                }
            }
        }
        let c = &mut self.net.conns[conn];
        let mut packet = Packet {
            due,
            bytes,
            batch: shared,
            spoilt,
            hold: batch,
        };
        let room = c.pipes[side].len() < 8;
        if packet.hold.is_some() && room {
            packet.hold = None;
            let wait = self.rng.net.below(200 * US);
            self.after(wait, Event::Sent(conn, side));
        }
        self.net.conns[conn].pipes[side].push_back(packet);
        self.at(due, Event::Readable(conn, 1 - side));
    }

    /// One end of a connection is closed by its node.
    pub(crate) fn close(&mut self, conn: usize, side: usize) {
        self.net.conns[conn].gives_up[side] = true;
        let wait = self.rng.net.below(MS);
        self.after(wait, Event::Closed(conn, side));
        self.hang_up(conn, 1 - side);
    }

    /// A connection breaks at once: what is under way on it is lost. Both ends notice soon, if they can.
    pub(crate) fn break_now(&mut self, conn: usize, side: usize) {
        let c = &mut self.net.conns[conn];
        c.up = [false; 2];
        c.pipes.iter_mut().for_each(|pipe| pipe.clear());
        self.close(conn, side);
    }

    /// The other end will notice.
    pub(crate) fn hang_up(&mut self, conn: usize, side: usize) {
        let wait = self.rng.net.below(5 * MS);
        self.after(wait, Event::Closed(conn, side));
    }

    pub(crate) fn connection_closed(&mut self, conn: usize, side: usize) {
        let c = &mut self.net.conns[conn];
        if c.closed[side] {
            return;
        }
        let (node, other) = (c.nodes[side], c.nodes[1 - side]);
        // Nothing tells this end while the other can not be heard, unless it closes by itself.
        if !c.gives_up[side] && !self.net.passes(other, node) {
            self.after(20 * MS, Event::Closed(conn, side));
            return;
        }
        let c = &mut self.net.conns[conn];
        c.closed[side] = true;
        c.pipes[side].iter_mut().for_each(|p| p.hold = None);
        if c.lives[side] == self.nodes[node].life {
            self.post(node, Happening::PeerDown(conn, side));
        }
    }

    pub(crate) fn connection_up(&mut self, conn: usize, side: usize) {
        let c = &mut self.net.conns[conn];
        let node = c.nodes[side];
        if c.closed[side] || c.lives[side] != self.nodes[node].life {
            return;
        }
        c.up[side] = true;
        self.post(node, Happening::PeerUp(conn, side));
        self.after(0, Event::Readable(conn, side));
    }

    pub(crate) fn dial(&mut self, a: usize, b: usize) {
        let wait = self.rng.net.between(20 * MS, 80 * MS);
        self.after(wait, Event::Dial(a, b));
        let up =
            |n: usize| self.nodes[n].replica.is_some() && self.nodes[n].frozen_until <= self.now;
        let wanted = self.nodes[a].wanted[b] && self.nodes[b].wanted[a];
        let passes = self.net.passes(a, b) && self.net.passes(b, a);
        if !up(a) || !up(b) || !wanted || !passes || self.net.connected(a, b) {
            return;
        }
        let lives = [self.nodes[a].life, self.nodes[b].life];
        let conn = self.net.open([a, b], lives);
        for side in 0..2 {
            let wait = self.rng.net.below(4 * self.options.net_ns);
            self.after(wait, Event::PeerUp(conn, side));
        }
    }

    fn reply(&mut self, node: usize, id: u64, result: Result<Answer<SimBuffer>, ClientError>) {
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
                if !self.options.loose_clocks {
                    self.checks.answers(node, epoch);
                    self.answers_in_time(node);
                }
                match (request.kind, answer) {
                    (Kind::Flush, Answer::Done) => {}
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
                self.fails_with_reason(node);
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
            let units = request.units.clone();
            request.stamp = self.oracle.write(request.volume, units, zero, self.now);
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
        let blocks = self.options.volumes[c.volume];
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
        };
        self.ask(node, request);
    }
}

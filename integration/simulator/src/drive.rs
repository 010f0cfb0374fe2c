//! Carrying out what a replica wants: disks, streams, answers.

use replicator::io::*;
use replicator::journal::batch;
use replicator::memory::Buffer;
use replicator::meta::volumes::Volumes;
use replicator::types::*;

use crate::disk::{Block, Disk, ENOSPC, Fate, block_at};
use crate::disks::Disks;
use crate::harness::*;
use crate::memory::{Shared, SimBuffer};
use crate::net::Net;
use crate::volumes::litter;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    Meta,
    Journal,
    Store(usize),
    /// The checksums of the stores' blocks.
    Sums,
    /// What a resync has brought so far.
    Stage,
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
        early: Option<Result<Shared, DiskError>>,
    },
    Flush {
        mark: u64,
    },
    /// Room is made for the second volumes, while the first ones are the node's.
    Room(Box<Volumes>, Box<Volumes>),
    /// What is behind the ends of volumes is given back.
    Fit(Box<Volumes>),
}

/// Kinds of disks, as far as faults are concerned.
pub(crate) const JOURNAL: usize = 0;
pub(crate) const STORE: usize = 1;
pub(crate) const META: usize = 2;
pub(crate) const SUMS: usize = 3;
pub(crate) const STAGE: usize = 4;
pub(crate) const KINDS: usize = 5;

impl Which {
    fn kind(self) -> usize {
        match self {
            Self::Journal => JOURNAL,
            Self::Store(_) => STORE,
            Self::Meta => META,
            Self::Sums => SUMS,
            Self::Stage => STAGE,
        }
    }
}

impl From<SideFile> for Which {
    fn from(file: SideFile) -> Self {
        match file {
            SideFile::Sums => Self::Sums,
            SideFile::Stage => Self::Stage,
        }
    }
}

fn read(disk: &Disk, block: u64, buffer: &SimBuffer) -> Result<Shared, DiskError> {
    disk.read_shared(block, u64::from(buffer.blocks()))
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

    /// The superblock that it writes, if it is of the metadata.
    #[cfg(test)]
    pub(crate) fn superblock(&self) -> Option<replicator::meta::superblock::Superblock> {
        use replicator::meta::superblock::{COPIES, Superblock, copy_offset};
        let What::Write { block, data, .. } = &self.what else {
            return None;
        };
        let copy = (0..COPIES).find(|&c| copy_offset(c) == block * BLOCK_BYTES_U64);
        let copy = copy.filter(|_| self.is_of_meta())?;
        Superblock::decode(copy, data.first()?).ok().flatten()
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
            Self::Room(_, volumes) | Self::Fit(volumes) => u64::from(volumes.digest()) << 20 | 3,
        }
    }
}

/// A disk operation in flight.
pub(crate) struct Flight {
    ticket: Ticket,
    which: Which,
    what: What,
    /// When it began.
    pub(crate) began: u64,
    /// First records of the batches that are durable after it.
    batches: Vec<u64>,
}

fn disk_of(disks: &mut Disks, which: Which) -> &mut Disk {
    match which {
        Which::Meta => &mut disks.meta,
        Which::Journal => &mut disks.journal,
        Which::Store(volume) => &mut disks.stores[volume],
        Which::Sums => &mut disks.sums,
        Which::Stage => &mut disks.stage,
    }
}

fn blocks_of(parts: &[SimBuffer]) -> Vec<Block> {
    let mut blocks = Vec::new();
    for part in parts {
        blocks.extend(part.share().blocks());
    }
    blocks
}

fn zeroes_of(block: u64, length: u64) -> What {
    let count = usize::try_from(block_at(length)).expect("64 MiB");
    What::Write {
        block,
        data: vec![Block::zero(); count],
        _hold: Vec::new(),
        fate: Fate::Done,
    }
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
                        || self.net.conns[conn]
                            .nodes
                            .iter()
                            .any(|&n| self.nodes[n].forced)
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
                self.note_fenced(node, id.0, &result);
                self.verify_begins(id.0, result.is_ok());
                self.within(node, |c| c.volumes_answered(node, id.0, result.is_ok()));
                let twice = self.admin_results.insert(id.0, result);
                assert!(twice.is_none(), "one answer each");
            }
            Output::Log(line) => {
                self.trace(|| format!("{node} {:?}: {}", line.level, line.text));
                self.lines.push((node, line.text));
            }
        }
    }

    /// No store is asked for what is behind the end of its file.
    fn is_within_files(&self, node: usize, op: &DiskOp<SimBuffer>) {
        let bytes_of = |buffer: &SimBuffer| u64::from(buffer.blocks()) * BLOCK_BYTES_U64;
        let (volume, offset, bytes) = match op {
            DiskOp::StoreWrite {
                volume,
                offset,
                parts,
            } => (*volume, *offset, parts.iter().map(bytes_of).sum()),
            DiskOp::StoreZero {
                volume,
                offset,
                length,
                ..
            } => (*volume, *offset, *length),
            DiskOp::StoreRead {
                volume,
                offset,
                buffer,
            } => (*volume, *offset, bytes_of(buffer)),
            _ => return,
        };
        let end = (offset + bytes).div_ceil(BLOCK_BYTES_U64);
        let disks = &self.nodes[node].disks;
        assert!(
            disks.reaches(volume, end),
            "node {node}: store {volume} ends before block {end}"
        );
        let own = self.volumes_at(node);
        if let Some(own) = own.get(volume) {
            assert!(
                disks.is_of(volume, &own.name),
                "node {node}: store {volume} is not that of {}",
                own.name
            );
        }
    }

    fn start_flight(&mut self, node: usize, ticket: Ticket, op: DiskOp<SimBuffer>) {
        self.is_within_files(node, &op);
        if let DiskOp::StoreWrite { volume, offset, .. } | DiskOp::StoreZero { volume, offset, .. } =
            &op
            && !self.is_suspect(node, usize::from(volume.0), block_at(*offset), 1)
            && block_at(*offset) < self.blocks_at(node, usize::from(volume.0))
        {
            self.store_may_change(node);
        }
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
            } => (
                Which::Store(usize::from(volume.0)),
                zeroes_of(block_at(offset), length),
            ),
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
            DiskOp::MakeRoom { own, volumes } => (Which::Store(0), What::Room(own, volumes)),
            DiskOp::Fit { volumes } => (Which::Store(0), What::Fit(volumes)),
            DiskOp::StoreFlush { volume } => {
                let which = Which::Store(usize::from(volume.0));
                (which, self.flush_of(node, which))
            }
            DiskOp::SideRead {
                file,
                offset,
                buffer,
            } => {
                let which = file.into();
                (which, self.read_of(node, which, block_at(offset), buffer))
            }
            DiskOp::SideWrite {
                file,
                offset,
                parts,
            } => (file.into(), write_of(block_at(offset), parts)),
            DiskOp::SideFlush { file } => {
                let which = file.into();
                (which, self.flush_of(node, which))
            }
            DiskOp::SideDiscard {
                file,
                offset,
                length,
            } => (file.into(), zeroes_of(block_at(offset), length)),
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
            // What is discarded needs no room.
            let needs_room = |b: &Block| b.iter().any(|&byte| byte != 0);
            if kind == STAGE && n.stage_full && data.iter().any(needs_room) {
                n.stage_full = false;
                *fate = Fate::Fails(DiskError::Os(ENOSPC));
            }
            if let Some(next) = n.next_fate[kind].take() {
                *fate = next;
                n.may_fail |= matches!(next, Fate::Fails(_));
                // What a store loses, the checksums tell; what they lose, the superblock.
                n.hurt |= next.harms() && kind != STORE && kind != SUMS;
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
            began: self.now,
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

    fn flush_of(&mut self, node: usize, which: Which) -> What {
        let mark = disk_of(&mut self.nodes[node].disks, which).flush_mark();
        What::Flush { mark }
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
        let harm = self.there_is_harm();
        let mut batches = Vec::new();
        let mut at = block_at(offset);
        for part in parts {
            let Some(first) = self.checks.saw(node, part.bytes(), false) else {
                assert_eq!(offset, BLOCK_BYTES_U64, "journal writes begin with headers");
                self.nodes[node].wrapped = Some((id, part.bytes().to_vec()));
                return batches;
            };
            batches.push(first);
            if let Ok(header) = batch::read_header(part.bytes()) {
                self.journals(node, at, &header);
                if header.blocks() == part.blocks() {
                    self.watch.batch(node, part.bytes(), "its journal", harm);
                } else if let Some((_, rest)) = &wrapped {
                    let whole = [part.bytes(), rest.as_slice()].concat();
                    self.checks.learns_config(&whole, &header);
                    self.watch.batch(node, &whole, "its journal", harm);
                }
            }
            at += u64::from(part.blocks());
        }
        // The split batch, if there is one, is durable with the later of its two writes.
        if let Some((wrapped, _)) = wrapped
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
        let of_meta = flight.which == Which::Meta;
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
                Ok(read) => buffer.fill(read),
                Err(error) => {
                    result = Err(error);
                    // A block that a store does not give is fetched from a peer.
                    self.nodes[node].may_fail |= flight.which.kind() != STORE;
                }
            },
            What::Flush { mark } => disk.flushed(mark),
            What::Room(own, volumes) => result = self.make_room(node, &own, &volumes),
            What::Fit(volumes) => result = self.fit(node, &volumes),
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
        if of_meta && self.nodes[node].renews {
            self.note_renewal(node);
        }
        if of_meta && self.nodes[node].resyncs {
            self.note_merge(node);
            self.image_is_prefix(node);
        }
        if of_meta && self.nodes[node].forced && self.superblock_is_settled(node) {
            self.note_fork(node);
        }
    }

    /// Stores get longer: what is there then is what a device happens to have.
    fn make_room(
        &mut self,
        node: usize,
        own: &Volumes,
        volumes: &Volumes,
    ) -> Result<(), DiskError> {
        if std::mem::take(&mut self.nodes[node].no_room) {
            return Err(DiskError::Os(ENOSPC));
        }
        let n = &mut self.nodes[node];
        n.disks.made_room(own, volumes);
        for (id, volume) in volumes.iter().filter(|(id, v)| own.may_have(*id, &v.name)) {
            let from = own.common_bytes(volumes, id) / BLOCK_BYTES_U64;
            let store = &mut n.disks.stores[usize::from(id.0)];
            let to = volume.bytes / BLOCK_BYTES_U64;
            litter(store, from, to, &mut self.rng.disks);
        }
        Ok(())
    }

    /// Stores are those of these volumes, and no longer.
    fn fit(&mut self, node: usize, volumes: &Volumes) -> Result<(), DiskError> {
        let n = &mut self.nodes[node];
        let made = n.disks.fitted(volumes);
        for id in made {
            // Their files are not there yet.
            if std::mem::take(&mut n.no_room) {
                n.disks.lose(id);
                return Err(DiskError::Os(ENOSPC));
            }
            let store = &mut n.disks.stores[usize::from(id.0)];
            litter(store, 0, volumes.blocks(id), &mut self.rng.disks);
        }
        Ok(())
    }

    /// Whether something could change what disks and streams hold.
    pub(crate) fn there_is_harm(&self) -> bool {
        self.harm || self.nodes.iter().any(|n| n.hurt)
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
}

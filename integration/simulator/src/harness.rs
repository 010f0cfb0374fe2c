//! The cluster: nodes, events in virtual time, and a node's turn as the driver's contract says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replicator::io::*;
use replicator::meta::config::Name;
use replicator::types::*;
use replicator::view::{Suspended, View};
use replicator::{AckPolicy, OnNoQuorum, Replica, ReplicaConfig, WithoutRoom};

use crate::attack::ATTACKS;
use crate::bounds::Bounds;
use crate::checks::Checks;
use crate::client::{Client, Request};
use crate::disk::Fate;
use crate::disks::Disks;
use crate::drive::{Flight, KINDS};
use crate::exile::Exile;
use crate::fences::Fences;
use crate::hash::Hash;
use crate::lives::Tally;
use crate::memory::{SimBuffer, SimMemory};
use crate::net::Net;
use crate::oracle::Oracle;
use crate::rng::Streams;
use crate::verifying::Verifying;
use crate::volumes::Shrinking;
use crate::watch::Watch;
use crate::withheld::Withheld;

pub(crate) const US: u64 = 1_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// More turns than any story needs.
/// A node's driver says of its disks that they hang once an operation is so late.
const HANG_NS: u64 = 2 * SECOND;

const TURNS_MAX: u64 = 2_000_000;

/// What a cluster is made like.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Data nodes.
    pub(crate) nodes: usize,
    /// Their numbers follow those of the data nodes.
    pub(crate) witnesses: usize,
    pub(crate) lease_ms: u32,
    pub(crate) ack: AckPolicy,
    pub(crate) on_no_quorum: OnNoQuorum,
    pub(crate) requests_max: u32,
    /// 0 if nobody is ever dropped without being told to.
    pub(crate) drop_after_ms: u32,
    pub(crate) without_room: WithoutRoom,
    /// Blocks for clients, core and peers.
    pub(crate) shares: [u32; 4],
    /// Blocks of each volume.
    pub(crate) volumes: Vec<u64>,
    /// The mean time of a disk operation, in nanoseconds.
    pub(crate) disk_ns: u64,
    /// The mean time of a frame under way, in nanoseconds.
    pub(crate) net_ns: u64,
    /// How far clocks drift, in parts per million either way.
    pub(crate) drift_ppm: u64,
    /// Clocks are beyond the bound that the lease counts with: reads may be old then, and nothing else.
    pub(crate) loose_clocks: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            witnesses: 0,
            lease_ms: 1000,
            ack: AckPolicy::Majority,
            on_no_quorum: OnNoQuorum::SuspendIo,
            requests_max: 32,
            drop_after_ms: 0,
            without_room: WithoutRoom::Wait,
            shares: [2048, 2048, 2048, 1024],
            volumes: vec![600, 64],
            disk_ns: 300 * US,
            net_ns: 200 * US,
            drift_ppm: 0,
            loose_clocks: false,
        }
    }
}

/// What waits for a node's next turn.
#[derive(Debug)]
pub(crate) enum Happening {
    Disk(Ticket, Result<(), DiskError>),
    PeerUp(usize, usize),
    PeerDown(usize, usize),
    Readable(usize, usize),
    Sent(usize, usize),
    Client(u64),
    Admin(AdminId, AdminCommand),
}

/// What happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    Wake(usize),
    Disk { node: usize, life: u64, flight: u64 },
    Readable(usize, usize),
    Sent(usize, usize),
    PeerUp(usize, usize),
    Closed(usize, usize),
    Dial(usize, usize),
    Tick(usize),
    Restart { node: usize, life: u64 },
}

/// How a scripted request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Done,
    Error,
    Dropped,
}

pub(crate) struct Node {
    pub(crate) config: ReplicaConfig,
    pub(crate) replica: Option<Box<Replica<SimMemory>>>,
    pub(crate) life: u64,
    pub(crate) disks: Disks,
    pub(crate) flights: BTreeMap<u64, Flight>,
    pub(crate) inbox: VecDeque<Happening>,
    /// Requests for which there was no capacity.
    pub(crate) waiting: VecDeque<u64>,
    pub(crate) wake_at: u64,
    pub(crate) frozen_until: u64,
    clock: (u64, i64),
    pub(crate) wanted: Vec<bool>,
    pub(crate) accepting: bool,
    /// The epoch that it served last.
    pub(crate) reign: u64,
    pub(crate) view: View,
    /// By how much each kind of disk is slower than it should be.
    pub(crate) slow: [u64; KINDS],
    /// What becomes of the next write to a kind of disk.
    pub(crate) next_fate: [Option<Fate>; KINDS],
    /// Until when a kind of disk ends nothing.
    pub(crate) hung_until: [u64; KINDS],
    /// An operation of one of its disks failed: it may step aside.
    pub(crate) may_fail: bool,
    /// It does not start before.
    pub(crate) away_until: u64,
    /// Something that was durable on its disks has been harmed since they were made.
    pub(crate) hurt: bool,
    /// It has asked for a resync since it started, or found one on its disks.
    pub(crate) resyncs: bool,
    /// Blocks that a resync did not bring it, since nobody had a good copy.
    pub(crate) not_given: BTreeSet<(usize, u64)>,
    /// There is no room to stage a resync, at first.
    pub(crate) stage_full: bool,
    /// It was told to give its data up.
    pub(crate) renews: bool,
    /// A merge has just ended.
    pub(crate) merged: bool,
    /// Its superblock says that its stores are no image.
    pub(crate) in_place: bool,
    /// The version of the superblock at which its image was looked at last.
    pub(crate) image_seen: u64,
    /// What its superblock says is being laid over its stores.
    pub(crate) merges: Option<RecordId>,
    /// Pages of its checksums rotted.
    pub(crate) sums_rotted: bool,
    /// Its disks are beyond what it can start from.
    pub(crate) ruined: bool,
    /// Its disks were replaced by empty ones.
    pub(crate) wiped: bool,
    /// What it knew to be committed when the outputs of its newest turn were carried out.
    pub(crate) knows: u64,
    /// It was told to drain, and does nothing more.
    pub(crate) drained: bool,
    /// It was told to go on alone.
    pub(crate) forced: bool,
    /// Its disks have no room for larger volumes, the next time.
    pub(crate) no_room: bool,
    pub(crate) snapshot: Option<Disks>,
    /// Connections that a power cut left half open.
    pub(crate) orphans: Vec<(usize, usize)>,
    /// A write of the second part of a batch that lies across the end of the ring: its flight, and what it holds.
    pub(crate) wrapped: Option<(u64, Vec<u8>)>,
}

pub(crate) struct Cluster {
    pub(crate) options: Options,
    pub(crate) rng: Streams,
    pub(crate) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Net,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) outcomes: BTreeMap<u64, Outcome>,
    pub(crate) clients: Vec<Client>,
    pub(crate) big_percent: u64,
    pub(crate) admin_results: BTreeMap<u64, AdminResult>,
    pub(crate) oracle: Oracle,
    pub(crate) checks: Checks,
    pub(crate) watch: Watch,
    pub(crate) bounds: Bounds,
    pub(crate) fences: Fences,
    pub(crate) verifying: Verifying,
    /// Nodes that went on alone.
    pub(crate) exiles: BTreeMap<usize, Exile>,
    /// Whose world is in force, if it is not everybody's.
    pub(crate) inside: Option<usize>,
    /// Commands that make volumes smaller and are not answered.
    pub(crate) shrinking: BTreeMap<u64, Shrinking>,
    pub(crate) next_id: u64,
    pub(crate) tracing: bool,
    pub(crate) faults: [u64; ATTACKS.len()],
    /// The nodes whose durable data may be harmed.
    pub(crate) victims: Vec<usize>,
    pub(crate) operations: u64,
    /// Questions of resyncs whose newest answer was empty.
    pub(crate) withheld: Vec<Withheld>,
    /// How many resyncs came to their end.
    pub(crate) resyncs: u64,
    /// How often a node went on without an image of its own.
    pub(crate) resyncs_in_place: u64,
    /// A majority went on alone, or was wiped.
    pub(crate) stuck: bool,
    /// A frame was damaged or forged.
    pub(crate) harm: bool,
    /// Everything works again: a block of which there is a good copy can be read.
    pub(crate) calm: bool,
    /// How many of a thousand frames say what they should not.
    pub(crate) garbage_permille: u64,
    pub(crate) hash: Hash,
    /// Log lines of the nodes, for tests that look for one.
    pub(crate) lines: Vec<(usize, String)>,
    pub(crate) turns: u64,
}

pub(crate) fn name(text: &str) -> Name {
    Name::from(text).expect("a short name")
}

impl Cluster {
    /// Freshly created nodes, running.
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let data = &["ann", "bob", "cat", "dan", "eve"][..options.nodes];
        let witnesses = &["wes", "win", "wyn"][..options.witnesses];
        let names: Vec<Name> = data.iter().chain(witnesses).map(|n| name(n)).collect();
        let mut cluster = Self {
            rng: Streams::new(seed),
            now: SECOND,
            events: BTreeMap::new(),
            sequence: 0,
            nodes: Vec::new(),
            net: Net::default(),
            requests: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            clients: Vec::new(),
            big_percent: 8,
            admin_results: BTreeMap::new(),
            oracle: Oracle::default(),
            checks: Checks::new(options.nodes, options.witnesses),
            watch: Watch::new(options.nodes + options.witnesses),
            bounds: Bounds::default(),
            fences: Fences::default(),
            verifying: Verifying::default(),
            exiles: BTreeMap::new(),
            inside: None,
            shrinking: BTreeMap::new(),
            next_id: 0,
            tracing: false,
            faults: [0; ATTACKS.len()],
            victims: Vec::new(),
            operations: 0,
            withheld: Vec::new(),
            resyncs: 0,
            resyncs_in_place: 0,
            stuck: false,
            harm: false,
            calm: false,
            garbage_permille: 0,
            hash: Hash::default(),
            lines: Vec::new(),
            turns: 0,
            options,
        };
        for me in 0..names.len() {
            let config = cluster.config(me, &names);
            let disks = cluster.format(&config, false);
            let node = Node {
                config,
                replica: None,
                life: 0,
                disks,
                flights: BTreeMap::new(),
                inbox: VecDeque::new(),
                waiting: VecDeque::new(),
                wake_at: u64::MAX,
                frozen_until: 0,
                clock: (0, 0),
                wanted: vec![true; names.len()],
                accepting: false,
                reign: 0,
                view: View::default(),
                slow: [1; KINDS],
                next_fate: [None; KINDS],
                hung_until: [0; KINDS],
                may_fail: false,
                away_until: 0,
                hurt: false,
                resyncs: false,
                image_seen: 0,
                merged: false,
                not_given: BTreeSet::new(),
                stage_full: false,
                renews: false,
                in_place: false,
                merges: None,
                sums_rotted: false,
                ruined: false,
                wiped: false,
                knows: 0,
                drained: false,
                forced: false,
                no_room: false,
                snapshot: None,
                orphans: Vec::new(),
                wrapped: None,
            };
            let volumes = cluster.first_volumes();
            cluster.checks.begin_with(volumes);
            cluster.nodes.push(node);
            cluster.new_clock(me);
            cluster.restart(me);
        }
        for b in 1..names.len() {
            for a in 0..b {
                cluster.after(MS, Event::Dial(a, b));
            }
        }
        cluster
    }

    pub(crate) fn new_clock(&mut self, node: usize) {
        let drift = if self.options.loose_clocks {
            300_000
        } else {
            self.options.drift_ppm
        };
        let ppm = i64::try_from(self.rng.clocks.between(0, 2 * drift)).expect("small")
            - i64::try_from(drift).expect("small");
        self.nodes[node].clock = (self.now - self.rng.clocks.below(SECOND), ppm);
    }

    /// A node's own time.
    pub(crate) fn local(&self, node: usize, at: u64) -> Time {
        let (from, ppm) = self.nodes[node].clock;
        let passed = i128::from(at - from);
        let local = passed + passed * i128::from(ppm) / 1_000_000;
        Time(u64::try_from(local).expect("time goes on"))
    }

    /// When a node's own time is at least `local`.
    fn global(&self, node: usize, local: Time) -> u64 {
        let (from, ppm) = self.nodes[node].clock;
        let passed =
            i128::from(local.0.min(u64::MAX / 4)) * 1_000_000 / i128::from(1_000_000 + ppm);
        from + u64::try_from(passed).expect("time goes on") + 2
    }

    /// A deadline on a node's clock.
    pub(crate) fn deadline(&self, node: usize, after: u64) -> Time {
        self.local(node, self.now + after)
    }

    pub(crate) fn trace(&self, text: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>12.6} {}", self.now as f64 / 1e9, text());
        }
    }

    /// What it came to so far.
    pub(crate) fn tally(&self) -> Tally {
        let (writes, reads, epochs) = self.exiles_tally();
        Tally {
            operations: self.operations,
            writes: self.oracle.acknowledged + writes,
            reads: self.oracle.read + reads,
            faults: self.faults,
            promotions: self.checks.epochs_served() + epochs,
            turns: self.turns,
            beyond: u64::from(self.checks.is_beyond()),
            stuck: u64::from(self.stuck),
            resyncs: self.resyncs,
            in_place: self.resyncs_in_place,
            resync_lives: u64::from(self.resyncs > 0),
            verified: self.verifying.finished,
            clean: self.verifying.clean,
            time_ns: self.now,
            hash: self.hash.value(),
        }
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    pub(crate) fn after(&mut self, wait: u64, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Handles the next event if it is due by `limit`.
    fn step(&mut self, limit: u64) -> bool {
        let Some(entry) = self.events.first_entry() else {
            return false;
        };
        if entry.key().0 > limit {
            return false;
        }
        let ((at, _), event) = entry.remove_entry();
        self.now = self.now.max(at);
        match event {
            Event::Wake(node) => self.within(node, |c| c.wake(node, at)),
            Event::Disk { node, life, flight } => {
                self.within(node, |c| c.flight_ends(node, life, flight));
            }
            Event::Readable(conn, side) => self.tell(conn, side, Happening::Readable(conn, side)),
            Event::Sent(conn, side) => self.tell(conn, side, Happening::Sent(conn, side)),
            Event::PeerUp(conn, side) => self.connection_up(conn, side),
            Event::Closed(conn, side) => self.connection_closed(conn, side),
            Event::Dial(a, b) => self.dial(a, b),
            Event::Tick(client) => self.tick(client),
            Event::Restart { node, life } => {
                if self.nodes[node].replica.is_none()
                    && self.nodes[node].life == life
                    && !self.nodes[node].ruined
                    && self.nodes[node].away_until <= self.now
                {
                    self.restart(node);
                }
            }
        }
        true
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, time: u64) {
        let limit = self.now + time;
        while self.step(limit) {}
        self.now = limit;
    }

    /// Lets time pass until something holds; whether it came to that within `limit`.
    pub(crate) fn run_until(&mut self, limit: u64, holds: impl Fn(&Self) -> bool) -> bool {
        let limit = self.now + limit;
        loop {
            if holds(self) {
                return true;
            }
            if !self.step(limit) {
                self.now = limit;
                return holds(self);
            }
        }
    }

    /// Gives a node something to do, soon.
    pub(crate) fn post(&mut self, node: usize, happening: Happening) {
        if self.nodes[node].replica.is_none() {
            return;
        }
        self.nodes[node].inbox.push_back(happening);
        let wait = self.rng.turns.below(30 * US);
        self.wake_by(node, self.now + wait);
    }

    fn tell(&mut self, conn: usize, side: usize, happening: Happening) {
        let c = &self.net.conns[conn];
        let node = c.nodes[side];
        if c.lives[side] == self.nodes[node].life && c.up[side] {
            self.post(node, happening);
        }
    }

    pub(crate) fn wake_by(&mut self, node: usize, at: u64) {
        let at = at.max(self.nodes[node].frozen_until);
        if at < self.nodes[node].wake_at {
            self.nodes[node].wake_at = at;
            self.at(at, Event::Wake(node));
        }
    }

    fn wake(&mut self, node: usize, at: u64) {
        let n = &mut self.nodes[node];
        if n.wake_at != at || n.replica.is_none() {
            return;
        }
        n.wake_at = u64::MAX;
        if at < n.frozen_until {
            let until = n.frozen_until;
            self.wake_by(node, until);
            return;
        }
        self.turn(node);
    }

    /// A turn: all that has happened, the end, the outputs.
    fn turn(&mut self, node: usize) {
        self.turns += 1;
        assert!(self.turns < TURNS_MAX, "the nodes chase their tails");
        let mut replica = self.nodes[node].replica.take().expect("only while it runs");
        let now = self.local(node, self.now);
        let waiting = std::mem::take(&mut self.nodes[node].waiting);
        for id in waiting {
            self.hand_in(node, &mut replica, now, id);
        }
        let inbox = std::mem::take(&mut self.nodes[node].inbox);
        for happening in inbox {
            match happening {
                Happening::Disk(ticket, result) => {
                    replica.handle(now, Input::DiskDone { ticket, result });
                }
                Happening::PeerUp(conn, side) => {
                    let c = &self.net.conns[conn];
                    let (conn, peer) = (c.ids[side], node_id(c.nodes[1 - side]));
                    replica.handle(now, Input::PeerUp { conn, peer });
                }
                Happening::PeerDown(conn, side) => {
                    self.net.conns[conn].up[side] = false;
                    let conn = self.net.conns[conn].ids[side];
                    replica.handle(now, Input::PeerDown { conn });
                }
                Happening::Readable(conn, side) => self.receive(&mut replica, now, conn, side),
                Happening::Sent(conn, side) => {
                    self.has_left(conn, side);
                    let conn = self.net.conns[conn].ids[side];
                    replica.handle(now, Input::BatchSent { conn });
                }
                Happening::Client(id) => self.hand_in(node, &mut replica, now, id),
                Happening::Admin(id, command) => {
                    self.trace(|| format!("{node} told to {command:?}"));
                    replica.handle(now, Input::Admin { id, command });
                }
            }
        }
        let hang = self.disks_hang(node);
        if hang != self.nodes[node].view.disks_hang {
            replica.handle(now, Input::DisksHang(hang));
        }
        replica.end_turn(now);
        let mut outputs = Vec::new();
        while let Some(output) = replica.poll() {
            outputs.push(output);
        }
        let view = replica.view();
        let timeout = replica.poll_timeout();
        self.nodes[node].replica = Some(replica);
        self.turn_over(node, view, outputs);
        if let Some(timeout) = timeout {
            let at = self.global(node, timeout).max(self.now + 1);
            self.wake_by(node, at);
        }
    }

    /// Whether an operation of a node's disks is so late that its driver says so.
    fn disks_hang(&self, node: usize) -> bool {
        let mut flights = self.nodes[node].flights.values();
        flights.any(|f| self.now.saturating_sub(f.began) >= HANG_NS)
    }

    fn turn_over(&mut self, node: usize, view: View, outputs: Vec<Output<SimBuffer>>) {
        let epoch = view.epoch.0;
        self.watch.committed = view.committed.0;
        self.watch.turn_of = node;
        self.holds_writes(node, view.suspended == Suspended::User);
        self.watch.suspended = view.suspended != Suspended::No && !view.quorum;
        if view.serving {
            self.nodes[node].reign = epoch;
            let newest = self.checks.newest_epoch();
            self.checks.serves(node, epoch);
            if epoch > newest {
                self.has_promises(node, epoch);
                self.serves_unfenced(node, epoch);
                self.trace(|| format!("{node} serves epoch {epoch}"));
                self.oracle.epoch_serves(epoch, self.now);
            }
        }
        let n = &self.nodes[node];
        let excused = n.may_fail || n.hurt || self.checks.is_beyond();
        if view.failed && !excused {
            panic!("node {node} failed by itself: {}", view.health_reason);
        }
        self.nodes[node].knows = view.committed.0;
        for output in outputs {
            self.carry_out(node, output);
        }
        self.checks.committed(node, view.committed.0);
        if view.serving {
            self.nodes[node].accepting = true;
        }
        self.nodes[node].view = view;
        self.verify_is_true(node);
        self.turn_ended(node);
    }
}

pub(crate) fn node_id(node: usize) -> NodeId {
    NodeId(u8::try_from(node).expect("at most 8 nodes"))
}

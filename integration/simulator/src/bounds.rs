//! What must hold whenever a node has ended its turn: nobody waits for what a majority does not need (P7), everything has
//! a bound and keeps to it (P8), and a drained node's stores are the images (P10).

use std::collections::{BTreeMap, BTreeSet};

use replicator::journal::batch::Header;
use replicator::memory::{Memory, Purpose};
use replicator::replica::{INCOMING_MAX, UNAPPLIED_MAX};
use replicator::types::*;
use replicator::view::{Membership, PeerView, ReplicationState, Suspended, View};
use replicator::{AckPolicy, OnNoQuorum};

use crate::client::{Kind, Request};
use crate::drive::{JOURNAL, META, STORE};
use crate::harness::*;
use crate::resync::Image;

/// Disk operations of a node at one time, at most: each journal write may be in two pieces, and a batch that is read.
const JOURNAL_WRITES_MAX: usize = 4;
const JOURNAL_READS_MAX: usize = 64;
const META_WRITES_MAX: usize = 2;
/// Of an apply, or of a resync in place; and one that makes room for what volumes are to become.
const STORE_WRITES_MAX: usize = 32 + 1;

/// Batches given to a connection that have not left, at most: live ones, and what one read of the journal brings.
const QUEUE_MAX: usize = 64 + 128;

/// Blocks that a peer has not acknowledged, at most: the window, and what one read of the journal brings besides.
const UNACKNOWLEDGED_BLOCKS_MAX: u64 = WINDOW_BLOCKS + BATCH_BLOCKS + 256;

/// Blocks that a node keeps to write checksums from.
const PAGES_MAX: u32 = 16;

/// Blocks that are free in each share for a node to be called idle.
const PLENTY_BLOCKS: u32 = 350;

/// Blocks that a small write takes at most: a driver that is told to go on must be able to.
const SMALL_WRITE_BLOCKS: u32 = 17;

/// Journal blocks under way to a peer, at most, and those of one batch.
const WINDOW_BLOCKS: u64 = 1024;
const BATCH_BLOCKS: u64 = 385;

/// Turns that memory may be short for while nobody uses it: what is held is given back a little in each.
const SHORT_TURNS_MAX: u32 = 64;

/// What was sent to a peer on one connection.
#[derive(Default)]
struct Sent {
    /// The epoch of the Primary that sent it.
    epoch: u64,
    /// The last record that was sent.
    last: u64,
    /// Blocks of each batch, by its last record.
    blocks: BTreeMap<u64, u64>,
    acknowledged: bool,
    /// The record that was acknowledged last in this epoch, and in which turn; and before that turn.
    acked: (u64, u64),
    acked_before: u64,
}

#[derive(Default)]
pub(crate) struct Bounds {
    /// Nodes that had memory enough when their last turn ended.
    had_plenty: BTreeSet<usize>,
    /// Commands to drain that are not answered.
    pub(crate) drains: BTreeSet<u64>,
    /// Commands to hold writes that are not answered.
    pub(crate) suspends: BTreeSet<u64>,
    /// Commands to change the membership that are not answered, and which life of which node they were given to.
    pub(crate) changes: BTreeMap<u64, (usize, u64)>,
    /// Nodes that said in this turn that they are drained, or that they hold writes and are.
    drained: Vec<usize>,
    /// Lives of nodes whose stores rest: they said that they hold writes.
    resting: BTreeMap<usize, u64>,
    /// By connection and side.
    sent: BTreeMap<(usize, usize), Sent>,
    /// Batches given to a connection's side of which it was not told that they have left.
    queued: BTreeMap<(usize, usize), usize>,
    /// A request that waited at a node's last turn though there was nothing to wait for.
    waiting: BTreeMap<usize, u64>,
    /// For how many turns a node's memory was short and nothing was going on.
    short: BTreeMap<usize, u32>,
}

/// Whether a peer is fed and counts for a commit.
fn counts(peer: &PeerView) -> bool {
    use ReplicationState::{Off, SyncSource};
    !matches!(peer.replication, Off | SyncSource)
}

impl Cluster {
    /// A node's turn has ended and its outputs are carried out.
    pub(crate) fn turn_ended(&mut self, node: usize) {
        for node in std::mem::take(&mut self.bounds.drained) {
            self.stores_are_images(node);
            self.stores_of_peers_are_images(node);
        }
        if self.checks.is_beyond() {
            return;
        }
        let view = &self.nodes[node].view;
        let Some(replica) = &self.nodes[node].replica else {
            return;
        };
        let more = replica.capacity().requests;
        assert!(
            view.requests + more <= view.requests_max,
            "P8: node {node} has {} requests of {} and takes {more} more",
            view.requests,
            view.requests_max
        );
        let unapplied = view.admitted.0 - view.applied.0;
        assert!(
            view.incoming as usize <= INCOMING_MAX && unapplied <= UNAPPLIED_MAX as u64,
            "P8: node {node} has {} batches of its Primary, and {unapplied} records to apply",
            view.incoming
        );
        assert!(
            view.lease_until <= self.lease_of(node),
            "P5: node {node} shows a lease until {:?}, its voters support {:?}",
            view.lease_until,
            self.lease_of(node)
        );
        self.floor_is_kept(node, view);
        let free = replica.memory().free_blocks(Purpose::Client);
        assert!(
            more == 0 || free >= SMALL_WRITE_BLOCKS,
            "P8: node {node} takes {more} more requests and has memory for {free} blocks"
        );
        let alone = self.nodes[node].config.ack == AckPolicy::Majority;
        if alone && view.serving && view.quorum && self.lease_runs(node) {
            self.majority_is_enough(node, view);
            self.nothing_waits_for_nothing(node);
            // What a turn frees by what it puts out helps the next one only.
            if self.bounds.had_plenty.contains(&node) {
                self.no_peer_waits_for_another(node);
            }
        }
        if self.has_plenty(node) {
            self.bounds.had_plenty.insert(node);
        } else {
            self.bounds.had_plenty.remove(&node);
        }
    }

    /// M3: a Primary relies on a config of its reign only when a restart would know that it is committed.
    fn floor_is_kept(&self, node: usize, view: &View) {
        if !view.serving || view.changing || self.nodes[node].hurt {
            return;
        }
        let Some(at) = self.checks.newest_config_of(node, view.epoch.0) else {
            return;
        };
        let known = self.nodes[node]
            .disks
            .meta
            .superblock()
            .map_or(0, |s| s.committed.0);
        assert!(
            known >= at,
            "M3: node {node} relies on the config of record {at}, a restart would know {known} to be committed"
        );
    }

    /// P7: a peer whose own window has room is sent what there is, however little the others acknowledge.
    fn no_peer_waits_for_another(&self, node: usize) {
        let n = &self.nodes[node];
        let reading = n.flights.values().any(|f| f.reads_from(JOURNAL))
            || n.inbox.iter().any(|h| matches!(h, Happening::Disk(..)));
        if reading || !self.has_plenty(node) {
            return;
        }
        for (conn, side) in self.net.of(node) {
            let c = &self.net.conns[conn];
            let peer = node_id(c.nodes[1 - side]);
            // Once the ring has gone past what a peer acknowledged, its window is counted more narrowly.
            let reached = |p: &PeerView| p.durable.is_some_and(|d| d >= n.view.journal_floor);
            // While blocks are read for a peer in resync its stream stands still.
            let fed = |p: &PeerView| {
                let counts = counts(p) && p.membership == Membership::Full && !n.view.changing;
                p.node == peer && counts
            };
            let in_reach = |p: &PeerView| fed(p) && reached(p);
            let Some(sent) = self.bounds.sent.get(&(conn, side)) else {
                continue;
            };
            if !self.is_data(peer) {
                continue;
            }
            let under_way: u64 = sent.blocks.values().sum();
            let room = under_way + BATCH_BLOCKS <= WINDOW_BLOCKS;
            let queued = self.bounds.queued.get(&(conn, side)).copied();
            let room = room && queued.unwrap_or(0) == 0;
            let current = c.closed == [false; 2] && n.view.peers.iter().any(in_reach);
            if sent.acknowledged && room && current {
                assert!(
                    sent.last >= n.view.admitted.0,
                    "P7: node {node} has records up to {} and sends {peer:?} no more than {}",
                    n.view.admitted,
                    sent.last
                );
            }
        }
    }

    fn is_data(&self, node: NodeId) -> bool {
        usize::from(node.0) < self.options.nodes
    }

    fn has_plenty(&self, node: usize) -> bool {
        self.nodes[node].replica.as_ref().is_some_and(|replica| {
            let memory = replica.memory();
            let plenty =
                |p: Purpose| memory.free_blocks(p) >= PLENTY_BLOCKS.min(memory.total_blocks(p) / 2);
            plenty(Purpose::Client) && plenty(Purpose::Core)
        })
    }

    /// P7: what a majority has is committed and answered in the very turn in which the Primary hears of it.
    fn majority_is_enough(&self, node: usize, view: &View) {
        if view.changing {
            return;
        }
        let rules = self.checks.rules_of(node, view.committed.0);
        let Some(config) = rules.last() else { return };
        let counts = |p: &&PeerView| {
            let life = self.checks.life_of(usize::from(p.node.0));
            p.replication != ReplicationState::Off && config.is_member(life)
        };
        let mut durable: Vec<Seq> = view
            .peers
            .iter()
            .filter(|p| self::counts(p) && counts(p))
            .filter_map(|p| p.durable)
            .chain([view.durable])
            .collect();
        durable.sort_unstable_by(|a, b| b.cmp(a));
        let floor = durable.get(config.members() / 2).copied();
        let floor = floor.unwrap_or(Seq(0));
        assert!(
            view.committed >= floor,
            "P7: a majority has record {floor}, node {node} has committed {} only",
            view.committed
        );
        for request in self.requests.values() {
            if request.node != node || !request.handed_in {
                continue;
            }
            let batch = self.watch.batch_of(request.stamp);
            if let (Kind::Write { .. }, Some((epoch, _, seq))) = (request.kind, batch) {
                assert!(
                    seq > view.committed.0 || epoch != view.epoch.0,
                    "P7: record {epoch}.{seq} is committed, and node {node} does not answer it"
                );
            }
        }
    }

    /// P7, P8: while everything is committed, no disk has anything to do and there is memory, no request waits, but for writes
    /// that an operator holds; and what memory nobody uses is given back.
    fn nothing_waits_for_nothing(&mut self, node: usize) {
        let n = &self.nodes[node];
        let view = &n.view;
        let busy = view.admitted != view.committed
            || view.durable != view.committed
            || n.flights.values().any(|f| !f.is_of_meta())
            || n.inbox.iter().any(|h| matches!(h, Happening::Disk(..)));
        let Some(replica) = n.replica.as_ref().filter(|_| !busy) else {
            self.bounds.short.remove(&node);
            self.bounds.waiting.remove(&node);
            return;
        };
        let memory = replica.memory();
        let room = view.journal_bytes - view.journal_used_bytes >= 4 << 20;
        let plenty = self.has_plenty(node);
        let holds = view.suspended == Suspended::User;
        if plenty && room {
            // What a turn frees by what it puts out is given out in the next one.
            let mut requests = self.requests.iter();
            let held = |k| holds && matches!(k, Kind::Write { .. } | Kind::Zero { .. });
            // A bad block is waited for until a peer has given it.
            let bad = |r: &Request| self.request_waits_for_mending(r);
            let waits =
                requests.find(|(_, r)| r.node == node && r.handed_in && !held(r.kind) && !bad(r));
            let before = self.bounds.waiting.remove(&node);
            if let Some((&id, request)) = waits {
                assert!(
                    before != Some(id),
                    "P7: node {node} has nothing to wait for, and lets {request:?} wait"
                );
                self.bounds.waiting.insert(node, id);
            }
        }
        if plenty || holds || self.streams_hold(node) {
            self.bounds.short.remove(&node);
            return;
        }
        let turns = self.bounds.short.entry(node).or_default();
        *turns += 1;
        assert!(
            *turns < SHORT_TURNS_MAX,
            "P7: node {node} has nothing to do and keeps its memory: {memory:?}"
        );
    }

    /// Whether streams hold memory of a node: what they have not sent, up to their bound.
    fn streams_hold(&self, node: usize) -> bool {
        self.net.of(node).iter().any(|&(conn, side)| {
            let mut pipe = self.net.conns[conn].pipes[side].iter();
            pipe.any(|p| p.hold.is_some())
        })
    }

    /// A node starts a disk operation: P8.
    pub(crate) fn disk_is_bounded(&self, node: usize) {
        let count = |is: &dyn Fn(&crate::drive::Flight) -> bool| {
            self.nodes[node].flights.values().filter(|f| is(f)).count()
        };
        for (what, there, bound) in [
            (
                "writes to the journal",
                count(&|f| f.writes_to(JOURNAL)),
                JOURNAL_WRITES_MAX,
            ),
            (
                "reads of the journal",
                count(&|f| f.reads_from(JOURNAL)),
                JOURNAL_READS_MAX,
            ),
            (
                "writes to the superblock",
                count(&|f| f.writes_to(META)),
                META_WRITES_MAX,
            ),
            (
                "writes to stores",
                count(&|f| f.writes_to(STORE)),
                STORE_WRITES_MAX,
            ),
        ] {
            assert!(
                there <= bound,
                "P8: node {node} has {there} {what} in flight, {bound} is the bound"
            );
        }
    }

    /// A batch goes to a peer: P8.
    pub(crate) fn feeds(
        &mut self,
        node: usize,
        (conn, side): (usize, usize),
        epoch: u64,
        header: &Header,
    ) {
        let (last, blocks) = (header.last().0, header.blocks());
        let sent = self.bounds.sent.entry((conn, side)).or_default();
        if sent.epoch != epoch {
            *sent = Sent {
                epoch,
                ..Sent::default()
            };
        }
        if header.first.0 > sent.last + 1 {
            // It begins anew further on, since the peer has reported that it has all before.
            sent.blocks.clear();
        }
        // In one turn a read may end before the acknowledgement is handed in.
        let (acked, turn) = sent.acked;
        let has = if turn < self.turns {
            acked
        } else {
            sent.acked_before
        };
        assert!(
            last > has || self.checks.is_beyond(),
            "P8: node {node} sends record {last}, and its peer has acknowledged {has}"
        );
        sent.blocks.insert(last, u64::from(blocks));
        sent.last = sent.last.max(last);
        let under_way: u64 = sent.blocks.values().sum();
        assert!(
            under_way <= UNACKNOWLEDGED_BLOCKS_MAX || self.checks.is_beyond(),
            "P8: node {node} sends {under_way} blocks that its peer has not acknowledged"
        );
        let queued = self.bounds.queued.entry((conn, side)).or_default();
        *queued += 1;
        assert!(
            *queued <= QUEUE_MAX,
            "P8: node {node} has {queued} batches in a connection's queue"
        );
    }

    /// A peer in resync is told where its stream begins.
    pub(crate) fn feeds_from(&mut self, conn: usize, side: usize, last: u64) {
        let sent = self.bounds.sent.entry((conn, side)).or_default();
        sent.blocks.clear();
        sent.last = last;
        (sent.acked, sent.acked_before) = ((0, 0), 0);
    }

    /// A node is told that a batch has left.
    pub(crate) fn has_left(&mut self, conn: usize, side: usize) {
        if let Some(queued) = self.bounds.queued.get_mut(&(conn, side)) {
            *queued = queued.saturating_sub(1);
        }
    }

    /// A peer's acknowledgement is handed in, or what it says that it has staged.
    pub(crate) fn was_fed(&mut self, conn: usize, side: usize, epoch: Option<u64>, seq: u64) {
        let turn = self.turns;
        if let Some(sent) = self.bounds.sent.get_mut(&(conn, side)) {
            if epoch == Some(sent.epoch) {
                if sent.acked.1 < turn {
                    sent.acked_before = sent.acked.0;
                }
                sent.acked = (sent.acked.0.max(seq), turn);
            }
            sent.acknowledged = true;
            sent.blocks = sent.blocks.split_off(&(seq + 1));
        }
    }

    /// A client gets an error: there must be a reason.
    pub(crate) fn fails_with_reason(&self, node: usize, request: &Request) {
        let n = &self.nodes[node];
        if self.bad_block_excuses(request) {
            return;
        }
        let no_quorum = n.config.on_no_quorum == OnNoQuorum::IoError && self.watch.suspended;
        assert!(
            no_quorum || n.may_fail || self.options.loose_clocks || self.checks.is_beyond(),
            "P8: node {node} fails a request, and its disks and its lease are in order"
        );
    }

    /// A node answers a command: P10 if that was to drain or to hold writes.
    pub(crate) fn answers_drain(&mut self, node: usize, id: u64, done: bool) {
        self.bounds.changes.remove(&id);
        let suspends = self.bounds.suspends.remove(&id);
        if (self.bounds.drains.remove(&id) || suspends) && done {
            self.bounds.drained.push(node);
        }
        if suspends && done {
            let life = self.nodes[node].life;
            self.bounds.resting.insert(node, life);
        }
    }

    /// Whether a node that runs may yet change the membership as it was told to.
    pub(crate) fn changes_are_under_way(&self) -> bool {
        let mut changes = self.bounds.changes.values();
        changes.any(|(node, life)| self.up(*node) && self.nodes[*node].life == *life)
    }

    /// A node's turn is over, and whether it holds writes now.
    pub(crate) fn holds_writes(&mut self, node: usize, holds: bool) {
        if !holds {
            self.bounds.resting.remove(&node);
        }
    }

    /// A node writes to a store: P10, not while it said that they rest.
    pub(crate) fn store_may_change(&self, node: usize) {
        assert!(
            self.bounds.resting.get(&node) != Some(&self.nodes[node].life),
            "P10: node {node} holds writes and changes a store"
        );
    }

    /// The stores of peers of which a node says that they have all.
    fn stores_of_peers_are_images(&self, node: usize) {
        let n = &self.nodes[node];
        if self.options.loose_clocks || !self.bounds.resting.contains_key(&node) {
            return;
        }
        for peer in &n.view.peers {
            let other = usize::from(peer.node.0);
            let has_all = peer.applied.is_some_and(|a| a >= n.view.committed);
            let settled = self.nodes[other].view.applied >= n.view.committed;
            if has_all && settled && self.up(other) && self.is_data(peer.node) {
                self.stores_are_images(other);
            }
        }
    }

    fn stores_are_images(&self, node: usize) {
        let n = &self.nodes[node];
        if n.hurt || n.in_place || self.checks.is_beyond() {
            return;
        }
        for (volume, store) in n.disks.stores.iter().enumerate() {
            let image = Image::of(&n.disks, volume, None, &self.volumes_at(node));
            // A bad block is being mended: if that is lost, whoever reads the block finds it again.
            let mut unflushed = store.unflushed_before(self.blocks_at(node, volume));
            assert!(
                unflushed.all(|block| store.was_harmed(block)),
                "P10: node {node} says that it is drained, and a power cut would lose some of volume {volume}"
            );
            let end = n.view.committed.0;
            self.checks.store_is_prefix(node, volume, &image, end, end);
        }
    }

    /// Nothing is going on at a node: it uses no memory but that of the superblock.
    pub(crate) fn leaks_nothing(&self, node: usize) {
        let Some(replica) = &self.nodes[node].replica else {
            return;
        };
        let memory = replica.memory();
        let view = &self.nodes[node].view;
        // What it has of a log that nobody committed stays in memory while there is room; and a slow stream keeps what it carries.
        if view.admitted != view.applied || self.streams_hold(node) {
            return;
        }
        for (purpose, kept) in [
            (Purpose::Client, 0),
            (Purpose::Edge, 0),
            (Purpose::Core, 4 + PAGES_MAX),
            (Purpose::Peer, 0),
            (Purpose::Apply, 0),
        ] {
            let used = memory.total_blocks(purpose) - memory.free_blocks(purpose);
            assert!(
                used <= kept,
                "P8: node {node} is idle and drained and still uses {used} blocks: {memory:?}"
            );
        }
    }
}

//! What nodes say, held against their disks and the clock: what a frame asserts was durable before it was sent (S2); a
//! voter keeps to its promises (N2, P4) and to the leases that it supports (L2); a Primary answers while it has a lease
//! (P5, L1), and reads show committed data only (P5). All of it is worked out from disks and frames, not from what a node
//! thinks of itself.

use std::collections::{BTreeMap, BTreeSet};

use replicator::journal::batch::{self, Header, Kind};
use replicator::journal::log::LogParts;
use replicator::meta::config::majority;
use replicator::meta::fences::FenceMarks;
use replicator::meta::label::LABEL_BLOCKS;
use replicator::types::*;
use replicator::wire::frame::{Frame, Report};

use crate::drive::SUMS;
use crate::harness::*;
use crate::oracle::stamps_of_block;

/// What a voter told a Primary: that it heard it.
#[derive(Clone, Copy)]
struct Support {
    epoch: u64,
    primary: usize,
    /// When the heartbeat was handed to the voter.
    at: u64,
    lease_ns: u64,
}

/// The heartbeats of a Primary's present epoch.
#[derive(Default)]
struct Reign {
    epoch: u64,
    life: u64,
    /// When each heartbeat was sent for the first time, on the Primary's clock.
    sent: BTreeMap<u64, Time>,
    /// The sending of the newest heartbeat that each peer answered, by the life of its disks.
    answered: BTreeMap<Incarnation, Time>,
}

#[derive(Default)]
struct Watched {
    /// The newest epoch that it promised to anybody, itself included, and the newest that it promised to another node.
    promised: u64,
    granted: u64,
    support: Option<Support>,
    /// An operator answered to it that this node is off, then.
    told_off: Option<(usize, u64)>,
    /// The heartbeat that was handed in last on each connection: epoch, number, when, its lease.
    heard: BTreeMap<usize, (u64, u64, u64, u64)>,
    reign: Reign,
    /// What was written where in its journal: by the first block, how many blocks, first and last record.
    ring: BTreeMap<u64, (u64, u64, u64)>,
    /// The last record of its log.
    newest: u64,
}

/// All of it.
pub(crate) struct Watch {
    nodes: Vec<Watched>,
    /// The life of the disks of who speaks on each side of a connection.
    voices: BTreeMap<(usize, usize), Incarnation>,
    /// To whom each voter promised each epoch.
    promises: BTreeMap<(usize, u64), usize>,
    /// Which lives of disks promised each epoch.
    grants: BTreeMap<u64, BTreeSet<Incarnation>>,
    /// The batch that a write became, by its stamp: epoch, first and last record.
    stamps: BTreeMap<u64, (u64, u64, u64)>,
    /// Batches whose stamps are known, by epoch and first record.
    learned: BTreeSet<(u64, u64)>,
    /// What the node whose turn it is knows to be committed, and which node that is.
    pub(crate) committed: u64,
    pub(crate) turn_of: usize,
    /// Whether it says that it has no lease.
    pub(crate) suspended: bool,
}

impl Watch {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            nodes: (0..nodes).map(|_| Watched::default()).collect(),
            voices: BTreeMap::new(),
            promises: BTreeMap::new(),
            grants: BTreeMap::new(),
            stamps: BTreeMap::new(),
            learned: BTreeSet::new(),
            committed: 0,
            turn_of: usize::MAX,
            suspended: false,
        }
    }

    /// What a node knows to be committed, if it is its turn.
    fn knows(&self, node: usize) -> u64 {
        if self.turn_of == node {
            self.committed
        } else {
            0
        }
    }

    /// A node goes on alone from a record on: what it promised to others is nothing to its new world.
    pub(crate) fn fork(&self, node: usize, at: RecordId) -> Self {
        let mut fork = Self::new(self.nodes.len());
        let before = &self.nodes[node];
        fork.nodes[node].ring = before.ring.clone();
        fork.nodes[node].newest = before.newest;
        fork.nodes[node].promised = before.promised;
        let had = |first: u64| first <= at.seq.0;
        let stamps = self.stamps.iter().filter(|(_, (_, first, _))| had(*first));
        fork.stamps = stamps.map(|(s, b)| (*s, *b)).collect();
        let learned = self.learned.iter().filter(|(_, first)| had(*first));
        fork.learned = learned.copied().collect();
        fork
    }

    /// A node has other disks than before, blank ones or older ones, and what it said with the old ones binds it no more.
    pub(crate) fn replaced(&mut self, node: usize) {
        self.nodes[node] = Watched::default();
        self.promises.retain(|(voter, _), _| *voter != node);
    }

    /// A node starts, and this is in its journal.
    pub(crate) fn journal_holds(&mut self, node: usize, parts: &LogParts) {
        let Watched { ring, newest, .. } = &mut self.nodes[node];
        ring.clear();
        *newest = parts.entries.last().map_or(0, |e| e.last.0);
        for entry in &parts.entries {
            let at = LABEL_BLOCKS + entry.position % parts.ring_blocks;
            ring.insert(at, (u64::from(entry.blocks), entry.first.0, entry.last.0));
        }
    }

    /// The batch that holds a write, if it is in one: epoch, first and last record.
    pub(crate) fn batch_of(&self, stamp: u64) -> Option<(u64, u64, u64)> {
        self.stamps.get(&stamp).copied()
    }

    /// A whole batch goes to a journal or to a peer: it must be sound (P6), which is looked at whenever there is something that
    /// could harm it; the writes in it are remembered.
    pub(crate) fn batch(&mut self, node: usize, bytes: &[u8], to: &str, harm: bool) {
        if let Ok(header) = batch::read_header(bytes)
            && self.learned.contains(&(header.epoch.0, header.first.0))
            && !harm
        {
            return; // Nothing can have changed it since.
        }
        let header = batch::verify(bytes)
            .unwrap_or_else(|e| panic!("P6: node {node} gives a damaged batch to {to}: {e}"));
        if !self.learned.insert((header.epoch.0, header.first.0)) {
            return;
        }
        for (seq, record) in (header.first.0..).zip(batch::descriptors(bytes, &header).flatten()) {
            if record.kind != Kind::Write {
                continue;
            }
            let from = record.payload as usize * BLOCK_BYTES;
            let payload = &bytes[from..from + record.blocks as usize * BLOCK_BYTES];
            for (block, bytes) in (record.block..).zip(payload.chunks_exact(BLOCK_BYTES)) {
                for stamp in stamps_of(bytes, block) {
                    let batch = (header.epoch.0, header.first.0, seq);
                    self.stamps.entry(stamp).or_insert(batch);
                }
            }
        }
    }
}

/// The writes that a block shows. A block that none of this harness's writes can have made is judged elsewhere.
fn stamps_of(bytes: &[u8], block: u64) -> impl Iterator<Item = u64> {
    let stamps = stamps_of_block(bytes, block).unwrap_or_default();
    stamps.into_iter().filter(|&stamp| stamp != 0)
}

impl Cluster {
    /// A node writes a batch to its journal, at this block: nothing may be there that its stores may lack (P3).
    pub(crate) fn journals(&mut self, node: usize, at: u64, header: &Header) {
        let blocks = u64::from(header.blocks());
        let (first, last) = (header.first.0, header.last().0);
        let Watched { ring, newest, .. } = &mut self.watch.nodes[node];
        if *newest >= first {
            // A tail was cut, and goes.
            ring.retain(|_, (_, f, _)| *f < first);
        }
        *newest = last;
        let before = ring.range(..at).next_back();
        let before = before.filter(|(b, (n, ..))| *b + n > at).map(|(b, _)| *b);
        let within: Vec<u64> = ring.range(at..at + blocks).map(|(b, _)| *b).collect();
        let gone: Vec<_> = before
            .into_iter()
            .chain(within)
            .filter_map(|b| ring.remove(&b))
            .collect();
        ring.insert(at, (blocks, first, last));
        let Some(newest) = gone.iter().map(|(.., last)| *last).max() else {
            return;
        };
        if self.nodes[node].hurt || self.checks.is_beyond() {
            return;
        }
        let applied = self.nodes[node]
            .disks
            .meta
            .superblock()
            .map_or(0, |s| s.applied.id.seq.0);
        assert!(
            newest <= applied,
            "P3: node {node} writes record {first} over record {newest}, and its superblock says that its stores have {applied}"
        );
    }

    /// A node sends a frame.
    pub(crate) fn says(&mut self, node: usize, conn: usize, side: usize, frame: &Frame) {
        match frame {
            Frame::ResyncFrom(from) => self.feeds_from(conn, side, from.at.seq.0),
            Frame::ResyncAsk { .. } => {
                self.nodes[node].resyncs = true;
                self.nodes[node].next_fate[SUMS] = None;
            }
            _ => {}
        }
        if let Frame::Heartbeat { epoch, number, .. } = frame {
            let now = self.local(node, self.now);
            let life = self.nodes[node].life;
            let reign = &mut self.watch.nodes[node].reign;
            if (reign.epoch, reign.life) != (epoch.0, life) {
                *reign = Reign {
                    epoch: epoch.0,
                    life,
                    ..Reign::default()
                };
            }
            reign.sent.entry(*number).or_insert(now);
        }
        let life = self.checks.life_of(node);
        self.watch.voices.insert((conn, side), life);
        if self.nodes[node].hurt || self.checks.is_beyond() {
            // Harm to a node's journal takes nothing from its promise.
            if let Frame::Report(report) = frame {
                let granted = self.watch.grants.entry(report.granted.0);
                granted.or_default().insert(life);
            }
            return;
        }
        let to = self.net.conns[conn].nodes[1 - side];
        let newest = self.watch.nodes[node].promised;
        match frame {
            Frame::Report(report) => self.reports(node, to, report),
            Frame::Promise { epoch, .. } => {
                let epoch = epoch.0;
                assert!(
                    self.promised_on_disk(node) >= epoch,
                    "S2: node {node} asks for epoch {epoch} before its own promise is durable"
                );
                self.promises_to(node, node, epoch);
            }
            Frame::Fence(fence) => {
                self.keeps_marks(node, &fence.marks);
                if fence.epoch.0 > 0 {
                    assert!(
                        self.promised_on_disk(node) >= fence.epoch.0,
                        "S2: node {node} asks for epoch {} before its own promise is durable",
                        fence.epoch
                    );
                    self.promises_to(node, node, fence.epoch.0);
                }
            }
            Frame::Ack { epoch, seq } => {
                assert!(
                    epoch.0 >= newest,
                    "N2: node {node} acknowledges {epoch}.{seq} and has promised epoch {newest}"
                );
                self.checks.acknowledges(node, seq.0);
            }
            Frame::HeartbeatAck { epoch, number, .. } => {
                assert!(
                    epoch.0 >= newest,
                    "N2: node {node} supports epoch {epoch} and has promised epoch {newest}"
                );
                assert!(
                    self.promised_on_disk(node) >= epoch.0,
                    "S2: node {node} supports epoch {epoch} before its promise is durable"
                );
                let watched = &mut self.watch.nodes[node];
                if let Some(&(e, n, at, lease_ns)) = watched.heard.get(&conn)
                    && (e, n) == (epoch.0, *number)
                {
                    watched.support = Some(Support {
                        epoch: e,
                        primary: to,
                        at,
                        lease_ns,
                    });
                }
            }
            Frame::Append { epoch, .. } | Frame::Heartbeat { epoch, .. } => {
                let granted = self.watch.nodes[node].granted;
                assert!(
                    epoch.0 >= granted,
                    "P4: node {node} speaks as Primary of epoch {epoch} and has promised {granted} to another"
                );
            }
            _ => {}
        }
    }

    fn promised_on_disk(&self, node: usize) -> u64 {
        self.nodes[node]
            .disks
            .meta
            .superblock()
            .map_or(0, |s| s.promised.0)
    }

    /// What a node says of who is fenced must be on its disks.
    fn keeps_marks(&self, node: usize, said: &FenceMarks) {
        let stored = self.nodes[node].disks.meta.superblock().map(|s| s.fences);
        let names = &self.nodes[node].config.nodes;
        for (name, (peer, mark)) in names.iter().zip(said.iter()) {
            let kept = stored.iter().flatten().filter(|m| m.is_of(name));
            let kept = kept.map(|m| m.mark).max().unwrap_or_default();
            assert!(
                kept >= mark,
                "S2: node {node} says {mark:?} of {peer:?}, its superblock {kept:?}"
            );
        }
    }

    /// An operator tells a node that another one is off, and it is.
    pub(crate) fn told_off(&mut self, node: usize, peer: usize) {
        self.watch.nodes[node].told_off = Some((peer, self.now));
    }

    fn reports(&mut self, node: usize, to: usize, report: &Report) {
        self.keeps_marks(node, &report.fences);
        self.checks.acknowledges(node, report.tail.seq.0);
        let epoch = report.granted.0;
        let on_disk = self.nodes[node].disks.meta.superblock();
        let known = on_disk.as_ref().map_or(HistoryId(0), |s| s.history);
        assert!(
            known == report.history || known == HistoryId(0) || !self.nodes[node].forced,
            "S2, D2: node {node} says that its history is {}, its superblock says {known}",
            report.history
        );
        let merging = on_disk.as_ref().and_then(|s| s.resync);
        assert!(
            epoch == 0 || merging.is_none_or(|r| !r.merging),
            "C2: node {node} promises epoch {epoch} while it lays what a resync brought over its stores"
        );
        let on_disk = on_disk.map_or(0, |s| s.promised.0);
        assert!(
            on_disk >= epoch && on_disk >= report.promised.0,
            "S2: node {node} says that it promised {} and grants {epoch}, its superblock says {on_disk}",
            report.promised
        );
        if epoch == 0 {
            return;
        }
        self.promises_to(node, to, epoch);
        self.watch.nodes[node].granted = epoch;
        let Some(support) = self.watch.nodes[node].support else {
            return;
        };
        // Half of the drift bound, for the voter's clock against this one.
        let over = support.at + support.lease_ns * 1005 / 1000;
        let is_off = |(of, at): (usize, u64)| of == support.primary && at >= support.at;
        // Who went on alone needs nobody's promise, and nobody's promise keeps it.
        let alone = self.is_exile(to) || self.is_exile(support.primary);
        let free = support.primary == to
            || alone
            || self.watch.nodes[node].told_off.is_some_and(is_off)
            || self.options.loose_clocks
            || self.checks.ended_cleanly(support.epoch)
            || self.checks.newest_epoch() > support.epoch;
        assert!(
            free || self.now >= over,
            "L2: node {node} promises epoch {epoch} to {to}, {} ns before the lease of node {} in epoch {} is over",
            over - self.now,
            support.primary,
            support.epoch
        );
    }

    fn promises_to(&mut self, node: usize, to: usize, epoch: u64) {
        let first = *self.watch.promises.entry((node, epoch)).or_insert(to);
        assert_eq!(
            first, to,
            "P4: node {node} promises epoch {epoch} to two candidates"
        );
        let newest = &mut self.watch.nodes[node].promised;
        assert!(
            epoch >= *newest,
            "P4: node {node} promises epoch {epoch} after epoch {newest}"
        );
        *newest = epoch;
        let life = self.checks.life_of(node);
        self.watch.grants.entry(epoch).or_default().insert(life);
    }

    /// A frame is handed to a node.
    pub(crate) fn hears(&mut self, node: usize, conn: usize, side: usize, frame: &Frame) {
        let (now, life) = (self.now, self.nodes[node].life);
        let from = self.watch.voices.get(&(conn, 1 - side)).copied();
        let watched = &mut self.watch.nodes[node];
        match *frame {
            Frame::Heartbeat {
                epoch,
                number,
                lease_ms,
                ..
            } => {
                let lease_ns = u64::from(lease_ms) * MS;
                let heard = (epoch.0, number, now, lease_ns);
                watched.heard.insert(conn, heard);
            }
            Frame::Ack { epoch, seq } => self.was_fed(conn, side, Some(epoch.0), seq.0),
            Frame::Staged { seq, .. } => self.was_fed(conn, side, None, seq.0),
            Frame::HeartbeatAck { epoch, number, .. } => {
                let reign = &mut watched.reign;
                if (reign.epoch, reign.life) == (epoch.0, life)
                    && let Some(from) = from
                    && let Some(&sent) = reign.sent.get(&number)
                {
                    let newest = reign.answered.entry(from).or_insert(sent);
                    *newest = sent.max(*newest);
                }
            }
            _ => {}
        }
    }

    /// Until when a node may answer, on its own clock, by the heartbeats that it sent and the answers that it was handed: while a
    /// change of the membership is pending by the voters of all configs (L1).
    pub(crate) fn lease_of(&self, node: usize) -> Time {
        let committed = self.nodes[node]
            .view
            .committed
            .0
            .max(self.watch.knows(node));
        let rules = self.checks.rules_of(node, committed);
        let reign = &self.watch.nodes[node].reign;
        let lease = self.nodes[node].config.lease_ns() / 100 * 99;
        let until = rules.iter().map(|config| {
            let own = config.is_voter(self.checks.life_of(node));
            let needed = majority(config.voters()) - usize::from(own);
            if needed == 0 {
                return Time(u64::MAX);
            }
            if reign.life != self.nodes[node].life {
                return Time(0);
            }
            let answered = reign.answered.iter().filter(|(l, _)| config.is_voter(**l));
            let mut times: Vec<Time> = answered.map(|(_, at)| *at).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            let at = times.get(needed - 1);
            at.map_or(Time(0), |at| Time(at.0 + lease))
        });
        until.min().unwrap_or(Time(0))
    }

    pub(crate) fn lease_runs(&self, node: usize) -> bool {
        self.local(node, self.now) < self.lease_of(node)
    }

    /// A node serves an epoch: enough voters with whole disks have promised it.
    pub(crate) fn has_promises(&self, node: usize, epoch: u64) {
        let rules = self.checks.rules_of(node, self.watch.committed);
        let Some(config) = rules.first() else {
            return;
        };
        let by = self.watch.grants.get(&epoch);
        let count = by.map_or(0, |by| by.iter().filter(|&&l| config.is_voter(l)).count());
        let count = count + usize::from(config.voters() == 1);
        let voter = |n: usize| config.is_voter(self.checks.life_of(n));
        let hurt = (0..self.nodes.len()).filter(|&n| self.nodes[n].hurt && voter(n));
        let hurt = hurt.count();
        assert!(
            count + hurt >= majority(config.voters()) || self.checks.is_beyond(),
            "P4: node {node} serves epoch {epoch}, promised by {by:?} alone"
        );
    }

    /// A client is answered: P5.
    pub(crate) fn answers_in_time(&self, node: usize) {
        let over = self.lease_of(node);
        let now = self.local(node, self.now);
        assert!(
            now < over || self.options.loose_clocks || self.checks.is_beyond(),
            "P5: node {node} answers {} ns after its lease was over",
            now.0 - over.0
        );
    }

    /// A client is told what it read: all of it must be committed by then (P5).
    pub(crate) fn was_committed(&self, node: usize, bytes: &[u8], first: u64) {
        let committed = self.watch.committed;
        for (block, bytes) in (first..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            for stamp in stamps_of(bytes, block) {
                if let Some((epoch, _, seq)) = self.watch.batch_of(stamp) {
                    assert!(
                        seq <= committed || self.checks.is_beyond(),
                        "P5: node {node} lets a client read record {epoch}.{seq}, and {committed} is committed"
                    );
                }
            }
        }
    }
}

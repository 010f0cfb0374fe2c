//! The words that stories are told in.

use replicator::io::{AdminCommand, AdminError, AdminResult, DiskError};
use replicator::types::Epoch;
use replicator::view::{ConnectionState, DiskState, PeerView};
use replicator::wire::frame::Frame;

use crate::client::Kind;
use crate::disk::{EIO, Fate, block_at};
use crate::drive::{JOURNAL, STORE};
use crate::harness::*;
use crate::net::{FrameKind, Snag, Then};
use crate::oracle::UNITS_PER_BLOCK;

pub(super) const A: usize = 0;
pub(super) const B: usize = 1;
pub(super) const C: usize = 2;
pub(super) const D: usize = 3;
pub(super) const E: usize = 4;

/// The power of a node fails.
pub(super) const POWER: bool = true;
/// A node's process is killed.
pub(super) const KILL: bool = false;

pub(super) const REPORT: FrameKind = |f| matches!(f, Frame::Report(_));
pub(super) const ASK: FrameKind = |f| matches!(f, Frame::Ask { .. });
pub(super) const ANSWER: FrameKind =
    |f| matches!(f, Frame::Report(r) if r.token > 0 && r.granted == Epoch(0));
pub(super) const PROMISE: FrameKind = |f| matches!(f, Frame::Promise { .. });
pub(super) const GRANT: FrameKind = |f| matches!(f, Frame::Report(r) if r.granted > Epoch(0));
pub(super) const FETCH: FrameKind = |f| matches!(f, Frame::Fetch { .. });
pub(super) const FETCHED: FrameKind = |f| matches!(f, Frame::Fetched { .. });
pub(super) const APPEND: FrameKind = |f| matches!(f, Frame::Append { .. });
pub(super) const ACK: FrameKind = |f| matches!(f, Frame::Ack { .. });
pub(super) const BLOCKS_ASK: FrameKind = |f| matches!(f, Frame::BlocksAsk { .. });
pub(super) const COMPARE: FrameKind = |f| matches!(f, Frame::Compare(_));
pub(super) const COMPARED: FrameKind = |f| matches!(f, Frame::Compared(_));
pub(super) const CHANGED_ASK: FrameKind = |f| matches!(f, Frame::ChangedAsk { .. });
pub(super) const CHANGED: FrameKind = |f| matches!(f, Frame::Changed(_));
pub(super) const RESYNC_ASK: FrameKind = |f| matches!(f, Frame::ResyncAsk { .. });
pub(super) const RESYNC_FROM: FrameKind = |f| matches!(f, Frame::ResyncFrom(_));
pub(super) const STAGED: FrameKind = |f| matches!(f, Frame::Staged { .. });
pub(super) const TOO_FAR: FrameKind = |f| matches!(f, Frame::TooFarBehind { .. });
pub(super) const HEARTBEAT: FrameKind = |f| matches!(f, Frame::Heartbeat { .. });
pub(super) const HEARTBEAT_ACK: FrameKind = |f| matches!(f, Frame::HeartbeatAck { .. });

pub(super) fn of_nodes(nodes: usize) -> Options {
    Options {
        nodes,
        ..Options::default()
    }
}

/// A cluster whose first node is Primary, and everybody has what it has.
pub(super) fn serving(seed: u64, options: Options) -> Cluster {
    let mut c = Cluster::new(seed, options);
    c.run_for(SECOND);
    assert_eq!(c.promote(A, 5 * SECOND), Ok(()));
    c.until_fed(A);
    c
}

pub(super) fn said(c: &Cluster, node: usize, what: &str) -> bool {
    c.lines.iter().any(|(n, l)| *n == node && l.contains(what))
}

pub(super) fn no_quorum(result: &AdminResult) -> bool {
    matches!(result, Err(AdminError::NoQuorum(_)))
}

pub(super) fn other_primary(result: &AdminResult) -> bool {
    matches!(result, Err(AdminError::OtherPrimary(_)))
}

impl Cluster {
    /// Begins to promote a node; it may try for `time`.
    pub(super) fn begin_promote(&mut self, node: usize, time: u64) -> u64 {
        let deadline = self.deadline(node, time);
        self.admin(node, AdminCommand::Promote { deadline })
    }

    /// The end of a story: a node is promoted and has everything, and whatever happened before is over.
    pub(super) fn ends_on(&mut self, node: usize) {
        self.must_promote(node);
        self.read_all(node);
        self.conclude();
    }

    /// What became of a command that was begun.
    pub(super) fn answer(&mut self, id: u64, time: u64) -> Option<AdminResult> {
        self.run_until(time, |c| c.admin_results.contains_key(&id));
        self.admin_results.get(&id).cloned()
    }

    /// Ends replication between two nodes, as the operator of the first one does.
    pub(super) fn disconnect(&mut self, node: usize, peer: usize) {
        let peer = node_id(peer);
        assert_eq!(
            self.command(node, AdminCommand::Disconnect { peer }),
            Ok(())
        );
    }

    /// Begins it again, at both ends.
    pub(super) fn connect(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, node_id(b)), (b, node_id(a))] {
            assert_eq!(self.command(node, AdminCommand::Connect { peer }), Ok(()));
        }
    }

    /// The connection breaks just before the next frame of a kind is delivered: that and what is under way is lost.
    pub(super) fn break_before(&mut self, from: usize, to: usize, kind: FrameKind) {
        self.snag(from, to, kind, Then::BreakBefore);
    }

    /// The connection breaks as soon as the next frame of a kind was delivered.
    pub(super) fn break_after(&mut self, from: usize, to: usize, kind: FrameKind) {
        self.snag(from, to, kind, Then::BreakAfter);
    }

    /// The next frame of a kind is held up, with all behind it, until that way is healed.
    pub(super) fn hold(&mut self, from: usize, to: usize, kind: FrameKind) {
        self.snag(from, to, kind, Then::Hold);
    }

    fn snag(&mut self, from: usize, to: usize, kind: FrameKind, then: Then) {
        self.net.snags.push(Snag {
            from,
            to,
            kind,
            then,
        });
    }

    /// Lets time pass until all that was laid in the way of frames has happened.
    pub(super) fn until_snagged(&mut self) {
        let snagged = self.run_until(20 * SECOND, |c| c.net.snags.is_empty());
        assert!(snagged, "no such frame came");
    }

    /// A scripted zeroing of whole blocks.
    pub(super) fn zero(&mut self, node: usize, volume: usize, block: u64, blocks: u64) -> u64 {
        let units = block * UNITS_PER_BLOCK..(block + blocks) * UNITS_PER_BLOCK;
        let may_deallocate = true;
        self.request(node, Kind::Zero { may_deallocate }, volume, units)
    }

    /// The next write to a node's journal or metadata fails.
    pub(super) fn fails_next_journal_write(&mut self, node: usize) {
        self.nodes[node].next_fate[JOURNAL] = Some(Fate::Fails(DiskError::Os(EIO)));
    }

    /// The next write to one of a node's stores fails.
    pub(super) fn fails_next_store_write(&mut self, node: usize) {
        self.nodes[node].next_fate[STORE] = Some(Fate::Fails(DiskError::Os(EIO)));
    }

    /// Rots a block of a node's journal that holds the batch beginning with the newest record.
    pub(super) fn rot_journal(&mut self, node: usize, offset: u64) {
        assert!(!self.up(node));
        self.nodes[node].hurt = true;
        self.nodes[node].disks.journal.rot(block_at(offset), 617);
    }

    /// Waits until a Primary's peers have all that it has.
    pub(super) fn until_fed(&mut self, primary: usize) {
        let fed = self.run_until(20 * SECOND, |c| c.fed(primary));
        assert!(fed, "{:?}", self.nodes[primary].view);
    }

    /// Promotes a node, which must succeed.
    pub(super) fn must_promote(&mut self, node: usize) {
        assert_eq!(self.promote(node, 8 * SECOND), Ok(()));
    }

    pub(super) fn must_demote(&mut self, node: usize) {
        let demoted = self.command(node, AdminCommand::Demote);
        assert_eq!(demoted, Ok(()));
    }

    /// How a node's view shows a peer's disk.
    pub(super) fn peer_disk(&self, node: usize, peer: usize) -> DiskState {
        self.peer_view(node, peer).disk_state
    }

    pub(super) fn connected(&self, node: usize, peer: usize) -> bool {
        self.peer_view(node, peer).connection == ConnectionState::Connected
    }

    pub(super) fn peer_view(&self, node: usize, peer: usize) -> PeerView {
        let peers = &self.nodes[node].view.peers;
        *peers
            .iter()
            .find(|p| usize::from(p.node.0) == peer)
            .expect("every other node is a peer")
    }

    /// Restarts a node and waits until the Primary has fed it.
    pub(super) fn restart_and_feed(&mut self, primary: usize, node: usize) {
        self.restart(node);
        self.until_follows(primary, node);
    }

    /// Waits until a node has all that the Primary has, and both say so.
    pub(super) fn until_follows(&mut self, primary: usize, node: usize) {
        let follows = |c: &Cluster| {
            let view = &c.nodes[node].view;
            view.primary == Some(node_id(primary))
                && view.disk_state == DiskState::UpToDate
                && c.peer_disk(primary, node) == DiskState::UpToDate
        };
        let followed = self.run_until(20 * SECOND, follows);
        assert!(followed, "{:?}", self.nodes[node].view);
    }

    /// How many blocks of journal went from one node to another so far.
    pub(super) fn sent(&self, from: usize, to: usize) -> u64 {
        *self.net.sent_blocks.get(&(from, to)).unwrap_or(&0)
    }

    /// The ends of a node's log: what is durable, what is known to be committed.
    pub(super) fn log_of(&self, node: usize) -> (u64, u64) {
        let view = &self.nodes[node].view;
        (view.durable.0, view.committed.0)
    }
}

//! Stories: short scripted lives of a cluster, each about one thing. `rules` tells the rules of the protocol; the other
//! files tell the scenarios of DRBD's test suite, under its names (`docs/drbd-tests.md` is the table).

mod catch_up;
mod directions;
mod disk_faults;
mod interruptions;
mod lifecycle;
mod mending;
mod outdated;
mod promotion;
mod quorum;
mod quorum_lost;
mod rules;
mod witness_rules;

use replicator::io::{AdminError, AdminResult};
use replicator::types::Epoch;
use replicator::view::{ConnectionState, DiskState};
use replicator::wire::frame::Frame;

use crate::harness::*;
use crate::net::FrameKind;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const D: usize = 3;
const E: usize = 4;

/// The power of a node fails.
const POWER: bool = true;
/// A node's process is killed.
const KILL: bool = false;

const REPORT: FrameKind = |f| matches!(f, Frame::Report(_));
const ASK: FrameKind = |f| matches!(f, Frame::Ask { .. });
const ANSWER: FrameKind = |f| matches!(f, Frame::Report(r) if r.token > 0 && r.granted == Epoch(0));
const PROMISE: FrameKind = |f| matches!(f, Frame::Promise { .. });
const GRANT: FrameKind = |f| matches!(f, Frame::Report(r) if r.granted > Epoch(0));
const FETCH: FrameKind = |f| matches!(f, Frame::Fetch { .. });
const FETCHED: FrameKind = |f| matches!(f, Frame::Fetched { .. });
const APPEND: FrameKind = |f| matches!(f, Frame::Append { .. });
const ACK: FrameKind = |f| matches!(f, Frame::Ack { .. });
const HEARTBEAT: FrameKind = |f| matches!(f, Frame::Heartbeat { .. });
const HEARTBEAT_ACK: FrameKind = |f| matches!(f, Frame::HeartbeatAck { .. });
const DEMOTED: FrameKind = |f| matches!(f, Frame::Demoted { .. });

fn of_nodes(nodes: usize) -> Options {
    Options {
        nodes,
        ..Options::default()
    }
}

/// A cluster whose first node is Primary, and everybody has what it has.
fn serving(seed: u64, options: Options) -> Cluster {
    let mut c = Cluster::new(seed, options);
    c.run_for(SECOND);
    assert_eq!(c.promote(A, 5 * SECOND), Ok(()));
    c.until_fed(A);
    c
}

fn said(c: &Cluster, node: usize, what: &str) -> bool {
    c.lines.iter().any(|(n, l)| *n == node && l.contains(what))
}

fn no_quorum(result: &AdminResult) -> bool {
    matches!(result, Err(AdminError::NoQuorum(_)))
}

fn other_primary(result: &AdminResult) -> bool {
    matches!(result, Err(AdminError::OtherPrimary(_)))
}

impl Cluster {
    /// Waits until a Primary's peers have all that it has.
    fn until_fed(&mut self, primary: usize) {
        let fed = self.run_until(20 * SECOND, |c| c.fed(primary));
        assert!(fed, "{:?}", self.nodes[primary].view);
    }

    /// Promotes a node, which must succeed.
    fn must_promote(&mut self, node: usize) {
        assert_eq!(self.promote(node, 8 * SECOND), Ok(()));
    }

    fn must_demote(&mut self, node: usize) {
        let demoted = self.command(node, replicator::io::AdminCommand::Demote);
        assert_eq!(demoted, Ok(()));
    }

    /// How a node's view shows a peer's disk.
    fn peer_disk(&self, node: usize, peer: usize) -> DiskState {
        self.peer_view(node, peer).disk_state
    }

    fn connected(&self, node: usize, peer: usize) -> bool {
        self.peer_view(node, peer).connection == ConnectionState::Connected
    }

    fn peer_view(&self, node: usize, peer: usize) -> replicator::view::PeerView {
        let peers = &self.nodes[node].view.peers;
        *peers
            .iter()
            .find(|p| usize::from(p.node.0) == peer)
            .expect("every other node is a peer")
    }

    /// Restarts a node and waits until the Primary has fed it.
    fn restart_and_feed(&mut self, primary: usize, node: usize) {
        self.restart(node);
        let fed = |c: &Cluster| {
            c.connected(primary, node) && c.peer_disk(primary, node) == DiskState::UpToDate
        };
        assert!(self.run_until(20 * SECOND, fed));
    }
}

//! How long peers take to acknowledge what a Primary admits: a mark at the end of each turn that admitted something, taken
//! away when the peer has acknowledged so far. It is all worked out from the core's view, and allocates nothing.

use std::collections::VecDeque;

use replicator::types::{Epoch, NODES_MAX, Seq, Time};
use replicator::view::{ReplicationState, View};

use crate::meters::Meters;

/// The most marks of a peer. While it has so many, what is admitted is not marked.
const MARKS_MAX: usize = 64;

/// The marks of all peers, by node.
#[derive(Debug)]
pub struct Acknowledgements {
    epoch: Epoch,
    marks: [VecDeque<(Seq, Time)>; NODES_MAX],
}

impl Default for Acknowledgements {
    fn default() -> Self {
        Self {
            epoch: Epoch(0),
            marks: std::array::from_fn(|_| VecDeque::with_capacity(MARKS_MAX)),
        }
    }
}

impl Acknowledgements {
    /// A turn has ended, and this is what the core shows.
    pub fn turn_ended(&mut self, now: Time, view: &View, meters: &Meters) {
        if view.epoch != self.epoch || !view.serving {
            self.epoch = view.epoch;
            self.marks.iter_mut().for_each(VecDeque::clear);
        }
        if !view.serving {
            return;
        }
        for peer in &view.peers {
            let node = usize::from(peer.node.0);
            let marks = &mut self.marks[node];
            // What is staged by a resync is acknowledged by nobody.
            let fed = !matches!(
                peer.replication,
                ReplicationState::Off | ReplicationState::SyncSource
            );
            let Some(durable) = peer.durable.filter(|_| fed) else {
                marks.clear();
                continue;
            };
            while let Some(&(seq, at)) = marks.front().filter(|(seq, _)| *seq <= durable) {
                meters.peer(node).acknowledgement.observe(now.since(at));
                marks.pop_front();
                debug_assert!(seq <= view.admitted);
            }
            let marked = marks.back().map_or(durable, |(seq, _)| *seq);
            if view.admitted > marked && marks.len() < MARKS_MAX {
                marks.push_back((view.admitted, now));
            }
        }
    }

    /// Since when a peer has not acknowledged something; the beginning of time if it has acknowledged everything.
    pub fn waits_since(&self) -> [Time; NODES_MAX] {
        std::array::from_fn(|node| self.marks[node].front().map_or(Time(0), |(_, at)| *at))
    }
}

#[cfg(test)]
mod tests {
    use replicator::types::NodeId;
    use replicator::view::PeerView;

    use super::*;

    fn view(admitted: u64, durable: u64) -> View {
        let mut view = View {
            serving: true,
            epoch: Epoch(1),
            admitted: Seq(admitted),
            ..View::default()
        };
        view.peers.push(PeerView {
            node: NodeId(2),
            replication: ReplicationState::Established,
            durable: Some(Seq(durable)),
            ..PeerView::default()
        });
        view
    }

    #[test]
    fn each_turns_records_are_timed_until_the_peer_has_them() {
        let (mut acks, meters) = (Acknowledgements::default(), Meters::default());
        let mut turn = |at, admitted, durable| {
            acks.turn_ended(Time(at), &view(admitted, durable), &meters);
            acks.waits_since()[2].0
        };
        assert_eq!(turn(100, 5, 0), 100);
        assert_eq!(turn(200, 9, 4), 100);
        assert_eq!(turn(300, 9, 5), 200);
        assert_eq!(turn(350, 9, 9), 0);
        assert_eq!(turn(400, 9, 9), 0);
        let histogram = &meters.peer(2).acknowledgement;
        assert_eq!(histogram.buckets()[0], 2);
        assert_eq!(histogram.sum_nanos(), 200 + 150);
    }

    #[test]
    fn a_peer_that_acknowledges_nothing_takes_no_more_room_than_its_own() {
        let (mut acks, meters) = (Acknowledgements::default(), Meters::default());
        for turn in 1..1000 {
            acks.turn_ended(Time(turn), &view(turn, 0), &meters);
        }
        assert_eq!(acks.marks[2].len(), MARKS_MAX);
        assert_eq!(acks.waits_since()[2], Time(1));
        // A peer that is gone, or another reign, leaves nothing behind.
        let mut gone = view(1000, 0);
        gone.peers[0].durable = None;
        acks.turn_ended(Time(1000), &gone, &meters);
        assert_eq!(acks.waits_since()[2], Time(0));
        assert_eq!(meters.peer(2).acknowledgement.sum_nanos(), 0);
    }
}

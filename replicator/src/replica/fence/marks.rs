//! The marks of fences: how they are kept, whom they are heard from, and what becomes of a node when it hears of its own.

use arrayvec::ArrayVec;

use crate::memory::Memory;
use crate::meta::config::{ClusterConfig, Name};
use crate::meta::fences::{FenceMark, FenceMarks, StoredMark, StoredMarks};
use crate::replica::Replica;
use crate::replica::follower::Owed;
use crate::replica::leader::DemoteFor;
use crate::types::*;
use crate::wire::frame::{Fence, Report};

/// Marks as they are kept on the disk.
pub(in crate::replica) fn to_store(marks: &FenceMarks, nodes: &[Name]) -> StoredMarks {
    let mut stored = StoredMarks::default();
    for (place, (name, (_, mark))) in stored.iter_mut().zip(nodes.iter().zip(marks.iter())) {
        *place = StoredMark::new(name, mark);
    }
    stored
}

/// And back.
pub(in crate::replica) fn from_store(stored: &StoredMarks, nodes: &[Name]) -> FenceMarks {
    let mut marks = FenceMarks::default();
    for (node, name) in (0..).map(NodeId).zip(nodes) {
        for mark in stored.iter().filter(|m| m.is_of(name)) {
            marks.learn(node, mark.mark);
        }
    }
    marks
}

impl<M: Memory> Replica<M> {
    /// Whether this node grants another one, or itself, no epoch.
    pub(in crate::replica) fn is_fenced(&self, node: NodeId) -> bool {
        self.metadata.fences.of(node).is_fenced()
    }

    /// Takes the marks that peers, or one of them, told where they are newer, and of this node's history: those of a node that went on
    /// alone by force are not for the others, nor theirs for it, and who is fresh must not carry them across. A node with a history
    /// hears whoever shares it and whom its config lists (of itself such a one may have said that it is fresh, long ago); a fresh node
    /// those who list it, and others of its kind.
    pub(in crate::replica) fn hear_marks(&mut self, from: Option<NodeId>) {
        let (fresh, sb) = (self.fresh(), &self.metadata.wanted);
        let (me, history) = (sb.incarnation, sb.history);
        let own = self.log.config().map(|c| &c.config);
        let lists = |c: &ClusterConfig, i| c.standing(i).is_some();
        let shared = |r: &Report| match (fresh, r.fresh) {
            (true, true) => true,
            (true, false) => r.config.as_ref().is_some_and(|c| lists(&c.config, me)),
            (false, true) => own.is_some_and(|c| lists(c, r.incarnation)),
            (false, false) => r.history == history,
        };
        let peers = self.peers.iter().filter(|p| p.conn.is_some());
        let told: ArrayVec<FenceMarks, NODES_MAX> = peers
            .filter(|p| from.is_none_or(|node| p.node == node))
            .filter_map(|p| p.report.as_deref())
            .filter(|r| shared(r))
            .map(|r| r.fences)
            .collect();
        let count = self.config.nodes.len();
        for (node, mark) in told.iter().flat_map(|marks| marks.iter().take(count)) {
            self.raise_mark(node, mark);
        }
    }

    pub(super) fn raise_mark(&mut self, node: NodeId, mark: FenceMark) {
        let before = self.is_fenced(node);
        if !self.metadata.fences.learn(node, mark) {
            return;
        }
        self.marks_version = self.metadata.changed();
        if before == mark.is_fenced() {
            return;
        }
        let name = self.config.nodes[usize::from(node.0)];
        if before {
            self.log_info(format!("{name} is not fenced any more"));
        } else if node == self.config.me {
            self.log_warn("this node is fenced: it is not Primary before it is unfenced".into());
            let error = self.fenced_error();
            self.end_candidacy(Err(error));
            if self.leader.is_some() && !self.demoting() {
                self.demote(DemoteFor::Fence);
            }
        } else {
            self.log_warn(format!("{name} is fenced: it is promised no epoch"));
        }
    }

    /// This node begins a history of its own, in which nobody is fenced.
    pub(in crate::replica) fn forget_fences(&mut self) {
        let before = self.metadata.fences;
        for (node, mark) in before.iter() {
            self.metadata.fences.learn(node, mark.unfenced());
        }
    }

    /// A peer tells its marks, and may want an epoch with them.
    pub(in crate::replica) fn got_fence(&mut self, conn: ConnId, fence: &Fence) {
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        let node = peer.node;
        if let Some(report) = peer.report.as_mut() {
            for (of, mark) in fence.marks.iter() {
                report.fences.learn(of, mark);
            }
        }
        self.hear_marks(Some(node));
        let (token, incarnation) = (fence.token, fence.incarnation);
        if fence.epoch == Epoch(0) {
            if token != 0 {
                // One answer per connection is enough: the newest.
                self.owed
                    .retain(|(_, o)| !matches!(o, Owed::Kept { conn: c, .. } if *c == conn));
                let owed = Owed::Kept { conn, token };
                self.owed.push((self.marks_version, owed));
            }
            return;
        }
        let may = self.may_fence(node, incarnation);
        self.promise_if(conn, token, fence.epoch, incarnation, may);
    }

    /// Whether a node that fences others counts for something: it need not have data, since it does not reign.
    fn may_fence(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let report = self.peer(node).and_then(|p| p.report.as_ref());
        let theirs = report.and_then(|r| r.config.as_ref());
        let newest = self.log.config().into_iter().chain(theirs);
        let newest = newest.max_by_key(|c| c.at).map(|c| &c.config);
        newest.is_some_and(|c| c.standing(incarnation).is_some_and(|s| s.counts()))
            && !self.is_fenced(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from(text).expect("a short name")
    }

    #[test]
    fn marks_follow_the_names_when_a_node_is_added() {
        let mut marks = FenceMarks::default();
        let mark = FenceMark::default().fenced_anew();
        marks.learn(NodeId(1), mark);
        let stored = to_store(&marks, &[name("ann"), name("cat")]);
        let now = from_store(&stored, &[name("ann"), name("bob"), name("cat")]);
        assert_eq!(now.of(NodeId(2)), mark);
        assert_eq!(now.of(NodeId(1)), FenceMark::default());
    }
}

//! What a replica shows of itself.

use super::Replica;
use crate::memory::Memory;
use crate::meta::config::{Standing, majority};
use crate::replica::peers::{Feed, Peer};
use crate::types::*;
use crate::view::*;

impl<M: Memory> Replica<M> {
    /// A snapshot.
    #[must_use]
    pub fn view(&self) -> View {
        let serving = self.serving();
        let lease_until = if serving { self.lease_until() } else { Time(0) };
        let heard_lease_until = match self.lease_wait_ns(self.config.me) {
            wait if wait > 0 && !serving => self.now.after(wait),
            _ => Time(0),
        };
        let quorum = self.has_quorum();
        let disk_state = self.own_disk_state(quorum);
        let role = if self.is_witness() {
            Role::Witness
        } else if serving {
            Role::Primary
        } else {
            Role::Secondary
        };
        let primary = if serving {
            Some(self.config.me)
        } else {
            self.following.map(|f| f.node).filter(|_| !self.released)
        };
        let mut view = View {
            role,
            epoch: self.primary_epoch,
            primary,
            quorum,
            suspended: if serving && self.hold.is_some() {
                Suspended::User
            } else if serving && self.now >= lease_until {
                Suspended::Quorum
            } else {
                Suspended::No
            },
            health: Health::Ok,
            health_reason: "",
            // Clients that came during a demotion would not be heard.
            serving: serving && !self.demoting() && !self.exports_wait(),
            admitted: self.admitted(),
            durable: self.log.durable_id().seq,
            committed: self.committed,
            applied: self.applied_in_stores(),
            journal_floor: self.log.start().id.seq.next(),
            disk_state,
            failed: self.failed.is_some(),
            disks_hang: self.disks_hang,
            membership: self.own_membership(),
            fenced: self.is_fenced(self.config.me),
            changing: serving && self.settled_config().is_none(),
            journal_bytes: self.log.ring_bytes(),
            journal_used_bytes: self.log.used_bytes(),
            incoming: u32::try_from(self.incoming.len()).expect("it is bounded"),
            lease_until,
            heard_lease_until,
            requests: self.clients.in_work(),
            requests_max: self.config.requests_max,
            integrity: Integrity {
                bad_blocks: self.repairs.found,
                repaired_blocks: self.repairs.mended,
                lost_blocks: self.repairs.lost,
                sums_pages_lost: self.sums_pages_lost,
            },
            verify: self.verify_view(),
            peers: self.peers.iter().map(|p| self.peer_view(p)).collect(),
        };
        (view.health, view.health_reason) = self.health(&view);
        if view.health == Health::Ok && self.repairs.found_worn(self.now) {
            view.health = Health::Degraded;
            view.health_reason = "a store does not keep blocks that are put back: peers' copies are read instead; replace its disk";
        }
        if view.health != Health::Down && self.lacks_room() {
            view.health = Health::Degraded;
            view.health_reason = "there is no room for volumes as large as the resource has them: the log says what to do";
        }
        if view.health != Health::Down && self.peers.iter().any(|p| p.foreign.is_some()) {
            view.health = Health::Degraded;
            view.health_reason = "a peer has another history, by a forced promotion: one side's data has to be given up";
        }
        view
    }

    /// Whether a majority of the voters is within reach.
    fn has_quorum(&self) -> bool {
        if self.serving() {
            return self.lease_runs();
        }
        let (votes, needed) = match self.log.config() {
            Some(config) => {
                let peers = self
                    .peers
                    .iter()
                    .filter(|p| p.conn.is_some())
                    .filter_map(Peer::incarnation)
                    .filter(|&i| config.config.is_voter(i))
                    .count();
                let own = usize::from(config.config.is_voter(self.metadata.wanted.incarnation));
                (peers + own, majority(config.config.voters()))
            }
            None => {
                let peers = self.peers.iter().filter(|p| p.conn.is_some()).count();
                (peers + 1, majority(self.config.nodes.len()))
            }
        };
        votes >= needed && self.failed.is_none()
    }

    fn own_disk_state(&self, quorum: bool) -> DiskState {
        if self.failed.is_some() {
            return DiskState::Failed;
        }
        if self.is_witness() {
            return DiskState::Diskless;
        }
        if self.fresh() || self.inconsistent() {
            return DiskState::Inconsistent;
        }
        if self.leader.is_some() {
            return DiskState::UpToDate;
        }
        if self.disks_hang {
            return DiskState::Failed;
        }
        if self.own_membership() != Membership::Full {
            return DiskState::Outdated;
        }
        if self.told_outdated || self.damaged() || self.merging() {
            return DiskState::Outdated;
        }
        if self.following.is_some() {
            return if self.caught_up {
                DiskState::UpToDate
            } else {
                DiskState::Outdated
            };
        }
        let tail = self.log.durable_id();
        let newer = self
            .peers
            .iter()
            .filter(|p| p.conn.is_some())
            .filter_map(|p| p.report.as_ref())
            .any(|r| r.tail > tail && !r.fresh);
        match (newer, quorum) {
            (true, _) => DiskState::Outdated,
            (false, true) => DiskState::UpToDate,
            (false, false) => DiskState::Consistent,
        }
    }

    fn own_membership(&self) -> Membership {
        let own = self.metadata.wanted.incarnation;
        match self.log.config() {
            Some(config) => membership(config.config.standing(own), self.is_witness()),
            None => Membership::Unknown,
        }
    }

    /// How a peer stands: as the life of it that was met, or else as whatever is known under its name.
    pub(super) fn membership_of(&self, peer: &Peer) -> Membership {
        let Some(config) = self.log.config().map(|c| &c.config) else {
            return Membership::Unknown;
        };
        let name = &self.config.nodes[usize::from(peer.node.0)];
        let standing = match peer.incarnation() {
            Some(incarnation) => config.standing(incarnation),
            None => config.entry(name),
        };
        membership(standing, self.config.is_witness(peer.node))
    }

    fn peer_view(&self, peer: &Peer) -> PeerView {
        let connection = match (peer.conn, peer.wanted) {
            (Some(_), _) => ConnectionState::Connected,
            (None, true) => ConnectionState::Connecting,
            (None, false) => ConnectionState::StandAlone,
        };
        let mut view = PeerView {
            node: peer.node,
            connection,
            membership: self.membership_of(peer),
            fenced: self.is_fenced(peer.node),
            ..PeerView::default()
        };
        if self.config.is_witness(peer.node) {
            view.role = Role::Witness;
            view.disk_state = DiskState::Diskless;
            let config = self.log.config().map_or(Seq(0), |c| c.at.seq);
            if matches!(peer.feed, Feed::Witness { .. }) && peer.acked >= config {
                view.replication = ReplicationState::Established;
            }
            return view;
        }
        let (Some(_), Some(report)) = (peer.conn, peer.report.as_ref()) else {
            return view;
        };
        let follows = self.following.is_some_and(|f| f.node == peer.node) && !self.released;
        view.role = if follows {
            Role::Primary
        } else {
            Role::Secondary
        };
        if self.leader.is_some() {
            view.durable = Some(peer.acked);
            view.applied = Some(peer.applied);
            view.behind_bytes = Some(self.lag_blocks(peer) * BLOCK_BYTES_U64);
            (view.replication, view.disk_state) = match peer.feed {
                Feed::On { .. } if peer.disks_hang => (ReplicationState::Behind, DiskState::Failed),
                Feed::On { .. } if peer.staging => {
                    (ReplicationState::SyncSource, DiskState::Outdated)
                }
                Feed::On { .. } if peer.caught_up && view.membership == Membership::Full => {
                    (ReplicationState::Established, DiskState::UpToDate)
                }
                Feed::On { .. } if view.membership == Membership::Out => {
                    (ReplicationState::Off, DiskState::Outdated)
                }
                Feed::On { .. } => (ReplicationState::Behind, DiskState::Outdated),
                Feed::TooFar => (ReplicationState::Off, DiskState::Outdated),
                Feed::NotMember if report.fresh => (ReplicationState::Off, DiskState::Inconsistent),
                Feed::NotMember => (ReplicationState::Off, DiskState::Outdated),
                Feed::Asked | Feed::Off | Feed::Witness { .. } => {
                    (ReplicationState::Off, DiskState::DUnknown)
                }
            };
            if report.inconsistent && view.replication != ReplicationState::Established {
                view.disk_state = DiskState::Inconsistent;
            }
            if peer.staging {
                let (left_bytes, total_bytes) = peer.sync;
                view.sync = Some(SyncView {
                    left_bytes,
                    total_bytes,
                    full: false,
                    in_place: report.inconsistent,
                });
            }
            if matches!(peer.feed, Feed::TooFar | Feed::NotMember) || peer.staging {
                view.behind_bytes = None;
                view.durable = Some(report.tail.seq);
            }
        } else {
            view.durable = Some(report.tail.seq);
            view.disk_state = if report.fresh || report.inconsistent {
                DiskState::Inconsistent
            } else if follows {
                DiskState::UpToDate
            } else if report.damaged || view.membership != Membership::Full {
                DiskState::Outdated
            } else {
                DiskState::Consistent
            };
            if follows {
                view.durable = Some(self.primary_tail.max(report.tail.seq));
                view.sync = self.resync_view();
                view.replication = if view.sync.is_some() {
                    ReplicationState::SyncTarget
                } else if self.told_outdated {
                    ReplicationState::Off
                } else {
                    ReplicationState::Established
                };
                view.behind_bytes = Some(0);
            }
        }
        view
    }

    fn health(&self, view: &View) -> (Health, &'static str) {
        if let Some(reason) = self.failed {
            return (Health::Down, reason);
        }
        if self.inconsistent() {
            return if self.resync_view().is_some_and(|r| r.full) {
                (
                    Health::Down,
                    "Inconsistent: a store has no room for what a resync brings to it; free some",
                )
            } else if self.metadata.wanted.uuid == ResourceUuid(0) {
                (
                    Health::Down,
                    "Inconsistent: its data is a seed only; replctl replace on the Primary lets it join",
                )
            } else {
                (
                    Health::Down,
                    "Inconsistent: a resync goes straight to the stores, and they are no image until it is whole",
                )
            };
        }
        if self.disks_hang && !view.serving {
            return (Health::Down, "the disks of this node do not answer");
        }
        if self.fresh() {
            let all = view
                .peers
                .iter()
                .all(|p| p.connection == ConnectionState::Connected);
            return if all {
                (
                    Health::Degraded,
                    "freshly created: waits for the first promotion",
                )
            } else {
                (
                    Health::Down,
                    "freshly created: the first promotion needs all nodes",
                )
            };
        }
        if self.damaged() {
            return if self.is_witness() {
                (
                    Health::Down,
                    "this witness was rolled back: a Primary has to tell it the config first",
                )
            } else {
                (
                    Health::Down,
                    "the journal is damaged: this node has to catch up first",
                )
            };
        }
        if view.serving {
            if !view.quorum && self.is_one_of_two() {
                return (
                    Health::Down,
                    "the other node can not be reached: I/O waits until it is back, or `replctl confirm-stopped` says that it is off",
                );
            }
            if !view.quorum {
                return (
                    Health::Down,
                    "a majority of the nodes can not be reached: I/O waits",
                );
            }
            if view.suspended == Suspended::User {
                return (
                    Health::Degraded,
                    "an operator holds writes: replctl resume-io lets them go on",
                );
            }
            let whole = view.peers.iter().all(|p| match p.disk_state {
                DiskState::Diskless => p.replication == ReplicationState::Established,
                state => state == DiskState::UpToDate,
            });
            let outside =
                |p: &PeerView| !matches!(p.membership, Membership::Full | Membership::Unknown);
            return if view.peers.iter().any(outside) {
                (
                    Health::Degraded,
                    "a node does not count: it was dropped, or has to join first",
                )
            } else if whole && view.peers.iter().any(|p| p.fenced) {
                (
                    Health::Degraded,
                    "a node is fenced: it can not be promoted before repl-fence unfence",
                )
            } else if whole {
                (Health::Ok, "")
            } else {
                (
                    Health::Degraded,
                    "a peer is away or behind: redundancy is lost",
                )
            };
        }
        if view.fenced && view.quorum && view.disk_state == DiskState::UpToDate {
            return (
                Health::Degraded,
                "this node is fenced: it can not be promoted before repl-fence unfence",
            );
        }
        match view.disk_state {
            DiskState::UpToDate | DiskState::Diskless if view.quorum => (Health::Ok, ""),
            DiskState::UpToDate | DiskState::Diskless | DiskState::Consistent => {
                (Health::Down, "a majority of the nodes can not be reached")
            }
            _ if view.membership == Membership::Out => (
                Health::Down,
                "this node counts for nothing: it was dropped, or replaced by another life of it",
            ),
            _ if self.resync_view().is_some_and(|r| r.full) => (
                Health::Degraded,
                "there is no room to stage a resync: free some in the data directory",
            ),
            _ if self.told_outdated => (
                Health::Degraded,
                "past the Primary's journal: a resync brings what changed",
            ),
            _ => (Health::Degraded, "behind the newest data: catching up"),
        }
    }
}

/// How a node with this standing is shown.
fn membership(standing: Option<&Standing>, witness: bool) -> Membership {
    match standing {
        Some(s) if s.voter && (s.member || witness) => Membership::Full,
        Some(s) if s.counts() || s.stopped => Membership::Dropped,
        Some(s) if s.joining => Membership::Joining,
        _ => Membership::Out,
    }
}

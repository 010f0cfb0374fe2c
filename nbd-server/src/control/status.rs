//! From the data thread's snapshot to what operators read.

use replicator::meta::volumes::VolumeRecord;
use replicator::types::VolumeId;

use crate::config::{Config, Node, Volume};
use replicator::types::Time;
use replicator::view;

use super::scrub::Dates;
use super::{ADMIN_CONNECTIONS_MAX, NBD_CONNECTIONS_MAX, NBD_NEGOTIATING_MAX, Shared};
use crate::admin::{
    Connection, DiskState, Health, IntegrityStatus, JournalStatus, Limits, Membership,
    MemoryStatus, PeerStatus, Replication, Role, SeqStatus, Status, Suspended, VolumeStatus,
};
use crate::config::NodeRole;
use crate::handle::{Snapshot, Trouble};

/// A data thread that did not move for so long hangs.
const HANGS_AFTER_MS: u64 = 5_000;

/// Makes statuses; remembers how far behind each peer was when it fell behind.
#[derive(Debug)]
pub(super) struct StatusBuilder {
    behind_most: Vec<u64>,
    paces: Vec<Pace>,
    pub(super) dates: Dates,
}

/// How fast a resync goes: over the last ten to twenty seconds, or since it began.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    earlier: Option<(Time, u64)>,
    later: Option<(Time, u64)>,
}

impl Pace {
    const SPAN_NS: u64 = 10_000_000_000;

    /// Bytes per second, as of what is left at a time.
    fn of(&mut self, at: Time, sync: Option<view::SyncView>) -> Option<u64> {
        let Some(sync) = sync else {
            *self = Self::default();
            return None;
        };
        let now = (at, sync.left_bytes);
        let later = *self.later.get_or_insert(now);
        if at.since(later.0) >= Self::SPAN_NS {
            self.earlier = Some(later);
            self.later = Some(now);
        }
        let (since, left) = self.earlier.unwrap_or(later);
        let nanos = u128::from(at.since(since)).max(1);
        let bytes = u128::from(left.saturating_sub(sync.left_bytes));
        if at == since {
            return None;
        }
        u64::try_from(bytes * 1_000_000_000 / nanos).ok()
    }
}

/// The volumes with their ids: as they are, or as the config file has them while that is not known yet.
fn volumes(
    config: &Config,
    node: &Node,
    snapshot: &Snapshot,
) -> impl Iterator<Item = (usize, Volume)> {
    let known: Vec<_> = if node.role == NodeRole::Witness {
        Vec::new()
    } else if snapshot.at.0 == 0 {
        config.volumes.iter().cloned().enumerate().collect()
    } else {
        let volume = |(id, v): (VolumeId, &VolumeRecord)| {
            (usize::from(id.0), Volume::named(&v.name, v.bytes))
        };
        let mut all: Vec<_> = snapshot.volumes.iter().map(volume).collect();
        all.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        all
    };
    known.into_iter()
}

impl StatusBuilder {
    pub(super) fn new(config: &Config, me: usize) -> Self {
        let nodes = config.nodes.len();
        Self {
            dates: Dates::load(config, me),
            behind_most: vec![0; nodes],
            paces: vec![Pace::default(); nodes],
        }
    }

    pub(super) fn build(&mut self, shared: &Shared, snapshot: &Snapshot) -> Status {
        let (config, node, view) = (&shared.config, shared.node(), &snapshot.view);
        let seen = snapshot.at.0 != 0;
        let last_progress_ms = seen.then(|| {
            let now = super::boottime().0;
            now.saturating_sub(snapshot.at.0) / 1_000_000
        });
        let (health, health_reason) = match last_progress_ms {
            None => (Health::Down, "repld is starting".to_owned()),
            Some(ms) if ms >= HANGS_AFTER_MS => (
                Health::Down,
                format!(
                    "the data thread has not moved for {} s; look at the disks",
                    ms / 1000
                ),
            ),
            Some(_) => with_trouble(
                (health(view.health), view.health_reason.to_owned()),
                view,
                &snapshot.trouble,
            ),
        };
        let health_reason = match shared.fencing.note(config) {
            Some(note) if !health_reason.is_empty() => format!("{health_reason}; {note}"),
            Some(note) if health != Health::Ok => note,
            _ => health_reason,
        };
        let known = |value: u64| seen.then_some(value);
        let disk_state = disk_state(view.disk_state);
        let primary = view
            .primary
            .and_then(|node| config.nodes.get(usize::from(node.0)));
        Status {
            resource: config.resource.clone(),
            node: node.name.clone(),
            role: role(view.role),
            membership: membership(view.membership),
            fenced: seen.then_some(view.fenced),
            epoch: view.epoch.0,
            primary: primary.map(|node| node.name.clone()),
            quorum: seen.then_some(view.quorum),
            suspended: match view.suspended {
                view::Suspended::No => Suspended::No,
                view::Suspended::Quorum if shared.fencing.runs() => Suspended::Fencing,
                view::Suspended::Quorum => Suspended::Quorum,
                view::Suspended::User => Suspended::User,
            },
            health,
            health_reason,
            seq: SeqStatus {
                admitted: known(view.admitted.0),
                durable: known(view.durable.0),
                committed: known(view.committed.0),
                applied: known(view.applied.0),
            },
            volumes: volumes(config, node, snapshot)
                .map(|(id, volume)| VolumeStatus {
                    id,
                    disk_state,
                    nbd_clients: snapshot.nbd_clients.get(id).copied().filter(|_| seen),
                    uri: config.nbd_uri(node, &volume),
                    name: volume.name,
                    size: volume.size_bytes,
                })
                .collect(),
            peers: (0..config.nodes.len())
                .filter(|index| *index != shared.me)
                .map(|index| self.peer(shared, view, index, snapshot.at))
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            memory_locked: seen.then_some(snapshot.memory_locked),
            last_progress_ms,
            lease_left_ms: seen.then(|| lease_left_ms(config, view)),
            limits: Limits {
                journal: JournalStatus {
                    size: known(view.journal_bytes),
                    used: known(view.journal_used_bytes),
                },
                memory: MemoryStatus {
                    size: known(snapshot.memory_bytes),
                    used: known(snapshot.memory_used_bytes),
                    registered: seen.then_some(snapshot.buffers_registered),
                },
                requests: seen.then_some(view.requests),
                requests_max: seen.then_some(view.requests_max),
                nbd_connections_max: NBD_CONNECTIONS_MAX,
                nbd_negotiating_max: NBD_NEGOTIATING_MAX,
                admin_connections_max: ADMIN_CONNECTIONS_MAX,
                lease_ms: config.policy.lease_ms,
            },
            integrity: IntegrityStatus {
                bad_blocks: known(view.integrity.bad_blocks),
                repaired_blocks: known(view.integrity.repaired_blocks),
                lost_blocks: known(view.integrity.lost_blocks),
                sums_pages_lost: seen.then_some(view.integrity.sums_pages_lost),
            },
            verify: self.dates.status(config, &snapshot.volumes, view),
        }
    }

    fn peer(&mut self, shared: &Shared, view: &view::View, index: usize, at: Time) -> PeerStatus {
        let peer = view
            .peers
            .iter()
            .find(|peer| usize::from(peer.node.0) == index);
        let (known, peer) = (peer, peer.copied().unwrap_or_default());
        let link = &shared.links[index];
        let connection = match peer.connection {
            view::ConnectionState::Connected => Connection::Connected,
            view::ConnectionState::StandAlone => Connection::StandAlone,
            view::ConnectionState::Connecting if link.wanted() => Connection::Connecting,
            view::ConnectionState::Connecting => Connection::StandAlone,
        };
        let reason = match connection {
            Connection::Connected => None,
            Connection::StandAlone => Some(link.why_alone()),
            Connection::Connecting => link.reason(),
        };
        let most = &mut self.behind_most[index];
        *most = match peer.behind_bytes {
            Some(0) => 0,
            Some(behind) => behind.max(*most),
            None => *most,
        };
        let sync_percent = match peer.sync {
            Some(sync) => Some(percent(sync.left_bytes.max(1), sync.total_bytes)),
            None => peer.behind_bytes.map(|behind| percent(behind, *most)),
        };
        let sync_bytes_per_second = self.paces[index].of(at, peer.sync);
        let sync_seconds_left = match (sync_bytes_per_second, peer.sync) {
            (Some(pace), Some(sync)) if pace > 0 => Some(sync.left_bytes.div_ceil(pace)),
            _ => None,
        };
        PeerStatus {
            name: shared.config.nodes[index].name.clone(),
            role: role(peer.role),
            connection,
            replication: match peer.replication {
                view::ReplicationState::Off => Replication::Off,
                view::ReplicationState::Established => Replication::Established,
                view::ReplicationState::Behind => Replication::Behind,
                view::ReplicationState::Ahead => Replication::Ahead,
                view::ReplicationState::SyncSource => Replication::SyncSource,
                view::ReplicationState::SyncTarget => Replication::SyncTarget,
            },
            disk_state: disk_state(peer.disk_state),
            membership: membership(peer.membership),
            fenced: known.map(|peer| peer.fenced),
            durable_seq: peer.durable.map(|seq| seq.0),
            applied_seq: peer.applied.map(|seq| seq.0),
            behind_bytes: peer.behind_bytes,
            sync_percent,
            sync_left_bytes: peer.sync.map(|sync| sync.left_bytes),
            sync_bytes_per_second,
            sync_seconds_left,
            connection_reason: reason,
        }
    }
}

/// For how long there is a lease: this node's, or one that it has heard of. At most as long as one is.
fn lease_left_ms(config: &Config, view: &view::View) -> u64 {
    let until = view.lease_until.max(view.heard_lease_until);
    let left = until.since(super::boottime()) / 1_000_000;
    left.min(u64::from(config.policy.lease_ms) * 2)
}

/// Which device it is, and what to do, when the core's verdict comes from a disk or hides one.
fn with_trouble(
    (health, reason): (Health, String),
    view: &view::View,
    trouble: &Trouble,
) -> (Health, String) {
    let Trouble {
        failure,
        advice,
        silence,
    } = trouble;
    let and_reason = if reason.is_empty() {
        String::new()
    } else {
        format!("; {reason}")
    };
    match (failure, silence) {
        (Some(failure), _) if view.failed => (
            Health::Down,
            format!("{reason}: {failure}; {advice}, then restart repld"),
        ),
        // The node that serves goes on with the others' disks; any other one is of no use meanwhile.
        (_, Some(silence)) => {
            let verdict = if view.serving && health != Health::Down {
                Health::Degraded
            } else {
                Health::Down
            };
            (
                verdict,
                format!("{silence}; look at that device{and_reason}"),
            )
        }
        (Some(failure), None) => {
            let verdict = if health == Health::Ok {
                Health::Degraded
            } else {
                health
            };
            let what_to_do = if view.serving {
                "promote another node, "
            } else {
                ""
            };
            (
                verdict,
                format!("{failure}; {what_to_do}{advice}, then restart repld{and_reason}"),
            )
        }
        (None, None) => (health, reason),
    }
}

/// How much of `most` is there when `behind` is missing, with one decimal; 100 only when nothing is.
pub(super) fn percent(behind: u64, most: u64) -> f64 {
    if behind == 0 {
        return 100.0;
    }
    let tenths = u128::from(most.saturating_sub(behind)) * 1000 / u128::from(most.max(1));
    f64::from(u16::try_from(tenths.min(999)).unwrap_or(999)) / 10.0
}

fn role(role: view::Role) -> Role {
    match role {
        view::Role::Primary => Role::Primary,
        view::Role::Secondary => Role::Secondary,
        view::Role::Unknown => Role::Unknown,
        view::Role::Witness => Role::Witness,
    }
}

fn health(health: view::Health) -> Health {
    match health {
        view::Health::Ok => Health::Ok,
        view::Health::Degraded => Health::Degraded,
        view::Health::Down => Health::Down,
    }
}

fn membership(membership: view::Membership) -> Option<Membership> {
    match membership {
        view::Membership::Unknown => None,
        view::Membership::Full => Some(Membership::Member),
        view::Membership::Dropped => Some(Membership::Dropped),
        view::Membership::Joining => Some(Membership::Joining),
        view::Membership::Out => Some(Membership::Out),
    }
}

fn disk_state(state: view::DiskState) -> DiskState {
    match state {
        view::DiskState::DUnknown => DiskState::DUnknown,
        view::DiskState::Inconsistent => DiskState::Inconsistent,
        view::DiskState::Outdated => DiskState::Outdated,
        view::DiskState::Consistent => DiskState::Consistent,
        view::DiskState::UpToDate => DiskState::UpToDate,
        view::DiskState::Failed => DiskState::Failed,
        view::DiskState::Diskless => DiskState::Diskless,
    }
}

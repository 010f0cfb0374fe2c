//! From a status, a snapshot and what was counted to the text that collectors read.
//!
//! `docs/metrics.md` has every line of this for operators; a test holds the two against each other.

use std::fmt;
use std::sync::Arc;

use nix::time::{ClockId, clock_gettime};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::{Registry, Unit};
use replicator::io::SideFile;
use replicator::replica::{INCOMING_MAX, UNAPPLIED_MAX};
use replicator::types::{BLOCK_BYTES_U64, Time};

use super::super::{ADMIN_CONNECTIONS_MAX, NBD_NEGOTIATING_MAX};
use super::CONNECTIONS_MAX;
use super::http::Format;
use super::page::{Label, Number, Page, one_of, seconds, words_of};
use crate::admin::{Connection, DiskState, Health, Replication, Role, Status, Suspended};
use crate::handle::{Snapshot, Usage};
use crate::meters::{DiskFile, DiskKind, Meters, PeerMeters, RequestKind, Work};

/// What one page is made of.
#[derive(Debug)]
pub(super) struct Scrape {
    /// This node's index; the peers are the others in their order.
    pub(super) me: usize,
    pub(super) status: Status,
    /// When all copies were last known to be sound and equal, in seconds.
    pub(super) verify_clean_at: Option<u64>,
    pub(super) snapshot: Snapshot,
    pub(super) meters: Arc<Meters>,
    pub(super) nbd_negotiating: u32,
    pub(super) admin_connections: u32,
    pub(super) metrics_connections: u32,
}

/// Writes it down.
pub(super) fn encode(scrape: Scrape, format: Format) -> Result<String, fmt::Error> {
    let labels = [
        ("resource", scrape.status.resource.clone()),
        ("node", scrape.status.node.clone()),
    ];
    let labels = labels.map(|(key, value)| (key.into(), value.into()));
    let mut registry = Registry::with_prefix_and_labels("repld", labels.into_iter());
    registry.register_collector(Box::new(scrape));
    let mut page = String::new();
    match format {
        Format::Prometheus => prometheus_text::encode(&mut page, &registry)?,
        Format::OpenMetrics => text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.states(&mut page)?;
        self.records(&mut page)?;
        self.bounds(&mut page)?;
        self.data_thread(&mut page)?;
        self.requests(&mut page)?;
        self.disks(&mut page)?;
        self.integrity(&mut page)?;
        self.verify(&mut page)?;
        self.peers(&mut page)
    }
}

impl Scrape {
    fn states(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = &self.status;
        let version = [([("version", status.version.as_str())], Number::Whole(1))];
        page.gauges(("build_info", None, "The version of repld"), version)?;
        let health = one_of!(Health, status.health);
        page.word("health", "The verdict over everything", "health", &health)?;
        page.word(
            "role",
            "The role of this node",
            "role",
            &one_of!(Role, status.role),
        )?;
        page.gauge(
            "serving",
            "Whether the exports of this node serve I/O",
            self.snapshot.view.serving,
        )?;
        let quorum = status.quorum.map(|is| ([], Number::from(is)));
        page.gauges(
            ("quorum", None, "Whether a majority of the nodes is reached"),
            quorum,
        )?;
        let own = std::iter::once((status.node.as_str(), status.fenced));
        let peers = status.peers.iter().map(|p| (p.name.as_str(), p.fenced));
        let fenced = own.chain(peers);
        page.gauges(
            (
                "fenced",
                None,
                "Whether a node is fenced, as far as this node knows",
            ),
            fenced.filter_map(|(name, is)| Some(([("fenced_node", name)], Number::from(is?)))),
        )?;
        let suspended = one_of!(Suspended, status.suspended);
        page.word("suspended", "Why I/O is held", "reason", &suspended)?;
        let volumes = &status.volumes;
        page.gauges(
            (
                "volume_disk_state",
                None,
                "The state of the data of a volume on this node",
            ),
            words_of!(DiskState, volumes, "volume", disk_state, "state"),
        )?;
        page.gauges(
            ("volume_size", Some(Unit::Bytes), "The size of a volume"),
            volumes
                .iter()
                .map(|v| ([("volume", v.name.as_str())], v.size.into())),
        )?;
        let lease = u64::from(status.limits.lease_ms) * 1_000_000;
        page.gauges(
            ("lease", Some(Unit::Seconds), "The configured lease"),
            [([], Number::Real(seconds(lease)))],
        )?;
        let until = self.snapshot.view.lease_until;
        let left = (until != Time(0) && until != Time(u64::MAX))
            .then(|| ([], Number::Real(seconds(until.since(now())))));
        page.gauges(
            (
                "lease_remaining",
                Some(Unit::Seconds),
                "For how long this Primary may still answer; absent on others and where no other node is to be asked",
            ),
            left,
        )
    }

    fn records(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge(
            "epoch",
            "The newest epoch in which this node has seen a Primary",
            self.status.epoch,
        )?;
        let seq = &self.status.seq;
        for (name, help, number) in [
            (
                "admitted_seq",
                "The newest record admitted here",
                seq.admitted,
            ),
            (
                "durable_seq",
                "The newest record that is durable here with all before",
                seq.durable,
            ),
            (
                "committed_seq",
                "The newest record known to be committed",
                seq.committed,
            ),
            (
                "applied_seq",
                "The newest record that is in the stores with all before",
                seq.applied,
            ),
        ] {
            let number = number.map(|number| ([], number.into()));
            page.gauges((name, None, help), number)?;
        }
        let journal = &self.status.limits.journal;
        for (name, help, bytes) in [
            ("journal_size", "The ring of the journal", journal.size),
            (
                "journal_used",
                "What of the ring holds records that are not yet in the stores: the most that a restart replays",
                journal.used,
            ),
        ] {
            let bytes = bytes.map(|bytes| ([], bytes.into()));
            page.gauges((name, Some(Unit::Bytes), help), bytes)?;
        }
        Ok(())
    }

    fn bounds(&self, page: &mut Page<'_>) -> fmt::Result {
        let (view, queues) = (&self.snapshot.view, &self.snapshot.queues);
        let usage = |used: u64, limit: u64| (Number::from(used), Some(Number::from(limit)));
        let of = |queue: Usage| usage(queue.used.into(), queue.limit.into());
        let unapplied = view.admitted.0.saturating_sub(view.applied.0);
        let control = |used: u32, limit: u32| usage(used.into(), limit.into());
        let all = [
            ("requests", control(view.requests, view.requests_max)),
            ("unapplied_records", usage(unapplied, UNAPPLIED_MAX as u64)),
            (
                "incoming_batches",
                usage(view.incoming.into(), INCOMING_MAX as u64),
            ),
            ("ring_operations", of(queues.operations)),
            ("disk_operations", of(queues.disk_operations)),
            ("disk_waiting", (queues.disk_waiting.into(), None)),
            ("starved_connections", (queues.starved.into(), None)),
            ("nbd_connections", of(queues.nbd_connections)),
            ("peer_connections", of(queues.peer_connections)),
            (
                "nbd_negotiating",
                control(self.nbd_negotiating, NBD_NEGOTIATING_MAX),
            ),
            (
                "admin_connections",
                control(self.admin_connections, ADMIN_CONNECTIONS_MAX),
            ),
            (
                "metrics_connections",
                control(self.metrics_connections, CONNECTIONS_MAX),
            ),
        ];
        let length = all
            .iter()
            .map(|(name, (used, _))| ([("queue", *name)], *used));
        page.gauges(("queue_length", None, "How much is in a queue"), length)?;
        let limits = all.iter();
        let limits = limits.filter_map(|(name, (_, limit))| Some(([("queue", *name)], (*limit)?)));
        page.gauges(("queue_limit", None, "How much a queue takes"), limits)?;

        let [client, edge, core, apply, peer, connection] = queues.memory;
        let shares = [
            ("client", client),
            ("edge", edge),
            ("core", core),
            ("apply", apply),
            ("peer", peer),
            ("connection", connection),
            ("read_answers", queues.read_answers),
        ];
        let bytes = |blocks: u32| Number::from(u64::from(blocks) * BLOCK_BYTES_U64);
        let used = shares
            .iter()
            .map(|(name, share)| ([("share", *name)], bytes(share.used)));
        page.gauges(
            (
                "memory_used",
                Some(Unit::Bytes),
                "What is used of a share of the data path's memory",
            ),
            used,
        )?;
        let sizes = shares
            .iter()
            .map(|(name, share)| ([("share", *name)], bytes(share.limit)));
        page.gauges(
            (
                "memory_size",
                Some(Unit::Bytes),
                "A share of the data path's memory",
            ),
            sizes,
        )?;
        let locked = self.status.memory_locked.map(|is| ([], Number::from(is)));
        page.gauges(
            (
                "memory_locked",
                None,
                "Whether the data path's memory is locked",
            ),
            locked,
        )?;
        let clients = self.status.volumes.iter().filter_map(|volume| {
            Some((
                [("volume", volume.name.as_str())],
                volume.nbd_clients?.into(),
            ))
        });
        page.gauges(
            ("nbd_clients", None, "NBD connections in transmission"),
            clients,
        )
    }

    fn data_thread(&self, page: &mut Page<'_>) -> fmt::Result {
        let stalled = self.status.last_progress_ms.map(|ms| {
            let nanos = ms.saturating_mul(1_000_000);
            ([], Number::Real(seconds(nanos)))
        });
        page.gauges(
            (
                "data_thread_stalled",
                Some(Unit::Seconds),
                "How long ago the data thread last published; over a quarter of a second it hangs",
            ),
            stalled,
        )?;
        page.counters(
            ("data_thread_turns", None, "Turns of the data thread"),
            [([], self.meters.turns.get().into())],
        )?;
        page.counters(
            (
                "data_thread_idle",
                Some(Unit::Seconds),
                "Time in which it had nothing to do",
            ),
            [([], Number::Real(seconds(self.meters.idle_nanos.get())))],
        )
    }

    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let all = || {
            self.status
                .volumes
                .iter()
                .map(|volume| (volume.id, volume))
                .flat_map(|(index, volume)| {
                    RequestKind::ALL.iter().map(move |kind| {
                        let labels = [
                            ("volume", volume.name.as_str()),
                            ("operation", kind.as_str()),
                        ];
                        (labels, self.meters.requests(index, *kind))
                    })
                })
        };
        page.durations(
            (
                "request_duration",
                "From the admission of a client's request to its answer",
            ),
            all().map(|(labels, work)| (labels, &work.duration)),
        )?;
        page.counters(
            (
                "request",
                Some(Unit::Bytes),
                "Bytes of clients' requests that were done",
            ),
            all().map(|(labels, work)| (labels, work.bytes.get().into())),
        )?;
        page.counters(
            (
                "request_failures",
                None,
                "Clients' requests that were answered with an error",
            ),
            all().map(|(labels, work)| (labels, work.failed.get().into())),
        )
    }

    /// All operations on files that there are: the file, the volume if it is a store, what is done, and how it went.
    fn disk_work(&self) -> Vec<([Label<'_>; 3], &Work)> {
        let mut all = Vec::new();
        let mut add = |file: (DiskFile, &'static str), volume, kinds: &[DiskKind]| {
            for kind in kinds {
                let labels = [
                    ("file", file.1),
                    ("volume", volume),
                    ("operation", kind.as_str()),
                ];
                all.push((labels, self.meters.disk(file.0, *kind)));
            }
        };
        add(
            (DiskFile::Journal, "journal"),
            "",
            &[DiskKind::Read, DiskKind::Write],
        );
        add((DiskFile::Meta, "metadata"), "", &[DiskKind::Write]);
        for volume in &self.status.volumes {
            add(
                (DiskFile::Store(volume.id), "store"),
                &volume.name,
                DiskKind::ALL,
            );
        }
        add((DiskFile::Side(SideFile::Sums), "sums"), "", DiskKind::ALL);
        add(
            (DiskFile::Side(SideFile::Stage), "stage"),
            "",
            DiskKind::ALL,
        );
        all
    }

    fn disks(&self, page: &mut Page<'_>) -> fmt::Result {
        let all = self.disk_work();
        page.durations(
            (
                "disk_duration",
                "From the start of a disk operation to its end; writes to journal and metadata are durable then",
            ),
            all.iter().map(|(labels, work)| (*labels, &work.duration)),
        )?;
        page.counters(
            (
                "disk",
                Some(Unit::Bytes),
                "Bytes of disk operations that were done",
            ),
            all.iter()
                .map(|(labels, work)| (*labels, work.bytes.get().into())),
        )?;
        let silent = self.snapshot.queues.disk_silent_nanos;
        page.gauges(
            (
                "disk_silent",
                Some(Unit::Seconds),
                "How long the oldest disk operation has not been answered, once that is two seconds",
            ),
            [([], Number::Real(seconds(silent)))],
        )?;
        page.counters(
            ("disk_failures", None, "Disk operations that failed"),
            all.iter()
                .map(|(labels, work)| (*labels, work.failed.get().into())),
        )
    }

    fn integrity(&self, page: &mut Page<'_>) -> fmt::Result {
        let found = &self.status.integrity;
        let sample = |count: Option<u64>| count.map(|count| ([], Number::from(count)));
        for (name, help, count) in [
            (
                "bad_blocks",
                "Blocks at rest that were not what was recorded of them",
                found.bad_blocks,
            ),
            (
                "repaired_blocks",
                "Those that were written anew from a good copy",
                found.repaired_blocks,
            ),
            (
                "lost_blocks",
                "Those that no node has a good copy of",
                found.lost_blocks,
            ),
        ] {
            page.counters((name, None, help), sample(count))?;
        }
        page.gauges(
            (
                "sums_pages_lost",
                None,
                "Pages of the table of checksums that could not be read at the start",
            ),
            sample(found.sums_pages_lost.map(u64::from)),
        )
    }

    fn verify(&self, page: &mut Page<'_>) -> fmt::Result {
        let verify = &self.status.verify;
        let running = verify.running.as_ref();
        let here = running.is_some_and(|r| r.counts.is_some());
        let last = verify.last.as_ref();
        let sample = |n: u64| [([], Number::from(n))];
        let left = running.and_then(|r| r.left_bytes).unwrap_or(0);
        for (name, unit, help, value) in [
            (
                "verify_running",
                None,
                "Whether this node runs a verification",
                u64::from(here),
            ),
            (
                "verify_left",
                Some(Unit::Bytes),
                "Bytes of the volumes that the one that runs has to compare yet",
                left,
            ),
            (
                "verify_last_clean",
                None,
                "Whether the last verification found all copies sound and equal, or made them so",
                last.map_or(0, |l| u64::from(l.clean)),
            ),
            (
                "verify_last_left_blocks",
                None,
                "Blocks that the last verification left as they are",
                last.map_or(0, |l| l.counts.left_blocks),
            ),
        ] {
            page.gauges((name, unit, help), sample(value))?;
        }
        page.gauges(
            (
                "verify_clean_timestamp",
                Some(Unit::Seconds),
                "When a verification last found all copies sound and equal",
            ),
            sample(self.verify_clean_at.unwrap_or(0)),
        )
    }

    fn peers(&self, page: &mut Page<'_>) -> fmt::Result {
        let peers = &self.status.peers;
        let help = "The connection to a peer";
        page.gauges(
            ("peer_connection", None, help),
            words_of!(Connection, peers, "peer", connection, "state"),
        )?;
        let help = "What happens on the connection to a peer";
        page.gauges(
            ("peer_replication", None, help),
            words_of!(Replication, peers, "peer", replication, "state"),
        )?;
        let help = "The state of a peer's data";
        page.gauges(
            ("peer_disk_state", None, help),
            words_of!(DiskState, peers, "peer", disk_state, "state"),
        )?;
        let help = "The role of a peer";
        page.gauges(
            ("peer_role", None, help),
            words_of!(Role, peers, "peer", role, "role"),
        )?;
        page.gauges(
            (
                "peer_durable_seq",
                None,
                "The newest record that is known to be durable at a peer",
            ),
            peers
                .iter()
                .filter_map(|p| Some(([("peer", p.name.as_str())], p.durable_seq?.into()))),
        )?;
        page.gauges(
            (
                "peer_behind",
                Some(Unit::Bytes),
                "What of the journal a peer lacks",
            ),
            peers
                .iter()
                .filter_map(|p| Some(([("peer", p.name.as_str())], p.behind_bytes?.into()))),
        )?;

        let queues = &self.snapshot.queues;
        let nodes = (0..=peers.len()).filter(|node| *node != self.me);
        let nodes: Vec<_> = nodes
            .zip(peers.iter().map(|p| [("peer", p.name.as_str())]))
            .collect();
        let now = now();
        page.gauges(
            (
                "peer_unacknowledged",
                Some(Unit::Seconds),
                "The age of the oldest of this Primary's batches that a connected peer has not acknowledged",
            ),
            nodes.iter().map(|(node, labels)| {
                let since = queues.unacknowledged_since[*node];
                let age = if since == Time(0) { 0 } else { now.since(since) };
                (*labels, Number::Real(seconds(age)))
            }),
        )?;
        page.gauges(
            (
                "peer_frames_waiting",
                None,
                "Frames that wait to be sent to a peer",
            ),
            nodes
                .iter()
                .map(|(node, labels)| (*labels, queues.peer_frames[*node].into())),
        )?;
        page.gauges(
            (
                "peer_frames_waiting_limit",
                None,
                "How many may wait; a peer that takes less is dropped",
            ),
            nodes
                .iter()
                .map(|(_, labels)| (*labels, queues.peer_frames_max.into())),
        )?;
        page.durations(
            (
                "peer_acknowledgement_duration",
                "From the admission of a batch of this Primary to a peer's acknowledgement that it is durable there",
            ),
            nodes.iter().map(|(node, labels)| (*labels, &self.meters.peer(*node).acknowledgement)),
        )?;
        let counted = |get: fn(&PeerMeters) -> u64| {
            let nodes = nodes.clone().into_iter();
            nodes.map(move |(node, labels)| (labels, Number::from(get(self.meters.peer(node)))))
        };
        page.counters(
            ("peer_sent", Some(Unit::Bytes), "Bytes sent to a peer"),
            counted(|peer| peer.sent_bytes.get()),
        )?;
        page.counters(
            (
                "peer_received",
                Some(Unit::Bytes),
                "Bytes received from a peer",
            ),
            counted(|peer| peer.received_bytes.get()),
        )?;
        page.counters(
            (
                "peer_connections_made",
                None,
                "Connections to a peer that came to stand",
            ),
            counted(|peer| peer.connections.get()),
        )
    }
}

/// The time of CLOCK_BOOTTIME, by which the data thread lives.
fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    Time(u64::try_from(time.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX))
}

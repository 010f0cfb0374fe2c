//! The state machine of one node's part in one resource. The rules are those of `docs/protocol.md`; comments name them.
//!
//! | file | concern |
//! |---|---|
//! | `dispatch` | events, to whoever is concerned |
//! | `clients` | requests of clients: admission, widening, reads, answers |
//! | `leader` | being Primary: lease, commit, demotion |
//! | `membership` | changing who votes and whose journals count |
//! | `hold` | writes held for an operator, with stores that are the images |
//! | `follower` | being Secondary: the Primary's log, promises |
//! | `election` | becoming Primary |
//! | `fence` | making sure that a node commits nothing more |
//! | `peers`, `feed` | connections and reports; giving peers the log |
//! | `writer`, `loads`, `applier`, `pages` | the journal's way out, its way back, the way to the stores and their checksums |
//! | `resync`, `serve`, `repair` | getting what is past a Primary's journal; telling peers what blocks hold; bad blocks |
//! | `verify` | comparing all copies, by their checksums |
//! | `pending`, `metadata` | disk operations in flight; the superblock |
//! | `volumes` | volumes that grow, shrink, come and go |
//! | `witness` | voters without a log |
//! | `status` | the view |

mod applier;
mod clients;
mod config;
mod dispatch;
mod election;
mod feed;
mod fence;
mod follower;
mod hold;
mod leader;
mod loads;
mod membership;
mod metadata;
mod pace;
mod pages;
mod peers;
mod pending;
mod renewal;
mod repair;
mod resync;
mod serve;
mod status;
mod verify;
mod volumes;
mod witness;
mod writer;

use std::collections::VecDeque;

pub use self::config::{AckPolicy, OnNoQuorum, ReplicaConfig, WithoutRoom};
pub use self::follower::INCOMING_MAX;

use self::applier::Applier;
use self::clients::Clients;
use self::election::Candidacy;
use self::fence::Fencing;
use self::follower::{Following, Owed};
use self::hold::Hold;
use self::leader::Leader;
use self::loads::Loads;
use self::membership::{Confirmation, Wish};
use self::metadata::{MetaVersion, Metadata};
use self::pace::Pace;
use self::pages::Pages;
use self::peers::Peer;
use self::pending::{Pending, PendingTable};
use self::renewal::Renewal;
use self::repair::Repairs;
use self::resync::{Restart, Resync};
use self::serve::Serves;
use self::verify::Verify;
use self::volumes::{Change, Preparation, Room};
use self::writer::Writer;
use crate::checksum::mix;
use crate::io::*;
use crate::journal::log::{Log, TableAt};
use crate::memory::{Memory, Purpose};
use crate::recover::Recovered;
use crate::store::extents::ExtentMap;
use crate::store::sums::SumTable;
use crate::types::*;
use crate::wire::frame::{Changed, Compared};

/// Records that the stores may lack, at most.
pub const UNAPPLIED_MAX: usize = 1 << 16;

/// Client memory below which no further requests are taken, in blocks. What the driver allocates of it for payloads that it has not
/// handed in has to leave as much, or they could never be handed in.
pub const CLIENT_BLOCKS_MIN: u32 = 128;

/// What the driver may hand in right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// How many more client requests are taken. At 0 the driver stops reading requests from its clients.
    pub requests: u32,
}

/// Something received from a Primary that has its place in a row.
#[derive(Debug)]
struct Incoming<B> {
    conn: ConnId,
    epoch: Epoch,
    item: Item<B>,
}

/// What it is.
#[derive(Debug)]
enum Item<B> {
    /// A batch.
    Append(B),
    /// Answers to this node's questions, for a resync.
    Changed(Box<Changed>),
    Compared(Box<Compared>, Option<B>),
}

/// One node's part in one resource: a state machine without I/O, clock or randomness of its own.
///
/// # Contract
///
/// - **A turn.** The driver reaps what happened, reads the clock (`CLOCK_BOOTTIME`, after reaping), calls [`handle`](Self::handle) for each
///   event, then [`end_turn`](Self::end_turn) once, then takes all outputs with [`poll`](Self::poll) and carries them out in that order.
///   When [`poll_timeout`](Self::poll_timeout) passes with nothing to handle, a turn without events is due.
/// - **Time** never decreases from call to call.
/// - **Disk.** Every [`Output::Disk`] gets exactly one [`Input::DiskDone`]; they may come in any order. No order among operations in flight
///   is relied upon.
/// - **Durability** is decided here: a frame that asserts something durable is put out only after the completion that made it so
///   was handled. The driver sends whatever it sees, at once.
/// - **Connections.** Frames carry the connection they came on; those of a connection that is gone are ignored.
/// - **Failure.** A durable write that fails is final: the replica drops its clients and peers and stays
///   failed until the process is restarted.
/// - **Bounds.** [`capacity`](Self::capacity) is the only back-pressure towards clients; memory comes from [`Memory`] alone, whose shares
///   bound the rest.
/// - **Determinism.** The same inputs and seed give the same outputs, bit for bit.
#[derive(Debug)]
pub struct Replica<M: Memory> {
    config: ReplicaConfig,
    memory: M,
    now: Time,
    started_at: Time,
    rng: u64,
    token: u64,
    out: VecDeque<Output<M::Buffer>>,
    pending: PendingTable,
    failed: Option<&'static str>,
    /// The driver says that disks do not answer.
    disks_hang: bool,

    log: Log<M::Buffer>,
    metadata: Metadata<M::Buffer>,
    writer: Writer,
    loads: Loads<M::Buffer>,
    applier: Applier,
    overlay: ExtentMap,
    sums: SumTable,
    /// Pages of it that were beyond repair at the start.
    sums_pages_lost: u32,
    pages: Pages<M::Buffer>,
    repairs: Repairs<M::Buffer>,
    serves: Serves<M::Buffer>,
    pace: Pace,
    verify: Verify<M::Buffer>,
    resync: Option<Resync>,
    /// Operations of this and earlier ones that have not ended.
    resync_flying: u32,
    /// Writes of what a resync brought that wait for others to end, each with the serial of its resync.
    resync_backlog: VecDeque<(u64, DiskOp<M::Buffer>)>,
    /// What is emptied of the stage and its sums.
    discards: Vec<(SideFile, u64, u64)>,
    /// A resync was given up: once this version of the superblock is durable, what it staged is waste.
    stage_is_waste: Option<MetaVersion>,
    /// The log that the superblock being written begins anew with.
    restart: Option<Restart>,
    /// Room for volumes that are to come, who wants it, and what an operator wants of them.
    room: Room,
    preparation: Option<Preparation>,
    change: Option<Change>,
    /// Stores have more than the volumes need.
    unfit: bool,
    /// They are being made shorter.
    fitting: bool,
    /// Why there is no room for volumes that have come; it was said.
    room_complaint: Option<DiskError>,
    /// Blocks of the stage being read for the stores: from which block of a volume on.
    merge: Option<(VolumeId, u64, M::Buffer)>,
    evict_from: u64,
    committed: Seq,
    /// The committed floor that the peers were told last.
    committed_told: Seq,

    peers: Vec<Peer>,
    clients: Clients<M::Buffer>,
    leader: Option<Leader>,
    candidacy: Option<Candidacy>,
    /// Operators who fence nodes, or end that.
    fencings: Vec<Fencing>,
    /// The peers were told of the marks that are durable with this version of the superblock.
    marks_version: MetaVersion,
    marks_told: MetaVersion,
    /// Whether this node was fresh when it took its peers' marks.
    marks_while_fresh: bool,
    drain: Option<AdminId>,
    /// An operator holds writes.
    hold: Option<Hold>,
    /// Operators who wait for a change of the membership, and when the last one was made.
    wishes: Vec<Wish>,
    /// Nodes that gave their data up, and as which life they come back.
    expected: Vec<(NodeId, Incarnation)>,
    /// An operator gives this node's data up.
    renewal: Option<Renewal>,
    changed_at: Time,
    /// Somebody answers for a node's being off (protocol F0).
    confirmed: Option<Confirmation>,
    /// The config that a Primary called its latest, with none pending, when it was last heard (protocol F3).
    settled_told: Option<(NodeId, RecordId)>,
    /// A hold ended otherwise than by its operator's word, who has not heard of it yet.
    hold_was_lost: bool,

    following: Option<Following>,
    /// The last record verified to equal the present Primary's log.
    matched: Seq,
    acked_to_primary: Seq,
    primary_committed: Seq,
    primary_tail: Seq,
    /// What the present Primary had when it was first heard, and whether this node has that.
    catch_up_to: Option<Seq>,
    caught_up: bool,
    incoming: VecDeque<Incoming<M::Buffer>>,
    /// Nothing is appended before this version of the superblock is durable.
    append_after: MetaVersion,
    lease_version: MetaVersion,
    /// This node speaks to nobody before this version of the superblock is durable: its history forks.
    silent_until: MetaVersion,
    owed: Vec<(MetaVersion, Owed)>,
    told_outdated: bool,

    /// The newest Primary known, its epoch, and when it was last heard.
    last_primary: Option<NodeId>,
    primary_epoch: Epoch,
    heartbeat_heard_at: Time,
    /// When the peers were last asked whether they have something newer.
    looked_at: Time,
    /// That Primary is known to serve no more.
    released: bool,
    demoted: Epoch,
    highest_seen: Epoch,
}

impl<M: Memory> Replica<M> {
    /// Starts a node, as Secondary, from what was recovered from its disks. `seed` is 32 bytes of randomness, for
    /// identities and pauses.
    ///
    /// # Panics
    /// If `memory` can not even hold the superblock, or the config has no such node.
    pub fn open(
        config: ReplicaConfig,
        recovered: Recovered,
        mut memory: M,
        now: Time,
        seed: [u8; 32],
    ) -> Self {
        assert!(usize::from(config.me.0) < config.nodes.len());
        let Recovered {
            superblock,
            copies,
            copies_whole,
            scanned,
            sums,
            sums_found,
            sums_forgotten,
            staged,
        } = recovered;
        let rng = seed
            .chunks_exact(8)
            .fold(0x9e37_79b9_7f4a_7c15, |acc, chunk| {
                let word = chunk.iter().fold(0u64, |w, &b| w << 8 | u64::from(b));
                mix(acc ^ word)
            });
        let fences = fence::from_store(&superblock.fences, &config.nodes);
        let mut metadata = Metadata::new(superblock, copies, fences, &mut memory);
        let pages = Pages::new(&mut memory);
        let damage_is_new = metadata.wanted.damaged_until != scanned.damaged_until;
        metadata.wanted.damaged_until = scanned.damaged_until;
        metadata.durable_committed = scanned.committed;
        // A copy that rotted, or that a crash left behind, is mended before a second one can follow it.
        if damage_is_new || !copies_whole {
            metadata.changed();
        }
        let epochs = scanned.parts.epochs.last().map(|e| e.epoch);
        let configs = scanned.parts.configs.last().map(|c| c.at.epoch);
        let primary_epoch = epochs.max(configs).unwrap_or_default();
        if planted!(ForgottenPromise) {
            metadata.wanted.promised = primary_epoch;
        }
        let log = Log::new(scanned.parts, UNAPPLIED_MAX);
        let writer = Writer::from_entry(log.next_number());
        let position = log.tail().position;
        let lost_until = scanned.damaged_until.seq.max(metadata.durable_committed);
        let former_until = log.tail().id.seq.max(lost_until);
        let inconsistent = metadata.wanted.resync.is_some_and(|r| r.in_place);
        let volumes = TableAt {
            at: log.applied_volumes_at(),
            volumes: log.applied_volumes().clone(),
        };
        let unfit = metadata.wanted.resync.is_some_and(|r| r.merging);
        let at = (log.applied_id().seq, position);
        let resync = Self::resync_of(metadata.wanted.resync, staged, at, now, volumes);
        let peers = (0..config.nodes.len())
            .map(|n| NodeId(u8::try_from(n).expect("at most 8 nodes")))
            .filter(|&n| n != config.me)
            .map(Peer::new)
            .collect();
        let clients = Clients::new(config.requests_max);
        let mut replica = Self {
            memory,
            now,
            started_at: now,
            rng,
            token: mix(rng) >> 1,
            out: VecDeque::with_capacity(1024),
            pending: PendingTable::new(),
            failed: None,
            disks_hang: false,
            overlay: ExtentMap::with_capacity(2 * UNAPPLIED_MAX + 4096),
            applier: Applier::new(former_until),
            sums,
            sums_pages_lost: sums_found.lost,
            pages,
            repairs: Repairs::new(),
            serves: Serves::new(),
            pace: Pace::new(),
            verify: Verify::new(),
            resync,
            resync_flying: 0,
            resync_backlog: VecDeque::new(),
            discards: Vec::new(),
            stage_is_waste: None,
            restart: None,
            room: Room::new(log.applied_volumes().clone()),
            preparation: None,
            change: None,
            unfit,
            fitting: false,
            room_complaint: None,
            merge: None,
            loads: Loads::new(),
            evict_from: 0,
            // Nothing more of this log goes to stores that are no image.
            committed: if inconsistent {
                log.applied_id().seq
            } else {
                scanned.committed
            },
            committed_told: Seq(0),
            peers,
            clients,
            leader: None,
            candidacy: None,
            fencings: Vec::new(),
            marks_version: MetaVersion::default(),
            marks_told: MetaVersion::default(),
            marks_while_fresh: true,
            drain: None,
            hold: None,
            wishes: Vec::new(),
            expected: Vec::new(),
            renewal: None,
            changed_at: Time(0),
            confirmed: None,
            settled_told: None,
            hold_was_lost: false,
            following: None,
            matched: Seq(0),
            acked_to_primary: Seq(0),
            primary_committed: Seq(0),
            primary_tail: Seq(0),
            catch_up_to: None,
            caught_up: false,
            incoming: VecDeque::with_capacity(1100),
            append_after: MetaVersion::default(),
            lease_version: MetaVersion::default(),
            silent_until: MetaVersion::default(),
            owed: Vec::with_capacity(2 * NODES_MAX),
            told_outdated: false,
            last_primary: None,
            primary_epoch,
            heartbeat_heard_at: Time(0),
            looked_at: now,
            // A demote record says nothing of whoever was promised a later epoch: that one's lease may run.
            released: scanned.demoted && metadata.wanted.promised <= log.tail().id.epoch,
            demoted: Epoch(0),
            highest_seen: metadata.wanted.promised.max(primary_epoch),
            metadata,
            writer,
            log,
            config,
        };
        let tail = replica.log.tail().id;
        let mut text = format!(
            "the log was recovered up to record {tail} (committed {}, applied {}); row {} of the table: {:?} at the end, {:?}",
            replica.committed,
            replica.log.applied_id().seq,
            scanned.end.label,
            scanned.seen,
            scanned.end.decision,
        );
        if replica.is_witness() {
            text = format!("a witness, with the config of record {}", replica.kept());
        }
        if replica.damaged() {
            replica.log_error(text);
            replica.log_error(
                "what this node has acknowledged is damaged or missing: it counts for nothing until it has caught up"
                    .into(),
            );
        } else {
            replica.log_info(text);
        }
        if sums_forgotten {
            replica.log_error(
                "the file of checksums is older than the superblock: that disk lost writes, or a file was put back. What differs \
                 from it is compared with the peers' copies"
                    .into(),
            );
        }
        if sums_found.lost > 0 {
            replica.log_error(format!(
                "{} pages of the checksums are damaged beyond repair: their blocks are not checked until they are written, or \
                 verified against a peer",
                sums_found.lost
            ));
        }
        replica
    }

    fn random(&mut self) -> u64 {
        self.rng = mix(self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.rng
    }

    fn random_wide(&mut self) -> u128 {
        u128::from(self.random()) << 64 | u128::from(self.random()) | 1
    }

    fn node_named(&self, name: &str) -> Option<NodeId> {
        let index = self.config.nodes.iter().position(|n| n.as_str() == name)?;
        u8::try_from(index).ok().map(NodeId)
    }

    /// Takes one event. Never fails, never blocks.
    pub fn handle(&mut self, now: Time, input: Input<'_, M::Buffer>) {
        self.now = self.now.max(now);
        match input {
            Input::Client { req, op } => self.client(req, op),
            Input::PeerUp { conn, peer } => {
                if self.failed.is_some() {
                    self.drop_conn(conn, DropReason::Failed, false);
                } else {
                    self.peer_up(conn, peer);
                }
            }
            Input::PeerDown { conn } => self.peer_gone(conn),
            Input::Frame { conn, frame, batch } => self.frame(conn, frame, batch),
            Input::BatchSent { conn } => self.batch_sent(conn),
            Input::DiskDone { ticket, result } => self.disk_done(ticket, result),
            Input::DisksHang(hang) => self.disks_hang = hang,
            Input::Admin { id, command } => self.admin(id, command),
        }
    }

    /// Ends a turn: whatever its events made possible is done now, and the open batch leaves.
    pub fn end_turn(&mut self, now: Time) {
        self.now = self.now.max(now);
        if self.failed.is_some() {
            self.pump_drain();
            return;
        }
        self.pump_silence();
        self.pump_renewal();
        self.pump_incoming();
        self.pump_owed();
        self.pump_follower();
        self.meet_the_converted();
        self.pump_candidacy();
        self.pump_fencings();
        self.pump_commit();
        self.pump_membership();
        self.pump_volumes();
        self.pump_leader();
        self.pump_hold();
        self.pump_lending();
        self.pump_widening();
        self.pump_parked();
        self.end_batch();
        self.pump_writer();
        self.pump_feeds();
        self.pump_serves();
        self.pump_verify();
        self.pump_resync();
        self.pump_repairs();
        self.pump_reads();
        self.pump_ready();
        self.pump_no_quorum();
        self.pump_applier();
        self.pump_evict();
        self.pump_drain();
        self.pump_metadata();
        self.pump_unfit();
    }

    fn pump_drain(&mut self) {
        let Some(id) = self.drain else { return };
        let failed = self.failed.is_some();
        let done = self.leader.is_none()
            && self.applies_nothing()
            && !self.merging()
            && !self.repairs.write()
            && (self.all_applied() || planted!(DrainBeforeApplied));
        if done || failed {
            self.drain = None;
            let result = match self.failed {
                None => Ok(()),
                Some(reason) => Err(AdminError::Failed(reason.into())),
            };
            self.out.push_back(Output::AdminReply { id, result });
        }
    }

    /// The next thing to do; `None` when all is given out.
    pub fn poll(&mut self) -> Option<Output<M::Buffer>> {
        self.out.pop_front()
    }

    /// When a turn is due even if nothing happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.failed.is_some() {
            return None;
        }
        [
            self.leader_timeout(),
            self.silence_timeout(),
            self.applier.timeout(),
            self.candidacy_timeout(),
            self.fencing_timeout(),
            self.hold_timeout(),
            self.serves.timeout(),
            self.verify.timeout(),
            self.resync_timeout(),
            self.repairs.timeout(),
            self.wishes_timeout(),
            self.renewal_timeout(),
            self.change_timeout(),
            self.room.timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// How much more the driver may hand in.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        let memory = self.memory.free_blocks(Purpose::Client) >= CLIENT_BLOCKS_MIN;
        Capacity {
            requests: if memory || planted!(CapacityForgetsMemory) {
                self.clients.free()
            } else {
                0
            },
        }
    }

    /// Lends the memory, for the driver's own buffers: requests and frames.
    pub fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// Lends the memory for looking.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// A durable write failed, or an invariant of the data does not hold: this node steps aside for good.
    fn fail(&mut self, reason: &'static str, error: Option<DiskError>) {
        if self.failed.is_some() {
            return;
        }
        let detail = error.map_or(String::new(), |e| format!(" ({e})"));
        self.log_error(format!(
            "{reason}{detail}: this node steps aside until it is restarted"
        ));
        self.end_candidacy(Err(AdminError::Failed(reason.into())));
        self.end_fencings(&AdminError::Failed(reason.into()));
        self.verify_fails();
        if self.leader.is_some() {
            self.step_down();
        }
        for index in 0..self.peers.len() {
            if let Some(conn) = self.peers[index].conn {
                self.give_up(conn, DropReason::Failed, false);
            }
        }
        self.failed = Some(reason);
    }

    fn log_line(&mut self, level: LogLevel, text: String) {
        self.out.push_back(Output::Log(LogLine { level, text }));
    }

    fn log_info(&mut self, text: String) {
        self.log_line(LogLevel::Info, text);
    }

    fn log_warn(&mut self, text: String) {
        self.log_line(LogLevel::Warn, text);
    }

    fn log_error(&mut self, text: String) {
        self.log_line(LogLevel::Error, text);
    }
}

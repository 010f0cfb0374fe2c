//! Changes of the table of volumes: a volume grows, is made smaller, comes or goes, while the others serve.
//!
//! Two steps. First the Primary asks all data nodes that count, itself too, to *make room* for the new table: stores and the files
//! beside them get as long as they have to be, and read as zeroes where nothing was. All have to say yes, or nothing
//! happens; room that is not needed in the end is harmless. Then a record with the whole new table is appended. It is
//! committed like any other, and each node comes to it in its own time and in the one order: records behind it are about the new
//! volumes, and when the stores come to it, they are made to fit, the superblock says so in the same write that moves the applied
//! floor past it, and clients see it. A node that was away makes room then, and waits if it can not.

use super::{Pending, Replica};
use crate::io::*;
use crate::journal::batch::Kind;
use crate::memory::Memory;
use crate::meta::volumes::{Volumes, VolumesError};
use crate::store::sums;
use crate::types::*;
use crate::wire::frame::Frame;

/// A store is made to read as zeroes in pieces of this size.
const PIECE_BYTES: u64 = 64 << 20;

/// What could not be done is tried again after this long.
const RETRY_NS: u64 = 5_000_000_000;

/// How far the making of room is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Idle,
    /// Files get their length.
    Files,
    /// Pieces become zeroes, one after the other.
    Pieces,
    /// All of that becomes durable: operations left.
    Flush(u32),
}

/// Room for a table of volumes that is to come. Nothing is written there before it has come, so what was made to read as zeroes
/// stays so.
#[derive(Debug)]
pub(super) struct Room {
    step: Step,
    /// What it is being made for.
    target: Volumes,
    /// What it was made for.
    ready: Volumes,
    /// What is still to be made to read as zeroes.
    pieces: Vec<Piece>,
    /// Not to be tried again before, and why.
    failed: Option<(DiskError, Time)>,
}

/// A range that is to read as zeroes.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Store(VolumeId, u64, u64),
    Sums(u64, u64),
}

/// Whether there is room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HasRoom {
    Yes,
    NotYet,
    No(DiskError),
}

/// The Primary wants to know whether there is room here.
#[derive(Debug)]
pub(super) struct Preparation {
    conn: ConnId,
    token: u64,
    volumes: Volumes,
}

/// How far a node is with making room for a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RoomAsk {
    /// Its stores are not known to have come to the change before this one: a place that is given to another volume may still
    /// be the former one's there, and records about that may be on their way.
    Waits,
    Sent,
    Granted,
}

/// A change that an operator wants, on the Primary.
#[derive(Debug)]
pub(super) struct Change {
    id: AdminId,
    deadline: Time,
    target: Volumes,
    /// What it is, for logs.
    text: String,
    token: u64,
    /// Who has to make room, and how far that is.
    asked: arrayvec::ArrayVec<(ConnId, NodeId, RoomAsk), NODES_MAX>,
    /// The record that makes it.
    record: Option<Seq>,
}

impl Room {
    pub(super) fn new(volumes: Volumes) -> Self {
        Self {
            step: Step::Idle,
            target: Volumes::default(),
            ready: volumes,
            pieces: Vec::new(),
            failed: None,
        }
    }

    /// When to try again.
    pub(super) fn timeout(&self) -> Option<Time> {
        self.failed.map(|(_, at)| at)
    }
}

impl<M: Memory> Replica<M> {
    /// The volumes, as they are in this node's stores.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        self.log.applied_volumes()
    }

    /// Bytes of a volume that requests of clients can be about.
    #[must_use]
    pub fn limit(&self, volume: VolumeId) -> u64 {
        let tail = self.log.volumes().bytes(volume);
        self.volumes().bytes(volume).min(tail)
    }

    /// What a volume is called.
    pub(super) fn volume_name(&self, volume: VolumeId) -> crate::meta::config::Name {
        self.volumes()
            .get(volume)
            .map(|v| v.name)
            .unwrap_or_default()
    }

    /// Sees to it that there is room for a table, and says whether there is.
    pub(super) fn has_room_for(&mut self, volumes: &Volumes) -> HasRoom {
        if self.volumes().covers(volumes) {
            return HasRoom::Yes;
        }
        // What a change before this one took away goes first: it would take the new room with it.
        if self.unfit || self.fitting {
            return HasRoom::NotYet;
        }
        if self.room.ready.covers(volumes) {
            return HasRoom::Yes;
        }
        if self.room.step != Step::Idle || self.restart.is_some() {
            return HasRoom::NotYet;
        }
        if let Some((error, at)) = self.room.failed
            && self.room.target == *volumes
            && self.now < at
        {
            return HasRoom::No(error);
        }
        self.room.failed = None;
        self.room.target = volumes.clone();
        self.room.step = Step::Files;
        let volumes = Box::new(volumes.clone());
        self.disk(Pending::Room, DiskOp::MakeRoom { volumes });
        HasRoom::NotYet
    }

    fn pieces_of_room(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let (own, target) = (self.volumes(), &self.room.target);
        for (id, volume) in target.iter() {
            let kept = own.common_bytes(target, id);
            let mut from = kept;
            while from < volume.bytes && !planted!(RoomAsItIs) {
                let bytes = PIECE_BYTES.min(volume.bytes - from);
                pieces.push(Piece::Store(id, from, bytes));
                from += bytes;
            }
            let pages = sums::new_areas(id, kept, volume.bytes);
            pieces.extend(pages.map(|(offset, bytes)| Piece::Sums(offset, bytes)));
        }
        pieces.reverse();
        pieces
    }

    pub(super) fn room_done(&mut self, result: Result<(), DiskError>) {
        if let Err(error) = result {
            self.room.step = Step::Idle;
            self.room.pieces = Vec::new();
            self.room.failed = Some((error, self.now.after(RETRY_NS)));
            return;
        }
        match self.room.step {
            Step::Idle => {}
            Step::Files => {
                self.room.step = Step::Pieces;
                self.room.pieces = self.pieces_of_room();
                self.next_piece();
            }
            Step::Pieces => self.next_piece(),
            Step::Flush(left) if left > 1 => self.room.step = Step::Flush(left - 1),
            Step::Flush(_) => {
                self.room.step = Step::Idle;
                self.room.ready = self.room.target.clone();
            }
        }
    }

    fn next_piece(&mut self) {
        let op = match self.room.pieces.pop() {
            Some(Piece::Store(volume, offset, length)) => DiskOp::StoreZero {
                volume,
                offset,
                length,
                may_deallocate: true,
            },
            Some(Piece::Sums(offset, length)) => DiskOp::SideDiscard {
                file: SideFile::Sums,
                offset,
                length,
            },
            None => {
                self.flush_room();
                return;
            }
        };
        self.disk(Pending::Room, op);
    }

    fn flush_room(&mut self) {
        let ids: Vec<_> = self.room.target.iter().map(|(id, _)| id).collect();
        self.room.step = Step::Flush(u32::try_from(ids.len()).expect("16 volumes") + 1);
        for volume in ids {
            self.disk(Pending::Room, DiskOp::StoreFlush { volume });
        }
        let file = SideFile::Sums;
        self.disk(Pending::Room, DiskOp::SideFlush { file });
    }

    /// The Primary asks for room.
    pub(super) fn got_prepare(&mut self, conn: ConnId, token: u64, volumes: Volumes) {
        let follows = self.following.is_some_and(|f| f.conn == conn);
        if self.is_witness() || !follows {
            return;
        }
        // What failed before is tried at once: somebody may have done something about it.
        self.room.failed = None;
        self.preparation = Some(Preparation {
            conn,
            token,
            volumes,
        });
    }

    /// A node has room, or has none.
    pub(super) fn got_prepared(&mut self, conn: ConnId, token: u64, result: Result<(), DiskError>) {
        let Some(change) = self.change.as_mut().filter(|c| c.token == token) else {
            return;
        };
        let Some(asked) = change.asked.iter_mut().find(|a| a.0 == conn) else {
            return;
        };
        if result.is_ok() {
            asked.2 = RoomAsk::Granted;
        }
        if let Err(error) = result {
            let name = self.config.nodes[usize::from(asked.1.0)];
            self.change_fails(format!("{name}: {error}; nothing is changed on any node"));
        }
    }

    /// An operator wants the volumes changed.
    pub(super) fn change_volumes(
        &mut self,
        id: AdminId,
        deadline: Time,
        text: String,
        change: impl FnOnce(&Volumes) -> Result<Volumes, VolumesError>,
    ) {
        let target = match change(self.volumes()) {
            Ok(target) => target,
            Err(error) => {
                let result = Err(AdminError::Failed(error.to_string()));
                self.out.push_back(Output::AdminReply { id, result });
                return;
            }
        };
        let mut refused = self.not_changing_volumes();
        if refused.is_none() && target == *self.volumes() {
            self.out
                .push_back(Output::AdminReply { id, result: Ok(()) });
            return;
        }
        // All data nodes that count, or none.
        let mut asked = arrayvec::ArrayVec::new();
        let own = self.metadata.wanted.incarnation;
        let config = self.log.config().map(|c| c.config.clone());
        let nodes = config.iter().flat_map(|c| &c.nodes);
        let members = nodes.filter(|n| n.member && n.incarnation != own);
        let mut missing = Vec::new();
        for member in members {
            let node = self.node_named(&member.name);
            let peer = node.and_then(|n| self.peer(n));
            let here = peer.filter(|p| p.incarnation() == Some(member.incarnation));
            match here.and_then(|p| Some((p.conn?, p.node, RoomAsk::Waits))) {
                Some(peer) => asked.push(peer),
                None => missing.push(member.name.as_str()),
            }
        }
        if refused.is_none() && !missing.is_empty() {
            refused = Some(AdminError::Failed(format!(
                "{} can not be reached: volumes are changed on all nodes or on none; start it, or drop it",
                missing.join(", ")
            )));
        }
        if let Some(error) = refused {
            let result = Err(error);
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        let token = self.next_token();
        self.room.failed = None;
        self.change = Some(Change {
            id,
            deadline,
            target,
            text,
            token,
            asked,
            record: None,
        });
    }

    /// Why the volumes can not be changed here and now.
    fn not_changing_volumes(&self) -> Option<AdminError> {
        if let Some(error) = self.not_primary("volumes are changed") {
            return Some(error);
        }
        if self.hold.is_some() {
            let text = "an operator holds writes, and with them the stores: resume them first";
            return Some(AdminError::Failed(text.into()));
        }
        let busy = self.change.is_some() || !self.log.unapplied_volumes().is_empty();
        busy.then(|| {
            AdminError::Failed(
                "another change of the volumes is under way: wait for its end".into(),
            )
        })
    }

    /// Whether an operator waits for a change.
    pub(super) fn volumes_change(&self) -> bool {
        self.change.is_some()
    }

    /// Whether a change takes something away.
    fn takes_away(&self, target: &Volumes) -> bool {
        !target.covers(self.volumes())
    }

    /// Whether clients have to wait for a table that this node's stores do not have yet. In the reign that makes volumes larger they
    /// need not; a new Primary may have promised it to them under the old one.
    #[must_use]
    pub fn exports_wait(&self) -> bool {
        let Some(leader) = &self.leader else {
            return false;
        };
        let change = self.change.iter().any(|c| self.takes_away(&c.target));
        let mut pending = self.log.unapplied_volumes().iter();
        change || pending.any(|t| !leader.opened || self.takes_away(&t.volumes))
    }

    pub(super) fn pump_volumes(&mut self) {
        if self.room.failed.is_some_and(|(_, at)| self.now >= at) {
            self.room.failed = None;
        }
        if let Some(asked) = self.preparation.take() {
            match self.has_room_for_next(&asked.volumes) {
                HasRoom::NotYet => self.preparation = Some(asked),
                HasRoom::Yes => self.prepared(&asked, Ok(())),
                HasRoom::No(error) => self.prepared(&asked, Err(error)),
            }
        }
        if self.serving()
            && self.log.unapplied_volumes().is_empty()
            && let Some(leader) = self.leader.as_mut()
        {
            leader.opened = true;
        }
        self.pump_change();
    }

    /// The same for a table that is to come behind all that this node's log has: until the stores have come to those, a place that is
    /// given to another volume still belongs to the former one.
    fn has_room_for_next(&mut self, volumes: &Volumes) -> HasRoom {
        if self.log.unapplied_volumes().is_empty() {
            return self.has_room_for(volumes);
        }
        // With that it is tried again at once what may have failed before.
        self.applier.urgent = true;
        let failed = self.room.failed.map(|(error, _)| error);
        failed.map_or(HasRoom::NotYet, HasRoom::No)
    }

    fn prepared(&mut self, asked: &Preparation, result: Result<(), DiskError>) {
        let token = asked.token;
        self.send(asked.conn, Frame::Prepared { token, result });
    }

    /// Asks for room whoever has come to the change before.
    fn ask_for_room(&mut self) {
        let at = self.log.applied_volumes_at();
        let Some(mut change) = self.change.take() else {
            return;
        };
        for (conn, node, asked) in &mut change.asked {
            let applied = self.peer(*node).map_or(Seq(0), |p| p.applied);
            if *asked == RoomAsk::Waits && applied >= at {
                *asked = RoomAsk::Sent;
                let (token, volumes) = (change.token, Box::new(change.target.clone()));
                self.send(*conn, Frame::Prepare { token, volumes });
            }
        }
        self.change = Some(change);
    }

    fn pump_change(&mut self) {
        let Some(change) = &self.change else { return };
        let late = self.now >= change.deadline;
        if let Some(record) = change.record {
            let known = self.metadata.durable_committed >= record;
            if self.log.applied_id().seq >= record && known {
                let text = format!("{}: done with record {record}", change.text);
                self.log_info(text);
                self.end_change(Ok(()));
            } else if late {
                let error = AdminError::NoQuorum(
                    "the change is in the journal and not committed and applied yet: it may be once a majority of the nodes is \
                     reached; status shows the sizes"
                        .into(),
                );
                self.end_change(Err(error));
            } else {
                self.applier.urgent = true;
            }
            return;
        }
        let target = change.target.clone();
        let all = change.asked.iter().all(|a| a.2 == RoomAsk::Granted) || planted!(RoomAsItIs);
        self.ask_for_room();
        match self.has_room_for(&target) {
            HasRoom::No(error) => {
                let name = self.config.nodes[usize::from(self.config.me.0)];
                self.change_fails(format!("{name}: {error}; nothing is changed on any node"));
                return;
            }
            HasRoom::Yes if all && self.may_append_volumes(&target) => {
                self.append_volumes(target);
                return;
            }
            _ => {}
        }
        if late {
            let Some(change) = &self.change else { return };
            let who = |how: RoomAsk| {
                let those = change.asked.iter().filter(|a| a.2 == how);
                let names = those.map(|a| self.config.nodes[usize::from(a.1.0)].as_str());
                names.collect::<Vec<_>>().join(", ")
            };
            let text = match (who(RoomAsk::Waits), who(RoomAsk::Sent)) {
                (names, _) if !names.is_empty() => format!(
                    "the stores of {names} have not come to the change before this one in time, as their status says"
                ),
                (_, names) if !names.is_empty() => {
                    format!("{names} has not made room in time")
                }
                _ => "the change could not be made in time".into(),
            };
            self.change_fails(format!(
                "{text}; nothing is changed on any node. A device that has to be zeroed takes long: give it more time with --timeout"
            ));
        }
    }

    fn may_append_volumes(&self, target: &Volumes) -> bool {
        let idle = self.clients.in_work() == 0 || !self.takes_away(target);
        self.lease_runs() && self.settled_config().is_some() && idle
    }

    fn append_volumes(&mut self, target: Volumes) {
        self.close_batch();
        if !self.append_control(Kind::Volumes, Payload::Volumes(Box::new(target))) {
            self.applier.urgent = true;
            return;
        }
        let record = self.log.tail().id;
        if let Some(change) = self.change.as_mut() {
            change.record = Some(record.seq);
            let text = format!("record {record} changes the volumes: {}", change.text);
            self.log_warn(text);
        }
        self.applier.urgent = true;
    }

    fn change_fails(&mut self, text: String) {
        self.end_change(Err(AdminError::Failed(text)));
    }

    fn end_change(&mut self, result: AdminResult) {
        if let Some(change) = self.change.take() {
            if let Err(error) = &result {
                self.log_warn(format!("{}: {error}", change.text));
            }
            let id = change.id;
            self.out.push_back(Output::AdminReply { id, result });
        }
    }

    /// A node that was asked for room is gone.
    pub(super) fn change_loses(&mut self, conn: ConnId) {
        if self.preparation.as_ref().is_some_and(|p| p.conn == conn) {
            self.preparation = None;
        }
        let Some(change) = self.change.as_ref().filter(|c| c.record.is_none()) else {
            return;
        };
        if let Some(asked) = change.asked.iter().find(|a| a.0 == conn) {
            let name = self.config.nodes[usize::from(asked.1.0)];
            self.change_fails(format!(
                "the connection to {name} ended: volumes are changed on all nodes or on none, and nothing is changed"
            ));
        }
    }

    /// The reign is over, and with it what was asked of it.
    pub(super) fn change_lost(&mut self) {
        let made = self.change.as_ref().is_some_and(|c| c.record.is_some());
        let text = if made {
            "this node ceased to be Primary meanwhile: the next one knows whether the change was made; status shows the sizes"
        } else {
            "this node ceased to be Primary meanwhile: nothing is changed"
        };
        self.change_fails(text.into());
    }

    pub(super) fn change_timeout(&self) -> Option<Time> {
        self.change.as_ref().map(|c| c.deadline)
    }

    /// The stores come to a record that changes the volumes. `true` if they are made to fit, `false` if that has to wait.
    pub(super) fn fit_stores(&mut self) -> bool {
        let Some(next) = self.log.unapplied_volumes().first().cloned() else {
            return true;
        };
        let has_room = self.has_room_for(&next.volumes);
        if has_room != HasRoom::Yes || self.room.step != Step::Idle || !self.pages_are_idle() {
            if let HasRoom::No(error) = has_room {
                self.complain_of_room(&next.volumes, error);
            }
            return false;
        }
        self.take_volumes(&next.volumes, next.at);
        true
    }

    /// Stores, files and sums are those of another table from now on; record `at` made it so.
    pub(super) fn take_volumes(&mut self, next: &Volumes, at: Seq) {
        let own = self.volumes().clone();
        let kept: Vec<u64> = (0..next.places())
            .map(|id| own.common_bytes(next, VolumeId(id)))
            .collect();
        // Where there was something once, somebody may still have that.
        let since = if next.shrunk { at } else { Seq(0) };
        self.sums.resize(next.sizes(), &kept, since);
        if self.takes_away(next) {
            self.room.ready = next.clone();
            self.repairs.forget();
            self.serve_nothing_more();
            self.unfit = true;
        }
        self.room_complaint = None;
    }

    /// Whether there are volumes that this node's stores should have and can not.
    pub(super) fn lacks_room(&self) -> bool {
        self.room_complaint.is_some()
    }

    pub(super) fn room_is_idle(&self) -> bool {
        self.room.step == Step::Idle
    }

    /// What is not needed any more goes, once a restart would not look for it.
    pub(super) fn pump_unfit(&mut self) {
        let settled = self.applier.is_idle() && self.metadata.is_settled();
        if self.unfit && !self.fitting && settled && self.room.step == Step::Idle {
            self.unfit = false;
            self.fitting = true;
            let volumes = Box::new(self.volumes().clone());
            self.disk(Pending::Fit, DiskOp::Fit { volumes });
        }
    }

    pub(super) fn fit_done(&mut self, result: Result<(), DiskError>) {
        self.fitting = false;
        if let Err(error) = result {
            self.log_warn(format!(
                "what volumes had before they were made smaller or removed keeps its room: {error}"
            ));
        }
    }

    pub(super) fn complain_of_room(&mut self, volumes: &Volumes, error: DiskError) {
        if self.room_complaint == Some(error) {
            return;
        }
        self.room_complaint = Some(error);
        let own = self.volumes();
        let more: Vec<_> = volumes
            .iter()
            .filter(|(id, v)| own.common_bytes(volumes, *id) < v.bytes)
            .map(|(_, v)| format!("{} with {} bytes", v.name, v.bytes))
            .collect();
        self.log_error(format!(
            "there is no room for volume {}, which the resource has: {error}; until there is, this node's stores stay as they \
             are, and it tries again every few seconds",
            more.join(", ")
        ));
    }
}

/// What the payload of a control record holds.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    None,
    Config(Box<crate::meta::config::ClusterConfig>),
    Volumes(Box<Volumes>),
}

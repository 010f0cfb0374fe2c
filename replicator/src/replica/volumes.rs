//! Changes of the table of volumes: a volume grows, is made smaller, comes or goes, while the others serve.
//!
//! Two steps. First the Primary asks all data nodes that count, itself too, to *make room* for the new table: stores and the files
//! beside them get as long as they have to be, and read as zeroes where nothing was. All have to say yes, or nothing
//! happens; room that is not needed in the end is harmless. Then a record with the whole new table is appended. It is
//! committed like any other, and each node comes to it in its own time and in the one order: records behind it are about the new
//! volumes, and when the stores come to it, they are made to fit, the superblock says so in the same write that moves the applied
//! floor past it, and clients see it. A node that was away makes room then, and waits if it can not.

mod change;

pub(super) use self::change::Change;
use super::{Pending, Replica};
use crate::io::*;
use crate::memory::Memory;
use crate::meta::volumes::Volumes;
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
    /// What is being made is for a change that does not come.
    in_vain: bool,
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

impl Room {
    pub(super) fn new(volumes: Volumes) -> Self {
        Self {
            step: Step::Idle,
            target: Volumes::default(),
            ready: volumes,
            pieces: Vec::new(),
            failed: None,
            in_vain: false,
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
        // What takes something away needs none.
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
        self.room.in_vain = false;
        self.room.target = volumes.clone();
        self.room.step = Step::Files;
        let own = Box::new(self.volumes().clone());
        let volumes = Box::new(volumes.clone());
        self.disk(Pending::Room, DiskOp::MakeRoom { own, volumes });
        HasRoom::NotYet
    }

    fn pieces_of_room(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let (own, target) = (self.volumes(), &self.room.target);
        for (id, volume) in target.iter().filter(|(id, v)| own.may_have(*id, &v.name)) {
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
                if !self.room.in_vain {
                    self.room.ready = self.room.target.clone();
                }
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
        let own = self.volumes();
        let made = self.room.target.iter();
        let made = made.filter(|(id, v)| own.may_have(*id, &v.name));
        let ids: Vec<_> = made.map(|(id, _)| id).collect();
        self.room.step = Step::Flush(u32::try_from(ids.len()).expect("16 volumes") + 1);
        for volume in ids {
            self.disk(Pending::Room, DiskOp::StoreFlush { volume });
        }
        let file = SideFile::Sums;
        self.disk(Pending::Room, DiskOp::SideFlush { file });
    }

    /// Room that was made for a change that did not come is none: whoever was told that nothing is changed may have taken its files
    /// away, or named others. It is made again for the next one, but what is being made for that same one goes on.
    pub(super) fn forget_room(&mut self, wanted: &Volumes) {
        let comes = !self.log.unapplied_volumes().is_empty() || self.resync.is_some();
        if comes || self.unfit || self.fitting {
            return;
        }
        self.room.ready = self.volumes().clone();
        self.room.in_vain |= self.room.step != Step::Idle && self.room.target != *wanted;
    }

    /// The Primary asks for room, or says that it needs none for more than there is.
    pub(super) fn got_prepare(&mut self, conn: ConnId, token: u64, volumes: Volumes) {
        let follows = self.following.is_some_and(|f| f.conn == conn);
        if self.is_witness() || !follows {
            return;
        }
        // What failed before is tried at once: somebody may have done something about it.
        self.room.failed = None;
        self.forget_room(&volumes);
        self.preparation = Some(Preparation {
            conn,
            token,
            volumes,
        });
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
            self.repairs.forget();
            self.serve_nothing_more();
            self.stores_are_unfit(next);
        }
        self.room_complaint = None;
    }

    /// Stores are made to fit a table as soon as nothing is under way: then there is room for that one, whatever there was before.
    pub(super) fn stores_are_unfit(&mut self, volumes: &Volumes) {
        self.room.ready = volumes.clone();
        self.unfit = true;
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
        let waits = self.fitting || self.room.failed.is_some();
        if self.unfit && !waits && settled && self.room.step == Step::Idle {
            self.unfit = false;
            self.fitting = true;
            let volumes = Box::new(self.volumes().clone());
            self.disk(Pending::Fit, DiskOp::Fit { volumes });
        }
    }

    pub(super) fn fit_done(&mut self, result: Result<(), DiskError>) {
        self.fitting = false;
        let stores_are_missing = self.resync_awaits_stores();
        match result {
            Ok(()) if stores_are_missing => {
                self.room_complaint = None;
                self.resync_has_its_stores();
            }
            Err(error) if stores_are_missing => {
                self.unfit = true;
                self.room.failed = Some((error, self.now.after(RETRY_NS)));
                if self.room_complaint.replace(error) != Some(error) {
                    self.log_error(format!(
                        "the stores of the volumes that a resync has brought can not be made: {error}; until they can, what it brought \
                         stays beside them, and it tries again every few seconds"
                    ));
                }
            }
            Ok(()) => {}
            Err(error) => self.log_warn(format!(
                "what volumes had before they were made smaller or removed keeps its room: {error}"
            )),
        }
    }

    /// Whoever wants something of a node whose merge can not go on.
    pub(super) fn why_stores_are_missing(&self) -> AdminError {
        AdminError::Failed(
            "the stores of volumes that a resync has brought can not be made on this node: its log says what to do".into(),
        )
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

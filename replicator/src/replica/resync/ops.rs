//! The operations of a resync on the disk: begun one after the other, ended, and failed.

use super::*;

impl<M: Memory> Replica<M> {
    /// Empties the stage; returns how many operations that takes.
    pub(super) fn discard_stage(&mut self) -> u32 {
        let sizes = match &self.resync {
            Some(resync) => resync.sizes(),
            None => std::array::from_fn(|v| {
                let id = VolumeId(u16::try_from(v).expect("16 volumes"));
                self.volumes().bytes(id)
            }),
        };
        let areas = sums::areas(Table::Staged, sizes.into_iter());
        self.discards.clear();
        self.discards
            .extend(areas.map(|(offset, length)| (SideFile::Sums, offset, length)));
        self.discards.push((
            SideFile::Stage,
            0,
            sizes.iter().sum::<u64>().max(BLOCK_BYTES_U64),
        ));
        let count = u32::try_from(self.discards.len()).expect("fewer stripes than pages");
        self.next_discard();
        count
    }

    /// One after the other: a large table has many.
    pub(super) fn next_discard(&mut self) {
        if let Some((file, offset, length)) = self.discards.pop() {
            self.resync_disk(DiskOp::SideDiscard {
                file,
                offset,
                length,
            });
        }
    }

    pub(super) fn resync_disk(&mut self, op: DiskOp<M::Buffer>) {
        let serial = self.resync.as_ref().map_or(0, |r| r.serial);
        self.resync_flying += 1;
        self.disk(Pending::Resync { serial }, op);
    }

    /// Writes what it brought, at once only so much: one answer can be many pieces.
    pub(super) fn pump_backlog(&mut self) {
        while self.resync_flying < WRITES_MAX
            && let Some((serial, op)) = self.resync_backlog.pop_front()
        {
            // What was given up meanwhile is not written any more.
            if self.resync.as_ref().is_some_and(|r| r.serial == serial) {
                self.resync_disk(op);
            }
        }
    }

    /// An operation of a resync ended.
    pub(in crate::replica) fn resync_done(&mut self, serial: u64, result: Result<(), DiskError>) {
        let now = self.now;
        self.resync_flying -= 1;
        self.next_discard();
        self.pump_backlog();
        if self.resync.as_ref().is_none_or(|r| r.serial != serial) {
            return;
        }
        if let Err(error) = result {
            self.resync_failed(error);
            return;
        }
        let Some(resync) = self.resync.as_mut() else {
            return;
        };
        match &mut resync.phase {
            Phase::Clear(left) => {
                *left -= 1;
                if *left == 0 {
                    self.resync_ask();
                }
            }
            Phase::Save(Save::Data(left)) => {
                *left -= 1;
                if *left == 0 {
                    resync.phase = Phase::Save(Save::Pages);
                    self.resync_save();
                }
            }
            Phase::Open(Open::Sums) => {
                resync.phase = resync.goes_on();
            }
            Phase::Save(Save::Sums) => {
                let mark = resync.saved();
                self.metadata.wanted.resync = Some(mark);
                let version = self.metadata.changed();
                if let Some(resync) = self.resync.as_mut() {
                    resync.saved_at = now;
                    resync.phase = Phase::Save(Save::Mark(version));
                }
            }
            Phase::Last(left) => {
                *left -= 1;
                if *left == 0 {
                    let again = resync.again;
                    self.resync = None;
                    if let Some(conn) = again {
                        self.resync_wanted(conn);
                    }
                }
            }
            Phase::Flush(left) => {
                *left -= 1;
                if *left == 0 {
                    self.metadata.wanted.sums_written = self.sums.written();
                    self.metadata.wanted.resync = None;
                    let version = self.metadata.changed();
                    if let Some(resync) = self.resync.as_mut() {
                        resync.phase = Phase::End(version);
                    }
                }
            }
            Phase::Stores(left) => {
                *left -= 1;
                self.resync_has_its_stores();
            }
            Phase::Merge => {}
            _ => {
                resync.left = resync.left.saturating_sub(1);
                if resync.left == 0 {
                    resync.writing.clear();
                    if resync.phase == Phase::Run {
                        self.say_staged();
                    }
                }
            }
        }
    }

    /// Without room the resync waits: what was not written is not known. Everything else ends this node.
    fn resync_failed(&mut self, error: DiskError) {
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        let now = self.now;
        let no_room = matches!(error, DiskError::Os(ENOSPC | EDQUOT));
        let staging = |r: &&mut Resync| r.left > 0;
        let Some(resync) = self.resync.as_mut().filter(staging).filter(|_| no_room) else {
            self.fail("what a resync brings can not be staged", Some(error));
            return;
        };
        for &(volume, start, end) in &resync.writing {
            for group in start / GROUP_BLOCKS..=(end - 1) / GROUP_BLOCKS {
                resync.stage.forget(volume, group);
            }
        }
        resync.left -= 1;
        if resync.left == 0 {
            resync.writing.clear();
        }
        if !matches!(resync.phase, Phase::Full(_)) {
            let left = resync.left_bytes();
            let goes_in_place = self.config.without_room == WithoutRoom::InPlace;
            if goes_in_place && !resync.in_place {
                resync.phase = Phase::Full(now);
                resync.no_room = true;
                return;
            }
            resync.phase = Phase::Full(now.after(FULL_NS));
            if resync.is_direct() {
                let text = "a store has no room for what a resync brings to it: free some; it is tried again every few seconds";
                self.log_error(text.into());
                return;
            }
            let until = if resync.in_place {
                "is Inconsistent: the volumes are others, or at other places, than this node was made with, and those can not go \
                 straight to its stores"
            } else {
                "stays at its older point"
            };
            self.log_error(format!(
                "there is no room to stage the resync: free up to {left} bytes in the data directory; until then this node {until}, \
                 and it tries again every few seconds"
            ));
        }
    }
}

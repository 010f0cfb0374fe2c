//! What a resync brought is made durable, and in the end becomes the image: one mark in the superblock, then the stage is laid over the stores.

use super::*;

impl<M: Memory> Replica<M> {
    pub(super) fn resync_save_begin(&mut self) {
        let ids: Vec<_> = self.volumes().iter().map(|(id, _)| id).collect();
        let resync = self.resync.as_mut().expect("it is pumped");
        resync.unsaved_bytes = 0;
        if resync.is_direct() && !ids.is_empty() {
            let volumes = u32::try_from(ids.len()).expect("at most 16 volumes");
            resync.phase = Phase::Save(Save::Data(volumes));
            for volume in ids {
                self.resync_disk(DiskOp::StoreFlush { volume });
            }
        } else {
            resync.phase = Phase::Save(Save::Data(1));
            let file = SideFile::Stage;
            self.resync_disk(DiskOp::SideFlush { file });
        }
    }

    pub(super) fn resync_save(&mut self) {
        let resync = self.resync.as_ref().expect("it is pumped");
        match resync.phase {
            Phase::Save(Save::Pages) => {
                let written =
                    self.write_pages(|r| &mut r.resync.as_mut().expect("it is being saved").stage);
                if written {
                    self.resync.as_mut().expect("it is being saved").phase =
                        Phase::Save(Save::Sums);
                    let file = SideFile::Sums;
                    self.resync_disk(DiskOp::SideFlush { file });
                }
            }
            Phase::Save(Save::Mark(version)) if self.metadata.is_durable(version) => {
                let whole = self.resync_holds() && self.primary_committed >= resync.at.id.seq;
                let goes_on = resync.source.is_some() && resync.source == resync.stream;
                let follows = self.following.map(|f| f.conn) == resync.source;
                if whole && goes_on && follows && self.candidacy.is_none() {
                    self.resync_mark();
                    return;
                }
                let resync = self.resync.as_mut().expect("it is pumped");
                resync.phase = resync.goes_on();
            }
            _ => {}
        }
    }

    /// All is staged, durable and committed: it becomes the image.
    pub(super) fn resync_mark(&mut self) {
        let busy = !self.writer.is_idle() || self.log.durable_number() != self.log.next_number();
        if busy || self.repairs.write() || !self.resync_has_room() {
            return;
        }
        let resync = self.resync.as_ref().expect("it is pumped");
        let kept: Vec<u64> = (0..resync.volumes.volumes.places())
            .map(|id| {
                let own = self.volumes();
                own.common_bytes(&resync.volumes.volumes, VolumeId(id))
            })
            .collect();
        let sums_written = self.sums.written_within(&kept);
        let moved = self.moved_by(&resync.volumes.volumes).into_iter();
        let moved = moved.fold(0, |bits, (id, _)| bits | 1 << id.0);
        let position = self.log.tail().position;
        let resync = self.resync.as_mut().expect("it is pumped");
        let Some(config) = resync.config.clone() else {
            resync.phase = Phase::Settle;
            return;
        };
        resync.at.position = position;
        let at = resync.at;
        self.restart = Some(Restart {
            floor: AppliedFloor {
                id: at.id,
                position,
                blocks: at.blocks,
                checksum: at.checksum,
            },
            config,
            epochs: resync.epochs.clone(),
            volumes: resync.volumes.clone(),
            sums_written,
        });
        let mut mark = resync.mark(true);
        mark.moved = moved;
        self.metadata.wanted.resync = Some(mark);
        let version = self.metadata.changed();
        if let Some(resync) = self.resync.as_mut() {
            resync.phase = Phase::Mark(version);
        }
    }

    /// The superblock says that what is staged is the image: so does the log now.
    pub(super) fn resync_switch(&mut self) {
        let Some(restart) = self.restart.take() else {
            return;
        };
        let resync = self.resync.as_mut().expect("it is pumped");
        resync.phase = Phase::Merge;
        resync.cursor = (VolumeId(0), 0);
        resync.left = 0;
        let (at, source) = (resync.at, resync.source);
        let in_place = resync.is_direct();
        let moved = self.moved_by(&restart.volumes.volumes);
        if restart.volumes.volumes != *self.volumes() {
            self.take_volumes(&restart.volumes.volumes, restart.volumes.at);
            // Only now is what was there before no image any more.
            self.gives_places_away(&moved, &restart.volumes.volumes);
        }
        self.log
            .restart(at, restart.epochs, restart.config, restart.volumes);
        self.writer.cut(self.log.next_number());
        self.applier.former_until = Seq(0);
        self.evict_from = self.log.next_number();
        self.committed = self.committed.max(at.id.seq);
        self.repairs.forget();
        self.told_outdated = false;
        if let Some(following) = self.following
            && Some(following.conn) == source
        {
            self.matched = at.id.seq;
        }
        if in_place {
            self.log_info(format!(
                "resync: the stores have everything through record {}",
                at.id
            ));
            self.report_to_all();
        } else {
            self.log_info(format!(
                "resync: this node has everything through record {}; it is laid over the stores",
                at.id
            ));
        }
    }

    /// The places whose stores can not be made while this node's volumes are what they are, and how large they get.
    fn moved_by(&self, volumes: &Volumes) -> ArrayVec<(VolumeId, u64), VOLUMES_MAX> {
        let own = self.volumes();
        let moved = volumes.iter().filter(|(id, v)| !own.may_have(*id, &v.name));
        moved.map(|(id, v)| (id, v.bytes)).collect()
    }

    /// Stores that are needed no more go, those that are missing come, and pages of the places that others get are emptied: whatever
    /// they say is of the former ones.
    fn gives_places_away(&mut self, moved: &[(VolumeId, u64)], volumes: &Volumes) {
        self.stores_are_unfit(volumes);
        self.discards.clear();
        for &(id, bytes) in moved {
            let areas = sums::new_areas(id, 0, bytes);
            let areas = areas.map(|(offset, length)| (SideFile::Sums, offset, length));
            self.discards.extend(areas);
        }
        let left = u32::try_from(self.discards.len()).expect("fewer stripes than pages");
        self.resync.as_mut().expect("it switches").phase = Phase::Stores(left);
        self.next_discard();
    }

    /// Whether what is staged is the image, and the stores are not known to be those of its volumes.
    pub(in crate::replica) fn resync_awaits_stores(&self) -> bool {
        let awaits = |r: &Resync| matches!(r.phase, Phase::Stores(_));
        self.resync.as_ref().is_some_and(awaits)
    }

    /// Goes on once the stores are those of its volumes.
    pub(in crate::replica) fn resync_has_its_stores(&mut self) {
        let fits = !self.unfit && !self.fitting;
        if let Some(resync) = self
            .resync
            .as_mut()
            .filter(|r| fits && r.phase == Phase::Stores(0))
        {
            resync.phase = Phase::Merge;
        }
    }

    /// Lays the next blocks over the stores, piece by piece.
    pub(super) fn resync_merge(&mut self) {
        if self.resync.as_ref().is_some_and(Resync::is_direct) {
            self.note_in_place();
            return;
        }
        let base = self.stage_bases();
        loop {
            let resync = self.resync.as_mut().expect("it is pumped");
            if resync.left > 0 {
                return;
            }
            let (volume, block) = resync.cursor;
            if volume.0 >= resync.stage.volumes() {
                self.resync_flush();
                return;
            }
            let end = resync.stage.blocks(volume);
            // The next run of blocks that are all zeroes, or none.
            let mut first = block;
            while first < end && resync.stage.sum(volume, first) == BlockSum::UNKNOWN {
                first += 1;
            }
            if first == end {
                resync.cursor = (VolumeId(volume.0 + 1), 0);
                self.note_kept(volume);
                continue;
            }
            let zero = resync.stage.sum(volume, first) == BlockSum::ZERO;
            let mut last = first;
            let most = if (volume, first) < resync.singly_before {
                1
            } else {
                MERGE_BLOCKS_MAX
            };
            while last < end
                && last - first < most
                && resync.stage.sum(volume, last) != BlockSum::UNKNOWN
                && (resync.stage.sum(volume, last) == BlockSum::ZERO) == zero
            {
                last += 1;
            }
            let count = u32::try_from(last - first).expect("256 blocks");
            let stage_offset = (base[usize::from(volume.0)] + first) * BLOCK_BYTES_U64;
            if zero {
                resync.cursor = (volume, last);
                resync.left = 1;
                let op = DiskOp::StoreZero {
                    volume,
                    offset: first * BLOCK_BYTES_U64,
                    length: u64::from(count) * BLOCK_BYTES_U64,
                    may_deallocate: true,
                };
                self.disk(Pending::MergeWrite, op);
            } else {
                let Some(buffer) = self.memory.alloc(Purpose::Apply, count) else {
                    return;
                };
                let resync = self.resync.as_mut().expect("it is pumped");
                resync.cursor = (volume, last);
                resync.left = 1;
                let op = DiskOp::SideRead {
                    file: SideFile::Stage,
                    offset: stage_offset,
                    buffer: buffer.clone(),
                };
                self.merge = Some((volume, first, buffer));
                self.disk(Pending::MergeRead, op);
            }
            self.note_merged(volume, first, last);
        }
    }

    /// What the stores hold after the merge.
    pub(super) fn note_merged(&mut self, volume: VolumeId, first: u64, last: u64) {
        let resync = self.resync.as_ref().expect("it is pumped");
        for block in first..last {
            let sum = resync.stage.sum(volume, block);
            let seq = resync.stage.changed(volume, block / GROUP_BLOCKS);
            self.sums.write(volume, block, 1, seq, |_| sum);
            // What is staged is as of no earlier record than any that changed it. A later one is of another history.
            self.sums.set_changed(volume, block / GROUP_BLOCKS, seq);
        }
    }

    /// What was brought in place is in the stores; only their table does not know yet.
    fn note_in_place(&mut self) {
        loop {
            let resync = self.resync.as_mut().expect("it is pumped");
            let (volume, block) = resync.cursor;
            if volume.0 >= resync.stage.volumes() {
                self.resync_flush();
                return;
            }
            if block == resync.stage.blocks(volume) {
                resync.cursor = (VolumeId(volume.0 + 1), 0);
                continue;
            }
            resync.cursor = (volume, block + 1);
            if resync.stage.sum(volume, block) != BlockSum::UNKNOWN {
                self.note_merged(volume, block, block + 1);
            }
        }
    }

    /// What the stores had already did change since the record that they were at.
    fn note_kept(&mut self, volume: VolumeId) {
        let resync = self.resync.as_ref().expect("it is pumped");
        for group in 0..resync.stage.groups(volume) {
            let seq = resync.stage.changed(volume, group);
            if resync.stage.is_marked(volume, group) && self.sums.changed(volume, group) < seq {
                self.sums.set_changed(volume, group, seq);
            }
        }
    }

    pub(in crate::replica) fn merge_read(&mut self, result: Result<(), DiskError>) {
        let Some((volume, first, buffer)) = self.merge.take() else {
            return;
        };
        if result.is_err() {
            // What can not be read stays out, like what rotted.
            let Some(resync) = self.resync.as_mut() else {
                return;
            };
            resync.left = 0;
            if buffer.blocks() > 1 {
                resync.cursor = (volume, first);
                resync.singly_before = (volume, first + u64::from(buffer.blocks()));
            }
            return;
        }
        let mut from = 0;
        let blocks = buffer.blocks();
        let sound = |n: u32| {
            let at = n as usize * BLOCK_BYTES;
            let bytes = &buffer.bytes()[at..at + BLOCK_BYTES];
            let block = first + u64::from(n);
            self.sums.sum(volume, block).admits(volume, block, bytes)
        };
        let mut ops = ArrayVec::<(u32, u32), { WRITES_MAX as usize }>::new();
        while from < blocks && !ops.is_full() {
            // A block that rotted in the stage stays out; its sum says what belongs there, and a peer has it.
            if !sound(from) {
                from += 1;
                continue;
            }
            let mut to = from;
            while to < blocks && sound(to) {
                to += 1;
            }
            ops.push((from, to - from));
            from = to;
        }
        for &(from, count) in &ops {
            let mut parts = Parts::new();
            parts.push(buffer.slice(from, count));
            let op = DiskOp::StoreWrite {
                volume,
                offset: (first + u64::from(from)) * BLOCK_BYTES_U64,
                parts,
            };
            self.disk(Pending::MergeWrite, op);
        }
        if let Some(resync) = self.resync.as_mut() {
            resync.left = u32::try_from(ops.len()).expect("at most 32");
            // In so many pieces that the rest is read once more.
            resync.cursor = (volume, first + u64::from(from));
        }
    }

    pub(in crate::replica) fn merge_written(&mut self, result: Result<(), DiskError>) {
        if let Err(error) = result {
            self.fail("a store can not be written", Some(error));
            return;
        }
        if let Some(resync) = self.resync.as_mut() {
            resync.left -= 1;
        }
    }

    pub(super) fn resync_flush(&mut self) {
        if !self.write_pages(|r| &mut r.sums) {
            return;
        }
        let ids: Vec<_> = self.volumes().iter().map(|(id, _)| id).collect();
        let volumes = u16::try_from(ids.len()).expect("at most 16 volumes");
        for volume in ids {
            self.resync_disk(DiskOp::StoreFlush { volume });
        }
        let file = SideFile::Sums;
        self.resync_disk(DiskOp::SideFlush { file });
        self.applier.generation += 1;
        if let Some(resync) = self.resync.as_mut() {
            resync.phase = Phase::Flush(u32::from(volumes) + 1);
        }
    }
}

//! What arrives for a resync, put into the stage in its order: batches of records, and blocks that were asked for.

use super::*;
use crate::journal::log::note_epoch;
use crate::replica::INCOMING_MAX;

/// What the stores have of a block, as far as it is to be that block later: `common` bytes of the volume are.
pub(super) fn own_sum(
    sums: &SumTable,
    common: u64,
    resync: &Resync,
    volume: VolumeId,
    block: u64,
) -> BlockSum {
    if (resync.in_place && resync.other_volumes) || block >= common / BLOCK_BYTES_U64 {
        BlockSum::UNKNOWN
    } else {
        sums.sum_for_sure(volume, block)
    }
}

/// The blocks of a group.
fn blocks_of(sums: &SumTable, volume: VolumeId, group: u64) -> std::ops::Range<u64> {
    group * GROUP_BLOCKS..((group + 1) * GROUP_BLOCKS).min(sums.blocks(volume))
}

/// Whether a group is known to be all zeroes.
fn is_zero(sums: &SumTable, volume: VolumeId, group: u64) -> bool {
    blocks_of(sums, volume, group).all(|b| sums.sum_for_sure(volume, b) == BlockSum::ZERO)
}

/// Whether something is known of each block of a group.
fn is_recorded(sums: &SumTable, volume: VolumeId, group: u64) -> bool {
    blocks_of(sums, volume, group).all(|b| sums.sum(volume, b) != BlockSum::UNKNOWN)
}

impl<M: Memory> Replica<M> {
    /// Takes what comes next, in order. `false` if it must wait.
    pub(in crate::replica) fn stage_next(&mut self, item: &Incoming<M::Buffer>) -> bool {
        let Some(resync) = self.resync.as_mut() else {
            return true;
        };
        match resync.phase {
            Phase::Run if resync.stream == Some(item.conn) => {}
            // It was asked for by an earlier question.
            Phase::Run
            | Phase::Settle
            | Phase::Room
            | Phase::Clear(_)
            | Phase::Ask
            | Phase::Rest
            | Phase::Full(_) => {
                return resync.left == 0;
            }
            _ => return false,
        }
        // So that it can be saved, all that is being written has to end now and then.
        let due = resync.save_is_due(self.config.lease_ns(), self.now);
        let pauses = due && resync.record == 0 && self.applier.is_idle();
        if pauses || self.resync_holds() {
            return false;
        }
        match &item.item {
            Item::Append(buffer) => self.stage_batch(item.conn, buffer),
            Item::Changed(changed) => {
                let own = self.volumes().clone();
                let resync = self.resync.as_mut().expect("it was just there");
                if let Some((token, volume, group)) = resync.asked_about
                    && token == changed.token
                {
                    resync.asked_about = None;
                    let groups = (resync.stage.groups(volume) - group).min(ASKED_GROUPS_MAX as u64);
                    if (changed.groups.len() as u64) < groups {
                        // Its volumes have changed meanwhile: the record that says so is on its way.
                        resync.retry_at = Some(self.now.after(RETRY_NS));
                        return true;
                    }
                    let mut changed = changed.clone();
                    changed
                        .groups
                        .truncate(usize::try_from(groups).expect("448 groups"));
                    // The stores of one that goes straight to them move on with it.
                    let base = if resync.in_place {
                        self.log.applied_id().seq
                    } else {
                        resync.base
                    };
                    // At this place in the stream that is true: what comes after it is staged if it is about these groups.
                    let at = resync.at.id.seq;
                    // Of a volume that has another place here, or none, the stores have nothing.
                    let name = resync.volumes.volumes.get(volume).map(|v| v.name);
                    let elsewhere = name.is_some_and(|name| !own.may_have(volume, &name));
                    for (group, &changed) in (group..).zip(&changed.groups) {
                        let as_of = resync.stage.changed(volume, group);
                        // Without a log the stores hold what they were made with: zeroes, unless they were made of a seed. A
                        // group that was opened before has to come, or nothing would be known of it ever again.
                        let as_made = !resync.in_place && !elsewhere
                            || (resync.is_direct()
                                && if base > Seq(0) {
                                    is_recorded(&self.sums, volume, group)
                                } else {
                                    is_zero(&self.sums, volume, group)
                                });
                        let same =
                            (as_made && changed <= base) || (as_of > Seq(0) && changed <= as_of);
                        if !resync.is_known(volume, group) && same {
                            // What is here, or staged, is what it was then, and still is.
                            resync.stage.set_changed(volume, group, at);
                            resync.unsaved_bytes += 1;
                        }
                    }
                    resync.known = Some(Known {
                        volume,
                        group,
                        changed,
                        next: 0,
                        had: Vec::new(),
                    });
                    self.open_groups(volume, group, groups);
                }
                true
            }
            Item::Compared(blocks, data) => self.stage_blocks(item.conn, blocks, data.as_ref()),
        }
    }

    /// Groups that are not known will be written in place: from here on nothing is known of what the stores hold there, and that is
    /// durable first.
    fn open_groups(&mut self, volume: VolumeId, first: u64, groups: u64) {
        let Some(resync) = self.resync.as_mut().filter(|r| r.is_direct()) else {
            return;
        };
        let end = resync.stage.blocks(volume);
        let mut had = Vec::new();
        let mut opened = false;
        for group in first..first + groups {
            let open = !resync.is_known(volume, group);
            for block in group * GROUP_BLOCKS..((group + 1) * GROUP_BLOCKS).min(end) {
                had.push(self.sums.sum_for_sure(volume, block));
                if open && self.sums.sum(volume, block) != BlockSum::UNKNOWN {
                    self.sums.set(volume, block, BlockSum::UNKNOWN);
                    opened = true;
                }
            }
        }
        if let Some(known) = resync.known.as_mut() {
            known.had = had;
        }
        if opened {
            resync.phase = Phase::Open(Open::Pages);
        }
    }

    pub(super) fn resync_open(&mut self) {
        // What is being written meanwhile was opened before.
        let writes = self.resync.as_ref().is_some_and(|r| r.left > 0);
        if self.write_pages(|r| &mut r.sums) && !writes {
            self.resync.as_mut().expect("it is pumped").phase = Phase::Open(Open::Sums);
            let file = SideFile::Sums;
            self.resync_disk(DiskOp::SideFlush { file });
        }
    }

    /// Writes what was brought to the stage, or in place.
    fn resync_write(&mut self, volume: VolumeId, block: u64, what: Brought<M::Buffer>) {
        let in_place = self.resync.as_ref().is_some_and(Resync::is_direct);
        let base = self.stage_bases()[usize::from(volume.0)];
        let at = if in_place { block } else { base + block };
        let offset = at * BLOCK_BYTES_U64;
        let op = match what {
            Brought::Data(part) => {
                let mut parts = Parts::new();
                parts.push(part);
                if in_place {
                    DiskOp::StoreWrite {
                        volume,
                        offset,
                        parts,
                    }
                } else {
                    let file = SideFile::Stage;
                    DiskOp::SideWrite {
                        file,
                        offset,
                        parts,
                    }
                }
            }
            Brought::Zeroes(blocks) => DiskOp::StoreZero {
                volume,
                offset,
                length: blocks * BLOCK_BYTES_U64,
                may_deallocate: true,
            },
        };
        let serial = self.resync.as_ref().map_or(0, |r| r.serial);
        self.resync_backlog.push_back((serial, op));
        self.pump_backlog();
    }

    pub(super) fn stage_batch(&mut self, conn: ConnId, buffer: &M::Buffer) -> bool {
        let resync = self.resync.as_ref().expect("it is staged");
        // Once a part of it is staged, it was verified.
        let verified = if resync.record == 0 {
            batch::verify(buffer.bytes())
        } else {
            batch::read_header(buffer.bytes())
        };
        let Ok(header) = verified else {
            let reason = DropReason::Protocol("it sent a damaged batch");
            self.give_up(conn, reason, false);
            return true;
        };
        let resync = self.resync.as_ref().expect("it is staged");
        let wanted = &self.metadata.wanted;
        let known = header.last() <= resync.at.id.seq;
        if known && resync.record == 0 {
            return true;
        }
        let follows =
            header.prev_id() == resync.at.id && header.prev_checksum == resync.at.checksum;
        let later = self.following.is_some_and(|f| header.epoch > f.epoch);
        let ours = wanted.uuid == header.uuid && wanted.history == header.history;
        let volumes = &resync.volumes.volumes;
        let sense = self.records_make_sense(&header, buffer.bytes(), volumes);
        if !follows || later || !ours || !sense {
            let reason = DropReason::Protocol("what it sends for a resync does not follow");
            self.give_up(conn, reason, false);
            return true;
        }
        if batch::volumes_of(buffer.bytes(), &header).is_some() {
            // What is staged is of other volumes.
            self.log_info("the volumes change: what the resync has staged begins anew".into());
            self.resync_again(conn);
            return true;
        }
        self.stage_records(&header, buffer)
    }

    /// The same for blocks that records write in place where the group is known already. Of the others in it the stores have what is
    /// recorded. `true` if there are such blocks.
    fn open_blocks(&mut self, header: &Header, buffer: &M::Buffer) -> bool {
        let Some(resync) = self.resync.as_mut().filter(|r| r.is_direct()) else {
            return false;
        };
        let mut opened = false;
        let records = batch::descriptors(buffer.bytes(), header).skip(resync.record);
        for record in records.flatten() {
            if !matches!(record.kind, Kind::Write | Kind::Zero { .. }) {
                continue;
            }
            let volume = record.volume;
            for block in record.block..record.block + u64::from(record.blocks) {
                let known = resync.is_known(volume, block / GROUP_BLOCKS);
                if known && self.sums.sum(volume, block) != BlockSum::UNKNOWN {
                    self.sums.set(volume, block, BlockSum::UNKNOWN);
                    opened = true;
                }
            }
        }
        if opened {
            resync.phase = Phase::Open(Open::Pages);
        }
        opened
    }

    /// Stages the records of a batch, in order; those that overlap wait for each other. `false` until all are there.
    pub(super) fn stage_records(&mut self, header: &Header, buffer: &M::Buffer) -> bool {
        if self.open_blocks(header, buffer) {
            return false;
        }
        let resync = self.resync.as_mut().expect("it is staged");
        let mut ops: Vec<(VolumeId, u64, Brought<M::Buffer>)> = Vec::new();
        let records = usize::from(header.records);
        while resync.record < records {
            let record = batch::descriptors(buffer.bytes(), header)
                .nth(resync.record)
                .flatten()
                .expect("it was verified");
            let seq = Seq(header.first.0 + resync.record as u64);
            let (volume, start) = (record.volume, record.block);
            let end = start + u64::from(record.blocks);
            let about_blocks = matches!(record.kind, Kind::Write | Kind::Zero { .. });
            if about_blocks {
                if !resync.may_write(volume, start, end) {
                    break;
                }
                let mut from = start;
                while from < end {
                    let group = from / GROUP_BLOCKS;
                    let to = ((group + 1) * GROUP_BLOCKS).min(end);
                    if resync.is_known(volume, group) {
                        let first = from - start;
                        resync
                            .stage
                            .write(volume, from, to - from, seq, |b| match record.kind {
                                Kind::Write => {
                                    let at = u32::try_from(b - start).expect("384 blocks");
                                    BlockSum::of_crc(batch::crc_of(
                                        buffer.bytes(),
                                        record.payload + at,
                                    ))
                                }
                                _ => BlockSum::ZERO,
                            });
                        resync.unsaved_bytes += (to - from) * BLOCK_BYTES_U64;
                        resync.through = resync.through.max(seq);
                        if record.kind == Kind::Write {
                            let at = record.payload + u32::try_from(first).expect("384 blocks");
                            let count = u32::try_from(to - from).expect("16 blocks");
                            ops.push((volume, from, Brought::Data(buffer.slice(at, count))));
                        } else if resync.is_direct() {
                            ops.push((volume, from, Brought::Zeroes(to - from)));
                        }
                    }
                    from = to;
                }
                if record.kind == Kind::Write || resync.is_direct() {
                    resync.writing.push((volume, start, end));
                }
            }
            resync.record += 1;
        }
        resync.left += u32::try_from(ops.len()).expect("few");
        if resync.left == 0 {
            resync.writing.clear();
        }
        for (volume, block, what) in ops {
            self.resync_write(volume, block, what);
        }
        let resync = self.resync.as_mut().expect("it is staged");
        if resync.record < records {
            return false;
        }
        resync.record = 0;
        resync.at = Tail {
            id: header.last_id(),
            position: resync.at.position,
            blocks: header.blocks(),
            checksum: header.checksum,
        };
        resync.through = resync.through.max(header.last());
        note_epoch(&mut resync.epochs, header);
        if let Some(config) = batch::config_of(buffer.bytes(), header) {
            resync.config = Some(ConfigAt {
                at: header.last_id(),
                config,
            });
        }
        if resync.left == 0 {
            self.say_staged();
        }
        true
    }

    /// Tells the Primary how far this node is: there is room for more.
    pub(super) fn say_staged(&mut self) {
        let Some(following) = self.following else {
            return;
        };
        let resync = self.resync.as_ref().expect("it is staged");
        let frame = Frame::Staged {
            epoch: following.epoch,
            seq: resync.at.id.seq,
            left_bytes: resync.left_bytes(),
            total_bytes: resync.total_bytes,
        };
        self.send(following.conn, frame);
    }

    /// Where each volume begins in the stage, in blocks.
    pub(super) fn stage_bases(&self) -> ArrayVec<u64, VOLUMES_MAX> {
        let mut at = 0;
        let resync = self.resync.as_ref().expect("it is staged");
        (0..resync.stage.volumes())
            .map(|v| {
                let base = at;
                at += resync.stage.blocks(VolumeId(v));
                base
            })
            .collect()
    }

    /// Blocks that were asked for. `false` if they have to wait for what is being written.
    pub(super) fn stage_blocks(
        &mut self,
        conn: ConnId,
        blocks: &Compared,
        data: Option<&M::Buffer>,
    ) -> bool {
        let now = self.now;
        let own = self.volumes().clone();
        let resync = self.resync.as_mut().expect("it is staged");
        let Some(index) = resync.asks.iter().position(|a| a.token == blocks.token) else {
            return true;
        };
        let ask = resync.asks[index].clone();
        if !resync.may_write(ask.volume, ask.block, ask.block + u64::from(ask.blocks)) {
            return false;
        }
        if blocks.sums.is_empty() {
            // The Primary can not give them now: it may be mending them.
            resync.asks_again(index);
            resync.retry_at = Some(now.after(RETRY_NS));
            return true;
        }
        let bytes_of = |n: usize| {
            let data = data?.bytes();
            data.get(n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES)
        };
        // Of each block: the place of its contents among those that came with it.
        let mut place: ArrayVec<Option<u32>, ASKED_BLOCKS_MAX> =
            blocks.sums.iter().map(|_| None).collect();
        for (n, at) in (0..).zip(blocks.given.iter()) {
            if let Some(place) = place.get_mut(at as usize) {
                *place = Some(n);
            }
        }
        let in_place = resync.is_direct();
        let common = own.common_bytes(&resync.volumes.volumes, ask.volume);
        let now_has: ArrayVec<BlockSum, ASKED_BLOCKS_MAX> = (ask.block
            ..ask.block + u64::from(ask.blocks))
            .map(|b| own_sum(&self.sums, common, resync, ask.volume, b))
            .collect();
        let has = |at: usize| {
            let sums = if in_place { &ask.has } else { &now_has };
            sums.get(at).copied().unwrap_or(BlockSum::UNKNOWN)
        };
        // What should be there is known, and nobody has it: whatever is there instead is a bad block.
        let lost = |at: usize| blocks.lost.has(u32::try_from(at).expect("256 blocks"));
        let mut stale = false;
        let sound = blocks.sums.len() == ask.blocks as usize
            && blocks.sums.iter().enumerate().all(|(at, &sum)| {
                let Some(n) = place[at] else {
                    // What is here was another when it was asked.
                    stale |= sum != BlockSum::ZERO && sum != has(at) && !lost(at);
                    return sum != BlockSum::UNKNOWN;
                };
                sum != BlockSum::UNKNOWN
                    && bytes_of(n as usize)
                        .is_some_and(|bytes| sum.admits(ask.volume, ask.block + at as u64, bytes))
            });
        if !sound {
            let reason = DropReason::Protocol("it sent damaged blocks");
            self.give_up(conn, reason, false);
            return true;
        }
        if stale {
            resync.asks_again(index);
            return true;
        }
        let kept = |at: usize| {
            let known = has(at) != BlockSum::UNKNOWN;
            place[at].is_none() && known && blocks.sums[at] == has(at)
        };
        let as_of = blocks.through.max(resync.at.id.seq);
        resync.through = resync.through.max(as_of);
        let (first, count) = (ask.block, u64::from(ask.blocks));
        let groups = first / GROUP_BLOCKS..=(first + count - 1) / GROUP_BLOCKS;
        for group in groups.clone() {
            resync.stage.forget(ask.volume, group);
        }
        resync.stage.write(ask.volume, first, count, as_of, |b| {
            let at = usize::try_from(b - first).expect("256 blocks");
            if kept(at) && !in_place {
                BlockSum::UNKNOWN
            } else {
                blocks.sums[at]
            }
        });
        for group in groups {
            let at = usize::try_from(group * GROUP_BLOCKS - first).expect("256 blocks");
            let end = blocks.sums.len().min(at + GROUP_BLOCKS as usize);
            if !in_place && (at..end).any(kept) {
                resync.stage.mark(ask.volume, group);
            }
        }
        resync.unsaved_bytes += count * BLOCK_BYTES_U64;
        let mut at = 0;
        let mut ops = ArrayVec::<(u64, Option<u32>, u32), ASKED_BLOCKS_MAX>::new();
        // In place, zeroes have to be written too.
        let zeroed = |at: usize| in_place && place[at].is_none() && !kept(at) && !lost(at);
        while at < blocks.sums.len() {
            let Some(from) = place[at] else {
                let block = first + at as u64;
                let count = (at..blocks.sums.len()).take_while(|&at| zeroed(at)).count();
                if count > 0 {
                    ops.push((block, None, u32::try_from(count).expect("256 blocks")));
                }
                at += count.max(1);
                continue;
            };
            let block = first + at as u64;
            let mut count = 0;
            while at < blocks.sums.len() && place[at].is_some() {
                count += 1;
                at += 1;
            }
            ops.push((block, Some(from), count));
        }
        resync.asks.remove(index);
        if ops.is_empty() {
            return true;
        }
        resync.left += u32::try_from(ops.len()).expect("256 blocks");
        resync.writing.push((ask.volume, first, first + count));
        for (block, from, count) in ops {
            let what = match (from, data) {
                (Some(from), Some(data)) => Brought::Data(data.slice(from, count)),
                _ => Brought::Zeroes(u64::from(count)),
            };
            self.resync_write(ask.volume, block, what);
        }
        true
    }

    pub(in crate::replica) fn got_compared(
        &mut self,
        conn: ConnId,
        compared: Box<Compared>,
        data: Option<M::Buffer>,
    ) {
        self.queue_for_stage(conn, Item::Compared(compared, data));
    }

    pub(in crate::replica) fn got_changed(&mut self, conn: ConnId, changed: Box<Changed>) {
        self.queue_for_stage(conn, Item::Changed(changed));
    }

    /// Answers have their place among the records.
    pub(super) fn queue_for_stage(&mut self, conn: ConnId, item: Item<M::Buffer>) {
        let epoch = match self.following {
            Some(f) if f.conn == conn && self.stages(conn) => f.epoch,
            _ => return,
        };
        if self.incoming.len() >= INCOMING_MAX {
            let reason = DropReason::Protocol("it answers more than it was asked");
            self.give_up(conn, reason, false);
            return;
        }
        self.incoming.push_back(Incoming { conn, epoch, item });
    }
}

//! What arrives for a resync, put into the stage in its order: batches of records, and blocks that were asked for.

use super::*;
use crate::journal::log::note_epoch;
use crate::replica::INCOMING_MAX;

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
        if resync.left > 0 || self.resync_holds() {
            return false;
        }
        let resync = self.resync.as_mut().expect("it was just there");
        resync.writing.clear();
        let base = self.log.applied_id().seq;
        match &item.item {
            Item::Append(buffer) => self.stage_batch(item.conn, buffer),
            Item::Changed(changed) => {
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
                    // At this place in the stream that is true: what comes after it is staged if it is about these groups.
                    let at = resync.at.id.seq;
                    for (group, &changed) in (group..).zip(&changed.groups) {
                        let as_of = resync.stage.changed(volume, group);
                        if !resync.is_known(volume, group) && changed <= as_of.max(base) {
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
                    });
                }
                true
            }
            Item::Blocks(blocks, data) => self.stage_blocks(item.conn, blocks, data.as_ref()),
        }
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
            self.resync_abandon();
            self.resync_wanted(conn);
            return true;
        }
        self.stage_records(&header, buffer)
    }

    /// Stages the records of a batch, in order; those that overlap wait for each other. `false` until all are there.
    pub(super) fn stage_records(&mut self, header: &Header, buffer: &M::Buffer) -> bool {
        let base = self.stage_bases();
        let resync = self.resync.as_mut().expect("it is staged");
        let mut ops: Vec<(u64, M::Buffer)> = Vec::new();
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
                let overlaps = |w: &(VolumeId, u64, u64)| w.0 == volume && w.1 < end && start < w.2;
                if resync.writing.iter().any(overlaps) || resync.writing.is_full() {
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
                            let offset = (base[usize::from(volume.0)] + from) * BLOCK_BYTES_U64;
                            ops.push((offset, buffer.slice(at, count)));
                        }
                    }
                    from = to;
                }
                if record.kind == Kind::Write {
                    resync.writing.push((volume, start, end));
                }
            }
            resync.record += 1;
        }
        resync.left = u32::try_from(ops.len()).expect("few");
        let idle = ops.is_empty();
        for (offset, part) in ops {
            let mut parts = Parts::new();
            parts.push(part);
            let op = DiskOp::SideWrite {
                file: SideFile::Stage,
                offset,
                parts,
            };
            self.resync_disk(op);
        }
        let resync = self.resync.as_mut().expect("it is staged");
        if resync.record < records || !idle {
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
        self.say_staged();
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

    /// Blocks that were asked for. `false` until they are in the stage.
    pub(super) fn stage_blocks(
        &mut self,
        conn: ConnId,
        blocks: &Blocks,
        data: Option<&M::Buffer>,
    ) -> bool {
        let base = self.stage_bases();
        let now = self.now;
        let resync = self.resync.as_mut().expect("it is staged");
        let Some(index) = resync.asks.iter().position(|a| a.token == blocks.token) else {
            return true;
        };
        let ask = resync.asks[index];
        if resync.record > 0 {
            // They are in the stage now.
            resync.record = 0;
            resync.asks.remove(index);
            self.say_staged();
            return true;
        }
        if blocks.sums.is_empty() {
            // The Primary can not give them now: it may be mending them.
            resync.asks.remove(index);
            resync.scan = resync.scan.min((ask.volume, ask.block / GROUP_BLOCKS));
            resync.known = None;
            // An answer that is still to come would put the scan behind these groups.
            resync.asked_about = None;
            resync.retry_at = Some(now.after(RETRY_NS));
            return true;
        }
        let whole = blocks.sums.len() == ask.blocks as usize;
        let needs_data = blocks.sums.iter().any(|&s| s != BlockSum::ZERO);
        let has_data = data.is_some_and(|d| d.blocks() == ask.blocks);
        let sound = whole
            && (!needs_data || has_data)
            && blocks.sums.iter().enumerate().all(|(at, &sum)| {
                sum == BlockSum::ZERO
                    || data.is_some_and(|d| {
                        let bytes = &d.bytes()[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES];
                        sum != BlockSum::UNKNOWN
                            && sum.admits(ask.volume, ask.block + at as u64, bytes)
                    })
            });
        if !sound {
            let reason = DropReason::Protocol("it sent damaged blocks");
            self.give_up(conn, reason, false);
            return true;
        }
        let as_of = blocks.through.max(resync.at.id.seq);
        resync.through = resync.through.max(as_of);
        let (first, count) = (ask.block, u64::from(ask.blocks));
        for group in first / GROUP_BLOCKS..=(first + count - 1) / GROUP_BLOCKS {
            resync.stage.forget(ask.volume, group);
        }
        resync.stage.write(ask.volume, first, count, as_of, |b| {
            blocks.sums[usize::try_from(b - first).expect("256 blocks")]
        });
        resync.unsaved_bytes += count * BLOCK_BYTES_U64;
        let mut left = 0;
        let mut at = 0;
        let wanted = |at: usize| blocks.sums[at] != BlockSum::ZERO;
        let mut ops = ArrayVec::<(u64, u32, u32), ASKED_BLOCKS_MAX>::new();
        while at < blocks.sums.len() {
            if !wanted(at) {
                at += 1;
                continue;
            }
            let from = at;
            while at < blocks.sums.len() && wanted(at) {
                at += 1;
            }
            let offset = (base[usize::from(ask.volume.0)] + first + from as u64) * BLOCK_BYTES_U64;
            let range = |n: usize| u32::try_from(n).expect("256 blocks");
            ops.push((offset, range(from), range(at - from)));
            left += 1;
        }
        if left == 0 {
            resync.asks.remove(index);
            return true;
        }
        resync.left = left;
        // A mark that the item is under way.
        resync.record = 1;
        resync.writing.push((ask.volume, first, first + count));
        let data = data.expect("it was just seen").clone();
        for (offset, from, count) in ops {
            let mut parts = Parts::new();
            parts.push(data.slice(from, count));
            let op = DiskOp::SideWrite {
                file: SideFile::Stage,
                offset,
                parts,
            };
            self.resync_disk(op);
        }
        false
    }

    pub(in crate::replica) fn got_blocks(
        &mut self,
        conn: ConnId,
        blocks: Box<Blocks>,
        data: Option<M::Buffer>,
    ) {
        if self.got_repair(conn, &blocks, data.as_ref()) {
            return;
        }
        self.queue_for_stage(conn, Item::Blocks(blocks, data));
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

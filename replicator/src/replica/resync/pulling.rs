//! Asking the Primary what changed, and for what did.

use super::staging::own_sum;
use super::*;

impl<M: Memory> Replica<M> {
    pub(super) fn resync_ask(&mut self) {
        let token = self.next_token();
        let resync = self.resync.as_mut().expect("it is pumped");
        let Some(conn) = resync.source else {
            resync.phase = Phase::Rest;
            return;
        };
        resync.token = token;
        resync.phase = Phase::Ask;
        resync.known = None;
        resync.asked_about = None;
        resync.asks.clear();
        resync.record = 0;
        let frame = Frame::ResyncAsk {
            token,
            staged: resync.at.id,
            committed: resync.committed,
        };
        self.send(conn, frame);
    }

    pub(in crate::replica) fn got_resync_from(&mut self, conn: ConnId, from: ResyncFrom) {
        let position = self.log.tail().position;
        let own = self.volumes().clone();
        let Some(resync) = self.resync.as_mut() else {
            return;
        };
        if resync.source != Some(conn) || resync.phase != Phase::Ask || resync.token != from.token {
            return;
        }
        // What came before it and was not looked at yet is of an earlier stream.
        self.incoming.retain(|i| i.conn != conn);
        let others = resync.in_place && !from.volumes.volumes.has_same_places(&own);
        if !resync.is_of(&from.volumes.volumes) || others != resync.other_volumes {
            // What is staged is of other volumes: it begins anew with these, once there is room for them.
            resync.begin_anew(from.volumes);
            resync.other_volumes = others;
            let inconsistent = superblock::Resync::INCONSISTENT;
            self.metadata.wanted.resync = resync.in_place.then_some(inconsistent);
            self.metadata.changed();
            return;
        }
        let common = from.common.min(resync.at.id.seq);
        if common < resync.at.id.seq || common < resync.through {
            resync.forget_after(common);
        }
        // Without a gap what is known stays known.
        resync.since = if from.at.seq == common {
            resync.since.min(common)
        } else {
            from.at.seq
        };
        resync.at = Tail {
            id: from.at,
            position,
            blocks: from.blocks,
            checksum: from.checksum,
        };
        resync.through = resync.through.max(from.at.seq);
        resync.stream = Some(conn);
        resync.config = Some(from.config);
        resync.volumes = from.volumes;
        resync.epochs = from.epochs;
        resync.scan = (VolumeId(0), 0);
        resync.phase = Phase::Run;
        resync.total_bytes = resync.total_bytes.max(resync.left_bytes());
        let text = format!(
            "resync: the stream of records begins after {}, {} was staged before",
            from.at, common
        );
        self.log_info(text);
        self.say_staged();
    }

    /// Asks what changed, and for what did.
    pub(super) fn resync_pull(&mut self, conn: ConnId) {
        let own = self.volumes().clone();
        loop {
            let resync = self.resync.as_mut().expect("it is pumped");
            let Some(known) = &resync.known else {
                break;
            };
            let (volume, group) = (known.volume, known.group + known.next as u64);
            let end = known.group + known.changed.groups.len() as u64;
            if group >= end {
                resync.known = None;
                resync.scan = (volume, group);
                continue;
            }
            let wanted = |g: u64| g < end && !resync.is_known(volume, g);
            let most = ASKED_BLOCKS_MAX as u64 / GROUP_BLOCKS;
            // This one has to come, and those after it that have to as well.
            let count = (0..most).take_while(|n| wanted(group + n)).count();
            if count > 0 && resync.asks.is_full() {
                return;
            }
            if let Some(known) = &mut resync.known {
                known.next += count.max(1);
            }
            if count == 0 {
                continue;
            }
            let count = count as u64;
            let block = group * GROUP_BLOCKS;
            let end = (block + count * GROUP_BLOCKS).min(resync.stage.blocks(volume));
            let blocks = u32::try_from(end - block).expect("256 blocks");
            let token = self.next_token();
            let resync = self.resync.as_mut().expect("it is pumped");
            let common = own.common_bytes(&resync.volumes.volumes, volume);
            let opened = resync
                .known
                .as_ref()
                .map(|k| (k.group * GROUP_BLOCKS, &k.had));
            let had = |b: u64| {
                let (first, had) = opened.filter(|_| resync.is_direct())?;
                had.get(usize::try_from(b - first).ok()?).copied()
            };
            let has = (block..end)
                .map(|b| had(b).unwrap_or_else(|| own_sum(&self.sums, common, resync, volume, b)))
                .collect::<ArrayVec<_, ASKED_BLOCKS_MAX>>();
            let compare = Compare {
                token,
                volume,
                block,
                sums: has.clone(),
            };
            resync.asks.push(Ask {
                token,
                volume,
                block,
                blocks,
                has,
            });
            self.send(conn, Frame::Compare(Box::new(compare)));
        }
        let resync = self.resync.as_mut().expect("it is pumped");
        if resync.asked_about.is_some() {
            return;
        }
        // The next group that is neither known nor on its way.
        let (mut volume, mut group) = resync.scan;
        while volume.0 < resync.stage.volumes() {
            if group >= resync.stage.groups(volume) {
                (volume, group) = (VolumeId(volume.0 + 1), 0);
                continue;
            }
            let coming = resync.asks.iter().any(|a| {
                let end = (a.block + u64::from(a.blocks)).div_ceil(GROUP_BLOCKS);
                a.volume == volume && (a.block / GROUP_BLOCKS..end).contains(&group)
            });
            if !coming && !resync.is_known(volume, group) {
                break;
            }
            group += 1;
        }
        resync.scan = (volume, group);
        if volume.0 < resync.stage.volumes() {
            let token = self.next_token();
            let resync = self.resync.as_mut().expect("it is pumped");
            resync.asked_about = Some((token, volume, group));
            self.send(
                conn,
                Frame::ChangedAsk {
                    token,
                    volume,
                    group,
                },
            );
        }
    }
}

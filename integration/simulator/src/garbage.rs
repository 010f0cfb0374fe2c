//! Peers that say what they should not (P9): frames with sound checksums and wrong contents. Such a peer can break any promise of
//! replication, so none is checked while it speaks; but nothing it says may stop a node.

use replicator::io::AdminCommand;
use replicator::io::{DiskError, VolumeTrouble};
use replicator::meta::fences::{FenceMark, FenceMarks};
use replicator::store::sums::BlockSum;
use replicator::types::*;
use replicator::wire::frame::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameHeader, VerifyFrame, encode,
};

use crate::harness::*;
use crate::rng::Rng;

/// A number near the true one, or far off.
fn skew(n: u64, rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => u64::MAX - rng.below(5),
        3 => rng.next(),
        4 => n.wrapping_add(rng.below(100)),
        5 => n.saturating_sub(rng.below(100)),
        6 => n.wrapping_add(1),
        _ => n,
    }
}

fn seq(s: &mut Seq, rng: &mut Rng) {
    s.0 = skew(s.0, rng);
}

fn epoch(e: &mut Epoch, rng: &mut Rng) {
    e.0 = skew(e.0, rng);
}

fn record(id: &mut RecordId, rng: &mut Rng) {
    epoch(&mut id.epoch, rng);
    seq(&mut id.seq, rng);
}

fn marks(marks: &mut FenceMarks, rng: &mut Rng) {
    let mark = FenceMark::checked(skew(rng.below(9), rng));
    let node = NodeId(u8::try_from(rng.below(8)).unwrap_or(0));
    marks.learn(node, mark.unwrap_or_default());
}

/// Changes what a frame says.
fn garble(frame: &mut Frame, rng: &mut Rng) {
    match frame {
        Frame::Report(report) => {
            let flag = rng.chance(20);
            match rng.below(17) {
                16 => marks(&mut report.fences, rng),
                0 => epoch(&mut report.granted, rng),
                1 => epoch(&mut report.promised, rng),
                2 => record(&mut report.tail, rng),
                3 => seq(&mut report.committed, rng),
                4 => seq(&mut report.journal_floor, rng),
                5 => report.fresh = flag,
                6 => report.damaged = flag,
                7 => report.serving = !flag,
                8 => report.token = skew(report.token, rng),
                9 => report.epochs.clear(),
                10 => report.epochs.iter_mut().for_each(|id| record(id, rng)),
                11 => report.config = None,
                13 => record(&mut report.you_acked, rng),
                14 => epoch(&mut report.demoted, rng),
                12 => {
                    if let Some(config) = &mut report.config {
                        record(&mut config.at, rng);
                        config.config.nodes.truncate(1 + rng.index(3));
                    }
                }
                _ => report.lease_wait_ms = u32::try_from(rng.below(1 << 32)).unwrap_or(0),
            }
        }
        Frame::Ask { token } => *token = skew(*token, rng),
        Frame::Promise {
            token, epoch: e, ..
        } => {
            *token = skew(*token, rng);
            epoch(e, rng);
        }
        Frame::Fence(fence) => match rng.below(3) {
            0 => fence.token = skew(fence.token, rng),
            1 => epoch(&mut fence.epoch, rng),
            _ => marks(&mut fence.marks, rng),
        },
        Frame::Stand { for_ms } => {
            *for_ms = u32::try_from(rng.below(1 << 32)).unwrap_or(0);
        }
        Frame::Fetch { token, after } => {
            *token = skew(*token, rng);
            seq(after, rng);
        }
        Frame::Fetched { token } => *token = skew(*token, rng),
        Frame::Append {
            epoch: e,
            committed,
        } => {
            epoch(e, rng);
            seq(committed, rng);
        }
        Frame::Ack { epoch: e, seq: s } => {
            epoch(e, rng);
            seq(s, rng);
        }
        Frame::Heartbeat {
            epoch: e,
            number,
            committed,
            tail,
            lease_ms,
            settled,
        } => {
            epoch(e, rng);
            *number = skew(*number, rng);
            seq(committed, rng);
            seq(tail, rng);
            record(settled, rng);
            *lease_ms = u32::try_from(skew(u64::from(*lease_ms), rng) & 0xffff_ffff).unwrap_or(0);
        }
        Frame::HeartbeatAck {
            epoch: e,
            number,
            applied,
            disks_hang,
        } => {
            *disks_hang ^= rng.chance(20);
            epoch(e, rng);
            *number = skew(*number, rng);
            seq(applied, rng);
        }
        Frame::Refused { promised, .. } => epoch(promised, rng),
        Frame::Demoted {
            epoch: e,
            committed,
        } => {
            epoch(e, rng);
            seq(committed, rng);
        }
        Frame::TooFarBehind { journal_floor } => seq(journal_floor, rng),
        Frame::Config(told) | Frame::Invite(told) => {
            record(&mut told.config.at, rng);
            told.config.config.nodes.truncate(1 + rng.index(3));
        }
        Frame::BlocksAsk {
            token,
            volume,
            block,
            blocks,
        } => {
            *token = skew(*token, rng);
            *block = skew(*block, rng);
            if rng.chance(20) {
                volume.0 = u16::try_from(rng.below(1 << 16)).unwrap_or(0);
                *blocks = u32::try_from(rng.below(1 << 32)).unwrap_or(0);
            }
        }
        Frame::Renew { token, incarnation } => {
            *token = skew(*token, rng);
            incarnation.0 ^= u128::from(rng.below(2));
        }
        Frame::Renewed { token, refused } => {
            *token = skew(*token, rng);
            *refused = u32::try_from(rng.below(12)).unwrap_or(0);
        }
        Frame::Compare(compare) => {
            compare.token = skew(compare.token, rng);
            compare.block = skew(compare.block, rng);
            if rng.chance(20) {
                compare.volume.0 = u16::try_from(rng.below(1 << 16)).unwrap_or(0);
                compare.sums.truncate(rng.index(3));
            }
        }
        Frame::Compared(blocks) => match rng.below(5) {
            0 => seq(&mut blocks.changed, rng),
            1 => seq(&mut blocks.through, rng),
            2 => blocks.token = skew(blocks.token, rng),
            3 => blocks
                .given
                .add(u32::try_from(rng.below(256)).unwrap_or(0), 1),
            _ => blocks.sums.truncate(rng.index(3)),
        },
        // Volumes that nobody asked for: there is room for them, or there is not.
        Frame::Prepare { token, volumes } => {
            *token = skew(*token, rng);
            if rng.chance(50)
                && let Ok(more) = volumes.resized("v1", rng.between(1, 3000) * BLOCK_BYTES_U64)
            {
                **volumes = more;
            }
        }
        Frame::Prepared { token, result } => {
            *token = skew(*token, rng);
            *result = match rng.below(3) {
                0 => Ok(()),
                1 => Err(DiskError::Short),
                _ => Err(DiskError::Volume(VolumeTrouble::NotInConfig)),
            };
        }
        Frame::Blocks(blocks) => match rng.below(4) {
            0 => seq(&mut blocks.changed, rng),
            1 => seq(&mut blocks.through, rng),
            2 => blocks.token = skew(blocks.token, rng),
            _ => blocks.sums.truncate(rng.index(3)),
        },
        Frame::ChangedAsk {
            token,
            volume,
            group,
        } => {
            *token = skew(*token, rng);
            *group = skew(*group, rng);
            if rng.chance(20) {
                volume.0 = u16::try_from(rng.below(1 << 16)).unwrap_or(0);
            }
        }
        Frame::Changed(changed) => match rng.below(4) {
            3 => while changed.groups.try_push(Seq(rng.below(900))).is_ok() {},
            0 => changed.token = skew(changed.token, rng),
            1 => changed.groups.truncate(rng.index(3)),
            _ => changed.groups.iter_mut().for_each(|s| seq(s, rng)),
        },
        Frame::ResyncAsk {
            token,
            staged,
            committed,
        } => {
            *token = skew(*token, rng);
            record(staged, rng);
            seq(committed, rng);
        }
        Frame::ResyncFrom(from) => match rng.below(6) {
            0 => from.token = skew(from.token, rng),
            1 => record(&mut from.at, rng),
            2 => seq(&mut from.common, rng),
            3 => record(&mut from.config.at, rng),
            4 => from.epochs.clear(),
            _ => from.checksum = u32::try_from(rng.below(1 << 32)).unwrap_or(0),
        },
        Frame::Staged {
            epoch: e,
            seq: s,
            left_bytes,
            total_bytes,
        } => {
            epoch(e, rng);
            seq(s, rng);
            *left_bytes = skew(*left_bytes, rng);
            *total_bytes = skew(*total_bytes, rng);
        }
        Frame::Verify(VerifyFrame::Ask(ask)) => match rng.below(5) {
            0 => ask.token = skew(ask.token, rng),
            1 => ask.volume.0 = u16::try_from(rng.below(1 << 16)).unwrap_or(0),
            2 => ask.page = u32::try_from(rng.below(1 << 32)).unwrap_or(0),
            3 => seq(&mut ask.as_of, rng),
            _ => (ask.sums, ask.read) = (!ask.sums, !ask.read),
        },
        Frame::Verify(VerifyFrame::Checked(checked)) => match rng.below(8) {
            0 => checked.token = skew(checked.token, rng),
            1 => seq(&mut checked.as_of, rng),
            2 => checked.digest = rng.next(),
            3 => checked.blocks = u16::try_from(rng.below(1 << 16)).unwrap_or(0),
            4 => checked.sums.clear(),
            5 => (checked.bad, checked.left) = (checked.blocks, checked.blocks),
            6 => checked.named.clear(),
            _ => {
                for sum in &mut checked.sums {
                    *sum = BlockSum::from_wire(u32::try_from(rng.below(1 << 32)).unwrap_or(0));
                }
            }
        },
        Frame::Verify(VerifyFrame::Mend(mend)) => match rng.below(4) {
            0 => mend.volume.0 = u16::try_from(rng.below(1 << 16)).unwrap_or(0),
            1 => mend.block = skew(mend.block, rng),
            2 => seq(&mut mend.as_of, rng),
            _ => mend.sum = BlockSum::from_wire(u32::try_from(rng.below(1 << 32)).unwrap_or(0)),
        },
        Frame::Verify(VerifyFrame::Verified(verified)) => {
            verified.missed = u8::try_from(rng.below(256)).unwrap_or(0);
            verified.left = skew(verified.left, rng);
        }
        Frame::Ping => {
            *frame = match rng.below(4) {
                0 => Frame::Ack {
                    epoch: Epoch(rng.below(9)),
                    seq: Seq(rng.below(5000)),
                },
                1 => Frame::Fetched { token: rng.next() },
                2 => Frame::Demoted {
                    epoch: Epoch(rng.below(9)),
                    committed: Seq(rng.below(5000)),
                },
                _ => Frame::TooFarBehind {
                    journal_floor: Seq(rng.below(5000)),
                },
            };
        }
    }
}

/// What arrives of a frame with other contents: what the codec lets pass.
pub(crate) fn garbled(mut frame: Frame, blocks: u32, rng: &mut Rng) -> Option<Frame> {
    garble(&mut frame, rng);
    let mut bytes = vec![0; FRAME_BYTES_MAX];
    let length = encode(&frame, blocks, &mut bytes);
    let (head, body) = bytes[..length].split_at(FRAME_HEADER_BYTES);
    let header = FrameHeader::decode(head.try_into().ok()?).ok()?;
    header.decode_body(body).ok()
}

impl Cluster {
    /// The end of a life in which nodes that were never told so are lied to by their peers. Only what stops a node counts.
    pub(crate) fn suffer_garbage(&mut self, rng: &mut Rng) {
        self.all_end_beyond();
        self.trace(|| "-- from here on peers lie".into());
        for _ in 0..rng.between(3, 10) {
            self.garbage_permille = rng.between(1, 300);
            for node in 0..self.nodes.len() {
                let stopped = self.nodes[node].drained || self.nodes[node].view.failed;
                if self.up(node) && stopped {
                    self.crash(node, false);
                }
                if !self.up(node) && !self.nodes[node].ruined {
                    self.restart(node);
                }
            }
            let node = rng.index(self.nodes.len());
            if self.up(node) {
                let deadline = self.deadline(node, 2 * SECOND);
                self.admin(node, AdminCommand::Promote { deadline });
            }
            let time = rng.between(50, 800) * MS;
            self.run_for(time);
        }
    }
}

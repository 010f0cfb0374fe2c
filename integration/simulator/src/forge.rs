//! Frames that no sound peer sends, with checksums that are right: a peer with a fault of its own. They must be refused
//! (P9). What would merely be a lie is not tried: whoever holds a peer's key can tell lies that nobody can see through.

use std::rc::Rc;

use replicator::journal::batch::{self, Draft, Kind, Place};
use replicator::store::sums::BlockSum;
use replicator::types::*;
use replicator::wire::frame::{CheckAsk, Frame, VerifyFrame};

use crate::harness::Cluster;
use crate::memory::Shared;
use crate::rng::Rng;

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Forgery {
    /// Its batch writes to blocks that no volume has.
    Blocks,
    /// It acknowledges records that were never sent.
    Unsent,
    /// Its batch is of an epoch after the one that the sender speaks in.
    Later,
    /// It tells of groups that the volume does not have.
    Groups,
    /// It asks about a page that no volume has.
    Page,
    /// Its batch brings a table of volumes that there can not be.
    Table,
    /// It answers a question for data with data of other blocks, under their own sums.
    Others,
    /// It says that what the asker has of a block is right, and does not say what that is.
    Unknown,
    /// It asks for an epoch in the name of another life of the sender's disks.
    Stranger,
}

/// The next frame from one node to another that can be forged is.
pub(crate) fn forge_frame(c: &mut Cluster, rng: &mut Rng) -> bool {
    let count = c.nodes.len();
    if count < 2 {
        return false;
    }
    let a = rng.index(count);
    let b = (a + 1 + rng.index(count - 1)) % count;
    let forgery = rng.pick(&[
        Forgery::Blocks,
        Forgery::Unsent,
        Forgery::Later,
        Forgery::Groups,
        Forgery::Page,
        Forgery::Table,
        Forgery::Others,
        Forgery::Unknown,
        Forgery::Stranger,
    ]);
    c.net.forge.insert((a, b), forgery);
    true
}

/// In place of a batch one that changes the volumes, to a table with more places than there are.
fn no_table(batch: &Shared) -> Option<Shared> {
    let from = batch.first * BLOCK_BYTES;
    let header = batch::read_header(&batch.bytes[from..]).ok()?;
    let mut bytes = vec![0; 2 * BLOCK_BYTES];
    bytes[BLOCK_BYTES] = 17;
    let mut draft = Draft::default();
    draft.push(Kind::Volumes, VolumeId(0), 0, 1, &bytes[BLOCK_BYTES..]);
    draft.write_header(&place_of(&header), &mut bytes[..BLOCK_BYTES]);
    Some(Shared {
        bytes: Rc::new(bytes),
        first: 0,
        blocks: 2,
    })
}

/// Where a batch is in the log.
fn place_of(header: &batch::Header) -> Place {
    Place {
        uuid: header.uuid,
        history: header.history,
        epoch: header.epoch,
        prev: header.prev_id(),
        prev_blocks: header.prev_blocks,
        prev_checksum: header.prev_checksum,
        committed: Seq(header.committed.0.min(header.first.0)),
    }
}

impl Forgery {
    /// What goes out in place of a frame and its batch; `None` if this forgery is not for such a frame.
    pub(crate) fn of(
        self,
        frame: &Frame,
        batch: Option<&Shared>,
    ) -> Option<(Frame, Option<Shared>)> {
        let forged = match (self, frame) {
            (Self::Blocks | Self::Later, Frame::Append { .. }) => {
                return Some((frame.clone(), Some(self.remade(batch?)?)));
            }
            (Self::Table, Frame::Append { .. }) => {
                return Some((frame.clone(), Some(no_table(batch?)?)));
            }
            (Self::Unsent, &Frame::Ack { epoch, seq }) => Frame::Ack {
                epoch,
                seq: Seq(seq.0 + 1_000_000),
            },
            (Self::Groups, Frame::Changed(changed)) => {
                let mut changed = changed.clone();
                while changed.groups.try_push(Seq(1)).is_ok() {}
                Frame::Changed(changed)
            }
            (Self::Stranger, Frame::Fence(fence)) if fence.epoch > Epoch(0) => {
                let mut fence = fence.clone();
                fence.incarnation.0 ^= 1;
                Frame::Fence(fence)
            }
            (Self::Page, Frame::Verify(VerifyFrame::Ask(ask))) => {
                let page = ask.page + 1_000_000;
                Frame::Verify(VerifyFrame::Ask(CheckAsk { page, ..*ask }))
            }
            (Self::Others, Frame::Compared(blocks)) if batch.is_some() => {
                let mut blocks = blocks.clone();
                let given: Vec<usize> = blocks.given.iter().map(|n| n as usize).collect();
                let last = blocks.sums[*given.last()?];
                for n in given.windows(2).rev() {
                    blocks.sums[n[1]] = blocks.sums[n[0]];
                }
                blocks.sums[given[0]] = last;
                if given.iter().all(|&n| blocks.sums[n] == last) {
                    return None; // It would be the same.
                }
                return Some((Frame::Compared(blocks), batch.cloned()));
            }
            (Self::Unknown, Frame::Compared(blocks)) => {
                let mut blocks = blocks.clone();
                *blocks.sums.first_mut()? = BlockSum::UNKNOWN;
                return Some((Frame::Compared(blocks), batch.cloned()));
            }
            _ => return None,
        };
        Some((forged, None))
    }

    /// The same batch with other contents, and all checksums right.
    fn remade(self, batch: &Shared) -> Option<Shared> {
        let from = batch.first * BLOCK_BYTES;
        let mut bytes = batch.bytes[from..from + batch.blocks * BLOCK_BYTES].to_vec();
        let header = batch::read_header(&bytes).ok()?;
        let mut draft = Draft::default();
        let mut moves = matches!(self, Self::Blocks);
        for record in batch::descriptors(&bytes, &header).flatten() {
            let first = record.payload as usize * BLOCK_BYTES;
            let payload = &bytes[first..first + record.payload_blocks() as usize * BLOCK_BYTES];
            let mut block = record.block;
            if record.kind == Kind::Write && std::mem::take(&mut moves) {
                block += 1 << 40;
            }
            draft.push(record.kind, record.volume, block, record.blocks, payload);
        }
        if moves {
            return None; // It writes nothing.
        }
        let later = u64::from(matches!(self, Self::Later)) << 40;
        let place = Place {
            uuid: header.uuid,
            history: header.history,
            epoch: Epoch(header.epoch.0 + later),
            prev: header.prev_id(),
            prev_blocks: header.prev_blocks,
            prev_checksum: header.prev_checksum,
            committed: header.committed,
        };
        draft.write_header(&place, &mut bytes[..BLOCK_BYTES]);
        Some(Shared {
            bytes: Rc::new(bytes),
            first: 0,
            blocks: batch.blocks,
        })
    }
}

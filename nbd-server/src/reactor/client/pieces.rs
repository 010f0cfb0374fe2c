//! Handing requests to the core: whole, or in pieces.

use replicator::io::{
    ClientOp, HEADER_BLOCKS, Input, READ_BYTES_MAX, WRITE_BYTES_MAX, WriteData, ZERO_BYTES_MAX,
};
use replicator::memory::{Buffer, Memory, Purpose};
use replicator::replica::CLIENT_BLOCKS_MIN;
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64};

use super::{Client, CloseReason, Intake, JOBS_MAX, READ_AHEAD};
use crate::nbd::Cookie;
use crate::reactor::engine::{Asked, Core, Engine, Progress, ReadBudget};
use crate::reactor::pool::{Pool, PoolBuffer};
use crate::reactor::replies::{Data, Place};
use crate::reactor::tag::Tag;

/// Writes are not cut smaller than this for lack of memory: they rather wait.
const PIECE_BYTES_MIN: u64 = 64 << 10;

/// A write whose payload is received to where it stays.
#[derive(Debug)]
pub(super) struct LargeWrite {
    pub(super) job: u32,
    pub(super) offset: u64,
    pub(super) left: u32,
    pub(super) piece: Option<Piece>,
}

/// The piece of it that is being received.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) buffer: PoolBuffer,
    /// Where the payload begins in the buffer.
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) filled: usize,
    /// Whether a receive into it is in flight.
    pub(super) direct: bool,
}

/// A read in pieces.
#[derive(Debug)]
pub(super) struct LargeRead {
    pub(super) job: u32,
    pub(super) offset: u64,
    pub(super) left: u32,
    /// Where in the export the next piece that is queued for sending begins.
    pub(super) sent_to: u64,
    pub(super) asked: u32,
    pub(super) queued: u32,
    pub(super) ready: [Option<Data>; READ_AHEAD],
    pub(super) failed: bool,
}

impl Client {
    pub(super) fn hand_in_read<C: Core>(
        &mut self,
        engine: &mut Engine<C>,
        key: u32,
        job: u32,
        length: u32,
    ) -> Result<(), Progress> {
        let offset = self.jobs.get(job).map_or(0, |job| job.offset);
        let op = ClientOp::Read {
            volume: self.volume,
            offset,
            length,
        };
        let blocks = blocks_touched(offset, u64::from(length));
        self.hand_in(engine, key, job, (0, blocks, length), op)?;
        self.complete(job);
        Ok(())
    }

    pub(super) fn hand_in_small_write<C: Core>(
        &mut self,
        engine: &mut Engine<C>,
        client: u32,
        job: u32,
        (offset, length): (u64, u32),
    ) -> Result<(), Progress> {
        if self.link.is_receiving() {
            return Err(Progress::Waits);
        }
        let Some(payload) = self.link.received().get(..length as usize) else {
            self.link
                .receive(&mut engine.ring, Tag::ClientReceive(client));
            return Err(Progress::Waits);
        };
        let asked = Asked {
            client,
            job,
            piece: 0,
            blocks: 0,
            bytes: 0,
            since: engine.now,
        };
        let req = engine.admit(asked).ok_or(Progress::Starved)?;
        let op = ClientOp::Write {
            volume: self.volume,
            offset,
            length,
            data: WriteData::Borrowed(payload),
        };
        engine.input(Input::Client { req, op });
        if let Some(job) = self.jobs.get_mut(job) {
            job.waiting += 1;
        }
        self.link.consume(length as usize);
        self.complete(job);
        Ok(())
    }

    pub(super) fn hand_in_large_write<C: Core>(
        &mut self,
        engine: &mut Engine<C>,
        key: u32,
    ) -> Result<(), Progress> {
        let Intake::LargeWrite(write) = &mut self.intake else {
            return Ok(());
        };
        if write.left == 0 {
            let job = write.job;
            self.complete(job);
            return Ok(());
        }
        let (offset, job) = (write.offset, write.job);
        if write.piece.is_none() {
            let memory = engine.core.memory_mut();
            let piece = Piece::alloc(memory, offset, u64::from(write.left));
            write.piece = Some(piece.ok_or(Progress::Starved)?);
        }
        if self.link.is_receiving() {
            return Err(Progress::Waits);
        }
        if let Some(piece) = &mut write.piece
            && piece.filled < piece.length
        {
            let (from, to) = (piece.start + piece.filled, piece.start + piece.length);
            piece.filled += self.link.take_into(&mut piece.buffer.bytes_mut()[from..to]);
            let left = piece.length - piece.filled;
            if left > 0 {
                let (ring, tag) = (&mut engine.ring, Tag::ClientReceive(key));
                if self.link.can_receive_directly() {
                    piece.direct = true;
                    let into = (piece.buffer.clone(), to - left, left);
                    self.link.receive_directly(ring, tag, into);
                } else {
                    self.link.receive(ring, tag);
                }
                return Err(Progress::Waits);
            }
        }
        let asked = Asked {
            client: key,
            job,
            piece: 0,
            blocks: 0,
            bytes: 0,
            since: engine.now,
        };
        let req = engine.admit(asked).ok_or(Progress::Starved)?;
        let Some(piece) = write.piece.take() else {
            return Ok(());
        };
        let length = u32::try_from(piece.length).expect("a piece is small");
        write.offset += u64::from(length);
        write.left -= length;
        if let Some(job) = self.jobs.get_mut(job) {
            job.waiting += 1;
        }
        let op = ClientOp::Write {
            volume: self.volume,
            offset,
            length,
            data: WriteData::Owned(piece.buffer),
        };
        engine.input(Input::Client { req, op });
        Ok(())
    }

    pub(super) fn hand_in_zero<C: Core>(
        &mut self,
        engine: &mut Engine<C>,
        key: u32,
    ) -> Result<(), Progress> {
        let Intake::Zero {
            job,
            offset,
            left,
            may_deallocate,
        } = self.intake
        else {
            return Ok(());
        };
        if left == 0 {
            self.complete(job);
            return Ok(());
        }
        let length = piece_bytes(offset, left, ZERO_BYTES_MAX);
        let op = ClientOp::Zero {
            volume: self.volume,
            offset,
            length,
            may_deallocate,
        };
        self.hand_in(engine, key, job, (0, 0, 0), op)?;
        self.intake = Intake::Zero {
            job,
            offset: offset + length,
            left: left - length,
            may_deallocate,
        };
        Ok(())
    }

    pub(super) fn hand_in_large_read<C: Core>(
        &mut self,
        engine: &mut Engine<C>,
        key: u32,
    ) -> Result<(), Progress> {
        let others = JOBS_MAX - self.jobs.free_places() > 1;
        let Intake::LargeRead(read) = &self.intake else {
            return Ok(());
        };
        let ahead = (read.asked - read.queued) as usize;
        if others || read.left == 0 || ahead == READ_AHEAD || self.replies.is_full() {
            return Err(Progress::Waits);
        }
        let (job, offset, piece) = (read.job, read.offset, read.asked);
        let length = piece_bytes(offset, u64::from(read.left), u64::from(READ_BYTES_MAX));
        let op = ClientOp::Read {
            volume: self.volume,
            offset,
            length: length as u32,
        };
        let expected = (piece, blocks_touched(offset, length), length as u32);
        self.hand_in(engine, key, job, expected, op)?;
        if let Intake::LargeRead(read) = &mut self.intake {
            read.asked += 1;
            read.offset += length;
            read.left -= length as u32;
        }
        Ok(())
    }

    pub(super) fn go_on_with_large_read(
        &mut self,
        reads: &mut ReadBudget,
        cookie: Cookie,
        waiting: u32,
    ) {
        let Intake::LargeRead(read) = &mut self.intake else {
            return;
        };
        let job = read.job;
        if read.failed {
            let blocks = read.discard();
            read.left = 0;
            let begun = read.queued > 0;
            self.give_back(reads, blocks);
            if begun && !self.replies.can_fail_late() {
                self.close(reads, CloseReason::ReadBroke);
            } else if waiting == 0 {
                self.complete(job);
            }
            return;
        }
        let mut unsent_blocks = 0;
        while let Some(data) = read.ready[read.queued as usize % READ_AHEAD].take() {
            let first = read.queued == 0;
            read.queued += 1;
            let place = Place {
                offset: read.sent_to,
                first,
                last: read.left == 0 && read.queued == read.asked,
                whole: false,
            };
            read.sent_to += data.length as u64;
            unsent_blocks += self.replies.read(cookie, place, data);
        }
        let over = read.left == 0 && read.queued == read.asked;
        self.give_back(reads, unsent_blocks);
        if over {
            self.jobs.remove(job);
            self.intake = Intake::Requests;
        }
    }
}

impl Piece {
    /// Memory for the next of `left` bytes from `offset` on: as large a piece as the core takes, or smaller ones while no
    /// such gap is free. What the core needs to take any request is left: pieces that nobody may hand in would be held for ever.
    fn alloc(memory: &mut Pool, offset: u64, left: u64) -> Option<Self> {
        let mut most = u64::from(WRITE_BYTES_MAX);
        loop {
            let length = piece_bytes(offset, left, most);
            let blocks = HEADER_BLOCKS + blocks_touched(offset, length);
            let fits = memory.free_blocks(Purpose::Client) >= blocks + CLIENT_BLOCKS_MIN;
            if fits && let Some(buffer) = memory.alloc(Purpose::Client, blocks) {
                let start = HEADER_BLOCKS as usize * BLOCK_BYTES;
                return Some(Self {
                    buffer,
                    start: start + (offset % BLOCK_BYTES_U64) as usize,
                    length: length as usize,
                    filled: 0,
                    direct: false,
                });
            }
            most /= 2;
            if most < PIECE_BYTES_MIN {
                return None;
            }
        }
    }
}

impl LargeRead {
    /// Forgets what has come; what it took of the budget for reads.
    pub(super) fn discard(&mut self) -> u32 {
        let ready = self.ready.iter_mut().filter_map(Option::take);
        ready.map(|data| data.blocks).sum()
    }
}

/// How much of `left` bytes from `offset` on goes into the next piece: all if it fits, else up to the next multiple of
/// `most`.
fn piece_bytes(offset: u64, left: u64, most: u64) -> u64 {
    if left <= most {
        left
    } else {
        most - offset % most
    }
}

fn blocks_touched(offset: u64, length: u64) -> u32 {
    let blocks = (offset % BLOCK_BYTES_U64 + length).div_ceil(BLOCK_BYTES_U64);
    u32::try_from(blocks).expect("a piece has few blocks")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::pool::PoolSizes;

    #[test]
    fn a_write_is_cut_smaller_when_no_large_gap_is_free() {
        let mut pool = Pool::new(&PoolSizes {
            client_blocks: 1,
            edge_blocks: 1,
            core_blocks: 1,
            apply_blocks: 1,
            peer_blocks: 1,
            connection_blocks: 1,
        })
        .unwrap();
        let whole = Piece::alloc(&mut pool, 4095, 4 << 20).unwrap();
        assert_eq!(whole.length, (1 << 20) - 4095);
        let second = Piece::alloc(&mut pool, 1 << 20, 3 << 20).unwrap();
        assert_eq!(second.length, 256 << 10);
        while Piece::alloc(&mut pool, 0, 1 << 20).is_some_and(|piece| {
            std::mem::forget(piece);
            true
        }) {}
        assert!(Piece::alloc(&mut pool, 0, 1 << 20).is_none());
        assert!(Piece::alloc(&mut pool, 0, 20_000).is_some());
        // Else no piece could be handed in, and all would wait for ever.
        while Piece::alloc(&mut pool, 0, 4096).is_some_and(|piece| {
            std::mem::forget(piece);
            true
        }) {}
        assert!(pool.free_blocks(Purpose::Client) >= CLIENT_BLOCKS_MIN);
    }

    #[test]
    fn pieces_end_at_multiples_of_the_most() {
        const MIB: u64 = 1 << 20;
        assert_eq!(piece_bytes(5, MIB, MIB), MIB);
        assert_eq!(piece_bytes(5, MIB + 1, MIB), MIB - 5);
        assert_eq!(piece_bytes(3 * MIB, 2 * MIB, MIB), MIB);
        let (mut offset, mut left) = (MIB + 4095, 32 * MIB);
        while left > 0 {
            let bytes = piece_bytes(offset, left, MIB);
            assert!((1..=MIB).contains(&bytes));
            offset += bytes;
            left -= bytes;
            assert!(left == 0 || offset % MIB == 0 || left <= MIB);
        }
    }

    #[test]
    fn a_piece_of_any_alignment_fits_the_largest_buffer() {
        let blocks = HEADER_BLOCKS + blocks_touched(4095, u64::from(WRITE_BYTES_MAX));
        assert!(blocks <= replicator::memory::ALLOC_BLOCKS_MAX);
        assert_eq!(blocks_touched(4095, 2), 2);
        assert_eq!(blocks_touched(8192, 4096), 1);
    }
}

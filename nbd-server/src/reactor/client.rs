//! An NBD connection in transmission: from requests to inputs of the core, and from its answers to replies.
//!
//! One request at a time is taken in ([`Intake`]); up to [`JOBS_MAX`] are being worked on. A connection that can not go on
//! stops reading and keeps where it was; the server calls [`Client::advance`] again when something has changed. Data
//! of small writes is handed to the core from the receive buffer; larger payloads are received to where they stay.
//!
//! A request beyond what the core takes at once is cut in pieces. A read in pieces has the connection to itself, since nothing
//! may come between its pieces on the wire.

use nix::errno::Errno;
use replicator::io::{
    Answer, ClientError, ClientOp, HEADER_BLOCKS, Input, READ_BYTES_MAX, WRITE_BYTES_MAX,
    WriteData, ZERO_BYTES_MAX,
};
use replicator::memory::{Buffer, Memory, Purpose};
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64, VolumeId};

use super::engine::{Asked, Core, Engine, Progress, ReadBudget};
use super::link::{Link, LinkError, Sent};
use super::pool::PoolBuffer;
use super::replies::{Replies, Reply};
use super::slab::Slab;
use super::tag::Tag;
use crate::nbd::{Cookie, FatalReason, NbdError, Op, Request, Session, TransmissionEvent};

/// The most requests of a connection that are being worked on.
pub const JOBS_MAX: usize = 128;

/// The largest write that is handed over from the receive buffer.
pub const SMALL_WRITE_BYTES_MAX: u32 = 16 << 10;

/// How many pieces of a large read are asked for ahead of what is queued for sending.
const READ_AHEAD: usize = 4;

/// How many requests a connection hands in before the others get their turn.
const REQUESTS_PER_TURN: u32 = 32;

/// Why a connection is closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// The client said goodbye.
    #[error("the client has disconnected")]
    Disconnected,
    /// The socket is gone.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The client sent what makes no sense.
    #[error("{0}")]
    Fatal(FatalReason),
    /// A read failed after a part of its data was on the way.
    #[error("a read failed when a part of it had been sent")]
    ReadBroke,
    /// This node does not serve any more.
    #[error("this node has stopped serving")]
    Dropped,
}

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    link: Link,
    volume: VolumeId,
    session: Session,
    intake: Intake,
    jobs: Slab<Job>,
    replies: Replies,
    over: Option<CloseReason>,
    /// Whether the server has it in one of its queues.
    pub queued: bool,
    /// Whether it has new replies to send.
    pub dirty: bool,
    /// Whether the server counts it as attached.
    pub counted: bool,
}

/// What is being taken in.
#[derive(Debug)]
enum Intake {
    /// The next request.
    Requests,
    /// A read in one piece.
    Read { job: u32, offset: u64, length: u32 },
    /// A write whose payload comes through the receive buffer.
    SmallWrite { job: u32, offset: u64, length: u32 },
    /// A write whose payload is received to where it stays.
    LargeWrite(LargeWrite),
    /// A trim or write-zeroes.
    Zero {
        job: u32,
        offset: u64,
        left: u64,
        may_deallocate: bool,
    },
    /// A flush.
    Flush { job: u32 },
    /// A read in pieces.
    LargeRead(LargeRead),
    /// Nothing any more.
    Ended,
}

#[derive(Debug)]
struct LargeWrite {
    job: u32,
    offset: u64,
    left: u32,
    piece: Option<Piece>,
}

#[derive(Debug)]
struct Piece {
    buffer: PoolBuffer,
    /// Where the payload begins in the buffer.
    start: usize,
    length: usize,
    filled: usize,
    /// Whether a receive into it is in flight.
    direct: bool,
}

#[derive(Debug)]
struct LargeRead {
    job: u32,
    offset: u64,
    left: u32,
    asked: u32,
    queued: u32,
    ready: [Option<Ready>; READ_AHEAD],
    failed: bool,
}

#[derive(Debug)]
struct Ready {
    buffer: PoolBuffer,
    start: usize,
    length: usize,
    blocks: u32,
}

/// A request that is being worked on.
#[derive(Debug)]
struct Job {
    cookie: Cookie,
    /// Pieces that the core works on.
    waiting: u32,
    /// Whether all pieces were handed in.
    complete: bool,
    failed: bool,
}

impl Client {
    /// A connection whose negotiation is done.
    pub fn new(link: Link, volume: VolumeId, session: Session, replies: Replies) -> Self {
        Self {
            link,
            volume,
            session,
            intake: Intake::Requests,
            jobs: Slab::new(JOBS_MAX),
            replies,
            over: None,
            queued: false,
            dirty: false,
            counted: true,
        }
    }

    /// Which volume it uses.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Whether it is closed, and why.
    pub fn over(&self) -> Option<&CloseReason> {
        self.over.as_ref()
    }

    /// Whether the kernel still works on it.
    pub fn is_busy(&self) -> bool {
        self.link.is_busy()
    }

    /// Closes the connection without answering what is pending.
    pub fn close(&mut self, reads: &mut ReadBudget, reason: CloseReason) {
        if self.over.is_some() {
            return;
        }
        self.over = Some(reason);
        if let Intake::LargeRead(read) = &mut self.intake {
            read.discard(reads);
        }
        self.intake = Intake::Ended;
        self.replies.clear(reads);
        self.link.shut_down();
    }

    /// The end of a receive.
    pub fn received(&mut self, reads: &mut ReadBudget, result: Result<u32, Errno>) {
        let taken = match &mut self.intake {
            Intake::LargeWrite(LargeWrite {
                piece: Some(piece), ..
            }) if piece.direct => {
                piece.direct = false;
                self.link
                    .received_direct(result)
                    .map(|bytes| piece.filled += bytes)
            }
            // The buffer of an earlier receive went with the request, so there is nothing to open.
            Intake::Ended => self.link.received_direct(result).map(|_| ()),
            _ => self.link.received_bulk(result),
        };
        if let Err(error) = taken {
            self.close(reads, error.into());
        }
    }

    /// The end of a send.
    pub fn sent<C: Core>(&mut self, engine: &mut Engine<C>, key: u32, result: Result<u32, Errno>) {
        if self.over.is_some() {
            // The rest of a short send is not for this client any more.
            self.link.abandon_send();
            return;
        }
        match self
            .link
            .sent(&mut engine.ring, Tag::ClientSend(key), result)
        {
            Ok(Sent::All) => self.replies.sent(&mut engine.reads),
            Ok(Sent::Part) => {}
            Err(error) => self.close(&mut engine.reads, error.into()),
        }
    }

    /// Hands in what can be handed in.
    pub fn advance<C: Core>(&mut self, engine: &mut Engine<C>, key: u32) -> Progress {
        let mut left = REQUESTS_PER_TURN;
        while self.over.is_none() {
            let step = match self.intake {
                Intake::Requests if left == 0 => return Progress::More,
                Intake::Requests => {
                    left -= 1;
                    self.next_request(engine, key)
                }
                Intake::Read {
                    job,
                    offset,
                    length,
                } => self.hand_in_read(engine, key, job, (offset, length)),
                Intake::SmallWrite {
                    job,
                    offset,
                    length,
                } => self.hand_in_small_write(engine, key, job, (offset, length)),
                Intake::LargeWrite(_) => self.hand_in_large_write(engine, key),
                Intake::Zero { .. } => self.hand_in_zero(engine, key),
                Intake::Flush { job } => self
                    .hand_in(engine, key, job, (0, 0, 0), ClientOp::Flush)
                    .map(|()| self.complete(job)),
                Intake::LargeRead(_) => self.hand_in_large_read(engine, key),
                Intake::Ended => {
                    let idle = self.jobs.is_empty() && self.replies.is_empty();
                    if idle && !self.link.is_sending() {
                        self.close(&mut engine.reads, CloseReason::Disconnected);
                    }
                    Err(Progress::Waits)
                }
            };
            if let Err(progress) = step {
                self.flush(engine, key);
                if self.over.is_none() {
                    return progress;
                }
            }
        }
        Progress::Over
    }

    /// Sends the replies that are ready, if no send is in flight.
    pub fn flush<C: Core>(&mut self, engine: &mut Engine<C>, key: u32) {
        self.dirty = false;
        if self.over.is_some() || self.link.is_sending() || self.replies.is_empty() {
            return;
        }
        self.replies.fill(self.link.outgoing());
        if let Err(error) = self.link.send(&mut engine.ring, Tag::ClientSend(key)) {
            self.close(&mut engine.reads, error.into());
        }
    }

    fn next_request<C: Core>(&mut self, engine: &mut Engine<C>, key: u32) -> Result<(), Progress> {
        if self.link.is_receiving() || self.jobs.is_full() || self.replies.is_full() {
            return Err(Progress::Waits);
        }
        let received = self.link.received();
        if received.is_empty() {
            self.link.receive(&mut engine.ring, Tag::ClientReceive(key));
            return Err(Progress::Waits);
        }
        let (taken, event) = self.session.next_request(received);
        self.link.consume(taken);
        match event {
            TransmissionEvent::NeedInput => {}
            TransmissionEvent::Request(request) => self.begin(request),
            TransmissionEvent::Done { cookie } => self.replies.push(Reply::done(cookie)),
            TransmissionEvent::Reject { cookie, error, .. } => {
                self.replies.push(Reply::error(cookie, error));
            }
            TransmissionEvent::Disconnect => self.intake = Intake::Ended,
            TransmissionEvent::Fatal(reason) => {
                self.close(&mut engine.reads, CloseReason::Fatal(reason));
            }
        }
        Ok(())
    }

    fn begin(&mut self, request: Request) {
        let job = Job {
            cookie: request.cookie,
            waiting: 0,
            complete: false,
            failed: false,
        };
        let Some(job) = self.jobs.insert(job) else {
            return;
        };
        self.intake = match request.op {
            Op::Read { offset, len } if len <= READ_BYTES_MAX => Intake::Read {
                job,
                offset,
                length: len,
            },
            Op::Read { offset, len } => Intake::LargeRead(LargeRead {
                job,
                offset,
                left: len,
                asked: 0,
                queued: 0,
                ready: [const { None }; READ_AHEAD],
                failed: false,
            }),
            Op::Write { offset, len, .. } => {
                let small = len <= SMALL_WRITE_BYTES_MAX;
                self.link.expect_large(!small);
                if small {
                    Intake::SmallWrite {
                        job,
                        offset,
                        length: len,
                    }
                } else {
                    Intake::LargeWrite(LargeWrite {
                        job,
                        offset,
                        left: len,
                        piece: None,
                    })
                }
            }
            Op::Flush => Intake::Flush { job },
            Op::Trim { offset, len, .. } => Intake::Zero {
                job,
                offset,
                left: u64::from(len),
                may_deallocate: true,
            },
            Op::WriteZeroes {
                offset,
                len,
                no_hole,
                ..
            } => Intake::Zero {
                job,
                offset,
                left: u64::from(len),
                may_deallocate: !no_hole,
            },
        };
    }

    /// Hands one piece to the core. `expected` are its number, and the blocks and bytes of its answer.
    fn hand_in<C: Core>(
        &mut self,
        engine: &mut Engine<C>,
        client: u32,
        job: u32,
        expected: (u32, u32, u32),
        op: ClientOp<'_, PoolBuffer>,
    ) -> Result<(), Progress> {
        let (piece, blocks, bytes) = expected;
        let asked = Asked {
            client,
            job,
            piece,
            blocks,
            bytes,
        };
        let req = engine.admit(asked).ok_or(Progress::Starved)?;
        if let Some(job) = self.jobs.get_mut(job) {
            job.waiting += 1;
        }
        engine.input(Input::Client { req, op });
        Ok(())
    }

    /// Notes that all pieces of a job are handed in, and goes on to the next request.
    fn complete(&mut self, job: u32) {
        self.intake = Intake::Requests;
        if let Some(job) = self.jobs.get_mut(job) {
            job.complete = true;
        }
        self.finish(job);
    }

    /// Answers a job when it is done.
    fn finish(&mut self, key: u32) {
        let Some(job) = self.jobs.get(key) else {
            return;
        };
        if job.complete && job.waiting == 0 {
            let result = if job.failed {
                Err(NbdError::Io)
            } else {
                Ok(())
            };
            self.replies.push(Reply::header(job.cookie, result));
            self.jobs.remove(key);
        }
    }

    fn hand_in_read<C: Core>(
        &mut self,
        engine: &mut Engine<C>,
        key: u32,
        job: u32,
        (offset, length): (u64, u32),
    ) -> Result<(), Progress> {
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

    fn hand_in_small_write<C: Core>(
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

    fn hand_in_large_write<C: Core>(
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
        let length = piece_bytes(offset, u64::from(write.left), u64::from(WRITE_BYTES_MAX));
        if write.piece.is_none() {
            let blocks = HEADER_BLOCKS + blocks_touched(offset, length);
            let memory = engine.core.memory_mut();
            let buffer = memory
                .alloc(Purpose::Client, blocks)
                .ok_or(Progress::Starved)?;
            write.piece = Some(Piece {
                buffer,
                start: HEADER_BLOCKS as usize * BLOCK_BYTES + (offset % BLOCK_BYTES_U64) as usize,
                length: length as usize,
                filled: 0,
                direct: false,
            });
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
        };
        let req = engine.admit(asked).ok_or(Progress::Starved)?;
        let Some(piece) = write.piece.take() else {
            return Ok(());
        };
        write.offset += length;
        write.left -= length as u32;
        if let Some(job) = self.jobs.get_mut(job) {
            job.waiting += 1;
        }
        let op = ClientOp::Write {
            volume: self.volume,
            offset,
            length: length as u32,
            data: WriteData::Owned(piece.buffer),
        };
        engine.input(Input::Client { req, op });
        Ok(())
    }

    fn hand_in_zero<C: Core>(&mut self, engine: &mut Engine<C>, key: u32) -> Result<(), Progress> {
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

    fn hand_in_large_read<C: Core>(
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

    /// The core has answered. What the answer took of `reads` is given back when it has been sent.
    pub fn answered(
        &mut self,
        reads: &mut ReadBudget,
        asked: Asked,
        result: Result<Answer<PoolBuffer>, ClientError>,
    ) {
        let Some(job) = self.jobs.get_mut(asked.job).filter(|_| self.over.is_none()) else {
            reads.give_back(asked.blocks);
            return;
        };
        job.waiting -= 1;
        let data = match result {
            Ok(Answer::Data {
                buffer,
                start,
                length,
            }) if length == asked.bytes as usize && length > 0 => Some(Ready {
                buffer,
                start,
                length,
                blocks: asked.blocks,
            }),
            Ok(Answer::Done) if asked.bytes == 0 => None,
            Ok(_) | Err(ClientError::Io) => {
                job.failed = true;
                None
            }
        };
        if data.is_none() {
            reads.give_back(asked.blocks);
        }
        match &mut self.intake {
            Intake::LargeRead(read) if read.job == asked.job => {
                let cookie = job.cookie;
                let waiting = job.waiting;
                match data {
                    Some(ready) => read.ready[asked.piece as usize % READ_AHEAD] = Some(ready),
                    None => read.failed = true,
                }
                self.go_on_with_large_read(reads, cookie, waiting);
            }
            _ => {
                if let Some(ready) = data {
                    let (cookie, data) = (job.cookie, ready.into_data());
                    self.jobs.remove(asked.job);
                    self.replies.push(Reply::read(Some(cookie), data));
                } else {
                    self.finish(asked.job);
                }
            }
        }
    }

    fn go_on_with_large_read(&mut self, reads: &mut ReadBudget, cookie: Cookie, waiting: u32) {
        let Intake::LargeRead(read) = &mut self.intake else {
            return;
        };
        let job = read.job;
        if read.failed {
            read.discard(reads);
            read.left = 0;
            if read.queued > 0 {
                self.close(reads, CloseReason::ReadBroke);
            } else if waiting == 0 {
                self.complete(job);
            }
            return;
        }
        while let Some(ready) = read.ready[read.queued as usize % READ_AHEAD].take() {
            let cookie = (read.queued == 0).then_some(cookie);
            read.queued += 1;
            self.replies.push(Reply::read(cookie, ready.into_data()));
        }
        if read.left == 0 && read.queued == read.asked {
            self.jobs.remove(job);
            self.intake = Intake::Requests;
        }
    }
}

impl Ready {
    fn into_data(self) -> (PoolBuffer, usize, usize, u32) {
        (self.buffer, self.start, self.length, self.blocks)
    }
}

impl LargeRead {
    fn discard(&mut self, reads: &mut ReadBudget) {
        for ready in &mut self.ready {
            if let Some(ready) = ready.take() {
                reads.give_back(ready.blocks);
            }
        }
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

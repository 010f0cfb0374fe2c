//! An NBD connection in transmission: from requests to inputs of the core, and from its answers to replies.
//!
//! One request at a time is taken in ([`Intake`]); up to [`JOBS_MAX`] are being worked on. A connection that can not go on
//! stops reading and keeps where it was; the server calls [`Client::advance`] again when something has changed. Data
//! of small writes is handed to the core from the receive buffer; larger payloads are received to where they stay.
//!
//! A request beyond what the core takes at once is cut in pieces. A read in pieces has the connection to itself, since nothing
//! may come between its pieces on the wire.

mod pieces;
mod status;

use nix::errno::Errno;
use replicator::io::{Answer, ClientError, ClientOp, Input, READ_BYTES_MAX};
use replicator::types::VolumeId;

use self::pieces::{LargeRead, LargeWrite};
use self::status::Status;

use super::engine::{Asked, Core, Engine, Progress, ReadBudget};
use super::link::{Link, LinkError, Sent};
use super::pool::PoolBuffer;
use super::replies::{Data, Place, Replies};
use super::slab::Slab;
use super::tag::Tag;
use crate::nbd::protocol::UNFRAGMENTED_BYTES_MAX;
use crate::nbd::{Cookie, Extents, FatalReason, NbdError, Op, Request, Session, TransmissionEvent};

/// The most requests of a connection that are being worked on.
pub const JOBS_MAX: usize = 128;

/// The largest write that is handed over from the receive buffer.
pub const SMALL_WRITE_BYTES_MAX: u32 = 16 << 10;

/// How many pieces of a large read are asked for ahead of what is queued for sending.
const READ_AHEAD: usize = 4;

/// How many requests a connection hands in before the others get their turn.
const REQUESTS_PER_TURN: u32 = 32;

/// What a client that takes sentences is told of an error of the core.
const FAILED: &str = "this node could not do it: its log and replctl status say why";

const _: () = assert!(UNFRAGMENTED_BYTES_MAX <= READ_BYTES_MAX);

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
    /// What it holds of the budget for reads.
    held: u32,
    over: Option<CloseReason>,
    /// Whether a map of holes is being made for it.
    mapping: bool,
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
    Read { job: u32, length: u32 },
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
    /// A map of holes.
    Status(Status),
    /// Nothing any more.
    Ended,
}

/// A request that is being worked on.
#[derive(Debug)]
struct Job {
    cookie: Cookie,
    /// Where it begins, and whether it is to be answered in one piece: for reads.
    offset: u64,
    whole: bool,
    /// What it is answered with, if it is a map of holes.
    extents: Option<Box<Extents>>,
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
            held: 0,
            over: None,
            mapping: false,
            queued: false,
            dirty: false,
            counted: true,
        }
    }

    /// Which volume it uses.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Its volume has another size.
    pub fn resize(&mut self, bytes: u64) {
        self.session.resize(bytes);
    }

    /// Whether it is closed, and why.
    pub fn over(&self) -> Option<&CloseReason> {
        self.over.as_ref()
    }

    /// Whether the kernel still works on it, or a map of holes is being made for it.
    pub fn is_busy(&self) -> bool {
        self.link.is_busy() || self.mapping
    }

    /// Closes the connection without answering what is pending.
    pub fn close(&mut self, reads: &mut ReadBudget, reason: CloseReason) {
        if self.over.is_some() {
            return;
        }
        self.over = Some(reason);
        let mut blocks = self.replies.clear();
        if let Intake::LargeRead(read) = &mut self.intake {
            blocks += read.discard();
        }
        self.give_back(reads, blocks);
        self.intake = Intake::Ended;
        self.link.shut_down();
    }

    fn give_back(&mut self, reads: &mut ReadBudget, blocks: u32) {
        self.held -= blocks;
        reads.give_back(blocks);
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
            Ok(Sent::All) => {
                let blocks = self.replies.sent();
                self.give_back(&mut engine.reads, blocks);
            }
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
                Intake::Read { job, length } => self.hand_in_read(engine, key, job, length),
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
                Intake::Status(_) => self.hand_in_status(engine, key),
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
            TransmissionEvent::Done { cookie } => self.replies.done(cookie),
            TransmissionEvent::Reject {
                cookie,
                error,
                text,
            } => self.replies.error(cookie, error, text),
            TransmissionEvent::Disconnect => self.intake = Intake::Ended,
            TransmissionEvent::Fatal(reason) => {
                self.close(&mut engine.reads, CloseReason::Fatal(reason));
            }
        }
        Ok(())
    }

    fn begin(&mut self, request: Request) {
        let (offset, whole) = match request.op {
            Op::Read { offset, whole, .. } => (offset, whole),
            _ => (0, false),
        };
        let job = Job {
            cookie: request.cookie,
            offset,
            whole,
            extents: None,
            waiting: 0,
            complete: false,
            failed: false,
        };
        let Some(job) = self.jobs.insert(job) else {
            return;
        };
        self.intake = match request.op {
            Op::Read { len, .. } if len <= READ_BYTES_MAX => Intake::Read { job, length: len },
            Op::Read { offset, len, .. } => Intake::LargeRead(LargeRead {
                job,
                offset,
                left: len,
                sent_to: offset,
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
            Op::BlockStatus { offset, len, one } => Intake::Status(Status {
                job,
                offset,
                len,
                one,
                extents: None,
            }),
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
        if !engine.reads.allows(self.held, blocks) {
            // It goes on when replies have been sent, its own or others'.
            return Err(Progress::Starved);
        }
        let asked = Asked {
            client,
            job,
            piece,
            blocks,
            bytes,
            since: engine.now,
        };
        let req = engine.admit(asked).ok_or(Progress::Starved)?;
        if let Some(job) = self.jobs.get_mut(job) {
            job.waiting += 1;
        }
        self.held += blocks;
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
        if !job.complete || job.waiting > 0 {
            return;
        }
        let Some(job) = self.jobs.remove(key) else {
            return;
        };
        match job.extents {
            _ if job.failed => self.replies.error(job.cookie, NbdError::Io, FAILED),
            Some(extents) => self.replies.status(job.cookie, extents),
            None => self.replies.done(job.cookie),
        }
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
            }) if length == asked.bytes as usize && length > 0 => Some(Data {
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
        let (cookie, waiting) = (job.cookie, job.waiting);
        let place = Place {
            offset: job.offset,
            first: true,
            last: true,
            whole: job.whole,
        };
        if data.is_none() {
            self.give_back(reads, asked.blocks);
        }
        match &mut self.intake {
            Intake::LargeRead(read) if read.job == asked.job => {
                match data {
                    Some(ready) => read.ready[asked.piece as usize % READ_AHEAD] = Some(ready),
                    None => read.failed = true,
                }
                self.go_on_with_large_read(reads, cookie, waiting);
            }
            _ => {
                if let Some(data) = data {
                    self.jobs.remove(asked.job);
                    let blocks = self.replies.read(cookie, place, data);
                    self.give_back(reads, blocks);
                } else {
                    self.finish(asked.job);
                }
            }
        }
    }
}

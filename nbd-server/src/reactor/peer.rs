//! A connection to a peer: frames in, frames out.
//!
//! Frames are received in bulk; the batch behind one goes straight to memory of the peers' share, and if that is used up
//! the connection stops reading until some returns. Outgoing frames are encoded when they are sent, many at a time, with their
//! batches between them.

use std::collections::VecDeque;

use nix::errno::Errno;
use replicator::io::Input;
use replicator::memory::{Buffer, Memory, Purpose};
use replicator::types::*;
use replicator::wire::frame::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameError, FrameHeader, encode,
};

use super::engine::{Core, Engine, Progress};
use super::link::{Link, LinkError, Sent};
use super::pool::{Pool, PoolBuffer};
use super::ring::{SEGMENTS_MAX, Segment};
use super::tag::Tag;

/// The most frames that wait to be sent. A peer that takes so little is as good as gone.
pub const QUEUE_MAX: usize = 4096;

/// Blocks of the memory that frames are encoded to.
pub const FRAME_BLOCKS: u32 = 16;

/// A batch above this is expected to be followed by more such.
const LARGE_BATCH_BLOCKS: u32 = 16;

/// Why a connection to a peer ends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerError {
    /// The socket is gone.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The peer sent what is no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The peer takes nothing.
    #[error("the peer takes too little of what is sent")]
    Overflow,
    /// The core wants it gone; the text says why.
    #[error("{0}")]
    Dropped(replicator::io::DropReason),
}

/// A connection to a peer.
#[derive(Debug)]
pub struct Peer {
    link: Link,
    conn: ConnId,
    node: NodeId,
    intake: Intake,
    queue: VecDeque<(Frame, Option<PoolBuffer>)>,
    frames: PoolBuffer,
    /// Batches that are being sent.
    batches: u32,
    over: Option<PeerError>,
    /// Whether the server has it in one of its queues.
    pub queued: bool,
    /// Whether it has new frames to send.
    pub dirty: bool,
    /// Whether the core knows that it is over.
    pub reported: bool,
}

#[derive(Debug)]
enum Intake {
    /// The next frame.
    Frames,
    /// The batch of this frame, for which there was no memory yet.
    Starved(Frame, u32),
    /// The batch of this frame.
    Batch(Frame, Batch),
    /// Nothing any more.
    Ended,
}

#[derive(Debug)]
struct Batch {
    buffer: PoolBuffer,
    filled: usize,
    /// Whether a receive into it is in flight.
    direct: bool,
}

impl Peer {
    /// A connection whose hellos are done. `None` if `pool` has no memory for one more.
    pub fn new(link: Link, conn: ConnId, node: NodeId, pool: &Pool) -> Option<Self> {
        Some(Self {
            link,
            conn,
            node,
            intake: Intake::Frames,
            queue: VecDeque::with_capacity(QUEUE_MAX),
            frames: pool.alloc_connection(FRAME_BLOCKS)?,
            batches: 0,
            over: None,
            queued: false,
            dirty: false,
            reported: false,
        })
    }

    /// Its name in the core.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// Who is at the other end.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Whether it is closed, and why.
    pub fn over(&self) -> Option<&PeerError> {
        self.over.as_ref()
    }

    /// How many frames wait to be sent.
    pub fn frames_waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether the kernel still works on it.
    pub fn is_busy(&self) -> bool {
        self.link.is_busy()
    }

    /// Closes the connection.
    pub fn close(&mut self, reason: PeerError) {
        if self.over.is_some() {
            return;
        }
        self.over = Some(reason);
        self.intake = Intake::Ended;
        self.queue.clear();
        self.link.shut_down();
    }

    /// The end of a receive.
    pub fn received(&mut self, result: Result<u32, Errno>) {
        let taken = match &mut self.intake {
            Intake::Batch(_, batch) if batch.direct => {
                batch.direct = false;
                self.link
                    .received_direct(result)
                    .map(|bytes| batch.filled += bytes)
            }
            Intake::Ended => self.link.received_direct(result).map(|_| ()),
            _ => self.link.received_bulk(result),
        };
        if let Err(error) = taken {
            self.close(error.into());
        }
    }

    /// Hands in what has arrived, and receives more.
    pub fn advance<C: Core>(&mut self, engine: &mut Engine<C>, key: u32) -> Progress {
        while self.over.is_none() {
            let step = match &self.intake {
                Intake::Frames => self.next_frame(engine, key),
                Intake::Starved(..) => self.find_memory(engine),
                Intake::Batch(..) => self.next_batch(engine, key),
                Intake::Ended => return Progress::Waits,
            };
            match step {
                Ok(()) => {}
                Err(Stop::For(progress)) => return progress,
                Err(Stop::Broken(error)) => self.close(error.into()),
            }
        }
        Progress::Over
    }

    fn next_frame<C: Core>(&mut self, engine: &mut Engine<C>, key: u32) -> Result<(), Stop> {
        if self.link.is_receiving() {
            return Err(Stop::For(Progress::Waits));
        }
        let received = self.link.received();
        let Some((frame, batch_blocks, bytes)) = decode(received)? else {
            self.link.receive(&mut engine.ring, Tag::PeerReceive(key));
            return Err(Stop::For(Progress::Waits));
        };
        self.link.consume(bytes);
        if batch_blocks > 0 {
            self.intake = Intake::Starved(frame, batch_blocks);
        } else {
            let conn = self.conn;
            engine.input(Input::Frame {
                conn,
                frame,
                batch: None,
            });
        }
        Ok(())
    }

    fn find_memory<C: Core>(&mut self, engine: &mut Engine<C>) -> Result<(), Stop> {
        let Intake::Starved(frame, blocks) = &self.intake else {
            return Ok(());
        };
        let memory = engine.core.memory_mut();
        let buffer = memory
            .alloc(Purpose::Peer, *blocks)
            .ok_or(Stop::For(Progress::Starved))?;
        self.link.expect_large(*blocks > LARGE_BATCH_BLOCKS);
        let batch = Batch {
            buffer,
            filled: 0,
            direct: false,
        };
        self.intake = Intake::Batch(frame.clone(), batch);
        Ok(())
    }

    fn next_batch<C: Core>(&mut self, engine: &mut Engine<C>, key: u32) -> Result<(), Stop> {
        if self.link.is_receiving() {
            return Err(Stop::For(Progress::Waits));
        }
        let Intake::Batch(_, batch) = &mut self.intake else {
            return Ok(());
        };
        let length = batch.buffer.blocks() as usize * BLOCK_BYTES;
        if batch.filled < length {
            let rest = &mut batch.buffer.bytes_mut()[batch.filled..];
            batch.filled += self.link.take_into(rest);
        }
        if batch.filled < length {
            let (ring, tag) = (&mut engine.ring, Tag::PeerReceive(key));
            if self.link.can_receive_directly() {
                batch.direct = true;
                let into = (batch.buffer.clone(), batch.filled, length - batch.filled);
                self.link.receive_directly(ring, tag, into);
            } else {
                self.link.receive(ring, tag);
            }
            return Err(Stop::For(Progress::Waits));
        }
        if let Intake::Batch(frame, batch) = std::mem::replace(&mut self.intake, Intake::Frames) {
            engine.input(Input::Frame {
                conn: self.conn,
                frame,
                batch: Some(batch.buffer),
            });
        }
        Ok(())
    }

    /// Queues a frame, and the batch behind it.
    pub fn push(&mut self, frame: Frame, batch: Option<PoolBuffer>) {
        if self.over.is_some() {
            return;
        }
        if self.queue.len() >= QUEUE_MAX {
            self.close(PeerError::Overflow);
        } else {
            self.queue.push_back((frame, batch));
        }
    }

    /// Sends what is queued, if no send is in flight.
    pub fn flush<C: Core>(&mut self, engine: &mut Engine<C>, key: u32) {
        self.dirty = false;
        if self.over.is_some() || self.link.is_sending() || self.queue.is_empty() {
            return;
        }
        // Frames are encoded first, since memory that is shared with a segment can not be written to.
        let arena = self.frames.bytes_mut();
        let mut ends = arrayvec::ArrayVec::<usize, SEGMENTS_MAX>::new();
        let (mut used, mut pieces, mut open) = (0, 0, false);
        for (frame, batch) in &self.queue {
            let needed = usize::from(!open) + usize::from(batch.is_some());
            if ends.is_full()
                || pieces + needed > SEGMENTS_MAX
                || arena.len() - used < FRAME_BYTES_MAX
            {
                break;
            }
            let blocks = batch.as_ref().map_or(0, PoolBuffer::blocks);
            used += encode(frame, blocks, &mut arena[used..]);
            ends.push(used);
            pieces += needed;
            open = batch.is_none();
        }
        let segments = self.link.outgoing();
        let (mut at, mut open) = (0, false);
        for end in ends {
            let Some((_, batch)) = self.queue.pop_front() else {
                break;
            };
            match segments.last_mut() {
                Some(last) if open => last.length += end - at,
                _ => segments.push(Segment {
                    buffer: self.frames.clone(),
                    start: at,
                    length: end - at,
                }),
            }
            at = end;
            open = batch.is_none();
            if let Some(buffer) = batch {
                self.batches += 1;
                segments.push(Segment {
                    length: buffer.blocks() as usize * BLOCK_BYTES,
                    buffer,
                    start: 0,
                });
            }
        }
        if let Err(error) = self.link.send(&mut engine.ring, Tag::PeerSend(key)) {
            self.close(error.into());
        }
    }

    /// The end of a send.
    pub fn sent<C: Core>(&mut self, engine: &mut Engine<C>, key: u32, result: Result<u32, Errno>) {
        if self.over.is_some() {
            self.link.abandon_send();
            return;
        }
        match self.link.sent(&mut engine.ring, Tag::PeerSend(key), result) {
            Ok(Sent::Part) => {}
            Ok(Sent::All) => {
                for _ in 0..std::mem::take(&mut self.batches) {
                    engine.input(Input::BatchSent { conn: self.conn });
                }
                self.flush(engine, key);
            }
            Err(error) => self.close(error.into()),
        }
    }
}

enum Stop {
    For(Progress),
    Broken(FrameError),
}

impl From<FrameError> for Stop {
    fn from(error: FrameError) -> Self {
        Self::Broken(error)
    }
}

/// The frame at the start of `received`, how many blocks of batch follow, and how many bytes it took; `None` if it is
/// not all there.
fn decode(received: &[u8]) -> Result<Option<(Frame, u32, usize)>, FrameError> {
    let Some((header, rest)) = received.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = FrameHeader::decode(header)?;
    let Some(body) = rest.get(..header.body_bytes) else {
        return Ok(None);
    };
    let frame = header.decode_body(body)?;
    let bytes = FRAME_HEADER_BYTES + header.body_bytes;
    Ok(Some((frame, header.batch_blocks, bytes)))
}

//! A connected socket: its receive buffer, and the one send that is in flight.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use replicator::memory::Buffer;
use replicator::types::BLOCK_BYTES;

use super::pool::{Pool, PoolBuffer};
use super::ring::{Ring, Segments};
use super::stage::{Stage, StageError};
use super::tag::Tag;
use crate::handle::Stream;

/// Blocks of the buffer that small requests and frames are received in.
pub const BULK_BLOCKS: u32 = 16;

const BULK_BYTES: usize = BULK_BLOCKS as usize * BLOCK_BYTES;

/// Below this much room at the buffer's end, what is left in it moves to the front.
const ROOM_BYTES_MIN: usize = BULK_BYTES / 2;

/// How much is received at a time when large payloads are expected, which go elsewhere.
const SHORT_RECEIVE_BYTES: usize = 1024;

/// Why a connection ends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side closed it.
    #[error("closed by the other side")]
    Closed,
    /// The socket failed.
    #[error("{0}")]
    Socket(Errno),
    /// The bytes were tampered with.
    #[error("{0}")]
    Stage(#[from] StageError),
}

/// A socket, and what is going on with it.
#[derive(Debug)]
pub struct Link {
    fd: Rc<OwnedFd>,
    stage: Stage,
    bulk: PoolBuffer,
    /// The received bytes that nobody has taken yet.
    start: usize,
    end: usize,
    receiving: bool,
    sending: bool,
    out: Segments,
    /// Whether the last payload was large.
    expect_large: bool,
}

/// What an ended send means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// Everything is out.
    All,
    /// The rest is on its way.
    Part,
}

impl Link {
    /// Takes over a socket, and the bytes of it that were read before.
    ///
    /// # Errors
    /// There is no memory for one more connection, or `leftover` is longer than the buffer.
    pub fn new(stream: Stream, leftover: &[u8], pool: &Pool) -> io::Result<Self> {
        // A socket that does not block would make the ring report that nothing is there, instead of waiting.
        match &stream {
            Stream::Unix(socket) => socket.set_nonblocking(false)?,
            Stream::Tcp(socket) => {
                socket.set_nonblocking(false)?;
                socket.set_nodelay(true)?;
            }
        }
        let mut bulk = pool
            .alloc_connection(BULK_BLOCKS)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let front = bulk
            .bytes_mut()
            .get_mut(..leftover.len())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        front.copy_from_slice(leftover);
        Ok(Self {
            fd: Rc::new(stream.into()),
            stage: Stage::Plain,
            bulk,
            start: 0,
            end: leftover.len(),
            receiving: false,
            sending: false,
            out: Segments::new(),
            expect_large: false,
        })
    }

    /// Whether a receive is in flight. Then nothing can be looked at.
    pub fn is_receiving(&self) -> bool {
        self.receiving
    }

    /// Whether a send is in flight.
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Whether the kernel still works on this socket.
    pub fn is_busy(&self) -> bool {
        self.receiving || self.sending
    }

    /// Bytes received and not taken yet.
    pub fn received(&self) -> &[u8] {
        if self.start == self.end {
            return &[];
        }
        &self.bulk.bytes()[self.start..self.end]
    }

    /// Takes the first `bytes` of what was received.
    pub fn consume(&mut self, bytes: usize) {
        self.start = self.end.min(self.start + bytes);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves received bytes to where they belong; how many there were.
    pub fn take_into(&mut self, into: &mut [u8]) -> usize {
        let received = self.received();
        let bytes = received.len().min(into.len());
        into[..bytes].copy_from_slice(&received[..bytes]);
        self.consume(bytes);
        bytes
    }

    /// Notes whether large payloads are to be expected; then little is received in bulk.
    pub fn expect_large(&mut self, large: bool) {
        self.expect_large = large;
    }

    /// Receives whatever comes next.
    pub fn receive(&mut self, ring: &mut Ring<Tag>, tag: Tag) {
        if BULK_BYTES - self.end < ROOM_BYTES_MIN && self.start > 0 {
            let bytes = self.start..self.end;
            self.end -= self.start;
            self.start = 0;
            self.bulk.bytes_mut().copy_within(bytes, 0);
        }
        let room = BULK_BYTES - self.end;
        let length = if self.expect_large && self.start == self.end {
            room.min(SHORT_RECEIVE_BYTES)
        } else {
            room
        };
        debug_assert!(
            length > 0,
            "what is received is taken before the buffer is full"
        );
        self.receiving = true;
        ring.receive(tag, &self.fd, (self.bulk.clone(), self.end, length), false);
    }

    /// The end of a [`Link::receive`].
    ///
    /// # Errors
    /// The connection is over.
    pub fn received_bulk(&mut self, result: Result<u32, Errno>) -> Result<(), LinkError> {
        let bytes = self.received_direct(result)?;
        let arrived = &mut self.bulk.bytes_mut()[self.end..self.end + bytes];
        self.end += self.stage.open(arrived)?;
        Ok(())
    }

    /// Whether payloads can be received to where they stay.
    pub fn can_receive_directly(&self) -> bool {
        self.stage.is_plain()
    }

    /// Receives to `length` bytes from byte `start` of `buffer` on.
    pub fn receive_directly(
        &mut self,
        ring: &mut Ring<Tag>,
        tag: Tag,
        into: (PoolBuffer, usize, usize),
    ) {
        self.receiving = true;
        ring.receive(tag, &self.fd, into, true);
    }

    /// The end of a [`Link::receive_directly`]: how many bytes came.
    ///
    /// # Errors
    /// The connection is over.
    pub fn received_direct(&mut self, result: Result<u32, Errno>) -> Result<usize, LinkError> {
        self.receiving = false;
        match result {
            Ok(0) => Err(LinkError::Closed),
            Ok(bytes) => Ok(bytes as usize),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(0),
            Err(errno) => Err(LinkError::Socket(errno)),
        }
    }

    /// Where to put what is sent next. Only while nothing is being sent.
    pub fn outgoing(&mut self) -> &mut Segments {
        debug_assert!(!self.sending, "one send at a time");
        &mut self.out
    }

    /// Sends what is in [`Link::outgoing`].
    ///
    /// # Errors
    /// The connection is over.
    pub fn send(&mut self, ring: &mut Ring<Tag>, tag: Tag) -> Result<(), LinkError> {
        self.stage.seal(&mut self.out)?;
        self.submit(ring, tag);
        Ok(())
    }

    fn submit(&mut self, ring: &mut Ring<Tag>, tag: Tag) {
        self.sending = true;
        ring.send(tag, &self.fd, &self.out);
    }

    /// The end of a send. Sends the rest if it was short.
    ///
    /// # Errors
    /// The connection is over.
    pub fn sent(
        &mut self,
        ring: &mut Ring<Tag>,
        tag: Tag,
        result: Result<u32, Errno>,
    ) -> Result<Sent, LinkError> {
        self.sending = false;
        let mut left = match result {
            Ok(bytes) => bytes as usize,
            Err(Errno::EINTR | Errno::EAGAIN) => 0,
            Err(errno) => {
                self.out.clear();
                return Err(LinkError::Socket(errno));
            }
        };
        let whole = self
            .out
            .iter()
            .take_while(|segment| {
                let is_out = segment.length <= left;
                if is_out {
                    left -= segment.length;
                }
                is_out
            })
            .count();
        self.out.drain(..whole);
        let Some(first) = self.out.first_mut() else {
            return Ok(Sent::All);
        };
        first.start += left;
        first.length -= left;
        self.submit(ring, tag);
        Ok(Sent::Part)
    }

    /// The end of a send on a connection that is over.
    pub fn abandon_send(&mut self) {
        self.sending = false;
        self.out.clear();
    }

    /// Ends the connection in both directions. What is in flight ends soon after.
    pub fn shut_down(&self) {
        // It may be gone already, which is as good.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
    }
}

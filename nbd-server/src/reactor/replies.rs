//! Replies to a client that wait to be sent, and the memory that their headers are written to.

use std::collections::VecDeque;

use replicator::memory::Buffer;
use replicator::types::BLOCK_BYTES;

use super::client::JOBS_MAX;
use super::pool::{Pool, PoolBuffer};
use super::ring::{SEGMENTS_MAX, Segment, Segments};
use crate::nbd::{Cookie, NbdError, SIMPLE_REPLY_BYTES, simple_reply};

/// How many replies may wait before no more requests are taken in.
pub const REPLIES_MAX: usize = 128;

/// The memory of a part of an answer, its first byte, its length, and what it takes of the budget for reads.
pub type Data = (PoolBuffer, usize, usize, u32);

/// Something to send: a header, data, or both.
#[derive(Debug)]
pub struct Reply {
    header: Option<[u8; SIMPLE_REPLY_BYTES]>,
    data: Option<Data>,
}

impl Reply {
    /// The answer to a request without data.
    pub fn header(cookie: Cookie, result: Result<(), NbdError>) -> Self {
        Self {
            header: Some(simple_reply(cookie, result)),
            data: None,
        }
    }

    /// Success.
    pub fn done(cookie: Cookie) -> Self {
        Self::header(cookie, Ok(()))
    }

    /// Failure.
    pub fn error(cookie: Cookie, error: NbdError) -> Self {
        Self::header(cookie, Err(error))
    }

    /// What was read, or a part of it that follows another one.
    pub fn read(cookie: Option<Cookie>, data: Data) -> Self {
        Self {
            header: cookie.map(|cookie| simple_reply(cookie, Ok(()))),
            data: Some(data),
        }
    }
}

/// Replies in the order of sending.
#[derive(Debug)]
pub struct Replies {
    waiting: VecDeque<Reply>,
    headers: PoolBuffer,
    /// What the data that is being sent takes of the budget.
    sending_blocks: u32,
}

impl Replies {
    /// No replies, with memory from `pool`; `None` if that is used up.
    pub fn new(pool: &Pool) -> Option<Self> {
        Some(Self {
            // Those of requests that are being worked on come on top of the bound.
            waiting: VecDeque::with_capacity(REPLIES_MAX + JOBS_MAX),
            headers: pool.alloc_connection(1)?,
            sending_blocks: 0,
        })
    }

    /// Adds a reply.
    pub fn push(&mut self, reply: Reply) {
        self.waiting.push_back(reply);
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether no more requests should be taken in.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= REPLIES_MAX
    }

    /// Moves as many replies to `segments` as fit. Only while nothing is being sent.
    pub fn fill(&mut self, segments: &mut Segments) {
        let arena = self.headers.bytes_mut();
        let (mut count, mut used, mut pieces) = (0, 0, 0);
        // Neighbouring headers are one piece.
        let mut open = false;
        for reply in &self.waiting {
            let header = usize::from(reply.header.is_some() && !open);
            let needed = header + usize::from(reply.data.is_some());
            if pieces + needed > SEGMENTS_MAX || used + SIMPLE_REPLY_BYTES > BLOCK_BYTES {
                break;
            }
            if let Some(bytes) = &reply.header {
                arena[used..used + SIMPLE_REPLY_BYTES].copy_from_slice(bytes);
                used += SIMPLE_REPLY_BYTES;
            }
            open = reply.data.is_none();
            pieces += needed;
            count += 1;
        }
        let mut at = 0;
        let mut open = false;
        for reply in self.waiting.drain(..count) {
            if reply.header.is_some() {
                match segments.last_mut() {
                    Some(last) if open => last.length += SIMPLE_REPLY_BYTES,
                    _ => segments.push(Segment {
                        buffer: self.headers.clone(),
                        start: at,
                        length: SIMPLE_REPLY_BYTES,
                    }),
                }
                at += SIMPLE_REPLY_BYTES;
            }
            open = reply.data.is_none();
            if let Some((buffer, start, length, blocks)) = reply.data {
                self.sending_blocks += blocks;
                segments.push(Segment {
                    buffer,
                    start,
                    length,
                });
            }
        }
    }

    /// Everything that was moved to segments has been sent; what it took of the budget for reads.
    pub fn sent(&mut self) -> u32 {
        std::mem::take(&mut self.sending_blocks)
    }

    /// Forgets everything; what it took of the budget for reads.
    pub fn clear(&mut self) -> u32 {
        let waiting: u32 = self
            .waiting
            .drain(..)
            .filter_map(|reply| reply.data.map(|(.., blocks)| blocks))
            .sum();
        waiting + self.sent()
    }
}

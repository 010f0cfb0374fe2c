//! Replies to a client that wait to be sent, and the memory that their heads are written to.

use std::collections::VecDeque;

use replicator::memory::Buffer;
use replicator::types::BLOCK_BYTES;

use super::client::JOBS_MAX;
use super::pool::{Pool, PoolBuffer};
use super::ring::{SEGMENTS_MAX, Segment, Segments};
use crate::nbd::{Cookie, Extents, HEAD_BYTES_MAX, Head, NbdError};

/// How many replies may wait before no more requests are taken in.
pub const REPLIES_MAX: usize = 128;

/// In how many chunks the answer to one piece of a read is sent at most.
const CHUNKS_MAX: usize = 4;

const _: () = assert!(HEAD_BYTES_MAX <= BLOCK_BYTES);

/// What was read.
#[derive(Debug)]
pub struct Data {
    /// The memory.
    pub buffer: PoolBuffer,
    /// The first byte in it.
    pub start: usize,
    /// How many bytes.
    pub length: usize,
    /// What it takes of the budget for reads.
    pub blocks: u32,
}

/// Which part of a read some data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Where in the export the data begins.
    pub offset: u64,
    /// Whether it is the first part.
    pub first: bool,
    /// Whether it is the last part.
    pub last: bool,
    /// Whether the client wants it in one piece.
    pub whole: bool,
}

/// Something to send: a head, data, or both.
#[derive(Debug)]
struct Reply {
    cookie: Cookie,
    head: Option<Head>,
    data: Option<Data>,
}

/// Replies in the order of sending.
#[derive(Debug)]
pub struct Replies {
    /// Whether they are made of chunks.
    structured: bool,
    waiting: VecDeque<Reply>,
    heads: PoolBuffer,
    /// What the data that is being sent takes of the budget.
    sending_blocks: u32,
}

impl Replies {
    /// No replies, with memory from `pool`; `None` if that is used up.
    pub fn new(pool: &Pool, structured: bool) -> Option<Self> {
        // Those of requests that are being worked on come on top of the bound.
        let chunks = if structured { CHUNKS_MAX } else { 1 };
        Some(Self {
            structured,
            waiting: VecDeque::with_capacity(REPLIES_MAX + JOBS_MAX * chunks),
            heads: pool.alloc_connection(1)?,
            sending_blocks: 0,
        })
    }

    /// Whether an error can be told after some of a read was sent.
    pub fn can_fail_late(&self) -> bool {
        self.structured
    }

    fn push(&mut self, cookie: Cookie, head: Head) {
        self.waiting.push_back(Reply {
            cookie,
            head: Some(head),
            data: None,
        });
    }

    /// Success without data.
    pub fn done(&mut self, cookie: Cookie) {
        let head = if self.structured {
            Head::Done
        } else {
            Head::Simple(Ok(()))
        };
        self.push(cookie, head);
    }

    /// Failure, with a sentence for those who can be told one.
    pub fn error(&mut self, cookie: Cookie, error: NbdError, text: &'static str) {
        let head = if self.structured {
            Head::Error { error, text }
        } else {
            Head::Simple(Err(error))
        };
        self.push(cookie, head);
    }

    /// The answer to BLOCK_STATUS, which only those ask who get chunks.
    pub fn status(&mut self, cookie: Cookie, extents: Box<Extents>) {
        self.push(cookie, Head::Status(extents));
    }

    /// What was read, or a part of it. Parts come in order, and nothing comes between them where there are no chunks. What
    /// it takes of the budget for reads, if it need not be sent.
    pub fn read(&mut self, cookie: Cookie, place: Place, data: Data) -> u32 {
        if !self.structured {
            self.waiting.push_back(Reply {
                cookie,
                head: place.first.then_some(Head::Simple(Ok(()))),
                data: Some(data),
            });
            return 0;
        }
        let Data {
            buffer,
            start,
            length,
            blocks,
        } = data;
        let (mut at, mut chunks, mut has_data) = (0, 0, false);
        while at < length {
            let rest = &buffer.bytes()[start + at..start + length];
            let offset = place.offset + at as u64;
            let (mut bytes, zero) = if place.whole {
                (rest.len(), false)
            } else {
                run(rest, offset)
            };
            chunks += 1;
            let split = chunks == CHUNKS_MAX && bytes < rest.len();
            if split {
                bytes = rest.len();
            }
            let len = u32::try_from(bytes).expect("a piece is small");
            at += bytes;
            let last = place.last && at == length;
            if zero && !split {
                self.push(cookie, Head::Hole { offset, len, last });
                continue;
            }
            self.waiting.push_back(Reply {
                cookie,
                head: Some(Head::Data { offset, len, last }),
                data: Some(Data {
                    buffer: buffer.clone(),
                    start: start + at - bytes,
                    length: bytes,
                    blocks: 0,
                }),
            });
            has_data = true;
        }
        // The memory is free when the last of the data has been sent.
        let newest = self.waiting.iter_mut().rev();
        match newest.filter_map(|reply| reply.data.as_mut()).next() {
            Some(data) if has_data => {
                data.blocks = blocks;
                0
            }
            _ => blocks,
        }
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
        let arena = self.heads.bytes_mut();
        let (mut count, mut used, mut pieces) = (0, 0, 0);
        // Neighbouring heads are one piece.
        let mut open = false;
        for reply in &self.waiting {
            let head_bytes = reply.head.as_ref().map_or(0, Head::bytes);
            let needed = usize::from(head_bytes > 0 && !open) + usize::from(reply.data.is_some());
            if pieces + needed > SEGMENTS_MAX || used + head_bytes > BLOCK_BYTES {
                break;
            }
            if let Some(head) = &reply.head {
                used += head.encode(reply.cookie, &mut arena[used..]);
            }
            open = reply.data.is_none();
            pieces += needed;
            count += 1;
        }
        let mut at = 0;
        let mut open = false;
        for reply in self.waiting.drain(..count) {
            if let Some(head) = &reply.head {
                let length = head.bytes();
                match segments.last_mut() {
                    Some(last) if open => last.length += length,
                    _ => segments.push(Segment {
                        buffer: self.heads.clone(),
                        start: at,
                        length,
                    }),
                }
                at += length;
            }
            open = reply.data.is_none();
            if let Some(data) = reply.data {
                self.sending_blocks += data.blocks;
                segments.push(Segment {
                    buffer: data.buffer,
                    start: data.start,
                    length: data.length,
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
            .filter_map(|reply| reply.data.map(|data| data.blocks))
            .sum();
        waiting + self.sent()
    }
}

/// How many bytes from the front on are zeroes, or are not, and which of both. Looked at in whole blocks, as they lie in
/// the export.
fn run(bytes: &[u8], offset: u64) -> (usize, bool) {
    let first = BLOCK_BYTES - (offset % BLOCK_BYTES as u64) as usize;
    let (first, rest) = bytes.split_at(first.min(bytes.len()));
    let zero = is_zero(first);
    let more = rest.chunks(BLOCK_BYTES);
    let more = more.take_while(|block| is_zero(block) == zero);
    (first.len() + more.map(<[u8]>::len).sum::<usize>(), zero)
}

fn is_zero(bytes: &[u8]) -> bool {
    // Without a way out in the inner loop it is done many bytes at a time.
    let is_zero = |chunk: &[u8]| chunk.iter().fold(0, |all, byte| all | byte) == 0;
    bytes.chunks(256).all(is_zero)
}

#[cfg(test)]
mod tests;

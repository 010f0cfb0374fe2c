//! Replies as they travel: simple ones, or chunks for a client that asked for structured replies.
//!
//! A [`Head`] is everything of a reply but the bytes of a READ, which follow it from where they are. With structured replies
//! every answer is made of chunks, also where the protocol would allow a simple one: there is one way for each client.

use arrayvec::ArrayVec;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::protocol::{
    ALLOCATION_CONTEXT_ID, CHUNK_FLAG_DONE, CHUNK_MAGIC, ChunkType, Cookie, NbdError,
};
use super::wire::{
    CHUNK_HEADER_BYTES, ChunkHeader, ErrorChunk, ExtentStatus, HoleChunk, simple_reply,
};

/// The most extents in one answer to BLOCK_STATUS. A client asks again from where they end.
pub const EXTENTS_MAX: usize = 128;

/// The longest text in an error, in bytes.
pub const TEXT_BYTES_MAX: usize = 160;

/// The most bytes of a [`Head`].
pub const HEAD_BYTES_MAX: usize =
    CHUNK_HEADER_BYTES + size_of::<U32>() + EXTENTS_MAX * size_of::<ExtentStatus>();

const _: () =
    assert!(HEAD_BYTES_MAX >= CHUNK_HEADER_BYTES + size_of::<ErrorChunk>() + TEXT_BYTES_MAX);

/// A part of an export with one status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// How many bytes; never 0.
    pub len: u32,
    /// [`STATE_HOLE`](super::protocol::STATE_HOLE) and [`STATE_ZERO`](super::protocol::STATE_ZERO).
    pub status: u32,
}

/// Consecutive extents, at least one.
pub type Extents = ArrayVec<Extent, EXTENTS_MAX>;

/// Everything of a reply, or of a part of one, but the data of a READ.
#[derive(Clone, Debug)]
pub enum Head {
    /// A simple reply. After a READ that succeeded all of its data must follow: once this says success there is no way left
    /// to report an error but to disconnect.
    Simple(Result<(), NbdError>),
    /// A chunk whose data follows.
    Data {
        /// The first byte.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Whether it is the last one of its reply.
        last: bool,
    },
    /// A chunk that stands for zeroes.
    Hole {
        /// The first byte.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Whether it is the last one of its reply.
        last: bool,
    },
    /// The end of a reply.
    Done,
    /// The end of a reply: the request failed.
    Error {
        /// How.
        error: NbdError,
        /// Why, for people.
        text: &'static str,
    },
    /// The answer to BLOCK_STATUS.
    Status(Box<Extents>),
}

impl Head {
    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        let mut counted = Bytes(None, 0);
        self.write(Cookie(0), &mut counted);
        counted.1
    }

    /// Writes it to the front of `into`, which has room for it; how many bytes it took.
    pub fn encode(&self, cookie: Cookie, into: &mut [u8]) -> usize {
        let mut bytes = Bytes(Some(into), 0);
        self.write(cookie, &mut bytes);
        bytes.1
    }

    fn write(&self, cookie: Cookie, bytes: &mut Bytes<'_>) {
        let chunk = |chunk: ChunkType, last: bool, len: usize| ChunkHeader {
            magic: CHUNK_MAGIC.into(),
            flags: U16::new(if last { CHUNK_FLAG_DONE } else { 0 }),
            chunk: chunk.to_wire().into(),
            cookie: cookie.0.into(),
            len: U32::new(len as u32),
        };
        match self {
            Self::Simple(result) => bytes.put(&simple_reply(cookie, *result)),
            Self::Data { offset, len, last } => {
                let payload_bytes = size_of::<U64>() + *len as usize;
                bytes.put(&chunk(ChunkType::Data, *last, payload_bytes));
                bytes.put(&U64::new(*offset));
            }
            Self::Hole { offset, len, last } => {
                bytes.put(&chunk(ChunkType::Hole, *last, size_of::<HoleChunk>()));
                bytes.put(&HoleChunk {
                    offset: (*offset).into(),
                    len: (*len).into(),
                });
            }
            Self::Done => bytes.put(&chunk(ChunkType::None, true, 0)),
            Self::Error { error, text } => {
                let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
                let payload_bytes = size_of::<ErrorChunk>() + text.len();
                bytes.put(&chunk(ChunkType::Error, true, payload_bytes));
                bytes.put(&ErrorChunk {
                    error: error.to_wire().into(),
                    text_len: U16::new(text.len() as u16),
                });
                bytes.put(text.as_bytes());
            }
            Self::Status(extents) => {
                let payload_bytes = size_of::<U32>() + extents.len() * size_of::<ExtentStatus>();
                bytes.put(&chunk(ChunkType::BlockStatus, true, payload_bytes));
                bytes.put(&U32::new(ALLOCATION_CONTEXT_ID));
                for extent in extents.iter() {
                    bytes.put(&ExtentStatus {
                        len: extent.len.into(),
                        status: extent.status.into(),
                    });
                }
            }
        }
    }
}

/// Where bytes go, if anywhere, and how many there were.
struct Bytes<'a>(Option<&'a mut [u8]>, usize);

impl Bytes<'_> {
    fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, value: &T) {
        let value = value.as_bytes();
        if let Some(into) = &mut self.0 {
            into[self.1..self.1 + value.len()].copy_from_slice(value);
        }
        self.1 += value.len();
    }
}

#[cfg(test)]
mod tests;

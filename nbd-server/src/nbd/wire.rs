//! The protocol's structures of fixed size, byte for byte as they travel.
//!
//! Everything is big-endian and unaligned, so any byte sequence of the right length is a value;
//! whether it makes sense is checked by the reader.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use super::protocol::{CommandFlags, Cookie, NbdError, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC};

/// The server's first bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Greeting {
    /// [`GREETING_MAGIC`](super::protocol::GREETING_MAGIC).
    pub magic: U64,
    /// [`OPTION_MAGIC`](super::protocol::OPTION_MAGIC).
    pub option_magic: U64,
    /// Handshake flags.
    pub flags: U16,
}

/// What precedes the data of an option.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionHeader {
    /// [`OPTION_MAGIC`](super::protocol::OPTION_MAGIC).
    pub magic: U64,
    /// An [`OptionCode`](super::protocol::OptionCode).
    pub option: U32,
    /// Bytes of data that follow.
    pub len: U32,
}

/// What precedes the data of a reply to an option.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionReplyHeader {
    /// [`OPTION_REPLY_MAGIC`](super::protocol::OPTION_REPLY_MAGIC).
    pub magic: U64,
    /// The option that this answers.
    pub option: U32,
    /// A [`ReplyCode`](super::protocol::ReplyCode).
    pub reply: U32,
    /// Bytes of data that follow.
    pub len: U32,
}

/// Data of a [`ReplyCode::Info`](super::protocol::ReplyCode::Info) of type [`InfoType::Export`](super::protocol::InfoType::Export).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExportInfo {
    /// [`InfoType::Export`](super::protocol::InfoType::Export).
    pub info: U16,
    /// The export's size in bytes.
    pub size: U64,
    /// [`TransmissionFlags`](super::protocol::TransmissionFlags).
    pub flags: U16,
}

/// Data of a [`ReplyCode::Info`](super::protocol::ReplyCode::Info) of type [`InfoType::BlockSize`](super::protocol::InfoType::BlockSize). All sizes are in bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlockSizeInfo {
    /// [`InfoType::BlockSize`](super::protocol::InfoType::BlockSize).
    pub info: U16,
    /// Offsets and lengths must be multiples of this.
    pub min: U32,
    /// Offsets and lengths should be multiples of this.
    pub preferred: U32,
    /// No payload may be longer than this.
    pub max: U32,
}

/// The answer to EXPORT_NAME, without the zeroes at its end.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExportNameReply {
    /// The export's size in bytes.
    pub size: U64,
    /// [`TransmissionFlags`](super::protocol::TransmissionFlags).
    pub flags: U16,
}

/// A request of the transmission phase.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    /// [`REQUEST_MAGIC`].
    pub magic: U32,
    /// [`CommandFlags`].
    pub flags: U16,
    /// A [`Command`](super::protocol::Command).
    pub command: U16,
    /// The client's name for the request.
    pub cookie: U64,
    /// Where the byte range starts.
    pub offset: U64,
    /// How many bytes it has.
    pub len: U32,
}

/// A simple reply of the transmission phase, without the payload of a successful READ.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SimpleReplyHeader {
    /// [`SIMPLE_REPLY_MAGIC`].
    pub magic: U32,
    /// Zero, or an [`NbdError`].
    pub error: U32,
    /// The request's cookie.
    pub cookie: U64,
}

/// What precedes the payload of a chunk of a structured reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkHeader {
    /// [`CHUNK_MAGIC`](super::protocol::CHUNK_MAGIC).
    pub magic: U32,
    /// [`CHUNK_FLAG_DONE`](super::protocol::CHUNK_FLAG_DONE), or nothing.
    pub flags: U16,
    /// A [`ChunkType`](super::protocol::ChunkType).
    pub chunk: U16,
    /// The request's cookie.
    pub cookie: U64,
    /// Bytes of payload that follow.
    pub len: U32,
}

/// Payload of a [`ChunkType::Hole`](super::protocol::ChunkType::Hole).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HoleChunk {
    /// The first byte.
    pub offset: U64,
    /// How many bytes.
    pub len: U32,
}

/// Beginning of the payload of a [`ChunkType::Error`](super::protocol::ChunkType::Error); a text follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ErrorChunk {
    /// An [`NbdError`].
    pub error: U32,
    /// Bytes of text.
    pub text_len: U16,
}

/// One extent in a [`ChunkType::BlockStatus`](super::protocol::ChunkType::BlockStatus), behind the context's number.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentStatus {
    /// How many bytes.
    pub len: U32,
    /// What holds for them.
    pub status: U32,
}

/// Bytes of a [`RequestHeader`].
pub const REQUEST_BYTES: usize = size_of::<RequestHeader>();
/// Bytes of a [`SimpleReplyHeader`].
pub const SIMPLE_REPLY_BYTES: usize = size_of::<SimpleReplyHeader>();
/// Bytes of a [`ChunkHeader`].
pub const CHUNK_HEADER_BYTES: usize = size_of::<ChunkHeader>();

const _: () = assert!(size_of::<Greeting>() == 18);
const _: () = assert!(size_of::<OptionHeader>() == 16);
const _: () = assert!(size_of::<OptionReplyHeader>() == 20);
const _: () = assert!(size_of::<ExportInfo>() == 12);
const _: () = assert!(size_of::<BlockSizeInfo>() == 14);
const _: () = assert!(size_of::<ExportNameReply>() == 10);
const _: () = assert!(REQUEST_BYTES == 28);
const _: () = assert!(SIMPLE_REPLY_BYTES == 16);
const _: () = assert!(CHUNK_HEADER_BYTES == 20);
const _: () = assert!(size_of::<HoleChunk>() == 12);
const _: () = assert!(size_of::<ErrorChunk>() == 6);
const _: () = assert!(size_of::<ExtentStatus>() == 8);

/// The 16 bytes that answer a request. After a READ that succeeded its data must follow, all of
/// it: once this header says success there is no way left to report an error but to disconnect.
pub fn simple_reply(cookie: Cookie, result: Result<(), NbdError>) -> [u8; SIMPLE_REPLY_BYTES] {
    let error = result.err().map_or(0, NbdError::to_wire);
    transmute!(SimpleReplyHeader {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: cookie.0.into(),
    })
}

/// The 28 bytes of a request, as a client sends it. Takes numbers that no command has, too: what
/// a server does with those is worth a test.
pub fn request(
    command: u16,
    flags: CommandFlags,
    cookie: Cookie,
    offset: u64,
    len: u32,
) -> [u8; REQUEST_BYTES] {
    transmute!(RequestHeader {
        magic: REQUEST_MAGIC.into(),
        flags: flags.to_wire().into(),
        command: command.into(),
        cookie: cookie.0.into(),
        offset: offset.into(),
        len: len.into(),
    })
}

#[cfg(test)]
mod tests;

//! The protocol's numbers, and names for them.
//!
//! Nothing here decides anything; that is the business of [`negotiation`](super::negotiation) and
//! [`transmission`](super::transmission). A number from outside that has no name here stays what it
//! is, as `Other` or `None`: it is up to the reader what to make of it.

use thiserror::Error;

/// First eight bytes of a server's greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the greeting and the start of every option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every (compact) request of the transmission phase.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of every simple reply of the transmission phase.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of every chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Flag of a chunk: it is the last one of its reply.
pub const CHUNK_FLAG_DONE: u16 = 1 << 0;

/// The one metadata context that there is: which ranges are allocated, and which read as zeroes.
pub const ALLOCATION_CONTEXT: &str = "base:allocation";
/// The number that stands for it in transmission.
pub const ALLOCATION_CONTEXT_ID: u32 = 1;
/// Status of an extent in it: not allocated in the store.
pub const STATE_HOLE: u32 = 1 << 0;
/// Status of an extent in it: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// Handshake flag, server and client: option replies and errors exist.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag, server and client: no 124 zero bytes after the answer to EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Longest string that the protocol allows in either direction, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;
/// Zero bytes that end the answer to EXPORT_NAME unless both sides agreed to leave them out.
pub const EXPORT_NAME_ZEROES_BYTES: usize = 124;

/// Smallest unit of offset and length, in bytes: any byte range is served.
pub const BLOCK_BYTES_MIN: u32 = 1;
/// Offsets and lengths in multiples of this cost least, in bytes.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Largest payload of one READ or WRITE, in bytes. TRIM and WRITE_ZEROES carry no payload and may
/// be longer.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Longest READ that is answered in one piece when a client insists on that (DF), in bytes. The protocol asks for 64 KiB.
pub const UNFRAGMENTED_BYTES_MAX: u32 = 1 << 20;

const _: () = assert!(BLOCK_BYTES_PREFERRED.is_power_of_two() && BLOCK_BYTES_PREFERRED >= 512);
const _: () = assert!(PAYLOAD_BYTES_MAX.is_multiple_of(BLOCK_BYTES_PREFERRED));

/// An option that a client may send before the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionCode {
    /// Choose an export the old way; no error can be answered.
    ExportName,
    /// End the negotiation in good order.
    Abort,
    /// Ask for the names of all exports.
    List,
    /// Withdrawn from the protocol.
    PeekExport,
    /// Switch to TLS.
    StartTls,
    /// Ask about an export without choosing it.
    Info,
    /// Ask about an export and choose it.
    Go,
    /// Ask for replies in chunks.
    StructuredReply,
    /// Ask which metadata contexts exist.
    ListMetaContext,
    /// Choose metadata contexts.
    SetMetaContext,
    /// Ask for 64-bit request headers.
    ExtendedHeaders,
    /// A number that this server does not know.
    Other(u32),
}

impl OptionCode {
    /// The option with this number on the wire.
    pub fn from_wire(code: u32) -> Self {
        match code {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            4 => Self::PeekExport,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            other => Self::Other(other),
        }
    }

    /// The option's number on the wire.
    pub fn to_wire(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::PeekExport => 4,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::ExtendedHeaders => 11,
            Self::Other(code) => code,
        }
    }
}

/// The type of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyCode {
    /// Done; nothing more follows for this option.
    Ack,
    /// One export's name (answer to LIST).
    Server,
    /// One piece of information about an export (answer to INFO and GO).
    Info,
    /// One metadata context (answer to LIST_META_CONTEXT and SET_META_CONTEXT).
    MetaContext,
    /// The option is not supported.
    ErrUnsup,
    /// The server's policy or present state forbids it.
    ErrPolicy,
    /// The option's data does not make sense.
    ErrInvalid,
    /// Not supported on this platform.
    ErrPlatform,
    /// TLS has to be started first.
    ErrTlsReqd,
    /// There is no such export.
    ErrUnknown,
    /// The server is shutting down.
    ErrShutdown,
    /// The client has to ask for the block sizes.
    ErrBlockSizeReqd,
    /// The request is too large to be handled.
    ErrTooBig,
    /// Extended headers have to be chosen first.
    ErrExtHeaderReqd,
    /// A number that we do not know.
    Other(u32),
}

/// Set in the type of every reply that reports an error.
pub const REPLY_ERROR_BIT: u32 = 1 << 31;

impl ReplyCode {
    /// The reply type with this number on the wire.
    pub fn from_wire(code: u32) -> Self {
        match code {
            1 => Self::Ack,
            2 => Self::Server,
            3 => Self::Info,
            4 => Self::MetaContext,
            0x8000_0001 => Self::ErrUnsup,
            0x8000_0002 => Self::ErrPolicy,
            0x8000_0003 => Self::ErrInvalid,
            0x8000_0004 => Self::ErrPlatform,
            0x8000_0005 => Self::ErrTlsReqd,
            0x8000_0006 => Self::ErrUnknown,
            0x8000_0007 => Self::ErrShutdown,
            0x8000_0008 => Self::ErrBlockSizeReqd,
            0x8000_0009 => Self::ErrTooBig,
            0x8000_000a => Self::ErrExtHeaderReqd,
            other => Self::Other(other),
        }
    }

    /// The reply type's number on the wire.
    pub fn to_wire(self) -> u32 {
        match self {
            Self::Ack => 1,
            Self::Server => 2,
            Self::Info => 3,
            Self::MetaContext => 4,
            Self::ErrUnsup => REPLY_ERROR_BIT | 1,
            Self::ErrPolicy => REPLY_ERROR_BIT | 2,
            Self::ErrInvalid => REPLY_ERROR_BIT | 3,
            Self::ErrPlatform => REPLY_ERROR_BIT | 4,
            Self::ErrTlsReqd => REPLY_ERROR_BIT | 5,
            Self::ErrUnknown => REPLY_ERROR_BIT | 6,
            Self::ErrShutdown => REPLY_ERROR_BIT | 7,
            Self::ErrBlockSizeReqd => REPLY_ERROR_BIT | 8,
            Self::ErrTooBig => REPLY_ERROR_BIT | 9,
            Self::ErrExtHeaderReqd => REPLY_ERROR_BIT | 10,
            Self::Other(code) => code,
        }
    }

    /// Whether this reply reports an error.
    pub fn is_error(self) -> bool {
        self.to_wire() & REPLY_ERROR_BIT != 0
    }
}

/// What a piece of information about an export is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoType {
    /// Size and transmission flags; part of every positive answer.
    Export,
    /// The export's own name.
    Name,
    /// A text for people.
    Description,
    /// Minimum and preferred block size, and the largest payload.
    BlockSize,
    /// A number that we do not know; to be ignored.
    Other(u16),
}

impl InfoType {
    /// The information type with this number on the wire.
    pub fn from_wire(code: u16) -> Self {
        match code {
            0 => Self::Export,
            1 => Self::Name,
            2 => Self::Description,
            3 => Self::BlockSize,
            other => Self::Other(other),
        }
    }

    /// The information type's number on the wire.
    pub fn to_wire(self) -> u16 {
        match self {
            Self::Export => 0,
            Self::Name => 1,
            Self::Description => 2,
            Self::BlockSize => 3,
            Self::Other(code) => code,
        }
    }
}

/// What an export can do, as told to the client at the end of the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransmissionFlags(u16);

impl TransmissionFlags {
    /// The field is meaningful; always set.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// Writes are refused.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// FLUSH is understood.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// FUA is understood, on every command.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// TRIM is understood.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// WRITE_ZEROES and NO_HOLE are understood.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// DF is understood.
    pub const SEND_DF: Self = Self(1 << 7);
    /// FLUSH and FUA hold across all connections to the export.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// CACHE is understood.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);

    /// What every export of this server can do.
    pub const SERVED: Self = Self(
        Self::HAS_FLAGS.0
            | Self::SEND_FLUSH.0
            | Self::SEND_FUA.0
            | Self::SEND_TRIM.0
            | Self::SEND_WRITE_ZEROES.0
            | Self::CAN_MULTI_CONN.0
            | Self::SEND_CACHE.0
            | Self::SEND_FAST_ZERO.0,
    );

    /// What every export can do for a client that takes structured replies.
    pub const SERVED_STRUCTURED: Self = Self(Self::SERVED.0 | Self::SEND_DF.0);

    /// The flags with this number on the wire; unknown bits are kept.
    pub fn from_wire(bits: u16) -> Self {
        Self(bits)
    }

    /// The flags' number on the wire.
    pub fn to_wire(self) -> u16 {
        self.0
    }

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A command of the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read a byte range.
    Read,
    /// Write a byte range; its payload follows the request.
    Write,
    /// End the connection once all replies are out.
    Disconnect,
    /// Make all answered writes durable.
    Flush,
    /// A byte range is not needed any more.
    Trim,
    /// Prefetch.
    Cache,
    /// Write zeroes without a payload.
    WriteZeroes,
    /// Ask for metadata.
    BlockStatus,
    /// Withdrawn from the protocol; not offered.
    Resize,
}

impl Command {
    /// The command with this number on the wire, if there is one.
    pub fn from_wire(code: u16) -> Option<Self> {
        Some(match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            8 => Self::Resize,
            _ => return None,
        })
    }

    /// The command's number on the wire.
    pub fn to_wire(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Resize => 8,
        }
    }
}

/// The flags of one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandFlags(u16);

impl CommandFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Reply only when this command's data is durable.
    pub const FUA: Self = Self(1 << 0);
    /// Zeroes must be allocated.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// Do not split the answer; structured replies only.
    pub const DF: Self = Self(1 << 2);
    /// One extent is enough; BLOCK_STATUS only.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// Write zeroes only if that is faster than writing them.
    pub const FAST_ZERO: Self = Self(1 << 4);
    /// The length is a payload's; extended headers only.
    pub const PAYLOAD_LEN: Self = Self(1 << 5);

    /// The flags with this number on the wire; unknown bits are kept.
    pub fn from_wire(bits: u16) -> Self {
        Self(bits)
    }

    /// The flags' number on the wire.
    pub fn to_wire(self) -> u16 {
        self.0
    }

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `self` if `condition` holds, else none.
    #[must_use]
    pub fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }
}

/// An error that a reply can carry: the only numbers that the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NbdError {
    /// EPERM.
    #[error("operation not permitted (EPERM)")]
    Perm,
    /// EIO.
    #[error("input/output error (EIO)")]
    Io,
    /// ENOMEM.
    #[error("out of memory (ENOMEM)")]
    NoMem,
    /// EINVAL.
    #[error("invalid argument (EINVAL)")]
    Inval,
    /// ENOSPC.
    #[error("no space left (ENOSPC)")]
    NoSpc,
    /// EOVERFLOW.
    #[error("value too large (EOVERFLOW)")]
    Overflow,
    /// ENOTSUP.
    #[error("operation not supported (ENOTSUP)")]
    NotSup,
    /// ESHUTDOWN. A kernel client turns it into an I/O error at once: closing the connection is
    /// what makes it wait and resend.
    #[error("server is shutting down (ESHUTDOWN)")]
    Shutdown,
}

impl NbdError {
    /// The error with this number on the wire. A number that the protocol does not list counts as
    /// EINVAL, as the specification asks of clients. Zero, which is no error, gives `None`.
    pub fn from_wire(code: u32) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            28 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Inval,
        })
    }

    /// The error's number on the wire.
    pub fn to_wire(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// What to tell a client when a system call failed with this `errno`. What the protocol has no
    /// number for becomes EIO.
    pub fn from_errno(errno: i32) -> Self {
        const EFBIG: i32 = 27;
        const EDQUOT: i32 = 122;
        match errno {
            1 => Self::Perm,
            12 => Self::NoMem,
            22 => Self::Inval,
            28 | EFBIG | EDQUOT => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

/// The type of a chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkType {
    /// Nothing; ends a reply.
    None,
    /// A part of what was read.
    Data,
    /// A part of what was read, all zeroes.
    Hole,
    /// Extents of a metadata context.
    BlockStatus,
    /// The request failed.
    Error,
    /// The request failed at an offset; not used here.
    ErrorOffset,
    /// A number that we do not know.
    Other(u16),
}

impl ChunkType {
    /// The chunk type with this number on the wire.
    pub fn from_wire(code: u16) -> Self {
        match code {
            0 => Self::None,
            1 => Self::Data,
            2 => Self::Hole,
            5 => Self::BlockStatus,
            0x8001 => Self::Error,
            0x8002 => Self::ErrorOffset,
            other => Self::Other(other),
        }
    }

    /// The chunk type's number on the wire.
    pub fn to_wire(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Data => 1,
            Self::Hole => 2,
            Self::BlockStatus => 5,
            Self::Error => 0x8001,
            Self::ErrorOffset => 0x8002,
            Self::Other(code) => code,
        }
    }
}

/// The client's name for a request; a reply carries it back unchanged. Opaque to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

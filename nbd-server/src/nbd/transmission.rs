//! Requests: from bytes to operations that are known to lie within the export.
//!
//! This is the only place that validates a request. The order of the checks decides which error a
//! client sees: magic, payload that is too long to skip, command, flags, length, range.

use thiserror::Error;
use zerocopy::FromBytes;

use super::protocol::{Command, CommandFlags, Cookie, NbdError, PAYLOAD_BYTES_MAX, REQUEST_MAGIC};
use super::wire::{REQUEST_BYTES, RequestHeader};

/// What the client's bytes amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransmissionEvent {
    /// All of the input was taken; more is needed.
    NeedInput,
    /// A valid request, with more than zero bytes unless it is a FLUSH.
    Request(Request),
    /// A valid request about zero bytes: answer it with success, now. There is nothing to order or
    /// to make durable, so it does not reach the core.
    Done {
        /// The request's cookie.
        cookie: Cookie,
    },
    /// A request that can not be served: answer it with `error`. The reply may leave at once.
    Reject {
        /// The request's cookie.
        cookie: Cookie,
        /// What to answer.
        error: NbdError,
        /// Bytes of payload that follow the request. The session throws them away itself, out of
        /// the input of the next calls.
        skip_bytes: u32,
    },
    /// The client is going: take no more from it, let all outstanding requests finish, send their
    /// replies, then close. Repeated by every further call.
    Disconnect,
    /// The stream makes no sense any more: close, without waiting for anything. Repeated by every
    /// further call.
    Fatal(FatalReason),
}

/// A request within the bounds of its export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it; goes into the reply. Clients may use one twice at a time.
    pub cookie: Cookie,
    /// What to do.
    pub op: Op,
}

/// What a request asks for. Offsets and lengths are in bytes and of any alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read `1..=`[`PAYLOAD_BYTES_MAX`] bytes.
    Read {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Write `1..=`[`PAYLOAD_BYTES_MAX`] bytes, which are the next `len` bytes of the stream.
    Write {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Reply only when the data is durable.
        fua: bool,
    },
    /// Make everything durable that was answered before, on whichever connection.
    Flush,
    /// Forget up to 4 GiB - 1 bytes.
    Trim {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Reply only when the effect is durable.
        fua: bool,
    },
    /// Write up to 4 GiB - 1 zero bytes.
    WriteZeroes {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Reply only when the zeroes are durable.
        fua: bool,
        /// Keep the range allocated.
        no_hole: bool,
    },
}

/// Why a connection in transmission can not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FatalReason {
    /// A request does not start with its magic number.
    #[error("request starts with {0:#010x} and not with the magic number")]
    BadMagic(u32),
    /// A WRITE has more payload than is worth reading for the sake of an error.
    #[error("write of {len} bytes is longer than what is read and thrown away")]
    PayloadTooLong {
        /// The payload's length in bytes.
        len: u32,
    },
    /// The session never got to transmission: a mistake of the caller.
    #[error("the session is not in transmission")]
    NotInTransmission,
}

/// The transmission phase of one connection.
#[derive(Debug)]
pub(super) struct Transmission {
    size_bytes: u64,
    payload_bytes_max: u32,
    skip_bytes_left: u32,
    ended: Option<TransmissionEvent>,
    partial: [u8; REQUEST_BYTES],
    partial_bytes: usize,
}

impl Transmission {
    /// The phase on an export of `size_bytes`. WRITEs of more than `skip_bytes_max` are fatal.
    pub(super) fn new(size_bytes: u64, skip_bytes_max: u32) -> Self {
        Self {
            size_bytes,
            payload_bytes_max: skip_bytes_max.max(PAYLOAD_BYTES_MAX),
            skip_bytes_left: 0,
            ended: None,
            partial: [0; REQUEST_BYTES],
            partial_bytes: 0,
        }
    }

    /// Takes bytes up to the end of one request; says how many it took and what it found.
    pub(super) fn step(&mut self, input: &[u8]) -> (usize, TransmissionEvent) {
        if let Some(event) = self.ended {
            return (0, event);
        }
        let skipped = input.len().min(self.skip_bytes_left as usize);
        self.skip_bytes_left -= skipped as u32;
        let rest = &input[skipped..];

        let missing = REQUEST_BYTES - self.partial_bytes;
        if rest.len() < missing {
            self.partial[self.partial_bytes..][..rest.len()].copy_from_slice(rest);
            self.partial_bytes += rest.len();
            return (input.len(), TransmissionEvent::NeedInput);
        }
        // Requests that are whole in the input, nearly all of them, are not copied.
        let header = if self.partial_bytes == 0 {
            RequestHeader::ref_from_bytes(&rest[..REQUEST_BYTES]).copied()
        } else {
            self.partial[self.partial_bytes..].copy_from_slice(&rest[..missing]);
            self.partial_bytes = 0;
            RequestHeader::ref_from_bytes(&self.partial[..]).copied()
        };
        let header = header.expect("an unaligned structure fits a slice of its size");
        (skipped + missing, self.judge(&header))
    }

    /// What to do about one request; remembers the payload that has to be skipped, and the end.
    fn judge(&mut self, header: &RequestHeader) -> TransmissionEvent {
        if header.magic != REQUEST_MAGIC {
            return self.end(TransmissionEvent::Fatal(FatalReason::BadMagic(
                header.magic.get(),
            )));
        }
        let cookie = Cookie(header.cookie.get());
        let command = Command::from_wire(header.command.get());
        let payload_bytes = match command {
            Some(Command::Write) => header.len.get(),
            Some(Command::Disconnect) => return self.end(TransmissionEvent::Disconnect),
            _ => 0,
        };
        if payload_bytes > self.payload_bytes_max {
            let reason = FatalReason::PayloadTooLong { len: payload_bytes };
            return self.end(TransmissionEvent::Fatal(reason));
        }
        match validate(command, header, self.size_bytes) {
            Ok(Some(op)) => TransmissionEvent::Request(Request { cookie, op }),
            Ok(None) => TransmissionEvent::Done { cookie },
            Err(error) => {
                self.skip_bytes_left = payload_bytes;
                TransmissionEvent::Reject {
                    cookie,
                    error,
                    skip_bytes: payload_bytes,
                }
            }
        }
    }

    fn end(&mut self, event: TransmissionEvent) -> TransmissionEvent {
        self.ended = Some(event);
        event
    }
}

/// The operation that a request stands for on an export of `size_bytes`; `None` if it has nothing
/// to do.
fn validate(
    command: Option<Command>,
    header: &RequestHeader,
    size_bytes: u64,
) -> Result<Option<Op>, NbdError> {
    let flags = CommandFlags::from_wire(header.flags.get());
    let (offset, len) = (header.offset.get(), header.len.get());
    let fua = flags.contains(CommandFlags::FUA);
    let no_hole = flags.contains(CommandFlags::NO_HOLE);

    // FUA is offered, so every command has to accept it, also where it means nothing.
    let (op, accepted, out_of_range) = match command {
        Some(Command::Read) => (Op::Read { offset, len }, CommandFlags::FUA, NbdError::Inval),
        Some(Command::Write) => (
            Op::Write { offset, len, fua },
            CommandFlags::FUA,
            NbdError::NoSpc,
        ),
        Some(Command::Flush) => (Op::Flush, CommandFlags::FUA, NbdError::Inval),
        Some(Command::Trim) => (
            Op::Trim { offset, len, fua },
            CommandFlags::FUA,
            NbdError::Inval,
        ),
        Some(Command::WriteZeroes) => (
            Op::WriteZeroes {
                offset,
                len,
                fua,
                no_hole,
            },
            CommandFlags::FUA.with(CommandFlags::NO_HOLE),
            NbdError::NoSpc,
        ),
        _ => return Err(NbdError::Inval),
    };
    if !accepted.contains(flags) {
        return Err(NbdError::Inval);
    }
    match op {
        // Its offset and length are reserved; some clients leave rubbish there.
        Op::Flush => return Ok(Some(op)),
        Op::Read { .. } | Op::Write { .. } if len > PAYLOAD_BYTES_MAX => {
            return Err(NbdError::Inval);
        }
        _ => {}
    }
    match offset.checked_add(u64::from(len)) {
        Some(end) if end <= size_bytes => Ok((len > 0).then_some(op)),
        _ => Err(out_of_range),
    }
}

//! Requests: from bytes to operations that are known to lie within the export.
//!
//! This is the only place that validates a request. The order of the checks decides which error a
//! client sees: magic, payload that is too long to skip, command, flags, length, range.

use thiserror::Error;
use zerocopy::transmute;

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
    /// A request that can not be served: answer it with `error`. For a WRITE this comes once its
    /// payload has been read and thrown away, by this session and out of the input of any number
    /// of calls: some clients take an answer to what they are still sending for nonsense.
    Reject {
        /// The request's cookie.
        cookie: Cookie,
        /// What to answer.
        error: NbdError,
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
    skipping: Option<Skip>,
    ended: Option<TransmissionEvent>,
    partial: [u8; REQUEST_BYTES],
    partial_bytes: usize,
}

/// A WRITE that will be rejected when its payload is gone.
#[derive(Clone, Copy, Debug)]
struct Skip {
    cookie: Cookie,
    error: NbdError,
    left_bytes: u32,
}

impl Transmission {
    /// The phase on an export of `size_bytes`. WRITEs of more than `skip_bytes_max` are fatal.
    pub(super) fn new(size_bytes: u64, skip_bytes_max: u32) -> Self {
        Self {
            size_bytes,
            payload_bytes_max: skip_bytes_max.max(PAYLOAD_BYTES_MAX),
            skipping: None,
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
        let Some(skip) = self.skipping else {
            let missing = REQUEST_BYTES - self.partial_bytes;
            let Some((head, rest)) = input.split_at_checked(missing) else {
                self.partial[self.partial_bytes..][..input.len()].copy_from_slice(input);
                self.partial_bytes += input.len();
                return (input.len(), TransmissionEvent::NeedInput);
            };
            self.partial[self.partial_bytes..].copy_from_slice(head);
            self.partial_bytes = 0;
            let header: RequestHeader = transmute!(self.partial);
            return match self.judge(&header) {
                Ok(event) => (missing, event),
                Err(skip) => {
                    let (taken, event) = self.skip(skip, rest);
                    (missing + taken, event)
                }
            };
        };
        self.skip(skip, input)
    }

    /// What to do about one request, and be it the last; or the payload that has to go first.
    fn judge(&mut self, header: &RequestHeader) -> Result<TransmissionEvent, Skip> {
        if header.magic != REQUEST_MAGIC {
            let reason = FatalReason::BadMagic(header.magic.get());
            return Ok(self.end(TransmissionEvent::Fatal(reason)));
        }
        let cookie = Cookie(header.cookie.get());
        let command = Command::from_wire(header.command.get());
        let payload_bytes = match command {
            Some(Command::Write) => header.len.get(),
            Some(Command::Disconnect) => return Ok(self.end(TransmissionEvent::Disconnect)),
            _ => 0,
        };
        if payload_bytes > self.payload_bytes_max {
            let reason = FatalReason::PayloadTooLong { len: payload_bytes };
            return Ok(self.end(TransmissionEvent::Fatal(reason)));
        }
        match validate(command, header, self.size_bytes) {
            Ok(Some(op)) => Ok(TransmissionEvent::Request(Request { cookie, op })),
            Ok(None) => Ok(TransmissionEvent::Done { cookie }),
            Err(error) => Err(Skip {
                cookie,
                error,
                left_bytes: payload_bytes,
            }),
        }
    }

    /// Throws away the payload of a rejected request, as far as it is there.
    fn skip(&mut self, skip: Skip, input: &[u8]) -> (usize, TransmissionEvent) {
        let Skip {
            cookie,
            error,
            left_bytes,
        } = skip;
        let taken = input.len().min(left_bytes as usize);
        let left_bytes = left_bytes - taken as u32;
        if left_bytes > 0 {
            self.skipping = Some(Skip { left_bytes, ..skip });
            return (taken, TransmissionEvent::NeedInput);
        }
        self.skipping = None;
        (taken, TransmissionEvent::Reject { cookie, error })
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

#[cfg(test)]
mod tests;

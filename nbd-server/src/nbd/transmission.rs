//! Requests: from bytes to operations that are known to lie within the export.
//!
//! This is the only place that validates a request. The order of the checks decides which error a
//! client sees: magic, payload that is too long to skip, command, flags, length, range. With structured replies the error
//! comes with a sentence.

use thiserror::Error;
use zerocopy::transmute;

use super::protocol::{
    Command, CommandFlags, Cookie, NbdError, PAYLOAD_BYTES_MAX, REQUEST_MAGIC,
    UNFRAGMENTED_BYTES_MAX,
};
use super::session::Terms;
use super::wire::{REQUEST_BYTES, RequestHeader};

/// What the client's bytes amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransmissionEvent {
    /// All of the input was taken; more is needed.
    NeedInput,
    /// A valid request, with more than zero bytes unless it is a FLUSH.
    Request(Request),
    /// A valid request that asks for nothing: it is about zero bytes, or it is a CACHE, and there is
    /// no cache. Answer it with success, now. There is nothing to order or to make durable, so it
    /// does not reach the core.
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
        /// What is wrong, for people.
        text: &'static str,
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
        /// Answer in one piece; they are at most [`UNFRAGMENTED_BYTES_MAX`] then.
        whole: bool,
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
    /// Tell which of up to 4 GiB - 1 bytes are allocated, and which read as zeroes.
    BlockStatus {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// One extent is enough.
        one: bool,
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
    terms: Terms,
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
    text: &'static str,
    left_bytes: u32,
}

impl Transmission {
    /// The phase on an export of `size_bytes`. WRITEs of more than `skip_bytes_max` are fatal.
    pub(super) fn new(size_bytes: u64, terms: Terms, skip_bytes_max: u32) -> Self {
        Self {
            size_bytes,
            terms,
            payload_bytes_max: skip_bytes_max.max(PAYLOAD_BYTES_MAX),
            skipping: None,
            ended: None,
            partial: [0; REQUEST_BYTES],
            partial_bytes: 0,
        }
    }

    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    /// The export has another size from now on.
    pub(super) fn resize(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
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
        match validate(command, header, self.size_bytes, self.terms) {
            Ok(Some(op)) => Ok(TransmissionEvent::Request(Request { cookie, op })),
            Ok(None) => Ok(TransmissionEvent::Done { cookie }),
            Err(Refusal(error, text)) => Err(Skip {
                cookie,
                error,
                text,
                left_bytes: payload_bytes,
            }),
        }
    }

    /// Throws away the payload of a rejected request, as far as it is there.
    fn skip(&mut self, skip: Skip, input: &[u8]) -> (usize, TransmissionEvent) {
        let Skip {
            cookie,
            error,
            text,
            left_bytes,
        } = skip;
        let taken = input.len().min(left_bytes as usize);
        let left_bytes = left_bytes - taken as u32;
        if left_bytes > 0 {
            self.skipping = Some(Skip { left_bytes, ..skip });
            return (taken, TransmissionEvent::NeedInput);
        }
        self.skipping = None;
        let event = TransmissionEvent::Reject {
            cookie,
            error,
            text,
        };
        (taken, event)
    }

    fn end(&mut self, event: TransmissionEvent) -> TransmissionEvent {
        self.ended = Some(event);
        event
    }
}

/// An error, and what is wrong.
struct Refusal(NbdError, &'static str);

/// The operation that a request stands for on an export of `size_bytes`; `None` if it has nothing
/// to do.
fn validate(
    command: Option<Command>,
    header: &RequestHeader,
    size_bytes: u64,
    terms: Terms,
) -> Result<Option<Op>, Refusal> {
    let invalid = |text| Err(Refusal(NbdError::Inval, text));
    let flags = CommandFlags::from_wire(header.flags.get());
    let (offset, len) = (header.offset.get(), header.len.get());
    let fua = flags.contains(CommandFlags::FUA);
    let no_hole = flags.contains(CommandFlags::NO_HOLE);
    let whole = flags.contains(CommandFlags::DF);
    let one = flags.contains(CommandFlags::REQ_ONE);

    let mut out_of_range = NbdError::Inval;
    let mut accepted = CommandFlags::NONE;
    let op = match command {
        Some(Command::Read) => {
            accepted = CommandFlags::DF.when(terms.structured);
            Some(Op::Read { offset, len, whole })
        }
        Some(Command::Write) => {
            out_of_range = NbdError::NoSpc;
            Some(Op::Write { offset, len, fua })
        }
        Some(Command::Flush) => Some(Op::Flush),
        Some(Command::Trim) => Some(Op::Trim { offset, len, fua }),
        Some(Command::Cache) => None,
        Some(Command::WriteZeroes) => {
            out_of_range = NbdError::NoSpc;
            // Zeroes carry no payload, neither here nor to the peers: they are always fast.
            accepted = CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO);
            Some(Op::WriteZeroes {
                offset,
                len,
                fua,
                no_hole,
            })
        }
        Some(Command::BlockStatus) if terms.allocation => {
            accepted = CommandFlags::REQ_ONE;
            Some(Op::BlockStatus { offset, len, one })
        }
        Some(Command::BlockStatus) => {
            return invalid("base:allocation was not chosen for this export");
        }
        _ => return invalid("this server does not know that command"),
    };
    // FUA is offered, so every command has to accept it, also where it means nothing.
    if !accepted.with(CommandFlags::FUA).contains(flags) {
        return invalid("the command does not take those flags");
    }
    match op {
        // Its offset and length are reserved; some clients leave rubbish there.
        Some(Op::Flush) => return Ok(op),
        Some(Op::Read { .. } | Op::Write { .. }) if len > PAYLOAD_BYTES_MAX => {
            return invalid("the payload is longer than the largest block size, 32 MiB");
        }
        Some(Op::BlockStatus { .. }) if len == 0 => {
            return invalid("the status of zero bytes has no extent");
        }
        _ => {}
    }
    match offset.checked_add(u64::from(len)) {
        Some(end) if end <= size_bytes => {}
        _ => return Err(Refusal(out_of_range, "the range reaches beyond the export")),
    }
    if whole && len > UNFRAGMENTED_BYTES_MAX {
        let text = "more than 1 MiB is not read in one piece";
        return Err(Refusal(NbdError::Overflow, text));
    }
    Ok(op.filter(|_| len > 0))
}

#[cfg(test)]
mod tests;

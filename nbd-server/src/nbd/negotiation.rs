//! The fixed newstyle handshake: client flags, then options until one of them chooses an export.
//!
//! A client is a stranger here. Each option costs it bytes that it really sent, what is buffered of
//! them is bounded, and every answer leaves the stream in step or ends the connection. INFO leaves
//! no trace: a GO after it gets the same answer as one without it.

mod contexts;

use thiserror::Error;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::exports::{Export, ExportIndex, ExportTable};
use super::protocol::{
    BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, EXPORT_NAME_ZEROES_BYTES, FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES, GREETING_MAGIC, InfoType, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionCode,
    PAYLOAD_BYTES_MAX, ReplyCode, STRING_BYTES_MAX, TransmissionFlags,
};
use super::session::{Limits, Terms};
use super::wire::{
    BlockSizeInfo, ExportInfo, ExportNameReply, Greeting, OptionHeader, OptionReplyHeader,
};

/// What the owner of the socket has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NegotiationEvent {
    /// All of the input was taken; more is needed.
    NeedInput,
    /// Send the output, then go on with the rest of the input.
    Send,
    /// Send the output, then let TLS begin on this connection and go on with what it decrypts. All
    /// input was taken: bytes that came in the clear count for nothing from here on.
    StartTls,
    /// Send the output; then the connection is in transmission, beginning with the rest of the
    /// input.
    Transmission {
        /// The export that the client chose.
        export: ExportIndex,
    },
    /// Send the output, if there is any, then close.
    Close(CloseReason),
}

/// Why a negotiation ended without an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client sent ABORT: nothing is wrong.
    #[error("the client ended the negotiation")]
    Aborted,
    /// The client set a flag that was not offered.
    #[error("client flags {0:#x} contain one that was not offered")]
    BadClientFlags(u32),
    /// An option does not start with its magic number.
    #[error("option starts with {0:#018x} and not with the magic number")]
    BadOptionMagic(u64),
    /// An option has more data than is worth reading.
    #[error("option {option} has {len} bytes of data")]
    OptionTooLong {
        /// The option's number.
        option: u32,
        /// Its length in bytes.
        len: u32,
    },
    /// The client keeps asking and does not choose.
    #[error("more than {0} options on one connection")]
    TooManyOptions(u32),
    /// A client that does not know option replies sent an option that needs one.
    #[error("option {0} from a client that did not ask for the fixed newstyle protocol")]
    NotFixedNewstyle(u32),
    /// EXPORT_NAME with a name that the protocol does not allow.
    #[error("EXPORT_NAME with an invalid name")]
    InvalidName,
    /// EXPORT_NAME for an export that does not exist.
    #[error("EXPORT_NAME with the name of no export")]
    UnknownExport,
    /// EXPORT_NAME while the exports are not served here.
    #[error("EXPORT_NAME while this node does not serve the exports")]
    NotServing,
    /// EXPORT_NAME before TLS, where TLS is required.
    #[error("EXPORT_NAME before TLS")]
    TlsRequired,
}

/// What a step came to.
pub(super) enum Outcome {
    NeedInput,
    Answered,
    StartTls,
    Chosen {
        export: ExportIndex,
        size_bytes: u64,
        terms: Terms,
    },
    Close(CloseReason),
}

/// What is known about TLS on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    Unavailable,
    Required,
    Active,
}

#[derive(Clone, Copy, Debug)]
enum State {
    ClientFlags,
    Header,
    /// Collecting the data of an option whose data matters.
    Collect(Received),
    /// Dropping the data of any other option.
    Skip(Received, usize),
}

/// An option whose header has been read.
#[derive(Clone, Copy, Debug)]
struct Received {
    option: OptionCode,
    len: usize,
}

/// The negotiation phase of one connection.
#[derive(Debug)]
pub(super) struct Negotiation {
    limits: Limits,
    tls: Tls,
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which the client chose the metadata context that there is.
    allocation_of: Option<ExportIndex>,
    options: u32,
    state: State,
    buffer: Vec<u8>,
}

/// A valid INFO or GO.
struct Query<'a> {
    name: &'a str,
    name_wanted: bool,
}

impl Negotiation {
    /// A negotiation that begins with its greeting, which goes to `output`.
    pub(super) fn new(limits: Limits, tls: Tls, output: &mut Vec<u8>) -> Self {
        put(
            output,
            &Greeting {
                magic: GREETING_MAGIC.into(),
                option_magic: OPTION_MAGIC.into(),
                flags: (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).into(),
            },
        );
        Self {
            limits,
            tls,
            fixed_newstyle: false,
            no_zeroes: false,
            structured: false,
            allocation_of: None,
            options: 0,
            state: State::ClientFlags,
            buffer: Vec::new(),
        }
    }

    /// Takes bytes up to the end of one option, and answers it into `output`.
    pub(super) fn step(
        &mut self,
        input: &[u8],
        exports: &ExportTable,
        output: &mut Vec<u8>,
    ) -> (usize, Outcome) {
        let mut rest = input;
        let outcome = loop {
            match self.advance(&mut rest, exports, output) {
                Ok(Some(outcome)) => break outcome,
                Ok(None) => {}
                Err(reason) => break Outcome::Close(reason),
            }
        };
        if let Outcome::StartTls = outcome {
            rest = &[];
        }
        (input.len() - rest.len(), outcome)
    }

    /// One item of the stream. `None`: it was taken, look at the next.
    fn advance(
        &mut self,
        rest: &mut &[u8],
        exports: &ExportTable,
        output: &mut Vec<u8>,
    ) -> Result<Option<Outcome>, CloseReason> {
        match self.state {
            State::ClientFlags => {
                if !self.fill(rest, size_of::<U32>()) {
                    return Ok(Some(Outcome::NeedInput));
                }
                let flags = self.take_buffer::<U32>().get();
                if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                    return Err(CloseReason::BadClientFlags(flags));
                }
                self.fixed_newstyle = flags & u32::from(FLAG_FIXED_NEWSTYLE) != 0;
                self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
                self.state = State::Header;
                Ok(None)
            }
            State::Header => {
                if !self.fill(rest, size_of::<OptionHeader>()) {
                    return Ok(Some(Outcome::NeedInput));
                }
                let header = self.take_buffer::<OptionHeader>();
                self.state = self.admit(&header)?;
                Ok(None)
            }
            State::Collect(received) => {
                if !self.fill(rest, received.len) {
                    return Ok(Some(Outcome::NeedInput));
                }
                let data = std::mem::take(&mut self.buffer);
                self.state = State::Header;
                self.answer(received, &data, exports, output).map(Some)
            }
            State::Skip(received, left) => {
                let skipped = left.min(rest.len());
                *rest = &rest[skipped..];
                if skipped < left {
                    self.state = State::Skip(received, left - skipped);
                    return Ok(Some(Outcome::NeedInput));
                }
                self.state = State::Header;
                self.answer(received, &[], exports, output).map(Some)
            }
        }
    }

    /// Moves bytes to the buffer until it holds `wanted`; says whether it does.
    fn fill(&mut self, rest: &mut &[u8], wanted: usize) -> bool {
        let missing = wanted - self.buffer.len();
        let (head, tail) = rest.split_at(missing.min(rest.len()));
        self.buffer.extend_from_slice(head);
        *rest = tail;
        self.buffer.len() == wanted
    }

    /// Empties the buffer, which was filled with exactly a `T`.
    fn take_buffer<T: FromBytes>(&mut self) -> T {
        let value = T::read_from_bytes(&self.buffer).expect("filled to the structure's size");
        self.buffer.clear();
        value
    }

    /// Whether an option with this header is read at all, and whether its data is kept.
    fn admit(&mut self, header: &OptionHeader) -> Result<State, CloseReason> {
        if header.magic != OPTION_MAGIC {
            return Err(CloseReason::BadOptionMagic(header.magic.get()));
        }
        let (code, len) = (header.option.get(), header.len.get());
        let option = OptionCode::from_wire(code);
        if !self.fixed_newstyle && option != OptionCode::ExportName {
            return Err(CloseReason::NotFixedNewstyle(code));
        }
        if self.options == self.limits.options_max {
            return Err(CloseReason::TooManyOptions(self.limits.options_max));
        }
        self.options += 1;
        if len > self.limits.option_bytes_max {
            return Err(CloseReason::OptionTooLong { option: code, len });
        }
        let received = Received {
            option,
            len: len as usize,
        };
        let tls_missing = self.tls == Tls::Required;
        match option {
            OptionCode::ExportName if tls_missing => Err(CloseReason::TlsRequired),
            OptionCode::ExportName if received.len > STRING_BYTES_MAX => {
                Err(CloseReason::InvalidName)
            }
            OptionCode::ExportName => Ok(State::Collect(received)),
            OptionCode::Info
            | OptionCode::Go
            | OptionCode::ListMetaContext
            | OptionCode::SetMetaContext
                if !tls_missing =>
            {
                Ok(State::Collect(received))
            }
            _ => Ok(State::Skip(received, received.len)),
        }
    }

    /// Answers an option. `data` is what was collected of it, nothing if it was skipped.
    fn answer(
        &mut self,
        received: Received,
        data: &[u8],
        exports: &ExportTable,
        output: &mut Vec<u8>,
    ) -> Result<Outcome, CloseReason> {
        use OptionCode as O;
        let mut reply = Reply {
            option: received.option,
            output,
        };
        match received.option {
            O::Abort => {
                reply.put(ReplyCode::Ack, &[]);
                return Err(CloseReason::Aborted);
            }
            O::StartTls if received.len > 0 => {
                reply.error(ReplyCode::ErrInvalid, "STARTTLS takes no data");
            }
            O::StartTls => match self.tls {
                Tls::Unavailable => reply.error(ReplyCode::ErrPolicy, "TLS is not set up here"),
                Tls::Active => reply.error(ReplyCode::ErrInvalid, "TLS is already in use"),
                Tls::Required => {
                    reply.put(ReplyCode::Ack, &[]);
                    self.tls = Tls::Active;
                    // What was agreed on in the clear may be somebody else's work.
                    self.structured = false;
                    self.allocation_of = None;
                    return Ok(Outcome::StartTls);
                }
            },
            O::ExportName => return self.open_by_name(data, exports, output),
            _ if self.tls == Tls::Required => {
                reply.error(ReplyCode::ErrTlsReqd, "send STARTTLS first");
            }
            O::List if received.len > 0 => {
                reply.error(ReplyCode::ErrInvalid, "LIST takes no data");
            }
            O::List => {
                for (_, Export { name, .. }) in exports.exports() {
                    let len = U32::new(name.len() as u32);
                    reply.put(ReplyCode::Server, &[len.as_bytes(), name.as_bytes()]);
                }
                reply.put(ReplyCode::Ack, &[]);
            }
            O::Info | O::Go => {
                let flags = transmission_flags(self.structured);
                if let Some((export, size_bytes)) = describe(data, exports, flags, &mut reply)
                    && received.option == O::Go
                {
                    return Ok(self.chosen(export, size_bytes));
                }
            }
            O::StructuredReply if received.len > 0 => {
                reply.error(ReplyCode::ErrInvalid, "STRUCTURED_REPLY takes no data");
            }
            O::StructuredReply => {
                self.structured = true;
                reply.put(ReplyCode::Ack, &[]);
            }
            O::ListMetaContext | O::SetMetaContext => {
                let found = contexts::answer(data, self.structured, exports, &mut reply);
                if received.option == O::SetMetaContext {
                    // Each replaces the one before, also when it fails.
                    self.allocation_of = found;
                }
            }
            O::PeekExport => {
                reply.error(
                    ReplyCode::ErrUnsup,
                    "this server does not offer that option",
                );
            }
            O::ExtendedHeaders => {
                reply.error(ReplyCode::ErrUnsup, "this server uses compact headers only");
            }
            O::Other(_) => {
                reply.error(ReplyCode::ErrUnsup, "this server does not know that option")
            }
        }
        Ok(Outcome::Answered)
    }

    /// EXPORT_NAME: there is no way to say no but to close.
    fn open_by_name(
        &self,
        data: &[u8],
        exports: &ExportTable,
        output: &mut Vec<u8>,
    ) -> Result<Outcome, CloseReason> {
        let name = valid_name(data).ok_or(CloseReason::InvalidName)?;
        exports.serving().map_err(|_| CloseReason::NotServing)?;
        let (export, found) = exports.find(name).ok_or(CloseReason::UnknownExport)?;
        put(
            output,
            &ExportNameReply {
                size: found.size_bytes.into(),
                flags: transmission_flags(self.structured).to_wire().into(),
            },
        );
        if !self.no_zeroes {
            output.extend_from_slice(&[0; EXPORT_NAME_ZEROES_BYTES]);
        }
        Ok(self.chosen(export, found.size_bytes))
    }

    fn chosen(&self, export: ExportIndex, size_bytes: u64) -> Outcome {
        let terms = Terms {
            structured: self.structured,
            allocation: self.allocation_of == Some(export),
        };
        Outcome::Chosen {
            export,
            size_bytes,
            terms,
        }
    }
}

fn transmission_flags(structured: bool) -> TransmissionFlags {
    if structured {
        TransmissionFlags::SERVED_STRUCTURED
    } else {
        TransmissionFlags::SERVED
    }
}

/// Answers INFO or GO; the export and its size in bytes if the answer was positive.
fn describe(
    data: &[u8],
    exports: &ExportTable,
    flags: TransmissionFlags,
    reply: &mut Reply<'_>,
) -> Option<(ExportIndex, u64)> {
    let query = match Query::parse(data) {
        Ok(query) => query,
        Err(text) => {
            reply.error(ReplyCode::ErrInvalid, text);
            return None;
        }
    };
    let (export, found) = find(query.name, exports, reply)?;
    let info = ExportInfo {
        info: InfoType::Export.to_wire().into(),
        size: found.size_bytes.into(),
        flags: flags.to_wire().into(),
    };
    reply.put(ReplyCode::Info, &[info.as_bytes()]);
    if query.name_wanted {
        let info = U16::new(InfoType::Name.to_wire());
        reply.put(ReplyCode::Info, &[info.as_bytes(), found.name.as_bytes()]);
    }
    // Sent to those, too, who did not ask: what applies is the same, and some log it.
    let info = BlockSizeInfo {
        info: InfoType::BlockSize.to_wire().into(),
        min: BLOCK_BYTES_MIN.into(),
        preferred: BLOCK_BYTES_PREFERRED.into(),
        max: PAYLOAD_BYTES_MAX.into(),
    };
    reply.put(ReplyCode::Info, &[info.as_bytes()]);
    reply.put(ReplyCode::Ack, &[]);
    Some((export, found.size_bytes))
}

/// The export of this name, or the error that says why it can not be opened.
fn find<'a>(
    name: &str,
    exports: &'a ExportTable,
    reply: &mut Reply<'_>,
) -> Option<(ExportIndex, &'a Export)> {
    if let Err(text) = exports.serving() {
        reply.error(ReplyCode::ErrPolicy, text);
        return None;
    }
    let found = exports.find(name);
    if found.is_none() {
        let text = match name {
            "" => "there is no default export: name one of those that LIST shows",
            _ => "there is no export of that name: LIST shows those that exist",
        };
        reply.error(ReplyCode::ErrUnknown, text);
    }
    found
}

impl<'a> Query<'a> {
    /// Parses the data of INFO or GO, in which every length has to be exact.
    fn parse(data: &'a [u8]) -> Result<Self, &'static str> {
        let (name, rest) = split_string(data).ok_or(TOO_SHORT)?;
        let (count, rest) = U16::read_from_prefix(rest).map_err(|_| TOO_SHORT)?;
        if rest.len() != usize::from(count.get()) * size_of::<U16>() {
            return Err("the number of information requests does not match the option's length");
        }
        let name = valid_name(name).ok_or(BAD_NAME)?;
        let wanted = InfoType::Name.to_wire();
        let name_wanted = rest.chunks_exact(size_of::<U16>()).any(|request| {
            U16::read_from_bytes(request).is_ok_and(|request| request.get() == wanted)
        });
        Ok(Self { name, name_wanted })
    }
}

/// Where the answers to one option go.
struct Reply<'a> {
    option: OptionCode,
    output: &'a mut Vec<u8>,
}

impl Reply<'_> {
    /// One reply whose data is the concatenation of `parts`.
    fn put(&mut self, code: ReplyCode, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        put(
            self.output,
            &OptionReplyHeader {
                magic: OPTION_REPLY_MAGIC.into(),
                option: self.option.to_wire().into(),
                reply: code.to_wire().into(),
                len: U32::new(len as u32),
            },
        );
        for part in parts {
            self.output.extend_from_slice(part);
        }
    }

    /// An error with a sentence for the client's user, cut to what the protocol allows.
    fn error(&mut self, code: ReplyCode, text: &str) {
        let text = &text[..text.floor_char_boundary(STRING_BYTES_MAX)];
        self.put(code, &[text.as_bytes()]);
    }
}

const TOO_SHORT: &str = "the option's data is shorter than its contents";
const BAD_NAME: &str = "export names are UTF-8 of up to 4096 bytes, no NUL";

/// A string that begins with its length, and what follows it.
fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = U32::read_from_prefix(data).ok()?;
    rest.split_at_checked(usize::try_from(len.get()).ok()?)
}

/// The name as a string, if the protocol allows it.
fn valid_name(name: &[u8]) -> Option<&str> {
    if name.len() > STRING_BYTES_MAX || name.contains(&0) {
        return None;
    }
    std::str::from_utf8(name).ok()
}

fn put<T: IntoBytes + Immutable>(output: &mut Vec<u8>, value: &T) {
    output.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests;

//! What the tests of this module share: a stranger's bytes, and a reader of the answers.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::protocol::{OPTION_MAGIC, OPTION_REPLY_MAGIC, ReplyCode};
use super::wire::{Greeting, OptionHeader, OptionReplyHeader};
use super::{Export, ExportTable, Limits, NegotiationEvent, Session, Terms};

pub(super) const DB_BYTES: u64 = 8 << 30;
pub(super) const FIXED_NO_ZEROES: u32 = 3;

/// Two exports that are served.
pub(super) fn table() -> ExportTable {
    table_of(&[("db", DB_BYTES), ("recordings", 1 << 20)])
}

pub(super) fn table_of(exports: &[(&str, u64)]) -> ExportTable {
    let export = |&(name, size_bytes): &(&str, u64)| Export {
        name: name.to_owned(),
        size_bytes,
    };
    let mut table = ExportTable::new(exports.iter().map(export).collect(), "").unwrap();
    table.set_serving(Ok(()));
    table
}

pub(super) fn client_flags(flags: u32) -> Vec<u8> {
    U32::new(flags).as_bytes().to_vec()
}

/// An option whose length is that of its data.
pub(super) fn option(code: u32, data: &[u8]) -> Vec<u8> {
    [&option_header(code, data.len() as u32), data].concat()
}

pub(super) fn option_header(code: u32, len: u32) -> Vec<u8> {
    let header = OptionHeader {
        magic: OPTION_MAGIC.into(),
        option: code.into(),
        len: len.into(),
    };
    header.as_bytes().to_vec()
}

/// The data of INFO or GO.
pub(super) fn query(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = U32::new(name.len() as u32).as_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(U16::new(infos.len() as u16).as_bytes());
    for &info in infos {
        data.extend_from_slice(U16::new(info).as_bytes());
    }
    data
}

/// The data of LIST_META_CONTEXT or SET_META_CONTEXT.
pub(super) fn contexts(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let string = |text: &[u8]| [U32::new(text.len() as u32).as_bytes(), text].concat();
    let mut data = string(name);
    data.extend_from_slice(U32::new(queries.len() as u32).as_bytes());
    for query in queries {
        data.extend(string(query));
    }
    data
}

/// What a session made of some input.
#[derive(Debug, PartialEq)]
pub(super) struct Transcript {
    /// Everything that it sent, without the greeting.
    pub(super) output: Vec<u8>,
    /// Everything that it said but `NeedInput` and `Send`.
    pub(super) events: Vec<NegotiationEvent>,
    /// Input that it did not take.
    pub(super) rest: Vec<u8>,
    /// What was agreed on.
    pub(super) terms: Terms,
}

impl Transcript {
    /// The last event, or `NeedInput` if the negotiation goes on.
    pub(super) fn end(&self) -> NegotiationEvent {
        self.events
            .last()
            .copied()
            .unwrap_or(NegotiationEvent::NeedInput)
    }

    /// The output as replies to options.
    pub(super) fn replies(&self) -> Vec<(u32, ReplyCode, Vec<u8>)> {
        let mut replies = Vec::new();
        let mut output = self.output.as_slice();
        while !output.is_empty() {
            let (header, rest) = OptionReplyHeader::read_from_prefix(output).unwrap();
            assert_eq!(header.magic, OPTION_REPLY_MAGIC);
            let (data, rest) = rest.split_at(header.len.get() as usize);
            let code = ReplyCode::from_wire(header.reply.get());
            replies.push((header.option.get(), code, data.to_vec()));
            output = rest;
        }
        replies
    }

    /// The replies' types alone.
    pub(super) fn codes(&self) -> Vec<ReplyCode> {
        self.replies()
            .into_iter()
            .map(|(_, code, _)| code)
            .collect()
    }
}

/// Feeds pieces of input to a new session until it ends or the input does.
pub(super) fn negotiate_pieces<'a>(
    session: &mut Session,
    exports: &ExportTable,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Transcript {
    let mut output = Vec::new();
    let mut events = Vec::new();
    let mut rest = Vec::new();
    for piece in pieces {
        rest.extend_from_slice(piece);
        loop {
            let (taken, event) = match events.last() {
                Some(NegotiationEvent::Transmission { .. } | NegotiationEvent::Close(_)) => break,
                _ => session.negotiate(&rest, exports),
            };
            rest.drain(..taken);
            output.extend_from_slice(session.output());
            session.advance_output(session.output().len());
            match event {
                NegotiationEvent::NeedInput => break,
                NegotiationEvent::Send => {}
                event => events.push(event),
            }
        }
    }
    output.drain(..size_of::<Greeting>());
    Transcript {
        output,
        events,
        rest,
        terms: session.terms(),
    }
}

/// Feeds all input at once to a new session without TLS.
pub(super) fn negotiate(exports: &ExportTable, input: &[u8]) -> Transcript {
    let mut session = Session::new(Limits::default());
    negotiate_pieces(&mut session, exports, [input])
}

/// As `negotiate`, with the usual client flags before the input.
pub(super) fn negotiate_options(exports: &ExportTable, options: &[u8]) -> Transcript {
    negotiate(exports, &[&client_flags(FIXED_NO_ZEROES), options].concat())
}

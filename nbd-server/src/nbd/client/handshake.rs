//! Choosing an export with GO.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::ClientError;
use crate::nbd::protocol::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, InfoType, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, OptionCode, PAYLOAD_BYTES_MAX, ReplyCode, STRING_BYTES_MAX,
    TransmissionFlags,
};
use crate::nbd::wire::{BlockSizeInfo, ExportInfo, Greeting, OptionHeader, OptionReplyHeader};

/// Longest reply that is read, in bytes.
const REPLY_BYTES_MAX: usize = 64 << 10;
/// Most replies to one option.
const REPLIES_MAX: u32 = 256;

/// What the server says about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDetails {
    /// Size in bytes.
    pub size_bytes: u64,
    /// What the export can do.
    pub flags: TransmissionFlags,
    /// The export's own name, if the server told it.
    pub name: Option<String>,
    /// Offsets and lengths must be multiples of this many bytes.
    pub block_bytes_min: u32,
    /// Offsets and lengths should be multiples of this many bytes.
    pub block_bytes_preferred: u32,
    /// Largest payload in bytes.
    pub payload_bytes_max: u32,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeEvent {
    /// Send the output; then more input is needed.
    NeedInput,
    /// The export is open; the rest of the input belongs to the transmission phase.
    Open(ExportDetails),
}

/// The client's side of the negotiation, without I/O.
#[derive(Debug)]
pub struct Handshake {
    export: String,
    state: State,
    buffer: Vec<u8>,
    replies: u32,
    found: Option<ExportInfo>,
    details: ExportDetails,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Greeting,
    Header,
    Data { reply: ReplyCode, len: usize },
}

impl Handshake {
    /// A handshake for `export`, which is empty for the server's default. Fails if the protocol does
    /// not allow the name.
    pub fn new(export: &str) -> Result<Self, ClientError> {
        if export.len() > STRING_BYTES_MAX || export.contains('\0') {
            return Err(ClientError::Usage(
                "the protocol does not allow this export name",
            ));
        }
        Ok(Self {
            export: export.to_owned(),
            state: State::Greeting,
            buffer: Vec::new(),
            replies: 0,
            found: None,
            details: ExportDetails {
                size_bytes: 0,
                flags: TransmissionFlags::from_wire(0),
                name: None,
                // What the protocol says when the server says nothing.
                block_bytes_min: 1,
                block_bytes_preferred: 4096,
                payload_bytes_max: PAYLOAD_BYTES_MAX,
            },
        })
    }

    /// Takes bytes from the server and appends to `output` what has to be sent; returns how many
    /// bytes it took. After an error or [`HandshakeEvent::Open`] it must not be called again.
    pub fn handle(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(usize, HandshakeEvent), ClientError> {
        let mut rest = input;
        loop {
            let wanted = match self.state {
                State::Greeting => size_of::<Greeting>(),
                State::Header => size_of::<OptionReplyHeader>(),
                State::Data { len, .. } => len,
            };
            let missing = wanted - self.buffer.len();
            let (head, tail) = rest.split_at(missing.min(rest.len()));
            self.buffer.extend_from_slice(head);
            rest = tail;
            if self.buffer.len() < wanted {
                return Ok((input.len(), HandshakeEvent::NeedInput));
            }
            let buffer = std::mem::take(&mut self.buffer);
            match self.state {
                State::Greeting => self.greeting(&buffer, output)?,
                State::Header => self.header(&buffer)?,
                State::Data { reply, .. } => {
                    if let Some(details) = self.reply(reply, &buffer)? {
                        return Ok((input.len() - rest.len(), HandshakeEvent::Open(details)));
                    }
                }
            }
        }
    }

    /// Answers the greeting with the client's flags and GO.
    fn greeting(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> Result<(), ClientError> {
        let greeting: Greeting = exactly(bytes)?;
        if greeting.magic != GREETING_MAGIC || greeting.option_magic != OPTION_MAGIC {
            return Err(ClientError::Protocol("this is no newstyle NBD server"));
        }
        let flags = greeting.flags.get();
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ClientError::Protocol("the server is too old for GO"));
        }
        let flags = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        output.extend_from_slice(U32::from(u32::from(flags)).as_bytes());

        let wanted = [InfoType::Name, InfoType::BlockSize].map(|info| U16::new(info.to_wire()));
        let name = self.export.as_bytes();
        let len = size_of::<U32>() + name.len() + size_of::<U16>() + size_of_val(&wanted);
        let header = OptionHeader {
            magic: OPTION_MAGIC.into(),
            option: OptionCode::Go.to_wire().into(),
            len: U32::new(len as u32),
        };
        output.extend_from_slice(header.as_bytes());
        output.extend_from_slice(U32::new(name.len() as u32).as_bytes());
        output.extend_from_slice(name);
        output.extend_from_slice(U16::new(wanted.len() as u16).as_bytes());
        output.extend_from_slice(wanted.as_bytes());
        self.state = State::Header;
        Ok(())
    }

    fn header(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let header: OptionReplyHeader = exactly(bytes)?;
        if header.magic != OPTION_REPLY_MAGIC {
            return Err(ClientError::Protocol("an option reply has no magic number"));
        }
        if header.option != OptionCode::Go.to_wire() {
            return Err(ClientError::Protocol(
                "a reply to an option that was not sent",
            ));
        }
        let len = header.len.get() as usize;
        if len > REPLY_BYTES_MAX {
            return Err(ClientError::Protocol("an option reply is too long"));
        }
        self.replies += 1;
        if self.replies > REPLIES_MAX {
            return Err(ClientError::Protocol("too many replies to one option"));
        }
        self.state = State::Data {
            reply: ReplyCode::from_wire(header.reply.get()),
            len,
        };
        Ok(())
    }

    /// One reply to GO; the last one gives the details.
    fn reply(
        &mut self,
        reply: ReplyCode,
        data: &[u8],
    ) -> Result<Option<ExportDetails>, ClientError> {
        self.state = State::Header;
        match reply {
            ReplyCode::Info => {
                self.info(data)?;
                Ok(None)
            }
            ReplyCode::Ack => self.open(data).map(Some),
            error if error.is_error() => {
                let text = &data[..data.len().min(STRING_BYTES_MAX)];
                let text = String::from_utf8_lossy(text).into_owned();
                Err(match error {
                    ReplyCode::ErrPolicy => ClientError::Policy { text },
                    code => ClientError::Refused { code, text },
                })
            }
            _ => Err(ClientError::Protocol("a reply that does not belong to GO")),
        }
    }

    fn info(&mut self, data: &[u8]) -> Result<(), ClientError> {
        let (info, rest) = U16::read_from_prefix(data)
            .map_err(|_| ClientError::Protocol("information without a type"))?;
        match InfoType::from_wire(info.get()) {
            InfoType::Export => self.found = Some(exactly(data)?),
            InfoType::Name => {
                let name = std::str::from_utf8(rest).ok();
                let name = name.filter(|name| name.len() <= STRING_BYTES_MAX);
                let name = name.ok_or(ClientError::Protocol("an export's name is no name"))?;
                self.details.name = Some(name.to_owned());
            }
            InfoType::BlockSize => {
                let sizes: BlockSizeInfo = exactly(data)?;
                let (min, preferred) = (sizes.min.get(), sizes.preferred.get());
                let max = sizes.max.get();
                let valid = min.is_power_of_two()
                    && min <= 1 << 16
                    && preferred.is_power_of_two()
                    && preferred >= min.max(512)
                    && (max == u32::MAX || (max >= min && max.is_multiple_of(min)));
                if !valid {
                    return Err(ClientError::Protocol(
                        "block sizes that contradict each other",
                    ));
                }
                self.details.block_bytes_min = min;
                self.details.block_bytes_preferred = preferred;
                self.details.payload_bytes_max = max.min(PAYLOAD_BYTES_MAX);
            }
            InfoType::Description | InfoType::Other(_) => {}
        }
        Ok(())
    }

    fn open(&self, data: &[u8]) -> Result<ExportDetails, ClientError> {
        if !data.is_empty() {
            return Err(ClientError::Protocol("an acknowledgement with data"));
        }
        let found = self
            .found
            .ok_or(ClientError::Protocol("GO without the export's size"))?;
        let size_bytes = found.size.get();
        if i64::try_from(size_bytes).is_err() {
            return Err(ClientError::Protocol(
                "an export of more than 2^63 - 1 bytes",
            ));
        }
        let flags = TransmissionFlags::from_wire(found.flags.get());
        if !flags.contains(TransmissionFlags::HAS_FLAGS) {
            return Err(ClientError::Protocol(
                "transmission flags without HAS_FLAGS",
            ));
        }
        Ok(ExportDetails {
            size_bytes,
            flags,
            ..self.details.clone()
        })
    }
}

/// The bytes as a structure of exactly their size.
fn exactly<T: FromBytes>(bytes: &[u8]) -> Result<T, ClientError> {
    T::read_from_bytes(bytes).map_err(|_| ClientError::Protocol("a structure of the wrong size"))
}

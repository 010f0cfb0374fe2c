//! Requests in flight on one connection, without I/O.

use std::collections::BTreeMap;

use zerocopy::FromBytes;

use super::ClientError;
use crate::nbd::protocol::{
    Command, CommandFlags, Cookie, NbdError, PAYLOAD_BYTES_MAX, SIMPLE_REPLY_MAGIC,
};
use crate::nbd::wire::{SIMPLE_REPLY_BYTES, SimpleReplyHeader, request};

/// One request of a client. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientRequest<'a> {
    /// Read a byte range.
    Read {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Write bytes.
    Write {
        /// Where to begin.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
        /// Answer only when they are durable.
        fua: bool,
    },
    /// Make everything durable that was answered before.
    Flush,
    /// Forget a byte range.
    Trim {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Answer only when the effect is durable.
        fua: bool,
    },
    /// Write zeroes.
    WriteZeroes {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Answer only when they are durable.
        fua: bool,
        /// Keep the range allocated.
        no_hole: bool,
    },
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Completion {
    /// What [`Pipeline::submit`] gave the request.
    pub cookie: Cookie,
    /// The data of a READ, nothing for the others, or the server's error.
    pub result: Result<Vec<u8>, NbdError>,
}

/// Turns requests into bytes and bytes into completions, in whatever order the server answers.
#[derive(Debug, Default)]
pub struct Pipeline {
    next_cookie: u64,
    /// Bytes of data that a positive answer to each unanswered request brings.
    unanswered: BTreeMap<Cookie, usize>,
    state: State,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Header,
    Data {
        cookie: Cookie,
        len: usize,
    },
}

impl Pipeline {
    /// A pipeline with nothing in flight.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a request to `output` and returns its name. Fails, and appends nothing, if its
    /// payload is longer than the protocol allows.
    pub fn submit(
        &mut self,
        what: &ClientRequest<'_>,
        output: &mut Vec<u8>,
    ) -> Result<Cookie, ClientError> {
        use ClientRequest as R;
        let fua = |set: bool| CommandFlags::FUA.when(set);
        let (command, flags, offset, len, payload, answer_bytes) = match *what {
            R::Read { offset, len } => (
                Command::Read,
                CommandFlags::NONE,
                offset,
                len,
                &[][..],
                len as usize,
            ),
            R::Write {
                offset,
                data,
                fua: set,
            } => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                (Command::Write, fua(set), offset, len, data, 0)
            }
            R::Flush => (Command::Flush, CommandFlags::NONE, 0, 0, &[][..], 0),
            R::Trim {
                offset,
                len,
                fua: set,
            } => (Command::Trim, fua(set), offset, len, &[][..], 0),
            R::WriteZeroes {
                offset,
                len,
                fua: set,
                no_hole,
            } => {
                let flags = fua(set).with(CommandFlags::NO_HOLE.when(no_hole));
                (Command::WriteZeroes, flags, offset, len, &[][..], 0)
            }
        };
        if matches!(command, Command::Read | Command::Write) && len > PAYLOAD_BYTES_MAX {
            return Err(ClientError::Usage("a request carries at most 32 MiB"));
        }
        let cookie = Cookie(self.next_cookie);
        self.next_cookie = self.next_cookie.wrapping_add(1);
        self.unanswered.insert(cookie, answer_bytes);
        output.extend_from_slice(&request(command.to_wire(), flags, cookie, offset, len));
        output.extend_from_slice(payload);
        Ok(cookie)
    }

    /// Appends DISC to `output`; the server will answer what is in flight and close.
    pub fn disconnect(&mut self, output: &mut Vec<u8>) {
        let command = Command::Disconnect.to_wire();
        let cookie = Cookie(self.next_cookie);
        output.extend_from_slice(&request(command, CommandFlags::NONE, cookie, 0, 0));
    }

    /// Takes bytes from the server; returns how many it took and the first answer that they
    /// complete. Without an answer it took everything. After an error it must not be called again.
    pub fn receive(&mut self, input: &[u8]) -> Result<(usize, Option<Completion>), ClientError> {
        let mut rest = input;
        loop {
            let wanted = match self.state {
                State::Header => SIMPLE_REPLY_BYTES,
                State::Data { len, .. } => len,
            };
            let missing = wanted - self.buffer.len();
            let (head, tail) = rest.split_at(missing.min(rest.len()));
            self.buffer.extend_from_slice(head);
            rest = tail;
            if self.buffer.len() < wanted {
                return Ok((input.len(), None));
            }
            let completion = match self.state {
                State::Header => self.header()?,
                State::Data { cookie, .. } => {
                    self.state = State::Header;
                    let data = std::mem::take(&mut self.buffer);
                    Some(Completion {
                        cookie,
                        result: Ok(data),
                    })
                }
            };
            if let Some(completion) = completion {
                return Ok((input.len() - rest.len(), Some(completion)));
            }
        }
    }

    /// The requests whose answer has not arrived completely.
    pub fn unanswered(&self) -> impl Iterator<Item = Cookie> + '_ {
        let reading = match self.state {
            State::Header => None,
            State::Data { cookie, .. } => Some(cookie),
        };
        reading.into_iter().chain(self.unanswered.keys().copied())
    }

    /// Whether no answer is outstanding, nor half received.
    pub fn is_idle(&self) -> bool {
        self.unanswered.is_empty() && self.buffer.is_empty() && matches!(self.state, State::Header)
    }

    /// A whole header is in the buffer: finds the request, and completes it if no data follows.
    fn header(&mut self) -> Result<Option<Completion>, ClientError> {
        let header = SimpleReplyHeader::read_from_bytes(&self.buffer)
            .map_err(|_| ClientError::Protocol("a reply of the wrong size"))?;
        self.buffer.clear();
        if header.magic != SIMPLE_REPLY_MAGIC {
            return Err(ClientError::Protocol("a reply without its magic number"));
        }
        let cookie = Cookie(header.cookie.get());
        let len = self
            .unanswered
            .remove(&cookie)
            .ok_or(ClientError::Protocol(
                "a reply to no request that is in flight",
            ))?;
        let result = match NbdError::from_wire(header.error.get()) {
            Some(error) => Err(error),
            None if len == 0 => Ok(Vec::new()),
            None => {
                self.state = State::Data { cookie, len };
                self.buffer.reserve_exact(len);
                return Ok(None);
            }
        };
        Ok(Some(Completion { cookie, result }))
    }
}

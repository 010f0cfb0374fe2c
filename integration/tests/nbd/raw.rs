//! A client that says what it is told to say, however little sense it makes, and reads what comes back.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use integration::BOUND;
use nbd_server::nbd::Cookie;
use nbd_server::nbd::protocol::{CommandFlags, OPTION_MAGIC};
use nbd_server::nbd::wire::request;

pub(crate) const ACK: u32 = 1;
pub(crate) const SERVER: u32 = 2;
pub(crate) const INFO_REPLY: u32 = 3;
pub(crate) const META: u32 = 4;
pub(crate) const UNSUP: u32 = 0x8000_0001;
pub(crate) const POLICY: u32 = 0x8000_0002;
pub(crate) const INVALID: u32 = 0x8000_0003;
pub(crate) const UNKNOWN: u32 = 0x8000_0006;

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const ABORT: u32 = 2;
pub(crate) const LIST: u32 = 3;
pub(crate) const PEEK_EXPORT: u32 = 4;
pub(crate) const STARTTLS: u32 = 5;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED_REPLY: u32 = 8;
pub(crate) const LIST_META: u32 = 9;
pub(crate) const SET_META: u32 = 10;
pub(crate) const EXTENDED_HEADERS: u32 = 11;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZEROES: u16 = 6;
pub(crate) const STATUS: u16 = 7;
pub(crate) const RESIZE: u16 = 8;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) const INVAL: u32 = 22;
pub(crate) const NOSPC: u32 = 28;
pub(crate) const OVERFLOW: u32 = 75;

/// A connection.
pub(crate) struct Raw(pub(crate) UnixStream);

/// A string behind its length.
pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text].concat()
}

/// The data of INFO and GO.
pub(crate) fn query(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn contexts(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |all, &byte| all << 8 | u64::from(byte))
}

/// A reply: an error or none, a text, and what was read or is said of a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) error: u32,
    pub(crate) text: String,
    pub(crate) data: Vec<u8>,
    pub(crate) extents: Vec<(u32, u32)>,
    pub(crate) content_chunks: usize,
}

impl Raw {
    /// A connection that has read the greeting and said nothing.
    pub(crate) fn greeted(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the socket of a running repld");
        stream.set_read_timeout(Some(BOUND)).expect("a timeout");
        let mut raw = Self(stream);
        assert_eq!(raw.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        raw
    }

    /// One that has sent these client flags.
    pub(crate) fn with_flags(socket: &Path, flags: u32) -> Self {
        let mut raw = Self::greeted(socket);
        raw.send(&flags.to_be_bytes());
        raw
    }

    /// One that may send options.
    pub(crate) fn new(socket: &Path) -> Self {
        Self::with_flags(socket, 3)
    }

    /// One in transmission, with simple replies, or with chunks and the context.
    pub(crate) fn open(socket: &Path, name: &[u8], structured: bool) -> Self {
        let mut raw = Self::new(socket);
        if structured {
            assert_eq!(raw.ask(STRUCTURED_REPLY, b""), [ACK]);
            let data = contexts(name, &[b"base:allocation"]);
            assert_eq!(raw.ask(SET_META, &data), [META, ACK]);
        }
        assert_eq!(
            raw.ask(GO, &query(name, &[])),
            [INFO_REPLY, INFO_REPLY, ACK]
        );
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the server reads");
    }

    pub(crate) fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut taken = vec![0; bytes];
        self.0.read_exact(&mut taken).expect("the server answers");
        taken
    }

    /// Waits for the end of the stream, before which nothing may come.
    pub(crate) fn ends(&mut self) {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(0) => {}
            Ok(_) => panic!("something came before the end"),
            // What was sent and not read may turn the end into a reset.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }

    pub(crate) fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send(&OPTION_MAGIC.to_be_bytes());
        self.send(&[&option.to_be_bytes()[..], &string(data)].concat());
    }

    /// The next reply to an option, and its data.
    pub(crate) fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(number(&head[..8]), 0x0003_e889_0455_65a9);
        assert_eq!(number(&head[8..12]) as u32, option);
        let code = number(&head[12..16]) as u32;
        let data = self.take(number(&head[16..20]) as usize);
        let is_error = code >= 1 << 31;
        assert!(!is_error || (!data.is_empty() && String::from_utf8(data.clone()).is_ok()));
        (code, data)
    }

    /// The types of all replies to an option.
    pub(crate) fn ask(&mut self, option: u32, data: &[u8]) -> Vec<u32> {
        self.send_option(option, data);
        let mut codes = Vec::new();
        loop {
            let (code, _) = self.option_reply(option);
            codes.push(code);
            if code == ACK || code >= 1 << 31 {
                return codes;
            }
        }
    }

    pub(crate) fn send_request(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        range: (u64, u32),
    ) {
        let flags = CommandFlags::from_wire(flags);
        self.send(&request(command, flags, Cookie(cookie), range.0, range.1));
    }

    /// A request without a payload, and its reply.
    pub(crate) fn call(&mut self, command: u16, flags: u16, (offset, len): (u64, u32)) -> Answer {
        self.send_request(command, flags, 77, (offset, len));
        let want = if command == READ { len } else { 0 };
        let (cookie, answer) = self.reply(|_| (offset, want));
        assert_eq!(cookie, 77);
        answer
    }

    pub(crate) fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> Answer {
        self.send_request(WRITE, flags, 78, (offset, data.len() as u32));
        self.send(data);
        let (cookie, answer) = self.reply(|_| (0, 0));
        assert_eq!(cookie, 78);
        answer
    }

    /// The next reply, simple or in chunks. `range` says for a cookie where its READ begins and how many bytes it wants.
    pub(crate) fn reply(&mut self, range: impl Fn(u64) -> (u64, u32)) -> (u64, Answer) {
        let magic = number(&self.take(4));
        let mut answer = Answer::default();
        if magic == 0x6744_6698 {
            let rest = self.take(12);
            let cookie = number(&rest[4..]);
            answer.error = number(&rest[..4]) as u32;
            if answer.error == 0 {
                answer.data = self.take(range(cookie).1 as usize);
            }
            return (cookie, answer);
        }
        let (mut magic, mut first) = (magic, None);
        let mut seen = Vec::new();
        loop {
            assert_eq!(magic, 0x668e_33ef);
            let head = self.take(16);
            let cookie = number(&head[4..12]);
            assert_eq!(
                *first.get_or_insert(cookie),
                cookie,
                "chunks of one reply at a time"
            );
            let (offset, len) = range(cookie);
            let payload = self.take(number(&head[12..16]) as usize);
            let done = head[1] == 1;
            match number(&head[2..4]) {
                0 => assert!(done && payload.is_empty()),
                code @ (1 | 2) => {
                    let at = number(&payload[..8])
                        .checked_sub(offset)
                        .expect("in the range");
                    let data = if code == 1 {
                        payload[8..].to_vec()
                    } else {
                        vec![0; number(&payload[8..12]) as usize]
                    };
                    assert!(!data.is_empty() && at + data.len() as u64 <= u64::from(len));
                    answer.content_chunks += 1;
                    seen.push((at, data));
                }
                5 => {
                    assert_eq!(number(&payload[..4]), 1);
                    let pair = |e: &[u8]| (number(&e[..4]) as u32, number(&e[4..]) as u32);
                    answer.extents = payload[4..].chunks_exact(8).map(pair).collect();
                }
                0x8001 => {
                    answer.error = number(&payload[..4]) as u32;
                    let text = payload[6..].to_vec();
                    assert_eq!(number(&payload[4..6]) as usize, text.len());
                    answer.text = String::from_utf8(text).expect("UTF-8");
                    assert!(answer.error != 0 && !answer.text.is_empty());
                }
                other => panic!("a chunk of type {other:#x}"),
            }
            if done {
                break;
            }
            magic = number(&self.take(4));
        }
        seen.sort_by_key(|(at, _)| *at);
        for (at, data) in seen {
            assert_eq!(at, answer.data.len() as u64, "chunks cover the range once");
            answer.data.extend(data);
        }
        let cookie = first.expect("there was one");
        if answer.error == 0 {
            assert_eq!(answer.data.len(), range(cookie).1 as usize);
        }
        (cookie, answer)
    }
}

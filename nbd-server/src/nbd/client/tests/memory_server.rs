//! The smallest server that can be built on a session: one disk in memory.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::nbd::{
    Cookie, ExportTable, Limits, NegotiationEvent, Op, Request, Session, TransmissionEvent,
    simple_reply,
};

/// One connection and its disk, without I/O.
pub(super) struct MemoryServer {
    pub(super) session: Session,
    pub(super) table: ExportTable,
    pub(super) disk: Vec<u8>,
    pub(super) requests: Vec<Op>,
    input: Vec<u8>,
    /// A WRITE whose payload has not arrived completely.
    write: Option<(Cookie, usize, usize)>,
    pub(super) closed: bool,
}

impl MemoryServer {
    pub(super) fn new(table: ExportTable) -> Self {
        let size = table.exports().next().unwrap().1.size_bytes as usize;
        Self {
            session: Session::new(Limits::default()),
            table,
            disk: vec![0; size],
            requests: Vec::new(),
            input: Vec::new(),
            write: None,
            closed: false,
        }
    }

    /// Takes what a client sent and returns what it gets for it.
    pub(super) fn handle(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let mut output = Vec::new();
        while !self.closed && self.session.export().is_none() {
            let (taken, event) = self.session.negotiate(&self.input, &self.table);
            self.input.drain(..taken);
            output.extend_from_slice(self.session.output());
            self.session.advance_output(usize::MAX);
            match event {
                NegotiationEvent::NeedInput => return output,
                NegotiationEvent::Close(_) => self.closed = true,
                _ => {}
            }
        }
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        while !self.closed {
            if let Some((cookie, offset, len)) = self.write {
                let Some((payload, tail)) = rest.split_at_checked(len) else {
                    break;
                };
                self.disk[offset..][..len].copy_from_slice(payload);
                output.extend_from_slice(&simple_reply(cookie, Ok(())));
                self.write = None;
                rest = tail;
            }
            let (taken, event) = self.session.next_request(rest);
            rest = &rest[taken..];
            match event {
                TransmissionEvent::NeedInput => break,
                TransmissionEvent::Request(request) => self.execute(&request, &mut output),
                TransmissionEvent::Done { cookie } => {
                    output.extend_from_slice(&simple_reply(cookie, Ok(())));
                }
                TransmissionEvent::Reject { cookie, error, .. } => {
                    output.extend_from_slice(&simple_reply(cookie, Err(error)));
                }
                TransmissionEvent::Disconnect | TransmissionEvent::Fatal(_) => self.closed = true,
            }
        }
        self.input = rest.to_vec();
        output
    }

    /// Serves a socket until the client goes; answers each piece before it reads the next.
    pub(super) fn run(mut self, mut stream: UnixStream) -> Self {
        let mut buffer = vec![0; 1 << 16];
        let mut received = 0;
        loop {
            let output = self.handle(&buffer[..received]);
            if stream.write_all(&output).is_err() || self.closed {
                return self;
            }
            received = match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return self,
                Ok(received) => received,
            };
        }
    }

    fn execute(&mut self, request: &Request, output: &mut Vec<u8>) {
        let cookie = request.cookie;
        self.requests.push(request.op);
        let data = match request.op {
            Op::Read { offset, len, .. } => &self.disk[offset as usize..][..len as usize],
            Op::Write { offset, len, .. } => {
                self.write = Some((cookie, offset as usize, len as usize));
                return;
            }
            Op::Flush | Op::BlockStatus { .. } => &[],
            Op::Trim { offset, len, .. } | Op::WriteZeroes { offset, len, .. } => {
                self.disk[offset as usize..][..len as usize].fill(0);
                &[]
            }
        };
        output.extend_from_slice(&simple_reply(cookie, Ok(())));
        output.extend_from_slice(data);
    }
}

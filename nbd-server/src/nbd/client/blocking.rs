//! The client on a socket.

use std::collections::VecDeque;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

use super::{
    ClientError, ClientRequest, Completion, Endpoint, ExportDetails, Handshake, HandshakeEvent,
    Pipeline, Uri,
};
use crate::nbd::protocol::{Cookie, TransmissionFlags};

/// Bytes asked of the socket at once.
const RECEIVE_BYTES: usize = 64 << 10;

/// How patient a client is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How long each address of a TCP server is tried; `None`: as long as the system likes.
    pub connect_timeout: Option<Duration>,
    /// How long nothing may move on the connection while something is awaited, at a resolution of
    /// milliseconds; `None`: for ever.
    pub idle_timeout: Option<Duration>,
}

/// A connection to one export, with any number of requests in flight.
///
/// [`submit`](Self::submit) and [`wait`](Self::wait) pipeline; [`read_at`](Self::read_at) and its
/// like do one thing and wait for it, whatever else is in flight. While a request is being sent,
/// answers are received, so that a server that sends before it reads on can not lock up with us.
///
/// After [`ClientError::Lost`] or [`ClientError::Protocol`] the connection is dead: answers that
/// arrived before can still be waited for, everything else fails. Dropping a client closes the
/// connection at once, as the death of its process would.
#[derive(Debug)]
pub struct Client {
    link: Link,
    details: ExportDetails,
    pipeline: Pipeline,
    completed: VecDeque<Completion>,
    dead: bool,
}

/// A socket and the bytes on their way to and from it.
#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    idle_timeout: PollTimeout,
    output: Vec<u8>,
    sent_bytes: usize,
    input: Vec<u8>,
    taken_bytes: usize,
}

impl Client {
    /// Connects to the export at `uri` without a limit to its patience.
    ///
    /// [`ClientError::Policy`] means that the server is there and does not serve the export now.
    pub fn connect(uri: &Uri) -> Result<Self, ClientError> {
        Self::connect_with(uri, &Options::default())
    }

    /// Connects to the export at `uri`.
    pub fn connect_with(uri: &Uri, options: &Options) -> Result<Self, ClientError> {
        let socket = match &uri.endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).map(OwnedFd::from),
            Endpoint::Tcp { host, port } => {
                connect_tcp(host, *port, options.connect_timeout).map(OwnedFd::from)
            }
        };
        Self::negotiate(socket.map_err(ClientError::Connect)?, &uri.export, options)
    }

    /// Opens `export` on a stream socket that is connected to a server.
    pub fn negotiate(
        socket: OwnedFd,
        export: &str,
        options: &Options,
    ) -> Result<Self, ClientError> {
        let mut link = Link::new(socket, options);
        let mut handshake = Handshake::new(export)?;
        loop {
            let input = &link.input[link.taken_bytes..];
            let (taken, event) = handshake.handle(input, &mut link.output)?;
            link.taken_bytes += taken;
            match event {
                HandshakeEvent::NeedInput => {
                    while !link.try_send()? {
                        link.wait()?;
                    }
                    while !link.try_receive()? {
                        link.wait()?;
                    }
                }
                HandshakeEvent::Open(_) if !link.pending_input().is_empty() => {
                    return Err(ClientError::Protocol("data that nobody asked for"));
                }
                HandshakeEvent::Open(details) => {
                    return Ok(Self {
                        link,
                        details,
                        pipeline: Pipeline::new(),
                        completed: VecDeque::new(),
                        dead: false,
                    });
                }
            }
        }
    }

    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.details.size_bytes
    }

    /// What the export can do.
    pub fn flags(&self) -> TransmissionFlags {
        self.details.flags
    }

    /// Everything that the server said about the export.
    pub fn details(&self) -> &ExportDetails {
        &self.details
    }

    /// Changes how long nothing may move while something is awaited; `None`: for ever.
    pub fn set_idle_timeout(&mut self, timeout: Option<Duration>) {
        self.link.idle_timeout = poll_timeout(timeout);
    }

    /// Sends a request and returns its name, without waiting for the answer.
    ///
    /// After [`ClientError::TimedOut`] the request is in flight, perhaps not sent to its end: the
    /// next call goes on with it.
    pub fn submit(&mut self, request: &ClientRequest<'_>) -> Result<Cookie, ClientError> {
        self.check_alive()?;
        let cookie = self.pipeline.submit(request, &mut self.link.output)?;
        self.drive(|client| client.flush_output())?;
        Ok(cookie)
    }

    /// Waits for the next answer, whichever request it belongs to. Fails with
    /// [`ClientError::Usage`] if nothing is in flight.
    pub fn wait(&mut self) -> Result<Completion, ClientError> {
        if let Some(completion) = self.completed.pop_front() {
            return Ok(completion);
        }
        self.check_alive()?;
        if self.pipeline.is_idle() {
            return Err(ClientError::Usage("nothing is in flight to wait for"));
        }
        self.drive(|client| {
            loop {
                client.exchange()?;
                if let Some(completion) = client.completed.pop_front() {
                    return Ok(completion);
                }
            }
        })
    }

    /// The requests that have not been answered; after [`ClientError::Lost`] those of which nobody
    /// knows whether they were carried out.
    pub fn unanswered(&self) -> impl Iterator<Item = Cookie> + '_ {
        self.pipeline.unanswered()
    }

    /// Reads `buffer.len()` bytes at `offset`; at most 32 MiB.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ClientError> {
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let data = self.call(&ClientRequest::Read { offset, len })?;
        buffer.copy_from_slice(&data);
        Ok(())
    }

    /// Writes `data` at `offset`, durably if `fua`; at most 32 MiB.
    pub fn write_at(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        self.call(&ClientRequest::Write { offset, data, fua })
            .map(drop)
    }

    /// Makes everything durable that was answered before, on any connection.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.call(&ClientRequest::Flush).map(drop)
    }

    /// Tells the server that `len` bytes at `offset` are not needed any more.
    pub fn trim(&mut self, offset: u64, len: u32, fua: bool) -> Result<(), ClientError> {
        self.call(&ClientRequest::Trim { offset, len, fua })
            .map(drop)
    }

    /// Writes `len` zero bytes at `offset`; `no_hole` keeps the range allocated.
    pub fn write_zeroes(
        &mut self,
        offset: u64,
        len: u32,
        fua: bool,
        no_hole: bool,
    ) -> Result<(), ClientError> {
        self.call(&ClientRequest::WriteZeroes {
            offset,
            len,
            fua,
            no_hole,
        })
        .map(drop)
    }

    /// Says goodbye and waits until the server has answered everything and closed. Returns the
    /// answers that nobody has waited for; fails if some never came.
    pub fn disconnect(mut self) -> Result<Vec<Completion>, ClientError> {
        self.check_alive()?;
        self.pipeline.disconnect(&mut self.link.output);
        let end = self.drive(|client| {
            client.flush_output()?;
            loop {
                client.exchange()?;
            }
        });
        match end {
            Ok(()) => Ok(self.completed.into()),
            Err(ClientError::Lost(_)) if self.pipeline.is_idle() => Ok(self.completed.into()),
            Err(error) => Err(error),
        }
    }

    /// The socket, for somebody else to go on with in the transmission phase, such as the kernel.
    /// Fails if anything is in flight or unread.
    pub fn into_socket(self) -> Result<OwnedFd, ClientError> {
        self.check_alive()?;
        let unread = self.link.pending_input();
        if !self.pipeline.is_idle() || !unread.is_empty() || !self.completed.is_empty() {
            return Err(ClientError::Usage(
                "requests are in flight on the connection",
            ));
        }
        Ok(self.link.socket)
    }

    /// Submits a request and waits for its own answer; keeps those of others for `wait`.
    fn call(&mut self, request: &ClientRequest<'_>) -> Result<Vec<u8>, ClientError> {
        let cookie = self.submit(request)?;
        self.drive(|client| {
            loop {
                let found = client
                    .completed
                    .iter()
                    .position(|done| done.cookie == cookie);
                if let Some(done) = found.and_then(|index| client.completed.remove(index)) {
                    return done.result.map_err(ClientError::Io);
                }
                client.exchange()?;
            }
        })
    }

    fn check_alive(&self) -> Result<(), ClientError> {
        if self.dead {
            Err(ClientError::Lost(None))
        } else {
            Ok(())
        }
    }

    /// Runs `step` and remembers if the connection did not survive it.
    fn drive<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let result = step(self);
        if let Err(ClientError::Lost(_) | ClientError::Protocol(_)) = result {
            self.dead = true;
        }
        result
    }

    fn flush_output(&mut self) -> Result<(), ClientError> {
        while !self.link.try_send()? {
            if self.link.try_receive()? {
                self.complete()?;
            } else {
                self.link.wait()?;
            }
        }
        Ok(())
    }

    /// Sends what can be sent and receives once, waiting if there is nothing yet.
    fn exchange(&mut self) -> Result<(), ClientError> {
        loop {
            self.link.try_send()?;
            if self.link.try_receive()? {
                return self.complete();
            }
            self.link.wait()?;
        }
    }

    /// Turns all received bytes into completions.
    fn complete(&mut self) -> Result<(), ClientError> {
        loop {
            let (taken, completion) = self.pipeline.receive(self.link.pending_input())?;
            self.link.taken_bytes += taken;
            match completion {
                Some(completion) => self.completed.push_back(completion),
                None => return Ok(()),
            }
        }
    }
}

impl Link {
    fn new(socket: OwnedFd, options: &Options) -> Self {
        Self {
            socket,
            idle_timeout: poll_timeout(options.idle_timeout),
            output: Vec::new(),
            sent_bytes: 0,
            input: Vec::new(),
            taken_bytes: 0,
        }
    }

    /// Bytes that were received and not taken.
    fn pending_input(&self) -> &[u8] {
        &self.input[self.taken_bytes..]
    }

    /// Sends without waiting; says whether everything is sent.
    fn try_send(&mut self) -> Result<bool, ClientError> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while self.sent_bytes < self.output.len() {
            match send(
                self.socket.as_raw_fd(),
                &self.output[self.sent_bytes..],
                flags,
            ) {
                Ok(sent) => self.sent_bytes += sent,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(ClientError::Lost(Some(errno.into()))),
            }
        }
        self.output.clear();
        self.sent_bytes = 0;
        Ok(true)
    }

    /// Receives without waiting, all earlier input having been taken; says whether anything came.
    fn try_receive(&mut self) -> Result<bool, ClientError> {
        self.input.resize(RECEIVE_BYTES, 0);
        self.taken_bytes = self.input.len();
        loop {
            match recv(
                self.socket.as_raw_fd(),
                &mut self.input,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(0) => return Err(ClientError::Lost(None)),
                Ok(received) => {
                    self.input.truncate(received);
                    self.taken_bytes = 0;
                    return Ok(true);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(ClientError::Lost(Some(errno.into()))),
            }
        }
    }

    /// Waits until something can be received, or sent if there is something to send.
    fn wait(&self) -> Result<(), ClientError> {
        let mut events = PollFlags::POLLIN;
        if self.sent_bytes < self.output.len() {
            events |= PollFlags::POLLOUT;
        }
        match poll(
            &mut [PollFd::new(self.socket.as_fd(), events)],
            self.idle_timeout,
        ) {
            Ok(0) => Err(ClientError::TimedOut),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(ClientError::Lost(Some(errno.into()))),
        }
    }
}

fn connect_tcp(host: &str, port: u16, timeout: Option<Duration>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let stream = match timeout {
            Some(timeout) => TcpStream::connect_timeout(&address, timeout),
            None => TcpStream::connect(address),
        };
        match stream {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn poll_timeout(timeout: Option<Duration>) -> PollTimeout {
    match timeout {
        None => PollTimeout::NONE,
        Some(timeout) => {
            let millis = timeout.as_nanos().div_ceil(1_000_000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        }
    }
}

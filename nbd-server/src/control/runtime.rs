//! The asynchronous runtime of the control thread. Nothing outside this file knows that it is tokio-uring, a tokio
//! current-thread runtime whose sockets read and write through a ring.
//!
//! Two traps decide how a [`Socket`] looks. A read that is dropped (by a deadline) stays in the kernel and swallows the
//! next bytes; so a socket with an operation in flight is never handed on, and is shut down when it is dropped. And a
//! connection whose accept was dropped is lost; so listening and connecting are tokio's own, which can be dropped.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{setsockopt, sockopt};
use tokio_uring::net::UnixStream as UringStream;

use crate::handle::Stream;

/// How long a connection is silent before the other host is asked whether it is there.
const KEEP_IDLE_SECONDS: u32 = 30;
/// How long until it is asked again.
const KEEP_INTERVAL_SECONDS: u32 = 10;
/// How often it is asked in vain before the connection ends.
const KEEP_COUNT: u32 = 3;

/// Runs futures on the thread that made it.
pub struct Runtime(tokio_uring::Runtime);

impl Runtime {
    /// A runtime for this thread.
    ///
    /// # Errors
    /// If the kernel gives no ring.
    pub fn new() -> io::Result<Self> {
        tokio_uring::Runtime::new(&tokio_uring::builder()).map(Self)
    }

    /// Runs `future`, and what it spawns, until it is done.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(future)
    }
}

/// Runs a task beside the others, until the runtime ends.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio_uring::spawn(task);
}

/// Lets the kernel ask now and then whether the other host is still there. An idle client whose host died would count as attached for
/// ever, and keep its volume from being made smaller and this node from being demoted.
fn keep_alive(stream: &std::net::TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEP_IDLE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEP_INTERVAL_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEP_COUNT)?;
    Ok(())
}

/// A connected stream socket.
pub struct Socket {
    uring: UringStream,
    /// The same socket again; `None` once it was handed on.
    stream: Option<Stream>,
    in_flight: Cell<usize>,
}

impl Socket {
    /// Takes a socket over.
    ///
    /// # Errors
    /// If it can not be duplicated, for want of file descriptors.
    pub fn new(stream: Stream) -> io::Result<Self> {
        let twin: OwnedFd = match &stream {
            Stream::Unix(stream) => {
                // The ring waits by itself; a non-blocking socket would answer EAGAIN.
                stream.set_nonblocking(false)?;
                stream.try_clone()?.into()
            }
            Stream::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                keep_alive(stream)?;
                stream.try_clone()?.into()
            }
        };
        Ok(Self {
            // Reads and writes do not care which family it is.
            uring: UringStream::from_std(UnixStream::from(twin)),
            stream: Some(stream),
            in_flight: Cell::new(0),
        })
    }

    /// Reads what is there, at most `max` bytes, waiting for the first. Empty at the end of the stream.
    ///
    /// # Errors
    /// The system's.
    pub async fn read(&self, max: usize) -> io::Result<Vec<u8>> {
        let (result, mut bytes) = self.counted(self.uring.read(Vec::with_capacity(max))).await;
        bytes.truncate(result?);
        Ok(bytes)
    }

    /// Reads exactly `count` bytes.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::UnexpectedEof`] if the stream ends before.
    pub async fn read_exact(&self, count: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let bytes = self.read(count - all.len()).await?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The system's.
    pub async fn write_all(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.counted(self.uring.write_all(bytes)).await.0
    }

    /// Lets the other side see the end of the stream, and goes on reading.
    pub fn end_writing(&self) {
        // Fails only if there is no connection left.
        let _ = match &self.stream {
            Some(Stream::Unix(stream)) => stream.shutdown(Shutdown::Write),
            Some(Stream::Tcp(stream)) => stream.shutdown(Shutdown::Write),
            None => Ok(()),
        };
    }

    /// The socket itself, for the data thread; `None` if an operation is in flight: then it is shut down.
    #[must_use]
    pub fn into_stream(mut self) -> Option<Stream> {
        if self.in_flight.get() == 0 {
            self.stream.take()
        } else {
            None
        }
    }

    async fn counted<T>(&self, operation: impl Future<Output = T>) -> T {
        self.in_flight.set(self.in_flight.get() + 1);
        let output = operation.await;
        // Not reached if the future is dropped while it waits.
        self.in_flight.set(self.in_flight.get() - 1);
        output
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Ends whatever is in flight; fails only if there is no connection left.
        let _ = match &self.stream {
            Some(Stream::Unix(stream)) => stream.shutdown(Shutdown::Both),
            Some(Stream::Tcp(stream)) => stream.shutdown(Shutdown::Both),
            None => Ok(()),
        };
    }
}

/// Listens on a Unix socket.
pub struct UnixListener(tokio::net::UnixListener);

impl UnixListener {
    /// Takes over a listening socket.
    ///
    /// # Errors
    /// The system's.
    pub fn new(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener).map(Self)
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system's.
    pub async fn accept(&self) -> io::Result<Stream> {
        let (stream, _) = self.0.accept().await?;
        stream.into_std().map(Stream::Unix)
    }
}

/// Listens on a TCP address.
pub struct TcpListener(tokio::net::TcpListener);

impl TcpListener {
    /// Takes over a listening socket.
    ///
    /// # Errors
    /// The system's.
    pub fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener).map(Self)
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system's.
    pub async fn accept(&self) -> io::Result<Stream> {
        let (stream, _) = self.0.accept().await?;
        stream.into_std().map(Stream::Tcp)
    }
}

/// Connects to a TCP address.
///
/// # Errors
/// The system's; [`io::ErrorKind::ConnectionRefused`] also if the socket met itself, as happens on loopback where
/// nobody listens.
pub async fn connect(address: SocketAddr) -> io::Result<Stream> {
    let stream = tokio::net::TcpStream::connect(address).await?.into_std()?;
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(Stream::Tcp(stream))
}

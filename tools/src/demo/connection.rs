//! The demo's view of an NBD connection: requests go out, answers come in, another thread may hang up.

#![allow(clippy::big_endian_bytes)]
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Why a connection can not be used (any longer).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The socket failed or was closed.
    #[error("the NBD connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The server said no to the export.
    #[error("the export {export:?} was refused: {reason}")]
    Refused {
        /// The export.
        export: String,
        /// The server's words.
        reason: String,
    },
    /// The server does not keep to the protocol.
    #[error("not NBD: {0}")]
    Protocol(&'static str),
}

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The request's cookie.
    pub cookie: u64,
    /// NBD's error number, or the data of a read (empty for the others).
    pub result: Result<Vec<u8>, u32>,
}

/// One connection in transmission.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    size: u64,
    next_cookie: u64,
    /// Lengths of the reads in flight.
    reads: std::collections::BTreeMap<u64, usize>,
}

impl Connection {
    /// Connects and opens an export.
    pub fn open(socket: &Path, export: &str) -> Result<Self, ConnectionError> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(ConnectionError::Protocol("no newstyle greeting"));
        }
        let mut out = 3u32.to_be_bytes().to_vec();
        out.extend_from_slice(b"IHAVEOPT");
        out.extend_from_slice(&7u32.to_be_bytes());
        out.extend_from_slice(&(export.len() as u32 + 6).to_be_bytes());
        out.extend_from_slice(&(export.len() as u32).to_be_bytes());
        out.extend_from_slice(export.as_bytes());
        out.extend_from_slice(&[0, 0]);
        stream.write_all(&out)?;
        let mut size = 0;
        loop {
            let mut header = [0; 20];
            stream.read_exact(&mut header)?;
            let reply = u32::from_be_bytes(header[12..16].try_into().expect("4"));
            let mut data =
                vec![0; u32::from_be_bytes(header[16..20].try_into().expect("4")) as usize];
            stream.read_exact(&mut data)?;
            if reply >> 31 == 1 {
                let reason = String::from_utf8_lossy(&data).into_owned();
                return Err(ConnectionError::Refused {
                    export: export.into(),
                    reason,
                });
            }
            if reply == 1 {
                break;
            }
            if reply == 3 && data[..2] == [0, 0] {
                size = u64::from_be_bytes(data[2..10].try_into().expect("8"));
            }
        }
        Ok(Self {
            stream,
            size,
            next_cookie: 1,
            reads: Default::default(),
        })
    }

    /// The export's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A handle that ends this connection from another thread.
    pub fn hangup(&self) -> io::Result<Hangup> {
        self.stream.try_clone().map(Hangup)
    }

    fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<u64, ConnectionError> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut out = Vec::with_capacity(28 + data.len());
        out.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&command.to_be_bytes());
        out.extend_from_slice(&cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(data);
        self.stream.write_all(&out)?;
        Ok(cookie)
    }

    /// Sends a READ.
    pub fn send_read(&mut self, offset: u64, len: u32) -> Result<u64, ConnectionError> {
        let cookie = self.send(0, 0, offset, len, &[])?;
        self.reads.insert(cookie, len as usize);
        Ok(cookie)
    }

    /// Sends a WRITE, with FUA if `durable`.
    pub fn send_write(
        &mut self,
        offset: u64,
        data: &[u8],
        durable: bool,
    ) -> Result<u64, ConnectionError> {
        self.send(1, u16::from(durable), offset, data.len() as u32, data)
    }

    /// Sends a FLUSH.
    pub fn send_flush(&mut self) -> Result<u64, ConnectionError> {
        self.send(3, 0, 0, 0, &[])
    }

    /// Sends a WRITE_ZEROES.
    pub fn send_zeroes(&mut self, offset: u64, len: u32) -> Result<u64, ConnectionError> {
        self.send(6, 0, offset, len, &[])
    }

    /// Sends a TRIM.
    pub fn send_trim(&mut self, offset: u64, len: u32) -> Result<u64, ConnectionError> {
        self.send(4, 0, offset, len, &[])
    }

    /// Waits for an answer.
    pub fn receive(&mut self) -> Result<Answer, ConnectionError> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        if header[..4] != 0x6744_6698u32.to_be_bytes() {
            return Err(ConnectionError::Protocol("no reply magic"));
        }
        let error = u32::from_be_bytes(header[4..8].try_into().expect("4"));
        let cookie = u64::from_be_bytes(header[8..].try_into().expect("8"));
        let len = self.reads.remove(&cookie).unwrap_or(0);
        if error != 0 {
            return Ok(Answer {
                cookie,
                result: Err(error),
            });
        }
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data)?;
        Ok(Answer {
            cookie,
            result: Ok(data),
        })
    }

    /// Says goodbye. To be called with nothing in flight.
    pub fn close(mut self) -> Result<(), ConnectionError> {
        self.send(2, 0, 0, 0, &[]).map(drop)
    }
}

/// Ends a connection from outside: whoever waits on it gets an error.
#[derive(Debug)]
pub struct Hangup(UnixStream);

impl Hangup {
    /// Ends it. It may be over already.
    pub fn hang_up(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

//! Opening an export so that another thread can end the connection.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nbd_server::nbd::client::{Client, ClientError, Options};

/// Ends a connection from outside: whoever waits on it gets an error.
#[derive(Debug)]
pub struct Hangup(UnixStream);

impl Hangup {
    /// Ends it. It may be over already.
    pub fn hang_up(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Opens an export behind a Unix socket.
pub fn open(socket: &Path, export: &str) -> Result<(Client, Hangup), ClientError> {
    let stream = UnixStream::connect(socket).map_err(ClientError::Connect)?;
    let other = stream.try_clone().map_err(ClientError::Connect)?;
    let client = Client::negotiate(stream.into(), export, &Options::default())?;
    Ok((client, Hangup(other)))
}

/// A broken connection, as the client reports it.
pub(super) fn lost(why: &'static str) -> ClientError {
    ClientError::Lost(Some(io::Error::other(why)))
}

//! The client's side of the admin protocol, blocking.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{LineBuffer, LineError, Request, Response, Status, to_line};

/// How long an answer may take that needs no work.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why `repld` did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody is there.
    #[error("repld is not running: {} {}; start repld for this node", path.display(), absent(source))]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("repld hung up: {0}; look at its log, or try again")]
    Broken(io::Error),
    /// It closed without an answer.
    #[error("repld hung up without an answer; look at its log")]
    Closed,
    /// It does not answer.
    #[error("repld did not answer within {} s; look at its log", .0.as_secs())]
    Late(Duration),
    /// A line that is too long.
    #[error("repld's answer can not be read: {0}")]
    Line(#[from] LineError),
    /// A line that is no answer.
    #[error("repld's answer can not be read: {0}; use the replctl of its version")]
    Json(#[from] serde_json::Error),
}

fn absent(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        io::ErrorKind::ConnectionRefused => "has nobody listening".to_owned(),
        io::ErrorKind::PermissionDenied => "may not be opened by this user".to_owned(),
        _ => format!("can not be opened ({error})"),
    }
}

/// A connection to `repld`.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: LineBuffer,
}

impl Client {
    /// Connects to a node's admin socket.
    ///
    /// # Errors
    /// [`ClientError::Absent`] if nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Absent {
            path: path.to_owned(),
            source,
        })?;
        stream
            .set_write_timeout(Some(ANSWER_TIMEOUT))
            .map_err(ClientError::Broken)?;
        Ok(Self {
            stream,
            lines: LineBuffer::default(),
        })
    }

    /// Sends a request; read the answers with [`Client::next`].
    ///
    /// # Errors
    /// [`ClientError::Broken`] if it can not be sent.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let line = to_line(request).ok_or(LineError::TooLong)?;
        // A daemon that refuses hangs up at once: its words are still there to be read.
        match self.stream.write_all(&line) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(ClientError::Broken),
        }
    }

    /// The next answer; `None` waits without end.
    ///
    /// # Errors
    /// Any but [`ClientError::Absent`].
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Response, ClientError> {
        let deadline = timeout.map(|timeout| (timeout, Instant::now() + timeout));
        let mut buffer = [0; 4096];
        loop {
            if let Some(line) = self.lines.next_line()? {
                return Ok(serde_json::from_slice(&line)?);
            }
            if let Some((timeout, deadline)) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ClientError::Late(timeout));
                }
                self.stream
                    .set_read_timeout(Some(left))
                    .map_err(ClientError::Broken)?;
            } else {
                self.stream
                    .set_read_timeout(None)
                    .map_err(ClientError::Broken)?;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(n) => self.lines.push(&buffer[..n]),
                Err(error) => match error.kind() {
                    // A timeout is looked at above.
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted => {}
                    _ => return Err(ClientError::Broken(error)),
                },
            }
        }
    }

    /// Sends a request and reads its answer, waiting as long as the request may take.
    ///
    /// # Errors
    /// Any but [`ClientError::Absent`].
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.send(request)?;
        self.next(Some(patience(request)))
    }
}

/// How long the answer to a request may take.
pub(super) fn patience(request: &Request) -> Duration {
    let timeout = match request {
        Request::Promote { timeout_ms, .. }
        | Request::SuspendIo { timeout_ms }
        | Request::Invalidate { timeout_ms, .. }
        | Request::Fence { timeout_ms, .. }
        | Request::Unfence { timeout_ms, .. }
        | Request::Failover { timeout_ms }
        | Request::Drop { timeout_ms, .. }
        | Request::Return { timeout_ms, .. }
        | Request::Replace { timeout_ms, .. }
        | Request::Resize { timeout_ms, .. }
        | Request::AddVolume { timeout_ms, .. }
        | Request::RemoveVolume { timeout_ms, .. } => {
            ANSWER_TIMEOUT.saturating_add(Duration::from_millis(*timeout_ms))
        }
        // A demote first commits and applies what is pending.
        Request::Demote { .. } => Duration::from_secs(120),
        Request::Status
        | Request::Watch
        | Request::Events
        | Request::ConfirmStopped { .. }
        | Request::ResumeIo
        | Request::Verify { .. }
        | Request::StopVerify
        | Request::Connect { .. }
        | Request::Disconnect { .. } => ANSWER_TIMEOUT,
    };
    timeout.min(Duration::from_secs(1 << 30))
}

/// The status of the node whose admin socket this is.
///
/// # Errors
/// Any, also when something else is answered than a status.
pub fn status(path: &Path) -> Result<Status, ClientError> {
    match Client::connect(path)?.call(&Request::Status)? {
        Response::Status(status) => Ok(*status),
        _ => Err(ClientError::Closed),
    }
}

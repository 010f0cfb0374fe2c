//! The client's side of NBD, for our own tools and tests.
//!
//! Two layers without I/O, [`Handshake`] and [`Pipeline`], treat what a server sends as input from
//! a stranger: every length is checked before it is believed, and a reply that belongs to no
//! request ends the connection. [`Client`] puts them on a socket and keeps any number of requests in
//! flight.

mod blocking;
mod handshake;
mod pipeline;
mod uri;

pub use blocking::{Client, Options};
pub use handshake::{ExportDetails, Handshake, HandshakeEvent};
pub use pipeline::{ClientRequest, Completion, Pipeline};
pub use uri::{DEFAULT_PORT, Endpoint, Uri, UriError};

use std::io;

use thiserror::Error;

use super::protocol::{NbdError, ReplyCode};

/// What can go wrong between a client and a server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address can not be understood.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// No connection came about.
    #[error("can not connect to the NBD server")]
    Connect(#[source] io::Error),
    /// The server does not serve the export at present, or not to us. On a node that is not
    /// Primary the text names the node that is.
    #[error("refused by the server's policy: {text}")]
    Policy {
        /// The server's words.
        text: String,
    },
    /// The server answered the choice of an export with another error.
    #[error("refused by the server ({code:?}): {text}")]
    Refused {
        /// The error.
        code: ReplyCode,
        /// The server's words.
        text: String,
    },
    /// The connection ended. Requests without an answer may or may not have been carried out.
    #[error("connection to the NBD server lost")]
    Lost(#[source] Option<io::Error>),
    /// Nothing moved on the connection for as long as the caller wanted to wait. The connection
    /// can be waited on again.
    #[error("no answer from the NBD server in time")]
    TimedOut,
    /// The server sent something that the protocol does not allow.
    #[error("protocol violation by the NBD server: {0}")]
    Protocol(&'static str),
    /// The server answered a request with an error.
    #[error("request failed: {0}")]
    Io(#[from] NbdError),
    /// The request does not fit into the protocol, or nothing is in flight to wait for.
    #[error("{0}")]
    Usage(&'static str),
}

#[cfg(test)]
mod tests;

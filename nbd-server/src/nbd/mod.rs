//! NBD as a session without I/O: bytes in, requests out.
//!
//! [`Session`] is the server's side of one connection, from the greeting to the last request. It
//! owns no socket, clock or thread, never waits, and never sees the payload of a WRITE: whoever
//! owns the socket takes those bytes from the stream itself. Bytes from a client are checked here
//! and nowhere else; a [`Request`] that comes out lies within its export.
//!
//! | module | what it knows |
//! |---|---|
//! | [`protocol`] | the protocol's numbers |
//! | [`wire`] | the protocol's structures |
//! | [`exports`] | what there is to choose from, and whether it may be opened |
//! | [`session`] | the connection's phases, and which bytes belong to which |
//! | [`negotiation`] | options: the fixed newstyle handshake |
//! | [`transmission`] | requests: the one place that validates them |
//! | [`reply`] | replies, simple ones and chunks |
//! | [`client`] | the other end, for our own tools and tests |
//!
//! What is offered: EXPORT_NAME, ABORT, LIST, STARTTLS (when the owner of the socket can do it),
//! INFO, GO, STRUCTURED_REPLY, and LIST_META_CONTEXT and SET_META_CONTEXT with `base:allocation`;
//! READ with DF, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES with NO_HOLE and FAST_ZERO, and
//! BLOCK_STATUS with REQ_ONE, with FUA on all of them; several connections to one export. Extended
//! headers are refused in the way that lets a client go on without them.

pub mod client;
pub mod exports;
pub mod negotiation;
pub mod protocol;
pub mod reply;
pub mod session;
#[cfg(test)]
mod testing;
pub mod transmission;
pub mod wire;

pub use exports::{Export, ExportIndex, ExportTable, ExportTableError};
pub use negotiation::{CloseReason, NegotiationEvent};
pub use protocol::{Cookie, NbdError};
pub use reply::{EXTENTS_MAX, Extent, Extents, HEAD_BYTES_MAX, Head};
pub use session::{Limits, Session, Terms};
pub use transmission::{FatalReason, Op, Request, TransmissionEvent};
pub use wire::{SIMPLE_REPLY_BYTES, simple_reply};

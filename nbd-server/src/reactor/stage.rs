//! What lies between a socket and a session: a place for encryption.
//!
//! Sessions see bytes received and bytes to send. A stage turns what the socket delivers into the former, in place,
//! and the latter into what the socket takes.

use super::ring::Segments;

/// What is done to the bytes of a connection.
#[derive(Debug)]
pub enum Stage {
    /// Nothing.
    Plain,
}

/// Why a connection's bytes can not be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {}

impl Stage {
    /// Turns bytes that have arrived into plain ones, at the front of the same memory; how many they are.
    ///
    /// # Errors
    /// They were tampered with.
    pub fn open(&mut self, arrived: &mut [u8]) -> Result<usize, StageError> {
        match self {
            Self::Plain => Ok(arrived.len()),
        }
    }

    /// Turns plain bytes into those that the socket takes.
    ///
    /// # Errors
    /// No more may be sent on this connection.
    pub fn seal(&mut self, _segments: &mut Segments) -> Result<(), StageError> {
        match self {
            Self::Plain => Ok(()),
        }
    }

    /// Whether the bytes on the wire are the plain ones, so that a payload can be received to where it stays.
    pub fn is_plain(&self) -> bool {
        match self {
            Self::Plain => true,
        }
    }
}

//! One client connection, from the greeting to the end.
//!
//! A session has two phases. In *negotiation* the caller moves bytes both ways and the session
//! answers into a buffer of its own; in *transmission* the caller feeds bytes, gets requests, and
//! writes the replies itself. The phases may run on different threads: when
//! [`negotiate`](Session::negotiate) returns [`NegotiationEvent::Transmission`], the caller sends
//! what [`output`](Session::output) holds and moves the session, together with the bytes that it
//! read from the socket and that `negotiate` did not take, to wherever requests are served. Those
//! bytes are the first input of [`next_request`](Session::next_request).

use super::exports::{ExportIndex, ExportTable};
use super::negotiation::{CloseReason, Negotiation, NegotiationEvent, Outcome, Tls};
use super::transmission::{FatalReason, Transmission, TransmissionEvent};

/// What one connection may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest data of one option, in bytes; a longer one ends the connection. Also the most that a
    /// session ever buffers of a client's input.
    pub option_bytes_max: u32,
    /// Options per connection; one more ends the connection.
    pub options_max: u32,
    /// Longest WRITE whose payload is read and thrown away so that the error can be answered, in
    /// bytes; a longer one ends the connection. At least the largest payload that is served.
    pub skip_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            option_bytes_max: 64 << 10,
            options_max: 256,
            skip_bytes_max: 64 << 20,
        }
    }
}

/// What client and server have agreed on for the transmission, besides the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Replies are made of chunks.
    pub structured: bool,
    /// The client may ask for `base:allocation`.
    pub allocation: bool,
}

/// The server's side of one connection. See the [module](self) for how to drive it.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    output: Vec<u8>,
    sent_bytes: usize,
}

#[derive(Debug)]
enum Phase {
    Negotiation(Negotiation, Limits),
    Transmission(Transmission, ExportIndex),
    Closed(CloseReason),
}

impl Session {
    /// A session that has its greeting to send and offers no TLS.
    pub fn new(limits: Limits) -> Self {
        Self::start(limits, Tls::Unavailable)
    }

    /// A session that has its greeting to send and tells nothing and opens nothing before
    /// [`NegotiationEvent::StartTls`].
    pub fn requiring_tls(limits: Limits) -> Self {
        Self::start(limits, Tls::Required)
    }

    /// A session in transmission on an export of `size_bytes`, as if a client had just chosen it
    /// and agreed on nothing else. For benches, fuzzers and tests of what comes after the
    /// negotiation.
    pub fn transmitting(export: ExportIndex, size_bytes: u64, limits: Limits) -> Self {
        Self::transmitting_on(export, size_bytes, Terms::default(), limits)
    }

    /// A session in transmission on these terms, for whoever takes over where another session's
    /// negotiation has ended.
    pub fn transmitting_on(
        export: ExportIndex,
        size_bytes: u64,
        terms: Terms,
        limits: Limits,
    ) -> Self {
        let transmission = Transmission::new(size_bytes, terms, limits.skip_bytes_max);
        let phase = Phase::Transmission(transmission, export);
        Self {
            phase,
            output: Vec::new(),
            sent_bytes: 0,
        }
    }

    /// The export has another size from now on.
    pub fn resize(&mut self, size_bytes: u64) {
        if let Phase::Transmission(transmission, _) = &mut self.phase {
            transmission.resize(size_bytes);
        }
    }

    fn start(limits: Limits, tls: Tls) -> Self {
        let mut output = Vec::new();
        let negotiation = Negotiation::new(limits, tls, &mut output);
        Self {
            phase: Phase::Negotiation(negotiation, limits),
            output,
            sent_bytes: 0,
        }
    }

    /// Bytes that are waiting to be sent. At most the answer to one option; never grows in
    /// transmission.
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent_bytes..]
    }

    /// The first `bytes` of [`output`](Self::output) have been sent.
    pub fn advance_output(&mut self, bytes: usize) {
        self.sent_bytes = self.output.len().min(self.sent_bytes.saturating_add(bytes));
        if self.sent_bytes == self.output.len() {
            self.sent_bytes = 0;
            match self.phase {
                Phase::Negotiation(..) => self.output.clear(),
                Phase::Transmission(..) | Phase::Closed(_) => self.output = Vec::new(),
            }
        }
    }

    /// Takes bytes from the client during negotiation; returns how many it took and what to do
    /// next. At most one option is answered by one call, and none while output is waiting: then it
    /// takes nothing and says [`NegotiationEvent::Send`] again. Call it with no input to begin.
    ///
    /// `exports` is looked at anew for each option. In transmission, and after the negotiation has
    /// failed, it takes nothing and repeats its last event.
    pub fn negotiate(&mut self, input: &[u8], exports: &ExportTable) -> (usize, NegotiationEvent) {
        let (negotiation, limits) = match &mut self.phase {
            Phase::Negotiation(negotiation, limits) => (negotiation, *limits),
            Phase::Transmission(_, export) => {
                return (0, NegotiationEvent::Transmission { export: *export });
            }
            Phase::Closed(reason) => return (0, NegotiationEvent::Close(*reason)),
        };
        if !self.output.is_empty() {
            return (0, NegotiationEvent::Send);
        }
        let (taken, outcome) = negotiation.step(input, exports, &mut self.output);
        let event = match outcome {
            Outcome::NeedInput => NegotiationEvent::NeedInput,
            Outcome::Answered => NegotiationEvent::Send,
            Outcome::StartTls => NegotiationEvent::StartTls,
            Outcome::Chosen {
                export,
                size_bytes,
                terms,
            } => {
                let transmission = Transmission::new(size_bytes, terms, limits.skip_bytes_max);
                self.phase = Phase::Transmission(transmission, export);
                NegotiationEvent::Transmission { export }
            }
            Outcome::Close(reason) => {
                self.phase = Phase::Closed(reason);
                NegotiationEvent::Close(reason)
            }
        };
        (taken, event)
    }

    /// Takes bytes from the client during transmission; returns how many it took and the next
    /// event. Call it again with the rest until it says [`TransmissionEvent::NeedInput`], which it
    /// does only when it took everything.
    ///
    /// After a [`TransmissionEvent::Request`] with an [`Op::Write`](super::Op::Write) the next
    /// `len` bytes of the stream are its payload. The caller takes exactly those, from the rest of
    /// the input and then from the socket, and goes on here with what follows. Never allocates.
    pub fn next_request(&mut self, input: &[u8]) -> (usize, TransmissionEvent) {
        match &mut self.phase {
            Phase::Transmission(transmission, _) => transmission.step(input),
            Phase::Negotiation(..) | Phase::Closed(_) => {
                (0, TransmissionEvent::Fatal(FatalReason::NotInTransmission))
            }
        }
    }

    /// What was agreed on; nothing before transmission.
    pub fn terms(&self) -> Terms {
        match &self.phase {
            Phase::Transmission(transmission, _) => transmission.terms(),
            Phase::Negotiation(..) | Phase::Closed(_) => Terms::default(),
        }
    }

    /// The export that was chosen; `None` before transmission.
    pub fn export(&self) -> Option<ExportIndex> {
        match &self.phase {
            Phase::Transmission(_, export) => Some(*export),
            Phase::Negotiation(..) | Phase::Closed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;

//! Metrics over HTTP: one page for whoever asks with GET, a refusal for everything else.
//!
//! It answers from what the data thread publishes and counts, so it answers also when that hangs. A connection
//! gets one answer; how many there are, how long they take and how much they say is bounded.

mod exposition;
mod http;
mod page;

use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use super::Shared;
use super::clients::ACCEPT_PAUSE;
use super::listen::{Slot, WatchedMetrics};
use super::runtime::{self, Socket};
use crate::handle::Stream;

use http::{Asked, Refusal, Reply};

/// The most connections at a time.
pub(super) const CONNECTIONS_MAX: u32 = 8;
/// How long a request may take to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer may take to be read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long somebody who was answered may go on talking.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// How much is read at a time.
const READ_BYTES: usize = 2048;

pub(super) async fn accept(shared: Rc<Shared>, listener: WatchedMetrics) {
    loop {
        let accepted = match &listener {
            WatchedMetrics::Tcp(listener) => listener.accept().await,
            WatchedMetrics::Unix(listener) => listener.accept().await,
        };
        match accepted {
            Ok(stream) => match shared.metrics_slots.take() {
                Some(slot) => runtime::spawn(connection(Rc::clone(&shared), stream, slot)),
                None => turn_away(stream),
            },
            Err(error) => {
                tracing::warn!("who wants metrics can not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Says that there are too many, as far as that is possible at once.
fn turn_away(stream: Stream) {
    let bytes = Reply::refusal(Refusal::TooMany).into_bytes();
    // It is not blocking, as it was accepted. Who does not hear it sees the end of the connection.
    let _ = match stream {
        Stream::Unix(mut stream) => stream.write(&bytes),
        Stream::Tcp(mut stream) => stream.write(&bytes),
    };
}

async fn connection(shared: Rc<Shared>, stream: Stream, _slot: Slot) {
    let done = async {
        let socket = Socket::new(stream)?;
        let reply = match tokio::time::timeout(REQUEST_TIMEOUT, request(&socket)).await {
            Ok(Ok(Some(asked))) => page(&shared, asked),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            // What was read for is still in flight, but that does not keep an answer from going out.
            Err(_) => Reply::refusal(Refusal::TooSlow),
        };
        tokio::time::timeout(WRITE_TIMEOUT, socket.write_all(reply.into_bytes()))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        socket.end_writing();
        // A socket that is closed with something unread in it takes the answer back on the other side.
        let rest = async { while socket.read(READ_BYTES).await.is_ok_and(|b| !b.is_empty()) {} };
        let _ = tokio::time::timeout(LINGER_TIMEOUT, rest).await;
        Ok(())
    };
    if let Err(error) = done.await {
        tracing::debug!("a request for metrics ended: {error}");
    }
}

/// What is asked for; `None` if nothing is.
async fn request(socket: &Socket) -> io::Result<Option<Asked>> {
    let mut received = Vec::new();
    loop {
        let bytes = socket.read(READ_BYTES).await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        received.extend_from_slice(&bytes);
        if let Some(asked) = http::parse(&received) {
            return Ok(Some(asked));
        }
    }
}

fn page(shared: &Shared, asked: Asked) -> Reply {
    match asked {
        Asked::Page { format, head } => {
            let snapshot = shared.data.snapshot();
            let status = shared.status.borrow_mut().build(shared, &snapshot);
            let scrape = exposition::Scrape {
                me: shared.me,
                verify_clean_at: shared.status.borrow().dates.clean_at(),
                status,
                snapshot,
                meters: shared.data.meters.clone(),
                nbd_negotiating: shared.nbd_waiting.taken(),
                admin_connections: shared.admin_slots.taken(),
                metrics_connections: shared.metrics_slots.taken(),
            };
            match exposition::encode(scrape, format) {
                Ok(text) => Reply::page(format, text, head),
                Err(std::fmt::Error) => Reply::refusal(Refusal::Broken),
            }
        }
        Asked::Refused(refusal) => Reply::refusal(refusal),
    }
}

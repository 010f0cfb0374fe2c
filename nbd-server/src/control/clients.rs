//! NBD clients, from the connection to the choice of an export; then they are the data thread's.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use replicator::meta::volumes::Volumes;
use replicator::types::VolumeId;

use super::runtime::{self, Socket, TcpListener, UnixListener};
use super::waiting::Place;
use super::{NBD_CONNECTIONS_MAX, Shared};
use crate::handle::{Stream, ToData};
use crate::nbd::{Export, ExportIndex, Limits, NegotiationEvent, Session, Terms};

/// How long a client may take to choose an export.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait when the system has no file descriptor left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const READ_BYTES: usize = 4096;

pub(super) async fn accept_unix(shared: Rc<Shared>, listener: UnixListener) {
    loop {
        let accepted = listener.accept().await;
        take(&shared, accepted).await;
    }
}

pub(super) async fn accept_tcp(shared: Rc<Shared>, listener: TcpListener) {
    loop {
        let accepted = listener.accept().await;
        take(&shared, accepted).await;
    }
}

async fn take(shared: &Rc<Shared>, accepted: io::Result<Stream>) {
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!("an NBD client can not be accepted: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            return;
        }
    };
    if shared.stopping.get() {
        return;
    }
    let transmitting: u32 = shared.data.snapshot().nbd_clients.iter().sum();
    if transmitting >= NBD_CONNECTIONS_MAX {
        tracing::warn!("an NBD client is turned away: there are too many");
        return;
    }
    let place = shared.nbd_waiting.enter();
    runtime::spawn(negotiate(Rc::clone(shared), stream, place));
}

async fn negotiate(shared: Rc<Shared>, stream: Stream, place: Place) {
    let socket = match Socket::new(stream) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!("an NBD client is turned away: {error}"),
    };
    let chosen = tokio::select! {
        chosen = tokio::time::timeout(NEGOTIATION_TIMEOUT, choose(&shared, &socket)) => chosen,
        () = place.lost() => return,
    };
    match chosen {
        Ok(Ok(Some((ExportIndex(index), terms, leftover)))) => {
            let Ok(volume) = u16::try_from(index) else {
                return;
            };
            // With an operation in flight it would be no socket to hand on.
            let Some(stream) = socket.into_stream() else {
                return;
            };
            let volume = VolumeId(volume);
            if !shared.data.send(ToData::Client {
                stream,
                volume,
                terms,
                leftover,
            }) {
                tracing::warn!("an NBD client is turned away: the data thread has ended");
            }
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!("an NBD client left during its negotiation: {error}"),
        Err(_) => tracing::info!("an NBD client did not choose an export in time"),
    }
}

/// The export that a client chose, what else was agreed on, and the bytes that were read past its choice.
type Choice = (ExportIndex, Terms, Vec<u8>);

/// What the client chose; `None` if it chose nothing.
async fn choose(shared: &Shared, socket: &Socket) -> io::Result<Option<Choice>> {
    let mut session = Session::new(Limits::default());
    let mut input = Vec::new();
    loop {
        let event = {
            let mut exports = shared.exports.borrow_mut();
            exports.set_serving(shared.serving());
            if let Some(volumes) = shared.volumes() {
                let exports_of = volumes.slots().map(|v| Export {
                    name: v.name.to_string(),
                    size_bytes: v.bytes,
                });
                exports.set_exports(exports_of);
            }
            let (taken, event) = session.negotiate(&input, &exports);
            input.drain(..taken);
            event
        };
        if !session.output().is_empty() {
            let output = session.output().to_vec();
            let length = output.len();
            socket.write_all(output).await?;
            session.advance_output(length);
        }
        match event {
            NegotiationEvent::Send => {}
            NegotiationEvent::NeedInput => {
                let bytes = socket.read(READ_BYTES).await?;
                if bytes.is_empty() {
                    return Ok(None);
                }
                input.extend_from_slice(&bytes);
            }
            NegotiationEvent::Transmission { export } => {
                return Ok(Some((export, session.terms(), input)));
            }
            NegotiationEvent::Close(reason) => {
                tracing::debug!("an NBD client's negotiation ended: {reason}");
                return Ok(None);
            }
            NegotiationEvent::StartTls => return Ok(None),
        }
    }
}

impl Shared {
    /// The volumes, once the data thread has told of them.
    pub(super) fn volumes(&self) -> Option<Arc<Volumes>> {
        let snapshot = self.data.snapshot();
        (snapshot.at.0 != 0).then_some(snapshot.volumes)
    }

    /// Whether exports may be opened, or what a client is told.
    fn serving(&self) -> Result<(), String> {
        let view = self.data.snapshot().view;
        if view.serving && self.turns_away.get() {
            return Err(format!(
                "{} reaches no majority of the nodes of {}, and serves nobody until it does",
                self.node().name,
                self.config.resource
            ));
        }
        if view.serving && !self.stopping.get() {
            return Ok(());
        }
        let me = &self.node().name;
        let resource = &self.config.resource;
        let primary = view
            .primary
            .and_then(|primary| self.config.nodes.get(usize::from(primary.0)));
        Err(match primary {
            Some(primary) if primary.name == *me => {
                format!("{me} is Primary of {resource} but does not serve yet; try again")
            }
            Some(primary) => {
                format!(
                    "{} is Primary of {resource}, not {me}; connect there",
                    primary.name
                )
            }
            None => format!(
                "{me} is not Primary of {resource} and knows of no other; run replctl promote"
            ),
        })
    }
}

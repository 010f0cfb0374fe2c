//! The control thread: what happens once per connection and not once per request.
//!
//! It owns the listening sockets, answers operators, leads NBD clients and peers through their handshakes and then
//! gives the socket to the data thread, through [`crate::handle`]. It answers from the snapshot that the data thread
//! publishes, so it answers also when that thread or a disk hangs.
//!
//! | module | what it knows |
//! |---|---|
//! | [`runtime`] | the only one that knows which asynchronous runtime this is |
//! | `listen` | sockets that listen: stale ones replaced, modes, limits |
//! | `admin` | operators |
//! | `clients` | NBD clients, until they have chosen an export |
//! | `peers` | other nodes, until the hellos are exchanged |
//! | `metrics` | collectors of metrics |
//! | `fencing` | the configured fence-peer handler |
//! | `selffence` | clients and a watchdog, when a Primary's lease is over |
//! | `scrub` | dates of verifications, and when one is due |
//! | `status` | from a snapshot to what operators read |

mod admin;
mod clients;
mod fencing;
mod listen;
mod metrics;
mod peers;
pub mod runtime;
mod scrub;
mod selffence;
mod status;
#[cfg(test)]
mod tests;
mod waiting;

pub use listen::{ListenError, Listeners};

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use replicator::types::Time;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin::Status;
use crate::config::{Config, Node};
use crate::handle::{DataCommand, DataHandle, ToControl, ToData};
use crate::nbd::{Export, ExportTable, ExportTableError};
use crate::reactor::CLIENTS_MAX;

use listen::Slots;
use peers::Link;
use status::StatusBuilder;
use waiting::WaitingRoom;

/// Open files without which a daemon does not start: disks, rings, and a few connections of each kind.
pub const FILES_MIN: u64 = 256;

/// The most NBD connections in transmission.
pub const NBD_CONNECTIONS_MAX: u32 = CLIENTS_MAX as u32;
/// The most NBD connections that have not chosen an export yet.
pub const NBD_NEGOTIATING_MAX: u32 = 100;
/// The most connections of operators.
pub const ADMIN_CONNECTIONS_MAX: u32 = 64;

/// How long a clean stop may take before the daemon ends without it.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the control thread did not start, or ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No runtime.
    #[error(
        "the control thread can not start: {0}; io_uring may be disabled, see kernel.io_uring_disabled"
    )]
    Runtime(std::io::Error),
    /// No listening sockets.
    #[error("the control thread can not watch its sockets: {0}")]
    Listen(std::io::Error),
    /// No signal handlers.
    #[error("signals can not be handled: {0}")]
    Signals(std::io::Error),
    /// Volumes that NBD can not show.
    #[error("the volumes can not be exported: {0}")]
    Exports(#[from] ExportTableError),
    /// No watchdog.
    #[error(
        "[watchdog] device = {path:?} can not be opened: {source}; load its driver, for example softdog, or leave [watchdog] out"
    )]
    Watchdog {
        /// The device.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The data thread gave up.
    #[error("the data thread ended: {0}")]
    DataThread(String),
    /// The data thread did not stop in time.
    #[error(
        "the data thread did not stop within {} s; what was acknowledged is in the journal",
        STOP_TIMEOUT.as_secs()
    )]
    StopTimeout,
}

/// Runs the control thread on the calling thread, until a SIGTERM or SIGINT stopped the data thread cleanly or that
/// ended by itself. `ready` is called once everything is served.
///
/// # Errors
/// Why it could not start, or what the data thread died of.
pub fn run(
    config: Arc<Config>,
    me: usize,
    listeners: Listeners,
    data: DataHandle,
    from_data: mpsc::UnboundedReceiver<ToControl>,
    ready: impl FnOnce(),
) -> Result<(), ControlError> {
    let exports = config.volumes.iter().map(|volume| Export {
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
    });
    let exports = ExportTable::new(exports.collect(), "repld is starting; try again")?;
    let open = |watchdog: &crate::config::Watchdog| {
        selffence::Watchdog::open(watchdog).map_err(|source| ControlError::Watchdog {
            path: watchdog.device.clone(),
            source,
        })
    };
    let watchdog = config.watchdog.as_ref().map(open).transpose()?;
    let runtime = runtime::Runtime::new().map_err(ControlError::Runtime)?;
    runtime.block_on(async move {
        let shared = Rc::new(Shared {
            me,
            data,
            exports: RefCell::new(exports),
            links: config.nodes.iter().map(|_| Link::default()).collect(),
            stranger: RefCell::new(None),
            status: RefCell::new(StatusBuilder::new(&config, me)),
            changed: watch::Sender::new(0),
            admin_slots: Slots::new(ADMIN_CONNECTIONS_MAX),
            metrics_slots: Slots::new(metrics::CONNECTIONS_MAX),
            admin_waiting: WaitingRoom::new(ADMIN_CONNECTIONS_MAX, "operators"),
            nbd_waiting: WaitingRoom::new(NBD_NEGOTIATING_MAX, "NBD clients"),
            stopping: Cell::new(false),
            fencing: fencing::Fencing::default(),
            watchdog: RefCell::new(watchdog),
            turns_away: Cell::new(false),
            config,
        });
        let sockets = listeners.paths();
        let ended = serve(&shared, listeners, from_data, ready).await;
        for path in sockets {
            // What stays behind is replaced by the next start.
            let _ = std::fs::remove_file(path);
        }
        if ended.is_ok()
            && let Some(watchdog) = shared.watchdog.take()
        {
            watchdog.close();
        }
        ended
    })
}

async fn serve(
    shared: &Rc<Shared>,
    listeners: Listeners,
    mut from_data: mpsc::UnboundedReceiver<ToControl>,
    ready: impl FnOnce(),
) -> Result<(), ControlError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ControlError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ControlError::Signals)?;
    let listeners = listeners.into_runtime().map_err(ControlError::Listen)?;
    runtime::spawn(admin::accept(Rc::clone(shared), listeners.admin));
    if let Some(nbd_unix) = listeners.nbd_unix {
        runtime::spawn(clients::accept_unix(Rc::clone(shared), nbd_unix));
    }
    if let Some(nbd_tcp) = listeners.nbd_tcp {
        runtime::spawn(clients::accept_tcp(Rc::clone(shared), nbd_tcp));
    }
    if let Some(listener) = listeners.metrics {
        runtime::spawn(metrics::accept(Rc::clone(shared), listener));
    }
    runtime::spawn(peers::accept(Rc::clone(shared), listeners.peers));
    for peer in shared.me + 1..shared.config.nodes.len() {
        runtime::spawn(peers::dial(Rc::clone(shared), peer));
    }
    runtime::spawn(scrub::run(Rc::clone(shared)));
    runtime::spawn(fencing::run(Rc::clone(shared)));
    runtime::spawn(selffence::run(Rc::clone(shared)));
    ready();

    loop {
        let asked = tokio::select! {
            message = from_data.recv() => {
                if let Some(ended) = shared.take(message) {
                    return ended.map_or(Ok(()), |reason| Err(ControlError::DataThread(reason)));
                }
                continue;
            }
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("stopping: {asked}");
        break;
    }

    shared.stopping.set(true);
    shared.bump();
    let (answer, _answered) = oneshot::channel();
    shared.data.send(ToData::Command {
        command: DataCommand::Stop,
        answer,
    });
    let stopped = async {
        loop {
            if let Some(ended) = shared.take(from_data.recv().await) {
                return ended;
            }
        }
    };
    match tokio::time::timeout(STOP_TIMEOUT, stopped).await {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(ControlError::DataThread(reason)),
        Err(_) => Err(ControlError::StopTimeout),
    }
}

/// What the tasks of the control thread share.
struct Shared {
    config: Arc<Config>,
    /// This node's index.
    me: usize,
    data: DataHandle,
    exports: RefCell<ExportTable>,
    /// One per node, this one included.
    links: Vec<Link>,
    /// What was last wrong with a connection that no peer could be made out of.
    stranger: RefCell<Option<String>>,
    status: RefCell<StatusBuilder>,
    /// Counts up with everything that status watchers want to see.
    changed: watch::Sender<u64>,
    admin_slots: Slots,
    metrics_slots: Slots,
    admin_waiting: WaitingRoom,
    nbd_waiting: WaitingRoom,
    stopping: Cell<bool>,
    fencing: fencing::Fencing,
    /// Open from the start on, if there is to be one.
    watchdog: RefCell<Option<selffence::Watchdog>>,
    /// Clients are turned away, since the lease has been over for too long.
    turns_away: Cell<bool>,
}

/// The time that a host and its guests agree on, also over their pauses.
fn boottime() -> Time {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    Time(now.map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
    }))
}

impl Shared {
    fn node(&self) -> &Node {
        &self.config.nodes[self.me]
    }

    fn bump(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Handles a message of the data thread; `Some` if it ended, with the reason if it was not asked to.
    fn take(&self, message: Option<ToControl>) -> Option<Option<String>> {
        match message {
            Some(ToControl::PeerDown { peer }) => {
                if let Some(link) = self.links.get(usize::from(peer.0)) {
                    link.down();
                }
            }
            Some(ToControl::Reach { peer, wanted }) => {
                if let Some(link) = self.links.get(usize::from(peer.0)) {
                    link.reach(wanted);
                }
            }
            Some(ToControl::StandAlone { peer, why }) => {
                if let Some(link) = self.links.get(usize::from(peer.0)) {
                    link.stand_alone(why);
                }
            }
            Some(ToControl::Changed) => {}
            Some(ToControl::Ended { failed }) => return Some(failed),
            None => return Some(Some("it is gone without a word".to_owned())),
        }
        self.bump();
        None
    }

    fn status(&self) -> Status {
        let snapshot = self.data.snapshot();
        self.status.borrow_mut().build(self, &snapshot)
    }
}

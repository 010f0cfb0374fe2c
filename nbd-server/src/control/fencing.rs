//! The configured fence-peer handler: a program with the environment and the exit codes of DRBD's, which makes sure that the other one
//! of two nodes is off. I/O waits meanwhile, since there is no majority without it.
//!
//! It is called once for each loss: when a Primary's lease is over and the other node is not connected, and when a node that is to be
//! promoted does not get a connection to the other one. Only if it says that the other node was switched off is that node's stop
//! confirmed, by the same word that an operator gives with `replctl confirm-stopped`. Whatever else it says leaves things as they are,
//! and the status tells it. If the other node was connected in the meantime, however shortly, what the handler says comes too late.

use std::cell::{Cell, RefCell};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use replicator::meta::volumes::Volumes;
use replicator::types::{NodeId, VolumeId};
use replicator::view::{ConnectionState, DiskState, Membership, Role, Suspended, View};
use tokio::sync::oneshot;

use super::Shared;
use crate::config::{Config, FencePeer};
use crate::handle::DataCommand;

/// How often it is looked at whether somebody is lost.
const TICK: Duration = Duration::from_millis(200);
/// How often it is looked at whether the handler has ended.
const POLL: Duration = Duration::from_millis(20);
/// How long the data thread may take to hear of it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(8);
/// A node that is to be promoted waits so many leases for the other one before it calls the handler.
const GRACE_LEASES: u32 = 2;

/// What is known of the handler.
#[derive(Debug, Default)]
pub(super) struct Fencing {
    /// It runs, because of this node.
    running: Cell<Option<usize>>,
    /// What it came to the last time, while that still counts.
    said: RefCell<Option<String>>,
    /// Promotions that are being tried.
    promotions: Cell<u32>,
    /// How many were begun: each may call the handler once.
    begun: Cell<u64>,
}

/// A promotion that is being tried, until it is dropped.
pub(super) struct Promotion<'a>(&'a Fencing);

impl Drop for Promotion<'_> {
    fn drop(&mut self) {
        self.0.promotions.set(self.0.promotions.get() - 1);
    }
}

impl Fencing {
    /// A promotion is tried now.
    pub(super) fn promotion(&self) -> Promotion<'_> {
        self.promotions.set(self.promotions.get() + 1);
        self.begun.set(self.begun.get() + 1);
        Promotion(self)
    }

    /// Whether the handler is awaited.
    pub(super) fn runs(&self) -> bool {
        self.running.get().is_some()
    }

    /// What to tell operators besides.
    pub(super) fn note(&self, config: &Config) -> Option<String> {
        if let Some(peer) = self.running.get() {
            let name = &config.nodes[peer].name;
            return Some(format!("the fence-peer handler is being run for {name}"));
        }
        self.said.borrow().clone()
    }
}

/// What an exit code of DRBD's fence-peer handlers says.
fn meaning(code: i32) -> &'static str {
    match code {
        3 => "the peer's data is inconsistent",
        4 => "the peer is outdated",
        5 => "the peer is not reached",
        6 => "the peer is Primary",
        7 => "the peer was switched off",
        _ => "that is no exit code of such a handler",
    }
}

/// The only code that says for certain that the peer does not run any more.
const SWITCHED_OFF: i32 = 7;

/// Calls the handler when it is needed.
pub(super) async fn run(shared: Rc<Shared>) {
    let Some(fence_peer) = shared.config.fence_peer.clone() else {
        return;
    };
    // The config has made sure that there are two.
    let peer = usize::from(shared.me == 0);
    let fencing = &shared.fencing;
    let mut changed = shared.changed.subscribe();
    // How often the peer had been connected when it was called last: once for each loss.
    let mut called = None;
    let mut called_for = fencing.begun.get();
    let mut promoting_since = None;
    loop {
        changed.mark_unchanged();
        let view = shared.data.snapshot().view;
        let other = view.peers.first();
        let connection = other.map(|peer| peer.connection);
        // Whoever counts for nothing is not waited for.
        let counts = other.is_some_and(|peer| peer.membership == Membership::Full);
        if connection == Some(ConnectionState::Connected) {
            called = None;
            if fencing.said.take().is_some() {
                shared.bump();
            }
        }
        if fencing.promotions.get() == 0 || shared.links[peer].is_up() {
            promoting_since = None;
        } else {
            promoting_since = promoting_since.or_else(|| Some(Instant::now()));
        }
        let grace = GRACE_LEASES * Duration::from_millis(shared.config.policy.lease_ms.into());
        let lost = counts
            && connection == Some(ConnectionState::Connecting)
            && !shared.links[peer].is_up();
        let ups = shared.links[peer].ups();
        let as_primary = is_without_lease(&view) && called != Some(ups);
        let as_secondary = view.role == Role::Secondary
            && matches!(view.disk_state, DiskState::Consistent | DiskState::UpToDate)
            && promoting_since.is_some_and(|since: Instant| since.elapsed() >= grace)
            && called_for != fencing.begun.get();
        if lost && (as_primary || as_secondary) && !shared.stopping.get() {
            called = Some(ups);
            called_for = fencing.begun.get();
            call(&shared, &fence_peer, peer, &view).await;
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

fn is_without_lease(view: &View) -> bool {
    view.role == Role::Primary && view.suspended == Suspended::Quorum
}

/// Runs the handler, and confirms the stop of the peer if that is what it says.
async fn call(shared: &Shared, fence_peer: &FencePeer, peer: usize, view: &View) {
    let name = &shared.config.nodes[peer].name;
    let handler = fence_peer.handler.display();
    let ups = shared.links[peer].ups();
    tracing::warn!("{name} is lost: {handler} is called to make sure of it, and I/O waits");
    shared.fencing.said.replace(None);
    shared.fencing.running.set(Some(peer));
    shared.bump();
    let volumes = shared.data.snapshot().volumes;
    let command = command(&shared.config, shared.me, peer, fence_peer, view, &volumes);
    let result = run_to_end(command, fence_peer.timeout).await;
    shared.fencing.running.set(None);
    let said = match result.map(|status| (status.code(), status)) {
        Err(why) => Some(format!("the fence-peer handler failed: {why}")),
        Ok((Some(code), _)) if shared.links[peer].ups() != ups => {
            tracing::warn!(
                "{handler} ended with {code} for {name}, which was connected in the meantime: that comes too late"
            );
            None
        }
        Ok((Some(SWITCHED_OFF), _)) => {
            let node = NodeId(u8::try_from(peer).unwrap_or(u8::MAX));
            let command = DataCommand::ConfirmStopped { peer: node };
            tracing::warn!("{handler} says that {name} was switched off (7)");
            let done = shared.command(command, COMMAND_TIMEOUT).await;
            done.err().map(|error| {
                format!(
                    "the fence-peer handler has switched {name} off, which does not help: {error}"
                )
            })
        }
        Ok((Some(code), _)) => Some(format!(
            "the fence-peer handler ended with {code} ({}), which does not say for certain that {name} is off",
            meaning(code)
        )),
        Ok((None, status)) => Some(format!(
            "the fence-peer handler was ended by signal {}",
            status.signal().unwrap_or(0)
        )),
    };
    if let Some(said) = &said {
        tracing::warn!("{said}; once it is, replctl confirm-stopped {name} says so");
    }
    shared.fencing.said.replace(said);
    shared.bump();
}

/// The handler with DRBD's environment, and nothing else of ours.
fn command(
    config: &Config,
    me: usize,
    peer: usize,
    fence_peer: &FencePeer,
    view: &View,
    volumes: &Volumes,
) -> Command {
    let mut command = Command::new(&fence_peer.handler);
    let (own, other) = (&config.nodes[me], &config.nodes[peer]);
    let family = |address: std::net::SocketAddr| if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let minors: Vec<_> = volumes.iter().map(|(id, _)| id.0.to_string()).collect();
    let minors = minors.join(" ");
    let up_to_date = u64::from(matches!(
        view.disk_state,
        DiskState::UpToDate | DiskState::Consistent
    )) << me;
    command
        .env_clear()
        .env("HOME", "/")
        .env("TERM", "linux")
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("DRBD_CONF", &config.file)
        .env("DRBD_RESOURCE", &config.resource)
        .env("DRBD_MY_NODE_ID", me.to_string())
        .env("DRBD_MY_ADDRESS", own.address.ip().to_string())
        .env("DRBD_MY_AF", family(own.address))
        .env("DRBD_PEER", &other.name)
        .env("DRBD_PEERS", &other.name)
        .env("DRBD_PEER_NODE_ID", peer.to_string())
        .env("DRBD_PEER_ADDRESS", other.address.ip().to_string())
        .env("DRBD_PEER_AF", family(other.address))
        .env("DRBD_CSTATE", "Connecting")
        .env("DRBD_VOLUME", &minors)
        .env("DRBD_MINOR", &minors)
        .env("UP_TO_DATE_NODES", format!("0x{up_to_date:08X}"))
        .stdin(Stdio::null())
        .process_group(0);
    for (id, node) in config.nodes.iter().enumerate() {
        command.env(format!("DRBD_NODE_ID_{id}"), &node.name);
    }
    for (VolumeId(id), volume) in volumes.iter() {
        let volume = config
            .volumes
            .iter()
            .find(|v| v.name == volume.name.as_str());
        if let Some(volume) = volume {
            command.env(format!("DRBD_BACKING_DEV_{id}"), own.store_path(volume));
        }
        command.env(format!("DRBD_MINOR_{id}"), id.to_string());
    }
    command
}

/// Runs a program on a thread of its own, so that nothing else waits for it; it is killed when its time is over.
async fn run_to_end(mut command: Command, timeout: Duration) -> Result<ExitStatus, String> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        let ended = command
            .spawn()
            .map_err(|error| format!("it can not be run: {error}"))
            .and_then(|child| wait(child, timeout));
        // Whoever asked may have gone.
        let _ = sender.send(ended);
    };
    let thread = std::thread::Builder::new().name("fence-peer".into());
    thread
        .spawn(work)
        .map_err(|error| format!("there is no thread for it: {error}"))?;
    receiver
        .await
        .unwrap_or_else(|_| Err("its thread is gone".to_owned()))
}

fn wait(mut child: Child, timeout: Duration) -> Result<ExitStatus, String> {
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Err(error) => return Err(format!("it can not be waited for: {error}")),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            Ok(None) => {
                // Not waited for yet, so the number is still its own, and that of its group.
                let group = i32::try_from(child.id()).unwrap_or(i32::MAX);
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
                let _ = child.wait();
                return Err(format!("it did not end within {} s", timeout.as_secs()));
            }
        }
    }
}

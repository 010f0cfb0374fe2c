//! The turn of the data thread: what has ended becomes inputs of the core, what the core wants becomes operations.
//!
//! A turn takes all completions first, then reads the time, hands everything in, closes the core's batch, and takes
//! its outputs; what they start is submitted by the one system call that also waits for the next turn.

mod messages;
mod yielding;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use replicator::io::{AdminCommand, Input, LogLevel, LogLine, Output};
use replicator::meta::superblock::VolumeRecord;
use replicator::meta::volumes::Volumes;
use replicator::types::*;

use super::acks::Acknowledgements;
use super::admin::{Commands, refusal};
use super::client::{Client, CloseReason};
use super::disk::Disks;
use super::engine::{self, Asked, Core, Engine, Progress, ReadBudget};
use super::holes::{Mapped, Mapper};
use super::link::Link;
use super::peer::{Peer, PeerError};
use super::pool::{Pool, PoolBuffer};
use super::publish::Publisher;
use super::queues;
use super::record::{Event, Recorder};
use super::replies::Replies;
use super::ring::{Completion, Ring, RingError};
use super::slab::Slab;
use super::tag::Tag;
use super::{CLIENTS_MAX, PEERS_MAX};
use crate::handle::{ControlHandle, DataCommand, Stream, ToControl, ToData};
use crate::nbd::{ExportIndex, Limits, Session, Terms};

/// How long a stop waits for the core to apply what is committed. The journal has it all in any case.
const STOP_NANOS_MAX: u64 = 20_000_000_000;

/// What a server begins with.
#[derive(Debug)]
pub struct Parts<C> {
    /// The state machine.
    pub core: C,
    /// The ring, unused.
    pub ring: Ring<Tag>,
    /// The files.
    pub disks: Disks,
    /// The memory.
    pub pool: Pool,
    /// Who asks the stores for holes, and rings the bell.
    pub mapper: Mapper,
    /// The bound of requests that the core works on.
    pub requests_max: u32,
    /// How long clients wait for this node's disks while another node could serve them, in milliseconds.
    pub disk_timeout_ms: u32,
    /// The control thread.
    pub control: ControlHandle,
    /// What takes notes.
    pub recorder: Recorder,
}

/// The data thread's state.
#[derive(Debug)]
pub struct Server<C> {
    engine: Engine<C>,
    disks: Disks,
    pool: Pool,
    /// The volumes, as clients know them.
    volumes: Arc<Volumes>,
    clients: Slab<Client>,
    nbd_clients: [u32; VOLUMES_MAX],
    peers: Slab<Peer>,
    next_conn: u64,
    /// Connections that may go on.
    runnable: VecDeque<Runner>,
    /// Connections that wait for memory or for the core, the longest first.
    parked: VecDeque<Runner>,
    parked_with: engine::Supply,
    dirty_clients: Vec<u32>,
    dirty_peers: Vec<u32>,
    control: ControlHandle,
    bell: Rc<OwnedFd>,
    commands: Commands,
    publisher: Publisher,
    acks: Acknowledgements,
    /// Since when there has been nothing to do.
    idle_since: Option<Time>,
    completions: Vec<Completion<Tag>>,
    stop: Option<Stop>,
    disk_timeout_nanos: u64,
    /// They have not answered for that long.
    disks_hang: bool,
}

#[derive(Clone, Copy, Debug)]
enum Runner {
    Client(u32),
    Peer(u32),
}

#[derive(Clone, Copy, Debug)]
struct Stop {
    id: AdminId,
    deadline: Time,
    done: bool,
}

impl<C: Core> Server<C> {
    /// A server that has not begun.
    ///
    /// # Errors
    /// The bell's descriptor can not be duplicated.
    pub fn new(parts: Parts<C>) -> std::io::Result<Self> {
        use replicator::memory::{Memory, Purpose};
        let Parts {
            core,
            ring,
            disks,
            pool,
            mapper,
            requests_max,
            disk_timeout_ms,
            control,
            recorder,
        } = parts;
        let volumes = Arc::new(core.volumes().clone());
        let bell = Rc::new(control.bell.as_fd().try_clone_to_owned()?);
        let places = CLIENTS_MAX + PEERS_MAX;
        let engine = Engine {
            core,
            ring,
            asked: Slab::new(requests_max.max(1) as usize),
            reads: ReadBudget::new(pool.total_blocks(Purpose::Client) / 2),
            mapper,
            admitted_at: engine::now(),
            now: engine::now(),
            recorder,
            meters: Arc::clone(&control.meters),
        };
        Ok(Self {
            engine,
            disks,
            publisher: Publisher::new(pool.clone()),
            pool,
            volumes,
            clients: Slab::new(CLIENTS_MAX),
            nbd_clients: [0; VOLUMES_MAX],
            peers: Slab::new(PEERS_MAX),
            next_conn: 1,
            runnable: VecDeque::with_capacity(places),
            parked: VecDeque::with_capacity(places),
            parked_with: engine::Supply::default(),
            dirty_clients: Vec::with_capacity(CLIENTS_MAX),
            dirty_peers: Vec::with_capacity(PEERS_MAX),
            control,
            bell,
            commands: Commands::default(),
            acks: Acknowledgements::default(),
            idle_since: None,
            completions: Vec::with_capacity(super::OPERATIONS_MAX as usize),
            stop: None,
            disk_timeout_nanos: u64::from(disk_timeout_ms) * 1_000_000,
            disks_hang: false,
        })
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// The ring broke.
    pub fn run(mut self) -> Result<(), RingError> {
        let result = self.work();
        let answer = match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(refusal(1, &error.to_string())),
        };
        self.commands.end(&answer);
        let failed = result.as_ref().err().map(ToString::to_string);
        // The control thread may have ended before.
        let _ = self.control.sender.send(ToControl::Ended { failed });
        result
    }

    fn work(&mut self) -> Result<(), RingError> {
        self.engine.ring.poll_readable(Tag::Bell, &self.bell);
        self.turn();
        loop {
            let wait = self.wait();
            self.engine.ring.enter(Some(wait))?;
            self.turn();
            let now = self.engine.now;
            if let Some(stop) = self.stop
                && (stop.done || now >= stop.deadline)
            {
                if !stop.done {
                    tracing::warn!("stopping before all of the journal was applied to the stores");
                }
                return Ok(());
            }
        }
    }

    /// How long there is nothing to do.
    fn wait(&mut self) -> Duration {
        if self.has_work() {
            return Duration::ZERO;
        }
        let mut until = self.publisher.due();
        if let Some(time) = self.engine.core.poll_timeout() {
            until = until.min(time);
        }
        if let Some(time) = self.disks.watch().slow_at() {
            until = until.min(time);
        }
        if let Some(stop) = &self.stop {
            until = until.min(stop.deadline);
        }
        let now = engine::now();
        self.idle_since = Some(now);
        Duration::from_nanos(until.since(now))
    }

    fn has_work(&mut self) -> bool {
        !self.runnable.is_empty()
            || self.disks.has_ended()
            || self.peers.find(is_unreported).is_some()
            || (!self.parked.is_empty() && self.engine.supply().has_grown_since(&self.parked_with))
    }

    fn turn(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.engine.ring.reap(&mut completions);
        self.engine.now = engine::now();
        self.begin_turn();
        for completion in completions.drain(..) {
            self.dispatch(completion);
        }
        self.completions = completions;
        while let Some((ticket, result)) = self.disks.pop_ended() {
            self.engine.input(Input::DiskDone { ticket, result });
        }
        self.run_connections();
        self.sweep_peers();
        self.watch_disks();
        let now = self.engine.now;
        self.engine.core.end_turn(now);
        while let Some(output) = self.engine.core.poll() {
            self.perform(output);
        }
        self.follow_volumes();
        self.flush_connections();
        self.publish();
        self.commands.deliver();
    }

    fn begin_turn(&mut self) {
        let (now, meters) = (self.engine.now, &self.engine.meters);
        meters.turns.add(1);
        if let Some(since) = self.idle_since.take() {
            meters.idle_nanos.add(now.since(since));
        }
    }

    fn dispatch(&mut self, completion: Completion<Tag>) {
        let result = completion.result;
        match completion.tag {
            Tag::Bell => {
                // Read first: a message that comes later rings again.
                let _ = self.control.bell.read();
                self.take_messages();
                while let Some(stores) = self.disks.moved() {
                    if let Some(stores) = stores {
                        self.engine.mapper.stores_are(&stores);
                    }
                }
                while let Some(Mapped { client, extents }) = self.engine.mapper.answered() {
                    if let Some(client) = self.clients.get_mut(client) {
                        client.mapped(extents);
                    }
                    self.wake_client(client);
                }
                self.engine.ring.poll_readable(Tag::Bell, &self.bell);
            }
            Tag::Disk(key) => {
                let (ring, now) = (&mut self.engine.ring, self.engine.now);
                if let Some((ticket, result)) = self.disks.completed(ring, now, key, completion) {
                    self.engine.input(Input::DiskDone { ticket, result });
                }
            }
            Tag::ClientReceive(key) => {
                if let Some(client) = self.clients.get_mut(key) {
                    client.received(&mut self.engine.reads, result);
                }
                self.wake_client(key);
            }
            Tag::ClientSend(key) => {
                if let Some(client) = self.clients.get_mut(key) {
                    client.sent(&mut self.engine, key, result);
                    client.flush(&mut self.engine, key);
                }
                self.wake_client(key);
            }
            Tag::PeerReceive(key) => {
                if let Some(peer) = self.peers.get_mut(key) {
                    let meters = self.engine.meters.peer(usize::from(peer.node().0));
                    meters.received_bytes.add(u64::from(result.unwrap_or(0)));
                    peer.received(result);
                }
                self.wake_peer(key);
            }
            Tag::PeerSend(key) => {
                if let Some(peer) = self.peers.get_mut(key) {
                    let meters = self.engine.meters.peer(usize::from(peer.node().0));
                    meters.sent_bytes.add(u64::from(result.unwrap_or(0)));
                    peer.sent(&mut self.engine, key, result);
                }
            }
        }
    }

    fn wake_client(&mut self, key: u32) {
        self.settle_client(key);
        if let Some(client) = self.clients.get_mut(key)
            && client.over().is_none()
            && !std::mem::replace(&mut client.queued, true)
        {
            self.runnable.push_back(Runner::Client(key));
        }
    }

    fn wake_peer(&mut self, key: u32) {
        if let Some(peer) = self.peers.get_mut(key)
            && peer.over().is_none()
            && !std::mem::replace(&mut peer.queued, true)
        {
            self.runnable.push_back(Runner::Peer(key));
        }
    }

    /// Lets connections hand in requests and frames, the ones that have waited longest first.
    fn run_connections(&mut self) {
        while let Some(runner) = self.parked.pop_back() {
            self.runnable.push_front(runner);
        }
        while let Some(runner) = self.runnable.pop_front() {
            let progress = match runner {
                Runner::Client(key) => {
                    let Some(client) = self.clients.get_mut(key) else {
                        continue;
                    };
                    let progress = client.advance(&mut self.engine, key);
                    client.queued = matches!(progress, Progress::Starved | Progress::More);
                    self.settle_client(key);
                    progress
                }
                Runner::Peer(key) => {
                    let Some(peer) = self.peers.get_mut(key) else {
                        continue;
                    };
                    let progress = peer.advance(&mut self.engine, key);
                    peer.queued = matches!(progress, Progress::Starved | Progress::More);
                    progress
                }
            };
            match progress {
                Progress::More => self.runnable.push_back(runner),
                Progress::Starved => self.parked.push_back(runner),
                Progress::Waits | Progress::Over => {}
            }
        }
        if !self.parked.is_empty() {
            self.parked_with = self.engine.supply();
        }
    }

    /// Counts a client out when it is over, and forgets it when the kernel is done with it.
    fn settle_client(&mut self, key: u32) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let Some(reason) = client.over() else { return };
        if client.counted {
            tracing::info!(volume = client.volume().0, %reason, "NBD client gone");
            client.counted = false;
            self.nbd_clients[usize::from(client.volume().0)] -= 1;
        }
        if !client.is_busy() {
            self.clients.remove(key);
        }
    }

    /// Reports peers that are over, and forgets them when the kernel is done with them.
    fn sweep_peers(&mut self) {
        while let Some(key) = self.peers.find(is_unreported) {
            let Some(peer) = self.peers.get_mut(key) else {
                return;
            };
            peer.reported = true;
            let (conn, node) = (peer.conn(), peer.node());
            if let Some(reason) = peer.over() {
                tracing::info!(peer = node.0, %reason, "connection to peer ended");
            }
            self.engine.input(Input::PeerDown { conn });
            let lives_on = |peer: &Peer| peer.node() == node && peer.over().is_none();
            if self.peers.find(lives_on).is_none() {
                self.tell(ToControl::PeerDown { peer: node });
            }
        }
        while let Some(key) = self.peers.find(|peer| peer.reported && !peer.is_busy()) {
            self.peers.remove(key);
        }
    }

    fn tell(&self, message: ToControl) {
        // The control thread may have ended; the bell's messages say so, too.
        let _ = self.control.sender.send(message);
    }

    fn perform(&mut self, output: Output<PoolBuffer>) {
        match output {
            Output::Disk { ticket, op } => {
                let now = self.engine.now;
                self.disks.start(&mut self.engine.ring, now, ticket, op);
            }
            Output::Send { conn, frame, batch } => {
                self.engine.recorder.note(|| Event::Said(&frame));
                let key = self.peers.find(|peer| peer.conn() == conn);
                if let Some((key, peer)) = key.and_then(|k| Some((k, self.peers.get_mut(k)?))) {
                    peer.push(frame, batch);
                    if !std::mem::replace(&mut peer.dirty, true) {
                        self.dirty_peers.push(key);
                    }
                }
            }
            Output::Drop {
                conn,
                reason,
                stand_alone,
            } => {
                let key = self.peers.find(|peer| peer.conn() == conn);
                if let Some(peer) = key.and_then(|key| self.peers.get_mut(key)) {
                    peer.close(PeerError::Dropped(reason));
                    let peer = peer.node();
                    if stand_alone {
                        self.tell(ToControl::StandAlone { peer, why: reason });
                    }
                }
            }
            Output::Reach { peer, wanted } => self.tell(ToControl::Reach { peer, wanted }),
            Output::Reply { req, result } => {
                self.engine.note_answer(req, &result);
                if let Some(work) = self.engine.answered(req) {
                    if let Some(client) = self.clients.get(work.asked.client) {
                        self.engine.count(client.volume(), &work, result.is_ok());
                    }
                    self.reply(work.asked, result);
                }
            }
            Output::DropClients => {
                self.drop_clients();
                self.engine.forget_all();
            }
            Output::AdminReply { id, result } => {
                if let Some(stop) = self.stop.as_mut().filter(|stop| stop.id == id) {
                    stop.done = true;
                }
                self.commands.answered(id, result);
            }
            Output::Log(LogLine { level, text }) => match level {
                LogLevel::Info => tracing::info!("{text}"),
                LogLevel::Warn => tracing::warn!("{text}"),
                LogLevel::Error => tracing::error!("{text}"),
            },
        }
    }

    fn reply(
        &mut self,
        asked: Asked,
        result: Result<replicator::io::Answer<PoolBuffer>, replicator::io::ClientError>,
    ) {
        let reads = &mut self.engine.reads;
        let Some(client) = self.clients.get_mut(asked.client) else {
            reads.give_back(asked.blocks);
            return;
        };
        client.answered(reads, asked, result);
        if !std::mem::replace(&mut client.dirty, true) {
            self.dirty_clients.push(asked.client);
        }
    }

    fn drop_clients(&mut self) {
        for (_, client) in self.clients.iter_mut() {
            client.close(&mut self.engine.reads, CloseReason::Dropped);
        }
        while let Some(key) = self
            .clients
            .find(|client| client.counted || !client.is_busy())
        {
            self.settle_client(key);
        }
    }

    fn flush_connections(&mut self) {
        while let Some(key) = self.dirty_clients.pop() {
            if let Some(client) = self.clients.get_mut(key) {
                client.flush(&mut self.engine, key);
                self.settle_client(key);
            }
        }
        while let Some(key) = self.dirty_peers.pop() {
            if let Some(peer) = self.peers.get_mut(key) {
                peer.flush(&mut self.engine, key);
            }
        }
    }

    fn publish(&mut self) {
        let about_to_wait = !self.has_work();
        let view = self.engine.core.view();
        let now = self.engine.now;
        self.acks.turn_ended(now, &view, &self.engine.meters);
        let queues = || {
            let connections = (&self.clients, &self.peers, self.parked.len());
            queues::gather(
                &self.engine,
                &self.disks,
                &self.pool,
                connections,
                &self.acks,
            )
        };
        self.publisher.publish(
            now,
            view,
            (self.nbd_clients, &self.volumes),
            queues,
            self.disks.watch().trouble(),
            (&self.control, about_to_wait),
        );
    }

    /// Volumes may have changed: who is attached can use what is new at once.
    fn follow_volumes(&mut self) {
        let volumes = self.engine.core.volumes();
        if *volumes == *self.volumes {
            return;
        }
        self.volumes = Arc::new(volumes.clone());
        let keys: Vec<u32> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(client) = self.clients.get_mut(key) {
                client.resize(self.volumes.bytes(client.volume()));
            }
        }
    }
}

fn is_unreported(peer: &Peer) -> bool {
    peer.over().is_some() && !peer.reported
}

//! Three nodes in this process, as `repld` runs them: each with a data thread, a ring and files of its own. What the
//! control thread does for them (hellos, dialling) is done here by hand.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nbd_server::handle::{
    ControlHandle, DataCommand, DataError, DataHandle, Snapshot, Stream, ToControl, ToData,
};
use nbd_server::meters::Meters;
use nbd_server::nbd::Terms;
use nbd_server::reactor::places::Places;
use nbd_server::reactor::record::Recorder;
use nbd_server::reactor::ring::RingError;
use nbd_server::reactor::{ReactorParams, spawn};
use nix::sys::eventfd::EventFd;
use replicator::meta::config::Name;
use replicator::meta::label::{FormatParams, format_node};
use replicator::meta::superblock::VolumeRecord;
use replicator::recover::recover;
use replicator::store::sums;
use replicator::types::*;
use replicator::{AckPolicy, OnNoQuorum, Replica, ReplicaConfig};
use tokio::sync::{mpsc, oneshot};

use crate::load::Load;

/// How many nodes there are.
pub(crate) const NODES: usize = 3;

/// The sizes of the volumes: small, so that a whole store is compared in no time.
pub(crate) const VOLUMES: [u64; 2] = [2 << 20, 6 << 20];

/// The size of the journal, the smallest that is allowed.
pub(crate) const JOURNAL_BYTES: u64 = 16 << 20;

/// For everything that takes a second or two on a good day.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

fn name(text: &str) -> Name {
    Name::from(text).expect("a short name")
}

fn volumes() -> Vec<VolumeRecord> {
    (0..)
        .zip(VOLUMES)
        .map(|(n, bytes)| VolumeRecord {
            name: name(&format!("volume-{n}")),
            bytes,
        })
        .collect()
}

/// What node `me` is told.
pub(crate) fn config(me: usize) -> ReplicaConfig {
    ReplicaConfig {
        resource: name("power"),
        nodes: (0..NODES).map(|n| name(&format!("node-{n}"))).collect(),
        witnesses: Vec::new(),
        me: NodeId(me as u8),
        lease_ms: 500,
        on_no_quorum: OnNoQuorum::SuspendIo,
        ack: AckPolicy::Majority,
        requests_max: 256,
        drop_after_ms: 0,
        without_room: replicator::WithoutRoom::Wait,
    }
}

/// The metadata file and the first block of the journal of a node that was just created. All else is zeroes.
pub(crate) fn created(me: usize) -> (Vec<u8>, Vec<u8>) {
    let config = config(me);
    format_node(&FormatParams {
        resource: config.resource,
        node: config.nodes[me],
        incarnation: Incarnation(me as u128 + 1),
        journal_bytes: JOURNAL_BYTES,
        volumes: volumes(),
        seed: false,
    })
}

/// The size of the table of checksums.
pub(crate) fn sums_bytes() -> u64 {
    sums::file_bytes(VOLUMES.into_iter())
}

/// Where the recording of a node is.
pub(crate) fn tape(dir: &Path, node: usize) -> PathBuf {
    dir.join(format!("node-{node}.tape"))
}

struct Node {
    handle: DataHandle,
    /// Not looked at; but the data thread wants somebody to tell.
    _events: mpsc::UnboundedReceiver<ToControl>,
    thread: JoinHandle<Result<(), RingError>>,
}

fn make_file(path: &Path, bytes: u64, start: &[u8]) {
    let file = File::create(path).expect("a file");
    // The journal is written once, as `replctl create` does, so that overwriting it is nothing but that.
    file.set_len(bytes).expect("room");
    file.write_all_at(start, 0).expect("room");
}

impl Node {
    fn start(dir: &Path, me: usize) -> Self {
        let path = |what: &str| dir.join(format!("node-{me}.{what}"));
        let (meta, mut journal) = created(me);
        journal.resize(JOURNAL_BYTES as usize, 0);
        make_file(&path("meta"), meta.len() as u64, &meta);
        make_file(&path("journal"), JOURNAL_BYTES, &journal);
        let stores = (0..VOLUMES.len()).map(|n| path(&format!("store-{n}")));
        let stores: Vec<PathBuf> = stores.collect();
        for (store, bytes) in stores.iter().zip(VOLUMES) {
            make_file(store, bytes, &[]);
        }
        make_file(&path("sums"), sums_bytes(), &[]);
        make_file(&path("stage"), VOLUMES.iter().sum(), &[]);
        let (sender, receiver) = std::sync::mpsc::channel();
        let (to_control, events) = mpsc::unbounded_channel();
        let bell = Arc::new(EventFd::new().expect("an eventfd"));
        let snapshot = Arc::new(Mutex::new(Snapshot::default()));
        let config = config(me);
        let meters = Arc::new(Meters::default());
        let params = ReactorParams {
            journal: Some(path("journal")),
            meta: path("meta"),
            places: Places::fixed(
                &volumes().into_iter().collect(),
                stores.into_iter(),
                path("sums"),
                path("stage"),
            ),
            memory_bytes: 64 << 20,
            requests_max: config.requests_max,
            disk_timeout_ms: 3_600_000,
            control: ControlHandle {
                receiver,
                bell: Arc::clone(&bell),
                snapshot: Arc::clone(&snapshot),
                sender: to_control,
                meters: Arc::clone(&meters),
            },
            recorder: Recorder::create(&tape(dir, me)).expect("a new file"),
        };
        let thread = spawn(params, move |mut ground| {
            let journal = ground.journal.as_mut().expect("it has a journal");
            let sums = ground.sums.as_mut().expect("it has checksums");
            let recovered = recover(&mut ground.meta, journal, sums, &config);
            let recovered = recovered.map_err(|error| error.to_string())?;
            let seed = [me as u8; 32];
            Ok(Replica::open(
                config,
                recovered,
                ground.pool,
                ground.now,
                seed,
            ))
        });
        Self {
            handle: DataHandle {
                sender,
                bell,
                snapshot,
                meters,
            },
            _events: events,
            thread: thread.expect("the data thread starts"),
        }
    }

    fn command(&self, command: DataCommand) -> Result<(), DataError> {
        let (answer, answered) = oneshot::channel();
        assert!(self.handle.send(ToData::Command { command, answer }));
        answered.blocking_recv().expect("every command is answered")
    }
}

/// A connection between two nodes, through this process.
struct Link {
    nodes: [usize; 2],
    ends: [UnixStream; 2],
    /// Whether what is sent is lost.
    silent: Arc<AtomicBool>,
}

impl Link {
    /// Passes bytes on from one end to the other, until one is closed.
    fn relay(&self, from: usize) {
        let end = |at: usize| self.ends[at].try_clone().expect("a descriptor");
        let (mut from, mut to, silent) = (end(from), end(1 - from), Arc::clone(&self.silent));
        std::thread::spawn(move || {
            let mut bytes = vec![0; 256 << 10];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if !silent.load(Ordering::Relaxed) && to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            // They may be closed already.
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        });
    }
}

/// Three nodes, and the connections between them.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    links: Vec<Link>,
}

impl Cluster {
    /// Creates and starts three nodes that record to `dir`, all connected.
    pub(crate) fn start(dir: &Path) -> Self {
        let nodes = (0..NODES).map(|me| Node::start(dir, me)).collect();
        let links = Vec::new();
        let mut cluster = Self { nodes, links };
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            cluster.join(a, b);
        }
        cluster
    }

    /// Connects two nodes.
    pub(crate) fn join(&mut self, a: usize, b: usize) {
        let connect = |(node, peer): (usize, usize)| {
            let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
            assert!(self.nodes[node].handle.send(ToData::Peer {
                stream: Stream::Unix(theirs),
                peer: NodeId(peer as u8),
                leftover: Vec::new(),
            }));
            ours
        };
        let link = Link {
            nodes: [a, b],
            ends: [(a, b), (b, a)].map(connect),
            silent: Arc::default(),
        };
        link.relay(0);
        link.relay(1);
        self.links.push(link);
    }

    /// Closes the connection between two nodes.
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        let between = |link: &mut Link| link.nodes == [a, b] || link.nodes == [b, a];
        for link in self.links.extract_if(.., between) {
            for end in link.ends {
                // It may be closed already.
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    /// A client of a volume, in transmission.
    pub(crate) fn client(&self, node: usize, volume: VolumeId) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_read_timeout(Some(BOUND)).expect("a timeout");
        assert!(self.nodes[node].handle.send(ToData::Client {
            stream: Stream::Unix(theirs),
            volume,
            terms: Terms::default(),
            leftover: Vec::new(),
        }));
        ours
    }

    /// Promotes a node, however long an old Primary's lease takes.
    pub(crate) fn promote(&self, node: usize) {
        let timeout_ms = BOUND.as_millis() as u64;
        let result = self.nodes[node].command(DataCommand::Promote { timeout_ms });
        result.unwrap_or_else(|error| panic!("promotion of {node}: {}", error.message));
    }

    /// Demotes a node, its clients dropped.
    pub(crate) fn demote(&self, node: usize) {
        let result = self.nodes[node].command(DataCommand::Demote { force: true });
        result.unwrap_or_else(|error| panic!("demotion of {node}: {}", error.message));
    }

    /// Waits until the snapshot of a node is as wanted.
    pub(crate) fn wait(&self, node: usize, what: &str, wanted: impl Fn(&Snapshot) -> bool) {
        let began = Instant::now();
        while began.elapsed() < BOUND {
            if wanted(&self.nodes[node].handle.snapshot()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let view = self.nodes[node].handle.snapshot().view;
        panic!("node {node} never got to this: {what}: {view:?}");
    }

    /// Loses whatever a Primary sends and is sent, and gives it clients, until it has something in its journal that
    /// nobody else has: their requests have to come before its lease is over.
    pub(crate) fn leave_alone(&mut self, node: usize, seed: u64) -> Load {
        let others: Vec<usize> = (0..NODES).filter(|other| *other != node).collect();
        let began = Instant::now();
        loop {
            for link in self.links.iter().filter(|link| link.nodes.contains(&node)) {
                link.silent.store(true, Ordering::Relaxed);
            }
            let load = Load::start(self, node, seed);
            let silent = Instant::now();
            while silent.elapsed() < Duration::from_secs(1) {
                let view = self.nodes[node].handle.snapshot().view;
                if view.durable > view.committed {
                    return load;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            assert!(began.elapsed() < BOUND, "it journals nothing alone");
            for other in &others {
                self.cut(node, *other);
                self.join(node, *other);
            }
            load.finish();
        }
    }

    /// Waits until the log of `node` has reached what `other` has now.
    pub(crate) fn wait_caught_up(&self, node: usize, other: usize) {
        let view = self.nodes[other].handle.snapshot().view;
        self.wait(node, "it has caught up", |snapshot| {
            snapshot.view.durable >= view.durable && snapshot.view.epoch >= view.epoch
        });
    }

    /// Stops the nodes, the Primary first; each applies what it knows to be committed.
    pub(crate) fn stop(self, primary: usize) {
        let others = (0..NODES).filter(|node| *node != primary);
        for node in std::iter::once(primary).chain(others) {
            let result = self.nodes[node].command(DataCommand::Stop);
            result.unwrap_or_else(|error| panic!("stop of {node}: {}", error.message));
        }
        for node in self.nodes {
            node.thread.join().expect("no panic").expect("no error");
        }
    }
}

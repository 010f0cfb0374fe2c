//! A data thread with a core that answers at once, for tests of what lies around the core.

// Each test binary uses a part of it.
#![allow(dead_code, unreachable_pub)]

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nbd_server::handle::{
    ControlHandle, DataCommand, DataError, DataHandle, Snapshot, Stream, ToControl, ToData,
};
use nbd_server::meters::Meters;
use nbd_server::nbd::Terms;
use nbd_server::reactor::engine::Core;
use nbd_server::reactor::holes::Cover;
use nbd_server::reactor::places::Places;
use nbd_server::reactor::pool::{Pool, PoolBuffer};
use nbd_server::reactor::record::Recorder;
use nbd_server::reactor::ring::RingError;
use nbd_server::reactor::{Ground, ReactorParams, spawn};
use nix::sys::eventfd::EventFd;
use replicator::io::*;
use replicator::memory::{Buffer, Memory, Purpose};
use replicator::meta::config::Name;
use replicator::meta::label::{FormatParams, format_node};
use replicator::meta::superblock::VolumeRecord;
use replicator::meta::volumes::Volumes;
use replicator::recover::recover;
use replicator::replica::Capacity;
use replicator::store::sums;
use replicator::types::*;
use replicator::view::{Holds, Unapplied, View};
use replicator::{AckPolicy, OnNoQuorum, Replica, ReplicaConfig};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// The size of the one volume.
pub const VOLUME_BYTES: u64 = 64 << 20;
/// The size of the journal.
pub const JOURNAL_BYTES: u64 = 16 << 20;

/// What the stand-in does on purpose.
#[derive(Clone, Copy, Default)]
pub struct Behaviour {
    /// Reads that begin at this byte fail.
    pub bad_read: Option<u64>,
    /// How many requests it takes at a time.
    pub requests_max: u32,
    /// Answers to requests come in the opposite order of a turn.
    pub reversed: bool,
}

/// Keeps the volume in memory; writes what it gets to the journal first, so that disks have their part in it. Sends
/// every batch of a peer back.
pub struct StandIn {
    pool: Pool,
    volume: Vec<u8>,
    outputs: VecDeque<Output<PoolBuffer>>,
    replies: Vec<(ReqId, Result<Answer<PoolBuffer>, ClientError>)>,
    journaling: VecDeque<(Ticket, ReqId)>,
    next_ticket: u64,
    journal_at: u64,
    behaviour: Behaviour,
    working: u32,
    view: View,
    volumes: Volumes,
}

impl StandIn {
    /// With an empty volume.
    pub fn new(pool: Pool, behaviour: Behaviour) -> Self {
        Self {
            pool,
            volume: vec![0; VOLUME_BYTES as usize],
            outputs: VecDeque::with_capacity(4096),
            replies: Vec::with_capacity(4096),
            journaling: VecDeque::with_capacity(4096),
            next_ticket: 0,
            journal_at: 0,
            behaviour,
            working: 0,
            view: View {
                serving: true,
                ..View::default()
            },
            volumes: volumes(),
        }
    }

    fn journal(&mut self, req: ReqId, buffer: PoolBuffer) {
        let bytes = u64::from(buffer.blocks()) * BLOCK_BYTES_U64;
        if self.journal_at + bytes > JOURNAL_BYTES {
            self.journal_at = 0;
        }
        let mut parts = Parts::new();
        parts.push(buffer);
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.journaling.push_back((ticket, req));
        self.outputs.push_back(Output::Disk {
            ticket,
            op: DiskOp::JournalWrite {
                offset: self.journal_at,
                parts,
            },
        });
        self.journal_at += bytes;
    }

    fn client(&mut self, req: ReqId, op: ClientOp<'_, PoolBuffer>) {
        self.working += 1;
        assert!(
            self.working <= self.behaviour.requests_max,
            "more than was asked for"
        );
        match op {
            ClientOp::Read { offset, length, .. } => {
                assert!(length <= READ_BYTES_MAX);
                if self.behaviour.bad_read == Some(offset) {
                    self.replies.push((req, Err(ClientError::Io)));
                    return;
                }
                let start = (offset % BLOCK_BYTES_U64) as usize;
                let length = length as usize;
                let blocks = (start + length).div_ceil(BLOCK_BYTES) as u32;
                let mut buffer = self
                    .pool
                    .alloc(Purpose::Client, blocks)
                    .expect("the budget keeps memory for reads");
                buffer.bytes_mut()[start..start + length]
                    .copy_from_slice(&self.volume[offset as usize..][..length]);
                let data = Answer::Data {
                    buffer,
                    start,
                    length,
                };
                self.replies.push((req, Ok(data)));
            }
            ClientOp::Write {
                offset,
                length,
                data,
                ..
            } => {
                assert!(length <= WRITE_BYTES_MAX);
                let range = offset as usize..offset as usize + length as usize;
                let buffer = match data {
                    WriteData::Borrowed(bytes) => {
                        assert_eq!(bytes.len(), length as usize);
                        self.volume[range].copy_from_slice(bytes);
                        self.pool.alloc(Purpose::Core, 2)
                    }
                    WriteData::Owned(buffer) => {
                        let start = BLOCK_BYTES + offset as usize % BLOCK_BYTES;
                        let end = (start + length as usize).next_multiple_of(BLOCK_BYTES);
                        assert_eq!(buffer.bytes().len(), end);
                        self.volume[range]
                            .copy_from_slice(&buffer.bytes()[start..start + length as usize]);
                        Some(buffer)
                    }
                };
                self.journal(req, buffer.expect("a small write needs two blocks"));
            }
            ClientOp::Zero { offset, length, .. } => {
                assert!(length <= ZERO_BYTES_MAX);
                self.volume[offset as usize..(offset + length) as usize].fill(0);
                self.replies.push((req, Ok(Answer::Done)));
            }
            ClientOp::Flush => self.replies.push((req, Ok(Answer::Done))),
        }
    }
}

/// The one volume.
fn volumes() -> Volumes {
    std::iter::once(VolumeRecord {
        name: Name::from("volume").expect("a short name"),
        bytes: VOLUME_BYTES,
    })
    .collect()
}

impl Core for StandIn {
    fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    fn handle(&mut self, _now: Time, input: Input<'_, PoolBuffer>) {
        match input {
            Input::Client { req, op } => self.client(req, op),
            Input::DiskDone { ticket, result } => {
                let at = self.journaling.iter().position(|(t, _)| *t == ticket);
                let (_, req) = self
                    .journaling
                    .remove(at.expect("one end each"))
                    .expect("found");
                let answer = result.map(|()| Answer::Done).map_err(|_| ClientError::Io);
                self.replies.push((req, answer));
            }
            Input::Frame { conn, frame, batch } => {
                self.outputs.push_back(Output::Send { conn, frame, batch });
            }
            Input::BatchSent { .. } => self.view.committed.0 += 1,
            Input::PeerUp { .. } => self.view.admitted.0 += 1,
            Input::PeerDown { .. } => self.view.durable.0 += 1,
            Input::DisksHang(hang) => self.view.disks_hang = hang,
            Input::Admin { id, command } => {
                if command == AdminCommand::Demote {
                    self.outputs.push_back(Output::DropClients);
                    self.working = 0;
                    self.journaling.clear();
                    self.replies.clear();
                    self.view.serving = false;
                }
                let result = Ok(());
                self.outputs.push_back(Output::AdminReply { id, result });
            }
        }
    }

    fn end_turn(&mut self, _now: Time) {
        if self.behaviour.reversed {
            self.replies.reverse();
        }
        for (req, result) in self.replies.drain(..) {
            self.working -= 1;
            self.outputs.push_back(Output::Reply { req, result });
        }
    }

    fn poll(&mut self) -> Option<Output<PoolBuffer>> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Time> {
        None
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            requests: self.behaviour.requests_max - self.working,
        }
    }

    fn memory_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }

    fn view(&self) -> View {
        self.view.clone()
    }

    fn unapplied(&self, _: VolumeId, (offset, len): (u64, u32), into: &mut Cover) {
        // The store is empty: whatever was written is nowhere else.
        let end = (offset + u64::from(len)).div_ceil(BLOCK_BYTES_U64);
        for start in offset / BLOCK_BYTES_U64..end {
            let at = start as usize * BLOCK_BYTES;
            let is_data = self.volume[at..at + BLOCK_BYTES].iter().any(|&b| b != 0);
            if is_data && !into.is_full() {
                let holds = Holds::Anything;
                let blocks = 1;
                into.push(Unapplied {
                    start,
                    blocks,
                    holds,
                });
            }
        }
    }
}

fn write_file(dir: &TempDir, name: &str, bytes: u64, start: &[u8]) {
    let file = File::create(dir.path().join(name)).expect("a file");
    file.set_len(bytes).expect("room");
    file.write_all_at(start, 0).expect("room");
}

/// A running data thread.
pub struct Node {
    pub handle: DataHandle,
    pub events: mpsc::UnboundedReceiver<ToControl>,
    thread: Option<JoinHandle<Result<(), RingError>>>,
    _dir: TempDir,
}

impl Node {
    /// Starts one with the stand-in. `begun` is called on the data thread.
    pub fn start(behaviour: Behaviour, begun: impl FnOnce() + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        write_file(&dir, "journal", JOURNAL_BYTES, &[0; BLOCK_BYTES]);
        write_file(&dir, "meta", 1 << 20, &[0; BLOCK_BYTES]);
        Self::spawn(dir, behaviour.requests_max, move |ground| {
            let core = StandIn::new(ground.pool, behaviour);
            begun();
            Ok(core)
        })
    }

    /// Starts one with the real core: node `me` of a resource of `nodes` nodes, freshly created.
    pub fn real(nodes: u8, me: u8, begun: impl FnOnce() + Send + 'static) -> Self {
        let name = |text: &str| Name::from(text).expect("a short name");
        let node_name = |n: u8| name(&format!("node-{n}"));
        let volumes = volumes().iter().map(|(_, v)| *v).collect();
        let (meta, label) = format_node(&FormatParams {
            resource: name("test"),
            node: node_name(me),
            incarnation: Incarnation(u128::from(me) + 1),
            journal_bytes: JOURNAL_BYTES,
            volumes,
            seed: false,
        });
        let dir = tempfile::tempdir().expect("a directory");
        write_file(&dir, "journal", JOURNAL_BYTES, &label);
        write_file(&dir, "meta", meta.len() as u64, &meta);
        let requests_max = 256;
        let config = ReplicaConfig {
            resource: name("test"),
            nodes: (0..nodes).map(node_name).collect(),
            witnesses: Vec::new(),
            me: NodeId(me),
            lease_ms: 1000,
            on_no_quorum: OnNoQuorum::SuspendIo,
            ack: AckPolicy::Majority,
            requests_max,
            drop_after_ms: 0,
            without_room: replicator::WithoutRoom::Wait,
        };
        Self::spawn(dir, requests_max, move |mut ground| {
            let journal = ground.journal.as_mut().ok_or("no journal")?;
            let sums = ground.sums.as_mut().ok_or("no checksums")?;
            let recovered = recover(&mut ground.meta, journal, sums, &config)
                .map_err(|error| error.to_string())?;
            let core = Replica::open(config, recovered, ground.pool, ground.now, [me; 32]);
            begun();
            Ok(core)
        })
    }

    fn spawn<C: Core + 'static>(
        dir: TempDir,
        requests_max: u32,
        make_core: impl FnOnce(Ground<'_>) -> Result<C, String> + Send + 'static,
    ) -> Self {
        write_file(&dir, "store", VOLUME_BYTES, &[0; BLOCK_BYTES]);
        let sums_bytes = sums::file_bytes([VOLUME_BYTES].into_iter());
        write_file(&dir, "sums", sums_bytes, &[0; BLOCK_BYTES]);
        write_file(&dir, "stage", VOLUME_BYTES, &[]);
        let (sender, receiver) = std::sync::mpsc::channel();
        let (to_control, events) = mpsc::unbounded_channel();
        let bell = Arc::new(EventFd::new().expect("an eventfd"));
        let snapshot = Arc::new(Mutex::new(Snapshot::default()));
        let meters = Arc::new(Meters::default());
        let params = ReactorParams {
            journal: Some(dir.path().join("journal")),
            meta: dir.path().join("meta"),
            places: Places::fixed(
                &volumes(),
                std::iter::once(dir.path().join("store")),
                dir.path().join("sums"),
                dir.path().join("stage"),
            ),
            memory_bytes: 64 << 20,
            requests_max,
            disk_timeout_ms: 60_000,
            control: ControlHandle {
                receiver,
                bell: Arc::clone(&bell),
                snapshot: Arc::clone(&snapshot),
                sender: to_control,
                meters: Arc::clone(&meters),
            },
            recorder: Recorder::default(),
        };
        let thread = spawn(params, make_core).expect("the data thread starts");
        Self {
            handle: DataHandle {
                sender,
                bell,
                snapshot,
                meters,
            },
            events,
            thread: Some(thread),
            _dir: dir,
        }
    }

    /// Connects two nodes.
    pub fn join(&self, me: NodeId, other: &Self, them: NodeId) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        for (node, stream, peer) in [(self, ours, them), (other, theirs, me)] {
            assert!(node.handle.send(ToData::Peer {
                stream: Stream::Unix(stream),
                peer,
                leftover: Vec::new(),
            }));
        }
    }

    /// A client in transmission.
    pub fn client(&self) -> UnixStream {
        self.client_with(Vec::new())
    }

    /// A client that has sent something already.
    pub fn client_with(&self, leftover: Vec<u8>) -> UnixStream {
        self.client_on(Terms::default(), leftover)
    }

    /// A client that has agreed on more than the export, and has sent something already.
    pub fn client_on(&self, terms: Terms, leftover: Vec<u8>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        assert!(self.handle.send(ToData::Client {
            stream: Stream::Unix(theirs),
            volume: VolumeId(0),
            terms,
            leftover,
        }));
        ours
    }

    /// A peer's connection.
    pub fn peer(&self, peer: NodeId) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        assert!(self.handle.send(ToData::Peer {
            stream: Stream::Unix(theirs),
            peer,
            leftover: Vec::new(),
        }));
        ours
    }

    /// Commands, and waits for the answer.
    pub fn command(&self, command: DataCommand) -> Result<(), DataError> {
        let (answer, answered) = oneshot::channel();
        assert!(self.handle.send(ToData::Command { command, answer }));
        answered.blocking_recv().expect("every command is answered")
    }

    /// Waits until the snapshot is as wanted.
    pub fn wait_for(&self, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        for _ in 0..12_000 {
            let snapshot = self.handle.snapshot();
            if wanted(&snapshot) {
                return snapshot;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("never came true: {:?}", self.handle.snapshot());
    }

    /// Stops it.
    pub fn stop(mut self) {
        self.command(DataCommand::Stop).expect("it stops");
        let thread = self.thread.take().expect("stopped once");
        thread.join().expect("no panic").expect("no error");
    }
}

//! A Primary without peers, on disks that are done at once and keep nothing: what is left is the core's own work.

use nbd_server::reactor::pool::Pool;
use nbd_server::reactor::sizes;
use replicator::io::{AdminCommand, ClientOp, DiskError, Input, Output, WriteData};
use replicator::meta::config::Name;
use replicator::meta::label::{FormatParams, format_node};
use replicator::meta::superblock::VolumeRecord;
use replicator::recover::{BlockRead, recover};
use replicator::types::*;
use replicator::{AckPolicy, OnNoQuorum, Replica, ReplicaConfig};

const VOLUME_BYTES: u64 = 256 << 20;
const JOURNAL_BYTES: u64 = 256 << 20;
const MEMORY_BYTES: u64 = 256 << 20;

/// What a turn is said to take.
const TURN_NANOS: u64 = 100_000;

/// A node of its own.
pub(crate) struct LoneNode {
    core: Replica<Pool>,
    now: Time,
    payload: Vec<u8>,
    random: u64,
}

/// The first bytes of a disk; the rest is zeroes.
struct Image(Vec<u8>);

impl BlockRead for Image {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.fill(0);
        let start = usize::try_from(offset).map_err(|_| DiskError::Short)?;
        if let Some(bytes) = self.0.get(start..) {
            let length = bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&bytes[..length]);
        }
        Ok(())
    }
}

impl LoneNode {
    /// A new node, promoted.
    pub(crate) fn primary() -> Self {
        let name = |text: &str| Name::from(text).expect("a short name");
        let volumes = vec![VolumeRecord {
            name: name("volume"),
            bytes: VOLUME_BYTES,
        }];
        let (meta, label) = format_node(&FormatParams {
            resource: name("bench"),
            node: name("node"),
            incarnation: Incarnation(1),
            journal_bytes: JOURNAL_BYTES,
            volumes,
            seed: false,
        });
        let config = ReplicaConfig {
            resource: name("bench"),
            nodes: vec![name("node")],
            witnesses: Vec::new(),
            me: NodeId(0),
            lease_ms: 1000,
            on_no_quorum: OnNoQuorum::SuspendIo,
            ack: AckPolicy::Majority,
            requests_max: 256,
            drop_after_ms: 0,
            without_room: replicator::WithoutRoom::Wait,
        };
        let [mut meta, mut label, mut sums] = [meta, label, Vec::new()].map(Image);
        let recovered = recover(&mut meta, &mut label, &mut sums, &config).expect("just made");
        let pool = Pool::new(&sizes(MEMORY_BYTES)).expect("memory");
        let now = Time(1_000_000_000);
        let mut node = Self {
            core: Replica::open(config, recovered, pool, now, [7; 32]),
            now,
            payload: vec![0x5a; BLOCK_BYTES],
            random: 0,
        };
        let deadline = now.after(60_000_000_000);
        node.core.handle(
            now,
            Input::Admin {
                id: AdminId(1),
                command: AdminCommand::Promote { deadline },
            },
        );
        for _ in 0..100_000 {
            node.turn();
            if node.core.view().serving {
                return node;
            }
        }
        panic!("nobody else is there, so nothing keeps it from serving");
    }

    /// Hands in so many writes of a block each in one turn; how many were answered in the end.
    pub(crate) fn write_at_random(&mut self, writes: u32) -> u32 {
        for n in 0..writes {
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let block = (self.random >> 33) % (VOLUME_BYTES / BLOCK_BYTES_U64);
            let op = ClientOp::Write {
                volume: VolumeId(0),
                offset: block * BLOCK_BYTES_U64,
                length: BLOCK_BYTES as u32,
                data: WriteData::Borrowed(&self.payload),
            };
            let req = ReqId(u64::from(n));
            self.core.handle(self.now, Input::Client { req, op });
        }
        let mut answered = 0;
        while answered < writes {
            answered += self.turn();
        }
        answered
    }

    /// One turn in which every disk operation is done at once; how many requests it answered.
    fn turn(&mut self) -> u32 {
        self.now = self.now.after(TURN_NANOS);
        self.core.end_turn(self.now);
        let mut answered = 0;
        while let Some(output) = self.core.poll() {
            match output {
                Output::Disk { ticket, op } => {
                    drop(op);
                    let result = Ok(());
                    self.core
                        .handle(self.now, Input::DiskDone { ticket, result });
                }
                Output::Reply { result, .. } => {
                    result.expect("nothing fails here");
                    answered += 1;
                }
                _ => {}
            }
        }
        answered
    }
}

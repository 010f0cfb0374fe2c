use std::rc::Rc;

use super::*;
use crate::journal::testing::{HISTORY, UUID, config};
use crate::memory::{Buffer, Purpose};
use crate::meta::config::Name;
use crate::meta::label::format_witness;
use crate::meta::superblock::{Superblock, copy_offset};
use crate::recover::{BlockRead, recover_witness};
use crate::replica::{AckPolicy, OnNoQuorum, ReplicaConfig};
use crate::view::{DiskState, Role};

/// The Primary in these tests is node "a", the witness node "c": number 2, incarnation 3.
const WITNESS: NodeId = NodeId(2);
const PRIMARY: NodeId = NodeId(0);
const CONN: ConnId = ConnId(7);

#[derive(Clone, Debug)]
struct Blocks(Rc<Vec<u8>>);

impl Buffer for Blocks {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        Rc::make_mut(&mut self.0).as_mut_slice()
    }

    fn slice(&self, first: u32, blocks: u32) -> Self {
        let (first, blocks) = (first as usize, blocks as usize);
        Self(Rc::new(
            self.0[first * BLOCK_BYTES..(first + blocks) * BLOCK_BYTES].to_vec(),
        ))
    }

    fn shrink(&mut self, blocks: u32) {
        Rc::make_mut(&mut self.0).truncate(blocks as usize * BLOCK_BYTES);
    }
}

#[derive(Debug)]
struct Heap;

impl Memory for Heap {
    type Buffer = Blocks;

    fn alloc(&mut self, _: Purpose, blocks: u32) -> Option<Blocks> {
        Some(Blocks(Rc::new(vec![0; blocks as usize * BLOCK_BYTES])))
    }

    fn free_blocks(&self, _: Purpose) -> u32 {
        1 << 20
    }

    fn total_blocks(&self, _: Purpose) -> u32 {
        1 << 20
    }
}

struct Meta(Vec<u8>);

impl BlockRead for Meta {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let at = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
        Ok(())
    }
}

/// A node and its disk. Nothing is written until a test says so.
struct Bench {
    replica: Replica<Heap>,
    meta: Meta,
    writes: Vec<(Ticket, u64, Blocks)>,
    sent: Vec<Frame>,
    dropped: Vec<DropReason>,
    now: Time,
}

fn name(text: &str) -> Name {
    Name::from(text).unwrap()
}

fn open(meta: &mut Meta) -> Replica<Heap> {
    let config = ReplicaConfig {
        resource: name("pbx"),
        nodes: ["a", "b", "c"].map(name).to_vec(),
        witnesses: vec![WITNESS],
        me: WITNESS,
        lease_ms: 1000,
        on_no_quorum: OnNoQuorum::SuspendIo,
        ack: AckPolicy::Majority,
        requests_max: 4,
        drop_after_ms: 0,
        without_room: crate::replica::WithoutRoom::Wait,
    };
    let recovered = recover_witness(meta, &config).unwrap();
    Replica::open(config, recovered, Heap, Time(5_000_000_000), [1; 32])
}

impl Bench {
    fn new() -> Self {
        let mut meta = Meta(format_witness(name("pbx"), name("c"), Incarnation(3)));
        let mut bench = Self {
            replica: open(&mut meta),
            meta,
            writes: Vec::new(),
            sent: Vec::new(),
            dropped: Vec::new(),
            now: Time(5_000_000_000),
        };
        bench.connect();
        bench
    }

    fn restart(&mut self) {
        self.writes.clear();
        self.replica = open(&mut self.meta);
        self.connect();
    }

    fn connect(&mut self) {
        self.turn(Input::PeerUp {
            conn: CONN,
            peer: PRIMARY,
        });
        let mut report = Replica::<Heap>::report_to(&self.replica, PRIMARY, 0, Epoch(0));
        report.incarnation = Incarnation(1);
        report.fresh = true;
        report.config = None;
        self.hear(Frame::Report(Box::new(report)));
        self.sent.clear();
    }

    fn turn(&mut self, input: Input<'_, Blocks>) {
        self.now = self.now.after(1000);
        self.replica.handle(self.now, input);
        self.replica.end_turn(self.now);
        while let Some(output) = self.replica.poll() {
            match output {
                Output::Disk {
                    ticket,
                    op: DiskOp::MetaWrite { offset, parts },
                } => self.writes.push((ticket, offset, parts[0].clone())),
                Output::Disk { op, .. } => panic!("a witness has no other disk: {op:?}"),
                Output::Send { frame, .. } => self.sent.push(frame),
                Output::Drop { reason, .. } => self.dropped.push(reason),
                _ => {}
            }
        }
    }

    fn hear(&mut self, frame: Frame) {
        self.turn(Input::Frame {
            conn: CONN,
            frame,
            batch: None,
        });
    }

    /// Ends the writes in flight, and those that follow from them.
    fn settle(&mut self) {
        while !self.writes.is_empty() {
            let (ticket, offset, block) = self.writes.remove(0);
            let at = usize::try_from(offset).unwrap();
            self.meta.0[at..at + BLOCK_BYTES].copy_from_slice(block.bytes());
            self.turn(Input::DiskDone {
                ticket,
                result: Ok(()),
            });
        }
    }

    fn on_disk(&self) -> Superblock {
        let at = usize::try_from(copy_offset(0)).unwrap();
        let block = &self.meta.0[at..at + BLOCK_BYTES];
        Superblock::decode(0, block).unwrap().unwrap()
    }

    fn acks(&self) -> Vec<(u64, u64)> {
        let ack = |f: &Frame| match f {
            Frame::Ack { epoch, seq } => Some((epoch.0, seq.0)),
            _ => None,
        };
        self.sent.iter().filter_map(ack).collect()
    }
}

fn told(epoch: u64, seq: u64, version: u64) -> Told {
    Told {
        uuid: UUID,
        history: HISTORY,
        config: ConfigAt {
            at: RecordId {
                epoch: Epoch(epoch),
                seq: Seq(seq),
            },
            config: config(version),
        },
    }
}

fn tell(epoch: u64, seq: u64, version: u64) -> Frame {
    Frame::Config(Box::new(told(epoch, seq, version)))
}

#[test]
fn a_config_is_durable_before_it_is_confirmed_or_reported() {
    let mut b = Bench::new();
    b.hear(tell(4, 9, 1));
    b.hear(Frame::Ask { token: 3 });
    assert_eq!(b.acks(), []);
    let Some(Frame::Report(report)) = b.sent.last() else {
        panic!("{:?}", b.sent);
    };
    assert_eq!(report.config, None);
    b.settle();
    assert_eq!(b.acks(), [(4, 9)]);
    assert_eq!(b.on_disk().config, Some(told(4, 9, 1).config));
    assert_eq!(b.on_disk().promised, Epoch(4));
    assert_eq!(b.on_disk().uuid, UUID);
    b.hear(Frame::Ask { token: 4 });
    let Some(Frame::Report(report)) = b.sent.last() else {
        panic!("{:?}", b.sent);
    };
    assert_eq!(report.config, Some(told(4, 9, 1).config));
    assert!(!report.fresh);
    assert_eq!(report.tail, RecordId::NONE);
}

#[test]
fn a_config_survives_a_restart_and_is_confirmed_again_without_a_write() {
    let mut b = Bench::new();
    b.hear(tell(4, 9, 1));
    b.settle();
    b.restart();
    assert_eq!(b.replica.kept(), told(4, 9, 1).config.at);
    b.hear(tell(4, 9, 1));
    assert_eq!(b.acks(), [(4, 9)]);
    assert_eq!(b.replica.view().epoch, Epoch(4));
}

#[test]
fn a_higher_config_replaces_its_own_and_a_lower_one_does_not() {
    let mut b = Bench::new();
    b.hear(tell(4, 9, 1));
    b.hear(tell(4, 12, 2));
    b.settle();
    assert_eq!(b.on_disk().config, Some(told(4, 12, 2).config));
    // What is older than its own is held as far as anybody asks, and changes nothing.
    b.hear(tell(4, 9, 1));
    b.settle();
    assert_eq!(b.on_disk().config, Some(told(4, 12, 2).config));
    b.sent.clear();
    b.hear(tell(3, 99, 5));
    b.settle();
    assert_eq!(b.on_disk().config, Some(told(4, 12, 2).config));
    let refused = Frame::Refused {
        promised: Epoch(4),
        promised_to: Some(PRIMARY),
    };
    assert_eq!(b.sent, [refused], "an epoch below the promise is refused");
}

#[test]
fn one_name_with_two_contents_stops_it() {
    let mut b = Bench::new();
    b.hear(tell(4, 9, 1));
    b.hear(tell(4, 9, 2));
    assert_eq!(b.replica.view().disk_state, DiskState::Failed);
    b.settle();
    assert_eq!(b.acks(), []);
}

#[test]
fn what_is_not_for_a_witness_is_refused() {
    let mut stranger = told(4, 9, 1);
    stranger.config.config.nodes[2].incarnation = Incarnation(77);
    let mut b = Bench::new();
    b.hear(Frame::Config(Box::new(stranger)));
    b.connect();
    b.turn(Input::Frame {
        conn: CONN,
        frame: Frame::Append {
            epoch: Epoch(4),
            committed: Seq(0),
        },
        batch: Some(Blocks(Rc::new(vec![0; BLOCK_BYTES]))),
    });
    assert!(
        matches!(
            b.dropped[..],
            [DropReason::Protocol(_), DropReason::Protocol(_)]
        ),
        "{:?}",
        b.dropped
    );
    b.connect();
    b.hear(tell(4, 9, 1));
    b.settle();
    let mut foreign = told(5, 20, 1);
    foreign.history = HistoryId(1);
    b.hear(Frame::Config(Box::new(foreign)));
    assert!(matches!(b.dropped.last(), Some(DropReason::Unrelated(_))));
    assert_eq!(b.on_disk().promised, Epoch(4));
}

#[test]
fn it_shows_itself_as_a_witness() {
    let b = Bench::new();
    let view = b.replica.view();
    assert_eq!(view.role, Role::Witness);
    assert_eq!(view.disk_state, DiskState::Diskless);
    assert!(view.quorum, "two of three are there");
}

#[test]
fn a_witness_that_is_asked_for_data_has_none_and_lives_on() {
    let mut bench = Bench::new();
    bench.hear(Frame::BlocksAsk {
        token: 5,
        volume: VolumeId(0),
        block: 0,
        blocks: 1,
    });
    let given = |f: &Frame| matches!(f, Frame::Blocks(b) if b.token == 5 && b.sums.is_empty());
    assert!(bench.sent.iter().any(given), "{:?}", bench.sent);
    bench.hear(Frame::ChangedAsk {
        token: 6,
        volume: VolumeId(0),
        group: 0,
    });
    let none = |f: &Frame| matches!(f, Frame::Changed(c) if c.token == 6 && c.groups.is_empty());
    assert!(bench.sent.iter().any(none), "{:?}", bench.sent);
}

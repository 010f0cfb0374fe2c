use replicator::io::{DiskOp, Parts, SideFile};
use replicator::memory::{Memory, Purpose};
use replicator::types::{BLOCK_BYTES_U64, ReqId, Ticket, Time};
use tempfile::TempDir;

use super::super::Recorder;
use super::*;
use crate::reactor::disk::{Disks, Files};
use crate::reactor::file::DirectFile;
use crate::reactor::pool::{Pool, PoolBuffer, PoolSizes};
use crate::reactor::ring::Ring;
use crate::reactor::tag::Tag;

struct Bench {
    dir: TempDir,
    pool: Pool,
    ring: Ring<Tag>,
    disks: Disks,
    recorder: Recorder,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::new(&PoolSizes {
            client_blocks: 16,
            edge_blocks: 1,
            core_blocks: 16,
            apply_blocks: 1,
            peer_blocks: 1,
            connection_blocks: 1024,
        })
        .unwrap();
        let open = |name: &str| {
            let path = dir.path().join(name);
            File::create(&path).unwrap().set_len(1 << 20).unwrap();
            DirectFile::open(&path).unwrap()
        };
        let recorder = Recorder::create(&dir.path().join("tape")).unwrap();
        let files = Files {
            meta: open("meta"),
            journal: Some(open("journal")),
            stores: vec![Some(open("store"))],
            sums: Some(open("sums")),
            stage: Some(open("stage")),
        };
        let disks = Disks::new(files, &pool, 5_000_000_000)
            .unwrap()
            .recorded(recorder.clone());
        let ring = Ring::new(8).unwrap();
        Self {
            dir,
            pool,
            ring,
            disks,
            recorder,
        }
    }

    fn buffer(&mut self, blocks: u32, byte: u8) -> PoolBuffer {
        let mut buffer = self.pool.alloc(Purpose::Core, blocks).unwrap();
        buffer.bytes_mut().fill(byte);
        buffer
    }

    /// Carries an operation out.
    fn run(&mut self, op: DiskOp<PoolBuffer>) {
        self.disks.start(&mut self.ring, Time(0), Ticket(1), op);
        let mut completions = Vec::new();
        loop {
            self.ring.enter(None).unwrap();
            self.ring.reap(&mut completions);
            for completion in completions.drain(..) {
                let Tag::Disk(key) = completion.tag else {
                    panic!("only disk operations were begun");
                };
                if let Some((_, result)) =
                    self.disks
                        .completed(&mut self.ring, Time(0), key, completion)
                {
                    return result.unwrap();
                }
            }
        }
    }

    fn entries(&self) -> Vec<Noted> {
        let entries = read(&self.dir.path().join("tape")).unwrap();
        assert!(entries.is_sorted_by_key(|entry| entry.nanos));
        entries.into_iter().map(|entry| entry.noted).collect()
    }
}

#[test]
fn disk_operations_are_noted_with_their_bytes_and_ends() {
    let mut bench = Bench::new();
    let mut parts = Parts::new();
    parts.push(bench.buffer(1, 1));
    parts.push(bench.buffer(2, 2));
    let offset = BLOCK_BYTES_U64;
    bench.run(DiskOp::JournalWrite { offset, parts });
    let buffer = bench.buffer(1, 0);
    bench.run(DiskOp::JournalRead { offset, buffer });
    let volume = VolumeId(0);
    bench.run(DiskOp::StoreZero {
        volume,
        offset,
        length: 8192,
        may_deallocate: true,
    });
    bench.run(DiskOp::StoreFlush { volume });
    for (file, byte) in [(SideFile::Sums, 3), (SideFile::Stage, 4)] {
        let mut parts = Parts::new();
        parts.push(bench.buffer(1, byte));
        bench.run(DiskOp::SideWrite {
            file,
            offset,
            parts,
        });
    }
    let file = SideFile::Stage;
    bench.run(DiskOp::SideDiscard {
        file,
        offset,
        length: 4096,
    });
    bench.run(DiskOp::SideFlush { file });

    let entries = bench.entries();
    let [written, end, zeroed, _, flushed, _, beside @ ..] = &entries[..] else {
        panic!("a read leaves no note: {entries:?}");
    };
    let Noted::Write {
        part: Part::Journal,
        offset: 4096,
        durable: true,
        bytes,
        key,
    } = written
    else {
        panic!("{written:?}");
    };
    assert_eq!(bytes[..4096], [1; 4096]);
    assert_eq!(bytes[4096..], [2; 8192]);
    let result = Ok(3 * BLOCK_BYTES_U64);
    assert_eq!(*end, Noted::Ended { key: *key, result });
    let part = Part::Store(volume);
    assert!(
        matches!(zeroed, Noted::Zero { part: p, offset: 4096, length: 8192, .. } if *p == part)
    );
    assert!(matches!(flushed, Noted::Flush { part: p, .. } if *p == part));
    let beside: Vec<_> = beside.iter().step_by(2).collect();
    let [summed, staged, discarded, flushed] = beside[..] else {
        panic!("{beside:?}");
    };
    for (noted, wanted, byte) in [(summed, Part::Sums, 3), (staged, Part::Stage, 4)] {
        assert!(
            matches!(noted, Noted::Write { part, offset: 4096, durable: false, bytes, .. }
                if *part == wanted && bytes[..] == [byte; 4096]),
            "{noted:?}"
        );
    }
    assert!(matches!(
        discarded,
        Noted::Zero {
            part: Part::Stage,
            offset: 4096,
            length: 4096,
            ..
        }
    ));
    assert!(matches!(
        flushed,
        Noted::Flush {
            part: Part::Stage,
            ..
        }
    ));
}

#[test]
fn requests_and_promises_are_noted() {
    let mut bench = Bench::new();
    let mut buffer = bench.pool.alloc(Purpose::Client, 2).unwrap();
    let bytes = [1, 2, 3];
    buffer.bytes_mut()[4096 + 5..4096 + 8].copy_from_slice(&bytes);
    let (volume, offset) = (VolumeId(3), 8192 + 5);
    let write = |data| ClientOp::Write {
        volume,
        offset,
        length: 3,
        data,
    };
    let zero = ClientOp::Zero {
        volume,
        offset,
        length: 70_000,
        may_deallocate: false,
    };
    let ops = [
        write(WriteData::Borrowed(&bytes)),
        write(WriteData::Owned(buffer)),
        zero,
        ClientOp::Flush,
    ];
    for (req, op) in (0..).map(ReqId).zip(&ops) {
        let admitted = Seq(9);
        bench.recorder.note(|| Event::Asked { req, op, admitted });
    }
    bench.recorder.note(|| Event::Answered {
        req: ReqId(2),
        done: true,
        committed: Seq(11),
    });
    let id = RecordId {
        epoch: Epoch(3),
        seq: Seq(12),
    };
    let ack = Frame::Ack {
        epoch: id.epoch,
        seq: id.seq,
    };
    bench.recorder.note(|| Event::Said(&Frame::Ping));
    bench.recorder.note(|| Event::Said(&ack));

    let asked = |req, change| Noted::Asked {
        req,
        admitted: Seq(9),
        change,
    };
    let place = |change| Some((volume, offset, change));
    let expected = [
        asked(0, place(Change::Bytes(bytes.to_vec()))),
        asked(1, place(Change::Bytes(bytes.to_vec()))),
        asked(2, place(Change::Zeroes(70_000))),
        asked(3, None),
        Noted::Answered {
            req: 2,
            committed: Seq(11),
            done: true,
        },
        Noted::Acked(id),
    ];
    assert_eq!(bench.entries(), expected);
}

#[test]
fn a_recording_may_be_cut_short_and_not_be_damaged() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        let volume = VolumeId(0);
        bench.run(DiskOp::StoreFlush { volume });
    }
    let path = bench.dir.path().join("tape");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.pop();
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(bench.entries().len(), 3);
    bytes[20] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(read(&path), Err(TapeError::Damaged(0))));
}

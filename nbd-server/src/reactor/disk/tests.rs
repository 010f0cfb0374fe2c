use std::time::Duration;

use replicator::memory::{Memory, Purpose};
use tempfile::TempDir;

use super::*;
use crate::reactor::file::BlockingReader;
use crate::reactor::pool::PoolSizes;
use replicator::recover::BlockRead;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const FILE_BYTES: u64 = 8 << 20;
const VOLUME: VolumeId = VolumeId(0);

fn counted() -> Counted {
    Counted {
        file: DiskFile::Store(0),
        kind: DiskKind::Write,
    }
}

struct Bench {
    pool: Pool,
    ring: Ring<Tag>,
    disks: Disks,
    dir: TempDir,
    ended: Vec<DiskDone>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sizes = PoolSizes {
            client_blocks: 1,
            edge_blocks: 1,
            core_blocks: 2048,
            apply_blocks: 1,
            peer_blocks: 1,
            connection_blocks: 1024,
        };
        let pool = Pool::new(&sizes).unwrap();
        let open = |name: &str| {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_len(FILE_BYTES).unwrap();
            DirectFile::open(&path).unwrap()
        };
        let files = Files {
            meta: open("meta"),
            journal: Some(open("journal")),
            stores: vec![Some(open("store"))],
            sums: Some(open("sums")),
            stage: Some(open("stage")),
        };
        let disks = Disks::new(files, &pool, 5_000_000_000).unwrap();
        Self {
            ring: Ring::new(OPERATIONS_MAX as u32).unwrap(),
            disks,
            pool,
            dir,
            ended: Vec::new(),
        }
    }

    fn buffer(&mut self, blocks: u32, byte: u8) -> PoolBuffer {
        let mut buffer = self.pool.alloc(Purpose::Core, blocks).unwrap();
        buffer.bytes_mut().fill(byte);
        buffer
    }

    fn start(&mut self, ticket: u64, op: DiskOp<PoolBuffer>) {
        self.disks
            .start(&mut self.ring, Time(0), Ticket(ticket), op);
    }

    /// Waits until `count` operations have ended.
    fn wait(&mut self, count: usize) {
        let mut completions = Vec::new();
        while self.ended.len() < count {
            while let Some(ended) = self.disks.pop_ended() {
                self.ended.push(ended);
            }
            if self.ended.len() >= count {
                break;
            }
            self.ring.enter(Some(Duration::from_secs(5))).unwrap();
            self.ring.reap(&mut completions);
            for completion in completions.drain(..) {
                let Tag::Disk(key) = completion.tag else {
                    panic!("only disk operations were begun");
                };
                let ended = self
                    .disks
                    .completed(&mut self.ring, Time(0), key, completion);
                self.ended.extend(ended);
            }
        }
    }

    fn do_one(&mut self, op: DiskOp<PoolBuffer>) -> Result<(), DiskError> {
        self.start(1, op);
        self.wait(1);
        self.ended.pop().unwrap().1
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name)).unwrap()
    }
}

fn parts<const N: usize>(buffers: [PoolBuffer; N]) -> Parts<PoolBuffer> {
    buffers.into_iter().collect()
}

#[test]
fn parts_are_written_one_after_the_other_and_read_back() {
    let mut bench = Bench::new();
    let parts = parts([
        bench.buffer(1, 1),
        bench.buffer(3, 2),
        bench.buffer(2, 3).slice(1, 1),
    ]);
    let offset = 8192;
    let write = DiskOp::JournalWrite { offset, parts };
    assert_eq!(bench.do_one(write), Ok(()));
    let journal = bench.file("journal");
    let blocks: Vec<u8> = (1..8).map(|block| journal[block * BLOCK_BYTES]).collect();
    assert_eq!(blocks, [0, 1, 2, 2, 2, 3, 0]);
    let buffer = bench.buffer(5, 9);
    let read = DiskOp::JournalRead {
        offset,
        buffer: buffer.clone(),
    };
    assert_eq!(bench.do_one(read), Ok(()));
    assert_eq!(
        buffer.bytes(),
        &journal[8192..8192 + 5 * BLOCK_BYTES],
        "nobody else has a handle now"
    );
    let mut buffer = buffer;
    buffer.bytes_mut().fill(0);
}

#[test]
fn zeroes_are_made_in_every_way() {
    let mut bench = Bench::new();
    for ways in 0..3 {
        let parts = parts([bench.buffer(512, 7), bench.buffer(512, 7)]);
        let volume = VOLUME;
        let offset = 0;
        let write = DiskOp::StoreWrite {
            volume,
            offset,
            parts,
        };
        assert_eq!(bench.do_one(write), Ok(()));
        let (offset, length) = (4096, (4 << 20) - 8192);
        if ways < 2 {
            let zero = DiskOp::StoreZero {
                volume,
                offset,
                length,
                may_deallocate: ways == 0,
            };
            assert_eq!(bench.do_one(zero), Ok(()));
        } else {
            // What a filesystem without the others gets.
            let active = Active {
                ticket: Ticket(1),
                began: Time(0),
                file: bench.disks.files.stores[0].clone().expect("it is there"),
                offset,
                length,
                done: 0,
                retries: 0,
                work: Work::WriteZeroes,
                counted: counted(),
            };
            bench.disks.begin(&mut bench.ring, active);
            bench.wait(1);
            assert_eq!(bench.ended.pop(), Some((Ticket(1), Ok(()))));
        }
        assert_eq!(bench.do_one(DiskOp::StoreFlush { volume }), Ok(()));
        let store = bench.file("store");
        assert_eq!(store.len() as u64, FILE_BYTES);
        let (from, to) = (offset as usize, (offset + length) as usize);
        assert!(store[..from].iter().all(|byte| *byte == 7));
        assert!(store[from..to].iter().all(|byte| *byte == 0));
        assert!(store[to..4 << 20].iter().all(|byte| *byte == 7));
    }
}

#[test]
fn files_beside_the_stores_are_written_flushed_read_and_given_back() {
    let mut bench = Bench::new();
    for (file, name, byte) in [(SideFile::Sums, "sums", 5), (SideFile::Stage, "stage", 6)] {
        let parts = parts([bench.buffer(2, byte), bench.buffer(2, byte)]);
        let offset = 8192;
        let write = DiskOp::SideWrite {
            file,
            offset,
            parts,
        };
        assert_eq!(bench.do_one(write), Ok(()));
        assert_eq!(bench.do_one(DiskOp::SideFlush { file }), Ok(()));
        let buffer = bench.buffer(4, 9);
        let read = DiskOp::SideRead {
            file,
            offset,
            buffer: buffer.clone(),
        };
        assert_eq!(bench.do_one(read), Ok(()));
        assert!(buffer.bytes().iter().all(|b| *b == byte));
        let discard = DiskOp::SideDiscard {
            file,
            offset: 12288,
            length: 8192,
        };
        assert_eq!(bench.do_one(discard), Ok(()));
        let bytes = bench.file(name);
        assert_eq!(bytes.len() as u64, FILE_BYTES);
        let allocated = bench.dir.path().join(name).metadata().unwrap().blocks() * 512;
        match file {
            SideFile::Sums => assert!(allocated >= 4 * 4096, "it keeps its room"),
            SideFile::Stage => assert!(allocated < 4 * 4096, "it gives it back"),
        }
        let blocks: Vec<u8> = (1..7).map(|block| bytes[block * BLOCK_BYTES]).collect();
        assert_eq!(blocks, [0, byte, 0, 0, byte, 0]);
        let past = DiskOp::SideDiscard {
            file,
            offset: FILE_BYTES - 4096,
            length: 8192,
        };
        assert_eq!(bench.do_one(past), Err(DiskError::Short));
        for kind in DiskKind::ALL {
            let work = bench.disks.meters.disk(DiskFile::Side(file), *kind);
            assert_eq!(work.duration.buckets().iter().sum::<u64>(), 1, "{kind:?}");
        }
    }
}

#[test]
fn a_way_that_the_filesystem_lacks_is_followed_by_the_next() {
    let bench = Bench::new();
    let mut active = Active {
        ticket: Ticket(1),
        began: Time(0),
        file: bench.disks.files.stores[0].clone().expect("it is there"),
        offset: 0,
        length: 4096,
        done: 0,
        retries: 0,
        work: Work::Deallocate,
        counted: counted(),
    };
    assert!(matches!(
        judge(&mut active, Err(Errno::EOPNOTSUPP)),
        Next::GoOn
    ));
    assert!(matches!(active.work, Work::ZeroRange));
    assert!(matches!(
        judge(&mut active, Err(Errno::EOPNOTSUPP)),
        Next::GoOn
    ));
    assert!(matches!(active.work, Work::WriteZeroes));
    assert!(matches!(
        judge(&mut active, Err(Errno::EIO)),
        Next::Ended(Err(DiskError::Os(5)))
    ));
}

#[test]
fn short_results_are_continued_and_nothing_is_an_error() {
    let mut bench = Bench::new();
    let mut active = Active {
        ticket: Ticket(1),
        began: Time(0),
        file: bench.disks.files.stores[0].clone().expect("it is there"),
        offset: 0,
        length: 12288,
        done: 0,
        retries: 0,
        work: Work::Write {
            parts: parts([bench.buffer(1, 1), bench.buffer(2, 2)]),
            durable: false,
        },
        counted: counted(),
    };
    assert!(matches!(judge(&mut active, Ok(4608)), Next::GoOn));
    if let Work::Write { parts, .. } = &active.work {
        let left = segments_after(parts, active.done as usize);
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].start, left[0].length), (512, 7680));
    }
    assert!(matches!(judge(&mut active, Err(Errno::EINTR)), Next::GoOn));
    assert!(matches!(
        judge(&mut active, Ok(0)),
        Next::Ended(Err(DiskError::Short))
    ));
    assert!(matches!(judge(&mut active, Ok(7680)), Next::Ended(Ok(()))));
}

#[test]
fn nothing_is_read_or_written_past_the_end() {
    let mut bench = Bench::new();
    let parts = parts([bench.buffer(2, 1)]);
    let offset = FILE_BYTES - 4096;
    let write = DiskOp::MetaWrite { offset, parts };
    assert_eq!(bench.do_one(write), Err(DiskError::Short));
    assert_eq!(bench.file("meta").len() as u64, FILE_BYTES);
    let read = DiskOp::StoreRead {
        volume: VolumeId(3),
        offset: 0,
        buffer: bench.buffer(1, 0),
    };
    assert_eq!(bench.do_one(read), Err(DiskError::Short));
}

#[test]
fn more_operations_than_the_kernel_gets_wait_their_turn() {
    let mut bench = Bench::new();
    let count = 3 * OPERATIONS_MAX;
    for n in 0..count {
        let parts = parts([bench.buffer(1, (n % 251) as u8)]);
        let offset = (n * BLOCK_BYTES) as u64;
        let volume = VOLUME;
        let write = DiskOp::StoreWrite {
            volume,
            offset,
            parts,
        };
        bench.start(n as u64, write);
    }
    bench.wait(count);
    assert!(bench.ended.iter().all(|(_, result)| result.is_ok()));
    let mut tickets: Vec<u64> = bench.ended.iter().map(|(ticket, _)| ticket.0).collect();
    tickets.sort_unstable();
    assert!(tickets.into_iter().eq(0..count as u64));
    let store = bench.file("store");
    assert!((0..count).all(|n| store[n * BLOCK_BYTES] == (n % 251) as u8));
}

#[test]
fn a_reader_fills_any_buffer_and_knows_the_end() {
    let mut bench = Bench::new();
    let parts = parts([bench.buffer(512, 5), bench.buffer(512, 6)]);
    let offset = 0;
    let write = DiskOp::MetaWrite { offset, parts };
    assert_eq!(bench.do_one(write), Ok(()));
    let file = bench.disks.files.meta.clone();
    let mut reader = BlockingReader::new(&file, &bench.pool).unwrap();
    let mut bytes = vec![0; 3 << 20];
    assert_eq!(reader.read(4096, &mut bytes), Ok(()));
    let split = (2 << 20) - 4096;
    assert!(bytes[..split].iter().all(|byte| *byte == 5));
    assert!(bytes[split..].iter().all(|byte| *byte == 6));
    assert_eq!(
        reader.read(FILE_BYTES - 4096, &mut bytes[..8192]),
        Err(DiskError::Short)
    );
}

#[test]
fn want_of_room_to_stage_is_left_to_the_core_and_anything_else_is_told() {
    let bench = Bench::new();
    let active = |file| Active {
        ticket: Ticket(1),
        began: Time(0),
        file: bench.disks.files.stage.clone().unwrap(),
        offset: 0,
        length: 4096,
        done: 0,
        retries: 0,
        work: Work::Flush,
        counted: Counted {
            file,
            kind: DiskKind::Flush,
        },
    };
    let no_room = DiskError::Os(Errno::ENOSPC as i32);
    let stage = active(DiskFile::Side(SideFile::Stage));
    assert!(stage.is_known_to_wait(no_room));
    assert!(!stage.is_known_to_wait(DiskError::Os(Errno::EIO as i32)));
    for file in [DiskFile::Side(SideFile::Sums), DiskFile::Store(0)] {
        assert!(!active(file).is_known_to_wait(no_room));
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = DirectFile::open(Path::new("/nowhere/journal")).unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/journal: "));
}

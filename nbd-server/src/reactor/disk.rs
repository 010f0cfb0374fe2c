//! Disk operations: from what the core wants to what the ring does, and back.
//!
//! Files are opened with O_DIRECT; see [`places`](super::places) for changes of their size. What moved fewer bytes than asked for is continued; more
//! operations than [`OPERATIONS_MAX`] wait their turn in order.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::EventFd;
use replicator::io::{DiskError, DiskOp, PARTS_MAX, Parts, SideFile};
use replicator::memory::Buffer;
use replicator::types::{BLOCK_BYTES, Ticket, Time, VolumeId};

use super::file::{DirectFile, OpenedFile};
use super::places::{Moved, Movers, Places, Wanted};
use super::pool::{Pool, PoolBuffer};
use super::record::{Event, Recorder};
use super::ring::{Completion, Ring, Segment, Segments, WriteAt};
use super::slab::Slab;
use super::tag::Tag;
use super::trouble::{Doing, Operation, Watch};
use crate::handle::Usage;
use crate::meters::{DiskFile, DiskKind, Meters};

/// The most disk operations that the kernel is given at a time.
pub const OPERATIONS_MAX: usize = 256;

/// How often in a row an operation that the kernel interrupts is begun anew.
const RETRIES_MAX: u32 = 100;

/// Blocks of zeroes that are written where the filesystem can not make them itself.
const ZERO_BLOCKS: u32 = 256;

const _: () = assert!(PARTS_MAX <= super::ring::SEGMENTS_MAX);

/// How a disk operation ended.
pub type DiskDone = (Ticket, Result<(), DiskError>);

/// The files and devices of a node, opened.
#[derive(Debug)]
pub struct Files {
    /// The metadata.
    pub meta: DirectFile,
    /// The journal. A witness has none, and none of the files that go with stores.
    pub journal: Option<DirectFile>,
    /// The stores, by the ids of the volumes.
    pub stores: Vec<Option<DirectFile>>,
    /// The table of checksums.
    pub sums: Option<DirectFile>,
    /// What a resync has brought until it is whole.
    pub stage: Option<DirectFile>,
}

impl Files {
    fn side(&self, file: SideFile) -> Option<&DirectFile> {
        match file {
            SideFile::Sums => self.sums.as_ref(),
            SideFile::Stage => self.stage.as_ref(),
        }
    }
}

/// The files of a node, and what is going on with them.
#[derive(Debug)]
pub struct Disks {
    files: Files,
    active: Slab<Active>,
    waiting: VecDeque<Active>,
    /// What ended without the kernel.
    ended: VecDeque<DiskDone>,
    zeroes: PoolBuffer,
    recorder: Recorder,
    meters: Arc<Meters>,
    watch: Watch,
    /// Where the files are, and who makes them longer or shorter.
    places: Option<Places>,
    movers: Movers,
}

#[derive(Debug)]
struct Active {
    ticket: Ticket,
    began: Time,
    file: DirectFile,
    offset: u64,
    length: u64,
    /// How much of it has been moved.
    done: u64,
    retries: u32,
    work: Work,
    counted: Counted,
}

/// What an operation is counted as.
#[derive(Clone, Copy, Debug)]
struct Counted {
    file: DiskFile,
    kind: DiskKind,
}

// A write's parts are in place, so that an operation costs no allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum Work {
    Read(PoolBuffer),
    Write {
        parts: Parts<PoolBuffer>,
        durable: bool,
    },
    /// Ways to zero, the best first.
    Deallocate,
    ZeroRange,
    WriteZeroes,
    Flush,
}

impl Disks {
    /// Takes over opened files; an operation that takes `timeout_nanos` hangs. `None` if `pool` has no room for a piece of zeroes.
    pub fn new(files: Files, pool: &Pool, timeout_nanos: u64) -> Option<Self> {
        let mut zeroes = pool.alloc_connection(ZERO_BLOCKS)?;
        zeroes.bytes_mut().fill(0);
        Some(Self {
            files,
            active: Slab::new(OPERATIONS_MAX),
            waiting: VecDeque::with_capacity(4 * OPERATIONS_MAX),
            ended: VecDeque::with_capacity(OPERATIONS_MAX),
            zeroes,
            recorder: Recorder::default(),
            meters: Arc::default(),
            watch: Watch::new(timeout_nanos),
            places: None,
            movers: Movers::new(None),
        })
    }

    /// The same, with files that can get longer and shorter. Whoever does that rings `bell`.
    #[must_use]
    pub fn at(mut self, places: Places, bell: Arc<EventFd>) -> Self {
        self.places = Some(places);
        self.movers = Movers::new(Some(bell));
        self
    }

    /// The same, counted.
    #[must_use]
    pub fn metered(mut self, meters: Arc<Meters>) -> Self {
        self.meters = meters;
        self
    }

    /// How many operations the kernel has.
    pub fn usage(&self) -> Usage {
        Usage {
            used: u32::try_from(self.active.taken_places()).unwrap_or(u32::MAX),
            limit: OPERATIONS_MAX as u32,
        }
    }

    /// How many operations wait for others to end.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The same, with notes taken of what happens to the files.
    #[must_use]
    pub fn recorded(mut self, recorder: Recorder) -> Self {
        let number = |file: &DirectFile| file.fd.as_raw_fd();
        let files = &self.files;
        let stores: Vec<_> = files.stores.iter().flatten().map(number).collect();
        recorder.note(|| Event::Files {
            meta: number(&files.meta),
            journal: files.journal.as_ref().map_or(-1, number),
            sums: files.sums.as_ref().map_or(-1, number),
            stage: files.stage.as_ref().map_or(-1, number),
            stores: &stores,
        });
        self.recorder = recorder;
        self
    }

    /// Begins an operation, or queues it behind others.
    pub fn start(
        &mut self,
        ring: &mut Ring<Tag>,
        now: Time,
        ticket: Ticket,
        op: DiskOp<PoolBuffer>,
    ) {
        let op = match op {
            DiskOp::MakeRoom { own, volumes } => {
                return self.begin_move(ticket, Wanted::Room { own, volumes });
            }
            DiskOp::Fit { volumes } => return self.begin_move(ticket, Wanted::Fit { volumes }),
            other => other,
        };
        let total = |parts: &Parts<PoolBuffer>| {
            let bytes = parts
                .iter()
                .map(|part| u64::from(part.blocks()) * BLOCK_BYTES as u64);
            bytes.sum::<u64>()
        };
        let counted = match &op {
            DiskOp::JournalWrite { .. } => (DiskFile::Journal, DiskKind::Write),
            DiskOp::JournalRead { .. } => (DiskFile::Journal, DiskKind::Read),
            DiskOp::MetaWrite { .. } => (DiskFile::Meta, DiskKind::Write),
            DiskOp::StoreRead { volume, .. } => (store_of(*volume), DiskKind::Read),
            DiskOp::StoreWrite { volume, .. } => (store_of(*volume), DiskKind::Write),
            DiskOp::StoreZero { volume, .. } => (store_of(*volume), DiskKind::Zero),
            DiskOp::StoreFlush { volume } => (store_of(*volume), DiskKind::Flush),
            DiskOp::SideRead { file, .. } => (DiskFile::Side(*file), DiskKind::Read),
            DiskOp::SideWrite { file, .. } => (DiskFile::Side(*file), DiskKind::Write),
            DiskOp::SideFlush { file } => (DiskFile::Side(*file), DiskKind::Flush),
            DiskOp::SideDiscard { file, .. } => (DiskFile::Side(*file), DiskKind::Zero),
            DiskOp::MakeRoom { .. } | DiskOp::Fit { .. } => unreachable!("they are elsewhere"),
        };
        let files = &self.files;
        let store = |volume: VolumeId| files.stores.get(usize::from(volume.0))?.as_ref();
        let (file, offset, length, work) = match op {
            DiskOp::JournalWrite { offset, parts } => {
                let (length, durable) = (total(&parts), true);
                let work = Work::Write { parts, durable };
                (files.journal.as_ref(), offset, length, work)
            }
            DiskOp::JournalRead { offset, buffer } => {
                let length = u64::from(buffer.blocks()) * BLOCK_BYTES as u64;
                (files.journal.as_ref(), offset, length, Work::Read(buffer))
            }
            DiskOp::MetaWrite { offset, parts } => {
                let (length, durable) = (total(&parts), true);
                let work = Work::Write { parts, durable };
                (Some(&files.meta), offset, length, work)
            }
            DiskOp::StoreRead {
                volume,
                offset,
                buffer,
            } => {
                let length = u64::from(buffer.blocks()) * BLOCK_BYTES as u64;
                (store(volume), offset, length, Work::Read(buffer))
            }
            DiskOp::StoreWrite {
                volume,
                offset,
                parts,
            } => {
                let (length, durable) = (total(&parts), false);
                let work = Work::Write { parts, durable };
                (store(volume), offset, length, work)
            }
            DiskOp::StoreZero {
                volume,
                offset,
                length,
                may_deallocate: true,
            } => (store(volume), offset, length, Work::Deallocate),
            DiskOp::StoreZero {
                volume,
                offset,
                length,
                may_deallocate: false,
            } => (store(volume), offset, length, Work::ZeroRange),
            DiskOp::StoreFlush { volume } => (store(volume), 0, 0, Work::Flush),
            DiskOp::SideRead {
                file,
                offset,
                buffer,
            } => {
                let length = u64::from(buffer.blocks()) * BLOCK_BYTES as u64;
                (files.side(file), offset, length, Work::Read(buffer))
            }
            DiskOp::SideWrite {
                file,
                offset,
                parts,
            } => {
                let (length, durable) = (total(&parts), false);
                let work = Work::Write { parts, durable };
                (files.side(file), offset, length, work)
            }
            DiskOp::SideFlush { file } => (files.side(file), 0, 0, Work::Flush),
            DiskOp::SideDiscard {
                file,
                offset,
                length,
            } => {
                let work = match file {
                    SideFile::Stage => Work::Deallocate,
                    // Its room was reserved when the node was created, and stays so.
                    SideFile::Sums => Work::ZeroRange,
                };
                (files.side(file), offset, length, work)
            }
            DiskOp::MakeRoom { .. } | DiskOp::Fit { .. } => unreachable!("they are elsewhere"),
        };
        let Some(file) = file.filter(|file| file.has(offset, length)) else {
            self.ended.push_back((ticket, Err(DiskError::Short)));
            return;
        };
        let active = Active {
            ticket,
            began: now,
            file: file.clone(),
            offset,
            length,
            done: 0,
            retries: 0,
            work,
            counted: Counted {
                file: counted.0,
                kind: counted.1,
            },
        };
        if !self.waiting.is_empty() || self.active.is_full() {
            self.waiting.push_back(active);
        } else {
            self.begin(ring, active);
        }
    }

    fn begin(&mut self, ring: &mut Ring<Tag>, active: Active) {
        let key = self
            .active
            .insert(active)
            .expect("only begun when there is room");
        self.submit(ring, key);
    }

    fn submit(&mut self, ring: &mut Ring<Tag>, key: u32) {
        let Some(active) = self.active.get(key) else {
            return;
        };
        let tag = Tag::Disk(key);
        let target = active.file.target();
        let file = target.file.as_raw_fd();
        let offset = active.offset + active.done;
        let left = active.length - active.done;
        let recorder = &self.recorder;
        let mut write = |durable: bool, segments: &Segments| {
            recorder.note(|| Event::Write {
                key,
                file,
                offset,
                durable,
                segments,
            });
            ring.write(tag, target, WriteAt { offset, durable }, segments);
        };
        let zero = |mode| Event::Zero {
            key,
            file,
            mode,
            offset,
            length: left,
        };
        match &active.work {
            Work::Read(buffer) => {
                let into = (buffer.clone(), active.done as usize, left as usize);
                ring.read(tag, target, offset, into);
            }
            Work::Write { parts, durable } => {
                write(*durable, &segments_after(parts, active.done as usize));
            }
            Work::Deallocate => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                recorder.note(|| zero(mode));
                ring.fallocate(tag, target, mode, (offset, left));
            }
            Work::ZeroRange => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                recorder.note(|| zero(mode));
                ring.fallocate(tag, target, mode, (offset, left));
            }
            Work::WriteZeroes => {
                let (mut segments, mut left) = (Segments::new(), left);
                while left > 0 && segments.len() < PARTS_MAX {
                    let length = left.min(self.zeroes.bytes().len() as u64);
                    segments.push(Segment {
                        buffer: self.zeroes.clone(),
                        start: 0,
                        length: length as usize,
                    });
                    left -= length;
                }
                write(false, &segments);
            }
            Work::Flush => {
                recorder.note(|| Event::Flush { key, file });
                ring.data_sync(tag, target);
            }
        }
    }

    /// Takes an operation's completion. `None` if it goes on.
    pub fn completed(
        &mut self,
        ring: &mut Ring<Tag>,
        now: Time,
        key: u32,
        completion: Completion<Tag>,
    ) -> Option<DiskDone> {
        let active = self.active.get_mut(key)?;
        if !matches!(active.work, Work::Read(_)) {
            let result = completion.result;
            self.recorder.note(|| Event::Ended { key, result });
        }
        let result = match judge(active, completion.result) {
            Next::GoOn => {
                self.submit(ring, key);
                return None;
            }
            Next::Ended(result) => result,
        };
        if let Err(error) = result
            && !active.is_known_to_wait(error)
        {
            self.watch.failed(now, &active.operation(), error);
        }
        // With this the handles go, before the core hears of the end.
        let Active {
            ticket,
            length,
            counted,
            began,
            ..
        } = self.active.remove(key)?;
        let work = self.meters.disk(counted.file, counted.kind);
        work.duration.observe(now.since(began));
        match result {
            Ok(()) => work.bytes.add(length),
            Err(_) => work.failed.add(1),
        }
        if let Some(next) = self.waiting.pop_front() {
            self.begin(ring, next);
        }
        Some((ticket, result))
    }

    /// Looks after operations that are not answered, every now and then.
    pub fn look(&mut self, now: Time) {
        if self.watch.is_due(now) {
            let oldest = self.active.iter().map(|(_, active)| active);
            let oldest = oldest.min_by_key(|active| active.began);
            self.watch.look(now, oldest.map(Active::operation));
        }
    }

    /// Lengths of files are changed by a thread of their own.
    fn begin_move(&mut self, ticket: Ticket, wanted: Wanted) {
        match &self.places {
            Some(places) => self.movers.begin(ticket, wanted, places.clone()),
            None => self.ended.push_back((ticket, Err(DiskError::Short))),
        }
    }

    /// Takes over files whose lengths have changed; tells where the stores are.
    pub fn moved(&mut self) -> Option<Option<Vec<Option<PathBuf>>>> {
        let Moved {
            ticket,
            places,
            result,
        } = self.movers.ended()?;
        let stores = result.is_ok().then(|| places.paths());
        self.places = Some(places);
        let result = result.map(|opened| {
            let file = |file: Option<OpenedFile>| file.map(DirectFile::from);
            self.files.stores = opened.stores.into_iter().map(file).collect();
            (self.files.sums, self.files.stage) = (file(opened.sums), file(opened.stage));
        });
        self.ended.push_back((ticket, result));
        Some(stores)
    }

    /// What is known to be wrong with the files.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// What ended without the kernel, because it was impossible.
    pub fn pop_ended(&mut self) -> Option<DiskDone> {
        self.ended.pop_front()
    }

    /// Whether [`Disks::pop_ended`] has something.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }
}

fn store_of(volume: VolumeId) -> DiskFile {
    DiskFile::Store(usize::from(volume.0))
}

impl Active {
    /// Whether the core deals with it: where there is no room to stage, a resync waits for some, and says so.
    fn is_known_to_wait(&self, error: DiskError) -> bool {
        let no_room = [Errno::ENOSPC, Errno::EDQUOT].map(|errno| DiskError::Os(errno as i32));
        matches!(self.counted.file, DiskFile::Side(SideFile::Stage)) && no_room.contains(&error)
    }

    fn operation(&self) -> Operation<'_> {
        Operation {
            path: &self.file.path,
            doing: match self.work {
                Work::Read(_) => Doing::Reading,
                Work::Write { .. } => Doing::Writing,
                Work::Deallocate | Work::ZeroRange | Work::WriteZeroes => Doing::Zeroing,
                Work::Flush => Doing::Flushing,
            },
            offset: self.offset,
            length: self.length,
            began: self.began,
        }
    }
}

enum Next {
    GoOn,
    Ended(Result<(), DiskError>),
}

fn judge(active: &mut Active, result: Result<u32, Errno>) -> Next {
    match (result, &active.work) {
        (Err(Errno::EINTR | Errno::EAGAIN), _) if active.retries < RETRIES_MAX => {
            active.retries += 1;
            Next::GoOn
        }
        (Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL), Work::Deallocate) => {
            active.work = Work::ZeroRange;
            Next::GoOn
        }
        (Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL), Work::ZeroRange) => {
            active.work = Work::WriteZeroes;
            Next::GoOn
        }
        (Err(errno), _) => Next::Ended(Err(DiskError::Os(errno as i32))),
        (Ok(_), Work::Deallocate | Work::ZeroRange | Work::Flush) => Next::Ended(Ok(())),
        (Ok(0), _) => Next::Ended(Err(DiskError::Short)),
        (Ok(moved), _) => {
            active.retries = 0;
            active.done += u64::from(moved);
            if active.done >= active.length {
                Next::Ended(Ok(()))
            } else {
                Next::GoOn
            }
        }
    }
}

/// What is left of `parts` when the first `done` bytes have been written.
fn segments_after(parts: &Parts<PoolBuffer>, done: usize) -> Segments {
    let (mut segments, mut skip) = (Segments::new(), done);
    for part in parts {
        let length = part.blocks() as usize * BLOCK_BYTES;
        if skip >= length {
            skip -= length;
            continue;
        }
        segments.push(Segment {
            buffer: part.clone(),
            start: skip,
            length: length - skip,
        });
        skip = 0;
    }
    segments
}

#[cfg(test)]
mod tests;

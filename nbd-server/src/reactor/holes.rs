//! Maps of holes: which parts of a volume are allocated, and which are known to read as zeroes.
//!
//! Two are asked. First the core, on the data thread: which blocks hold what the store lacks. Then the store, for the blocks
//! in between: `lseek(2)` with SEEK_DATA and SEEK_HOLE, which a filesystem may take its time for, so a thread of its
//! own does that. In this order a map shows only what was true at some time between question and answer (see
//! [`Replica::unapplied`](replicator::Replica::unapplied)). A device, and a filesystem without holes, is all data.
//!
//! A connection has one question at most, so there is room for all of them from the start, and the data thread neither waits
//! nor allocates for one.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::unistd::{Whence, lseek};
use replicator::types::{BLOCK_BYTES_U64, VolumeId};
use replicator::view::{Holds, Unapplied};

use super::CLIENTS_MAX;
use crate::nbd::protocol::{STATE_HOLE, STATE_ZERO};
use crate::nbd::{Extent, Extents};

/// The most parts of a range that the core is asked for. A map ends where they end.
pub const COVER_MAX: usize = 64;

/// What the core says of a range, in order.
pub type Cover = ArrayVec<Unapplied, COVER_MAX>;

/// What a client wants to know.
#[derive(Debug)]
pub struct Question {
    /// The key of its connection.
    pub client: u32,
    /// Which volume.
    pub volume: VolumeId,
    /// The first byte.
    pub offset: u64,
    /// How many bytes; never 0.
    pub len: u32,
    /// Whether one extent is enough.
    pub one: bool,
    /// What the core said.
    pub cover: Cover,
}

/// What it is told.
#[derive(Debug)]
pub struct Mapped {
    /// The key of its connection.
    pub client: u32,
    /// At least one extent.
    pub extents: Box<Extents>,
}

/// The data thread's door to the thread that asks the stores.
#[derive(Debug)]
pub struct Mapper {
    questions: SyncSender<Question>,
    answers: Receiver<Mapped>,
    /// Opened anew for this: a position in a file belongs to whoever opened it.
    stores: Arc<Mutex<Vec<Option<File>>>>,
}

fn opened(stores: &[Option<PathBuf>]) -> io::Result<Vec<Option<File>>> {
    let open = |path: &Option<PathBuf>| path.as_ref().map(File::open).transpose();
    stores.iter().map(open).collect()
}

impl Mapper {
    /// Starts the thread, which ends with the mapper. It rings `bell` for each answer.
    ///
    /// # Errors
    /// A store can not be opened, or there is no thread.
    pub fn start(stores: &[Option<PathBuf>], bell: Arc<EventFd>) -> io::Result<Self> {
        let stores = Arc::new(Mutex::new(opened(stores)?));
        let known = Arc::clone(&stores);
        let (questions, asked) = sync_channel::<Question>(CLIENTS_MAX);
        let (told, answers) = sync_channel(CLIENTS_MAX);
        thread::Builder::new()
            .name("holes".to_owned())
            .spawn(move || {
                for question in asked {
                    let client = question.client;
                    let extents = {
                        let stores = known.lock().unwrap_or_else(PoisonError::into_inner);
                        let store = stores.get(usize::from(question.volume.0));
                        Box::new(map(&question, store.and_then(Option::as_ref)))
                    };
                    let answered = told.send(Mapped { client, extents }).is_ok();
                    if !answered || bell.write(1).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            questions,
            answers,
            stores,
        })
    }

    /// The stores are others now. What can not be opened is all data.
    pub fn stores_are(&self, paths: &[Option<PathBuf>]) {
        let open = |path: &Option<PathBuf>| path.as_ref().and_then(|p| File::open(p).ok());
        let opened = paths.iter().map(open).collect();
        *self.stores.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    /// Asks. The connection has no other question.
    ///
    /// # Panics
    /// If there are more questions than connections.
    pub fn ask(&self, question: Question) {
        let asked = self.questions.try_send(question);
        asked.expect("the thread lives as long as the mapper, and has room for a question of each");
    }

    /// The next answer, if there is one.
    pub fn answered(&self) -> Option<Mapped> {
        self.answers.try_recv().ok()
    }
}

/// What a store knows about its own holes.
trait Sparse {
    /// The first byte from `from` on that is in no hole; `None` if there is none.
    fn data_from(&self, from: u64) -> Result<Option<u64>, Errno>;
    /// The first byte from `from` on that is in a hole or at the end.
    fn hole_from(&self, from: u64) -> Result<u64, Errno>;
}

impl Sparse for File {
    fn data_from(&self, from: u64) -> Result<Option<u64>, Errno> {
        match seek(self, from, Whence::SeekData) {
            Err(Errno::ENXIO) => Ok(None),
            found => found.map(Some),
        }
    }

    fn hole_from(&self, from: u64) -> Result<u64, Errno> {
        seek(self, from, Whence::SeekHole)
    }
}

fn seek(file: &File, from: u64, whence: Whence) -> Result<u64, Errno> {
    let from = i64::try_from(from).map_err(|_| Errno::EINVAL)?;
    let at = lseek(file, from, whence)?;
    u64::try_from(at).map_err(|_| Errno::EINVAL)
}

/// The answer to a question. Where nothing is known it says that there is data, which is never wrong.
fn map(question: &Question, store: Option<&impl Sparse>) -> Extents {
    let mut extents = Extents::new();
    let mut end = question.offset + u64::from(question.len);
    if question.cover.is_full()
        && let Some(last) = question.cover.last()
    {
        // The core may have more to say of what follows.
        end = end.min((last.start + last.blocks) * BLOCK_BYTES_U64);
    }
    let mut at = question.offset;
    let mut cover = question.cover.iter().peekable();
    while at < end {
        let (to, status) = match cover.peek() {
            Some(part) if part.start * BLOCK_BYTES_U64 <= at => {
                let to = (part.start + part.blocks) * BLOCK_BYTES_U64;
                let status = match part.holds {
                    Holds::Anything => 0,
                    Holds::Zeroes { may_deallocate } => {
                        STATE_ZERO | if may_deallocate { STATE_HOLE } else { 0 }
                    }
                };
                cover.next();
                (to, status)
            }
            next => {
                let limit = next.map_or(end, |part| part.start * BLOCK_BYTES_U64);
                stored(store, at, limit.min(end))
            }
        };
        let to = to.min(end);
        let len = u32::try_from(to - at).expect("a part of what was asked for");
        let complete = question.one || extents.is_full();
        match extents.last_mut() {
            Some(last) if last.status == status => last.len += len,
            Some(_) if complete => break,
            _ => extents.push(Extent { len, status }),
        }
        at = to;
    }
    extents
}

/// Where the store's first extent from `at` on ends, at `limit` at the latest, and its status.
fn stored(store: Option<&impl Sparse>, at: u64, limit: u64) -> (u64, u32) {
    const HOLE: u32 = STATE_HOLE | STATE_ZERO;
    let Some(store) = store else {
        return (limit, 0);
    };
    match store.data_from(at) {
        Ok(None) => (limit, HOLE),
        Ok(Some(data)) if data > at => (data.min(limit), HOLE),
        Ok(Some(_)) => match store.hole_from(at) {
            Ok(hole) if hole > at => (hole.min(limit), 0),
            // It was punched in between.
            Ok(_) | Err(_) => (limit, 0),
        },
        Err(_) => (limit, 0),
    }
}

#[cfg(test)]
mod tests;

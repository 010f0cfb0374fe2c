//! The work of a small PBX, and its record of what was acknowledged.
//!
//! Each [`Stream`] is one thing that the PBX does, on an NBD connection of its own: database commits,
//! recordings that grow, a log that grows by odd numbers of bytes, prompts that are read. A stream
//! outlives its connection: after a failover it goes on with the next one, where its first unanswered
//! append was.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nbd_server::nbd::client::{Client, ClientError, ClientRequest, Completion};
use nbd_server::nbd::{Cookie, NbdError};

use super::connection::{self, Hangup, lost};
use super::oracle::{self, Content, Loss, Oracle, Stamp, WriteId, mix};

/// A volume and the model of what it holds.
#[derive(Debug)]
pub struct Volume {
    /// Its name and its export's name.
    pub name: String,
    oracle: Mutex<Oracle>,
}

impl Volume {
    /// A volume of zeroes.
    #[must_use]
    pub fn new(name: &str, size: u64) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            oracle: Mutex::new(Oracle::new(size)),
        })
    }

    /// The model.
    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        lock(&self.oracle)
    }
}

/// What a stream does.
#[derive(Clone, Copy, Debug)]
pub enum Job {
    /// Overwrites random pages; every write carries FUA. The database.
    Commit {
        /// Bytes of a page.
        page: u64,
    },
    /// Appends, and begins again where the region ends. Recordings and logs.
    Append {
        /// The smallest write.
        least: u64,
        /// The largest write.
        most: u64,
        /// A FLUSH after this many writes.
        flush_every: u64,
    },
    /// Reads at random and compares. Prompts.
    Read {
        /// The smallest read.
        least: u64,
        /// The largest read.
        most: u64,
    },
    /// Writes, trims and zeroes ranges of any offset and length.
    Scribble {
        /// The largest range.
        most: u64,
    },
}

/// How hard a stream works.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests in flight at most.
    pub depth: usize,
    /// This many requests...
    pub burst: u32,
    /// ...in this time at most; zero means as fast as they are answered.
    pub every: Duration,
}

impl Pace {
    /// As fast as the answers come.
    #[must_use]
    pub fn unbounded(depth: usize) -> Self {
        Self {
            depth,
            burst: 1,
            every: Duration::ZERO,
        }
    }
}

/// One stream of requests.
#[derive(Debug)]
pub struct Stream {
    id: u32,
    volume: Arc<Volume>,
    region: Range<u64>,
    job: Job,
    pace: Pace,
    counter: u64,
    /// Where the next append goes.
    position: u64,
}

/// How a stream's turn on a connection ended.
#[derive(Debug)]
pub enum End {
    /// It was told to stop, and everything was answered.
    Stopped,
    /// The connection broke; this many requests were unanswered.
    Lost {
        /// Why.
        error: ClientError,
        /// How many.
        unanswered: usize,
    },
    /// The server answered with an error number.
    Failed {
        /// NBD's error.
        error: NbdError,
    },
    /// A read returned something else than it had to.
    Wrong,
}

/// What all streams share: counters, findings, the wish to stop.
#[derive(Debug, Default)]
pub struct Tally {
    stop: AtomicBool,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    losses: Mutex<Vec<(String, Loss)>>,
}

impl Tally {
    /// Acknowledged writes.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Bytes of acknowledged writes.
    pub fn write_bytes(&self) -> u64 {
        self.write_bytes.load(Ordering::Relaxed)
    }

    /// Answered reads.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Bytes that were read and compared.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// What was wrong, with the volume's name.
    pub fn losses(&self) -> Vec<(String, Loss)> {
        lock(&self.losses).clone()
    }

    /// Notes bytes that were compared outside a stream, and what was wrong with them.
    pub fn note_checked(&self, volume: &str, bytes: u64, losses: Vec<Loss>) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.losses).extend(losses.into_iter().map(|loss| (volume.to_owned(), loss)));
    }

    fn note_write(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.write_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A request that has not been answered.
#[derive(Debug)]
enum Pending {
    Write { range: Range<u64>, id: WriteId },
    Read { offset: u64, since: oracle::Instant },
    Flush,
}

impl Stream {
    /// How many requests it has in flight at most.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.pace.depth
    }

    /// A stream with an id of its own that works in `region` of a volume.
    #[must_use]
    pub fn new(id: u32, volume: &Arc<Volume>, region: Range<u64>, job: Job, pace: Pace) -> Self {
        let position = region.start;
        Self {
            id,
            volume: Arc::clone(volume),
            region,
            job,
            pace,
            counter: 0,
            position,
        }
    }

    /// Writes the whole region once, front to back.
    pub fn fill(&mut self, socket: &Path, tally: &Tally) -> Result<(), ClientError> {
        const CHUNK: u64 = 256 << 10;
        let (mut connection, _) = connection::open(socket, &self.volume.name)?;
        let mut pending = BTreeMap::new();
        let mut at = self.region.start;
        while at < self.region.end || !pending.is_empty() {
            if at < self.region.end && pending.len() < 4 {
                let range = at..(at + CHUNK).min(self.region.end);
                at = range.end;
                self.write(&mut connection, range, false, &mut pending)?;
                continue;
            }
            let answer = connection.wait()?;
            if self.answered(answer, &mut pending, tally).is_some() {
                return Err(ClientError::Protocol(
                    "an error while the volume was filled",
                ));
            }
        }
        connection.disconnect().map(drop)
    }

    /// Makes one request of its kind and waits for the answer.
    pub fn write_once(&mut self, socket: &Path, tally: &Tally) -> Result<(), ClientError> {
        let (mut connection, _) = connection::open(socket, &self.volume.name)?;
        let mut pending = BTreeMap::new();
        self.issue(&mut connection, &mut pending)?;
        while !pending.is_empty() {
            let answer = connection.wait()?;
            if self.answered(answer, &mut pending, tally).is_some() {
                return Err(lost("the first request failed"));
            }
        }
        connection.disconnect().map(drop)
    }

    fn run(&mut self, mut connection: Client, tally: &Tally) -> End {
        let mut pending = BTreeMap::new();
        match self.work(&mut connection, &mut pending, tally) {
            Ok(End::Stopped) => match connection.disconnect() {
                Ok(_) => End::Stopped,
                Err(error) => End::Lost {
                    error,
                    unanswered: 0,
                },
            },
            Ok(end) => {
                self.give_up(pending);
                end
            }
            Err(error) => {
                let unanswered = pending.len();
                self.give_up(pending);
                End::Lost { error, unanswered }
            }
        }
    }

    fn work(
        &mut self,
        connection: &mut Client,
        pending: &mut BTreeMap<Cookie, Pending>,
        tally: &Tally,
    ) -> Result<End, ClientError> {
        let mut due = Instant::now();
        let mut left_in_burst = self.pace.burst;
        loop {
            let stop = tally.stop.load(Ordering::Relaxed);
            while !stop && pending.len() < self.pace.depth && Instant::now() >= due {
                self.issue(connection, pending)?;
                left_in_burst -= 1;
                if left_in_burst == 0 {
                    left_in_burst = self.pace.burst;
                    // What could not be done in time is not made up for.
                    due = due.max(Instant::now() - self.pace.every) + self.pace.every;
                }
            }
            if pending.is_empty() {
                if stop {
                    return Ok(End::Stopped);
                }
                let pause = due.saturating_duration_since(Instant::now());
                std::thread::sleep(pause.min(Duration::from_millis(20)));
                continue;
            }
            let answer = connection.wait()?;
            if let Some(end) = self.answered(answer, pending, tally) {
                return Ok(end);
            }
        }
    }

    fn issue(
        &mut self,
        connection: &mut Client,
        pending: &mut BTreeMap<Cookie, Pending>,
    ) -> Result<(), ClientError> {
        match self.job {
            Job::Commit { page } => {
                let pages = (self.region.end - self.region.start) / page;
                let start = self.region.start + self.random(pages) * page;
                self.write(connection, start..start + page, true, pending)
            }
            Job::Append {
                least,
                most,
                flush_every,
            } => {
                let length = least + self.random(most - least + 1);
                if self.position + length > self.region.end {
                    self.position = self.region.start;
                }
                let range = self.position..self.position + length;
                self.position = range.end;
                self.write(connection, range, false, pending)?;
                if self.counter.is_multiple_of(flush_every) {
                    pending.insert(connection.submit(&ClientRequest::Flush)?, Pending::Flush);
                }
                Ok(())
            }
            Job::Read { least, most } => {
                let length = least + self.random(most - least + 1);
                let span = self.region.end - self.region.start - length + 1;
                let offset = self.region.start + self.random(span);
                let since = self.volume.oracle().now();
                let cookie = connection.submit(&ClientRequest::Read {
                    offset,
                    len: length as u32,
                })?;
                pending.insert(cookie, Pending::Read { offset, since });
                Ok(())
            }
            Job::Scribble { most } => {
                let length = 1 + self.random(most);
                let span = self.region.end - self.region.start - length + 1;
                let start = self.region.start + self.random(span);
                let range = start..start + length;
                match mix(self.counter ^ 0x5c71_bb1e) % 10 {
                    kind @ 0..2 => {
                        let id = self.volume.oracle().begin(range.clone(), Content::Zeroes);
                        let (offset, len) = (start, length as u32);
                        let request = if kind == 0 {
                            ClientRequest::Trim {
                                offset,
                                len,
                                fua: false,
                            }
                        } else {
                            ClientRequest::WriteZeroes {
                                offset,
                                len,
                                fua: false,
                                no_hole: false,
                            }
                        };
                        let sent = connection.submit(&request);
                        self.sent(sent, range, id, pending)
                    }
                    kind => self.write(connection, range, kind < 4, pending),
                }
            }
        }
    }

    fn write(
        &mut self,
        connection: &mut Client,
        range: Range<u64>,
        durable: bool,
        pending: &mut BTreeMap<Cookie, Pending>,
    ) -> Result<(), ClientError> {
        self.counter += 1;
        let stamp = Stamp {
            stream: self.id,
            counter: self.counter,
        };
        let mut data = vec![0; (range.end - range.start) as usize];
        stamp.fill(range.start, &mut data);
        let id = self
            .volume
            .oracle()
            .begin(range.clone(), Content::Written(stamp));
        let sent = connection.submit(&ClientRequest::Write {
            offset: range.start,
            data: &data,
            fua: durable,
        });
        self.sent(sent, range, id, pending)
    }

    fn sent(
        &self,
        sent: Result<Cookie, ClientError>,
        range: Range<u64>,
        id: WriteId,
        pending: &mut BTreeMap<Cookie, Pending>,
    ) -> Result<(), ClientError> {
        match sent {
            Ok(cookie) => {
                pending.insert(cookie, Pending::Write { range, id });
                Ok(())
            }
            Err(error) => {
                // A part of it may have been sent.
                self.volume.oracle().give_up(range, id);
                Err(error)
            }
        }
    }

    fn answered(
        &mut self,
        answer: Completion,
        pending: &mut BTreeMap<Cookie, Pending>,
        tally: &Tally,
    ) -> Option<End> {
        let Some(request) = pending.remove(&answer.cookie) else {
            let error = ClientError::Protocol("an answer to nothing");
            return Some(End::Lost {
                error,
                unanswered: pending.len(),
            });
        };
        match (request, answer.result) {
            (Pending::Write { range, id }, Ok(_)) => {
                tally.note_write(range.end - range.start);
                self.volume.oracle().acknowledge(range, id);
                None
            }
            (Pending::Write { range, id }, Err(error)) => {
                self.volume.oracle().give_up(range, id);
                Some(End::Failed { error })
            }
            (Pending::Read { offset, since }, Ok(data)) => {
                let (losses, checked) = self.volume.oracle().check_since(since, offset, &data);
                let wrong = !losses.is_empty();
                tally.reads.fetch_add(1, Ordering::Relaxed);
                tally.note_checked(&self.volume.name, checked, losses);
                wrong.then_some(End::Wrong)
            }
            (Pending::Flush, Ok(_)) => None,
            (Pending::Read { .. } | Pending::Flush, Err(error)) => Some(End::Failed { error }),
        }
    }

    /// The answers will not come: these writes may have happened or not, and appends are done again.
    fn give_up(&mut self, pending: BTreeMap<Cookie, Pending>) {
        let mut first: Option<(WriteId, u64)> = None;
        for request in pending.into_values() {
            if let Pending::Write { range, id } = request {
                if first.is_none_or(|(earliest, _)| id < earliest) {
                    first = Some((id, range.start));
                }
                self.volume.oracle().give_up(range, id);
            }
        }
        if let Some((_, start)) = first {
            self.position = start;
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.counter += 1;
        mix(self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.id)) % below
    }
}

/// Streams at work, each on its own connection and thread.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<(Stream, End)>>,
    hangups: Vec<Hangup>,
    tally: Arc<Tally>,
}

impl Running {
    /// Connects every stream to the exports behind `socket` and sets them to work.
    pub fn start(
        streams: Vec<Stream>,
        socket: &Path,
        tally: &Arc<Tally>,
    ) -> Result<Self, ClientError> {
        tally.stop.store(false, Ordering::Relaxed);
        let mut hangups = Vec::new();
        let mut ready = Vec::new();
        for stream in streams {
            let (connection, hangup) = connection::open(socket, &stream.volume.name)?;
            hangups.push(hangup);
            ready.push((stream, connection));
        }
        let threads = ready
            .into_iter()
            .map(|(mut stream, connection)| {
                let tally = Arc::clone(tally);
                std::thread::spawn(move || {
                    let end = stream.run(connection, &tally);
                    (stream, end)
                })
            })
            .collect();
        Ok(Self {
            threads,
            hangups,
            tally: Arc::clone(tally),
        })
    }

    /// Whether a stream has ended, which none should unless told to.
    #[must_use]
    pub fn any_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Lets the streams finish what is in flight; hangs up on those that are not done within `bound`.
    pub fn stop(self, bound: Duration) -> (Vec<Stream>, Vec<End>) {
        self.tally.stop.store(true, Ordering::Relaxed);
        self.collect(bound)
    }

    /// Waits for the streams to notice that their server is gone; hangs up on those that have not within
    /// `bound`.
    pub fn collect(self, bound: Duration) -> (Vec<Stream>, Vec<End>) {
        let deadline = Instant::now() + bound;
        while !self.threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.hang_up()
    }

    /// Closes every connection as it is and waits for the streams.
    pub fn hang_up(self) -> (Vec<Stream>, Vec<End>) {
        for hangup in &self.hangups {
            hangup.hang_up();
        }
        self.threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .unzip()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked is reported where it is joined.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

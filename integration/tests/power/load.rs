//! Clients that write all sorts of things at once.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nbd_server::nbd::protocol::CommandFlags;
use nbd_server::nbd::wire::request;
use nbd_server::nbd::{Cookie, SIMPLE_REPLY_BYTES};
use replicator::types::VolumeId;

use crate::chance::Chance;
use crate::cluster::{BOUND, Cluster, VOLUMES};

const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

/// What a connection does.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// A few whole blocks at a time, as a database does.
    Pages,
    /// Parts of blocks, all in the same few blocks.
    Scraps,
    /// Up to 3 MiB at any byte.
    Large,
    /// TRIM and WRITE_ZEROES, small and large, at any byte.
    Zeroes,
}

/// The connections: what, on which volume, and how many requests at a time.
const CONNECTIONS: [(Job, u16, u64); 6] = [
    (Job::Pages, 0, 8),
    (Job::Pages, 1, 4),
    (Job::Scraps, 0, 8),
    (Job::Scraps, 1, 2),
    (Job::Large, 1, 2),
    (Job::Zeroes, 1, 1),
];

impl Job {
    /// Command, flags, offset and length of a request.
    fn draw(self, volume_bytes: u64, chance: &mut Chance) -> (u16, CommandFlags, u64, u64) {
        let (command, flags, most) = match self {
            Self::Pages => {
                let length = 4096 * (1 + chance.below(4));
                let offset = chance.below((volume_bytes - length) / 4096) * 4096;
                return (WRITE, CommandFlags::NONE, offset, length);
            }
            Self::Scraps => {
                let length = 8 + chance.below(700);
                let offset = chance.below((64 << 10) - length);
                return (WRITE, CommandFlags::NONE, offset, length);
            }
            Self::Large => (WRITE, CommandFlags::NONE, 3 << 20),
            Self::Zeroes => match chance.below(3) {
                0 => (TRIM, CommandFlags::NONE, 1 << 20),
                1 => (WRITE_ZEROES, CommandFlags::NONE, 64 << 10),
                _ => (WRITE_ZEROES, CommandFlags::NO_HOLE, 64 << 10),
            },
        };
        let length = 1 + chance.below(most);
        (command, flags, chance.below(volume_bytes - length), length)
    }
}

/// A load that runs.
pub(crate) struct Load {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Sets clients to work on a node.
    pub(crate) fn start(cluster: &Cluster, node: usize, seed: u64) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let connect = |(number, (job, volume, depth)): (u64, (Job, u16, u64))| {
            let mut client = Client {
                socket: cluster.client(node, VolumeId(volume)),
                chance: Chance::of(&[seed, number]),
                acknowledged: Arc::clone(&acknowledged),
            };
            let (stop, bytes) = (Arc::clone(&stop), VOLUMES[usize::from(volume)]);
            std::thread::spawn(move || {
                // An error is a client that was dropped, as happens when its Primary is one no longer.
                while !stop.load(Ordering::Relaxed) && client.round(job, bytes, depth).is_ok() {}
            })
        };
        let threads = (0..).zip(CONNECTIONS).map(connect).collect();
        Self {
            acknowledged,
            stop,
            threads,
        }
    }

    /// Waits until so many bytes were acknowledged since the start.
    pub(crate) fn wait(&self, bytes: u64) {
        let began = Instant::now();
        while self.acknowledged.load(Ordering::Relaxed) < bytes {
            assert!(began.elapsed() < BOUND, "the clients do not get on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// No more requests from now on.
    pub(crate) fn halt(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until every client has its answers or was dropped.
    pub(crate) fn finish(self) {
        self.halt();
        for thread in self.threads {
            thread.join().expect("clients do not panic");
        }
    }
}

struct Client {
    socket: UnixStream,
    chance: Chance,
    acknowledged: Arc<AtomicU64>,
}

impl Client {
    /// Some requests at once, and their replies.
    fn round(&mut self, job: Job, volume_bytes: u64, depth: u64) -> io::Result<()> {
        let (mut bytes, mut total) = (Vec::new(), 0);
        for cookie in 0..depth {
            let (command, flags, offset, length) = job.draw(volume_bytes, &mut self.chance);
            let cookie = Cookie(cookie);
            bytes.extend(request(command, flags, cookie, offset, length as u32));
            if command == WRITE {
                let from = bytes.len();
                bytes.resize(from + length as usize, 0);
                self.chance.fill(&mut bytes[from..]);
                total += length;
            }
        }
        self.socket.write_all(&bytes)?;
        for _ in 0..depth {
            let mut reply = [0; SIMPLE_REPLY_BYTES];
            self.socket.read_exact(&mut reply)?;
            assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "no error");
        }
        self.acknowledged.fetch_add(total, Ordering::Relaxed);
        Ok(())
    }
}

//! The data path: one thread, one ring, the core between them. The only place with unsafe code.
//!
//! | module | what it does |
//! |---|---|
//! | [`server`] | the turn: completions in, outputs out |
//! | [`client`], [`replies`] | an NBD connection, and what it is answered |
//! | [`peer`] | a connection to a peer |
//! | [`link`], [`stage`] | a socket, and the place for encryption |
//! | [`disk`] | journal, metadata, stores, and the files beside them |
//! | [`places`] | files that get longer or shorter |
//! | [`holes`] | which parts of the stores are holes |
//! | [`engine`] | what all of them work with |
//! | [`ring`], [`tag`], [`slab`] | operations in flight |
//! | [`pool`], [`runs`] | memory |
//! | [`publish`], [`admin`] | the door to the control thread |
//! | [`acks`], [`queues`] | how long peers take, how full everything is |
//! | [`flusher`] | what the kernel should know |
//! | [`record`] | what tests want to know afterwards |
//!
//! Everything that can fail happens in [`prepare`], on the thread that then runs what it returns; [`spawn`] does both.

pub mod acks;
pub mod admin;
pub mod client;
pub mod disk;
pub mod engine;
pub mod file;
pub mod flusher;
pub mod holes;
pub mod link;
pub mod peer;
pub mod places;
pub mod pool;
pub mod publish;
pub mod queues;
pub mod record;
pub mod replies;
pub mod ring;
pub mod runs;
pub mod server;
pub mod slab;
pub mod stage;
pub mod tag;
pub mod trouble;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use replicator::store::sums;
use replicator::types::{BLOCK_BYTES_U64, Time};

use self::disk::{Disks, Files};
use self::engine::Core;
use self::file::{BlockingReader, DirectFile, OpenError};
use self::holes::Mapper;
use self::places::Places;
use self::pool::{Pool, PoolSizes};
use self::record::Recorder;
use self::ring::{Ring, RingError};
use self::server::{Parts, Server};
use crate::handle::ControlHandle;

/// The most NBD connections in transmission.
pub const CLIENTS_MAX: usize = 64;

/// The most connections to peers, those that are on their way out included.
pub const PEERS_MAX: usize = 16;

/// The most operations in flight: the bell, the disks, and a receive and a send of each connection.
pub const OPERATIONS_MAX: u32 = (1 + disk::OPERATIONS_MAX + 2 * (CLIENTS_MAX + PEERS_MAX)) as u32;

/// The least memory that the data path works with.
pub const MEMORY_BYTES_MIN: u64 = 32 << 20;

/// Client requests that the core works on at the same time, at most.
pub const REQUESTS_MAX: u32 = 1024;

/// Blocks of connections' own buffers, and of the disks' zeroes and the readers that are used at start.
const CONNECTION_BLOCKS: u32 = CLIENTS_MAX as u32 * (link::BULK_BLOCKS + 1)
    + PEERS_MAX as u32 * (link::BULK_BLOCKS + peer::FRAME_BLOCKS)
    + 4 * 256;

/// What the data path needs to know.
#[derive(Debug)]
pub struct ReactorParams {
    /// The journal's file or device; a witness has none.
    pub journal: Option<PathBuf>,
    /// The metadata file.
    pub meta: PathBuf,
    /// The stores, the files beside them, and the volumes that the node has.
    pub places: Places,
    /// Memory for payloads. What connections need comes on top.
    pub memory_bytes: u64,
    /// The bound of requests that the core works on.
    pub requests_max: u32,
    /// How long clients wait for this node's disks while another node could serve them, in milliseconds.
    pub disk_timeout_ms: u32,
    /// The control thread.
    pub control: ControlHandle,
    /// What takes notes.
    pub recorder: Recorder,
}

/// What a core is made from.
#[derive(Debug)]
pub struct Ground<'a> {
    /// Reads the metadata.
    pub meta: BlockingReader<'a>,
    /// Reads the journal, if there is one.
    pub journal: Option<BlockingReader<'a>>,
    /// The journal's size in bytes.
    pub journal_bytes: u64,
    /// Reads the table of checksums, if there is one.
    pub sums: Option<BlockingReader<'a>>,
    /// The memory to lend from.
    pub pool: Pool,
    /// The present time.
    pub now: Time,
}

/// Why the data path can not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    /// No ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No memory.
    #[error(
        "no {} MiB of memory for the data path: {error}; make [policy] memory smaller, or raise the limit on memory \
         (ulimit -v, MemoryMax)",
        bytes >> 20
    )]
    Memory {
        /// How many were asked for.
        bytes: u64,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// A file can not be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A store is smaller than its volume.
    #[error("{path}: has {bytes} bytes, its volume {volume_bytes}")]
    StoreTooSmall {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What it should be.
        volume_bytes: u64,
    },
    /// A file beside the stores is not there.
    #[error(
        "{path} is not there: it was removed, or this node was created before there were checksums; replctl create --wipe \
         makes the node anew, and it gets its data from its peers (if they have it: the wipe destroys what is here)"
    )]
    NoSideFile {
        /// Which.
        path: PathBuf,
    },
    /// A file beside the stores is too short.
    #[error(
        "{path}: has {bytes} bytes, the volumes need {needed}: it was cut short; replctl create --wipe makes the node \
         anew, and it gets its data from its peers (if they have it: the wipe destroys what is here)"
    )]
    SideFileTooSmall {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What it should be.
        needed: u64,
    },
    /// The core does not begin with what is on the disks.
    #[error("{0}")]
    Core(String),
    /// A system call that should not fail did.
    #[error(transparent)]
    Other(#[from] io::Error),
}

/// Does everything that can fail. Call it on the thread that is to run what it returns. `make_core` reads the disks
/// and opens the core.
///
/// # Errors
/// What is missing or broken, in a sentence that says what to do.
pub fn prepare<C: Core>(
    params: ReactorParams,
    make_core: impl FnOnce(Ground<'_>) -> Result<C, String>,
) -> Result<Server<C>, ReactorError> {
    let ring = Ring::new(OPERATIONS_MAX)?;
    if ring.defers_work() {
        tracing::info!("io_uring works for one thread, when that waits");
    } else {
        tracing::info!(
            "io_uring works without SINGLE_ISSUER and DEFER_TASKRUN, which this kernel lacks"
        );
    }
    let journal = params
        .journal
        .as_deref()
        .map(DirectFile::open)
        .transpose()?;
    let meta = DirectFile::open(&params.meta)?;
    let places = params.places;
    let mut stores = Vec::with_capacity(places.stores.len());
    for place in &places.stores {
        let Some(place) = place else {
            stores.push(None);
            continue;
        };
        let store = DirectFile::open(&place.path)?;
        if store.bytes() < place.bytes {
            return Err(ReactorError::StoreTooSmall {
                path: place.path.clone(),
                bytes: store.bytes(),
                volume_bytes: place.bytes,
            });
        }
        stores.push(Some(store));
    }
    let open = |path: &Option<PathBuf>, bytes| {
        let open = |path: &PathBuf| open_side(path, bytes);
        path.as_ref().map(open).transpose()
    };
    let sums = open(&places.sums, sums::file_bytes(places.sizes()))?;
    let stage = open(&places.stage, places.sizes().sum())?;
    let memory_bytes = params.memory_bytes.max(MEMORY_BYTES_MIN);
    let no_memory = |error| ReactorError::Memory {
        bytes: data_path_bytes(memory_bytes),
        error,
    };
    let pool = Pool::new(&sizes(memory_bytes)).map_err(no_memory)?;
    let used_up = || no_memory(io::ErrorKind::OutOfMemory.into());
    let core = make_core(Ground {
        meta: BlockingReader::new(&meta, &pool).ok_or_else(used_up)?,
        journal: match &journal {
            Some(journal) => Some(BlockingReader::new(journal, &pool).ok_or_else(used_up)?),
            None => None,
        },
        journal_bytes: journal.as_ref().map_or(0, DirectFile::bytes),
        sums: match &sums {
            Some(sums) => Some(BlockingReader::new(sums, &pool).ok_or_else(used_up)?),
            None => None,
        },
        pool: pool.clone(),
        now: engine::now(),
    })
    .map_err(ReactorError::Core)?;
    let files = Files {
        meta,
        journal,
        stores,
        sums,
        stage,
    };
    let timeout_nanos = u64::from(params.disk_timeout_ms) * 1_000_000;
    let disks = Disks::new(files, &pool, timeout_nanos)
        .ok_or_else(used_up)?
        .recorded(params.recorder.clone())
        .metered(Arc::clone(&params.control.meters));
    let mapper = Mapper::start(&places.paths(), params.control.bell.clone())?;
    let disks = disks.at(places, params.control.bell.clone());
    Ok(Server::new(Parts {
        core,
        ring,
        disks,
        pool,
        mapper,
        requests_max: params.requests_max,
        disk_timeout_ms: params.disk_timeout_ms,
        control: params.control,
        recorder: params.recorder,
    })?)
}

/// Opens a file beside the stores. It is as long as when it was created, or what it has means something else.
fn open_side(path: &Path, needed: u64) -> Result<DirectFile, ReactorError> {
    let file = match DirectFile::open(path) {
        Err(OpenError::Other { path, error }) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ReactorError::NoSideFile { path });
        }
        other => other?,
    };
    if file.bytes() < needed {
        return Err(ReactorError::SideFileTooSmall {
            path: path.to_owned(),
            bytes: file.bytes(),
            needed,
        });
    }
    Ok(file)
}

/// Starts the data thread; returns when it is ready, or why it is not.
///
/// # Errors
/// See [`prepare`].
pub fn spawn<C: Core + 'static>(
    params: ReactorParams,
    make_core: impl FnOnce(Ground<'_>) -> Result<C, String> + Send + 'static,
) -> Result<JoinHandle<Result<(), RingError>>, ReactorError> {
    let (ready, is_ready) = mpsc::channel();
    let thread = thread::Builder::new().name("data".to_owned());
    let handle = thread.spawn(move || match prepare(params, make_core) {
        Ok(server) => {
            // The receiver waits for exactly this.
            let _ = ready.send(Ok(()));
            server.run()
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            Ok(())
        }
    })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(handle),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ReactorError::Core(
            "the data thread ended before it began".to_owned(),
        )),
    }
}

/// All memory that the data path sets aside where `memory_bytes` are configured, in bytes.
pub fn data_path_bytes(memory_bytes: u64) -> u64 {
    let sizes = sizes(memory_bytes.max(MEMORY_BYTES_MIN));
    let parts = [
        sizes.client_blocks,
        sizes.edge_blocks,
        sizes.core_blocks,
        sizes.apply_blocks,
        sizes.peer_blocks,
        sizes.connection_blocks,
    ];
    parts.into_iter().map(u64::from).sum::<u64>() * BLOCK_BYTES_U64
}

/// How much memory this machine has for something new, in bytes, as far as the kernel says.
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// How the memory is shared out: of sixteen parts five are for clients, as many for batches of peers, four for the core and two
/// for what is being applied.
pub fn sizes(memory_bytes: u64) -> PoolSizes {
    let blocks = memory_bytes / BLOCK_BYTES_U64;
    let part = |parts: u64| u32::try_from(blocks * parts / 16).unwrap_or(u32::MAX / 16);
    PoolSizes {
        client_blocks: part(5),
        edge_blocks: 2 * REQUESTS_MAX,
        core_blocks: part(4),
        apply_blocks: part(2),
        peer_blocks: part(5),
        connection_blocks: CONNECTION_BLOCKS,
    }
}

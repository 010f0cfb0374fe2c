//! `repld`: the daemon. It puts the parts together; each of them has its own module in the library.
//!
//! Two threads: the data thread owns the ring, the disks and the core, the main thread becomes the control thread. All
//! that can fail fails before readiness is announced.

mod places;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Parser;
use nbd_server::args::Args;
use nbd_server::config::{Ack, Config, Node, NodeRole, OnNoQuorum, WithoutRoom};
use nbd_server::control::{self, FILES_MIN, Listeners};
use nbd_server::handle::{ControlHandle, DataHandle, Snapshot};
use nbd_server::lock::DataDirLock;
use nbd_server::meters::Meters;
use nbd_server::reactor::pool::Pool;
use nbd_server::reactor::record::Recorder;
use nbd_server::reactor::{self, Ground, ReactorParams, flusher};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use replicator::meta::config::Name;
use replicator::meta::superblock::META_BYTES;
use replicator::recover::{recover, recover_witness};
use replicator::types::NodeId;
use replicator::{AckPolicy, Replica, ReplicaConfig};
use tracing_subscriber::EnvFilter;

/// Why the daemon did not start or go on, and its exit code.
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    fn usage(error: impl ToString) -> Self {
        Self {
            code: 2,
            text: error.to_string(),
        }
    }

    fn failed(error: impl ToString) -> Self {
        Self {
            code: 1,
            text: error.to_string(),
        }
    }
}

fn main() -> ExitCode {
    // Before any thread starts, so that all of them have it. It needs a capability; the log says if it is missing.
    let io_flusher = flusher::become_io_flusher();
    let args = Args::parse();
    // A log that nobody reads must not stop the data path: lines are dropped then.
    let (writer, _guard) = tracing_appender::non_blocking(std::io::stderr());
    let filter = EnvFilter::try_from_env("REPLD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(writer)
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .init();
    // A thread that panics must not leave the others serving: whatever invariant broke, the peers take over.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        std::process::abort();
    }));
    if let Err(error) = io_flusher {
        tracing::info!("not marked as an I/O flusher (needs CAP_SYS_RESOURCE): {error}");
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Not through the log, which may drop lines.
            eprintln!("repld: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    let host = || nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned());
    let name = match &args.node {
        Some(name) => name.clone(),
        None => host().map_err(Failure::usage)?,
    };
    let (me, node) = config.node(&name).map_err(Failure::usage)?;
    if !node.meta_path().exists() {
        return Err(Failure::usage(format!(
            "{} does not exist: this node is not created; run `replctl create` for it, with --config {} --node {name}",
            node.meta_path().display(),
            args.config.display(),
        )));
    }
    let _lock = DataDirLock::take(&node.data_dir).map_err(Failure::failed)?;
    lengthen(&node.meta_path()).map_err(Failure::failed)?;
    raise_limits()?;
    let listeners = Listeners::bind(node).map_err(Failure::failed)?;

    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    let bell = Arc::new(bell.map_err(Failure::failed)?);
    let snapshot = Arc::new(Mutex::new(Snapshot::default()));
    let meters = Arc::new(Meters::default());
    let (to_data, from_control) = std::sync::mpsc::channel();
    let (to_control, from_data) = tokio::sync::mpsc::unbounded_channel();
    let control = ControlHandle {
        receiver: from_control,
        bell: Arc::clone(&bell),
        snapshot: Arc::clone(&snapshot),
        sender: to_control,
        meters: Arc::clone(&meters),
    };
    // A witness votes and keeps no data.
    let data = node.role == NodeRole::Data;
    let params = ReactorParams {
        journal: data.then(|| node.journal_path()),
        meta: node.meta_path(),
        places: places::of(&config, node)?,
        memory_bytes: config.policy.memory_bytes,
        requests_max: reactor::REQUESTS_MAX,
        disk_timeout_ms: config.policy.disk_timeout_ms,
        control,
        recorder: Recorder::from_environment().map_err(Failure::failed)?,
    };
    let replica_config = replica_config(&config, me)?;
    let what = describe(node);
    let data = reactor::spawn(params, move |ground| {
        open_core(ground, replica_config, &what)
    })
    .map_err(Failure::failed)?;
    let handle = DataHandle {
        sender: to_data,
        bell,
        snapshot,
        meters,
    };
    let ready = || {
        tracing::info!("ready: {name} of resource {}", config.resource);
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    };
    let result = control::run(
        Arc::new(config.clone()),
        me,
        listeners,
        handle,
        from_data,
        ready,
    );
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    result.map_err(Failure::failed)?;
    match data.join() {
        Ok(result) => result.map_err(Failure::failed),
        Err(_) => Err(Failure::failed("the data thread panicked")),
    }
}

/// A metadata file that was cut short gets its length back: of four copies of the superblock two are enough, and the others
/// are written anew.
fn lengthen(meta: &Path) -> Result<(), String> {
    let short = |error: std::io::Error| {
        format!(
            "{}: the metadata file is cut short and can not be lengthened: {error}",
            meta.display()
        )
    };
    let bytes = std::fs::metadata(meta).map_err(short)?.len();
    if bytes < META_BYTES {
        tracing::warn!(
            "{} has {bytes} bytes and had {META_BYTES}: it was cut short; what is missing is written anew if enough is left",
            meta.display()
        );
        let file = std::fs::OpenOptions::new().write(true).open(meta);
        file.and_then(|file| file.set_len(META_BYTES).and_then(|()| file.sync_all()))
            .map_err(short)?;
    }
    Ok(())
}

fn describe(node: &Node) -> [PathBuf; 2] {
    [node.meta_path(), node.journal_path()]
}

/// Reads the disks and starts the state machine from them.
fn open_core(
    ground: Ground<'_>,
    config: ReplicaConfig,
    paths: &[PathBuf; 2],
) -> Result<Replica<Pool>, String> {
    let Ground {
        mut meta,
        mut journal,
        journal_bytes,
        mut sums,
        pool,
        now,
    } = ground;
    let recovered = match (&mut journal, &mut sums) {
        (Some(journal), Some(sums)) => recover(&mut meta, journal, sums, &config),
        _ => recover_witness(&mut meta, &config),
    };
    let recovered = recovered.map_err(|error| {
        format!(
            "{error} (metadata {}, journal {})",
            paths[0].display(),
            paths[1].display()
        )
    })?;
    let needed = recovered.superblock.journal_bytes;
    if needed > journal_bytes {
        let path: &Path = &paths[1];
        return Err(format!(
            "{}: has {journal_bytes} bytes, the node was created with a journal of {needed}",
            path.display()
        ));
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| format!("no randomness: {error}"))?;
    Ok(Replica::open(config, recovered, pool, now, seed))
}

fn replica_config(config: &Config, me: usize) -> Result<ReplicaConfig, Failure> {
    let core_name = |text: &str| {
        Name::from(text).map_err(|_| Failure::usage(format!("the name {text:?} is too long")))
    };
    let nodes: Result<Vec<_>, _> = config.nodes.iter().map(|n| core_name(&n.name)).collect();
    let witnesses = (0u8..)
        .zip(&config.nodes)
        .filter(|(_, node)| node.role == NodeRole::Witness)
        .map(|(index, _)| NodeId(index))
        .collect();
    Ok(ReplicaConfig {
        resource: core_name(&config.resource)?,
        nodes: nodes?,
        witnesses,
        me: NodeId(u8::try_from(me).map_err(Failure::usage)?),
        lease_ms: config.policy.lease_ms,
        on_no_quorum: match config.policy.on_no_quorum {
            OnNoQuorum::SuspendIo => replicator::OnNoQuorum::SuspendIo,
            OnNoQuorum::IoError => replicator::OnNoQuorum::IoError,
        },
        ack: match config.policy.ack {
            Ack::Majority => AckPolicy::Majority,
            Ack::All => AckPolicy::All,
        },
        requests_max: reactor::REQUESTS_MAX,
        drop_after_ms: config.policy.drop_after_ms,
        without_room: match config.policy.resync_without_room {
            WithoutRoom::Wait => replicator::WithoutRoom::Wait,
            WithoutRoom::InPlace => replicator::WithoutRoom::InPlace,
        },
    })
}

/// Takes what the hard limits allow of locked memory and open files.
fn raise_limits() -> Result<(), Failure> {
    for resource in [Resource::RLIMIT_MEMLOCK, Resource::RLIMIT_NOFILE] {
        if let Ok((soft, hard)) = getrlimit(resource)
            && soft < hard
            && let Err(error) = setrlimit(resource, hard, hard)
        {
            tracing::info!("{resource:?} stays at {soft}: {error}");
        }
    }
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((files, _)) if files < FILES_MIN => Err(Failure::failed(format!(
            "RLIMIT_NOFILE is {files}: {FILES_MIN} open files are needed at least; set LimitNOFILE=65536 in the unit, or ulimit -n"
        ))),
        _ => Ok(()),
    }
}

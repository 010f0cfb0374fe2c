//! The systems that are compared: ours with three nodes and with one, and what else serves a file over NBD.
//!
//! What each promises when it answers a write is said here once ([`Promise`]); what the disk was seen to do for it is measured.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nbd_server::nbd::client::Uri;
use tools::cluster::{Cluster, Port, Programs, Spec};

use crate::error::{BenchError, io_error};
use crate::place::make_zeroed;
use crate::process::{Door, Server, is_there, wait_for};

/// How long a cluster may take to become ready, or to come to rest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of each node's journal.
pub const JOURNAL_BYTES: u64 = 256 << 20;

/// When what was answered is on stable media, on all copies that the system waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promise {
    /// When a write is answered.
    Write,
    /// When a flush is answered.
    Flush,
}

/// Which system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Ours { nodes: usize },
    NbdkitFile,
    QemuNbd,
    NbdServer,
    QemuQuorum,
}

/// A system that takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct System {
    kind: Kind,
    /// Its name in the results.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// On how many stores the data is.
    pub copies: u32,
    /// What an answer means.
    pub promise: Promise,
    /// The program that it needs, and Debian's package with it.
    needs: Option<(&'static str, &'static str)>,
}

/// All systems, in the order of the table.
pub const SYSTEMS: &[System] = &[
    System {
        kind: Kind::Ours { nodes: 3 },
        name: "repld-3",
        title: "repld, three nodes",
        copies: 3,
        promise: Promise::Write,
        needs: None,
    },
    System {
        kind: Kind::QemuQuorum,
        name: crate::jobs::BASELINE,
        title: "qemu-nbd quorum, three files",
        copies: 3,
        promise: Promise::Flush,
        needs: Some(("qemu-nbd", "qemu-utils")),
    },
    System {
        kind: Kind::Ours { nodes: 1 },
        name: "repld-1",
        title: "repld, one node",
        copies: 1,
        promise: Promise::Write,
        needs: None,
    },
    System {
        kind: Kind::QemuNbd,
        name: "qemu-nbd",
        title: "qemu-nbd, one file",
        copies: 1,
        promise: Promise::Flush,
        needs: Some(("qemu-nbd", "qemu-utils")),
    },
    System {
        kind: Kind::NbdkitFile,
        name: "nbdkit",
        title: "nbdkit file (page cache)",
        copies: 1,
        promise: Promise::Flush,
        needs: Some(("nbdkit", "nbdkit")),
    },
    System {
        kind: Kind::NbdServer,
        name: "nbd-server",
        title: "nbd-server (page cache)",
        copies: 1,
        promise: Promise::Flush,
        needs: Some(("nbd-server", "nbd-server")),
    },
];

/// What systems are started with.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Our programs.
    pub programs: Programs,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Set by Ctrl-C.
    pub interrupted: Arc<AtomicBool>,
}

/// A system that is up.
#[derive(Debug)]
pub struct Running {
    /// Which.
    pub system: &'static System,
    /// Where fio finds it.
    pub uri: Uri,
    body: Body,
    interrupted: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Body {
    Nodes(Box<Cluster>),
    Servers {
        servers: Vec<Server>,
        stores: Vec<PathBuf>,
    },
}

impl System {
    /// Why it can not take part here, if it can not.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let (program, package) = self.needs.filter(|(program, _)| !is_there(program))?;
        Some(format!("no {program} (Debian has it in {package})"))
    }

    /// Whether its failure to start is ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Ours { .. })
    }

    /// Bytes that its stores and journals take.
    #[must_use]
    pub fn bytes(&self, volume_bytes: u64) -> u64 {
        let journal = if self.is_ours() { JOURNAL_BYTES } else { 0 };
        u64::from(self.copies) * (volume_bytes + journal)
    }

    /// Starts it in a new directory below `parent`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(&'static self, parent: &Path, ground: &Ground) -> Result<Running, BenchError> {
        let dir = parent.join(self.name);
        std::fs::create_dir(&dir).map_err(|source| io_error("make", &dir, source))?;
        let (uri, body) = match self.kind {
            Kind::Ours { nodes } => start_nodes(&dir, nodes, ground)?,
            Kind::NbdkitFile => start_nbdkit(&dir, ground)?,
            Kind::QemuNbd => start_qemu_nbd(&dir, ground)?,
            Kind::NbdServer => start_nbd_server(&dir, ground)?,
            Kind::QemuQuorum => start_quorum(&dir, ground)?,
        };
        let interrupted = Arc::clone(&ground.interrupted);
        Ok(Running {
            system: self,
            uri,
            body,
            interrupted,
        })
    }
}

impl Running {
    /// Its processes: what they are called, and their ids.
    #[must_use]
    pub fn processes(&self) -> Vec<(String, u32)> {
        match &self.body {
            Body::Nodes(cluster) => (0..cluster.len())
                .filter_map(|node| Some((cluster.name(node).to_owned(), cluster.pid(node)?)))
                .collect(),
            Body::Servers { servers, .. } => servers
                .iter()
                .map(|server| (server.label.clone(), server.pid()))
                .collect(),
        }
    }

    /// Waits until it has done all that it put off: journals applied to stores, the page cache written. What comes next is not disturbed
    /// by it then.
    ///
    /// # Errors
    /// It does not come to rest.
    pub fn settle(&mut self) -> Result<(), BenchError> {
        match &mut self.body {
            Body::Nodes(cluster) => {
                let committed = cluster.status(0)?.seq.committed;
                for node in 0..cluster.len() {
                    let what = format!("{} has applied everything", cluster.name(node));
                    cluster.wait_status(node, &what, PATIENCE, |status| {
                        status.seq.applied >= committed
                    })?;
                }
                Ok(())
            }
            Body::Servers { servers, stores } => {
                for server in servers {
                    server.wait_childless(&self.interrupted)?;
                }
                for path in stores {
                    let flush = || File::options().write(true).open(&*path)?.sync_data();
                    flush().map_err(|source| io_error("flush", path, source))?;
                }
                Ok(())
            }
        }
    }

    /// What its processes said, for a failure report.
    #[must_use]
    pub fn logs(&self) -> String {
        match &self.body {
            Body::Nodes(cluster) => cluster.logs(),
            Body::Servers { servers, .. } => {
                let mut text = String::new();
                for server in servers {
                    let _ = writeln!(text, "--- {}\n{}", server.label, server.said());
                }
                text
            }
        }
    }
}

fn start_nodes(dir: &Path, nodes: usize, ground: &Ground) -> Result<(Uri, Body), BenchError> {
    let names = ["pbx-a", "pbx-b", "pbx-c"];
    let spec = Spec {
        nodes: names[..nodes].iter().map(ToString::to_string).collect(),
        volumes: vec![("data".to_owned(), ground.volume_bytes)],
        journal_bytes: JOURNAL_BYTES,
        ..Spec::default()
    };
    let interrupted = Arc::clone(&ground.interrupted);
    let mut cluster = Cluster::new(dir, ground.programs.clone(), spec, interrupted)?;
    cluster.create_and_start()?;
    cluster.promote(0, PATIENCE)?;
    let uri = Uri::unix("data", cluster.nbd_socket(0));
    Ok((uri, Body::Nodes(Box::new(cluster))))
}

/// A file for a server.
fn store(dir: &Path, name: &str, ground: &Ground) -> Result<PathBuf, BenchError> {
    let path = dir.join(name);
    make_zeroed(&path, ground.volume_bytes)?;
    Ok(path)
}

fn start_nbdkit(dir: &Path, ground: &Ground) -> Result<(Uri, Body), BenchError> {
    let store = store(dir, "store", ground)?;
    let socket = dir.join("nbd.sock");
    let mut command = Command::new("nbdkit");
    command
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(&socket)
        .arg("file")
        .arg(&store);
    let door = Door::Unix(socket.clone());
    let log = dir.join("log");
    let server = Server::start("nbdkit", &mut command, &log, &door, &ground.interrupted)?;
    Ok(served("", socket, vec![server], vec![store]))
}

/// The options of every qemu-nbd: it stays, and takes several connections.
fn qemu_nbd() -> Command {
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=16"]);
    command
}

fn start_qemu_nbd(dir: &Path, ground: &Ground) -> Result<(Uri, Body), BenchError> {
    let store = store(dir, "store", ground)?;
    let socket = dir.join("nbd.sock");
    let mut command = qemu_nbd();
    command
        .arg("--socket")
        .arg(&socket)
        .args(["--format=raw", "--cache=none", "--aio=io_uring"])
        .arg(&store);
    let door = Door::Unix(socket.clone());
    let log = dir.join("log");
    let server = Server::start("qemu-nbd", &mut command, &log, &door, &ground.interrupted)?;
    Ok(served("", socket, vec![server], vec![store]))
}

fn start_nbd_server(dir: &Path, ground: &Ground) -> Result<(Uri, Body), BenchError> {
    let store = store(dir, "store", ground)?;
    let socket = dir.join("nbd.sock");
    // It listens on a port, too, whether one wants it or not.
    let port = Port::reserve()?;
    let config = dir.join("config");
    let text = format!(
        "[generic]\nunixsock = {}\nlistenaddr = 127.0.0.1\nport = {}\n[data]\nexportname = {}\nflush = true\nfua = true\n",
        socket.display(),
        port.number(),
        store.display()
    );
    std::fs::write(&config, text).map_err(|source| io_error("write", &config, source))?;
    let (log, pid_file) = (dir.join("log"), dir.join("pid"));
    let mut command = Command::new("nbd-server");
    command
        .arg("-C")
        .arg(&config)
        .arg("-p")
        .arg(&pid_file)
        .env("PATH", path_with_sbin());
    let door = Door::Unix(socket.clone());
    let files = (log.as_path(), pid_file.as_path());
    let server = Server::start_daemon(
        "nbd-server",
        &mut command,
        files,
        &door,
        &ground.interrupted,
    )?;
    Ok(served("data", socket, vec![server], vec![store]))
}

/// One qemu-nbd writes to a file of its own and to two others' over TCP; two of three have to agree.
fn start_quorum(dir: &Path, ground: &Ground) -> Result<(Uri, Body), BenchError> {
    let socket = dir.join("nbd.sock");
    let own = store(dir, "store-0", ground)?;
    let (mut servers, mut stores) = (Vec::new(), vec![own.clone()]);
    let mut children = format!(
        "driver=quorum,vote-threshold=2,children.0.driver=raw,children.0.file.driver=file,children.0.file.filename={},\
         children.0.file.cache.direct=on,children.0.file.aio=io_uring",
        own.display()
    );
    for mirror in 1..=2 {
        let store = store(dir, &format!("store-{mirror}"), ground)?;
        let port = Port::reserve()?;
        let mut command = qemu_nbd();
        command
            .args(["--bind=127.0.0.1", "--port", &port.number().to_string()])
            .args(["--format=raw", "--cache=none", "--aio=io_uring"])
            .arg(&store);
        servers.push(Server::start(
            &format!("mirror-{mirror}"),
            &mut command,
            &dir.join(format!("log-{mirror}")),
            &Door::Tcp(port.number()),
            &ground.interrupted,
        )?);
        stores.push(store);
        let _ = write!(
            children,
            ",children.{mirror}.driver=raw,children.{mirror}.file.driver=nbd,children.{mirror}.file.server.type=inet,\
             children.{mirror}.file.server.host=127.0.0.1,children.{mirror}.file.server.port={}",
            port.number()
        );
    }
    let mut command = qemu_nbd();
    command
        .arg("--socket")
        .arg(&socket)
        .args(["--image-opts", &children]);
    let door = Door::Unix(socket.clone());
    let front = Server::start(
        "quorum",
        &mut command,
        &dir.join("log-0"),
        &door,
        &ground.interrupted,
    )?;
    servers.insert(0, front);
    Ok(served("", socket, servers, stores))
}

fn served(
    export: &str,
    socket: PathBuf,
    servers: Vec<Server>,
    stores: Vec<PathBuf>,
) -> (Uri, Body) {
    (Uri::unix(export, socket), Body::Servers { servers, stores })
}

fn path_with_sbin() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

/// Waits until fio could begin: the export answers a whole negotiation.
///
/// # Errors
/// It does not.
pub fn await_export(running: &Running) -> Result<(), BenchError> {
    use nbd_server::nbd::client::{Client, Options};
    let mut last = String::new();
    wait_for(&running.interrupted, || {
        match Client::connect_with(&running.uri, &Options::default()) {
            Ok(_client) => Ok(true),
            Err(error) => {
                last = error.to_string();
                Ok(false)
            }
        }
    })
    .map_err(|error| match error {
        BenchError::NotReady(..) => BenchError::NotReady(running.system.name, last),
        other => other,
    })
}

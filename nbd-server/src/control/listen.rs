//! Sockets that listen, made before anything else starts so that what is wrong with them is found early.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

use super::runtime;
use crate::config::{MetricsListen, Node, NodeRole};

/// Why a socket can not be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// No directory for it.
    #[error("can not make the directory {}: {source}; make it for this user, or correct the config", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody answers there.
    #[error("another program answers on {}; stop it, or give this node its own run_dir", .0.display())]
    Taken(PathBuf),
    /// Something else is there.
    #[error("{} exists and is no socket; remove it, or correct the config", .0.display())]
    NoSocket(PathBuf),
    /// Anything else about a Unix socket.
    #[error(
        "can not listen on {}: {source}; run_dir has to be a directory that this user may write to, with room in it", path.display()
    )]
    Unix {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Anything about a TCP address.
    #[error("can not listen on {address}: {}", tcp_text(source))]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

fn tcp_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program does; stop it, or use another port".to_owned(),
        io::ErrorKind::AddrNotAvailable => {
            "this host does not have the address; correct it, or --node".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Everything that a node listens on.
#[derive(Debug)]
pub struct Listeners {
    admin: UnixListener,
    /// A witness serves no volumes.
    nbd_unix: Option<UnixListener>,
    nbd_tcp: Option<TcpListener>,
    peers: TcpListener,
    metrics: Option<MetricsListener>,
    paths: Vec<PathBuf>,
}

#[derive(Debug)]
enum MetricsListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The same, watched by the runtime.
pub(super) struct WatchedListeners {
    pub(super) admin: runtime::UnixListener,
    pub(super) nbd_unix: Option<runtime::UnixListener>,
    pub(super) nbd_tcp: Option<runtime::TcpListener>,
    pub(super) peers: runtime::TcpListener,
    pub(super) metrics: Option<WatchedMetrics>,
}

/// Where metrics are asked for.
pub(super) enum WatchedMetrics {
    Tcp(runtime::TcpListener),
    Unix(runtime::UnixListener),
}

impl Listeners {
    /// Listens for operators, NBD clients and peers. Missing directories are made, stale sockets replaced.
    ///
    /// # Errors
    /// Which one can not be had, and why.
    pub fn bind(node: &Node) -> Result<Self, ListenError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&node.run_dir)
            .map_err(|source| ListenError::Directory {
                path: node.run_dir.clone(),
                source,
            })?;
        // Addresses first: a second daemon does not get as far as the sockets.
        let peers = tcp_listener(node.address)?;
        let data = node.role == NodeRole::Data;
        let nbd_tcp = node.nbd_listen.filter(|_| data);
        let nbd_tcp = nbd_tcp.map(tcp_listener).transpose()?;
        let mut metrics = match &node.metrics_listen {
            Some(MetricsListen::Tcp(address)) => {
                Some(MetricsListener::Tcp(tcp_listener(*address)?))
            }
            _ => None,
        };
        let mut paths = vec![node.admin_socket()];
        let admin = unix_listener(&paths[0])?;
        let mut nbd_unix = None;
        if data {
            let path = node.nbd_socket();
            nbd_unix = Some(unix_listener(&path)?);
            paths.push(path);
        }
        if let Some(MetricsListen::Unix(path)) = &node.metrics_listen {
            metrics = Some(MetricsListener::Unix(open_to_all(path)?));
            paths.push(path.clone());
        }
        Ok(Self {
            admin,
            nbd_unix,
            nbd_tcp,
            peers,
            metrics,
            paths,
        })
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.paths.clone()
    }

    pub(super) fn into_runtime(self) -> io::Result<WatchedListeners> {
        Ok(WatchedListeners {
            admin: runtime::UnixListener::new(self.admin)?,
            nbd_unix: self.nbd_unix.map(runtime::UnixListener::new).transpose()?,
            nbd_tcp: self.nbd_tcp.map(runtime::TcpListener::new).transpose()?,
            peers: runtime::TcpListener::new(self.peers)?,
            metrics: match self.metrics {
                None => None,
                Some(MetricsListener::Tcp(listener)) => {
                    Some(WatchedMetrics::Tcp(runtime::TcpListener::new(listener)?))
                }
                Some(MetricsListener::Unix(listener)) => {
                    Some(WatchedMetrics::Unix(runtime::UnixListener::new(listener)?))
                }
            },
        })
    }
}

fn tcp_listener(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).map_err(|source| ListenError::Tcp { address, source })
}

/// A listening Unix socket that only this user can connect to, from its first moment on.
fn unix_listener(path: &Path) -> Result<UnixListener, ListenError> {
    remove_stale(path)?;
    let make = || -> nix::Result<UnixListener> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // The file gets the mode that its socket has when it is bound.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
        listen(&fd, Backlog::new(128)?)?;
        Ok(UnixListener::from(fd))
    };
    make().map_err(|errno| ListenError::Unix {
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// A listening Unix socket for whoever can reach its directory: a collector is rarely root.
fn open_to_all(path: &Path) -> Result<UnixListener, ListenError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(|source| ListenError::Directory {
            path: parent.to_owned(),
            source,
        })?;
    let listener = unix_listener(path)?;
    // Not by the mode at its binding, from which the umask is taken.
    let permissions = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(path, permissions).map_err(|source| ListenError::Unix {
        path: path.to_owned(),
        source,
    })?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Unix {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenError::Taken(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// A bounded number of places.
#[derive(Debug)]
pub(super) struct Slots {
    taken: Rc<Cell<u32>>,
    max: u32,
}

/// One of the places, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Rc<Cell<u32>>);

impl Slots {
    pub(super) fn new(max: u32) -> Self {
        Self {
            taken: Rc::default(),
            max,
        }
    }

    pub(super) fn taken(&self) -> u32 {
        self.taken.get()
    }

    pub(super) fn take(&self) -> Option<Slot> {
        if self.taken.get() == self.max {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Slot(Rc::clone(&self.taken)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

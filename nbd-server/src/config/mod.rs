//! The config file: TOML in, a validated [`Config`] out, or one line that says what to write instead.
//!
//! The same file lies on every node. What has to be equal on all of them goes into
//! [`Config::digest`], which peers compare when they meet.

mod error;
mod failover;
mod fencing;
mod parse;
mod scrub;
pub mod size;
mod table;
#[cfg(test)]
mod tests;

pub use error::{ConfigError, Refusal};
pub use failover::{Failover, Service};
pub use fencing::{FencePeer, Watchdog};
pub use scrub::Scrub;

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The file that the programs read unless `--config` names another.
pub const DEFAULT_FILE: &str = "/etc/replicator/pbx.toml";
/// The unit of every size.
pub const BLOCK_BYTES: u64 = 4096;
/// The smallest journal.
pub const JOURNAL_BYTES_MIN: u64 = 16 << 20;
/// The least memory for the data path.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// The memory of the data path where the config gives none.
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;
/// The largest volume and journal.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// The lease where the config gives none, in milliseconds.
pub const LEASE_MS_DEFAULT: u32 = 1000;
/// The leases that can be configured, in milliseconds.
pub const LEASE_MS_RANGE: RangeInclusive<u32> = 200..=60_000;
/// The disk timeouts that can be configured, in milliseconds; where the config gives none it is the lease.
pub const DISK_TIMEOUT_MS_RANGE: RangeInclusive<u32> = 200..=3_600_000;
/// After how long a member is dropped where the config says nothing, in milliseconds.
pub const DROP_AFTER_MS_DEFAULT: u32 = 3000;
/// The times after which a member can be dropped, in milliseconds.
pub const DROP_AFTER_MS_RANGE: RangeInclusive<u32> = 500..=3_600_000;
/// The times after which a Primary without a majority can disconnect its clients, in milliseconds.
pub const DISCONNECT_CLIENTS_AFTER_MS_RANGE: RangeInclusive<u32> = 0..=3_600_000;
/// The longest name of a resource, node or volume.
pub const NAME_BYTES_MAX: usize = 63;
/// The most data nodes.
pub const DATA_NODES_MAX: usize = 5;
/// The most witnesses.
pub const WITNESSES_MAX: usize = 3;
/// The most volumes.
pub const VOLUMES_MAX: usize = 16;
/// The longest path of a Unix socket, without the NUL that ends it.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

const FILE_BYTES_MAX: u64 = 1 << 20;

/// A config that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it was read from.
    pub file: PathBuf,
    /// The resource's name.
    pub resource: String,
    /// The nodes, sorted by name: a node's position is its index everywhere.
    pub nodes: Vec<Node>,
    /// The volumes, sorted by name: as a node is created with them. What it knows of them later is in its superblock.
    pub volumes: Vec<Volume>,
    /// The journal.
    pub journal: Journal,
    /// What to do when.
    pub policy: Policy,
    /// Verifications that begin by themselves.
    pub scrub: Scrub,
    /// Who makes sure that the other one of two nodes is off.
    pub fence_peer: Option<FencePeer>,
    /// A device that resets the host unless it is fed.
    pub watchdog: Option<Watchdog>,
    /// What runs where this resource is Primary, without a cluster manager.
    pub failover: Option<Failover>,
    /// Transport security.
    pub tls: Tls,
}

/// One node of the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub address: SocketAddr,
    /// Journal, metadata, file-backed stores.
    pub data_dir: PathBuf,
    /// The sockets.
    pub run_dir: PathBuf,
    /// NBD over TCP, besides the Unix socket.
    pub nbd_listen: Option<SocketAddr>,
    /// What it is there for.
    pub role: NodeRole,
    /// Where its metrics are served; nowhere unless the config says so.
    pub metrics_listen: Option<MetricsListen>,
    pub(crate) journal_device: Option<PathBuf>,
    /// One per volume, in the order of [`Config::volumes`], with `%n` replaced.
    pub(crate) stores: Vec<StorePath>,
}

/// Where metrics are served. They are not protected, so nothing but this host reaches them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsListen {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Where a volume's bytes are on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StorePath {
    pub(crate) volume: String,
    pub(crate) path: PathBuf,
}

/// What a node is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeRole {
    /// It holds data and votes.
    Data,
    /// It votes only.
    Witness,
}

/// One volume of the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name, which is also its export's.
    pub name: String,
    /// Its size, a multiple of 4 KiB.
    pub size_bytes: u64,
    /// The configured store as it is written, `%n` and all.
    pub store: Option<String>,
    /// The line of its size, for refusals that come later.
    pub size_line: usize,
}

/// The journal's part of the config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// Its size, a multiple of 4 KiB.
    pub size_bytes: u64,
    /// The configured device as it is written, `%n` and all.
    pub device: Option<String>,
    /// The line of its size, for refusals that come later.
    pub size_line: usize,
}

/// The policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What a Primary does that lost its majority.
    pub on_no_quorum: OnNoQuorum,
    /// When a write is acknowledged.
    pub ack: Ack,
    /// How long a Primary may serve after a majority answered it.
    pub lease_ms: u32,
    /// After how long a disk that does not answer counts as failed, and for how long a Primary's clients wait for one before
    /// it leaves the service to another node.
    pub disk_timeout_ms: u32,
    /// After how long a member that does not get on is dropped where the others could go on without it, in milliseconds; 0 if
    /// never.
    pub drop_after_ms: u32,
    /// For how long a Primary keeps its clients after its lease is over, in milliseconds; 0 for ever.
    pub disconnect_clients_after_ms: u32,
    /// What a node does that has no room to stage a resync.
    pub resync_without_room: WithoutRoom,
    /// The memory of the data path.
    pub memory_bytes: u64,
}

/// What a Primary does that lost its majority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnNoQuorum {
    /// I/O waits.
    SuspendIo,
    /// I/O fails.
    IoError,
}

/// What a node does that has no room to stage a resync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WithoutRoom {
    /// It waits for room, as it is.
    Wait,
    /// It takes it straight to the stores, and is Inconsistent until it is whole.
    InPlace,
}

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ack {
    /// When a majority of the members has it durably.
    Majority,
    /// When every connected member has it besides.
    All,
}

/// Transport security.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Plain TCP is wanted, also on a network.
    pub insecure: bool,
    /// The authority's certificate.
    pub ca: Option<String>,
    /// The node's certificate, `%n` and all.
    pub cert: Option<String>,
    /// The node's key, `%n` and all.
    pub key: Option<String>,
}

impl Config {
    /// Reads and checks a config file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let read_error = |source| ConfigError::Read {
            file: file.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        File::open(file)
            .and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(read_error)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge {
                file: file.to_owned(),
            });
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| ConfigError::Refused {
            file: file.to_owned(),
            line: 1 + bytes[..error.valid_up_to()]
                .iter()
                .filter(|&&b| b == b'\n')
                .count(),
            refusal: Box::new(Refusal::NotText),
        })?;
        Self::parse(file, text)
    }

    /// Checks the text of a config; `file` is what its errors name.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        parse::parse(file, text).map_err(|refused| ConfigError::Refused {
            file: file.to_owned(),
            line: refused.line,
            refusal: refused.refusal,
        })
    }

    /// The node of that name, with its index.
    pub fn node(&self, name: &str) -> Result<(usize, &Node), ConfigError> {
        self.nodes
            .iter()
            .enumerate()
            .find(|(_, node)| node.name == name)
            .ok_or_else(|| {
                let names: Vec<_> = self.nodes.iter().map(|node| node.name.as_str()).collect();
                ConfigError::NoSuchNode {
                    file: self.file.clone(),
                    name: name.to_owned(),
                    known: names.join(", "),
                }
            })
    }

    /// Refuses a store that is smaller than its volume.
    ///
    /// # Errors
    /// A refusal that names the line of the volume's size.
    pub fn check_store(
        &self,
        volume: &Volume,
        path: &Path,
        device_bytes: u64,
    ) -> Result<(), ConfigError> {
        let what = format!("volume {:?}", volume.name);
        self.check_device(
            what,
            volume.size_bytes,
            volume.size_line,
            path,
            device_bytes,
        )
    }

    /// Refuses a device or file that is smaller than the journal.
    ///
    /// # Errors
    /// A refusal that names the line of the journal's size.
    pub fn check_journal(&self, path: &Path, device_bytes: u64) -> Result<(), ConfigError> {
        let journal = &self.journal;
        let what = "the journal".to_owned();
        self.check_device(
            what,
            journal.size_bytes,
            journal.size_line,
            path,
            device_bytes,
        )
    }

    fn check_device(
        &self,
        what: String,
        bytes: u64,
        line: usize,
        path: &Path,
        device_bytes: u64,
    ) -> Result<(), ConfigError> {
        if bytes <= device_bytes {
            return Ok(());
        }
        let path = path.display().to_string();
        let refusal = Box::new(Refusal::LargerThanDevice {
            what,
            bytes,
            path,
            device_bytes,
        });
        Err(ConfigError::Refused {
            file: self.file.clone(),
            line,
            refusal,
        })
    }

    /// A number over what must be equal on all nodes: resource, nodes with role and address. The order in the file and the
    /// paths do not count. Volumes can change while nodes are away: what counts is what nodes know of them, not the file. It
    /// finds mistakes, not attacks.
    pub fn digest(&self) -> [u8; 16] {
        let mut hash = Fnv128::new();
        hash.text("config-2");
        hash.text(&self.resource);
        hash.number(self.nodes.len() as u64);
        for node in &self.nodes {
            hash.text(&node.name);
            hash.text(match node.role {
                NodeRole::Data => "data",
                NodeRole::Witness => "witness",
            });
            hash.text(&node.address.to_string());
        }
        hash.state.to_le_bytes()
    }

    /// The URI under which a volume is reached on a node's Unix socket.
    pub fn nbd_uri(&self, node: &Node, volume: &Volume) -> String {
        format!(
            "nbd+unix:///{}?socket={}",
            volume.name,
            uri_escape(&node.nbd_socket())
        )
    }
}

impl Volume {
    /// A volume that need not be in the file.
    pub fn named(name: &str, size_bytes: u64) -> Self {
        Self {
            name: name.to_owned(),
            size_bytes,
            size_line: 0,
            store: None,
        }
    }
}

impl Node {
    /// The socket that `replctl` talks to.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }

    /// When verifications ended, and what the last one came to.
    pub fn verify_file(&self) -> PathBuf {
        self.data_dir.join("verify.json")
    }

    /// The socket that NBD clients talk to.
    pub fn nbd_socket(&self) -> PathBuf {
        self.run_dir.join("nbd.sock")
    }

    /// The file with the superblock.
    pub fn meta_path(&self) -> PathBuf {
        self.data_dir.join("meta")
    }

    /// The file with the checksums of the stores' blocks.
    pub fn sums_path(&self) -> PathBuf {
        self.data_dir.join("sums")
    }

    /// The file with what a resync has brought until it is whole.
    pub fn stage_path(&self) -> PathBuf {
        self.data_dir.join("stage")
    }

    /// The file that is locked while somebody uses the directory.
    pub fn lock_path(&self) -> PathBuf {
        self.data_dir.join("lock")
    }

    /// The journal's file or device.
    pub fn journal_path(&self) -> PathBuf {
        self.journal_device
            .clone()
            .unwrap_or_else(|| self.data_dir.join("journal"))
    }

    /// The file or device with a volume's bytes.
    pub fn store_path(&self, volume: &Volume) -> PathBuf {
        self.stores
            .iter()
            .find(|store| store.volume == volume.name)
            .map_or_else(
                || self.data_dir.join(format!("{}.img", volume.name)),
                |s| s.path.clone(),
            )
    }
}

/// Escapes what may not stand in a query of a URI.
fn uri_escape(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut out = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// FNV-1a with 128 bits, each text with its length before it.
struct Fnv128 {
    state: u128,
}

impl Fnv128 {
    fn new() -> Self {
        Self {
            state: 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.state ^= u128::from(byte);
            self.state = self
                .state
                .wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }
}

//! Why a config is refused, in sentences that say what to write instead.

use std::io;
use std::path::PathBuf;

use super::{
    DATA_NODES_MAX, DISK_TIMEOUT_MS_RANGE, DROP_AFTER_MS_RANGE, JOURNAL_BYTES_MIN, LEASE_MS_RANGE,
    MEMORY_BYTES_MIN, NAME_BYTES_MAX, SOCKET_PATH_BYTES_MAX, VOLUME_BYTES_MAX, VOLUMES_MAX,
    WITNESSES_MAX, size,
};

/// Why a config file could not be used. Its text is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: can not read the config: {source}; name the file with --config FILE", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is far too large to be a config.
    #[error("{}: is over 1 MiB and so no config of this program; name the file with --config FILE", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// Something in the file is refused.
    #[error("{}:{line}: {refusal}", file.display())]
    Refused {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong there and what to write instead.
        refusal: Box<Refusal>,
    },
    /// The node that was asked for is not in the file.
    #[error("{}: there is no node {name:?}; its nodes are {known}: name one with --node NAME", file.display())]
    NoSuchNode {
        /// The file.
        file: PathBuf,
        /// The name that was asked for.
        name: String,
        /// The names that are there.
        known: String,
    },
}

/// What is wrong in a config and what to write instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Bytes that are no text.
    #[error(
        "is not text (UTF-8), and so no config of this program; name the file with --config FILE"
    )]
    NotText,
    /// Not TOML.
    #[error("is not TOML: {0}")]
    Syntax(String),
    /// A key nobody knows, with the nearest one that is known.
    #[error("unknown key {key:?} in {place}; did you mean {nearest:?}?")]
    UnknownKeyNear {
        /// The key.
        key: String,
        /// The table.
        place: &'static str,
        /// The nearest known key.
        nearest: &'static str,
    },
    /// A key nobody knows.
    #[error("unknown key {key:?} in {place}; the keys there are {known}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The table.
        place: &'static str,
        /// The keys that are known.
        known: String,
    },
    /// A key that has to be there.
    #[error("{place} has no {key:?}; write {example}")]
    Missing {
        /// The table.
        place: &'static str,
        /// The key.
        key: &'static str,
        /// What to write.
        example: &'static str,
    },
    /// A value of another type.
    #[error("{key} is {found}; write {example}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// The type that was found.
        found: &'static str,
        /// What to write.
        example: &'static str,
    },
    /// A word that is none of the known ones.
    #[error("{key} = {found:?} is unknown; write {known}")]
    UnknownWord {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
        /// The words that are known.
        known: &'static str,
    },
    /// A name with characters that names do not have.
    #[error(
        "{key} {found:?} can not be a name; write 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' \
         or '-', the first a letter or digit"
    )]
    BadName {
        /// What is being named.
        key: &'static str,
        /// The value.
        found: String,
    },
    /// Two things with one name.
    #[error("there are two {what}s with the name {name:?}; give each its own")]
    DuplicateName {
        /// `node` or `volume`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// No `[[node]]` or no `[[volume]]`.
    #[error("there is no {what}; write at least one [[{what}]]")]
    None {
        /// `node` or `volume`.
        what: &'static str,
    },
    /// Too many data nodes.
    #[error("there are {0} data nodes; remove some, at most {DATA_NODES_MAX} are supported")]
    TooManyDataNodes(usize),
    /// Witnesses only.
    #[error(
        "all nodes are witnesses, which keep no data; make one of them a data node (role = \"data\")"
    )]
    NoDataNode,
    /// Too many witnesses.
    #[error("there are {0} witnesses; remove some, at most {WITNESSES_MAX} are supported")]
    TooManyWitnesses(usize),
    /// Too many volumes.
    #[error("there are {0} volumes; remove some, at most {VOLUMES_MAX} are supported")]
    TooManyVolumes(usize),
    /// A size that can not be read.
    #[error("{key}: {source}")]
    Size {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        source: size::SizeError,
    },
    /// A size that is no whole number of blocks.
    #[error(
        "{key} is {bytes} bytes, which is no multiple of 4 KiB; write {}", whole_blocks(*bytes)
    )]
    SizeUnaligned {
        /// The key.
        key: &'static str,
        /// The size.
        bytes: u64,
    },
    /// A journal that is too small.
    #[error(
        "the journal is {}, the smallest is {}; write size = \"16MiB\" or more",
        size::format(*.0), size::format(JOURNAL_BYTES_MIN)
    )]
    JournalTooSmall(u64),
    /// Too little memory.
    #[error(
        "memory is {}, the least is {}; write memory = \"64MiB\" or more",
        size::format(*.0), size::format(MEMORY_BYTES_MIN)
    )]
    MemoryTooSmall(u64),
    /// A volume without a byte.
    #[error("the volume's size is 0; write its size, for example size = \"8GiB\"")]
    VolumeEmpty,
    /// A volume that is too large.
    #[error("{key} is {}, the largest is {}", size::format(*bytes), size::format(VOLUME_BYTES_MAX))]
    TooLarge {
        /// The key.
        key: &'static str,
        /// The size.
        bytes: u64,
    },
    /// A number outside its range.
    #[error(
        "lease_ms = {found} is out of range; write a number of milliseconds from {} to {}",
        LEASE_MS_RANGE.start(), LEASE_MS_RANGE.end()
    )]
    LeaseOutOfRange {
        /// The value.
        found: i128,
    },
    /// A number outside its range.
    #[error(
        "disk_timeout_ms = {found} is out of range; write a number of milliseconds from {} to {}",
        DISK_TIMEOUT_MS_RANGE.start(), DISK_TIMEOUT_MS_RANGE.end()
    )]
    DiskTimeoutOutOfRange {
        /// The value.
        found: i128,
    },
    /// A number outside its range.
    #[error(
        "drop_after_ms = {found} is out of range; write a number of milliseconds from {} to {}, or 0 for never",
        DROP_AFTER_MS_RANGE.start(), DROP_AFTER_MS_RANGE.end()
    )]
    DropAfterOutOfRange {
        /// The value.
        found: i128,
    },
    /// A number outside its range.
    #[error(
        "{key} = {found} is out of range; write a number of milliseconds from {least} to {most}"
    )]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The value.
        found: i128,
        /// The least.
        least: u32,
        /// The most.
        most: u32,
    },
    /// A handler where nobody's word would help, or where I/O does not wait for it.
    #[error(
        "handler: is for two data nodes alone, with on_no_quorum = \"suspend-io\"; where there are more nodes a majority decides: leave [fencing] out"
    )]
    HandlerForTwo,
    /// A command and a unit.
    #[error("unit: there is a command already; write one of them, a unit may run the other")]
    TwoServices,
    /// An address with a host name, or none at all.
    #[error(
        "{key} = {found:?} is no address; write \"IP:PORT\", for example \"10.0.0.1:7789\" or \
         \"[fd00::1]:7789\": IPv4 or [IPv6], no names"
    )]
    BadAddress {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
    },
    /// Port 0.
    #[error("{key} = {found:?} has port 0; write the port to listen on, for example 7789")]
    PortZero {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
    },
    /// 0.0.0.0 or [::].
    #[error(
        "address = {0:?} is no address that a peer can reach; write the node's own, for example \
         \"10.0.0.1:7789\""
    )]
    Unspecified(String),
    /// One address used twice.
    #[error("the address {address} is already used by node {node:?}; give each its own")]
    DuplicateAddress {
        /// The address.
        address: String,
        /// Who has it.
        node: String,
    },
    /// A path that a socket can not have.
    #[error(
        "run_dir makes the socket path {path:?} of {} bytes, at most {SOCKET_PATH_BYTES_MAX} work; \
         write a shorter run_dir", path.len()
    )]
    SocketPathTooLong {
        /// The path.
        path: String,
    },
    /// A path that is empty, relative or has a NUL.
    #[error("{key} = {found:?} is no absolute path; write one that starts with /")]
    BadPath {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
    },
    /// A `%` that is not `%n`.
    #[error("{key} = {found:?} has a % that is not %n; write %n for the node's name, %% for a %")]
    BadPercent {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
    },
    /// Two things would write to one path.
    #[error("{what} would use {path:?} on node {node:?}, as {other} does; give each its own path")]
    DuplicatePath {
        /// What is declared here.
        what: String,
        /// The path.
        path: String,
        /// The node where they meet.
        node: String,
        /// What uses it already.
        other: String,
    },
    /// A volume or journal that does not fit its device.
    #[error(
        "{what} is {}, larger than {path} with {}; write size = \"{}\" or less, or name a larger \
         device", size::format(*bytes), size::format(*device_bytes),
        size::format(device_bytes / 4096 * 4096)
    )]
    LargerThanDevice {
        /// The volume or the journal.
        what: String,
        /// Its configured size.
        bytes: u64,
        /// The device.
        path: String,
        /// The device's size.
        device_bytes: u64,
    },
    /// Certificates are given.
    #[error(
        "TLS is not supported by this version; remove {0}, and use insecure = true on a trusted \
         network"
    )]
    Tls(&'static str),
    /// Metrics for everybody.
    #[error(
        "listen {found:?} under [metrics] is no loopback address and no absolute path: metrics are not protected, so \
         only this host may reach them; write listen = \"127.0.0.1:9783\" or listen = \"/run/replicator/%n-metrics.sock\""
    )]
    MetricsListen {
        /// The value.
        found: String,
    },
    /// A network address without TLS and without consent.
    #[error(
        "{key} {address} is not loopback and there is no TLS: everybody on that network could read \
         and write the data; write insecure = true under [tls] if the network is trusted, or use a \
         loopback address"
    )]
    NeedsInsecure {
        /// The key.
        key: &'static str,
        /// The address.
        address: String,
    },
}

/// The sizes of whole blocks next to one that is none.
fn whole_blocks(bytes: u64) -> String {
    let below = bytes / 4096 * 4096;
    let above = size::format(below.saturating_add(4096));
    match below {
        0 => above,
        _ => format!("{} or {above}", size::format(below)),
    }
}

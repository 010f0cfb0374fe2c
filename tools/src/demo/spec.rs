//! The shape of a small cluster, and its config file.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::error::ClusterError;

/// The two programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The daemon.
    pub repld: PathBuf,
    /// The operator's command.
    pub replctl: PathBuf,
}

impl Programs {
    /// The programs in a directory; an error if one is missing.
    pub fn in_dir(dir: &Path) -> Result<Self, ClusterError> {
        let programs = Self {
            repld: dir.join("repld"),
            replctl: dir.join("replctl"),
        };
        for path in [&programs.repld, &programs.replctl] {
            if !path.is_file() {
                return Err(ClusterError::NoProgram { path: path.clone() });
            }
        }
        Ok(programs)
    }
}

/// The shape of a cluster.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// Those of them that are witnesses.
    pub witnesses: Vec<String>,
    /// The volumes: name and bytes.
    pub volumes: Vec<(String, u64)>,
    /// Bytes of each node's journal.
    pub journal_bytes: u64,
    /// `policy.on_no_quorum`, where it is not the default.
    pub on_no_quorum: Option<String>,
    /// `policy.ack`, where it is not the default.
    pub ack: Option<String>,
    /// `policy.disk_timeout_ms`; `None` for the lease.
    pub disk_timeout_ms: Option<u32>,
    /// More lines of `[policy]`.
    pub policy: String,
    /// More sections of the config file.
    pub more: String,
    /// Where the nodes are, in their order; empty for ports on loopback.
    pub hosts: Vec<Host>,
}

/// A network of its own for a node.
#[derive(Clone, Debug)]
pub struct Host {
    /// The node's address in it.
    pub address: Ipv4Addr,
    /// The command, without the program, that runs a program there and becomes it.
    pub enter: Vec<String>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            nodes: ["pbx-a", "pbx-b", "pbx-c"].map(String::from).to_vec(),
            witnesses: Vec::new(),
            volumes: vec![("db".into(), 64 << 20), ("recordings".into(), 256 << 20)],
            journal_bytes: 256 << 20,
            on_no_quorum: None,
            ack: None,
            // Three nodes on one disk, which others use as well: that it is slow says nothing about theirs.
            disk_timeout_ms: Some(30_000),
            policy: String::new(),
            more: String::new(),
            hosts: Vec::new(),
        }
    }
}

/// Where one node is.
pub(super) struct Place<'a> {
    pub(super) name: &'a str,
    pub(super) address: SocketAddr,
    pub(super) data_dir: &'a Path,
    pub(super) run_dir: &'a Path,
}

impl Spec {
    /// The config file.
    pub(super) fn config_text<'a>(&self, nodes: impl Iterator<Item = Place<'a>>) -> String {
        let mut text = String::from("resource = \"pbx\"\n");
        for node in nodes {
            let _ = write!(
                text,
                "\n[[node]]\nname = \"{}\"\naddress = \"{}\"\ndata_dir = \"{}\"\nrun_dir = \"{}\"\n",
                node.name,
                node.address,
                node.data_dir.display(),
                node.run_dir.display()
            );
            if self.witnesses.iter().any(|witness| witness == node.name) {
                text.push_str("role = \"witness\"\n");
            }
        }
        for (name, bytes) in &self.volumes {
            let _ = write!(text, "\n[[volume]]\nname = \"{name}\"\nsize = {bytes}\n");
        }
        if !self.hosts.is_empty() {
            text.push_str("\n[tls]\ninsecure = true\n");
        }
        let _ = write!(text, "\n[journal]\nsize = {}\n", self.journal_bytes);
        let known =
            self.on_no_quorum.is_some() || self.ack.is_some() || self.disk_timeout_ms.is_some();
        if known || !self.policy.is_empty() {
            text.push_str("\n[policy]\n");
            text.push_str(&self.policy);
            if let Some(ms) = self.disk_timeout_ms {
                let _ = writeln!(text, "disk_timeout_ms = {ms}");
            }
            if let Some(policy) = &self.on_no_quorum {
                let _ = writeln!(text, "on_no_quorum = \"{policy}\"");
            }
            if let Some(ack) = &self.ack {
                let _ = writeln!(text, "ack = \"{ack}\"");
            }
        }
        text.push_str(&self.more);
        text
    }
}

//! What is shown: a line for people, or an object with the key `what`.

use std::fmt;

use nbd_server::config::size;
use serde::Serialize;

/// One thing that was found.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub(super) enum Line {
    /// A file that is read.
    File {
        /// Metadata, journal, checksums or store.
        kind: &'static str,
        path: String,
        bytes: u64,
    },
    /// A copy of the superblock.
    Copy {
        copy: usize,
        offset: u64,
        version: Option<u64>,
        state: String,
    },
    /// The superblock that is used.
    Superblock(Box<Superblock>),
    /// The journal's label.
    Label { state: String },
    /// A batch of the log.
    Batch(Batch),
    /// Where the log ends.
    End {
        offset: u64,
        after: String,
        row: char,
        found: &'static str,
        meaning: &'static str,
    },
    /// What the table of checksums knows of a volume.
    Checksums(Checksums),
    /// A volume's store, compared with its checksums.
    Verified(Verified),
    /// Something that is remarkable, and no damage.
    Note { text: String },
    /// Something that is not as it was written.
    Damage(Damage),
}

/// The superblock that is used.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Superblock {
    pub(super) version: u64,
    pub(super) resource: String,
    pub(super) node: String,
    pub(super) uuid: String,
    pub(super) history: String,
    pub(super) incarnation: String,
    pub(super) promised: u64,
    pub(super) promised_to: String,
    pub(super) acked: String,
    pub(super) committed: u64,
    pub(super) applied: String,
    pub(super) applied_offset: Option<u64>,
    pub(super) damaged_until: Option<String>,
    /// Those of the nodes in the config that are promised nothing.
    pub(super) fenced: Vec<String>,
    pub(super) resync: Option<Resync>,
    pub(super) lease_ms: u32,
    pub(super) journal_bytes: u64,
    pub(super) volumes: Vec<Volume>,
    pub(super) config: Option<Config>,
    pub(super) epochs: Vec<String>,
}

/// A resync that is under way.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Resync {
    /// The last record that is in what it has brought.
    pub(super) staged: String,
    pub(super) committed: u64,
    /// It is whole, and being laid over the stores.
    pub(super) merging: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Config {
    pub(super) version: u64,
    pub(super) record: String,
    pub(super) nodes: Vec<Standing>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Standing {
    pub(super) name: String,
    pub(super) incarnation: String,
    pub(super) voter: bool,
    pub(super) member: bool,
    pub(super) joining: bool,
    pub(super) stopped: bool,
}

/// A batch.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Batch {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) epoch: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) committed: u64,
    /// Whether the stores have it.
    pub(super) applied: bool,
    pub(super) records: Vec<Record>,
}

/// A record.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Record {
    pub(super) kind: &'static str,
    pub(super) volume: Option<String>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What the table of checksums knows of a volume.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Checksums {
    /// Of the stores, or of what a resync has brought.
    pub(super) table: &'static str,
    pub(super) volume: String,
    pub(super) pages: usize,
    /// Written, and readable.
    pub(super) whole: u32,
    /// One of the two places of which is damaged.
    pub(super) torn: u32,
    pub(super) lost: u32,
    pub(super) groups: u64,
    pub(super) groups_never_written: usize,
    /// The newest record that changed a group.
    pub(super) newest: u64,
}

/// A volume's store, compared with its checksums.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verified {
    pub(super) volume: String,
    pub(super) blocks: u64,
    pub(super) same: u64,
    /// The journal or a resync has newer contents of these.
    pub(super) skipped: u64,
    /// Nothing is known of these.
    pub(super) unknown: u64,
    pub(super) differ: u64,
    pub(super) unreadable: u64,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Damage {
    pub(super) path: String,
    pub(super) offset: u64,
    pub(super) text: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.path, self.offset, self.text)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)?;
        if let Some(volume) = &self.volume {
            write!(f, " {volume} {}+{}", self.offset, self.bytes)?;
        }
        Ok(())
    }
}

impl fmt::Display for Superblock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |text: &str| if text.is_empty() { "nobody" } else { text }.to_owned();
        writeln!(f, "  superblock   version {}", self.version)?;
        writeln!(f, "  resource     {}, node {}", self.resource, self.node)?;
        writeln!(f, "  uuid         {}", self.uuid)?;
        writeln!(f, "  history      {}", self.history)?;
        writeln!(f, "  incarnation  {}", self.incarnation)?;
        writeln!(
            f,
            "  promised     epoch {} to {}",
            self.promised,
            named(&self.promised_to)
        )?;
        writeln!(f, "  acknowledged {}", self.acked)?;
        writeln!(f, "  committed    {}", self.committed)?;
        write!(f, "  applied      {}", self.applied)?;
        if let Some(offset) = self.applied_offset {
            write!(f, "; the log goes on at byte {offset} of the journal")?;
        }
        writeln!(f)?;
        if let Some(until) = &self.damaged_until {
            writeln!(
                f,
                "  DAMAGED      counts for nothing until its log reaches {until}"
            )?;
        }
        if !self.fenced.is_empty() {
            writeln!(f, "  fenced       {}", self.fenced.join(", "))?;
        }
        if let Some(resync) = &self.resync {
            let state = if resync.merging {
                "whole, is being laid over the stores"
            } else {
                "not whole yet"
            };
            writeln!(
                f,
                "  resync       staged through {}, committed through {}: {state}",
                resync.staged, resync.committed
            )?;
        }
        writeln!(f, "  lease        {} ms", self.lease_ms)?;
        for volume in &self.volumes {
            writeln!(
                f,
                "  volume       {} {}",
                volume.name,
                size::format(volume.bytes)
            )?;
        }
        match &self.config {
            None => writeln!(
                f,
                "  config       none: this node was never part of a promotion"
            )?,
            Some(config) => {
                writeln!(
                    f,
                    "  config       version {}, of record {}",
                    config.version, config.record
                )?;
                for node in &config.nodes {
                    let role = match (node.voter, node.member) {
                        (true, true) => "voter and member",
                        (true, false) => "voter",
                        (false, true) => "member",
                        (false, false) if node.joining => "joining",
                        (false, false) if node.stopped => "dropped as confirmed to be off",
                        (false, false) => "neither voter nor member",
                    };
                    writeln!(f, "    {} {} ({role})", node.name, node.incarnation)?;
                }
            }
        }
        write!(f, "  epochs       {}", self.epochs.join(", "))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { kind, path, bytes } => write!(f, "{kind} {path} ({bytes} bytes)"),
            Self::Copy {
                copy,
                offset,
                version,
                state,
            } => {
                write!(f, "  copy {copy} at byte {offset:<7} {state}")?;
                match version {
                    Some(version) => write!(f, ", version {version}"),
                    None => Ok(()),
                }
            }
            Self::Superblock(superblock) => superblock.fmt(f),
            Self::Label { state } => write!(f, "  label at byte 0: {state}"),
            Self::Batch(batch) => {
                let end = if batch.first == batch.last {
                    String::new()
                } else {
                    format!("..{}", batch.last)
                };
                let records: Vec<_> = batch.records.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "  {:>12} {}.{}{end} {}{}",
                    batch.offset,
                    batch.epoch,
                    batch.first,
                    records.join(", "),
                    if batch.applied { "" } else { " (not applied)" }
                )
            }
            Self::End {
                offset,
                after,
                row,
                found,
                meaning,
            } => write!(
                f,
                "  {offset:>12} the log ends after {after}: {found}; {meaning} (row {row})"
            ),
            Self::Checksums(sums) => write!(
                f,
                "  {} {}: {} of {} pages written, {} torn, {} lost; {} of {} groups never written; newest record {}",
                sums.table,
                sums.volume,
                sums.whole,
                sums.pages,
                sums.torn,
                sums.lost,
                sums.groups_never_written,
                sums.groups,
                sums.newest
            ),
            Self::Verified(verified) => write!(
                f,
                "  {}: {} of {} blocks are as recorded, {} differ, {} can not be read; {} were skipped, the journal or a \
                 resync has newer ones; of {} nothing is known",
                verified.volume,
                verified.same,
                verified.blocks,
                verified.differ,
                verified.unreadable,
                verified.skipped,
                verified.unknown
            ),
            Self::Note { text } => write!(f, "  {text}"),
            Self::Damage(damage) => write!(f, "  DAMAGE {damage}"),
        }
    }
}

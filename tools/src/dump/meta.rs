//! The metadata file: each copy of the superblock, and what they agree on.

use replicator::meta::config::ConfigAt;
use replicator::meta::superblock::{
    COPIES, META_BYTES, MetaError, Superblock, choose, copy_offset,
};
use replicator::recover::BlockRead;
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64, RecordId};

use super::line::{self, Damage, Line};
use super::{Disk, Out, reading};
use crate::Failure;

/// Shows the copies; returns the superblock to read the journal by, if there is any.
pub(super) fn dump(disk: &mut Disk, out: &mut Out) -> Result<Option<Superblock>, Failure> {
    let path = disk.path.display().to_string();
    out.line(Line::File {
        kind: "metadata",
        path: path.clone(),
        bytes: disk.bytes,
    })?;
    if disk.bytes < META_BYTES {
        let text = format!("the file was {META_BYTES} bytes long; it is cut short");
        out.line(Line::Damage(Damage {
            path: path.clone(),
            offset: disk.bytes,
            text,
        }))?;
    }
    let mut blocks = [[0xff; BLOCK_BYTES]; COPIES];
    let mut unreadable: [Option<String>; COPIES] = Default::default();
    for (copy, block) in blocks.iter_mut().enumerate() {
        if let Err(error) = disk.read(copy_offset(copy), block) {
            unreadable[copy] = Some(format!("can not be read: {}", reading(error)));
            block.fill(0xff);
        }
    }
    let read = |copy| Superblock::decode(copy, &blocks[copy]);
    let newest = (0..COPIES)
        .filter_map(|copy| read(copy).ok().flatten())
        .max_by_key(|s| s.version);
    let agreed = choose(&blocks);
    for copy in 0..COPIES {
        let offset = copy_offset(copy);
        let (version, fault) = match (&unreadable[copy], read(copy)) {
            (Some(why), _) => (None, Some(why.clone())),
            (None, Ok(Some(superblock))) => (Some(superblock.version), None),
            (None, Ok(None)) => (None, Some(fault(copy, &blocks[copy]))),
            (None, Err(error)) => (None, Some(error.to_string())),
        };
        let chosen = agreed.as_ref().ok().map(|c| c.superblock.version);
        let state = match (&fault, version) {
            (Some(_), _) => "damaged",
            (None, version) if chosen.is_some() && version != chosen => {
                "intact, not the chosen one"
            }
            _ => "intact",
        };
        out.line(Line::Copy {
            copy,
            offset,
            version,
            state: state.to_owned(),
        })?;
        if let Some(text) = fault {
            out.line(Line::Damage(Damage {
                path: path.clone(),
                offset,
                text: format!("copy {copy} of the superblock: {text}"),
            }))?;
        }
    }
    let superblock = match agreed {
        Ok(chosen) => Some(chosen.superblock),
        Err(error) => {
            let text = match (&error, &newest) {
                (MetaError::Damaged { .. }, Some(newest)) => format!(
                    "no two copies agree, so that repld does not start; what follows is from the newest one that \
                     is intact, version {}",
                    newest.version
                ),
                _ => error.to_string(),
            };
            let damage = Damage {
                path,
                offset: 0,
                text,
            };
            out.line(Line::Damage(damage))?;
            newest
        }
    };
    if let Some(superblock) = &superblock {
        out.line(Line::Superblock(Box::new(shown(superblock))))?;
    }
    Ok(superblock)
}

/// What is wrong with the block in the place of a copy.
fn fault(copy: usize, block: &[u8]) -> String {
    if block.iter().all(|&b| b == 0) {
        return "all zeroes: it was never written, or wiped".into();
    }
    let other = (0..COPIES).find(|&other| matches!(Superblock::decode(other, block), Ok(Some(_))));
    match other.filter(|&other| other != copy) {
        Some(other) => format!("copy {other} is in its place"),
        None if block.starts_with(b"RPLSUPER") => "its checksum is wrong".into(),
        None => "it does not begin as a superblock does".into(),
    }
}

/// How records are named.
pub(super) fn id(id: RecordId) -> String {
    if id == RecordId::NONE {
        "nothing".into()
    } else {
        id.to_string()
    }
}

fn shown(superblock: &Superblock) -> line::Superblock {
    let wide = |n: u128| format!("{n:032x}");
    let ring = (superblock.journal_bytes / BLOCK_BYTES_U64).saturating_sub(1);
    let config = superblock.config.as_ref().map(|ConfigAt { at, config }| {
        let nodes = config.nodes.iter().map(|node| line::Standing {
            name: node.name.to_string(),
            incarnation: wide(node.incarnation.0),
            voter: node.voter,
            member: node.member,
            joining: node.joining,
            stopped: node.stopped,
        });
        line::Config {
            version: config.version,
            record: id(*at),
            nodes: nodes.collect(),
        }
    });
    let nodes = superblock.config.iter().flat_map(|c| &c.config.nodes);
    let fenced = nodes.filter(|node| {
        let mut marks = superblock.fences.iter();
        marks.any(|m| m.mark.is_fenced() && m.is_of(&node.name))
    });
    let fenced = fenced.map(|node| node.name.to_string()).collect();
    let volumes = superblock.volumes.iter().map(|(_, volume)| line::Volume {
        name: volume.name.to_string(),
        bytes: volume.bytes,
    });
    line::Superblock {
        version: superblock.version,
        resource: superblock.resource.to_string(),
        node: superblock.node.to_string(),
        uuid: wide(superblock.uuid.0),
        history: wide(superblock.history.0),
        incarnation: wide(superblock.incarnation.0),
        promised: superblock.promised.0,
        promised_to: superblock.promised_to.to_string(),
        acked: id(superblock.acked),
        committed: superblock.committed.0,
        applied: id(superblock.applied.id),
        applied_offset: (ring > 0)
            .then(|| (1 + superblock.applied.position % ring) * BLOCK_BYTES_U64),
        damaged_until: Some(superblock.damaged_until)
            .filter(|&until| until != RecordId::NONE)
            .map(id),
        fenced,
        resync: superblock.resync.map(|resync| line::Resync {
            staged: id(resync.staged),
            committed: resync.committed.0,
            merging: resync.merging,
        }),
        lease_ms: superblock.lease_ms,
        journal_bytes: superblock.journal_bytes,
        volumes: volumes.collect(),
        config,
        epochs: superblock.epochs.iter().map(|&epoch| id(epoch)).collect(),
    }
}

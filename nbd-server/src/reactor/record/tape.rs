//! The file that a recording is in.
//!
//! A sequence of entries, all integers little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | length of the body |
//! | 4..8 | CRC-32 of the body |
//! | 8.. | the body: nanoseconds of CLOCK_MONOTONIC (8), the kind (1), then what the kind has |
//!
//! The clock is common to all processes of a machine, so recordings of several nodes can be laid side by side. The last
//! entry may be cut short, if the process was killed: what it was about had not begun. Anything else that does not
//! verify is an error.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use replicator::io::{ClientOp, WriteData};
use replicator::memory::Buffer;
use replicator::types::{BLOCK_BYTES, Epoch, RecordId, Seq, VolumeId};
use replicator::wire::frame::Frame;

use super::Event;

const FILES: u8 = 0;
const WRITE: u8 = 1;
const ZERO: u8 = 2;
const FLUSH: u8 = 3;
const ENDED: u8 = 4;
const ASKED: u8 = 5;
const ANSWERED: u8 = 6;
const ACKED: u8 = 7;
const REPORTED: u8 = 8;

const ASKED_OTHER: u8 = 0;
const ASKED_WRITE: u8 = 1;
const ASKED_ZERO: u8 = 2;

/// A recording in the making.
#[derive(Debug)]
pub struct Tape {
    file: File,
    /// The entry in the making.
    entry: Vec<u8>,
}

impl Tape {
    /// Begins one.
    ///
    /// # Errors
    /// The file exists, or can not be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let entry = Vec::new();
        Ok(Self { file, entry })
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// It can not be written.
    pub fn write(&mut self, event: &Event<'_>) -> io::Result<()> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from)?;
        let nanos = u64::try_from(now.as_nanos()).map_err(io::Error::other)?;
        self.entry.clear();
        self.entry.extend([0; 8]);
        self.entry.extend(nanos.to_le_bytes());
        if !encode(&mut self.entry, event) {
            return Ok(());
        }
        let (head, body) = self.entry.split_at_mut(8);
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        self.file.write_all(&self.entry)
    }
}

/// `false` if the event is not worth an entry.
fn encode(out: &mut Vec<u8>, event: &Event<'_>) -> bool {
    match *event {
        Event::Files {
            meta,
            journal,
            sums,
            stage,
            stores,
        } => {
            out.push(FILES);
            for file in [meta, journal, sums, stage].iter().chain(stores) {
                out.extend(file.to_le_bytes());
            }
        }
        Event::Write {
            key,
            file,
            offset,
            durable,
            segments,
        } => {
            out.push(WRITE);
            out.extend(key.to_le_bytes());
            out.extend(file.to_le_bytes());
            out.extend(offset.to_le_bytes());
            out.push(u8::from(durable));
            for segment in segments {
                let bytes = segment.buffer.bytes();
                out.extend_from_slice(&bytes[segment.start..segment.start + segment.length]);
            }
        }
        Event::Zero {
            key,
            file,
            mode,
            offset,
            length,
        } => {
            out.push(ZERO);
            out.extend(key.to_le_bytes());
            out.extend(file.to_le_bytes());
            out.extend(mode.to_le_bytes());
            out.extend(offset.to_le_bytes());
            out.extend(length.to_le_bytes());
        }
        Event::Flush { key, file } => {
            out.push(FLUSH);
            out.extend(key.to_le_bytes());
            out.extend(file.to_le_bytes());
        }
        Event::Ended { key, result } => {
            out.push(ENDED);
            out.extend(key.to_le_bytes());
            let number = match result {
                Ok(moved) => i64::from(moved),
                Err(errno) => -i64::from(errno as i32),
            };
            out.extend(number.to_le_bytes());
        }
        Event::Asked { req, op, admitted } => {
            out.push(ASKED);
            out.extend(req.0.to_le_bytes());
            out.extend(admitted.0.to_le_bytes());
            encode_op(out, op);
        }
        Event::Answered {
            req,
            done,
            committed,
        } => {
            out.push(ANSWERED);
            out.extend(req.0.to_le_bytes());
            out.extend(committed.0.to_le_bytes());
            out.push(u8::from(done));
        }
        Event::Said(Frame::Ack { epoch, seq }) => {
            out.push(ACKED);
            out.extend(epoch.0.to_le_bytes());
            out.extend(seq.0.to_le_bytes());
        }
        Event::Said(Frame::Report(report)) => {
            out.push(REPORTED);
            out.extend(report.promised.0.max(report.granted.0).to_le_bytes());
            out.extend(report.tail.epoch.0.to_le_bytes());
            out.extend(report.tail.seq.0.to_le_bytes());
        }
        Event::Said(_) => return false,
    }
    true
}

fn encode_op(out: &mut Vec<u8>, op: &ClientOp<'_, super::PoolBuffer>) {
    match op {
        ClientOp::Write {
            volume,
            offset,
            length,
            data,
        } => {
            out.push(ASKED_WRITE);
            out.extend(volume.0.to_le_bytes());
            out.extend(offset.to_le_bytes());
            match data {
                WriteData::Borrowed(bytes) => out.extend_from_slice(bytes),
                WriteData::Owned(buffer) => {
                    let start = BLOCK_BYTES + *offset as usize % BLOCK_BYTES;
                    out.extend_from_slice(&buffer.bytes()[start..start + *length as usize]);
                }
            }
        }
        ClientOp::Zero {
            volume,
            offset,
            length,
            ..
        } => {
            out.push(ASKED_ZERO);
            out.extend(volume.0.to_le_bytes());
            out.extend(offset.to_le_bytes());
            out.extend(length.to_le_bytes());
        }
        ClientOp::Read { .. } | ClientOp::Flush => out.push(ASKED_OTHER),
    }
}

/// A file of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    /// The metadata file.
    Meta,
    /// The journal.
    Journal,
    /// The table of checksums.
    Sums,
    /// What a resync has brought.
    Stage,
    /// The store of a volume.
    Store(VolumeId),
}

/// What a client wanted changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many zeroes.
    Zeroes(u64),
}

/// An [`Event`] as it is read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Noted {
    /// A write was submitted.
    Write {
        /// Which operation.
        key: u32,
        /// To which file.
        part: Part,
        /// From which byte on.
        offset: u64,
        /// Whether with RWF_DSYNC.
        durable: bool,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A range was to become zeroes.
    Zero {
        /// Which operation.
        key: u32,
        /// Of which file.
        part: Part,
        /// The mode of `fallocate(2)`.
        mode: i32,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// `fdatasync(2)` was submitted.
    Flush {
        /// Which operation.
        key: u32,
        /// Of which file.
        part: Part,
    },
    /// An operation ended.
    Ended {
        /// Which.
        key: u32,
        /// Bytes moved, or the error's number.
        result: Result<u64, u64>,
    },
    /// A request was handed to the core.
    Asked {
        /// Its name.
        req: u64,
        /// The newest record by then.
        admitted: Seq,
        /// What was to change: on which volume, from which byte on, and how. `None` for reads and flushes.
        change: Option<(VolumeId, u64, Change)>,
    },
    /// It was answered.
    Answered {
        /// Its name.
        req: u64,
        /// The newest committed record.
        committed: Seq,
        /// Whether it was done.
        done: bool,
    },
    /// A peer was told that this node has the log through here.
    Acked(RecordId),
    /// A peer was told what this node has promised, and the end of its log.
    Reported {
        /// The highest epoch promised.
        promised: Epoch,
        /// The last durable record.
        tail: RecordId,
    },
}

/// An entry as it is read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// When it was noted.
    pub nanos: u64,
    /// What.
    pub noted: Noted,
}

/// Why a recording can not be read.
#[derive(Debug, thiserror::Error)]
pub enum TapeError {
    /// The file can not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An entry is damaged, or of a kind that does not exist.
    #[error("the recording is damaged at byte {0}")]
    Damaged(usize),
}

/// Reads a recording.
///
/// # Errors
/// It can not be read, or is none.
pub fn read(path: &Path) -> Result<Vec<Entry>, TapeError> {
    let bytes = std::fs::read(path)?;
    let mut entries = Vec::new();
    let mut files = Vec::new();
    let mut at = 0;
    while bytes.len() - at >= 8 {
        let damaged = || TapeError::Damaged(at);
        let mut head = Fields(&bytes[at..at + 8]);
        let (length, crc) = (head.u32().ok_or_else(damaged)?, head.u32());
        let Some(body) = bytes.get(at + 8..at + 8 + length as usize) else {
            break;
        };
        if crc != Some(crc32fast::hash(body)) {
            return Err(damaged());
        }
        entries.extend(decode(body, &mut files).ok_or_else(damaged)?);
        at += 8 + length as usize;
    }
    Ok(entries)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    fn volume(&mut self) -> Option<VolumeId> {
        self.array().map(u16::from_le_bytes).map(VolumeId)
    }

    fn seq(&mut self) -> Option<Seq> {
        self.u64().map(Seq)
    }

    fn id(&mut self) -> Option<RecordId> {
        Some(RecordId {
            epoch: Epoch(self.u64()?),
            seq: self.seq()?,
        })
    }

    fn part(&mut self, files: &[i32]) -> Option<Part> {
        let file = self.i32()?;
        let at = files.iter().position(|known| *known == file)?;
        Some(match at {
            0 => Part::Meta,
            1 => Part::Journal,
            2 => Part::Sums,
            3 => Part::Stage,
            store => Part::Store(VolumeId(u16::try_from(store - 4).ok()?)),
        })
    }
}

/// `Some(None)` for the names of the files.
fn decode(body: &[u8], files: &mut Vec<i32>) -> Option<Option<Entry>> {
    let mut from = Fields(body);
    let nanos = from.u64()?;
    let noted = match from.u8()? {
        FILES => {
            while !from.0.is_empty() {
                files.push(from.i32()?);
            }
            return Some(None);
        }
        WRITE => Noted::Write {
            key: from.u32()?,
            part: from.part(files)?,
            offset: from.u64()?,
            durable: from.u8()? == 1,
            bytes: from.0.to_vec(),
        },
        ZERO => Noted::Zero {
            key: from.u32()?,
            part: from.part(files)?,
            mode: from.i32()?,
            offset: from.u64()?,
            length: from.u64()?,
        },
        FLUSH => Noted::Flush {
            key: from.u32()?,
            part: from.part(files)?,
        },
        ENDED => {
            let key = from.u32()?;
            let number = from.array().map(i64::from_le_bytes)?;
            let result = match u64::try_from(number) {
                Ok(moved) => Ok(moved),
                Err(_) => Err(number.unsigned_abs()),
            };
            Noted::Ended { key, result }
        }
        ASKED => Noted::Asked {
            req: from.u64()?,
            admitted: from.seq()?,
            change: match from.u8()? {
                ASKED_WRITE => {
                    let place = (from.volume()?, from.u64()?);
                    Some((place.0, place.1, Change::Bytes(from.0.to_vec())))
                }
                ASKED_ZERO => Some((from.volume()?, from.u64()?, Change::Zeroes(from.u64()?))),
                ASKED_OTHER => None,
                _ => return None,
            },
        },
        ANSWERED => Noted::Answered {
            req: from.u64()?,
            committed: from.seq()?,
            done: from.u8()? == 1,
        },
        ACKED => Noted::Acked(from.id()?),
        REPORTED => Noted::Reported {
            promised: Epoch(from.u64()?),
            tail: from.id()?,
        },
        _ => return None,
    };
    Some(Some(Entry { nanos, noted }))
}

#[cfg(test)]
mod tests;

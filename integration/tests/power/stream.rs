//! A node's recording, read: operations with their ends, and promises, in the order in which the reactor saw them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use nbd_server::reactor::record::tape::{self, Change, Entry, Noted, Part};
use replicator::types::*;

/// What an operation does to its file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// Writes bytes.
    Write(Vec<u8>),
    /// Makes so many bytes zeroes.
    Zero(u64),
    /// Makes durable what has been done to the file.
    Flush,
}

/// An operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Op {
    pub(crate) part: Part,
    pub(crate) offset: u64,
    /// Whether it is durable when it has ended.
    pub(crate) durable: bool,
    pub(crate) work: Work,
}

impl Op {
    /// The bytes that it changes.
    pub(crate) fn length(&self) -> u64 {
        match &self.work {
            Work::Write(bytes) => bytes.len() as u64,
            Work::Zero(length) => *length,
            Work::Flush => 0,
        }
    }
}

/// The name of an operation: rises with each that is submitted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct OpId(pub(crate) u64);

/// One thing that happened.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// An operation was submitted.
    Begin(OpId, Arc<Op>),
    /// It ended; how many bytes it moved if it did not fail.
    End(OpId, Option<u64>),
    /// A peer was told that the log through here is durable.
    Acked(Seq),
    /// A peer was told of a promise, and of the end of the log.
    Reported(Epoch, RecordId),
}

/// A step, and when.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    pub(crate) nanos: u64,
    pub(crate) step: Step,
}

/// A change that a client asked for and was told to be done.
#[derive(Debug)]
pub(crate) struct Done {
    /// When it was answered.
    pub(crate) nanos: u64,
    pub(crate) volume: VolumeId,
    pub(crate) offset: u64,
    pub(crate) change: Change,
    /// Its records come after this one.
    pub(crate) after: Seq,
    /// And not after this one.
    pub(crate) until: Seq,
}

/// What is in a recording.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) moments: Vec<Moment>,
    pub(crate) done: Vec<Done>,
}

impl Stream {
    /// Reads one from its file.
    pub(crate) fn read(path: &Path) -> Self {
        let entries = tape::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::of(entries)
    }

    fn of(entries: Vec<Entry>) -> Self {
        let mut stream = Self::default();
        let mut open = HashMap::new();
        let mut asked = HashMap::new();
        let mut next = 0;
        for Entry { nanos, noted } in entries {
            let mut begin = |key, op: Op| {
                let id = OpId(next);
                next += 1;
                assert!(open.insert(key, id).is_none(), "one operation per key");
                Step::Begin(id, Arc::new(op))
            };
            let step = match noted {
                Noted::Write {
                    key,
                    part,
                    offset,
                    durable,
                    bytes,
                } => begin(
                    key,
                    Op {
                        part,
                        offset,
                        durable,
                        work: Work::Write(bytes),
                    },
                ),
                Noted::Zero {
                    key,
                    part,
                    offset,
                    length,
                    ..
                } => begin(
                    key,
                    Op {
                        part,
                        offset,
                        durable: false,
                        work: Work::Zero(length),
                    },
                ),
                Noted::Flush { key, part } => begin(
                    key,
                    Op {
                        part,
                        offset: 0,
                        durable: true,
                        work: Work::Flush,
                    },
                ),
                Noted::Ended { key, result } => {
                    let id = open.remove(&key).expect("what ends was begun");
                    Step::End(id, result.ok())
                }
                Noted::Acked(id) => Step::Acked(id.seq),
                Noted::Reported { promised, tail } => Step::Reported(promised, tail),
                Noted::Asked {
                    req,
                    admitted,
                    change,
                } => {
                    // A request that was never answered leaves its name to the next.
                    asked.insert(req, (admitted, change));
                    continue;
                }
                Noted::Answered {
                    req,
                    committed: until,
                    done,
                } => {
                    let (after, change) = asked.remove(&req).expect("what is answered was asked");
                    if let (Some((volume, offset, change)), true) = (change, done) {
                        stream.done.push(Done {
                            nanos,
                            volume,
                            offset,
                            change,
                            after,
                            until,
                        });
                    }
                    continue;
                }
            };
            stream.moments.push(Moment { nanos, step });
        }
        stream
    }
}

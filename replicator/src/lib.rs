//! The replication core of a disk that survives the loss of the machine it runs on: a state machine, a journal, and the
//! formats of disk and wire. No I/O, no clock, no randomness, no unsafe code: [`Replica`] is driven from outside, by the
//! reactor in production and by a simulator in tests.
//!
//! # What it promises
//!
//! - **P1** An acknowledged write is durable on a majority of the members.
//! - **P2** One order of writes, across all volumes: in the journal, on the wire, in memory, in replay, in every store.
//! - **P3** The store of every node, unless it is marked Inconsistent, is the replay of records 1..k for some k.
//! - **P4** In one epoch one node at most commits writes; once a majority has promised an epoch, nothing of an older one
//!   commits any more.
//! - **P5** A read returns only data that no failover can take back.
//! - **P6** Damage to journal and metadata is detected by checksum and never passed on.
//! - **P7** One slow, hung or dead node out of three adds nothing to the acknowledgement path.
//! - **P8** Every queue has a bound.
//! - **P9** No bytes from a peer or a disk crash it or get past a check.
//! - **P10** With the journal drained, a volume's store is its raw image.
//!
//! # Where things are
//!
//! | module | what |
//! |---|---|
//! | [`replica`] | the state machine, its contract, and the rules of the protocol |
//! | [`io`], [`view`] | what goes in and comes out, and what it shows of itself |
//! | [`memory`], [`types`] | handles to blocks, and the nouns |
//! | [`journal`] | the format of batches, the log in memory, reading the ring at start |
//! | [`meta`] | superblock, membership, the label of the journal |
//! | [`recover`] | all of a node's disks put together at start |
//! | [`store`] | where the newest data of a block is |
//! | [`wire`] | hello and frames |

#![forbid(unsafe_code)]

#[macro_use]
mod planted;

mod checksum;
pub mod io;
pub mod journal;
pub mod memory;
pub mod meta;
pub mod recover;
pub mod replica;
pub mod store;
pub mod types;
pub mod view;
pub mod wire;

#[cfg(feature = "planted")]
pub use planted::{Bug, plant};
pub use replica::{AckPolicy, Capacity, OnNoQuorum, Replica, ReplicaConfig, WithoutRoom};

//! The state machine.
use crate::io::{Input, Output};
use crate::memory::Memory;
use crate::meta::config::Name;
use crate::types::*;
use crate::view::View;

/// What to do when the majority is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnNoQuorum {
    /// Hold I/O.
    SuspendIo,
    /// Fail I/O.
    IoError,
}

/// Whom an acknowledgement waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckPolicy {
    /// A majority of the members.
    Majority,
    /// Every connected member besides.
    All,
}

/// A volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeSpec {
    /// Its name.
    pub name: Name,
    /// Its size; a multiple of 4 KiB.
    pub bytes: u64,
}

/// What the operator decided, the same on every node but for `me`.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// The names of the data nodes, sorted: `NodeId` is the position in here.
    pub nodes: Vec<Name>,
    /// Which of them this is.
    pub me: NodeId,
    /// The volumes, in the config's order.
    pub volumes: Vec<VolumeSpec>,
    /// The length of the lease, in milliseconds.
    pub lease_ms: u32,
    /// What to do when the majority is lost.
    pub on_no_quorum: OnNoQuorum,
    /// Whom an acknowledgement waits for.
    pub ack: AckPolicy,
    /// The bound of client requests being worked on.
    pub requests_max: u32,
}

/// What the driver may hand in right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// How many more client requests are taken. At 0 the driver stops reading requests from its clients.
    pub requests: u32,
}

/// What was found on this node's disks. Made by `recover::recover`.
#[derive(Debug)]
pub struct Recovered;

/// One node's part in one resource.
#[derive(Debug)]
pub struct Replica<M: Memory> {
    memory: M,
}

impl<M: Memory> Replica<M> {
    /// Starts a node from what was recovered from its disks, as Secondary. `seed` is 32 bytes of randomness, for identities.
    pub fn open(
        _config: ReplicaConfig,
        _recovered: Recovered,
        memory: M,
        _now: Time,
        _seed: [u8; 32],
    ) -> Self {
        Self { memory }
    }

    /// Takes one input. Never fails, never blocks.
    pub fn handle(&mut self, _now: Time, _input: Input<'_, M::Buffer>) {}

    /// Call when [`Replica::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// Call once after all the inputs of a turn, before the outputs are taken: closes the open batch.
    pub fn end_turn(&mut self, _now: Time) {}

    /// The next thing to do; `None` when all is given out.
    pub fn poll(&mut self) -> Option<Output<M::Buffer>> {
        None
    }

    /// When [`Replica::handle_timeout`] wants to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// How much more the driver may hand in.
    pub fn capacity(&self) -> Capacity {
        Capacity { requests: 0 }
    }

    /// Lends the memory, for the driver's own buffers (requests, frames).
    pub fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// A snapshot.
    pub fn view(&self) -> View {
        View::default()
    }
}

//! How full everything is that has a bound.

use replicator::types::NODES_MAX;

use super::acks::Acknowledgements;
use super::client::Client;
use super::disk::Disks;
use super::engine::Engine;
use super::peer::{Peer, QUEUE_MAX};
use super::pool::Pool;
use super::slab::Slab;
use super::{CLIENTS_MAX, OPERATIONS_MAX, PEERS_MAX};
use crate::handle::{Queues, Usage};

/// Looks at all of it. The last of `connections` is how many of them wait for memory or for the core.
pub fn gather<C>(
    engine: &Engine<C>,
    disks: &Disks,
    pool: &Pool,
    (clients, peers, starved): (&Slab<Client>, &Slab<Peer>, usize),
    acks: &Acknowledgements,
) -> Queues {
    Queues {
        memory: pool.shares(),
        read_answers: engine.reads.usage(),
        operations: Usage {
            used: count(engine.ring.in_flight()),
            limit: OPERATIONS_MAX,
        },
        disk_operations: disks.usage(),
        disk_waiting: count(disks.waiting()),
        disk_silent_nanos: disks.watch().silent_for_nanos(),
        nbd_connections: places(clients, CLIENTS_MAX),
        peer_connections: places(peers, PEERS_MAX),
        starved: count(starved),
        peer_frames: frames_waiting(peers),
        peer_frames_max: count(QUEUE_MAX),
        unacknowledged_since: acks.waits_since(),
    }
}

fn count(things: usize) -> u32 {
    u32::try_from(things).unwrap_or(u32::MAX)
}

fn places<T>(slab: &Slab<T>, limit: usize) -> Usage {
    Usage {
        used: count(slab.taken_places()),
        limit: count(limit),
    }
}

fn frames_waiting(peers: &Slab<Peer>) -> [u32; NODES_MAX] {
    let mut waiting = [0; NODES_MAX];
    for (_, peer) in peers.iter().filter(|(_, peer)| peer.over().is_none()) {
        waiting[usize::from(peer.node().0)] += count(peer.frames_waiting());
    }
    waiting
}

//! Connections: ordered streams with delays, resets, partitions in either direction, and half-open ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replicator::types::ConnId;
use replicator::wire::frame::Frame;

use crate::forge::Forgery;
use crate::memory::{Shared, SimBuffer};

/// Tells the frames that are meant from all others.
pub(crate) type FrameKind = fn(&Frame) -> bool;

/// What happens at the frame that a snag waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "only stories lay snags"))]
pub(crate) enum Then {
    /// The connection breaks, and the frame is lost.
    BreakBefore,
    /// The frame is delivered, and the connection breaks.
    BreakAfter,
    /// The frame and all behind it are held up.
    Hold,
}

/// Something that happens at the next frame of a kind from one node to another.
pub(crate) struct Snag {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) kind: FrameKind,
    pub(crate) then: Then,
}

/// A frame under way.
pub(crate) struct Packet {
    pub(crate) due: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) batch: Option<Shared>,
    /// The frame itself was damaged under way.
    pub(crate) spoilt: bool,
    /// The sender's handle, until it was told that the batch has left.
    pub(crate) hold: Option<SimBuffer>,
}

/// A connection between two nodes. Side 0 is the node with the lower number.
pub(crate) struct Conn {
    pub(crate) nodes: [usize; 2],
    pub(crate) ids: [ConnId; 2],
    /// The life of each node that it belongs to.
    pub(crate) lives: [u64; 2],
    pub(crate) up: [bool; 2],
    pub(crate) closed: [bool; 2],
    /// Its own node closes this end.
    pub(crate) gives_up: [bool; 2],
    /// Something that was sent on it was damaged.
    pub(crate) spoilt: bool,
    /// The blocks that each side asked for, by its token: volume, first block, how many.
    pub(crate) asked: [BTreeMap<u64, (usize, u64, u32)>; 2],
    /// What each side sent.
    pub(crate) pipes: [VecDeque<Packet>; 2],
}

/// How a frame is damaged under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spoil {
    /// The batch that follows it, else the frame itself.
    pub(crate) batch: bool,
    /// Which bit, modulo how many there are.
    pub(crate) bit: u64,
}

/// All connections, and what is cut.
#[derive(Default)]
pub(crate) struct Net {
    pub(crate) conns: Vec<Conn>,
    /// Directions in which nothing passes.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Directions that are slower than they should be, by which factor.
    pub(crate) slow: BTreeMap<(usize, usize), u64>,
    /// Directions in which a frame is forged.
    pub(crate) forge: BTreeMap<(usize, usize), Forgery>,
    /// Directions in which the next frame is damaged.
    pub(crate) spoil: BTreeMap<(usize, usize), Spoil>,
    /// What stories have laid in the way of frames.
    pub(crate) snags: Vec<Snag>,
    /// Blocks of batches that each node has sent to each other.
    pub(crate) sent_blocks: BTreeMap<(usize, usize), u64>,
}

impl Net {
    pub(crate) fn open(&mut self, nodes: [usize; 2], lives: [u64; 2]) -> usize {
        let index = self.conns.len();
        let id = |side: u64| ConnId(index as u64 * 2 + side + 1);
        self.conns.push(Conn {
            nodes,
            ids: [id(0), id(1)],
            lives,
            up: [false; 2],
            closed: [false; 2],
            gives_up: [false; 2],
            spoilt: false,
            asked: Default::default(),
            pipes: [VecDeque::new(), VecDeque::new()],
        });
        index
    }

    /// The connection and side that an id names.
    pub(crate) fn find(id: ConnId) -> (usize, usize) {
        let n = usize::try_from(id.0 - 1).expect("a small number");
        (n / 2, n % 2)
    }

    /// From which node to which a side of a connection sends.
    pub(crate) fn link(&self, conn: usize, side: usize) -> (usize, usize) {
        let nodes = self.conns[conn].nodes;
        (nodes[side], nodes[1 - side])
    }

    pub(crate) fn passes(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Whether two nodes have a connection that neither end has closed.
    pub(crate) fn connected(&self, a: usize, b: usize) -> bool {
        self.conns
            .iter()
            .rev()
            .any(|c| c.nodes == [a.min(b), a.max(b)] && c.closed == [false; 2])
    }

    /// The connections of a node that it has not closed.
    pub(crate) fn of(&self, node: usize) -> Vec<(usize, usize)> {
        self.conns
            .iter()
            .enumerate()
            .filter_map(|(i, c)| {
                let side = c.nodes.iter().position(|&n| n == node)?;
                (!c.closed[side]).then_some((i, side))
            })
            .collect()
    }
}

//! A node that starts from an image and loses power once more, while it applies what it recovered.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use nbd_server::reactor::record::tape::Part;
use replicator::Replica;
use replicator::io::{DiskOp, Input, Output, Parts, SideFile};
use replicator::memory::{Buffer, Memory, Purpose};
use replicator::types::*;

use crate::chance::Chance;
use crate::cluster::config;
use crate::judge::recovered;
use crate::stream::{Op, OpId, Step, Work};
use crate::walk::Walk;

/// Turns after which the node has done all that it does alone.
const TURNS_MAX: u64 = 80;

/// Begins a second life of a node from what is on its disks, and leaves it at a random place of that: its disks with
/// what was in flight. Says how many disk operations there were.
pub(crate) fn second_life(
    node: usize,
    walk: &Walk,
    chance: &mut Chance,
) -> Result<(Walk, u64), String> {
    let found = recovered(node, walk)?;
    let mut walk = walk.restarted(found.superblock.version);
    let mut now = Time(1_000_000_000);
    let seed = [node as u8; 32];
    let mut core = Replica::open(config(node), found, Plain, now, seed);
    let mut in_flight: Vec<(OpId, Ticket, DiskOp<Blocks>)> = Vec::new();
    let mut begun = 0;
    for _ in 0..chance.below(TURNS_MAX) {
        core.end_turn(now);
        while let Some(output) = core.poll() {
            if let Output::Disk { ticket, op } = output {
                let id = OpId(begun);
                begun += 1;
                if let Some(op) = written(&op) {
                    walk.step(&Step::Begin(id, Arc::new(op)), |_, _| ())?;
                }
                in_flight.push((id, ticket, op));
            }
        }
        if in_flight.is_empty() {
            let timeout = core.poll_timeout().unwrap_or(now);
            now = timeout.max(now.after(1_000_000));
            continue;
        }
        let next = chance.below(in_flight.len() as u64) as usize;
        let (id, ticket, op) = in_flight.swap_remove(next);
        match &op {
            DiskOp::JournalRead { offset, buffer } => {
                buffer.arrived_from(walk.media.bytes(Part::Journal), *offset);
            }
            DiskOp::SideRead {
                file,
                offset,
                buffer,
            } => {
                buffer.arrived_from(walk.media.bytes(beside(*file)), *offset);
            }
            DiskOp::StoreRead { .. } => return Err("nobody asked for a read".into()),
            _ => {
                let length = written(&op).map(|op| op.length());
                walk.step(&Step::End(id, length), |_, _| ())?;
            }
        }
        drop(op);
        let result = Ok(());
        core.handle(now, Input::DiskDone { ticket, result });
    }
    Ok((walk, begun))
}

fn beside(file: SideFile) -> Part {
    match file {
        SideFile::Sums => Part::Sums,
        SideFile::Stage => Part::Stage,
    }
}

/// What an operation does to a file; `None` if it reads.
fn written(op: &DiskOp<Blocks>) -> Option<Op> {
    let bytes = |parts: &Parts<Blocks>| {
        let parts = parts.iter().map(|part| part.bytes());
        Work::Write(parts.collect::<Vec<_>>().concat())
    };
    let (part, offset, durable, work) = match op {
        // Volumes do not change here.
        DiskOp::JournalRead { .. }
        | DiskOp::StoreRead { .. }
        | DiskOp::SideRead { .. }
        | DiskOp::MakeRoom { .. }
        | DiskOp::Fit { .. } => return None,
        DiskOp::JournalWrite { offset, parts } => (Part::Journal, *offset, true, bytes(parts)),
        DiskOp::MetaWrite { offset, parts } => (Part::Meta, *offset, true, bytes(parts)),
        DiskOp::StoreWrite {
            volume,
            offset,
            parts,
        } => (Part::Store(*volume), *offset, false, bytes(parts)),
        DiskOp::StoreZero {
            volume,
            offset,
            length,
            ..
        } => (Part::Store(*volume), *offset, false, Work::Zero(*length)),
        DiskOp::StoreFlush { volume } => (Part::Store(*volume), 0, true, Work::Flush),
        DiskOp::SideWrite {
            file,
            offset,
            parts,
        } => (beside(*file), *offset, false, bytes(parts)),
        DiskOp::SideFlush { file } => (beside(*file), 0, true, Work::Flush),
        DiskOp::SideDiscard {
            file,
            offset,
            length,
        } => (beside(*file), *offset, false, Work::Zero(*length)),
    };
    Some(Op {
        part,
        offset,
        durable,
        work,
    })
}

/// Memory without end.
struct Plain;

impl Memory for Plain {
    type Buffer = Blocks;

    fn alloc(&mut self, _: Purpose, blocks: u32) -> Option<Blocks> {
        Some(Blocks {
            shared: Rc::default(),
            whole: blocks as usize,
            first: 0,
            blocks: blocks as usize,
        })
    }

    fn free_blocks(&self, _: Purpose) -> u32 {
        1 << 14
    }

    fn total_blocks(&self, _: Purpose) -> u32 {
        1 << 14
    }
}

#[derive(Debug, Default)]
struct Shared {
    bytes: OnceCell<Vec<u8>>,
    /// What reads brought before anybody looked, and where to.
    arrived: RefCell<Vec<(usize, Vec<u8>)>>,
}

/// A handle to blocks.
#[derive(Clone, Debug)]
struct Blocks {
    shared: Rc<Shared>,
    whole: usize,
    first: usize,
    blocks: usize,
}

impl Blocks {
    fn arrived_from(&self, file: &[u8], offset: u64) {
        self.arrived(file[offset as usize..][..self.blocks * BLOCK_BYTES].to_vec());
    }

    fn arrived(&self, bytes: Vec<u8>) {
        assert!(self.shared.bytes.get().is_none(), "looked at too early");
        let at = self.first * BLOCK_BYTES;
        self.shared.arrived.borrow_mut().push((at, bytes));
    }

    fn all(&self) -> &Vec<u8> {
        self.shared.bytes.get_or_init(|| {
            let mut all = vec![0; self.whole * BLOCK_BYTES];
            for (at, bytes) in self.shared.arrived.borrow_mut().drain(..) {
                all[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            all
        })
    }
}

impl Buffer for Blocks {
    fn bytes(&self) -> &[u8] {
        &self.all()[self.first * BLOCK_BYTES..][..self.blocks * BLOCK_BYTES]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.all();
        let shared = Rc::get_mut(&mut self.shared).expect("the only handle");
        let all = shared.bytes.get_mut().expect("there since the line above");
        &mut all[self.first * BLOCK_BYTES..][..self.blocks * BLOCK_BYTES]
    }

    fn slice(&self, first: u32, blocks: u32) -> Self {
        assert!((first + blocks) as usize <= self.blocks);
        Self {
            shared: Rc::clone(&self.shared),
            whole: self.whole,
            first: self.first + first as usize,
            blocks: blocks as usize,
        }
    }

    fn shrink(&mut self, blocks: u32) {
        self.blocks = blocks as usize;
    }

    fn blocks(&self) -> u32 {
        self.blocks as u32
    }
}

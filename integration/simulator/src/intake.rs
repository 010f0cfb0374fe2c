//! What a node's driver hands in: frames from streams, and requests of clients.

use replicator::Replica;
use replicator::io::*;
use replicator::memory::{Buffer, Memory, Purpose};
use replicator::types::*;
use replicator::view::Holds;
use replicator::wire::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader};

use crate::client::{Kind, Mapped};
use crate::garbage::garbled;
use crate::harness::*;
use crate::memory::SimMemory;
use crate::net::Then;
use crate::oracle::{UNITS_PER_BLOCK, content, unit_offset};
use crate::volumes::id_of;

/// Blocks of a map, those that most of the requests are about.
const MAPPED_BLOCKS: u64 = 12;

/// What the core says of the first blocks of a volume.
fn map_of(replica: &Replica<SimMemory>, volume: VolumeId, blocks: u64) -> Vec<Mapped> {
    let end = usize::try_from(blocks).expect("few blocks");
    let mut map = vec![Mapped::AsStored; end];
    for part in replica.unapplied(volume, 0..blocks) {
        let mapped = match part.holds {
            Holds::Zeroes { .. } => Mapped::Zeroes,
            Holds::Anything => Mapped::Anything,
        };
        let from = usize::try_from(part.start).expect("few blocks");
        map[from..from + usize::try_from(part.blocks).expect("few blocks")].fill(mapped);
    }
    map
}

impl Cluster {
    /// Takes frames from a stream, as far as there is memory for their batches.
    pub(crate) fn receive(
        &mut self,
        replica: &mut Replica<SimMemory>,
        now: Time,
        conn: usize,
        side: usize,
    ) {
        loop {
            let c = &mut self.net.conns[conn];
            let (node, id) = (c.nodes[side], c.ids[side]);
            let cut = self.net.cut.contains(&(c.nodes[1 - side], node));
            if !c.up[side] || cut {
                return;
            }
            let Some(packet) = c.pipes[1 - side].front() else {
                return;
            };
            if packet.due > self.now {
                let due = packet.due;
                self.at(due, Event::Readable(conn, side));
                return;
            }
            let (head, body) = packet.bytes.split_at(FRAME_HEADER_BYTES);
            let head = head.try_into().expect("32 bytes");
            let spoilt = c.spoilt;
            let decoded = FrameHeader::decode(head).ok().and_then(|header| {
                assert!(spoilt || header.body_bytes == body.len());
                let body = body.get(..header.body_bytes)?;
                Some((header, header.decode_body(body).ok()?))
            });
            let Some((_, frame)) = decoded.filter(|(header, _): &(FrameHeader, Frame)| {
                let blocks = packet.batch.as_ref().map_or(0, |b| b.blocks);
                assert!(spoilt || header.batch_blocks as usize == blocks);
                header.batch_blocks as usize == blocks
            }) else {
                assert!(spoilt, "a frame survives the codec");
                self.close(conn, side);
                return;
            };
            assert!(!packet.spoilt, "P9: a damaged frame gets in as {frame:?}");
            let from = c.nodes[1 - side];
            let snag = self
                .net
                .snags
                .iter()
                .position(|s| s.from == from && s.to == node && (s.kind)(&frame));
            if let Some(index) = snag
                && self.net.snags[index].then != Then::BreakAfter
            {
                match self.net.snags.remove(index).then {
                    Then::Hold => _ = self.net.cut.insert((from, node)),
                    _ => self.break_now(conn, side),
                }
                return;
            }
            let mut batch = None;
            if let Some(shared) = &packet.batch {
                let memory = replica.memory();
                let Some(buffer) = memory.adopt(Purpose::Peer, shared.clone()) else {
                    self.after(MS, Event::Readable(conn, side));
                    return;
                };
                batch = Some(buffer);
            }
            let mut frame = frame;
            if self.garbage_permille > self.rng.garbage.below(1000) {
                let blocks = batch.as_ref().map_or(0, Buffer::blocks);
                match garbled(frame, blocks, &mut self.rng.garbage) {
                    Some(garbage) => frame = garbage,
                    None => {
                        self.break_now(conn, side);
                        return;
                    }
                }
            }
            let c = &mut self.net.conns[conn];
            let packet = c.pipes[1 - side].pop_front().expect("it was just there");
            if packet.hold.is_some() && c.up[1 - side] {
                self.after(US, Event::Sent(conn, 1 - side));
            }
            self.hears(node, conn, side, &frame);
            let input = Input::Frame {
                conn: id,
                frame,
                batch,
            };
            replica.handle(now, input);
            if let Some(index) = snag {
                self.break_now(conn, side);
                self.net.snags.remove(index);
                return;
            }
        }
    }

    /// Hands a request in, or keeps it until there is capacity.
    pub(crate) fn hand_in(
        &mut self,
        node: usize,
        replica: &mut Replica<SimMemory>,
        now: Time,
        id: u64,
    ) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        // Drivers let nobody attach while volumes are made smaller, or ask for what there is not.
        let volume = id_of(request.volume);
        let fits = unit_offset(request.units.end) <= replica.limit(volume);
        if !self.nodes[node].accepting || !fits || replica.exports_wait() {
            self.drop_request(id);
            return;
        }
        let offset = unit_offset(request.units.start);
        let length = unit_offset(request.units.end) - offset;
        let bytes = u32::try_from(length).expect("1 MiB");
        let free = replica.capacity().requests > 0;
        let req = ReqId(id);
        if !free {
            self.nodes[node].waiting.push_back(id);
            return;
        }
        let op = match request.kind {
            Kind::Flush => {
                // A driver would look at the store between the two. Here it is looked at when the answer comes.
                let blocks = replica.volumes().blocks(volume).min(MAPPED_BLOCKS);
                request.map = map_of(replica, volume, blocks);
                ClientOp::Flush
            }
            Kind::Read => ClientOp::Read {
                volume,
                offset,
                length: bytes,
            },
            Kind::Zero { may_deallocate } => ClientOp::Zero {
                volume,
                offset,
                length,
                may_deallocate,
            },
            Kind::Write { owned } => {
                let data = content(request.stamp, request.units.clone());
                if !owned {
                    request.handed_in = true;
                    let data = WriteData::Borrowed(&data);
                    let op = ClientOp::Write {
                        volume,
                        offset,
                        length: bytes,
                        data,
                    };
                    replica.handle(now, Input::Client { req, op });
                    return;
                }
                let first = request.units.start / UNITS_PER_BLOCK;
                let end = request.units.end.div_ceil(UNITS_PER_BLOCK);
                let blocks = HEADER_BLOCKS + u32::try_from(end - first).expect("256 blocks");
                let Some(mut buffer) = replica.memory_mut().alloc(Purpose::Client, blocks) else {
                    self.nodes[node].waiting.push_back(id);
                    return;
                };
                let at = BLOCK_BYTES + usize::try_from(offset % BLOCK_BYTES_U64).expect("4096");
                buffer.bytes_mut()[at..at + data.len()].copy_from_slice(&data);
                ClientOp::Write {
                    volume,
                    offset,
                    length: bytes,
                    data: WriteData::Owned(buffer),
                }
            }
        };
        request.handed_in = true;
        replica.handle(now, Input::Client { req, op });
    }
}

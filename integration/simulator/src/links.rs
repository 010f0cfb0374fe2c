//! Frames on their way, and connections that come and go.

use replicator::journal::batch;
use replicator::memory::Buffer;
use replicator::types::*;
use replicator::view::Membership;
use replicator::wire::frame::{FRAME_BYTES_MAX, Frame, encode};

use crate::harness::*;
use crate::memory::{SimBuffer, flip};
use crate::net::{Net, Packet};

impl Cluster {
    pub(crate) fn send(
        &mut self,
        node: usize,
        conn: ConnId,
        frame: &Frame,
        batch: Option<SimBuffer>,
    ) {
        let (conn, side) = Net::find(conn);
        self.says(node, conn, side, frame);
        self.says_inconsistent(node, frame);
        if let &Frame::BlocksAsk {
            token,
            volume,
            block,
            blocks,
        } = frame
        {
            let asked = (usize::from(volume.0), block, blocks);
            self.net.conns[conn].asked[side].insert(token, asked);
        }
        if let Frame::Compare(compare) = frame {
            let blocks = u32::try_from(compare.sums.len()).expect("256 blocks");
            let asked = (usize::from(compare.volume.0), compare.block, blocks);
            self.net.conns[conn].asked[side].insert(compare.token, asked);
        }
        if let Frame::Blocks(blocks) = frame {
            let of = (blocks.token, blocks.through, blocks.sums.as_slice());
            self.gives_blocks(node, (conn, side), of, None, batch.as_ref());
        } else if let Frame::Compared(blocks) = frame {
            let of = (blocks.token, blocks.through, blocks.sums.as_slice());
            let given = Some([blocks.given, blocks.lost]);
            self.gives_blocks(node, (conn, side), of, given, batch.as_ref());
        } else if let Some(batch) = &batch {
            let harm = self.there_is_harm();
            self.watch.batch(node, batch.bytes(), "a peer", harm);
            if let Frame::Append { epoch, .. } = frame
                && let Ok(header) = batch::read_header(batch.bytes())
            {
                self.feeds(node, (conn, side), epoch.0, &header);
            }
        }
        if let Some(batch) = &batch
            && let Frame::Append { epoch, .. } = frame
            && batch::read_header(batch.bytes()).is_ok_and(|h| h.epoch == *epoch)
        {
            self.checks.saw(node, batch.bytes(), true);
        }
        if let Frame::Config(told) = frame {
            let at = told.config.at;
            let knows = self.nodes[node].knows;
            self.checks
                .tells_outsider(node, (at.epoch.0, at.seq.0), knows);
        }
        if let Some(batch) = &batch
            && let Ok(header) = batch::read_header(batch.bytes())
            && let Some(config) = batch::config_of(batch.bytes(), &header)
        {
            let to = self.net.conns[conn].nodes[1 - side];
            let life = self.checks.life_of(to);
            // A connection may stand for a while when the process at its other end is gone, and its disks are others; or when that end
            // was given up: by a node that became another life of itself since, and takes nothing from it.
            let c = &self.net.conns[conn];
            let given_up = c.gives_up[1 - side] || c.closed[1 - side];
            let heard = c.lives[1 - side] == self.nodes[to].life && !given_up;
            let append = heard && matches!(frame, Frame::Append { .. });
            // Also by a config that has not come to the journal yet: it goes to all whom it makes members.
            let peers = &self.nodes[node].view.peers;
            let has_part = config.is_member(life)
                || self.checks.newest_lists(node, life)
                || peers
                    .iter()
                    .any(|p| usize::from(p.node.0) == to && p.membership == Membership::Full);
            if append && !has_part && !self.nodes[to].forced {
                let knows = self.nodes[node].knows;
                self.checks
                    .tells_outsider(node, (header.epoch.0, header.first.0), knows);
            }
        }
        let blocks = batch.as_ref().map_or(0, Buffer::blocks);
        self.trace(|| {
            let to = self.net.conns[conn].nodes[1 - side];
            let header = batch
                .as_ref()
                .and_then(|b| batch::read_header(b.bytes()).ok());
            let of = header.map_or(String::new(), |h| {
                format!(" of {} to {}", h.first.0, h.last().0)
            });
            format!("{node} to {to} on {conn}: {frame:?} and {blocks} blocks{of}")
        });
        let mut bytes = vec![0; FRAME_BYTES_MAX];
        let length = encode(frame, blocks, &mut bytes);
        bytes.truncate(length);
        self.hash.number(self.now);
        self.hash.bytes(&bytes);
        let link = self.net.link(conn, side);
        let mean = self.options.net_ns * self.net.slow.get(&link).copied().unwrap_or(1);
        let delay = if self.rng.net.chance(2) {
            mean * 20
        } else {
            self.rng.net.between(mean / 4, mean * 2)
        };
        let c = &mut self.net.conns[conn];
        if !c.up[side] || c.closed[side] {
            return;
        }
        let way = (node, c.nodes[1 - side]);
        *self.net.sent_blocks.entry(way).or_default() += u64::from(blocks);
        let due = (self.now + delay).max(c.pipes[side].back().map_or(0, |p| p.due));
        let mut spoilt = false;
        let mut shared = batch.as_ref().map(SimBuffer::share);
        let forgery = self.net.forge.get(&link);
        if let Some((forged, batch)) = forgery.and_then(|f| f.of(frame, shared.as_ref())) {
            self.net.forge.remove(&link);
            self.harm = true;
            self.net.conns[conn].spoilt = true;
            bytes.resize(FRAME_BYTES_MAX, 0);
            let length = encode(&forged, blocks, &mut bytes);
            bytes.truncate(length);
            shared = batch;
        }
        if let Some(spoil) = self.net.spoil.get(&link).copied()
            && (shared.is_some() || !spoil.batch)
        {
            self.net.spoil.remove(&link);
            self.harm = true;
            self.net.conns[conn].spoilt = true;
            match &mut shared {
                Some(shared) if spoil.batch => shared.flip(spoil.bit),
                _ => {
                    flip(&mut bytes, spoil.bit);
                    spoilt = true;
                }
            }
        }
        let c = &mut self.net.conns[conn];
        let mut packet = Packet {
            due,
            bytes,
            batch: shared,
            spoilt,
            hold: batch,
        };
        let room = c.pipes[side].len() < 8;
        if packet.hold.is_some() && room {
            packet.hold = None;
            let wait = self.rng.net.below(200 * US);
            self.after(wait, Event::Sent(conn, side));
        }
        self.net.conns[conn].pipes[side].push_back(packet);
        self.at(due, Event::Readable(conn, 1 - side));
    }

    /// One end of a connection is closed by its node.
    pub(crate) fn close(&mut self, conn: usize, side: usize) {
        self.net.conns[conn].gives_up[side] = true;
        let wait = self.rng.net.below(MS);
        self.after(wait, Event::Closed(conn, side));
        self.hang_up(conn, 1 - side);
    }

    /// A connection breaks at once: what is under way on it is lost. Both ends notice soon, if they can.
    pub(crate) fn break_now(&mut self, conn: usize, side: usize) {
        let c = &mut self.net.conns[conn];
        c.up = [false; 2];
        c.pipes.iter_mut().for_each(|pipe| pipe.clear());
        self.close(conn, side);
    }

    /// The other end will notice.
    pub(crate) fn hang_up(&mut self, conn: usize, side: usize) {
        let wait = self.rng.net.below(5 * MS);
        self.after(wait, Event::Closed(conn, side));
    }

    pub(crate) fn connection_closed(&mut self, conn: usize, side: usize) {
        let c = &mut self.net.conns[conn];
        if c.closed[side] {
            return;
        }
        let (node, other) = (c.nodes[side], c.nodes[1 - side]);
        // Nothing tells this end while the other can not be heard, unless it closes by itself.
        if !c.gives_up[side] && !self.net.passes(other, node) {
            self.after(20 * MS, Event::Closed(conn, side));
            return;
        }
        let c = &mut self.net.conns[conn];
        c.closed[side] = true;
        c.pipes[side].iter_mut().for_each(|p| p.hold = None);
        if c.lives[side] == self.nodes[node].life {
            self.post(node, Happening::PeerDown(conn, side));
        }
    }

    pub(crate) fn connection_up(&mut self, conn: usize, side: usize) {
        let c = &mut self.net.conns[conn];
        let node = c.nodes[side];
        if c.closed[side] || c.lives[side] != self.nodes[node].life {
            return;
        }
        c.up[side] = true;
        self.post(node, Happening::PeerUp(conn, side));
        self.after(0, Event::Readable(conn, side));
    }

    pub(crate) fn dial(&mut self, a: usize, b: usize) {
        let wait = self.rng.net.between(20 * MS, 80 * MS);
        self.after(wait, Event::Dial(a, b));
        let up =
            |n: usize| self.nodes[n].replica.is_some() && self.nodes[n].frozen_until <= self.now;
        let wanted = self.nodes[a].wanted[b] && self.nodes[b].wanted[a];
        let passes = self.net.passes(a, b) && self.net.passes(b, a);
        if !up(a) || !up(b) || !wanted || !passes || self.net.connected(a, b) {
            return;
        }
        let lives = [self.nodes[a].life, self.nodes[b].life];
        let conn = self.net.open([a, b], lives);
        for side in 0..2 {
            let wait = self.rng.net.below(4 * self.options.net_ns);
            self.after(wait, Event::PeerUp(conn, side));
        }
    }
}

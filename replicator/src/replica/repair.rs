//! Bad blocks: what a store gives back is not what was written there, or it gives nothing. The block is fetched from a
//! peer, put in its place, and given to whoever waits for it; a disk that does not keep it is not given it again and again, and its
//! readers have the peer's copy each time. Where no peer has a good copy, whoever asked gets an error for
//! that block, and nothing else is harmed.
//!
//! Which of the two is wrong, the store or the table of checksums, is for the peer's copy to say: it is right if it fits the
//! sum that is known here, and also if the peer's newest change of that neighbourhood is no newer than the one known here,
//! and it has everything up to that.

use std::collections::VecDeque;

use super::{Pending, Replica};
use crate::io::*;
use crate::memory::{Buffer, Memory};
use crate::replica::peers::Feed;
use crate::store::block_set::BlockSet;
use crate::store::sums::BlockSum;
use crate::types::*;
use crate::wire::frame::{Blocks, Frame, Mend};

/// Bad blocks being seen to at once, each with one question; a resync asks besides. More are found again later.
const REPAIRS_MAX: usize = 12;
const _: () = assert!(REPAIRS_MAX + super::resync::ASKS_MAX <= super::serve::ASKS_MAX);

/// A peer that may soon be able to answer is waited for this long.
const PATIENCE_NS: u64 = 2_000_000_000;

/// A block that is bad again so soon after it was mended is not put in place once more: its disk does not keep what it is given.
const AGAIN_NS: u64 = 60_000_000_000;

/// How often it is mended in that time.
const MENDED_MAX: usize = 3;

/// A peer that has not answered for so long is slow: another one is asked, if there is one.
const SLOW_NS: u64 = 200_000_000;

/// So many of the blocks that were mended last are remembered for that.
const REMEMBERED_MAX: usize = 256;

/// A block of which nobody had a good copy is not asked for again within this, because a peer asks for it: that peer has the same
/// bad block, and would be asked.
const VAIN_NS: u64 = 1_000_000_000;

/// One that was asked and is slow is waited for this long.
const LATE_NS: u64 = 3 * PATIENCE_NS;

/// So many bad blocks are told of one by one.
const TOLD_MAX: u64 = 20;

#[derive(Debug)]
enum State<B> {
    Wanted,
    Asked {
        conn: ConnId,
        at: Time,
    },
    /// A good copy; `None` for zeroes.
    Have(Option<B>, BlockSum),
    Writing(Option<B>, BlockSum),
    Flushing(Option<B>, BlockSum),
    Mended(Option<B>),
}

#[derive(Debug)]
struct Repair<B> {
    volume: VolumeId,
    block: u64,
    state: State<B>,
    /// Peers that could not help, by their number.
    tried: u8,
    /// Those who could not help were asked once more: one may have been busy with a resync of its own.
    again: bool,
    /// Those that were asked and have not answered for long, on the connection that still stands.
    slow: u8,
    /// The name of the question, whoever is asked.
    token: u64,
    since: Time,
    /// A verification found that the right copy has this sum, by the image of that record.
    wanted: Option<(BlockSum, Seq)>,
    /// Who could help has enough questions to answer.
    queues: bool,
    /// It was mended again and again, and its disk does not keep it.
    worn: bool,
}

impl<B> Repair<B> {
    /// Whether an answer can still come from somebody who is slow.
    fn is_owed(&self) -> bool {
        self.slow & !self.tried != 0 || self.queues
    }
}

/// What is being done about bad blocks, and what was.
#[derive(Debug)]
pub(super) struct Repairs<B> {
    list: Vec<Repair<B>>,
    /// What was mended last, and when.
    recent: VecDeque<(VolumeId, u64, Time)>,
    /// What nobody had a good copy of, and when it was asked for last.
    vain: VecDeque<(VolumeId, u64, Time)>,
    /// Bad blocks found since the start.
    pub(super) found: u64,
    /// Those that were mended.
    pub(super) mended: u64,
    /// Those of which no good copy was there.
    pub(super) lost: u64,
    /// How often a disk was found not to keep what it is given, and when that was last.
    worn: u64,
    worn_at: Option<Time>,
}

impl<B> Repairs<B> {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::with_capacity(REPAIRS_MAX),
            recent: VecDeque::with_capacity(REMEMBERED_MAX),
            vain: VecDeque::with_capacity(REMEMBERED_MAX),
            found: 0,
            mended: 0,
            lost: 0,
            worn: 0,
            worn_at: None,
        }
    }

    /// Whether a block of a range is being seen to.
    pub(super) fn concern(&self, volume: VolumeId, start: u64, end: u64) -> bool {
        self.list
            .iter()
            .any(|r| r.volume == volume && (start..end).contains(&r.block))
    }

    /// The same, but for those that are there already.
    pub(super) fn concern_other_than(
        &self,
        volume: VolumeId,
        start: u64,
        end: u64,
        given: BlockSet,
    ) -> bool {
        let there = |r: &Repair<B>| {
            let n = u32::try_from(r.block - start).expect("in the range of a request");
            given.has(n)
        };
        let mut inside = self.list.iter().filter(|r| r.volume == volume);
        inside.any(|r| (start..end).contains(&r.block) && !there(r))
    }

    /// Whether a disk was found, not long ago, not to keep what it is given.
    pub(super) fn found_worn(&self, now: Time) -> bool {
        self.worn_at.is_some_and(|at| now.since(at) < AGAIN_NS)
    }

    /// Whether a disk does not keep this block: it was mended again and again.
    pub(super) fn is_worn(&self, volume: VolumeId, block: u64, now: Time) -> bool {
        let same = |&&(v, b, at): &&(VolumeId, u64, Time)| {
            (v, b) == (volume, block) && now.since(at) < AGAIN_NS
        };
        self.recent.iter().filter(same).count() >= MENDED_MAX
    }

    /// Whether a good copy of this block was sought in vain, not long ago.
    pub(super) fn is_lost(&self, volume: VolumeId, block: u64, now: Time) -> bool {
        self.was_vain(volume, block, now, AGAIN_NS) && !self.concern(volume, block, block + 1)
    }

    fn was_vain(&self, volume: VolumeId, block: u64, now: Time, within_ns: u64) -> bool {
        let same = |&(v, b, at): &(VolumeId, u64, Time)| {
            (v, b) == (volume, block) && now.since(at) < within_ns
        };
        self.vain.iter().any(same)
    }

    /// Whether there is nothing to be seen to.
    pub(super) fn is_idle(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether a store is being written to.
    pub(super) fn write(&self) -> bool {
        self.list
            .iter()
            .any(|r| matches!(r.state, State::Writing(..) | State::Flushing(..)))
    }

    /// The stores become others.
    pub(super) fn forget(&mut self) {
        self.list.clear();
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        let due = self.list.iter().filter_map(|r| match r.state {
            State::Wanted if r.is_owed() => Some(r.since.after(LATE_NS)),
            State::Wanted => Some(r.since.after(PATIENCE_NS)),
            State::Asked { at, .. } => Some(at.after(SLOW_NS)),
            _ => None,
        });
        due.min()
    }
}

/// Of a bounded list of what happened, the oldest is forgotten.
fn remember(list: &mut VecDeque<(VolumeId, u64, Time)>, what: (VolumeId, u64, Time)) {
    if list.len() == REMEMBERED_MAX {
        list.pop_front();
    }
    list.push_back(what);
}

impl<M: Memory> Replica<M> {
    /// A block that a peer asked for is not what it should be.
    pub(super) fn found_bad_for_peer(&mut self, volume: VolumeId, block: u64) {
        if !self.repairs.was_vain(volume, block, self.now, VAIN_NS) {
            self.found_bad(volume, block);
        }
    }

    /// A block of a store is not what it should be.
    pub(super) fn found_bad(&mut self, volume: VolumeId, block: u64) {
        if self.repairs.concern(volume, block, block + 1) || self.repairs.list.len() >= REPAIRS_MAX
        {
            return;
        }
        let worn = self.repairs.is_worn(volume, block, self.now);
        let name = self.volume_name(volume);
        if worn {
            self.repairs.worn += 1;
            self.repairs.worn_at = Some(self.now);
            if self.repairs.worn <= TOLD_MAX {
                self.log_error(format!(
                    "block {block} of volume {name} was mended, and is bad again: its disk does not keep what it is given. Whoever reads \
                     it gets a peer's copy; replace that disk"
                ));
            }
        } else {
            self.repairs.found += 1;
            if self.repairs.found <= TOLD_MAX {
                self.log_error(format!(
                    "block {block} of volume {name} is bad: the store does not give back what was written there; a peer is asked \
                     for it. See to that disk"
                ));
            }
        }
        let token = self.next_token();
        self.repairs.list.push(Repair {
            volume,
            block,
            state: State::Wanted,
            tried: 0,
            again: false,
            slow: 0,
            token,
            since: self.now,
            wanted: None,
            queues: false,
            worn,
        });
    }

    /// What is recorded here of a block is not what the right copy is, by the image of a record: that is fetched, unless
    /// something newer is known here.
    pub(super) fn mend_block(&mut self, mend: Mend) {
        let Mend {
            volume,
            block,
            as_of,
            sum,
        } = mend;
        let is_there = volume.0 < self.sums.volumes() && block < self.sums.blocks(volume);
        if !is_there
            || sum == BlockSum::UNKNOWN
            || self.repairs.concern(volume, block, block + 1)
            || self.repairs.list.len() >= REPAIRS_MAX
            || self.sums.sum(volume, block) == sum
            || self.sums_as_of() < as_of
            || self.newest_change(volume, block) > as_of
        {
            return;
        }
        self.repairs.found += 1;
        if self.repairs.found <= TOLD_MAX {
            let name = self.volume_name(volume);
            self.log_error(format!(
                "block {block} of volume {name} is another one than on the nodes that are right: a peer is asked for it"
            ));
        }
        let token = self.next_token();
        self.repairs.list.push(Repair {
            volume,
            block,
            state: State::Wanted,
            tried: 0,
            again: false,
            slow: 0,
            token,
            since: self.now,
            wanted: Some((sum, as_of)),
            queues: false,
            worn: false,
        });
    }

    /// Copies go to whoever waits for them, once they are in place, or will not be.
    pub(super) fn pump_lending(&mut self) {
        let mut index = 0;
        while let Some(repair) = self.repairs.list.get(index) {
            let (volume, block, worn) = (repair.volume, repair.block, repair.worn);
            let data = match &repair.state {
                State::Have(data, _) if worn => data.clone(),
                State::Mended(data) => data.clone(),
                _ => {
                    index += 1;
                    continue;
                }
            };
            // Without memory for somebody a block that is in place is read from there.
            let rewritten = self.rewritten(volume, block);
            if worn && !rewritten {
                self.serve_lent(volume, block, data.as_ref());
            }
            let lent = rewritten || self.lend(volume, block, data.as_ref());
            if lent || !worn {
                self.repairs.list.swap_remove(index);
            } else {
                index += 1;
            }
        }
    }

    pub(super) fn pump_repairs(&mut self) {
        let mut index = 0;
        while index < self.repairs.list.len() {
            let repair = &self.repairs.list[index];
            let (volume, block) = (repair.volume, repair.block);
            let moot = self.rewritten(volume, block);
            // What the right copy is was known of an older record.
            let newer = |(_, as_of): (BlockSum, Seq)| self.newest_change(volume, block) > as_of;
            let outdated = repair.wanted.is_some_and(newer);
            let goes = match repair.state {
                State::Wanted | State::Asked { .. } if moot || outdated => true,
                State::Asked { conn, at, .. } if self.now.since(at) >= SLOW_NS => {
                    let node = self.peer_of(conn).map_or(0, |p| p.node.0);
                    self.repairs.list[index].slow |= 1 << node;
                    !self.ask_for(index)
                }
                State::Wanted => !self.ask_for(index),
                State::Have(..) if moot => true,
                State::Have(..)
                    if !repair.worn
                        && self.applier.is_idle()
                        && !self.repairs.write()
                        && !self.resync_has_stores()
                        && !self.is_renewing() =>
                {
                    self.put_in_place(index);
                    false
                }
                _ => false,
            };
            if goes {
                self.repairs.list.swap_remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Whether a record that the stores lack is about this block: what they hold does not matter then.
    pub(super) fn rewritten(&self, volume: VolumeId, block: u64) -> bool {
        if self.leader.is_some() {
            return self
                .overlay
                .first_overlap(volume, block, block + 1)
                .is_some();
        }
        let end = self.log.next_number();
        self.log
            .unapplied_records(end)
            .any(|(number, seq, record)| {
                super::applier::extent_of(record, number, seq)
                    .is_some_and(|e| e.volume == volume && e.start <= block && block < e.end())
            })
    }

    /// Asks the next peer. `false` if there is none, and none to wait for.
    fn ask_for(&mut self, index: usize) -> bool {
        let repair = &self.repairs.list[index];
        let (volume, block, token) = (repair.volume, repair.block, repair.token);
        let (tried, slow) = (repair.tried, repair.slow);
        let changed = self.newest_change(volume, block);
        let leading = self.leader.is_some();
        let (mut waits, mut queues) = (false, false);
        let mut ask = None;
        for peer in &self.peers {
            let Some(conn) = peer.conn else { continue };
            if (tried | slow) & 1 << peer.node.0 != 0 || self.config.is_witness(peer.node) {
                continue;
            }
            let able = if leading {
                matches!(peer.feed, Feed::On { .. }) && !peer.staging && peer.acked >= changed
            } else {
                self.following.is_some_and(|f| f.conn == conn)
            };
            // What it was asked before and has not answered counts, also where nobody waits for that any more.
            if able && peer.asked < REPAIRS_MAX {
                ask = Some(conn);
                break;
            }
            queues |= able;
            // What it said of itself when it came may be long past: whoever is fed has what there is in a moment.
            let fed = leading && matches!(peer.feed, Feed::On { .. });
            let report = peer.report.as_ref();
            waits |= fed || report.is_none_or(|r| !r.damaged && !r.fresh);
        }
        self.repairs.list[index].queues = queues;
        if let Some(conn) = ask {
            let at = self.now;
            if let Some(peer) = self.peer_of(conn) {
                peer.asked += 1;
            }
            self.repairs.list[index].state = State::Asked { conn, at };
            self.send(
                conn,
                Frame::BlocksAsk {
                    token,
                    volume,
                    block,
                    blocks: 1,
                },
            );
            return true;
        }
        if let State::Asked { at, .. } = &mut self.repairs.list[index].state {
            // Nobody else can help: whoever was asked may answer yet, or its connection ends.
            *at = self.now;
            return true;
        }
        let repair = &self.repairs.list[index];
        let age = self.now.since(repair.since);
        if (waits && age < PATIENCE_NS) || (repair.is_owed() && age < LATE_NS) {
            return true;
        }
        let repair = &mut self.repairs.list[index];
        if tried != 0 && !std::mem::replace(&mut repair.again, true) {
            repair.tried = 0;
            return self.ask_for(index);
        }
        // What is here need not be bad: it is read as before, and the verification compares it anew.
        if repair.wanted.is_some() {
            return false;
        }
        self.lose(volume, block, "no peer has a good copy now");
        false
    }

    /// Nothing can be done about a block: whoever waits for it gets an error.
    fn lose(&mut self, volume: VolumeId, block: u64, why: &str) {
        self.repairs.lost += 1;
        remember(&mut self.repairs.vain, (volume, block, self.now));
        if self.repairs.lost <= TOLD_MAX {
            let name = self.volume_name(volume);
            self.log_error(format!(
                "block {block} of volume {name} is bad and {why}: whoever reads it gets an error"
            ));
        }
        self.fail_reads_of(volume, block);
        self.serve_lost(volume, block);
    }

    /// An answer that may be for a repair; `false` if it is not.
    pub(super) fn got_repair(
        &mut self,
        conn: ConnId,
        blocks: &Blocks,
        data: Option<&M::Buffer>,
    ) -> bool {
        if let Some(peer) = self.peer_of(conn) {
            peer.asked = peer.asked.saturating_sub(1);
        }
        let found = self.repairs.list.iter().position(|r| {
            matches!(r.state, State::Asked { .. } | State::Wanted) && r.token == blocks.token
        });
        let Some(index) = found else { return false };
        let node = self.peer_of(conn).map_or(0, |p| p.node.0);
        let repair = &self.repairs.list[index];
        let (volume, block) = (repair.volume, repair.block);
        let own = self.sums.sum(volume, block);
        let changed = self.newest_change(volume, block);
        let good = match (blocks.sums.first(), data) {
            (Some(&BlockSum::ZERO), _) => Some((None, BlockSum::ZERO)),
            (Some(&sum), Some(data)) if data.blocks() == 1 => {
                let sound = sum.admits(volume, block, data.bytes()) || planted!(RepairTrusted);
                sound.then(|| {
                    (
                        Some(data.clone()),
                        BlockSum::of(volume, block, data.bytes()),
                    )
                })
            }
            _ => None,
        };
        let wanted = repair.wanted;
        let as_of = blocks.changed <= changed && blocks.through >= changed;
        let fits = |(data, sum): &(Option<M::Buffer>, BlockSum)| {
            if let Some((right, at)) = wanted {
                let zeroes = [0; BLOCK_BYTES];
                let bytes = data.as_ref().map_or(zeroes.as_slice(), |d| d.bytes());
                return changed <= at && (*sum == right || right.admits(volume, block, bytes));
            }
            let same = match data {
                Some(data) => own != BlockSum::UNKNOWN && own.admits(volume, block, data.bytes()),
                None => own == *sum,
            };
            same || as_of || planted!(RepairTrusted)
        };
        let repair = &mut self.repairs.list[index];
        match good.filter(fits) {
            Some((data, sum)) => repair.state = State::Have(data, sum),
            None => {
                repair.tried |= 1 << node;
                // Whoever was asked after it may still help.
                if !matches!(repair.state, State::Asked { conn: c, .. } if c != conn) {
                    repair.state = State::Wanted;
                }
            }
        }
        true
    }

    /// Whom was asked is gone.
    pub(super) fn repairs_lose(&mut self, conn: ConnId, node: NodeId) {
        for repair in &mut self.repairs.list {
            repair.slow &= !(1 << node.0);
            if matches!(repair.state, State::Asked { conn: c, .. } if c == conn) {
                repair.state = State::Wanted;
            }
        }
    }

    fn put_in_place(&mut self, index: usize) {
        let repair = &mut self.repairs.list[index];
        let (volume, offset) = (repair.volume, repair.block * BLOCK_BYTES_U64);
        let State::Have(data, sum) = std::mem::replace(&mut repair.state, State::Wanted) else {
            return;
        };
        repair.state = State::Writing(data.clone(), sum);
        let (volume, block) = (volume, repair.block);
        let op = match data {
            Some(data) => {
                let mut parts = Parts::new();
                parts.push(data);
                DiskOp::StoreWrite {
                    volume,
                    offset,
                    parts,
                }
            }
            None => DiskOp::StoreZero {
                volume,
                offset,
                length: BLOCK_BYTES_U64,
                may_deallocate: true,
            },
        };
        self.disk(Pending::Repair { volume, block }, op);
    }

    pub(super) fn repair_written(
        &mut self,
        volume: VolumeId,
        block: u64,
        result: Result<(), DiskError>,
    ) {
        if let Err(error) = result {
            self.fail("a store can not be written", Some(error));
            return;
        }
        let found = self
            .repairs
            .list
            .iter()
            .position(|r| r.volume == volume && r.block == block);
        let Some(index) = found else { return };
        let state = &mut self.repairs.list[index].state;
        match std::mem::replace(state, State::Wanted) {
            State::Writing(data, sum) => {
                *state = State::Flushing(data, sum);
                self.disk(
                    Pending::Repair { volume, block },
                    DiskOp::StoreFlush { volume },
                );
            }
            State::Flushing(data, sum) => {
                *state = State::Mended(data);
                self.repairs.mended += 1;
                remember(&mut self.repairs.recent, (volume, block, self.now));
                self.applier.generation += 1;
                if self.sums.sum(volume, block) != sum {
                    self.sums.set(volume, block, sum);
                }
                if self.repairs.mended <= TOLD_MAX {
                    let name = self.volume_name(volume);
                    self.log_warn(format!(
                        "block {block} of volume {name} is mended with a peer's copy"
                    ));
                }
            }
            other => *state = other,
        }
    }
}

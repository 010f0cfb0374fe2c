//! What is known of a resync that is under way: what has come, what was asked for, and what is done next.

use super::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Not asked for at the moment: the Primary is away, or feeds this node otherwise.
    Rest,
    /// What this node knows to be committed has to be in its stores first.
    Settle,
    /// There is no room to stage it: the superblock is told that the stores are no image from here on.
    Spoil(MetaVersion),
    /// Room for other volumes is made.
    Room,
    /// The stage is emptied: operations left.
    Clear(u32),
    /// The Primary was asked to begin.
    Ask,
    Run,
    /// Blocks that may be written in place: nothing may be known of them then, durably. The pages are written, then flushed.
    Open(Open),
    Save(Save),
    /// The image is being switched.
    Mark(MetaVersion),
    /// The stores are made those of the volumes that were brought, and nothing is known of what the places had that others get:
    /// operations left for that.
    Stores(u32),
    Merge,
    /// Everything is in the stores: this is made durable. Operations left.
    Flush(u32),
    /// The superblock is told.
    End(MetaVersion),
    /// The stage is emptied: operations left.
    Last(u32),
    /// There is no room for more; it is tried again then.
    Full(Time),
}

/// Making durable what is staged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Save {
    /// Flushes left.
    Data(u32),
    Pages,
    Sums,
    Mark(MetaVersion),
}

/// Making durable that nothing is known of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Open {
    Pages,
    Sums,
}

/// Blocks that were asked for, and what this node has of them.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) token: u64,
    pub(super) volume: VolumeId,
    pub(super) block: u64,
    pub(super) blocks: u32,
    pub(super) has: ArrayVec<BlockSum, ASKED_BLOCKS_MAX>,
}

/// Which record changed some groups last, as the Primary says; worked off from the front.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) volume: VolumeId,
    pub(super) group: u64,
    pub(super) changed: Box<Changed>,
    pub(super) next: usize,
    /// What was known of the blocks of these groups before they were opened to be written in place.
    pub(super) had: Vec<BlockSum>,
}

/// A resync.
#[derive(Debug)]
pub(in crate::replica) struct Resync {
    /// Which one, since the start.
    pub(super) serial: u64,
    pub(super) stage: SumTable,
    /// The last record in the stores when it began: what is staged is to be laid over those, and over no newer ones.
    pub(super) base: Seq,
    pub(super) phase: Phase,
    /// What comes goes straight to the stores: they are no image until it is whole (protocol C3).
    pub(super) in_place: bool,
    /// There was no room to stage it.
    pub(super) no_room: bool,
    /// The source's volumes are others than those of the stores. Then all of them are staged, whatever the stores are, and nothing
    /// of that is kept over a restart.
    pub(super) other_volumes: bool,
    /// Whom this node pulls from.
    pub(super) source: Option<ConnId>,
    /// Whose stream it is that goes on after `at`: an answer to the newest question.
    pub(super) stream: Option<ConnId>,
    /// The Primary asked for another one while this one was ending.
    pub(super) again: Option<ConnId>,
    pub(super) token: u64,
    /// The last record staged.
    pub(super) at: Tail,
    pub(super) committed: Seq,
    /// The record after which the stream began that reaches `at` without a gap. A group is known if what is known of it is
    /// not older.
    pub(super) since: Seq,
    /// The newest record of which something may be staged.
    pub(super) through: Seq,
    pub(super) config: Option<ConfigAt>,
    pub(super) epochs: EpochHistory,
    /// The volumes that it is of; those of this node's stores until the Primary has told its own.
    pub(super) volumes: TableAt,
    /// No group before this one has to be asked about.
    pub(super) scan: (VolumeId, u64),
    pub(super) known: Option<Known>,
    pub(super) asked_about: Option<(u64, VolumeId, u64)>,
    pub(super) asks: ArrayVec<Ask, ASKS_MAX>,
    /// Not to ask before.
    pub(super) retry_at: Option<Time>,
    /// Operations of what is being staged, and where they write.
    pub(super) left: u32,
    pub(super) writing: ArrayVec<(VolumeId, u64, u64), 64>,
    /// The next record of the batch that is being staged.
    pub(super) record: usize,
    pub(super) unsaved_bytes: u64,
    pub(super) saved_at: Time,
    /// Where the merge is.
    pub(super) cursor: (VolumeId, u64),
    /// The stage did not give all: before here it is read block by block.
    pub(super) singly_before: (VolumeId, u64),
    pub(super) total_bytes: u64,
}

impl Resync {
    pub(super) fn is_known(&self, volume: VolumeId, group: u64) -> bool {
        let as_of = self.stage.changed(volume, group);
        as_of > Seq(0) && as_of >= self.since
    }

    pub(super) fn mark(&self, merging: bool) -> superblock::Resync {
        superblock::Resync {
            staged: self.at.id,
            blocks: self.at.blocks,
            checksum: self.at.checksum,
            committed: self.committed,
            since: self.since,
            written: self.stage.written(),
            merging,
            in_place: self.in_place && !(merging && self.other_volumes),
            sizes: self.sizes(),
            moved: 0,
        }
    }

    /// What the superblock says of it before it is the image.
    pub(super) fn saved(&self) -> superblock::Resync {
        if self.in_place && self.other_volumes {
            superblock::Resync::INCONSISTENT
        } else {
            self.mark(false)
        }
    }

    /// Whether what comes goes to the stores.
    pub(super) fn is_direct(&self) -> bool {
        self.in_place && !self.other_volumes
    }

    /// The sizes of the volumes that are staged.
    pub(super) fn sizes(&self) -> [u64; VOLUMES_MAX] {
        std::array::from_fn(|v| {
            let volume = u16::try_from(v).expect("16 volumes");
            if volume < self.stage.volumes() {
                self.stage.blocks(VolumeId(volume)) * BLOCK_BYTES_U64
            } else {
                0
            }
        })
    }

    /// Whether what is staged is of volumes of these sizes.
    pub(super) fn is_of(&self, volumes: &Volumes) -> bool {
        let own = self.sizes();
        let theirs = volumes.sizes().chain(std::iter::repeat(0));
        own.iter().copied().eq(theirs.take(VOLUMES_MAX))
    }

    /// Nothing is staged, of other volumes.
    pub(super) fn begin_anew(&mut self, volumes: TableAt) {
        self.stage = SumTable::new(Table::Staged, volumes.volumes.sizes());
        self.volumes = volumes;
        self.at = Tail::default();
        self.committed = Seq(0);
        self.since = Seq(0);
        self.through = Seq(0);
        self.unsaved_bytes = 0;
        self.total_bytes = 0;
        self.cursor = (VolumeId(0), 0);
        self.stream = None;
        self.phase = Phase::Room;
    }

    /// Forgets what is staged of records after `common`.
    pub(super) fn forget_after(&mut self, common: Seq) {
        for v in 0..self.stage.volumes() {
            let volume = VolumeId(v);
            for group in 0..self.stage.groups(volume) {
                if self.stage.changed(volume, group) > common {
                    self.stage.forget(volume, group);
                }
            }
        }
        self.through = self.through.min(common);
    }

    /// What comes after something during which the source may have changed.
    pub(super) fn goes_on(&self) -> Phase {
        match self.source {
            Some(_) if self.source == self.stream => Phase::Run,
            // Another Primary, or another connection, came meanwhile.
            Some(_) => Phase::Settle,
            None => Phase::Rest,
        }
    }

    /// Whether what is staged should be made durable.
    pub(super) fn save_is_due(&self, lease_ns: u64, now: Time) -> bool {
        self.unsaved_bytes >= SAVE_BYTES
            || (self.unsaved_bytes > 0 && now.since(self.saved_at) >= SAVE_LEASES * lease_ns)
    }

    /// Whether a range may be written now: writes that overlap wait for each other.
    pub(super) fn may_write(&self, volume: VolumeId, start: u64, end: u64) -> bool {
        let overlaps = |w: &(VolumeId, u64, u64)| w.0 == volume && w.1 < end && start < w.2;
        !self.writing.iter().any(overlaps) && !self.writing.is_full()
    }

    /// What was asked for did not come: it is asked about again.
    pub(super) fn asks_again(&mut self, index: usize) {
        let ask = self.asks.remove(index);
        self.scan = self.scan.min((ask.volume, ask.block / GROUP_BLOCKS));
        self.known = None;
        // An answer that is still to come would put the scan behind these groups.
        self.asked_about = None;
    }

    /// Bytes of groups that are not known.
    pub(super) fn left_bytes(&self) -> u64 {
        let mut groups = 0;
        let (first, from) = self.scan;
        for v in first.0..self.stage.volumes() {
            let volume = VolumeId(v);
            let from = if volume == first { from } else { 0 };
            groups += self.stage.groups(volume).saturating_sub(from);
        }
        let coming: u64 = self.asks.iter().map(|a| u64::from(a.blocks)).sum();
        (groups * GROUP_BLOCKS + coming) * BLOCK_BYTES_U64
    }
}

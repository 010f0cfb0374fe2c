//! What a volume may hold: a model of every byte that was ever written to it.
//!
//! Each write has a [`Stamp`]; the stamp and a byte's place in the volume decide the byte, so nothing
//! that was written has to be kept. The oracle keeps, for every range of a volume, the set of contents
//! that are legal there. Usually that is one. It is more while writes are in flight, after a connection
//! broke with writes unanswered (each of them may have happened or not, block by block), and where
//! two writes of the same range overlapped in time (either may be the last).
//!
//! The rule: a content leaves the set when a write that was *issued after* that content's own answer
//! (or after its connection was given up) is *acknowledged*. So an acknowledged write that is not
//! readable later, or an overwritten one that is readable again, is a [`Loss`].

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// The unit that the device writes as a whole: inside it an unanswered write happened or did not.
pub const BLOCK_BYTES: u64 = 4096;

/// The name of one write: the bytes follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The stream of writes that it belongs to.
    pub stream: u32,
    /// Its number within the stream.
    pub counter: u64,
}

impl Stamp {
    /// Writes the bytes that this write puts at `offset..offset + out.len()` of its volume.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let key = mix(self.counter ^ (u64::from(self.stream) << 40));
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let word = word(key, at / 8).to_le_bytes();
            let skip = (at % 8) as usize;
            let take = rest.len().min(8 - skip);
            let (head, tail) = rest.split_at_mut(take);
            head.copy_from_slice(&word[skip..skip + take]);
            rest = tail;
            at += take as u64;
        }
    }

    /// Whether `data`, read at `offset`, is what this write put there.
    #[must_use]
    pub fn matches(self, offset: u64, data: &[u8]) -> bool {
        let key = mix(self.counter ^ (u64::from(self.stream) << 40));
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let word = word(key, at / 8).to_le_bytes();
            let skip = (at % 8) as usize;
            let take = rest.len().min(8 - skip);
            let (head, tail) = rest.split_at(take);
            if *head != word[skip..skip + take] {
                return false;
            }
            rest = tail;
            at += take as u64;
        }
        true
    }
}

/// What a range holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes: never written, trimmed, or written as zeroes.
    Zeroes,
    /// The bytes of a write.
    Written(Stamp),
}

impl Content {
    fn matches(self, offset: u64, data: &[u8]) -> bool {
        match self {
            Content::Zeroes => is_zero(data),
            Content::Written(stamp) => stamp.matches(offset, data),
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Zeroes => f.write_str("zeroes"),
            Content::Written(stamp) => write!(f, "write {}/{}", stamp.stream, stamp.counter),
        }
    }
}

/// Names a write between [`Oracle::begin`] and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(u64);

/// A point in the oracle's own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

/// A range that does not hold what it has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What would have been right.
    pub legal: Vec<Content>,
    /// What is there, as far as it can be told.
    pub found: Found,
}

/// What was found instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing but zeroes.
    Zeroes,
    /// What was there before the newest acknowledged write: stale data.
    Stale(Content),
    /// Bytes that nobody wrote there lately; the first eight of them.
    Other([u8; 8]),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {}: should be ", self.length, self.offset)?;
        for (i, content) in self.legal.iter().enumerate() {
            write!(f, "{}{content}", if i == 0 { "" } else { " or " })?;
        }
        match self.found {
            Found::Zeroes => f.write_str(", are zeroes"),
            Found::Stale(content) => write!(f, ", are the overwritten {content}"),
            Found::Other(bytes) => write!(f, ", begin with {bytes:02x?}"),
        }
    }
}

#[derive(Clone, Debug)]
struct Candidate {
    content: Content,
    issued: u64,
    /// When its answer came, or its connection was given up. None: in flight.
    resolved: Option<u64>,
    /// It was acknowledged, so it certainly happened.
    certain: bool,
}

#[derive(Clone, Debug)]
struct Extent {
    end: u64,
    candidates: Vec<Candidate>,
    /// What the last acknowledged write replaced: only to name stale data.
    replaced: Option<Content>,
}

/// The model of one volume. Starts as zeroes.
#[derive(Clone, Debug)]
pub struct Oracle {
    size: u64,
    now: u64,
    /// Touched ranges by first byte; what no extent covers is zeroes.
    extents: BTreeMap<u64, Extent>,
}

impl Oracle {
    /// A volume of `size` zero bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            now: 0,
            extents: BTreeMap::new(),
        }
    }

    /// The volume's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A write is about to be sent.
    pub fn begin(&mut self, range: Range<u64>, content: Content) -> WriteId {
        assert!(
            range.start < range.end && range.end <= self.size,
            "a write outside the volume"
        );
        self.now += 1;
        self.cover(&range);
        for (_, extent) in self.extents.range_mut(range) {
            extent.candidates.push(Candidate {
                content,
                issued: self.now,
                resolved: None,
                certain: false,
            });
        }
        WriteId(self.now)
    }

    /// The write's positive answer arrived: it has to be readable from now on.
    pub fn acknowledge(&mut self, range: Range<u64>, id: WriteId) {
        self.resolve(range, id, true);
    }

    /// The write failed, or its answer will never come: it may have happened or not.
    pub fn give_up(&mut self, range: Range<u64>, id: WriteId) {
        self.resolve(range, id, false);
    }

    /// Gives up every write that is still in flight.
    pub fn give_up_all(&mut self) {
        self.now += 1;
        let now = self.now;
        for extent in self.extents.values_mut() {
            for candidate in &mut extent.candidates {
                candidate.resolved.get_or_insert(now);
            }
        }
    }

    /// The time to hand to [`Self::check_since`] when a read is about to be sent.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(self.now)
    }

    /// Checks data that was read while no write was in flight, and takes it as the truth from now on:
    /// where several contents were legal, the one that was read has to stay.
    pub fn settle(&mut self, offset: u64, data: &[u8]) -> Vec<Loss> {
        self.settle_if(offset, data, |_| true)
    }

    /// Checks data of a read that was sent at `since` while writes may have been in flight. Ranges that
    /// a write touched meanwhile are left out; returns the losses and the number of bytes checked.
    pub fn check_since(&mut self, since: Instant, offset: u64, data: &[u8]) -> (Vec<Loss>, u64) {
        let mut checked = data.len() as u64;
        let end = offset + checked;
        let losses = self.settle_if(offset, data, |extent| {
            extent.candidates.iter().all(|c| {
                c.issued <= since.0 && c.resolved.is_some_and(|resolved| resolved <= since.0)
            })
        });
        for (start, extent) in self.overlapping(offset..end) {
            if extent
                .candidates
                .iter()
                .any(|c| c.issued > since.0 || c.resolved.is_none_or(|resolved| resolved > since.0))
            {
                checked -= extent.end.min(end) - start.max(offset);
            }
        }
        (losses, checked)
    }

    /// How many ranges have more than one legal content.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.extents
            .values()
            .filter(|extent| extent.candidates.len() > 1)
            .count()
    }

    fn resolve(&mut self, range: Range<u64>, id: WriteId, certain: bool) {
        self.now += 1;
        let now = self.now;
        for (_, extent) in self.extents.range_mut(range) {
            // A write given up and then settled by a read may be gone already.
            let Some(own) = extent.candidates.iter_mut().find(|c| c.issued == id.0) else {
                continue;
            };
            own.resolved = Some(now);
            own.certain |= certain;
            if certain {
                let replaced = &mut extent.replaced;
                extent.candidates.retain(|c| {
                    let stays = c.resolved.is_none_or(|resolved| resolved >= id.0);
                    if !stays {
                        *replaced = Some(c.content);
                    }
                    stays
                });
            }
        }
    }

    fn settle_if(
        &mut self,
        offset: u64,
        data: &[u8],
        wanted: impl Fn(&Extent) -> bool,
    ) -> Vec<Loss> {
        let end = offset + data.len() as u64;
        assert!(end <= self.size, "a read outside the volume");
        let bytes = |from: u64, to: u64| &data[(from - offset) as usize..(to - offset) as usize];
        let mut losses = Vec::new();
        let mut narrowed: Vec<(Range<u64>, Content)> = Vec::new();
        let mut at = offset;
        for (start, extent) in self.overlapping(offset..end) {
            let from = start.max(offset);
            let to = extent.end.min(end);
            check_gap(at, bytes(at, from), &mut losses);
            at = to;
            if !wanted(extent) {
                continue;
            }
            // Only an undecided range may differ from block to block.
            let step = if extent.candidates.len() > 1 {
                BLOCK_BYTES
            } else {
                u64::MAX
            };
            let mut piece = from;
            while piece < to {
                let piece_end = piece.saturating_add(step - piece % step).min(to);
                let here = bytes(piece, piece_end);
                match extent
                    .candidates
                    .iter()
                    .find(|c| c.content.matches(piece, here))
                {
                    Some(found) if extent.candidates.len() > 1 => {
                        narrowed.push((piece..piece_end, found.content));
                    }
                    Some(_) => {}
                    None => losses.push(Loss {
                        offset: piece,
                        length: piece_end - piece,
                        legal: extent.candidates.iter().map(|c| c.content).collect(),
                        found: extent.identify(piece, here),
                    }),
                }
                piece = piece_end;
            }
        }
        check_gap(at, bytes(at, end), &mut losses);
        for (range, content) in narrowed {
            self.narrow(range, content);
        }
        losses
    }

    fn narrow(&mut self, range: Range<u64>, content: Content) {
        self.cover(&range);
        for (_, extent) in self.extents.range_mut(range) {
            if let Some(index) = extent.candidates.iter().position(|c| c.content == content) {
                let mut only = extent.candidates.swap_remove(index);
                only.certain = true;
                extent.candidates = vec![only];
            }
        }
    }

    fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Extent)> {
        let first = self
            .extents
            .range(..range.start)
            .next_back()
            .filter(move |(_, extent)| extent.end > range.start);
        first
            .into_iter()
            .chain(self.extents.range(range))
            .map(|(start, extent)| (*start, extent))
    }

    /// Makes extents that begin and end exactly with `range` and leave no gap in it.
    fn cover(&mut self, range: &Range<u64>) {
        self.split(range.start);
        self.split(range.end);
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (start, extent) in self.extents.range(range.clone()) {
            if at < *start {
                gaps.push(at..*start);
            }
            at = extent.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        for gap in gaps {
            let zeroes = Candidate {
                content: Content::Zeroes,
                issued: 0,
                resolved: Some(0),
                certain: true,
            };
            self.extents.insert(
                gap.start,
                Extent {
                    end: gap.end,
                    candidates: vec![zeroes],
                    replaced: None,
                },
            );
        }
    }

    fn split(&mut self, at: u64) {
        let Some((_, extent)) = self.extents.range_mut(..at).next_back() else {
            return;
        };
        if extent.end > at {
            let upper = extent.clone();
            extent.end = at;
            self.extents.insert(at, upper);
        }
    }
}

impl Extent {
    fn identify(&self, offset: u64, data: &[u8]) -> Found {
        if let Some(replaced) = self.replaced
            && replaced.matches(offset, data)
        {
            return Found::Stale(replaced);
        }
        if is_zero(data) {
            return Found::Zeroes;
        }
        let mut first = [0; 8];
        let known = data.len().min(8);
        first[..known].copy_from_slice(&data[..known]);
        Found::Other(first)
    }
}

fn check_gap(offset: u64, data: &[u8], losses: &mut Vec<Loss>) {
    if !is_zero(data) {
        let mut first = [0; 8];
        let known = data.len().min(8);
        first[..known].copy_from_slice(&data[..known]);
        losses.push(Loss {
            offset,
            length: data.len() as u64,
            legal: vec![Content::Zeroes],
            found: Found::Other(first),
        });
    }
}

/// Whether all of `data` is zero; compares whole pages, so that it is fast without optimisation too.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    static ZEROES: [u8; 65536] = [0; 65536];
    data.chunks(ZEROES.len())
        .all(|chunk| chunk == &ZEROES[..chunk.len()])
}

fn word(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))) | 1
}

/// The finaliser of splitmix64.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;

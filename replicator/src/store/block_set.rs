//! A small set of blocks: which of those that one request covers.

/// The most blocks that a set can tell apart.
pub const SET_BLOCKS_MAX: usize = 320;

/// Which blocks of a range, counted from its first one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockSet([u64; SET_BLOCKS_MAX / 64]);

impl BlockSet {
    /// Adds `count` blocks from `first` on.
    pub fn add(&mut self, first: u32, count: u32) {
        for n in first..first + count {
            self.0[n as usize / 64] |= 1 << (n % 64);
        }
    }

    /// Whether one is in it.
    #[must_use]
    pub fn has(&self, n: u32) -> bool {
        self.0[n as usize / 64] >> (n % 64) & 1 == 1
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those that are in it, in order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.0.into_iter().zip(0u32..).flat_map(|(word, at)| {
            (0..64).filter_map(move |bit| (word >> bit & 1 == 1).then_some(64 * at + bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_added() {
        let mut set = BlockSet::default();
        set.add(3, 2);
        set.add(60, 10);
        set.add(319, 1);
        assert!(set.has(64) && !set.has(70) && !set.is_empty());
        let blocks: Vec<_> = set.iter().collect();
        assert_eq!(blocks, [3, 4, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 319]);
    }
}

//! Randomness of the simulation's own: SplitMix64 (Steele, Lea and Flood, 2014), so that a seed means the same everywhere.

pub(crate) struct Rng(u64);

impl Rng {
    /// The stream of a seed that has this name. Streams are independent: what one concern draws shifts no other.
    pub(crate) fn stream(seed: u64, name: &str) -> Self {
        let mut rng = Self(seed);
        for byte in name.bytes() {
            rng.0 = rng.next() ^ u64::from(byte);
        }
        Self(rng.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `percent` of all cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// An index below `n`.
    pub(crate) fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).expect("below a usize")
    }

    /// One of some things.
    pub(crate) fn pick<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.index(things.len())]
    }
}

/// One stream for each concern of the machinery. (Each kind of attack has one of its own besides.)
pub(crate) struct Streams {
    /// When a node's turn comes.
    pub(crate) turns: Rng,
    /// How long disks take, and what is left of a write.
    pub(crate) disks: Rng,
    /// How long frames take, and when connections come and go.
    pub(crate) net: Rng,
    /// How clocks go.
    pub(crate) clocks: Rng,
    /// What nodes are given as randomness.
    pub(crate) identity: Rng,
    /// What peers say that should not.
    pub(crate) garbage: Rng,
    /// What clients do.
    pub(crate) clients: Rng,
}

impl Streams {
    pub(crate) fn new(seed: u64) -> Self {
        let stream = |name| Rng::stream(seed, name);
        Self {
            turns: stream("turns"),
            disks: stream("disks"),
            net: stream("net"),
            clocks: stream("clocks"),
            identity: stream("identity"),
            garbage: stream("garbage"),
            clients: stream("clients"),
        }
    }
}

//! The checksum of a block that carries it itself.

/// The CRC of a block, taken with the four bytes from `at` on as zeroes: there it stands.
#[must_use]
pub(crate) fn with_field_at(block: &[u8], at: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..at]);
    hasher.update(&[0; 4]);
    hasher.update(&block[at + 4..]);
    hasher.finalize()
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

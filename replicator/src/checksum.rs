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

//! What a node's disks say when it starts.

/// Reads the disks of a node that is not running yet. Blocking.
pub trait BlockRead {
    /// Fills `buffer` (a multiple of 4 KiB, any alignment in memory) from byte `offset` (a multiple of 4 KiB) on.
    ///
    /// # Errors
    /// The operating system's error number, or [`DiskError::Short`](crate::io::DiskError::Short) past the end.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), crate::io::DiskError>;
}

//! The checksums of stores that are there already: what a node that is made of a seed tells a Primary that it has.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use replicator::store::sums::{BlockSum, SumTable, Table, is_zero};
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64, VolumeId};

use super::{CreateError, failed};
use crate::bar;

/// How much is read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Reads the stores, and writes what they hold to the file of checksums, which is new.
pub(super) fn sum(stores: &[(&Path, u64)], sums: &Path) -> Result<(), CreateError> {
    let mut table = SumTable::new(Table::Stores, stores.iter().map(|(_, bytes)| *bytes));
    let bar = bar::bytes(
        stores.iter().map(|(_, bytes)| bytes).sum(),
        "reading the seed",
    );
    for (volume, (path, bytes)) in (0u16..).zip(stores) {
        let file = File::open(path).map_err(failed("open", path))?;
        sum_store(&file, VolumeId(volume), *bytes, &mut table, &bar)
            .map_err(failed("read", path))?;
    }
    bar.finish_and_clear();
    let file = OpenOptions::new()
        .write(true)
        .open(sums)
        .map_err(failed("open", sums))?;
    let mut page = vec![0; BLOCK_BYTES];
    while let Some(offset) = table.take_dirty(&mut page) {
        file.write_all_at(&page, offset)
            .map_err(failed("write", sums))?;
    }
    file.sync_all().map_err(failed("make durable", sums))
}

fn sum_store(
    file: &File,
    volume: VolumeId,
    bytes: u64,
    table: &mut SumTable,
    bar: &indicatif::ProgressBar,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < bytes {
        // Where there are holes they are not read.
        let data = next_data(file, at)?.min(bytes) / BLOCK_BYTES_U64 * BLOCK_BYTES_U64;
        bar.inc(data.saturating_sub(at));
        at = data.max(at);
        let length = usize::try_from(bytes - at).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        file.read_exact_at(&mut chunk[..length], at)?;
        for (block, bytes) in (at / BLOCK_BYTES_U64..).zip(chunk[..length].chunks(BLOCK_BYTES)) {
            if !is_zero(bytes) {
                table.set(volume, block, BlockSum::of(volume, block, bytes));
            }
        }
        at += length as u64;
        bar.inc(length as u64);
    }
    Ok(())
}

/// Where the next data at or after this place is; the end of everything if there is none.
fn next_data(file: &File, at: u64) -> io::Result<u64> {
    let from = i64::try_from(at).map_err(|_| io::Error::from(Errno::EOVERFLOW))?;
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => Ok(u64::try_from(data).unwrap_or(at)),
        Err(Errno::ENXIO) => Ok(u64::MAX),
        // A file system or a device without holes.
        Err(_) => Ok(at),
    }
}

//! A history of epochs behind the fixed part of a body.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{EPOCH_HISTORY_MAX, EpochHistory, FrameError};
use crate::types::*;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEpoch {
    epoch: U64,
    first: U64,
}
const _: () = assert!(size_of::<RawEpoch>() == EPOCH_BYTES);

/// Bytes of one of them.
pub(super) const EPOCH_BYTES: usize = 16;

/// Reads `count` epochs, which are all that is there. Both numbers rise.
pub(super) fn decode(count: u16, bytes: &[u8]) -> Result<EpochHistory, FrameError> {
    let count = usize::from(count);
    if count > EPOCH_HISTORY_MAX || bytes.len() != count * EPOCH_BYTES {
        return Err(FrameError::Length);
    }
    let entries = <[RawEpoch]>::ref_from_bytes(bytes).map_err(|_| FrameError::Length)?;
    let mut epochs = EpochHistory::new();
    for entry in entries {
        let id = RecordId::checked(entry.epoch.get(), entry.first.get());
        let id = id.ok_or(FrameError::Field)?;
        let rises = |last: &RecordId| last.epoch < id.epoch && last.seq < id.seq;
        if !epochs.last().is_none_or(rises) {
            return Err(FrameError::Field);
        }
        epochs.push(id);
    }
    Ok(epochs)
}

/// Writes them from byte `at` on; returns the place after them.
pub(super) fn encode(epochs: &EpochHistory, out: &mut [u8], mut at: usize) -> usize {
    for id in epochs {
        let raw = RawEpoch {
            epoch: U64::new(id.epoch.0),
            first: U64::new(id.seq.0),
        };
        out[at..at + EPOCH_BYTES].copy_from_slice(raw.as_bytes());
        at += EPOCH_BYTES;
    }
    at
}

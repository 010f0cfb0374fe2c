//! The body of a fence.

use std::mem::offset_of;

use zerocopy::little_endian::{U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BODY_BYTES_MAX, Fence, FrameError, epoch};
use crate::meta::fences::{FenceMarks, RawFenceMarks};
use crate::types::*;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFence {
    token: U64,
    epoch: U64,
    incarnation: U128,
    marks: RawFenceMarks,
}
const _: () = assert!(size_of::<RawFence>() == 96);
const _: () = {
    assert!(offset_of!(RawFence, epoch) == 8);
    assert!(offset_of!(RawFence, incarnation) == 16);
    assert!(offset_of!(RawFence, marks) == 32);
};
const _: () = assert!(size_of::<RawFence>() <= BODY_BYTES_MAX);

pub(super) fn decode(body: &[u8]) -> Result<Fence, FrameError> {
    let raw = RawFence::ref_from_bytes(body).map_err(|_| FrameError::Length)?;
    Ok(Fence {
        token: raw.token.get(),
        epoch: epoch(raw.epoch.get())?,
        incarnation: Incarnation(raw.incarnation.get()),
        marks: FenceMarks::from_raw(&raw.marks).ok_or(FrameError::Field)?,
    })
}

pub(super) fn encode(fence: &Fence, out: &mut [u8]) -> usize {
    let raw = RawFence {
        token: U64::new(fence.token),
        epoch: U64::new(fence.epoch.0),
        incarnation: U128::new(fence.incarnation.0),
        marks: fence.marks.to_raw(),
    };
    let bytes = raw.as_bytes();
    out[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

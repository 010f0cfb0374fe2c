//! The bodies of the frames by which room for volumes is made.

use std::mem::offset_of;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BODY_BYTES_MAX, Frame, FrameError};
use crate::io::{DiskError, VolumeTrouble};
use crate::meta::volumes::{RawVolumes, Volumes};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPrepare {
    token: U64,
    volumes: RawVolumes,
}
const _: () = assert!(size_of::<RawPrepare>() == 1168);
const _: () = assert!(offset_of!(RawPrepare, volumes) == 8);
const _: () = assert!(size_of::<RawPrepare>() <= BODY_BYTES_MAX);

pub(super) fn decode(body: &[u8]) -> Result<Frame, FrameError> {
    let raw = RawPrepare::ref_from_bytes(body).map_err(|_| FrameError::Length)?;
    let volumes = Volumes::from_raw(&raw.volumes).ok_or(FrameError::Field)?;
    Ok(Frame::Prepare {
        token: raw.token.get(),
        volumes: Box::new(volumes),
    })
}

pub(super) fn encode(token: u64, volumes: &Volumes, out: &mut [u8]) -> usize {
    let raw = RawPrepare {
        token: U64::new(token),
        volumes: volumes.to_raw(),
    };
    let bytes = raw.as_bytes();
    out[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

/// How the making of room ended, in two numbers.
pub(super) fn result_to_wire(result: Result<(), DiskError>) -> (u64, u64) {
    match result {
        Ok(()) => (0, 0),
        Err(DiskError::Os(errno)) => (1, u64::from(errno.unsigned_abs())),
        Err(DiskError::Short) => (2, 0),
        Err(DiskError::Volume(VolumeTrouble::Device { bytes })) => (3, bytes),
        Err(DiskError::Volume(VolumeTrouble::NotInConfig)) => (4, 0),
        Err(DiskError::Volume(VolumeTrouble::OtherSize { bytes })) => (5, bytes),
        Err(DiskError::Volume(VolumeTrouble::NotBlank)) => (6, 0),
    }
}

/// Reads what [`result_to_wire`] wrote.
pub(super) fn result_from_wire(
    code: u64,
    number: u64,
) -> Result<Result<(), DiskError>, FrameError> {
    let trouble = match code {
        0 => return Ok(Ok(())),
        1 => {
            let errno = i32::try_from(number).map_err(|_| FrameError::Field)?;
            return Ok(Err(DiskError::Os(errno)));
        }
        2 => return Ok(Err(DiskError::Short)),
        3 => VolumeTrouble::Device { bytes: number },
        4 => VolumeTrouble::NotInConfig,
        5 => VolumeTrouble::OtherSize { bytes: number },
        6 => VolumeTrouble::NotBlank,
        _ => return Err(FrameError::Field),
    };
    Ok(Err(DiskError::Volume(trouble)))
}

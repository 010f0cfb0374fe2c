//! The body of a config for a witness.

use std::mem::offset_of;

use zerocopy::little_endian::{U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BODY_BYTES_MAX, FrameError, Told};
use crate::meta::config::{ClusterConfig, ConfigAt, RawConfig};
use crate::types::*;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawTold {
    uuid: U128,
    history: U128,
    config_epoch: U64,
    config_seq: U64,
    config: RawConfig,
}
const _: () = assert!(size_of::<RawTold>() == 768);
const _: () = {
    assert!(offset_of!(RawTold, history) == 16);
    assert!(offset_of!(RawTold, config_epoch) == 32);
    assert!(offset_of!(RawTold, config_seq) == 40);
    assert!(offset_of!(RawTold, config) == 48);
};
const _: () = assert!(size_of::<RawTold>() <= BODY_BYTES_MAX);

pub(super) fn decode(body: &[u8]) -> Result<Told, FrameError> {
    let raw = RawTold::ref_from_bytes(body).map_err(|_| FrameError::Length)?;
    Ok(Told {
        uuid: ResourceUuid(raw.uuid.get()),
        history: HistoryId(raw.history.get()),
        config: ConfigAt {
            at: RecordId::checked(raw.config_epoch.get(), raw.config_seq.get())
                .ok_or(FrameError::Field)?,
            config: ClusterConfig::from_raw(&raw.config).ok_or(FrameError::Field)?,
        },
    })
}

pub(super) fn encode(told: &Told, out: &mut [u8]) -> usize {
    let raw = RawTold {
        uuid: U128::new(told.uuid.0),
        history: U128::new(told.history.0),
        config_epoch: U64::new(told.config.at.epoch.0),
        config_seq: U64::new(told.config.at.seq.0),
        config: told.config.config.to_raw(),
    };
    let bytes = raw.as_bytes();
    out[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

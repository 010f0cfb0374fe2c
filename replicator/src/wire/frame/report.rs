//! The body of a report.

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::epochs::{self, EPOCH_BYTES};
use super::{
    BODY_BYTES_MAX, EPOCH_HISTORY_MAX, FrameError, Report, epoch, node_from_wire, node_to_wire, seq,
};
use crate::meta::config::{ClusterConfig, ConfigAt, RawConfig};
use crate::meta::fences::{FenceMarks, RawFenceMarks};
use crate::types::*;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawReport {
    token: U64,
    granted: U64,
    uuid: U128,
    history: U128,
    incarnation: U128,
    promised: U64,
    tail_epoch: U64,
    tail_seq: U64,
    committed: U64,
    journal_floor: U64,
    you_acked_epoch: U64,
    you_acked_seq: U64,
    demoted: U64,
    config_epoch: U64,
    config_seq: U64,
    lease_wait_ms: U32,
    promised_to: u8,
    flags: u8,
    epoch_count: U16,
    config: RawConfig,
    volumes: U32,
    reserved: U32,
    fences: RawFenceMarks,
}

const _: () = assert!(size_of::<RawReport>() == 944);
const _: () = {
    assert!(offset_of!(RawReport, granted) == 8);
    assert!(offset_of!(RawReport, uuid) == 16);
    assert!(offset_of!(RawReport, history) == 32);
    assert!(offset_of!(RawReport, incarnation) == 48);
    assert!(offset_of!(RawReport, promised) == 64);
    assert!(offset_of!(RawReport, tail_epoch) == 72);
    assert!(offset_of!(RawReport, tail_seq) == 80);
    assert!(offset_of!(RawReport, committed) == 88);
    assert!(offset_of!(RawReport, journal_floor) == 96);
    assert!(offset_of!(RawReport, you_acked_epoch) == 104);
    assert!(offset_of!(RawReport, you_acked_seq) == 112);
    assert!(offset_of!(RawReport, demoted) == 120);
    assert!(offset_of!(RawReport, config_epoch) == 128);
    assert!(offset_of!(RawReport, config_seq) == 136);
    assert!(offset_of!(RawReport, lease_wait_ms) == 144);
    assert!(offset_of!(RawReport, promised_to) == 148);
    assert!(offset_of!(RawReport, flags) == 149);
    assert!(offset_of!(RawReport, epoch_count) == 150);
    assert!(offset_of!(RawReport, config) == 152);
    assert!(offset_of!(RawReport, volumes) == 872);
    assert!(offset_of!(RawReport, fences) == 880);
};
const _: () = assert!(size_of::<RawReport>() + EPOCH_HISTORY_MAX * EPOCH_BYTES <= BODY_BYTES_MAX);

const FRESH: u8 = 1;
const SERVING: u8 = 2;
const PRIMARY: u8 = 4;
const CANDIDATE: u8 = 8;
const DAMAGED: u8 = 16;
const HAS_CONFIG: u8 = 32;
const INCONSISTENT: u8 = 64;

fn id(epoch: u64, seq: u64) -> Result<RecordId, FrameError> {
    RecordId::checked(epoch, seq).ok_or(FrameError::Field)
}

pub(super) fn decode(body: &[u8]) -> Result<Report, FrameError> {
    let (raw, rest) = RawReport::ref_from_prefix(body).map_err(|_| FrameError::Length)?;
    let epochs = epochs::decode(raw.epoch_count.get(), rest)?;
    let flag = |bit: u8| raw.flags & bit != 0;
    let config = if flag(HAS_CONFIG) {
        Some(ConfigAt {
            at: id(raw.config_epoch.get(), raw.config_seq.get())?,
            config: ClusterConfig::from_raw(&raw.config).ok_or(FrameError::Field)?,
        })
    } else {
        None
    };
    Ok(Report {
        token: raw.token.get(),
        granted: epoch(raw.granted.get())?,
        uuid: ResourceUuid(raw.uuid.get()),
        history: HistoryId(raw.history.get()),
        incarnation: Incarnation(raw.incarnation.get()),
        promised: epoch(raw.promised.get())?,
        promised_to: node_from_wire(raw.promised_to)?,
        tail: id(raw.tail_epoch.get(), raw.tail_seq.get())?,
        committed: seq(raw.committed.get())?,
        journal_floor: seq(raw.journal_floor.get())?,
        you_acked: id(raw.you_acked_epoch.get(), raw.you_acked_seq.get())?,
        lease_wait_ms: raw.lease_wait_ms.get(),
        fresh: flag(FRESH),
        serving: flag(SERVING),
        primary: flag(PRIMARY),
        candidate: flag(CANDIDATE),
        damaged: flag(DAMAGED),
        inconsistent: flag(INCONSISTENT),
        demoted: epoch(raw.demoted.get())?,
        fences: FenceMarks::from_raw(&raw.fences).ok_or(FrameError::Field)?,
        config,
        epochs,
        volumes: raw.volumes.get(),
    })
}

pub(super) fn encode(report: &Report, out: &mut [u8]) -> usize {
    let bit = |on: bool, bit: u8| if on { bit } else { 0 };
    let config_at = report.config.as_ref().map_or(RecordId::NONE, |c| c.at);
    let raw = RawReport {
        token: U64::new(report.token),
        granted: U64::new(report.granted.0),
        uuid: U128::new(report.uuid.0),
        history: U128::new(report.history.0),
        incarnation: U128::new(report.incarnation.0),
        promised: U64::new(report.promised.0),
        tail_epoch: U64::new(report.tail.epoch.0),
        tail_seq: U64::new(report.tail.seq.0),
        committed: U64::new(report.committed.0),
        journal_floor: U64::new(report.journal_floor.0),
        you_acked_epoch: U64::new(report.you_acked.epoch.0),
        you_acked_seq: U64::new(report.you_acked.seq.0),
        demoted: U64::new(report.demoted.0),
        config_epoch: U64::new(config_at.epoch.0),
        config_seq: U64::new(config_at.seq.0),
        lease_wait_ms: U32::new(report.lease_wait_ms),
        promised_to: node_to_wire(report.promised_to),
        flags: bit(report.fresh, FRESH)
            | bit(report.serving, SERVING)
            | bit(report.primary, PRIMARY)
            | bit(report.candidate, CANDIDATE)
            | bit(report.damaged, DAMAGED)
            | bit(report.inconsistent, INCONSISTENT)
            | bit(report.config.is_some(), HAS_CONFIG),
        epoch_count: U16::new(u16::try_from(report.epochs.len()).expect("at most 64 epochs")),
        config: report
            .config
            .as_ref()
            .map_or_else(RawConfig::empty, |c| c.config.to_raw()),
        fences: report.fences.to_raw(),
        volumes: U32::new(report.volumes),
        reserved: U32::new(0),
    };
    let bytes = raw.as_bytes();
    out[..bytes.len()].copy_from_slice(bytes);
    epochs::encode(&report.epochs, out, bytes.len())
}

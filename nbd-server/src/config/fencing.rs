//! `[fencing]` and `[watchdog]`: what makes sure of a node that is lost, and what a node does about itself. Off unless they are there.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::table::{Result, Table};
use super::{Node, NodeRole, OnNoQuorum, Policy, Refusal};

/// How long a handler may take where the config says nothing.
const HANDLER_TIMEOUT_MS_DEFAULT: u32 = 120_000;
/// The times that can be configured for it, in milliseconds.
const HANDLER_TIMEOUT_MS_RANGE: RangeInclusive<u32> = 1000..=3_600_000;
/// How long a watchdog is fed after a lease is over where the config says nothing.
const WATCHDOG_AFTER_MS_DEFAULT: u32 = 5000;
/// The times that can be configured for it, in milliseconds.
const WATCHDOG_AFTER_MS_RANGE: RangeInclusive<u32> = 0..=3_600_000;

/// Who makes sure that the other one of two nodes is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FencePeer {
    /// The program.
    pub handler: PathBuf,
    /// How long it may take.
    pub timeout: Duration,
}

/// A device that resets the host unless it is fed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// The device.
    pub device: PathBuf,
    /// How long a node has to be unwell before it is fed no more.
    pub after: Duration,
}

pub(super) fn fencing(
    root: &Table<'_>,
    nodes: &[Node],
    policy: &Policy,
) -> Result<Option<FencePeer>> {
    let Some(table) = root.section("fencing", "a table [fencing]")? else {
        return Ok(None);
    };
    table.only(&["handler", "timeout_ms"])?;
    let located = table.text("handler", "handler = \"/usr/local/sbin/fence-peer\"")?;
    let handler = table.path("handler", &located)?;
    let two = nodes.len() == 2 && nodes.iter().all(|node| node.role == NodeRole::Data);
    if !two || policy.on_no_quorum != OnNoQuorum::SuspendIo {
        return table.refuse(&located.span, Refusal::HandlerForTwo);
    }
    let timeout = table.milliseconds(
        "timeout_ms",
        "timeout_ms = 120000",
        HANDLER_TIMEOUT_MS_RANGE,
        HANDLER_TIMEOUT_MS_DEFAULT,
    )?;
    Ok(Some(FencePeer { handler, timeout }))
}

pub(super) fn watchdog(root: &Table<'_>) -> Result<Option<Watchdog>> {
    let Some(table) = root.section("watchdog", "a table [watchdog]")? else {
        return Ok(None);
    };
    table.only(&["device", "after_ms"])?;
    let located = table.text("device", "device = \"/dev/watchdog\"")?;
    let device = table.path("device", &located)?;
    let after = table.milliseconds(
        "after_ms",
        "after_ms = 5000",
        WATCHDOG_AFTER_MS_RANGE,
        WATCHDOG_AFTER_MS_DEFAULT,
    )?;
    Ok(Some(Watchdog { device, after }))
}

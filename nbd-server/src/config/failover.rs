//! `[failover]`: what runs where this resource is Primary, without a cluster manager. Off unless it is there.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Refusal;
use super::table::{Result, Table};

/// How long a new Primary waits before it starts the service where the config says nothing.
const START_DELAY_MS_DEFAULT: u32 = 0;
/// The times that can be configured for it, in milliseconds.
const START_DELAY_MS_RANGE: RangeInclusive<u32> = 0..=600_000;
/// How long a service may take to stop while the lease runs where the config says nothing.
const STOP_TIMEOUT_MS_DEFAULT: u32 = 60_000;
/// The times that can be configured for it, in milliseconds.
const STOP_TIMEOUT_MS_RANGE: RangeInclusive<u32> = 100..=3_600_000;

/// What runs where this resource is Primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// What that is.
    pub service: Service,
    /// How long a new Primary waits before it starts it, which is how long it may take to stop after a lease is over.
    pub start_delay: Duration,
    /// How long it may take to stop while the lease runs.
    pub stop_timeout: Duration,
}

/// What is started and stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// A program that runs as long as it is wanted.
    Command(PathBuf),
    /// A unit of systemd.
    Unit(String),
}

pub(super) fn failover(root: &Table<'_>) -> Result<Option<Failover>> {
    let Some(table) = root.section("failover", "a table [failover]")? else {
        return Ok(None);
    };
    table.only(&["command", "unit", "start_delay_ms", "stop_timeout_ms"])?;
    let command = table.opt_text("command", "command = \"/usr/local/sbin/pbx\"")?;
    let unit = table.opt_text("unit", "unit = \"pbx.target\"")?;
    let service = match (command, unit) {
        (Some(command), None) => Service::Command(table.path("command", &command)?),
        (None, Some(unit)) if is_unit(unit.value) => Service::Unit(unit.value.to_owned()),
        (None, Some(unit)) => {
            let refusal = Refusal::UnknownWord {
                key: "unit",
                found: unit.value.to_owned(),
                known: "the name of a unit, for example \"pbx.target\"",
            };
            return table.refuse(&unit.span, refusal);
        }
        (Some(_), Some(unit)) => return table.refuse(&unit.span, Refusal::TwoServices),
        (None, None) => {
            return table.missing(
                "unit",
                "unit = \"pbx.target\", or command = \"/usr/local/sbin/pbx\"",
            );
        }
    };
    Ok(Some(Failover {
        service,
        start_delay: table.milliseconds(
            "start_delay_ms",
            "start_delay_ms = 0",
            START_DELAY_MS_RANGE,
            START_DELAY_MS_DEFAULT,
        )?,
        stop_timeout: table.milliseconds(
            "stop_timeout_ms",
            "stop_timeout_ms = 60000",
            STOP_TIMEOUT_MS_RANGE,
            STOP_TIMEOUT_MS_DEFAULT,
        )?,
    }))
}

/// A name with a suffix, of the characters that such names have, and no option.
fn is_unit(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    name.bytes().all(known)
        && !name.starts_with(['-', '.'])
        && name.contains('.')
        && name.len() < 256
}

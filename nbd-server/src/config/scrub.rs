//! `[scrub]`: when all copies are read and compared by themselves, and how fast.

use std::time::Duration;

use super::Refusal;
use super::table::{Result, Table};

/// How often where the config says nothing.
const EVERY_DEFAULT: Duration = Duration::from_secs(7 * 86_400);
/// How fast where the config says nothing, in bytes per second.
const RATE_DEFAULT: u64 = 20 << 20;

/// Verifications that begin by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrub {
    /// How long after the last one; `None` for never.
    pub every: Option<Duration>,
    /// How fast at most; 0 for as fast as clients leave room for.
    pub bytes_per_second: u64,
}

impl Default for Scrub {
    fn default() -> Self {
        Self {
            every: Some(EVERY_DEFAULT),
            bytes_per_second: RATE_DEFAULT,
        }
    }
}

pub(super) fn scrub(root: &Table<'_>) -> Result<Scrub> {
    let mut scrub = Scrub::default();
    let Some(table) = root.section("scrub", "a table [scrub]")? else {
        return Ok(scrub);
    };
    table.only(&["every", "rate"])?;
    let known = "\"off\", or a time such as \"7d\", \"12h\" or \"30m\"";
    if let Some(text) = table.opt_text("every", known)? {
        scrub.every = match (text.value, time(text.value)) {
            ("off", _) => None,
            (_, Some(every)) => Some(every),
            (found, None) => {
                let refusal = Refusal::UnknownWord {
                    key: "every",
                    found: found.to_owned(),
                    known,
                };
                return table.refuse(&text.span, refusal);
            }
        };
    }
    if let Some(rate) = table.opt_size("rate", "rate = \"20MiB\"")? {
        scrub.bytes_per_second = rate.value;
    }
    Ok(scrub)
}

/// A whole number of days, hours, minutes or seconds; not 0, and at most ten years.
fn time(text: &str) -> Option<Duration> {
    let unit = match text.chars().last()? {
        'd' => 86_400,
        'h' => 3600,
        'm' => 60,
        's' => 1,
        _ => return None,
    };
    let number: u64 = text[..text.len() - 1].parse().ok()?;
    let seconds = number.checked_mul(unit)?;
    (1..=3650 * 86_400)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

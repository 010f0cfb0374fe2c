//! What the demo tells: lines while it runs, a summary or one JSON object at the end.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use serde::Serialize;

use super::oracle::Loss;

/// Lines on stderr, each with the time since the start.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    start: Instant,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Prints a line.
    pub fn say(&self, line: impl fmt::Display) {
        eprintln!("[{:5.1} s] {line}", self.seconds());
    }

    /// Seconds since the start.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// What the demo saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Everything held.
    pub ok: bool,
    /// Writes that were acknowledged, over the whole run.
    pub acknowledged_writes: u64,
    /// Their bytes.
    pub acknowledged_bytes: u64,
    /// Those acknowledged before the Primary was killed.
    pub acknowledged_before_kill: u64,
    /// Requests that the kill left unanswered.
    pub unanswered_at_kill: u64,
    /// Ranges that did not hold what had been acknowledged.
    pub lost: u64,
    /// Bytes that were read and compared, through NBD and in the stores.
    pub verified_bytes: u64,
    /// From SIGKILL to the first read and the first durable write served by the new Primary.
    pub failover_ms: f64,
    /// From the start of the killed node to its being up to date again.
    pub catch_up_ms: f64,
    /// The stores of all nodes are equal, byte for byte, and as written.
    pub stores_identical: bool,
    /// The killed node and the one that took over.
    pub killed: String,
    /// The node that took over.
    pub promoted: String,
    /// How long it all took.
    pub seconds: f64,
    /// The first few findings, in words.
    pub findings: Vec<String>,
    /// The cluster that goes on, with `--keep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// A cluster that was left running.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// Its config file.
    pub config: String,
    /// The operator's command.
    pub replctl: String,
    /// The Primary.
    pub primary: String,
    /// The other nodes.
    pub secondaries: Vec<String>,
    /// Its exports.
    pub uris: Vec<String>,
    /// The daemons.
    pub pids: Vec<u32>,
    /// Everything is in here.
    pub dir: String,
}

/// Findings that are listed in words.
const FINDINGS_MAX: usize = 8;

impl Report {
    /// Notes what was wrong, each range once; keeps the first few in words.
    pub fn note_losses(&mut self, losses: &[(String, Loss)]) {
        let mut seen = BTreeSet::new();
        for (volume, loss) in losses {
            if seen.insert((volume, loss.offset)) {
                self.lost += 1;
                self.note(format!("{volume}: {loss}"));
            }
        }
    }

    /// Notes a finding.
    pub fn note(&mut self, finding: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Draws the conclusion.
    pub fn conclude(&mut self, seconds: f64) {
        self.seconds = seconds;
        self.ok = self.lost == 0 && self.stores_identical && self.findings.is_empty();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "writes acknowledged   {} ({:.1} MiB), {} of them before the kill, {} left unanswered by it",
            self.acknowledged_writes,
            mib(self.acknowledged_bytes),
            self.acknowledged_before_kill,
            self.unanswered_at_kill
        )?;
        writeln!(
            f,
            "lost                  {} ({:.1} MiB read back and compared)",
            self.lost,
            mib(self.verified_bytes)
        )?;
        writeln!(
            f,
            "failover              {:.0} ms from kill -9 of {} to the first I/O served by {}",
            self.failover_ms, self.killed, self.promoted
        )?;
        writeln!(
            f,
            "catch-up              {:.0} ms from the start of {} to UpToDate, under load",
            self.catch_up_ms, self.killed
        )?;
        let identical = if self.stores_identical {
            "identical, and as written"
        } else {
            "NOT identical, or not as written"
        };
        writeln!(f, "stores of all nodes   {identical}")?;
        for finding in &self.findings {
            writeln!(f, "  ! {finding}")?;
        }
        let verdict = if self.ok { "OK" } else { "FAILED" };
        write!(f, "{verdict} in {:.1} s", self.seconds)?;
        if let Some(kept) = &self.kept {
            write!(f, "\n\n{kept}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "The cluster goes on; {} is Primary. Its exports:",
            self.primary
        )?;
        for uri in &self.uris {
            writeln!(f, "  {uri}")?;
        }
        writeln!(f, "Try:")?;
        let ctl = format!("{} --config {}", self.replctl, self.config);
        writeln!(f, "  {ctl} --node {} status", self.primary)?;
        if let Some(uri) = self.uris.first() {
            writeln!(f, "  nbdinfo '{uri}'")?;
        }
        if let Some(other) = self.secondaries.first() {
            writeln!(
                f,
                "  {ctl} --node {} demote && {ctl} --node {other} promote",
                self.primary
            )?;
        }
        write!(f, "Stop and remove it:\n  kill")?;
        for pid in &self.pids {
            write!(f, " {pid}")?;
        }
        write!(f, " && rm -r {}", self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::oracle::{Content, Found};

    fn good() -> Report {
        Report {
            stores_identical: true,
            ..Report::default()
        }
    }

    #[test]
    fn only_a_run_without_findings_is_ok() {
        let mut report = good();
        report.conclude(1.0);
        assert!(report.ok && report.to_string().ends_with("OK in 1.0 s"));

        let mut report = good();
        report.note("something".into());
        report.conclude(1.0);
        assert!(!report.ok);

        let mut report = Report::default();
        report.conclude(1.0);
        assert!(!report.ok && report.to_string().contains("NOT identical"));
    }

    #[test]
    fn every_loss_counts_and_a_few_are_listed() {
        let loss = |i: u64| Loss {
            offset: 4096 * i,
            length: 512,
            legal: vec![Content::Zeroes],
            found: Found::Other([1; 8]),
        };
        let mut report = good();
        let losses: Vec<_> = (1..=200)
            .map(|i| ("db".to_owned(), loss(i % 100 + 1)))
            .collect();
        report.note_losses(&losses);
        report.conclude(1.0);
        assert_eq!(
            (report.ok, report.lost, report.findings.len()),
            (false, 100, FINDINGS_MAX)
        );
        assert!(report.findings[0].starts_with("db: 512 bytes at 8192: should be zeroes"));
    }
}

//! Verifications by the calendar: the core has no date, so this is where it is known when one ended, and when the next is due.
//!
//! What the last one came to is kept in `DATA_DIR/verify.json`, on every data node: who runs one tells the others how it ended. The
//! Primary begins one when it is due. A file that is lost or damaged costs the dates, and nothing else.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use replicator::meta::volumes::Volumes;
use replicator::types::NODES_MAX;
use replicator::view::{FindingKind, View};
use replicator::wire::frame::Verified;
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::admin::{VerifyCounts, VerifyFinding, VerifyResult, VerifyRun, VerifyStatus, timestamp};
use crate::config::{Config, NodeRole};
use crate::handle::DataCommand;

/// How often it is looked at whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How long the data thread may take to begin.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(8);
/// One that was refused is tried again after this.
const RETRY: Duration = Duration::from_secs(60);

/// What is kept over restarts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Kept {
    /// When the last one came to its end, or else when this node began to count; in seconds.
    counts_from: u64,
    /// When all copies were last known to be sound and equal.
    clean_at: Option<u64>,
    last: Option<VerifyResult>,
}

/// When verifications ended, and what the last one came to.
#[derive(Debug)]
pub(super) struct Dates {
    file: PathBuf,
    every: Option<Duration>,
    kept: Kept,
    /// How many ended that the data thread has told of.
    seen: u64,
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn date(seconds: u64) -> String {
    timestamp(UNIX_EPOCH + Duration::from_secs(seconds))
}

impl Dates {
    /// What was kept of a node; a new one begins to count now.
    pub(super) fn load(config: &Config, me: usize) -> Self {
        let node = &config.nodes[me];
        let file = node.verify_file();
        let every = config.scrub.every.filter(|_| node.role == NodeRole::Data);
        let read = fs::read(&file);
        let kept = match &read {
            Ok(bytes) => serde_json::from_slice(bytes).ok(),
            Err(_) => None,
        };
        if read.is_ok() && kept.is_none() {
            tracing::warn!(
                "{} can not be read: the date of the last verification is lost; the next one makes it anew",
                file.display()
            );
        }
        let is_new = kept.is_none();
        let kept = kept.unwrap_or_else(|| Kept {
            counts_from: now(),
            ..Kept::default()
        });
        let dates = Self {
            file,
            every,
            kept,
            seen: 0,
        };
        if is_new && node.role == NodeRole::Data {
            dates.save();
        }
        dates
    }

    /// Writes it down. A disk that hangs must not stop the control thread.
    fn save(&self) {
        let (file, kept) = (self.file.clone(), self.kept.clone());
        let write = move || {
            if let Err(error) = save(&file, &kept) {
                tracing::warn!(
                    "{}: can not keep the date of a verification: {error}",
                    file.display()
                );
            }
        };
        let spawned = std::thread::Builder::new()
            .name("verify-date".into())
            .spawn(write);
        if let Err(error) = spawned {
            tracing::warn!("the date of a verification is not kept: no thread ({error})");
        }
    }

    /// Takes note of one that ended.
    fn note(&mut self, config: &Config, volumes: &Volumes, view: &View) {
        if view.verify.ended == self.seen {
            return;
        }
        self.seen = view.verify.ended;
        let Some((by, verified)) = view.verify.last else {
            return;
        };
        let ended = timestamp(SystemTime::now());
        let name = |n: usize| config.nodes.get(n).map(|node| node.name.clone());
        let missed = (0..NODES_MAX).filter(|n| verified.missed & 1 << n != 0);
        let findings = view.verify.findings.iter().filter_map(|f| {
            Some(VerifyFinding {
                node: name(usize::from(f.node.0))?,
                // A volume's place in the table is not its place in the config file.
                volume: volumes.get(f.volume)?.name.to_string(),
                block: f.block,
                kind: match f.kind {
                    FindingKind::Bad => "bad",
                    FindingKind::Differs => "differs",
                    FindingKind::Unknown => "unknown",
                }
                .to_owned(),
            })
        });
        if verified.is_clean() {
            self.kept.clean_at = Some(now());
        }
        if verified.finished {
            self.kept.counts_from = now();
        }
        self.kept.last = Some(VerifyResult {
            ended,
            by: name(usize::from(by.0)).unwrap_or_default(),
            finished: verified.finished,
            clean: verified.is_clean(),
            missed: missed.filter_map(name).collect(),
            counts: counts(&verified),
            findings: findings.collect(),
        });
        self.save();
    }

    /// An operator ends one. If it was due, that was it: the next one comes when the next one is due.
    pub(super) fn skip(&mut self) {
        if self.next().is_some_and(|at| now() >= at) {
            self.kept.counts_from = now();
            self.save();
        }
    }

    /// When all copies were last known to be sound and equal, in seconds.
    pub(super) fn clean_at(&self) -> Option<u64> {
        self.kept.clean_at
    }

    fn next(&self) -> Option<u64> {
        Some(self.kept.counts_from.saturating_add(self.every?.as_secs()))
    }

    /// What operators see.
    pub(super) fn status(
        &mut self,
        config: &Config,
        volumes: &Volumes,
        view: &View,
    ) -> VerifyStatus {
        self.note(config, volumes, view);
        let by = view
            .verify
            .by
            .and_then(|n| config.nodes.get(usize::from(n.0)));
        let running = by.map(|node| VerifyRun {
            by: node.name.clone(),
            counts: view.verify.running.as_ref().map(counts),
            left_bytes: view.verify.running.map(|_| view.verify.left_bytes),
            percent: view.verify.running.map(|v| {
                super::status::percent(view.verify.left_bytes, v.bytes + view.verify.left_bytes)
            }),
        });
        VerifyStatus {
            running,
            last: self.kept.last.clone(),
            last_clean: self.kept.clean_at.map(date),
            next: self.next().map(date),
        }
    }
}

fn counts(verified: &Verified) -> VerifyCounts {
    VerifyCounts {
        repair: verified.repair,
        bytes: verified.bytes,
        wire_bytes: verified.wire_bytes,
        bad_blocks: verified.bad,
        differing_blocks: verified.differing,
        left_blocks: verified.left,
    }
}

/// Replaces the file, so that there is always a whole one.
fn save(file: &Path, kept: &Kept) -> std::io::Result<()> {
    let beside = file.with_extension("json.new");
    let mut new = File::create(&beside)?;
    new.write_all(serde_json::to_string_pretty(kept)?.as_bytes())?;
    new.sync_all()?;
    fs::rename(&beside, file)?;
    match file.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Begins what is due, and takes note of what ended.
pub(super) async fn run(shared: Rc<Shared>) {
    if shared.node().role != NodeRole::Data {
        return;
    }
    let mut changed = shared.changed.subscribe();
    let mut not_before = Instant::now();
    loop {
        changed.mark_unchanged();
        let snapshot = shared.data.snapshot();
        let view = snapshot.view;
        let next = {
            let mut status = shared.status.borrow_mut();
            status.dates.note(&shared.config, &snapshot.volumes, &view);
            status.dates.next()
        };
        let is_due = next.is_some_and(|at| now() >= at) && Instant::now() >= not_before;
        if is_due && view.serving && view.verify.by.is_none() && !shared.stopping.get() {
            not_before = Instant::now() + RETRY;
            let command = DataCommand::Verify {
                repair: true,
                bytes_per_second: shared.config.scrub.bytes_per_second,
            };
            match shared.command(command, COMMAND_TIMEOUT).await {
                Ok(()) => tracing::info!("a verification was due and has begun"),
                Err(error) => tracing::warn!("a verification is due and can not begin: {error}"),
            }
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

#[cfg(test)]
mod tests;

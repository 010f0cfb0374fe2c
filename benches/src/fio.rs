//! fio: how a job is run, and what came of it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nbd_server::nbd::client::Uri;
use serde::Deserialize;
use tools::demo::finish;

use crate::error::{BenchError, io_error};
use crate::jobs::{Job, Pattern};
use crate::process::is_there;

/// How a job went.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    /// Reads or writes that were answered per second; with flushes, writes that were flushed.
    pub iops: f64,
    /// Mean time until the answer; with flushes, until the answer to the write and then to its flush.
    pub mean_us: f64,
    /// 99 of 100 were answered within this; unknown with flushes.
    pub p99_us: Option<f64>,
    /// How many reads or writes.
    pub operations: u64,
}

/// How long a job runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// What is measured.
    pub run: Duration,
    /// What goes before, so that caches and queues are as they are in the long run.
    pub ramp: Duration,
}

/// fio with its engine for NBD.
#[derive(Debug)]
pub struct Fio {
    volume_bytes: u64,
}

impl Fio {
    /// fio, if it is there and knows NBD.
    ///
    /// # Errors
    /// It is not.
    pub fn find(volume_bytes: u64) -> Result<Self, BenchError> {
        if !is_there("fio") {
            return Err(BenchError::Missing("fio", "fio"));
        }
        let help = Command::new("fio")
            .arg("--enghelp")
            .output()
            .map_err(|source| BenchError::Os {
                what: "can not run fio",
                source,
            })?;
        let engines = String::from_utf8_lossy(&help.stdout).into_owned();
        if engines.lines().any(|line| line.trim() == "nbd") {
            Ok(Self { volume_bytes })
        } else {
            Err(BenchError::Missing("fio with ioengine=nbd", "fio"))
        }
    }

    /// The command for a job. `seed` decides where it writes.
    #[must_use]
    pub fn arguments(&self, job: &Job, uri: &Uri, span: Span, seed: u32) -> Vec<String> {
        let pattern = match job.pattern {
            Pattern::RandomWrite => "randwrite",
            Pattern::RandomRead => "randread",
            Pattern::SequentialWrite => "write",
        };
        let mut arguments = vec![
            "fio".to_owned(),
            "--name=job".to_owned(),
            "--ioengine=nbd".to_owned(),
            format!("--uri={uri}"),
            format!("--rw={pattern}"),
            format!("--bs={}", job.block_bytes),
            format!("--iodepth={}", job.depth),
            format!("--size={}", self.volume_bytes),
            "--time_based".to_owned(),
            format!("--runtime={}ms", span.run.as_millis()),
            format!("--ramp_time={}ms", span.ramp.as_millis()),
            "--norandommap".to_owned(),
            "--randrepeat=1".to_owned(),
            format!("--randseed={seed}"),
            "--output-format=json".to_owned(),
        ];
        if job.flush {
            arguments.push("--fsync=1".to_owned());
        }
        arguments
    }

    /// Writes the whole volume once.
    ///
    /// # Errors
    /// fio failed.
    pub fn fill(&self, uri: &Uri, interrupted: &AtomicBool) -> Result<(), BenchError> {
        let mut command = Command::new("fio");
        command
            .args(["--name=fill", "--ioengine=nbd", "--rw=write", "--bs=1M"])
            .args(["--iodepth=4", "--end_fsync=1", "--output-format=json"])
            .arg(format!("--uri={uri}"))
            .arg(format!("--size={}", self.volume_bytes));
        let bound = Duration::from_secs(300);
        complete(&mut command, bound, interrupted).map(drop)
    }

    /// Runs a job.
    ///
    /// # Errors
    /// fio failed, or an operation did.
    pub fn run(
        &self,
        (job, uri): (&Job, &Uri),
        span: Span,
        seed: u32,
        interrupted: &AtomicBool,
    ) -> Result<Measured, BenchError> {
        let arguments = self.arguments(job, uri, span, seed);
        let mut command = Command::new(&arguments[0]);
        command.args(&arguments[1..]);
        let text = complete(&mut command, bound_of(span), interrupted)?;
        parse(&text, job)
    }
}

/// How long a job may take before something is wrong.
#[must_use]
pub fn bound_of(span: Span) -> Duration {
    (span.run + span.ramp) * 4 + Duration::from_secs(60)
}

/// Runs a command to its end; what it printed.
pub(crate) fn complete(
    command: &mut Command,
    bound: Duration,
    interrupted: &AtomicBool,
) -> Result<String, BenchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let finished = finish(command, bound, interrupted)
        .map_err(|source| io_error("run", Path::new(&program), source))?;
    if interrupted.load(Ordering::Relaxed) {
        return Err(BenchError::Interrupted);
    }
    if finished.code == 0 {
        return Ok(finished.stdout);
    }
    let message = finished.message();
    Err(BenchError::Program { program, message })
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<JobOutput>,
}

#[derive(Deserialize)]
struct JobOutput {
    error: i64,
    read: Side,
    write: Side,
    #[serde(default)]
    sync: Option<Side>,
}

#[derive(Deserialize)]
struct Side {
    total_ios: u64,
    #[serde(default)]
    iops: f64,
    lat_ns: Latency,
    #[serde(default)]
    clat_ns: Option<Completion>,
}

#[derive(Deserialize)]
struct Latency {
    mean: f64,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

/// Reads what fio printed as JSON, which warnings may go before.
pub(crate) fn parse(text: &str, job: &Job) -> Result<Measured, BenchError> {
    let wrong = |message: String| BenchError::Program {
        program: format!("fio ({})", job.name),
        message,
    };
    let json = &text[text.find('{').unwrap_or(0)..];
    let output: Output = serde_json::from_str(json)
        .map_err(|error| wrong(format!("its JSON is not as expected: {error}")))?;
    let Some(done) = output.jobs.first() else {
        return Err(wrong("it did nothing".to_owned()));
    };
    if done.error != 0 {
        return Err(wrong(format!(
            "an operation failed with error {}",
            done.error
        )));
    }
    let side = match job.pattern {
        Pattern::RandomRead => &done.read,
        Pattern::RandomWrite | Pattern::SequentialWrite => &done.write,
    };
    if side.total_ios == 0 {
        return Err(wrong("no operation was answered".to_owned()));
    }
    let mut mean_ns = side.lat_ns.mean;
    if job.flush {
        let flushes = done.sync.as_ref().filter(|sync| sync.total_ios > 0);
        let flushes = flushes.ok_or_else(|| wrong("no flush was answered".to_owned()))?;
        mean_ns += flushes.lat_ns.mean;
    }
    let percentiles = side.clat_ns.as_ref().filter(|_| !job.flush);
    let p99_ns = percentiles.and_then(|clat| clat.percentile.get("99.000000"));
    Ok(Measured {
        iops: side.iops,
        mean_us: mean_ns / 1e3,
        p99_us: p99_ns.map(|ns| ns / 1e3),
        operations: side.total_ios,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"fio: a warning
        {"jobs": [{"error": 0,
          "read": {"total_ios": 0, "iops": 0.0, "lat_ns": {"mean": 0.0}},
          "write": {"total_ios": 500, "iops": 250.5, "lat_ns": {"mean": 2000.0},
                    "clat_ns": {"percentile": {"99.000000": 9000}}},
          "sync": {"total_ios": 499, "lat_ns": {"mean": 3000.0}}}]}"#;

    #[test]
    fn a_flushed_write_takes_as_long_as_both() {
        let job = Job::named("randwrite-4k-qd1-flush").unwrap();
        let measured = parse(TEXT, job).unwrap();
        assert_eq!((measured.mean_us, measured.p99_us), (5.0, None));
        let job = Job::named("randwrite-4k-qd1").unwrap();
        let measured = parse(TEXT, job).unwrap();
        assert_eq!((measured.mean_us, measured.p99_us), (2.0, Some(9.0)));
        assert_eq!((measured.iops, measured.operations), (250.5, 500));
    }

    #[test]
    fn a_job_that_did_nothing_or_failed_is_no_measurement() {
        let job = Job::named("randread-4k-qd32").unwrap();
        assert!(parse(TEXT, job).is_err());
        let failed = TEXT.replace(r#""error": 0"#, r#""error": 5"#);
        let job = Job::named("randwrite-4k-qd1").unwrap();
        assert!(parse(&failed, job).unwrap_err().to_string().contains('5'));
        let unflushed = TEXT.replace("499", "0");
        let job = Job::named("randwrite-4k-qd1-flush").unwrap();
        assert!(parse(&unflushed, job).is_err());
        assert!(parse("fio: no such engine", job).is_err());
    }
}

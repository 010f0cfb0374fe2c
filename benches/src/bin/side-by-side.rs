//! `cargo side-by-side`: other servers and ours on the same work, in one run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use benches::error::{BenchError, io_error};
use benches::fio::Span;
use benches::jobs::JOBS;
use benches::run::{Plan, run};
use benches::systems::SYSTEMS;
use benches::{chart, table};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use tools::demo::watch_signals;

/// Compares repld with other NBD servers on the same work, interleaved, and prints a table with ratios.
#[derive(Debug, Parser)]
#[command(name = "cargo side-by-side --", version)]
struct Options {
    /// One short round of everything: under three minutes, and only good for a first look
    #[arg(long)]
    quick: bool,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the results as an SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Keep the stores in a new directory below this one; a disk, and O_DIRECT
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// And once more below this one; a tmpfs that takes O_DIRECT (Linux 6.6)
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    memory_dir: PathBuf,
    /// Only in --dir
    #[arg(long)]
    no_memory: bool,
    /// How often each system does each job
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// How long each time, in milliseconds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    run_ms: Option<u64>,
    /// MiB of each volume
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    volume_mib: u64,
    /// Only this system; may be given more than once
    #[arg(long = "system", value_name = "NAME", value_parser = PossibleValuesParser::new(SYSTEMS.iter().map(|system| system.name)))]
    systems: Vec<String>,
    /// Only this job; may be given more than once
    #[arg(long = "job", value_name = "NAME", value_parser = PossibleValuesParser::new(JOBS.iter().map(|job| job.name)))]
    jobs: Vec<String>,
}

impl Options {
    fn plan(&self) -> Plan {
        let (rounds, run_ms, ramp_ms, cost_ms) = if self.quick {
            (1, 500, 100, 200)
        } else {
            (3, 2000, 300, 1000)
        };
        let mut places = vec![self.dir.clone()];
        if !self.no_memory {
            places.push(self.memory_dir.clone());
        }
        Plan {
            volume_bytes: self.volume_mib << 20,
            rounds: self.rounds.unwrap_or(rounds),
            span: Span {
                run: Duration::from_millis(self.run_ms.unwrap_or(run_ms)),
                ramp: Duration::from_millis(ramp_ms),
            },
            cost: Duration::from_millis(cost_ms),
            cost_once: self.quick,
            places,
            systems: self.systems.clone(),
            jobs: self.jobs.clone(),
        }
    }
}

fn main() -> ExitCode {
    match compare(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side-by-side: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<(), BenchError> {
    let interrupted = watch_signals()?;
    let programs = integration::build_programs()?;
    let results = run(&options.plan(), &programs, &interrupted)?;
    print!("{}", table::render(&results));
    if let Some(path) = &options.json {
        let text = results.json().map_err(|error| BenchError::Program {
            program: "the results".to_owned(),
            message: error.to_string(),
        })?;
        std::fs::write(path, text + "\n").map_err(|source| io_error("write", path, source))?;
    }
    if let Some(path) = &options.svg {
        let text = chart::render(&results);
        std::fs::write(path, text).map_err(|source| io_error("write", path, source))?;
    }
    Ok(())
}

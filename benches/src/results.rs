//! What was measured, and what is made of it: medians over rounds, and ratios within them.
//!
//! A ratio compares two systems in the same round, a second or two apart; then the median is taken over the rounds. What else the machine does
//! meets both, so a ratio holds where a figure does not.

use nix::sys::utsname::uname;
use serde::Serialize;

use crate::cost::{Cost, Counter};
use crate::fio::Measured;
use crate::jobs::{BASELINE, Job};
use crate::place::{FlushCost, Medium};
use crate::run::Plan;
use crate::systems::{Promise, System};

/// One system doing one job once.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Round {
    /// What fio saw.
    pub measured: Measured,
    /// What the disk did meanwhile, whoever asked.
    pub device_flushes: Option<u64>,
}

/// One system doing one job.
#[derive(Clone, PartialEq, Debug)]
pub struct Cell {
    /// Which system.
    pub system: &'static System,
    /// Which job.
    pub job: &'static Job,
    /// Where its stores are.
    pub medium: Medium,
    /// All rounds.
    pub rounds: Vec<Round>,
    /// What it costs, by process.
    pub costs: Vec<Cost>,
}

/// Everything in one place.
#[derive(Clone, PartialEq, Debug)]
pub struct Section {
    /// What the place is.
    pub medium: Medium,
    /// What a flush costs there.
    pub flush: Option<FlushCost>,
    /// System by system, job by job.
    pub cells: Vec<Cell>,
}

/// The machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Host {
    kernel: String,
    cpus: usize,
    load: String,
}

/// Everything.
#[derive(Clone, PartialEq, Debug)]
pub struct Results {
    /// Where it was measured.
    pub host: Host,
    /// What was not, and why.
    pub skipped: Vec<String>,
    /// By place.
    pub sections: Vec<Section>,
    rounds: u32,
    seconds: f64,
    volume_bytes: u64,
    counter: Counter,
}

impl Cell {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(system: &'static System, job: &'static Job, medium: Medium) -> Self {
        Self {
            system,
            job,
            medium,
            rounds: Vec::new(),
            costs: Vec::new(),
        }
    }

    /// Whether what was acknowledged, or read, is still there after all machines lost their power.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        let promised = self.job.flush || self.system.promise == Promise::Write;
        promised && self.medium == Medium::Disk
    }

    /// Median operations per second.
    #[must_use]
    pub fn iops(&self) -> f64 {
        self.middle(|round| Some(round.measured.iops))
            .unwrap_or(0.0)
    }

    /// The slowest and the fastest round's operations per second.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        let all = self.rounds.iter().map(|round| round.measured.iops);
        (
            all.clone().fold(f64::INFINITY, f64::min),
            all.fold(0.0, f64::max),
        )
    }

    /// Median of the mean times.
    #[must_use]
    pub fn mean_us(&self) -> f64 {
        self.middle(|round| Some(round.measured.mean_us))
            .unwrap_or(0.0)
    }

    /// Median of the 99th percentiles.
    #[must_use]
    pub fn p99_us(&self) -> Option<f64> {
        self.middle(|round| round.measured.p99_us)
    }

    /// How often the disk flushed, for each operation.
    #[must_use]
    pub fn flushes_per_op(&self) -> Option<f64> {
        self.middle(|round| {
            Some(round.device_flushes? as f64 / round.measured.operations.max(1) as f64)
        })
    }

    /// The sum over the processes, if it is known of all.
    #[must_use]
    pub fn sum(&self, of: impl Fn(&Cost) -> Option<f64>) -> Option<f64> {
        let all: Option<Vec<f64>> = self.costs.iter().map(of).collect();
        all.filter(|all| !all.is_empty())
            .map(|all| all.iter().sum())
    }

    fn middle(&self, of: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
        median(self.rounds.iter().filter_map(of).collect())
    }
}

impl Section {
    /// How many times as fast as the baseline a cell is.
    #[must_use]
    pub fn ratio(&self, cell: &Cell) -> Option<f64> {
        let base = self
            .cells
            .iter()
            .find(|other| other.system.name == BASELINE && other.job.name == cell.job.name)?;
        let pairs = cell.rounds.iter().zip(&base.rounds);
        median(
            pairs
                .map(|(ours, base)| ours.measured.iops / base.measured.iops.max(f64::MIN_POSITIVE))
                .collect(),
        )
    }

    /// The jobs, in their order.
    #[must_use]
    pub fn jobs(&self) -> Vec<&'static Job> {
        let mut jobs: Vec<&'static Job> = Vec::new();
        for cell in &self.cells {
            if !jobs.iter().any(|job| job.name == cell.job.name) {
                jobs.push(cell.job);
            }
        }
        jobs
    }

    /// What all systems did of a job.
    pub fn of_job(&self, job: &Job) -> impl Iterator<Item = &Cell> {
        let name = job.name;
        self.cells.iter().filter(move |cell| cell.job.name == name)
    }
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn look() -> Self {
        let kernel = uname().map_or_else(
            |_| "unknown".to_owned(),
            |name| name.release().to_string_lossy().into_owned(),
        );
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            kernel,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

#[derive(Serialize)]
struct Json<'a> {
    host: &'a Host,
    rounds: u32,
    seconds: f64,
    volume_bytes: u64,
    baseline: &'static str,
    syscalls_counted_with: Counter,
    skipped: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<FlushCost>,
    runs: Vec<Run<'a>>,
    memory_runs: Vec<Run<'a>>,
}

#[derive(Serialize)]
struct Run<'a> {
    system: &'static str,
    job: &'static str,
    medium: Medium,
    iops: f64,
    iops_least: f64,
    iops_most: f64,
    mean_us: f64,
    p99_us: Option<f64>,
    durable: bool,
    copies: u32,
    ratio_to_baseline: Option<f64>,
    cpu_us_per_op: Option<f64>,
    syscalls_per_op: Option<f64>,
    disk_flushes_per_op: Option<f64>,
    processes: &'a [Cost],
}

impl Results {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(host: Host, plan: &Plan, counter: Counter) -> Self {
        Self {
            host,
            skipped: Vec::new(),
            sections: Vec::new(),
            rounds: plan.rounds,
            seconds: plan.span.run.as_secs_f64(),
            volume_bytes: plan.volume_bytes,
            counter,
        }
    }

    /// Takes what was measured in a place.
    pub fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// One line about how it was measured.
    #[must_use]
    pub fn conditions(&self) -> String {
        let rounds = if self.rounds == 1 { "round" } else { "rounds" };
        format!(
            "Linux {}, {} CPUs, load {} at the start; {} {rounds} of {} s, volumes of {} MiB",
            self.host.kernel,
            self.host.cpus,
            self.host.load,
            self.rounds,
            self.seconds,
            self.volume_bytes >> 20
        )
    }

    /// Everything, for programs. `runs` is the first place (the disk), `memory_runs` the second.
    ///
    /// # Errors
    /// A figure is not a number, which can not be.
    pub fn json(&self) -> serde_json::Result<String> {
        let runs = |index: usize| {
            let section = self.sections.get(index);
            let cells = section.map_or(&[][..], |section| &section.cells);
            cells.iter().map(move |cell| run(section, cell)).collect()
        };
        serde_json::to_string_pretty(&Json {
            host: &self.host,
            rounds: self.rounds,
            seconds: self.seconds,
            volume_bytes: self.volume_bytes,
            baseline: BASELINE,
            syscalls_counted_with: self.counter,
            skipped: &self.skipped,
            disk: self.sections.first().and_then(|section| section.flush),
            runs: runs(0),
            memory_runs: runs(1),
        })
    }
}

fn run<'a>(section: Option<&Section>, cell: &'a Cell) -> Run<'a> {
    let (iops_least, iops_most) = cell.range();
    Run {
        system: cell.system.name,
        job: cell.job.name,
        medium: cell.medium,
        iops: cell.iops(),
        iops_least,
        iops_most,
        mean_us: cell.mean_us(),
        p99_us: cell.p99_us(),
        durable: cell.is_durable(),
        copies: cell.system.copies,
        ratio_to_baseline: section.and_then(|section| section.ratio(cell)),
        cpu_us_per_op: cell.sum(|cost| Some(cost.cpu_us_per_op)),
        syscalls_per_op: cell.sum(|cost| cost.syscalls_per_op),
        disk_flushes_per_op: cell.flushes_per_op(),
        processes: &cell.costs,
    }
}

/// The middle one, or the mean of both; `None` of none.
#[must_use]
pub fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let half = numbers.len() / 2;
    let upper = *numbers.get(half)?;
    if numbers.len() % 2 == 1 {
        Some(upper)
    } else {
        Some((numbers[half - 1] + upper) / 2.0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fio::Span;
    use crate::systems::SYSTEMS;

    fn round(iops: f64) -> Round {
        let measured = Measured {
            iops,
            mean_us: 1e6 / iops,
            p99_us: None,
            operations: 100,
        };
        let device_flushes = Some(50);
        Round {
            measured,
            device_flushes,
        }
    }

    fn cell(system: &str, job: &str, rounds: &[f64]) -> Cell {
        let system = SYSTEMS.iter().find(|s| s.name == system).unwrap();
        let mut cell = Cell::new(system, Job::named(job).unwrap(), Medium::Disk);
        cell.rounds = rounds.iter().map(|iops| round(*iops)).collect();
        cell.costs = vec![Cost {
            name: "one & only".to_owned(),
            cpu_us_per_op: 12.5,
            syscalls_per_op: None,
        }];
        cell
    }

    pub(crate) fn results() -> Results {
        let job = "randwrite-4k-qd32";
        let second = Duration::from_secs(1);
        let plan = Plan {
            volume_bytes: 1 << 20,
            rounds: 3,
            span: Span {
                run: second,
                ramp: second,
            },
            cost: second,
            cost_once: false,
            places: Vec::new(),
            systems: Vec::new(),
            jobs: Vec::new(),
        };
        let mut results = Results::new(Host::look(), &plan, Counter::None);
        results.add(Section {
            medium: Medium::Disk,
            flush: None,
            cells: vec![
                cell("repld-3", job, &[100.0, 400.0, 10.0]),
                cell(BASELINE, job, &[50.0, 100.0, 5.0]),
                cell("nbdkit", "randwrite-4k-qd1-flush", &[7.0]),
            ],
        });
        results
    }

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        let results = results();
        let section = &results.sections[0];
        assert_eq!(section.cells[0].iops(), 100.0);
        assert_eq!(section.ratio(&section.cells[0]), Some(2.0));
        assert_eq!(section.ratio(&section.cells[1]), Some(1.0));
        assert_eq!(section.ratio(&section.cells[2]), None);
        assert_eq!(section.cells[0].range(), (10.0, 400.0));
        assert_eq!(section.cells[0].flushes_per_op(), Some(0.5));
    }

    #[test]
    fn only_what_survives_the_power_is_durable() {
        let results = results();
        let durable = |n: usize| results.sections[0].cells[n].is_durable();
        assert!(durable(0) && !durable(1) && durable(2));
        let mut in_memory = results.sections[0].cells[0].clone();
        in_memory.medium = Medium::Memory;
        assert!(!in_memory.is_durable());
    }

    #[test]
    fn the_json_has_the_keys_that_scripts_rely_on() {
        let json: serde_json::Value = serde_json::from_str(&results().json().unwrap()).unwrap();
        let first = &json["runs"][0];
        assert_eq!(first["system"], "repld-3");
        assert_eq!(first["job"], "randwrite-4k-qd32");
        assert_eq!(first["iops"], 100.0);
        assert_eq!(first["durable"], true);
        assert!(first["mean_us"].is_number());
        assert_eq!(json["memory_runs"].as_array().map(Vec::len), Some(0));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }
}

//! Who does what when.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tools::cluster::Programs;

use crate::cost::{self, Counter};
use crate::error::BenchError;
use crate::fio::{Fio, Span};
use crate::jobs::{JOBS, Job};
use crate::place::{Medium, Place};
use crate::results::{Cell, Host, Results, Round, Section};
use crate::systems::{Ground, Running, SYSTEMS, System, await_export};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of every volume.
    pub volume_bytes: u64,
    /// How often every job is done by every system.
    pub rounds: u32,
    /// How long, each time.
    pub span: Span,
    /// How long a job's cost is looked at.
    pub cost: Duration,
    /// Whether that is done in the first place only.
    pub cost_once: bool,
    /// Directories to work in, one after the other.
    pub places: Vec<PathBuf>,
    /// Only these systems, if any are named.
    pub systems: Vec<String>,
    /// Only these jobs, if any are named.
    pub jobs: Vec<String>,
}

/// What the parts of a run share.
#[derive(Debug)]
pub struct Context {
    /// How system calls are counted.
    pub counter: Counter,
    /// Set by Ctrl-C.
    pub interrupted: Arc<AtomicBool>,
    scratch: tempfile::TempDir,
    begun: Instant,
}

impl Context {
    /// A directory for small files.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn say(&self, text: &str) {
        eprintln!("{:6.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    fn check(&self) -> Result<(), BenchError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        Ok(())
    }
}

impl Plan {
    fn has_system(&self, system: &System) -> bool {
        self.systems.is_empty() || self.systems.iter().any(|name| name == system.name)
    }

    fn jobs(&self) -> Vec<&'static Job> {
        let wanted =
            |job: &&Job| self.jobs.is_empty() || self.jobs.iter().any(|name| name == job.name);
        JOBS.iter().filter(wanted).collect()
    }
}

/// Measures everything.
///
/// # Errors
/// fio is not there, our own nodes fail, or a job fails.
pub fn run(
    plan: &Plan,
    programs: &Programs,
    interrupted: &Arc<AtomicBool>,
) -> Result<Results, BenchError> {
    let fio = Fio::find(plan.volume_bytes)?;
    let scratch = tempfile::tempdir().map_err(|source| BenchError::Os {
        what: "no temporary directory",
        source,
    })?;
    let context = Context {
        counter: Counter::find(scratch.path()),
        interrupted: Arc::clone(interrupted),
        scratch,
        begun: Instant::now(),
    };
    let ground = Ground {
        programs: programs.clone(),
        volume_bytes: plan.volume_bytes,
        interrupted: Arc::clone(interrupted),
    };
    let mut results = Results::new(Host::look(), plan, context.counter);
    let wanted: Vec<&'static System> = SYSTEMS.iter().filter(|s| plan.has_system(s)).collect();
    let (here, missing): (Vec<&System>, Vec<&System>) =
        wanted.into_iter().partition(|s| s.missing().is_none());
    for system in missing {
        let why = system.missing().unwrap_or_default();
        skip(&context, &mut results, format!("{}: {why}", system.name));
    }
    for parent in &plan.places {
        // Room for all stores and journals, and some more.
        let needed = here.iter().map(|s| s.bytes(plan.volume_bytes)).sum::<u64>();
        match Place::new(parent, needed + needed / 8)? {
            Ok(place) => {
                let costs = results.sections.is_empty() || !plan.cost_once;
                let task = Task {
                    plan,
                    fio: &fio,
                    place: &place,
                    costs,
                };
                let (section, skipped) = measure_place(&context, &task, (&here, &ground))?;
                for why in skipped {
                    skip(&context, &mut results, why);
                }
                results.add(section);
            }
            Err(why) => skip(&context, &mut results, why),
        }
    }
    Ok(results)
}

fn skip(context: &Context, results: &mut Results, what: String) {
    context.say(&format!("skipped: {what}"));
    results.skipped.push(what);
}

/// What is to be done in one place.
struct Task<'a> {
    plan: &'a Plan,
    fio: &'a Fio,
    place: &'a Place,
    /// Whether the costs of operations are looked at.
    costs: bool,
}

fn measure_place(
    context: &Context,
    task: &Task<'_>,
    (systems, ground): (&[&'static System], &Ground),
) -> Result<(Section, Vec<String>), BenchError> {
    let Task {
        plan, fio, place, ..
    } = *task;
    let medium = place.medium;
    context.say(&format!("{}: {}", medium.title(), place.dir().display()));
    let flush = match medium {
        Medium::Disk => Some(place.flush_cost(Duration::from_secs(1))?),
        Medium::Memory => None,
    };
    let (mut fleet, skipped) = start_all(context, place, systems, ground)?;
    for running in &mut fleet {
        fio.fill(&running.uri, &context.interrupted)
            .and_then(|()| running.settle())
            .map_err(|error| explained(error, running))?;
    }
    let jobs = plan.jobs();
    let mut cells: Vec<Vec<Cell>> = fleet
        .iter()
        .map(|running| {
            let cell = |job: &&'static Job| Cell::new(running.system, job, medium);
            jobs.iter().map(cell).collect()
        })
        .collect();
    for round in 0..plan.rounds {
        for (number, job) in jobs.iter().enumerate() {
            let mut seen = Vec::new();
            for turn in 0..fleet.len() {
                // Each job and each round begins with another one.
                let index = (turn + number + round as usize) % fleet.len();
                let running = &mut fleet[index];
                context.check()?;
                let flushes = place.device_flushes();
                let measured = fio
                    .run(
                        (job, &running.uri),
                        plan.span,
                        round + 1,
                        &context.interrupted,
                    )
                    .map_err(|error| explained(error, running))?;
                let flushed = place.device_flushes().zip(flushes);
                running
                    .settle()
                    .map_err(|error| explained(error, running))?;
                seen.push((index, measured.iops));
                cells[index][number].rounds.push(Round {
                    measured,
                    device_flushes: flushed.map(|(after, before)| after - before),
                });
            }
            seen.sort_by_key(|(index, _)| *index);
            let words: Vec<String> = seen
                .iter()
                .map(|(index, iops)| format!("{} {iops:.0}", fleet[*index].system.name))
                .collect();
            context.say(&format!(
                "round {} of {}, {}: {}",
                round + 1,
                plan.rounds,
                job.name,
                words.join(", ")
            ));
        }
    }
    if task.costs {
        context.say("what an operation costs");
        for (running, cells) in fleet.iter_mut().zip(&mut cells) {
            for (job, cell) in jobs.iter().zip(cells) {
                context.check()?;
                cell.costs = cost::measure(context, fio, running, job, plan.cost)
                    .map_err(|error| explained(error, running))?;
            }
        }
    }
    let section = Section {
        medium,
        flush,
        cells: cells.into_iter().flatten().collect(),
    };
    Ok((section, skipped))
}

/// Starts all; the peers that do not start are named and left out.
fn start_all(
    context: &Context,
    place: &Place,
    systems: &[&'static System],
    ground: &Ground,
) -> Result<(Vec<Running>, Vec<String>), BenchError> {
    let (mut fleet, mut skipped) = (Vec::new(), Vec::new());
    for system in systems {
        context.check()?;
        let started = system.start(place.dir(), ground).and_then(|running| {
            await_export(&running)?;
            Ok(running)
        });
        match started {
            Ok(running) => fleet.push(running),
            Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
            Err(error) if system.is_ours() => return Err(error),
            Err(error) => {
                let medium = place.medium.title();
                skipped.push(format!("{} ({medium}): {error}", system.name));
            }
        }
    }
    Ok((fleet, skipped))
}

fn explained(error: BenchError, running: &Running) -> BenchError {
    match error {
        BenchError::Program { program, message } => BenchError::Program {
            program: format!("{program} on {}", running.system.name),
            message: format!("{message}\n{}", running.logs()),
        },
        other => other,
    }
}

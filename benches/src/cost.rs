//! What a job costs each process of a system: CPU time from /proc, system calls from `perf stat` or else `strace -c`.
//!
//! A pass of its own, since counting costs something, too. It goes on until the system has done what it put off, so that this is counted.
//! What the kernel does for a process on threads of its own (the disk's interrupts, the network's soft interrupts as far as they interrupt
//! others) is in nobody's books.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde::Serialize;

use crate::error::BenchError;
use crate::fio::{Fio, Measured, Span, bound_of, complete, parse};
use crate::jobs::Job;
use crate::process::{is_there, wait_for};
use crate::run::Context;
use crate::systems::Running;

/// Long enough for what a system puts off.
const AFTER: &str = "0.7";

/// How system calls are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counter {
    /// `perf stat -e raw_syscalls:sys_enter`.
    Perf,
    /// `strace -c -f`.
    Strace,
    /// Not at all.
    None,
}

/// What an operation of a job cost one process.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Cost {
    /// The process.
    pub name: String,
    /// CPU time, of the process and of what the kernel does in its name.
    pub cpu_us_per_op: f64,
    /// Calls into the kernel.
    pub syscalls_per_op: Option<f64>,
}

impl Counter {
    /// The best that works here.
    #[must_use]
    pub fn find(scratch: &Path) -> Self {
        let file = scratch.join("perf-probe");
        let perf = Command::new("perf")
            .args(perf_arguments(&file, std::process::id()))
            .args(["--", "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if perf.is_ok_and(|status| status.success()) && read_perf(&file).is_some() {
            return Self::Perf;
        }
        // Whether processes that are not its children may be traced is seen when it is tried.
        if is_there("strace") && nix::unistd::geteuid().is_root() {
            return Self::Strace;
        }
        Self::None
    }
}

fn perf_arguments(file: &Path, pid: u32) -> Vec<String> {
    let file = file.display().to_string();
    let pid = pid.to_string();
    [
        "stat",
        "-x,",
        "-e",
        "raw_syscalls:sys_enter",
        "-o",
        &file,
        "-p",
        &pid,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The count in perf's line. A process that did not run at all was "not counted", which is none.
fn read_perf(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.contains("raw_syscalls"))?;
    match line.split(',').next()? {
        "<not counted>" => Some(0),
        count => count.parse().ok(),
    }
}

/// Runs a job once more and looks what it costs.
///
/// # Errors
/// The job failed.
pub fn measure(
    context: &Context,
    fio: &Fio,
    running: &mut Running,
    job: &Job,
    length: Duration,
) -> Result<Vec<Cost>, BenchError> {
    let span = Span {
        run: length,
        ramp: Duration::ZERO,
    };
    let processes = running.processes();
    let files: Vec<PathBuf> = (0..processes.len())
        .map(|n| context.scratch().join(format!("calls-{n}")))
        .collect();
    let mut words = Vec::new();
    if context.counter == Counter::Perf {
        for ((_, pid), file) in processes.iter().zip(&files) {
            words.push("perf".to_owned());
            words.extend(perf_arguments(file, *pid));
            words.push("--".to_owned());
        }
    }
    let before = cpu_times(&processes);
    let measured = run_then_rest(context, fio, (running, job), span, words)?;
    running.settle()?;
    let after = cpu_times(&processes);
    let mut calls: Vec<Option<u64>> = files.iter().map(|file| read_perf(file)).collect();
    let mut call_operations = measured.operations;
    if context.counter == Counter::Strace {
        let tracers = trace(context, &processes, &files)?;
        let measured = run_then_rest(context, fio, (running, job), span, Vec::new());
        for tracer in tracers {
            end(tracer);
        }
        call_operations = measured?.operations;
        calls = files.iter().map(|file| read_strace(file)).collect();
        running.settle()?;
    }
    for file in &files {
        // Those that are not there were not written.
        let _ = std::fs::remove_file(file);
    }
    let per_op = |count: f64, operations: u64| count / operations.max(1) as f64;
    Ok(processes
        .into_iter()
        .zip(before.iter().zip(&after))
        .zip(calls)
        .map(|(((name, _), (before, after)), calls)| Cost {
            name,
            cpu_us_per_op: per_op((after - before).max(0.0) * 1e6, measured.operations),
            syscalls_per_op: calls.map(|calls| per_op(calls as f64, call_operations)),
        })
        .collect())
}

/// Runs the job under the command that `words` begins, which also sees the time after it.
fn run_then_rest(
    context: &Context,
    fio: &Fio,
    (running, job): (&Running, &Job),
    span: Span,
    mut words: Vec<String>,
) -> Result<Measured, BenchError> {
    let script = format!("\"$@\"; code=$?; sleep {AFTER}; exit $code");
    words.extend(["sh", "-c", &script, "sh"].map(str::to_owned));
    words.extend(fio.arguments(job, &running.uri, span, 1));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let text = complete(&mut command, bound_of(span), &context.interrupted)?;
    parse(&text, job)
}

/// CPU time of processes and of those of their children that have ended, in seconds.
fn cpu_times(processes: &[(String, u32)]) -> Vec<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let seconds = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(ticks_of(&stat)? as f64 / ticks as f64)
    };
    let times = processes
        .iter()
        .map(|(_, pid)| seconds(*pid).unwrap_or(0.0));
    times.collect()
}

/// proc(5): utime, stime, cutime and cstime are the fields 14 to 17; the second may hold anything in its brackets.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields = rest.split(' ').skip(11).take(4);
    let numbers: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    (numbers.len() == 4).then(|| numbers.iter().sum())
}

fn trace(
    context: &Context,
    processes: &[(String, u32)],
    files: &[PathBuf],
) -> Result<Vec<Child>, BenchError> {
    let mut tracers = Vec::new();
    for ((_, pid), file) in processes.iter().zip(files) {
        let child = Command::new("strace")
            .args(["-q", "-c", "-f", "-o"])
            .arg(file)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.map_err(|source| BenchError::Os {
            what: "can not run strace",
            source,
        })?;
        let tracer = child.id();
        tracers.push(child);
        let path = format!("/proc/{pid}/status");
        let attached = wait_for(&context.interrupted, || {
            let status = std::fs::read_to_string(&path).unwrap_or_default();
            let line = format!("TracerPid:\t{tracer}");
            let gone = !Path::new(&format!("/proc/{tracer}/exe")).exists();
            Ok(gone || status.lines().any(|found| found == line))
        });
        if let Err(error) = attached {
            for tracer in tracers {
                end(tracer);
            }
            return Err(error);
        }
    }
    Ok(tracers)
}

/// Ends a tracer so that it writes its table.
fn end(mut tracer: Child) {
    if let Ok(pid) = i32::try_from(tracer.id()) {
        // It has not been waited for, so the id is its own. It may have ended, which is as good.
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
    }
    let _ = tracer.wait();
}

/// The number of calls in the last line: "100.00 SECONDS USECS/CALL CALLS [ERRORS] total".
fn read_strace(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().rev().find(|line| line.ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_confuse() {
        let stat = "12 (a) b (c) S 1 1 1 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0";
        assert_eq!(ticks_of(stat), Some(100));
        assert_eq!(ticks_of("12 (a) S 1 1"), None);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(ticks_of(&own).is_some());
    }

    #[test]
    fn both_counters_tables_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("table");
        std::fs::write(
            &file,
            "# started\n\n4711,,raw_syscalls:sys_enter,99,100.00,,\n",
        )
        .unwrap();
        assert_eq!(read_perf(&file), Some(4711));
        std::fs::write(&file, "<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n").unwrap();
        assert_eq!(read_perf(&file), Some(0));
        std::fs::write(
            &file,
            "<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n",
        )
        .unwrap();
        assert_eq!(read_perf(&file), None);
        let table = "% time seconds usecs/call calls errors syscall\n------\n 90.00 0.1 1 70 2 read\n 10.00 0.1 1 30 write\n\
                     ------\n100.00 0.2 1 100 2 total\n";
        std::fs::write(&file, table).unwrap();
        assert_eq!(read_strace(&file), Some(100));
        assert_eq!(read_perf(&file), None);
    }
}

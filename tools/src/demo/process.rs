//! Runs a command to its end, with a bound, without ever blocking on its pipes.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; -1 if a signal ended it, which is also what happens at the bound.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// The complaint, on one line.
    #[must_use]
    pub fn message(&self) -> String {
        let text = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let line = text.trim().replace('\n', "; ");
        if self.code < 0 {
            format!("killed after {:?}; {line}", self.took)
        } else {
            line
        }
    }
}

/// Runs a command; kills it when the bound passes or `interrupted` is set.
pub fn finish(
    command: &mut Command,
    bound: Duration,
    interrupted: &AtomicBool,
) -> io::Result<Finished> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    std::thread::scope(|scope| {
        let stdout = scope.spawn(move || collect(stdout));
        let stderr = scope.spawn(move || collect(stderr));
        let mut pause = Duration::from_micros(500);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > bound || interrupted.load(Ordering::Relaxed) {
                child.kill()?;
                break child.wait()?;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        let took = start.elapsed();
        let join = |handle: std::thread::ScopedJoinHandle<'_, String>| {
            handle
                .join()
                .map_err(|_| io::Error::other("the reader of a pipe failed"))
        };
        let (stdout, stderr) = (join(stdout)?, join(stderr)?);
        Ok(Finished {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr,
            took,
        })
    })
}

fn collect(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What came before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, bound: Duration) -> Finished {
        let never = AtomicBool::new(false);
        finish(Command::new("sh").args(["-c", script]), bound, &never).expect("sh runs")
    }

    #[test]
    fn code_and_output_are_collected() {
        let finished = sh("echo out; echo err >&2; exit 10", Duration::from_secs(20));
        assert_eq!((finished.code, finished.stdout.as_str()), (10, "out\n"));
        assert_eq!(finished.message(), "err");
    }

    #[test]
    fn more_than_a_pipe_holds_is_no_deadlock() {
        let finished = sh(
            "head -c 300000 /dev/zero | tr '\\0' x",
            Duration::from_secs(20),
        );
        assert_eq!((finished.code, finished.stdout.len()), (0, 300_000));
    }

    #[test]
    fn the_bound_ends_it() {
        let finished = sh("exec sleep 60", Duration::from_millis(50));
        assert_eq!(finished.code, -1);
        assert!(finished.message().starts_with("killed after"));
    }
}

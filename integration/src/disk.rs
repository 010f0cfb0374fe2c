//! A disk that fails, hangs or is slow when it is told to: nbdkit with its filters serves what was a node's file, and
//! nbdfuse puts that in the file's place.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::BOUND;

/// Which requests fail once [`Disk::fail`] was called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailAt {
    /// Writes and zeroing.
    Writing,
    /// Reads.
    Reading,
}

impl FailAt {
    fn requests(self) -> &'static [&'static str] {
        match self {
            Self::Writing => &["pwrite", "zero", "trim"],
            Self::Reading => &["pread"],
        }
    }
}

/// A disk in the place of a file, until it is dropped.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    nbdkit: Child,
    nbdfuse: Child,
}

impl Disk {
    /// Why there can be none on this machine, if so.
    #[must_use]
    pub fn missing() -> Option<String> {
        for program in ["nbdkit", "nbdfuse", "fusermount3"] {
            let known = Command::new(program)
                .arg("--version")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if !known.is_ok_and(|status| status.success()) {
                return Some(format!("needs {program}"));
            }
        }
        let fuse = File::options().read(true).write(true).open("/dev/fuse");
        fuse.err().map(|error| format!("needs /dev/fuse: {error}"))
    }

    /// Takes the place of an existing file that nobody has open; each write waits for `delay`.
    ///
    /// # Panics
    /// If that does not work.
    #[must_use]
    pub fn under(path: &Path, delay: Duration) -> Self {
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (backing, socket) = (beside(".backing"), beside(".sock"));
        std::fs::rename(path, &backing).expect("the file is there");
        File::create(path).expect("the mount point");
        let mut command = Command::new("nbdkit");
        command
            .args(["-f", "--filter=delay", "--filter=error", "-U"])
            .arg(&socket)
            .args(["file", "cache=none"])
            .arg(format!("file={}", backing.display()))
            .arg(format!("delay-write={}ms", delay.as_millis()));
        for at in [FailAt::Writing, FailAt::Reading] {
            for request in at.requests() {
                command
                    .arg(format!("error-{request}=EIO"))
                    .arg(format!("error-{request}-rate=100%"))
                    .arg(format!("error-{request}-file={}", flag(path, at).display()));
            }
        }
        let mut nbdkit = start(&mut command);
        until("nbdkit listening", &mut nbdkit, || socket.exists());
        let pid_file = beside(".mounted");
        let mut nbdfuse = start(
            Command::new("nbdfuse")
                .arg("-P")
                .arg(&pid_file)
                .arg(path)
                .arg(format!("nbd+unix:///?socket={}", socket.display())),
        );
        until("nbdfuse serving", &mut nbdfuse, || {
            std::fs::metadata(&pid_file).is_ok_and(|pid| pid.len() > 0)
        });
        Self {
            path: path.to_owned(),
            nbdkit,
            nbdfuse,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on such requests fail.
    ///
    /// # Panics
    /// If it can not be told so.
    pub fn fail(&self, at: FailAt) {
        File::create(flag(&self.path, at)).expect("a file beside the disk");
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        for at in [FailAt::Writing, FailAt::Reading] {
            // It may not have failed so.
            let _ = std::fs::remove_file(flag(&self.path, at));
        }
    }

    /// From now on nothing is answered.
    ///
    /// # Panics
    /// If it can not be told so.
    pub fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Everything is answered.
    ///
    /// # Panics
    /// If it can not be told so.
    pub fn wake(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        // The child has not been waited for, so the id is still its own.
        let pid = i32::try_from(self.nbdkit.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("nbdkit runs");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Without its server nothing hangs: what is asked of the mount fails. Nothing can be done about errors here.
        let _ = self.nbdkit.kill();
        let _ = self.nbdkit.wait();
        let _ = Command::new("fusermount3")
            .args(["-u", "-z", "-q"])
            .arg(&self.path)
            .status();
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

/// The file whose presence makes requests fail.
fn flag(path: &Path, at: FailAt) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(match at {
        FailAt::Writing => ".fail-writing",
        FailAt::Reading => ".fail-reading",
    });
    PathBuf::from(name)
}

fn start(command: &mut Command) -> Child {
    let child = command.stdin(Stdio::null()).spawn();
    child.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn until(what: &str, child: &mut Child, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < BOUND, "{what}: nothing within {BOUND:?}");
        let ended = child.try_wait().expect("a child of ours");
        assert!(ended.is_none(), "not {what}, but {ended:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

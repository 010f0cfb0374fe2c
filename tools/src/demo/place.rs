//! Where a small cluster can live: a directory that can do O_DIRECT, and free loopback ports.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tempfile::TempDir;

use super::error::ClusterError;

#[repr(align(4096))]
struct Page([u8; 4096]);

static PAGE: Page = Page([0; 4096]);

/// Whether files in `dir` can be written with O_DIRECT; the error says why not.
pub fn probe_direct_io(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".direct-io-probe-{}", std::process::id()));
    let result = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(&path)
        .and_then(|mut file| file.write_all(&PAGE.0));
    // The probe's own error is the one that matters.
    let _ = std::fs::remove_file(&path);
    result
}

/// Makes a fresh directory whose files can do O_DIRECT: in `wanted`, or else in the first of the usual
/// places that can.
pub fn scratch_dir(wanted: Option<&Path>) -> Result<TempDir, ClusterError> {
    let candidates: Vec<PathBuf> = match wanted {
        Some(dir) => vec![dir.to_owned()],
        None => usual_places(),
    };
    let mut tried = String::new();
    for parent in candidates {
        let attempt = std::fs::create_dir_all(&parent)
            .and_then(|()| tempfile::Builder::new().prefix("repl-").tempdir_in(&parent))
            .and_then(|dir| probe_direct_io(dir.path()).map(|()| dir));
        match attempt {
            Ok(dir) => return Ok(dir),
            Err(error) => {
                if !tried.is_empty() {
                    tried.push_str(", ");
                }
                tried.push_str(&format!("{} ({error})", parent.display()));
            }
        }
    }
    Err(ClusterError::NoDirectIo { tried })
}

fn usual_places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(dir) = std::env::var_os("TMPDIR") {
        places.push(PathBuf::from(dir));
    }
    places.push(PathBuf::from("/var/tmp"));
    places.push(PathBuf::from("/tmp"));
    // Beside the binaries: the build directory is on a disk more often than the others.
    if let Ok(exe) = std::env::current_exe()
        && let Some(dir) = exe.parent()
    {
        places.push(dir.to_owned());
    }
    if let Ok(dir) = std::env::current_dir() {
        places.push(dir);
    }
    places
}

/// A loopback TCP port that nobody listens on, reserved among the programs that use this function for as
/// long as the value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// An abstract Unix socket: gone with the process, seen by every user of this network namespace.
    _reservation: UnixListener,
}

impl Port {
    /// Takes a free port below the range that outgoing connections use.
    pub fn reserve() -> Result<Self, ClusterError> {
        const FIRST: u64 = 20_000;
        const COUNT: u64 = 12_000;
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..200 {
            let random = getrandom::u64().map_err(|_| ClusterError::NoRandomness)?;
            let number = (FIRST + random % COUNT) as u16;
            match Self::try_number(number) {
                Ok(port) => return Ok(port),
                Err(error) => last = error,
            }
        }
        Err(ClusterError::NoPort { source: last })
    }

    fn try_number(number: u16) -> io::Result<Self> {
        let name = format!("replicator-port-{number}");
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        let reservation = UnixListener::bind_addr(&address)?;
        TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))?;
        Ok(Self {
            number,
            _reservation: reservation,
        })
    }

    /// The port's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_not_handed_out_twice() {
        let port = Port::reserve().expect("a port");
        assert!(Port::try_number(port.number()).is_err());
        let number = port.number();
        drop(port);
        assert!(Port::try_number(number).is_ok());
    }

    #[test]
    fn a_scratch_directory_can_do_direct_io() {
        let dir = scratch_dir(None).expect("some place can");
        probe_direct_io(dir.path()).expect("probed");
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_directory_that_can_not_is_named() {
        let error = scratch_dir(Some(Path::new("/proc/none"))).expect_err("no files there");
        assert!(error.to_string().contains("/proc/none"), "{error}");
    }
}

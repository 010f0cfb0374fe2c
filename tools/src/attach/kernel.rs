//! The kernel's NBD client: `/dev/nbdN`, by nbd-client.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Instant;

use nix::fcntl::OFlag;

use super::{PAUSE, Wanted, is_usable, run, user};
use crate::Failure;

/// Whether a device is one of the kernel's client, by its name.
pub(super) fn is_nbd(device: &Path) -> bool {
    let digits = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    let name = device.file_name().and_then(OsStr::to_str).unwrap_or("");
    device.parent() == Some(Path::new("/dev")) && name.strip_prefix("nbd").is_some_and(digits)
}

/// Whether it is attached to something.
pub(super) fn holds(device: &Path) -> bool {
    run("nbd-client", &["-c".as_ref(), device.as_os_str()]).is_ok()
}

/// Attaches it; it is usable then.
pub(super) fn attach(wanted: &Wanted<'_>, deadline: Instant) -> Result<(), Failure> {
    let device = wanted.device;
    if !device.exists() {
        // If that does not help, nbd-client says what is wrong.
        let _ = run("modprobe", &["nbd".as_ref()]);
    }
    let size = wanted.block_size.to_string();
    run(
        "nbd-client",
        &[
            "-unix".as_ref(),
            wanted.socket.as_os_str(),
            "-N".as_ref(),
            wanted.volume.as_ref(),
            "-b".as_ref(),
            size.as_ref(),
            device.as_os_str(),
        ],
    )?;
    while !(holds(device) && is_usable(device)) {
        if Instant::now() >= deadline {
            return Err(Failure::Failed(format!(
                "{} is attached and does not become usable; see the kernel's log",
                device.display()
            )));
        }
        sleep(PAUSE);
    }
    Ok(())
}

/// How far a device is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gone {
    /// It can be attached again.
    Wholly,
    /// Some still use it, and get errors; until they end the kernel keeps it.
    ButForUsers,
}

/// Takes it away, whether there is a server or not. The kernel keeps a device until the last who uses it is gone; by force it is enough that
/// they get errors from now on.
pub(super) fn detach(device: &Path, by_force: bool) -> Result<Gone, Failure> {
    if !device.exists() || !holds(device) {
        return Ok(Gone::Wholly);
    }
    run("nbd-client", &["-d".as_ref(), device.as_os_str()])?;
    if !holds(device) {
        return Ok(Gone::Wholly);
    }
    if by_force && is_dead(device) {
        return Ok(Gone::ButForUsers);
    }
    let user = user(device).map_or(String::new(), |user| format!(", in use by {user}"));
    Err(Failure::Failed(format!(
        "{} is still attached{user}",
        device.display()
    )))
}

/// Whether whoever reads from it gets an error, and not from a cache.
fn is_dead(device: &Path) -> bool {
    const PAGE: usize = 4096;
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(device);
    let mut memory = vec![0; 2 * PAGE];
    let from = memory.as_ptr().align_offset(PAGE);
    file.and_then(|mut file| file.read(&mut memory[from..from + PAGE]))
        .is_err()
}

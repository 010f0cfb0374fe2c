//! The kernel's NBD client: `/dev/nbdN`, by nbd-client.

use std::ffi::OsStr;
use std::path::Path;
use std::thread::sleep;
use std::time::Instant;

use super::{PAUSE, Wanted, is_usable, run};
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

/// Takes it away, whether there is a server or not.
pub(super) fn detach(device: &Path) -> Result<(), Failure> {
    if !device.exists() || !holds(device) {
        return Ok(());
    }
    run("nbd-client", &["-d".as_ref(), device.as_os_str()])?;
    if holds(device) {
        return Err(Failure::Failed(format!(
            "{} is still attached",
            device.display()
        )));
    }
    Ok(())
}

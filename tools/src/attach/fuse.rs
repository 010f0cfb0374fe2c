//! nbdfuse and a loop device, for hosts whose kernel has no NBD client.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::state::State;
use super::{PAUSE, Wanted, is_usable, run};
use crate::Failure;

/// How long nbdfuse may take to end once it is unmounted.
const END_TIMEOUT: Duration = Duration::from_secs(2);

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {what}: {error}", path.display()))
}

/// Whether all of it is there.
pub(super) fn holds(state: &State, device: &Path) -> bool {
    let target = fs::read_link(device).ok();
    process(state).is_some() && target.is_some() && target == laid(state) && is_usable(device)
}

/// Whether something else is where the link goes.
pub(super) fn is_foreign(device: &Path) -> bool {
    let is_loop = |target: PathBuf| target.to_string_lossy().starts_with("/dev/loop");
    match fs::symlink_metadata(device) {
        Err(_) => false,
        Ok(_) => !fs::read_link(device).is_ok_and(is_loop),
    }
}

/// Attaches it; it is usable then.
pub(super) fn attach(state: &State, wanted: &Wanted<'_>, deadline: Instant) -> Result<(), Failure> {
    let (mount, pid) = (state.mount(), state.pid());
    fs::create_dir_all(&mount).map_err(|error| failed("can not be made", &mount, &error))?;
    let log = state.log();
    let output = File::create(&log).map_err(|error| failed("can not be made", &log, &error))?;
    let again = output
        .try_clone()
        .map_err(|error| failed("can not be made", &log, &error))?;
    let uri = nbd_server::nbd::client::Uri::unix(wanted.volume, wanted.socket).to_string();
    let volume = mount.join("volume");
    // It outlives this command, and the session that it is given in.
    let mut child = Command::new("setsid")
        .args(["nbdfuse".as_ref(), "-P".as_ref(), pid.as_os_str()])
        .args([volume.as_os_str(), uri.as_ref()])
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(again)
        .spawn()
        .map_err(|error| Failure::Failed(format!("nbdfuse can not be run: {error}")))?;
    // It writes its number down when the file is there; until then it is ours to end.
    await_mount(&mut child, state, deadline)?;
    let size = wanted.block_size.to_string();
    let made = run(
        "losetup",
        &[
            "--show".as_ref(),
            "-b".as_ref(),
            size.as_ref(),
            "-f".as_ref(),
            volume.as_os_str(),
        ],
    )?;
    let kept = state.loop_device();
    fs::write(&kept, &made).map_err(|error| failed("can not be written", &kept, &error))?;
    if let Some(dir) = wanted.device.parent() {
        fs::create_dir_all(dir).map_err(|error| failed("can not be made", dir, &error))?;
    }
    let _ = fs::remove_file(wanted.device);
    symlink(&made, wanted.device)
        .map_err(|error| failed("can not be made", wanted.device, &error))?;
    if holds(state, wanted.device) {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{} was attached, and is gone again: {}",
        wanted.device.display(),
        said(state)
    )))
}

fn said(state: &State) -> String {
    fs::read_to_string(state.log()).unwrap_or_default()
}

fn await_mount(child: &mut Child, state: &State, deadline: Instant) -> Result<(), Failure> {
    loop {
        if fs::metadata(state.pid()).is_ok_and(|file| file.len() > 0) {
            return Ok(());
        }
        let ended = child.try_wait().ok().flatten();
        if ended.is_none() && Instant::now() < deadline {
            sleep(PAUSE / 4);
            continue;
        }
        let _ = child.kill();
        let _ = child.wait();
        let why = match ended {
            Some(_) => said(state),
            None => "it does not get an answer".to_owned(),
        };
        return Err(Failure::Failed(format!("nbdfuse failed: {}", why.trim())));
    }
}

/// nbdfuse's process, if it lives.
fn process(state: &State) -> Option<i32> {
    let pid = fs::read_to_string(state.pid()).ok()?;
    let pid = pid.trim().parse::<i32>().ok().filter(|pid| *pid > 1)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    name.contains("nbdfuse").then_some(pid)
}

/// The loop device that is laid over nbdfuse's file, if it still is.
fn laid(state: &State) -> Option<PathBuf> {
    let device = PathBuf::from(fs::read_to_string(state.loop_device()).ok()?.trim());
    let name = device.file_name()?.to_str()?;
    let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    let volume = state.mount().join("volume");
    backing.starts_with(volume.to_str()?).then_some(device)
}

/// Takes away whatever there is of it. By force also what is in use: that gets errors from now on, and the loop device goes with its
/// last user.
pub(super) fn detach(state: &State, device: &Path, by_force: bool) -> Result<(), Failure> {
    let target = fs::read_link(device).ok();
    if let Some(laid) = laid(state) {
        run("losetup", &["-d".as_ref(), laid.as_os_str()])?;
    }
    // One that is in use goes when its last user does: that is none that is gone.
    if let Some(laid) = laid(state)
        && !by_force
    {
        return Err(Failure::Failed(format!(
            "{} ({}) is still in use",
            device.display(),
            laid.display()
        )));
    }
    let kept = fs::read_to_string(state.loop_device()).ok();
    if target.is_some() && target == kept.map(|kept| PathBuf::from(kept.trim())) {
        let _ = fs::remove_file(device);
    }
    let mount = state.mount();
    if is_mounted(&mount) {
        let unmount = |lazy: &[&str]| {
            let mut args: Vec<&std::ffi::OsStr> = vec!["-u".as_ref()];
            args.extend(
                lazy.iter()
                    .map(|word| <str as AsRef<std::ffi::OsStr>>::as_ref(word)),
            );
            args.push(mount.as_os_str());
            run("fusermount3", &args).map(drop)
        };
        unmount(&[]).or_else(|_| unmount(&["-z"]))?;
    }
    end(state);
    Ok(())
}

/// Ends nbdfuse, if it does not by itself.
fn end(state: &State) {
    let deadline = Instant::now() + END_TIMEOUT;
    if let Some(pid) = process(state) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    while let Some(pid) = process(state) {
        if Instant::now() >= deadline {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            return;
        }
        sleep(PAUSE / 4);
    }
}

fn is_mounted(place: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let place = place.to_string_lossy();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(&*place))
}

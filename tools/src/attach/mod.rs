//! `replctl attach` and `detach`: a volume's export as a block device, for a file system on top.
//!
//! There are two ways to one. The kernel's client makes `/dev/nbdN` of an export. Where the kernel has none, nbdfuse makes a file of
//! it, a loop device is laid over that, and the device is a link to the loop device. Each way knows how to attach, how to tell whether
//! that holds, and how to take it away again, also half of it, and also when the server is gone. What was attached is kept in a
//! directory under `/run`, so that detaching needs no config, no server, and nobody who remembers.
//!
//! The resource agent `ocf:replicator:nbd` is these two verbs and `attach --check`.

mod fuse;
mod kernel;
mod state;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use nbd_server::config::{Config, Node, NodeRole};

use crate::Failure;
use crate::cli::host_name;
use crate::known;
use kernel::Gone;
use state::State;

/// The pause between attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Attaches a volume's export as a block device; answers when the device is usable
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The volume's name
    volume: String,
    /// The device that is to be there: /dev/nbdN, or with nbdfuse a link to a loop device
    device: PathBuf,
    /// How it is attached
    #[arg(long, value_enum, default_value_t = Way::Auto)]
    client: Way,
    /// The device's block size; file systems that were made for sectors of 512 bytes need 512
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = block_size)]
    block_size: u32,
    /// The NBD socket, without a look at the config file [default: that of this node's repld]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How long to try
    #[arg(long, value_name = "SECS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    timeout: u64,
    /// Change nothing: answer 0 if it is attached, 1 if not
    #[arg(long)]
    check: bool,
}

/// Takes a device that was attached away
#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// The device
    device: PathBuf,
    /// Also while it is in use: what was not written to it yet is lost
    #[arg(long)]
    force: bool,
    /// How long to try
    #[arg(long, value_name = "SECS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    timeout: u64,
}

/// Who makes a device of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// The kernel's client where DEVICE is an NBD device, else nbdfuse
    Auto,
    /// The kernel's client
    Kernel,
    /// nbdfuse and a loop device
    Fuse,
}

impl Way {
    /// The way for a device.
    fn of(self, device: &Path) -> Self {
        let is_nbd = kernel::is_nbd(device);
        match self {
            Self::Auto if is_nbd => Self::Kernel,
            Self::Auto => Self::Fuse,
            other => other,
        }
    }
}

fn block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("it is 512 or 4096".to_owned()),
    }
}

/// What is to be attached where.
struct Wanted<'a> {
    volume: &'a str,
    socket: &'a Path,
    device: &'a Path,
    block_size: u32,
}

/// `replctl attach`.
pub(crate) fn attach(
    config: &Path,
    node: Option<String>,
    args: &AttachArgs,
) -> Result<(), Failure> {
    let device = absolute(&args.device)?;
    let way = args.client.of(&device);
    if way == Way::Kernel && !kernel::is_nbd(&device) {
        return Err(Failure::Usage(format!(
            "{} is no device of the kernel's NBD client: write /dev/nbd0, or --client fuse",
            device.display()
        )));
    }
    let socket = match &args.socket {
        Some(socket) => socket.clone(),
        None => socket_of(config, node, &args.volume)?,
    };
    let wanted = Wanted {
        volume: &args.volume,
        socket: &socket,
        device: &device,
        block_size: args.block_size,
    };
    let state = State::of(&device);
    let holds = || match way {
        Way::Kernel => kernel::holds(&device),
        _ => fuse::holds(&state, &device),
    };
    if holds() {
        return match state.what() {
            Some(_) if state.is_taken_away() => Err(Failure::Failed(format!(
                "{} was detached by force, and the kernel keeps it for {}: end that first",
                device.display(),
                user(&device).unwrap_or_else(|| "whoever has it open".to_owned())
            ))),
            Some(what) if what != State::text(&wanted) => Err(Failure::Failed(format!(
                "{} is attached to something else, {}: replctl detach it first",
                device.display(),
                what.trim().replace('\n', " at ")
            ))),
            None if !args.check => Err(Failure::Failed(format!(
                "{} is attached already, and not by replctl: take another device, or nbd-client -d it",
                device.display()
            ))),
            _ => Ok(()),
        };
    }
    if args.check {
        return Err(Failure::Failed(format!(
            "{} is not attached",
            device.display()
        )));
    }
    if way == Way::Fuse && fuse::is_foreign(&device) {
        return Err(Failure::Failed(format!(
            "{} exists and is no link to a loop device: take another name",
            device.display()
        )));
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    // What a former attempt, or a server that is gone, left behind.
    clear(&state, &device, state.way(&device), false)?;
    loop {
        let tried = state.keep(&wanted).and_then(|()| match way {
            Way::Kernel => kernel::attach(&wanted, deadline),
            _ => fuse::attach(&state, &wanted, deadline),
        });
        let Err(failure) = tried else { return Ok(()) };
        clear(&state, &device, way, false)?;
        if Instant::now() + PAUSE >= deadline {
            return Err(failure);
        }
        sleep(PAUSE);
    }
}

/// `replctl detach`: succeeds also if nothing is attached.
pub(crate) fn detach(args: &DetachArgs) -> Result<(), Failure> {
    let device = absolute(&args.device)?;
    let state = State::of(&device);
    let way = state.way(&device);
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let used = if args.force { None } else { user(&device) };
        let tried = match used {
            Some(user) => Err(Failure::Failed(format!(
                "{} is in use by {user}: end that first",
                device.display()
            ))),
            None => clear(&state, &device, way, args.force),
        };
        let Err(failure) = tried else { return Ok(()) };
        if Instant::now() + PAUSE >= deadline {
            return Err(failure);
        }
        sleep(PAUSE);
    }
}

/// Takes away whatever there is of an attached device; by force also from those who use it.
fn clear(state: &State, device: &Path, way: Way, by_force: bool) -> Result<(), Failure> {
    match way {
        Way::Kernel => {
            if kernel::detach(device, by_force)? == Gone::ButForUsers {
                return state.keep_taken_away();
            }
        }
        _ => fuse::detach(state, device, by_force)?,
    }
    state.forget();
    Ok(())
}

/// The NBD socket of the node's `repld`.
fn socket_of(config: &Path, node: Option<String>, volume: &str) -> Result<PathBuf, Failure> {
    let config = Config::load(config)?;
    let name = node.map_or_else(host_name, Ok)?;
    let (_, node): (_, &Node) = config.node(&name)?;
    if node.role == NodeRole::Witness {
        return Err(Failure::Usage(format!(
            "{name} is a witness: it has no volumes"
        )));
    }
    let volumes = known::volumes(&config, node);
    if volumes.find(volume).is_none() {
        let known: Vec<_> = volumes.iter().map(|(_, v)| v.name.to_string()).collect();
        return Err(Failure::Usage(format!(
            "there is no volume {volume:?}; there are {}",
            known.join(", ")
        )));
    }
    Ok(node.nbd_socket())
}

fn absolute(device: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(device).map_err(|error| {
        Failure::Usage(format!(
            "{}: no path of a device: {error}",
            device.display()
        ))
    })
}

/// Who uses a block device, as far as can be seen without touching it.
fn user(device: &Path) -> Option<String> {
    let target = std::fs::canonicalize(device).ok()?;
    let name = target.file_name()?.to_str()?;
    let block = Path::new("/sys/class/block").join(name);
    let number = std::fs::read_to_string(block.join("dev")).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    for line in mounts.lines() {
        let words: Vec<_> = line.split(' ').collect();
        if let [_, _, dev, _, place, ..] = words[..]
            && dev == number.trim()
        {
            return Some(format!("the file system at {place}"));
        }
    }
    let mut holders = std::fs::read_dir(block.join("holders")).ok()?;
    let holder = holders.find_map(Result::ok)?;
    Some(holder.file_name().to_string_lossy().into_owned())
}

/// Runs a program to its end; what it said if it failed.
fn run(program: &str, args: &[&std::ffi::OsStr]) -> Result<String, Failure> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::Failed(format!("{program} can not be run: {error}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = [text(&output.stdout), text(&output.stderr)].concat();
    Err(Failure::Failed(format!(
        "{program} failed ({}): {said}",
        output.status
    )))
}

/// Whether there is something to be read from a device.
fn is_usable(device: &Path) -> bool {
    use std::io::{Seek, SeekFrom};
    let end = std::fs::File::open(device).and_then(|mut file| file.seek(SeekFrom::End(0)));
    end.is_ok_and(|bytes| bytes > 0)
}

#[cfg(test)]
mod tests;

//! What the kernel and the limits of this process allow.

use nbd_server::config::Config;
use nbd_server::control::FILES_MIN;
use nbd_server::reactor::ring::Ring;
use nbd_server::reactor::{OPERATIONS_MAX, available_bytes, data_path_bytes};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use replicator::store::sums;

use super::{Finding, fine, warning, wrong};
use crate::status::bytes;

/// Open files that a busy `repld` may need: its connections, disks and some to spare.
const FILES_WANTED: u64 = 2048;

pub(super) fn look(config: &Config, running: bool) -> Vec<Finding> {
    let mut findings = vec![ring()];
    findings.extend(memory(config, running));
    findings.push(files());
    findings
}

fn ring() -> Finding {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let disabled = disabled
        .map(|text| text.trim().to_owned())
        .unwrap_or_default();
    match Ring::<u32>::new(OPERATIONS_MAX) {
        Ok(ring) if ring.defers_work() => fine("io_uring", "everything that is needed is there"),
        Ok(_) => fine("io_uring", "there; Linux 6.1 or later would be faster"),
        Err(error) if matches!(disabled.as_str(), "1" | "2") => wrong(
            "io_uring",
            format!(
                "kernel.io_uring_disabled is {disabled}: run sysctl kernel.io_uring_disabled=0 ({error})"
            ),
        ),
        Err(error) => wrong("io_uring", error.to_string()),
    }
}

fn memory(config: &Config, running: bool) -> Vec<Finding> {
    // In memory a checksum is as large as in one of the four places that it has in the file.
    let volumes = config.volumes.iter().map(|volume| volume.size_bytes);
    let pool = data_path_bytes(config.policy.memory_bytes);
    let checksums: u64 = sums::used(volumes).map(|(_, bytes)| bytes).sum();
    let needed = pool + checksums / 4;
    let text = bytes(needed);
    let mut findings = Vec::new();
    if let Some(available) = available_bytes().filter(|_| !running) {
        findings.push(if available < needed {
            wrong(
                "memory",
                format!(
                    "{text} are set aside at start, {} are available; make [policy] memory smaller, or add memory",
                    bytes(available)
                ),
            )
        } else {
            fine("memory", format!("{text} are set aside at start, {} are available", bytes(available)))
        });
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((0, 0));
    let most = if hard == RLIM_INFINITY {
        u64::MAX
    } else {
        hard.max(soft)
    };
    let text = bytes(pool);
    findings.push(if most >= pool || nix::unistd::geteuid().is_root() {
        fine("memlock", "the data path's memory can be locked")
    } else {
        warning(
            "memlock",
            format!(
                "RLIMIT_MEMLOCK is {} here, the data path has {text}: it is not locked, and may be swapped out while the \
                 disk is needed for swapping; set LimitMEMLOCK=infinity in the unit, or ulimit -l",
                bytes(most)
            ),
        )
    });
    findings
}

fn files() -> Finding {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
    let remedy = "set LimitNOFILE=65536 in the unit, or ulimit -n";
    if hard < FILES_MIN {
        let text = format!("RLIMIT_NOFILE is {hard} here, {FILES_MIN} are needed; {remedy}");
        wrong("nofile", text)
    } else if hard < FILES_WANTED {
        let text = format!(
            "RLIMIT_NOFILE is {hard} here: with many connections some are turned away; {remedy}"
        );
        warning("nofile", text)
    } else {
        fine("nofile", format!("{hard} open files are allowed"))
    }
}

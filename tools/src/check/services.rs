//! What the config names besides the disks: a fence-peer handler, a watchdog, the service of a failover. Nothing of it is run, and the
//! watchdog is not opened, which would arm it.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use nbd_server::config::{Config, Service};

use super::{Finding, fine, warning, wrong};

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(fence_peer) = &config.fence_peer {
        findings.push(program("fencing", &fence_peer.handler, "[fencing] handler"));
    }
    if let Some(watchdog) = &config.watchdog {
        let device = watchdog.device.display();
        findings.push(match std::fs::metadata(&watchdog.device) {
            Ok(file) if file.file_type().is_char_device() => {
                fine("watchdog", format!("{device} resets this host when it is fed no more"))
            }
            Ok(_) => warning(
                "watchdog",
                format!("{device} is no device: nothing will reset this host"),
            ),
            Err(error) => wrong(
                "watchdog",
                format!("{device}: {error}; load its driver, for example softdog, or leave [watchdog] out"),
            ),
        });
    }
    if let Some(failover) = &config.failover {
        findings.push(match &failover.service {
            Service::Command(command) => program("failover", command, "[failover] command"),
            Service::Unit(_) if !Path::new("/run/systemd/system").exists() => wrong(
                "failover",
                "systemd does not run here: write command under [failover] in place of unit",
            ),
            Service::Unit(unit) => fine("failover", format!("replctl auto-failover starts {unit}")),
        });
    }
    findings
}

/// Whether there is a program that can be run.
fn program(what: &'static str, path: &Path, key: &str) -> Finding {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => {
            fine(what, format!("{shown} is there"))
        }
        Ok(_) => wrong(
            what,
            format!("{key} = {shown} is no program: chmod +x it, or name another one"),
        ),
        Err(error) => wrong(what, format!("{key} = {shown}: {error}; put it there")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_is_not_there_is_found_before_it_is_needed() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().join("program");
        let verdict = |path: &Path| program("fencing", path, "[fencing] handler").verdict;
        assert_eq!(verdict(&place), Verdict::Wrong);
        std::fs::write(&place, "#!/bin/sh\n").expect("written");
        assert_eq!(verdict(&place), Verdict::Wrong);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&place, mode).expect("a program");
        assert_eq!(verdict(&place), Verdict::Fine);
        assert_eq!(verdict(dir.path()), Verdict::Wrong);

        let text = "resource = \"r\"\njournal = { size = \"16MiB\" }\nvolume = [{ name = \"db\", size = \"64MiB\" }]\n\
            watchdog = { device = \"DEVICE\" }\n[[node]]\nname = \"a\"\naddress = \"127.0.0.1:7001\"\ndata_dir = \"/d\"\nrun_dir = \"/r\"\n";
        for (device, verdict) in [
            ("/dev/null".to_owned(), Verdict::Fine),
            (place.display().to_string(), Verdict::Warning),
            ("/dev/no-such-watchdog".to_owned(), Verdict::Wrong),
        ] {
            let text = text.replace("DEVICE", &device);
            let config = Config::parse(Path::new("r.toml"), &text).expect("a config");
            assert_eq!(look(&config)[0].verdict, verdict, "{device}");
        }
    }
}

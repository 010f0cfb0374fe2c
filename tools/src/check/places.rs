//! Directories, files and devices of this node.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nbd_server::config::{Config, Node, Volume};
use nbd_server::reactor::file::DirectFile;
use nbd_server::reactor::places::device_is_blank;
use nix::errno::Errno;
use nix::libc;
use nix::sys::statvfs::statvfs;
use replicator::meta::superblock::META_BYTES;
use replicator::recover::read_superblock;
use replicator::store::sums;

use super::{Finding, fine, keeps_data, warning, wrong};
use crate::demo::probe_direct_io;
use crate::dump::Disk;
use crate::known;
use crate::status::bytes;

pub(super) fn look(config: &Config, node: &Node, running: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let created = node.meta_path().exists();
    findings.extend(data_dir(config, node, created));
    findings.push(run_dir(node));
    if keeps_data(node) {
        findings.extend(volumes_of_the_file(config, node));
    }
    if running {
        findings.push(fine(
            "node",
            "repld runs: its disks are looked at by itself",
        ));
        return findings;
    }
    if created {
        findings.push(superblock(config, node));
    } else {
        findings.push(fine("node", "not created yet: replctl create does that"));
    }
    if keeps_data(node) {
        let journal = node.journal_path();
        let place = place(&journal, created, |bytes| {
            config
                .check_journal(&journal, bytes)
                .map_err(|e| e.to_string())
        });
        findings.extend(place.map(|r| finding("journal", &journal, r)));
        for volume in &config.volumes {
            let store = node.store_path(volume);
            let place = self::place(&store, created, |bytes| {
                config
                    .check_store(volume, &store, bytes)
                    .map_err(|e| e.to_string())
            });
            findings.extend(place.map(|r| finding("store", &store, r)));
        }
        findings.extend(beside_the_stores(config, node, created));
    }
    findings
}

/// Volumes that the file has otherwise than the node.
fn volumes_of_the_file(config: &Config, node: &Node) -> Vec<Finding> {
    let Some(known) = known::by_node(node) else {
        return Vec::new();
    };
    let file = config.file.display();
    let differs = |(name, has): (&str, u64)| {
        let listed = config.volumes.iter().find(|v| v.name == name);
        let text = match listed {
            Some(volume) if volume.size_bytes == has => return None,
            Some(_) => format!(
                "volume {name} has {has} bytes since it was resized: write that to {file} on every node"
            ),
            None => format!(
                "volume {name}, {has} bytes, is part of the resource and not in {file}: write it there on every node"
            ),
        };
        Some(warning("config", text))
    };
    let has = known.iter().map(|(_, v)| (v.name.as_str(), v.bytes));
    let mut findings: Vec<_> = has.filter_map(differs).collect();
    let unknown = |v: &&Volume| known.find(&v.name).is_none();
    findings.extend(config.volumes.iter().filter(unknown).map(|v| {
        let name = &v.name;
        let text = format!(
            "volume {name} of {file} is not part of the resource: replctl add-volume {name} adds it"
        );
        warning("config", text)
    }));
    findings
}

/// The table of checksums, and the room for a resync.
fn beside_the_stores(config: &Config, node: &Node, created: bool) -> Vec<Finding> {
    let known = known::volumes(config, node);
    let volumes = || known.sizes();
    let files = [
        ("sums", node.sums_path(), sums::file_bytes(volumes())),
        ("stage", node.stage_path(), volumes().sum()),
    ];
    let look = |(what, path, needed): (_, PathBuf, u64)| {
        let long_enough = |found| {
            if found >= needed {
                return Ok(());
            }
            Err(format!(
                "{} has {found} bytes, the volumes need {needed}: it was cut short; wipe the node: replctl create --wipe",
                path.display()
            ))
        };
        let place = place(&path, created, long_enough);
        place.map(|result| finding(what, &path, result))
    };
    files.into_iter().filter_map(look).collect()
}

fn finding(what: &'static str, path: &Path, result: Result<String, String>) -> Finding {
    match result {
        Ok(text) => fine(what, format!("{}: {text}", path.display())),
        Err(text) => wrong(what, text),
    }
}

/// The nearest directory above a path, or it itself, that is there.
fn nearest(dir: &Path) -> PathBuf {
    let there = dir
        .ancestors()
        .find(|dir| std::fs::symlink_metadata(dir).is_ok());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// A sentence about why nothing can be made in a directory, with the name of the setting that chose it.
fn refused(setting: &str, dir: &Path, error: &io::Error) -> String {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let (why, remedy) = match errno {
        Errno::EINVAL => (
            "its file system has no O_DIRECT".to_owned(),
            "put it on ext4, XFS, btrfs or a block device (tmpfs can since Linux 6.6)",
        ),
        Errno::EROFS => (
            "it is read-only".to_owned(),
            "mount it writable, or choose another",
        ),
        Errno::EACCES | Errno::EPERM => (
            "this user may not write there".to_owned(),
            "give it to the user that repld runs as, or run this as that user",
        ),
        Errno::ENOSPC | Errno::EDQUOT => (
            format!("it is full ({errno})"),
            "free some space, or choose another",
        ),
        Errno::ENOTDIR => ("a part of it is no directory".to_owned(), "correct it"),
        _ => (error.to_string(), "choose another"),
    };
    format!("{setting} {}: {why}; {remedy}", dir.display())
}

fn data_dir(config: &Config, node: &Node, created: bool) -> Vec<Finding> {
    let dir = &node.data_dir;
    let base = nearest(dir);
    if let Err(error) = probe_direct_io(&base) {
        return vec![wrong("data_dir", refused("data_dir", dir, &error))];
    }
    let made = if base == *dir { "" } else { ", will be made" };
    let mut findings = vec![fine(
        "data_dir",
        format!("{}: writable, with O_DIRECT{made}", dir.display()),
    )];
    let Ok(stat) = statvfs(&base) else {
        return findings;
    };
    if created || !keeps_data(node) {
        return findings;
    }
    let free = stat.blocks_available() * stat.fragment_size();
    let on_it = |path: &Path| !path.starts_with("/dev");
    let journal = if on_it(&node.journal_path()) {
        config.journal.size_bytes
    } else {
        0
    };
    let stores = config.volumes.iter().filter(|v| on_it(&node.store_path(v)));
    let stores: u64 = stores.map(|v| v.size_bytes).sum();
    let volumes = || config.volumes.iter().map(|volume| volume.size_bytes);
    let checksums: u64 = sums::used(volumes()).map(|(_, bytes)| bytes).sum();
    let needed = journal + META_BYTES + checksums;
    // A resync brings all volumes at most, and keeps them beside the stores until it has them all.
    let most = needed.saturating_add(stores);
    let (free_text, all) = (bytes(free), most.saturating_add(volumes().sum()));
    findings.push(if free < needed {
        wrong(
            "space",
            format!(
                "data_dir {} has {free_text} free, journal, metadata and checksums need {}; free some space or make the \
                 journal smaller",
                dir.display(),
                bytes(needed)
            ),
        )
    } else if free < most {
        warning(
            "space",
            format!(
                "data_dir {} has {free_text} free, full stores need {}: writes fail when it is used up",
                dir.display(),
                bytes(most)
            ),
        )
    } else if free < all {
        warning(
            "space",
            format!(
                "data_dir {} has {free_text} free, a resync of all volumes may need {} while it runs: it waits for room \
                 if there is less",
                dir.display(),
                bytes(all)
            ),
        )
    } else {
        fine("space", format!("{free_text} free, {} needed at most", bytes(all)))
    });
    findings
}

fn run_dir(node: &Node) -> Finding {
    let dir = &node.run_dir;
    let base = nearest(dir);
    let probe = base.join(format!(".check{}", std::process::id()));
    let made = UnixListener::bind(&probe).map(drop);
    // The probe's own error is the one that matters.
    let _ = std::fs::remove_file(&probe);
    match made {
        Ok(()) => {
            let made = if base == *dir { "" } else { ", will be made" };
            fine("run_dir", format!("{}: takes sockets{made}", dir.display()))
        }
        Err(error) => wrong("run_dir", refused("run_dir", dir, &error)),
    }
}

/// What is to be opened by `repld`, or formatted. `None` if there is nothing to look at yet.
fn place(
    path: &Path,
    created: bool,
    fits: impl Fn(u64) -> Result<(), String>,
) -> Option<Result<String, String>> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let device = path.starts_with("/dev") && !path.starts_with("/dev/shm");
            return if device {
                let text = format!(
                    "there is no device {}; make it, or correct the config",
                    path.display()
                );
                Some(Err(text))
            } else if created {
                let text = format!(
                    "{} is not there, and this node was created with it; restore it, or wipe the node: replctl create --wipe",
                    path.display()
                );
                Some(Err(text))
            } else {
                None
            };
        }
        Err(error) => return Some(Err(format!("{}: {error}", path.display()))),
    };
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        let text = format!(
            "{} is neither a regular file nor a block device; name another path",
            path.display()
        );
        return Some(Err(text));
    }
    if kind.is_file() && !created {
        let text = format!(
            "{} exists, and this node is not created; remove it, or let replctl create --wipe replace it",
            path.display()
        );
        return Some(Err(text));
    }
    Some(open(path, kind.is_block_device(), created, fits))
}

fn open(
    path: &Path,
    device: bool,
    created: bool,
    fits: impl Fn(u64) -> Result<(), String>,
) -> Result<String, String> {
    if device {
        let exclusive = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(path);
        let shown = path.display();
        match exclusive {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(format!(
                    "{shown} is in use, mounted or part of another device; release it or name another"
                ));
            }
            Ok(mut file) => {
                let end = io::Seek::seek(&mut file, io::SeekFrom::End(0)).unwrap_or(0);
                if end == 0 {
                    return Err(format!(
                        "{shown} has no medium; attach it, or name another device"
                    ));
                }
                if !created && !device_is_blank(&mut file, end).unwrap_or(true) {
                    return Err(format!(
                        "{shown} is not blank, there is something in its first or last MiB; name another device, or let \
                         replctl create --wipe destroy it"
                    ));
                }
            }
            Err(_) => {}
        }
    }
    let file = DirectFile::open(path).map_err(|error| error.to_string())?;
    fits(file.bytes())?;
    Ok(format!("{}, takes O_DIRECT", bytes(file.bytes())))
}

/// Whether the metadata is there, whole, and this node's.
fn superblock(config: &Config, node: &Node) -> Finding {
    let path = node.meta_path();
    let again = "replctl dump shows what is there";
    let chosen = Disk::open(&path)
        .map_err(|error| error.line())
        .and_then(|mut disk| read_superblock(&mut disk).map_err(|error| error.to_string()));
    let superblock = match chosen {
        Ok(chosen) if !chosen.whole => {
            let text = format!(
                "{}: a copy of the superblock is damaged or old; repld mends it when it starts, {again}",
                path.display()
            );
            return warning("node", text);
        }
        Ok(chosen) => chosen.superblock,
        Err(text) => return wrong("node", format!("{}: {text}; {again}", path.display())),
    };
    let (resource, name) = (superblock.resource.as_str(), superblock.node.as_str());
    if resource != config.resource || name != node.name {
        return wrong(
            "node",
            format!(
                "{} belongs to node {name} of resource {resource}, this is {} of {}: was a disk moved, or data_dir \
                 changed?",
                path.display(),
                node.name,
                config.resource
            ),
        );
    }
    fine(
        "node",
        format!(
            "created; its superblock is whole, version {}",
            superblock.version
        ),
    )
}

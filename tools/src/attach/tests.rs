use super::*;

fn way(device: &str) -> Way {
    Way::Auto.of(Path::new(device))
}

#[test]
fn only_what_the_kernels_client_serves_is_attached_with_it_unless_said() {
    assert_eq!(way("/dev/nbd0"), Way::Kernel);
    assert_eq!(way("/dev/nbd15"), Way::Kernel);
    for device in [
        "/dev/nbd",
        "/dev/nbd0p1",
        "/dev/pbx",
        "/run/x/nbd0",
        "/dev/mapper/nbd0",
    ] {
        assert_eq!(way(device), Way::Fuse, "{device}");
    }
    assert_eq!(Way::Fuse.of(Path::new("/dev/nbd0")), Way::Fuse);
}

#[test]
fn devices_with_different_names_share_no_state() {
    let names = ["/dev/a-b", "/dev/a/b", "/dev/a%2db", "/dev/a", "/a"];
    let dirs: std::collections::BTreeSet<_> = names
        .iter()
        .map(|name| State::of(Path::new(name)).mount())
        .collect();
    assert_eq!(dirs.len(), names.len());
}

#[test]
fn detaching_what_is_not_attached_is_done() {
    let args = DetachArgs {
        device: PathBuf::from("/run/no-such-directory/no-such-device"),
        force: false,
        timeout: 0,
    };
    detach(&args).expect("nothing is to be done");
}

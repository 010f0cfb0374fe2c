//! What the config names besides the disks: handlers, a watchdog, the service of a failover.

use super::*;

#[test]
fn fencing_by_others_and_by_oneself_is_off_unless_the_config_says_so() {
    let small = parse(SMALL).unwrap();
    assert_eq!((&small.fence_peer, &small.watchdog), (&None, &None));
    assert_eq!(small.policy.disconnect_clients_after_ms, 0);

    let all = format!(
        "{SMALL}[policy]\ndisconnect_clients_after_ms = 9000\n[fencing]\nhandler = \"/h\"\ntimeout_ms = 9000\n\
         [watchdog]\ndevice = \"/dev/watchdog\"\n"
    );
    let all = parse(&all).unwrap();
    let fence_peer = all.fence_peer.unwrap();
    assert_eq!(fence_peer.handler, Path::new("/h"));
    assert_eq!(fence_peer.timeout.as_secs(), 9);
    assert_eq!(all.watchdog.unwrap().after.as_secs(), 5);
    assert_eq!(all.policy.disconnect_clients_after_ms, 9000);

    let third = "[[node]]\nname = \"c\"\naddress = \"127.0.0.1:7003\"\ndata_dir = \"/d/%n\"\nrun_dir = \"/r/%n\"\n";
    for (more, told) in [
        (
            "[fencing]\nhandler = \"h\"\n".to_owned(),
            "pbx.toml:18: handler",
        ),
        ("[fencing]\n".to_owned(), "handler"),
        (
            format!("{third}[fencing]\nhandler = \"/h\"\n"),
            "two data nodes alone",
        ),
        (
            "[policy]\non_no_quorum = \"io-error\"\n[fencing]\nhandler = \"/h\"\n".to_owned(),
            "suspend-io",
        ),
        (
            "[fencing]\nhandler = \"/h\"\ntimeout_ms = 9\n".to_owned(),
            "from 1000 to 3600000",
        ),
        (
            "[watchdog]\ndevice = \"/d\"\nafter_ms = -1\n".to_owned(),
            "from 0 to 3600000",
        ),
        (
            "[policy]\ndisconnect_clients_after_ms = 9999999\n".to_owned(),
            "from 0 to 3600000",
        ),
    ] {
        let refused = parse(&format!("{SMALL}{more}")).unwrap_err();
        assert!(refused.contains(told), "{refused}");
    }
}

#[test]
fn a_service_is_a_command_or_a_unit_and_not_both() {
    assert_eq!(parse(SMALL).unwrap().failover, None);
    let failover = |text: &str| parse(&format!("{SMALL}[failover]\n{text}\n"));
    let unit = failover("unit = \"pbx@1.target\"")
        .unwrap()
        .failover
        .unwrap();
    assert_eq!(unit.service, Service::Unit("pbx@1.target".into()));
    assert_eq!(
        (unit.start_delay.as_millis(), unit.stop_timeout.as_secs()),
        (0, 60)
    );
    let command = failover("command = \"/c\"\nstart_delay_ms = 250").unwrap();
    let command = command.failover.unwrap();
    assert_eq!(command.service, Service::Command("/c".into()));
    assert_eq!(command.start_delay.as_millis(), 250);
    for (text, told) in [
        ("", "unit"),
        ("command = \"c\"", "command"),
        ("unit = \"--now\"", "the name of a unit"),
        ("unit = \"pbx\"", "the name of a unit"),
        ("unit = \"a b.target\"", "the name of a unit"),
        (
            "command = \"/c\"\nunit = \"p.target\"",
            "there is a command already",
        ),
        ("unit = \"p.target\"\nstop_timeout_ms = 1", "from 100 to"),
    ] {
        let refused = failover(text).unwrap_err();
        assert!(refused.contains(told), "{refused}");
    }
}

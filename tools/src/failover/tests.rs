use std::path::Path;

use nbd_server::admin::Status;

use super::*;

fn config() -> Config {
    let mut text = String::from(
        "resource = \"r\"\njournal = { size = \"16MiB\" }\nvolume = [{ name = \"db\", size = \"64MiB\" }]\n",
    );
    for (port, name) in (7001..).zip(["a", "b", "c"]) {
        text += &format!(
            "[[node]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\ndata_dir = \"/d/%n\"\nrun_dir = \"/r/%n\"\n"
        );
    }
    Config::parse(Path::new("r.toml"), &text).expect("a config")
}

/// What node b says when it has lost a, the Primary, and sees c.
fn lost() -> Status {
    serde_json::from_value(serde_json::json!({
        "resource": "r", "node": "b", "role": "Secondary", "membership": "member", "fenced": false, "epoch": 3, "primary": null,
        "quorum": true, "suspended": "no", "health": "ok", "health_reason": "",
        "seq": {"admitted": 9, "durable": 9, "committed": 9, "applied": 9},
        "volumes": [{"name": "db", "size": 64 << 20, "disk_state": "UpToDate", "nbd_clients": 0, "uri": ""}],
        "peers": [
            {"name": "a", "role": "Unknown", "connection": "Connecting", "replication": "Off", "disk_state": "DUnknown",
             "membership": "member", "fenced": false, "durable_seq": 20},
            {"name": "c", "role": "Secondary", "connection": "Connected", "replication": "Off", "disk_state": "Consistent",
             "membership": "member", "fenced": false, "durable_seq": 9},
        ],
        "version": "0", "memory_locked": true, "last_progress_ms": 3, "lease_left_ms": 0,
        "limits": {"journal": {}, "memory": {}, "requests": 0, "requests_max": 0, "nbd_connections_max": 0,
                   "nbd_negotiating_max": 0, "admin_connections_max": 0, "lease_ms": 1000},
    }))
    .expect("a status")
}

fn judged(change: impl FnOnce(&mut Status)) -> Standing {
    let mut status = lost();
    change(&mut status);
    judge(&status, &config(), Moment(Duration::from_secs(5)))
}

#[test]
fn the_longest_log_is_promoted_first_and_the_first_name_among_equals() {
    let fit = |place| Standing::Fit { place };
    assert_eq!(judged(|_| ()), fit(0));
    assert_eq!(judged(|s| s.peers[1].durable_seq = Some(10)), fit(1));
    assert_eq!(judged(|s| s.peers[1].durable_seq = None), fit(0));
    assert_eq!(judged(|s| s.node = "d".into()), fit(1));
    // Who can not be promoted is not waited for; nor is the Primary that hangs, and is still connected.
    assert_eq!(
        judged(|s| {
            s.peers[1].durable_seq = Some(10);
            s.peers[1].fenced = Some(true);
        }),
        fit(0)
    );
    assert_eq!(
        judged(|s| {
            s.primary = Some("a".into());
            s.peers[0].connection = nbd_server::admin::Connection::Connected;
        }),
        fit(0)
    );
}

#[test]
fn nobody_is_promoted_while_a_lease_may_run_or_without_the_newest_data() {
    use nbd_server::admin::{DiskState, Membership, Role};
    let unfit: [fn(&mut Status); 10] = [
        |s| s.lease_left_ms = Some(1),
        |s| s.lease_left_ms = None,
        |s| s.epoch = 0,
        |s| s.quorum = Some(false),
        |s| s.fenced = Some(true),
        |s| s.fenced = None,
        |s| s.membership = Some(Membership::Dropped),
        |s| s.volumes[0].disk_state = DiskState::Consistent,
        |s| s.volumes.clear(),
        |s| s.last_progress_ms = Some(60_000),
    ];
    for (number, change) in unfit.into_iter().enumerate() {
        assert_eq!(judged(change), Standing::Secondary, "{number}");
    }
    // A Primary's lease is counted from when it was asked for.
    let standing = judged(|s| (s.role, s.lease_left_ms) = (Role::Primary, Some(700)));
    let lease_until = Moment(Duration::from_millis(5700));
    assert_eq!(standing, Standing::Primary { lease_until });
}

mod service {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::failover::service::Service;
    use nbd_server::config;

    fn program(dir: &tempfile::TempDir, script: &str) -> Service {
        let path = dir.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("a program");
        let place = dir.path().display().to_string();
        Service::new(&config::Service::Command(path), &[("PLACE", place)])
    }

    fn until(what: &str, mut is: impl FnMut() -> bool) {
        let began = Moment::now();
        while !is() {
            assert!(
                Moment::now() < began.after(Duration::from_secs(20)),
                "{what}"
            );
            sleep(TICK);
        }
    }

    #[test]
    fn what_does_not_stop_by_itself_is_killed_with_all_that_it_started() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let mut service = program(
            &dir,
            "trap '' TERM; (trap '' TERM; exec 9> \"$PLACE/held\"; flock 9; echo > \"$PLACE/up\"; sleep 600) & wait; sleep 600",
        );
        service.start().expect("it starts");
        until("it is up", || dir.path().join("up").exists());
        assert!(service.is_wanted() && service.look(Moment::now()).is_none());
        service.stop(Moment::now().after(Duration::from_millis(300)));
        assert!(!service.is_wanted() && !service.is_stopped());
        until("it is stopped", || {
            assert_eq!(service.look(Moment::now()), None);
            service.is_stopped()
        });
        let free = std::process::Command::new("flock")
            .args(["-w", "20"])
            .arg(dir.path().join("held"))
            .arg("true")
            .status();
        assert!(free.expect("flock runs").success(), "a child is left");
    }

    #[test]
    fn what_ends_by_itself_is_told_once() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let mut service = program(&dir, "exit 3");
        service.start().expect("it starts");
        let mut said = None;
        until("it has ended", || {
            said = service.look(Moment::now());
            said.is_some()
        });
        assert!(said.expect("it is said").contains("exit status: 3"));
        assert!(service.is_stopped() && service.look(Moment::now()).is_none());
        let nothing = config::Service::Command(dir.path().join("nothing"));
        let refused = Service::new(&nothing, &[]).start();
        assert!(
            refused
                .expect_err("it is not there")
                .contains("can not be run")
        );
    }

    /// A unit as systemd would have it: what is started, and stopped, is a file.
    fn unit(dir: &tempfile::TempDir) -> impl Fn() -> Service + use<> {
        let path = dir.path().join("systemctl");
        let script = "#!/bin/sh\ncd PLACE\necho \"$*\" >> said\ncase $1 in\nstart) [ ! -e broken ] && touch \"active-$2\" ;;\n\
            stop) shift; [ -e broken ] || for u; do while [ -e \"slow-$u\" ]; do sleep 0.02; done; rm -f \"active-$u\"; done ;;\n\
            show) [ ! -e parts ] || cat parts ;;\nis-active) while [ -e hangs ]; do sleep 0.02; done; [ -e \"active-$3\" ] ;;\nesac\n";
        let script = script.replace("PLACE", &dir.path().display().to_string());
        std::fs::write(&path, script).expect("written");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("a program");
        let systemctl: &'static str = Box::leak(path.display().to_string().into_boxed_str());
        move || Service::with(systemctl, &config::Service::Unit("pbx.target".into()), &[])
    }

    #[test]
    fn a_target_is_stopped_when_the_units_are_that_stop_with_it() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let file = |name: &str| dir.path().join(name);
        let put = |name: &str, text: &str| std::fs::write(file(name), text).expect("written");
        put("parts", "srv-pbx.mount pbx.service\n\nextra.service\n");
        let mut service = unit(&dir)();
        service.start().expect("it starts");
        until("it is active", || file("active-pbx.target").exists());
        for part in ["srv-pbx.mount", "pbx.service", "extra.service"] {
            put(&format!("active-{part}"), "");
        }
        // systemd answers for the target before the last of them has ended.
        put("slow-pbx.service", "");
        service.stop(Moment::now().after(Duration::from_secs(60)));
        until("the first of them is", || {
            assert_eq!(service.look(Moment::now()), None);
            !file("active-srv-pbx.mount").exists()
        });
        assert!(!file("active-pbx.target").exists());
        service.look(Moment::now());
        assert!(!service.is_stopped());
        std::fs::remove_file(file("slow-pbx.service")).expect("removed");
        until("all of it is stopped", || {
            assert_eq!(service.look(Moment::now()), None);
            service.is_stopped()
        });
        assert!(!file("active-extra.service").exists());
    }

    #[test]
    fn a_unit_is_started_watched_and_stopped() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let make = unit(&dir);
        let active = dir.path().join("active-pbx.target");
        let mut service = make();
        assert!(service.is_stopped());
        service.start().expect("it starts");
        until("it is active", || active.exists());
        until("nothing is wrong", || service.look(Moment::now()).is_none());
        // Whoever comes later finds it as it is.
        assert!(make().is_wanted());
        service.stop(Moment::now().after(Duration::from_secs(60)));
        until("it is stopped", || {
            assert_eq!(service.look(Moment::now()), None);
            service.is_stopped()
        });
        assert!(!active.exists());

        // It goes by itself, or does not start.
        service.start().expect("it starts");
        until("it is active", || active.exists());
        std::fs::remove_file(&active).expect("removed");
        let mut said = None;
        until("that is said", || {
            said = service.look(Moment::now());
            said.is_some()
        });
        assert!(said.expect("it is").contains("is not active any more"));
        service.stop(Moment::now());
        until("it is stopped", || {
            service.look(Moment::now());
            service.is_stopped()
        });
        // systemd hangs when it is asked: nobody waits for that, least of all a stop.
        let said = || std::fs::read_to_string(dir.path().join("said")).unwrap_or_default();
        let asked = |verb: &str| said().lines().filter(|l| l.starts_with(verb)).count();
        service.start().expect("it starts");
        until("it is active", || active.exists());
        std::fs::write(dir.path().join("hangs"), "").expect("written");
        let before = asked("is-active");
        let killed = asked("kill");
        until("it is asked", || {
            assert_eq!(service.look(Moment::now()), None);
            asked("is-active") > before
        });
        service.stop(Moment::now());
        until("it is killed, and stopped", || {
            service.kill_at(Moment::now());
            assert_eq!(service.look(Moment::now()), None);
            service.is_stopped()
        });
        assert!(!active.exists());
        assert_eq!(asked("kill"), killed + 1, "once is enough");
        std::fs::remove_file(dir.path().join("hangs")).expect("removed");

        std::fs::write(dir.path().join("broken"), "").expect("written");
        service.start().expect("systemctl is there");
        let mut said = None;
        until("that is said", || {
            said = service.look(Moment::now());
            said.is_some()
        });
        assert!(said.expect("it is").contains("can not be started"));
    }
}

#[test]
fn what_was_said_before_a_request_was_answered_shows_nothing_of_what_it_did() {
    let config = config();
    let before = Moment::now();
    let mut asked = Asked::default();
    assert!(asked.is_seen_at(before), "nothing was asked");
    // Nobody is there: it is answered all the same.
    asked.ask(&config.nodes[0], Request::Demote { force: true });
    assert!(!asked.is_seen_at(Moment::now()), "it is under way");
    while asked.is_open() {
        assert!(Moment::now() < before.after(Duration::from_secs(60)));
        sleep(TICK);
        asked.look();
    }
    assert!(!asked.is_seen_at(before));
    assert!(asked.is_seen_at(Moment::now()));
}

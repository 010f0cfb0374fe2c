//! Good configs, and a table of bad ones with what they are told.

mod services;

use std::path::{Path, PathBuf};

use super::{Ack, Config, MetricsListen, OnNoQuorum, Service, size};

const CONTRACT: &str = r#"resource = "pbx"

[[node]]
name     = "pbx-a"
address  = "10.0.0.1:7789"              # where its peers reach it; IPv4 or [IPv6], no names
data_dir = "/var/lib/replicator/pbx"    # journal, metadata, file-backed stores
run_dir  = "/run/replicator/pbx"        # admin socket and NBD socket
# nbd_listen = "10.0.0.1:10809"         # NBD over TCP, besides the Unix socket RUN_DIR/nbd.sock
# role   = "data"                       # or "witness"

[[node]]
name = "pbx-b"
address = "10.0.0.2:7789"
data_dir = "/var/lib/replicator/pbx"
run_dir = "/run/replicator/pbx"

[[node]]
name = "pbx-c"
address = "10.0.0.3:7789"
data_dir = "/var/lib/replicator/pbx"
run_dir = "/run/replicator/pbx"

[[volume]]
name = "db"
size = "8GiB"
# store = "/dev/vg0/pbx-db"             # default: DATA_DIR/db.img

[[volume]]
name = "recordings"
size = "32GiB"

[journal]
size = "1GiB"
# device = "/dev/vg0/pbx-journal"       # default: DATA_DIR/journal

[policy]
on_no_quorum = "suspend-io"             # or "io-error"
ack = "majority"                        # or "all"

[tls]
insecure = true                         # needed for addresses that are not loopback while no certificates are given:
# ca = "/etc/replicator/ca.pem"
# cert = "/etc/replicator/%n.pem"
# key = "/etc/replicator/%n.key"
"#;

/// Line 1 is the resource, 2 to 6 the first node, 7 to 11 the second, 12 to 14 the volume,
/// 15 and 16 the journal.
const SMALL: &str = r#"resource = "r"
[[node]]
name = "a"
address = "127.0.0.1:7001"
data_dir = "/d/%n"
run_dir = "/r/%n"
[[node]]
name = "b"
address = "127.0.0.1:7002"
data_dir = "/d/%n"
run_dir = "/r/%n"
[[volume]]
name = "db"
size = "64MiB"
[journal]
size = "16MiB"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("pbx.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn metrics_are_served_nowhere_unless_the_config_says_where() {
    let listen = |place: &str| {
        let text = format!("{SMALL}[metrics]\nlisten = \"{place}\"\n");
        let nodes = parse(&text).unwrap().nodes.into_iter();
        nodes.map(|node| node.metrics_listen).collect::<Vec<_>>()
    };
    let none = parse(SMALL).unwrap();
    assert!(none.nodes.iter().all(|node| node.metrics_listen.is_none()));
    for place in [
        "127.0.0.1:9783",
        "127.8.8.8:1",
        "[::1]:9783",
        "[::ffff:127.0.0.1]:9783",
    ] {
        let address = MetricsListen::Tcp(place.parse().unwrap());
        assert_eq!(listen(place), [Some(address.clone()), Some(address)]);
    }
    assert_eq!(
        listen("/run/%n.sock"),
        ["/run/a.sock", "/run/b.sock"].map(|path| Some(MetricsListen::Unix(path.into())))
    );
}

#[test]
fn a_disk_is_waited_for_as_long_as_the_lease_lasts_unless_the_config_says_otherwise() {
    let of = |policy: &str| parse(&format!("{SMALL}[policy]\n{policy}\n")).unwrap();
    let of = |policy: &str| of(policy).policy.disk_timeout_ms;
    assert_eq!(of("lease_ms = 3000"), 3000);
    assert_eq!(of("disk_timeout_ms = 400"), 400);
    assert_eq!(of("disk_timeout_ms = 7000\nlease_ms = 3000"), 7000);
}

#[test]
fn the_contracts_example_is_taken() {
    let config = parse(CONTRACT).unwrap();
    assert_eq!(config.resource, "pbx");
    assert_eq!(config.nodes.len(), 3);
    assert_eq!(config.volumes[0].size_bytes, 8 << 30);
    assert_eq!(config.journal.size_bytes, 1 << 30);
    assert_eq!(config.policy.lease_ms, 1000);
    assert_eq!(config.policy.disk_timeout_ms, 1000);
    assert_eq!(config.policy.drop_after_ms, 3000);
    assert_eq!(config.policy.resync_without_room, super::WithoutRoom::Wait);
    assert_eq!(config.policy.memory_bytes, 256 << 20);
    assert!(config.tls.insecure);
    let (index, node) = config.node("pbx-b").unwrap();
    assert_eq!(index, 1);
    assert_eq!(
        node.admin_socket(),
        PathBuf::from("/run/replicator/pbx/admin.sock")
    );
    assert_eq!(
        node.meta_path(),
        PathBuf::from("/var/lib/replicator/pbx/meta")
    );
    assert_eq!(
        node.journal_path(),
        PathBuf::from("/var/lib/replicator/pbx/journal")
    );
    assert_eq!(
        node.store_path(&config.volumes[1]),
        PathBuf::from("/var/lib/replicator/pbx/recordings.img")
    );
    assert_eq!(
        config.nbd_uri(node, &config.volumes[0]),
        "nbd+unix:///db?socket=/run/replicator/pbx/nbd.sock"
    );
    let error = config.node("pbx-x").unwrap_err().to_string();
    assert!(error.contains("pbx-a, pbx-b, pbx-c"), "{error}");
}

#[test]
fn everything_that_can_be_set_is_kept() {
    let text = r#"resource = "r"
node = [{ name = "n1", address = "[::1]:7001", data_dir = "/d/%n", run_dir = "/r/%n/100%%", nbd_listen = "0.0.0.0:10809", role = "data" }]
volume = [
  { name = "z", size = 4096, store = "/dev/vg/%n-z" },
  { name = "a", size = "4 KiB" },
]
journal = { size = 0x1000000, device = "/dev/vg/%n-j" }
policy = { on_no_quorum = "io-error", ack = "all", lease_ms = 200, disk_timeout_ms = 30000, drop_after_ms = 0, resync_without_room = "in-place", memory = "1GiB" }
tls = { insecure = true }
"#;
    let config = parse(text).unwrap();
    assert_eq!(config.policy.on_no_quorum, OnNoQuorum::IoError);
    assert_eq!(config.policy.ack, Ack::All);
    assert_eq!(config.policy.lease_ms, 200);
    assert_eq!(config.policy.disk_timeout_ms, 30_000);
    assert_eq!(config.policy.drop_after_ms, 0);
    assert_eq!(
        config.policy.resync_without_room,
        super::WithoutRoom::InPlace
    );
    assert_eq!(config.policy.memory_bytes, 1 << 30);
    assert_eq!(config.volumes[0].name, "a");
    let node = &config.nodes[0];
    assert_eq!(node.data_dir, PathBuf::from("/d/n1"));
    assert_eq!(node.journal_path(), PathBuf::from("/dev/vg/n1-j"));
    assert_eq!(
        node.store_path(&config.volumes[1]),
        PathBuf::from("/dev/vg/n1-z")
    );
    assert_eq!(
        node.store_path(&config.volumes[0]),
        PathBuf::from("/d/n1/a.img")
    );
    assert_eq!(
        config.nbd_uri(node, &config.volumes[0]),
        "nbd+unix:///a?socket=/r/n1/100%25/nbd.sock"
    );
}

#[test]
fn the_digest_is_about_what_must_be_equal() {
    let digest = |text: &str| parse(text).unwrap().digest();
    let base = digest(SMALL);
    for same in [
        SMALL.replace("16MiB", "32MiB"),
        // What volumes there are is said by the logs.
        SMALL.replace("\"db\"", "\"dc\""),
        SMALL.replace("64MiB", "65MiB"),
        SMALL.replace("/d/%n", "/elsewhere"),
        format!("{SMALL}[policy]\nlease_ms = 500\n"),
    ] {
        assert_eq!(digest(&same), base);
    }
    for other in [
        SMALL.replace("\"r\"", "\"s\""),
        SMALL.replace("\"a\"", "\"c\""),
        SMALL.replace("7001", "7003"),
    ] {
        assert_ne!(digest(&other), base);
    }
    // It is compared between builds, so it may not change by accident.
    assert_eq!(
        format!("{:032x}", u128::from_le_bytes(base)),
        "9630471e49b4c9ef8b0606d53d800381"
    );
    let (nodes, rest) = SMALL.split_at(SMALL.find("[[volume]]").unwrap());
    let second = nodes.rfind("[[node]]").unwrap();
    let first = nodes.find("[[node]]").unwrap();
    let swapped = [
        &nodes[..first],
        &nodes[second..],
        &nodes[first..second],
        rest,
    ]
    .concat();
    assert_eq!(digest(&swapped), base);
}

#[test]
fn sizes_are_read_and_written() {
    for (text, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("1KiB", 1024),
        ("3 MiB", 3 << 20),
        ("2TiB", 2 << 40),
    ] {
        assert_eq!(size::parse(text), Ok(bytes));
    }
    for text in [
        "",
        "GiB",
        "-1",
        "1.5GiB",
        "1e3",
        "99999999999TiB",
        "1 XiB",
        "1GB",
    ] {
        assert!(size::parse(text).is_err(), "{text}");
    }
    for (bytes, text) in [(0, "0"), (4095, "4095"), (4096, "4KiB"), (1 << 40, "1TiB")] {
        assert_eq!(size::format(bytes), text);
    }
}

/// What is replaced in `SMALL`, by what, and what the refusal has to contain; it starts with the line.
const BAD: &[(&str, &str, &[&str])] = &[
    (
        "resource",
        "resorce",
        &["pbx.toml:1: ", "\"resorce\"", "did you mean \"resource\""],
    ),
    ("resource = \"r\"", "x = ", &["pbx.toml:1: ", "is not TOML"]),
    (
        "resource = \"r\"",
        "",
        &["pbx.toml:1: ", "no \"resource\"", "resource = \"pbx\""],
    ),
    (
        "\"r\"",
        "7",
        &["pbx.toml:1: ", "is a number", "resource = \"pbx\""],
    ),
    (
        "\"r\"",
        "\"a b\"",
        &["pbx.toml:1: ", "\"a b\" can not be a name", "1 to 63"],
    ),
    ("\"r\"", "\"\"", &["pbx.toml:1: ", "can not be a name"]),
    ("\"r\"", "\"..\"", &["pbx.toml:1: ", "can not be a name"]),
    (
        "\"a\"",
        "\"\u{e4}\"",
        &["pbx.toml:3: ", "can not be a name"],
    ),
    (
        "name = \"a\"",
        "nam = \"a\"",
        &["pbx.toml:3: ", "[[node]]", "did you mean \"name\""],
    ),
    (
        "name = \"a\"",
        "colour = \"a\"",
        &["pbx.toml:3: ", "the keys there are name, address"],
    ),
    (
        "name = \"a\"",
        "",
        &["pbx.toml:2: ", "[[node]] has no \"name\""],
    ),
    (
        "\"b\"",
        "\"a\"",
        &["pbx.toml:8: ", "two nodes with the name \"a\""],
    ),
    (
        "127.0.0.1:7001",
        "localhost:7001",
        &["pbx.toml:4: ", "IPv4 or [IPv6], no names"],
    ),
    (
        "127.0.0.1:7001",
        "127.0.0.1",
        &["pbx.toml:4: ", "\"IP:PORT\""],
    ),
    (
        "127.0.0.1:7001",
        "::1:7001",
        &["pbx.toml:4: ", "[fd00::1]:7789"],
    ),
    ("127.0.0.1:7001", "127.0.0.1:0", &["pbx.toml:4: ", "port 0"]),
    (
        "127.0.0.1:7001",
        "0.0.0.0:7001",
        &["pbx.toml:4: ", "no address that a peer can reach"],
    ),
    (
        "127.0.0.1:7002",
        "127.0.0.1:7001",
        &["pbx.toml:9: ", "already used by node \"a\""],
    ),
    (
        "127.0.0.1:7002",
        "10.0.0.1:1",
        &["pbx.toml:9: ", "not loopback", "insecure = true"],
    ),
    (
        "run_dir = \"/r/%n\"\n[[vol",
        "run_dir = \"/r\"\nnbd_listen = \"0.0.0.0:10809\"\n[[vol",
        &[
            "pbx.toml:12: ",
            "nbd_listen 0.0.0.0:10809 is not loopback",
            "insecure = true",
        ],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\nlisten = \"0.0.0.0:9783\"\n",
        &[
            "pbx.toml:18: ",
            "\"0.0.0.0:9783\"",
            "only this host may reach them",
            "write listen = \"127.0.0.1:9783\" or",
        ],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\nlisten = \"10.0.0.1:9783\"\n",
        &["pbx.toml:18: ", "no loopback address and no absolute path"],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\nlisten = \"metrics.sock\"\n",
        &["pbx.toml:18: ", "no loopback address and no absolute path"],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n",
        &["pbx.toml:18: ", "port 0"],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\nlisten = \"127.0.0.1:7002\"\n",
        &["pbx.toml:18: ", "already used by node \"b\""],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\nlisten = \"/r/%n/admin.sock\"\n",
        &[
            "pbx.toml:18: ",
            "the socket for metrics",
            "the admin socket does",
        ],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\nlisten = 9783\n",
        &["pbx.toml:18: ", "listen is a number", "\"127.0.0.1:9783\""],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\n",
        &["pbx.toml:17: ", "[metrics] has no \"listen\""],
    ),
    (
        "size = \"16MiB\"\n",
        "size = \"16MiB\"\n[metrics]\nlistn = \"127.0.0.1:9783\"\n",
        &["pbx.toml:18: ", "did you mean \"listen\"?"],
    ),
    (
        "run_dir = \"/r/%n\"\n[[vol",
        "run_dir = \"/r\"\n[policy]\ndrop_after_ms = 100\n[[vol",
        &["pbx.toml:13: ", "drop_after_ms = 100", "or 0 for never"],
    ),
    (
        "run_dir = \"/r/%n\"\n[[vol",
        "run_dir = \"/r\"\nrole = \"arbiter\"\n[[vol",
        &["pbx.toml:12: ", "\"arbiter\"", "\"data\" or \"witness\""],
    ),
    (
        "\"/d/%n\"\nrun_dir = \"/r/%n\"\n[[node",
        "\"d\"\n[[node",
        &["pbx.toml:5: ", "absolute path"],
    ),
    ("/d/%n", "/d/%x", &["pbx.toml:5: ", "% that is not %n"]),
    (
        "run_dir = \"/r/%n\"\n[[node",
        "[[node",
        &["pbx.toml:2: ", "no \"run_dir\"", "run_dir = "],
    ),
    (
        "\"/r/%n\"\n[[vol",
        "\"/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456\"\n[[vol",
        &[
            "pbx.toml:11: ",
            "of 109 bytes",
            "at most 107",
            "shorter run_dir",
        ],
    ),
    (
        "[[volume]]\nname = \"db\"\nsize = \"64MiB\"\n",
        "",
        &["there is no volume", "[[volume]]"],
    ),
    ("64MiB", "64MB", &["pbx.toml:14: ", "write \"64MiB\""]),
    (
        "64MiB",
        "lots",
        &["pbx.toml:14: ", "is no size", "\"8GiB\""],
    ),
    ("\"64MiB\"", "1.5", &["pbx.toml:14: ", "is a fraction"]),
    ("\"64MiB\"", "-4096", &["pbx.toml:14: ", "negative"]),
    ("\"64MiB\"", "0", &["pbx.toml:14: ", "size is 0"]),
    (
        "\"64MiB\"",
        "10000",
        &["pbx.toml:14: ", "multiple of 4 KiB", "write 8KiB or 12KiB"],
    ),
    (
        "64MiB",
        "2048TiB",
        &["pbx.toml:14: ", "the largest is 1024TiB"],
    ),
    (
        "size = \"64MiB\"",
        "",
        &["pbx.toml:12: ", "[[volume]] has no \"size\""],
    ),
    (
        "size = \"64MiB\"",
        "size = 4096\nsiz = 1",
        &["pbx.toml:15: ", "did you mean \"size\""],
    ),
    (
        "size = \"64MiB\"",
        "size = 4096\n[[volume]]\nname = \"db\"",
        &["pbx.toml:16: ", "two volumes with the name \"db\""],
    ),
    (
        "size = \"64MiB\"",
        "size = 4096\nstore = \"/d/%n/journal\"",
        &["pbx.toml:15: ", "volume \"db\"", "as the journal does"],
    ),
    (
        "16MiB",
        "12MiB",
        &["pbx.toml:16: ", "the smallest is 16MiB", "size = \"16MiB\""],
    ),
    ("16MiB", "17000000", &["pbx.toml:16: ", "multiple of 4 KiB"]),
    (
        "[journal]\nsize = \"16MiB\"\n",
        "",
        &["no \"journal\"", "size = \"1GiB\""],
    ),
    (
        "[journal]",
        "[jurnal]",
        &["pbx.toml:15: ", "did you mean \"journal\""],
    ),
];

/// What is added to `SMALL`, from line 17 on.
const BAD_TAIL: &[(&str, &[&str])] = &[
    (
        "[policy]\nack = \"some\"",
        &["pbx.toml:18: ", "\"some\"", "\"majority\" or \"all\""],
    ),
    (
        "[policy]\non_no_quorum = \"io\"",
        &["pbx.toml:18: ", "\"suspend-io\" or \"io-error\""],
    ),
    (
        "[policy]\nacks = \"all\"",
        &["pbx.toml:18: ", "did you mean \"ack\""],
    ),
    (
        "[policy]\nlease_ms = 100",
        &["pbx.toml:18: ", "from 200 to 60000"],
    ),
    (
        "[policy]\nlease_ms = -1",
        &["pbx.toml:18: ", "out of range"],
    ),
    (
        "[policy]\nlease_ms = \"1s\"",
        &["pbx.toml:18: ", "lease_ms = 1000"],
    ),
    (
        "[policy]\ndisk_timeout_ms = 100",
        &["pbx.toml:18: ", "from 200 to 3600000"],
    ),
    (
        "[policy]\nmemory = \"32MiB\"",
        &["pbx.toml:18: ", "the least is 64MiB"],
    ),
    (
        "[tls]\ncert = \"/x\"",
        &[
            "pbx.toml:18: ",
            "TLS is not supported by this version",
            "insecure",
        ],
    ),
    (
        "[tls]\ninsecure = \"yes\"",
        &["pbx.toml:18: ", "insecure = true"],
    ),
    (
        "[tls]\ninsecur = true",
        &["pbx.toml:18: ", "did you mean \"insecure\""],
    ),
    (
        "policy = 1",
        &["pbx.toml:17: ", "unknown key \"policy\" in [journal]"],
    ),
    ("[[policy]]", &["pbx.toml:17: ", "is a list"]),
];

#[test]
fn bad_configs_are_told_what_to_write() {
    let check = |text: &str, wanted: &[&str]| {
        let error = parse(text).expect_err(text);
        assert!(!error.contains('\n'), "{error}");
        for fragment in wanted {
            assert!(
                error.contains(fragment),
                "{fragment:?} is not in {error:?} for:\n{text}"
            );
        }
    };
    for (from, to, wanted) in BAD {
        assert!(SMALL.contains(from), "{from}");
        check(&SMALL.replacen(from, to, 1), wanted);
    }
    for (tail, wanted) in BAD_TAIL {
        check(&format!("{SMALL}{tail}\n"), wanted);
    }
    check("", &["pbx.toml:1: ", "resource"]);
    check("resource = \"r\"\nnode = []\n", &["there is no volume"]);
}

#[test]
fn there_are_limits_to_how_many() {
    let node = |i: usize, role: &str| {
        format!(
            "[[node]]\nname = \"n{i}\"\naddress = \"127.0.0.1:{}\"\ndata_dir = \"/d\"\n\
             run_dir = \"/r\"\nrole = \"{role}\"\n",
            7000 + i
        )
    };
    let volume = |i: usize| format!("[[volume]]\nname = \"v{i}\"\nsize = 4096\n");
    let config = |data: usize, witnesses: usize, volumes: usize| {
        let mut text = "resource = \"r\"\njournal = { size = \"16MiB\" }\n".to_owned();
        text.extend((0..data).map(|i| node(i, "data")));
        text.extend((0..witnesses).map(|i| node(100 + i, "witness")));
        text.extend((0..volumes).map(volume));
        parse(&text)
    };
    for data in 1..=5 {
        config(data, 0, 16).unwrap();
    }
    assert!(
        config(6, 0, 1)
            .unwrap_err()
            .contains("at most 5 are supported")
    );
    assert!(
        config(3, 4, 1)
            .unwrap_err()
            .contains("at most 3 are supported")
    );
    config(2, 1, 1).unwrap();
    config(1, 3, 1).unwrap();
    assert!(
        config(0, 1, 1)
            .unwrap_err()
            .contains("all nodes are witnesses")
    );
    assert!(
        config(3, 0, 17)
            .unwrap_err()
            .contains("at most 16 are supported")
    );
    assert!(config(0, 0, 1).unwrap_err().contains("there is no node"));
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/pbx.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/pbx.toml") && error.contains("--config"),
        "{error}"
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}", at in 0usize..400, cut in 0usize..40) {
        let _ = parse(&text);
        let mut mixed = SMALL.to_owned();
        let start = mixed.floor_char_boundary(at.min(mixed.len()));
        let end = mixed.floor_char_boundary((start + cut).min(mixed.len()));
        mixed.replace_range(start..end, &text);
        let _ = parse(&mixed);
    }
}

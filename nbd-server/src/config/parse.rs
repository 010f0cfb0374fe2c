//! From TOML with spans to a [`Config`]: every value is looked at where it stands, so that every
//! refusal names its line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

use toml::de::DeTable;

use super::table::{Located, Refused, Result, Table, line_of};
use super::{
    Ack, Config, DATA_NODES_MAX, DISCONNECT_CLIENTS_AFTER_MS_RANGE, DISK_TIMEOUT_MS_RANGE,
    DROP_AFTER_MS_DEFAULT, DROP_AFTER_MS_RANGE, JOURNAL_BYTES_MIN, Journal, LEASE_MS_DEFAULT,
    LEASE_MS_RANGE, MEMORY_BYTES_DEFAULT, MEMORY_BYTES_MIN, MetricsListen, Node, NodeRole,
    OnNoQuorum, Policy, Refusal, SOCKET_PATH_BYTES_MAX, StorePath, Tls, VOLUMES_MAX, Volume,
    WITNESSES_MAX, WithoutRoom,
};

pub(super) fn parse(file: &Path, text: &str) -> Result<Config> {
    let root = DeTable::parse(text).map_err(|error| Refused {
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        refusal: Box::new(Refusal::Syntax(one_line(error.message()))),
    })?;
    let root = Table {
        text,
        place: "the file",
        span: root.span(),
        table: root.get_ref(),
    };
    root.only(&[
        "resource", "node", "volume", "journal", "policy", "tls", "metrics", "scrub", "fencing",
        "watchdog", "failover",
    ])?;

    let resource = root.name("resource", "resource = \"pbx\" at the top")?.0;
    let tls = tls(&root)?;
    let volumes = volumes(&root)?;
    let journal = journal(&root)?;
    let policy = policy(&root)?;
    let scrub = super::scrub::scrub(&root)?;
    let mut nodes = nodes(&root, &tls, &volumes, &journal)?;
    metrics(&root, &mut nodes)?;
    let fence_peer = super::fencing::fencing(&root, &nodes, &policy)?;
    let watchdog = super::fencing::watchdog(&root)?;
    Ok(Config {
        file: file.to_owned(),
        resource,
        nodes,
        volumes: volumes.into_iter().map(|located| located.value).collect(),
        journal: journal.value,
        policy,
        scrub,
        fence_peer,
        watchdog,
        failover: super::failover::failover(&root)?,
        tls,
    })
}

fn tls(root: &Table<'_>) -> Result<Tls> {
    let Some(table) = root.section("tls", "a table [tls]")? else {
        return Ok(Tls::default());
    };
    table.only(&["insecure", "ca", "cert", "key"])?;
    for key in ["ca", "cert", "key"] {
        if let Some(value) = table.get(key) {
            return table.refuse(&value.span(), Refusal::Tls(key));
        }
    }
    let insecure = table.opt_bool("insecure", "insecure = true or insecure = false")?;
    Ok(Tls {
        insecure: insecure.unwrap_or(false),
        ca: None,
        cert: None,
        key: None,
    })
}

fn volumes(root: &Table<'_>) -> Result<Vec<Located<Volume>>> {
    let mut volumes: Vec<Located<Volume>> = Vec::new();
    let tables = root.tables("volume", "[[volume]]")?;
    let count = tables.len();
    for table in tables {
        table.only(&["name", "size", "store"])?;
        let (name, name_span) = table.name("name", "name = \"db\"")?;
        if volumes.iter().any(|other| other.value.name == name) {
            return table.refuse(
                &name_span,
                Refusal::DuplicateName {
                    what: "volume",
                    name,
                },
            );
        }
        if volumes.len() == VOLUMES_MAX {
            return table.refuse(&table.span, Refusal::TooManyVolumes(count));
        }
        let size = table.size("size", "size = \"8GiB\"")?;
        if size.value == 0 {
            return table.refuse(&size.span, Refusal::VolumeEmpty);
        }
        let store = table.opt_text("store", "store = \"/dev/vg0/NAME\"")?;
        let span = store.as_ref().map_or(name_span, |store| store.span.clone());
        let store = store.map(|store| store.value.to_owned());
        let size_line = table.line(&size.span);
        volumes.push(Located {
            value: Volume {
                name,
                size_bytes: size.value,
                store,
                size_line,
            },
            span,
        });
    }
    volumes.sort_by(|a, b| a.value.name.cmp(&b.value.name));
    Ok(volumes)
}

fn journal(root: &Table<'_>) -> Result<Located<Journal>> {
    let Some(table) = root.section("journal", "a table [journal]")? else {
        let end = root.text.len()..root.text.len();
        let example = "[journal] with size = \"1GiB\"";
        return root.refuse(
            &end,
            Refusal::Missing {
                place: root.place,
                key: "journal",
                example,
            },
        );
    };
    table.only(&["size", "device"])?;
    let size = table.size("size", "size = \"1GiB\"")?;
    if size.value < JOURNAL_BYTES_MIN {
        return table.refuse(&size.span, Refusal::JournalTooSmall(size.value));
    }
    let device = table.opt_text("device", "device = \"/dev/vg0/pbx-journal\"")?;
    let size_line = table.line(&size.span);
    let span = device
        .as_ref()
        .map_or(size.span, |device| device.span.clone());
    let device = device.map(|device| device.value.to_owned());
    Ok(Located {
        value: Journal {
            size_bytes: size.value,
            device,
            size_line,
        },
        span,
    })
}

fn policy(root: &Table<'_>) -> Result<Policy> {
    let mut policy = Policy {
        on_no_quorum: OnNoQuorum::SuspendIo,
        ack: Ack::Majority,
        lease_ms: LEASE_MS_DEFAULT,
        disk_timeout_ms: LEASE_MS_DEFAULT,
        drop_after_ms: DROP_AFTER_MS_DEFAULT,
        disconnect_clients_after_ms: 0,
        resync_without_room: WithoutRoom::Wait,
        memory_bytes: MEMORY_BYTES_DEFAULT,
    };
    let Some(table) = root.section("policy", "a table [policy]")? else {
        return Ok(policy);
    };
    table.only(&[
        "on_no_quorum",
        "ack",
        "lease_ms",
        "disk_timeout_ms",
        "drop_after_ms",
        "disconnect_clients_after_ms",
        "resync_without_room",
        "memory",
    ])?;

    let known = "\"suspend-io\" or \"io-error\"";
    if let Some(word) = table.opt_text("on_no_quorum", known)? {
        policy.on_no_quorum = match word.value {
            "suspend-io" => OnNoQuorum::SuspendIo,
            "io-error" => OnNoQuorum::IoError,
            found => {
                let found = found.to_owned();
                let refusal = Refusal::UnknownWord {
                    key: "on_no_quorum",
                    found,
                    known,
                };
                return table.refuse(&word.span, refusal);
            }
        };
    }
    let known = "\"majority\" or \"all\"";
    if let Some(word) = table.opt_text("ack", known)? {
        policy.ack = match word.value {
            "majority" => Ack::Majority,
            "all" => Ack::All,
            found => {
                let refusal = Refusal::UnknownWord {
                    key: "ack",
                    found: found.to_owned(),
                    known,
                };
                return table.refuse(&word.span, refusal);
            }
        };
    }
    let known = "\"wait\" or \"in-place\"";
    if let Some(word) = table.opt_text("resync_without_room", known)? {
        policy.resync_without_room = match word.value {
            "wait" => WithoutRoom::Wait,
            "in-place" => WithoutRoom::InPlace,
            found => {
                let refusal = Refusal::UnknownWord {
                    key: "resync_without_room",
                    found: found.to_owned(),
                    known,
                };
                return table.refuse(&word.span, refusal);
            }
        };
    }
    if let Some(lease) = table.opt_integer("lease_ms", "lease_ms = 1000")? {
        match u32::try_from(lease.value) {
            Ok(lease_ms) if LEASE_MS_RANGE.contains(&lease_ms) => policy.lease_ms = lease_ms,
            _ => return table.refuse(&lease.span, Refusal::LeaseOutOfRange { found: lease.value }),
        }
    }
    // Clients are not to wait longer for a disk than they would for a host that died.
    policy.disk_timeout_ms = policy.lease_ms;
    if let Some(timeout) = table.opt_integer("disk_timeout_ms", "disk_timeout_ms = 1000")? {
        let found = timeout.value;
        match u32::try_from(found) {
            Ok(ms) if DISK_TIMEOUT_MS_RANGE.contains(&ms) => policy.disk_timeout_ms = ms,
            _ => return table.refuse(&timeout.span, Refusal::DiskTimeoutOutOfRange { found }),
        }
    }
    if let Some(after) = table.opt_integer("drop_after_ms", "drop_after_ms = 3000")? {
        let found = after.value;
        match u32::try_from(found) {
            Ok(ms) if ms == 0 || DROP_AFTER_MS_RANGE.contains(&ms) => policy.drop_after_ms = ms,
            _ => return table.refuse(&after.span, Refusal::DropAfterOutOfRange { found }),
        }
    }
    let after = table.milliseconds(
        "disconnect_clients_after_ms",
        "disconnect_clients_after_ms = 10000",
        DISCONNECT_CLIENTS_AFTER_MS_RANGE,
        0,
    )?;
    policy.disconnect_clients_after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
    if let Some(memory) = table.opt_size("memory", "memory = \"256MiB\"")? {
        if memory.value < MEMORY_BYTES_MIN {
            return table.refuse(&memory.span, Refusal::MemoryTooSmall(memory.value));
        }
        policy.memory_bytes = memory.value;
    }
    Ok(policy)
}

/// Works out where each node serves its metrics.
fn metrics(root: &Table<'_>, nodes: &mut [Node]) -> Result<()> {
    let Some(table) = root.section("metrics", "a table [metrics]")? else {
        return Ok(());
    };
    table.only(&["listen"])?;
    let listen = table.text("listen", "listen = \"127.0.0.1:9783\"")?;
    for index in 0..nodes.len() {
        let place = if listen.value.starts_with('/') {
            let path = table.expand("listen", &listen, &nodes[index].name)?;
            if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                let path = path.display().to_string();
                return table.refuse(&listen.span, Refusal::SocketPathTooLong { path });
            }
            metrics_path_is_free(&table, &listen, &path, &nodes[index])?;
            MetricsListen::Unix(path)
        } else {
            MetricsListen::Tcp(metrics_address(&table, &listen, nodes)?)
        };
        nodes[index].metrics_listen = Some(place);
    }
    Ok(())
}

fn metrics_address(
    table: &Table<'_>,
    listen: &Located<&str>,
    nodes: &[Node],
) -> Result<SocketAddr> {
    let found = || listen.value.to_owned();
    let address = listen.value.parse::<SocketAddr>().ok();
    let Some(address) = address.filter(|a| a.ip().to_canonical().is_loopback()) else {
        return table.refuse(&listen.span, Refusal::MetricsListen { found: found() });
    };
    if address.port() == 0 {
        let (key, found) = ("listen", found());
        return table.refuse(&listen.span, Refusal::PortZero { key, found });
    }
    let taken = |node: &&Node| node.address == address || node.nbd_listen == Some(address);
    match nodes.iter().find(taken) {
        None => Ok(address),
        Some(node) => {
            let (address, node) = (found(), node.name.clone());
            table.refuse(&listen.span, Refusal::DuplicateAddress { address, node })
        }
    }
}

/// Nothing else of the node may be at the path of the metrics.
fn metrics_path_is_free(
    table: &Table<'_>,
    listen: &Located<&str>,
    path: &Path,
    node: &Node,
) -> Result<()> {
    let sockets = [
        (node.admin_socket(), "the admin socket".to_owned()),
        (node.nbd_socket(), "the NBD socket".to_owned()),
        (node.meta_path(), "the metadata".to_owned()),
        (node.lock_path(), "the lock".to_owned()),
        (node.journal_path(), "the journal".to_owned()),
        (node.sums_path(), "the checksums".to_owned()),
        (node.stage_path(), "the room for a resync".to_owned()),
    ];
    let stores = node.stores.iter();
    let stores = stores.map(|s| (s.path.clone(), format!("volume {:?}", s.volume)));
    match sockets.into_iter().chain(stores).find(|(p, _)| p == path) {
        None => Ok(()),
        Some((_, other)) => table.refuse(
            &listen.span,
            Refusal::DuplicatePath {
                what: "the socket for metrics".to_owned(),
                path: path.display().to_string(),
                node: node.name.clone(),
                other,
            },
        ),
    }
}

fn nodes(
    root: &Table<'_>,
    tls: &Tls,
    volumes: &[Located<Volume>],
    journal: &Located<Journal>,
) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut addresses: BTreeMap<SocketAddr, String> = BTreeMap::new();
    for table in root.tables("node", "[[node]]")? {
        nodes.push(node(&table, &nodes, tls, &mut addresses, volumes, journal)?);
        let data = nodes
            .iter()
            .filter(|node| node.role == NodeRole::Data)
            .count();
        let witnesses = nodes.len() - data;
        if data > DATA_NODES_MAX {
            return table.refuse(&table.span, Refusal::TooManyDataNodes(data));
        }
        if witnesses > WITNESSES_MAX {
            return table.refuse(&table.span, Refusal::TooManyWitnesses(witnesses));
        }
    }
    if nodes.iter().all(|node| node.role == NodeRole::Witness) {
        return root.refuse(&root.span, Refusal::NoDataNode);
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes)
}

/// One node.
fn node(
    table: &Table<'_>,
    before: &[Node],
    tls: &Tls,
    addresses: &mut BTreeMap<SocketAddr, String>,
    volumes: &[Located<Volume>],
    journal: &Located<Journal>,
) -> Result<Node> {
    table.only(&[
        "name",
        "address",
        "data_dir",
        "run_dir",
        "nbd_listen",
        "role",
    ])?;
    let (name, name_span) = table.name("name", "name = \"pbx-a\"")?;
    if before.iter().any(|other| other.name == name) {
        return table.refuse(&name_span, Refusal::DuplicateName { what: "node", name });
    }
    let Some(address) = table.opt_address("address")? else {
        return table.missing("address", "address = \"10.0.0.1:7789\"");
    };
    if address.value.ip().is_unspecified() {
        return table.refuse(
            &address.span,
            Refusal::Unspecified(address.value.to_string()),
        );
    }
    let nbd_listen = table.opt_address("nbd_listen")?;
    let used = [
        ("address", Some(&address)),
        ("nbd_listen", nbd_listen.as_ref()),
    ];
    for (key, located) in used {
        let Some(Located { value, span }) = located else {
            continue;
        };
        // 0.0.0.0:PORT is every host's own.
        let own = value.ip().is_unspecified();
        if let Some(node) = (!own)
            .then(|| addresses.insert(*value, name.clone()))
            .flatten()
        {
            let address = value.to_string();
            return table.refuse(span, Refusal::DuplicateAddress { address, node });
        }
        if !value.ip().to_canonical().is_loopback() && !tls.insecure {
            let address = value.to_string();
            return table.refuse(span, Refusal::NeedsInsecure { key, address });
        }
    }

    let data_dir_text = table.text("data_dir", "data_dir = \"/var/lib/replicator/pbx\"")?;
    let data_dir = table.expand("data_dir", &data_dir_text, &name)?;
    let run_dir_text = table.text("run_dir", "run_dir = \"/run/replicator/pbx\"")?;
    let run_dir = table.expand("run_dir", &run_dir_text, &name)?;
    let known = "\"data\" or \"witness\"";
    let role_text = table.opt_text("role", known)?;
    let role_span = role_text
        .as_ref()
        .map_or(name_span, |role| role.span.clone());
    let role = match role_text.as_ref().map_or("data", |role| role.value) {
        "data" => NodeRole::Data,
        "witness" => NodeRole::Witness,
        found => {
            let refusal = Refusal::UnknownWord {
                key: "role",
                found: found.to_owned(),
                known,
            };
            return table.refuse(&role_span, refusal);
        }
    };

    let mut node = Node {
        name,
        address: address.value,
        data_dir,
        run_dir,
        nbd_listen: nbd_listen.map(|listen| listen.value),
        role,
        metrics_listen: None,
        journal_device: None,
        stores: Vec::new(),
    };
    for path in [node.nbd_socket(), node.admin_socket()] {
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let path = path.display().to_string();
            return table.refuse(&run_dir_text.span, Refusal::SocketPathTooLong { path });
        }
    }
    stores(table, &mut node, volumes, journal)?;
    Ok(node)
}

/// Works out where journal and stores are on a node; no two things may share a path.
fn stores(
    table: &Table<'_>,
    node: &mut Node,
    volumes: &[Located<Volume>],
    journal: &Located<Journal>,
) -> Result<()> {
    if let Some(device) = &journal.value.device {
        let located = Located {
            value: device.as_str(),
            span: journal.span.clone(),
        };
        node.journal_device = Some(table.expand("device", &located, &node.name)?);
    }
    let mut used = BTreeMap::from([
        (node.meta_path(), "the metadata".to_owned()),
        (node.lock_path(), "the lock".to_owned()),
        (node.sums_path(), "the checksums".to_owned()),
        (node.stage_path(), "the room for a resync".to_owned()),
    ]);
    let mut claim = |path: &Path, what: String, span: &Range<usize>| match used
        .insert(path.to_owned(), what.clone())
    {
        None => Ok(()),
        Some(other) => table.refuse(
            span,
            Refusal::DuplicatePath {
                what,
                path: path.display().to_string(),
                node: node.name.clone(),
                other,
            },
        ),
    };
    claim(
        &node.journal_path(),
        "the journal".to_owned(),
        &journal.span,
    )?;
    for Located {
        value: volume,
        span,
    } in volumes
    {
        let path = match &volume.store {
            None => node.store_path(volume),
            Some(store) => {
                let located = Located {
                    value: store.as_str(),
                    span: span.clone(),
                };
                table.expand("store", &located, &node.name)?
            }
        };
        claim(&path, format!("volume {:?}", volume.name), span)?;
        node.stores.push(StorePath {
            volume: volume.name.clone(),
            path,
        });
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}

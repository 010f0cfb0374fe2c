//! Whoever reaches a socket and is no friend: P9 (bad input is an answer), P7 (the others are not disturbed). All of it
//! while a load runs whose every byte is checked.

// NBD's integers are big-endian, and what is said here is no type of anybody's.
#![allow(clippy::big_endian_bytes)]

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use integration::{BOUND, Scene, roomy};
use nbd_server::config::Config;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use replicator::meta::config::Name;
use replicator::types::{Epoch, Seq};
use replicator::wire::frame::{FRAME_BYTES_MAX, Frame, encode};
use replicator::wire::hello::{HELLO_BYTES, Hello, WIRE_VERSION};
use tools::cluster::exit;

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = 1 + self.roll(most);
        (0..length).map(|_| self.roll(256) as u8).collect()
    }
}

/// A connection that something is said on.
trait Wire: Read + Write + Debug {
    fn patient(&self) -> std::io::Result<()>;
}

impl Wire for TcpStream {
    fn patient(&self) -> std::io::Result<()> {
        self.set_read_timeout(Some(BOUND))?;
        self.set_write_timeout(Some(BOUND))
    }
}

impl Wire for UnixStream {
    fn patient(&self) -> std::io::Result<()> {
        self.set_read_timeout(Some(BOUND))?;
        self.set_write_timeout(Some(BOUND))
    }
}

/// What a node listens on.
struct Doors {
    peers: SocketAddr,
    admin: PathBuf,
    nbd: PathBuf,
}

impl Doors {
    fn of(config: &Config, node: usize) -> Self {
        let node = &config.nodes[node];
        Self {
            peers: node.address,
            admin: node.admin_socket(),
            nbd: node.nbd_socket(),
        }
    }

    fn open(&self, which: u64) -> Box<dyn Wire> {
        let wire: Box<dyn Wire> = match which {
            0 => Box::new(TcpStream::connect(self.peers).expect("it listens")),
            1 => Box::new(UnixStream::connect(&self.admin).expect("it listens")),
            _ => Box::new(UnixStream::connect(&self.nbd).expect("it listens")),
        };
        wire.patient().expect("a timeout");
        wire
    }
}

fn hello(config: &Config, from: usize, to: usize) -> Hello {
    let name = |text: &str| Name::from(text).expect("short");
    Hello {
        version: WIRE_VERSION,
        digest: config.digest(),
        resource: name(&config.resource),
        from: name(&config.nodes[from].name),
        to: name(&config.nodes[to].name),
        refusal: None,
    }
}

/// Says something, hears whatever comes back, and goes. The other end may hang up at any time.
fn say(wire: &mut dyn Wire, bytes: &[u8]) {
    let _ = wire.write_all(bytes);
    let _ = wire.read(&mut [0; 4096]);
}

/// The bytes of a frame with other numbers in its header, and with a checksum that fits.
fn frame(frame: &Frame, batch_blocks: u32) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_BYTES_MAX];
    let length = encode(frame, batch_blocks, &mut bytes);
    bytes.truncate(length);
    bytes
}

/// What an NBD client says until it has an export: newstyle, no zeroes, GO with this name.
fn go(export: &str) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT");
    bytes.extend(7u32.to_be_bytes());
    let name = export.len() as u32;
    bytes.extend((name + 6).to_be_bytes());
    bytes.extend(name.to_be_bytes());
    bytes.extend(export.as_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn request(flags: u16, command: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(7u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// Things that no peer, operator or client says, or does not say in this way.
fn speeches(which: u64, dice: &mut Dice) -> Vec<Vec<u8>> {
    let mut all = vec![
        Vec::new(),
        dice.bytes(40),
        dice.bytes(5000),
        vec![0; 9000],
        vec![0xff; 600],
    ];
    match which {
        0 => all.push(b"GET / HTTP/1.1\r\nHost: pbx\r\n\r\n".repeat(30)),
        1 => all.extend([
            b"{}\n".to_vec(),
            b"{\"verb\":\"promote\",\"timeout_ms\":-1}\n".to_vec(),
            b"{\"verb\":\"promote\"".to_vec(),
            b"{\"verb\":\"connect\",\"peer\":\"\\u0000\\n\"}\n".to_vec(),
            [b"[".repeat(60_000), b"\n".to_vec()].concat(),
            b"x".repeat(200_000),
            [b"\"".to_vec(), vec![0xfe; 100], b"\"\n".to_vec()].concat(),
        ]),
        _ => {
            let option = |option: u32, length: u32| {
                let mut bytes = 3u32.to_be_bytes().to_vec();
                bytes.extend(b"IHAVEOPT");
                bytes.extend(option.to_be_bytes());
                bytes.extend(length.to_be_bytes());
                bytes
            };
            let then = |more: Vec<u8>| [go("db"), more].concat();
            all.extend([
                option(7, u32::MAX),
                option(3, 1 << 30),
                option(0xdead_beef, 12),
                [option(7, 20), vec![0xff; 20]].concat(),
                go("no such export"),
                go(&"x".repeat(5000)),
                then(Vec::new()),
                then(dice.bytes(300)),
                then(request(0, 1, 0, u32::MAX)),
                then(request(0, 1, u64::MAX, 4096)),
                then(request(0, 0, u64::MAX - 5, 10)),
                then(request(0, 4, 0, u32::MAX)),
                then(request(0xffff, 3, 0, 0)),
                then(request(0, 0x7777, 0, 0)),
                // Half of a write, and half of a header.
                then([request(0, 1, 0, 65_536), vec![0; 30_000]].concat()),
                then(request(0, 1, 0, 512)[..13].to_vec()),
            ]);
        }
    }
    all
}

#[test]
fn garbage_on_every_socket_disturbs_nobody() {
    let mut scene = Scene::serving(roomy());
    let config = Config::load(scene.cluster.config()).expect("its config");
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 100);
    let mut dice = Dice(0x5eed_1234);
    let mut silent = Vec::new();
    for _ in 0..2 {
        for node in 0..3 {
            let doors = Doors::of(&config, node);
            for which in 0..3 {
                for speech in speeches(which, &mut dice) {
                    let mut wire = doors.open(which);
                    // What is not answered is left where it is, half said.
                    let _ = wire.write_all(&speech);
                    if dice.roll(2) == 0 {
                        drop(wire);
                    } else {
                        silent.push(wire);
                    }
                }
            }
        }
        scene.await_writes(&load, 100);
        silent.clear();
    }
    for node in 0..3 {
        let status = scene
            .cluster
            .ctl(node, &["status"], BOUND)
            .expect("replctl runs");
        assert_eq!(status.code, exit::DONE, "{}", status.message());
    }
    scene.finish(load);
    for node in [1, 2] {
        scene.await_caught_up(node, 0);
    }
    scene.verify(0);
    scene.stop_and_compare(0);
}

#[test]
fn whoever_takes_a_nodes_name_is_found_out_and_the_node_returns() {
    let mut scene = Scene::serving(roomy());
    let config = Config::load(scene.cluster.config()).expect("its config");
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 100);
    let mut dice = Dice(0xbad_cafe);
    // With the right config and the Primary's name, at a Secondary: its place on the wire is taken, its word is not.
    let ask = frame(&Frame::Ask { token: 1 }, 0);
    let ack = frame(
        &Frame::Ack {
            epoch: Epoch(1),
            seq: Seq(1 << 60),
        },
        0,
    );
    let append = Frame::Append {
        epoch: Epoch(1 << 40),
        committed: Seq(1 << 60),
    };
    let mut long = frame(&Frame::Ping, 0);
    long[6..8].copy_from_slice(&u16::MAX.to_le_bytes());
    let lies = [
        dice.bytes(3000),
        vec![0; 100],
        ask,
        ack,
        [frame(&append, 384), dice.bytes(4000)].concat(),
        frame(&append, 384),
        long,
    ];
    for lie in lies {
        let mut wire = TcpStream::connect(config.nodes[1].address).expect("it listens");
        wire.patient().expect("a timeout");
        let mut answer = [0; HELLO_BYTES];
        wire.write_all(&hello(&config, 0, 1).encode())
            .expect("said");
        wire.read_exact(&mut answer).expect("answered");
        assert_eq!(Hello::decode(&answer).expect("a hello").refusal, None);
        let _ = wire.write_all(&lie);
        scene.await_writes(&load, 30);
    }
    // A hello that does not fit is told why.
    let name = |text: &str| Name::from(text).expect("short");
    let own = hello(&config, 0, 1);
    let mut version = own.encode();
    version[8] = 9;
    let crc = crc32(&version[..HELLO_BYTES - 4]);
    version[HELLO_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    for (said, reason) in [
        (version, "protocol version 9"),
        (
            Hello {
                resource: name("other"),
                ..own
            }
            .encode(),
            "resource \"other\"",
        ),
        (
            Hello {
                from: name("pbx-x"),
                ..own
            }
            .encode(),
            "no other node \"pbx-x\"",
        ),
        (
            Hello {
                from: name("pbx-b"),
                ..own
            }
            .encode(),
            "no other node \"pbx-b\"",
        ),
        (
            Hello {
                from: name("pbx-c"),
                ..own
            }
            .encode(),
            "not the other way round",
        ),
        (
            Hello {
                to: name("pbx-c"),
                ..own
            }
            .encode(),
            "wanted to reach node \"pbx-c\"",
        ),
        (
            Hello {
                digest: [1; 16],
                ..own
            }
            .encode(),
            "other nodes, roles or addresses",
        ),
    ] {
        let mut wire = TcpStream::connect(config.nodes[1].address).expect("it listens");
        wire.patient().expect("a timeout");
        wire.write_all(&said).expect("said");
        let mut answer = [0; HELLO_BYTES];
        wire.read_exact(&mut answer).expect("answered");
        let refusal = Hello::decode(&answer).expect("a hello").refusal;
        let refusal = refusal.expect("it does not fit").to_string();
        assert!(refusal.contains(reason), "{refusal}");
    }
    scene.await_writes(&load, 100);
    scene.finish(load);
    scene.await_caught_up(1, 0);
    scene.verify(0);
    scene.stop_and_compare(0);
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[test]
fn thousands_of_silent_connections_keep_nobody_away() {
    // Each end of a connection is a file here, or one of the daemon's.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    let files = hard.min(4000);
    setrlimit(Resource::RLIMIT_NOFILE, files, hard).expect("below the hard limit");
    let each = (files - 500) / 3;
    let mut scene = Scene::serving(roomy());
    let config = Config::load(scene.cluster.config()).expect("its config");
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 100);
    let primary = Doors::of(&config, 0);
    let secondary = Doors::of(&config, 1);
    let mut silent = Vec::new();
    for _ in 0..each {
        // The Secondary accepts the Primary, so that is where a stranger could stand in the way.
        silent.push(secondary.open(0));
        silent.push(primary.open(1));
        silent.push(primary.open(2));
    }
    // Operators, clients and peers come in as ever, and who is there already goes on.
    let status = scene
        .cluster
        .ctl(0, &["status"], BOUND)
        .expect("replctl runs");
    assert_eq!(status.code, exit::DONE, "{}", status.message());
    assert!(status.took < Duration::from_secs(20), "{:?}", status.took);
    let mut client = scene.open(0, "recordings");
    client.read_at(0, &mut [0; 512]).expect("served");
    client.disconnect().expect("goodbye");
    scene
        .cluster
        .expect_done(0, &["disconnect", "pbx-b"])
        .expect("disconnected");
    scene
        .cluster
        .expect_done(0, &["connect", "pbx-b"])
        .expect("connected");
    scene.await_caught_up(1, 0);
    scene.await_writes(&load, 200);
    for mut wire in silent.into_iter().step_by(97) {
        say(wire.as_mut(), b"too late\n");
    }
    scene.finish(load);
    scene.verify(0);
    scene.stop_and_compare(0);
}

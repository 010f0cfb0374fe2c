//! The reactor with real sockets and files, and a core that answers at once.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_server::handle::{DataCommand, ToControl};
use nbd_server::nbd::protocol::CommandFlags;
use nbd_server::nbd::wire::request;
use nbd_server::nbd::{Cookie, SIMPLE_REPLY_BYTES};
use replicator::types::*;
use replicator::wire::frame::{FRAME_BYTES_MAX, Frame, encode};
use support::{Behaviour, Node, VOLUME_BYTES};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

fn normal() -> Behaviour {
    Behaviour {
        requests_max: 256,
        ..Behaviour::default()
    }
}

fn header(command: u16, cookie: u64, offset: u64, length: usize) -> [u8; 28] {
    let length = u32::try_from(length).unwrap();
    request(
        command,
        CommandFlags::default(),
        Cookie(cookie),
        offset,
        length,
    )
}

fn reply(socket: &mut UnixStream) -> (u64, u32) {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    socket.read_exact(&mut bytes).expect("a reply");
    assert_eq!(bytes[..4], [0x67, 0x44, 0x66, 0x98]);
    let number = |range: std::ops::Range<usize>| {
        bytes[range]
            .iter()
            .fold(0_u64, |n, b| n << 8 | u64::from(*b))
    };
    (number(8..16), number(4..8) as u32)
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

fn write(socket: &mut UnixStream, cookie: u64, offset: u64, data: &[u8]) {
    socket
        .write_all(&header(WRITE, cookie, offset, data.len()))
        .unwrap();
    socket.write_all(data).unwrap();
    assert_eq!(reply(socket), (cookie, 0));
}

fn read(socket: &mut UnixStream, cookie: u64, offset: u64, length: usize) -> Vec<u8> {
    socket
        .write_all(&header(READ, cookie, offset, length))
        .unwrap();
    assert_eq!(reply(socket), (cookie, 0));
    let mut data = vec![0; length];
    socket.read_exact(&mut data).unwrap();
    data
}

#[test]
fn what_is_written_is_read_at_any_size_and_alignment() {
    let node = Node::start(normal(), || {});
    let mut socket = node.client();
    const MIB: usize = 1 << 20;
    let cases = [
        (0, 1),
        (4095, 2),
        (4096, 4096),
        (123, 16 << 10),
        (8192, (16 << 10) + 1),
        (4097, 64 << 10),
        (1, 300_001),
        (0, MIB),
        (4095, MIB),
        (777, MIB + 1),
        (MIB as u64 - 1, 3 * MIB + 7),
        (5, 32 * MIB),
        (VOLUME_BYTES - 70_001, 70_001),
    ];
    for (cookie, (offset, length)) in (0_u64..).zip(cases) {
        let data = pattern(cookie, length);
        write(&mut socket, cookie, offset, &data);
        assert!(
            read(&mut socket, cookie, offset, length) == data,
            "{length} bytes at {offset}"
        );
    }
    drop(socket);
    let snapshot = node.wait_for(|snapshot| snapshot.nbd_clients[0] == 0);
    assert!(snapshot.memory_bytes >= 64 << 20);
    node.stop();
}

#[test]
fn many_requests_at_once_are_all_answered() {
    for (requests_max, reversed) in [(1, false), (7, true), (256, false), (256, true)] {
        let behaviour = Behaviour {
            requests_max,
            reversed,
            ..normal()
        };
        let node = Node::start(behaviour, || {});
        let clients: Vec<_> = (0..4_u64)
            .map(|number| {
                let socket = node.client();
                std::thread::spawn(move || pipelined(socket, number))
            })
            .collect();
        for client in clients {
            client.join().expect("no panic");
        }
        // All memory came back but for what disks hold for themselves.
        node.wait_for(|s| s.nbd_clients[0] == 0 && s.memory_used_bytes <= 2 << 20);
        node.stop();
    }
}

/// Writes and reads of mixed sizes, sent by one thread without waiting; answers are checked by another.
fn pipelined(socket: UnixStream, number: u64) {
    const COUNT: u64 = 300;
    let base = number * (VOLUME_BYTES / 4);
    let sizes = [512, 4096, 40_000, 4096, 16_384, 200_000, 8192, 1_100_000];
    let place = move |n: u64| (base + (n % 8) * 1_200_000 + n % 3, sizes[n as usize % 8]);
    let mut sender = socket.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        for n in 0..COUNT {
            let (offset, length) = place(n);
            if n % 16 < 8 {
                sender.write_all(&header(WRITE, n, offset, length)).unwrap();
                sender.write_all(&pattern(n % 8, length)).unwrap();
            } else {
                sender.write_all(&header(READ, n, offset, length)).unwrap();
            }
        }
        sender.write_all(&header(DISCONNECT, 0, 0, 0)).unwrap();
    });
    let mut socket = socket;
    let mut seen = vec![false; COUNT as usize];
    for _ in 0..COUNT {
        let (cookie, error) = reply(&mut socket);
        assert_eq!(error, 0);
        assert!(!std::mem::replace(&mut seen[cookie as usize], true));
        if cookie % 16 >= 8 {
            let (_, length) = place(cookie);
            let mut data = vec![0; length];
            socket.read_exact(&mut data).unwrap();
        }
    }
    sending.join().unwrap();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0, "closed after DISC");
}

#[test]
fn zeroes_flushes_and_refusals_are_answered() {
    let node = Node::start(normal(), || {});
    let mut socket = node.client();
    write(&mut socket, 1, 0, &pattern(1, 300_000));
    for (command, offset, length) in [
        (TRIM, 10, 100),
        (WRITE_ZEROES, 4096, 70_000),
        (FLUSH, 0, 0),
        (TRIM, 0, VOLUME_BYTES as usize),
    ] {
        socket
            .write_all(&header(command, 2, offset, length))
            .unwrap();
        assert_eq!(reply(&mut socket), (2, 0));
    }
    assert_eq!(read(&mut socket, 3, 0, 300_000), vec![0; 300_000]);
    // Past the end: the payload of the write is skipped.
    socket
        .write_all(&header(WRITE, 4, VOLUME_BYTES, 5000))
        .unwrap();
    socket.write_all(&[1; 5000]).unwrap();
    assert_eq!(reply(&mut socket).0, 4);
    socket.write_all(&header(READ, 5, VOLUME_BYTES, 1)).unwrap();
    assert_eq!(reply(&mut socket), (5, 22));
    socket.write_all(&header(99, 6, 0, 1)).unwrap();
    assert_eq!(reply(&mut socket), (6, 22));
    assert_eq!(read(&mut socket, 7, 0, 10), vec![0; 10]);
    // Rubbish ends the connection.
    socket.write_all(&[0x55; 28]).unwrap();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    node.stop();
}

#[test]
fn bytes_that_came_with_the_negotiation_are_the_first_request() {
    let node = Node::start(normal(), || {});
    let mut leftover = header(WRITE, 1, 5, 20_000).to_vec();
    let data = pattern(3, 20_000);
    leftover.extend_from_slice(&data[..9000]);
    let mut socket = node.client_with(leftover);
    socket.write_all(&data[9000..]).unwrap();
    assert_eq!(reply(&mut socket), (1, 0));
    assert!(read(&mut socket, 2, 5, 20_000) == data);
    node.stop();
}

#[test]
fn a_request_that_arrives_byte_by_byte_is_served() {
    let node = Node::start(normal(), || {});
    let mut socket = node.client();
    let data = pattern(9, 40);
    for byte in header(WRITE, 1, 77, data.len()).iter().chain(&data) {
        socket.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(reply(&mut socket), (1, 0));
    assert_eq!(read(&mut socket, 2, 77, 40), data);
    node.stop();
}

#[test]
fn a_failed_read_is_an_error_or_the_end_of_the_connection() {
    const MIB: u64 = 1 << 20;
    let behaviour = Behaviour {
        bad_read: Some(MIB),
        ..normal()
    };
    let node = Node::start(behaviour, || {});
    let mut socket = node.client();
    socket.write_all(&header(READ, 1, MIB, 4096)).unwrap();
    assert_eq!(reply(&mut socket), (1, 5));
    // The first piece fails: there is still time for an error.
    socket.write_all(&header(READ, 2, MIB, 5 << 20)).unwrap();
    assert_eq!(reply(&mut socket), (2, 5));
    assert_eq!(read(&mut socket, 3, 0, 4096).len(), 4096);
    // A later one fails: what was promised can not be delivered.
    socket.write_all(&header(READ, 4, 0, 5 << 20)).unwrap();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    assert!(rest.len() < 5 << 20);
    node.stop();
}

#[test]
fn a_demotion_drops_clients_and_turns_new_ones_away() {
    let node = Node::start(normal(), || {});
    let mut socket = node.client();
    write(&mut socket, 1, 0, &pattern(1, 100));
    let refused = node.command(DataCommand::Demote { force: false });
    assert_eq!(refused.unwrap_err().code, 12);
    node.command(DataCommand::Demote { force: true }).unwrap();
    let snapshot = node.handle.snapshot();
    assert!(
        !snapshot.view.serving,
        "the answer comes after the snapshot"
    );
    assert_eq!(snapshot.nbd_clients[0], 0);
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    let mut late = node.client();
    assert_eq!(late.read(&mut [0; 1]).unwrap(), 0);
    node.stop();
}

#[test]
fn frames_and_batches_go_through_in_order() {
    let mut node = Node::start(normal(), || {});
    let mut socket = node.peer(NodeId(1));
    let mut sent = Vec::new();
    for n in 0..200_u64 {
        let blocks = [0, 1, 0, 2, 40, 512, 7][n as usize % 7];
        let mut bytes = [0; FRAME_BYTES_MAX];
        let frame = if blocks == 0 {
            Frame::Ack {
                epoch: Epoch(1),
                seq: Seq(n),
            }
        } else {
            Frame::Append {
                epoch: Epoch(1),
                committed: Seq(n),
            }
        };
        let length = encode(&frame, blocks, &mut bytes);
        sent.extend_from_slice(&bytes[..length]);
        sent.extend_from_slice(&pattern(n, blocks as usize * BLOCK_BYTES));
    }
    let mut sender = socket.try_clone().unwrap();
    let expected = sent.clone();
    let sending = std::thread::spawn(move || sender.write_all(&sent).unwrap());
    let mut echoed = vec![0; expected.len()];
    socket.read_exact(&mut echoed).unwrap();
    assert!(echoed == expected);
    sending.join().unwrap();
    node.wait_for(|s| s.view.committed.0 == 142);
    // Rubbish ends the connection, and both sides hear of it once.
    socket.write_all(&[7; 64]).unwrap();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    node.wait_for(|s| s.view.durable.0 == 1 && s.view.admitted.0 == 1);
    let mut downs = 0;
    while let Ok(event) = node.events.try_recv() {
        downs += usize::from(matches!(event, ToControl::PeerDown { peer } if peer == NodeId(1)));
    }
    assert_eq!(downs, 1);
    node.stop();
}

#[test]
fn an_idle_node_says_that_it_lives() {
    let node = Node::start(normal(), || {});
    let first = node.handle.snapshot().at;
    let begun = Instant::now();
    node.wait_for(|s| s.at.since(first) > 500_000_000);
    assert!(begun.elapsed() < Duration::from_secs(20));
    let a = node.handle.snapshot().at;
    node.wait_for(|s| s.at > a);
    node.stop();
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_else() {
    let node = Node::start(normal(), || {});
    let stuck = node.client();
    let mut sender = stuck.try_clone().unwrap();
    sender
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    for n in 0..2000_u64 {
        if sender.write_all(&header(READ, n, 0, 65_536)).is_err() {
            break;
        }
    }
    let mut socket = node.client();
    for n in 0..50 {
        let data = pattern(n, 50_000);
        write(&mut socket, n, n * 50_000, &data);
        assert!(read(&mut socket, n, n * 50_000, 50_000) == data);
    }
    drop((stuck, sender));
    drop(socket);
    node.wait_for(|s| s.nbd_clients[0] == 0 && s.memory_used_bytes <= 2 << 20);
    node.stop();
}

//! Structured replies and maps of holes by the reactor, with a core that answers at once.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nbd_server::handle::DataCommand;
use nbd_server::nbd::protocol::CommandFlags;
use nbd_server::nbd::wire::request;
use nbd_server::nbd::{Cookie, Terms};
use support::{Behaviour, Node, VOLUME_BYTES};

const READ: u16 = 0;
const WRITE: u16 = 1;
const STATUS: u16 = 7;
const MIB: u64 = 1 << 20;

const RICH: Terms = Terms {
    structured: true,
    allocation: true,
};

fn normal() -> Behaviour {
    Behaviour {
        requests_max: 256,
        ..Behaviour::default()
    }
}

fn header(command: u16, cookie: u64, offset: u64, len: u64) -> [u8; 28] {
    let len = u32::try_from(len).unwrap();
    request(
        command,
        CommandFlags::default(),
        Cookie(cookie),
        offset,
        len,
    )
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |all, &byte| all << 8 | u64::from(byte))
}

/// A chunk: its request, its type, its payload, whether it is the last of its reply.
fn chunk(socket: &mut UnixStream) -> (u64, u64, Vec<u8>, bool) {
    let mut head = [0; 20];
    socket.read_exact(&mut head).expect("a chunk");
    assert_eq!(number(&head[..4]), 0x668e_33ef);
    let mut payload = vec![0; number(&head[16..]) as usize];
    socket.read_exact(&mut payload).unwrap();
    (
        number(&head[8..16]),
        number(&head[6..8]),
        payload,
        head[5] == 1,
    )
}

fn write(socket: &mut UnixStream, offset: u64, data: &[u8]) {
    socket
        .write_all(&header(WRITE, 9, offset, data.len() as u64))
        .unwrap();
    socket.write_all(data).unwrap();
    assert_eq!(chunk(socket), (9, 0, vec![], true));
}

/// What a read gives, put together.
fn read(socket: &mut UnixStream, offset: u64, len: u64) -> Result<Vec<u8>, u64> {
    socket.write_all(&header(READ, 8, offset, len)).unwrap();
    let mut data = Vec::new();
    loop {
        let (cookie, kind, payload, last) = chunk(socket);
        assert_eq!(cookie, 8);
        match kind {
            1 | 2 => {
                assert_eq!(number(&payload[..8]), offset + data.len() as u64);
                if kind == 1 {
                    data.extend_from_slice(&payload[8..]);
                } else {
                    data.resize(data.len() + number(&payload[8..]) as usize, 0);
                }
            }
            0x8001 => {
                assert!(last && payload.len() > 6);
                return Err(number(&payload[..4]));
            }
            other => panic!("a chunk of type {other:#x}"),
        }
        if last {
            assert_eq!(data.len() as u64, len);
            return Ok(data);
        }
    }
}

fn status(socket: &mut UnixStream, offset: u64, len: u64) -> Vec<(u64, u64)> {
    socket.write_all(&header(STATUS, 7, offset, len)).unwrap();
    let (cookie, kind, payload, last) = chunk(socket);
    assert_eq!((cookie, kind, last, number(&payload[..4])), (7, 5, true, 1));
    let extents = payload[4..].chunks_exact(8);
    extents
        .map(|e| (number(&e[..4]), number(&e[4..])))
        .collect()
}

#[test]
fn reads_of_any_size_come_in_chunks() {
    let node = Node::start(normal(), || {});
    let mut socket = node.client_on(RICH, Vec::new());
    let mut model = vec![0; VOLUME_BYTES as usize];
    for (at, len) in [
        (1, 1),
        (5 * MIB - 7, 5 * MIB),
        (20 * MIB, 9),
        (33 * MIB, MIB),
    ] {
        let data = vec![at as u8 | 1; len as usize];
        write(&mut socket, at, &data);
        model[at as usize..(at + len) as usize].copy_from_slice(&data);
    }
    for (offset, len) in [
        (0, 1),
        (0, 4096),
        (1, MIB),
        (4095, 3 * MIB + 1),
        (7, 32 * MIB),
    ] {
        let data = read(&mut socket, offset, len).unwrap();
        assert!(
            data == model[offset as usize..(offset + len) as usize],
            "{len} at {offset}"
        );
    }
    drop(socket);
    let snapshot = node.wait_for(|snapshot| snapshot.nbd_clients[0] == 0);
    assert!(snapshot.memory_used_bytes < 4 * MIB, "all was given back");
    node.stop();
}

#[test]
fn a_read_that_fails_at_any_piece_is_an_error_and_the_connection_goes_on() {
    for bad in [0, MIB, 4 * MIB] {
        let behaviour = Behaviour {
            bad_read: Some(bad),
            ..normal()
        };
        let node = Node::start(behaviour, || {});
        let mut socket = node.client_on(RICH, Vec::new());
        write(&mut socket, 0, &vec![3; 5 * MIB as usize]);
        for _ in 0..20 {
            assert_eq!(read(&mut socket, 0, 5 * MIB), Err(5));
            assert_eq!(read(&mut socket, 1, 1000), Ok(vec![3; 1000]));
        }
        node.stop();
    }
}

#[test]
fn many_connections_ask_for_maps_at_once_and_some_do_not_wait() {
    let node = Node::start(normal(), || {});
    let mut writer = node.client_on(RICH, Vec::new());
    write(&mut writer, 4096, &[1; 100]);
    for _ in 0..20 {
        let mut sockets: Vec<_> = (0..40).map(|_| node.client_on(RICH, Vec::new())).collect();
        for socket in &mut sockets {
            socket.write_all(&header(STATUS, 7, 0, MIB)).unwrap();
        }
        sockets.truncate(20);
        for mut socket in sockets {
            let (_, kind, payload, _) = chunk(&mut socket);
            assert_eq!(kind, 5);
            let lengths = payload[4..].chunks_exact(8).map(|e| number(&e[..4]));
            assert_eq!(lengths.sum::<u64>(), MIB);
            let extents = status(&mut socket, 4096, 4096);
            assert_eq!(extents, [(4096, 0)]);
        }
        node.wait_for(|snapshot| snapshot.nbd_clients[0] == 1);
    }
    // Nor does it matter that the data thread stops meanwhile.
    writer.write_all(&header(STATUS, 7, 0, MIB)).unwrap();
    node.command(DataCommand::Demote { force: true }).unwrap();
    node.stop();
}

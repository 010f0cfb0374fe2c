//! Once it is warm, the data thread asks the system allocator for nothing, whatever its clients do: it may be serving
//! the disk that the kernel is trying to write memory back to.

#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use nbd_server::handle::DataCommand;
use nbd_server::nbd::protocol::CommandFlags;
use nbd_server::nbd::wire::request;
use nbd_server::nbd::{Cookie, SIMPLE_REPLY_BYTES, Terms};
use replicator::types::NodeId;
use replicator::view::PeerView;
use support::{Behaviour, Node};

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The counter is one for all tests of this program.
static ONE: Mutex<()> = Mutex::new(());

struct Counting;

fn count() {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The fewest allocations of a few rounds: a lease that runs out on a busy machine, or a disk that is slow, is worth a line in the log
/// too, but not in each of them.
fn fewest(mut round: impl FnMut()) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..3 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        round();
        least = least.min(ALLOCATIONS.load(Ordering::Relaxed) - before);
        if least == 0 {
            break;
        }
    }
    least
}

#[test]
fn requests_allocate_nothing() {
    let _one_at_a_time = ONE.lock().expect("no other test failed");
    let behaviour = Behaviour {
        requests_max: 256,
        ..Behaviour::default()
    };
    let node = Node::start(behaviour, || COUNTED.set(true));
    work_without_allocating(&node);
    work_in_chunks_without_allocating(&node);
    node.stop();
}

/// The same for a client that has asked for structured replies, errors and maps of holes included.
fn work_in_chunks_without_allocating(node: &Node) {
    let terms = Terms {
        structured: true,
        allocation: true,
    };
    let mut socket = node.client_on(terms, Vec::new());
    let mut payload = vec![7; 3 << 20];
    payload[8192..16_384].fill(0);
    let mut answer = vec![0; payload.len() + 64];
    let mut round = |count: u64| {
        for n in 0..count {
            let length = [512, 4096, 16_384, 50_000, 1 << 20, 3 << 20][n as usize % 6];
            // WRITE, READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, and one that does not exist.
            for command in [1, 0, 3, 4, 5, 6, 7, 9] {
                let (flags, offset) = (CommandFlags::default(), n * 4096);
                let header = request(command, flags, Cookie(n), offset, length as u32);
                socket.write_all(&header).expect("a request");
                if command == 1 {
                    socket.write_all(&payload[..length]).expect("its data");
                }
                loop {
                    socket.read_exact(&mut answer[..20]).expect("a chunk");
                    let done = answer[5] == 1;
                    let bytes = answer[16..20]
                        .iter()
                        .fold(0, |n, &b| n << 8 | usize::from(b));
                    socket
                        .read_exact(&mut answer[..bytes])
                        .expect("its payload");
                    if done {
                        break;
                    }
                }
            }
            if n % 6 == 5 {
                until_peers_have_all(node);
            }
        }
    };
    round(60);
    let during = fewest(|| round(120));
    assert_eq!(during, 0, "allocations of 960 requests");
}

/// The whole way: the Primary's core, journal and applies, and both Secondaries' too.
#[test]
fn replicated_requests_allocate_nothing() {
    let _one_at_a_time = ONE.lock().expect("no other test failed");
    let nodes = [0, 1, 2].map(|me| Node::real(3, me, || COUNTED.set(true)));
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let id = |n: usize| NodeId(n as u8);
        nodes[a].join(id(a), &nodes[b], id(b));
    }
    let promote = DataCommand::Promote { timeout_ms: 20_000 };
    nodes[0].command(promote).expect("all nodes are there");
    work_without_allocating(&nodes[0]);
    work_in_chunks_without_allocating(&nodes[0]);
    for node in nodes {
        node.stop();
    }
}

/// A peer that a busy machine leaves behind the journal is worth a line in the log, which allocates.
fn until_peers_have_all(node: &Node) {
    let has_all = |peer: &PeerView| peer.behind_bytes == Some(0);
    node.wait_for(|snapshot| snapshot.view.peers.iter().all(has_all));
}

fn work_without_allocating(node: &Node) {
    let mut socket = node.client();
    let payload = vec![7; 3 << 20];
    let mut answer = vec![0; payload.len() + SIMPLE_REPLY_BYTES];
    let mut round = |count: u64| {
        for n in 0..count {
            let length = [512, 4096, 16_384, 50_000, 1 << 20, 3 << 20][n as usize % 6];
            let header = |command| {
                let flags = CommandFlags::default();
                request(command, flags, Cookie(n), n * 4096, length as u32)
            };
            socket.write_all(&header(1)).expect("a write");
            socket.write_all(&payload[..length]).expect("its data");
            socket
                .read_exact(&mut answer[..SIMPLE_REPLY_BYTES])
                .expect("its reply");
            socket.write_all(&header(0)).expect("a read");
            socket
                .read_exact(&mut answer[..SIMPLE_REPLY_BYTES + length])
                .expect("its data");
            for command in [3, 4, 6] {
                socket.write_all(&header(command)).expect("a request");
                socket
                    .read_exact(&mut answer[..SIMPLE_REPLY_BYTES])
                    .expect("its reply");
            }
            if n % 6 == 5 {
                until_peers_have_all(node);
            }
        }
    };
    round(60);
    assert!(
        ALLOCATIONS.load(Ordering::Relaxed) > 0,
        "the counter counts"
    );
    let during = fewest(|| round(300));
    assert_eq!(during, 0, "allocations of 1500 requests");
}

//! The reactor with the real core, and as little memory as the config allows.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::time::Duration;

use nbd_server::handle::DataCommand;
use nbd_server::nbd::protocol::CommandFlags;
use nbd_server::nbd::wire::request;
use nbd_server::nbd::{Cookie, SIMPLE_REPLY_BYTES};
use support::Node;

const READ: u16 = 0;
const WRITE: u16 = 1;
const LENGTH: u32 = 1 << 20;
/// Together they would take more than there is.
const CLIENTS: u64 = 24;
/// Those that never read a reply, and what each asks for.
const IDLE_CLIENTS: u64 = 12;
const READS: u64 = 64;

#[test]
fn large_writes_that_begin_at_once_all_come_to_their_end() {
    let node = Node::real(1, 0, || {});
    let promote = DataCommand::Promote { timeout_ms: 60_000 };
    node.command(promote).unwrap();
    node.wait_for(|s| s.view.serving);
    let clients = (0..CLIENTS).map(|n| {
        let mut client = node.client();
        let offset = n % 8 * u64::from(LENGTH);
        let header = request(WRITE, CommandFlags::default(), Cookie(n), offset, LENGTH);
        client.write_all(&header).unwrap();
        client
    });
    let clients: Vec<_> = clients.collect();
    // What there is for requests is taken, by writes of which nothing has come yet.
    node.wait_for(|s| {
        let memory = s.queues.memory[0];
        memory.limit > 0 && memory.used + 400 >= memory.limit
    });
    let writes = clients.into_iter().map(|mut client| {
        std::thread::spawn(move || {
            let within = Some(Duration::from_secs(60));
            client.set_write_timeout(within).unwrap();
            client.set_read_timeout(within).unwrap();
            client
                .write_all(&vec![7; LENGTH as usize])
                .expect("it is taken");
            let mut reply = [0; SIMPLE_REPLY_BYTES];
            client.read_exact(&mut reply).expect("it is answered");
            assert_eq!(reply[4..8], [0; 4], "and is done");
        })
    });
    let writes: Vec<_> = writes.collect();
    for write in writes {
        write.join().unwrap();
    }
    node.stop();
}

#[test]
fn clients_that_never_read_their_replies_do_not_keep_others_waiting() {
    let node = Node::real(1, 0, || {});
    let promote = DataCommand::Promote { timeout_ms: 60_000 };
    node.command(promote).unwrap();
    node.wait_for(|s| s.view.serving);
    let idle = (0..IDLE_CLIENTS).map(|_| {
        let mut client = node.client();
        for n in 0..READS {
            let offset = n % 8 * u64::from(LENGTH);
            let header = request(READ, CommandFlags::default(), Cookie(n), offset, LENGTH);
            client.write_all(&header).unwrap();
        }
        client
    });
    let idle: Vec<_> = idle.collect();
    node.wait_for(|s| {
        let answers = s.queues.read_answers;
        answers.limit > 0 && answers.used * 2 > answers.limit
    });
    let mut client = node.client();
    client
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    // Meanwhile the others get what they can get.
    for n in 0..2_000 {
        let header = request(READ, CommandFlags::default(), Cookie(n), 0, 4096);
        client.write_all(&header).unwrap();
        let mut reply = [0; SIMPLE_REPLY_BYTES + 4096];
        client.read_exact(&mut reply).expect("it is answered");
        assert_eq!(reply[4..8], [0; 4], "and is done");
    }
    drop(idle);
    node.stop();
}

//! What one node does not do to another, however far behind that is.

use replicator::io::Input;
use replicator::replica::INCOMING_MAX;
use replicator::types::Seq;
use replicator::wire::frame::{Changed, Frame};

use super::*;
use crate::client::Kind;
use crate::drive::JOURNAL;

#[test]
fn a_peer_whose_disk_hangs_is_not_sent_the_whole_journal() {
    // C takes what it is sent and writes none of it, while the Primary's journal goes round more than once; and so again
    // on a new connection, on which it has acknowledged nothing.
    for reconnects in [false, true] {
        let mut c = serving(1, Options::default());
        c.must_write(A, 0, 0, 8);
        c.until_fed(A);
        c.nodes[C].hung_until[JOURNAL] = c.now + 100 * SECOND;
        if reconnects {
            c.reset(A, C);
            assert!(c.run_until(SECOND, |c| !c.connected(A, C)));
            c.must_write(A, 0, 0, 128);
            assert!(c.run_until(5 * SECOND, |c| c.connected(A, C)));
        }
        let before = c.sent(A, C);
        let ring = c.nodes[A].view.journal_bytes / 4096;
        for round in 0..ring / 128 + 10 {
            c.must_write(A, 0, 128 * (round % 4), 128);
        }
        let sent = c.sent(A, C) - before;
        assert!((900..1024 + 2 * 129).contains(&sent), "{sent}");
    }
}

#[test]
fn writes_that_cover_blocks_in_part_go_on_when_writes_have_all_memory() {
    // Each has to read the blocks at its ends first, and all together have all the memory that there is for requests.
    let shares = [700, 800, 1100, 400];
    let mut c = serving(
        1,
        Options {
            shares,
            ..Options::default()
        },
    );
    let owned = Kind::Write { owned: true };
    let writes: Vec<u64> = (0..6)
        .map(|n| c.request(A, owned, 0, 4 * 40 * n + 1..4 * 40 * n + 4 * 231 + 3))
        .collect();
    for write in writes {
        assert_eq!(c.outcome(write, 5 * SECOND), Some(Outcome::Done));
    }
    c.conclude();
}

#[test]
fn a_source_that_answers_more_than_it_was_asked_is_given_up() {
    let mut c = super::resync::in_resync(1);
    let mut conns = c.net.conns.iter();
    let conn = conns
        .rposition(|conn| conn.nodes == [A, C] && conn.up[1])
        .expect("they are connected");
    // What A says from here on is not what it was asked for.
    c.net.conns[conn].spoilt = true;
    let (id, now) = (c.net.conns[conn].ids[1], c.local(C, c.now));
    let mut replica = c.nodes[C].replica.take().expect("it runs");
    for token in 0..2 * INCOMING_MAX as u64 {
        let groups = [Seq(1)].into_iter().collect();
        let frame = Frame::Changed(Box::new(Changed { token, groups }));
        let batch = None;
        let conn = id;
        replica.handle(now, Input::Frame { conn, frame, batch });
        assert!(replica.view().incoming as usize <= INCOMING_MAX);
    }
    c.nodes[C].replica = Some(replica);
    c.wake_by(C, c.now);
    assert!(c.run_until(MS, |c| !c.net.conns[conn].up[1]));
    // It goes on with the next connection.
    c.until_follows(A, C);
    c.conclude();
}

//! What one node does not do to another, however far behind that is.

use super::*;
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

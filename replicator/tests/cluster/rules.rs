//! The rules of the protocol, one short story each.

use crate::harness::*;

#[test]
fn the_first_promotion_serves_and_a_write_is_acknowledged() {
    let mut c = Cluster::new(1, Options::default());
    c.run_for(SECOND);
    assert_eq!(c.promote(0, 5 * SECOND), Ok(()));
    c.must_write(0, 0, 3, 2);
    c.read_all(0);
    c.conclude();
}

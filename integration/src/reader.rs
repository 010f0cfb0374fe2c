//! A client that reads all the time, for P5: when was the last read asked for that was answered?

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nbd_server::nbd::client::{Client, ClientError, ClientRequest};

/// Reads a block again and again until the connection ends or `over`; when was the last one asked for that was answered? An answer
/// itself may be late: what it says is true if it was when it was asked for.
///
/// # Panics
/// If an answer is an error.
pub fn read_on(mut client: Client, over: &AtomicBool) -> Instant {
    client.set_idle_timeout(Some(Duration::from_millis(50)));
    let mut last = Instant::now();
    let mut asked = last;
    let mut in_flight = false;
    while !over.load(Ordering::Relaxed) {
        if !in_flight {
            asked = Instant::now();
            if client
                .submit(&ClientRequest::Read {
                    offset: 0,
                    len: 4096,
                })
                .is_err()
            {
                return last;
            }
            in_flight = true;
        }
        match client.wait() {
            Ok(answer) => {
                answer
                    .result
                    .expect("a read is answered with data or not at all");
                last = asked;
                in_flight = false;
            }
            Err(ClientError::TimedOut) => {}
            Err(_) => return last,
        }
    }
    last
}

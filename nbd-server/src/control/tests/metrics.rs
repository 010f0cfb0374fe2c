//! Metrics, asked for over a socket.

use super::*;
use crate::config::MetricsListen;
use crate::control::metrics::CONNECTIONS_MAX;
use crate::meters::RequestKind;

fn ask_for_metrics(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    answer_of(stream)
}

fn answer_of(stream: UnixStream) -> String {
    try_answer_of(stream).unwrap()
}

fn try_answer_of(mut stream: UnixStream) -> std::io::Result<String> {
    let mut answer = String::new();
    stream.set_read_timeout(Some(WAIT))?;
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn metrics_are_answered_before_the_data_thread_has_moved_and_when_it_hangs() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("made/metrics.sock");
    let mut config = Config::clone(&config(&dir, 3));
    config.nodes[1].metrics_listen = Some(MetricsListen::Unix(socket.clone()));
    let daemon = Daemon::start(&Arc::new(config), 1);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);

    let page = ask_for_metrics(&socket, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let length = format!("\r\nContent-Length: {}\r\n", body.len());
    assert!(head.contains(&length), "{head}");
    let me = "resource=\"pbx\",node=\"b\"";
    let has = |page: &str, line: &str| page.lines().any(|l| l == line);
    let down = format!("repld_health{{{me},health=\"down\"}} 1");
    assert!(has(body, &down), "{body}");
    assert!(
        !body.contains("repld_data_thread_stalled_seconds{"),
        "{body}"
    );

    // It published a minute ago and has not moved since.
    let write = daemon.meters.requests(0, RequestKind::Write);
    write.duration.observe(1_000_000);
    daemon.meters.peer(2).sent_bytes.add(4711);
    daemon.publish(|snapshot| {
        snapshot.at = Time(snapshot.at.0 - 60_000_000_000);
        snapshot.queues.unacknowledged_since[2] = snapshot.at;
        snapshot.view.serving = true;
        snapshot.view.lease_until = snapshot.at;
    });
    let page = ask_for_metrics(&socket, "GET /metrics HTTP/1.1\r\n\r\n");
    let write = format!("{me},volume=\"db\",operation=\"write\"");
    for line in [
        down,
        format!("repld_serving{{{me}}} 1"),
        format!("repld_lease_remaining_seconds{{{me}}} 0.0"),
        format!("repld_request_duration_seconds_bucket{{{write},le=\"0.0005\"}} 0"),
        format!("repld_request_duration_seconds_bucket{{{write},le=\"0.001\"}} 1"),
        format!("repld_request_duration_seconds_count{{{write}}} 1"),
        format!("repld_request_duration_seconds_sum{{{write}}} 0.001"),
        format!("repld_peer_sent_bytes_total{{{me},peer=\"c\"}} 4711"),
        format!("repld_peer_sent_bytes_total{{{me},peer=\"a\"}} 0"),
    ] {
        assert!(has(&page, &line), "{line} is not in {page}");
    }
    for beginning in [
        format!("repld_data_thread_stalled_seconds{{{me}}} 6"),
        format!("repld_peer_unacknowledged_seconds{{{me},peer=\"c\"}} 6"),
    ] {
        assert!(page.contains(&beginning), "{beginning} is not in {page}");
    }
    drop(daemon);
    assert!(!socket.exists());
}

#[test]
fn who_asks_for_metrics_in_a_wrong_way_is_told_so_and_bounded() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("metrics.sock");
    let mut config = Config::clone(&config(&dir, 1));
    config.nodes[0].metrics_listen = Some(MetricsListen::Unix(socket.clone()));
    let _daemon = Daemon::start(&Arc::new(config), 0);
    let long = "x".repeat(9000);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 "),
        ("GET /metrics/x HTTP/1.1\r\n\r\n", "404 "),
        ("PUT /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405 "),
        ("\0garbage", "400 "),
        (&long, "431 "),
    ] {
        let answer = ask_for_metrics(&socket, request);
        let expected = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&expected), "{answer}");
    }
    let page = ask_for_metrics(
        &socket,
        "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n",
    );
    assert!(page.ends_with("\n# EOF\n"), "{page}");

    // Silent ones take all the places there are, and are cut off in the end.
    let begun = std::time::Instant::now();
    let silent = loop {
        let silent: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| UnixStream::connect(&socket).unwrap())
            .collect();
        let one_more = answer_of(UnixStream::connect(&socket).unwrap());
        // They were accepted in this order. Whoever was answered before may have had a place for a moment longer.
        let waits = |stream: &UnixStream| {
            stream.set_nonblocking(true).unwrap();
            let waits = (&*stream).read(&mut [0]).is_err();
            stream.set_nonblocking(false).unwrap();
            waits
        };
        if one_more.starts_with("HTTP/1.1 503 ") && silent.iter().all(waits) {
            break silent;
        }
        assert!(begun.elapsed() < WAIT, "{one_more}");
    };
    for stream in silent {
        let answer = answer_of(stream);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    // Their places are free again.
    let begun = std::time::Instant::now();
    let page = loop {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let sent = stream.write_all(b"HEAD /metrics HTTP/1.1\r\n\r\n");
        let answer = sent.and_then(|()| try_answer_of(stream));
        match answer {
            Ok(page) if page.starts_with("HTTP/1.1 200 ") => break page,
            other => assert!(begun.elapsed() < WAIT, "{other:?}"),
        }
    };
    assert!(page.ends_with("\r\n\r\n"), "{page}");
}

#[test]
fn metrics_come_over_loopback_too() {
    let dir = TempDir::new().unwrap();
    let mut config = Config::clone(&config(&dir, 1));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    config.nodes[0].metrics_listen = Some(MetricsListen::Tcp(address));
    let _daemon = Daemon::start(&Arc::new(config.clone()), 0);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    // In pieces, as a slow network brings it.
    for piece in ["GET /met", "rics HTTP/1.1\r\nHo", "st: x\r\n\r", "\n"] {
        stream.write_all(piece.as_bytes()).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    config.nodes[0].address = "127.0.0.1:0".parse().unwrap();
    config.nodes[0].nbd_listen = None;
    let error = Listeners::bind(&config.nodes[0]).unwrap_err().to_string();
    assert!(error.contains("another program does"), "{error}");
}

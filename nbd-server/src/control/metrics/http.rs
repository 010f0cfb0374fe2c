//! As much of HTTP as one page needs: a request's head in, an answer out. It knows no sockets.

/// The longest head of a request.
pub(super) const HEAD_BYTES_MAX: usize = 8192;
const HEADERS_MAX: usize = 64;

/// Ways to write metrics down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// What every collector reads.
    Prometheus,
    /// For those who ask for it.
    OpenMetrics,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// The page.
    Page {
        /// Written how.
        format: Format,
        /// Only what would be said about it.
        head: bool,
    },
    /// Something that is not there.
    Refused(Refusal),
}

/// Why there is no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Not HTTP.
    NoRequest,
    /// Another page.
    NotFound,
    /// Another method.
    Method,
    /// No request within the time.
    TooSlow,
    /// A head that goes on and on.
    TooLong,
    /// Too many others.
    TooMany,
    /// The page can not be written.
    Broken,
}

impl Refusal {
    fn status_and_text(self) -> (&'static str, &'static str) {
        match self {
            Self::NoRequest => ("400 Bad Request", "this is no HTTP request"),
            Self::NotFound => ("404 Not Found", "there is nothing here but /metrics"),
            Self::Method => ("405 Method Not Allowed", "ask with GET"),
            Self::TooSlow => ("408 Request Timeout", "the request did not come in time"),
            Self::TooLong => (
                "431 Request Header Fields Too Large",
                "the request is longer than 8 KiB or has more than 64 headers",
            ),
            Self::TooMany => (
                "503 Service Unavailable",
                "too many others ask for metrics at this moment",
            ),
            Self::Broken => ("500 Internal Server Error", "the page can not be written"),
        }
    }
}

/// Looks at what has been received; `None` if the head is not all there.
pub(super) fn parse(received: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head = received.get(..HEAD_BYTES_MAX).unwrap_or(received);
    let refused = |refusal| Some(Asked::Refused(refusal));
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if received.len() >= HEAD_BYTES_MAX => {
            return refused(Refusal::TooLong);
        }
        Ok(httparse::Status::Partial) => return None,
        Err(httparse::Error::TooManyHeaders) => return refused(Refusal::TooLong),
        Err(_) => return refused(Refusal::NoRequest),
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return refused(Refusal::NoRequest);
    };
    if path_of(target) != "/metrics" {
        return refused(Refusal::NotFound);
    }
    let head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return refused(Refusal::Method),
    };
    let open = request.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("accept")
            && String::from_utf8_lossy(header.value).contains("application/openmetrics-text")
    });
    let format = if open {
        Format::OpenMetrics
    } else {
        Format::Prometheus
    };
    Some(Asked::Page { format, head })
}

/// The path in a request's target, which may be a whole URI, without the query.
fn path_of(target: &str) -> &str {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    path.split('?').next().unwrap_or(path)
}

/// An answer. The connection ends with it.
pub(super) struct Reply {
    status: &'static str,
    content_type: &'static str,
    body: String,
    head_only: bool,
}

impl Reply {
    pub(super) fn page(format: Format, body: String, head_only: bool) -> Self {
        Self {
            status: "200 OK",
            content_type: format.content_type(),
            body,
            head_only,
        }
    }

    pub(super) fn refusal(refusal: Refusal) -> Self {
        let (status, text) = refusal.status_and_text();
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{text}\n"),
            head_only: false,
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        let allow = if self.status.starts_with("405") {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let mut text = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{allow}Connection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        if !self.head_only {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: Asked = Asked::Page {
        format: Format::Prometheus,
        head: false,
    };

    #[test]
    fn each_request_gets_its_answer() {
        let open = Asked::Page {
            format: Format::OpenMetrics,
            head: false,
        };
        let head = Asked::Page {
            format: Format::Prometheus,
            head: true,
        };
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "x".repeat(HEAD_BYTES_MAX));
        for (request, expected) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", Some(PAGE)),
            ("GET /metrics HTTP/1.0\r\n\r\n", Some(PAGE)),
            ("GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\n", Some(PAGE)),
            (
                "GET http://x:1/metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                Some(PAGE),
            ),
            (
                "GET /metrics HTTP/1.1\r\nACCEPT: application/openmetrics-text;version=1.0.0,*/*;q=0.1\r\n\r\n",
                Some(open),
            ),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Some(head)),
            (
                "GET / HTTP/1.1\r\n\r\n",
                Some(Asked::Refused(Refusal::NotFound)),
            ),
            (
                "GET http://x HTTP/1.1\r\n\r\n",
                Some(Asked::Refused(Refusal::NotFound)),
            ),
            (
                "GET /metrics/ HTTP/1.1\r\n\r\n",
                Some(Asked::Refused(Refusal::NotFound)),
            ),
            (
                "POST /metrics HTTP/1.1\r\n\r\n",
                Some(Asked::Refused(Refusal::Method)),
            ),
            ("NBDMAGICIHAVEOPT", None),
            ("\0\0\0\0", Some(Asked::Refused(Refusal::NoRequest))),
            (
                "GET /metrics\r\n\r\n",
                Some(Asked::Refused(Refusal::NoRequest)),
            ),
            ("GET /metrics HTTP/1.1\r\n", None),
            ("", None),
            (&many, Some(Asked::Refused(Refusal::TooLong))),
            (&long, Some(Asked::Refused(Refusal::TooLong))),
        ] {
            assert_eq!(parse(request.as_bytes()), expected, "{request:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_gets_an_answer_before_it_is_too_long(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut endless = bytes.clone();
            endless.resize(HEAD_BYTES_MAX, b'a');
            prop_assert!(parse(&endless).is_some());
            // Any beginning is either not enough yet or answered; nothing of it breaks the parser.
            for end in 0..bytes.len() {
                let _ = parse(&bytes[..end]);
            }
        }
    }
}

//! Where an export is: the part of the NBD URI scheme that our servers have a use for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::nbd::protocol::STRING_BYTES_MAX;

/// The TCP port that is meant when a URI names none.
pub const DEFAULT_PORT: u16 = 10809;

/// An export's address: `nbd+unix:///EXPORT?socket=PATH` or `nbd://HOST[:PORT]/EXPORT`, with
/// `%XX` for bytes that can not stand for themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Where the server listens.
    pub endpoint: Endpoint,
    /// The export's name; empty for the server's default.
    pub export: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix stream socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Name or address; an IPv6 address without its brackets.
        host: String,
        /// Port number.
        port: u16,
    },
}

/// Why a string is no address of an export.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UriError {
    /// It starts with something else.
    #[error("not an NBD address: want nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT")]
    Scheme,
    /// TLS was asked for.
    #[error("nbds addresses (TLS) are not supported by this client")]
    Tls,
    /// No server's socket in it.
    #[error("the address does not say where the server is: {0}")]
    Endpoint(&'static str),
    /// Something after the `?` has no meaning here.
    #[error("unknown parameter {0:?}: only socket=PATH is known")]
    Parameter(String),
    /// A `%` is not followed by two hexadecimal digits, or what they make is not UTF-8.
    #[error("bad %XX sequence in {0:?}")]
    Escape(String),
    /// The protocol does not allow the export's name.
    #[error("export names have at most {STRING_BYTES_MAX} bytes and no NUL")]
    Export,
}

impl Uri {
    /// The address of `export` behind the Unix socket at `socket`.
    pub fn unix(export: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Endpoint::Unix(socket.into()),
            export: export.into(),
        }
    }

    /// The address of `export` behind a TCP port.
    pub fn tcp(export: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        Self {
            endpoint: Endpoint::Tcp {
                host: host.into(),
                port,
            },
            export: export.into(),
        }
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(export)?;
        if export.len() > STRING_BYTES_MAX || export.contains('\0') {
            return Err(UriError::Export);
        }
        let mut socket = None;
        for parameter in parameters
            .split('&')
            .filter(|parameter| !parameter.is_empty())
        {
            match parameter.split_once('=') {
                Some(("socket", path)) if !path.is_empty() => {
                    socket = Some(PathBuf::from(decode(path)?));
                }
                _ => return Err(UriError::Parameter(parameter.to_owned())),
            }
        }
        let endpoint = match (scheme, socket) {
            ("nbd+unix", Some(path)) if authority.is_empty() => Endpoint::Unix(path),
            ("nbd+unix", Some(_)) => return Err(UriError::Endpoint("want three slashes")),
            ("nbd+unix", None) => return Err(UriError::Endpoint("want ?socket=PATH")),
            ("nbd", None) => tcp_endpoint(authority)?,
            ("nbd", Some(_)) => return Err(UriError::Endpoint("socket= is for nbd+unix")),
            ("nbds" | "nbds+unix", _) => return Err(UriError::Tls),
            _ => return Err(UriError::Scheme),
        };
        Ok(Self { endpoint, export })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = Encoded(self.export.as_bytes());
        match &self.endpoint {
            Endpoint::Unix(path) => {
                write!(
                    f,
                    "nbd+unix:///{export}?socket={}",
                    Encoded(path_bytes(path))
                )
            }
            Endpoint::Tcp { host, port } if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            Endpoint::Tcp { host, port } => write!(f, "nbd://{host}:{port}/{export}"),
        }
    }
}

fn tcp_endpoint(authority: &str) -> Result<Endpoint, UriError> {
    const BAD_PORT: UriError = UriError::Endpoint("bad port number");
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed
                .split_once(']')
                .ok_or(UriError::Endpoint("missing ]"))?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or(BAD_PORT)?)),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() || host.contains('@') {
        return Err(UriError::Endpoint("want HOST or HOST:PORT"));
    }
    let port = match port {
        Some(digits) => digits.parse().map_err(|_| BAD_PORT)?,
        None => DEFAULT_PORT,
    };
    Ok(Endpoint::Tcp {
        host: host.to_owned(),
        port,
    })
}

fn decode(text: &str) -> Result<String, UriError> {
    let bad = || UriError::Escape(text.to_owned());
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2).ok_or_else(bad)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// Shows bytes with `%XX` for those that could be mistaken for a part of the address.
struct Encoded<'a>(&'a [u8]);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                    write!(f, "{}", char::from(byte))?;
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

//! Connections between nodes, until the hellos are exchanged; then they are the data thread's.
//!
//! Of two nodes the one that comes first in the list sorted by name dials, the other accepts. A connection that comes
//! in while an older one of the same peer stands takes its place: the peer knows better that the old one is dead.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use replicator::io::DropReason;
use replicator::meta::config::Name;
use replicator::types::NodeId;
use replicator::wire::hello::{HELLO_BYTES, Hello, HelloError, WIRE_VERSION};
use tokio::sync::Notify;

use super::Shared;
use super::clients::ACCEPT_PAUSE;
use super::runtime::{self, Socket, TcpListener};
use super::waiting::{Place, WaitingRoom};
use crate::handle::{Stream, ToData};

/// How long hellos may take, and how long connecting.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The first pause between two attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The most connections that have not said who they are.
const STRANGERS_MAX: u32 = 32;

/// What is known of the connection to a node.
#[derive(Debug)]
pub(super) struct Link {
    /// Whether it is to be dialled and accepted.
    wanted: Cell<bool>,
    /// Whether the data thread has a connection to it.
    up: Cell<bool>,
    /// How often there was one.
    ups: Cell<u64>,
    /// Why there is none, as last said.
    reason: RefCell<Option<String>>,
    /// Why there is to be none, if it was not an operator who wanted that.
    alone_for: Cell<Option<DropReason>>,
    /// Wakes the task that dials.
    moved: Notify,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            wanted: Cell::new(true),
            up: Cell::new(false),
            ups: Cell::new(0),
            reason: RefCell::default(),
            alone_for: Cell::new(None),
            moved: Notify::new(),
        }
    }
}

impl Link {
    pub(super) fn wanted(&self) -> bool {
        self.wanted.get()
    }

    pub(super) fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.get()
    }

    pub(super) fn ups(&self) -> u64 {
        self.ups.get()
    }

    pub(super) fn down(&self) {
        self.up.set(false);
        self.moved.notify_one();
    }

    pub(super) fn reach(&self, wanted: bool) {
        self.wanted.set(wanted);
        self.alone_for.set(None);
        self.moved.notify_one();
    }

    pub(super) fn stand_alone(&self, why: DropReason) {
        self.reach(false);
        self.alone_for
            .set((why != DropReason::Operator).then_some(why));
    }

    /// Why it is not wanted, and what to do.
    pub(super) fn why_alone(&self) -> String {
        match self.alone_for.get() {
            Some(why) => format!("{why}; when that is settled, run replctl connect"),
            None => "disconnected; run replctl connect".to_owned(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it did not answer within {} s", HELLO_TIMEOUT.as_secs())]
    Timeout,
    #[error("it hung up before its hello; its address may be another program's")]
    HungUp,
    #[error("{0}")]
    Hello(#[from] HelloError),
    #[error("{0}")]
    Refused(String),
    #[error("the data thread has ended")]
    NoDataThread,
}

impl Shared {
    /// What this node says to `peer`; the names were checked with the config.
    fn hello(&self, from: &str, to: &str) -> Hello {
        let name = |text: &str| Name::from(text).unwrap_or_default();
        Hello {
            version: WIRE_VERSION,
            digest: self.config.digest(),
            resource: name(&self.config.resource),
            from: name(from),
            to: name(to),
            refusal: None,
        }
    }

    /// Notes why there is no connection to a peer. It is logged and told to watchers when it changes.
    fn note(&self, peer: usize, reason: Option<String>) {
        let (link, name) = (&self.links[peer], &self.config.nodes[peer].name);
        if *link.reason.borrow() == reason {
            return;
        }
        match &reason {
            Some(reason) => tracing::warn!("no connection to {name}: {reason}"),
            None => tracing::info!("connected to {name}"),
        }
        link.reason.replace(reason);
        self.bump();
    }

    /// The same about a connection that is no peer's.
    fn note_stranger(&self, reason: String) {
        if self.stranger.borrow().as_ref() == Some(&reason) {
            return;
        }
        tracing::warn!("a connection to the replication address was refused: {reason}");
        self.stranger.replace(Some(reason));
    }

    fn hand_over(&self, peer: usize, socket: Socket) -> Result<(), PeerError> {
        let id = u8::try_from(peer).map_err(|_| PeerError::NoDataThread)?;
        let stream = socket.into_stream().ok_or(PeerError::HungUp)?;
        self.links[peer].up.set(true);
        self.links[peer].ups.set(self.links[peer].ups.get() + 1);
        let message = ToData::Peer {
            stream,
            peer: NodeId(id),
            leftover: Vec::new(),
        };
        if !self.data.send(message) {
            self.links[peer].up.set(false);
            return Err(PeerError::NoDataThread);
        }
        self.note(peer, None);
        Ok(())
    }
}

/// Keeps a connection to a peer that comes later in the list.
pub(super) async fn dial(shared: Rc<Shared>, peer: usize) {
    let link = &shared.links[peer];
    let mut backoff = Backoff::new(peer);
    loop {
        while link.up.get() || !link.wanted.get() || shared.stopping.get() {
            link.moved.notified().await;
        }
        let began = Instant::now();
        match attempt(&shared, peer).await {
            Ok(()) => {
                while link.up.get() {
                    link.moved.notified().await;
                }
                // One that holds is not held against the next; one that breaks at once is.
                if began.elapsed() > 2 * BACKOFF_MAX {
                    backoff.reset();
                }
            }
            Err(error) => {
                let address = shared.config.nodes[peer].address;
                shared.note(peer, Some(format!("{address}: {error}")));
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn attempt(shared: &Shared, peer: usize) -> Result<(), PeerError> {
    let (me, node) = (shared.node(), &shared.config.nodes[peer]);
    let socket = deadline(async {
        let socket = Socket::new(runtime::connect(node.address).await?)?;
        let hello = shared.hello(&me.name, &node.name);
        socket.write_all(hello.encode().to_vec()).await?;
        let answer = Hello::decode(&read_hello(&socket).await?)?;
        answer.check(&shared.hello(&node.name, &me.name))?;
        Ok(socket)
    })
    .await?;
    if !shared.links[peer].wanted.get() {
        return Ok(());
    }
    shared.hand_over(peer, socket)
}

async fn deadline<T>(work: impl Future<Output = Result<T, PeerError>>) -> Result<T, PeerError> {
    tokio::time::timeout(HELLO_TIMEOUT, work)
        .await
        .unwrap_or(Err(PeerError::Timeout))
}

async fn read_hello(socket: &Socket) -> Result<[u8; HELLO_BYTES], PeerError> {
    let bytes = match socket.read_exact(HELLO_BYTES).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(PeerError::HungUp),
        other => other.map_err(Into::into),
    }?;
    bytes.try_into().map_err(|_| PeerError::HungUp)
}

/// Takes the connections of peers that come earlier in the list.
pub(super) async fn accept(shared: Rc<Shared>, listener: TcpListener) {
    let strangers = WaitingRoom::new(STRANGERS_MAX, "strangers at the replication address");
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("a peer can not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if shared.stopping.get() {
            continue;
        }
        runtime::spawn(welcome(Rc::clone(&shared), stream, strangers.enter()));
    }
}

async fn welcome(shared: Rc<Shared>, stream: Stream, place: Place) {
    let mut heard = None;
    let greeted = deadline(async {
        let socket = Socket::new(stream)?;
        let answer = match Hello::decode(&read_hello(&socket).await?) {
            Ok(hello) => shared.judge(&hello, &mut heard),
            Err(error) => Err(error.into()),
        };
        match answer {
            Ok((peer, hello)) => {
                socket.write_all(hello.encode().to_vec()).await?;
                Ok((peer, socket))
            }
            Err(error) => {
                let to = heard.map_or("", |peer: usize| shared.config.nodes[peer].name.as_str());
                let refusal = shared
                    .hello(&shared.node().name, to)
                    .refuse(&error.to_string());
                socket.write_all(refusal.encode().to_vec()).await?;
                Err(error)
            }
        }
    });
    let done = tokio::select! {
        done = greeted => done,
        () = place.lost() => return,
    };
    let done = done.and_then(|(peer, socket)| shared.hand_over(peer, socket));
    match (done, heard) {
        (Ok(()), _) => {}
        (Err(error), Some(peer)) if !shared.links[peer].up.get() => {
            shared.note(peer, Some(error.to_string()));
        }
        (Err(error), _) => shared.note_stranger(error.to_string()),
    }
}

impl Shared {
    /// Whether a hello fits, with the answer to it. `heard` is set as soon as it is known who speaks.
    fn judge(&self, hello: &Hello, heard: &mut Option<usize>) -> Result<(usize, Hello), PeerError> {
        let me = &self.node().name;
        let (from, nodes) = (hello.from.as_str(), &self.config.nodes);
        if hello.resource.as_str() == self.config.resource {
            *heard = nodes
                .iter()
                .position(|node| node.name == from && node.name != *me);
        }
        // Resource, receiver and config come before the sender: they explain it.
        hello.check(&self.hello(from, me))?;
        let Some(peer) = *heard else {
            let text = format!(
                "the config of {me} has no other node \"{from}\"; use the same file on all nodes"
            );
            return Err(PeerError::Refused(text));
        };
        if peer > self.me {
            let text = format!(
                "{me} dials {from}, not the other way round; run the same version on all nodes"
            );
            return Err(PeerError::Refused(text));
        }
        if !self.links[peer].wanted.get() {
            let text =
                format!("{me} is disconnected from {from}; run replctl connect {from} on {me}");
            return Err(PeerError::Refused(text));
        }
        Ok((peer, self.hello(me, from)))
    }
}

/// Pauses that double up to a second and never are quite the same on two nodes.
struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    fn new(salt: usize) -> Self {
        // Without randomness the pauses are merely alike.
        let random = getrandom::u64().unwrap_or(salt as u64) | 1;
        Self {
            next: BACKOFF_MIN,
            random,
        }
    }

    fn reset(&mut self) {
        self.next = BACKOFF_MIN;
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = BACKOFF_MAX.min(2 * pause);
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let percent = 75 + u32::try_from(self.random % 51).unwrap_or(0);
        pause * percent / 100
    }
}

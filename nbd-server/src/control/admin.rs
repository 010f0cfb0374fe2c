//! Operators: one request per line, answered from the snapshot or by the data thread.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;
use replicator::meta::config::{Name, majority};
use replicator::types::NodeId;
use replicator::view::{ConnectionState, Membership, PeerView, Role, View};
use tokio::sync::oneshot;

use super::Shared;
use super::clients::ACCEPT_PAUSE;
use super::listen::Slot;
use super::runtime::{self, Socket, UnixListener};
use super::waiting::Place;
use crate::admin::{
    AdminError, ExitCode, LineBuffer, Request, Response, Status, changes, timestamp, to_line,
};
use crate::config::{Config, NodeRole};
use crate::handle::{DataCommand, Stream, ToData};

/// How long a connection may wait with its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long with the next.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an answer may take to be read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the data thread may take where nothing else is said.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(8);
/// How long it may take to apply what is pending.
const DEMOTE_TIMEOUT: Duration = Duration::from_secs(110);
/// How long until it is tried again with a disk that does not answer.
const SILENCE_PAUSE: Duration = Duration::from_millis(100);
/// How often watchers hear something when nothing changes.
const TICK: Duration = Duration::from_secs(1);

pub(super) async fn accept(shared: Rc<Shared>, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("an operator can not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        runtime::spawn(connection(Rc::clone(&shared), stream));
    }
}

async fn connection(shared: Rc<Shared>, stream: Stream) {
    let place = shared.admin_waiting.enter();
    let admitted = admit(&stream);
    let socket = match Socket::new(stream) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!("an operator is turned away: {error}"),
    };
    let done = match admitted {
        Ok(()) => requests(&shared, &socket, place).await,
        Err(refusal) => say(&socket, &Response::Error(refusal)).await,
    };
    if let Err(error) = done {
        tracing::debug!("an operator's connection ended: {error}");
    }
}

/// Whether whoever connected may ask at all.
fn admit(stream: &Stream) -> Result<(), AdminError> {
    let Stream::Unix(stream) = stream else {
        return Err(AdminError::new(
            ExitCode::Failed,
            "operators come by the Unix socket only",
        ));
    };
    let uid = getsockopt(stream, PeerCredentials).map(|credentials| credentials.uid());
    if !uid.is_ok_and(|uid| uid == 0 || uid == geteuid().as_raw()) {
        let text = "only root and the user that repld runs as may operate it; become one of them";
        return Err(AdminError::new(ExitCode::Failed, text));
    }
    Ok(())
}

async fn requests(shared: &Shared, socket: &Socket, place: Place) -> io::Result<()> {
    let mut lines = LineBuffer::default();
    let mut timeout = FIRST_REQUEST_TIMEOUT;
    // Who has not asked for anything yet has a place that others may take, then one of his own.
    let (mut waiting, mut slot) = (Some(place), None::<Slot>);
    loop {
        let read = tokio::time::timeout(timeout, next_line(socket, &mut lines));
        let read = match &waiting {
            None => read.await,
            Some(place) => tokio::select! {
                read = read => read,
                () = place.lost() => return Ok(()),
            },
        };
        let line = match read {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) | Err(_) => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                let error = AdminError::new(ExitCode::Failed, error.to_string());
                return say(socket, &Response::Error(error)).await;
            }
            Ok(Err(error)) => return Err(error),
        };
        timeout = IDLE_TIMEOUT;
        waiting = None;
        slot = slot.or_else(|| shared.admin_slots.take());
        if slot.is_none() {
            let text = "too many operators are connected; end some of them and try again";
            let error = AdminError::new(ExitCode::Failed, text);
            return say(socket, &Response::Error(error)).await;
        }
        let answer = match serde_json::from_slice::<Request>(&line) {
            Err(error) => {
                let text = format!(
                    "the request can not be read: {error}; use the replctl of this version"
                );
                Response::Error(AdminError::new(ExitCode::Failed, text))
            }
            Ok(Request::Watch) => return stream(shared, socket, false).await,
            Ok(Request::Events) => return stream(shared, socket, true).await,
            Ok(request) => shared.answer(request).await.unwrap_or_else(Response::Error),
        };
        say(socket, &answer).await?;
        if matches!(answer, Response::Error(_)) {
            return Ok(());
        }
    }
}

async fn next_line(socket: &Socket, lines: &mut LineBuffer) -> io::Result<Option<Vec<u8>>> {
    loop {
        let line = lines.next_line();
        if let Some(line) =
            line.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
        {
            return Ok(Some(line));
        }
        let bytes = socket.read(4096).await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        lines.push(&bytes);
    }
}

async fn say(socket: &Socket, response: &Response) -> io::Result<()> {
    let line = to_line(response).ok_or(io::ErrorKind::InvalidData)?;
    tokio::time::timeout(WRITE_TIMEOUT, socket.write_all(line))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// Statuses or events, until the other end hangs up, or says anything.
async fn stream(shared: &Shared, socket: &Socket, events: bool) -> io::Result<()> {
    let mut changed = shared.changed.subscribe();
    let mut before: Option<Status> = None;
    let hung_up = socket.read(1);
    tokio::pin!(hung_up);
    loop {
        // Whatever changes from here on wakes the wait below.
        changed.mark_unchanged();
        let status = shared.status();
        if events {
            let time = timestamp(SystemTime::now());
            for event in changes(before.as_ref(), &status, &time) {
                say(socket, &Response::Event(event)).await?;
            }
            before = Some(status);
        } else {
            say(socket, &Response::Status(Box::new(status))).await?;
        }
        tokio::select! {
            read = &mut hung_up => return read.map(drop),
            _ = changed.changed() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

impl Shared {
    async fn answer(&self, request: Request) -> Result<Response, AdminError> {
        let done = |notice| Ok(Response::Done { notice });
        match request {
            Request::Status => Ok(Response::Status(Box::new(self.status()))),
            Request::Promote { timeout_ms, force } => {
                let promotion = (!force).then(|| self.fencing.promotion());
                let promoted = if force {
                    self.change(timeout_ms, |timeout_ms| DataCommand::Force { timeout_ms })
                        .await
                } else {
                    self.promote(timeout_ms).await
                };
                drop(promotion);
                promoted.map_err(|error| match self.fencing.note(&self.config) {
                    Some(note) => AdminError::new(error.code, format!("{}; {note}", error.message)),
                    None => error,
                })?;
                done(None)
            }
            Request::Demote { force } => {
                self.command(DataCommand::Demote { force }, DEMOTE_TIMEOUT)
                    .await?;
                done(None)
            }
            Request::Invalidate { timeout_ms, force } => {
                self.change(timeout_ms, |timeout_ms| DataCommand::Invalidate {
                    timeout_ms,
                    force,
                })
                .await?;
                done(None)
            }
            Request::SuspendIo { timeout_ms } => {
                let timeout_ms = timeout_ms.min(86_400_000);
                let timeout = COMMAND_TIMEOUT + Duration::from_millis(timeout_ms);
                self.command(DataCommand::SuspendIo { timeout_ms }, timeout)
                    .await?;
                done(self.elsewhere_notice())
            }
            Request::ResumeIo => {
                self.command(DataCommand::ResumeIo, COMMAND_TIMEOUT).await?;
                done(None)
            }
            Request::Verify {
                repair,
                bytes_per_second,
            } => {
                let command = DataCommand::Verify {
                    repair,
                    bytes_per_second,
                };
                self.command(command, COMMAND_TIMEOUT).await?;
                done(None)
            }
            Request::StopVerify => {
                // One that is due begins as soon as no other one runs, so the date is moved first.
                if self.data.snapshot().view.verify.running.is_some() {
                    self.status.borrow_mut().dates.skip();
                }
                self.command(DataCommand::StopVerify, COMMAND_TIMEOUT)
                    .await?;
                done(None)
            }
            Request::Connect { peer } => {
                let peer = self.peer(&peer)?;
                self.command(DataCommand::Connect { peer }, COMMAND_TIMEOUT)
                    .await?;
                done(None)
            }
            Request::Disconnect { peer } => {
                let peer = self.peer(&peer)?;
                let notice = self.disconnect_notice(peer);
                self.command(DataCommand::Disconnect { peer }, COMMAND_TIMEOUT)
                    .await?;
                done(notice)
            }
            Request::Drop { peer, timeout_ms } => {
                let peer = self.peer(&peer)?;
                self.change(timeout_ms, |timeout_ms| DataCommand::Drop {
                    peer,
                    timeout_ms,
                })
                .await?;
                done(self.left_notice(peer))
            }
            Request::Return { peer, timeout_ms } => {
                let peer = self.peer(&peer)?;
                self.change(timeout_ms, |timeout_ms| DataCommand::Return {
                    peer,
                    timeout_ms,
                })
                .await?;
                done(None)
            }
            Request::Replace { peer, timeout_ms } => {
                let peer = self.peer(&peer)?;
                self.change(timeout_ms, |timeout_ms| DataCommand::Replace {
                    peer,
                    timeout_ms,
                })
                .await?;
                done(None)
            }
            Request::Fence { peer, timeout_ms } => {
                let peer = self.peer(&peer)?;
                self.change(timeout_ms, |timeout_ms| DataCommand::Fence {
                    peer,
                    timeout_ms,
                })
                .await?;
                done(None)
            }
            Request::Unfence { peer, timeout_ms } => {
                let peer = self.this_or_peer(&peer)?;
                self.change(timeout_ms, |timeout_ms| DataCommand::Unfence {
                    peer,
                    timeout_ms,
                })
                .await?;
                done(None)
            }
            Request::Failover { timeout_ms } => {
                self.change(timeout_ms, |timeout_ms| DataCommand::Failover {
                    timeout_ms,
                })
                .await?;
                done(None)
            }
            Request::ConfirmStopped { peer } => {
                let peer = self.peer(&peer)?;
                let command = DataCommand::ConfirmStopped { peer };
                self.command(command, COMMAND_TIMEOUT).await?;
                done(None)
            }
            Request::Resize {
                volume,
                size,
                force,
                timeout_ms,
            } => {
                let (name, before) = self.volume(&volume)?;
                if size < before && !force {
                    let text = format!(
                        "{volume} has {before} bytes: to make it smaller loses what is behind the new end; use --force, with nothing attached"
                    );
                    return Err(AdminError::new(ExitCode::Failed, text));
                }
                self.change(timeout_ms, |timeout_ms| DataCommand::Resize {
                    volume: name,
                    bytes: size,
                    timeout_ms,
                })
                .await?;
                done(Some(format!(
                    "write the new size of {volume}, {size} bytes, to the config file on every node"
                )))
            }
            Request::AddVolume { volume, timeout_ms } => {
                let (volume, bytes) = self.new_volume(&volume)?;
                self.change(timeout_ms, |timeout_ms| DataCommand::AddVolume {
                    volume,
                    bytes,
                    timeout_ms,
                })
                .await?;
                done(None)
            }
            Request::RemoveVolume { volume, timeout_ms } => {
                let (name, _) = self.volume(&volume)?;
                self.change(timeout_ms, |timeout_ms| DataCommand::RemoveVolume {
                    volume: name,
                    timeout_ms,
                })
                .await?;
                done(Some(format!(
                    "remove {volume} from the config file on every node; files with its contents are kept under a name that ends in .removed"
                )))
            }
            Request::Watch | Request::Events => Err(AdminError::new(
                ExitCode::Failed,
                "a stream has no single answer",
            )),
        }
    }

    /// A volume that there is, and its size.
    fn volume(&self, name: &str) -> Result<(Name, u64), AdminError> {
        // A witness knows of no volumes, and says what any other Secondary does.
        if self.node().role == NodeRole::Witness {
            return Err(match self.data.snapshot().view.primary {
                Some(primary) => AdminError::new(
                    ExitCode::OtherPrimary,
                    format!(
                        "{} is Primary: volumes are changed there",
                        self.name_of(primary)
                    ),
                ),
                None => AdminError::new(
                    ExitCode::Failed,
                    "this node is not Primary: volumes are changed on the Primary",
                ),
            });
        }
        let volumes = self.volumes().unwrap_or_default();
        if let Some((_, volume)) = volumes.find(name) {
            return Ok((volume.name, volume.bytes));
        }
        let known: Vec<_> = volumes.iter().map(|(_, v)| v.name.to_string()).collect();
        let text = format!(
            "there is no volume {name:?}; there are {}",
            known.join(", ")
        );
        Err(AdminError::new(ExitCode::Usage, text))
    }

    /// A volume that the config file has by now, and its size there.
    fn new_volume(&self, name: &str) -> Result<(Name, u64), AdminError> {
        let file = self.config.file.display();
        let usage = |text: String| AdminError::new(ExitCode::Usage, text);
        let config = Config::load(&self.config.file).map_err(|error| usage(error.to_string()))?;
        let found = config.volumes.iter().find(|v| v.name == name);
        let volume = found.ok_or_else(|| {
            usage(format!(
                "{file} has no volume {name:?}: write it there on every node, with its size, and try again"
            ))
        })?;
        let name =
            Name::from(&volume.name).map_err(|_| usage("the name is too long".to_owned()))?;
        Ok((name, volume.size_bytes))
    }

    /// Makes this node Primary. A disk of it that does not answer now may do so in time.
    async fn promote(&self, timeout_ms: u64) -> Result<(), AdminError> {
        let mut left = Duration::from_millis(timeout_ms.min(86_400_000));
        let deadline = Instant::now() + left;
        loop {
            let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            let command = DataCommand::Promote { timeout_ms };
            let error = match self.command(command, COMMAND_TIMEOUT + left).await {
                Err(error) if error.code == ExitCode::NotUpToDate => error,
                other => return other,
            };
            let snapshot = self.data.snapshot();
            if snapshot.trouble.silence.is_none() {
                return Err(error);
            }
            if left.is_zero() {
                // One that froze is not known as Primary any more by now.
                let primary = snapshot.view.primary.map(|p| self.name_of(p));
                return Err(primary.map_or(error.clone(), |name| {
                    let text = format!("{name} is Primary; {}", error.message);
                    AdminError::new(ExitCode::OtherPrimary, text)
                }));
            }
            tokio::time::sleep(SILENCE_PAUSE.min(left)).await;
            left = deadline.saturating_duration_since(Instant::now());
        }
    }

    /// Changes what nodes may do, how they count, or the volumes.
    async fn change(
        &self,
        timeout_ms: u64,
        command: impl FnOnce(u64) -> DataCommand,
    ) -> Result<(), AdminError> {
        let timeout_ms = timeout_ms.min(86_400_000);
        let timeout = COMMAND_TIMEOUT + Duration::from_millis(timeout_ms);
        self.command(command(timeout_ms), timeout).await
    }

    /// What redundancy is left without a node.
    fn left_notice(&self, dropped: NodeId) -> Option<String> {
        let view = self.data.snapshot().view;
        let (voters, members) = counted(&view, |p| p.node != dropped);
        let of = |all: usize| all.saturating_sub(majority(all));
        let spare = of(voters).min(of(members));
        let name = self.name_of(dropped);
        let bears = match spare {
            0 => "none of them can be lost without I/O being suspended".to_owned(),
            n => format!("{n} of them can be lost"),
        };
        Some(format!(
            "{name} counts no more: {members} data nodes and {} witnesses are left, and {bears}; replctl return {name} takes it back",
            voters - members,
        ))
    }

    pub(super) async fn command(
        &self,
        command: DataCommand,
        timeout: Duration,
    ) -> Result<(), AdminError> {
        let (answer, answered) = oneshot::channel();
        let stopping = || AdminError::new(ExitCode::Failed, "repld is stopping; start it again");
        if self.stopping.get() || !self.data.send(ToData::Command { command, answer }) {
            return Err(stopping());
        }
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => {
                let code = ExitCode::try_from(error.code).unwrap_or(ExitCode::Failed);
                Err(AdminError::new(code, error.message))
            }
            Ok(Err(_)) => Err(stopping()),
            Err(_) => {
                let text = "the data thread does not answer; a disk may hang, see replctl status";
                Err(AdminError::new(ExitCode::Failed, text))
            }
        }
    }

    fn this_or_peer(&self, name: &str) -> Result<NodeId, AdminError> {
        match u8::try_from(self.me) {
            Ok(me) if self.node().name == name => Ok(NodeId(me)),
            _ => self.peer(name),
        }
    }

    fn peer(&self, name: &str) -> Result<NodeId, AdminError> {
        let peers = || {
            self.config
                .nodes
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != self.me)
        };
        let index = peers()
            .find(|(_, node)| node.name == name)
            .map(|(index, _)| index);
        index
            .and_then(|index| u8::try_from(index).ok())
            .map(NodeId)
            .ok_or_else(|| {
                let known: Vec<_> = peers().map(|(_, node)| node.name.as_str()).collect();
                let text = format!(
                    "there is no peer {name:?}; the peers are {}",
                    known.join(", ")
                );
                AdminError::new(ExitCode::Usage, text)
            })
    }

    /// Whose stores are not the image that this node's are, while it holds writes.
    fn elsewhere_notice(&self) -> Option<String> {
        let view = self.data.snapshot().view;
        let lacks = |peer: &&PeerView| {
            peer.role != Role::Witness && peer.applied.is_none_or(|seq| seq < view.committed)
        };
        let names = view.peers.iter().filter(lacks);
        let names: Vec<_> = names
            .map(|peer| self.config.nodes[usize::from(peer.node.0)].name.as_str())
            .collect();
        (!names.is_empty()).then(|| {
            format!(
                "writes are held; the stores of {} are at an older point in time: copy those of the other nodes",
                names.join(" and ")
            )
        })
    }

    /// What to say when it costs the quorum to lose this peer.
    fn disconnect_notice(&self, peer: NodeId) -> Option<String> {
        let view = self.data.snapshot().view;
        let (voters, members) = counted(&view, |_| true);
        let (reached, of_members) = counted(&view, |p| {
            p.node != peer && p.connection == ConnectionState::Connected
        });
        let (what, left, all) = if reached < majority(voters) {
            ("nodes", reached, voters)
        } else {
            ("data nodes", of_members, members)
        };
        let needed = majority(all);
        (view.quorum && left < needed).then(|| {
            let name = self.name_of(peer);
            format!(
                "without {name} this node reaches {left} of the {all} {what} that count: the quorum of {needed} is lost; \
                 run replctl connect {name} to restore it"
            )
        })
    }

    fn name_of(&self, node: NodeId) -> &str {
        &self.config.nodes[usize::from(node.0)].name
    }
}

/// How many nodes count, of this one and of such peers: all that vote, and the data nodes among them. It takes a majority of both.
/// Before the first promotion nobody knows who counts, and all do.
fn counted(view: &View, which: impl Fn(&PeerView) -> bool) -> (usize, usize) {
    let all = view.membership == Membership::Unknown;
    let counts = |membership| all || membership == Membership::Full;
    let peers = view.peers.iter().filter(|p| which(p));
    let peers = peers.map(|p| (p.membership, p.role));
    let nodes = peers.chain([(view.membership, view.role)]);
    let voters = nodes.filter(|(membership, _)| counts(*membership));
    voters.fold((0, 0), |(voters, members), (_, role)| {
        (voters + 1, members + usize::from(role != Role::Witness))
    })
}

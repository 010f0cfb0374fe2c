//! What the control thread sends: connections that are past their handshake, and commands.

use super::*;

impl<C: Core> Server<C> {
    pub(super) fn take_messages(&mut self) {
        use std::sync::mpsc::TryRecvError;
        loop {
            match self.control.receiver.try_recv() {
                Ok(ToData::Client {
                    stream,
                    volume,
                    terms,
                    leftover,
                }) => self.add_client(stream, (volume, terms), &leftover),
                Ok(ToData::Peer {
                    stream,
                    peer,
                    leftover,
                }) => self.add_peer(stream, peer, &leftover),
                Ok(ToData::Command { command, answer }) => self.command(command, answer),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    if self.stop.is_none() {
                        let (answer, _) = tokio::sync::oneshot::channel();
                        self.command(DataCommand::Stop, answer);
                    }
                    return;
                }
            }
        }
    }

    fn add_client(&mut self, stream: Stream, chosen: (VolumeId, Terms), leftover: &[u8]) {
        let (volume, terms) = chosen;
        let serving = self.engine.core.view().serving && self.stop.is_none();
        let known = self.engine.core.volumes().get(volume);
        let (Some(&VolumeRecord { bytes, .. }), true) = (known, serving) else {
            tracing::info!("NBD client turned away: this node does not serve");
            return;
        };
        let link = match Link::new(stream, leftover, &self.pool) {
            Ok(link) if !self.clients.is_full() => link,
            Ok(_) => {
                tracing::warn!("NBD client turned away: {CLIENTS_MAX} are attached");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "NBD client turned away");
                return;
            }
        };
        let Some(replies) = Replies::new(&self.pool, terms.structured) else {
            tracing::warn!("NBD client turned away: no memory for its connection");
            return;
        };
        let export = ExportIndex(usize::from(volume.0));
        let session = Session::transmitting_on(export, bytes, terms, Limits::default());
        let client = Client::new(link, volume, session, replies);
        if let Some(key) = self.clients.insert(client) {
            tracing::info!(volume = volume.0, "NBD client attached");
            self.nbd_clients[usize::from(volume.0)] += 1;
            self.wake_client(key);
        }
    }

    fn add_peer(&mut self, stream: Stream, node: NodeId, leftover: &[u8]) {
        let conn = ConnId(self.next_conn);
        let peer = match Link::new(stream, leftover, &self.pool) {
            Ok(link) if !self.peers.is_full() => Peer::new(link, conn, node, &self.pool),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(peer = node.0, %error, "connection to peer not taken over");
                None
            }
        };
        let Some(key) = peer.and_then(|peer| self.peers.insert(peer)) else {
            tracing::warn!(peer = node.0, "no room for one more connection to a peer");
            self.tell(ToControl::PeerDown { peer: node });
            return;
        };
        self.next_conn += 1;
        self.engine
            .meters
            .peer(usize::from(node.0))
            .connections
            .add(1);
        self.engine.input(Input::PeerUp { conn, peer: node });
        self.wake_peer(key);
    }

    /// Whether a volume would lose something that a client is attached to.
    fn in_use(&self, volume: &str, bytes: u64) -> bool {
        let known = self.engine.core.volumes().find(volume);
        known.is_some_and(|(id, v)| bytes < v.bytes && self.nbd_clients[usize::from(id.0)] > 0)
    }

    fn command(&mut self, command: DataCommand, answer: crate::reactor::admin::AnswerSender) {
        if let (Some(_), true) = (&self.stop, command != DataCommand::Stop) {
            let stopping = refusal(1, "this node is stopping");
            self.commands.answer(answer, Err(stopping));
            return;
        }
        let now = self.engine.now;
        let serving = self.engine.core.view().serving;
        if let (DataCommand::Promote { .. }, false, Some(silence)) =
            (command, serving, &self.disks.watch().trouble().silence)
        {
            let message = format!("{silence}; promote another node, or look at that device");
            self.commands.answer(answer, Err(refusal(17, &message)));
            return;
        }
        let until = |timeout_ms: u64| now.after(timeout_ms.saturating_mul(1_000_000));
        let command = match command {
            DataCommand::Promote { timeout_ms } => AdminCommand::Promote {
                deadline: until(timeout_ms),
            },
            DataCommand::Force { timeout_ms } => AdminCommand::Force {
                deadline: until(timeout_ms),
            },
            DataCommand::Demote { force } => {
                let clients: u32 = self.nbd_clients.iter().sum();
                if clients > 0 && !force {
                    let message = "in use: an NBD client is attached; detach it, or use --force";
                    self.commands.answer(answer, Err(refusal(12, message)));
                    return;
                }
                AdminCommand::Demote
            }
            DataCommand::Connect { peer } => AdminCommand::Connect { peer },
            DataCommand::Disconnect { peer } => AdminCommand::Disconnect { peer },
            DataCommand::Drop { peer, timeout_ms } => AdminCommand::Drop {
                peer,
                deadline: until(timeout_ms),
            },
            DataCommand::Return { peer, timeout_ms } => AdminCommand::Return {
                peer,
                deadline: until(timeout_ms),
            },
            DataCommand::Replace { peer, timeout_ms } => AdminCommand::Replace {
                peer,
                deadline: until(timeout_ms),
            },
            DataCommand::Invalidate { timeout_ms, force } => AdminCommand::Invalidate {
                deadline: until(timeout_ms),
                insists: force,
            },
            DataCommand::Fence { peer, timeout_ms } => AdminCommand::Fence {
                peer,
                deadline: until(timeout_ms),
            },
            DataCommand::Unfence { peer, timeout_ms } => AdminCommand::Unfence {
                peer,
                deadline: until(timeout_ms),
            },
            DataCommand::Failover { timeout_ms } => AdminCommand::Failover {
                deadline: until(timeout_ms),
            },
            DataCommand::ConfirmStopped { peer } => AdminCommand::ConfirmStopped { peer },
            DataCommand::Resize { volume, bytes, .. } if self.in_use(&volume, bytes) => {
                let message = "in use: an NBD client is attached to this volume; detach it before it is made smaller";
                self.commands.answer(answer, Err(refusal(12, message)));
                return;
            }
            DataCommand::RemoveVolume { volume, .. } if self.in_use(&volume, 0) => {
                let message = "in use: an NBD client is attached to this volume; detach it before it is removed";
                self.commands.answer(answer, Err(refusal(12, message)));
                return;
            }
            DataCommand::Resize {
                volume,
                bytes,
                timeout_ms,
            } => AdminCommand::Resize {
                volume,
                bytes,
                deadline: until(timeout_ms),
            },
            DataCommand::AddVolume {
                volume,
                bytes,
                timeout_ms,
            } => AdminCommand::AddVolume {
                volume,
                bytes,
                deadline: until(timeout_ms),
            },
            DataCommand::RemoveVolume { volume, timeout_ms } => AdminCommand::RemoveVolume {
                volume,
                deadline: until(timeout_ms),
            },
            DataCommand::DropClients => {
                self.drop_clients();
                self.commands.answer(answer, Ok(()));
                return;
            }
            DataCommand::SuspendIo { timeout_ms } => AdminCommand::SuspendIo {
                deadline: until(timeout_ms),
            },
            DataCommand::ResumeIo => AdminCommand::ResumeIo,
            DataCommand::Verify {
                repair,
                bytes_per_second,
            } => AdminCommand::Verify {
                repair,
                bytes_per_second,
            },
            DataCommand::StopVerify => AdminCommand::StopVerify,
            DataCommand::Stop => {
                self.drop_clients();
                AdminCommand::Drain
            }
        };
        let id = self.commands.open(answer);
        if command == AdminCommand::Drain && self.stop.is_none() {
            let deadline = now.after(STOP_NANOS_MAX);
            let done = false;
            self.stop = Some(Stop { id, deadline, done });
        }
        self.engine.input(Input::Admin { id, command });
    }
}

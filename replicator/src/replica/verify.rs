//! Verifying: all copies of all volumes are read, and compared with each other by their checksums, while I/O goes on.
//!
//! It goes page by page (`store/sums.rs`): the node that runs it asks each data node, itself included, for one page after the
//! other. Whoever is asked reads the page's blocks, compares them with the sums that were recorded when they were written, and
//! answers with what the sums come to (`checking`). Where that is the same on all nodes, they hold the same. Where it is
//! not, a record may just be applied here and not yet there; so the sums themselves are asked for, as of one record: every node's
//! applier stops there for a moment. What differs then differs, and there is no false alarm.
//!
//! Which of the copies is the right one says rule C5 of `docs/protocol.md`: what most data nodes have, else what the Primary has. A
//! node with another one is told the sum of that, and fetches it as it would for a bad block (`repair`).
//!
//! A run lives in memory only. Peers that go away are asked about what they missed when they come back; when the node that runs it
//! is restarted, it is over. Which pages have to be compared yet is known per node, so nothing is compared twice.

mod checking;
mod judging;

use arrayvec::ArrayVec;

use self::checking::{Checks, sum_at};
use super::Replica;
use crate::io::*;
use crate::memory::Memory;
use crate::store::sums::BlockSum;
use crate::types::*;
use crate::view::{Finding, FindingKind, VerifyView};
use crate::wire::frame::{BAD_NAMED_MAX, CheckAsk, Checked, Frame, Mend, Verified, VerifyFrame};

/// So many things that were found are told of one by one.
const TOLD_MAX: u64 = 20;

/// A node that was asked and has not answered for so long is left for later.
const ANSWER_NS: u64 = 20_000_000_000;

/// A node that could not answer is asked again after this long.
const UNABLE_NS: u64 = 500_000_000;

/// A run that finds nobody to go on with ends after this long.
const PATIENCE_NS: u64 = 10_000_000_000;

/// How often the copies of a page are asked for as of one record before it is left for later.
const ALIGNED_MAX: u32 = 12;

/// The pause before they are asked for anew.
const PAUSE_NS: u64 = 20_000_000;

/// Blocks of a node that are mended before its page is looked at again.
const MENDS_MAX: usize = 8;

/// How often that may be in vain.
const STALLS_MAX: u32 = 3;

/// A peer that asked within this time is verifying.
const VERIFIER_NS: u64 = 5_000_000_000;

/// Things that were found and are shown.
pub(super) const FINDINGS_MAX: usize = 16;
const _: () = assert!(BAD_NAMED_MAX <= FINDINGS_MAX);

/// Nodes, by their numbers.
type Nodes = u8;

fn bit(node: NodeId) -> Nodes {
    1 << node.0
}

/// What a node does for verifications, and what the last one came to.
#[derive(Debug)]
pub(super) struct Verify<B> {
    checks: Checks<B>,
    run: Option<Box<Run>>,
    /// How many have ended that this node knows of, and what the last one came to.
    ended: u64,
    last: Option<(NodeId, Verified)>,
    findings: ArrayVec<Finding, FINDINGS_MAX>,
    /// Which peer asked last, and when.
    heard: Option<(NodeId, Time)>,
    told: u64,
}

impl<B> Verify<B> {
    pub(super) fn new() -> Self {
        Self {
            checks: Checks::new(),
            run: None,
            ended: 0,
            last: None,
            findings: ArrayVec::new(),
            heard: None,
            told: 0,
        }
    }

    /// Somebody is gone.
    pub(super) fn forget(&mut self, conn: ConnId, node: NodeId) {
        self.checks.forget(Some(conn));
        if self.heard.is_some_and(|(n, _)| n == node) {
            self.heard = None;
        }
        if let Some(page) = self.run.as_mut().and_then(|r| r.page.as_mut()) {
            page.lose(bit(node));
        }
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        let run = self.run.as_ref().map(|run| match &run.page {
            Some(page) if page.waiting == 0 => page.ask_at,
            Some(page) => page.since.after(ANSWER_NS),
            None => run.not_before,
        });
        [run, self.checks.timeout()].into_iter().flatten().min()
    }
}

/// A verification that this node runs.
#[derive(Debug)]
struct Run {
    repair: bool,
    /// 0: as fast as it goes.
    bytes_per_second: u64,
    /// By volume and page: who has to be compared yet.
    todo: Vec<Vec<Nodes>>,
    /// The page after the one that was looked at last.
    next: (u16, u32),
    /// The table of whoever is compared has to have this record: so all differences that were there at the beginning are found.
    since: Seq,
    page: Option<Page>,
    not_before: Time,
    /// When something was compared last.
    progress_at: Time,
    /// Who could not answer: when to ask again.
    unable: [Time; NODES_MAX],
    tally: Verified,
    left_bytes: u64,
}

/// The page that is being compared.
#[derive(Debug)]
struct Page {
    volume: VolumeId,
    page: u32,
    token: u64,
    waiting: Nodes,
    answers: ArrayVec<(NodeId, Box<Checked>), NODES_MAX>,
    /// The sums are asked for, as of this record.
    aligned: Option<Seq>,
    /// Some node's table is as of this record already.
    at_least: Seq,
    attempts: u32,
    /// What was found wrong the last time.
    wrong: Option<usize>,
    stalls: u32,
    since: Time,
    /// Nobody is asked yet; when to.
    ask_at: Time,
    nodes: Nodes,
}

impl Page {
    fn lose(&mut self, nodes: Nodes) {
        self.waiting &= !nodes;
        self.nodes &= !nodes;
        self.answers.retain(|(n, _)| nodes & bit(*n) == 0);
    }
}

impl<M: Memory> Replica<M> {
    /// Why nothing can be said of this node's blocks now.
    fn cannot_verify(&self) -> Option<&'static str> {
        if self.is_witness() {
            return Some("this node is a witness and has no blocks: verify on a data node");
        }
        if self.fresh() {
            return Some("this node holds nothing yet");
        }
        if self.damaged() || self.merging() || self.resync.is_some() {
            return Some("this node is behind, and has to catch up first");
        }
        if self.hold.is_some() {
            return Some("an operator holds writes: replctl resume-io lets them go on");
        }
        if self.drain.is_some() || self.failed.is_some() || self.forking() {
            return Some("this node is stopping");
        }
        None
    }

    pub(super) fn verify(&mut self, repair: bool, bytes_per_second: u64) -> AdminResult {
        if let Some(reason) = self.cannot_verify() {
            return Err(AdminError::Failed(reason.into()));
        }
        if self.verify.run.is_some() {
            let text = "a verification is under way already: see replctl status, and replctl verify --stop ends it";
            return Err(AdminError::Failed(text.into()));
        }
        if let Some(node) = self.verifier() {
            let name = self.config.nodes[usize::from(node.0)];
            let text = format!("{name} is verifying already: wait for its end, or end it there");
            return Err(AdminError::Failed(text));
        }
        let mut run = Box::new(Run {
            repair,
            bytes_per_second,
            todo: Vec::new(),
            next: (0, 0),
            since: self.log.durable_id().seq,
            page: None,
            not_before: self.now,
            progress_at: self.now,
            unable: [Time(0); NODES_MAX],
            tally: Verified {
                repair,
                ..Verified::default()
            },
            left_bytes: 0,
        });
        self.fit_to_volumes(&mut run);
        self.verify.findings.clear();
        self.verify.told = 0;
        self.verify.run = Some(run);
        self.log_info(format!(
            "verify: all blocks are read and compared with the peers' checksums{}",
            if repair { ", and mended" } else { "" }
        ));
        Ok(())
    }

    pub(super) fn stop_verify(&mut self) -> AdminResult {
        if self.verify.run.is_some() {
            self.end_verify(false);
            return Ok(());
        }
        match self.verifier() {
            Some(node) => {
                let name = self.config.nodes[usize::from(node.0)];
                let text = format!("it is {name} that is verifying: stop it there");
                Err(AdminError::Failed(text))
            }
            None => Ok(()),
        }
    }

    /// A peer that is verifying.
    fn verifier(&self) -> Option<NodeId> {
        let (node, at) = self.verify.heard?;
        (self.now.since(at) < VERIFIER_NS).then_some(node)
    }

    fn note_verifier(&mut self, conn: ConnId) {
        let now = self.now;
        if let Some(node) = self.peer_of(conn).map(|p| p.node) {
            self.verify.heard = Some((node, now));
        }
    }

    /// Data nodes that are to be compared: all but those that count for nothing.
    fn to_verify(&self) -> Nodes {
        let peers = self
            .peers
            .iter()
            .filter(|p| !self.config.is_witness(p.node));
        let peers = peers.filter(|p| self.membership_of(p) != crate::view::Membership::Out);
        peers.fold(bit(self.config.me), |all, p| all | bit(p.node))
    }

    /// The volumes may have grown, or there are more of them.
    fn fit_to_volumes(&self, run: &mut Run) {
        let all = self.to_verify();
        let volumes = usize::from(self.sums.volumes());
        let pages = |v: usize| {
            let volume = VolumeId(u16::try_from(v).expect("at most 16 volumes"));
            self.sums.pages_of_volume(volume) as usize
        };
        let fits = run.todo.len() == volumes
            && run
                .todo
                .iter()
                .enumerate()
                .all(|(v, t)| t.len() == pages(v));
        if fits {
            return;
        }
        run.todo.resize(volumes, Vec::new());
        for (volume, todo) in run.todo.iter_mut().enumerate() {
            todo.resize(pages(volume), all);
        }
        run.left_bytes = 0;
        for (volume, todo) in (0..).zip(&run.todo) {
            for (page, _) in (0..).zip(todo).filter(|(_, t)| **t != 0) {
                let blocks = self.sums.blocks_of_page(VolumeId(volume), page);
                run.left_bytes += (blocks.end - blocks.start) * BLOCK_BYTES_U64;
            }
        }
    }

    pub(super) fn pump_verify(&mut self) {
        self.pump_checks();
        // Whatever is decided needs the run and the node both: it is out of its place meanwhile.
        while let Some(mut run) = self.verify.run.take() {
            self.fit_to_volumes(&mut run);
            let goes_on = self.verify_step(&mut run);
            self.verify.run = Some(run);
            match goes_on {
                Go::On => {
                    self.pump_checks();
                }
                Go::Wait => return,
                Go::End => self.end_verify(true),
            }
        }
    }

    fn verify_step(&mut self, run: &mut Run) -> Go {
        let now = self.now;
        let Some(page) = &mut run.page else {
            if now < run.not_before {
                return Go::Wait;
            }
            return self.next_page(run);
        };
        if page.waiting != 0 {
            if now.since(page.since) < ANSWER_NS {
                return Go::Wait;
            }
            let late = page.waiting;
            for node in 0..NODES_MAX {
                if late & 1 << node != 0 {
                    run.unable[node] = now.after(PATIENCE_NS / 2);
                }
            }
            page.lose(late);
        }
        if page.answers.is_empty() && page.nodes != 0 {
            if now < page.ask_at {
                return Go::Wait;
            }
            self.ask_about(run);
            return Go::On;
        }
        self.page_is_answered(run);
        Go::On
    }

    /// Those of the nodes that can be asked now.
    fn able(&self, run: &Run) -> Nodes {
        let mut able = 0;
        for peer in &self.peers {
            if peer.conn.is_some() && peer.report.is_some() {
                able |= bit(peer.node);
            }
        }
        able |= bit(self.config.me);
        for node in 0..NODES_MAX {
            if self.now < run.unable[node] {
                able &= !(1 << node);
            }
        }
        able & self.to_verify()
    }

    /// Takes the next page that somebody has to be compared by.
    fn next_page(&mut self, run: &mut Run) -> Go {
        let able = self.able(run);
        let me = bit(self.config.me);
        let (mut volume, mut page) = run.next;
        let mut found = None;
        let mut any = false;
        let pages: usize = run.todo.iter().map(Vec::len).sum();
        for _ in 0..pages + run.todo.len() + 2 {
            let Some(todo) = run.todo.get(usize::from(volume)) else {
                (volume, page) = (0, 0);
                continue;
            };
            let Some(&nodes) = todo.get(page as usize) else {
                (volume, page) = (volume + 1, 0);
                continue;
            };
            any |= nodes != 0;
            if nodes & able != 0 && able & me != 0 {
                found = Some((volume, page, nodes & able | me));
                break;
            }
            page += 1;
        }
        let Some((volume, page, nodes)) = found else {
            // A peer may come back; a node that counts for nothing any more is not waited for.
            let wanted = run.todo.iter().flatten().any(|n| n & self.to_verify() != 0);
            let patient = self.now.since(run.progress_at) < PATIENCE_NS;
            if any && wanted && patient {
                run.not_before = self.now.after(UNABLE_NS);
                return Go::Wait;
            }
            return Go::End;
        };
        run.next = (volume, page + 1);
        run.page = Some(Page {
            volume: VolumeId(volume),
            page,
            token: 0,
            waiting: 0,
            answers: ArrayVec::new(),
            aligned: None,
            at_least: Seq(0),
            attempts: 0,
            wrong: None,
            stalls: 0,
            since: self.now,
            ask_at: self.now,
            nodes,
        });
        Go::On
    }

    /// Asks all nodes about the page.
    fn ask_about(&mut self, run: &mut Run) {
        let token = self.next_token();
        let newest = self.log.durable_id().seq.max(self.sums_as_of());
        let Some(page) = &mut run.page else { return };
        page.token = token;
        page.since = self.now;
        page.waiting = page.nodes;
        if page.aligned.is_some() {
            page.aligned = Some(newest.max(page.at_least));
        }
        let ask = CheckAsk {
            token,
            volume: page.volume,
            page: page.page,
            as_of: page.aligned.unwrap_or(run.since),
            read: page.aligned.is_none(),
            repair: run.repair,
            sums: page.aligned.is_some(),
        };
        let nodes = page.nodes;
        let conns: ArrayVec<ConnId, NODES_MAX> = self
            .peers
            .iter()
            .filter(|p| nodes & bit(p.node) != 0)
            .filter_map(|p| p.conn)
            .collect();
        for conn in conns {
            let frame = VerifyFrame::Ask(ask);
            run.tally.wire_bytes += frame.wire_bytes();
            self.send(conn, Frame::Verify(frame));
        }
        self.check(None, ask);
    }

    /// A node has answered.
    pub(super) fn got_checked(&mut self, node: NodeId, checked: Box<Checked>, wire_bytes: u64) {
        let Some(run) = &mut self.verify.run else {
            return;
        };
        run.tally.wire_bytes += wire_bytes;
        let Some(page) = &mut run.page else { return };
        if page.token != checked.token || page.waiting & bit(node) == 0 {
            return;
        }
        page.waiting &= !bit(node);
        page.answers.push((node, checked));
    }

    /// The run is over, at its end or before.
    fn end_verify(&mut self, finished: bool) {
        let Some(run) = self.verify.run.take() else {
            return;
        };
        self.verify.checks.forget(None);
        let mut tally = run.tally;
        tally.finished = finished;
        let missed = run.todo.iter().flatten().fold(0, |all, n| all | n);
        tally.missed = missed & self.to_verify();
        let names: Vec<_> = (0..NODES_MAX)
            .filter(|n| tally.missed & 1 << n != 0)
            .map(|n| self.config.nodes[n].as_str())
            .collect();
        let (found, left) = (tally.bad + tally.differing, tally.left);
        let text = match (finished, found, names.is_empty()) {
            (false, ..) => {
                format!("verify: ended before its end; {found} blocks found, {left} left")
            }
            (true, 0, true) => "verify: all copies are sound and equal".to_owned(),
            (true, _, true) => format!("verify: {found} blocks found, {left} left as they are"),
            (true, _, false) => format!(
                "verify: {found} blocks found, {left} left as they are; not compared in whole: {}",
                names.join(", ")
            ),
        };
        if tally.is_clean() {
            self.log_info(text);
        } else {
            self.log_warn(text);
        }
        self.verify.ended += 1;
        self.verify.last = Some((self.config.me, tally));
        self.send_all(&Frame::Verify(VerifyFrame::Verified(tally)));
    }

    /// The node fails.
    pub(super) fn verify_fails(&mut self) {
        self.end_verify(false);
    }

    pub(super) fn got_verify(&mut self, conn: ConnId, frame: VerifyFrame) {
        let Some(node) = self.peer_of(conn).map(|p| p.node) else {
            return;
        };
        let wire_bytes = frame.wire_bytes();
        match frame {
            VerifyFrame::Ask(ask) => self.got_check(conn, ask),
            VerifyFrame::Checked(checked) => self.got_checked(node, checked, wire_bytes),
            VerifyFrame::Mend(mend) => self.got_mend(mend),
            VerifyFrame::Verified(verified) => {
                if self.is_witness() {
                    return;
                }
                self.verify.heard = None;
                self.verify.ended += 1;
                self.verify.last = Some((node, verified));
                self.verify.findings.clear();
            }
        }
    }

    pub(super) fn verify_view(&self) -> VerifyView {
        let run = self.verify.run.as_deref();
        let me = run.map(|_| self.config.me);
        VerifyView {
            by: me.or_else(|| self.verifier()),
            running: run.map(|r| r.tally),
            left_bytes: run.map_or(0, |r| r.left_bytes),
            ended: self.verify.ended,
            last: self.verify.last,
            findings: self.verify.findings.clone(),
        }
    }
}

/// Whether a run goes on.
enum Go {
    On,
    Wait,
    End,
}

//! What the nodes answered about a page, compared: who has what others have not, and who is told to mend it.

use super::*;

/// A copy of a block that is not as it should be.
#[derive(Clone, Copy, Debug)]
struct Wrong {
    node: NodeId,
    block: u64,
    right: Option<BlockSum>,
    unknown: bool,
}

impl<M: Memory> Replica<M> {
    /// All have answered, or are gone.
    pub(super) fn page_is_answered(&mut self, run: &mut Run) {
        let now = self.now;
        let Some(mut page) = run.page.take() else {
            return;
        };
        let blocks = self.sums.blocks_of_page(page.volume, page.page);
        let count = usize::try_from(blocks.end - blocks.start).expect("896 blocks");
        for at in (0..page.answers.len()).rev() {
            let (node, answer) = &page.answers[at];
            if usize::from(answer.blocks) != count || count == 0 {
                run.unable[usize::from(node.0)] = now.after(UNABLE_NS);
                let node = bit(*node);
                page.lose(node);
            }
        }
        // Without this node's own copy there is nothing to compare with.
        if page.nodes & bit(self.config.me) == 0 || page.answers.is_empty() {
            run.not_before = now.after(PAUSE_NS);
            return;
        }
        if let Some(at) = page.aligned {
            self.page_is_aligned(run, page, at, blocks.start);
            return;
        }
        for (node, answer) in &page.answers {
            self.note_bad(run, &page, *node, answer, blocks.start);
        }
        let late = page.answers.iter().any(|(_, a)| a.as_of < run.since);
        if late && page.attempts < ALIGNED_MAX {
            // The record that was to be there may have been cut, or is not committed.
            run.since = run.since.min(self.log.durable_id().seq);
            page.attempts += 1;
            self.again(run, page);
            return;
        }
        if late {
            self.leave_behind(run, &page, run.since);
            return;
        }
        let first = &page.answers[0].1;
        let same = |a: &Checked| a.digest == first.digest && a.unknown == 0;
        if page.answers.iter().all(|(_, a)| same(a)) {
            self.page_is_done(run, &page, count as u64);
            return;
        }
        page.aligned = Some(Seq(0));
        page.attempts = 0;
        page.answers.clear();
        run.page = Some(page);
    }

    /// The page is left for later. Who has not come to this record may never do so: the others are compared without it.
    fn leave_behind(&self, run: &mut Run, page: &Page, seq: Seq) {
        for (node, _) in page.answers.iter().filter(|(_, a)| a.as_of < seq) {
            run.unable[usize::from(node.0)] = self.now.after(UNABLE_NS);
        }
    }

    fn again(&mut self, run: &mut Run, mut page: Page) {
        page.answers.clear();
        page.ask_at = self.now.after(PAUSE_NS);
        run.page = Some(page);
    }

    /// The sums themselves are there, as of one record.
    fn page_is_aligned(&mut self, run: &mut Run, mut page: Page, at: Seq, start: u64) {
        let exact =
            |a: &Checked| !a.sums.is_empty() && (a.as_of == at || planted!(VerifyUnaligned));
        if !page.answers.iter().all(|(_, a)| exact(a)) {
            page.attempts += 1;
            page.at_least = page.answers.iter().map(|(_, a)| a.as_of).fold(at, Seq::max);
            if page.attempts < ALIGNED_MAX {
                self.again(run, page);
            } else {
                self.leave_behind(run, &page, at);
            }
            return;
        }
        let wrong = self.wrong_copies(&page, start);
        // What was compared before has been counted then.
        let todo = run.todo[usize::from(page.volume.0)][page.page as usize];
        // Of a block that is bad a node can not always tell what should be there; that it is bad was told already.
        let is_bad = |w: &Wrong| {
            let answer = page.answers.iter().find(|(node, _)| *node == w.node);
            answer.is_some_and(|(_, a)| {
                let named = a.named.iter().any(|&n| start + u64::from(n) == w.block);
                w.unknown && (named || usize::from(a.bad) > a.named.len())
            })
        };
        let new = |wrong: &[Wrong]| {
            let news = wrong.iter().filter(|w| todo & bit(w.node) != 0);
            news.filter(|w| !is_bad(w)).count() as u64
        };
        let first = page.wrong.is_none();
        if first {
            run.tally.differing += new(&wrong);
            for wrong in wrong.iter().filter(|w| !is_bad(w)) {
                let kind = if wrong.unknown {
                    FindingKind::Unknown
                } else {
                    FindingKind::Differs
                };
                self.note_finding(wrong.node, page.volume, wrong.block, kind);
            }
        }
        if page.wrong.is_some_and(|before| wrong.len() >= before) {
            page.stalls += 1;
        }
        page.wrong = Some(wrong.len());
        let hopeless = wrong.iter().all(|w| w.right.is_none()) || page.stalls > STALLS_MAX;
        if !run.repair || hopeless {
            run.tally.left += new(&wrong);
            let count = page.answers[0].1.sums.len() as u64;
            self.page_is_done(run, &page, count);
            return;
        }
        let mut told = [0; NODES_MAX];
        for wrong in &wrong {
            let Some(sum) = wrong.right else { continue };
            let n = usize::from(wrong.node.0);
            if told[n] < MENDS_MAX {
                told[n] += 1;
                let mend = Mend {
                    volume: page.volume,
                    block: wrong.block,
                    as_of: at,
                    sum,
                };
                self.tell_to_mend(run, wrong.node, mend);
            }
        }
        self.again(run, page);
    }

    fn tell_to_mend(&mut self, run: &mut Run, node: NodeId, mend: Mend) {
        if node == self.config.me {
            self.mend_block(mend);
        } else if let Some(conn) = self.peer(node).and_then(|p| p.conn) {
            let frame = VerifyFrame::Mend(mend);
            run.tally.wire_bytes += frame.wire_bytes();
            self.send(conn, Frame::Verify(frame));
        }
    }

    /// The copies that differ from the right one (protocol C5), of all blocks of a page.
    fn wrong_copies(&self, page: &Page, start: u64) -> Vec<Wrong> {
        let nodes = self.config.nodes.len() - self.config.witnesses.len();
        let primary = match self.leader {
            Some(_) => Some(self.config.me),
            None => self.following.map(|f| f.node),
        };
        let count = page.answers[0].1.sums.len();
        let mut all = Vec::new();
        for at in 0..count {
            let sums = page.answers.iter().map(|(n, a)| (*n, sum_at(a, at)));
            let first = sum_at(&page.answers[0].1, at);
            if first != BlockSum::UNKNOWN && sums.clone().all(|(_, s)| s == first) {
                continue;
            }
            // Zeroes that were written have a checksum like everything else; those that never were say so.
            let block = start + at as u64;
            let zero = sums.clone().any(|(_, s)| s == BlockSum::ZERO);
            let as_zero = |s: BlockSum| {
                let is_zero = zero && s.admits(page.volume, block, &[0; BLOCK_BYTES]);
                if is_zero && s != BlockSum::UNKNOWN {
                    BlockSum::ZERO
                } else {
                    s
                }
            };
            let sums = sums.map(|(n, s)| (n, as_zero(s)));
            let known = sums.clone().filter(|(_, s)| *s != BlockSum::UNKNOWN);
            let votes = |sum| known.clone().filter(|(_, s)| *s == sum).count();
            let most = known
                .clone()
                .map(|(_, s)| s)
                .find(|&s| 2 * votes(s) > nodes);
            let of_primary = known.clone().find(|(n, _)| Some(*n) == primary);
            let only = known
                .clone()
                .next()
                .filter(|&(_, s)| votes(s) == known.clone().count());
            let right = most.or(of_primary.map(|(_, s)| s)).or(only.map(|(_, s)| s));
            for (node, sum) in sums.filter(|&(_, s)| Some(s) != right) {
                all.push(Wrong {
                    node,
                    block,
                    right,
                    unknown: sum == BlockSum::UNKNOWN,
                });
            }
        }
        all
    }

    /// What a node found by reading a page.
    fn note_bad(&mut self, run: &mut Run, page: &Page, node: NodeId, a: &Checked, start: u64) {
        let todo = run.todo[usize::from(page.volume.0)][page.page as usize];
        if todo & bit(node) == 0 || page.attempts > 0 {
            return; // It is counted already.
        }
        run.tally.bad += u64::from(a.bad);
        run.tally.left += u64::from(a.left);
        for n in &a.named {
            let block = start + u64::from(*n);
            self.note_finding(node, page.volume, block, FindingKind::Bad);
        }
    }

    fn note_finding(&mut self, node: NodeId, volume: VolumeId, block: u64, kind: FindingKind) {
        let finding = Finding {
            node,
            volume,
            block,
            kind,
        };
        let _ = self.verify.findings.try_push(finding);
        self.verify.told += 1;
        if self.verify.told <= TOLD_MAX {
            let name = self.config.nodes[usize::from(node.0)];
            let of = self.volume_name(volume);
            let what = match kind {
                FindingKind::Bad => "is bad in the store",
                FindingKind::Differs => "differs from the right copy",
                FindingKind::Unknown => "has no checksum",
            };
            self.log_warn(format!(
                "verify: block {block} of volume {of} {what} on {name}"
            ));
        }
    }

    fn page_is_done(&mut self, run: &mut Run, page: &Page, blocks: u64) {
        let todo = &mut run.todo[usize::from(page.volume.0)][page.page as usize];
        *todo &= !page.nodes;
        let bytes = blocks * BLOCK_BYTES_U64;
        if *todo & self.to_verify() == 0 {
            run.tally.bytes += bytes;
            run.left_bytes = run.left_bytes.saturating_sub(bytes);
        }
        run.progress_at = self.now;
        if run.bytes_per_second > 0 {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(run.bytes_per_second);
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            run.not_before = run.not_before.max(page.since).after(nanos);
        }
    }
}

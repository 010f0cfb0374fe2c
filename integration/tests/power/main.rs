//! Power cuts on what the data path really wrote. P1, P2, P3, that the checksums of the stores are right (P6), and that a
//! mere power cut is never taken for damage.
//!
//! Three nodes with real files and real rings run under a mixed load, with partitions, promotions and demotions; each
//! records what it submits to its disks, what ends, and what it tells clients and peers (`record` in the reactor). Then
//! the power is cut, off-line, at every place where something became durable and at random places between, and what
//! the disks may hold then (`media` has the rule) is given to the code that a node starts with. (The idea is that of
//! dm-log-writes, in userspace.) What must be there is worked out from the recordings alone (`truth`, `walk`).
//!
//! | module | |
//! |---|---|
//! | `cluster`, `load` | what is recorded |
//! | `stream` | a recording, read |
//! | `media` | what may be on the disks after a cut |
//! | `walk`, `truth` | what a node, and what the cluster, had durable and had said at any time |
//! | `judge` | whether an image is legal |
//! | `again` | a second power cut, while the node works on what it recovered |
//!
//! `REPLICATOR_POWER_FACTOR=N` makes it N times as thorough; `REPLICATOR_POWER_TAPES=DIR` judges recordings that an
//! earlier failure left, `REPLICATOR_POWER_SEED=N` with the same cuts as then.

mod again;
mod chance;
mod cluster;
mod judge;
mod load;
mod media;
mod stream;
mod truth;
mod walk;

use std::ops::AddAssign;
use std::path::Path;
use std::time::Instant;

use nbd_server::reactor::record::tape::Part;
use replicator::types::VolumeId;

use crate::chance::Chance;
use crate::cluster::{Cluster, NODES, VOLUMES, tape};
use crate::judge::{Verdict, judge};
use crate::load::Load;
use crate::media::Fate;
use crate::stream::{Moment, OpId, Step, Stream, Work};
use crate::truth::Truth;
use crate::walk::Walk;

const MIB: u64 = 1 << 20;

/// Findings after which a node's images are not looked at any further.
const FINDINGS_MAX: usize = 5;

/// One in so many images is started from, and loses power again.
const AGAIN_EVERY: u64 = 8;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// The long story: the ring goes round several times on every node, and each node is Primary once.
fn record(dir: &Path, seed: u64, factor: u64) {
    let mut cluster = Cluster::start(dir);
    cluster.promote(0);
    let load = Load::start(&cluster, 0, seed);
    load.wait(12 * MIB * factor);
    // A Secondary that misses something and catches up from the journal, under load.
    cluster.cut(0, 2);
    load.wait(14 * MIB * factor);
    cluster.join(0, 2);
    cluster.wait_caught_up(2, 0);
    load.wait(24 * MIB * factor);

    // The Primary is cut off under load. What it journals alone until its lease is over is cut when it comes back.
    let alone = cluster.leave_alone(0, seed + 3);
    cluster.promote(1);
    let second = Load::start(&cluster, 1, seed + 1);
    second.wait(2 * MIB);
    load.halt();
    alone.halt();
    for other in [1, 2] {
        cluster.cut(0, other);
        cluster.join(0, other);
    }
    cluster.wait_caught_up(0, 1);
    load.finish();
    alone.finish();
    second.wait(10 * MIB * factor);

    // A demotion under load, and a third Primary.
    second.halt();
    cluster.demote(1);
    second.finish();
    cluster.wait(2, "it knows of the demotion", |s| s.view.primary.is_none());
    cluster.promote(2);
    let third = Load::start(&cluster, 2, seed + 2);
    third.wait(8 * MIB * factor);
    third.finish();
    cluster.stop(2);
}

/// The short story, for showing that faults are found.
fn record_shortly(dir: &Path) {
    let cluster = Cluster::start(dir);
    cluster.promote(0);
    let load = Load::start(&cluster, 0, 1);
    load.wait(6 * MIB);
    load.finish();
    cluster.stop(0);
}

fn read(dir: &Path) -> Vec<Stream> {
    (0..NODES)
        .map(|node| Stream::read(&tape(dir, node)))
        .collect()
}

/// What is done to the recordings, so that there is something to find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// RWF_DSYNC means nothing.
    DurableWritesIgnored,
    /// Flushes of stores do nothing.
    FlushesIgnored,
    /// Flushes of the table of checksums do nothing.
    SumsFlushesIgnored,
    /// One journal write, of those that ended well, never happened.
    WriteLost,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    /// Times at which the power of all nodes goes.
    instants: u64,
    /// Tearings at each of those.
    tearings: u64,
    fault: Fault,
}

#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    moments: u64,
    boundaries: u64,
    images: u64,
    /// Images of a second power cut, and the disk operations between the cuts.
    again: u64,
    operations_again: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.moments += more.moments;
        self.boundaries += more.boundaries;
        self.images += more.images;
        self.again += more.again;
        self.operations_again += more.operations_again;
    }
}

/// What is found on a node: the verdicts for each instant, and what is wrong.
#[derive(Default)]
struct Found {
    counts: Counts,
    verdicts: Vec<Vec<Verdict>>,
    findings: Vec<String>,
}

/// All cuts of one node.
struct Cutter<'a> {
    node: usize,
    plan: Plan,
    truth: &'a Truth,
    walk: Walk,
    found: Found,
}

impl Cutter<'_> {
    /// Cuts the power here, once.
    fn cut(&mut self, moment: (usize, u64), tearing: u64) -> Option<Verdict> {
        let (index, nanos) = moment;
        let numbers = [self.plan.seed, self.node as u64, index as u64, tearing];
        let mut chance = Chance::of(&numbers);
        let fate = Fate::draw(&mut chance);
        let torn = self.walk.media.tear(fate, &mut chance);
        self.found.counts.images += 1;
        let mut verdict = judge(self.node, &self.walk, self.truth, nanos);
        if verdict.is_ok() && chance.below(AGAIN_EVERY) == 0 {
            verdict = self
                .cut_again(nanos, &mut chance)
                .map_err(|error| format!("after a second cut: {error}"));
        }
        self.walk.media.mend(torn);
        match verdict {
            Ok(verdict) => Some(verdict),
            Err(error) => {
                let text = format!(
                    "node {}, moment {index}, tearing {tearing} ({fate:?}): {error}",
                    self.node
                );
                self.found.findings.push(text);
                None
            }
        }
    }

    fn cut_again(&mut self, nanos: u64, chance: &mut Chance) -> Result<Verdict, String> {
        let (mut walk, operations) = again::second_life(self.node, &self.walk, chance)?;
        self.found.counts.again += 1;
        self.found.counts.operations_again += operations;
        let fate = Fate::draw(chance);
        let _ = walk.media.tear(fate, chance);
        judge(self.node, &walk, self.truth, nanos)
    }
}

/// Cuts the power of a node wherever the plan wants it.
fn cut_everywhere(
    node: usize,
    stream: &Stream,
    truth: &Truth,
    plan: Plan,
    instants: &[u64],
) -> Found {
    let mut walk = Walk::created(node);
    match plan.fault {
        Fault::None => {}
        Fault::DurableWritesIgnored => walk.media.ignore_durable_writes(),
        Fault::FlushesIgnored => {
            for volume in (0..).map(VolumeId).take(VOLUMES.len()) {
                walk.media.ignore_flushes(Part::Store(volume));
            }
        }
        Fault::SumsFlushesIgnored => walk.media.ignore_flushes(Part::Sums),
        Fault::WriteLost => walk.lose(some_journal_write(stream)),
    }
    let mut cutter = Cutter {
        node,
        plan,
        truth,
        walk,
        found: Found::default(),
    };
    let mut durable = std::collections::HashSet::new();
    let mut instants = instants.iter().peekable();
    for (index, Moment { nanos, step }) in stream.moments.iter().enumerate() {
        // All nodes lose power at the same instant: what this one had seen before it counts.
        while instants.next_if(|instant| *instant < nanos).is_some() {
            let before = (index, nanos - 1);
            let cuts = (0..plan.tearings).map(|tearing| cutter.cut(before, 1 + tearing));
            let verdicts = cuts.flatten().collect();
            cutter.found.verdicts.push(verdicts);
        }
        cutter.found.counts.moments += 1;
        cutter
            .walk
            .step(step, |_, _| ())
            .expect("the recordings were looked through before");
        let boundary = match step {
            Step::Begin(id, op) => {
                if op.durable {
                    durable.insert(*id);
                }
                false
            }
            Step::End(id, _) => durable.remove(id),
            Step::Acked(_) | Step::Reported(..) => false,
        };
        if boundary {
            cutter.found.counts.boundaries += 1;
            cutter.cut((index, *nanos), 0);
        }
        if cutter.found.findings.len() >= FINDINGS_MAX {
            break;
        }
    }
    cutter.found
}

fn some_journal_write(stream: &Stream) -> OpId {
    let writes = stream
        .moments
        .iter()
        .filter_map(|moment| match &moment.step {
            Step::Begin(id, op) if op.part == Part::Journal => Some(*id),
            _ => None,
        });
    let writes: Vec<OpId> = writes.collect();
    writes[writes.len() / 2]
}

/// P1 at one instant: whichever two nodes are left, with the longer of their logs they have everything that clients were
/// promised.
fn check_majorities(found: &[Found], truth: &Truth, instants: &[u64]) -> (u64, Vec<String>) {
    let (mut pairs, mut findings) = (0, Vec::new());
    for (at, instant) in instants.iter().enumerate() {
        let needed = truth.promised_at(*instant);
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let verdicts = |node: usize| found[node].verdicts.get(at).into_iter().flatten();
            for one in verdicts(a) {
                for other in verdicts(b) {
                    pairs += 1;
                    let longer = if one.tail >= other.tail { one } else { other };
                    if longer.through < needed {
                        findings.push(format!(
                            "instant {at}: nodes {a} and {b} recover to {} and {}, with the log through {}; clients were promised {needed} (P1)",
                            one.tail, other.tail, longer.through
                        ));
                    }
                }
            }
        }
    }
    (pairs, findings)
}

/// Cuts the power of all nodes wherever the plan wants it; what is wrong.
fn judge_recordings(streams: &[Stream], plan: Plan) -> Vec<String> {
    let truth = match Truth::of(streams) {
        Ok(truth) => truth,
        Err(error) => return vec![error],
    };
    let mut all: Vec<u64> = streams
        .iter()
        .flat_map(|stream| stream.moments.iter().map(|moment| moment.nanos))
        .collect();
    all.sort_unstable();
    // Every node has moments after the last instant.
    let last = streams.iter().filter_map(|s| s.moments.last());
    let last = last.map(|m| m.nanos).min().expect("there are recordings");
    let end = all.partition_point(|nanos| *nanos < last) as u64;
    let mut chance = Chance::new(plan.seed);
    let mut instants: Vec<u64> = (0..plan.instants)
        .map(|_| all[chance.below(end) as usize])
        .collect();
    instants.sort_unstable();
    instants.dedup();
    let found: Vec<Found> = std::thread::scope(|scope| {
        let (truth, instants) = (&truth, &instants);
        let threads: Vec<_> = streams
            .iter()
            .enumerate()
            .map(|(node, stream)| {
                scope.spawn(move || cut_everywhere(node, stream, truth, plan, instants))
            })
            .collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results.map(|found| found.expect("no panic")).collect()
    });
    let mut counts = Counts::default();
    for found in &found {
        counts += found.counts;
    }
    let (pairs, lost) = check_majorities(&found, &truth, &instants);
    println!(
        "{:?}: log through {}, {} batches cut, {} changes acknowledged; {} moments on {NODES} nodes; \
         {} boundaries and {} instants with {} tearings each: {} images; {} of them run and cut again within {} \
         operations; {pairs} pairs of nodes",
        plan.fault,
        truth.tail,
        truth.cut,
        truth.done,
        counts.moments,
        counts.boundaries,
        instants.len(),
        plan.tearings,
        counts.images,
        counts.again,
        counts.operations_again,
    );
    let findings = found.into_iter().flat_map(|found| found.findings);
    findings.chain(lost).collect()
}

fn laps(stream: &Stream) -> u64 {
    let bytes = |moment: &Moment| match &moment.step {
        Step::Begin(_, op) if op.part == Part::Journal => match &op.work {
            Work::Write(bytes) => bytes.len() as u64,
            _ => 0,
        },
        _ => 0,
    };
    stream.moments.iter().map(bytes).sum::<u64>() / cluster::JOURNAL_BYTES
}

#[test]
fn every_power_cut_leaves_a_legal_state() {
    let factor = number("REPLICATOR_POWER_FACTOR", 1);
    let seed = number("REPLICATOR_POWER_SEED", 1);
    let left = std::env::var_os("REPLICATOR_POWER_TAPES");
    let dir = tempfile::tempdir().expect("a directory");
    let streams = match &left {
        Some(left) => read(Path::new(left)),
        None => {
            let began = Instant::now();
            record(dir.path(), seed, factor);
            println!("recorded in {:?}", began.elapsed());
            read(dir.path())
        }
    };
    let plan = Plan {
        seed,
        instants: 300 * factor,
        tearings: 2,
        fault: Fault::None,
    };
    let began = Instant::now();
    let findings = judge_recordings(&streams, plan);
    println!("judged in {:?}", began.elapsed());
    if !findings.is_empty() {
        let kept = left.map_or_else(|| dir.keep(), Into::into);
        let text = findings.join("\n");
        panic!("{text}\nthe recordings are in {}", kept.display());
    }
    for (node, stream) in streams.iter().enumerate() {
        assert!(laps(stream) >= 2, "the ring of node {node} went round once");
    }
}

#[test]
fn disks_that_lie_are_found_out() {
    let dir = tempfile::tempdir().expect("a directory");
    record_shortly(dir.path());
    let streams = read(dir.path());
    let plan = |fault| Plan {
        seed: 1,
        instants: 20,
        tearings: 1,
        fault,
    };
    let findings = judge_recordings(&streams, plan(Fault::None));
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    for (fault, what) in [
        (Fault::DurableWritesIgnored, "was chosen"),
        (Fault::FlushesIgnored, "is not what records 1 to"),
        (Fault::SumsFlushesIgnored, "is not the sum of block"),
        (Fault::WriteLost, "was durable, the log ends with"),
    ] {
        let findings = judge_recordings(&streams, plan(fault));
        let found = findings.iter().any(|finding| finding.contains(what));
        assert!(found, "{fault:?}: {findings:?}");
    }
}

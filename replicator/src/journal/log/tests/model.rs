//! The log against a plain list of batches that forgets nothing.

use super::*;

const RING: u64 = 300;

/// What the log must know, kept the slow way.
#[derive(Default)]
struct Model {
    batches: Vec<Made>,
    durable: usize,
    applied: usize,
    /// The applied floors that were reached; the superblock knows `floor` of them.
    floor: usize,
}

impl Model {
    fn tail_before(&self, number: usize) -> Tail {
        match number.checked_sub(1) {
            Some(last) => self.batches[last].tail(),
            None => Tail::default(),
        }
    }

    fn floor_position(&self) -> u64 {
        self.tail_before(self.floor).position
    }

    fn check(&self, log: &Log<u64>, reached: u64) {
        let count = self.batches.len();
        assert_eq!(log.next_number(), count as u64);
        assert_eq!(log.tail(), self.tail_before(count));
        assert_eq!(log.durable_id(), self.tail_before(self.durable).id);
        assert_eq!(log.applied_id(), self.tail_before(self.applied).id);
        assert_eq!(log.floor_position(), self.floor_position());
        // The log holds just those batches of which no block was overwritten.
        for (number, made) in self.batches.iter().enumerate() {
            let entry = log.entry(number as u64);
            let whole = made.position + RING >= reached;
            assert_eq!(entry.is_some(), whole, "entry {number}");
            for seq in made.header.first.0..=made.header.last().0 {
                let found = log.number_of(Seq(seq));
                assert_eq!(found, whole.then_some(number as u64));
                assert!(log.contains(RecordId {
                    epoch: made.header.epoch,
                    seq: Seq(seq),
                }));
                assert!(!log.contains(RecordId {
                    epoch: Epoch(made.header.epoch.0 + 1000),
                    seq: Seq(seq),
                }));
            }
            if let Some(entry) = entry {
                assert_eq!(entry.id(), made.header.last_id());
                assert_eq!((entry.position, entry.end()), (made.position, made.end()));
                assert_eq!(entry.buffer.is_some(), number >= self.applied);
            }
        }
        assert_eq!(log.number_of(log.tail().id.seq.next()), None);
        let records: Vec<_> = self.batches[self.applied..]
            .iter()
            .flat_map(|made| descriptors(&made.bytes, &made.header).flatten())
            .collect();
        assert!(log.unapplied().iter().eq(&records));
        let mut epochs: Vec<RecordId> = Vec::new();
        for made in &self.batches {
            if epochs.last().is_none_or(|e| e.epoch < made.header.epoch) {
                epochs.push(RecordId {
                    epoch: made.header.epoch,
                    seq: made.header.first,
                });
            }
        }
        assert_eq!(log.epochs()[..], epochs[..]);
        let config = self
            .batches
            .iter()
            .rev()
            .find_map(|m| crate::journal::batch::config_of(&m.bytes, &m.header).map(|_| m));
        let config = config.map(|m| m.header.last_id());
        assert_eq!(log.config().map(|c| c.at), config);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { blocks: u32, records: usize },
    Epoch,
    Durable(prop::sample::Index),
    Apply(prop::sample::Index),
    Floor,
    Cut(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => (1u32..40, 1usize..4).prop_map(|(blocks, records)| Step::Write { blocks, records }),
        1 => Just(Step::Epoch),
        4 => index().prop_map(Step::Durable),
        4 => index().prop_map(Step::Apply),
        4 => Just(Step::Floor),
        1 => index().prop_map(Step::Cut),
    ]
}

proptest! {
    #[test]
    fn the_log_knows_what_a_plain_list_knows(steps in proptest::collection::vec(step(), 1..120)) {
        let mut log = empty(RING, 4 * DESCRIPTORS_MAX);
        let mut model = Model::default();
        let mut chain = Chain::new();
        // The furthest that the log ever went: what it overwrote stays overwritten after a cut.
        let mut reached = 0;
        add_epoch(&mut log, &mut model, &mut chain, &mut reached);
        for step in steps {
            let count = model.batches.len();
            match step {
                Step::Write { blocks, records } => {
                    let write = crate::journal::batch::Kind::Write;
                    let each: Vec<_> = (0..records).map(|_| (write, 0, 5, blocks)).collect();
                    let total = 1 + blocks * u32::try_from(records).unwrap();
                    let fits = chain.tail.position + u64::from(total) <= model.floor_position() + RING;
                    let unapplied: usize = model.batches[model.applied..]
                        .iter()
                        .map(|m| usize::from(m.header.records))
                        .sum();
                    let fits = fits && unapplied + records <= 4 * DESCRIPTORS_MAX;
                    prop_assert_eq!(log.has_room(total, records, 0), fits);
                    if fits {
                        let made = chain.make(&each);
                        prop_assert_eq!(add(&mut log, &made), count as u64);
                        reached = reached.max(made.end());
                        model.batches.push(made);
                    }
                }
                Step::Epoch => {
                    if log.has_room(2, 1, 0) && chain.epoch.0 < 60 {
                        add_epoch(&mut log, &mut model, &mut chain, &mut reached);
                    }
                }
                Step::Durable(index) => {
                    model.durable += index.index(count - model.durable + 1);
                    log.set_durable(model.durable as u64);
                }
                Step::Apply(index) => {
                    model.applied += index.index(model.durable - model.applied + 1);
                    log.set_applied(model.applied as u64);
                }
                Step::Floor => {
                    model.floor = model.applied;
                    let floor = log.applied_floor();
                    prop_assert_eq!(Tail::from(floor), model.tail_before(model.floor));
                    log.set_floor_position(floor.position);
                }
                Step::Cut(index) => {
                    let keep = model.applied + index.index(count - model.applied + 1);
                    // A node's first record is committed before anything else happens.
                    let keep = keep.max(1);
                    log.cut_after(model.tail_before(keep).id.seq);
                    model.batches.truncate(keep);
                    model.durable = model.durable.min(keep);
                    chain.tail = log.tail();
                    prop_assert_eq!(chain.tail, model.tail_before(keep));
                    // What comes next is another epoch's.
                    if log.has_room(2, 1, 0) && chain.epoch.0 < 60 {
                        add_epoch(&mut log, &mut model, &mut chain, &mut reached);
                    }
                }
            }
            model.check(&log, reached);
        }
    }
}

fn add_epoch(log: &mut Log<u64>, model: &mut Model, chain: &mut Chain, reached: &mut u64) {
    let made = chain.epoch(chain.epoch.0 + 1);
    add(log, &made);
    *reached = (*reached).max(made.end());
    model.batches.push(made);
}

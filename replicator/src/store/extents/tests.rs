use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const CAPACITY: usize = 200;
const BLOCKS: u64 = 64;
const VOLUMES: u16 = 3;

/// What each block is covered by: the record and, if it has any, the place of its data.
type Model = BTreeMap<(u16, u64), (Seq, Option<(u64, u32)>, Option<bool>)>;

fn cover(model: &mut Model, extent: &Extent, wins: impl Fn(Seq) -> bool, put: bool) {
    for block in extent.start..extent.end() {
        let key = (extent.volume.0, block);
        if model.get(&key).is_some_and(|old| !wins(old.0)) {
            continue;
        }
        if put {
            model.insert(key, at(extent, block));
        } else {
            model.remove(&key);
        }
    }
}

fn at(extent: &Extent, block: u64) -> (Seq, Option<(u64, u32)>, Option<bool>) {
    let skipped = u32::try_from(block - extent.start).unwrap();
    match extent.source {
        Source::Batch { entry, block } => (extent.seq, Some((entry, block + skipped)), None),
        Source::Zero { may_deallocate } => (extent.seq, None, Some(may_deallocate)),
    }
}

/// All extents, by the walk that an apply makes.
fn walk(map: &ExtentMap) -> Vec<Extent> {
    let mut found = Vec::new();
    let mut from = (VolumeId(0), 0);
    while let Some(extent) = map.next_from(from.0, from.1) {
        from = (extent.volume, extent.end());
        found.push(extent);
    }
    found
}

fn same(map: &ExtentMap, model: &Model) -> Result<(), TestCaseError> {
    let extents = walk(map);
    prop_assert_eq!(extents.len(), map.len());
    prop_assert_eq!(map.is_empty(), model.is_empty());
    prop_assert_eq!(map.room(), CAPACITY - map.len());
    let blocks: Model = extents
        .iter()
        .flat_map(|e| (e.start..e.end()).map(|block| ((e.volume.0, block), at(e, block))))
        .collect();
    prop_assert_eq!(&blocks, model);
    let count: u64 = extents.iter().map(|e| e.blocks).sum();
    prop_assert_eq!(count, model.len() as u64, "extents overlap");
    Ok(())
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Extent),
    RemoveNotNewer(Extent),
    Clear,
}

fn extent() -> impl Strategy<Value = Extent> {
    (0..VOLUMES, 0..BLOCKS, 1..BLOCKS, 1u64..100, 0u8..4).prop_map(
        |(volume, start, blocks, seq, source)| Extent {
            volume: VolumeId(volume),
            start,
            blocks: blocks.min(BLOCKS - start).min(1 + blocks % 9),
            seq: Seq(seq),
            source: match source {
                0 => Source::Zero {
                    may_deallocate: false,
                },
                1 => Source::Zero {
                    may_deallocate: true,
                },
                _ => Source::Batch {
                    entry: seq,
                    block: u32::try_from(blocks).unwrap(),
                },
            },
        },
    )
}

proptest! {
    #[test]
    fn the_map_says_what_a_list_of_blocks_says(
        steps in proptest::collection::vec(
            prop_oneof![
                12 => extent().prop_map(Step::Insert),
                4 => extent().prop_map(Step::RemoveNotNewer),
                1 => Just(Step::Clear),
            ],
            1..80,
        ),
        probes in proptest::collection::vec((0..VOLUMES, 0..BLOCKS, 1..BLOCKS), 8),
    ) {
        let mut map = ExtentMap::with_capacity(CAPACITY);
        let mut model = Model::new();
        for step in steps {
            let before = map.len();
            match step {
                Step::Insert(extent) => {
                    map.insert(extent);
                    cover(&mut model, &extent, |_| true, true);
                    prop_assert!(map.len() <= before + 2);
                }
                Step::RemoveNotNewer(extent) => {
                    map.remove_not_newer(&extent);
                    cover(&mut model, &extent, |seq| seq <= extent.seq, false);
                    prop_assert!(map.len() <= before + 1);
                }
                Step::Clear => {
                    map.clear();
                    model.clear();
                }
            }
            same(&map, &model)?;
        }
        let extents = walk(&map);
        for (volume, start, blocks) in probes {
            let end = start + blocks;
            let overlap = extents
                .iter()
                .find(|e| e.volume.0 == volume && e.start < end && e.end() > start);
            prop_assert_eq!(map.first_overlap(VolumeId(volume), start, end), overlap.copied());
            let next = extents.iter().find(|e| (e.volume.0, e.start) >= (volume, start));
            prop_assert_eq!(map.next_from(VolumeId(volume), start), next.copied());
            if let Some(found) = overlap {
                let part = found.within(start, end);
                prop_assert!(part.start >= start && part.end() <= end);
                for block in part.start..part.end() {
                    prop_assert_eq!(at(&part, block), at(found, block));
                }
            }
        }
    }
}

fn write(start: u64, blocks: u64, seq: u64) -> Extent {
    Extent {
        volume: VolumeId(0),
        start,
        blocks,
        seq: Seq(seq),
        source: Source::Batch {
            entry: seq,
            block: 1,
        },
    }
}

#[test]
fn a_write_in_the_middle_of_another_takes_two_places() {
    let mut map = ExtentMap::with_capacity(3);
    map.insert(write(0, 10, 1));
    map.insert(write(4, 2, 2));
    let found: Vec<_> = walk(&map).iter().map(|e| (e.start, e.blocks)).collect();
    assert_eq!(found, [(0, 4), (4, 2), (6, 4)]);
    assert_eq!(
        map.first_overlap(VolumeId(0), 7, 8).map(|e| e.source),
        Some(Source::Batch { entry: 1, block: 7 })
    );
    assert_eq!(map.room(), 0);
}

#[test]
fn places_are_used_again() {
    let mut map = ExtentMap::with_capacity(4);
    for round in 0..1000 {
        map.insert(write(round % 7, 2, round));
        map.remove_not_newer(&write(0, 100, round));
        assert!(map.is_empty());
    }
    assert!(map.nodes.len() <= 4, "the arena does not grow");
}

#[test]
fn what_is_newer_stays() {
    let mut map = ExtentMap::with_capacity(10);
    map.insert(write(0, 10, 5));
    map.insert(write(2, 2, 9));
    map.remove_not_newer(&write(1, 4, 5));
    let found: Vec<_> = walk(&map)
        .iter()
        .map(|e| (e.start, e.blocks, e.seq.0))
        .collect();
    assert_eq!(found, [(0, 1, 5), (2, 2, 9), (5, 5, 5)]);
}

#[test]
fn the_tree_stays_shallow_whatever_the_order() {
    fn depth(map: &ExtentMap, at: u32) -> u32 {
        if at == NIL {
            return 0;
        }
        let node = &map.nodes[at as usize];
        1 + depth(map, node.left).max(depth(map, node.right))
    }
    let count = 1 << 16;
    for step in [1, count - 1, 40_503] {
        let mut map = ExtentMap::with_capacity(1 << 17);
        for index in 0..count {
            map.insert(write(index * step % count, 1, index));
        }
        assert_eq!(map.len() as u64, count);
        let depth = depth(&map, map.root);
        assert!(depth < 64, "{depth} levels for 65536 extents");
    }
}

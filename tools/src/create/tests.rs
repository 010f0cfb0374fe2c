//! What `create` makes, and what it does not touch.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nbd_server::config::Config;
use nbd_server::lock::DataDirLock;
use tempfile::TempDir;

use super::{CreateError, create};
use replicator::store::sums::STRIPE_BYTES;

fn config(dir: &Path, volume: &str) -> Config {
    let dir = dir.display();
    let text = format!(
        "resource = \"r\"\njournal = {{ size = \"17MiB\" }}\n[[node]]\nname = \"a\"\n\
         address = \"127.0.0.1:7001\"\ndata_dir = \"{dir}/x/d\"\nrun_dir = \"{dir}/run\"\n\
         [[volume]]\nname = \"db\"\nsize = \"64MiB\"\n{volume}"
    );
    Config::parse(Path::new("pbx.toml"), &text).unwrap()
}

#[test]
fn a_fresh_node_is_whole_and_reads_as_zeroes() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), "");
    let node = &config.nodes[0];
    create(&config, node, false, false).unwrap();
    assert_eq!(
        fs::metadata(&node.data_dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert_eq!(
        fs::metadata(&node.run_dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let store = fs::metadata(node.store_path(&config.volumes[0])).unwrap();
    assert_eq!((store.len(), store.blocks()), (64 << 20, 0));
    assert_eq!(store.permissions().mode() & 0o777, 0o600);
    let journal = fs::metadata(node.journal_path()).unwrap();
    assert_eq!(journal.len(), 17 << 20);
    assert!(
        journal.blocks() * 512 >= 17 << 20,
        "the journal has to be written, not sparse"
    );
    let sums = fs::metadata(node.sums_path()).unwrap();
    assert_eq!(
        sums.len(),
        STRIPE_BYTES,
        "19 pages of 56 groups of 64 KiB: one stripe"
    );
    assert!(sums.blocks() * 512 >= sums.len(), "its room is reserved");
    let stage = fs::metadata(node.stage_path()).unwrap();
    assert_eq!((stage.len(), stage.blocks()), (64 << 20, 0));
    assert!(fs::metadata(node.meta_path()).unwrap().len() > 0);
    assert!(!node.meta_path().with_extension("new").exists());
}

#[test]
fn an_existing_node_is_left_alone_unless_wiped() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), "");
    let node = &config.nodes[0];
    create(&config, node, false, false).unwrap();
    let store = node.store_path(&config.volumes[0]);
    let file = fs::OpenOptions::new().write(true).open(&store).unwrap();
    file.write_all_at(b"data", 8192).unwrap();
    let meta = fs::read(node.meta_path()).unwrap();

    let error = create(&config, node, false, false).unwrap_err();
    assert!(
        matches!(&error, CreateError::Exists(path) if *path == node.meta_path()),
        "{error}"
    );
    assert_eq!(fs::read(node.meta_path()).unwrap(), meta);
    // What an interrupted create leaves is not taken either.
    fs::remove_file(node.meta_path()).unwrap();
    let error = create(&config, node, false, false).unwrap_err();
    assert!(error.to_string().contains("journal") && error.to_string().contains("--wipe"));
    assert_eq!(&fs::read(&store).unwrap()[8192..8196], b"data");
    for beside in [node.sums_path(), node.stage_path()] {
        let file = fs::OpenOptions::new().write(true).open(beside).unwrap();
        file.write_all_at(b"old", 4096).unwrap();
    }

    create(&config, node, true, false).unwrap();
    for wiped in [&store, &node.sums_path(), &node.stage_path()] {
        assert!(fs::read(wiped).unwrap().iter().all(|&byte| byte == 0));
    }
    assert_ne!(
        fs::read(node.meta_path()).unwrap(),
        meta,
        "a wiped node is a new incarnation"
    );
}

#[test]
fn a_running_node_is_never_wiped() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), "");
    let node = &config.nodes[0];
    create(&config, node, false, false).unwrap();
    let lock = DataDirLock::take(&node.data_dir).unwrap();
    let error = create(&config, node, true, false).unwrap_err();
    assert!(matches!(error, CreateError::Lock(_)), "{error}");
    drop(lock);
    create(&config, node, true, false).unwrap();
}

#[test]
fn what_fails_half_way_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let store = format!(
        "[[volume]]\nname = \"ok\"\nsize = 4096\n[[volume]]\nname = \"z\"\nsize = 4096\n\
         store = \"{}/sub\"\n",
        dir.path().join("x/d/meta.new").display()
    );
    let config = config(dir.path(), &store);
    let node = &config.nodes[0];
    // A file where a directory would have to be.
    fs::create_dir_all(&node.data_dir).unwrap();
    fs::write(node.data_dir.join("meta.new"), "x").unwrap();
    let error = create(&config, node, false, false).unwrap_err();
    assert!(matches!(error, CreateError::Io { .. }), "{error}");
    assert!(!node.store_path(&config.volumes[0]).exists());
    assert!(!node.journal_path().exists());
    assert!(!node.sums_path().exists());
    assert!(!node.stage_path().exists());
    assert!(!node.meta_path().exists());
}

#[test]
fn what_an_interrupted_create_left_beside_the_stores_is_not_taken() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), "");
    let node = &config.nodes[0];
    create(&config, node, false, false).unwrap();
    for beside in [node.sums_path(), node.stage_path()] {
        for gone in [
            node.meta_path(),
            node.journal_path(),
            node.store_path(&config.volumes[0]),
            node.sums_path(),
            node.stage_path(),
        ] {
            if gone != beside {
                // Gone already in the second round.
                let _ = fs::remove_file(gone);
            }
        }
        let error = create(&config, node, false, false).unwrap_err();
        assert!(
            matches!(&error, CreateError::Exists(path) if *path == beside),
            "{error}"
        );
        create(&config, node, true, false).unwrap();
    }
}

#[test]
fn files_beside_the_stores_are_neither_devices_nor_another_file() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), "");
    let node = &config.nodes[0];
    create(&config, node, false, false).unwrap();
    let (sums, stage) = (node.sums_path(), node.stage_path());
    fs::remove_file(&stage).unwrap();
    fs::hard_link(&sums, &stage).unwrap();
    let error = create(&config, node, true, false).unwrap_err();
    assert!(matches!(error, CreateError::SamePlace(..)), "{error}");
    fs::remove_file(&stage).unwrap();
    std::os::unix::fs::symlink("/dev/null", &stage).unwrap();
    let error = create(&config, node, true, false).unwrap_err();
    assert!(matches!(error, CreateError::WrongType(_)), "{error}");
    assert!(
        node.meta_path().exists(),
        "what was refused changed nothing"
    );
}

#[test]
fn places_that_are_no_place() {
    let dir = TempDir::new().unwrap();
    for (path, fragment) in [
        ("/dev/no-such-device", "there is no device"),
        ("/dev/null", "neither a regular file nor a block device"),
        ("/tmp", "neither a regular file nor a block device"),
    ] {
        let config = config(dir.path(), &format!("store = \"{path}\"\n"));
        let error = create(&config, &config.nodes[0], true, false)
            .unwrap_err()
            .to_string();
        assert!(error.contains(fragment) && error.contains(path), "{error}");
        assert!(!config.nodes[0].meta_path().exists());
    }
}

#[test]
fn a_seed_is_kept_and_known_block_by_block() {
    use replicator::io::DiskError;
    use replicator::recover::{BlockRead, read_superblock};
    use replicator::store::sums::{BlockSum, SumTable, Table};
    use replicator::types::{Seq, VolumeId};

    struct Reading(Vec<u8>);
    impl BlockRead for Reading {
        fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            let at = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
            Ok(())
        }
    }

    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), "");
    let node = &config.nodes[0];
    let store = node.store_path(&config.volumes[0]);
    fs::create_dir_all(store.parent().unwrap()).unwrap();
    // Shorter than the volume, with a hole, zeroes, and two blocks of data.
    let file = fs::File::create(&store).unwrap();
    file.set_len(3 << 20).unwrap();
    file.write_all_at(&[7; 8192], 1 << 20).unwrap();
    file.write_all_at(&[0; 4096], 2 << 20).unwrap();
    create(&config, node, false, true).unwrap();
    assert_eq!(fs::metadata(&store).unwrap().len(), 64 << 20);
    let meta = fs::read(node.meta_path()).unwrap();
    let superblock = read_superblock(&mut Reading(meta)).unwrap().superblock;
    assert!(superblock.fresh() && superblock.resync.is_some_and(|r| r.in_place));
    let sums = fs::read(node.sums_path()).unwrap();
    let sizes = [64u64 << 20].into_iter();
    let (table, found) = SumTable::load(Table::Stores, sizes, &mut Reading(sums), Seq(0));
    assert_eq!(found.lost, 0);
    let expected = |block| BlockSum::of(VolumeId(0), block, &[7; 4096]);
    for block in 0..64 << 8 {
        let sum = match block {
            256 | 257 => expected(block),
            _ => BlockSum::ZERO,
        };
        assert_eq!(table.sum(VolumeId(0), block), sum, "block {block}");
    }
    // Again only when it is said twice, and what is there is kept.
    let again = create(&config, node, false, true);
    assert!(matches!(again, Err(CreateError::Exists(_))));
    create(&config, node, true, true).unwrap();
    let mut kept = [0; 4096];
    fs::File::open(&store)
        .unwrap()
        .read_exact_at(&mut kept, 1 << 20)
        .unwrap();
    assert_eq!(kept, [7; 4096]);
}

#[test]
fn a_seed_that_is_larger_than_its_volume_is_refused() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), "");
    let node = &config.nodes[0];
    let store = node.store_path(&config.volumes[0]);
    fs::create_dir_all(store.parent().unwrap()).unwrap();
    fs::File::create(&store).unwrap().set_len(65 << 20).unwrap();
    let refused = create(&config, node, false, true);
    assert!(matches!(refused, Err(CreateError::SeedTooLarge { .. })));
    assert_eq!(fs::metadata(&store).unwrap().len(), 65 << 20);
}

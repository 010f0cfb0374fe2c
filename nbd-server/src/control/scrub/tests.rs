use replicator::meta::config::Name;
use replicator::meta::volumes::VolumeRecord;
use replicator::types::{NodeId, VolumeId};
use replicator::view::Finding;
use tempfile::TempDir;

use super::*;

fn config(dir: &TempDir) -> Config {
    let text = format!(
        "resource = \"pbx\"\njournal = {{ size = \"16MiB\" }}\nvolume = [{{ name = \"aaa\", size = \"64MiB\" }}, {{ name = \"db\", size = \"64MiB\" }}]\n\
         [[node]]\nname = \"a\"\naddress = \"127.0.0.1:7000\"\ndata_dir = \"{0}\"\nrun_dir = \"{0}\"\n[scrub]\nevery = \"1d\"\n",
        dir.path().display()
    );
    Config::parse(Path::new("pbx.toml"), &text).unwrap()
}

#[test]
fn findings_name_volumes_by_the_table_and_not_by_the_config_file() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir);
    // A volume that was added later has the last place.
    let names = ["db", "aaa"].map(|name| VolumeRecord {
        name: Name::from(name).unwrap(),
        bytes: 64 << 20,
    });
    let volumes: Volumes = names.into_iter().collect();
    let mut view = View::default();
    view.verify.ended = 1;
    view.verify.last = Some((NodeId(0), Verified::default()));
    view.verify.findings.push(Finding {
        node: NodeId(0),
        volume: VolumeId(0),
        block: 7,
        kind: FindingKind::Bad,
    });
    let mut dates = Dates::load(&config, 0);
    let last = dates.status(&config, &volumes, &view).last.unwrap();
    assert_eq!(
        (last.findings[0].volume.as_str(), last.findings[0].block),
        ("db", 7)
    );
}

#[test]
fn one_that_was_due_and_that_an_operator_ended_is_due_again_when_the_next_one_is() {
    let dir = TempDir::new().unwrap();
    let mut dates = Dates::load(&config(&dir), 0);
    let day = 86_400;
    let began = now();
    // One that nobody was waiting for does not move the date.
    dates.kept.counts_from = began - day + 3600;
    dates.skip();
    assert_eq!(dates.next(), Some(began + 3600));
    dates.kept.counts_from = began - day - 5;
    assert!(dates.next().unwrap() <= now());
    dates.skip();
    assert!(dates.next().unwrap() >= began + day);
}

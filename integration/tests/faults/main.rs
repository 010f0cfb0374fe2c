//! Faults of disks, networks and file systems under real processes. P1 (acknowledged is durable), P2 (one order), P4 (one
//! writer), P5 (no taken-back reads), P7 (bounded stall); and that log and status name what happened and where.
//!
//! What dies, freezes or is disconnected by an operator is in `failover.rs` and `partition.rs`. These here need more of the
//! machine than a user always has. A test that can not run is listed as ignored, with the reason before its name.

mod disks;
mod full;
mod links;
mod stage;

use integration::{Disk, Network};
use libtest_mimic::{Arguments, Failed, Trial};

/// What a test needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// A [`Disk`].
    Disk,
    /// A network of its own.
    Network,
    /// A small file system of its own.
    Mount,
}

struct Case {
    name: &'static str,
    needs: Needs,
    run: fn(),
}

macro_rules! cases {
    ($needs:ident: $($module:ident::$name:ident,)*) => {
        [$(Case { name: concat!(stringify!($module), "::", stringify!($name)), needs: Needs::$needs, run: $module::$name },)*]
    };
}

fn main() {
    let on_disks = cases!(Disk:
        disks::a_journal_that_fails_on_the_primary_ends_its_reign,
        disks::a_journal_that_fails_on_a_secondary_lets_no_client_down,
        disks::a_store_that_fails_on_the_primary_ends_its_reign,
        disks::checksums_that_can_not_be_written_on_the_primary_end_its_reign,
        disks::metadata_that_can_not_be_written_on_the_primary_ends_its_reign,
        disks::a_store_that_can_not_be_read_is_read_at_the_peers_and_named,
        disks::a_journal_that_hangs_on_the_primary_stops_nobody,
        disks::a_store_that_hangs_on_the_primary_moves_the_service,
        disks::a_journal_that_hangs_for_longer_than_memory_reaches_moves_the_service,
        disks::metadata_that_hangs_on_the_primary_moves_the_service,
        disks::disks_that_hang_on_a_secondary_stop_nobody,
        disks::a_node_whose_store_hangs_does_not_take_over_from_a_frozen_primary,
        disks::a_store_that_hangs_while_volumes_change_stops_no_node,
        disks::a_full_journal_slows_clients_down_and_lets_none_down,
        stage::a_stage_that_can_not_be_written_ends_the_resync_and_nothing_else,
        stage::a_stage_that_can_not_be_read_is_read_at_the_peers,
        stage::a_stage_that_hangs_stops_nobody,
    );
    let on_links = cases!(Network:
        links::a_cut_between_any_two_nodes_stops_nobody,
        links::a_primary_cut_off_answers_nothing_once_another_one_serves,
        links::a_secondary_cut_off_is_promoted_in_vain_and_disturbs_nobody,
        links::a_link_that_loses_one_direction_harms_nothing,
    );
    let on_mounts = cases!(Mount:
        full::a_full_disk_makes_a_node_step_aside_until_there_is_room,
    );
    let (disk, network, mount) = (Disk::missing(), Network::missing(), Network::lacks_mounts());
    let cases = on_disks.into_iter().chain(on_links).chain(on_mounts);
    let trials = cases.map(|case| {
        let missing = match case.needs {
            Needs::Disk => &disk,
            Needs::Network => &network,
            Needs::Mount => &mount,
        };
        let trial = Trial::test(case.name, move || run(&case));
        match missing {
            Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
            None => trial,
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn run(case: &Case) -> Result<(), Failed> {
    if case.needs != Needs::Disk && !Network::is_own() {
        return if Network::rerun_in_own(case.needs == Needs::Network, case.name) {
            Ok(())
        } else {
            Err("it failed in namespaces of its own; see above".into())
        };
    }
    (case.run)();
    Ok(())
}

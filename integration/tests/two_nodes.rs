//! Two data nodes alone (protocol F0, F2, F3): they stop when one is lost, go on once somebody answers for it that the other one is
//! off, and that word is good for nothing where it could be wrong. P1 (acknowledged is durable) at every step.

use integration::{BOUND, Scene, roomy};
use tools::cluster::{Spec, exit};

const A: usize = 0;
const B: usize = 1;

fn two() -> Spec {
    Spec {
        nodes: ["pbx-a", "pbx-b"].map(String::from).to_vec(),
        ..roomy()
    }
}

fn confirm(scene: &Scene, node: usize, peer: usize) -> (i32, String) {
    let name = scene.cluster.name(peer);
    scene.confirmed(node, &["confirm-stopped", name], &format!("{name}\n"))
}

fn confirmed(scene: &Scene, node: usize, peer: usize) {
    let (code, said) = confirm(scene, node, peer);
    assert_eq!((code, said.as_str()), (exit::DONE, ""));
}

/// Promotes a node in vain; what is said.
fn refused(scene: &Scene, node: usize) -> String {
    let promote = ["promote", "--timeout", "3"];
    let answer = scene.cluster.ctl(node, &promote, BOUND).expect("answers");
    assert_eq!(answer.code, exit::NO_QUORUM, "{}", answer.message());
    answer.message()
}

#[test]
fn two_nodes_alone_go_on_once_the_other_one_is_confirmed_to_be_off() {
    let mut scene = Scene::serving(two());
    let load = scene.work(A, scene.calm_streams());
    scene.await_writes(&load, 100);
    // What answers is not off, and a name is to be typed.
    let (code, said) = confirm(&scene, A, B);
    assert!(
        code == exit::FAILED && said.contains("is connected"),
        "{said}"
    );
    let (code, said) = scene.confirmed(A, &["confirm-stopped", "pbx-b"], "yes\n");
    assert!(
        code == exit::USAGE && said.contains("nothing was done"),
        "{said}"
    );
    let (code, said) = scene.confirmed(A, &["confirm-stopped", "pbx-x"], "pbx-x\n");
    assert_eq!(code, exit::USAGE, "{said}");

    // The Secondary is lost: the Primary stops, and says what lets it go on.
    scene.cluster.kill(B).expect("killed");
    scene.await_status(A, "I/O waits", |status| {
        status.suspended == "quorum"
            && status.health == "down"
            && status.health_reason.contains("confirm-stopped")
    });
    let before = scene.tally.writes();
    confirmed(&scene, A, B);
    scene.await_writes(&load, 100);
    assert!(scene.tally.writes() > before);
    // Nobody waits for it any more.
    let (code, said) = confirm(&scene, A, B);
    assert!(
        code == exit::FAILED && said.contains("counts for nothing"),
        "{said}"
    );
    // It is back, and counts.
    scene.cluster.start(B).expect("it starts again");
    scene.await_membership(A, B, "member");
    scene.await_writes(&load, 100);

    // The Primary is lost.
    let streams = scene.kill_under(A, load);
    let said = refused(&scene, B);
    assert!(said.contains("replctl confirm-stopped pbx-a"), "{said}");
    confirmed(&scene, B, A);
    scene.promote(B);
    scene.ends_with_both(B, A, streams);
}

#[test]
fn a_word_that_may_be_wrong_is_good_for_nothing() {
    let mut scene = Scene::serving(two());
    let load = scene.work(A, scene.calm_streams());
    scene.await_writes(&load, 100);
    scene.finish(load);
    // What is heard of is not off, whatever was said; so it has to be said again.
    scene.cluster.kill(A).expect("killed");
    scene.await_gone(B, A);
    confirmed(&scene, B, A);
    scene.cluster.start(A).expect("it starts again");
    scene.await_logged(B, "is void");
    scene.cluster.kill(A).expect("killed");
    scene.await_gone(B, A);
    assert!(refused(&scene, B).contains("replctl confirm-stopped pbx-a"));
    // Nor does it outlive the process.
    confirmed(&scene, B, A);
    scene.cluster.kill(B).expect("killed");
    scene.cluster.start(B).expect("it starts again");
    assert!(refused(&scene, B).contains("replctl confirm-stopped pbx-a"));
    scene.cluster.start(A).expect("it starts again");
    scene.promote(A);

    // One that was left behind does not know what it lacks, and what it is told of the other does not help it.
    scene.await_caught_up(B, A);
    scene.cluster.kill(B).expect("killed");
    scene.await_gone(A, B);
    confirmed(&scene, A, B);
    let load = scene.work(A, scene.calm_streams());
    scene.await_writes(&load, 50);
    scene.kill_under(A, load);
    scene.cluster.start(B).expect("it starts again");
    confirmed(&scene, B, A);
    let said = refused(&scene, B);
    assert!(
        said.contains("it may have gone on without this node"),
        "{said}"
    );
    scene.cluster.start(A).expect("it starts again");
    scene.promote(A);
    scene.await_membership(A, B, "member");
    scene.await_caught_up(B, A);
    scene.verify(A);
    scene.stop_and_compare(A);
}

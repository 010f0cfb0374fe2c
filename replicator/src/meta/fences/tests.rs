use super::*;

#[test]
fn a_fence_is_above_whatever_ends_an_earlier_one() {
    let never = FenceMark::default();
    let first = never.fenced_anew();
    let ended = first.unfenced();
    let again = first.fenced_anew();
    assert!(!never.is_fenced() && first.is_fenced() && !ended.is_fenced() && again.is_fenced());
    assert!(never < first && first < ended && ended < again);
    assert_eq!(never.unfenced(), never);
    assert_eq!(ended.unfenced(), ended);
    assert!(ended.fenced_anew() >= again);
}

#[test]
fn the_order_in_which_marks_are_heard_of_does_not_matter() {
    let mark = FenceMark::default().fenced_anew();
    let all = [mark, mark.unfenced(), mark.fenced_anew()];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]] {
        let mut marks = FenceMarks::default();
        for index in order {
            marks.learn(NodeId(3), all[index]);
        }
        assert_eq!(marks.of(NodeId(3)), all[2]);
        assert_eq!(marks.of(NodeId(2)), FenceMark::default());
        assert!(!marks.learn(NodeId(3), all[1]));
    }
}

#[test]
fn marks_are_read_as_they_were_written_and_impossible_ones_refused() {
    let mut marks = FenceMarks::default();
    marks.learn(NodeId(7), FenceMark::default().fenced_anew());
    let mut raw = marks.to_raw();
    assert_eq!(FenceMarks::from_raw(&raw), Some(marks));
    raw.0[1] = U64::new(u64::MAX);
    assert_eq!(FenceMarks::from_raw(&raw), None);
    let stored = StoredMark::new("ann", marks.of(NodeId(7)));
    assert!(stored.is_of("ann") && !stored.is_of("bob"));
    let mut raw = stored.to_raw();
    assert_eq!(StoredMark::from_raw(&raw), Some(stored));
    raw.mark = U64::new(u64::MAX);
    assert_eq!(StoredMark::from_raw(&raw), None);
}

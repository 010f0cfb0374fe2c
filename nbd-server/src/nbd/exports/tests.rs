use super::*;

fn export(name: &str) -> Export {
    Export {
        name: name.to_owned(),
        size_bytes: 4096,
    }
}

#[test]
fn the_empty_name_is_the_only_export_or_none() {
    let one = ExportTable::new(vec![export("db")], "").unwrap();
    assert_eq!(one.find("").unwrap().0, ExportIndex(0));
    let two = ExportTable::new(vec![export("db"), export("log")], "").unwrap();
    assert!(two.find("").is_none());
    assert_eq!(two.find("log").unwrap().0, ExportIndex(1));
    assert!(two.find("Log").is_none());
    assert!(ExportTable::new(vec![], "").unwrap().find("").is_none());
}

#[test]
fn names_that_the_protocol_can_not_carry_are_refused() {
    let long = "x".repeat(STRING_BYTES_MAX + 1);
    let cases = [
        (vec![export("")], ExportTableError::Unnamed),
        (
            vec![export("a\0b")],
            ExportTableError::BadName("a\0b".into()),
        ),
        (vec![export(&long)], ExportTableError::BadName(long.clone())),
        (
            vec![export("a"), export("b"), export("a")],
            ExportTableError::Duplicate("a".into()),
        ),
        (
            vec![Export {
                name: "a".into(),
                size_bytes: 1 << 63,
            }],
            ExportTableError::TooLarge {
                name: "a".into(),
                size_bytes: 1 << 63,
            },
        ),
    ];
    for (exports, error) in cases {
        assert_eq!(ExportTable::new(exports, "").unwrap_err(), error);
    }
    assert!(ExportTable::new(vec![export(&long[1..])], "").is_ok());
}

#[test]
fn a_new_table_is_closed_until_it_is_opened() {
    let mut table = ExportTable::new(vec![export("db")], "starting").unwrap();
    assert_eq!(table.serving(), Err("starting"));
    table.set_serving(Ok(()));
    assert_eq!(table.serving(), Ok(()));
}

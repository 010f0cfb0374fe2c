//! The man pages and completions are there for every program and every verb, with what its help says, and a shell can read them.

use std::path::Path;
use std::process::Command;

use integration::pages::{commands, generate, verbs};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of a page, without what is there for the formatter.
fn plain(page: &str) -> String {
    let text = page
        .replace("\\-", "-")
        .replace("\\fB", "")
        .replace("\\fI", "");
    let text = text
        .replace("\\fR", "")
        .replace("\\'", "'")
        .replace("\\*(Aq", "'");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_program_and_every_verb_has_a_page_and_is_completed() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = generate(dir.path()).expect("written");
    let mut pages = 0;
    for mut command in commands() {
        command.build();
        let name = command.get_name().to_owned();
        let man = |page: &str| read(&dir.path().join(format!("man/man8/{page}.8")));
        let own = plain(&man(&name));
        assert!(own.contains(".SH NAME"), "{own}");
        pages += 1;
        let completions = ["bash", "zsh", "fish"].map(|shell| {
            let of = |file: &Path| file.parent().is_some_and(|dir| dir.ends_with(shell));
            let mentions = |file: &Path| {
                let stem = file
                    .file_stem()
                    .and_then(|stem| stem.to_str())
                    .unwrap_or("");
                stem.trim_start_matches('_') == name
            };
            let file = files.iter().find(|file| of(file) && mentions(file));
            read(file.unwrap_or_else(|| panic!("no completions of {name} for {shell}")))
        });
        for (verb, page) in verbs(&command) {
            let text = plain(&man(&page));
            pages += 1;
            assert!(
                own.contains(&format!("{page}(8)")),
                "{name} does not name {page}"
            );
            let about = verb.get_about().expect("every verb has one").to_string();
            let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains(&about), "{page} lacks {about:?}: {text}");
            let usage = format!("{name} {}", verb.get_name());
            assert!(text.contains(&usage), "{page} lacks {usage:?}: {text}");
            for option in verb.get_arguments().filter_map(|a| a.get_long()) {
                assert!(
                    text.contains(&format!("--{option}")),
                    "{page} lacks --{option}"
                );
            }
            for completion in &completions {
                assert!(
                    completion.contains(verb.get_name()),
                    "{page} is not completed"
                );
            }
        }
    }
    let all = std::fs::read_dir(dir.path().join("man/man8"))
        .expect("pages")
        .count();
    assert_eq!(all, pages);
    assert!(pages > 30, "{pages}");

    // The verb that an agent's shell calls is no operator's.
    assert!(!dir.path().join("man/man8/replctl-ocf.8").exists());
    for name in ["repld", "replctl", "repl-fence"] {
        let file = dir.path().join(format!("completions/bash/{name}.bash"));
        let checked = Command::new("bash").arg("-n").arg(&file).status();
        assert!(checked.expect("bash runs").success(), "{}", file.display());
    }
}

use super::agent::Options;
use super::*;

fn options(lines: &str) -> Options {
    let mut options = Options::default();
    options.read(lines).expect("options");
    options
}

#[test]
fn the_agent_reads_what_pacemaker_writes() {
    let read = options(
        "# by hand\naction=reboot\nnodename=node3\nport=pbx-c\nverbose=1\nno equals sign\naction=off\nconfig=/etc/x.toml\n",
    );
    assert_eq!(read.action, "off", "the last one counts");
    assert_eq!(read.port.as_deref(), Some("pbx-c"));
    assert_eq!(read.nodename.as_deref(), Some("node3"));
    assert_eq!(read.config, "/etc/x.toml");
    assert_eq!(options("").action, "off");
    let bad = Options::default().read("power_timeout=soon\n");
    assert!(bad.is_err());
}

#[test]
fn the_agent_takes_the_same_from_people() {
    let mut parsed = Options::default();
    let args = ["-o", "status", "--plug=pbx-a", "-v", "--power-timeout", "7"];
    parsed.parse(&args.map(String::from)).expect("options");
    assert_eq!(parsed.action, "status");
    assert_eq!(parsed.port.as_deref(), Some("pbx-a"));
    assert_eq!(parsed.timeout, 7);
}

#[test]
fn the_agents_metadata_offer_no_reboot() {
    let metadata = include_str!("agent.xml");
    assert!(!metadata.contains("name=\"reboot\""));
    assert!(metadata.contains(&format!("default=\"{DEFAULT_FILE}\"")));
    for action in [
        "off",
        "on",
        "status",
        "monitor",
        "list",
        "validate-all",
        "metadata",
    ] {
        assert!(
            metadata.contains(&format!("<action name=\"{action}\"")),
            "{action}"
        );
    }
}

//! SIGTERM stops the control thread cleanly. Alone in its process, since a signal reaches every daemon there.

use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd_server::config::Config;
use nbd_server::control::{Listeners, run};
use nbd_server::handle::{DataCommand, DataHandle, Snapshot, ToControl, ToData};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn sigterm_stops_the_data_thread_and_removes_the_sockets() {
    let dir = tempfile::TempDir::new().unwrap();
    let text = format!(
        "resource = \"pbx\"\njournal = {{ size = \"16MiB\" }}\nvolume = [{{ name = \"db\", size = 4096 }}]\n\
         [[node]]\nname = \"a\"\naddress = \"127.0.0.1:17789\"\ndata_dir = \"{0}\"\nrun_dir = \"{0}\"\n",
        dir.path().display()
    );
    let config = Arc::new(Config::parse(Path::new("pbx.toml"), &text).unwrap());
    let listeners = Listeners::bind(&config.nodes[0]).unwrap();
    let (sender, from_control) = channel();
    let (to_control, from_data) = tokio::sync::mpsc::unbounded_channel();
    let data = DataHandle {
        sender,
        bell: Arc::new(EventFd::new().unwrap()),
        snapshot: Arc::new(Mutex::new(Snapshot::default())),
        meters: Arc::default(),
    };
    let (ready, is_ready) = channel();
    let shared = Arc::clone(&config);
    let control = std::thread::spawn(move || {
        run(shared, 0, listeners, data, from_data, move || {
            let _ = ready.send(());
        })
    });
    is_ready.recv_timeout(Duration::from_secs(30)).unwrap();
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    let message = from_control.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(matches!(
        message,
        ToData::Command {
            command: DataCommand::Stop,
            ..
        }
    ));
    to_control.send(ToControl::Ended { failed: None }).unwrap();
    control.join().unwrap().unwrap();
    assert!(!config.nodes[0].admin_socket().exists());
    assert!(!config.nodes[0].nbd_socket().exists());
}

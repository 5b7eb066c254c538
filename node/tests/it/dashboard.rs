//! The live display on a real (pseudo) terminal: what it shows, and what it leaves behind.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize};

/// A program on a terminal of 80 columns and 24 rows that answers where its cursor is.
struct OnTerminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    slave: File,
    _dir: tempfile::TempDir,
}

impl OnTerminal {
    fn start(args: &[&str]) -> Self {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)
            .expect("the system has pseudo terminals");
        rustix::pty::grantpt(&master).expect("the own terminal");
        rustix::pty::unlockpt(&master).expect("the own terminal");
        let name = rustix::pty::ptsname(&master, Vec::new()).expect("the own terminal");
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).expect("the own terminal");
        let name = PathBuf::from(name.into_string().expect("terminals have ASCII names"));
        let slave = File::options().read(true).write(true).open(name).expect("just created");

        let dir = tempfile::tempdir().expect("temporary folder is writable");
        let test = std::env::current_exe().expect("a test knows its own path");
        let target = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
        let handle = || Stdio::from(slave.try_clone().expect("descriptors are left"));
        let child = Command::new(target.join("examples/display"))
            .args(args)
            .env("P2PTRAIN_DIR", dir.path().join("node"))
            .env("TERM", "xterm-256color")
            .env("RUST_BACKTRACE", "0")
            .env_remove("NO_COLOR")
            .stdin(handle())
            .stdout(handle())
            .stderr(handle())
            .spawn()
            .expect("cargo builds examples with the tests");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let screen = Arc::clone(&shown);
        thread::spawn(move || serve(File::from(master), &screen));
        Self { child, shown, slave, _dir: dir }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no reader panics")).into_owned()
    }

    fn wait_for(&self, part: &str) {
        let start = Instant::now();
        while !self.text().contains(part) {
            assert!(start.elapsed() < Duration::from_secs(20), "no {part:?} in {:?}", self.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn echoes(&self) -> bool {
        let termios = rustix::termios::tcgetattr(&self.slave).expect("the own terminal");
        termios.local_modes.contains(LocalModes::ECHO)
    }

    fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("the own child");
        // What it wrote last may still be on its way.
        thread::sleep(Duration::from_millis(100));
        status
    }
}

/// Keeps what is shown, and answers the question for the cursor's place as a terminal does.
fn serve(mut master: File, screen: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        let new = &buffer[..length];
        if new.windows(4).any(|window| window == b"\x1b[6n") {
            master.write_all(b"\x1b[3;1R").expect("the program reads its terminal");
        }
        screen.lock().expect("no reader panics").extend_from_slice(new);
    }
}

#[test]
fn the_display_is_live_and_leaves_the_terminal_as_it_was() {
    let mut program = OnTerminal::start(&["2"]);
    program.wait_for("samples/s");
    assert!(!program.echoes(), "typed keys stay out of the picture");
    assert!(program.wait().success());
    let text = program.text();
    for part in ["alice", "carol", "held-out", "WARN a warning while", "\x1b[?25l"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert!(program.echoes());
    assert!(text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is visible again");
}

#[test]
fn a_panic_restores_the_terminal_before_its_message() {
    let mut program = OnTerminal::start(&["2", "--panic"]);
    assert!(!program.wait().success());
    let text = program.text();
    let message = text.find("a panic as asked for").expect("the message is shown");
    assert!(program.echoes());
    assert!(text[..message].rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "{text:?}");
}

#[test]
fn an_interrupt_ends_the_display_in_order() {
    let mut program = OnTerminal::start(&["60"]);
    program.wait_for("samples/s");
    let id = program.child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &id]).status().expect("kill exists");
    assert!(killed.success() && program.wait().success());
    assert!(program.echoes());
}

//! A full disk, for data and checkpoints: an error that says so, and nothing old is lost.
//!
//! The limit is put on a child process: this test program again, with one test that does the work
//! only there. Its shell ignores SIGXFSZ, so that a write beyond the limit is an error as on a full
//! disk. As root the same is tried on a small file system.

use std::fs;
use std::path::Path;
use std::process::Command;

use p2ptrain_node::checkpoint::{Folder, SaveError};
use p2ptrain_node::data::{CHUNK_BYTES, DataError, Manifest, Source, Store};
use p2ptrain_node::job::DataSpec;

use crate::checkpoint::save_two;
use crate::data::{folder, text};

const CHILD: &str = "P2PTRAIN_TEST_FULL_DISK";

#[test]
fn a_full_disk_is_a_clear_error_and_leaves_what_was_there() {
    if let Some(place) = std::env::var_os(CHILD) {
        fill_up(Path::new(&place));
        return;
    }
    let place = folder();
    let program = std::env::current_exe().expect("this test program");
    let name = "data_faults::a_full_disk_is_a_clear_error_and_leaves_what_was_there";
    // 128 blocks of 512 or 1024 bytes, whichever the shell counts in.
    let script = "trap '' XFSZ; ulimit -f 128; exec \"$0\" --exact \"$1\" --test-threads 1";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(program)
        .arg(name)
        .env(CHILD, place.path())
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_small_file_system_that_fills_up_is_the_same() {
    let place = folder();
    let mount = |arguments: &[&str]| {
        let status = Command::new(arguments[0]).args(&arguments[1..]).arg(place.path()).output();
        status.is_ok_and(|output| output.status.success())
    };
    // Only root may mount; the test above has shown the same by other means.
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=256k", "none"]) {
        return;
    }
    let result = std::panic::catch_unwind(|| fill_up(place.path()));
    assert!(mount(&["umount", "-l"]));
    result.expect("the same as above");
}

fn fill_up(place: &Path) {
    // Files that exist before the disk is full, elsewhere: their text does not count.
    let outside = folder();
    let files: Vec<_> = (0..40).map(|i| outside.path().join(format!("{i:02}.txt"))).collect();
    for file in &files {
        fs::write(file, text(16 * 1024)).expect("small files fit");
    }
    let source = Source::open(&DataSpec { files, ..DataSpec::default() }).expect("there is text");
    let data = place.join("data");
    let error = Store::build(&data, &source, &mut |_| {}).expect_err("it does not fit");
    let DataError::Disk(disk) = &error else { panic!("{error}") };
    assert!(disk.is_full(), "{error}");
    assert!(error.to_string().starts_with("no space left for /"), "{error}");
    assert_eq!(fs::read_dir(&data).expect("readable").count(), 0, "the half store is removed");

    let checkpoints = place.join("checkpoints");
    let error = save_two(&checkpoints).expect_err("it does not fit");
    assert!(matches!(&error, SaveError::Disk(disk) if disk.is_full()), "{error}");
    assert!(error.to_string().contains("earlier ones are intact"), "{error}");
    let folder = Folder::open(&checkpoints).expect("readable");
    let latest = folder.latest_good(None).expect("the first one is intact");
    assert_eq!(latest.checkpoint.about.step.0, 1);
    assert_eq!(fs::read_dir(&checkpoints).expect("readable").count(), 1, "no half checkpoint");
}

#[test]
fn a_joining_nodes_full_disk_stops_the_fill_and_not_the_process() {
    // /dev/full takes the place of the token file: every write says that no space is left.
    let (_outside, full) = crate::data::store(2 * CHUNK_BYTES);
    let place = folder();
    let joiner = Store::create(place.path(), full.manifest()).expect("writable");
    let tokens = joiner.folder().join("tokens");
    fs::remove_file(&tokens).expect("it exists");
    std::os::unix::fs::symlink("/dev/full", &tokens).expect("writable");
    drop(joiner);
    let Ok(joiner) = Store::open(place.path(), full.root()) else {
        return; // A device cannot be given a length on this system.
    };
    let chunk = full.chunk(0).expect("complete");
    assert_eq!(Manifest::digest_of(&chunk), full.manifest().chunk_digest(0).expect("it exists"));
    let error = joiner.accept(0, &chunk).expect_err("no space").to_string();
    assert!(error.contains("no space left"), "{error}");
}

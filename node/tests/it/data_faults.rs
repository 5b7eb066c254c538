//! A full disk, for data and checkpoints: an error that says so, and nothing old is lost.
//!
//! The limit is put on a child process: this test program again, with one test that does the work
//! only there. Its shell ignores SIGXFSZ, so that a write beyond the limit is an error as on a full
//! disk. As root the same is tried on a small file system.

use std::fs;
use std::path::Path;
use std::process::Command;

use p2ptrain_node::checkpoint::{Folder, SaveError};
use p2ptrain_node::data::{CHUNK_BYTES, ChunkRefused, DataError, Source, Store};
use p2ptrain_node::job::DataSpec;

use crate::checkpoint::save_two;
use crate::data::{folder, store, text};

const CHILD: &str = "P2PTRAIN_TEST_FULL_DISK";
/// More than either disk has.
const DATA_BYTES: usize = 10 * CHUNK_BYTES;

#[test]
fn a_full_disk_is_a_clear_error_and_leaves_what_was_there() {
    if let Some(place) = std::env::var_os(CHILD) {
        let place = Path::new(&place);
        let root = fs::read_to_string(place.join("root")).expect("the parent wrote it");
        let full = Store::open(&place.join("full"), root.parse().expect("an id"));
        fill_up(&place.join("small"), &full.expect("the parent built it"));
        return;
    }
    let place = folder();
    let (_outside, full) = store(DATA_BYTES);
    let (from, to) = (full.folder(), place.path().join("full").join(full.root().to_hex()));
    fs::create_dir(place.path().join("full")).expect("writable");
    fs::rename(from, to).expect("the same file system");
    fs::write(place.path().join("root"), full.root().to_hex()).expect("writable");
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
    let result = std::panic::catch_unwind(|| fill_up(place.path(), &store(DATA_BYTES).1));
    assert!(mount(&["umount", "-l"]));
    result.expect("the same as above");
}

fn fill_up(place: &Path, full: &Store) {
    join(&place.join("joiner"), full);
    fs::remove_dir_all(place.join("joiner")).expect("it can be removed");

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
    // Before the folder is opened again, which would remove leftovers.
    assert_eq!(fs::read_dir(&checkpoints).expect("readable").count(), 1, "no half checkpoint");
    let folder = Folder::open(&checkpoints).expect("readable");
    let latest = folder.latest_good(None).expect("the first one is intact");
    assert_eq!(latest.checkpoint.about.step.0, 1);
}

/// A node joins with a disk too small for the data.
fn join(place: &Path, full: &Store) {
    let take = || -> Result<(), String> {
        let joiner = match Store::create(place, full.manifest()) {
            Err(DataError::Disk(disk)) if disk.is_full() => return Err(disk.to_string()),
            created => created.expect("no other error than a full disk"),
        };
        for chunk in 0..full.manifest().chunk_count() {
            match joiner.accept(chunk, &full.chunk(chunk).expect("complete")) {
                Err(ChunkRefused::Disk(disk)) if disk.is_full() => return Err(disk.to_string()),
                other => other.expect("no other error than a full disk"),
            }
        }
        Ok(())
    };
    let error = take().expect_err("it does not fit");
    assert!(error.starts_with("no space left for /"), "{error}");
}

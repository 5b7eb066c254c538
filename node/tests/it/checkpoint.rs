//! Checkpoints: saved whole or not at all, loaded only if every byte is right.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use p2ptrain_node::checkpoint::{
    self, About, Folder, LatestError, LoadError, State, StateRef, inspect, load,
};
use p2ptrain_node::job::JobSpec;
use p2ptrain_protocol::checkpoint::StateLayout;
use p2ptrain_protocol::id::{PeerId, Step};

use crate::data::folder;

/// Numbers that differ everywhere; the second block has two chunks.
fn state() -> State {
    let layout = StateLayout::new(3, vec![5, 300_000, 0, 77]).expect("a small state");
    let mut state = State::zeros(&layout);
    let mut number = 0.0;
    for block in [&mut state.params, &mut state.m, &mut state.v].into_iter().flatten() {
        for element in block {
            number += 0.5;
            *element = number;
        }
    }
    state.params[0][0] = f32::NAN;
    state.params[0][1] = -0.0;
    state
}

fn about(step: u64) -> About {
    About {
        job: JobSpec::default(),
        program: b"the program".to_vec(),
        step: Step(step),
        epoch: 7,
        members: vec![PeerId::from_bytes([1; 32]), PeerId::from_bytes([2; 32])],
        ledger_bytes: 12_345,
    }
}

fn bits(state: &State) -> Vec<Vec<u32>> {
    let blocks = [&state.params, &state.m, &state.v].into_iter().flatten();
    blocks.map(|block| block.iter().map(|x| x.to_bits()).collect()).collect()
}

fn save(folder: &Folder, step: u64, keep: u32) -> PathBuf {
    folder.save(&about(step), state().borrow(), keep).expect("writable").path
}

fn steps(folder: &Folder) -> Vec<u64> {
    folder.list().expect("readable").0.iter().map(|entry| entry.step.0).collect()
}

#[test]
fn what_was_saved_is_loaded_bit_for_bit() {
    let place = folder();
    let folder = Folder::open(&place.path().join("new/folder")).expect("writable");
    let path = save(&folder, 40, 3);
    let id = about(40).job.id();
    let loaded = load(&path, Some(id)).expect("a good checkpoint");
    assert_eq!(loaded.about, about(40));
    assert_eq!(bits(&loaded.state), bits(&state()));
    assert_eq!(Ok(&loaded.manifest), state().borrow().manifest(id, Step(40)).as_ref());
    let info = inspect(&path).expect("a good header");
    assert_eq!((info.about, info.manifest), (about(40), loaded.manifest));
    assert_eq!(info.bytes, fs::metadata(&path).expect("it exists").len());
}

#[test]
fn an_optimizer_without_moments_saves_parameters_alone() {
    let place = folder();
    let folder = Folder::open(place.path()).expect("writable");
    let State { params, m, .. } = state();
    for m in [m, Vec::new()] {
        let state = StateRef { params: &params, m: &m, v: &[] };
        let path = folder.save(&about(1), state, 1).expect("writable").path;
        let loaded = load(&path, None).expect("a good checkpoint").state;
        assert_eq!((loaded.m == m, loaded.v.len()), (true, 0));
    }
}

#[test]
fn the_newest_are_kept_and_nothing_else_is_touched() {
    let place = folder();
    let folder = Folder::open(place.path()).expect("writable");
    fs::write(place.path().join("notes.txt"), "mine").expect("writable");
    for step in [10, 20, 30, 40] {
        save(&folder, step, 2);
    }
    assert_eq!(steps(&folder), [40, 30]);
    // Another job in the same folder has its own checkpoints.
    let mut other = about(5);
    other.job.seed = 99;
    let saved = folder.save(&other, state().borrow(), 1).expect("writable");
    assert_eq!(saved.removed, [] as [PathBuf; 0]);
    assert_eq!(steps(&folder), [5, 40, 30]);
    let error = folder.latest_good(None).expect_err("two jobs").to_string();
    assert!(error.contains("several jobs") && error.contains("\"job\""), "{error}");
    let latest = folder.latest_good(Some(about(0).job.id())).expect("a good checkpoint");
    assert_eq!(latest.checkpoint.about.step, Step(40));
    assert!(place.path().join("notes.txt").exists());
}

#[test]
fn a_job_that_went_back_to_an_earlier_step_keeps_its_new_checkpoints() {
    let place = folder();
    let folder = Folder::open(place.path()).expect("writable");
    for step in [100, 200, 300, 110] {
        save(&folder, step, 2);
    }
    assert_eq!(steps(&folder), [110, 300]);
    let latest = folder.latest_good(None).expect("a good checkpoint");
    assert_eq!(latest.checkpoint.about.step, Step(110));
}

#[test]
fn every_changed_bit_is_noticed() {
    let place = folder();
    let folder = Folder::open(place.path()).expect("writable");
    let path = save(&folder, 3, 1);
    let good = fs::read(&path).expect("readable");
    let state_bytes = 4 * 3 * (5 + 300_000 + 77);
    let state_at = good.len() - state_bytes;
    // The whole header, and the first and last byte of every chunk.
    let mut places: Vec<usize> = (0..state_at).collect();
    let mut at = state_at;
    for bytes in [20, 1 << 20, 4 * 300_000 - (1 << 20), 4 * 77].repeat(3) {
        places.extend([at, at + bytes - 1]);
        at += bytes;
    }
    assert_eq!(at, good.len());
    let file = fs::OpenOptions::new().write(true).open(&path).expect("writable");
    for (number, place) in places.into_iter().enumerate() {
        // In place: writing the whole file a thousand times would take most of the test's time.
        let change = |byte: u8| file.write_all_at(&[byte], place as u64).expect("writable");
        change(good[place] ^ 1 << (number % 8));
        // Headers are cheap to try; the state is only read where the change lies in it.
        let error = match inspect(&path) {
            Err(error) => error,
            Ok(_) => load(&path, None).expect_err("a bit was changed"),
        };
        change(good[place]);
        let expected = match place {
            0..8 => matches!(error, LoadError::NotACheckpoint { .. }),
            8..12 => matches!(error, LoadError::Version { .. }),
            12..20 => matches!(error, LoadError::Header { .. } | LoadError::Truncated { .. }),
            place if place < state_at => matches!(error, LoadError::Header { .. }),
            _ => matches!(error, LoadError::Chunk { .. }),
        };
        assert!(expected, "byte {place}: {error}");
        assert!(error.to_string().contains(".ckpt"), "{error}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let place = folder();
    let folder = Folder::open(place.path()).expect("writable");
    let path = save(&folder, 3, 1);
    let good = fs::read(&path).expect("readable");
    let state_at = good.len() - 4 * 3 * (5 + 300_000 + 77);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("writable");
    // From long to short, so that the file only ever gets shorter.
    let ends = [good.len() - 1, good.len() / 2, state_at + 1, state_at];
    for length in ends.into_iter().chain((0..state_at).rev()) {
        file.set_len(length as u64).expect("writable");
        let error = load(&path, None).expect_err("the end is missing");
        let expected = match length {
            0 => matches!(error, LoadError::NotACheckpoint { .. }),
            _ => matches!(error, LoadError::Truncated { bytes, .. } if bytes == length as u64),
        };
        assert!(expected, "{length} bytes: {error}");
    }
    fs::write(&path, [good.as_slice(), b"x"].concat()).expect("writable");
    assert!(matches!(load(&path, None), Err(LoadError::Trailing { .. })));
}

#[test]
fn other_files_versions_and_jobs_are_told_apart() {
    let place = folder();
    let folder = Folder::open(place.path()).expect("writable");
    let path = save(&folder, 3, 1);
    let mut other = JobSpec::default();
    other.seed += 1;
    let error = load(&path, Some(other.id())).expect_err("another job").to_string();
    assert!(error.contains("belongs to job") && error.contains(&other.id().short()), "{error}");
    let missing = load(&place.path().join("none.ckpt"), None).expect_err("no file");
    assert!(matches!(missing, LoadError::NotFound { .. }), "{missing}");
    for path in [place.path(), Path::new("/dev/zero")] {
        assert!(matches!(load(path, None), Err(LoadError::NotACheckpoint { .. })));
    }
    let mut bytes = fs::read(&path).expect("readable");
    bytes[8] = 2;
    fs::write(&path, bytes).expect("writable");
    let error = load(&path, None).expect_err("a newer version").to_string();
    assert!(error.contains("version 2, this program reads 1"), "{error}");
}

#[test]
fn the_latest_good_one_is_found_behind_damaged_ones() {
    let place = folder();
    let folder = Folder::open(place.path()).expect("writable");
    let paths: Vec<PathBuf> = [10, 20, 30, 40].map(|step| save(&folder, step, 9)).to_vec();
    damage(&paths[3], |bytes| bytes.truncate(100));
    damage(&paths[2], |bytes| *bytes.last_mut().expect("not empty") ^= 1);
    damage(&paths[1], |bytes| bytes[60] ^= 1);
    let latest = folder.latest_good(Some(about(0).job.id())).expect("the first is good");
    assert_eq!((latest.checkpoint.about.step, &latest.path), (Step(10), &paths[0]));
    assert_eq!(latest.passed_over.len(), 3);
    // A later save counts good headers only, so the good one stays.
    save(&folder, 50, 3);
    assert!(paths[0].exists());
    for path in &paths {
        damage(path, |bytes| bytes.truncate(9));
    }
    fs::remove_file(folder.latest_good(None).expect("step 50 is good").path).expect("writable");
    let error = folder.latest_good(None).expect_err("none is good");
    assert!(matches!(&error, LatestError::None { passed_over, .. } if passed_over.len() == 4));
    assert!(error.to_string().contains("is truncated: 9 of 52 bytes"), "{error}");
}

#[test]
fn an_interrupted_save_leaves_nothing_that_counts() {
    let place = folder();
    let left = place.path().join(".abc-step-000000001.ckpt.1-0.tmp");
    fs::write(&left, b"half a checkpoint").expect("writable");
    fs::write(place.path().join(".mine.tmp"), b"not ours").expect("writable");
    let folder = Folder::open(place.path()).expect("writable");
    assert!(!left.exists());
    assert!(place.path().join(".mine.tmp").exists());
    assert!(matches!(folder.latest_good(None), Err(LatestError::None { .. })));
}

#[test]
fn a_chunk_of_a_loaded_state_is_the_chunk_that_travels() {
    let (from, id) = (state(), about(3).job.id());
    let manifest = from.borrow().manifest(id, Step(3)).expect("a small state");
    let mut to = State::zeros(&manifest.layout);
    let mut bytes = Vec::new();
    for (index, place) in (0..).zip(manifest.layout.places()) {
        from.borrow().read_chunk(&place, &mut bytes);
        let place = manifest.verify_chunk(index, &bytes).expect("the right bytes");
        to.write_chunk(&place, &bytes);
    }
    assert_eq!(bits(&to), bits(&from));
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_with_its_path() {
    let place = folder();
    let file = place.path().join("file");
    fs::write(&file, "in the way").expect("writable");
    let error = Folder::open(&file).expect_err("a file").to_string();
    assert!(error.contains("/file"), "{error}");
}

pub(crate) fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("readable");
    change(&mut bytes);
    fs::write(path, bytes).expect("writable");
}

/// For the tests of full disks: saves two checkpoints into this folder.
pub(crate) fn save_two(path: &Path) -> Result<PathBuf, checkpoint::SaveError> {
    let folder = Folder::open(path)?;
    let small = State { params: vec![vec![1.0; 10]], ..State::default() };
    folder.save(&about(1), small.borrow(), 1).expect("the first one fits");
    folder.save(&about(2), state().borrow(), 1).map(|saved| saved.path)
}

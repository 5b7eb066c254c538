//! A checkpoint file with any bytes, a manifest of data with any bytes: verified or refused. A second file is a
//! valid one in which some bytes are changed and the end is cut off.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use p2ptrain_node::checkpoint::{self, About, Folder, StateRef};
use p2ptrain_node::data::Manifest;
use p2ptrain_node::job::JobSpec;
use p2ptrain_protocol::id::Step;

/// In memory where the system has such a folder.
static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("p2ptrain-fuzz-checkpoint-{}", std::process::id()))
});

static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = PATH.with_extension("folder");
    let about = About {
        job: JobSpec::default(),
        program: vec![1, 2, 3],
        step: Step(4),
        epoch: 5,
        members: Vec::new(),
        ledger_bytes: 6,
    };
    let values = [vec![1.0; 5], Vec::new(), vec![2.0; 3]];
    let state = StateRef { params: &values, m: &values, v: &values };
    let saved = Folder::open(&folder).expect("a new folder").save(&about, state, 1);
    let bytes = std::fs::read(saved.expect("a small file fits").path).expect("just written");
    std::fs::remove_dir_all(folder).expect("the folder is there");
    bytes
});

fuzz_target!(|data: &[u8]| {
    // The root is that of the bytes themselves, so that the decoder gets beyond that check.
    if let Ok(manifest) = Manifest::decode(data, Manifest::digest_of(data)) {
        assert_eq!(manifest.encode(), data, "a manifest has one encoding");
    }
    check(data);
    let mut changed = VALID.clone();
    if let Some((&[high, low], changes)) = data.split_first_chunk::<2>() {
        for &[high, low, value] in changes.as_chunks::<3>().0 {
            let place = usize::from(u16::from_be_bytes([high, low])) % changed.len();
            changed[place] = value;
        }
        let cut = usize::from(u16::from_be_bytes([high, low])) % changed.len();
        changed.truncate(changed.len() - cut);
    }
    let loaded = check(&changed);
    assert_eq!(loaded, changed == *VALID, "every bit of a checkpoint is verified");
});

/// Whether the bytes load as a checkpoint.
fn check(bytes: &[u8]) -> bool {
    std::fs::write(&*PATH, bytes).expect("a small file fits");
    let loaded = checkpoint::load(&PATH, None).is_ok();
    let inspected = checkpoint::inspect(&PATH).is_ok();
    assert!(inspected || !loaded, "what loads can be inspected");
    std::fs::remove_file(&*PATH).expect("the file was there");
    loaded
}

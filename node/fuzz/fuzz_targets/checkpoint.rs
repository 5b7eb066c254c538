//! A checkpoint file with any bytes, a manifest of data with any bytes: verified or refused.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use p2ptrain_node::checkpoint;
use p2ptrain_node::data::Manifest;

/// In memory where the system has such a folder.
static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("p2ptrain-fuzz-checkpoint-{}", std::process::id()))
});

fuzz_target!(|data: &[u8]| {
    // The root is that of the bytes themselves, so that the decoder gets beyond that check.
    if let Ok(manifest) = Manifest::decode(data, Manifest::digest_of(data)) {
        assert_eq!(manifest.encode(), data, "a manifest has one encoding");
    }
    std::fs::write(&*PATH, data).expect("a small file fits");
    let loaded = checkpoint::load(&PATH, None).is_ok();
    let inspected = checkpoint::inspect(&PATH).is_ok();
    assert!(inspected || !loaded, "what loads can be inspected");
    std::fs::remove_file(&*PATH).expect("the file was there");
});

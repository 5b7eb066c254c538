//! Data: from files to samples on the machine that has them and on one that fetches them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use p2ptrain_node::data::{
    self, CHUNK_BYTES, ChunkRefused, ChunkSource, DataError, FetchError, Fetched, FillError,
    Manifest, ManifestError, Samples, Source, Store,
};
use p2ptrain_node::job::{DataFormat, DataSpec, GptSpec, JobSpec, ModelSpec};
use p2ptrain_protocol::id::{Digest, PeerId};
use tempfile::TempDir;

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Text that repeats nowhere within a few chunks.
pub(crate) fn text(bytes: usize) -> Vec<u8> {
    (0_u32..)
        .flat_map(|i| format!("{} ", i.wrapping_mul(2_654_435_761)).into_bytes())
        .take(bytes)
        .collect()
}

fn spec(files: &[&Path]) -> DataSpec {
    DataSpec { files: files.iter().map(|path| path.to_path_buf()).collect(), ..DataSpec::default() }
}

fn content(source: &Source) -> Result<Vec<u8>, DataError> {
    let mut all = Vec::new();
    source.read(&mut |_, piece| {
        all.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(all)
}

fn write(path: PathBuf, bytes: impl AsRef<[u8]>) -> PathBuf {
    fs::create_dir_all(path.parent().expect("a parent")).expect("writable");
    fs::write(&path, bytes).expect("writable");
    path
}

/// A complete store of so many bytes, and the folder that holds it.
pub(crate) fn store(bytes: usize) -> (TempDir, Arc<Store>) {
    let place = folder();
    let file = write(place.path().join("text.txt"), text(bytes));
    let source = Source::open(&spec(&[&file])).expect("there is text");
    let store = Store::build(&place.path().join("data"), &source, &mut |_| {}).expect("writable");
    (place, Arc::new(store))
}

fn job(block_size: u32) -> JobSpec {
    let gpt = GptSpec { block_size, ..GptSpec::default() };
    JobSpec { model: ModelSpec::Gpt(gpt), ..JobSpec::default() }
}

// Sources

#[test]
fn folders_are_read_in_sorted_order_with_a_separator_between_files() {
    let place = folder();
    for (name, content) in
        [("b/2.txt", "two"), ("b/1.md", "one"), ("a.txt", "first"), ("c", "last")]
    {
        write(place.path().join(name), content);
    }
    let source = Source::open(&spec(&[place.path()])).expect("there is text");
    assert_eq!(content(&source).expect("readable"), b"first\0one\0two\0last");
    assert_eq!((source.len(), source.bytes()), (4, 15));
    assert!(source.skipped().is_empty());
}

#[test]
fn patterns_and_lists_name_files_and_no_file_counts_twice() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    for name in ["x1.txt", "x2.txt", "y.txt", "odd[1].txt"] {
        write(at(name), name);
    }
    let source =
        Source::open(&spec(&[&at("y.txt"), &at("x*.txt"), &at("x1.txt"), &at("odd[1].txt")]));
    let source = source.expect("there is text");
    assert_eq!(content(&source).expect("readable"), b"y.txt\0x1.txt\0x2.txt\0odd[1].txt");
}

#[test]
fn a_path_that_is_not_there_and_a_malformed_pattern_are_errors_by_name() {
    let place = folder();
    let missing = Source::open(&spec(&[&place.path().join("nothing.txt")])).expect_err("missing");
    assert!(missing.to_string().ends_with("nothing.txt does not exist"), "{missing}");
    let malformed = Source::open(&spec(&[&place.path().join("a***b")])).expect_err("malformed");
    assert!(malformed.to_string().contains("malformed"), "{malformed}");
    let none = Source::open(&spec(&[&place.path().join("*.txt")])).expect_err("no match");
    assert!(matches!(none, DataError::Empty { .. }), "{none}");
}

#[test]
fn whatever_is_no_text_is_skipped_and_counted() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    write(at("good.txt"), "good");
    write(at("latin.txt"), b"caf\xe9");
    write(at("binary.txt"), b"ELF\0");
    write(at("late.txt"), [text(300_000), vec![0]].concat());
    write(at("empty.txt"), "");
    write(at(".git/config"), "hidden");
    write(at(".hidden"), "hidden");
    symlink(&at("gone"), &at("dangling"));
    symlink(place.path(), &at("sub/loop"));
    // A regular file whose reading fails, also for root.
    symlink(Path::new("/proc/self/mem"), &at("unreadable"));
    let made = std::process::Command::new("mkfifo").arg(at("pipe")).status().expect("mkfifo");
    assert!(made.success());

    let source = Source::open(&spec(&[place.path()])).expect("there is text");
    assert_eq!(content(&source).expect("readable"), b"good\0caf\xe9");
    let skipped = source.skipped();
    let counts =
        (skipped.binary, skipped.empty, skipped.unreadable, skipped.special, skipped.hidden);
    assert_eq!(counts, (2, 1, 3, 1, 2), "{skipped}");
    let shown = skipped.to_string();
    assert!(shown.contains("2 binary, 1 empty, 3 unreadable, 1 no regular file"), "{shown}");
    assert!(shown.contains("dangling"), "{shown}");
}

#[test]
fn a_folder_without_text_is_an_error_that_says_what_was_found() {
    let place = folder();
    let error = Source::open(&spec(&[place.path()])).expect_err("nothing there").to_string();
    assert!(error.starts_with("there is no text to train on in /"), "{error}");
    write(place.path().join("image.png"), b"\x89PNG\0");
    let error = Source::open(&spec(&[place.path()])).expect_err("no text").to_string();
    assert!(error.ends_with("(skipped: 1 binary)"), "{error}");
    let error = Source::open(&spec(&[Path::new("/dev/zero")])).expect_err("a device").to_string();
    assert!(error.contains("1 no regular file"), "{error}");
}

#[test]
fn jsonl_gives_its_field_by_ending_or_by_format() {
    let place = folder();
    let lines = "{\"text\": \"a\\nb\", \"n\": 1}\n\n  \n{\"text\": \"\\u00e9\"}\n{\"text\":\"\"}\n{\"text\":\"end\"}";
    let file = write(place.path().join("a.jsonl"), lines);
    let read = |spec: DataSpec| content(&Source::open(&spec).expect("there is text"));
    assert_eq!(read(spec(&[&file])).expect("good lines"), "a\nb\0é\0end".as_bytes());
    let as_text = DataSpec { format: DataFormat::Text, ..spec(&[&file]) };
    assert_eq!(read(as_text).expect("text"), lines.as_bytes());
    let other = write(place.path().join("b.data"), "{\"body\": \"x\"}");
    let named = DataSpec { format: DataFormat::Jsonl, field: "body".to_owned(), ..spec(&[&other]) };
    assert_eq!(read(named).expect("good lines"), b"x");
}

#[test]
fn a_wrong_jsonl_line_is_an_error_with_its_number_and_reason() {
    for (line, reason) in [
        ("{\"text\": 1}", "the field \"text\" is a number, it must be text"),
        ("{\"Text\": \"\"}", "no field \"text\" (fields here: \"Text\"); set data.field"),
        ("[1]", "a record must be an object with the field \"text\""),
        ("{\"text\": \"", "no JSON: EOF while parsing a string (column 10)"),
        ("{} {}", "no JSON: trailing characters (column 4)"),
    ] {
        let place = folder();
        let file = write(place.path().join("a.jsonl"), format!("{{\"text\": \"a\"}}\n\n{line}"));
        let error =
            content(&Source::open(&spec(&[&file])).expect("a file")).expect_err("wrong line");
        assert!(error.to_string().ends_with(&format!("a.jsonl:3: {reason}")), "{error}");
    }
    let place = folder();
    let file = write(place.path().join("a.jsonl"), b"{\"text\": \"\xff\"}");
    let error = content(&Source::open(&spec(&[&file])).expect("a file")).expect_err("not UTF-8");
    assert!(error.to_string().contains("a.jsonl:1: no JSON: invalid unicode"), "{error}");
}

#[test]
fn the_default_corpus_is_bounded_rust_source_in_a_fixed_order() {
    let place = folder();
    for (name, bytes) in [("b-1/src/lib.rs", 500), ("a-1/src/lib.rs", 600), ("a-1/readme.md", 9)] {
        write(place.path().join("index").join(name), text(bytes));
    }
    write(place.path().join("index/a-1/tables.rs"), text(200_000));
    let source = data::rust_sources(place.path(), 1 << 20).expect("there are sources");
    let names: Vec<&Path> = source.paths().collect();
    let at = |name: &str| place.path().join("index").join(name);
    assert_eq!(names, [at("a-1/src/lib.rs"), at("b-1/src/lib.rs")]);
    assert_eq!(data::rust_sources(place.path(), 700).expect("sources").bytes(), 600);
    let error = data::rust_sources(&place.path().join("none"), 700).expect_err("no sources");
    assert!(error.to_string().contains("--data PATH"), "{error}");
}

// The store

#[test]
fn a_built_store_holds_the_text_and_reports_progress() {
    let place = folder();
    let bytes = text(3 * CHUNK_BYTES + 17);
    let file = write(place.path().join("t.txt"), &bytes);
    let source = Source::open(&spec(&[&file])).expect("there is text");
    let mut progress = Vec::new();
    let store =
        Store::build(place.path(), &source, &mut |now| progress.push(now)).expect("writable");
    assert_eq!(store.manifest().chunk_count(), 4);
    assert_eq!((store.manifest().tokens(), store.missing_count()), (bytes.len() as u64, 0));
    let mut tokens = vec![0; bytes.len()];
    store.read_tokens(0, &mut tokens).expect("complete");
    assert!(tokens.iter().zip(&bytes).all(|(token, byte)| *token == i32::from(*byte)));
    assert!(progress.is_sorted_by_key(|now| now.bytes_done) && progress.len() >= 2);
    let last = progress.last().expect("some progress");
    assert_eq!((last.bytes_done, last.files_done), (last.bytes_total, last.files_total));
    // Building again gives the same data, and leaves nothing else behind.
    let again = Store::build(place.path(), &source, &mut |_| {}).expect("writable");
    assert_eq!(again.root(), store.root());
    assert_eq!(fs::read_dir(place.path()).expect("readable").count(), 2);
}

#[test]
fn data_of_one_byte_is_a_store_but_no_samples() {
    let (_place, store) = store(1);
    assert_eq!((store.manifest().tokens(), store.manifest().chunk_count()), (1, 1));
    let error = Samples::new(store, &job(8)).expect_err("too little").to_string();
    assert!(error.starts_with("1 tokens of data give no training sample of 8 tokens"), "{error}");
}

#[test]
fn a_manifest_with_any_bit_changed_or_any_length_is_refused() {
    let (_place, store) = store(CHUNK_BYTES + 1);
    let bytes = store.manifest().encode();
    assert_eq!(Manifest::decode(&bytes, store.root()).as_ref(), Ok(store.manifest()));
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::decode(&changed, store.root()).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..length], store.root()).is_err(), "{length} bytes");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(Manifest::decode(&longer, store.root()), Err(ManifestError::Length { .. })));
    let other = Digest::from_bytes([7; 32]);
    assert!(matches!(Manifest::decode(&bytes, other), Err(ManifestError::Root { .. })));
    let mut newer = bytes;
    newer[4] = 2;
    assert!(matches!(
        Manifest::decode(&newer, other),
        Err(ManifestError::Version { found: 2, .. })
    ));
}

#[test]
fn a_chunk_changed_on_the_disk_is_found_before_its_first_use_and_can_be_repaired() {
    let (place, store) = store(3 * CHUNK_BYTES);
    let (parent, root) = (place.path().join("data"), store.root());
    let good = store.chunk(1).expect("complete");
    let path = store.folder().join("tokens");
    drop(store);
    let mut bytes = fs::read(&path).expect("readable");
    bytes[CHUNK_BYTES + 5] ^= 1;
    bytes.truncate(2 * CHUNK_BYTES + 9);
    fs::write(&path, bytes).expect("writable");

    let store = Store::open(&parent, root).expect("a whole manifest");
    let mut tokens = [0; 4];
    assert!(store.read_tokens(0, &mut tokens).is_ok());
    let error = store.read_tokens(CHUNK_BYTES as u64, &mut tokens).expect_err("changed");
    assert!(error.to_string().contains("chunk 1 of /"), "{error}");
    assert_eq!(error.missing_chunk(), Some(1));
    assert!(matches!(store.chunk(2), Err(DataError::Corrupt { chunk: 2, .. })));
    assert_eq!(store.missing(0..3), [1, 2]);
    // It stays missing after a restart, until somebody brings it.
    let store = Store::open(&parent, root).expect("a whole manifest");
    assert_eq!(store.missing(0..3), [1, 2]);
    store.accept(1, &good).expect("the right bytes");
    assert!(store.read_tokens(CHUNK_BYTES as u64, &mut tokens).is_ok());
}

#[test]
fn a_damaged_manifest_or_a_missing_store_is_an_error_with_its_path() {
    let (place, store) = store(10);
    let parent = place.path().join("data");
    let path = store.folder().join("manifest");
    fs::write(&path, b"nonsense").expect("writable");
    let error = Store::open(&parent, store.root()).expect_err("damaged").to_string();
    assert!(error.contains("manifest cannot be used: it is no data manifest"), "{error}");
    let error = Store::open(&parent, Digest::from_bytes([1; 32])).expect_err("missing").to_string();
    assert!(error.contains("0101") && error.contains("No such file"), "{error}");
}

// Filling from peers

fn peer(number: u8) -> PeerId {
    PeerId::from_bytes([number; 32])
}

/// Peers 1 and 2 hold the whole store; peer 1 may be a bad one.
struct Peers {
    store: Arc<Store>,
    bad: fn(u32, &mut Vec<u8>),
    requests: Vec<Vec<u32>>,
}

impl ChunkSource for Peers {
    async fn fetch(
        &mut self,
        root: Digest,
        chunks: &[u32],
        avoid: &BTreeSet<PeerId>,
    ) -> Result<Vec<Fetched>, FetchError> {
        assert_eq!(root, self.store.root());
        self.requests.push(chunks.to_vec());
        let from = if avoid.contains(&peer(1)) { peer(2) } else { peer(1) };
        let get = |chunk: &u32| {
            let mut bytes = self.store.chunk(*chunk).expect("complete").to_vec();
            if from == peer(1) {
                (self.bad)(*chunk, &mut bytes);
            }
            Fetched { chunk: *chunk, bytes: Bytes::from(bytes), from }
        };
        Ok(chunks.iter().map(get).collect())
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

#[test]
fn a_joining_node_fetches_what_it_needs_and_a_restart_goes_on_from_there() {
    let (_place, full) = store(40 * CHUNK_BYTES + 5);
    let place = folder();
    let joiner = Store::create(place.path(), full.manifest()).expect("writable");
    assert_eq!(joiner.missing_count(), 41);
    let mut tokens = [0; 4];
    let error = joiner.read_tokens(0, &mut tokens).expect_err("nothing here yet");
    assert_eq!(error.missing_chunk(), Some(0));

    let mut peers = Peers { store: Arc::clone(&full), bad: |_, _| {}, requests: Vec::new() };
    let report = run(data::fill(&joiner, &mut peers, &[40, 3])).expect("all are there");
    assert_eq!(report.fetched[&peer(1)], (2, CHUNK_BYTES as u64 + 5));
    assert_eq!(peers.requests, [vec![40, 3]]);
    drop(joiner);

    let joiner = Store::create(place.path(), full.manifest()).expect("writable");
    assert_eq!(joiner.missing_count(), 39);
    let all: Vec<u32> = (0..41).collect();
    run(data::fill(&joiner, &mut peers, &all)).expect("all are there");
    assert_eq!(peers.requests.len(), 3, "at most 32 chunks at once");
    assert!(all.iter().all(|chunk| joiner.chunk(*chunk).ok() == full.chunk(*chunk).ok()));
}

#[test]
fn a_wrong_chunk_is_refused_by_peer_and_number_and_asked_for_elsewhere() {
    let (_place, full) = store(3 * CHUNK_BYTES);
    for (bad, reason) in [
        (
            (|chunk, bytes| {
                if chunk == 1 {
                    bytes[9] ^= 1
                }
            }) as fn(u32, &mut Vec<u8>),
            "digest",
        ),
        (
            |chunk, bytes| {
                if chunk == 1 {
                    bytes.truncate(5)
                }
            },
            "5 bytes instead of 65536",
        ),
        (
            |chunk, bytes| {
                if chunk == 1 {
                    bytes.push(0)
                }
            },
            "65537 bytes instead of 65536",
        ),
    ] {
        let place = folder();
        let joiner = Store::create(place.path(), full.manifest()).expect("writable");
        let mut peers = Peers { store: Arc::clone(&full), bad, requests: Vec::new() };
        let report = run(data::fill(&joiner, &mut peers, &[0, 1, 2])).expect("peer 2 is good");
        assert_eq!(joiner.missing_count(), 0);
        assert_eq!(peers.requests, [vec![0, 1, 2], vec![1]]);
        let refused: Vec<String> = report.refused.iter().map(ToString::to_string).collect();
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("peer 01010101: chunk 1 has"), "{refused:?}");
        assert!(refused[0].contains(reason), "{refused:?}");
    }
}

/// Sends chunks that nobody asked for.
struct Useless;

impl ChunkSource for Useless {
    async fn fetch(
        &mut self,
        _root: Digest,
        _chunks: &[u32],
        _avoid: &BTreeSet<PeerId>,
    ) -> Result<Vec<Fetched>, FetchError> {
        let fetched = |chunk| Fetched { chunk, bytes: Bytes::from_static(b"x"), from: peer(3) };
        Ok([7, u32::MAX].map(fetched).to_vec())
    }
}

struct Nobody;

impl ChunkSource for Nobody {
    async fn fetch(
        &mut self,
        _root: Digest,
        _chunks: &[u32],
        _avoid: &BTreeSet<PeerId>,
    ) -> Result<Vec<Fetched>, FetchError> {
        Err(FetchError("no peer is connected".to_owned()))
    }
}

#[test]
fn a_fill_that_nobody_can_serve_ends_with_the_chunks_that_are_missing() {
    let (_place, full) = store(2 * CHUNK_BYTES);
    let place = folder();
    let joiner = Store::create(place.path(), full.manifest()).expect("writable");
    let error = run(data::fill(&joiner, &mut Useless, &[1])).expect_err("useless");
    let FillError::Exhausted { missing, refused } = &error else { panic!("{error}") };
    assert_eq!((missing.as_slice(), refused.len()), ([1].as_slice(), 6));
    assert!(matches!(refused[0].reason, ChunkRefused::NotAsked { chunk: 7 }));
    let error = run(data::fill(&joiner, &mut Nobody, &[0, 1])).expect_err("nobody").to_string();
    assert_eq!(error, "2 chunks of the data are missing: no peer is connected");
    assert!(matches!(
        joiner.accept(2, b""),
        Err(ChunkRefused::NoSuchChunk { chunk: 2, chunks: 2 })
    ));
}

// Samples

#[test]
fn an_epoch_gives_each_training_sample_once_with_targets_one_place_further() {
    let (_place, store) = store(200_000);
    let bytes = text(200_000);
    let samples = Samples::new(store, &job(64)).expect("enough data");
    let n = samples.per_epoch();
    assert!((2900..=3000).contains(&n), "{n} samples");
    let (mut tokens, mut targets) = (vec![0; 64 * n as usize], vec![0; 64 * n as usize]);
    samples.samples(0..n, &mut tokens, &mut targets).expect("complete");
    let mut seen = BTreeSet::new();
    for (tokens, targets) in tokens.chunks(64).zip(targets.chunks(64)) {
        assert_eq!(tokens[1..], targets[..63]);
        let row: Vec<u8> = tokens.iter().chain(&targets[63..]).map(|token| *token as u8).collect();
        let start = bytes.windows(65).position(|window| window == row).expect("it is in the text");
        assert!(seen.insert(start), "sample at {start} came twice");
    }
    // The next epoch has the same samples in another order.
    let (mut again, mut ignored) = (tokens.clone(), targets.clone());
    samples.samples(n..2 * n, &mut again, &mut ignored).expect("complete");
    assert_ne!(again, tokens);
    let rows = |tokens: &[i32]| tokens.chunks(64).map(<[i32]>::to_vec).collect::<BTreeSet<_>>();
    assert_eq!(rows(&again), rows(&tokens));
}

#[test]
fn samples_depend_on_the_position_alone_and_not_on_who_reads_what() {
    let (_place, store) = store(100_000);
    let samples = Samples::new(store, &job(32)).expect("enough data");
    let (mut all, mut ignored) = (vec![0; 32 * 10], vec![0; 32 * 10]);
    samples.samples(1000..1010, &mut all, &mut ignored).expect("complete");
    let (mut part, mut ignored) = (vec![0; 32 * 3], vec![0; 32 * 3]);
    samples.samples(1004..1007, &mut part, &mut ignored).expect("complete");
    assert_eq!(part, all[4 * 32..7 * 32]);
}

#[test]
fn held_out_batches_are_fixed_spread_and_never_trained_on() {
    let (_place, store) = store(300_000);
    let samples = Samples::new(store, &job(64)).expect("enough data");
    let count = samples.held_out_len() as usize;
    assert!(count > 100, "{count} held-out samples");
    let (mut tokens, mut targets) = (vec![0; 64 * count], vec![0; 64 * count]);
    samples.held_out(0, &mut tokens, &mut targets).expect("complete");
    let rows = tokens.chunks(64).map(<[i32]>::to_vec).collect::<BTreeSet<_>>();
    assert_eq!(rows.len(), count, "each once");
    let n = samples.per_epoch() as usize;
    let (mut train, mut ignored) = (vec![0; 64 * n], vec![0; 64 * n]);
    samples.samples(0..n as u64, &mut train, &mut ignored).expect("complete");
    assert!(train.chunks(64).all(|row| !rows.contains(row)));
    // The batches after the last held-out sample begin anew.
    let (mut again, mut ignored) = (tokens.clone(), targets.clone());
    samples.held_out(1, &mut again, &mut ignored).expect("complete");
    assert_eq!(again, tokens);
}

#[test]
fn the_chunks_needed_are_enough_for_the_samples() {
    let (_place, full) = store(30 * CHUNK_BYTES);
    let place = folder();
    let joiner = Arc::new(Store::create(place.path(), full.manifest()).expect("writable"));
    let samples = Samples::new(Arc::clone(&joiner), &job(256)).expect("enough data");
    let chunks = samples.chunks_needed(500..504);
    assert!(!chunks.is_empty() && chunks.len() <= 8);
    let (mut tokens, mut targets) = (vec![0; 4 * 256], vec![0; 4 * 256]);
    let missing = samples.samples(500..504, &mut tokens, &mut targets).expect_err("not here");
    assert!(missing.missing_chunk().is_some_and(|chunk| chunks.contains(&chunk)));
    let held_out = samples.held_out_chunks(3, 4);
    let mut peers = Peers { store: full, bad: |_, _| {}, requests: Vec::new() };
    run(data::fill(&joiner, &mut peers, &[chunks, held_out].concat())).expect("all are there");
    samples.samples(500..504, &mut tokens, &mut targets).expect("all chunks are here");
    samples.held_out(3, &mut tokens, &mut targets).expect("all chunks are here");
}

#[test]
fn data_that_does_not_fit_the_job_is_refused() {
    let (_place, store) = store(100_000);
    let other = JobSpec { data_root: Some(Digest::from_bytes([1; 32])), ..job(64) };
    let error = Samples::new(Arc::clone(&store), &other).expect_err("other data").to_string();
    assert!(error.contains("the files have changed"), "{error}");
    let mut small = job(64);
    small.model = ModelSpec::Gpt(GptSpec { vocab: 100, ..GptSpec::default() });
    let error = Samples::new(Arc::clone(&store), &small).expect_err("few tokens").to_string();
    assert!(error.contains("raise model.vocab"), "{error}");
    let right = JobSpec { data_root: Some(store.root()), ..job(64) };
    assert!(Samples::new(store, &right).is_ok());
}

#[test]
fn a_folder_that_cannot_be_written_is_a_clear_error() {
    let (_place, full) = store(10);
    let place = folder();
    let file = write(place.path().join("file"), "in the way");
    for error in [
        Store::create(&file, full.manifest()).expect_err("no folder"),
        Store::create(Path::new("/proc/p2ptrain"), full.manifest()).expect_err("no folder"),
    ] {
        assert!(matches!(error, DataError::Disk(_)), "{error}");
        assert!(error.to_string().contains('/'), "{error}");
    }
}

fn symlink(target: &Path, link: &Path) {
    fs::create_dir_all(link.parent().expect("a parent")).expect("writable");
    std::os::unix::fs::symlink(target, link).expect("writable");
}

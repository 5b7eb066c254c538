//! `job.toml`: what it means, and how each mistake is shown.

use std::path::Path;

use p2ptrain_node::job::{
    self, DataFormat, DecayRule, GptSpec, JobError, JobFile, JobSpec, ModelSpec, OptimizerKind,
    Precision, ScheduleKind, SpecError,
};
use proptest::prelude::*;

fn read(text: &str) -> JobFile {
    job::parse_str(text, Path::new("/jobs/job.toml")).unwrap_or_else(|error| panic!("{error}"))
}

/// All problems as `line:column field: message`.
fn problems(text: &str) -> Vec<String> {
    match job::parse_str(text, Path::new("job.toml")) {
        Ok(_) => Vec::new(),
        Err(JobError::Invalid { problems }) => problems
            .iter()
            .map(|p| format!("{}:{} {}: {}", p.line, p.column, p.field, p.message))
            .collect(),
        Err(other) => panic!("{other}"),
    }
}

/// The whole message for a job with these lines besides its data.
fn message(lines: &str) -> String {
    let text = format!("{lines}\n[data]\nfiles = \"a.txt\"\n");
    job::parse_str(&text, Path::new("job.toml")).expect_err("the job is wrong").to_string()
}

#[test]
fn data_alone_is_a_job() {
    let file = read("[data]\nfiles = \"corpus\"");
    assert_eq!(file.data.files, [Path::new("/jobs/corpus")]);
    assert_eq!(file.spec, JobSpec::default());
    assert_eq!(file.spec.check(), []);
}

#[test]
fn every_field_is_read() {
    let file = read(
        r#"
        name = "books"
        steps = 5_000
        clip = 0
        precision = "bf16"
        seed = 0xff
        min_peers = 2
        [model]
        kind = "gpt"
        vocab = 8192
        block_size = 128
        layers = 6
        heads = 6
        width = 384
        bias = false
        tied = false
        init = "start.safetensors"
        [data]
        files = ["/abs/*.txt", "more"]
        format = "jsonl"
        field = "body"
        held_out = 0.1
        root = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
        [batch]
        global = 48
        micro = 8
        [optimizer]
        kind = "sgd"
        lr = 1
        momentum = 0.5
        nesterov = true
        weight_decay = 1e-4
        decay = "all"
        no_decay = ["*.bias", "transformer.wpe.*"]
        [schedule]
        kind = "linear"
        warmup = 10
        min_lr = 0.5
        [eval]
        every = 50
        batches = 4
        [checkpoint]
        every = 25
        keep = 7
        folder = "state"
        "#,
    );
    let spec = &file.spec;
    assert_eq!((spec.name.as_str(), spec.steps, spec.clip, spec.seed), ("books", 5000, None, 255));
    assert_eq!((spec.precision, spec.min_peers), (Precision::Bf16, 2));
    let gpt = GptSpec {
        vocab: 8192,
        block_size: 128,
        layers: 6,
        heads: 6,
        width: 384,
        bias: false,
        tied: false,
    };
    assert_eq!(spec.model, ModelSpec::Gpt(gpt));
    assert_eq!(file.init.as_deref(), Some(Path::new("/jobs/start.safetensors")));
    assert_eq!(file.data.files, [Path::new("/abs/*.txt"), Path::new("/jobs/more")]);
    assert_eq!((file.data.format, file.data.field.as_str()), (DataFormat::Jsonl, "body"));
    assert_eq!(spec.held_out_ppm, 100_000);
    assert_eq!(spec.data_root.map(|root| root.short()), Some("00112233".to_owned()));
    assert_eq!((spec.batch.global, spec.batch.micro), (48, 8));
    assert_eq!(spec.optimizer.kind, OptimizerKind::Sgd { momentum: 0.5, nesterov: true });
    assert_eq!((spec.optimizer.lr, spec.optimizer.weight_decay), (1.0, 1e-4));
    assert_eq!(spec.optimizer.decay, DecayRule::All);
    assert_eq!((spec.schedule.kind, spec.schedule.warmup), (ScheduleKind::Linear, 10));
    assert_eq!(spec.schedule.min_lr, 0.5);
    assert_eq!((spec.eval.every, spec.eval.batches), (50, 4));
    assert_eq!((spec.checkpoint.every, spec.checkpoint.keep), (25, 7));
    assert_eq!(file.checkpoint_folder.as_deref(), Some(Path::new("/jobs/state")));
    assert_eq!(read(&file.to_toml()), file);
}

#[test]
fn a_mistake_is_shown_at_its_line_with_a_caret_and_the_way_out() {
    assert_eq!(
        message("[model]\nlayers = 4\nhead = 3"),
        "job.toml:3:1: model.head: unknown field of [model]\n\
         \x20 3 | head = 3\n\
         \x20   | ^^^^\n\
         \x20   allowed: kind, vocab, block_size, layers, heads, width, bias, tied, init\n\
         \x20   did you mean `heads`?"
    );
    assert_eq!(
        message("[model]\n\theads = 3"),
        "job.toml:2:10: model.heads: does not divide model.width = 256\n\
         \x20 2 | \theads = 3\n\
         \x20   | \t        ^\n\
         \x20   allowed: a divisor of the width: 1, 2, 4, 8, 16, 32, 64, 128, 256"
    );
}

#[test]
fn all_mistakes_are_reported_together_in_the_order_of_the_file() {
    let found = problems(
        "steps = 1.5\nseed = -1\nlearning_rate = 1\n[model]\nvocab = 100\nheads = 5\n\
         [optimizer]\nkind = \"adamm\"\nlr = true\n[schedule]\nwarmup = 9999\n",
    );
    assert_eq!(
        found,
        [
            "1:9 steps: is the number 1.5",
            "2:8 seed: must not be negative",
            "3:1 learning_rate: unknown field",
            "5:9 model.vocab: is out of range: tokens are bytes, and are stored in 16 bits",
            "6:9 model.heads: does not divide model.width = 256",
            "8:8 optimizer.kind: unknown value \"adamm\"",
            "9:6 optimizer.lr: is the truth value true",
            "0:0 data.files: is missing or empty; it says which text to train on",
        ]
    );
}

#[test]
fn each_range_and_contradiction_is_refused_at_the_field_to_change() {
    for (lines, field) in [
        ("name = \"\"", "name"),
        ("name = \"a\\u0007\"", "name"),
        ("steps = 0", "steps"),
        ("steps = 99999999999999999999", "steps"),
        ("clip = -1.0", "clip"),
        ("clip = nan", "clip"),
        ("precision = \"f16\"", "precision"),
        ("seed = \"x\"", "seed"),
        ("seed = 1979-05-27", "seed"),
        ("min_peers = 0", "min_peers"),
        ("model = 3", "model"),
        ("[model]\nkind = \"gtp\"", "model.kind"),
        ("[model]\nblock_size = 0", "model.block_size"),
        ("[model]\nlayers = 100000", "model.layers"),
        ("[model]\nwidth = 0", "model.width"),
        ("[model]\nwidth = 32768\nlayers = 512\nheads = 8", "model.width"),
        ("[model]\nbias = 1", "model.bias"),
        ("[batch]\nglobal = 10\nmicro = 4", "batch.micro"),
        ("[batch]\nglobal = 0", "batch.global"),
        ("[batch]\nglobal = 1048576\nmicro = 1", "batch.micro"),
        ("[batch]\nglobal = 4096\nmicro = 4096\n[model]\nblock_size = 2048", "batch.micro"),
        ("[optimizer]\nlr = 0", "optimizer.lr"),
        ("[optimizer]\nlr = inf", "optimizer.lr"),
        ("[optimizer]\nbetas = [0.9]", "optimizer.betas"),
        ("[optimizer]\nbetas = [0.9, 1.0]", "optimizer.betas"),
        ("[optimizer]\neps = 0", "optimizer.eps"),
        ("[optimizer]\nmomentum = 0.9", "optimizer.momentum"),
        ("[optimizer]\nkind = \"sgd\"\nbetas = [0.9, 0.95]", "optimizer.betas"),
        ("[optimizer]\nkind = \"sgd\"\nmomentum = 0\nnesterov = true", "optimizer.nesterov"),
        ("[optimizer]\nno_decay = [\"[\"]", "optimizer.no_decay"),
        ("[optimizer]\nno_decay = [1]", "optimizer.no_decay"),
        ("[schedule]\nwarmup = 1001", "schedule.warmup"),
        ("[schedule]\nmin_lr = 1.0", "schedule.min_lr"),
        ("[schedule]\nkind = \"constant\"\nmin_lr = 0", "schedule.min_lr"),
        ("[eval]\nbatches = 0", "eval.batches"),
        ("[checkpoint]\nkeep = 0", "checkpoint.keep"),
        ("[checkpoint]\nkeep = 2\nkep = 2", "checkpoint.kep"),
    ] {
        let text = format!("{lines}\n[data]\nfiles = \"a.txt\"\n");
        match job::parse_str(&text, Path::new("job.toml")) {
            Err(JobError::Invalid { problems }) => {
                assert_eq!(problems.len(), 1, "{lines}: {problems:?}");
                assert_eq!(problems[0].field, field, "{lines}");
                assert!(problems[0].line > 0 && !problems[0].allowed.is_empty(), "{lines}");
            }
            other => panic!("{lines}: {other:?}"),
        }
    }
}

#[test]
fn wrong_data_fields_are_refused() {
    for (lines, field) in [
        ("", "data.files"),
        ("[data]", "data.files"),
        ("[data]\nfiles = []", "data.files"),
        ("[data]\nfiles = 3", "data.files"),
        ("[data]\nfiles = \"a\"\nformat = \"csv\"", "data.format"),
        ("[data]\nfiles = \"a\"\nheld_out = 0.6", "data.held_out"),
        ("[data]\nfiles = \"a\"\nheld_out = -0.1", "data.held_out"),
        ("[data]\nfiles = \"a\"\nroot = \"12\"", "data.root"),
        ("[data]\nfiles = \"a\"\nheld_out = 0\n[eval]\nevery = 5", "eval.every"),
    ] {
        match job::parse_str(lines, Path::new("job.toml")) {
            Err(JobError::Invalid { problems }) => {
                assert_eq!(problems.len(), 1, "{lines}: {problems:?}");
                assert_eq!(problems[0].field, field, "{lines}");
            }
            other => panic!("{lines}: {other:?}"),
        }
    }
}

#[test]
fn names_of_other_trainers_lead_to_ours() {
    for (theirs, ours) in [
        ("learning_rate = 1", "optimizer.lr"),
        ("batch_size = 1", "batch.global"),
        ("[model]\nn_layer = 1", "model.layers"),
        ("stpes = 1", "steps"),
        ("[optimizer]\nkind = \"adam\"", "adamw"),
    ] {
        let message = message(theirs);
        assert!(message.ends_with(&format!("did you mean `{ours}`?")), "{message}");
    }
}

#[test]
fn wrong_toml_is_shown_at_its_place() {
    let message = message("steps = = 3\nname = \"x");
    assert!(message.starts_with("job.toml:1:"), "{message}");
    assert!(message.contains("job.toml:2:"), "{message}");
}

#[test]
fn files_that_are_no_text_or_not_there_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = &folder.path().join("job.toml");
    let error = job::parse(path).expect_err("there is no file").to_string();
    assert!(error.contains("job.toml") && error.contains("No such file"), "{error}");
    std::fs::write(path, b"name = \"\xff\"").expect("writable");
    let error = job::parse(path).expect_err("not UTF-8").to_string();
    assert!(error.contains("not UTF-8") && error.contains("offset 8"), "{error}");
    std::fs::write(path, vec![b' '; 2 << 20]).expect("writable");
    for path in [path.as_path(), Path::new("/dev/zero")] {
        assert!(matches!(job::parse(path), Err(JobError::TooLarge { .. })));
    }
    assert!(matches!(job::parse(folder.path()), Err(JobError::Read { .. })));
}

#[test]
fn decay_follows_the_shape_unless_a_pattern_takes_a_parameter_out() {
    let mut optimizer = JobSpec::default().optimizer;
    assert!(optimizer.decays("transformer.wte.weight", 2));
    assert!(!optimizer.decays("transformer.ln_f.weight", 1));
    optimizer.no_decay = vec!["*.wte.*".to_owned()];
    assert!(!optimizer.decays("transformer.wte.weight", 2));
    optimizer.decay = DecayRule::All;
    assert!(optimizer.decays("transformer.ln_f.weight", 1));
}

#[test]
fn canonical_bytes_read_back_to_the_same_job_and_id() {
    let spec = JobSpec::default();
    let bytes = spec.encode();
    assert_eq!(JobSpec::decode(&bytes), Ok(spec.clone()));
    assert_eq!(JobSpec::decode(&bytes).map(|spec| spec.id()), Ok(spec.id()));
    let other = JobSpec { seed: 2, ..spec.clone() };
    assert_ne!(other.id(), spec.id());
    // Another machine must get the same id for the same job.
    assert_eq!(spec.id().short(), "ae5f0117");
}

#[test]
fn local_paths_never_travel() {
    let mut file = JobFile::new(["/home/me/secret-name.txt"]);
    file.checkpoint_folder = Some("/home/me/secret-name".into());
    let bytes = file.spec.encode();
    assert!(!bytes.windows(11).any(|window| window == b"secret-name"));
}

#[test]
fn a_peers_job_out_of_bounds_is_refused_field_by_field() {
    let mut spec = JobSpec::default();
    spec.batch.micro = 5;
    spec.optimizer.lr = f64::NAN;
    let Err(SpecError::Refused { violations }) = JobSpec::decode(&spec.encode()) else {
        panic!("the job is out of bounds")
    };
    let fields: Vec<&str> = violations.iter().map(|violation| violation.fields[0]).collect();
    assert_eq!(fields, ["batch.micro", "optimizer.lr", "schedule.min_lr"]);
}

#[test]
fn truncated_changed_and_foreign_bytes_are_errors() {
    let bytes = JobSpec::default().encode();
    for length in 0..bytes.len() {
        assert!(JobSpec::decode(&bytes[..length]).is_err(), "{length} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(JobSpec::decode(&longer), Err(SpecError::Trailing { bytes: 1 }));
    let mut newer = bytes.clone();
    newer[4] = 9;
    assert!(matches!(JobSpec::decode(&newer), Err(SpecError::Version { found: 9, .. })));
    assert_eq!(JobSpec::decode(b"not a job at all"), Err(SpecError::NotASpec));
    let huge = vec![0; 70_000];
    assert!(matches!(JobSpec::decode(&huge), Err(SpecError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn any_bytes_from_a_peer_are_an_error_or_a_good_job(
        tail in proptest::collection::vec(any::<u8>(), 0..400),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = JobSpec::default().encode();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(spec) = JobSpec::decode(&bytes) {
            prop_assert_eq!(spec.check(), vec![]);
            prop_assert_eq!(spec.encode(), bytes.clone());
        }
        bytes.truncate(6);
        bytes.extend(tail);
        let _ = JobSpec::decode(&bytes);
    }

    #[test]
    fn any_text_is_a_job_or_a_list_of_problems(text in "(?s)[ \\[\\]a-z=\"0-9.\n{},é-]{0,120}") {
        if let Err(error) = job::parse_str(&text, Path::new("job.toml")) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn every_good_job_survives_its_toml(
        steps in 1_u64..1_000_000, seed in any::<u64>(), lr in 1e-9_f64..100.0,
        heads in 1_u32..32, per_head in 1_u32..64, micro in 1_u32..64, count in 1_u32..64,
        held_out in 0_u32..500_001, name in "[^\\pC]{1,16}", tied in any::<bool>(),
    ) {
        let mut file = JobFile::new(["/data/\"quoted\" \\ folder"]);
        let spec = &mut file.spec;
        (spec.steps, spec.seed, spec.held_out_ppm, spec.name) = (steps, seed, held_out, name);
        spec.optimizer.lr = lr;
        spec.schedule = job::ScheduleSpec::of(ScheduleKind::Linear, steps, lr);
        spec.batch = job::BatchSpec { global: micro * count, micro };
        spec.eval.every = 0;
        let width = heads * per_head;
        spec.model = ModelSpec::Gpt(GptSpec { heads, width, tied, ..GptSpec::default() });
        prop_assert_eq!(spec.check(), vec![]);
        prop_assert_eq!(job::parse_str(&file.to_toml(), Path::new("/x/job.toml")).ok(), Some(file));
    }
}

#[test]
fn the_documentation_shows_every_field_with_its_default() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let text = std::fs::read_to_string(docs.join("jobs.md")).expect("the documentation");
    let blocks: Vec<&str> =
        text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 3);
    blocks.iter().for_each(|block| drop(read(block)));
    assert_eq!(read(blocks[1]), JobFile::new(["/jobs/corpus"]));
    // Every line that a job file can have stands there, some of them as comments.
    let mut all = JobFile::new(["/jobs/corpus"]);
    (all.init, all.checkpoint_folder) = (Some("a".into()), Some("b".into()));
    all.spec.data_root = Some(p2ptrain_protocol::id::Digest::from_bytes([0; 32]));
    for line in all.to_toml().lines() {
        let start = line.split(" = ").next().unwrap_or_default();
        let shown = blocks[1].lines().any(|it| it.trim_start_matches("# ").starts_with(start));
        assert!(shown, "{line}");
    }
    assert!(text.contains(&message("[model]\n\nheads = 3")));
}

#[test]
fn every_example_is_a_job() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(examples).expect("the examples") {
        let path = entry.expect("an entry").path();
        job::parse(&path).unwrap_or_else(|error| panic!("{error}"));
        count += 1;
    }
    assert!(count >= 3);
}

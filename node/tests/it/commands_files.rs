//! `generate`, `export`, `ledger` and `swarm-key` on files good and bad.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use p2ptrain_kernels::init_params;
use p2ptrain_node::checkpoint::{Alias, import};
use p2ptrain_node::runtime::prepare::program_of;
use p2ptrain_node::swarm_key::SwarmSecret;

use crate::commands::{Place, damage, stderr, stdout};

/// What a terminal is shown of a text.
fn shown(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{FFFD}")
}

#[test]
fn generate_continues_the_prompt_and_a_seed_gives_the_same_text() {
    let place = Place::new();
    place.checkpoint(3);
    let line = "generate --prompt fn --tokens 40 --seed 5";
    let output = place.run(line);
    assert!(output.status.success(), "{}", stderr(&output));
    let value = place.json(line);
    let text = value["text"].as_str().expect("a text");
    assert_eq!(stdout(&output), format!("fn{}\n", shown(text)));
    assert_eq!((&value["prompt"], &value["tokens"]), (&"fn".into(), &40.into()));
    assert_eq!(value["step"], 3);
    assert!(value["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    let other = place.json("generate --prompt fn --tokens 40 --seed 6");
    assert_ne!(other["text"], value["text"]);
}

#[test]
fn generate_reads_its_prompt_from_stdin() {
    let place = Place::new();
    place.checkpoint(1);
    let mut command = place.command(&["generate", "--prompt", "-", "--tokens", "1", "--json"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary was built");
    let mut stdin = child.stdin.take().expect("a pipe was asked for");
    stdin.write_all("longer than the model's window: ä".as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(stdout(&output).contains("longer than the model's window: ä"), "{}", stdout(&output));
}

#[test]
fn the_newest_good_checkpoint_is_taken_and_a_damaged_one_is_told_of() {
    let place = Place::new();
    place.checkpoint(1);
    let newest = place.checkpoint(2);
    assert_eq!(place.json("generate --tokens 1")["step"], 2);
    damage(&newest);
    let output = place.run("generate --tokens 1 --json");
    assert!(output.status.success() && stdout(&output).contains("\"step\":1"));
    assert!(stderr(&output).contains("damaged"), "{}", stderr(&output));
    let folder = place.checkpoints();
    let line = format!("export --checkpoint {} -o m.safetensors", folder.display());
    assert_eq!(place.json(&line)["step"], 1);
}

#[test]
fn what_cannot_be_generated_says_why() {
    let place = Place::with_vocab(128);
    place.refused("generate", 1, &["jobs", "try: "]);
    place.refused("generate --checkpoint nothing.ckpt", 1, &["nothing.ckpt"]);
    place.refused("generate --checkpoint job.toml", 1, &["no checkpoint"]);
    place.refused("generate --checkpoint .", 1, &["no good checkpoint"]);
    let path = place.checkpoint(1);
    place.refused("generate --prompt ä", 2, &["byte 0 is 195", "below 128"]);
    place.refused("generate --prompt=", 2, &["the prompt is empty"]);
    damage(&path);
    let line = format!("generate --checkpoint {}", path.display());
    place.refused(&line, 1, &["damaged", "use an older checkpoint"]);
    place.refused("generate", 1, &["no good checkpoint", "damaged"]);
}

#[test]
fn export_writes_the_weights_and_says_when_it_replaces_a_file() {
    let place = Place::new();
    place.checkpoint(7);
    let value = place.json("export --output model.safetensors");
    // Two layers of 12 tensors, two embeddings, the last norm's two, and the head as an alias.
    assert_eq!((&value["tensors"], &value["step"]), (&29.into(), &7.into()));
    assert_eq!(value["replaced"], false);
    let path = place.path("model.safetensors");
    assert_eq!(value["bytes"], fs::metadata(&path).expect("it was written").len());
    let output = place.run("export --output model.safetensors");
    assert!(stdout(&output).contains("29 tensors"), "{}", stdout(&output));
    assert!(stdout(&output).contains("in place of the file there"), "{}", stdout(&output));

    let program = program_of(&place.job().spec).expect("a small model");
    let aliases = Alias::of_model(&place.job().spec.model);
    let back = import(&path, program.blocks(), program.params(), &aliases).expect("its own model");
    assert_eq!(back, init_params(&program, 7).blocks);
}

#[test]
fn export_of_the_initial_weights_needs_no_checkpoint() {
    let place = Place::new();
    let value = place.json("export --initial job.toml --output first.safetensors");
    assert_eq!((&value["step"], &value["job"]), (&0.into(), &"tiny".into()));
    place.json("bench step --job job.toml --steps 1 --threads 1 --dump dump");
    let read = |name: &str| fs::read(place.path(name)).expect("it was written");
    assert_eq!(read("first.safetensors"), read("dump/init.safetensors"));
    place.refused("export --initial text.txt --output x", 2, &["text.txt"]);
}

#[test]
fn export_that_cannot_write_leaves_nothing_behind() {
    let place = Place::new();
    place.checkpoint(1);
    place.refused("export -o text.txt/model.safetensors", 1, &["export failed", "try: "]);
    place.refused("export -o no/folder/model.safetensors", 1, &["export failed"]);
    fs::create_dir(place.path("taken")).expect("writable");
    place.refused("export -o taken", 1, &["export failed"]);
    let names = fs::read_dir(place.path("")).expect("readable");
    let names: Vec<_> = names.map(|entry| entry.expect("readable").file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains(".tmp")), "{names:?}");
}

#[test]
fn a_swarm_key_is_new_each_time_and_valid() {
    let place = Place::new();
    let output = place.run("swarm-key");
    let secret: SwarmSecret = stdout(&output).trim().parse().expect("a secret");
    let value = place.json("swarm-key");
    let other: SwarmSecret = value["secret"].as_str().expect("text").parse().expect("a secret");
    assert!(secret != other);
    assert_eq!(value["fingerprint"], other.fingerprint());
}

const PEER: &str = "1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a";
const OTHER: &str = "2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b";

/// A ledger of 8 micro-batches of 4 samples with an entry for each of these shares.
fn ledger(first: u64, shares: &[&str]) -> String {
    let mut text = format!("p2ptrain-ledger v1 job={PEER} first={first} items=8 samples=4\n");
    for (step, shares) in (first..).zip(shares) {
        let shares = shares.replace('A', PEER).replace('B', OTHER);
        text += &format!("step={step} epoch=1 attempt={OTHER} shares={shares}\n");
    }
    text
}

#[test]
fn sound_ledgers_prove_what_was_counted() {
    let place = Place::new();
    let folder = place.path("jobs/0123abcd");
    fs::create_dir_all(&folder).expect("writable");
    let (one, two) = (folder.join("ledger-000000000-1.txt"), folder.join("ledger-000000002-9.txt"));
    fs::write(&one, ledger(0, &["A:0..8", "A:0..4;+B:4..8"])).expect("writable");
    fs::write(&two, ledger(2, &["B:0..3;A:3..8"])).expect("writable");
    let value = place.json("ledger");
    assert_eq!(value["sound"], true);
    assert_eq!(value["files"][0]["samples"], 64);
    assert_eq!(value["files"][0]["redone_samples"], 16);
    assert_eq!(value["files"][1]["samples_by_peer"][OTHER], 12);
    assert_eq!(value["jobs"][0]["steps"], serde_json::json!([[0, 3]]));
    let output = place.run(&format!("ledger {}", two.display()));
    assert!(stdout(&output).contains("1 steps, 32 samples, each counted exactly once"));
    assert!(!stdout(&output).contains("ledger-000000000"), "only the file that was named");

    // A node that was killed while it wrote has an unfinished line.
    let text = ledger(2, &["B:0..8", "A:0..8"]);
    fs::write(&two, &text[..text.len() - 9]).expect("writable");
    let value = place.json("ledger");
    assert_eq!(value["files"][1]["cut_short"], true);
    assert_eq!(value["files"][1]["steps"], 1);
}

#[test]
fn a_lost_or_doubled_sample_is_named_and_ends_with_status_1() {
    let place = Place::new();
    let path = place.path("ledger-000000005-1.txt");
    for (shares, said) in [
        (["A:0..8", "A:0..4;B:5..8"], "step 6 lost micro-batches 4..5 (samples 208..212)"),
        (["A:0..8", "A:0..4;B:3..8"], "step 6 doubled micro-batches 3..4 (samples 204..208)"),
        (["A:0..8", "A:0..9"], "step 6: "),
        (["A:0..8", "what"], "expected a share"),
    ] {
        fs::write(&path, ledger(5, &shares)).expect("writable");
        let output = place.run("ledger");
        assert_eq!(output.status.code(), Some(1), "{said}");
        let text = stdout(&output);
        assert!(text.contains("ledger line 3") && text.contains(said), "{text}");
        assert!(text.contains("1 of 1 ledgers are wrong"), "{text}");
        let output = place.run("ledger --json");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(stdout(&output).contains("\"sound\":false"), "{}", stdout(&output));
    }
    let noise: Vec<u8> = (0..300_000_u32).map(|i| (i * i % 251) as u8).collect();
    fs::write(&path, noise).expect("writable");
    assert_eq!(place.run("ledger").status.code(), Some(1));
}

#[test]
fn without_a_ledger_the_audit_fails() {
    let place = Place::new();
    place.refused("ledger", 1, &["no ledger below", "try: "]);
    place.refused("ledger nowhere", 1, &["nowhere", "try: "]);
}

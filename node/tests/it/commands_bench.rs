//! `bench` and `plan` on a tiny job.

use std::fs;

use p2ptrain_node::ipc;
use p2ptrain_node::job::ModelSpec;
use p2ptrain_node::status::{NodeStatus, PeerKind, PeerStatus, StatusHub};
use serde_json::Value;

use crate::commands::{Place, stderr, stdout};

#[test]
fn bench_reports_times_rates_and_memory() {
    let place = Place::new();
    let value = place.json("bench step --job job.toml --steps 3 --threads 1");
    assert_eq!((&value["steps"], &value["precision"]), (&3.into(), &"f32".into()));
    for key in ["step_ms_median", "step_ms_min", "step_ms_max", "tokens_per_s", "gflops_per_s"] {
        assert!(value[key].as_f64().is_some_and(|figure| figure > 0.0), "{key}: {value}");
    }
    assert!(value["rss_peak_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{value}");
    assert!(value["losses"].is_null());
    let output = place.run("bench step --job job.toml --steps 2 --precision bf16 --losses");
    assert!(stdout(&output).contains("step 1: loss 5."), "{}", stdout(&output));
    assert!(stdout(&output).contains("bf16"), "{}", stdout(&output));
}

#[test]
fn the_same_weights_and_batches_give_the_same_losses() {
    let place = Place::new();
    let first = place.json("bench step --job job.toml --steps 6 --threads 2 --dump dump");
    // 6 steps of 8 samples of 16 tokens and one more.
    let bytes = fs::metadata(place.path("dump/batches.i32")).expect("it was written").len();
    assert_eq!(bytes, 6 * 8 * 17 * 4);
    let again = place.json(
        "bench step --job job.toml --steps 6 --threads 1 --losses \
         --init dump/init.safetensors --batches dump/batches.i32",
    );
    assert_eq!(again["losses"], first["losses"]);
    let losses = first["losses"].as_array().expect("a loss for each step");
    assert_eq!(losses.len(), 6);
    assert!(losses[5].as_f64() < losses[0].as_f64(), "it learns: {losses:?}");
}

#[test]
fn what_does_not_fit_the_model_is_refused() {
    let place = Place::new();
    let bench = |rest: &str| format!("bench step --job job.toml --steps 1 {rest}");
    place.refused("bench step --job nothing.toml", 2, &["nothing.toml"]);
    place.refused(&bench("--batches nothing"), 1, &["nothing"]);
    place.refused(&bench("--batches text.txt"), 1, &["no whole steps", "try: "]);
    place.refused(&bench("--init text.txt"), 1, &["text.txt"]);
    place.refused(&bench("--dump text.txt/folder"), 1, &["text.txt/folder"]);
    let mut tokens = vec![0_u8; 8 * 17 * 4];
    tokens[4 * 20 + 1] = 1;
    fs::write(place.path("tokens"), tokens).expect("writable");
    place.refused(&bench("--batches tokens"), 1, &["token 20 is 256", "0 to 255"]);
}

#[test]
fn a_plan_explains_model_memory_work_and_shares() {
    let place = Place::new();
    let value = place.json("plan job.toml --threads 1");
    let ModelSpec::Gpt(gpt) = place.job().spec.model;
    assert_eq!(value["model"]["parameters"], gpt.parameters());
    let blocks = value["model"]["blocks"].as_array().expect("blocks");
    let sum: u64 = blocks.iter().filter_map(|block| block["parameters"].as_u64()).sum();
    assert_eq!((sum, blocks.len()), (gpt.parameters(), 4));
    assert_eq!(value["memory"]["optimizer"], 8 * gpt.parameters());
    assert_eq!(value["work"]["micro_batches"], 4);
    assert!(value["work"]["flops_per_step"].as_u64() > Some(0), "{value}");
    assert_eq!((&value["shares"][0]["first"], &value["shares"][0]["end"]), (&0.into(), &4.into()));
    assert!(value["step_seconds"].as_f64().is_some_and(|s| s > 0.0 && s < 10.0), "{value}");
    assert_eq!(value["exchange_bytes"], 0);
    let output = place.run("plan job.toml");
    for part in ["Model: ", "Memory: ", "Work of a step: ", "Machine: ", "Plan", "h.0 .. h.1, each"]
    {
        assert!(stdout(&output).contains(part), "{part}: {}", stdout(&output));
    }
    assert!(!place.path("jobs").exists() && !place.path("data").exists(), "it leaves nothing");
}

#[test]
fn a_plan_warns_of_what_will_not_work() {
    let place = Place::new();
    let job = fs::read_to_string(place.path("job.toml")).expect("it was written");
    let missing = job.replace("text.txt", "nothing.txt");
    // Activations of some terabytes.
    let large = job
        .replace("layers = 2", "layers = 64")
        .replace("block_size = 16", "block_size = 4096")
        .replace("width = 32", "width = 2304")
        .replace("global = 8\nmicro = 2", "global = 64\nmicro = 64")
        .replace("steps = 20", "steps = 20\nmin_peers = 3");
    let wrong = job.replace("heads = 2", "heads = 5");
    for (name, text) in [("missing", missing), ("large", large), ("wrong", wrong)] {
        fs::write(place.path(name), text).expect("writable");
    }
    let warnings = |value: &Value| value["warnings"].to_string();
    let value = place.json("plan missing --threads 1");
    assert!(warnings(&value).contains("nothing.txt"), "{}", warnings(&value));
    let value = place.json("plan large --threads 1");
    assert!(warnings(&value).contains("does not fit this machine"), "{}", warnings(&value));
    assert!(warnings(&value).contains("the data has about 2 samples"), "{}", warnings(&value));
    assert!(warnings(&value).contains("waits for 3 members"), "{}", warnings(&value));
    assert!(value["measured"].is_null() && value["step_seconds"].is_null());
    place.refused("plan wrong", 2, &["wrong:", "heads"]);
    place.refused("plan nothing", 2, &["nothing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_counts_in_the_peers_of_the_node_that_runs_here() {
    let place = Place::new();
    let peer = |name: &str, id: &str, kind, speed| PeerStatus {
        name: name.into(),
        id: id.into(),
        kind,
        samples_per_s: Some(speed),
        ..PeerStatus::default()
    };
    let mut status = NodeStatus { name: "alice".into(), ..NodeStatus::default() };
    status.peer = "aa".repeat(32);
    status.set_peers(vec![
        peer("alice", "aaaaaaaa", PeerKind::Itself, 10.0),
        peer("bob", "bbbbbbbb", PeerKind::Member, 30.0),
        peer("carol", "cccccccc", PeerKind::Lost, 30.0),
    ]);
    let (_server, _commands) =
        ipc::serve(&place.path(""), StatusHub::new(status)).expect("folder is free");
    let planned = tokio::task::spawn_blocking(move || {
        let text = place.run("plan job.toml --threads 1");
        assert!(text.status.success(), "{}", stderr(&text));
        (place.json("plan job.toml --threads 1"), stdout(&text).to_owned())
    });
    let (value, text) = planned.await.expect("no panic");
    let shares: Vec<(&str, u64)> = value["shares"]
        .as_array()
        .expect("shares")
        .iter()
        .map(|share| {
            let count = share["end"].as_u64().zip(share["first"].as_u64());
            (share["name"].as_str().expect("text"), count.map_or(0, |(end, first)| end - first))
        })
        .collect();
    assert_eq!(shares, [("alice", 1), ("bob", 3)]);
    // Each of two members sends half of the gradient twice.
    let parameters = value["model"]["parameters"].as_u64().expect("a number");
    assert_eq!(value["exchange_bytes"], 4 * parameters);
    assert!(text.contains("bob (bbbbbbbb): 3 micro-batches"), "{text}");
}

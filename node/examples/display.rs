//! Feeds the display, and the local socket, with a made-up run: to look at the display by eye.
//!
//! `cargo run -p p2ptrain-node --example display -- [SECONDS] [--json] [--panic]`; the node's folder
//! is $P2PTRAIN_DIR, by default `display-example` in the temporary folder, so that
//! `p2ptrain watch --dir FOLDER` can follow it.

use std::path::PathBuf;
use std::time::Duration;

use p2ptrain_node::dashboard::{Dashboard, Mode};
use p2ptrain_node::ipc::{self, IpcCommand};
use p2ptrain_node::status::{
    CheckpointStatus, EventLevel, JobStatus, LinkStatus, NodeStatus, PeerKind, PeerStatus, Phase,
    Slice, StatusHub, StepMs, StepReport, unix_ms,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let seconds: u64 = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(20);
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let dir = std::env::var_os("P2PTRAIN_DIR")
        .map_or_else(|| std::env::temp_dir().join("display-example"), PathBuf::from);

    p2ptrain_node::logging::init(Some(&dir), p2ptrain_node::cli::LogLevel::Debug)?;
    let hub = StatusHub::new(start());
    let (server, mut commands) = ipc::serve(&dir, hub.clone())?;
    let output = p2ptrain_node::cli::Output::new(&global(has("--json")));
    let mut display = Dashboard::new(Mode::of(&output));
    display.note("other machines join by: p2ptrain join --peer 192.168.1.20:4001")?;

    let steps = seconds * 10;
    let mut waiting = None;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    for step in 1..=steps {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            _ = &mut interrupt => break,
            Some(command) = commands.recv() => match command {
                IpcCommand::Leave { reply } => { waiting = Some(reply); break }
                IpcCommand::Stop { reply } => { reply.done("stopped"); break }
                IpcCommand::Submit { reply, .. } => {
                    reply.refuse(ipc::Refusal::new("this node has a job").hint("leave first"));
                }
            },
        }
        hub.update(|status| advance(status, step, steps));
        if step == steps / 2 {
            hub.event(EventLevel::Warn, "carol was lost: its process is gone");
            tracing::warn!("a warning while the display holds the terminal");
            assert!(!has("--panic"), "a panic as asked for");
        }
        if step == steps * 3 / 4 {
            hub.event(EventLevel::Good, "carol joined again, 0.8 s after its start");
        }
        display.draw(&hub.snapshot(), "")?;
    }
    hub.update(|status| status.phase = Phase::Done);
    display.draw(&hub.snapshot(), "")?;
    if let Some(reply) = waiting {
        reply.done("left after step 5");
    }
    display.finish()?;
    server.shutdown().await;
    Ok(())
}

fn global(json: bool) -> p2ptrain_node::cli::Global {
    use clap::Parser as _;

    let mut line = vec!["p2ptrain", "status"];
    if json {
        line.push("--json");
    }
    p2ptrain_node::cli::Cli::parse_from(line).global
}

fn start() -> NodeStatus {
    NodeStatus {
        name: "alice".into(),
        peer: "12D3KooWQ3fakefakefakefakefakefakefake".into(),
        swarm: "a1b2c3d4".into(),
        addresses: vec!["/ip4/192.168.1.20/tcp/4001".into()],
        join_command: "p2ptrain join --peer 192.168.1.20:4001".into(),
        since_ms: unix_ms(),
        phase: Phase::Training,
        job: Some(JobStatus { name: "tiny-gpt".into(), ..JobStatus::default() }),
        ..NodeStatus::default()
    }
}

fn advance(status: &mut NodeStatus, step: u64, steps: u64) {
    let t = step as f32 / steps as f32;
    let lost = (0.5..0.75).contains(&t);
    let loss = 1.6 + 3.9 * (-6.0 * t).exp() + 0.1 * (step as f32 * 12.9898).sin();
    let step_ms = StepMs { total: 100.0, compute: 82.0, exchange_wait: 9.0, apply: 5.0 };
    let report =
        StepReport { step, samples: 64, loss, lr: 1e-3 * (1.0 - t), grad_norm: 0.8, step_ms };
    let job = status.job.get_or_insert_default();
    job.steps = steps;
    if step == 1 {
        job.record_eval(0, 5.55);
    }
    job.record_step(&report);
    if step.is_multiple_of(20) {
        job.record_eval(step, loss + 0.15);
        let path = format!("/data/alice/checkpoints/step-{step}");
        status.events.push(EventLevel::Good, format!("checkpoint {path}"));
        status.checkpoint = Some(CheckpointStatus { path, step });
    }
    status.ledger.steps = step;
    status.ledger.samples = step * 64;
    let bounds: &[u32] = if lost { &[0, 9, 16, 16] } else { &[0, 6, 11, 16] };
    let peers = ["alice", "bob", "carol"].into_iter().enumerate().map(|(i, name)| {
        let (first, end) = (bounds[i], bounds[i + 1]);
        let kind = match i {
            0 => PeerKind::Itself,
            2 if lost => PeerKind::Lost,
            _ => PeerKind::Member,
        };
        PeerStatus {
            name: name.into(),
            id: format!("12D3Koo{i}"),
            kind,
            slice: (end > first).then_some(Slice { first, end, of: 16 }),
            samples_per_s: (end > first).then_some((end - first) as f32 * 40.0),
            link: Some(LinkStatus { rtt_ms: 0.4, in_mb_per_s: 61.0, out_mb_per_s: 60.2 }),
            state: String::new(),
        }
    });
    status.set_peers(peers.collect());
}

//! `p2ptrain plan`: what a job would do on this machine and its peers. Trains nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use p2ptrain_kernels::exec::training_program;
use p2ptrain_kernels::op::matmul;
use p2ptrain_kernels::primitive::pool::Pool;
use p2ptrain_kernels::{Executor, Program, init_params};
use p2ptrain_protocol::id::{Incarnation, PeerId};
use p2ptrain_protocol::limits::{MEMBERS_MAX, US_PER_MICROBATCH_MAX};
use p2ptrain_protocol::planner;
use p2ptrain_protocol::view::Member;
use serde::Serialize;

use super::bench::{Trainer, fill_random, median};
use crate::cli::{
    ExitKind, Global, Output, PlanArgs, UsageError, human_bytes, human_duration, human_number,
};
use crate::data::Source;
use crate::ipc::{self, IpcError};
use crate::job::{self, JobFile, JobSpec};
use crate::optimizer::Optimizer;
use crate::profile::{self, DeviceProfile};
use crate::runtime::prepare::program_of;
use crate::status::{NodeStatus, PeerKind};

/// Micro-batches that are measured at most, and how long.
const MEASURED_MAX: usize = 5;
const MEASURE: Duration = Duration::from_secs(2);

/// Explains a job.
///
/// # Errors
/// The job file is wrong, or the model cannot be built.
pub(super) async fn plan(global: &Global, args: &PlanArgs) -> anyhow::Result<ExitKind> {
    let file = job::parse(&args.job).map_err(|error| UsageError(error.to_string()))?;
    let threads = args.threads.map_or_else(profile::usable_cores, usize::from);
    let mut warnings = Vec::new();
    let status = status_of(&global.node_dir(), &mut warnings).await;
    let report = Report::new(&file, threads, status.as_ref(), warnings)?;
    Output::new(global).result(&report.text(), &report)?;
    Ok(ExitKind::Success)
}

/// The node that runs here, if one does.
async fn status_of(dir: &Path, warnings: &mut Vec<String>) -> Option<NodeStatus> {
    match ipc::status(dir).await {
        Ok(status) => {
            if status.job.is_some() {
                warnings.push(
                    "the node here is training: the measurement below shares the cores with it"
                        .to_owned(),
                );
            }
            Some(status)
        }
        Err(IpcError::NotRunning { .. }) => None,
        Err(error) => {
            warnings.push(format!("the node here was not asked: {error}"));
            None
        }
    }
}

/// The whole explanation; also its JSON form.
#[derive(Debug, Serialize)]
struct Report {
    job: String,
    model: Model,
    memory: Memory,
    work: Work,
    machine: DeviceProfile,
    /// None where the model was not run, as it does not fit.
    measured: Option<Measured>,
    shares: Vec<Share>,
    /// Predicted time of a step without the exchange; none without a measurement.
    step_seconds: Option<f64>,
    /// Bytes that each member sends in a step's exchange of gradients.
    exchange_bytes: u64,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Model {
    parameters: u64,
    blocks: Vec<Block>,
}

#[derive(Debug, Serialize)]
struct Block {
    name: String,
    parameters: u64,
}

/// Bytes on this machine while it trains.
#[derive(Debug, Serialize)]
struct Memory {
    parameters: u64,
    gradients: u64,
    optimizer: u64,
    activations: u64,
    /// A copy of parameters and optimizer state while a checkpoint is written.
    checkpoint_copy: u64,
    total: u64,
    available: u64,
}

#[derive(Debug, Serialize)]
struct Work {
    steps: u64,
    samples_per_step: u32,
    tokens_per_step: u64,
    micro_batches: u32,
    flops_per_micro_batch: u64,
    flops_per_step: u64,
}

#[derive(Debug, Serialize)]
struct Measured {
    micro_batches: usize,
    us_per_micro_batch: u64,
    us_per_update: u64,
    flops_per_s: u64,
}

/// What one member would do.
#[derive(Debug, Serialize)]
struct Share {
    name: String,
    id: String,
    first: u32,
    end: u32,
    us_per_micro_batch: u64,
    finish_us: u64,
    why: String,
}

impl Report {
    fn new(
        file: &JobFile,
        threads: usize,
        status: Option<&NodeStatus>,
        mut warnings: Vec<String>,
    ) -> anyhow::Result<Self> {
        let spec = &file.spec;
        let program = program_of(spec)?;
        let machine = measure_machine(threads);
        let memory = Memory::of(spec, &program, machine.memory_bytes)?;
        let fits = memory.total <= memory.available;
        if !fits {
            warnings.push(format!(
                "does not fit this machine: needs {}, {} can be had; smaller micro-batches (batch.micro) \
                 need less for activations",
                human_bytes(memory.total),
                human_bytes(memory.available)
            ));
        }
        check_data(file, &mut warnings);
        let flops = training_program(&program)?.flops();
        let measured = if fits { Some(measure_model(spec, &program, threads)?) } else { None };
        let members = members(status, measured.as_ref());
        let (shares, finish_us) = share_out(spec, &members);
        if members.len() < spec.min_peers as usize {
            warnings.push(format!(
                "waits for {} members (min_peers) before the first step; {} known",
                spec.min_peers,
                members.len()
            ));
        }
        let parameters = program.param_elements() as u64;
        let step_seconds =
            measured.as_ref().map(|it| (finish_us + it.us_per_update) as f64 / 1e6);
        let peers = members.len() as u64;
        let micro_batches = spec.batch.micro_batches();
        Ok(Self {
            job: spec.name.clone(),
            model: Model {
                parameters,
                blocks: program
                    .blocks()
                    .iter()
                    .map(|it| Block { name: it.name.clone(), parameters: it.len as u64 })
                    .collect(),
            },
            memory,
            work: Work {
                steps: spec.steps,
                samples_per_step: spec.batch.global,
                tokens_per_step: u64::from(spec.batch.global) * u64::from(spec.model.block_size()),
                micro_batches,
                flops_per_micro_batch: flops,
                flops_per_step: flops * u64::from(micro_batches),
            },
            machine,
            measured,
            shares,
            step_seconds,
            exchange_bytes: 2 * 4 * parameters * (peers - 1) / peers,
            warnings,
        })
    }
}

/// Figures of this machine, with the kernels that training uses.
fn measure_machine(threads: usize) -> DeviceProfile {
    let pool = Pool::new(threads);
    let mut scratch = matmul::Scratch::default();
    profile::measure(threads, |n, a, b, c| {
        let (a, b) = (matmul::Matrix::plain(a), matmul::Matrix::plain(b));
        let size = matmul::Size { m: n, n, k: n };
        matmul::f32(&pool, &mut scratch, size, a, b, c, matmul::Store::Set);
    })
}

impl Memory {
    fn of(spec: &JobSpec, program: &Program, available: u64) -> anyhow::Result<Self> {
        let parameters = 4 * program.param_elements() as u64;
        let optimizer =
            if Optimizer::has_second_moment(spec) { 2 * parameters } else { parameters };
        let activations = Executor::bytes_needed(program)? as u64;
        let checkpoint_copy = parameters + optimizer;
        let gradients = parameters;
        let total = parameters + gradients + optimizer + activations + checkpoint_copy;
        Ok(Self {
            parameters,
            gradients,
            optimizer,
            activations,
            checkpoint_copy,
            total,
            available,
        })
    }
}

/// Whether there are files to train on, without reading them.
fn check_data(file: &JobFile, warnings: &mut Vec<String>) {
    let source = match Source::open(&file.data) {
        Ok(source) => source,
        Err(error) => return warnings.push(format!("the data cannot be used: {error}")),
    };
    let spec = &file.spec;
    let sample = u64::from(spec.model.block_size()) + 1;
    // A byte is a token.
    let samples = source.bytes() / sample;
    let wanted = u64::from(spec.batch.global).saturating_mul(spec.steps);
    if samples < u64::from(spec.batch.global) {
        warnings.push(format!(
            "the data has about {samples} samples, less than one step's {}: each step repeats some",
            spec.batch.global
        ));
    } else if wanted > samples.saturating_mul(100) {
        warnings.push(format!(
            "the job goes {} times through the data's {} samples",
            wanted / samples,
            human_number(samples)
        ));
    }
}

/// Runs a few micro-batches and updates on random tokens; the state is thrown away.
fn measure_model(spec: &JobSpec, program: &Program, threads: usize) -> anyhow::Result<Measured> {
    let mut trainer = Trainer::new(spec, program, init_params(program, spec.seed), threads)?;
    let (vocab, width) = (spec.model.vocab(), spec.model.block_size() as usize);
    let mut fill = |item: u32, tokens: &mut [i32], targets: &mut [i32]| {
        fill_random(vocab, width, u64::from(item), tokens, targets);
        Ok(())
    };
    // The first one pays for caches and memory that was never touched.
    trainer.micro_batch(0, &mut fill)?;
    trainer.apply();
    let (mut computes, mut updates) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while computes.is_empty() || (computes.len() < MEASURED_MAX && begun.elapsed() < MEASURE) {
        let started = Instant::now();
        trainer.micro_batch(0, &mut fill)?;
        computes.push(started.elapsed());
        updates.push(trainer.apply());
    }
    let compute = median(&computes);
    Ok(Measured {
        micro_batches: computes.len(),
        us_per_micro_batch: (compute.as_micros() as u64).max(1),
        us_per_update: median(&updates).as_micros() as u64,
        flops_per_s: (trainer.flops() as f64 / compute.as_secs_f64().max(1e-9)) as u64,
    })
}

/// A member of the plan, with its name.
struct Named {
    name: String,
    member: Member,
}

/// This machine as measured, and the peers of its node by their speed relative to it.
fn members(status: Option<&NodeStatus>, measured: Option<&Measured>) -> Vec<Named> {
    let us = measured.map_or(0, |it| it.us_per_micro_batch);
    let named = |name: &str, peer: PeerId, us: f64| Named {
        name: name.to_owned(),
        member: Member {
            peer,
            incarnation: Incarnation(0),
            us_per_microbatch: us.clamp(0.0, f64::from(US_PER_MICROBATCH_MAX)) as u32,
            synced: true,
        },
    };
    let Some(status) = status else {
        return vec![named("this machine", PeerId::from_bytes([0; 32]), us as f64)];
    };
    let own = status.peers.iter().find(|peer| peer.kind == PeerKind::Itself);
    let own_speed = own.and_then(|peer| peer.samples_per_s).filter(|speed| *speed > 0.0);
    let me = status.peer.parse().unwrap_or(PeerId::from_bytes([0; 32]));
    let mut members = vec![named(&status.name, me, us as f64)];
    let others = status
        .peers
        .iter()
        .filter(|peer| !matches!(peer.kind, PeerKind::Itself | PeerKind::Lost));
    for peer in others.take(MEMBERS_MAX - 1) {
        let speed = peer.samples_per_s.filter(|speed| *speed > 0.0);
        // A time of 0 says that it was not measured.
        let factor = own_speed.zip(speed).map_or(0.0, |(own, speed)| f64::from(own / speed));
        members.push(named(&peer.name, peer_of_short(&peer.id), us as f64 * factor));
    }
    members
}

/// A peer with these first characters of its id: a status tells no more, and a plan's ties need no
/// more.
fn peer_of_short(id: &str) -> PeerId {
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(id.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    PeerId::from_bytes(bytes)
}

/// Who computes what, and when the last has finished, in µs.
fn share_out(spec: &JobSpec, members: &[Named]) -> (Vec<Share>, u64) {
    let plain: Vec<Member> = members.iter().map(|named| named.member.clone()).collect();
    let (ranges, reason) = planner::assign(&plain, spec.batch.micro_batches(), 0);
    let mut shares: Vec<Share> = members
        .iter()
        .zip(ranges)
        .filter_map(|(named, range)| {
            let reason = reason.shares.iter().find(|it| it.peer == named.member.peer)?;
            let why = match reason.why {
                planner::Why::Speed => "its measured speed",
                planner::Why::Unmeasured => "not measured, taken to be as slow as the slowest",
                planner::Why::NotSynced => "does not hold the parameters",
                planner::Why::TooSlow => "one more would outlast the step",
            };
            Some(Share {
                name: named.name.clone(),
                id: named.member.peer.short(),
                first: range.start,
                end: range.end,
                us_per_micro_batch: reason.us_per_item.into(),
                finish_us: reason.finish_us,
                why: why.to_owned(),
            })
        })
        .collect();
    shares.sort_by_key(|share| share.first);
    (shares, reason.finish_us)
}

impl Report {
    fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a string can't fail.
        let _ = self.write(&mut out);
        out.trim_end().to_owned()
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "Job {:?}", self.job)?;
        self.write_model(out)?;
        self.write_work(out)?;
        self.write_shares(out)?;
        if !self.warnings.is_empty() {
            writeln!(out, "\nWarnings")?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(out, "  {warning}"))
    }

    fn write_model(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nModel: {} parameters", human_number(self.model.parameters))?;
        // Layers of one size, which most are, share a line.
        for same in self.model.blocks.chunk_by(|a, b| a.parameters == b.parameters) {
            let (first, last) = (&same[0], &same[same.len() - 1]);
            let name = if same.len() == 1 {
                first.name.clone()
            } else {
                format!("{} .. {}, each", first.name, last.name)
            };
            writeln!(out, "  {name:<24} {:>15}", human_number(first.parameters))?;
        }
        let memory = &self.memory;
        writeln!(
            out,
            "\nMemory: {} of {} available",
            human_bytes(memory.total),
            human_bytes(memory.available)
        )?;
        for (name, bytes) in [
            ("parameters", memory.parameters),
            ("gradients", memory.gradients),
            ("optimizer", memory.optimizer),
            ("activations", memory.activations),
            ("copy for a checkpoint", memory.checkpoint_copy),
        ] {
            writeln!(out, "  {name:<24} {:>15}", human_bytes(bytes))?;
        }
        Ok(())
    }

    fn write_work(&self, out: &mut String) -> std::fmt::Result {
        let (work, machine) = (&self.work, &self.machine);
        writeln!(
            out,
            "\nWork of a step: {:.1} GFLOP, {} samples, {} tokens, {} micro-batches of {:.1} GFLOP",
            work.flops_per_step as f64 / 1e9,
            work.samples_per_step,
            human_number(work.tokens_per_step),
            work.micro_batches,
            work.flops_per_micro_batch as f64 / 1e9,
        )?;
        writeln!(
            out,
            "\nMachine: {}, {} threads of {} cores, {:.0} GFLOP/s in f32, copies {:.1} GB/s",
            machine.name,
            machine.threads,
            machine.cores,
            machine.f32_flops_per_s as f64 / 1e9,
            machine.copy_bytes_per_s as f64 / 1e9,
        )?;
        let Some(measured) = &self.measured else {
            return writeln!(out, "  the model was not run here");
        };
        writeln!(
            out,
            "  a micro-batch takes {} ({:.0} GFLOP/s, median of {}), the update {}",
            human_us(measured.us_per_micro_batch),
            measured.flops_per_s as f64 / 1e9,
            measured.micro_batches,
            human_us(measured.us_per_update),
        )
    }

    fn write_shares(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nPlan")?;
        for share in &self.shares {
            writeln!(
                out,
                "  {} ({}): {} micro-batches, {}..{}, in {}: {}",
                share.name,
                share.id,
                share.end - share.first,
                share.first,
                share.end,
                human_us(share.finish_us),
                share.why,
            )?;
        }
        let Some(step) = self.step_seconds else { return Ok(()) };
        let exchange = match self.exchange_bytes {
            0 => String::new(),
            bytes => format!(", besides an exchange of {} by each member", human_bytes(bytes)),
        };
        writeln!(
            out,
            "  a step takes {}{exchange}; {} steps take {}",
            human_us((step * 1e6) as u64),
            human_number(self.work.steps),
            human_duration((step * self.work.steps as f64) as f32),
        )
    }
}

/// A short time with three digits.
fn human_us(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

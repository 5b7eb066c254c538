//! `p2ptrain export`: weights for PyTorch.

use std::path::Path;

use anyhow::Context as _;
use p2ptrain_kernels::{Params, Program, init_params};
use p2ptrain_protocol::id::Step;
use serde_json::json;

use super::find_checkpoint;
use crate::checkpoint::{self, Alias};
use crate::cli::{
    ExitKind, ExportArgs, Global, Hint as _, Output, UsageError, human_bytes, human_number,
};
use crate::job::{self, JobFile, JobSpec};
use crate::logging;
use crate::runtime::prepare::program_of;

/// Weights with what describes them.
pub(super) struct Weights {
    pub(super) job: JobSpec,
    /// Committed steps.
    pub(super) step: Step,
    pub(super) program: Program,
    pub(super) params: Params,
}

/// Writes the weights of a checkpoint, or the initial ones of a job, as a safetensors file.
///
/// # Errors
/// There is no good checkpoint, the job file is wrong, or the file cannot be written.
pub(super) async fn export(global: &Global, args: &ExportArgs) -> anyhow::Result<ExitKind> {
    let weights = match &args.initial {
        Some(job) => initial(job)?,
        None => Weights::of_checkpoint(global, args.checkpoint.as_deref())?,
    };
    let replaced = args.output.exists();
    let aliases = Alias::of_model(&weights.job.model);
    let about = checkpoint::export_metadata(&weights.job, weights.step);
    let (params, tensors) = (&weights.params.blocks, weights.program.params());
    checkpoint::export(&args.output, params, tensors, &aliases, &about)
        .hint("name a file in a folder that you may write to, by --output")?;
    let bytes = args.output.metadata().map_or(0, |metadata| metadata.len());
    let count = tensors.len() + aliases.len();
    let path = args.output.display();
    let text = format!(
        "{path}: {count} tensors, {} parameters, {} ({bytes} bytes){}\n\
         job {:?} after {} steps",
        human_number(weights.program.param_elements() as u64),
        human_bytes(bytes),
        if replaced { ", in place of the file there" } else { "" },
        weights.job.name,
        weights.step,
    );
    let value = json!({
        "path": path.to_string(),
        "tensors": count,
        "parameters": weights.program.param_elements(),
        "bytes": bytes,
        "replaced": replaced,
        "job": weights.job.name,
        "step": weights.step.0,
    });
    Output::new(global).result(&text, &value)?;
    Ok(ExitKind::Success)
}

impl Weights {
    /// Those of a checkpoint; the newest of the node where none is named.
    pub(super) fn of_checkpoint(global: &Global, path: Option<&Path>) -> anyhow::Result<Self> {
        // Damaged checkpoints that were passed over are told of on stderr.
        logging::init(None, global.log)?;
        let checkpoint = find_checkpoint(global, path)?;
        let about = checkpoint.about;
        let program = Program::decode(&about.program)
            .context("the checkpoint's program is of another version of p2ptrain")?;
        let params = Params { blocks: checkpoint.state.params };
        let fits = program.blocks().len() == params.blocks.len()
            && program.blocks().iter().zip(&params.blocks).all(|(a, b)| a.len == b.len());
        anyhow::ensure!(fits, "the checkpoint's weights do not have the shape of its program");
        Ok(Self { job: about.job, step: about.step, program, params })
    }
}

/// The weights that a job starts from.
fn initial(path: &Path) -> anyhow::Result<Weights> {
    let file = job::parse(path).map_err(|error| UsageError(error.to_string()))?;
    let program = program_of(&file.spec)?;
    let params = initial_params(&file, &program)?;
    Ok(Weights { job: file.spec, step: Step(0), program, params })
}

/// From the job's file of weights, or drawn from its seed.
pub(super) fn initial_params(file: &JobFile, program: &Program) -> anyhow::Result<Params> {
    let Some(path) = &file.init else { return Ok(init_params(program, file.spec.seed)) };
    let aliases = Alias::of_model(&file.spec.model);
    let blocks = checkpoint::import(path, program.blocks(), program.params(), &aliases)?;
    Ok(Params { blocks })
}

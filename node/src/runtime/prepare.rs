//! From a job to what runs it: program, data store, executor, state. Slow; run it on a blocking
//! thread.

use std::path::Path;
use std::sync::Arc;

use p2ptrain_kernels::model::{self, GptConfig};
use p2ptrain_kernels::{Executor, Params, Precision, Program, init_params};
use p2ptrain_protocol::checkpoint::StateLayout;
use p2ptrain_protocol::id::{JobId, Step};
use p2ptrain_protocol::peer::JobGeometry;

use crate::checkpoint::{self, Alias, Checkpoint};
use crate::data::{Manifest, Progress, Samples, Source, Store};
use crate::job::{self, JobFile, JobSpec, ModelSpec};
use crate::optimizer::Optimizer;
use crate::request::Package;
use crate::state::TrainState;

/// Everything that a job needs on this node.
pub struct Prepared {
    pub(super) spec: JobSpec,
    pub(super) id: JobId,
    pub(super) program: Program,
    pub(super) package: Package,
    pub(super) store: Arc<Store>,
    pub(super) samples: Samples,
    pub(super) executor: Executor,
    pub(super) state: TrainState,
    pub(super) layout: StateLayout,
}

/// The state of a node that has none yet: no step asks for it.
const NO_STEP: Step = Step(u64::MAX);

impl Prepared {
    /// A job from its file, on the machine that has the data; from its beginning, or from a
    /// checkpoint.
    ///
    /// # Errors
    /// The data can't be read or doesn't fit, or the model can't be built.
    pub fn found(
        file: JobFile,
        checkpoint: Option<Checkpoint>,
        stores: &Path,
        threads: usize,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<Self> {
        let mut spec = file.spec;
        let known = spec.data_root.and_then(|root| Store::open(stores, root).ok());
        let store = match known.filter(|store| store.missing_count() == 0) {
            Some(store) => store,
            None => Store::build(stores, &Source::open(&file.data)?, progress)?,
        };
        spec.data_root = Some(store.root());
        let program = program_of(&spec)?;
        let mut state =
            TrainState::new(init_params(&program, spec.seed), Optimizer::has_second_moment(&spec));
        if let Some(path) = &file.init {
            let aliases = Alias::of_model(&spec.model);
            let blocks = checkpoint::import(path, program.blocks(), program.params(), &aliases)?;
            state.params = Params { blocks };
            spec.init_digest = state.block_digests().first().copied();
        }
        Self::of_state(spec, program, store, state, threads, checkpoint)
    }

    /// A job that a peer sent.
    ///
    /// # Errors
    /// What was sent is not a valid job of this version, or its parts don't belong together.
    pub fn joined(package: Package, stores: &Path, threads: usize) -> anyhow::Result<Self> {
        let spec = JobSpec::decode(&package.job)?;
        let root = spec.data_root.ok_or_else(|| anyhow::anyhow!("the job names no data"))?;
        let manifest = Manifest::decode(&package.data, root)?;
        let store = Store::create(stores, &manifest)?;
        let program = Program::decode(&package.program)?;
        if program.id() != program_of(&spec)?.id() {
            anyhow::bail!("the program that was sent is not that of the job's model");
        }
        let second = Optimizer::has_second_moment(&spec);
        let mut state = TrainState::new(Params::zeros(&program), second);
        state.step = NO_STEP;
        Self::of_state(spec, program, store, state, threads, None)
    }

    fn of_state(
        spec: JobSpec,
        program: Program,
        store: Store,
        mut state: TrainState,
        threads: usize,
        checkpoint: Option<Checkpoint>,
    ) -> anyhow::Result<Self> {
        let layout = state.borrow().layout()?;
        if let Some(checkpoint) = checkpoint {
            if checkpoint.manifest.layout != layout {
                anyhow::bail!("the checkpoint's state does not have the shape of the job's model");
            }
            state = TrainState::restore(checkpoint.about.step, checkpoint.state);
        }
        let store = Arc::new(store);
        let samples = Samples::new(Arc::clone(&store), &spec)?;
        let executor = Executor::new(&program, threads, precision_of(&spec))?;
        let package = Package {
            job: spec.encode(),
            program: program.encode(),
            data: store.manifest().encode(),
        };
        let id = JobId::of_job(&package.job);
        Ok(Self { spec, id, program, package, store, samples, executor, state, layout })
    }

    /// The numbers that the step protocol needs.
    pub(super) fn geometry(&self) -> JobGeometry {
        let held_out = self.samples.held_out_len() > 0;
        JobGeometry {
            job: self.id,
            micro_batches: self.spec.batch.micro_batches(),
            steps: self.spec.steps,
            bucket_lens: self.layout.block_lens().to_vec(),
            eval_every: self.spec.eval.every,
            eval_items: if held_out { self.spec.eval.batches } else { 0 },
            members_min: self.spec.min_peers,
        }
    }
}

/// The program that trains a job's model, for one micro-batch.
///
/// # Errors
/// The model is larger than a program may be.
pub fn program_of(spec: &JobSpec) -> Result<Program, model::ModelError> {
    model::gpt(&gpt_config(spec), spec.batch.micro as usize)
}

/// The kernels' form of the model's arguments.
pub fn gpt_config(spec: &JobSpec) -> GptConfig {
    let ModelSpec::Gpt(gpt) = &spec.model;
    GptConfig {
        vocab: gpt.vocab as usize,
        block_size: gpt.block_size as usize,
        layers: gpt.layers as usize,
        heads: gpt.heads as usize,
        width: gpt.width as usize,
        bias: gpt.bias,
        tied: gpt.tied,
    }
}

/// The kernels' form of the precision.
pub fn precision_of(spec: &JobSpec) -> Precision {
    match spec.precision {
        job::Precision::F32 => Precision::F32,
        job::Precision::Bf16 => Precision::Bf16,
    }
}

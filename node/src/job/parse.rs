//! `job.toml` → [`JobFile`], with every mistake at its line.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use p2ptrain_protocol::id::Digest;

use self::reader::{Reader, Section};
use super::check::limits::FILE_BYTES_MAX;
use super::error::JobError;
use super::spec::{
    BatchSpec, CheckpointSpec, DataFormat, DataSpec, DecayRule, EvalSpec, GptSpec, JobFile,
    JobSpec, ModelSpec, OptimizerKind, OptimizerSpec, Precision, ScheduleKind, ScheduleSpec,
};

mod reader;

/// Reads a job file.
///
/// Paths in it are relative to its own folder. All mistakes of the file are reported together.
pub fn parse(path: &Path) -> Result<JobFile, JobError> {
    let read = |source| JobError::Read { path: path.to_owned(), source };
    // A bounded read instead of a look at the length: pipes and devices have none.
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(JobError::TooLarge { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    let text = String::from_utf8(bytes).map_err(|error| JobError::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    parse_str(&text, path)
}

/// Reads the text of a job file; `path` names it in errors and is the start of relative paths.
pub fn parse_str(text: &str, path: &Path) -> Result<JobFile, JobError> {
    let mut reader = Reader::new(text, path.display().to_string());
    let Some(document) = reader.document() else {
        return Err(JobError::Invalid { problems: reader.finish() });
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = read_file(&mut reader, Section::root(&document), folder);
    for violation in file.spec.check() {
        reader.violation(&violation);
    }
    let problems = reader.finish();
    if problems.is_empty() { Ok(file) } else { Err(JobError::Invalid { problems }) }
}

fn read_file(reader: &mut Reader<'_>, mut top: Section<'_>, folder: &Path) -> JobFile {
    let default = JobSpec::default();
    let name = reader.text(&mut top, "name").unwrap_or(default.name);
    let steps = reader.whole(&mut top, "steps").unwrap_or(default.steps);
    let clip = match reader.real(&mut top, "clip") {
        None => default.clip,
        // Also negative zero, so that one job has one form.
        Some(0.0) => None,
        other => other,
    };
    let precision = [("f32", Precision::F32), ("bf16", Precision::Bf16)];
    let precision = reader.choice(&mut top, "precision", &precision).unwrap_or(default.precision);
    let seed = reader.whole(&mut top, "seed").unwrap_or(default.seed);
    let min_peers = reader.whole32(&mut top, "min_peers").unwrap_or(default.min_peers);

    let (model, init) = read_model(reader, &mut top, folder);
    let data = read_data(reader, &mut top, folder);
    let batch = read_batch(reader, &mut top);
    let optimizer = read_optimizer(reader, &mut top);
    let schedule = read_schedule(reader, &mut top, steps, optimizer.lr);
    let eval = read_eval(reader, &mut top, data.held_out_ppm);
    let (checkpoint, checkpoint_folder) = read_checkpoint(reader, &mut top, folder);
    reader.close(top);
    JobFile {
        spec: JobSpec {
            name,
            model,
            batch,
            steps,
            optimizer,
            schedule,
            clip,
            precision,
            seed,
            held_out_ppm: data.held_out_ppm,
            eval,
            checkpoint,
            min_peers,
            data_root: data.root,
            init_digest: None,
        },
        data: data.spec,
        checkpoint_folder,
        init,
    }
}

fn read_model(
    reader: &mut Reader<'_>,
    top: &mut Section<'_>,
    folder: &Path,
) -> (ModelSpec, Option<PathBuf>) {
    let mut section = top.section(reader, "model");
    let section = &mut section;
    let default = GptSpec::default();
    reader.choice(section, "kind", &[("gpt", ())]);
    let gpt = GptSpec {
        vocab: reader.whole32(section, "vocab").unwrap_or(default.vocab),
        block_size: reader.whole32(section, "block_size").unwrap_or(default.block_size),
        layers: reader.whole32(section, "layers").unwrap_or(default.layers),
        heads: reader.whole32(section, "heads").unwrap_or(default.heads),
        width: reader.whole32(section, "width").unwrap_or(default.width),
        bias: reader.flag(section, "bias").unwrap_or(default.bias),
        tied: reader.flag(section, "tied").unwrap_or(default.tied),
    };
    let init = reader.text(section, "init").map(|path| folder.join(path));
    reader.close(std::mem::take(section));
    (ModelSpec::Gpt(gpt), init)
}

struct Data {
    spec: DataSpec,
    held_out_ppm: u32,
    root: Option<Digest>,
}

fn read_data(reader: &mut Reader<'_>, top: &mut Section<'_>, folder: &Path) -> Data {
    let mut section = top.section(reader, "data");
    let default = DataSpec::default();
    let files = reader.texts(&mut section, "files");
    if files.as_ref().is_none_or(Vec::is_empty) {
        reader.missing(
            &section,
            "files",
            "says which text to train on",
            "a file, a folder, a pattern such as \"books/*.txt\", or a list of them",
        );
    }
    let formats =
        [("auto", DataFormat::Auto), ("text", DataFormat::Text), ("jsonl", DataFormat::Jsonl)];
    let format = reader.choice(&mut section, "format", &formats).unwrap_or(default.format);
    let field = reader.text(&mut section, "field").unwrap_or(default.field);
    let held_out = reader.real(&mut section, "held_out");
    // A value outside of 0 to 1 becomes one that `check` refuses.
    let held_out_ppm = held_out.map_or(JobSpec::default().held_out_ppm, |share| {
        if (0.0..=1.0).contains(&share) { (share * 1e6).round() as u32 } else { u32::MAX }
    });
    let root = reader.digest(&mut section, "root");
    reader.close(section);
    let files = files.unwrap_or_default().into_iter().map(|file| folder.join(file)).collect();
    Data { spec: DataSpec { files, format, field }, held_out_ppm, root }
}

fn read_batch(reader: &mut Reader<'_>, top: &mut Section<'_>) -> BatchSpec {
    let mut section = top.section(reader, "batch");
    let default = JobSpec::default().batch;
    let global = reader.whole32(&mut section, "global").unwrap_or(default.global);
    // A global batch alone is enough: the micro-batch is then its largest divisor up to the default.
    let fitting = (1..=default.micro).rev().find(|micro| global.is_multiple_of(*micro));
    let micro = reader.whole32(&mut section, "micro").or(fitting).unwrap_or(default.micro);
    reader.close(section);
    BatchSpec { global, micro }
}

#[derive(Clone, Copy)]
enum Kind {
    AdamW,
    Sgd,
}

fn read_optimizer(reader: &mut Reader<'_>, top: &mut Section<'_>) -> OptimizerSpec {
    let mut section = top.section(reader, "optimizer");
    let section = &mut section;
    let kinds = [("adamw", Kind::AdamW), ("sgd", Kind::Sgd)];
    let (mut optimizer, kind) = match reader.choice(section, "kind", &kinds) {
        Some(Kind::Sgd) => (OptimizerSpec::sgd(), Kind::Sgd),
        Some(Kind::AdamW) | None => (OptimizerSpec::adamw(), Kind::AdamW),
    };
    match (&mut optimizer.kind, kind) {
        (OptimizerKind::AdamW { beta1, beta2, eps }, Kind::AdamW) => {
            if let Some([first, second]) = reader.pair(section, "betas") {
                (*beta1, *beta2) = (first, second);
            }
            *eps = reader.real(section, "eps").unwrap_or(*eps);
        }
        (OptimizerKind::Sgd { momentum, nesterov }, Kind::Sgd) => {
            *momentum = reader.real(section, "momentum").unwrap_or(*momentum);
            *nesterov = reader.flag(section, "nesterov").unwrap_or(*nesterov);
        }
        _ => unreachable!("the defaults above are of the kind that was read"),
    }
    optimizer.lr = reader.real(section, "lr").unwrap_or(optimizer.lr);
    let decay = reader.real(section, "weight_decay");
    optimizer.weight_decay = decay.unwrap_or(optimizer.weight_decay);
    let rules = [("matrices", DecayRule::Matrices), ("all", DecayRule::All)];
    optimizer.decay = reader.choice(section, "decay", &rules).unwrap_or(optimizer.decay);
    optimizer.no_decay = reader.texts(section, "no_decay").unwrap_or_default();
    reader.close(std::mem::take(section));
    optimizer
}

fn read_schedule(
    reader: &mut Reader<'_>,
    top: &mut Section<'_>,
    steps: u64,
    lr: f64,
) -> ScheduleSpec {
    let mut section = top.section(reader, "schedule");
    let kinds = [
        ("constant", ScheduleKind::Constant),
        ("linear", ScheduleKind::Linear),
        ("cosine", ScheduleKind::Cosine),
    ];
    let kind = reader.choice(&mut section, "kind", &kinds).unwrap_or(ScheduleKind::Cosine);
    let mut schedule = ScheduleSpec::of(kind, steps, lr);
    schedule.warmup = reader.whole(&mut section, "warmup").unwrap_or(schedule.warmup);
    if kind != ScheduleKind::Constant {
        schedule.min_lr = reader.real(&mut section, "min_lr").unwrap_or(schedule.min_lr);
    }
    reader.close(section);
    schedule
}

fn read_eval(reader: &mut Reader<'_>, top: &mut Section<'_>, held_out_ppm: u32) -> EvalSpec {
    let mut section = top.section(reader, "eval");
    let default = JobSpec::default().eval;
    // Without held-out data there is nothing to evaluate on unless the user asks for it by name.
    let every = if held_out_ppm == 0 { 0 } else { default.every };
    let eval = EvalSpec {
        every: reader.whole(&mut section, "every").unwrap_or(every),
        batches: reader.whole32(&mut section, "batches").unwrap_or(default.batches),
    };
    reader.close(section);
    eval
}

fn read_checkpoint(
    reader: &mut Reader<'_>,
    top: &mut Section<'_>,
    folder: &Path,
) -> (CheckpointSpec, Option<PathBuf>) {
    let mut section = top.section(reader, "checkpoint");
    let default = JobSpec::default().checkpoint;
    let spec = CheckpointSpec {
        every: reader.whole(&mut section, "every").unwrap_or(default.every),
        keep: reader.whole32(&mut section, "keep").unwrap_or(default.keep),
    };
    let at = reader.text(&mut section, "folder").map(|path| folder.join(path));
    reader.close(section);
    (spec, at)
}

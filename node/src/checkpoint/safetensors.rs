//! Parameters as safetensors, with the names and shapes of the PyTorch module.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use p2ptrain_kernels::program::{BlockInfo, ParamInfo};
use p2ptrain_protocol::id::Step;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use thiserror::Error;

use super::atomic::AtomicFile;
use super::state::to_bytes;
use crate::data::DiskError;
use crate::job::{JobSpec, ModelSpec};

/// Bytes converted at once.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes of the header of a safetensors file: the format's own bound.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Names listed in an error.
const LISTED_MAX: usize = 8;

/// A second name of a parameter: a PyTorch module with shared weights lists them under both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The second name.
    pub name: String,
    /// The parameter's name.
    pub of: String,
}

impl Alias {
    /// The second names in this model: the output layer of a GPT with tied weights.
    pub fn of_model(model: &ModelSpec) -> Vec<Self> {
        let ModelSpec::Gpt(gpt) = model;
        let head =
            Self { name: "lm_head.weight".to_owned(), of: "transformer.wte.weight".to_owned() };
        if gpt.tied { vec![head] } else { Vec::new() }
    }
}

/// What an exported file says of itself: the job, the step, and the model's arguments as JSON, from
/// which a PyTorch program can build the module.
pub fn export_metadata(job: &JobSpec, step: Step) -> BTreeMap<String, String> {
    let ModelSpec::Gpt(gpt) = &job.model;
    let model = serde_json::json!({
        "kind": "gpt",
        "vocab": gpt.vocab,
        "block_size": gpt.block_size,
        "layers": gpt.layers,
        "heads": gpt.heads,
        "width": gpt.width,
        "bias": gpt.bias,
        "tied": gpt.tied,
    });
    [
        ("p2ptrain.job", job.id().to_hex()),
        ("p2ptrain.name", job.name.clone()),
        ("p2ptrain.step", step.to_string()),
        ("p2ptrain.model", model.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// Why parameters cannot be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The disk refuses.
    #[error("export failed: {0}")]
    Disk(#[from] DiskError),
    /// Two parameters have one name.
    #[error("export failed: the model has two parameters named {name:?}")]
    Twice {
        /// The name.
        name: String,
    },
    /// An alias names no parameter.
    #[error("export failed: there is no parameter {name:?}")]
    NoSuchParameter {
        /// The name.
        name: String,
    },
}

/// Why a file gives no parameters for this model.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file is no safetensors file, or damaged.
    #[error("{} is no whole safetensors file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors are not those of the model.
    #[error("{} does not fit the model: {}", path.display(), mismatches(problems))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Each tensor that is missing, unknown or of another shape or type.
        problems: Vec<String>,
    },
}

/// Writes parameters as a safetensors file, in f32; memory for one piece of a tensor is all it takes.
///
/// `metadata` goes into the file's header beside `format: pt`, which PyTorch's loaders expect.
///
/// # Panics
/// If a tensor lies outside of its block.
pub fn export(
    path: &Path,
    params: &[Vec<f32>],
    tensors: &[ParamInfo],
    aliases: &[Alias],
    metadata: &BTreeMap<String, String>,
) -> Result<(), ExportError> {
    let mut all: Vec<(&str, &ParamInfo)> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for Alias { name, of } in aliases {
        let Some(tensor) = tensors.iter().find(|tensor| tensor.name == *of) else {
            return Err(ExportError::NoSuchParameter { name: of.clone() });
        };
        all.push((name, tensor));
    }
    let mut names = BTreeSet::new();
    if let Some((name, _)) = all.iter().find(|(name, _)| !names.insert(*name)) {
        return Err(ExportError::Twice { name: (*name).to_owned() });
    }
    let mut infos = Vec::new();
    let mut end = 0;
    for (name, tensor) in &all {
        let start = end;
        end += 4 * tensor.range().len();
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape: tensor.shape.dims().to_vec(),
            data_offsets: (start, end),
        };
        infos.push(((*name).to_owned(), info));
    }
    let mut about: HashMap<String, String> =
        metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    about.insert("format".to_owned(), "pt".to_owned());
    let header = Metadata::new(Some(about), infos).expect("offsets follow from the shapes");
    let mut header = serde_json::to_vec(&header).expect("names and numbers are plain JSON");
    // Tensors begin at a multiple of 8 bytes, so that readers can map the file.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = AtomicFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut buffer = Vec::new();
    for (_, tensor) in all {
        for piece in params[tensor.block][tensor.range()].chunks(PIECE_BYTES / 4) {
            to_bytes(piece, &mut buffer);
            file.write(&buffer)?;
        }
    }
    Ok(file.commit()?)
}

/// Reads the model's parameters from a safetensors file of f32, f16 or bf16 tensors.
///
/// `blocks` and `tensors` are those of the program. Every parameter must be there in its shape; of two
/// aliased names one is enough. Attention masks, which some modules store, are passed over; any other
/// tensor that the model does not have is an error, since it means another model.
///
/// # Panics
/// If a tensor lies outside of its block.
pub fn import(
    path: &Path,
    blocks: &[BlockInfo],
    tensors: &[ParamInfo],
    aliases: &[Alias],
) -> Result<Vec<Vec<f32>>, ImportError> {
    let input = Input::open(path)?;
    let found = input.metadata.tensors();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let mut problems = Vec::new();
    let mut plan = Vec::new();
    for tensor in tensors {
        let others = aliases.iter().filter(|alias| alias.of == tensor.name);
        let names = std::iter::once(tensor.name.as_str()).chain(others.map(|it| it.name.as_str()));
        let mut source = None;
        for name in names {
            known.insert(name);
            let Some(info) = found.get(name) else { continue };
            source = source.or(Some(*info));
            if info.shape != tensor.shape.dims() {
                let (have, want) = (&info.shape, tensor.shape.dims());
                problems.push(format!("{name} has shape {have:?} instead of {want:?}"));
            } else if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                problems.push(format!("{name} has type {}", info.dtype));
            }
        }
        match source {
            Some(info) => plan.push((tensor, info)),
            None => problems.push(format!("{} is missing", tensor.name)),
        }
    }
    let is_mask = |name: &str| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    let mut unknown: Vec<&String> =
        found.keys().filter(|name| !known.contains(name.as_str()) && !is_mask(name)).collect();
    unknown.sort();
    problems.extend(unknown.iter().map(|name| format!("{name} is not in the model")));
    if !problems.is_empty() {
        return Err(ImportError::Mismatch { path: path.to_owned(), problems });
    }
    let mut params: Vec<Vec<f32>> = blocks.iter().map(|block| vec![0.0; block.len]).collect();
    for (tensor, info) in plan {
        input.read(info, &mut params[tensor.block][tensor.range()])?;
    }
    input.check_aliases(&params, tensors, aliases)?;
    Ok(params)
}

struct Input<'p> {
    path: &'p Path,
    file: File,
    metadata: Metadata,
    data_at: u64,
}

impl<'p> Input<'p> {
    fn open(path: &'p Path) -> Result<Self, ImportError> {
        let at = DiskError::at(path);
        let wrong = |reason: String| ImportError::Format { path: path.to_owned(), reason };
        let of_file = std::fs::metadata(path).map_err(at)?;
        if !of_file.is_file() {
            return Err(wrong("it is no regular file".to_owned()));
        }
        let bytes = of_file.len();
        let file = File::open(path).map_err(at)?;
        let mut length = [0; 8];
        match file.read_exact_at(&mut length, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(wrong(format!("it has only {bytes} bytes")));
            }
            other => other.map_err(at)?,
        }
        let header_bytes = u64::from_le_bytes(length);
        let data_at = header_bytes.saturating_add(8);
        if header_bytes > HEADER_BYTES_MAX || data_at > bytes {
            return Err(wrong("the length of its header is impossible".to_owned()));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, 8).map_err(at)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
        let expected = data_at.saturating_add(metadata.data_len() as u64);
        if bytes != expected {
            return Err(wrong(format!("it has {bytes} bytes instead of {expected}")));
        }
        Ok(Self { path, file, metadata, data_at })
    }

    /// A file may hold a shared weight twice, but not with different values: then its model does not
    /// share it.
    fn check_aliases(
        &self,
        params: &[Vec<f32>],
        tensors: &[ParamInfo],
        aliases: &[Alias],
    ) -> Result<(), ImportError> {
        for Alias { name, of } in aliases {
            let tensor = tensors.iter().find(|tensor| tensor.name == *of);
            let Some((tensor, info)) = tensor.zip(self.metadata.info(name)) else { continue };
            let first = &params[tensor.block][tensor.range()];
            let mut second = vec![0.0; first.len()];
            self.read(info, &mut second)?;
            if first.iter().zip(&second).any(|(a, b)| a.to_bits() != b.to_bits()) {
                let problem = format!(
                    "{name} and {of} have different values, here they are one: \
                     set model.tied = false"
                );
                let path = self.path.to_owned();
                return Err(ImportError::Mismatch { path, problems: vec![problem] });
            }
        }
        Ok(())
    }

    fn read(&self, info: &TensorInfo, out: &mut [f32]) -> Result<(), ImportError> {
        let width = if info.dtype == Dtype::F32 { 4 } else { 2 };
        let mut at = self.data_at + info.data_offsets.0 as u64;
        let mut buffer = vec![0; PIECE_BYTES.min(width * out.len())];
        for piece in out.chunks_mut(PIECE_BYTES / width) {
            let bytes = &mut buffer[..width * piece.len()];
            self.file.read_exact_at(bytes, at).map_err(DiskError::at(self.path))?;
            at += bytes.len() as u64;
            let (quads, _) = bytes.as_chunks::<4>();
            let (pairs, _) = bytes.as_chunks::<2>();
            let convert: fn([u8; 2]) -> f32 = match info.dtype {
                Dtype::BF16 => |pair| half::bf16::from_le_bytes(pair).to_f32(),
                _ => |pair| half::f16::from_le_bytes(pair).to_f32(),
            };
            if info.dtype == Dtype::F32 {
                piece.iter_mut().zip(quads).for_each(|(x, quad)| *x = f32::from_le_bytes(*quad));
            } else {
                piece.iter_mut().zip(pairs).for_each(|(x, pair)| *x = convert(*pair));
            }
        }
        Ok(())
    }
}

fn mismatches(problems: &[String]) -> String {
    let mut text = problems.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join("; ");
    if problems.len() > LISTED_MAX {
        text.push_str(&format!("; and {} more", problems.len() - LISTED_MAX));
    }
    text
}

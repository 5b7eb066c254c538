//! The text that is on every machine which has built this program: the Rust sources of its
//! dependencies.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::error::DataError;
use super::source::{Skipped, Source};
use crate::job::DataSpec;

/// Bytes of the default corpus, about.
pub const CORPUS_BYTES_MAX: u64 = 32 << 20;
/// Bytes that one crate gives at most, so that no large one of generated code fills the corpus.
const CRATE_BYTES_MAX: u64 = 512 << 10;
/// Longer files are mostly tables.
const FILE_BYTES_MAX: u64 = 128 << 10;

/// The default corpus: the sources that cargo keeps in its registry (`CARGO_HOME` or `~/.cargo`).
pub fn default_corpus() -> Result<Source, DataError> {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from);
    rust_sources(&cargo.join("registry").join("src"), CORPUS_BYTES_MAX)
}

/// The Rust files of the crates in a registry's `src` folder, in the order of their paths, up to
/// about so many bytes.
pub fn rust_sources(folder: &Path, bytes_max: u64) -> Result<Source, DataError> {
    let missing = || DataError::NoCorpus { path: folder.to_owned() };
    // registry/src/<index>/<crate>; whatever cannot be listed is simply no crate.
    let crates = WalkDir::new(folder).min_depth(2).max_depth(2).sort_by_file_name();
    let mut files = Vec::new();
    let mut total = 0;
    'all: for folder in crates.into_iter().flatten() {
        let mut of_crate = 0;
        for entry in WalkDir::new(folder.path()).sort_by_file_name().into_iter().flatten() {
            let path = entry.path();
            if !entry.file_type().is_file() || path.extension().is_none_or(|it| it != "rs") {
                continue;
            }
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            if bytes == 0 || bytes > FILE_BYTES_MAX || of_crate + bytes > CRATE_BYTES_MAX {
                continue;
            }
            if total + bytes > bytes_max {
                break 'all;
            }
            of_crate += bytes;
            total += bytes;
            files.push(entry.into_path());
        }
    }
    let places = folder.display().to_string();
    let spec = DataSpec::default();
    Source::of_files(files, &spec, Skipped::default(), &places).map_err(|_| missing())
}

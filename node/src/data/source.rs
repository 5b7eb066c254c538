//! Which files are the data, and their text as one stream of bytes.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::error::DataError;
use super::jsonl;
use crate::job::{DataFormat, DataSpec};

/// Stands between two texts. Text files with this byte are taken for binary and skipped, so a model
/// can learn it as the end of a text.
pub const SEPARATOR: u8 = 0;

/// Files of one source; a folder with more is surely not meant.
const FILES_MAX: usize = 1_000_000;
const READ_BYTES: usize = 256 * 1024;
const EXAMPLES_MAX: usize = 3;

/// The data files of a job, in the order in which they are read.
#[derive(Debug)]
pub struct Source {
    files: Vec<SourceFile>,
    field: String,
    skipped: Skipped,
}

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    bytes: u64,
    jsonl: bool,
}

/// Takes text in pieces, with the number of files read before.
pub type TextSink<'s> = dyn FnMut(usize, &[u8]) -> Result<(), DataError> + 's;

/// Files that were found and not taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Files with NUL bytes.
    pub binary: u64,
    /// Files of no bytes.
    pub empty: u64,
    /// Files and folders that cannot be read, dangling links and link loops.
    pub unreadable: u64,
    /// Pipes, sockets and devices.
    pub special: u64,
    /// Entries of folders whose names begin with a dot.
    pub hidden: u64,
    /// The first few unreadable ones, with what the system said.
    pub examples: Vec<String>,
}

impl Skipped {
    /// Whether nothing was skipped.
    pub fn is_empty(&self) -> bool {
        self.binary + self.empty + self.unreadable + self.special + self.hidden == 0
    }

    fn unreadable(&mut self, path: &Path, error: &dyn fmt::Display) {
        self.unreadable += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{}: {error}", path.display()));
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing skipped");
        }
        let counts = [
            (self.binary, "binary"),
            (self.empty, "empty"),
            (self.unreadable, "unreadable"),
            (self.special, "no regular file"),
            (self.hidden, "hidden"),
        ];
        let counts: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        write!(f, "skipped: {}", counts.join(", "))?;
        if !self.examples.is_empty() {
            write!(f, "; {}", self.examples.join("; "))?;
        }
        Ok(())
    }
}

impl Source {
    /// Finds the files of the job: the entries in their order, each sorted by path.
    ///
    /// Every file is read once to find binary and unreadable ones; these are skipped and counted.
    /// Nothing left to read is an error.
    pub fn open(spec: &DataSpec) -> Result<Self, DataError> {
        let mut skipped = Skipped::default();
        let mut paths = Vec::new();
        let mut known = BTreeSet::new();
        for entry in &spec.files {
            for path in expand(entry, &mut skipped)? {
                if known.insert(path.clone()) {
                    paths.push(path);
                }
            }
        }
        let places: Vec<String> =
            spec.files.iter().take(8).map(|path| path.display().to_string()).collect();
        Self::of_files(paths, spec, skipped, &places.join(", "))
    }

    /// A source of exactly these files.
    pub(super) fn of_files(
        paths: Vec<PathBuf>,
        spec: &DataSpec,
        mut skipped: Skipped,
        places: &str,
    ) -> Result<Self, DataError> {
        let mut files = Vec::new();
        let mut buffer = vec![0; READ_BYTES];
        for path in paths {
            match scan(&path, &mut buffer) {
                Ok(Scan::Text { bytes }) => {
                    let jsonl = is_jsonl(&path, spec.format);
                    files.push(SourceFile { path, bytes, jsonl });
                }
                Ok(Scan::Binary) => skipped.binary += 1,
                Ok(Scan::Empty) => skipped.empty += 1,
                Ok(Scan::Special) => skipped.special += 1,
                Err(error) => skipped.unreadable(&path, &error),
            }
        }
        if files.is_empty() {
            return Err(DataError::Empty { places: places.to_owned(), skipped });
        }
        Ok(Self { files, field: spec.field.clone(), skipped })
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Never true: a source without files is an error.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Bytes of all files when they were found.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// What was found and not taken.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The files in their order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Gives the text of all files to `sink` in pieces, a [`SEPARATOR`] between two texts.
    pub fn read(&self, sink: &mut TextSink<'_>) -> Result<(), DataError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut first = true;
        for (done, file) in self.files.iter().enumerate() {
            if file.jsonl {
                jsonl::read(&file.path, &self.field, &mut |text| {
                    if !std::mem::take(&mut first) {
                        sink(done, &[SEPARATOR])?;
                    }
                    sink(done, text)
                })?;
                continue;
            }
            if !std::mem::take(&mut first) {
                sink(done, &[SEPARATOR])?;
            }
            let failed = |source| DataError::Read { path: file.path.clone(), source };
            let mut input = File::open(&file.path).map_err(failed)?;
            loop {
                let count = read_some(&mut input, &mut buffer).map_err(failed)?;
                if count == 0 {
                    break;
                }
                sink(done, &buffer[..count])?;
            }
        }
        Ok(())
    }
}

fn is_jsonl(path: &Path, format: DataFormat) -> bool {
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
    match format {
        DataFormat::Text => false,
        DataFormat::Jsonl => true,
        DataFormat::Auto => ending.is_some_and(|ending| ending == "jsonl" || ending == "ndjson"),
    }
}

/// The files that one entry of `data.files` names, sorted.
fn expand(entry: &Path, skipped: &mut Skipped) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    // A name that exists is itself, even where it has brackets in it.
    if entry.symlink_metadata().is_ok() {
        walk(entry, &mut found, skipped)?;
        found.sort();
        return Ok(found);
    }
    let pattern = entry.to_string_lossy();
    if !pattern.contains(['*', '?', '[']) {
        return Err(DataError::NotFound { path: entry.to_owned() });
    }
    let matches = glob::glob(&pattern).map_err(|error| DataError::Pattern {
        pattern: pattern.clone().into_owned(),
        reason: error.msg.to_owned(),
    })?;
    for path in matches {
        match path {
            Ok(path) => walk(&path, &mut found, skipped)?,
            Err(error) => skipped.unreadable(error.path(), error.error()),
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn walk(root: &Path, found: &mut Vec<PathBuf>, skipped: &mut Skipped) -> Result<(), DataError> {
    // Links are followed; walkdir reports a link to a folder above it as an error, so it ends.
    let mut entries = WalkDir::new(root).follow_links(true).into_iter();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                skipped.unreadable(error.path().unwrap_or(root), &error);
                continue;
            }
        };
        let hidden = entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden {
            skipped.hidden += 1;
            if entry.file_type().is_dir() {
                entries.skip_current_dir();
            }
            continue;
        }
        if !entry.file_type().is_dir() {
            if found.len() == FILES_MAX {
                return Err(DataError::TooManyFiles { files_max: FILES_MAX });
            }
            found.push(entry.into_path());
        }
    }
    Ok(())
}

enum Scan {
    Text { bytes: u64 },
    Binary,
    Empty,
    Special,
}

fn scan(path: &Path, buffer: &mut [u8]) -> io::Result<Scan> {
    // Opening a pipe would wait for a writer for ever.
    if !std::fs::metadata(path)?.is_file() {
        return Ok(Scan::Special);
    }
    let mut file = File::open(path)?;
    let mut bytes = 0;
    loop {
        let count = read_some(&mut file, buffer)?;
        if count == 0 {
            return Ok(if bytes == 0 { Scan::Empty } else { Scan::Text { bytes } });
        }
        if buffer[..count].contains(&SEPARATOR) {
            return Ok(Scan::Binary);
        }
        bytes += count as u64;
    }
}

pub(super) fn read_some(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

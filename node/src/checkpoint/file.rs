//! One checkpoint file: magic, version, header with its digest, then the chunks of the state.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use bincode::{Decode, Encode};
use p2ptrain_protocol::checkpoint::StateManifest;
use p2ptrain_protocol::id::{Digest, JobId, PeerId, Step};
use p2ptrain_protocol::limits::MEMBERS_MAX;

use super::atomic::AtomicFile;
use super::error::{LoadError, SaveError};
use super::state::{State, StateRef};
use crate::data::DiskError;
use crate::job::JobSpec;

const MAGIC: [u8; 8] = *b"p2ptckpt";
const VERSION: u32 = 1;
/// Magic, version, length of the header, digest of the header.
const START_BYTES: usize = 8 + 4 + 8 + 32;
/// Bytes of a header: job, program, members, and the digests of the largest state.
const HEADER_BYTES_MAX: usize = 64 << 20;
const HEADER_DOMAIN: &str = "p2ptrain checkpoint header v1";

/// What a checkpoint says besides the state itself.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// The job.
    pub job: JobSpec,
    /// The program in its binary form.
    pub program: Vec<u8>,
    /// The next step: the state is the one before it.
    pub step: Step,
    /// Epoch of the view that committed the last step.
    pub epoch: u64,
    /// Members of that view.
    pub members: Vec<PeerId>,
    /// Length of the ledger file at this state; what follows belongs to later steps.
    pub ledger_bytes: u64,
}

/// The header of a checkpoint: all but the state.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// What it says.
    pub about: About,
    /// Digests of the state.
    pub manifest: StateManifest,
    /// Counts the saves into one folder, so that the latest is known also where a job went back to
    /// an earlier step.
    pub sequence: u64,
    /// Length of the file.
    pub bytes: u64,
}

/// A checkpoint whose every byte was verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What it says besides the state.
    pub about: About,
    /// Digests of the state: chunks can be given to joining peers at once.
    pub manifest: StateManifest,
    /// The state.
    pub state: State,
}

#[derive(Encode, Decode)]
struct Header {
    sequence: u64,
    epoch: u64,
    ledger_bytes: u64,
    job: Vec<u8>,
    program: Vec<u8>,
    members: Vec<PeerId>,
    manifest: StateManifest,
}

/// Reads and verifies the header, and that the file has the length it should have.
pub fn inspect(path: &Path) -> Result<Info, LoadError> {
    open(path).map(|(info, _)| info)
}

/// Loads a checkpoint and verifies all of it. With `job`, that of another job is refused.
///
/// Memory is taken for the state and one chunk, and only after header and length have proved right.
pub fn load(path: &Path, job: Option<JobId>) -> Result<Checkpoint, LoadError> {
    let (info, mut file) = open(path)?;
    let Info { about, manifest, .. } = info;
    if let Some(expected) = job.filter(|job| *job != manifest.job) {
        let (found, name) = (manifest.job, about.job.name);
        return Err(LoadError::WrongJob { path: path.to_owned(), found, name, expected });
    }
    let mut state = State::zeros(&manifest.layout);
    let mut buffer = Vec::new();
    for (index, place) in (0..).zip(manifest.layout.places()) {
        buffer.resize(place.bytes(), 0);
        file.read_exact(&mut buffer).map_err(DiskError::at(path))?;
        manifest
            .verify_chunk(index, &buffer)
            .map_err(|source| LoadError::Chunk { path: path.to_owned(), source })?;
        state.write_chunk(&place, &buffer);
    }
    Ok(Checkpoint { about, manifest, state })
}

/// Writes a checkpoint under this name; returns its length.
pub(super) fn save(
    path: &Path,
    sequence: u64,
    about: &About,
    state: StateRef<'_>,
) -> Result<u64, SaveError> {
    let job = about.job.id();
    let layout = state.layout()?;
    let mut chunks = vec![Digest::from_bytes([0; 32]); layout.chunk_count() as usize];
    // The digests are known only after the state was written. A header has the same length whatever
    // they are, so its place is kept free and filled at the end: the state is read once.
    let manifest = StateManifest::new(job, about.step, layout.clone(), chunks.clone())?;
    let header_bytes = header(sequence, about, manifest).len();
    if header_bytes > HEADER_BYTES_MAX {
        return Err(SaveError::Header { bytes: header_bytes, bytes_max: HEADER_BYTES_MAX });
    }
    let mut file = AtomicFile::create(path)?;
    file.write(&vec![0; START_BYTES + header_bytes])?;
    let mut buffer = Vec::new();
    let mut bytes = (START_BYTES + header_bytes) as u64;
    for (digest, place) in chunks.iter_mut().zip(layout.places()) {
        state.read_chunk(&place, &mut buffer);
        *digest = p2ptrain_protocol::checkpoint::chunk_digest(&buffer);
        file.write(&buffer)?;
        bytes += buffer.len() as u64;
    }
    let manifest = StateManifest::new(job, about.step, layout, chunks)?;
    let header = header(sequence, about, manifest);
    assert_eq!(header.len(), header_bytes, "a header's length does not depend on its digests");
    let mut start = Vec::with_capacity(START_BYTES + header.len());
    start.extend_from_slice(&MAGIC);
    start.extend_from_slice(&VERSION.to_le_bytes());
    start.extend_from_slice(&(header.len() as u64).to_le_bytes());
    start.extend_from_slice(Digest::of_bytes(HEADER_DOMAIN, &header).as_bytes());
    start.extend_from_slice(&header);
    file.write_at(&start, 0)?;
    file.commit()?;
    Ok(bytes)
}

fn header(sequence: u64, about: &About, manifest: StateManifest) -> Vec<u8> {
    let header = Header {
        sequence,
        epoch: about.epoch,
        ledger_bytes: about.ledger_bytes,
        job: about.job.encode(),
        program: about.program.clone(),
        members: about.members.clone(),
        manifest,
    };
    bincode::encode_to_vec(header, codec()).expect("encoding plain data into memory cannot fail")
}

/// The verified header, and the file at the start of the state.
fn open(path: &Path) -> Result<(Info, File), LoadError> {
    let at = DiskError::at(path);
    let owned = || path.to_owned();
    // Opening a pipe would wait for ever.
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(LoadError::NotFound { path: owned() });
        }
        other => other.map_err(at)?,
    };
    if !metadata.is_file() {
        return Err(LoadError::NotACheckpoint { path: owned() });
    }
    let bytes = metadata.len();
    let mut file = File::open(path).map_err(at)?;
    let mut start = [0; START_BYTES];
    let magic_bytes = bytes.min(MAGIC.len() as u64) as usize;
    file.read_exact(&mut start[..magic_bytes]).map_err(at)?;
    if start[..magic_bytes] != MAGIC[..magic_bytes] || bytes == 0 {
        return Err(LoadError::NotACheckpoint { path: owned() });
    }
    let truncated = |expected| LoadError::Truncated { path: owned(), bytes, expected };
    if bytes < START_BYTES as u64 {
        return Err(truncated(START_BYTES as u64));
    }
    file.read_exact(&mut start[MAGIC.len()..]).map_err(at)?;
    let start = Start::of(&start);
    if start.version != VERSION {
        let (found, supported) = (start.version, VERSION);
        return Err(LoadError::Version { path: owned(), found, supported });
    }
    let damaged = |reason: &str| LoadError::Header { path: owned(), reason: reason.to_owned() };
    if start.header_bytes > HEADER_BYTES_MAX as u64 {
        return Err(damaged("its length is impossible"));
    }
    let body_at = START_BYTES as u64 + start.header_bytes;
    if bytes < body_at {
        return Err(truncated(body_at));
    }
    let mut header = vec![0; start.header_bytes as usize];
    file.read_exact(&mut header).map_err(at)?;
    if Digest::of_bytes(HEADER_DOMAIN, &header) != start.digest {
        return Err(damaged("its digest does not fit"));
    }
    let info = read_header(path, &header, bytes)?;
    let body: u64 = info.manifest.layout.places().map(|place| place.bytes() as u64).sum();
    let expected = body_at + body;
    if bytes < expected {
        return Err(truncated(expected));
    }
    if bytes > expected {
        return Err(LoadError::Trailing { path: owned(), bytes, expected });
    }
    Ok((info, file))
}

struct Start {
    version: u32,
    header_bytes: u64,
    digest: Digest,
}

impl Start {
    fn of(start: &[u8; START_BYTES]) -> Self {
        let part = |at: usize| &start[at..];
        let first = "the start has all fields";
        let version = u32::from_le_bytes(*part(8).first_chunk().expect(first));
        let header_bytes = u64::from_le_bytes(*part(12).first_chunk().expect(first));
        let digest = Digest::from_bytes(*part(20).first_chunk().expect(first));
        Self { version, header_bytes, digest }
    }
}

fn read_header(path: &Path, bytes: &[u8], file_bytes: u64) -> Result<Info, LoadError> {
    let path = || PathBuf::from(path);
    let damaged = |reason: String| LoadError::Header { path: path(), reason };
    let (header, used): (Header, usize) = bincode::decode_from_slice(bytes, codec())
        .map_err(|error| damaged(format!("it does not decode: {error}")))?;
    if used != bytes.len() {
        return Err(damaged("it is too long".to_owned()));
    }
    let Header { sequence, epoch, ledger_bytes, job, program, members, manifest } = header;
    if members.len() > MEMBERS_MAX {
        return Err(damaged(format!("it names {} members", members.len())));
    }
    manifest.verify().map_err(|error| damaged(error.to_string()))?;
    let job = JobSpec::decode(&job).map_err(|source| LoadError::Job { path: path(), source })?;
    if job.id() != manifest.job {
        return Err(damaged("its job and its state do not belong together".to_owned()));
    }
    let step = manifest.step;
    let about = About { job, program, step, epoch, members, ledger_bytes };
    Ok(Info { about, manifest, sequence, bytes: file_bytes })
}

fn codec() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<{ 4 * HEADER_BYTES_MAX }>()
}

//! Who this node is: an ed25519 key in a file, and what other crates call the same key.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use libp2p::identity::{Keypair, PublicKey, ed25519};

pub use p2ptrain_protocol::id::PeerId;

/// The key's file inside the node's folder.
const FILE_NAME: &str = "identity.key";

/// First word of the file, so that a wrong file is told apart from a damaged one.
const FILE_MAGIC: &str = "p2ptrain-ed25519";

/// Far more than the file needs: a larger one is not read into memory.
const FILE_BYTES_MAX: u64 = 1024;

/// A node's key pair. Its public half is the node's [`PeerId`] on both planes.
#[derive(Clone)]
pub struct Identity {
    keypair: ed25519::Keypair,
}

/// Why the node's key could not be loaded or stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file exists but isn't an intact key.
    #[error(
        "{path} is damaged ({reason}); restore it from a copy, or delete it to become a new peer"
    )]
    Corrupt {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Reading or writing failed.
    #[error("the node's key {path}: {source}")]
    Io {
        /// The key file or its folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Identity {
    /// A new random identity, kept in memory only.
    pub fn generate() -> Self {
        let mut secret = [0; 32];
        rand::fill(&mut secret);
        Self::from_secret(secret)
    }

    /// The identity with this ed25519 secret key.
    pub fn from_secret(mut secret: [u8; 32]) -> Self {
        let secret = ed25519::SecretKey::try_from_bytes(&mut secret)
            .expect("any 32 bytes are an ed25519 secret key");
        Self { keypair: secret.into() }
    }

    /// Loads the key in `folder`, or creates it there (mode 0600, complete or not at all) if there
    /// is none.
    ///
    /// # Errors
    /// A file that is there but can't be read as a key is never replaced: the node would become
    /// another peer.
    pub fn load_or_create(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(FILE_NAME);
        match Self::load(&path) {
            Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::create(folder, &path)
            }
            loaded => loaded,
        }
    }

    /// This node's id.
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_bytes(self.keypair.public().to_bytes())
    }

    /// The ed25519 secret key, for signing adverts.
    pub fn secret(&self) -> [u8; 32] {
        let mut secret = [0; 32];
        secret.copy_from_slice(self.keypair.secret().as_ref());
        secret
    }

    /// The same key in libp2p's type.
    pub(crate) fn keypair(&self) -> Keypair {
        self.keypair.clone().into()
    }

    fn load(path: &Path) -> Result<Self, IdentityError> {
        let io_error = |source| IdentityError::Io { path: path.to_owned(), source };
        let corrupt = |reason| IdentityError::Corrupt { path: path.to_owned(), reason };
        let metadata = fs::metadata(path).map_err(io_error)?;
        if metadata.len() > FILE_BYTES_MAX {
            return Err(corrupt("it is too large"));
        }
        warn_if_exposed(path, &metadata);
        let text = fs::read(path).map_err(io_error)?;
        let text = String::from_utf8(text).map_err(|_| corrupt("it is not text"))?;
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some(FILE_MAGIC) {
            return Err(corrupt("it is not a p2ptrain key"));
        }
        let (Some(secret), Some(check), None) = (words.next(), words.next(), words.next()) else {
            return Err(corrupt("it is cut short or has something appended"));
        };
        let secret = blake3::Hash::from_hex(secret)
            .map_err(|_| corrupt("its key is not 64 hexadecimal digits"))?;
        if check != checksum(secret.as_bytes()) {
            return Err(corrupt("its checksum does not match"));
        }
        Ok(Self::from_secret(*secret.as_bytes()))
    }

    fn create(folder: &Path, path: &Path) -> Result<Self, IdentityError> {
        let io_error = |source| IdentityError::Io { path: path.to_owned(), source };
        let identity = Self::generate();
        let secret = identity.secret();
        fs::create_dir_all(folder).map_err(io_error)?;
        // The temporary file has mode 0600 from the start.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io_error)?;
        let hex = blake3::Hash::from_bytes(secret).to_hex();
        writeln!(file, "{FILE_MAGIC} {hex} {}", checksum(&secret)).map_err(io_error)?;
        file.as_file().sync_all().map_err(io_error)?;
        match file.persist_noclobber(path) {
            Ok(_) => {}
            // Another process of this node was faster; its key is the node's.
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => return Self::load(path),
            Err(e) => return Err(io_error(e.error)),
        }
        fs::File::open(folder).and_then(|f| f.sync_all()).map_err(io_error)?;
        Ok(identity)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.peer_id())
    }
}

/// libp2p's name of a peer; `None` if the id isn't a point on the curve, so that no key pair can
/// belong to it.
pub(crate) fn to_libp2p(peer: PeerId) -> Option<libp2p::PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(peer.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// Our name of a libp2p peer; `None` if its key isn't ed25519, as all members' are.
pub(crate) fn from_libp2p(peer: &libp2p::PeerId) -> Option<PeerId> {
    /// Multihash "identity" of 36 bytes, then the protobuf of an ed25519 public key of 32.
    const HEAD: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&HEAD)?;
    Some(PeerId::from_bytes(key.try_into().ok()?))
}

fn checksum(secret: &[u8; 32]) -> String {
    let hash = blake3::derive_key("p2ptrain identity file checksum v1", secret);
    blake3::Hash::from_bytes(hash).to_hex()[..8].to_owned()
}

#[cfg(unix)]
fn warn_if_exposed(path: &Path, metadata: &fs::Metadata) {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!("{} can be read by others (mode {mode:o}): chmod 600 it", path.display());
    }
}

#[cfg(not(unix))]
fn warn_if_exposed(_: &Path, _: &fs::Metadata) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_key_is_private_and_loads_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let created = Identity::load_or_create(folder.path()).expect("creates");
        let loaded = Identity::load_or_create(folder.path()).expect("loads");
        assert_eq!(created.peer_id(), loaded.peer_id());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let metadata = fs::metadata(folder.path().join(FILE_NAME)).expect("the file is there");
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        }
        let files = fs::read_dir(folder.path()).expect("readable").count();
        assert_eq!(files, 1, "no temporary file is left");
    }

    #[test]
    fn corrupt_key_is_an_error_that_names_the_file_and_keeps_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(FILE_NAME);
        Identity::load_or_create(folder.path()).expect("creates");
        let good = fs::read(&path).expect("readable");
        let flipped = {
            let mut bytes = good.clone();
            bytes[30] = if bytes[30] == b'0' { b'1' } else { b'0' };
            bytes
        };
        let cases: [&[u8]; 6] = [b"", b"hello", &good[..40], &flipped, &[0xff; 100], &[b'x'; 5000]];
        for bytes in cases {
            fs::write(&path, bytes).expect("writable");
            let error = Identity::load_or_create(folder.path()).expect_err("is refused");
            assert!(error.to_string().contains("identity.key"), "{error}");
            assert!(matches!(error, IdentityError::Corrupt { .. }));
            assert_eq!(fs::read(&path).expect("readable"), bytes, "the file is left alone");
        }
    }

    #[test]
    fn unusable_folder_is_an_error_that_names_the_path() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        fs::write(&file, "x").expect("writable");
        let error = Identity::load_or_create(&file).expect_err("is refused");
        assert!(error.to_string().contains("file/identity.key"), "{error}");
    }

    #[test]
    fn ids_convert_both_ways() {
        let identity = Identity::generate();
        let theirs = identity.keypair().public().to_peer_id();
        assert_eq!(to_libp2p(identity.peer_id()), Some(theirs));
        assert_eq!(from_libp2p(&theirs), Some(identity.peer_id()));
        assert_eq!(from_libp2p(&libp2p::PeerId::random()), None);
        let again = Identity::from_secret(identity.secret());
        assert_eq!(again.peer_id(), identity.peer_id());
    }
}

//! The local socket of a running node: how `status`, `watch`, `submit`, `leave` and `stop` reach it.
//!
//! The socket lies in the node's folder and is open to its user alone. Requests and responses are
//! one JSON object a line, with a version, and bounded in length. A lock on the folder, held by the
//! process, tells a running node from the socket that a killed one left behind.

mod client;
mod line;
mod lock;
mod server;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::status::NodeStatus;

pub use self::client::{Watch, leave, status, stop, submit, watch};
pub use self::server::{IpcCommand, IpcServer, Refusal, Reply, serve};

/// Version of the requests and responses. Both sides must have the same.
pub const IPC_VERSION: u32 = 1;
/// Bytes of a request line: a job file fits many times.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Bytes of a response line: a full status has about a tenth.
pub const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Clients served at once.
pub const CLIENTS_MAX: usize = 32;

const SOCKET_NAME: &str = "node.sock";
const LOCK_NAME: &str = "node.lock";

/// Why a request to a node, or opening its socket, failed.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// Another process holds the folder.
    #[error("a node already runs in {}{}", .dir.display(), process(*.pid))]
    AlreadyRuns {
        /// The node's folder.
        dir: PathBuf,
        /// Its process, where it could be told.
        pid: Option<u32>,
    },
    /// No node answers in this folder.
    #[error("no node runs in {}", .dir.display())]
    NotRunning {
        /// The node's folder.
        dir: PathBuf,
    },
    /// The folder or the socket could not be used.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The node ended or closed the connection before it answered.
    #[error("the node closed the connection before it answered")]
    Closed,
    /// The other side sent a line over the limit.
    #[error("a line is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// A message is over the limit before it is sent.
    #[error("the job file is too large to send to the node: {bytes} bytes, at most {limit}")]
    RequestTooLong {
        /// Bytes of the message.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The other side sent something that is no message of this protocol.
    #[error("the answer of the node is not understood: {0}")]
    Malformed(String),
    /// The node is of another version.
    #[error("the node speaks version {theirs} of the local protocol, this command version {ours}")]
    Version {
        /// Version of the node.
        theirs: u32,
        /// Version of this program.
        ours: u32,
    },
    /// The node understood and refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl IpcError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::AlreadyRuns { .. } => Some(
                "`p2ptrain leave` ends it; another node on this machine needs its own --name or --dir"
                    .into(),
            ),
            Self::NotRunning { .. } => Some(
                "start one with `p2ptrain run job.toml` or `p2ptrain join`, or name its folder with --dir or --name"
                    .into(),
            ),
            Self::Version { .. } => {
                Some("use the same p2ptrain binary for the node and this command".into())
            }
            Self::Refused(refusal) => refusal.hint.clone(),
            _ => None,
        }
    }
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The present status, once.
    Status,
    /// The status now and after changes, until the client closes.
    Watch {
        /// Shortest time between two, in milliseconds.
        interval_ms: u32,
    },
    /// Finish the step, hand over, and end.
    Leave,
    /// Save and end the node at once, without waiting for others.
    Stop,
    /// Start a job.
    Submit {
        /// The text of the job file.
        job: String,
        /// The folder that relative paths in it start from.
        base: PathBuf,
    },
}

/// What the node answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Response {
    /// Answer to [`Request::Status`] and each item of [`Request::Watch`].
    Status {
        /// The status.
        status: Box<NodeStatus>,
    },
    /// The command was carried out.
    Done {
        /// What happened, for the user.
        message: String,
    },
    /// The command was refused, or the request was not understood.
    Error(Refusal),
}

/// A message with the version it is written in.
#[derive(Debug, Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    body: T,
}

/// The socket in a node's folder.
pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join(SOCKET_NAME)
}

/// Decodes one request line without its newline.
///
/// # Errors
/// [`IpcError::Version`] for another version, [`IpcError::Malformed`] for anything else that is no
/// request.
pub fn decode_request(line: &[u8]) -> Result<Request, IpcError> {
    decode(line)
}

/// Decodes one response line without its newline.
///
/// # Errors
/// As [`decode_request`].
pub fn decode_response(line: &[u8]) -> Result<Response, IpcError> {
    decode(line)
}

fn encode<T: Serialize>(body: &T) -> String {
    let message = Versioned { version: IPC_VERSION, body };
    let mut line = serde_json::to_string(&message).expect("messages hold only serializable data");
    line.push('\n');
    line
}

fn decode<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Result<T, IpcError> {
    // The version is read first, as the body of another version may have any form.
    let message: Versioned<serde_json::Value> =
        serde_json::from_slice(line).map_err(|error| IpcError::Malformed(error.to_string()))?;
    if message.version != IPC_VERSION {
        return Err(IpcError::Version { theirs: message.version, ours: IPC_VERSION });
    }
    serde_json::from_value(message.body).map_err(|error| IpcError::Malformed(error.to_string()))
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A socket's path is limited to about 100 bytes by the system, a folder's is not. Longer paths are
/// reached through the open folder.
struct SocketAddress {
    path: PathBuf,
    _dir: Option<std::fs::File>,
}

impl SocketAddress {
    const BYTES_MAX: usize = 100;

    fn of(dir: &Path, name: &str) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;

        let path = dir.join(name);
        if path.as_os_str().len() <= Self::BYTES_MAX {
            return Ok(Self { path, _dir: None });
        }
        let dir = std::fs::File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok(Self { path, _dir: Some(dir) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_and_responses_survive_their_encoding() {
        for request in [
            Request::Status,
            Request::Watch { interval_ms: 500 },
            Request::Leave,
            Request::Stop,
            Request::Submit { job: "name = \"x\"\n".into(), base: "/tmp".into() },
        ] {
            let line = encode(&request);
            assert_eq!(line.matches('\n').count(), 1, "a message is one line: {line}");
            assert_eq!(decode::<Request>(line.as_bytes()).expect("own encoding"), request);
        }
    }

    #[test]
    fn another_version_is_named_before_the_body_is_looked_at() {
        let error = decode::<Request>(br#"{"version":9,"body":{"op":"teleport"}}"#).unwrap_err();
        assert!(matches!(error, IpcError::Version { theirs: 9, ours: IPC_VERSION }), "{error}");
        let error = decode::<Request>(br#"{"version":1,"body":{"op":"teleport"}}"#).unwrap_err();
        assert!(error.to_string().contains("teleport"), "{error}");
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Response>(&bytes);
        }
    }
}

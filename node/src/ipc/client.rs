use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::line::read_line;
use super::{
    IpcError, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Response, SOCKET_NAME, SocketAddress,
    decode, encode, socket_path,
};
use crate::status::NodeStatus;

/// The present status of the node in `dir`.
///
/// # Errors
/// [`IpcError::NotRunning`] where no node has that folder, and all others that a request can meet.
pub async fn status(dir: &Path) -> Result<NodeStatus, IpcError> {
    match ask(dir, &Request::Status).await? {
        Response::Status { status } => Ok(*status),
        other => Err(unexpected(other)),
    }
}

/// Lets the node in `dir` finish its step, hand over and end. Returns what it says.
///
/// # Errors
/// See [`status`]; and [`IpcError::Refused`].
pub async fn leave(dir: &Path) -> Result<String, IpcError> {
    command(dir, &Request::Leave).await
}

/// Lets the node in `dir` save its state and end at once. Returns what it says.
///
/// # Errors
/// See [`leave`].
pub async fn stop(dir: &Path) -> Result<String, IpcError> {
    command(dir, &Request::Stop).await
}

/// Gives a job to the node in `dir`: the text of a job file, and the folder that its relative paths
/// start from. Returns what the node says.
///
/// # Errors
/// See [`leave`].
pub async fn submit(dir: &Path, job: String, base: PathBuf) -> Result<String, IpcError> {
    command(dir, &Request::Submit { job, base }).await
}

/// Follows the status of the node in `dir`, with `interval` as the shortest time between two.
///
/// # Errors
/// See [`status`].
pub async fn watch(dir: &Path, interval: Duration) -> Result<Watch, IpcError> {
    let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    let mut connection = Connection::open(dir).await?;
    connection.send(&Request::Watch { interval_ms }).await?;
    Ok(Watch { connection })
}

/// A running [`watch`].
#[derive(Debug)]
pub struct Watch {
    connection: Connection,
}

impl Watch {
    /// The next status; `None` when the node has ended.
    ///
    /// # Errors
    /// Where the node sends something else than a status, or dies within a line.
    pub async fn next(&mut self) -> Result<Option<NodeStatus>, IpcError> {
        match self.connection.receive().await? {
            Some(Response::Status { status }) => Ok(Some(*status)),
            Some(other) => Err(unexpected(other)),
            None => Ok(None),
        }
    }
}

async fn command(dir: &Path, request: &Request) -> Result<String, IpcError> {
    match ask(dir, request).await? {
        Response::Done { message } => Ok(message),
        other => Err(unexpected(other)),
    }
}

async fn ask(dir: &Path, request: &Request) -> Result<Response, IpcError> {
    let mut connection = Connection::open(dir).await?;
    connection.send(request).await?;
    connection.receive().await?.ok_or(IpcError::Closed)
}

fn unexpected(response: Response) -> IpcError {
    match response {
        Response::Error(refusal) => IpcError::Refused(refusal),
        Response::Done { .. } => IpcError::Malformed("done without a command".into()),
        Response::Status { .. } => IpcError::Malformed("a status where none was asked for".into()),
    }
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    async fn open(dir: &Path) -> Result<Self, IpcError> {
        let connected = match SocketAddress::of(dir, SOCKET_NAME) {
            Ok(address) => UnixStream::connect(&address.path).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream) }),
            // No file, or the file of a process that was killed.
            Err(source)
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(IpcError::NotRunning { dir: dir.to_owned() })
            }
            Err(source) => {
                let path = socket_path(dir);
                Err(IpcError::Io { action: "connect to the node at", path, source })
            }
        }
    }

    async fn send(&mut self, request: &Request) -> Result<(), IpcError> {
        let line = encode(request);
        let (bytes, limit) = (line.len(), REQUEST_BYTES_MAX);
        if bytes > limit {
            return Err(IpcError::RequestTooLong { bytes, limit });
        }
        self.stream.write_all(line.as_bytes()).await.map_err(|_| IpcError::Closed)
    }

    async fn receive(&mut self) -> Result<Option<Response>, IpcError> {
        match read_line(&mut self.stream, RESPONSE_BYTES_MAX).await? {
            Some(line) => decode(&line).map(Some),
            None => Ok(None),
        }
    }
}

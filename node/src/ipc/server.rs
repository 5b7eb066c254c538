use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::line::read_line;
use super::lock::FolderLock;
use super::{
    CLIENTS_MAX, IpcError, REQUEST_BYTES_MAX, Request, Response, SOCKET_NAME, SocketAddress,
    decode, encode,
};
use crate::status::StatusHub;

/// A client that takes longer to take an answer is dropped: it must not hold the node's memory.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that connects and asks nothing is dropped after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a closing server waits for answers on their way.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
const WATCH_INTERVAL_MS_MIN: u32 = 50;
const COMMANDS_MAX: usize = 16;

/// A command from a local client that the driver carries out.
#[derive(Debug)]
pub enum IpcCommand {
    /// Finish the step, hand over, and end.
    Leave {
        /// Answer when the node has left, or cannot.
        reply: Reply,
    },
    /// Save and end at once.
    Stop {
        /// Answer when the state is saved.
        reply: Reply,
    },
    /// Start a job.
    Submit {
        /// The text of the job file.
        job: String,
        /// The folder that relative paths in it start from.
        base: PathBuf,
        /// Answer when the job is accepted or refused.
        reply: Reply,
    },
}

/// Where the answer to a command goes. Dropping it tells the client that the node ended.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<String, Refusal>>);

impl Reply {
    /// The command was carried out; `message` tells the user what happened.
    pub fn done(self, message: impl Into<String>) {
        // A client that has gone does not wait for the answer.
        let _ = self.0.send(Ok(message.into()));
    }

    /// The command is refused.
    pub fn refuse(self, refusal: Refusal) {
        let _ = self.0.send(Err(refusal));
    }
}

/// Why a command is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What the user can do.
    #[serde(default)]
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without advice.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// Adds advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A node's open socket. Dropping it closes the socket and frees the folder.
#[derive(Debug)]
pub struct IpcServer {
    socket: PathBuf,
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
    _lock: FolderLock,
}

/// Takes the node's folder `dir` for this process, creating it where needed, and serves its socket.
/// Status requests are answered from `hub`; commands arrive at the returned receiver. Call it inside
/// a tokio runtime.
///
/// # Errors
/// [`IpcError::AlreadyRuns`] where a live process has the folder, [`IpcError::Io`] where the folder
/// or the socket cannot be created.
pub fn serve(
    dir: &Path,
    hub: StatusHub,
) -> Result<(IpcServer, mpsc::Receiver<IpcCommand>), IpcError> {
    let lock = FolderLock::take(dir)?;
    let listener = bind(dir)?;
    let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
    let (closing, closing_seen) = watch::channel(false);
    let task = tokio::spawn(accept(listener, hub, commands, closing_seen));
    let socket = dir.join(SOCKET_NAME);
    Ok((IpcServer { socket, closing, task, _lock: lock }, receiver))
}

impl IpcServer {
    /// Closes the socket after the answers on their way, and a last status to each watcher, are
    /// sent. Takes at most half a second.
    pub async fn shutdown(mut self) {
        self.closing.send_replace(true);
        let _ = timeout(CLOSE_TIMEOUT, &mut self.task).await;
    }
}

impl Drop for IpcServer {
    fn drop(&mut self) {
        self.task.abort();
        // The lock is still held, so this is the own socket and not that of a successor.
        let _ = fs::remove_file(&self.socket);
    }
}

/// Binds the socket under another name and renames it, so that it never exists with wider rights,
/// and so that one left by a killed process is replaced.
fn bind(dir: &Path) -> Result<UnixListener, IpcError> {
    let error = |source| IpcError::Io {
        action: "open the local socket",
        path: dir.join(SOCKET_NAME),
        source,
    };
    let new = SocketAddress::of(dir, "node.sock.new").map_err(error)?;
    match fs::remove_file(&new.path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    let listener = UnixListener::bind(&new.path).map_err(error)?;
    fs::set_permissions(&new.path, fs::Permissions::from_mode(0o600)).map_err(error)?;
    fs::rename(&new.path, dir.join(SOCKET_NAME)).map_err(error)?;
    Ok(listener)
}

async fn accept(
    listener: UnixListener,
    hub: StatusHub,
    commands: mpsc::Sender<IpcCommand>,
    mut closing: watch::Receiver<bool>,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            _ = closing.changed() => break,
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if clients.len() < CLIENTS_MAX => match accepted {
                Ok((stream, _)) => {
                    let client = Client::new(stream, hub.clone(), commands.clone());
                    clients.spawn(client.serve(closing.clone()));
                }
                // Out of file descriptors, most likely: others may come free.
                Err(error) => {
                    tracing::warn!("a local client could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
        }
    }
    drop(listener);
    while clients.join_next().await.is_some() {}
}

struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    hub: StatusHub,
    commands: mpsc::Sender<IpcCommand>,
}

impl Client {
    fn new(stream: UnixStream, hub: StatusHub, commands: mpsc::Sender<IpcCommand>) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer, hub, commands }
    }

    /// Answers requests until the client closes, errs, idles, or the server closes.
    async fn serve(mut self, mut closing: watch::Receiver<bool>) {
        loop {
            let line = tokio::select! {
                _ = closing.changed() => return,
                line = timeout(IDLE_TIMEOUT, read_line(&mut self.reader, REQUEST_BYTES_MAX)) => line,
            };
            let request = match line {
                Ok(Ok(Some(line))) => decode::<Request>(&line),
                Ok(Err(error @ IpcError::TooLong { .. })) => Err(error),
                Ok(Ok(None) | Err(_)) | Err(_) => return,
            };
            let goes_on = match request {
                Ok(request) => self.answer(request, &mut closing).await,
                Err(error) => {
                    let message = match error {
                        IpcError::Malformed(why) => format!("the request is not understood: {why}"),
                        IpcError::Version { theirs, ours } => format!(
                            "the request is of version {theirs} of the local protocol, the node of version {ours}"
                        ),
                        other => other.to_string(),
                    };
                    self.send(&Response::Error(Refusal::new(message))).await;
                    // After a broken line there is no telling where the next one starts.
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    async fn answer(&mut self, request: Request, closing: &mut watch::Receiver<bool>) -> bool {
        match request {
            Request::Status => {
                let status = Box::new(self.hub.snapshot());
                self.send(&Response::Status { status }).await
            }
            Request::Watch { interval_ms } => {
                let interval_ms = interval_ms.clamp(WATCH_INTERVAL_MS_MIN, 60_000);
                self.watch(Duration::from_millis(interval_ms.into()), closing).await;
                false
            }
            Request::Leave => self.command(|reply| IpcCommand::Leave { reply }).await,
            Request::Stop => self.command(|reply| IpcCommand::Stop { reply }).await,
            Request::Submit { job, base } => {
                self.command(|reply| IpcCommand::Submit { job, base, reply }).await
            }
        }
    }

    async fn command(&mut self, build: impl FnOnce(Reply) -> IpcCommand) -> bool {
        let (sender, receiver) = oneshot::channel();
        let refused = |message: &str| Response::Error(Refusal::new(message));
        let response = match self.commands.try_send(build(Reply(sender))) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                refused("the node has too many commands waiting")
            }
            Err(mpsc::error::TrySendError::Closed(_)) => refused("the node is ending"),
            Ok(()) => match receiver.await {
                Ok(Ok(message)) => Response::Done { message },
                Ok(Err(refusal)) => Response::Error(refusal),
                Err(_) => refused("the node ended before it carried out the command"),
            },
        };
        self.send(&response).await
    }

    /// Sends the status now, after changes but not faster than `interval`, and a last time at the
    /// server's end.
    async fn watch(&mut self, interval: Duration, closing: &mut watch::Receiver<bool>) {
        let mut feed = self.hub.subscribe();
        loop {
            let status = Box::new(feed.snapshot());
            if !self.send(&Response::Status { status }).await {
                return;
            }
            let next = async {
                tokio::time::sleep(interval).await;
                feed.changed().await
            };
            let ended = tokio::select! {
                changed = next => !changed,
                _ = closing.changed() => true,
                // Anything that a watching client sends, its end too, ends the watch.
                () = ends(read_line(&mut self.reader, REQUEST_BYTES_MAX)) => return,
            };
            if ended {
                let status = Box::new(feed.snapshot());
                self.send(&Response::Status { status }).await;
                return;
            }
        }
    }

    async fn send(&mut self, response: &Response) -> bool {
        let line = encode(response);
        matches!(timeout(WRITE_TIMEOUT, self.writer.write_all(line.as_bytes())).await, Ok(Ok(())))
    }
}

async fn ends<T>(future: impl Future<Output = T>) {
    let _ = future.await;
}

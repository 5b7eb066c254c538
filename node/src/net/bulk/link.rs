//! A proven connection in use: its writers, its readers, and how it ended.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use p2ptrain_protocol::id::Incarnation;
use quinn::{Connection, ConnectionError, ReadToEndError, RecvStream, SendStream, VarInt};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{
    close,
    frame::{self, ChunkReader, FrameError, Kind, MessageReader},
    handshake::Proven,
    tuning::Tuning,
};
use crate::{
    identity::PeerId,
    net::{NetEvent, RequestError, Responder, SendError, hub::Report, limits, presence},
};

/// Ends a response stream whose request was not answered.
const REFUSED: VarInt = VarInt::from_u32(1);

/// The sending side of a connection.
pub(crate) struct Link {
    /// Tells apart the links that this node has had.
    pub(crate) id: u64,
    pub(crate) peer: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) since: Instant,
    connection: Connection,
    /// Why the driver refused the peer.
    refused: Arc<OnceLock<String>>,
    messages: mpsc::UnboundedSender<Outgoing>,
    chunks: Vec<mpsc::UnboundedSender<Outgoing>>,
    next_chunk: AtomicUsize,
    queued_bytes: Arc<AtomicUsize>,
    queued_bytes_max: usize,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The peer said goodbye.
    #[error("it left")]
    Goodbye,
    /// The peer's system knows nothing of the connection: its process is another one.
    #[error("its system knows nothing of the connection")]
    Reset,
    /// The peer broke the format.
    #[error("it broke the format: {0}")]
    Violation(String),
    /// This side closed it.
    #[error("closed here")]
    Local,
    /// Silence, or a close for another reason.
    #[error("{0}")]
    Failed(String),
}

/// One frame on its way: never empty, and its bytes are shared with the caller.
struct Outgoing {
    head: Bytes,
    body: Bytes,
}

/// Why a reader stopped.
enum Stop {
    /// The connection is gone; its own error says why.
    Connection,
    /// The peer broke the format.
    Violation(String),
}

/// Where readers deliver.
#[derive(Clone)]
struct Delivery {
    peer: PeerId,
    events: mpsc::Sender<NetEvent>,
    reports: mpsc::Sender<Report>,
}

impl Link {
    /// A connection that the pair has chosen, and the future that moves its data, to be spawned.
    /// Frames can be queued at once; nothing is delivered before the future runs.
    pub(crate) fn new(
        id: u64,
        proven: Proven,
        tuning: &Tuning,
        events: mpsc::Sender<NetEvent>,
        reports: mpsc::Sender<Report>,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let Proven { peer, incarnation, connection, send, recv } = proven;
        let (messages, message_queue) = mpsc::unbounded_channel();
        let streams = u32::from(tuning.chunk_streams).clamp(1, limits::CHUNK_STREAMS_MAX);
        let (chunks, chunk_queues): (Vec<_>, Vec<_>) =
            (0..streams).map(|_| mpsc::unbounded_channel()).unzip();
        let link = Arc::new(Self {
            id,
            peer,
            incarnation,
            since: Instant::now(),
            connection: connection.clone(),
            refused: Arc::default(),
            messages,
            chunks,
            next_chunk: AtomicUsize::new(0),
            queued_bytes: Arc::default(),
            queued_bytes_max: tuning.queue_bytes_max,
        });
        let queued_bytes = Arc::clone(&link.queued_bytes);
        let refused = Arc::clone(&link.refused);
        let delivery = Delivery { peer, events, reports };
        let running = async move {
            let mut tasks = JoinSet::new();
            tasks.spawn(write(Stream::Open(send), message_queue, Arc::clone(&queued_bytes)));
            for queue in chunk_queues {
                let stream = Stream::Later(connection.clone());
                tasks.spawn(write(stream, queue, Arc::clone(&queued_bytes)));
            }
            tasks.spawn(read_messages(recv, delivery.clone()));
            tasks.spawn(accept_chunks(connection.clone(), delivery.clone()));
            tasks.spawn(accept_requests(connection.clone(), delivery.clone()));
            supervise(id, connection, refused, tasks, delivery).await;
        };
        (link, running)
    }

    pub(crate) fn send(&self, kind: Kind, body: Bytes) -> Result<(), SendError> {
        if body.len() > limits::MESSAGE_BYTES_MAX {
            return Err(SendError::TooLarge { bytes: body.len(), max: limits::MESSAGE_BYTES_MAX });
        }
        let head = frame::message_head(kind, body.len());
        self.queue(&self.messages, Outgoing { head, body })
    }

    pub(crate) fn send_chunk(&self, header: &[u8], payload: Bytes) -> Result<(), SendError> {
        for (bytes, max) in [
            (header.len(), limits::CHUNK_HEADER_BYTES_MAX),
            (payload.len(), limits::CHUNK_PAYLOAD_BYTES_MAX),
        ] {
            if bytes > max {
                return Err(SendError::TooLarge { bytes, max });
            }
        }
        let head = frame::chunk_head(header, payload.len());
        let turn = self.next_chunk.fetch_add(1, Ordering::Relaxed);
        self.queue(&self.chunks[turn % self.chunks.len()], Outgoing { head, body: payload })
    }

    /// Asks the peer and waits for its answer; dropping the future withdraws the question.
    pub(crate) async fn request(&self, bytes: Bytes, limit: usize) -> Result<Bytes, RequestError> {
        if bytes.len() > limits::REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge { bytes: bytes.len() });
        }
        let lost = |_| RequestError::Lost;
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(lost)?;
        // If the peer has stopped reading already, its answer or refusal says more than this error.
        let _ = send.write_chunk(bytes).await;
        let _ = send.finish();
        match recv.read_to_end(limit).await {
            Ok(response) => Ok(response.into()),
            Err(ReadToEndError::TooLong) => Err(RequestError::ResponseTooLarge { max: limit }),
            Err(ReadToEndError::Read(quinn::ReadError::Reset(_))) => Err(RequestError::Refused),
            Err(ReadToEndError::Read(_)) => Err(RequestError::Lost),
        }
    }

    /// Breaks the connection with a peer whose messages have the format but make no sense.
    pub(crate) fn refuse(&self, reason: &str) {
        // The first reason stands.
        let _ = self.refused.set(reason.to_owned());
        self.close(close::VIOLATION, reason);
    }

    pub(crate) fn close(&self, code: u32, reason: &str) {
        self.connection.close(VarInt::from_u32(code), reason.as_bytes());
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        let remote = self.connection.remote_address();
        SocketAddr::new(remote.ip().to_canonical(), remote.port())
    }

    pub(crate) fn stats(&self) -> quinn::ConnectionStats {
        self.connection.stats()
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// The channels are unbounded in frames; this bounds them in bytes, which is what memory is
    /// made of.
    fn queue(
        &self,
        queue: &mpsc::UnboundedSender<Outgoing>,
        frame: Outgoing,
    ) -> Result<(), SendError> {
        let bytes = frame.bytes();
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.queued_bytes_max {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SendError::QueueFull { queued_bytes: before });
        }
        queue.send(frame).map_err(|_| SendError::NotConnected)
    }
}

impl Outgoing {
    fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> Self {
        match &error {
            ConnectionError::LocallyClosed => Self::Local,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::ApplicationClosed(c)
                if c.error_code == VarInt::from_u32(close::GOODBYE) =>
            {
                Self::Goodbye
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Waits for the end, stops all readers, and only then reports it: no event of a link follows its
/// loss.
async fn supervise(
    id: u64,
    connection: Connection,
    refused: Arc<OnceLock<String>>,
    mut tasks: JoinSet<Result<(), Stop>>,
    delivery: Delivery,
) {
    let end = loop {
        tokio::select! {
            error = connection.closed() => break match refused.get() {
                Some(reason) => End::Violation(reason.clone()),
                None => End::from(error),
            },
            Some(done) = tasks.join_next() => {
                if let Ok(Err(Stop::Violation(reason))) = done {
                    connection.close(VarInt::from_u32(close::VIOLATION), reason.as_bytes());
                    break End::Violation(reason);
                }
            }
        }
    };
    tasks.shutdown().await;
    // It fails only when the hub is gone, and then nobody needs to know.
    let _ = delivery.reports.send(Report::LinkEnded { peer: delivery.peer, id, end }).await;
}

enum Stream {
    Open(SendStream),
    /// Opened when there is something to send.
    Later(Connection),
}

async fn write(
    mut stream: Stream,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
) -> Result<(), Stop> {
    while let Some(frame) = queue.recv().await {
        if let Stream::Later(connection) = &stream {
            let opened = connection.open_uni().await.map_err(|_| Stop::Connection)?;
            stream = Stream::Open(opened);
        }
        let Stream::Open(open) = &mut stream else { continue };
        let bytes = frame.bytes();
        let result = open.write_all_chunks(&mut [frame.head, frame.body]).await;
        queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        match result {
            Ok(()) => {}
            Err(quinn::WriteError::Stopped(_)) => {
                return Err(Stop::Violation("it refuses a stream that must stay open".to_owned()));
            }
            Err(_) => return Err(Stop::Connection),
        }
    }
    Ok(())
}

async fn read_messages(mut recv: RecvStream, to: Delivery) -> Result<(), Stop> {
    let mut reader = MessageReader::default();
    while let Some(mut part) = read_part(&mut recv).await? {
        while let Some((kind, bytes)) = reader.read(&mut part)? {
            match kind {
                Kind::Message => to.event(NetEvent::Message { from: to.peer, bytes }).await?,
                Kind::Presence => {
                    let presences =
                        presence::decode(&bytes).map_err(|e| Stop::Violation(e.to_string()))?;
                    to.report(Report::Presence { from: to.peer, presences }).await?;
                }
            }
        }
    }
    reader.finish()?;
    Err(Stop::Violation("it ended its message stream".to_owned()))
}

async fn accept_chunks(connection: Connection, to: Delivery) -> Result<(), Stop> {
    let mut readers = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let stream = stream.map_err(|_| Stop::Connection)?;
                readers.spawn(read_chunks(stream, to.clone()));
            }
            Some(done) = readers.join_next() => {
                if let Ok(Err(Stop::Violation(reason))) = done {
                    return Err(Stop::Violation(reason));
                }
            }
        }
    }
}

async fn read_chunks(mut recv: RecvStream, to: Delivery) -> Result<(), Stop> {
    let mut reader = ChunkReader::default();
    while let Some(mut part) = read_part(&mut recv).await? {
        while let Some((header, payload)) = reader.read(&mut part)? {
            to.event(NetEvent::Chunk { from: to.peer, header, payload }).await?;
        }
    }
    Ok(reader.finish()?)
}

async fn accept_requests(connection: Connection, to: Delivery) -> Result<(), Stop> {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let (send, recv) = stream.map_err(|_| Stop::Connection)?;
                answers.spawn(answer(send, recv, to.clone()));
            }
            Some(done) = answers.join_next() => {
                if let Ok(Err(Stop::Violation(reason))) = done {
                    return Err(Stop::Violation(reason));
                }
            }
        }
    }
}

async fn answer(mut send: SendStream, mut recv: RecvStream, to: Delivery) -> Result<(), Stop> {
    let bytes = match recv.read_to_end(limits::REQUEST_BYTES_MAX).await {
        Ok(bytes) => bytes.into(),
        Err(ReadToEndError::TooLong) => {
            let max = limits::REQUEST_BYTES_MAX;
            return Err(Stop::Violation(format!("a request of more than {max} bytes")));
        }
        // Withdrawn, or the connection is gone.
        Err(ReadToEndError::Read(_)) => return Ok(()),
    };
    let (respond, response) = oneshot::channel();
    let respond = Responder { respond };
    to.event(NetEvent::Request { from: to.peer, bytes, respond }).await?;
    let withdrawn = send.stopped();
    tokio::select! {
        response = response => match response {
            Ok(response) => {
                // The asker may have gone meanwhile.
                let _ = send.write_chunk(response).await;
                let _ = send.finish();
            }
            Err(_) => drop(send.reset(REFUSED)),
        },
        _ = withdrawn => {}
    }
    Ok(())
}

async fn read_part(recv: &mut RecvStream) -> Result<Option<Bytes>, Stop> {
    match recv.read_chunk(usize::MAX, true).await {
        Ok(part) => Ok(part.map(|part| part.bytes)),
        Err(quinn::ReadError::Reset(_)) => Err(FrameError::Truncated.into()),
        Err(_) => Err(Stop::Connection),
    }
}

impl Delivery {
    async fn event(&self, event: NetEvent) -> Result<(), Stop> {
        self.events.send(event).await.map_err(|_| Stop::Connection)
    }

    async fn report(&self, report: Report) -> Result<(), Stop> {
        self.reports.send(report).await.map_err(|_| Stop::Connection)
    }
}

impl From<FrameError> for Stop {
    fn from(error: FrameError) -> Self {
        Self::Violation(error.to_string())
    }
}

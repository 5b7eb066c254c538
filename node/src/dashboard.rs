//! The display of a node's status: live on a terminal, plain lines elsewhere, or JSON lines.
//!
//! The live display takes the lower part of the terminal and leaves what was printed before. It
//! reads no keys, so that Ctrl-C stays a signal, and it restores the terminal when it is dropped,
//! finished, or when the process panics.

mod live;
mod text;
mod theme;
mod view;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::cli::Output;
use crate::logging;
use crate::status::{NodeStatus, Phase};

pub use self::live::restore_terminal;
pub use self::text::summary;

/// Time between two plain lines without an event, and between two JSON status lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// How a status is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Live, in the lower part of the terminal.
    Live {
        /// Colours may be used.
        colour: bool,
    },
    /// A line for people at every event and every few seconds.
    Lines,
    /// One JSON object a line: `{"event": ...}` for each event, `{"status": ...}` at most once a
    /// second, `{"note": "..."}`.
    Json,
    /// Nothing.
    Quiet,
}

impl Mode {
    /// Chooses for stdout and the options.
    pub fn of(output: &Output) -> Self {
        match output {
            Output { json: true, .. } => Self::Json,
            Output { quiet: true, .. } => Self::Quiet,
            Output { terminal: true, colour, .. } if live::in_foreground() => {
                Self::Live { colour: *colour }
            }
            _ => Self::Lines,
        }
    }
}

/// A display on stdout. Feed it with [`Dashboard::draw`], a few times a second at most.
#[derive(Debug)]
pub struct Dashboard {
    sink: Sink,
    next_event: u64,
    last_line: Option<Instant>,
    /// Phase and step of the last line.
    last_shown: Option<(Phase, Option<u64>)>,
    /// The newest status line that was not due yet.
    waiting: Option<String>,
}

#[derive(Debug)]
enum Sink {
    Live(Box<live::Live>),
    Lines,
    Json,
    Quiet,
}

impl Dashboard {
    /// Opens a display. Where a live one is asked for and the terminal cannot, plain lines.
    pub fn new(mode: Mode) -> Self {
        let sink = match mode {
            Mode::Live { colour } => match live::Live::open(colour) {
                Ok(live) => Sink::Live(Box::new(live)),
                Err(error) => {
                    tracing::debug!("no live display: {error}");
                    Sink::Lines
                }
            },
            Mode::Lines => Sink::Lines,
            Mode::Json => Sink::Json,
            Mode::Quiet => Sink::Quiet,
        };
        Self { sink, next_event: 0, last_line: None, last_shown: None, waiting: None }
    }

    /// Shows a status. `title` is shown in place of the node's name, where it is not empty.
    ///
    /// # Errors
    /// Where stdout cannot be written to. A closed pipe is no error: the display goes quiet.
    pub fn draw(&mut self, status: &NodeStatus, title: &str) -> io::Result<()> {
        let result = match &mut self.sink {
            Sink::Quiet => return Ok(()),
            Sink::Live(live) => {
                let drawn = logging::take_held()
                    .into_iter()
                    .try_for_each(|line| live.note(&line))
                    .and_then(|()| live.draw(status, title));
                if let Err(error) = drawn {
                    // The terminal went away or does not answer: go on with lines.
                    tracing::debug!("the live display ends: {error}");
                    self.sink = Sink::Lines;
                    self.next_event = status.events.next_seq();
                }
                return Ok(());
            }
            Sink::Lines => self.draw_lines(status),
            Sink::Json => self.draw_json(status),
        };
        self.unless_closed(result)
    }

    /// Prints a line that stays, above the live display.
    ///
    /// # Errors
    /// See [`Dashboard::draw`].
    pub fn note(&mut self, text: &str) -> io::Result<()> {
        let result = match &mut self.sink {
            Sink::Quiet => Ok(()),
            Sink::Live(live) => live.note(text),
            Sink::Lines => print_line(text),
            Sink::Json => print_line(&serde_json::json!({ "note": text }).to_string()),
        };
        self.unless_closed(result)
    }

    /// Ends the display and leaves its last state on the terminal. Plain output gets the last
    /// status that was not due yet.
    ///
    /// # Errors
    /// See [`Dashboard::draw`].
    pub fn finish(mut self) -> io::Result<()> {
        if let Sink::Live(live) = &mut self.sink {
            for line in logging::take_held() {
                live.note(&line)?;
            }
            return live.close();
        }
        let result = self.waiting.take().map_or(Ok(()), |line| print_line(&line));
        self.unless_closed(result)
    }

    fn draw_lines(&mut self, status: &NodeStatus) -> io::Result<()> {
        for event in status.events.since(self.next_event) {
            print_line(&text::event_line(status, event))?;
        }
        self.next_event = status.events.next_seq();
        let Some(line) = text::step_line(status) else { return Ok(()) };
        self.draw_when_due(status, line, LINE_INTERVAL)
    }

    fn draw_json(&mut self, status: &NodeStatus) -> io::Result<()> {
        for event in status.events.since(self.next_event) {
            print_line(&serde_json::json!({ "event": event }).to_string())?;
        }
        self.next_event = status.events.next_seq();
        self.draw_when_due(status, text::json_line(status), JSON_INTERVAL)
    }

    /// Prints `line` at a change of phase, and at a new step when the interval is over; otherwise
    /// keeps it for the end.
    fn draw_when_due(
        &mut self,
        status: &NodeStatus,
        line: String,
        interval: Duration,
    ) -> io::Result<()> {
        let shown = (status.phase, status.job.as_ref().map(|job| job.step));
        let due = match (self.last_shown, self.last_line) {
            (Some(last), _) if last == shown => return Ok(()),
            (Some((phase, _)), Some(at)) => phase != status.phase || at.elapsed() >= interval,
            _ => true,
        };
        if !due {
            self.waiting = Some(line);
            return Ok(());
        }
        self.waiting = None;
        self.last_line = Some(Instant::now());
        self.last_shown = Some(shown);
        print_line(&line)
    }

    fn unless_closed(&mut self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.sink = Sink::Quiet;
                Ok(())
            }
            other => other,
        }
    }
}

fn print_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

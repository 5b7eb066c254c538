//! The terminal that the live display draws on, and its restoration.

use std::fmt;
use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::sync::{Mutex, Once, PoisonError};

use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Position;
use ratatui::{Terminal, TerminalOptions, Viewport};
use rustix::termios::{LocalModes, OptionalActions, QueueSelector, Termios};

use super::theme::Theme;
use super::view;
use crate::logging::{self, StderrHold};
use crate::status::{NodeStatus, clean};

/// A note longer than this many rows is cut.
const NOTE_ROWS_MAX: usize = 8;

/// What must be put back when the display ends, however it ends.
struct Restore {
    /// The terminal's settings, where they were changed.
    termios: Option<Termios>,
    /// The row, counted from 1, below which output goes on.
    bottom_row: u16,
}

static RESTORE: Mutex<Option<Restore>> = Mutex::new(None);

/// Puts the terminal back as it was before a live display; without one it does nothing. For paths
/// that end the process without dropping the display.
pub fn restore_terminal() {
    let taken = RESTORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(restore) = taken else { return };
    // Below the display, cursor visible, colours off. Nothing can be done where this fails.
    let mut out = io::stdout();
    let _ = write!(out, "\x1b[{};1H\x1b[0m\x1b[?25h\r\n", restore.bottom_row);
    let _ = out.flush();
    if let Some(termios) = restore.termios {
        let stdin = io::stdin();
        // What was typed at the display is not meant for the shell.
        let _ = rustix::termios::tcflush(&stdin, QueueSelector::IFlush);
        let _ = rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &termios);
    }
}

/// False where this process was started in the background (`p2ptrain run &`): there the terminal
/// would stop it at the first change of its settings.
pub(super) fn in_foreground() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    foreground_of(&stat).unwrap_or(true)
}

/// After the name, which may itself hold spaces and parentheses, come: state, parent, process group,
/// session, terminal, foreground group of the terminal. Without a controlling terminal nothing stops
/// the process.
fn foreground_of(stat: &str) -> Option<bool> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let group = fields.nth(2)?;
    let terminal = fields.nth(1)?;
    let foreground_group = fields.next()?;
    Some(terminal == "0" || group == foreground_group)
}

/// An open live display.
pub(super) struct Live {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    theme: Theme,
    hold: Option<StderrHold>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("theme", &self.theme).finish_non_exhaustive()
    }
}

impl Live {
    /// Takes the lower part of the terminal.
    pub(super) fn open(colour: bool) -> io::Result<Self> {
        restore_on_panic();
        let termios = silence_keys();
        set_restore(Some(Restore { termios, bottom_row: u16::MAX }));
        let options = TerminalOptions { viewport: Viewport::Inline(view::HEIGHT) };
        match Terminal::with_options(CrosstermBackend::new(io::stdout()), options) {
            Ok(terminal) => {
                let hold = Some(logging::hold_stderr());
                Ok(Self { terminal, theme: Theme { colour }, hold })
            }
            Err(error) => {
                restore_terminal();
                Err(error)
            }
        }
    }

    pub(super) fn draw(&mut self, status: &NodeStatus, title: &str) -> io::Result<()> {
        let theme = self.theme;
        let frame = self.terminal.draw(|frame| {
            let area = frame.area();
            view::render(status, title, theme, area, frame.buffer_mut());
        })?;
        let bottom = frame.area.bottom();
        if let Some(restore) = RESTORE.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            restore.bottom_row = bottom;
        }
        Ok(())
    }

    /// Prints text above the display, wrapped at the terminal's width.
    pub(super) fn note(&mut self, text: &str) -> io::Result<()> {
        let width = self.terminal.size()?.width.max(1);
        let rows = wrap(text, width.into());
        let height = u16::try_from(rows.len()).expect("at most NOTE_ROWS_MAX rows");
        self.terminal.insert_before(height, |buffer: &mut Buffer| {
            for (y, row) in (0..).zip(&rows) {
                buffer.set_string(0, y, row, ratatui::style::Style::new());
            }
        })
    }

    /// Leaves the last picture on the terminal and the cursor below it.
    pub(super) fn close(&mut self) -> io::Result<()> {
        let area = self.terminal.get_frame().area();
        let last = Position::new(0, area.bottom().saturating_sub(1));
        let moved = self.terminal.set_cursor_position(last);
        let shown = self.terminal.show_cursor();
        restore_terminal();
        self.hold = None;
        moved.and(shown)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Typed characters would be written into the picture, and Enter would scroll it. Signals stay.
fn silence_keys() -> Option<Termios> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    let before = rustix::termios::tcgetattr(&stdin).ok()?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
    rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &silent).ok()?;
    Some(before)
}

fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore_terminal();
            before(info);
        }));
    });
}

fn set_restore(restore: Option<Restore>) {
    *RESTORE.lock().unwrap_or_else(PoisonError::into_inner) = restore;
}

/// Rows of at most `width` characters, without control characters.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut rows = Vec::new();
    for line in text.lines() {
        let line: Vec<char> = clean(line, width * NOTE_ROWS_MAX).chars().collect();
        if line.is_empty() {
            rows.push(String::new());
        }
        rows.extend(line.chunks(width).map(|row| row.iter().collect()));
    }
    rows.truncate(NOTE_ROWS_MAX);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_wrap_and_stay_bounded() {
        assert_eq!(wrap("abcdef\n\ngh", 4), ["abcd", "ef", "", "gh"]);
        assert_eq!(wrap("a\x1b[2J", 80), ["a [2J"]);
        assert_eq!(wrap(&"x".repeat(10_000), 10).len(), NOTE_ROWS_MAX);
    }

    #[test]
    fn a_background_process_is_told_from_the_process_table() {
        assert_eq!(foreground_of("7 (a) b) S 1 7 3 34816 7 0"), Some(true));
        assert_eq!(foreground_of("7 (sh) S 1 7 3 34816 9 0"), Some(false));
        assert_eq!(foreground_of("7 (sh) S 1 7 3 0 -1 0"), Some(true));
        assert_eq!(foreground_of(""), None);
    }
}

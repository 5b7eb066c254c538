use ratatui::style::{Color, Modifier, Style};

use crate::status::{EventLevel, PeerKind};

/// Styles by meaning. Without colours, weight and symbols carry it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    pub(super) colour: bool,
}

impl Theme {
    pub(super) fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(super) fn loss(self) -> Style {
        self.fg(Color::Cyan)
    }

    pub(super) fn held_out(self) -> Style {
        self.fg(Color::Yellow)
    }

    pub(super) fn bar(self) -> Style {
        self.fg(Color::Green)
    }

    pub(super) fn event(self, level: EventLevel) -> Style {
        match level {
            EventLevel::Info => Style::new(),
            EventLevel::Good => self.fg(Color::Green),
            EventLevel::Warn => self.fg(Color::Yellow).add_modifier(Modifier::BOLD),
        }
    }

    pub(super) fn peer(self, kind: PeerKind) -> Style {
        match kind {
            PeerKind::Itself | PeerKind::Member => self.fg(Color::Green),
            PeerKind::Joining => self.fg(Color::Yellow),
            PeerKind::Known => Style::new(),
            PeerKind::Lost => self.fg(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    fn fg(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

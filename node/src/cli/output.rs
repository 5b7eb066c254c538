use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::Global;

/// Where results go: stdout, as text or as JSON. A closed pipe (`| head`) ends the output silently.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Print JSON.
    pub json: bool,
    /// Print only results and errors.
    pub quiet: bool,
    /// Colours may be used.
    pub colour: bool,
    /// Stdout is a terminal that can move the cursor.
    pub terminal: bool,
}

impl Output {
    /// Chooses by the options, the environment (`NO_COLOR`, `TERM`) and what stdout is.
    pub fn new(global: &Global) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let terminal = io::stdout().is_terminal() && !dumb;
        Self {
            json: global.json,
            quiet: global.quiet,
            colour: terminal && !global.no_color && !no_color,
            terminal,
        }
    }

    /// Prints a result: `text` for people, or `value` as one line of JSON.
    ///
    /// # Errors
    /// Where stdout cannot be written to, except for a closed pipe.
    pub fn result<T: Serialize>(&self, text: &str, value: &T) -> io::Result<()> {
        if self.json { self.json_line(value) } else { self.text(text) }
    }

    /// Prints text and a newline.
    ///
    /// # Errors
    /// See [`Output::result`].
    pub fn text(&self, text: &str) -> io::Result<()> {
        unless_closed(writeln!(io::stdout().lock(), "{text}"))
    }

    /// Prints `value` as one line of JSON.
    ///
    /// # Errors
    /// See [`Output::result`].
    pub fn json_line<T: Serialize>(&self, value: &T) -> io::Result<()> {
        let line = serde_json::to_string(value)?;
        unless_closed(writeln!(io::stdout().lock(), "{line}"))
    }

    /// Prints a note for people, unless `--quiet` or `--json`.
    ///
    /// # Errors
    /// See [`Output::result`].
    pub fn note(&self, text: &str) -> io::Result<()> {
        if self.quiet || self.json { Ok(()) } else { self.text(text) }
    }
}

fn unless_closed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A number of bytes: `512 B`, `1.5 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in units {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A length of time: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`, `4 d 3 h`.
pub fn human_duration(seconds: f32) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".to_owned();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {:02} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// A count with separators: `1,234,567`.
pub fn human_number(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_counts_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
        for (seconds, text) in [
            (0.84, "0.8 s"),
            (9.97, "10 s"),
            (59.4, "59 s"),
            (65.0, "1 min 05 s"),
            (7800.0, "2 h 10 min"),
            (356_400.0, "4 d 3 h"),
            (f32::NAN, "unknown"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(human_number(number), text);
        }
    }
}

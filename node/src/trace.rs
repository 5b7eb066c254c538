//! Spans of a step in the Chrome trace event format, which Perfetto and chrome://tracing open.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// Spans kept at most; a trace is for looking at some steps, not at a week.
const EVENTS_MAX: u64 = 1_000_000;

/// Records spans, or does nothing when off.
#[derive(Debug)]
pub struct Trace {
    started: Instant,
    process: String,
    file: Option<Mutex<Sink>>,
}

#[derive(Debug)]
struct Sink {
    out: BufWriter<File>,
    events: u64,
}

/// A span that has begun.
#[derive(Debug)]
pub struct Span {
    name: &'static str,
    start_us: u64,
}

impl Trace {
    /// A trace that records nothing.
    pub fn off() -> Self {
        Self { started: Instant::now(), process: String::new(), file: None }
    }

    /// Records into `path`. `process` names the node in the display.
    ///
    /// # Errors
    /// The file can't be created.
    pub fn to_file(path: &Path, process: &str) -> std::io::Result<Self> {
        let mut out = BufWriter::new(File::create(path)?);
        // The closing bracket is optional in this format, so that a killed node's trace is whole.
        writeln!(out, "[")?;
        let file = Some(Mutex::new(Sink { out, events: 0 }));
        Ok(Self { started: Instant::now(), process: process.to_owned(), file })
    }

    /// Begins a span.
    pub fn begin(&self, name: &'static str) -> Span {
        let start_us = if self.file.is_some() { self.now_us() } else { 0 };
        Span { name, start_us }
    }

    /// Ends a span on this thread.
    pub fn end(&self, span: Span) {
        if self.file.is_some() {
            let us = self.now_us() - span.start_us;
            self.write(span.name, "X", span.start_us, &format!(",\"dur\":{us}"));
        }
    }

    /// Records a moment, with a number that belongs to it.
    pub fn instant(&self, name: &'static str, value: u64) {
        if self.file.is_some() {
            let extra = format!(",\"s\":\"t\",\"args\":{{\"value\":{value}}}");
            self.write(name, "i", self.now_us(), &extra);
        }
    }

    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn write(&self, name: &str, phase: &str, at_us: u64, extra: &str) {
        let Some(file) = &self.file else { return };
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("network").replace('"', "'");
        let process = &self.process;
        let Ok(mut sink) = file.lock() else { return };
        if sink.events >= EVENTS_MAX {
            return;
        }
        sink.events += 1;
        // A full disk ends the trace, never the training.
        let _ = writeln!(
            sink.out,
            "{{\"name\":\"{name}\",\"ph\":\"{phase}\",\"ts\":{at_us},\"pid\":\"{process}\",\
             \"tid\":\"{thread}\"{extra}}},"
        );
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Some(file) = &self.file
            && let Ok(mut sink) = file.lock()
        {
            let _ = sink.out.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_chrome_trace_events() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("trace.json");
        let trace = Trace::to_file(&path, "alpha").expect("the file can be made");
        let span = trace.begin("optimizer");
        trace.end(span);
        trace.instant("gradient ready", 3);
        drop(trace);
        let text = std::fs::read_to_string(&path).expect("the trace is there");
        let whole = format!("{}{{}}]", text.trim_end());
        let events: Vec<serde_json::Value> = serde_json::from_str(&whole).expect("valid JSON");
        assert_eq!(events[0]["name"], "optimizer");
        assert_eq!(events[0]["ph"], "X");
        assert_eq!(events[1]["args"]["value"], 3);
    }

    #[test]
    fn a_trace_that_is_off_costs_nothing_and_writes_nothing() {
        let trace = Trace::off();
        let span = trace.begin("optimizer");
        assert_eq!(span.start_us, 0);
        trace.end(span);
    }
}

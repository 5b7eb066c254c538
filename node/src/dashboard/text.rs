//! The words of the display, shared by the live view, the plain lines and `status`.

use std::fmt::Write as _;

use ratatui::text::Span;
use serde::Serialize;

use crate::cli::{human_duration, human_number};
use crate::status::{
    Curve, CurvePoint, Event, EventLevel, EventLog, JobStatus, NodeStatus, PeerKind, PeerStatus,
    Phase, clean,
};

/// Characters of a swarm's or a peer's id that people compare.
const ID_CHARS: usize = 8;

/// What `p2ptrain status` prints: everything that is known, for people.
pub fn summary(status: &NodeStatus) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}  {}", heading(status, ""), phase(status));
    for (name, value) in [
        ("peer id", status.peer.clone()),
        ("swarm", status.swarm.clone()),
        ("addresses", status.addresses.join(" ")),
        ("others join by", status.join_command.clone()),
    ] {
        if !value.is_empty() {
            let _ = writeln!(out, "  {name:<15} {value}");
        }
    }
    if let Some(job) = &status.job {
        let _ = writeln!(out, "\n{}", progress(job));
        for parts in [losses(job), speed(job)] {
            if !parts.is_empty() {
                let _ = writeln!(out, "{}", parts.join("  "));
            }
        }
    }
    if !status.peers.is_empty() {
        let _ = writeln!(out, "\n{}", peer_table(&status.peers));
    }
    let hidden = (status.peers_total as usize).saturating_sub(status.peers.len());
    if hidden > 0 {
        let _ = writeln!(out, "  and {hidden} more");
    }
    if status.ledger.steps > 0 {
        let _ = writeln!(out, "{}", ledger(status));
    }
    if let Some(checkpoint) = &status.checkpoint {
        let _ = writeln!(out, "checkpoint of step {}: {}", checkpoint.step, checkpoint.path);
    }
    let events: Vec<_> = status.events.iter().collect();
    if !events.is_empty() {
        out.push('\n');
        for event in events.iter().skip(events.len().saturating_sub(8)) {
            let _ = writeln!(out, "{}", event_line(status, event));
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// `alice (12D3Koo1)  job tiny`, or `title` in place of the node.
pub(super) fn heading(status: &NodeStatus, title: &str) -> String {
    let mut out = if title.is_empty() { node_name(status) } else { title.to_owned() };
    if let Some(job) = &status.job {
        let _ = write!(out, "  job {}", clean(&job.name, 40));
    }
    out
}

/// `training`, or `paused: only 1 of 3 members can be reached`.
pub(super) fn phase(status: &NodeStatus) -> String {
    match (status.phase, status.phase_note.as_str()) {
        (phase, "") => phase.word().to_owned(),
        (phase, note) => format!("{}: {}", phase.word(), clean(note, 200)),
    }
}

/// `step 120/400`
pub(super) fn step(job: &JobStatus) -> String {
    format!("step {}/{}", human_number(job.step), human_number(job.steps))
}

fn progress(job: &JobStatus) -> String {
    format!("{}  {:.0} %  {}", step(job), percent(job), time_left(job))
}

/// Share of the job that is done, from 0 to 100.
pub(super) fn percent(job: &JobStatus) -> f64 {
    if job.steps == 0 { 0.0 } else { (job.step as f64 / job.steps as f64 * 100.0).min(100.0) }
}

/// `1 min 12 s left`
pub(super) fn time_left(job: &JobStatus) -> String {
    match job.time_left_s {
        Some(_) if job.steps > 0 && job.step >= job.steps => "done".to_owned(),
        Some(seconds) => format!("{} left", human_duration(seconds)),
        None => String::new(),
    }
}

/// `loss 2.134 (mean 2.201)`, `held-out 2.310 (untrained 5.541)`, `lr 3.0e-4`, `grad 0.82`
pub(super) fn losses(job: &JobStatus) -> Vec<String> {
    let mut parts = vec![match (job.loss, job.loss_smoothed) {
        (Some(loss), Some(mean)) => format!("loss {loss:.3} (mean {mean:.3})"),
        (Some(loss), None) => format!("loss {loss:.3}"),
        _ => "no step yet".to_owned(),
    }];
    match job.evals.as_slice() {
        [] => {}
        [CurvePoint { step: 0, loss }] => parts.push(format!("untrained {loss:.3}")),
        [CurvePoint { step: 0, loss: untrained }, .., last] => {
            parts.push(format!("held-out {:.3} (untrained {untrained:.3})", last.loss));
        }
        [.., last] => parts.push(format!("held-out {:.3}", last.loss)),
    }
    if job.step > 0 {
        parts.push(if job.lr == 0.0 { "lr 0".to_owned() } else { format!("lr {:.1e}", job.lr) });
        parts.push(format!("grad {:.2}", job.grad_norm));
    }
    parts
}

/// `812 samples/s`, `step 212 ms: compute 180, exchange wait 22, apply 10`
pub(super) fn speed(job: &JobStatus) -> Vec<String> {
    let ms = &job.step_ms;
    if ms.total <= 0.0 {
        return Vec::new();
    }
    vec![
        format!("{} samples/s", rate(job.samples_per_s)),
        format!(
            "step {}: compute {}, exchange wait {}, apply {}",
            millis(ms.total),
            rate(ms.compute),
            rate(ms.exchange_wait),
            rate(ms.apply),
        ),
    ]
}

/// As many of the parts as fit into a line, at least the first.
pub(super) fn fit(parts: &[String], width: usize) -> String {
    let mut out = String::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if !out.is_empty() {
            if out.chars().count() + 2 + part.chars().count() > width {
                break;
            }
            out.push_str("  ");
        }
        out.push_str(part);
    }
    out
}

/// `120 steps, 7,680 samples, none lost or doubled`
pub(super) fn ledger(status: &NodeStatus) -> String {
    let account = &status.ledger;
    let verdict = match (account.lost, account.doubled) {
        (0, 0) => "none lost or doubled".to_owned(),
        (lost, doubled) => format!("{lost} LOST, {doubled} DOUBLED"),
    };
    format!(
        "ledger: {} steps, {} samples, {verdict}",
        human_number(account.steps),
        human_number(account.samples)
    )
}

/// The cells of a peer: name, state, slice, samples/s, link.
pub(super) fn peer_cells(peer: &PeerStatus) -> [String; 5] {
    let name = if peer.name.is_empty() { &peer.id } else { &peer.name };
    let name = format!("{} {}", symbol(peer.kind), clean(name, 16));
    let state = match (peer.state.as_str(), peer.kind) {
        ("", PeerKind::Itself | PeerKind::Member) => "member",
        ("", PeerKind::Joining) => "joining",
        ("", PeerKind::Known) => "connected",
        ("", PeerKind::Lost) => "lost",
        (state, _) => state,
    };
    let slice = peer
        .slice
        .map_or(String::new(), |slice| format!("{}..{} of {}", slice.first, slice.end, slice.of));
    let speed = peer.samples_per_s.map_or(String::new(), rate);
    let link = match (peer.kind, &peer.link) {
        (PeerKind::Itself, _) => "this node".to_owned(),
        (PeerKind::Lost, _) | (_, None) => String::new(),
        (_, Some(link)) => format!(
            "{}  in {} out {} MB/s",
            millis(link.rtt_ms),
            rate(link.in_mb_per_s),
            rate(link.out_mb_per_s)
        ),
    };
    [name, clean(state, 40), slice, speed, link]
}

pub(super) const PEER_HEADINGS: [&str; 5] = ["peer", "state", "slice", "samples/s", "link"];

/// `   12.3 s  a was lost`: seconds since the node started.
pub(super) fn event_line(status: &NodeStatus, event: &Event) -> String {
    let mark = if event.level == EventLevel::Warn { "! " } else { "" };
    format!("{}  {mark}{}", at(status, event.at_ms), event.text)
}

/// The plain line of progress; none before there is a job.
pub(super) fn step_line(status: &NodeStatus) -> Option<String> {
    let job = status.job.as_ref()?;
    let now_ms = crate::status::unix_ms();
    let mut parts = vec![step(job)];
    if let Some(loss) = job.loss {
        parts.push(format!("loss {loss:.3}"));
    }
    // The first one is that of the untrained model: no news of the training.
    if let Some(point) = job.evals.last().filter(|point| point.step > 0) {
        parts.push(format!("held-out {:.3}", point.loss));
    }
    if job.samples_per_s > 0.0 {
        parts.push(format!("{} samples/s", rate(job.samples_per_s)));
    }
    parts.push(match status.members() {
        1 => "1 member".to_owned(),
        members => format!("{members} members"),
    });
    if status.phase == Phase::Training {
        parts.push(time_left(job));
    } else {
        parts.push(phase(status));
    }
    parts.retain(|part| !part.is_empty());
    Some(format!("{}  {}", at(status, now_ms), parts.join("  ")))
}

/// `{"status": ...}` without the curve and the events, which would repeat themselves on every line.
pub(super) fn json_line(status: &NodeStatus) -> String {
    #[derive(Serialize)]
    struct Item {
        status: NodeStatus,
    }
    let mut status = status.clone();
    status.events = EventLog::default();
    if let Some(job) = &mut status.job {
        job.curve = Curve::default();
    }
    serde_json::to_string(&Item { status }).expect("a status is plain data")
}

/// Columns that a text takes on a terminal.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

fn node_name(status: &NodeStatus) -> String {
    let id: String = status.peer.chars().rev().take(ID_CHARS).collect();
    let id: String = id.chars().rev().collect();
    let name = clean(&status.name, crate::status::NAME_CHARS_MAX);
    if id.is_empty() { name } else { format!("{name} (…{id})") }
}

fn at(status: &NodeStatus, at_ms: u64) -> String {
    let seconds = at_ms.saturating_sub(status.since_ms) as f64 / 1000.0;
    format!("{seconds:8.1} s")
}

fn symbol(kind: PeerKind) -> char {
    match kind {
        PeerKind::Itself | PeerKind::Member => '●',
        PeerKind::Joining => '◌',
        PeerKind::Known => '○',
        PeerKind::Lost => '✗',
    }
}

/// A rate in three digits.
fn rate(value: f32) -> String {
    match value {
        v if !v.is_finite() => "?".to_owned(),
        v if v.abs() < 9.95 => format!("{v:.1}"),
        v => human_number(v.round().max(0.0) as u64),
    }
}

fn millis(value: f32) -> String {
    match value {
        v if !v.is_finite() => "?".to_owned(),
        v if v < 9.95 => format!("{v:.1} ms"),
        v if v < 9_950.0 => format!("{v:.0} ms"),
        v => format!("{:.1} s", v / 1000.0),
    }
}

fn peer_table(peers: &[PeerStatus]) -> String {
    let mut rows = vec![PEER_HEADINGS.map(str::to_owned)];
    rows[0][0] = format!("  {}", rows[0][0]);
    rows.extend(peers.iter().map(peer_cells));
    let mut widths = [0; 5];
    for row in &rows {
        for (columns, cell) in widths.iter_mut().zip(row) {
            *columns = (*columns).max(width(cell));
        }
    }
    let lines = rows.iter().map(|row| {
        let mut line = String::from(" ");
        for (column, (cell, columns)) in row.iter().zip(widths).enumerate() {
            let fill = " ".repeat(columns - width(cell));
            // Figures align at their last digit.
            let _ = match column {
                3 => write!(line, " {fill}{cell} "),
                _ => write!(line, " {cell}{fill} "),
            };
        }
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboard::view::tests::example;

    #[test]
    fn the_summary_shows_what_a_user_asks_for() {
        let mut status = example();
        status.join_command = "p2ptrain join --peer 10.0.0.2:4001".into();
        let text = summary(&status);
        for part in [
            "alice (…abcdefgh)  job tiny  training",
            "others join by  p2ptrain join --peer 10.0.0.2:4001",
            "step 120/400  30 %  1 min 12 s left",
            "held-out 2.310 (untrained 5.541)",
            "● bob    member                          5..11 of 16        320  1.5 ms  in 41 out 40 MB/s",
            "ledger: 120 steps, 7,680 samples, none lost or doubled",
            "12.3 s  ! carol was lost",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_status_without_a_job_has_a_summary_and_no_step_line() {
        let status = NodeStatus { name: "a".into(), ..NodeStatus::default() };
        assert_eq!(summary(&status), "a  starting");
        assert_eq!(step_line(&status), None);
    }

    #[test]
    fn a_lost_sample_is_loud() {
        let mut status = example();
        status.ledger.lost = 64;
        assert!(ledger(&status).contains("64 LOST"));
    }

    #[test]
    fn a_json_line_is_one_object_without_curve_and_events() {
        let line = json_line(&example());
        let value: serde_json::Value = serde_json::from_str(&line).expect("valid JSON");
        assert_eq!(value["status"]["job"]["step"], 120);
        assert!(value["status"]["events"].is_null() && value["status"]["job"]["curve"].is_null());
        assert!(!line.contains('\n'));
    }
}

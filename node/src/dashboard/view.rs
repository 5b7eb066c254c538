//! The picture: a pure function of a status and an area.

use std::iter;

use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Paragraph, Widget as _};

use super::text;
use super::theme::Theme;
use crate::status::{JobStatus, NodeStatus};

/// Rows that the display wants; it makes do with fewer.
pub(super) const HEIGHT: u16 = 22;
const CHART_HEIGHT_MIN: u16 = 5;
/// Places of two cells in [`text::peer_cells`].
const STATE: usize = 1;
const SPEED: usize = 3;

/// Draws `status` into `area`.
pub(super) fn render(
    status: &NodeStatus,
    title: &str,
    theme: Theme,
    area: Rect,
    buffer: &mut Buffer,
) {
    if area.is_empty() {
        return;
    }
    let head_height = if status.job.is_some() { 4 } else { 1 };
    let left = area.height.saturating_sub(head_height);
    let event_height = match left {
        0..=3 => left.min(1),
        4..=9 => 2,
        _ => 4,
    };
    let left = left - event_height;
    // The chart gives way to the peers, except for its least height where that exists at all.
    let chart_least = if left >= CHART_HEIGHT_MIN + 3 { CHART_HEIGHT_MIN } else { 0 };
    let peers_wanted = u16::try_from(status.peers.len()).unwrap_or(u16::MAX).saturating_add(1);
    let peers_height = peers_wanted.min(left - chart_least);
    let [head, peers, chart, events] = Layout::vertical([
        Constraint::Length(head_height),
        Constraint::Length(peers_height),
        Constraint::Fill(1),
        Constraint::Length(event_height),
    ])
    .areas(area);

    render_head(status, title, theme, head, buffer);
    render_peers(status, theme, peers, buffer);
    if let Some(job) = &status.job
        && chart.height >= CHART_HEIGHT_MIN
    {
        render_chart(job, theme, chart, buffer);
    }
    render_events(status, theme, events, buffer);
}

fn render_head(status: &NodeStatus, title: &str, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let [top, figures, speed, bar] = Layout::vertical([Constraint::Length(1); 4]).areas(area);
    let phase = text::phase(status);
    Paragraph::new(phase.as_str()).alignment(Alignment::Right).render(top, buffer);
    let heading = Line::styled(format!("{} ", text::heading(status, title)), theme.title());
    heading.render(top, buffer);
    if let Some(job) = &status.job {
        let width = area.width.into();
        Line::raw(text::fit(&text::losses(job), width)).render(figures, buffer);
        // A broken account comes first: it must not be cut off.
        let parts = [account(status), text::speed(job)].concat();
        Line::styled(text::fit(&parts, width), theme.dim()).render(speed, buffer);
        render_bar(job, theme, bar, buffer);
    }
}

fn account(status: &NodeStatus) -> Vec<String> {
    if status.ledger.lost == 0 && status.ledger.doubled == 0 {
        Vec::new()
    } else {
        vec![text::ledger(status)]
    }
}

fn render_bar(job: &JobStatus, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let before = format!("{} ", text::step(job));
    let after = format!(" {:.0} %  {}", text::percent(job), text::time_left(job));
    let used = before.chars().count() + after.trim_end().chars().count();
    let width = usize::from(area.width).saturating_sub(used).min(60);
    let done = ((width as f64) * text::percent(job) / 100.0).round() as usize;
    let line = Line::from(vec![
        Span::raw(before),
        Span::styled("█".repeat(done), theme.bar()),
        Span::styled("░".repeat(width - done), theme.dim()),
        Span::raw(after.trim_end().to_owned()),
    ]);
    line.render(area, buffer);
}

fn render_peers(status: &NodeStatus, theme: Theme, area: Rect, buffer: &mut Buffer) {
    if area.height < 2 || status.peers.is_empty() {
        return;
    }
    // Narrow terminals lose the link first, then the state, then the slice.
    let columns: &[usize] = match area.width {
        72.. => &[0, 1, 2, 3, 4],
        50.. => &[0, 1, 2, 3],
        36.. => &[0, 2, 3],
        _ => &[0, 3],
    };
    let rows_max = usize::from(area.height - 1);
    let total = (status.peers_total as usize).max(status.peers.len());
    // With too little room the last row says how many peers are not shown.
    let shown = if total > rows_max { rows_max - 1 } else { status.peers.len() };
    let mut rows: Vec<_> = vec![text::PEER_HEADINGS.map(str::to_owned)];
    rows[0][0] = format!("  {}", rows[0][0]);
    rows.extend(status.peers[..shown].iter().map(text::peer_cells));
    let mut widths: Vec<_> = columns
        .iter()
        .map(|&column| rows.iter().map(|row| text::width(&row[column])).max().unwrap_or(0))
        .collect();
    // The state is prose, so it is what gives way where the row is too long.
    if let Some(state) = columns.iter().position(|&column| column == STATE) {
        let others: usize = widths.iter().sum::<usize>() - widths[state] + 2 * (widths.len() - 1);
        let room = usize::from(area.width).saturating_sub(others).max(6);
        widths[state] = widths[state].min(room);
        for row in &mut rows {
            row[STATE] = crate::status::clean(&row[STATE], room);
        }
    }
    let styles = status.peers[..shown].iter().map(|peer| theme.peer(peer.kind));
    for (y, (row, style)) in (area.y..).zip(rows.iter().zip(iter::once(theme.dim()).chain(styles)))
    {
        let mut spans = Vec::new();
        for (&column, &width) in columns.iter().zip(&widths) {
            let fill = " ".repeat(width.saturating_sub(text::width(&row[column])));
            let cell = row[column].as_str();
            // Figures align at their last digit.
            let text =
                if column == SPEED { format!("{fill}{cell}  ") } else { format!("{cell}{fill}  ") };
            let styled = column == 0 || y == area.y;
            spans.push(if styled { Span::styled(text, style) } else { Span::raw(text) });
        }
        Line::from(spans).render(Rect { y, height: 1, ..area }, buffer);
    }
    if total > shown {
        let last = Rect { y: area.bottom() - 1, height: 1, ..area };
        Line::styled(format!("  and {} more", total - shown), theme.dim()).render(last, buffer);
    }
}

fn render_chart(job: &JobStatus, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let points = |curve: &[crate::status::CurvePoint]| -> Vec<(f64, f64)> {
        let finite = curve.iter().filter(|point| point.loss.is_finite());
        finite.map(|point| (point.step as f64, f64::from(point.loss))).collect()
    };
    let training = points(job.curve.points());
    let held_out = points(&job.evals);
    if training.len() + held_out.len() < 2 {
        return;
    }
    let [title, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let mut words =
        vec![Span::styled("loss ", theme.dim()), Span::styled("─ training", theme.loss())];
    if !held_out.is_empty() {
        words.push(Span::raw("  "));
        words.push(Span::styled("• held-out", theme.held_out()));
    }
    Line::from(words).render(title, buffer);

    let all = || training.iter().chain(&held_out);
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    // A flat curve still needs a scale.
    let high = if high - low < 1e-6 { low + 1e-3 } else { high };
    let last = all().map(|p| p.0).fold(1.0, f64::max);
    let mut sets = vec![
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(theme.loss())
            .data(&training),
    ];
    if !held_out.is_empty() {
        sets.push(
            Dataset::default()
                .marker(Marker::Dot)
                .graph_type(GraphType::Scatter)
                .style(theme.held_out())
                .data(&held_out),
        );
    }
    let x_labels = ["0".to_owned(), crate::cli::human_number(last as u64)];
    let mut y_labels = vec![format!("{low:.2}"), format!("{high:.2}")];
    if body.height >= 7 {
        y_labels.insert(1, format!("{:.2}", (low + high) / 2.0));
    }
    let chart = Chart::new(sets)
        .x_axis(Axis::default().bounds([0.0, last]).labels(x_labels).style(theme.dim()))
        .y_axis(Axis::default().bounds([low, high]).labels(y_labels).style(theme.dim()))
        .legend_position(None);
    chart.render(body, buffer);
}

fn render_events(status: &NodeStatus, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let shown: Vec<_> = status.events.iter().rev().take(area.height.into()).collect();
    for (row, event) in shown.into_iter().rev().enumerate() {
        let row = Rect { y: area.y + row as u16, height: 1, ..area };
        Line::styled(text::event_line(status, event), theme.event(event.level)).render(row, buffer);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::style::Color;

    use super::*;
    use crate::status::{
        CurvePoint, EventLevel, LedgerStatus, LinkStatus, PeerKind, PeerStatus, Phase, Slice,
        StepMs, StepReport,
    };

    /// A run in the middle: two members and a lost one.
    pub(in super::super) fn example() -> NodeStatus {
        let mut job = JobStatus { name: "tiny".into(), steps: 400, ..JobStatus::default() };
        job.evals = vec![
            CurvePoint { step: 0, loss: 5.5413 },
            CurvePoint { step: 60, loss: 3.1 },
            CurvePoint { step: 120, loss: 2.31 },
        ];
        let step_ms = StepMs { total: 212.0, compute: 180.0, exchange_wait: 22.0, apply: 9.5 };
        for step in 1..=120 {
            let loss = 2.1 + 3.4 * (-(step as f32) / 30.0).exp();
            let report = StepReport { step, samples: 64, loss, lr: 3e-4, grad_norm: 0.82, step_ms };
            job.record_step(&report);
        }
        job.time_left_s = Some(72.0);
        let peer = |name: &str, kind, first, end| PeerStatus {
            name: name.into(),
            kind,
            slice: Some(Slice { first, end, of: 16 }),
            samples_per_s: Some(320.0),
            link: Some(LinkStatus { rtt_ms: 1.5, in_mb_per_s: 41.0, out_mb_per_s: 40.0 }),
            ..PeerStatus::default()
        };
        let lost = PeerStatus {
            name: "carol".into(),
            kind: PeerKind::Lost,
            state: "killed, its work is done again".into(),
            ..PeerStatus::default()
        };
        let mut status = NodeStatus {
            name: "alice".into(),
            peer: "12D3KooWabcdefgh".into(),
            phase: Phase::Training,
            job: Some(job),
            ledger: LedgerStatus { steps: 120, samples: 7680, lost: 0, doubled: 0 },
            since_ms: 1_000_000,
            ..NodeStatus::default()
        };
        status.set_peers(vec![
            peer("alice", PeerKind::Itself, 0, 5),
            PeerStatus { state: String::new(), ..peer("bob", PeerKind::Member, 5, 11) },
            lost,
        ]);
        status.events.push_at(1_001_200, EventLevel::Good, "bob joined");
        status.events.push_at(1_012_300, EventLevel::Warn, "carol was lost");
        status
    }

    fn screen(status: &NodeStatus, width: u16, height: u16, colour: bool) -> (Vec<String>, Buffer) {
        let mut terminal =
            Terminal::new(TestBackend::new(width, height)).expect("a test backend cannot fail");
        terminal
            .draw(|frame| {
                let area = frame.area();
                render(status, "", Theme { colour }, area, frame.buffer_mut());
            })
            .expect("a test backend cannot fail");
        let buffer = terminal.backend().buffer().clone();
        let lines = (0..height).map(|y| {
            let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            line.trim_end().to_owned()
        });
        (lines.collect(), buffer)
    }

    #[test]
    fn a_run_fits_the_usual_terminal() {
        let (lines, _) = screen(&example(), 80, HEIGHT, true);
        let expected = include_str!("view_80x22.txt");
        assert_eq!(lines.join("\n").trim_end(), expected.trim_end());
    }

    #[test]
    fn a_narrow_terminal_keeps_names_and_speed() {
        let (lines, _) = screen(&example(), 34, 14, true);
        let text = lines.join("\n");
        for part in ["alice", "● bob", "320", "carol was lost", "step 120/400"] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert!(!text.contains("MB/s"), "{text}");
    }

    #[test]
    fn every_size_and_every_status_draws_without_panic() {
        let mut many = example();
        let peers = vec![many.peers[1].clone(); 300];
        many.set_peers(peers);
        let mut diverged = example();
        if let Some(job) = &mut diverged.job {
            job.record_step(&StepReport { step: 121, loss: f32::NAN, ..StepReport::default() });
            job.record_eval(121, f32::INFINITY);
            job.steps = 0;
        }
        let empty = NodeStatus::default();
        for status in [&example(), &many, &diverged, &empty] {
            for width in [1, 2, 7, 20, 36, 50, 80, 200] {
                for height in 1..=26 {
                    screen(status, width, height, true);
                }
            }
        }
    }

    #[test]
    fn a_large_swarm_says_how_many_are_not_shown() {
        let mut status = example();
        let peers = vec![status.peers[1].clone(); 300];
        status.set_peers(peers);
        let (lines, _) = screen(&status, 80, HEIGHT, true);
        assert!(lines.iter().any(|line| line.trim() == "and 293 more"), "{lines:#?}");
    }

    #[test]
    fn without_colours_no_cell_has_one() {
        let (_, buffer) = screen(&example(), 80, HEIGHT, false);
        assert!(buffer.content().iter().all(|c| c.fg == Color::Reset && c.bg == Color::Reset));
        let (_, buffer) = screen(&example(), 80, HEIGHT, true);
        assert!(buffer.content().iter().any(|c| c.fg == Color::Red));
    }
}

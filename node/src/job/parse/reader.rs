//! Reading typed fields from TOML that remembers where everything stood.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use p2ptrain_protocol::id::Digest;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::job::check::Violation;
use crate::job::error::Problem;

/// Names from other trainers, and what they are called here.
const ALIASES: [(&str, &str); 22] = [
    ("accumulation", "batch.micro"),
    ("batch_size", "batch.global"),
    ("block", "model.block_size"),
    ("clip_norm", "clip"),
    ("context", "model.block_size"),
    ("dtype", "precision"),
    ("grad_clip", "clip"),
    ("hidden_size", "model.width"),
    ("iterations", "steps"),
    ("learning_rate", "optimizer.lr"),
    ("lr_schedule", "schedule.kind"),
    ("max_iters", "steps"),
    ("max_steps", "steps"),
    ("n_embd", "model.width"),
    ("n_head", "model.heads"),
    ("n_layer", "model.layers"),
    ("path", "data.files"),
    ("seq_len", "model.block_size"),
    ("val_fraction", "data.held_out"),
    ("vocab_size", "model.vocab"),
    ("warmup_steps", "schedule.warmup"),
    ("weight_tying", "model.tied"),
];

/// Collects the problems of one file while its fields are read.
pub(super) struct Reader<'t> {
    text: &'t str,
    file: String,
    problems: Vec<(usize, Problem)>,
    /// Where the value of each field that was read stands.
    spans: BTreeMap<String, Range<usize>>,
    /// Fields whose value could not be read: rules about them would only confuse.
    failed: BTreeSet<String>,
}

/// One table of the file; remembers which fields were asked for, which are those that exist.
#[derive(Default)]
pub(super) struct Section<'d> {
    path: String,
    table: Option<&'d DeTable<'d>>,
    header: Option<Range<usize>>,
    asked: Vec<&'static str>,
}

impl<'d> Section<'d> {
    pub(super) fn root(document: &'d DeTable<'d>) -> Self {
        Self { table: Some(document), ..Self::default() }
    }

    /// The sub-table of this name; an empty one where the file has none.
    pub(super) fn section(&mut self, reader: &mut Reader<'_>, name: &'static str) -> Self {
        let value = self.take(name);
        let mut section = Self { path: self.field(name), ..Self::default() };
        if let Some(value) = value {
            section.header = Some(value.span());
            match value.get_ref().as_table() {
                Some(table) => section.table = Some(table),
                None => {
                    let message = format!("is a section, not {}", described(value.get_ref()));
                    let allowed = format!("[{name}] on a line of its own, its fields below it");
                    reader.bad(&section.path, value.span(), message, allowed);
                }
            }
        }
        section
    }

    fn take(&mut self, name: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.push(name);
        self.table.and_then(|table| table.get(name))
    }

    fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str, file: String) -> Self {
        Self { text, file, problems: Vec::new(), spans: BTreeMap::new(), failed: BTreeSet::new() }
    }

    /// The parsed document, or `None` with all syntax errors noted.
    pub(super) fn document(&mut self) -> Option<DeTable<'t>> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        if errors.is_empty() {
            return Some(document.into_inner());
        }
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            self.bad("", span, error.message().replace('\n', ", "), String::new());
        }
        None
    }

    /// All problems in the order of the file.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|(offset, _)| *offset);
        self.problems.into_iter().map(|(_, problem)| problem).collect()
    }

    pub(super) fn text(&mut self, section: &mut Section<'_>, name: &'static str) -> Option<String> {
        let (value, field, span) = self.value(section, name)?;
        match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => self.wrong_type(field, span, value, "text in quotes"),
        }
    }

    /// One text or a list of texts.
    pub(super) fn texts(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
    ) -> Option<Vec<String>> {
        let (value, field, span) = self.value(section, name)?;
        let allowed = "text in quotes, or a list such as [\"a\", \"b\"]";
        if let Some(text) = value.as_str() {
            return Some(vec![text.to_owned()]);
        }
        let Some(items) = value.as_array() else {
            return self.wrong_type(field, span, value, allowed);
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_str() {
                Some(text) => texts.push(text.to_owned()),
                None => {
                    let message = format!("is {}", described(item.get_ref()));
                    self.bad(&field, item.span(), message, allowed.to_owned());
                }
            }
        }
        Some(texts)
    }

    pub(super) fn flag(&mut self, section: &mut Section<'_>, name: &'static str) -> Option<bool> {
        let (value, field, span) = self.value(section, name)?;
        match value.as_bool() {
            Some(flag) => Some(flag),
            None => self.wrong_type(field, span, value, "true or false"),
        }
    }

    pub(super) fn whole(&mut self, section: &mut Section<'_>, name: &'static str) -> Option<u64> {
        let (value, field, span) = self.value(section, name)?;
        let Some(integer) = value.as_integer() else {
            return self.wrong_type(field, span, value, "a whole number");
        };
        match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if number < 0 => {
                self.bad(&field, span, "must not be negative", "a whole number");
                None
            }
            // Far too large numbers stay too large: the rules refuse them with the range.
            Ok(number) => Some(u64::try_from(number).unwrap_or(u64::MAX)),
            Err(_) => {
                self.bad(&field, span, "is too large", "a whole number below 2^64");
                None
            }
        }
    }

    pub(super) fn whole32(&mut self, section: &mut Section<'_>, name: &'static str) -> Option<u32> {
        let number = self.whole(section, name)?;
        Some(u32::try_from(number).unwrap_or(u32::MAX))
    }

    pub(super) fn real(&mut self, section: &mut Section<'_>, name: &'static str) -> Option<f64> {
        let (value, field, span) = self.value(section, name)?;
        match number(value) {
            Some(number) => Some(number),
            None => self.wrong_type(field, span, value, "a number"),
        }
    }

    pub(super) fn pair(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
    ) -> Option<[f64; 2]> {
        let (value, field, span) = self.value(section, name)?;
        let numbers: Option<Vec<f64>> = value
            .as_array()
            .and_then(|items| items.iter().map(|item| number(item.get_ref())).collect());
        match numbers.as_deref() {
            Some(&[first, second]) => Some([first, second]),
            _ => self.wrong_type(field, span, value, "two numbers such as [0.9, 0.95]"),
        }
    }

    /// A digest in 64 hexadecimal digits.
    pub(super) fn digest(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
    ) -> Option<Digest> {
        let (value, field, span) = self.value(section, name)?;
        match value.as_str().map(str::parse::<Digest>) {
            Some(Ok(digest)) => Some(digest),
            _ => self.wrong_type(field, span, value, "64 hexadecimal digits in quotes"),
        }
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let (value, field, span) = self.value(section, name)?;
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let allowed = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let Some(text) = value.as_str() else {
            return self.wrong_type(field, span, value, &allowed);
        };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let meant = nearest(text, words.into_iter()).map(str::to_owned);
        self.bad(&field, span, format!("unknown value {text:?}"), allowed).did_you_mean = meant;
        None
    }

    /// Notes that a needed field is missing.
    pub(super) fn missing(
        &mut self,
        section: &Section<'_>,
        name: &'static str,
        what: &str,
        allowed: &str,
    ) {
        let field = section.field(name);
        if self.failed.contains(&field) || self.failed.contains(&section.path) {
            return;
        }
        let message = format!("is missing or empty; it {what}");
        let at = self.spans.get(&field).or(section.header.as_ref()).cloned();
        match at {
            Some(span) => {
                self.bad(&field, span, message, allowed);
            }
            None => {
                let problem = Problem {
                    file: self.file.clone(),
                    line: 0,
                    column: 0,
                    field,
                    message,
                    allowed: allowed.to_owned(),
                    did_you_mean: None,
                    source_line: String::new(),
                    width: 0,
                };
                self.problems.push((usize::MAX, problem));
            }
        }
    }

    /// Notes every field of the section that nobody asked for.
    pub(super) fn close(&mut self, section: Section<'_>) {
        let Some(table) = section.table else { return };
        for key in table.keys() {
            let name: &str = key.get_ref();
            if section.asked.contains(&name) {
                continue;
            }
            let alias = ALIASES.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
            let meant = alias.or_else(|| nearest(name, section.asked.iter().copied()));
            let meant = meant.map(str::to_owned);
            let message = match section.path.as_str() {
                "" => "unknown field".to_owned(),
                path => format!("unknown field of [{path}]"),
            };
            let allowed = section.asked.join(", ");
            let field = section.field(&printable(name));
            self.bad(&field, key.span(), message, allowed).did_you_mean = meant;
        }
    }

    /// Shows a broken rule at the first of its fields that stands in the file.
    pub(super) fn violation(&mut self, violation: &Violation) {
        if violation.fields.iter().any(|field| self.failed.contains(*field)) {
            return;
        }
        let at = violation.fields.iter().find_map(|field| self.spans.get(*field).cloned());
        let field = violation.fields.first().copied().unwrap_or_default();
        let span = at.unwrap_or(0..0);
        self.bad(field, span, violation.message.clone(), violation.allowed.clone());
    }

    fn value<'d>(
        &mut self,
        section: &mut Section<'d>,
        name: &'static str,
    ) -> Option<(&'d DeValue<'d>, String, Range<usize>)> {
        let value = section.take(name)?;
        let field = section.field(name);
        self.spans.insert(field.clone(), value.span());
        Some((value.get_ref(), field, value.span()))
    }

    fn wrong_type<T>(
        &mut self,
        field: String,
        span: Range<usize>,
        value: &DeValue<'_>,
        allowed: &str,
    ) -> Option<T> {
        self.bad(&field, span, format!("is {}", described(value)), allowed);
        None
    }

    fn bad(
        &mut self,
        field: &str,
        span: Range<usize>,
        message: impl Into<String>,
        allowed: impl Into<String>,
    ) -> &mut Problem {
        self.failed.insert(field.to_owned());
        let (line, column, source_line, width) = locate(self.text, span.clone());
        let problem = Problem {
            file: self.file.clone(),
            line,
            column,
            field: field.to_owned(),
            message: message.into(),
            allowed: allowed.into(),
            did_you_mean: None,
            source_line,
            width,
        };
        self.problems.push((span.start, problem));
        let (_, problem) = self.problems.last_mut().expect("one was just pushed");
        problem
    }
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    if let Some(float) = value.as_float() {
        return float.as_str().parse().ok();
    }
    let integer = value.as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok().map(|number| number as f64)
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {:?}", printable(text)),
        DeValue::Integer(number) => format!("the whole number {number}"),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(flag) => format!("the truth value {flag}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

fn printable(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Line and column from 1, the line's text, and the width of the span within that line.
fn locate(text: &str, span: Range<usize>) -> (usize, usize, String, usize) {
    let mut start = span.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let mut end = span.end.clamp(start, line_end);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let line = text[..line_start].matches('\n').count() + 1;
    let column = text[line_start..start].chars().count() + 1;
    let shown: String = (text[line_start..line_end].trim_end_matches('\r').chars())
        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
        .collect();
    (line, column, shown, text[start..end].chars().count())
}

/// The nearest name where one is near enough for a typing mistake.
fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names
        .map(|other| (distance(name, other), other))
        .filter(|(distance, other)| *distance <= (other.len().max(name.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// Edit distance in which two swapped neighbours count once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

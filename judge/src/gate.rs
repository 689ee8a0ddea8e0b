//! The gate: 1 if a response is in the language asked for, else 0. A response's score is its rating × its gate.
//!
//! The rule, in this order:
//! 1. A response without any visible character fails: white space, control and format characters, and what Unicode has
//!    shown as nothing (its `Default_Ignorable_Code_Point`).
//! 2. A short one (fewer letters than [`GateRules::shortest`], which is 0 unless asked for) goes by
//!    [`GateRules::short`].
//! 3. Code, URLs and quotations are set aside where [`GateRules::set_aside`] asks for it. If no letter is left, the
//!    whole response is identified after all.
//! 4. Line breaks become spaces, and the identifier names a language. The gate is open if the language asked for
//!    accepts it (`no` accepts `no`, `nb` and `nob`, and not `nn`) with at least the threshold's probability.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use instructions::language::Language;
use instructions::text::has_visible_text;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::identify::{Identified, Identifier};

/// How a response without enough letters to tell its language goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Short {
    /// As it is identified, like any other.
    #[default]
    Identify,
    /// It passes: `42` is an answer in every language.
    Pass,
    /// It fails.
    Fail,
}

/// What is set aside before identifying; nothing unless asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetAside {
    /// Code between three or more backquotes or tildes, or between backquotes in a line.
    pub code: bool,
    /// Web addresses, with `http`, `https`, `ftp` or `www.`.
    pub urls: bool,
    /// Text between quotation marks of any language, and lines that begin with `>`.
    pub quotations: bool,
}

/// The gate's settings. The default is the paper's gate: the identifier's first label decides, whatever its
/// probability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateRules {
    /// The least probability of the label, 0 to 1.
    pub threshold: f32,
    /// What is set aside before identifying.
    pub set_aside: SetAside,
    /// Responses of fewer letters than this are short.
    pub shortest: usize,
    /// How short responses go.
    pub short: Short,
}

/// A response at the gate.
#[derive(Clone, Debug, PartialEq)]
pub struct Gated {
    /// What the identifier sees.
    pub identified: Identified,
    /// Whether the response passes.
    pub passes: bool,
}

impl GateRules {
    /// Identifies a response and says whether it is in the language asked for.
    pub fn check(&self, identifier: &dyn Identifier, response: &str, expected: &Language) -> Gated {
        let identified = self.identify(identifier, response);
        let passes = self.decide(response, &identified, expected);
        Gated { identified, passes }
    }

    /// Identifies a response, with what is to be set aside set aside.
    pub fn identify(&self, identifier: &dyn Identifier, response: &str) -> Identified {
        identifier.identify(&self.set_aside.rest(response))
    }

    fn decide(&self, response: &str, identified: &Identified, expected: &Language) -> bool {
        if !has_visible_text(response) {
            return false;
        }
        let letters = response.chars().filter(|c| c.is_alphabetic()).take(self.shortest).count();
        match self.short {
            Short::Pass if letters < self.shortest => true,
            Short::Fail if letters < self.shortest => false,
            _ => expected.accepts(&identified.language) && identified.probability >= self.threshold,
        }
    }
}

/// The score of a rated response: its rating if the gate lets it pass, else 0.
pub fn score(rating: f64, passes: bool) -> f64 {
    if passes { rating } else { 0.0 }
}

macro_rules! pattern {
    ($name:ident, $pattern:literal) => {
        static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new($pattern).unwrap_or_else(|error| unreachable!("{error}")));
    };
}

// A fence that is never closed runs to the end, as Markdown has it.
pattern!(
    CODE,
    r"(?ms)^[ \t]*```[`]*[^`\n]*$.*?(?:^[ \t]*```[`]*[ \t]*$|\z)|^[ \t]*~~~.*?(?:^[ \t]*~~~[~]*[ \t]*$|\z)|`[^`\n]+`"
);
pattern!(URLS, r#"(?i)\b(?:(?:https?|ftp)://|www\.)[^\s<>"'\p{Han}\p{Hiragana}\p{Katakana}（），。]+"#);
pattern!(
    QUOTATIONS,
    r#"(?m)^[ \t]*>.*$|"[^"\n]*"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|»[^«\n]*«|「[^」\n]*」|『[^』\n]*』|《[^》\n]*》"#
);

impl SetAside {
    /// The text with what is set aside made a space.
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let steps = [(self.code, &CODE), (self.urls, &URLS), (self.quotations, &QUOTATIONS)];
        for (_, pattern) in steps.into_iter().filter(|(asked, _)| *asked) {
            text = pattern.replace_all(&text, " ").into_owned();
        }
        text
    }

    /// What is identified: the text without what is set aside, or, where no letter would be left, all of it.
    pub fn rest<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if *self == SetAside::default() {
            return Cow::Borrowed(text);
        }
        let rest = self.apply(text);
        if rest.chars().any(char::is_alphabetic) { Cow::Owned(rest) } else { Cow::Borrowed(text) }
    }
}

/// How many responses pass at a threshold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepPoint {
    /// The threshold.
    pub threshold: f32,
    /// Responses that pass.
    pub passed: usize,
    /// All responses.
    pub responses: usize,
}

/// How many of the responses (each with the language asked for) pass at each threshold; each is identified once.
pub fn sweep(
    rules: &GateRules,
    identifier: &dyn Identifier,
    responses: &[(&str, &Language)],
    thresholds: &[f32],
) -> Vec<SweepPoint> {
    let identified: Vec<Identified> =
        responses.iter().map(|(response, _)| rules.identify(identifier, response)).collect();
    let passed = |threshold: f32| {
        let rules = GateRules { threshold, ..*rules };
        let both = responses.iter().zip(&identified);
        both.filter(|((response, expected), identified)| rules.decide(response, identified, expected)).count()
    };
    let point = |&threshold| SweepPoint { threshold, passed: passed(threshold), responses: responses.len() };
    thresholds.iter().map(point).collect()
}

/// A line that `identify` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateLine {
    /// The prompt's id.
    pub id: String,
    /// The identifier's own label.
    pub label: String,
    /// The language that the label names.
    pub language: Language,
    /// The label's probability.
    pub probability: f32,
    /// 1 if the response is in the language asked for, else 0; null where the line names no language.
    pub gate: Option<u8>,
}

/// What the gate needs of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct GateRow {
    /// The prompt's id.
    pub id: String,
    /// The response.
    pub response: String,
    /// The language asked for, where the line or the caller names one.
    pub expected: Option<Language>,
    /// Who answered, where the line says it.
    pub system: Option<String>,
}

/// A line as it stands in the file; other keys are passed over.
#[derive(Deserialize)]
struct Row {
    id: serde_json::Value,
    response: String,
    language: Option<Language>,
    response_language: Option<Language>,
    system: Option<String>,
}

/// A line of a responses file that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {found}, expected a response: one JSON object with `id`, `response` and `language`")]
pub struct BadLine {
    /// The line, from 1.
    pub line: usize,
    /// What stands there.
    pub found: String,
}

/// Reads the responses of a JSON Lines file. `language` is the language asked for where a line has neither
/// `response_language` nor `language`. Lines that are no responses are left out and given back, each with its number.
///
/// # Errors
/// Where the file cannot be read.
pub fn read_gate_rows(
    path: &Path,
    language: Option<&Language>,
) -> anyhow::Result<(Vec<GateRow>, Vec<BadLine>)> {
    use anyhow::Context as _;
    let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Row>(line) {
            Ok(row) => rows.push(gate_row(row, language)),
            Err(error) => bad.push(BadLine { line: number, found: error.to_string() }),
        }
    }
    Ok((rows, bad))
}

fn gate_row(row: Row, language: Option<&Language>) -> GateRow {
    let id = match row.id {
        serde_json::Value::String(id) => id,
        other => other.to_string(),
    };
    let expected = row.response_language.or(row.language).or_else(|| language.cloned());
    GateRow { id, response: row.response, expected, system: row.system }
}

/// Writes a [`GateLine`] for each response, in their order.
///
/// # Errors
/// Where the lines cannot be written.
pub fn write_gate_lines(
    rows: Vec<GateRow>,
    rules: &GateRules,
    identifier: &dyn Identifier,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    for row in rows {
        let text = serde_json::to_string(&gate_line(row, rules, identifier))?;
        writeln!(out, "{text}")?;
    }
    out.flush()
}

fn gate_line(row: GateRow, rules: &GateRules, identifier: &dyn Identifier) -> GateLine {
    let identified = rules.identify(identifier, &row.response);
    let gate = row.expected.map(|expected| u8::from(rules.decide(&row.response, &identified, &expected)));
    let Identified { label, language, probability } = identified;
    GateLine { id: row.id, label, language, probability, gate }
}

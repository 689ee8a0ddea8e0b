//! The check of instruction data: what is wrong with the rows of sets, and a copy without it.
//!
//! Rows are judged one by one, against the other rows of their set, against their parallel rows, and against the test
//! prompts. The language of a text is told by whoever calls: this room knows no identification model.

mod overlap;
mod text;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::language::Language;
use crate::mix::{Set, Sets};
use crate::prompt::Prompt;
use crate::recipe::Origin;
use crate::record::Record;
use crate::text::has_visible_text;
use overlap::TestPrompts;
use text::{broken_encoding, is_placeholder, template_leftover, words};

/// What can be wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The instruction or the output is empty, or has nothing that is seen.
    Empty,
    /// Instruction, input and output were met before in the set (white space apart).
    Duplicate,
    /// Instruction and input were met before in the set, with another output.
    RepeatedInstruction,
    /// The instruction or the output is in another language than the set.
    WrongLanguage,
    /// Parts of a prompt template or of a chat's control tokens are in the text.
    TemplateLeftover,
    /// Characters that were lost or decoded wrongly.
    BrokenEncoding,
    /// The output is far longer than its parallel row's.
    TooLong,
    /// The output is far shorter than its parallel row's.
    TooShort,
    /// The instruction is a test prompt, or has most of one in it.
    TestOverlap,
    /// The output is the same in two languages.
    SameOutput,
    /// The input says that there is none, instead of being empty.
    PlaceholderInput,
}

impl FaultKind {
    /// Every kind, in the order of reports.
    pub const ALL: [Self; 11] = [
        Self::Empty,
        Self::Duplicate,
        Self::RepeatedInstruction,
        Self::WrongLanguage,
        Self::TemplateLeftover,
        Self::BrokenEncoding,
        Self::TooLong,
        Self::TooShort,
        Self::TestOverlap,
        Self::SameOutput,
        Self::PlaceholderInput,
    ];

    /// What [`clean`] drops unless told otherwise. The same output on both sides is often right (names, numbers), a
    /// repeated instruction may have two good answers, and a placeholder input is emptied and the row kept.
    pub const DROPPED: [Self; 8] = [
        Self::Empty,
        Self::Duplicate,
        Self::WrongLanguage,
        Self::TemplateLeftover,
        Self::BrokenEncoding,
        Self::TooLong,
        Self::TooShort,
        Self::TestOverlap,
    ];

    /// The name in reports and flags: `wrong_language`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Duplicate => "duplicate",
            Self::RepeatedInstruction => "repeated_instruction",
            Self::WrongLanguage => "wrong_language",
            Self::TemplateLeftover => "template_leftover",
            Self::BrokenEncoding => "broken_encoding",
            Self::TooLong => "too_long",
            Self::TooShort => "too_short",
            Self::TestOverlap => "test_overlap",
            Self::SameOutput => "same_output",
            Self::PlaceholderInput => "placeholder_input",
        }
    }
}

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("unknown kind of fault `{name}`: expected one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The row's language.
    pub language: Language,
    /// Where its set's text comes from: sets of one language share ids.
    pub origin: Origin,
    /// The row's id.
    pub id: String,
    /// What sort of fault.
    pub kind: FaultKind,
    /// What was found.
    pub what: String,
}

/// Tells a text's language, with how sure it is (0 to 1); none where it cannot.
pub type Identify<'a> = &'a (dyn Fn(&str) -> Option<(Language, f64)> + Sync);

/// What a check is told beside the sets.
#[derive(Clone)]
pub struct CheckOptions<'a> {
    /// Tells languages; without it, none is judged wrong.
    pub identify: Option<Identify<'a>>,
    /// Texts of fewer characters are not identified: short ones are told apart badly.
    pub identified_characters: usize,
    /// The identification counts from this probability on.
    pub identified_probability: f64,
    /// No row may be one of these.
    pub prompts: &'a [Prompt],
    /// Counts the tokens of a text, for the fertility.
    pub tokens: Option<&'a (dyn Fn(&str) -> usize + Sync)>,
    /// An output is too long or short from this many times its expected length on (more, where the languages' lengths
    /// vary more).
    pub length_factor: f64,
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        Self {
            identify: None,
            identified_characters: 40,
            identified_probability: 0.5,
            prompts: &[],
            tokens: None,
            length_factor: 2.5,
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Rows looked at, by language.
    pub rows: BTreeMap<Language, usize>,
    /// Rows with a fault, by language and kind.
    pub counts: BTreeMap<Language, BTreeMap<FaultKind, usize>>,
    /// Tokens a word, by language, where tokens were counted; a character counts as a word in scripts without spaces.
    pub fertility: BTreeMap<Language, f64>,
    /// Every fault, by set and row.
    pub faults: Vec<Fault>,
}

/// Checks sets. Of sets that share ids the later are compared with the first of another language, where English comes
/// before others.
pub fn check(sets: &Sets, options: &CheckOptions) -> CheckReport {
    let mut report = CheckReport::default();
    let prompts = TestPrompts::new(options.prompts);
    let references = References::new(sets);
    let mut fertility: BTreeMap<&Language, Fertility> = BTreeMap::new();
    for set in sets.iter() {
        let mut found = Found { language: &set.language, faults: Vec::new() };
        check_rows(set, &prompts, options, &mut found);
        if let Some(by_id) = references.of(set) {
            check_parallel(set, by_id, options.length_factor, &mut found);
        }
        // Rows in order, and the kinds in order within a row: each once.
        found.faults.sort_by_key(|(row, kind, _)| (*row, *kind));
        found.faults.dedup_by_key(|(row, kind, _)| (*row, *kind));
        let counts = report.counts.entry(set.language.clone()).or_default();
        for (row, kind, what) in found.faults {
            *counts.entry(kind).or_default() += 1;
            let id = set.records[row].id.clone();
            report.faults.push(Fault { language: set.language.clone(), origin: set.origin, id, kind, what });
        }
        *report.rows.entry(set.language.clone()).or_default() += set.records.len();
        if let Some(tokens) = options.tokens {
            fertility.entry(&set.language).or_default().add_set(set, tokens);
        }
    }
    report.fertility = fertility
        .into_iter()
        .filter_map(|(language, fertility)| Some((language.clone(), fertility.tokens_a_word()?)))
        .collect();
    report
}

/// Rows by their ids.
type ById<'a> = BTreeMap<&'a str, &'a Record>;

/// The sets that others are compared with: English before others, each with its rows by id once they are looked for.
struct References<'a>(Vec<(&'a Set, OnceCell<ById<'a>>)>);

impl<'a> References<'a> {
    fn new(sets: &'a Sets) -> Self {
        let mut all: Vec<&Set> = sets.iter().collect();
        all.sort_by_key(|set| set.language != Language::english());
        Self(all.into_iter().map(|set| (set, OnceCell::new())).collect())
    }

    /// The rows of the first set of another language that shares an id with `set`. Only sets before it count, so that
    /// of two sets one is held against the other, and not both.
    fn of(&self, set: &Set) -> Option<&ById<'a>> {
        let before = self.0.iter().take_while(|(other, _)| !std::ptr::eq(*other, set));
        let others = before.filter(|(other, _)| other.language != set.language);
        others
            .map(|(other, rows)| {
                rows.get_or_init(|| other.records.iter().map(|row| (row.id.as_str(), row)).collect())
            })
            .find(|rows| set.records.iter().any(|row| rows.contains_key(row.id.as_str())))
    }
}

/// The faults of one set, by row number.
struct Found<'a> {
    language: &'a Language,
    faults: Vec<(usize, FaultKind, String)>,
}

impl Found<'_> {
    fn add(&mut self, row: usize, kind: FaultKind, what: impl Into<String>) {
        self.faults.push((row, kind, what.into()));
    }
}

fn check_rows(set: &Set, prompts: &TestPrompts, options: &CheckOptions, found: &mut Found) {
    let expected = found.language;
    let alone = |record| check_row(record, expected, prompts, options);
    let by_row: Vec<Vec<(FaultKind, String)>> = set.records.par_iter().map(alone).collect();
    for (row, faults) in by_row.into_iter().enumerate() {
        faults.into_iter().for_each(|(kind, what)| found.add(row, kind, what));
    }
    let mut asked: BTreeMap<String, (usize, BTreeSet<String>)> = BTreeMap::new();
    for (row, record) in set.records.iter().enumerate() {
        let spaced = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let question = format!("{}\u{0}{}", spaced(&record.instruction), spaced(&record.input));
        let (first, outputs) = asked.entry(question).or_insert((row, BTreeSet::new()));
        let earlier = &set.records[*first].id;
        if !outputs.insert(spaced(&record.output)) {
            found.add(
                row,
                FaultKind::Duplicate,
                format!("the same as an earlier row (first asked in {earlier})"),
            );
        } else if outputs.len() > 1 {
            found.add(row, FaultKind::RepeatedInstruction, format!("asks the same as {earlier}"));
        }
    }
}

/// What one row says of itself, whatever the others are.
fn check_row(
    record: &Record,
    expected: &Language,
    prompts: &TestPrompts,
    options: &CheckOptions,
) -> Vec<(FaultKind, String)> {
    let mut faults = Vec::new();
    for (field, text) in [("instruction", &record.instruction), ("output", &record.output)] {
        if !has_visible_text(text) {
            faults.push((FaultKind::Empty, format!("the {field} is empty")));
        } else if let Some(what) = wrong_language(text, expected, options) {
            faults.push((FaultKind::WrongLanguage, format!("the {field} is {what}")));
        }
    }
    for (field, text) in
        [("instruction", &record.instruction), ("input", &record.input), ("output", &record.output)]
    {
        if let Some(leftover) = template_leftover(text) {
            faults.push((FaultKind::TemplateLeftover, format!("the {field} has `{leftover}`")));
        }
        if let Some(what) = broken_encoding(text) {
            faults.push((FaultKind::BrokenEncoding, format!("the {field} has {what}")));
        }
    }
    if is_placeholder(&record.input) {
        faults.push((FaultKind::PlaceholderInput, format!("the input is `{}`", record.input)));
    }
    if let Some(id) = prompts.found_in(record) {
        faults.push((FaultKind::TestOverlap, format!("most of the test prompt {id} is in it")));
    }
    faults
}

/// The language that a text is in, where it is long enough to tell and not the one expected.
fn wrong_language(text: &str, expected: &Language, options: &CheckOptions) -> Option<String> {
    let identify = options.identify?;
    if text.chars().count() < options.identified_characters {
        return None;
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (language, probability) = identify(&line)?;
    let wrong = probability >= options.identified_probability && !expected.accepts(&language);
    wrong.then(|| format!("in {language} (probability {probability:.2})"))
}

/// Outputs shorter than this on both sides vary too much in length to be judged by it.
const COMPARED_CHARACTERS: usize = 40;

/// Compares outputs with those of another language's rows. How much longer a language's texts are is taken from the
/// set itself (the median), and how much that varies too (the median of the absolute deviations, times 1.4826: the
/// standard deviation of a normal distribution); six of those are far.
fn check_parallel(set: &Set, by_id: &ById, length_factor: f64, found: &mut Found) {
    let mut ratios: Vec<(usize, f64)> = Vec::new();
    for (row, record) in set.records.iter().enumerate() {
        let Some(other) = by_id.get(record.id.as_str()) else { continue };
        if has_visible_text(&record.output) && record.output == other.output {
            found.add(row, FaultKind::SameOutput, format!("the output is that of {} too", other.language));
        }
        let (own, others) = (record.output.chars().count(), other.output.chars().count());
        if own > 0 && others > 0 && own.max(others) >= COMPARED_CHARACTERS {
            ratios.push((row, (own as f64 / others as f64).ln()));
        }
    }
    let Some(middle) = median(ratios.iter().map(|(_, ratio)| *ratio).collect()) else { return };
    let deviation = median(ratios.iter().map(|(_, ratio)| (ratio - middle).abs()).collect()).unwrap_or(0.0);
    let far = length_factor.ln().max(6.0 * 1.4826 * deviation);
    for (row, ratio) in ratios {
        let times = (ratio - middle).abs().exp();
        if ratio - middle > far {
            found.add(
                row,
                FaultKind::TooLong,
                format!("{times:.1} times as long as its parallel row lets expect"),
            );
        } else if middle - ratio > far {
            found.add(
                row,
                FaultKind::TooShort,
                format!("{times:.1} times shorter than its parallel row lets expect"),
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Tokens and words of texts.
#[derive(Default)]
struct Fertility {
    tokens: usize,
    words: usize,
}

impl Fertility {
    fn add(&mut self, text: &str, tokens: usize) {
        self.tokens += tokens;
        self.words += words(text).len();
    }

    fn add_set(&mut self, set: &Set, tokens: &(dyn Fn(&str) -> usize + Sync)) {
        let texts: Vec<&str> = set
            .records
            .iter()
            .flat_map(|record| [record.instruction.as_str(), &record.input, &record.output])
            .collect();
        let counts: Vec<usize> = texts.par_iter().map(|text| tokens(text)).collect();
        texts.into_iter().zip(counts).for_each(|(text, tokens)| self.add(text, tokens));
    }

    fn tokens_a_word(&self) -> Option<f64> {
        (self.words > 0).then(|| self.tokens as f64 / self.words as f64)
    }
}

/// Tokens a word of texts, each with its number of tokens; a character counts as a word in scripts without spaces. None
/// without a word.
pub fn fertility<'t>(texts: impl IntoIterator<Item = (&'t str, usize)>) -> Option<f64> {
    let mut sum = Fertility::default();
    texts.into_iter().for_each(|(text, tokens)| sum.add(text, tokens));
    sum.tokens_a_word()
}

/// A row that was dropped from a set, or mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned {
    /// The row's language.
    pub language: Language,
    /// Where its set's text comes from.
    pub origin: Origin,
    /// Its id.
    pub id: String,
    /// Whether it was dropped; else its placeholder input was emptied.
    pub dropped: bool,
    /// Why: each fault's kind and what was found.
    pub reasons: Vec<String>,
}

/// A copy of sets without the rows that have one of the `kinds` of fault ([`FaultKind::DROPPED`] is the usual choice),
/// and with placeholder inputs emptied; and a list of every row that was dropped or mended, with the reasons.
pub fn clean(sets: &Sets, report: &CheckReport, kinds: &[FaultKind]) -> (Sets, Vec<Cleaned>) {
    let mut faults: BTreeMap<(&Language, Origin, &str), Vec<&Fault>> = BTreeMap::new();
    for fault in &report.faults {
        faults.entry((&fault.language, fault.origin, fault.id.as_str())).or_default().push(fault);
    }
    let mut copy = Sets::new();
    let mut cleaned = Vec::new();
    for set in sets.iter() {
        let mut records = Vec::with_capacity(set.records.len());
        for record in &set.records {
            let key = (&set.language, set.origin, record.id.as_str());
            let faults = faults.get(&key).map_or(&[][..], Vec::as_slice);
            let reasons = |chosen: &dyn Fn(FaultKind) -> bool| -> Vec<String> {
                let chosen = faults.iter().filter(|fault| chosen(fault.kind));
                chosen.map(|fault| format!("{}: {}", fault.kind, fault.what)).collect()
            };
            let drop_reasons = reasons(&|kind| kinds.contains(&kind));
            let dropped = !drop_reasons.is_empty();
            let mend_reasons = reasons(&|kind| kind == FaultKind::PlaceholderInput);
            let mended = !dropped && !mend_reasons.is_empty();
            if dropped || mended {
                let reasons = if dropped { drop_reasons } else { mend_reasons };
                cleaned.push(Cleaned {
                    language: set.language.clone(),
                    origin: set.origin,
                    id: record.id.clone(),
                    dropped,
                    reasons,
                });
            }
            if !dropped {
                let mut record = record.clone();
                if mended {
                    record.input.clear();
                }
                records.push(record);
            }
        }
        copy.add(Set { language: set.language.clone(), origin: set.origin, records });
    }
    (copy, cleaned)
}

impl fmt::Display for CheckReport {
    /// A table: a line a language, a column a kind of fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "language\trows")?;
        for kind in FaultKind::ALL {
            write!(f, "\t{kind}")?;
        }
        writeln!(f, "\ttokens_per_word")?;
        for (language, rows) in &self.rows {
            write!(f, "{language}\t{rows}")?;
            for kind in FaultKind::ALL {
                let count =
                    self.counts.get(language).and_then(|counts| counts.get(&kind)).copied().unwrap_or(0);
                write!(f, "\t{count}")?;
            }
            match self.fertility.get(language) {
                Some(fertility) => writeln!(f, "\t{fertility:.2}")?,
                None => writeln!(f, "\t-")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Where responses slip into another language: which languages are taken for which, and whether single lines or words
//! are in another one.
//!
//! The pass rates are those of Marchisio et al. 2024, "Understanding and Mitigating Language Confusion in LLMs". The
//! *line pass rate* is the share of responses of which every line is in the right language. The *word pass rate* is,
//! among the responses that pass by line, the share without a word of another language. Their harmonic mean is the
//! *language confusion pass rate*.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::Context;
use instructions::language::Language;
use instructions::text::has_visible_text;
use regex::Regex;
use serde::Serialize;

use crate::gate::GateRules;
use crate::identify::Identifier;

/// How often each language asked for was identified as each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfusionMatrix {
    counts: BTreeMap<Language, BTreeMap<Language, usize>>,
}

impl ConfusionMatrix {
    /// Counts a response.
    pub fn add(&mut self, expected: &Language, identified: &Language) {
        *self.counts.entry(expected.clone()).or_default().entry(identified.clone()).or_default() += 1;
    }

    /// How often `expected` was identified as `identified`.
    pub fn count(&self, expected: &Language, identified: &Language) -> usize {
        self.counts.get(expected).and_then(|row| row.get(identified)).copied().unwrap_or(0)
    }

    /// A row for each language asked for: the languages identified, with their counts.
    pub fn rows(&self) -> impl Iterator<Item = (&Language, &BTreeMap<Language, usize>)> {
        self.counts.iter()
    }

    /// The share of a language's responses that it accepts; none where there are no responses.
    pub fn accuracy(&self, expected: &Language) -> Option<f64> {
        let row = self.counts.get(expected)?;
        let accepted: usize =
            row.iter().filter(|(identified, _)| expected.accepts(identified)).map(|(_, count)| count).sum();
        Some(accepted as f64 / row.values().sum::<usize>() as f64)
    }
}

/// Pass rates over the responses that one language was asked for in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PassCounts {
    /// All responses.
    pub responses: usize,
    /// Those of which every line that is long enough is in the right language.
    pub pass_by_line: usize,
    /// Those among them without a word of another language.
    pub pass_by_word: usize,
}

impl PassCounts {
    /// Line pass rate: none without responses.
    pub fn line_pass_rate(&self) -> Option<f64> {
        (self.responses > 0).then(|| self.pass_by_line as f64 / self.responses as f64)
    }

    /// Word pass rate: none where no response passes by line.
    pub fn word_pass_rate(&self) -> Option<f64> {
        (self.pass_by_line > 0).then(|| self.pass_by_word as f64 / self.pass_by_line as f64)
    }

    /// Language confusion pass rate: the harmonic mean of the two.
    pub fn language_confusion_pass_rate(&self) -> Option<f64> {
        let (line, word) = (self.line_pass_rate()?, self.word_pass_rate()?);
        Some(if line + word > 0.0 { 2.0 * line * word / (line + word) } else { 0.0 })
    }
}

/// A list of words for each language, in lower case, by which languages of one script are told apart.
pub type WordLists = HashMap<Language, HashSet<String>>;

/// Reads word lists from a folder: `CODE.txt` holds the words of the language `CODE`, a line each. A word may be
/// followed by a space and anything, as by its frequency.
///
/// # Errors
/// Where the folder or a list cannot be read, or a file's name is no language's code.
pub fn read_word_lists(folder: &Path) -> anyhow::Result<WordLists> {
    let mut lists = WordLists::new();
    let files = std::fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    for file in files {
        let path = file.with_context(|| format!("{} cannot be read", folder.display()))?.path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let code = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let language: Language = code
            .parse()
            .with_context(|| format!("{}: expected a language's code and .txt as name", path.display()))?;
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read as UTF-8", path.display()))?;
        let words = text.lines().filter_map(|line| line.split_whitespace().next());
        lists.entry(language).or_default().extend(words.map(str::to_lowercase));
    }
    Ok(lists)
}

/// Lines of fewer letters are too short to tell their language, and pass.
const SHORTEST_LINE: usize = 16;
/// In scripts that write a word or a syllable with a letter.
const SHORTEST_DENSE_LINE: usize = 5;
/// Words of fewer letters are too often units, names of variables or parts of names.
const SHORTEST_WORD: usize = 4;

/// Checks responses that were to be in one language.
pub struct ConfusionCheck<'a> {
    expected: Language,
    identifier: &'a dyn Identifier,
    rules: GateRules,
    word: Regex,
    own_script: Option<Regex>,
    lists: &'a WordLists,
}

impl<'a> ConfusionCheck<'a> {
    /// A word is of another language if it is in another script than the language's, or in another language's list
    /// and not in its own. Where there are lists, a word in another script must be in one of those that are of that
    /// script: then names in Latin letters do not count. Without lists, a word with a capital counts as a name.
    ///
    /// # Errors
    /// None that a caller can cause: the patterns are the program's own.
    pub fn new(
        expected: &Language,
        identifier: &'a dyn Identifier,
        rules: GateRules,
        lists: &'a WordLists,
    ) -> Result<Self, regex::Error> {
        let own_script = scripts(expected)
            .map(|scripts| {
                let classes: String = scripts.iter().map(|script| format!(r"\p{{{script}}}")).collect();
                // Modifier letters and the like belong to every script.
                Regex::new(&format!(r"^[{classes}\p{{Common}}\p{{Inherited}}\p{{M}}]+$"))
            })
            .transpose()?;
        let word = Regex::new(
            r"[\p{Han}\p{Hiragana}\p{Katakana}]+|[\p{L}\p{M}&&[^\p{Han}\p{Hiragana}\p{Katakana}]]+",
        )?;
        Ok(Self { expected: expected.clone(), identifier, rules, word, own_script, lists })
    }

    /// Whether every line that is long enough is in the language. A response without any visible character is in none,
    /// as at the gate.
    pub fn passes_by_line(&self, response: &str) -> bool {
        response
            .lines()
            .filter(|line| is_long_enough(line))
            .all(|line| self.rules.check(self.identifier, line, &self.expected).passes)
            && has_visible_text(response)
    }

    /// The words of another language, in the order in which they stand.
    pub fn foreign_words<'t>(&self, response: &'t str) -> Vec<&'t str> {
        self.word.find_iter(response).map(|word| word.as_str()).filter(|word| self.is_foreign(word)).collect()
    }

    fn is_foreign(&self, word: &str) -> bool {
        let lower = word.to_lowercase();
        let is_dense = word.chars().any(is_dense_letter);
        if word.chars().count() < SHORTEST_WORD && !is_dense {
            return false;
        }
        let is_other_script = self.own_script.as_ref().is_some_and(|script| !script.is_match(word));
        let is_own = self.lists.get(&self.expected).is_some_and(|list| list.contains(&lower));
        let others = || self.lists.iter().filter(|(language, _)| !self.expected.accepts(language));
        let is_listed = others().any(|(_, list)| list.contains(&lower));
        if is_other_script && !is_dense && others().next().is_none() {
            return lower == word;
        }
        !is_own && (is_listed || (is_other_script && is_dense))
    }

    /// Counts the responses that pass.
    pub fn count<'t>(&self, responses: impl IntoIterator<Item = &'t str>) -> PassCounts {
        let mut counts = PassCounts::default();
        for response in responses {
            let by_line = self.passes_by_line(response);
            counts.responses += 1;
            counts.pass_by_line += usize::from(by_line);
            counts.pass_by_word += usize::from(by_line && self.foreign_words(response).is_empty());
        }
        counts
    }
}

fn is_long_enough(line: &str) -> bool {
    let dense = line.chars().filter(|&c| is_dense_letter(c)).count();
    dense >= SHORTEST_DENSE_LINE || line.chars().filter(|c| c.is_alphabetic()).count() >= SHORTEST_LINE
}

/// Chinese characters, kana and Hangul.
fn is_dense_letter(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' | '\u{20000}'..='\u{323af}')
}

/// The scripts that a language is written in, as Unicode names them; none where we do not know.
fn scripts(language: &Language) -> Option<&'static [&'static str]> {
    Some(match language.code() {
        "ar" | "arb" | "fa" | "pes" | "ur" | "ps" | "ckb" | "ug" => &["Arabic"],
        "bg" | "ru" | "uk" | "be" | "mk" | "kk" | "ky" | "tg" | "mn" => &["Cyrillic"],
        "sr" => &["Cyrillic", "Latin"],
        "bn" | "as" => &["Bengali"],
        "hi" | "mr" | "ne" | "npi" | "sa" => &["Devanagari"],
        "el" => &["Greek"],
        "he" | "yi" => &["Hebrew"],
        "zh" | "cmn" | "yue" | "wuu" => &["Han", "Bopomofo"],
        "ja" => &["Han", "Hiragana", "Katakana"],
        "ko" => &["Hangul", "Han"],
        "th" => &["Thai"],
        "ka" => &["Georgian"],
        "hy" => &["Armenian"],
        "ta" => &["Tamil"],
        "te" => &["Telugu"],
        "kn" => &["Kannada"],
        "ml" => &["Malayalam"],
        "gu" => &["Gujarati"],
        "pa" => &["Gurmukhi"],
        "si" => &["Sinhala"],
        "my" => &["Myanmar"],
        "km" => &["Khmer"],
        "lo" => &["Lao"],
        "am" | "ti" => &["Ethiopic"],
        "en" | "fr" | "de" | "es" | "it" | "pt" | "nl" | "cs" | "sk" | "pl" | "fi" | "sv" | "da" | "no"
        | "nb" | "nn" | "hu" | "ro" | "tr" | "id" | "ms" | "vi" | "sw" | "et" | "lv" | "lt" | "sl" | "hr"
        | "ca" | "is" => &["Latin"],
        _ => return None,
    })
}

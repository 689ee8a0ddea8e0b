//! What can be wrong with a translation, and is found without knowing either language.

use std::fmt;

use instructions::language::Language;
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

use crate::layout::is_spaced;
use crate::translator::Direction;

/// What is wrong with a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The translator could not be asked, or did not answer.
    Unanswered,
    /// Nothing came back.
    Empty,
    /// The same words over and over.
    Looping,
    /// The text came back as it was, or a sentence of it did.
    Untranslated,
    /// It is in neither language, or still in the source's.
    WrongLanguage,
    /// It is far longer or shorter than its source, or ends in the middle.
    WrongLength,
    /// Code, an address, a number, a placeholder or Markdown was lost, doubled or moved.
    Masks,
    /// Lines, lists, tables or blocks of code are others than the source's.
    Structure,
}

/// A fault, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// What was found, and what was expected.
    pub what: String,
}

impl Fault {
    /// A fault of a kind.
    pub fn new(kind: FaultKind, what: impl Into<String>) -> Fault {
        Fault { kind, what: what.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Which faults are looked for, and from where on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checks {
    /// From how many words on a text that comes back as it was is a fault, whatever it is; shorter ones are where they
    /// have a word that is no name. `None` where it never is.
    pub untranslated: Option<usize>,
    /// How many times longer or shorter than its source a translation may be, both measured in width; `None` for no
    /// limit.
    pub length: Option<f64>,
    /// Whether words over and over are a fault.
    pub looping: bool,
    /// The shortest text whose language is identified, in letters, of which a sign of Chinese counts as three.
    pub shortest: usize,
    /// The probability from which an identifier is believed.
    pub threshold: f32,
}

impl Default for Checks {
    fn default() -> Self {
        Self { untranslated: Some(5), length: Some(2.5), looping: true, shortest: 40, threshold: 0.5 }
    }
}

impl Checks {
    /// Looks at the translation of one piece, masks put back on both sides; `words` is the source without its masks.
    ///
    /// # Errors
    /// The first fault found.
    pub fn piece(
        &self,
        source: &str,
        words: &str,
        translation: &str,
        direction: &Direction,
    ) -> Result<(), Fault> {
        if translation.trim().is_empty() {
            return Err(Fault::new(FaultKind::Empty, "nothing came back"));
        }
        if translation.contains(['\n', '\r']) {
            return Err(Fault::new(FaultKind::Structure, "a line came back as several"));
        }
        if self.looping {
            looping(source, translation)?;
        }
        if let Some(least) = self.untranslated {
            untranslated(source, words, translation, least)?;
        }
        if let Some(limit) = self.length {
            wrong_length(source, translation, limit)?;
            ends_in_the_middle(source, translation, &direction.target)?;
        }
        Ok(())
    }
}

/// Words over and over: a stretch of up to 40 words or signs that is repeated more often than anything in the source.
fn looping(source: &str, translation: &str) -> Result<(), Fault> {
    let (times, what) = most_repeated(translation);
    if times >= 4 && times > most_repeated(source).0 {
        let what: String = what.chars().take(60).collect();
        return Err(Fault::new(FaultKind::Looping, format!("`{what}` {times} times over")));
    }
    Ok(())
}

/// How often a stretch follows upon itself, at most, and the stretch.
fn most_repeated(text: &str) -> (usize, String) {
    // Words, and each sign of a script that puts no spaces between them; a sign alone may be repeated ("......").
    let units: Vec<&str> =
        text.split_word_bounds().filter(|unit| unit.chars().any(char::is_alphanumeric)).collect();
    let mut most = (1, String::new());
    for period in 1..=40.min(units.len() / 2) {
        let mut run = 0;
        for at in period..units.len() {
            run = if units[at] == units[at - period] { run + 1 } else { 0 };
            let times = run / period + 1;
            if times > most.0 && run % period == 0 {
                most = (times, units[at + 1 - period..=at].join(" "));
            }
        }
    }
    most
}

fn untranslated(source: &str, words: &str, translation: &str, least: usize) -> Result<(), Fault> {
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let count = |text: &str| text.unicode_words().count();
    // Names come back as they are, and they are written large where a script has case.
    let is_prose = count(words) >= least
        || (count(words) >= 2
            && words
                .unicode_words()
                .any(|word| word.chars().count() >= 4 && word.starts_with(char::is_lowercase)));
    if is_prose && flat(source) == flat(translation) {
        return Err(Fault::new(FaultKind::Untranslated, "came back untranslated"));
    }
    let translation = flat(translation);
    let sentence = source
        .unicode_sentences()
        .map(|sentence| (flat(sentence), count(sentence)))
        .find(|(sentence, count)| *count > least && translation.contains(sentence.as_str()));
    match sentence {
        // Whoever kept a whole source of names and numbers within a sentence did right.
        Some((sentence, _)) if count(words) >= least => {
            let start: String = sentence.chars().take(60).collect();
            Err(Fault::new(FaultKind::Untranslated, format!("a sentence came back untranslated: `{start}`")))
        }
        _ => Ok(()),
    }
}

/// How wide a text is: a sign of Chinese says as much as some three letters of an alphabet, one of Korean or Japanese
/// some two.
pub(crate) fn width(text: &str) -> f64 {
    text.chars()
        .map(|character| match character {
            '\u{3040}'..='\u{30ff}' | '\u{ac00}'..='\u{d7a3}' => 2.0,
            '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}' => 3.0,
            _ => 1.0,
        })
        .sum()
}

/// What a short text may be longer or shorter by on top of the limit: a word.
const SLACK: f64 = 12.0;

fn wrong_length(source: &str, translation: &str, limit: f64) -> Result<(), Fault> {
    let (from, to) = (width(source), width(translation));
    if to > limit * from + SLACK || from > limit * to + SLACK {
        let characters = (source.chars().count(), translation.chars().count());
        let what = format!("{} characters became {}", characters.0, characters.1);
        return Err(Fault::new(FaultKind::WrongLength, what));
    }
    // A translator that was cut off between two sentences.
    let (from, to) = (source.unicode_sentences().count(), translation.unicode_sentences().count());
    if from >= 3 && to * 2 < from {
        return Err(Fault::new(FaultKind::WrongLength, format!("{from} sentences became {to}")));
    }
    Ok(())
}

/// A source that ends with a stop, and a translation that ends in a word.
fn ends_in_the_middle(source: &str, translation: &str, target: &Language) -> Result<(), Fault> {
    // Thai, Lao, Khmer and Burmese end sentences without a sign, or with a letter of their script.
    let has_stops = is_spaced(target) || matches!(target.code(), "zh" | "cmn" | "yue" | "wuu" | "ja");
    let stop =
        |character: char| matches!(character, '.' | '!' | '?' | '…' | '。' | '！' | '？' | '।' | '؟' | '۔');
    let (Some(last), Some(end)) =
        (source.trim_end().chars().next_back(), translation.trim_end().chars().next_back())
    else {
        return Ok(());
    };
    if has_stops && stop(last) && (end.is_alphanumeric() || matches!(end, ',' | '，' | '、' | '-')) {
        return Err(Fault::new(
            FaultKind::WrongLength,
            format!("the source ends with `{last}`, this with `{end}`"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, translation: &str, target: &str) -> Option<FaultKind> {
        let direction = Direction { source: Language::english(), target: target.parse().unwrap() };
        Checks::default().piece(source, source, translation, &direction).err().map(|fault| fault.kind)
    }

    #[test]
    fn faults_are_told_from_translations() {
        let source = "The quick brown fox jumps over the lazy dog near the river.";
        let finnish = "Nopea ruskea kettu hyppää laiskan koiran yli joen lähellä.";
        assert_eq!(check(source, finnish, "fi"), None);
        assert_eq!(check(source, "敏捷的棕色狐狸在河边跳过了懒狗。", "zh"), None);
        assert_eq!(check(source, " ", "fi"), Some(FaultKind::Empty));
        assert_eq!(
            check(source, "The quick brown fox jumps over the lazy dog near the river.", "fi"),
            Some(FaultKind::Untranslated)
        );
        assert_eq!(
            check(source, "Nopea ruskea kettu kettu kettu kettu kettu kettu.", "fi"),
            Some(FaultKind::Looping)
        );
        assert_eq!(check(source, "狐狸跳过狐狸跳过狐狸跳过狐狸跳过狐狸跳过", "zh"), Some(FaultKind::Looping));
        assert_eq!(check(source, "Nopea ruskea kettu hyppää laiskan", "fi"), Some(FaultKind::WrongLength));
        assert_eq!(check(source, "Kettu.", "fi"), Some(FaultKind::WrongLength));
        assert!(check(source, &finnish.replace("yli", "yli, ").repeat(4), "fi").is_some());
        assert_eq!(check("Tokyo, Osaka", "Tokyo, Osaka", "fi"), None);
        assert_eq!(
            check(
                "One is here. Two is there. Three is gone. Four is late.",
                "Yksi on täällä, kaksi tuolla, kolme poissa.",
                "fi"
            ),
            Some(FaultKind::WrongLength)
        );
        let kept = format!("{finnish} {source}");
        assert_eq!(check(&format!("{source} {source}"), &kept, "fi"), Some(FaultKind::Untranslated));
    }

    #[test]
    fn a_source_that_repeats_itself_may_be_repeated() {
        assert_eq!(check("no no no no no, he said", "ei ei ei ei ei, hän sanoi", "fi"), None);
    }
}

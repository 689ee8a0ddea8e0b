//! chrF++ of a sentence (Popović 2017), as sacrebleu 2 computes it: character n-grams to 6, word n-grams to 2,
//! β = 2, no lower-casing, white space left out of the character n-grams, effective order.

use std::collections::HashMap;

const CHARACTER_ORDER: usize = 6;
const WORD_ORDER: usize = 2;
const BETA: f64 = 2.0;

/// What sacrebleu takes for punctuation at a word's edges: ASCII only.
fn is_punctuation(letter: char) -> bool {
    letter.is_ascii_punctuation()
}

/// What Python's `str.split` takes for white space: Unicode's, and the four ASCII separators.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// n-grams and how often each occurs, one map per order.
type Counts<'a> = HashMap<&'a [u32], usize>;

/// A sentence's units: its characters without white space, and its words as numbers.
struct Sentence {
    characters: Vec<u32>,
    words: Vec<String>,
}

impl Sentence {
    fn new(text: &str) -> Sentence {
        let characters = text.chars().filter(|&letter| !is_space(letter)).map(u32::from).collect();
        let mut words = Vec::new();
        for word in text.split(is_space).filter(|word| !word.is_empty()) {
            let mut letters = word.chars();
            let (first, last) = (letters.next(), letters.next_back());
            match (first, last) {
                // A mark at the end is cut off before one at the start is looked at, and only one of them is.
                (Some(_), Some(last)) if is_punctuation(last) => {
                    let border = word.len() - last.len_utf8();
                    words.extend([word[..border].to_string(), last.to_string()]);
                }
                (Some(first), Some(_)) if is_punctuation(first) => {
                    let border = first.len_utf8();
                    words.extend([first.to_string(), word[border..].to_string()]);
                }
                _ => words.push(word.to_string()),
            }
        }
        Sentence { characters, words }
    }
}

/// chrF++ of a response against several references: the best of them, 0 to 100.
///
/// `None` where there is no reference.
pub fn chrf_plus_plus(response: &str, references: &[impl AsRef<str>]) -> Option<f64> {
    let response = Sentence::new(response);
    references.iter().map(|reference| score(&response, &Sentence::new(reference.as_ref()))).reduce(f64::max)
}

/// F-score of the mean precision and the mean recall over the orders that both sentences have.
fn score(response: &Sentence, reference: &Sentence) -> f64 {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let response_words = number_words(&response.words, &mut numbers);
    let reference_words = number_words(&reference.words, &mut numbers);
    let orders = (1..=CHARACTER_ORDER)
        .map(|order| (order, &response.characters, &reference.characters))
        .chain((1..=WORD_ORDER).map(|order| (order, &response_words, &reference_words)));
    let (mut precision, mut recall, mut effective) = (0.0, 0.0, 0_u32);
    for (order, ours, theirs) in orders {
        if ours.len() < order || theirs.len() < order {
            continue;
        }
        let (ours, theirs) = (counts(ours, order), counts(theirs, order));
        let matches: usize =
            ours.iter().map(|(gram, &count)| count.min(theirs.get(gram).copied().unwrap_or(0))).sum();
        precision += matches as f64 / ours.values().sum::<usize>() as f64;
        recall += matches as f64 / theirs.values().sum::<usize>() as f64;
        effective += 1;
    }
    if effective == 0 || precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / f64::from(effective), recall / f64::from(effective));
    let factor = BETA * BETA;
    100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
}

fn number_words<'a>(words: &'a [String], numbers: &mut HashMap<&'a str, u32>) -> Vec<u32> {
    words
        .iter()
        .map(|word| {
            let next = numbers.len() as u32;
            *numbers.entry(word).or_insert(next)
        })
        .collect()
}

fn counts(units: &[u32], order: usize) -> Counts<'_> {
    let mut counts = Counts::new();
    for gram in units.windows(order) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

//! A field in parts: what stays as it is, and the pieces that are translated. Put together again unchanged, the parts are
//! the field to the byte.

use std::ops::Range;
use std::sync::LazyLock;

use instructions::language::Language;
use regex::Regex;
use unicode_segmentation::UnicodeSegmentation;

use crate::mask::{Kind, Mask, Piece, masks};

/// How a line is cut for a translator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Whether each sentence is a piece of its own, as for models that were trained on sentences; else a line is cut
    /// only where it is too long.
    pub sentences: bool,
    /// Characters of a piece, at most. A sentence that is longer is cut between clauses, else between words.
    pub longest: usize,
}

/// A part of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Stays: code, line breaks, list marks, what holds no word.
    Kept(String),
    /// Is translated.
    Piece(Piece),
}

/// A field in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    parts: Vec<Part>,
    /// What of the field is Markdown, code or an address, in an order that a translation keeps.
    skeleton: Skeleton,
}

/// What a translation must have in common with its source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skeleton {
    /// Of each line, what stands before its text; of a line of code, all of it.
    lines: Vec<String>,
    /// All that is masked but numbers, sorted.
    masked: Vec<String>,
}

/// What stands before a line's text: quotation, heading, list, box.
static PREFIX: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^(?:\s*(?:>+|[-*+•◦·‣–—]|\#{1,6}|\(?[0-9]{1,3}[.)]|\(?[A-Za-z][.)]|\[[ xX]\])(?:\s+|$)|\s*[0-9]{1,3}[、．）])*\s*",
    )
    .expect("a constant pattern")
});

/// What may start or end a block of code, and what stands behind it.
static FENCE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[\s>]*(```+|~~~+)(.*)").expect("a constant pattern"));

/// A line of code without a fence: statements and declarations as no prose has them.
static CODE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?x)^\s*(?:
            .*[=()\[\]"'].*;\s*$ | .*\)\s*\{\s*$ | [{}]+\s*[;,)]*\s*$
          | (?:def|fn|function)\s+\w+\s*\(.* | class\s+\w+\s*(?:\(.*\))?\s*[:{]\s*$ | \#\s*include\s*[<"].*
          | import\s+[\w.]+(?:\s+as\s+\w+)?\s*;?\s*$ | from\s+[\w.]+\s+import\s.* | (?:elif|if|while|for)\s.*:\s*$
          | (?:print|console\.log|println!?|printf)\s*\(.*\)\s*;?\s*$ | return\s+[\w.]+\(.*\)\s*$
          | \w+(?:\.\w+|\[[^\]]*\])*\s*[-+*/]?=\s*(?:[\["'{(\d]|\w+[.(\[]).*
          | SELECT\s.+\sFROM\s.* | <!DOCTYPE.* | >>>\s.* | \$\s\w.*
        )$"#,
    )
    .expect("a constant pattern")
});

/// Words with a full stop behind them that ends no sentence, in the languages of the paper's instruction sets.
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "no", "vol", "fig", "inc",
    "ltd", "co", "approx", "gen", "col", "lt", "capt", "rev", "hon", "esim", "mm", "ns", "eaa", "jaa", "ks",
    "bzw", "z.b", "d.h", "u.a", "usw", "bspw", "ca", "hr", "fr", "cf", "p.ex", "sra", "ud", "pág", "т.е",
    "т.д", "др", "např", "tzv", "atd",
];

impl Layout {
    /// Takes a field apart.
    pub fn of(field: &str, split: Split) -> Layout {
        let mut layout = Layout { parts: Vec::new(), skeleton: Skeleton::default() };
        let mut fence: Option<String> = None;
        for line in field.split_inclusive('\n') {
            let in_code = fence.is_some();
            fence = fence_behind(line, fence);
            if in_code || fence.is_some() || CODE.is_match(line.trim_end()) {
                layout.keep(line);
                layout.skeleton.lines.push(line.to_owned());
            } else {
                layout.add_line(line, split);
            }
        }
        layout.skeleton.masked.sort_unstable();
        layout
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.parts.iter().filter_map(|part| match part {
            Part::Piece(piece) => Some(piece),
            Part::Kept(_) => None,
        })
    }

    /// What a translation must have in common with this.
    pub fn skeleton(&self) -> &Skeleton {
        &self.skeleton
    }

    /// Puts the field together with each piece's translation in its place, in order; a piece without one stays as it
    /// is. Between sentences there is a space where the target writes one and the source does not, and the other way
    /// about.
    pub fn rejoined(&self, translations: &[String], source: &Language, target: &Language) -> String {
        let mut field = String::new();
        let mut translations = translations.iter();
        let (from_spaced, to_spaced) = (is_spaced(source), is_spaced(target));
        for (place, part) in self.parts.iter().enumerate() {
            let previous = place.checked_sub(1).map(|before| &self.parts[before]);
            match part {
                Part::Kept(text)
                    if text == " " && from_spaced && !to_spaced && field.ends_with(is_wide_stop) => {}
                Part::Kept(text) => field.push_str(text),
                Part::Piece(piece) => {
                    if !from_spaced && to_spaced && matches!(previous, Some(Part::Piece(_))) {
                        field.push(' ');
                    }
                    field.push_str(translations.next().map_or(piece.text(), String::as_str));
                }
            }
        }
        field
    }

    fn keep(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Kept(last)) => last.push_str(text),
            _ => self.parts.push(Part::Kept(text.to_owned())),
        }
    }

    fn add_line(&mut self, line: &str, split: Split) {
        let text = line.trim_end();
        let prefix = PREFIX.find(text).map_or(0, |prefix| prefix.end());
        self.keep(&line[..prefix]);
        self.skeleton.lines.push(line[..prefix].trim().to_owned());
        let body = &text[prefix..];
        if body.starts_with('|') {
            // A row of a table: each cell is a text.
            for cell in body.split_inclusive('|') {
                let content = cell.trim_end_matches('|');
                self.add_text(content, split);
                self.keep(&cell[content.len()..]);
            }
        } else {
            self.add_text(body, split);
        }
        self.keep(&line[text.len()..]);
    }

    /// A text within a line.
    fn add_text(&mut self, text: &str, split: Split) {
        let masks = masks(text);
        let constant = masks.iter().filter(|mask| mask.kind != Kind::Number);
        self.skeleton.masked.extend(constant.map(|mask| text[mask.range.clone()].to_owned()));
        for range in cuts(text, &masks, split) {
            let whole = &text[range.clone()];
            let start = range.start + whole.len() - whole.trim_start().len();
            let end = start + whole.trim().len();
            let piece = Piece::of(text, &masks, start..end);
            self.keep(&text[range.start..start]);
            if piece.has_words() {
                self.parts.push(Part::Piece(piece));
            } else {
                self.keep(&text[start..end]);
            }
            self.keep(&text[end..range.end]);
        }
    }
}

/// The fence of the block of code that goes on behind a line, given that in which the line is. As in CommonMark 0.31
/// (section 4.5) a fence that opens has no backquote behind its own, so that code within a line opens nothing, and one
/// that closes has nothing behind it.
fn fence_behind(line: &str, open: Option<String>) -> Option<String> {
    let Some((_, [marks, info])) = FENCE.captures(line).map(|captures| captures.extract()) else {
        return open;
    };
    match open {
        None => (marks.starts_with('~') || !info.contains('`')).then(|| marks.to_owned()),
        Some(open) if marks.starts_with(open.as_str()) && info.trim().is_empty() => None,
        open => open,
    }
}

/// Where a text is cut, end to end.
fn cuts(text: &str, masks: &[Mask], split: Split) -> Vec<Range<usize>> {
    let free = |at: usize| !masks.iter().any(|mask| mask.range.start < at && at < mask.range.end);
    let mut sentences = Vec::new();
    let mut start = 0;
    for (at, sentence) in text.split_sentence_bound_indices() {
        let end = at + sentence.len();
        if end < text.len() && (!free(end) || ends_in_abbreviation(&text[start..end])) {
            continue;
        }
        sentences.push(start..end);
        start = end;
    }
    if start < text.len() {
        sentences.push(start..text.len());
    }
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for sentence in sentences {
        for range in shortened(text, sentence, &free, split.longest) {
            match pieces.last_mut() {
                Some(last)
                    if !split.sentences && characters(&text[last.start..range.end]) <= split.longest =>
                {
                    last.end = range.end;
                }
                _ => pieces.push(range),
            }
        }
    }
    pieces
}

/// Cuts a sentence that is too long: behind the last comma or the like that fits, else before the last word that
/// fits, else not.
fn shortened(
    text: &str,
    sentence: Range<usize>,
    free: &dyn Fn(usize) -> bool,
    longest: usize,
) -> Vec<Range<usize>> {
    let longest = longest.max(1);
    let mut ranges = Vec::new();
    let mut start = sentence.start;
    while characters(&text[start..sentence.end]) > longest {
        let (mut clause, mut word) = (None, None);
        let mut length = 0;
        let mut comma = false;
        for (at, part) in text[start..sentence.end].split_word_bound_indices() {
            let here = start + at;
            if here > start && free(here) && (word.is_none() || length <= longest) {
                word = Some(here);
                if comma && length <= longest {
                    clause = Some(here);
                }
            }
            if length > longest && word.is_some() {
                break;
            }
            length += characters(part);
            comma = part.ends_with([',', ';', ':', '，', '；', '：', '、', '،', '؛'])
                || (comma && part.trim().is_empty());
        }
        let Some(end) = clause.or(word) else { break };
        ranges.push(start..end);
        start = end;
    }
    ranges.push(start..sentence.end);
    ranges
}

fn characters(text: &str) -> usize {
    text.chars().count()
}

fn ends_in_abbreviation(sentence: &str) -> bool {
    let Some(text) = sentence.trim_end().strip_suffix('.') else { return false };
    let word =
        text.rsplit(|character: char| character.is_whitespace() || character == '(').next().unwrap_or(text);
    let mut letters = word.chars();
    let initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none();
    initial || ABBREVIATIONS.contains(&word.to_lowercase().as_str())
}

/// Whether a language puts spaces between its words, and so between its sentences.
pub fn is_spaced(language: &Language) -> bool {
    !matches!(
        language.code(),
        "zh" | "cmn"
            | "yue"
            | "wuu"
            | "gan"
            | "hak"
            | "nan"
            | "lzh"
            | "ja"
            | "th"
            | "lo"
            | "km"
            | "my"
            | "bo"
            | "dz"
    )
}

fn is_wide_stop(character: char) -> bool {
    matches!(character, '。' | '！' | '？' | '；' | '…' | '」' | '』' | '”')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENTENCES: Split = Split { sentences: true, longest: 400 };

    fn pieces(field: &str, split: Split) -> Vec<String> {
        Layout::of(field, split).pieces().map(|piece| piece.text().to_owned()).collect()
    }

    fn unchanged(field: &str, split: Split) -> String {
        let english = Language::english();
        let layout = Layout::of(field, split);
        let pieces: Vec<String> = layout.pieces().map(|piece| piece.text().to_owned()).collect();
        layout.rejoined(&pieces, &english, &english)
    }

    #[test]
    fn structure_stays_and_words_are_pieces() {
        let field = "# Title\n\n1. First point. Second one?\n   - [x] done: 5\n> Quoted\r\n\n```rust\nlet a = 1; // words\n```\n\
                     | Name | Age |\n|---|---|\n| Dr. Who | 12 |\nresult = compute(3)\n  Mr. J. Smith came. He left!  \n42\n";
        assert_eq!(
            pieces(field, SENTENCES),
            [
                "Title",
                "First point.",
                "Second one?",
                "done: 5",
                "Quoted",
                "Name",
                "Age",
                "Dr. Who",
                "Mr. J. Smith came.",
                "He left!"
            ]
        );
        assert_eq!(unchanged(field, SENTENCES), field);
        let whole = Split { sentences: false, longest: 400 };
        assert!(pieces(field, whole).contains(&"First point. Second one?".to_owned()));
    }

    #[test]
    fn a_block_of_code_begins_and_ends_where_commonmark_says() {
        for (field, expected) in [
            ("```ls -l``` lists the files.\nNext line.", &["```ls -l``` lists the files.", "Next line."][..]),
            ("```sh\nls words\n``` not yet\nmore words\n`````\t\nNext line.", &["Next line."]),
            ("~~~ a `b`\nwords\n```\nwords\n~~~\r\nNext line.", &["Next line."]),
            ("````\nwords\n```\nwords\n````\nNext line.", &["Next line."]),
        ] {
            assert_eq!(pieces(field, SENTENCES), expected, "{field}");
            assert_eq!(unchanged(field, SENTENCES), field);
        }
    }

    #[test]
    fn sentences_of_other_scripts_are_cut_and_joined_as_their_language_writes() {
        let field = "今天天气很好。我们去公园吧！你来吗？";
        assert_eq!(pieces(field, SENTENCES), ["今天天气很好。", "我们去公园吧！", "你来吗？"]);
        let (chinese, english): (Language, _) = ("zh".parse().unwrap(), Language::english());
        let back = ["Nice day.".to_owned(), "Let us go!".to_owned(), "Coming?".to_owned()];
        let layout = Layout::of(field, SENTENCES);
        assert_eq!(layout.rejoined(&back, &chinese, &english), "Nice day. Let us go! Coming?");
        let layout = Layout::of("Nice day. Let us go!", SENTENCES);
        let there = ["天气很好。".to_owned(), "走吧！".to_owned()];
        assert_eq!(layout.rejoined(&there, &english, &chinese), "天气很好。走吧！");
    }

    #[test]
    fn what_is_too_long_is_cut_between_clauses_or_words_and_never_within_a_mask() {
        let field = "one two three, four five six seven eight nine ten `a b c d e f g h i j k l m n` eleven";
        for longest in 1..40 {
            let split = Split { sentences: false, longest };
            assert_eq!(unchanged(field, split), field, "{longest}");
            let inside = pieces(field, split).iter().any(|piece| piece.matches('`').count() == 1);
            assert!(!inside, "{longest}");
        }
        assert_eq!(
            pieces("one two, three four", Split { sentences: false, longest: 12 }),
            ["one two,", "three four"]
        );
        let han = "没有标点的很长的一句话".repeat(20);
        let split = Split { sentences: true, longest: 30 };
        assert!(pieces(&han, split).iter().all(|piece| characters(piece) <= 30));
        assert_eq!(unchanged(&han, split), han);
    }

    proptest! {
        #[test]
        fn any_field_comes_back_to_the_byte(
            field in "([ -~\n\r\t。！？一-丁⟦⟧{}<>|`*_#]|\\PC){0,80}", sentences: bool, longest in 0usize..30,
        ) {
            prop_assert_eq!(unchanged(&field, Split { sentences, longest }), field);
        }
    }
}

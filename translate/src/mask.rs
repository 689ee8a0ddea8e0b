//! What a translator must not touch: found, taken out, and put back.

use std::ops::Range;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// What is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Code in backticks, an identifier, a formula.
    Code,
    /// An address of the web or of mail.
    Address,
    /// A mark that something is to be filled in: `{name}`, `%s`, `[NAME]`, `____`.
    Placeholder,
    /// Markdown or HTML within a line.
    Markup,
    /// A number.
    Number,
}

/// A part of a text that is masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Where, in bytes.
    pub range: Range<usize>,
    /// As what.
    pub kind: Kind,
}

/// How a mask is written in the text that a translator sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskForm {
    /// `⟦1⟧`: nothing else looks like it.
    Brackets,
    /// `<x1/>`: what translators of documents are trained to keep.
    Tag,
    /// `{1}`: letters that every vocabulary has.
    Braces,
}

const PATTERN: &str = r#"(?x)
    (?P<code> ``[^\n]+?`` | `[^`\n]+` | \$\$[^$\n]+\$\$ | \\\([^\n]*?\\\) | \\\[[^\n]*?\\\]
        | \$[^$\s](?:[^$\n]*[^$\s])?\$ )
  | (?P<address> (?:https?|ftp)://[^\s<>"'「」『』（）【】，。；、！？]+ | \bwww\.[^\s<>"'「」『』（）【】，。；、！？]+
        | [A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+ )
  | (?P<placeholder> \{\{[^{}\n]*\}\} | \$?\{[A-Za-z0-9_.:]*\} | %\([A-Za-z0-9_]*\)[a-z] | %[sdif]\b
        | \[[A-Z][A-Z0-9_'\ ]*\] | _{2,} | [⟦⟧｛｝] )
  | (?P<link> (?P<open>!?\[) [^\[\]\n]* (?P<close>\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)?(?:\s"[^"\n]*")?\)) )
  | (?P<markup> </?[A-Za-z][^<>\n]{0,200}> | <!--[^\n]*?--> | &(?:[A-Za-z]+|\#\d+|\#x[0-9A-Fa-f]+); | \*+ | ~~ )
  | (?P<identifier> \b[A-Za-z0-9]*[A-Za-z0-9]_[A-Za-z0-9_]*\b )
  | (?P<number> \p{Nd}+(?:[.,:/'’\u{a0}\u{202f}-]\p{Nd}+)*(?:[\u{a0}\u{202f}]?[%‰])? )
"#;

static MASKED: LazyLock<Regex> = LazyLock::new(|| Regex::new(PATTERN).expect("a constant pattern"));

/// What of a line is masked, from left to right.
pub fn masks(line: &str) -> Vec<Mask> {
    let mut found = Vec::new();
    for captures in MASKED.captures_iter(line) {
        add(&mut found, line, &captures);
    }
    found
}

fn add(found: &mut Vec<Mask>, line: &str, captures: &Captures<'_>) {
    let range = |name: &str| captures.name(name).map(|part| part.range());
    let mut mask = |range: Range<usize>, kind| found.push(Mask { range, kind });
    if let Some(code) = range("code") {
        // "$5 to $10" is money; a formula has a sign of one.
        let text = &line[code.clone()];
        let dollars = text.starts_with('$') && !text.starts_with("$$");
        if !dollars || text.contains(['\\', '^', '_', '=', '{']) {
            mask(code, Kind::Code);
        } else {
            for mut inner in masks(&text[1..]) {
                inner.range = inner.range.start + code.start + 1..inner.range.end + code.start + 1;
                found.push(inner);
            }
        }
    } else if let Some(address) = range("address") {
        let text = line[address.clone()].trim_end_matches(['.', ',', ';', ':', '!', '?', '*', '|', ']']);
        let text = if text.ends_with(')') && !text.contains('(') { text.trim_end_matches(')') } else { text };
        mask(address.start..address.start + text.len(), Kind::Address);
        // What a sentence puts behind an address may be markup again.
        let rest = address.start + text.len()..address.end;
        for inner in masks(&line[rest.clone()]) {
            mask(inner.range.start + rest.start..inner.range.end + rest.start, inner.kind);
        }
    } else if let Some(placeholder) = range("placeholder") {
        mask(placeholder, Kind::Placeholder);
    } else if let (Some(open), Some(close)) = (range("open"), range("close")) {
        let label = open.end..close.start;
        mask(open, Kind::Markup);
        for inner in masks(&line[label.clone()]) {
            mask(inner.range.start + label.start..inner.range.end + label.start, inner.kind);
        }
        mask(close, Kind::Markup);
    } else if let Some(markup) = range("markup") {
        mask(markup, Kind::Markup);
    } else if let Some(identifier) = range("identifier") {
        mask(identifier, Kind::Code);
    } else if let Some(number) = range("number") {
        // A number that a word goes on from or into (19th, MP3, 10-vuotias) is inflected with it, and stays in the text;
        // that its digits come back is checked all the same. Scripts without case write words and numbers side by side.
        let cased = |letter: Option<char>| {
            letter.is_some_and(|letter| letter.is_lowercase() || letter.is_uppercase())
        };
        let joined = |mut rest: std::str::Chars<'_>| rest.next() == Some('-') && cased(rest.next());
        let before = line[..number.start].chars().next_back();
        if !cased(before) && !cased(line[number.end..].chars().next()) && !joined(line[number.end..].chars())
        {
            mask(number, Kind::Number);
        }
    }
}

/// A stretch of text with its masks: what a translator translates at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    text: String,
    masks: Vec<Mask>,
}

/// What is wrong with the masks of a translation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskFault {
    /// A mask did not come back.
    #[error("lost `{0}`")]
    Lost(String),
    /// A mask came back more than once.
    #[error("`{0}` came back more than once")]
    Repeated(String),
    /// A mask came back that was never sent.
    #[error("a mask came back that was never sent: `{0}`")]
    Unknown(String),
    /// Opening and closing marks came back in another order.
    #[error("the marks of Markdown came back in another order")]
    Order,
    /// Digits that were no mask did not come back.
    #[error("lost the digits {0}")]
    Digits(String),
}

impl Piece {
    /// A piece of a line whose masks are known; those within `range` are its own.
    pub(crate) fn of(line: &str, masks: &[Mask], range: Range<usize>) -> Piece {
        let masks = masks
            .iter()
            .filter(|mask| range.start <= mask.range.start && mask.range.end <= range.end)
            .map(|mask| Mask {
                range: mask.range.start - range.start..mask.range.end - range.start,
                kind: mask.kind,
            })
            .collect();
        Piece { text: line[range].to_owned(), masks }
    }

    /// The piece as it stands in the field.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text that a translator sees.
    pub fn masked(&self, form: MaskForm) -> String {
        let mut masked = String::with_capacity(self.text.len());
        let mut at = 0;
        for (number, mask) in self.masks.iter().enumerate() {
            masked.push_str(&self.text[at..mask.range.start]);
            masked.push_str(&form.write(number + 1));
            at = mask.range.end;
        }
        masked.push_str(&self.text[at..]);
        masked
    }

    /// Whether there is anything to translate: a letter outside the masks.
    pub fn has_words(&self) -> bool {
        self.words().chars().any(char::is_alphabetic)
    }

    /// The text without its masks.
    pub fn words(&self) -> String {
        let mut words = String::new();
        let mut at = 0;
        for mask in &self.masks {
            words.push_str(&self.text[at..mask.range.start]);
            words.push(' ');
            at = mask.range.end;
        }
        words.push_str(&self.text[at..]);
        words
    }

    /// Puts what was masked back into a translation of the masked text.
    ///
    /// # Errors
    /// [`MaskFault`]: a mask or a number is not where it has to be exactly once.
    pub fn unmasked(&self, translation: &str, form: MaskForm) -> Result<String, MaskFault> {
        let mut came: Vec<(Range<usize>, usize)> = Vec::new();
        for captures in form.pattern().captures_iter(translation) {
            let (Some(whole), Some(digits)) = (captures.get(0), captures.get(1)) else { continue };
            let number = digits
                .as_str()
                .chars()
                .try_fold(0usize, |number, digit| number.checked_mul(10)?.checked_add(digit_value(digit)?));
            match number {
                Some(number) if (1..=self.masks.len()).contains(&number) => {
                    came.push((whole.range(), number - 1));
                }
                _ => return Err(MaskFault::Unknown(whole.as_str().to_owned())),
            }
        }
        for number in 0..self.masks.len() {
            match came.iter().filter(|(_, found)| *found == number).count() {
                0 => return Err(MaskFault::Lost(self.original(number).to_owned())),
                1 => {}
                _ => return Err(MaskFault::Repeated(self.original(number).to_owned())),
            }
        }
        let markup: Vec<usize> = came
            .iter()
            .map(|(_, number)| *number)
            .filter(|number| self.masks[*number].kind == Kind::Markup)
            .collect();
        if !markup.is_sorted() {
            return Err(MaskFault::Order);
        }
        let mut text = String::with_capacity(translation.len());
        let mut at = 0;
        for (range, number) in came {
            text.push_str(&translation[at..range.start]);
            at = range.end;
            self.put_back(number, &mut text, translation, &mut at);
        }
        text.push_str(&translation[at..]);
        self.check_digits(&text)?;
        Ok(text)
    }

    /// Markup clings to the word that it clung to: a translator that puts a space between would undo it.
    fn put_back(&self, number: usize, text: &mut String, translation: &str, at: &mut usize) {
        let mask = &self.masks[number];
        let (before, after) = (&self.text[..mask.range.start], &self.text[mask.range.end..]);
        let clings = |neighbour: Option<char>| neighbour.is_some_and(|neighbour| !neighbour.is_whitespace());
        let is_markup = mask.kind == Kind::Markup && !self.original(number).starts_with('&');
        if is_markup && clings(before.chars().next_back()) && !clings(after.chars().next()) {
            text.truncate(text.trim_end_matches(' ').len());
        }
        text.push_str(self.original(number));
        if is_markup && clings(after.chars().next()) && !clings(before.chars().next_back()) {
            let rest = &translation[*at..];
            *at += rest.len() - rest.trim_start_matches(' ').len();
        }
    }

    fn original(&self, number: usize) -> &str {
        &self.text[self.masks[number].range.clone()]
    }

    fn check_digits(&self, text: &str) -> Result<(), MaskFault> {
        let words = self.words();
        let lost = words
            .split(|character: char| !character.is_ascii_digit())
            .find(|digits| !digits.is_empty() && !text.contains(digits));
        lost.map_or(Ok(()), |digits| Err(MaskFault::Digits(digits.to_owned())))
    }
}

/// The value of a digit; translators into Chinese and Japanese widen them.
fn digit_value(digit: char) -> Option<usize> {
    match digit {
        '０'..='９' => Some(digit as usize - '０' as usize),
        _ => digit.to_digit(10).map(|value| value as usize),
    }
}

impl MaskForm {
    fn write(self, number: usize) -> String {
        match self {
            Self::Brackets => format!("⟦{number}⟧"),
            Self::Tag => format!("<x{number}/>"),
            Self::Braces => format!("{{{number}}}"),
        }
    }

    /// How it may come back: with spaces in it, or widened.
    fn pattern(self) -> &'static Regex {
        static BRACKETS: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"⟦\s*([0-9０-９]+)\s*⟧").expect("a constant pattern"));
        static TAG: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"[<＜]\s*[xX]\s*([0-9０-９]+)\s*[/／]?\s*[>＞]").expect("a constant pattern")
        });
        static BRACES: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"[{｛]\s*([0-9０-９]+)\s*[}｝]").expect("a constant pattern"));
        match self {
            Self::Brackets => &BRACKETS,
            Self::Tag => &TAG,
            Self::Braces => &BRACES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str) -> Piece {
        Piece::of(text, &masks(text), 0..text.len())
    }

    #[test]
    fn what_must_not_be_touched_is_masked() {
        for (text, masked) in [
            ("Run `ls -l` in {folder}.", "Run ⟦1⟧ in ⟦2⟧."),
            ("See https://example.org/a(b)?c=1.", "See ⟦1⟧."),
            ("(see www.example.org), or a@b.example", "(see ⟦1⟧), or ⟦2⟧"),
            ("In 1999, 3.5 % of 1,000 by the 19th of MP3", "In ⟦1⟧, ⟦2⟧ % of ⟦3⟧ by the 19th of MP3"),
            ("**Note**: a [link](http://x.y/z) and <b>bold</b>", "⟦1⟧Note⟦2⟧: a ⟦3⟧link⟦4⟧ and ⟦5⟧bold⟦6⟧"),
            ("Dear [NAME], %s owes ${sum} for ____", "Dear ⟦1⟧, ⟦2⟧ owes ⟦3⟧ for ⟦4⟧"),
            ("from $5 to $10, where $x^2 = y$", "from $⟦1⟧ to $⟦2⟧, where ⟦3⟧"),
            ("2019年3月1日，snake_case", "⟦1⟧年⟦2⟧月⟦3⟧日，⟦4⟧"),
            ("a ⟦1⟧ of one's own", "a ⟦1⟧1⟦2⟧ of one's own"),
        ] {
            let masked_text = piece(text).masked(MaskForm::Brackets);
            if text.contains('⟦') {
                // The brackets themselves are masks, so that no mask can be taken for the text.
                assert_eq!(masked_text, "a ⟦1⟧⟦2⟧⟦3⟧ of one's own");
            } else {
                assert_eq!(masked_text, masked, "{text}");
            }
            for form in [MaskForm::Brackets, MaskForm::Tag, MaskForm::Braces] {
                let piece = piece(text);
                assert_eq!(piece.unmasked(&piece.masked(form), form).as_deref(), Ok(text));
            }
        }
    }

    #[test]
    fn what_is_lost_repeated_or_new_is_told() {
        let piece = piece("**Run** `ls` on the 2nd day");
        assert_eq!(piece.masked(MaskForm::Braces), "{1}Run{2} {3} on the 2nd day");
        let unmasked = |text| piece.unmasked(text, MaskForm::Braces);
        assert_eq!(unmasked("{ 1 } Aja ｛２｝ {3} 2. päivänä").as_deref(), Ok("**Aja** `ls` 2. päivänä"));
        assert_eq!(unmasked("{1}Aja{2} 2."), Err(MaskFault::Lost("`ls`".into())));
        assert_eq!(unmasked("{1}Aja{2} {3}{3} 2."), Err(MaskFault::Repeated("`ls`".into())));
        assert_eq!(unmasked("{1}Aja{2} {3} {4} 2."), Err(MaskFault::Unknown("{4}".into())));
        assert_eq!(unmasked("{2}Aja{1} {3} 2."), Err(MaskFault::Order));
        assert_eq!(unmasked("{3} {1}Aja{2} toisena"), Err(MaskFault::Digits("2".into())));
    }
}

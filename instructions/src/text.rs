//! What a text is to its reader.

use std::sync::LazyLock;

use regex::Regex;

/// Whether a text has anything that a reader sees: not white space, control and format characters, or what Unicode has
/// drawn as nothing, as a zero-width space or a byte-order mark; nor the Braille pattern without a dot.
pub fn has_visible_text(text: &str) -> bool {
    static VISIBLE: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"[^\s\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u{2800}]";
        Regex::new(pattern).unwrap_or_else(|error| unreachable!("{error}"))
    });
    VISIBLE.is_match(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_invisible_characters_alone_is_not_visible() {
        for c in
            ['\u{200B}', '\u{FEFF}', '\u{2060}', '\u{AD}', '\u{200E}', '\u{200F}', '\u{3164}', '\u{2800}']
        {
            assert!(!has_visible_text(&format!(" {c}\n{c}\t")), "U+{:04X}", c as u32);
            assert!(has_visible_text(&format!("{c}a{c}")), "U+{:04X}", c as u32);
        }
        for empty in ["", " \n", "\u{A0}\u{3000}", "\u{0}\u{7F}", "\u{E0001}\u{FE0F}"] {
            assert!(!has_visible_text(empty), "{empty:?}");
        }
        for text in [".", "नमस्ते", "👍\u{FE0F}", "\u{FFFD}", "می\u{200C}خواهم", "⠁"] {
            assert!(has_visible_text(text), "{text:?}");
        }
    }
}

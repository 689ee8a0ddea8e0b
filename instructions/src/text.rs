//! What a text is to its reader.

/// Whether a text has anything that a reader sees: not white space, control characters, or characters that are drawn as
/// nothing, as a zero-width space or a byte-order mark.
pub fn has_visible_text(text: &str) -> bool {
    text.chars().any(|c| !c.is_whitespace() && !c.is_control() && !is_drawn_as_nothing(c))
}

/// Unicode's `Default_Ignorable_Code_Point` (DerivedCoreProperties.txt), the marks of annotations beside it, and the
/// Braille pattern without a dot.
fn is_drawn_as_nothing(c: char) -> bool {
    matches!(
        c,
        '\u{AD}'
            | '\u{34F}'
            | '\u{61C}'
            | '\u{115F}'..='\u{1160}'
            | '\u{17B4}'..='\u{17B5}'
            | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200F}'
            | '\u{202A}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}'
            | '\u{FFA0}'
            | '\u{FFF0}'..='\u{FFFB}'
            | '\u{1BCA0}'..='\u{1BCA3}'
            | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E0FFF}'
    )
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

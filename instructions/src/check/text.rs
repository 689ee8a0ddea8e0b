//! What can be told from one text.

/// Pieces of templates and control tokens that no instruction or answer has by right.
const LEFTOVERS: &[&str] = &[
    "### Instruction:",
    "### Input:",
    "### Response:",
    "Below is an instruction that describes a task",
    "{instruction}",
    "{input}",
    "{output}",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "</s>",
];

/// The first piece of a template that is left in a text.
pub(super) fn template_leftover(text: &str) -> Option<&'static str> {
    // Each begins with one of these, and most texts have none of them.
    if !text.contains(['#', '{', '<', '[', 'B']) {
        return None;
    }
    LEFTOVERS.iter().find(|leftover| text.contains(**leftover)).copied()
}

/// What is broken in a text's characters.
pub(super) fn broken_encoding(text: &str) -> Option<String> {
    if text.is_ascii() && !text.bytes().any(|byte| byte < b' ') {
        return None;
    }
    if text.contains('\u{FFFD}') {
        return Some("a character that was lost (U+FFFD)".to_owned());
    }
    // What U+FFFD, and memory that was never written, become when read as GBK.
    if let Some(found) = ["锟斤拷", "烫烫烫"].into_iter().find(|found| text.contains(found)) {
        return Some(format!("`{found}`, which is text decoded wrongly"));
    }
    let control = |c: &char| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r');
    if let Some(c) = text.chars().find(control) {
        return Some(format!("the control character U+{:04X}", c as u32));
    }
    mojibake(text).map(|found| format!("`{found}`, which is UTF-8 decoded as Windows-1252"))
}

/// UTF-8 that was decoded as Windows-1252 or Latin-1: a run of such characters whose bytes are UTF-8.
fn mojibake(text: &str) -> Option<String> {
    let mut run = Vec::new();
    // The end closes the last run.
    for c in text.chars().chain(['.']) {
        match windows_1252(c) {
            Some(byte) => run.push((c, byte)),
            None => {
                if let Some(found) = utf8_within(&run) {
                    return Some(found);
                }
                run.clear();
            }
        }
    }
    None
}

/// The byte that Windows-1252 (and Latin-1, where it has none) writes a character above ASCII as.
fn windows_1252(c: char) -> Option<u8> {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
    ];
    match c as u32 {
        code @ 0x80..=0xFF => Some(code as u8),
        _ => HIGH.iter().position(|high| *high == c).map(|place| 0x80 + place as u8),
    }
}

/// A part of a run whose bytes are UTF-8. One pair alone counts only where it stands for a letter of Latin-1 (`Ã©`):
/// others occur in good text, as in `LIBERTÉ»`.
fn utf8_within(run: &[(char, u8)]) -> Option<String> {
    let bytes: Vec<u8> = run.iter().map(|(_, byte)| *byte).collect();
    let mut pairs = 0;
    let mut at = 0;
    while at < bytes.len() {
        let length = match bytes[at] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 1,
        };
        let valid = length > 1
            && bytes.get(at..at + length).is_some_and(|sequence| std::str::from_utf8(sequence).is_ok());
        if !valid {
            at += 1;
            continue;
        }
        pairs += 1;
        if length > 2 || matches!(bytes[at], 0xC2 | 0xC3) || pairs > 1 {
            return Some(run[at..at + length].iter().map(|(c, _)| *c).collect());
        }
        at += length;
    }
    None
}

/// Inputs that say there is none, in lower case and without spaces, quotes and brackets.
const PLACEHOLDERS: &[&str] = &[
    "noinput",
    "noinputrequired",
    "noinputneeded",
    "noinputprovided",
    "n/a",
    "na",
    "none",
    "null",
    "nil",
    "empty",
    "无输入",
    "无需输入",
    "没有输入",
    "不需要输入",
    "无",
    "不适用",
    "無輸入",
    "输入为空",
    "空",
    "eisyötettä",
    "ei",
    "нетввода",
    "нетвходныхданных",
    "безввода",
    "нет",
    "безвход",
    "нямавход",
    "bezvstupu",
    "žádnývstup",
    "keineeingabe",
    "aucuneentrée",
    "pasd'entrée",
    "aucune",
    "sinentrada",
    "ningunaentrada",
    "ninguna",
    "ingeninndata",
    "entradavacía",
    "入力なし",
    "입력없음",
    "कोईइनपुटनहीं",
    "কোনোইনপুটনেই",
];

/// Whether an input only says that there is none.
pub(super) fn is_placeholder(input: &str) -> bool {
    // Longer ones are texts.
    if input.is_empty() || input.len() > 80 {
        return false;
    }
    let text = input.replace("&lt;", "").replace("&gt;", "").replace("&quot;", "").to_lowercase();
    let bare: String =
        text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '/' | '\'') || is_mark(*c)).collect();
    PLACEHOLDERS.contains(&bare.as_str())
}

/// Vowel signs of Indic scripts, which are part of words and no letters. Dandas and other signs that lie in the same
/// blocks are part of no word.
fn is_mark(c: char) -> bool {
    matches!(c as u32, 0x0900..=0x0DFF) && !INDIC_SIGNS.contains(&c)
}

/// What Unicode's blocks of Indic scripts have beside letters, digits and marks (general categories other than L, N
/// and M): dandas, signs of abbreviation, of money, of weights and of the calendar.
const INDIC_SIGNS: [char; 26] = [
    '\u{964}', '\u{965}', '\u{970}', '\u{9F2}', '\u{9F3}', '\u{9FA}', '\u{9FB}', '\u{9FD}', '\u{A76}',
    '\u{AF0}', '\u{AF1}', '\u{B70}', '\u{BF3}', '\u{BF4}', '\u{BF5}', '\u{BF6}', '\u{BF7}', '\u{BF8}',
    '\u{BF9}', '\u{BFA}', '\u{C77}', '\u{C7F}', '\u{C84}', '\u{D4F}', '\u{D79}', '\u{DF4}',
];

/// The words of a text in lower case; in scripts without spaces every character is one.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        let alone = matches!(c as u32, 0x0E00..=0x0E7F | 0x2E80..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
            && c.is_alphanumeric();
        if !alone && (c.is_alphanumeric() || is_mark(c)) {
            word.extend(c.to_lowercase());
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if alone {
            words.push(c.to_string());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mojibake_is_told_from_good_text() {
        for good in [
            "Hyvää päivää",
            "LIBERTÉ» dit-il",
            "naïve — “quoted” … €5",
            "É»",
            "你好",
            "Ünïcödé",
            "Бачо",
            "São",
        ] {
            assert_eq!(broken_encoding(good), None, "{good}");
        }
        for bad in ["HyvÃ¤Ã¤", "itâ€™s", "Ð‘Ð°Ñ‡Ð¾", "ä½\u{a0}å¥½", "a\u{FFFD}", "a\u{0}b", "锟斤拷", "5Â°"]
        {
            assert!(broken_encoding(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn placeholders_are_told_from_inputs() {
        for placeholder in [
            "无输入",
            "&lt;无输入&gt;",
            "“&lt;无输入&gt;”",
            "没有输入。",
            "<no input>",
            "N/A",
            "None.",
            "कोई इनपुट नहीं।",
            "কোনো ইনপুট নেই।",
        ] {
            assert!(is_placeholder(placeholder), "{placeholder}");
        }
        for input in ["", "春天", "Nathan", "no inputs were harmed", "[1, 2, 3]", "-", "0"] {
            assert!(!is_placeholder(input), "{input}");
        }
    }

    #[test]
    fn words_are_characters_where_there_are_no_spaces() {
        assert_eq!(words("Hello, World2! 你好。 हिन्दी"), ["hello", "world2", "你", "好", "हिन्दी"]);
    }

    #[test]
    fn a_danda_ends_a_word_and_a_vowel_sign_does_not() {
        assert_eq!(words("यह अच्छा है। डॉ॰ सिंह॥"), ["यह", "अच्छा", "है", "डॉ", "सिंह"]);
        assert_eq!(words("এটা ভালো। দাম ৳৫০, ৫০৲।"), ["এটা", "ভালো", "দাম", "৫০", "৫০"]);
        assert_eq!(words("తెలుగు ௹൫"), ["తెలుగు", "൫"]);
    }
}

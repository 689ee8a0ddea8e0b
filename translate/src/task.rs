//! Rows whose task a translation breaks: what is asked about the words of one language does not hold in another.

use std::fmt;
use std::sync::LazyLock;

use instructions::record::Record;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::layout::{Layout, Split};

/// Why a row's task does not survive translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokenTask {
    /// Letters, spelling, syllables, anagrams.
    Spelling,
    /// Corrections, tenses, parts of speech, punctuation.
    Grammar,
    /// Rhymes, puns, metre.
    Rhyme,
    /// A translation from or into a language that is named.
    Translation,
    /// The answer is code and nothing else.
    CodeOnly,
}

impl fmt::Display for BrokenTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spelling => "the task is about spelling",
            Self::Grammar => "the task is about grammar",
            Self::Rhyme => "the task is about rhyme or the sound of words",
            Self::Translation => "the task is a translation",
            Self::CodeOnly => "the answer is code",
        })
    }
}

/// What English, Finnish, German, French, Spanish and Chinese instructions of each kind say.
const SIGNS: [(BrokenTask, &str); 4] = [
    (
        BrokenTask::Translation,
        r"(?i)\btranslat(?:e|es|ed|ing|ion)\b.*\b(?:to|into|in|from|of)\b|\btranslate (?:this|the|it)\b
        |how (?:do|would) (?:you|i|we|one) say .+ in [a-z]+\b|\bin (?:french|german|spanish|chinese|finnish|russian|italian|latin|japanese|english)\s*\??\s*$
        |\bkäännä\b|\bübersetz\w*|\btradui[rst]\w*|\btraduc[ei]\w*|翻译|译成",
    ),
    (
        BrokenTask::Spelling,
        r"(?i)\b(?:mis)?spell(?:s|ed|ing|ings|t)?\b|\banagrams?\b|\bpalindromes?\b|\bsyllables?\b|\bvowels?\b|\bconsonants?\b
        |\bacronyms?\b|\bacrostics?\b|\bthe letters?\b|\bletters? [\x22'“‘]?[a-z][\x22'”’]?(?:\s|$|[.,?])|\b(?:start|begin|end)(?:s|ning|ing)? with (?:the letter|an? [\x22'“‘]|[\x22'“‘][a-z])|\balphabetical|\bcapitali[sz]|\buppercase\b|\blowercase\b
        |\boikeinkirjoit|\bkirjaimella\b|\bRechtschreib|\borthograph|\bortograf|拼写|错别字|首字母",
    ),
    (
        BrokenTask::Grammar,
        r"(?i)\bgramma(?:r|tical|tically)\b|\bpunctuat|\b(?:past|present|future|perfect|verb) tense\b|\bpassive voice\b|\bactive voice\b
        |\bparts? of speech\b|\b(?:nouns?|verbs?|adjectives?|adverbs?|pronouns?|prepositions?) (?:in|from|of) (?:the|this|these)\b|\bconjugat|\bplural (?:form )?of\b|\bhomo(?:phone|nym|graph)s?\b
        |\bprefix\b|\bsuffix\b|\bkieliopp|\bGrammatik|\bgrammaire|\bgramática|语法|病句|词性",
    ),
    (
        BrokenTask::Rhyme,
        r"(?i)\brhym(?:e|es|ed|ing)\b|\blimericks?\b|\bhaikus?\b|\bpuns?\b|\bsonnets?\b|\balliterat|\btongue.twisters?\b|\bwordplay\b
        |\briimi|\brunomit|\breim(?:e|en|t)?\b|\brimes?\b|\brima[rns]?\b|押韵|绕口令|谐音|对联",
    ),
];

static PATTERNS: LazyLock<Vec<(BrokenTask, Regex)>> = LazyLock::new(|| {
    SIGNS
        .iter()
        // The patterns are broken across lines for the reader; the breaks are none of theirs.
        .map(|(task, signs)| {
            let signs: String = signs.lines().map(str::trim_start).collect();
            (*task, Regex::new(&signs).expect("a constant pattern"))
        })
        .collect()
});

/// What of a row's task a translation breaks, if anything. Told by the words of the instruction, so with some doubt in
/// both directions; `CodeOnly` by the output.
pub fn broken_task(record: &Record) -> Option<BrokenTask> {
    let told = PATTERNS.iter().find(|(_, signs)| signs.is_match(&record.instruction)).map(|(task, _)| *task);
    told.or_else(|| is_code_only(&record.output).then_some(BrokenTask::CodeOnly))
}

/// Whether nothing of a text would be translated, and it has letters all the same, on more than one line or in a fence.
fn is_code_only(text: &str) -> bool {
    let layout = Layout::of(text, Split { sentences: false, longest: usize::MAX });
    let is_long =
        text.trim().contains('\n') || text.trim_start().starts_with("```") || text.trim_end().ends_with(';');
    is_long && text.chars().any(char::is_alphabetic) && layout.pieces().next().is_none()
}

#[cfg(test)]
mod tests {
    use instructions::language::Language;

    use super::*;

    fn of(instruction: &str, output: &str) -> Option<BrokenTask> {
        broken_task(&Record {
            id: "0".into(),
            language: Language::english(),
            instruction: instruction.into(),
            input: String::new(),
            output: output.into(),
            origin: None,
        })
    }

    #[test]
    fn tasks_about_words_are_told_from_others() {
        for (instruction, task) in [
            ("Find the misspelled word in the sentence", Some(BrokenTask::Spelling)),
            ("Name five animals that start with the letter B.", Some(BrokenTask::Spelling)),
            ("Rewrite this sentence in the past tense", Some(BrokenTask::Grammar)),
            ("Correct the grammar of the following", Some(BrokenTask::Grammar)),
            ("Write a limerick about a cat", Some(BrokenTask::Rhyme)),
            ("Translate the following into French", Some(BrokenTask::Translation)),
            ("How do you say good morning in Finnish?", Some(BrokenTask::Translation)),
            ("把下面的句子翻译成英文", Some(BrokenTask::Translation)),
            ("Write a letter to my landlord", None),
            ("What is the capital of France?", None),
            ("Tell me about the history of punk", None),
        ] {
            assert_eq!(of(instruction, "An answer."), task, "{instruction}");
        }
    }

    #[test]
    fn an_answer_in_code_alone_is_told() {
        let code = "```python\nprint('hi')\n```";
        assert_eq!(of("Print hi", code), Some(BrokenTask::CodeOnly));
        assert_eq!(
            of("Print hi", "for (int i = 0; i < 3; i++) {\n  count = count + 1;\n}"),
            Some(BrokenTask::CodeOnly)
        );
        assert_eq!(of("Print hi", &format!("Do this:\n{code}")), None);
        assert_eq!(of("A number", "42\n43"), None);
    }
}

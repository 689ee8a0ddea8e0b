//! Languages, by ISO 639-1 code where there is one, else 639-3.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A language, as its shortest ISO 639 code: `en`, `no`, `zh`, and `yue` where 639-1 has none.
///
/// Parsing (`"zho_Hans".parse()`, and reading from JSON or TOML) takes ISO 639-1 and 639-3 codes in any case, with
/// a script or region behind `_` or `-`, and fastText's `__label__` in front, and refuses what is no code.
/// [`Language::from_label`] takes anything, for labels of an identification model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Language(String);

/// A code that ISO 639 does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown language code `{0}`: expected a code of ISO 639-1 (`en`) or 639-3 (`yue`)")]
pub struct UnknownLanguage(
    /// The code as it was found.
    pub String,
);

/// Codes that models and users still write and ISO has withdrawn or never gave to one language: as found, as kept.
const OTHER_CODES: &[(&str, &str)] = &[
    ("iw", "he"),
    ("in", "id"),
    ("ji", "yi"),
    ("jw", "jv"),
    ("mo", "ro"),
    ("sh", "sh"),
    ("hbs", "sh"),
    // Labels of lid.176 that are groups of languages, or were split.
    ("bh", "bh"),
    ("eml", "eml"),
    ("nah", "nah"),
];

/// Macrolanguages, each with the code of the standard variety that models label its texts with. The gate takes one
/// for the other. Varieties that a reader of the standard would not take for it (Cantonese and Wu for Chinese, the
/// spoken forms of Arabic) are left out on purpose. From ISO 639-3's macrolanguage mappings and NLLB's labels.
const STANDARD_VARIETIES: &[(&str, &str)] = &[
    ("no", "nb"),
    ("zh", "cmn"),
    ("ar", "arb"),
    ("az", "azj"),
    ("ay", "ayr"),
    ("et", "ekk"),
    ("fa", "pes"),
    ("fil", "tl"),
    ("gn", "gug"),
    ("ku", "kmr"),
    ("lv", "lvs"),
    ("mg", "plt"),
    ("mn", "khk"),
    ("ms", "zsm"),
    ("ne", "npi"),
    ("om", "gaz"),
    ("or", "ory"),
    ("ps", "pbt"),
    ("qu", "quy"),
    ("sq", "als"),
    ("sw", "swh"),
    ("uz", "uzn"),
    ("yi", "ydd"),
];

/// Marks a label that is no code, as BCP 47 marks private use: never equal to a real language, and read back as is.
const PRIVATE: &str = "x-";

impl Language {
    /// The code: ISO 639-1 where there is one, else 639-3.
    pub fn code(&self) -> &str {
        &self.0
    }

    /// English.
    pub fn english() -> Self {
        Self("en".to_owned())
    }

    /// The language that an identification model's label names (`__label__nob_Latn`, `zh`). A label that is no
    /// ISO code is kept as it is behind `x-`: no language's gate accepts it, and it can be written and read back.
    pub fn from_label(label: &str) -> Self {
        label.parse().unwrap_or_else(|_| {
            let label = label.trim();
            let label = label.strip_prefix("__label__").unwrap_or(label);
            Self(format!("{PRIVATE}{label}"))
        })
    }

    /// Whether the code is one that ISO 639 knows, not a model's own label.
    pub fn is_known(&self) -> bool {
        !self.0.starts_with(PRIVATE)
    }

    /// The language's name in English: `Norwegian Bokmål`, `Chinese`; the code where there is none.
    pub fn english_name(&self) -> &str {
        // isolang keeps ISO's reference names, of which a few are not what people say.
        match self.0.as_str() {
            "el" => "Greek",
            "sw" => "Swahili",
            "ms" => "Malay",
            "ne" => "Nepali",
            "cmn" => "Mandarin Chinese",
            "yue" => "Cantonese",
            "sh" => "Serbo-Croatian",
            code => entry(code).map_or(code, |language| language.to_name()),
        }
    }

    /// The language's own name: `suomi`, `中文`; the English name where isolang has none.
    pub fn own_name(&self) -> &str {
        match self.0.as_str() {
            "nb" => "norsk bokmål",
            "nn" => "norsk nynorsk",
            "cmn" => "普通话",
            code => {
                entry(code).and_then(|language| language.to_autonym()).unwrap_or_else(|| self.english_name())
            }
        }
    }

    /// The gate's rule: whether a text identified as `identified` is in this language.
    ///
    /// The same code is; so is the standard variety of a macrolanguage, and the macrolanguage for it: `no` and `nb`
    /// accept each other but not `nn`; `zh` and `cmn` each other but not `yue` or `wuu`. A label that is no code is
    /// never accepted.
    pub fn accepts(&self, identified: &Self) -> bool {
        let same = |a: &str, b: &str| a == self.0 && b == identified.0;
        self.is_known()
            && (self == identified
                || STANDARD_VARIETIES
                    .iter()
                    .any(|(whole, standard)| same(whole, standard) || same(standard, whole)))
    }
}

fn entry(code: &str) -> Option<isolang::Language> {
    isolang::Language::from_639_1(code).or_else(|| isolang::Language::from_639_3(code))
}

impl FromStr for Language {
    type Err = UnknownLanguage;

    fn from_str(text: &str) -> Result<Self, UnknownLanguage> {
        let label = text.trim();
        let label = label.strip_prefix("__label__").unwrap_or(label);
        if label.starts_with(PRIVATE) {
            return Ok(Self(label.to_owned()));
        }
        let code = label.split(['_', '-']).next().unwrap_or(label).to_ascii_lowercase();
        if let Some((_, kept)) = OTHER_CODES.iter().find(|(found, _)| *found == code) {
            return Ok(Self((*kept).to_owned()));
        }
        let language = entry(&code).ok_or_else(|| UnknownLanguage(text.to_owned()))?;
        Ok(Self(language.to_639_1().unwrap_or_else(|| language.to_639_3()).to_owned()))
    }
}

impl TryFrom<String> for Language {
    type Error = UnknownLanguage;

    fn try_from(text: String) -> Result<Self, UnknownLanguage> {
        text.parse()
    }
}

impl From<Language> for String {
    fn from(language: Language) -> Self {
        language.0
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(code: &str) -> Language {
        code.parse().expect("a known code")
    }

    #[test]
    fn codes_of_every_form_are_folded() {
        for (found, kept) in [
            ("en", "en"),
            ("eng", "en"),
            ("EN", "en"),
            ("en-GB", "en"),
            ("no", "no"),
            ("nor", "no"),
            ("nob", "nb"),
            ("nob_Latn", "nb"),
            ("nno_Latn", "nn"),
            ("zho_Hans", "zh"),
            ("__label__zh", "zh"),
            ("__label__ces_Latn", "cs"),
            ("cmn_Hani", "cmn"),
            ("yue_Hant", "yue"),
            ("iw", "he"),
            ("hbs", "sh"),
            ("eml", "eml"),
        ] {
            assert_eq!(language(found).code(), kept, "{found}");
        }
    }

    #[test]
    fn an_unknown_code_is_named() {
        for found in ["klingon", "xx", "", "__label__", "e", "_", "é"] {
            let error = found.parse::<Language>().expect_err(found);
            assert!(error.to_string().contains(&format!("`{found}`")), "{error}");
        }
        let error = serde_json::from_str::<Language>("\"xq\"").expect_err("no such code");
        assert!(error.to_string().contains("unknown language code `xq`"), "{error}");
    }

    #[test]
    fn a_label_that_is_no_code_stays_and_passes_no_gate() {
        let label = Language::from_label("__label__other-language_Zzz");
        assert_eq!(label.code(), "x-other-language_Zzz");
        assert!(!label.is_known());
        assert!(!label.accepts(&label));
        let text = serde_json::to_string(&label).expect("JSON");
        assert_eq!(serde_json::from_str::<Language>(&text).expect("read back"), label);
    }

    #[test]
    fn the_gate_accepts_standard_varieties_alone() {
        for (expected, identified, accepted) in [
            ("no", "no", true),
            ("no", "nb", true),
            ("no", "nob_Latn", true),
            ("no", "nn", false),
            ("no", "da", false),
            ("nb", "no", true),
            ("nn", "nn", true),
            ("nn", "no", false),
            ("nb", "nn", false),
            ("zh", "zho_Hans", true),
            ("zh", "cmn", true),
            ("zh", "yue", false),
            ("zh", "wuu", false),
            ("yue", "zh", false),
            ("ar", "arb_Arab", true),
            ("ar", "arz", false),
            ("et", "ekk_Latn", true),
            ("es", "pt", false),
        ] {
            assert_eq!(
                language(expected).accepts(&language(identified)),
                accepted,
                "{expected} {identified}"
            );
        }
    }

    #[test]
    fn names_are_english_and_the_languages_own() {
        let names =
            |code: &str| (language(code).english_name().to_owned(), language(code).own_name().to_owned());
        assert_eq!(names("fi"), ("Finnish".to_owned(), "suomi".to_owned()));
        assert_eq!(names("zh"), ("Chinese".to_owned(), "中文".to_owned()));
        assert_eq!(names("no").0, "Norwegian");
        assert_eq!(names("nb"), ("Norwegian Bokmål".to_owned(), "norsk bokmål".to_owned()));
        assert_eq!(names("bn").0, "Bengali");
        assert_eq!(Language::from_label("odd").english_name(), "x-odd");
    }

    proptest::proptest! {
        #[test]
        fn any_label_is_taken_and_read_back(label in ".*") {
            let language = Language::from_label(&label);
            proptest::prop_assert_eq!(Language::from_label(language.code()), language.clone());
        }
    }
}

//! Recipes: how sets become mixes. The paper's four by name, and one's own as TOML.
//!
//! ```toml
//! [[recipe]]
//! name = "half-english"
//! languages = ["en", "fi", "zh"]   # all unless given
//! size = 1                         # in C
//! english_share = 0.5              # the rest is split evenly
//! sampling = "aligned"             # each id once, in a drawn language
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::budget::Budget;
use crate::files::{is_file_name, read_bytes};
use crate::language::Language;
use crate::prompt::kind;

/// How sets become mixes: one `[[recipe]]` table.
///
/// At most one of `counts`, `shares`, `english_share` and `temperature` says how a mix is split over its languages;
/// evenly unless given. At most one of `size`, `size_per_language`, `rows` (and `counts`) says how large it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// By which mixes, experiment files and reports refer to it.
    pub name: String,
    /// What it does, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// How many mixes it makes.
    #[serde(default)]
    pub mixes: Mixes,
    /// Its languages, in the order in which they are added where `mixes` is `growing`; all unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<Language>,
    /// A mix's size in C; 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<f64>,
    /// A mix's size in C for each of its languages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_per_language: Option<f64>,
    /// A mix's size in the budget's unit (rows, unless tokens or FLOPs are held).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Each language's part in the budget's unit; languages that are not named have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<Language, u64>,
    /// Each language's share; the shares need not add up to one. Languages that are not named have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<Language, f64>,
    /// English's share, 0 to 1; the other languages split the rest evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english_share: Option<f64>,
    /// Shares by set size: each language's is (rows of its set) to the power of 1/temperature. 1 is in proportion, and
    /// the greater, the more even (Devlin et al. 2019 and after).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// How rows are drawn.
    #[serde(default)]
    pub sampling: Sampling,
    /// Whether a set that is too small is gone through again; else that is an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeat: bool,
    /// Takes rows of one origin alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Takes rows of one origin alone, for these languages; goes before `origin`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origins: BTreeMap<Language, Origin>,
    /// Replaces some of the mix's rows by other languages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace: Option<Replace>,
    /// Makes some of the mix's rows cross-lingual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_lingual: Option<CrossLingual>,
}

/// How many mixes a recipe makes, and so how many tunings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mixes {
    /// One mix of all its languages.
    #[default]
    One,
    /// A mix for each language, which answers that language alone.
    PerLanguage,
    /// A mix of the first language, one of the first two, and so on.
    Growing,
}

/// How rows are drawn from the sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// The same ids in every language, as far as the sets share them.
    #[default]
    Same,
    /// Each language draws by itself.
    Independent,
    /// Each language draws by itself, and no id is taken twice.
    Disjoint,
    /// From the ids that all of the languages have: each id once, in a drawn language.
    Aligned,
}

/// Where a row's text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Written in its language.
    #[default]
    Native,
    /// Translated from another.
    Translated,
    /// Translated to another language and back.
    RoundTrip,
}

impl Origin {
    /// The name in files and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Translated => "translated",
            Self::RoundTrip => "round_trip",
        }
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Native, Self::Translated, Self::RoundTrip]
            .into_iter()
            .find(|origin| origin.name() == name)
            .ok_or_else(|| format!("unknown origin `{name}`: expected native, translated or round_trip"))
    }
}

/// Replaces some rows of a mix by other languages: by the same ids where sampling is `same`, `disjoint` or `aligned`,
/// else by rows drawn on their own. Rows that the mix has already replace none, unless ids are taken again (`repeat`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// How many rows are replaced.
    pub rows: u64,
    /// The languages that replace them, in even parts.
    pub with: Vec<Language>,
}

/// Makes some rows of a mix cross-lingual: the instruction stays and asks for another language, and the output is the
/// same id's in that language. Needs sets that share ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossLingual {
    /// The share of the mix's rows.
    pub share: f64,
    /// The languages of the responses, drawn evenly; the recipe's unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_languages: Vec<Language>,
    /// What is added to an instruction, on a line of its own, by the instruction's language.
    pub templates: BTreeMap<Language, AskTemplate>,
}

/// What asks for a response in another language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "Value")]
pub enum AskTemplate {
    /// One text for all: `{language}` becomes the response language's English name, `{own_name}` its own name.
    Any(String),
    /// A text for each response language.
    Each(BTreeMap<Language, String>),
}

impl TryFrom<Value> for AskTemplate {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let texts = match value {
            Value::String(text) => return Ok(Self::Any(text)),
            Value::Object(texts) => texts,
            other => {
                return Err(format!(
                    "a template of `cross_lingual` is {}: expected a text, or a text for each response language",
                    kind(&other)
                ));
            }
        };
        let each = |(code, text): (String, Value)| {
            let language = code.parse::<Language>().map_err(|error| error.to_string())?;
            match text {
                Value::String(text) => Ok((language, text)),
                other => Err(format!(
                    "the template of `cross_lingual` for responses in {language} is {}: expected a text",
                    kind(&other)
                )),
            }
        };
        texts.into_iter().map(each).collect::<Result<_, String>>().map(Self::Each)
    }
}

/// A recipe file: `[[recipe]]` tables, and optionally a `[budget]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// What the recipes are held equal in.
    #[serde(default)]
    pub budget: Budget,
    /// The recipes.
    #[serde(default)]
    pub recipe: Vec<Recipe>,
}

impl RecipeFile {
    /// Reads and checks a recipe file.
    ///
    /// # Errors
    /// Names the file, the line and what is wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = String::from_utf8(read_bytes(path)?)
            .with_context(|| format!("{}: a recipe file must be UTF-8", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads and checks the text of a recipe file.
    ///
    /// # Errors
    /// Names the line or the recipe, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let file: Self = toml::from_str(text)?;
        file.budget.check()?;
        for (index, recipe) in file.recipe.iter().enumerate() {
            recipe.check()?;
            if file.recipe[..index].iter().any(|other| other.name == recipe.name) {
                bail!("recipe `{}`: the name is taken twice", recipe.name);
            }
        }
        Ok(file)
    }
}

impl Recipe {
    /// The origin whose rows alone it takes in a language.
    pub(crate) fn origin_in(&self, language: &Language) -> Option<Origin> {
        self.origins.get(language).copied().or(self.origin)
    }

    /// Whether it takes rows of some origins alone.
    pub fn asks_for_origins(&self) -> bool {
        self.origin.is_some() || !self.origins.is_empty()
    }

    /// The names of the paper's four recipes, in its order.
    pub const PAPER: [&'static str; 4] = ["monolingual", "multilingual", "english", "downsampled"];

    /// One of the paper's four recipes (Chen et al. 2024, section 2.2), C being the cost of one monolingual run:
    ///
    /// - `monolingual`: a run per language, N × C;
    /// - `multilingual`: all languages shuffled together, N × C;
    /// - `english`: one English run answers everything, C; the same mix as `monolingual` in English;
    /// - `downsampled`: the multilingual mix cut to one language's size, C, in even parts.
    pub fn paper(name: &str) -> Option<Self> {
        let one_c = Self::new(name, "");
        Some(match name {
            "monolingual" => {
                Self { description: "a run for each language".to_owned(), mixes: Mixes::PerLanguage, ..one_c }
            }
            "multilingual" => Self {
                description: "all languages shuffled together".to_owned(),
                size: None,
                size_per_language: Some(1.0),
                ..one_c
            },
            "english" => Self {
                description: "one English run answers everything".to_owned(),
                languages: vec![Language::english()],
                ..one_c
            },
            "downsampled" => Self {
                description: "the multilingual mix cut to the size of one language".to_owned(),
                sampling: Sampling::Independent,
                ..one_c
            },
            _ => return None,
        })
    }

    /// A recipe with a name and nothing else set: one mix of all languages in even parts, of size C.
    pub fn new(name: &str, description: &str) -> Self {
        Self {
            name: name.to_owned(),
            description: description.to_owned(),
            mixes: Mixes::One,
            languages: Vec::new(),
            size: None,
            size_per_language: None,
            rows: None,
            counts: BTreeMap::new(),
            shares: BTreeMap::new(),
            english_share: None,
            temperature: None,
            sampling: Sampling::Same,
            repeat: false,
            origin: None,
            origins: BTreeMap::new(),
            replace: None,
            cross_lingual: None,
        }
    }

    /// Whether what is set goes together.
    ///
    /// # Errors
    /// Names the recipe, the keys and what was expected.
    pub fn check(&self) -> Result<()> {
        let name = &self.name;
        if name.trim().is_empty() {
            bail!("a recipe has no name");
        }
        // A mix is written into a folder of this name.
        if !is_file_name(name) {
            bail!(
                "recipe `{name}`: its name names a folder: expected letters, digits, `-`, `_` and `.` within"
            );
        }
        let splits = [
            (!self.counts.is_empty(), "counts"),
            (!self.shares.is_empty(), "shares"),
            (self.english_share.is_some(), "english_share"),
            (self.temperature.is_some(), "temperature"),
        ];
        let sizes = [
            (self.size.is_some(), "size"),
            (self.size_per_language.is_some(), "size_per_language"),
            (self.rows.is_some(), "rows"),
            (!self.counts.is_empty(), "counts"),
        ];
        for group in [splits, sizes] {
            let given: Vec<&str> = group.iter().filter(|(given, _)| *given).map(|(_, key)| *key).collect();
            if given.len() > 1 {
                bail!("recipe `{name}`: expected one of {}, found all of them", given.join(", "));
            }
        }
        for (key, value) in [("size", self.size), ("size_per_language", self.size_per_language)] {
            positive(name, key, value)?;
        }
        positive(name, "temperature", self.temperature)?;
        between_0_and_1(name, "english_share", self.english_share)?;
        for (language, share) in &self.shares {
            if !share.is_finite() || *share < 0.0 {
                bail!("recipe `{name}`: the share of {language} is {share}: expected 0 or more");
            }
        }
        if !self.shares.is_empty() && self.shares.values().all(|share| *share == 0.0) {
            bail!("recipe `{name}`: all shares are 0");
        }
        if self.rows == Some(0) {
            bail!("recipe `{name}`: `rows` is 0: expected at least 1");
        }
        if self.repeat && self.sampling != Sampling::Same && self.sampling != Sampling::Independent {
            bail!("recipe `{name}`: `repeat` takes ids again, and this sampling takes each once");
        }
        for (index, language) in self.languages.iter().enumerate() {
            if self.languages[..index].contains(language) {
                bail!("recipe `{name}`: {language} is among its languages twice");
            }
        }
        if self.replace.as_ref().is_some_and(|replace| replace.with.is_empty()) {
            bail!("recipe `{name}`: `replace` names no language under `with`");
        }
        if let Some(cross_lingual) = &self.cross_lingual {
            between_0_and_1(name, "cross_lingual.share", Some(cross_lingual.share))?;
        }
        Ok(())
    }
}

fn positive(recipe: &str, key: &str, value: Option<f64>) -> Result<()> {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            bail!("recipe `{recipe}`: `{key}` is {value}: expected more than 0")
        }
        _ => Ok(()),
    }
}

fn between_0_and_1(recipe: &str, key: &str, value: Option<f64>) -> Result<()> {
    match value {
        Some(value) if !(0.0..=1.0).contains(&value) => {
            bail!("recipe `{recipe}`: `{key}` is {value}: expected 0 to 1")
        }
        _ => Ok(()),
    }
}

impl AskTemplate {
    /// The text that asks for a response in `language`.
    pub fn ask(&self, language: &Language) -> Option<String> {
        match self {
            Self::Any(text) => Some(
                text.replace("{language}", language.english_name())
                    .replace("{own_name}", language.own_name()),
            ),
            Self::Each(texts) => texts.get(language).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_four_are_known_and_read_back_from_toml() {
        for name in Recipe::PAPER {
            let recipe = Recipe::paper(name).expect("known");
            recipe.check().expect("whole");
            let file = RecipeFile { budget: Budget::default(), recipe: vec![recipe] };
            let text = toml::to_string(&file).expect("TOML");
            assert_eq!(RecipeFile::parse(&text).expect("read"), file, "{text}");
        }
        assert!(Recipe::paper("bilingual").is_none());
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (text, said) in [
            ("size = 1\nrows = 5", "expected one of size, rows"),
            ("shares = { en = 1 }\ntemperature = 2", "expected one of shares, temperature"),
            ("english_share = 1.5", "`english_share` is 1.5: expected 0 to 1"),
            ("size = 0", "`size` is 0: expected more than 0"),
            ("shares = { en = 0 }", "all shares are 0"),
            ("languages = [\"en\", \"eng\"]", "en is among its languages twice"),
            ("languages = [\"xx\"]", "unknown language code `xx`"),
            ("sampling = \"odd\"", "unknown variant `odd`"),
            ("sampling = \"aligned\"\nrepeat = true", "`repeat` takes ids again"),
            ("sizes = 3", "unknown field `sizes`"),
            ("replace = { rows = 1, with = [] }", "names no language"),
        ] {
            let error = RecipeFile::parse(&format!("[[recipe]]\nname = \"r\"\n{text}\n")).expect_err(text);
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
        for name in ["/tmp/abs", ".", "..", "../x", "a/b", "a b", ".hidden"] {
            let error = RecipeFile::parse(&format!("[[recipe]]\nname = \"{name}\"\n")).expect_err(name);
            assert!(error.to_string().contains("its name names a folder"), "{error:#}");
        }
        for key in ["c", "batch", "epochs"] {
            let error = RecipeFile::parse(&format!("[budget]\n{key} = 0\n")).expect_err(key);
            assert!(error.to_string().contains(&format!("`{key}` is 0: expected at least 1")), "{error:#}");
        }
    }
}

//! The reference judge: chrF++ against reference answers, cut into 1 to 3. It needs no network and no money, and
//! it knows nothing of quality beyond likeness to a reference; so its name says what it is, for every report.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use instructions::language::Language;
use instructions::prompt::Response;
use serde::Deserialize;
use serde_json::Value;

use crate::chrf::chrf_plus_plus;
use crate::judging::{self, Judge, Progress, Verdict};

/// The name under which the reference judge's ratings are kept.
pub const REFERENCE_JUDGE: &str = "reference (chrF++)";

/// Where chrF++ (0 to 100) is cut: below `medium` the rating is 1, from `good` on it is 3, between them 2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// From here on 2.
    pub medium: f64,
    /// From here on 3.
    pub good: f64,
}

impl Default for Thresholds {
    /// 25 and 50. An unrelated sentence in the same language mostly shares some 15 to 20 points of common letters
    /// and words with a reference; half of all that can be shared is more than a few right words.
    fn default() -> Thresholds {
        Thresholds { medium: 25.0, good: 50.0 }
    }
}

impl Thresholds {
    /// The rating for a chrF++ score.
    pub fn rating(&self, score: f64) -> f64 {
        1.0 + f64::from(u8::from(score >= self.medium)) + f64::from(u8::from(score >= self.good))
    }
}

/// What is wrong with a file of references, or with the thresholds.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is no reference.
    #[error(
        "{path}, line {line}: expected {{\"id\", \"reference\"}}, and \"language\" where ids are shared; {found}"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was found.
        found: String,
    },
    /// The thresholds are out of order.
    #[error("thresholds: expected 0 <= medium <= good <= 100, found {medium} and {good}")]
    Thresholds {
        /// From here on 2.
        medium: f64,
        /// From here on 3.
        good: f64,
    },
}

/// Reference answers from a file beside the prompts, by prompt id and, where the file says so, by language.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References(HashMap<(String, Option<Language>), Vec<String>>);

#[derive(Deserialize)]
struct ReferenceLine {
    id: String,
    language: Option<Language>,
    reference: Value,
}

impl References {
    /// Reads JSONL lines `{"id", "reference"}` with an optional `language`; `reference` is a text or a list of
    /// texts. Several lines with one id add up.
    ///
    /// # Errors
    /// [`ReferenceError`] for a file that cannot be read, and a line that is of another form.
    pub fn from_file(path: &Path) -> Result<References, ReferenceError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ReferenceError::File { path: path.to_path_buf(), source })?;
        let mut references = References::default();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let wrong =
                |found: String| ReferenceError::Line { path: path.to_path_buf(), line: number, found };
            let read: ReferenceLine = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            let texts = texts(&read.reference)
                .ok_or_else(|| wrong(format!("found reference = {}", read.reference)))?;
            references.0.entry((read.id, read.language)).or_default().extend(texts);
        }
        Ok(references)
    }

    fn of(&self, response: &Response) -> Vec<String> {
        let prompt = &response.prompt;
        let key = |language| (prompt.id.clone(), language);
        let found = self.0.get(&key(Some(prompt.language.clone()))).or_else(|| self.0.get(&key(None)));
        found.cloned().unwrap_or_default()
    }
}

/// A text, or a list of texts.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_string)).collect(),
        _ => None,
    }
}

/// Rates by likeness to the prompt's `reference` (a text or a list of texts), and to those of a file.
#[derive(Clone, Debug, Default)]
pub struct ReferenceJudge {
    thresholds: Thresholds,
    references: References,
}

impl ReferenceJudge {
    /// A judge with these thresholds; `references` are added to those that the prompts bring along.
    ///
    /// # Errors
    /// [`ReferenceError::Thresholds`].
    pub fn new(thresholds: Thresholds, references: References) -> Result<ReferenceJudge, ReferenceError> {
        let Thresholds { medium, good } = thresholds;
        if !(0.0 <= medium && medium <= good && good <= 100.0) {
            return Err(ReferenceError::Thresholds { medium, good });
        }
        Ok(ReferenceJudge { thresholds, references })
    }

    /// The verdict on one response.
    pub fn verdict(&self, response: &Response) -> Verdict {
        let mut references = self.references.of(response);
        if let Some(own) = response.prompt.extra.get("reference") {
            match texts(own) {
                Some(own) => references.extend(own),
                None => {
                    return unrated(format!(
                        "the prompt's reference is neither text nor a list of texts: {own}"
                    ));
                }
            }
        }
        references.retain(|reference| !reference.trim().is_empty());
        match chrf_plus_plus(&response.response, &references) {
            None => unrated("no reference for the prompt".into()),
            Some(score) => Verdict {
                rating: Ok(self.thresholds.rating(score)),
                explanation: format!("chrF++ {score:.2} against {} reference(s)", references.len()),
            },
        }
    }
}

fn unrated(reason: String) -> Verdict {
    Verdict { rating: Err(reason), explanation: String::new() }
}

impl Judge for ReferenceJudge {
    fn name(&self) -> String {
        REFERENCE_JUDGE.into()
    }

    fn setting(&self) -> String {
        let mut references: Vec<String> = self
            .references
            .0
            .iter()
            .map(|((id, language), texts)| format!("{id:?} {language:?} {texts:?}"))
            .collect();
        references.sort_unstable();
        let thresholds = format!("{:?}", self.thresholds);
        judging::short_hash(&["reference", &thresholds, &references.join("\n")])
    }

    fn rate(
        &self,
        responses: &[Response],
        _progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Verdict) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        responses.iter().enumerate().try_for_each(|(index, response)| give(index, self.verdict(response)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judging::{Silent, judge_responses};

    fn response(id: &str, text: &str, reference: Value) -> Response {
        let line = serde_json::json!({
            "id": id, "language": "fi", "prompt": "Mikä on Ranskan pääkaupunki?",
            "reference": reference, "response": text, "system": "s"
        });
        serde_json::from_value(line).unwrap()
    }

    #[test]
    fn likeness_is_cut_into_three() {
        let judge = ReferenceJudge::default();
        let rating = |text: &str, reference: Value| judge.verdict(&response("1", text, reference)).rating;
        assert_eq!(rating("Pariisi.", Value::from("Pariisi.")), Ok(3.0));
        assert_eq!(rating("Helsinki", Value::from("Pariisi")), Ok(1.0));
        assert_eq!(rating("Pariisi", serde_json::json!(["Lontoo", "Pariisi"])), Ok(3.0));
        assert_eq!(rating("", Value::from("Pariisi")), Ok(1.0));
        assert!(rating("x", Value::Null).unwrap_err().contains("neither text nor"));
        assert!(rating("x", Value::from(" ")).unwrap_err().contains("no reference"));
    }

    #[test]
    fn thresholds_are_checked() {
        for (medium, good) in [(50.0, 20.0), (-1.0, 20.0), (f64::NAN, 20.0), (20.0, 101.0)] {
            assert!(ReferenceJudge::new(Thresholds { medium, good }, References::default()).is_err());
        }
        let cut = Thresholds { medium: 20.0, good: 60.0 };
        assert_eq!([19.9, 20.0, 59.9, 60.0].map(|score| cut.rating(score)), [1.0, 2.0, 2.0, 3.0]);
    }

    #[test]
    fn references_come_from_a_file_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("references.jsonl");
        let lines = "{\"id\":\"1\",\"language\":\"fi\",\"reference\":\"Pariisi\"}\n{\"id\":\"1\",\"reference\":\"Paris\"}\n";
        std::fs::write(&path, lines).unwrap();
        let judge =
            ReferenceJudge::new(Thresholds::default(), References::from_file(&path).unwrap()).unwrap();
        let mut asked = response("1", "Pariisi", Value::Null);
        asked.prompt.extra.clear();
        assert_eq!(judge.verdict(&asked).rating, Ok(3.0));
        std::fs::write(&path, "{\"id\":\"1\",\"reference\":7}\n").unwrap();
        assert!(References::from_file(&path).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn judged_again_only_what_changed_is_rated() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("ratings.jsonl");
        let mut responses: Vec<Response> =
            (0..4).map(|i| response(&i.to_string(), "Pariisi", Value::from("Pariisi"))).collect();
        let judge = ReferenceJudge::default();
        let first = judge_responses(&judge, &responses, &out, &Silent).unwrap();
        assert_eq!((first.kept, first.ratings.len()), (0, 4));
        let bytes = std::fs::read(&out).unwrap();
        let again = judge_responses(&judge, &responses, &out, &Silent).unwrap();
        assert_eq!((again.kept, again.outdated), (4, 0));
        assert_eq!(std::fs::read(&out).unwrap(), bytes);
        responses[2].response = "Helsinki".into();
        let third = judge_responses(&judge, &responses, &out, &Silent).unwrap();
        assert_eq!((third.kept, third.outdated, third.ratings[2].rating), (3, 1, Some(1.0)));
        responses.push(responses[0].clone());
        let error = judge_responses(&judge, &responses, &out, &Silent).unwrap_err().to_string();
        assert!(error.contains("two responses of system \"s\""), "{error}");
    }
}

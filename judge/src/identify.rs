//! Which language a text is in: by a fastText model's file, or by the embedded `lingua`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use instructions::language::Language;
use lingua::{LanguageDetector, LanguageDetectorBuilder};

use crate::fasttext::{Model, ModelError, Scratch};

/// What fastText writes in front of a label, which is no part of it.
const LABEL_PREFIX: &str = "__label__";
/// ISO 639's code for a text whose language is not determined.
const UNDETERMINED: &str = "und";

/// A text's language, as an identifier sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Identified {
    /// The identifier's own label (`nob_Latn`), without fastText's `__label__`; `und` where it has none to give.
    pub label: String,
    /// The language that the label names.
    pub language: Language,
    /// The identifier's probability for the label. fastText's are 1e-5 too high, and may so pass 1.
    pub probability: f32,
}

impl Identified {
    fn new(label: &str, probability: f32) -> Self {
        Self { label: label.to_owned(), language: Language::from_label(label), probability }
    }

    fn undetermined() -> Self {
        Self::new(UNDETERMINED, 0.0)
    }
}

/// Something that tells a text's language.
pub trait Identifier: Send + Sync {
    /// The most probable language of a text. Line breaks count as spaces.
    fn identify(&self, text: &str) -> Identified;

    /// Whether any of the labels that it can give would pass the gate of `language`. Where none would, every response
    /// in the language would be scored 0.
    fn knows(&self, language: &Language) -> bool;
}

/// An identifier that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentifierError {
    /// The model's file is no model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// It is to choose among languages of which it has no label for one.
    #[error(
        "{identifier} has no label for {language}: choose another identifier, or do not restrict its labels"
    )]
    NoLabel {
        /// The model's file, or `lingua`.
        identifier: String,
        /// The language.
        language: Language,
    },
    /// It is to choose among no languages.
    #[error("an identifier cannot be restricted to no languages at all")]
    NoLanguages,
}

/// A fastText model as an identifier.
pub struct FastText {
    model: Model,
    languages: Vec<Language>,
    /// The labels that it may give; all where nothing restricts them.
    candidates: Option<BTreeSet<usize>>,
    scratches: Mutex<Vec<Scratch>>,
}

impl FastText {
    /// Opens a model file. With `candidates`, only labels that one of these languages accepts are given; their
    /// probabilities stay the model's own and need not sum to 1, so that a threshold keeps its meaning.
    ///
    /// # Errors
    /// Where the file is no model, or has no label for a candidate.
    pub fn open(path: &Path, candidates: Option<&[Language]>) -> Result<Self, IdentifierError> {
        let model = Model::open(path)?;
        let languages: Vec<Language> =
            model.labels().iter().map(|label| Language::from_label(label)).collect();
        let candidates = candidates
            .map(|candidates| restrict(candidates, &languages, &path.display().to_string()))
            .transpose()?;
        Ok(Self { model, languages, candidates, scratches: Mutex::default() })
    }

    fn predict(&self, text: &str, scratch: &mut Scratch) -> Identified {
        let prediction = match &self.candidates {
            None => self.model.predict_best(text, scratch),
            // Any threshold might leave out all candidates.
            Some(candidates) => self
                .model
                .predict(text, self.languages.len(), -1.0, scratch)
                .into_iter()
                .find(|prediction| candidates.contains(&prediction.label)),
        };
        prediction.map_or_else(Identified::undetermined, |prediction| {
            let label = &self.model.labels()[prediction.label];
            let label = label.strip_prefix(LABEL_PREFIX).unwrap_or(label);
            Identified {
                label: label.to_owned(),
                language: self.languages[prediction.label].clone(),
                probability: prediction.probability,
            }
        })
    }
}

impl Identifier for FastText {
    fn identify(&self, text: &str) -> Identified {
        // A thread that panicked meanwhile leaves a list of scratches that is as good as any.
        let scratches = || self.scratches.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut scratch = scratches().pop().unwrap_or_default();
        let identified = if text.contains('\n') {
            self.predict(&text.replace('\n', " "), &mut scratch)
        } else {
            self.predict(text, &mut scratch)
        };
        scratches().push(scratch);
        identified
    }

    fn knows(&self, language: &Language) -> bool {
        knows(language, &self.languages)
    }
}

/// The embedded `lingua`, which knows thirty languages and needs no file.
pub struct Lingua {
    detector: LanguageDetector,
    languages: Vec<Language>,
}

impl Lingua {
    /// With `candidates`, lingua weighs these alone, and its probabilities are shares among them.
    ///
    /// # Errors
    /// Where it does not know a candidate.
    pub fn new(candidates: Option<&[Language]>) -> Result<Self, IdentifierError> {
        let mut known: Vec<lingua::Language> = lingua::Language::all().into_iter().collect();
        known.sort_unstable();
        let mut languages: Vec<Language> = known.iter().copied().map(language_of).collect();
        if let Some(candidates) = candidates {
            let kept = restrict(candidates, &languages, "lingua")?;
            known = kept.iter().map(|&place| known[place]).collect();
            languages = kept.iter().map(|&place| languages[place].clone()).collect();
        }
        let detector = LanguageDetectorBuilder::from_languages(&known).build();
        Ok(Self { detector, languages })
    }
}

impl Identifier for Lingua {
    fn identify(&self, text: &str) -> Identified {
        let text = text.replace(['\n', '\r'], " ");
        let values = self.detector.compute_language_confidence_values(text);
        match values.first() {
            Some(&(language, confidence)) if confidence > 0.0 => {
                Identified::new(&language.iso_code_639_1().to_string(), confidence as f32)
            }
            _ => Identified::undetermined(),
        }
    }

    fn knows(&self, language: &Language) -> bool {
        knows(language, &self.languages)
    }
}

fn language_of(language: lingua::Language) -> Language {
    Language::from_label(&language.iso_code_639_1().to_string())
}

fn knows(language: &Language, known: &[Language]) -> bool {
    known.iter().any(|known| language.accepts(known))
}

/// The places of the labels that a candidate accepts.
fn restrict(
    candidates: &[Language],
    known: &[Language],
    identifier: &str,
) -> Result<BTreeSet<usize>, IdentifierError> {
    if candidates.is_empty() {
        return Err(IdentifierError::NoLanguages);
    }
    if let Some(language) = candidates.iter().find(|candidate| !knows(candidate, known)) {
        let identifier = identifier.to_owned();
        return Err(IdentifierError::NoLabel { identifier, language: language.clone() });
    }
    let is_candidate = |language: &Language| candidates.iter().any(|candidate| candidate.accepts(language));
    Ok((0..known.len()).filter(|&place| is_candidate(&known[place])).collect())
}

/// The identifier of a run: the fastText model at `model`, or the embedded `lingua` where none is given.
///
/// # Errors
/// As [`FastText::open`] and [`Lingua::new`].
pub fn identifier(
    model: Option<&Path>,
    candidates: Option<&[Language]>,
) -> Result<Box<dyn Identifier>, IdentifierError> {
    Ok(match model {
        Some(path) => Box::new(FastText::open(path, candidates)?),
        None => Box::new(Lingua::new(candidates)?),
    })
}

/// A text on whose language identifiers do not agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Disagreement {
    /// The text's place among those given.
    pub text: usize,
    /// What each identifier says, in the order given.
    pub identified: Vec<Identified>,
}

/// The texts on whose language the identifiers disagree: any two name languages of which neither accepts the other
/// (`no` and `nb` agree, `no` and `da` do not).
pub fn disagreements(identifiers: &[&dyn Identifier], texts: &[&str]) -> Vec<Disagreement> {
    let agree = |a: &Language, b: &Language| a == b || a.accepts(b);
    texts
        .iter()
        .enumerate()
        .map(|(place, text)| Disagreement {
            text: place,
            identified: identifiers.iter().map(|identifier| identifier.identify(text)).collect(),
        })
        .filter(|found| {
            let all = &found.identified;
            all.iter().any(|a| all.iter().any(|b| !agree(&a.language, &b.language)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn languages(codes: &[&str]) -> Vec<Language> {
        codes.iter().map(|code| code.parse().expect("a code")).collect()
    }

    #[test]
    fn lingua_tells_languages_apart_and_takes_line_breaks_for_spaces() {
        let lingua = Lingua::new(Some(&languages(&["en", "no", "zh"]))).expect("known languages");
        let identified = lingua.identify("Jeg vet ikke\nhva jeg skal si om været i dag.");
        assert_eq!((identified.label.as_str(), identified.language.code()), ("nb", "nb"));
        assert_eq!(lingua.identify("我们明天去北京。").language.code(), "zh");
        assert_eq!(lingua.identify("").label, "und");
        assert!(lingua.knows(&"no".parse().expect("a code")));
    }

    #[test]
    fn a_language_without_a_label_is_refused_by_name() {
        let error = Lingua::new(Some(&languages(&["en", "is"]))).err().expect("no Icelandic");
        assert!(error.to_string().contains("lingua has no label for is"), "{error}");
        assert!(Lingua::new(Some(&[])).is_err());
    }
}

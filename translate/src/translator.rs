//! What every translator is.

use std::time::Duration;

use endpoint::cache::NanoDollars;
use instructions::language::Language;

use crate::layout::Split;
use crate::mask::MaskForm;

/// From which language into which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direction {
    /// The texts' language.
    pub source: Language,
    /// The language that they are to be in.
    pub target: Language,
}

impl Direction {
    /// The way back.
    pub fn reversed(&self) -> Direction {
        Direction { source: self.target.clone(), target: self.source.clone() }
    }
}

/// Told how a translation goes on; the default tells nobody.
pub trait Progress: Sync {
    /// `total` pieces are to be translated in this round, `known` of which are in the cache.
    fn begin(&self, round: u32, total: usize, known: usize) {
        let _ = (round, total, known);
    }

    /// A piece has come back.
    fn translated(&self) {}

    /// A request failed for `reason`; try number `next` comes after `wait`.
    fn retry(&self, reason: &str, next: u32, wait: Duration) {
        let _ = (reason, next, wait);
    }

    /// All is done that could be.
    fn end(&self) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {}

/// Takes a text's translation, or why there is none, by the text's index.
pub type Give<'a> = dyn FnMut(usize, Result<String, String>) -> anyhow::Result<()> + 'a;

/// Whatever translates.
pub trait Translator: Sync {
    /// Its name in manifests.
    fn name(&self) -> String;

    /// Hash of all that its translations depend on beside text, direction and round: address, model, wording, decoding.
    fn setting(&self) -> String;

    /// How long its texts may be, and whether it takes one sentence at a time.
    fn split(&self) -> Split;

    /// How masks are written, a round each; the last form serves the rounds after it.
    fn forms(&self) -> &[MaskForm] {
        &[MaskForm::Brackets, MaskForm::Tag, MaskForm::Braces]
    }

    /// The most that translating a text can cost, at the first try; `None` where no price is known.
    fn most(&self, text: &str, direction: &Direction) -> Option<NanoDollars> {
        let _ = (text, direction);
        None
    }

    /// Translates the texts in any order, many at once where it can; hands each over as soon as it is there. In a
    /// later `round` (from 0) whoever has a choice chooses another way than in the round before.
    ///
    /// # Errors
    /// What stops the whole translation. What concerns one text is handed over.
    fn translate(
        &self,
        texts: &[String],
        direction: &Direction,
        round: u32,
        progress: &dyn Progress,
        give: &mut Give<'_>,
    ) -> anyhow::Result<()>;
}

/// A short hash of parts, each with its length, so that no two lists of parts look alike.
pub(crate) fn hash(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

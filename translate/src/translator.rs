//! What every translator is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
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

    /// A request failed for `reason`, or its answer does not fit; try number `next` comes after `wait`.
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

/// A hash of the files in a folder, names and contents: whatever a model reads, its translations depend on. What lies
/// in folders within it is left out.
///
/// # Errors
/// Where the folder cannot be listed, or a file of it cannot be read.
pub fn hash_of_files(folder: &Path) -> anyhow::Result<String> {
    let list = || format!("cannot list {}", folder.display());
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(list)? {
        paths.push(entry.with_context(list)?.path());
    }
    paths.retain(|path| path.is_file());
    paths.sort_unstable();
    let mut parts = Vec::new();
    for path in &paths {
        let read = || format!("cannot read {}", path.display());
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(path).with_context(read)?).with_context(read)?;
        parts.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        parts.push(hasher.finalize().to_hex().to_string());
    }
    Ok(hash(&parts.iter().map(String::as_str).collect::<Vec<_>>()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_a_folder_and_its_name_count() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let hash = || hash_of_files(folder.path()).unwrap();
        write("model.bin", "weights");
        write("source.spm", "pieces");
        let first = hash();
        assert_eq!(hash(), first);
        write("source.spm", "other pieces");
        assert_ne!(hash(), first);
        write("source.spm", "pieces");
        std::fs::rename(folder.path().join("source.spm"), folder.path().join("target.spm")).unwrap();
        assert_ne!(hash(), first);
        let nowhere = folder.path().join("nowhere");
        assert!(hash_of_files(&nowhere).unwrap_err().to_string().contains("nowhere"));
    }
}

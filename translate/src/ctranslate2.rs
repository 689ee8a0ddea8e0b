//! CTranslate2: OPUS-MT, NLLB and Argos models on this machine.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ct2rs::tokenizers::sentencepiece::Tokenizer as SentencePiece;
use ct2rs::{Config, Tokenizer, TranslationOptions};

use crate::layout::Split;
use crate::mask::MaskForm;
use crate::translator::{Direction, Give, Progress, Translator, hash, hash_of_files};

/// The end of a sentence, which some models want written out.
const END: &str = "</s>";

/// How many texts a model is given at once: what a kill may lose.
const BATCH: usize = 32;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// Beams; 1 is greedy.
    pub beams: usize,
    /// Tokens of a translation, at most.
    pub new_tokens: usize,
    /// The model's own codes of source and target, which a model of many languages needs: NLLB's `eng_Latn` and
    /// `fin_Latn`.
    pub codes: Option<(String, String)>,
    /// Threads; 0 lets CTranslate2 choose.
    pub threads: usize,
}

impl Default for ModelSettings {
    /// CTranslate2's own: two beams, 256 tokens.
    fn default() -> Self {
        Self { beams: 2, new_tokens: 256, codes: None, threads: 0 }
    }
}

/// A CTranslate2 model with its tokenizer.
pub struct ModelTranslator {
    model: ct2rs::Translator<Tokens>,
    folder: PathBuf,
    contents: String,
    settings: ModelSettings,
    codes: Option<(String, String)>,
}

impl fmt::Debug for ModelTranslator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelTranslator").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl ModelTranslator {
    /// Opens a model's folder: `model.bin` with its vocabulary, and a tokenizer: OPUS-MT's `source.spm` and
    /// `target.spm`, Argos' `sentencepiece.model`, NLLB's `sentencepiece.bpe.model`; a model of letters needs none.
    ///
    /// # Errors
    /// Where the folder is no such model.
    pub fn open(folder: &Path, settings: ModelSettings) -> Result<ModelTranslator> {
        // CTranslate2's own message names neither the folder nor what it expects.
        let file = folder.join("model.bin");
        if !file.is_file() {
            bail!("{}: expected a CTranslate2 model, found no such file", file.display());
        }
        let contents = hash_of_files(folder)?;
        let tokens = Tokens::open(folder, &settings)?;
        let config = Config { num_threads_per_replica: settings.threads, ..Config::default() };
        let model = ct2rs::Translator::with_tokenizer(folder, tokens, &config)
            .with_context(|| format!("{}: expected a CTranslate2 model", folder.display()))?;
        let codes = settings.codes.clone();
        Ok(ModelTranslator { model, folder: folder.to_owned(), contents, settings, codes })
    }

    /// Translates texts as they are, in order: no masks, no checks.
    ///
    /// # Errors
    /// Where CTranslate2 or the tokenizer fails.
    pub fn translations(&self, texts: &[String]) -> Result<Vec<String>> {
        let options = TranslationOptions {
            beam_size: self.settings.beams,
            max_decoding_length: self.settings.new_tokens,
            ..TranslationOptions::default()
        };
        let translated = match &self.codes {
            None => self.model.translate_batch(texts, &options, None)?,
            Some((_, target)) => {
                let prefixes = vec![vec![target.clone()]; texts.len()];
                self.model.translate_batch_with_target_prefix(texts, &prefixes, &options, None)?
            }
        };
        Ok(translated.into_iter().map(|(text, _)| text).collect())
    }
}

impl Translator for ModelTranslator {
    fn name(&self) -> String {
        format!("CTranslate2 {}", self.folder.file_name().unwrap_or_default().display())
    }

    fn setting(&self) -> String {
        let ModelSettings { beams, new_tokens, .. } = &self.settings;
        hash(&["ctranslate2", &self.contents, &format!("{beams} {new_tokens} {:?}", self.codes)])
    }

    fn split(&self) -> Split {
        // Trained on sentences; a translation has up to some two tokens for each of the source's, a token some two letters.
        Split { sentences: true, longest: self.settings.new_tokens }
    }

    fn forms(&self) -> &[MaskForm] {
        &[MaskForm::Tag, MaskForm::Braces, MaskForm::Brackets]
    }

    fn translate(
        &self,
        texts: &[String],
        direction: &Direction,
        _round: u32,
        _progress: &dyn Progress,
        give: &mut Give<'_>,
    ) -> Result<()> {
        let (source, target) = (direction.source.code(), direction.target.code());
        for (number, batch) in texts.chunks(BATCH).enumerate() {
            let translations = self
                .translations(batch)
                .with_context(|| format!("{}, from {source} into {target}", self.folder.display()))?;
            for (index, text) in (number * BATCH..).zip(translations) {
                give(index, Ok(text))?;
            }
        }
        Ok(())
    }
}

/// Texts to tokens and back.
enum Tokens {
    Pieces {
        pieces: SentencePiece,
        /// Whether the end of the sentence is written out.
        end: bool,
        /// The codes of source and target, where the model is told.
        codes: Option<(String, String)>,
    },
    /// A token a letter.
    Letters,
}

impl Tokens {
    fn open(folder: &Path, settings: &ModelSettings) -> Result<Tokens> {
        let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let codes = settings.codes.clone();
        if let (Some(source), Some(target)) = (file("source.spm"), file("target.spm")) {
            return Ok(Tokens::Pieces {
                pieces: SentencePiece::from_file(source, target)?,
                end: true,
                codes,
            });
        }
        let both = file("sentencepiece.bpe.model").map(|path| (path, true));
        if let Some((path, end)) = both.or_else(|| file("sentencepiece.model").map(|path| (path, false))) {
            if end && codes.is_none() {
                bail!(
                    "{}: a model of many languages: expected its codes of source and target (eng_Latn, fin_Latn), found none",
                    path.display()
                );
            }
            return Ok(Tokens::Pieces { pieces: SentencePiece::from_file(&path, &path)?, end, codes });
        }
        if is_of_letters(folder) {
            return Ok(Tokens::Letters);
        }
        bail!(
            "{}: no tokenizer: expected source.spm and target.spm, sentencepiece.model or sentencepiece.bpe.model",
            folder.display()
        )
    }
}

/// Whether every entry of a source vocabulary is one letter, but for marks in angle brackets.
fn is_of_letters(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("source_vocabulary.txt")).is_ok_and(|vocabulary| {
        vocabulary
            .lines()
            .all(|entry| entry.chars().count() == 1 || (entry.starts_with('<') && entry.ends_with('>')))
    })
}

impl Tokenizer for Tokens {
    fn encode(&self, text: &str) -> Result<Vec<String>> {
        match self {
            Tokens::Letters => Ok(text.chars().map(String::from).collect()),
            Tokens::Pieces { pieces, end, codes } => {
                let mut tokens = pieces.encode(text)?;
                if !end && tokens.last().is_some_and(|last| last == END) {
                    tokens.pop();
                }
                if let Some((source, _)) = codes {
                    tokens.insert(0, source.clone());
                }
                Ok(tokens)
            }
        }
    }

    fn decode(&self, mut tokens: Vec<String>) -> Result<String> {
        match self {
            Tokens::Letters => Ok(tokens.concat()),
            Tokens::Pieces { pieces, codes, .. } => {
                if codes.as_ref().is_some_and(|(_, target)| tokens.first() == Some(target)) {
                    tokens.remove(0);
                }
                pieces.decode(tokens)
            }
        }
    }
}

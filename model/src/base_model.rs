//! A base model, from whatever it is stored in.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use engine::decoder::config::DecoderConfig;
use engine::decoder::weights::{HostData, HostTensor, Precision, Slot, slots};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::families::{Family, Parts, Published};
use crate::gguf::Gguf;
use crate::init::Fresh;
use crate::safetensors_file::FolderWeights;
use crate::stored::{TensorFile, assemble};
use crate::tokenizer::Tokenizer;

/// A pretrained model: its configuration, its tokenizer, and its weights, read when they are asked for.
pub struct BaseModel {
    path: PathBuf,
    published: Published,
    tokenizer: Tokenizer,
    source: Source,
    hash: OnceLock<blake3::Hash>,
}

/// Bytes of a mapped file that are hashed before their memory is given back.
const HASHED_AT_ONCE: usize = 64 << 20;

/// What the weights come from.
pub(crate) enum Source {
    Folder { weights: FolderWeights, config: Value },
    Gguf(Box<Gguf>),
    Fresh { weights: Fresh, config: Value },
}

impl BaseModel {
    /// Opens a Hugging Face folder, or a GGUF file, which is told by its first bytes.
    ///
    /// All weights are known to be there, in the right shapes, when this returns; they are read from disk later.
    ///
    /// # Errors
    /// The path is neither; a file is damaged; the family or a key of the configuration is not supported; a tensor is
    /// missing, of another shape or type, or has no place in the model.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open_folder(path);
        }
        let mut magic = [0; 4];
        let mut file = File::open(path).map_err(Error::io(path))?;
        if file.read_exact(&mut magic).is_err() || magic != *crate::gguf::MAGIC {
            let reason = "expected a folder with config.json, or a GGUF file, which begins with `GGUF`";
            return Err(Error::NotAModel { path: path.to_owned(), reason: reason.to_owned() });
        }
        let gguf = Gguf::open(path)?;
        let published = gguf.published()?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        Self::checked(path, published, tokenizer, Source::Gguf(Box::new(gguf)))
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            let reason = if path.join("adapter_config.json").is_file() {
                "this is an adapter; expected its base model, with config.json"
            } else {
                "expected config.json in it"
            };
            return Err(Error::NotAModel { path: path.to_owned(), reason: reason.to_owned() });
        }
        let config = read_json(&config_path)?;
        let published = Family::read_config(&config_path, &config)?;
        let weights = FolderWeights::open(path, published.family.prefix())?;
        let tokenizer = Tokenizer::from_folder(path)?;
        Self::checked(path, published, tokenizer, Source::Folder { weights, config })
    }

    /// A new model with random weights, from a `config.json` and the tokenizer in `tokenizer_folder`.
    ///
    /// # Errors
    /// As for [`BaseModel::open`], of the configuration and the tokenizer.
    pub fn fresh(
        config_path: impl AsRef<Path>,
        tokenizer_folder: impl AsRef<Path>,
        seed: u64,
    ) -> Result<Self> {
        let path = config_path.as_ref();
        let config = read_json(path)?;
        let published = Family::read_config(path, &config)?;
        let weights = Fresh::new(path, &config, seed)?;
        let tokenizer = Tokenizer::from_folder(tokenizer_folder.as_ref())?;
        Self::checked(path, published, tokenizer, Source::Fresh { weights, config })
    }

    fn checked(
        path: &Path,
        mut published: Published,
        mut tokenizer: Tokenizer,
        source: Source,
    ) -> Result<Self> {
        let rows = published.config.vocabulary;
        if tokenizer.vocabulary() > rows {
            let last = tokenizer.vocabulary() - 1;
            published.notes.push(format!(
                "{}: the tokenizer has ids up to {last}, but the model has {rows} embeddings; texts with ids beyond them are refused",
                path.display()
            ));
        }
        tokenizer.limit(rows)?;
        for note in &published.notes {
            tracing::warn!("{note}");
        }
        let model = Self { path: path.to_owned(), published, tokenizer, source, hash: OnceLock::new() };
        model.check_tensors()?;
        Ok(model)
    }

    /// Every slot is filled, and nothing is left over.
    fn check_tensors(&self) -> Result<()> {
        let Source::Folder { weights, .. } = &self.source else {
            return match &self.source {
                Source::Gguf(gguf) => gguf.check_tensors(&self.published),
                _ => Ok(()),
            };
        };
        let (family, config) = (self.family(), self.config());
        let mut used = std::collections::HashSet::new();
        for slot in slots(config) {
            let parts = family.parts(config, slot);
            assemble_shape(weights, &parts, &slot.shape(config))?;
            used.extend(
                parts.parts.iter().filter_map(|part| weights.stored_name(&part.name).map(str::to_owned)),
            );
        }
        let mut left: Vec<_> = weights
            .names()
            .filter(|name| !used.contains(*name) && !family.is_constant(config, name))
            .collect();
        left.sort_unstable();
        match left.first() {
            None => Ok(()),
            Some(name) => {
                use crate::stored::TensorFile;
                Err(Error::UnexpectedTensor {
                    path: weights.path_of(name).to_owned(),
                    tensor: (*name).to_owned(),
                })
            }
        }
    }

    /// What the decoder computes.
    pub fn config(&self) -> &DecoderConfig {
        &self.published.config
    }

    /// The family, which gives PEFT's module names.
    pub fn family(&self) -> Family {
        self.published.family
    }

    /// What the user should know of the configuration: keys not used, limits that follow from a key.
    pub fn notes(&self) -> &[String] {
        &self.published.notes
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The Jinja template of the model's conversations, where it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.tokenizer.chat_template()
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A short name for tables: the last component of the path, less `.gguf`.
    pub fn name(&self) -> String {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
    }

    /// Number of weights, with a tied head counted once.
    pub fn parameters(&self) -> usize {
        self.config().parameters()
    }

    /// The weights of a slot, in the decoder's layout and in the type in which they were published; quantised ones
    /// as f32.
    ///
    /// # Errors
    /// The slot is not one of [`slots`] for this configuration, or the file holds what cannot be read.
    pub fn tensor(&self, slot: Slot) -> Result<HostTensor<'_>> {
        let (config, family) = (self.config(), self.family());
        let shape = slot.shape(config);
        self.forget_what_was_read();
        match &self.source {
            Source::Folder { weights, .. } => assemble(weights, &family.parts(config, slot), &shape),
            Source::Gguf(gguf) => assemble(&**gguf, &gguf.parts(&self.published, slot), &shape),
            Source::Fresh { weights, .. } => Ok(weights.tensor(config, slot)),
        }
    }

    /// The type in which the embedding is stored, and so most of the weights; `F32` of a quantised file, whose tensors
    /// are given as f32.
    pub fn stored_precision(&self) -> Precision {
        let slot = Slot::Embedding;
        let name = |parts: Parts| parts.parts.into_iter().next().map(|part| part.name);
        let stored = match &self.source {
            Source::Folder { weights, .. } => {
                let name = name(self.family().parts(self.config(), slot));
                // Borrowed from the mapped file: nothing is read.
                let tensor = name.and_then(|name| weights.tensor(&name).ok().flatten());
                tensor.map(|tensor| match tensor.data {
                    HostData::F32(_) => Precision::F32,
                    HostData::Bf16(_) => Precision::Bf16,
                    HostData::F16(_) => Precision::F16,
                })
            }
            Source::Gguf(gguf) => {
                name(gguf.parts(&self.published, slot)).and_then(|name| gguf.precision(&name))
            }
            Source::Fresh { .. } => None,
        };
        stored.unwrap_or(Precision::F32)
    }

    /// What the weights come from.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The base of the rotary angles, before they are stretched.
    pub(crate) fn rotary_base(&self) -> Result<f64> {
        match &self.source {
            Source::Gguf(gguf) => gguf.rotary_base(),
            Source::Folder { config, .. } | Source::Fresh { config, .. } => {
                let named = [
                    &config["rope_parameters"]["rope_theta"],
                    &config["rotary_emb_base"],
                    &config["rope_theta"],
                ];
                // The families' own default, as it is read.
                Ok(named.into_iter().find_map(Value::as_f64).unwrap_or(10_000.0))
            }
        }
    }

    /// Gives the memory back that files take which have been read. Whoever loads a model makes a copy of each tensor,
    /// and would hold it twice; a tensor that is still borrowed is read again where it is used. Each tensor that is asked
    /// for gives back those before it, and so the last one is left.
    pub fn forget_what_was_read(&self) {
        match &self.source {
            Source::Folder { weights, .. } => {
                for file in weights.files() {
                    file.forget();
                }
            }
            Source::Gguf(gguf) => gguf.forget(),
            Source::Fresh { .. } => {}
        }
    }

    /// The `config.json` of the model; for a GGUF file, one that says the same.
    ///
    /// # Errors
    /// The GGUF file has stretched rotary angles for which `config.json` has no key.
    pub fn config_json(&self) -> Result<Value> {
        match &self.source {
            Source::Folder { config, .. } | Source::Fresh { config, .. } => Ok(config.clone()),
            Source::Gguf(gguf) => gguf.config_json(&self.published, &self.tokenizer),
        }
    }

    /// A hash of all that the model computes with: weights, configuration and tokenizer. Two copies of one model have
    /// the same. It reads every byte, once in the life of this value.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn content_hash(&self) -> Result<String> {
        if let Some(hash) = self.hash.get() {
            return Ok(hash.to_hex().to_string());
        }
        let mut hasher = blake3::Hasher::new();
        let mut add = |name: &str, bytes: &[u8]| {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            // A stretch at a time: mapped weights need not be in memory all at once.
            for stretch in bytes.chunks(HASHED_AT_ONCE) {
                hasher.update_rayon(stretch);
                self.forget_what_was_read();
            }
        };
        match &self.source {
            Source::Folder { weights, config } => {
                add("config.json", config.to_string().as_bytes());
                for file in weights.files() {
                    let name = file.path().file_name().unwrap_or_default().to_string_lossy();
                    add(&name, file.bytes());
                }
            }
            Source::Gguf(gguf) => add("gguf", gguf.bytes()),
            Source::Fresh { weights, config } => {
                add("config.json", config.to_string().as_bytes());
                add("seed", &weights.seed().to_le_bytes());
            }
        }
        add("tokenizer", self.tokenizer.to_json()?.as_bytes());
        Ok(self.hash.get_or_init(|| hasher.finalize()).to_hex().to_string())
    }
}

/// Checks the parts of a slot without reading their elements.
fn assemble_shape(weights: &FolderWeights, parts: &Parts, shape: &[usize]) -> Result<()> {
    for part in &parts.parts {
        let single =
            Parts { parts: vec![crate::families::Part::plain(part.name.clone(), part.rows)], offset: 0.0 };
        let shape: Vec<usize> = [&[part.rows], &shape[1..]].concat();
        assemble(weights, &single, &shape)?;
    }
    Ok(())
}

/// A JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(Error::json(path))
}

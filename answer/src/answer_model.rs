//! A base model ready to answer, with any number of adapters.

use std::path::Path;
use std::sync::Arc;

use engine::Cpu;
use engine::decoder::weights::Precision;
use engine::decoder::{Adapter, Decoder, Weights};
use engine::kernels::Kernels;
use model::BaseModel;

use crate::error::Error;

/// A base model ready to answer, and the adapters that can be put on it.
pub struct AnswerModel<K: Kernels = Cpu> {
    /// Where the weights came from; has the tokenizer.
    pub base: Arc<BaseModel>,
    /// The weights.
    pub decoder: Decoder<K>,
    /// Adapters by name; a request names one by its place.
    pub adapters: Vec<(String, Adapter<K>)>,
}

impl AnswerModel<Cpu> {
    /// Opens a base model (Hugging Face folder or GGUF file) and PEFT adapters, each a name and a folder.
    ///
    /// # Errors
    /// A file is missing or damaged, or an adapter does not fit the base model.
    pub fn open(base: &Path, adapters: &[(String, &Path)]) -> Result<Self, Error> {
        Self::load(Cpu, BaseModel::open(base)?, adapters)
    }
}

impl<K: Kernels> AnswerModel<K> {
    /// Loads an opened base model into a backend's memory, and adapters beside it.
    ///
    /// # Errors
    /// As for [`AnswerModel::open`].
    pub fn load(kernels: K, base: BaseModel, adapters: &[(String, &Path)]) -> Result<Self, Error> {
        let path = base.path().display().to_string();
        let weights = Weights::Frozen(Precision::Published);
        let decoder = Decoder::load(kernels, base.config(), weights, |slot| base.tensor(slot))
            .map_err(|error| Error::Decoder { path, reason: error.to_string() })?;
        base.forget_what_was_read();
        let mut model = Self { base: Arc::new(base), decoder, adapters: Vec::new() };
        for (name, folder) in adapters {
            model.add_adapter(name, folder)?;
        }
        Ok(model)
    }

    /// Adds a PEFT adapter, and gives its place.
    ///
    /// # Errors
    /// Its files are missing or damaged, or it does not fit the base model.
    pub fn add_adapter(&mut self, name: &str, folder: &Path) -> Result<usize, Error> {
        let read = model::adapter::Adapter::read(folder, self.base.family(), self.base.config())?;
        let adapter = Adapter::load(&self.decoder.kernels, self.base.config(), &read.modules)
            .map_err(|reason| Error::Decoder { path: folder.display().to_string(), reason })?;
        self.adapters.push((name.to_owned(), adapter));
        Ok(self.adapters.len() - 1)
    }

    /// The place of the adapter of this name.
    pub fn adapter(&self, name: &str) -> Option<usize> {
        self.adapters.iter().position(|(other, _)| other == name)
    }
}

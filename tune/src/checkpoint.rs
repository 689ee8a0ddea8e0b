//! Checkpoints: one file each, whole or not there.
//!
//! `state.safetensors` has the values, the moments and where the run stands; `best.safetensors` the best values so
//! far. Each is written under a temporary name, flushed to disk and renamed, so that a kill leaves the old one or the
//! new one. Both need not be of the same update: a run that goes on from an older state comes to the same best
//! again and writes the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::collective::Collective;
use crate::error::{Error, Result, system_error};
use crate::metrics::ValidationMetrics;

/// The file's format; a later one is not read.
const FORMAT: u32 = 2;

/// What a run's bytes depend on, apart, so that it can be told what differs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    /// Hash of the base model.
    pub model: String,
    /// Hash of the rows to train on.
    pub rows: String,
    /// Hash of the rows for validation.
    pub validation_rows: String,
    /// Hash of the adapter that it began with.
    pub adapter: Option<String>,
    /// The settings, by their names.
    pub settings: serde_json::Value,
}

impl Fingerprint {
    /// What differs from a checkpoint's, in words; nothing where all is the same.
    fn differences(&self, there: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let parts = [
            ("another base model", self.model == there.model),
            ("other rows (data, template or cutoff)", self.rows == there.rows),
            ("other validation rows", self.validation_rows == there.validation_rows),
            ("another adapter to begin with", self.adapter == there.adapter),
        ];
        differences.extend(parts.into_iter().filter(|(_, same)| !same).map(|(what, _)| what.to_owned()));
        for (name, here) in self.settings.as_object().into_iter().flatten() {
            let there = there.settings.get(name).unwrap_or(&serde_json::Value::Null);
            if here != there {
                differences.push(format!("{name} {there} there and {here} here"));
            }
        }
        differences
    }
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    format: u32,
    /// The run's.
    pub fingerprint: Fingerprint,
    /// Updates done.
    pub update: u64,
    /// All measurements so far.
    pub validations: Vec<ValidationMetrics>,
    /// Measurements since the best.
    pub worse: u32,
    /// Whether patience has run out.
    pub exhausted: bool,
}

impl State {
    /// The beginning of a run.
    pub(crate) fn new(fingerprint: Fingerprint) -> Self {
        Self { format: FORMAT, fingerprint, ..Self::default() }
    }

    /// Rank 0's in all ranks.
    pub(crate) fn handed_on(state: Option<Self>, collective: &dyn Collective) -> Result<Self> {
        let invalid = |error: serde_json::Error| Error::Collective(error.to_string());
        let mut bytes =
            state.map(|state| serde_json::to_vec(&state)).transpose().map_err(invalid)?.unwrap_or_default();
        collective.broadcast(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(invalid)
    }

    /// The lowest validation loss so far.
    pub(crate) fn best(&self) -> Option<&ValidationMetrics> {
        self.validations.iter().rev().find(|validation| validation.best)
    }
}

/// The two files' folder.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
}

const KEY: &str = "polypaca";

impl Checkpoints {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn state_file(&self) -> PathBuf {
        self.folder.join("state.safetensors")
    }

    fn best_file(&self) -> PathBuf {
        self.folder.join("best.safetensors")
    }

    /// Writes where the run stands.
    pub(crate) fn write_state(&self, state: &State, tensors: &[(String, Vec<f32>)]) -> Result<()> {
        write(&self.state_file(), state, tensors)
    }

    /// Writes the best values so far.
    pub(crate) fn write_best(&self, state: &State, tensors: &[(String, Vec<f32>)]) -> Result<()> {
        write(&self.best_file(), state, tensors)
    }

    /// Where the run stood, if it had begun.
    pub(crate) fn read_state(&self, fingerprint: &Fingerprint) -> Result<Option<(State, Tensors)>> {
        read(&self.state_file(), fingerprint)
    }

    /// The best values.
    pub(crate) fn read_best(&self, fingerprint: &Fingerprint) -> Result<Option<(State, Tensors)>> {
        read(&self.best_file(), fingerprint)
    }

    /// Removes the folder at the end of a run.
    pub(crate) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.folder)(error)),
            _ => Ok(()),
        }
    }
}

/// Tensors by name.
pub(crate) struct Tensors(BTreeMap<String, Vec<f32>>);

impl Tensors {
    /// A tensor of the expected length.
    pub(crate) fn take(&mut self, name: &str, length: usize) -> Option<Vec<f32>> {
        self.0.remove(name).filter(|values| values.len() == length)
    }
}

fn write(path: &Path, state: &State, tensors: &[(String, Vec<f32>)]) -> Result<()> {
    let invalid = |reason: String| Error::Checkpoint { path: path.to_owned(), reason };
    let views = tensors
        .iter()
        .map(|(name, values)| {
            let view = TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values));
            view.map(|view| (name.as_str(), view)).map_err(|error| invalid(error.to_string()))
        })
        .collect::<Result<Vec<_>>>()?;
    let state = serde_json::to_string(state).map_err(|error| invalid(error.to_string()))?;
    let metadata = HashMap::from([(KEY.to_owned(), state)]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| invalid(error.to_string()))?;
    instructions::files::atomic_write(path, |file| Ok(std::io::Write::write_all(file, &bytes)?))
        .map_err(|error| Error::io(path)(system_error(error)))
}

fn read(path: &Path, fingerprint: &Fingerprint) -> Result<Option<(State, Tensors)>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let invalid = |reason: String| Error::Checkpoint { path: path.to_owned(), reason };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| invalid(error.to_string()))?;
    let state = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let state = state.ok_or_else(|| invalid(format!("its header has no `{KEY}`")))?;
    let format =
        |state: &str| Some(serde_json::from_str::<serde_json::Value>(state).ok()?.get("format")?.as_u64());
    match format(state).flatten() {
        Some(format) if format != u64::from(FORMAT) => {
            return Err(invalid(format!("it has format {format}, expected {FORMAT}")));
        }
        _ => {}
    }
    let state: State = serde_json::from_str(state).map_err(|error| invalid(error.to_string()))?;
    let differences = fingerprint.differences(&state.fingerprint);
    if !differences.is_empty() {
        return Err(Error::OtherRun { path: path.to_owned(), differences: differences.join("; ") });
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|error| invalid(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in file.tensors() {
        if tensor.dtype() != Dtype::F32 {
            return Err(invalid(format!("{name} is {:?}, expected F32", tensor.dtype())));
        }
        let values = tensor.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]));
        tensors.insert(name, values.collect());
    }
    Ok(Some((state, Tensors(tensors))))
}

//! Checkpoints: one file each, whole or not there.
//!
//! `state.safetensors` has the values, the moments and where the run stands; `best.safetensors` the best values so
//! far. Each is written under a temporary name, flushed to disk and renamed, so that a kill leaves the old one or the
//! new one. Both need not be of the same update: a run that goes on from an older state comes to the same best
//! again and writes the same bytes.
//!
//! Tensors are written and read one at a time: a checkpoint takes no more memory than the largest of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
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

    /// Writes where the run stands: `fetch` gives the values of an entry by its number, and is asked for each once.
    pub(crate) fn write_state(&self, state: &State, entries: &[Entry], fetch: &Fetch<'_>) -> Result<()> {
        write(&self.state_file(), state, entries, fetch)
    }

    /// Writes the best values so far, likewise.
    pub(crate) fn write_best(&self, state: &State, entries: &[Entry], fetch: &Fetch<'_>) -> Result<()> {
        write(&self.best_file(), state, entries, fetch)
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

/// A tensor that a checkpoint keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it is called there.
    pub name: String,
    /// Its elements.
    pub length: usize,
}

/// Gives the values of an entry by its number.
pub(crate) type Fetch<'a> = dyn Fn(usize) -> Result<Vec<f32>> + 'a;

/// The tensors of a checkpoint, each read when it is asked for.
pub(crate) struct Tensors {
    path: PathBuf,
    file: File,
    /// Where in the file the first tensor begins.
    begin: u64,
    metadata: Metadata,
}

impl Tensors {
    /// A tensor of the expected length.
    ///
    /// # Errors
    /// There is none of this name, it has another length, or the file cannot be read.
    pub(crate) fn read(&mut self, name: &str, length: usize) -> Result<Vec<f32>> {
        let invalid = |reason: String| Error::Checkpoint { path: self.path.clone(), reason };
        let info =
            self.metadata.info(name).ok_or_else(|| invalid(format!("it has no tensor called {name}")))?;
        let (begin, end) = info.data_offsets;
        if info.dtype != Dtype::F32 || end - begin != 4 * length {
            let (dtype, shape) = (info.dtype, &info.shape);
            return Err(invalid(format!("{name} is {dtype:?} {shape:?}, expected {length} elements of F32")));
        }
        let mut values = vec![0.0f32; length];
        self.file
            .seek(SeekFrom::Start(self.begin + begin as u64))
            .and_then(|_| self.file.read_exact(bytemuck::cast_slice_mut(&mut values)))
            .map_err(Error::io(&self.path))?;
        Ok(values)
    }
}

fn write(path: &Path, state: &State, entries: &[Entry], fetch: &Fetch<'_>) -> Result<()> {
    let header = header(state, entries)
        .map_err(|reason| Error::Checkpoint { path: path.to_owned(), reason: reason.to_string() })?;
    let written = instructions::files::atomic_write(path, |file| {
        file.write_all(&header)?;
        for number in 0..entries.len() {
            file.write_all(bytemuck::cast_slice(&fetch(number)?))?;
        }
        Ok(())
    });
    written.map_err(|error| error.downcast().unwrap_or_else(|error| Error::io(path)(system_error(error))))
}

/// A file's beginning, as safetensors has it: the length of a JSON object in 8 bytes, and the object, filled up with
/// spaces so that the tensors are aligned.
fn header(state: &State, entries: &[Entry]) -> anyhow::Result<Vec<u8>> {
    let mut end = 0;
    let infos = entries.iter().map(|Entry { name, length }| {
        let begin = end;
        end += 4 * length;
        let info = TensorInfo { dtype: Dtype::F32, shape: vec![*length], data_offsets: (begin, end) };
        (name.clone(), info)
    });
    let metadata = HashMap::from([(KEY.to_owned(), serde_json::to_string(state)?)]);
    let mut object = serde_json::to_vec(&Metadata::new(Some(metadata), infos.collect())?)?;
    object.resize(object.len().next_multiple_of(8), b' ');
    Ok([&(object.len() as u64).to_le_bytes()[..], &object].concat())
}

fn read(path: &Path, fingerprint: &Fingerprint) -> Result<Option<(State, Tensors)>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let invalid = |reason: String| Error::Checkpoint { path: path.to_owned(), reason };
    let (begin, metadata) = read_header(&mut file).map_err(|error| invalid(error.to_string()))?;
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
    Ok(Some((state, Tensors { path: path.to_owned(), file, begin, metadata })))
}

/// Where the tensors begin, and what is said of them; an error where the file is not as long as that says.
fn read_header(file: &mut File) -> anyhow::Result<(u64, Metadata)> {
    let length = file.metadata()?.len();
    let mut object = [0; 8];
    anyhow::ensure!(length >= 8, "it has {length} bytes, expected a header");
    file.read_exact(&mut object)?;
    let begin = u64::from_le_bytes(object).saturating_add(8);
    anyhow::ensure!(begin <= length, "its header ends at byte {begin}, the file at {length}");
    let mut object = vec![0; (begin - 8) as usize];
    file.read_exact(&mut object)?;
    let metadata: Metadata = serde_json::from_slice(&object)?;
    let end = begin.saturating_add(metadata.data_len() as u64);
    anyhow::ensure!(end == length, "its tensors end at byte {end}, the file at {length}");
    Ok((begin, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        [("a", 3), ("b", 70_000)].map(|(name, length)| Entry { name: name.to_owned(), length }).into()
    }

    fn values(number: usize) -> Vec<f32> {
        vec![number as f32 + 0.5; entries()[number].length]
    }

    /// Checkpoints with a state in a folder of their own.
    fn written() -> (tempfile::TempDir, Checkpoints) {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path().to_owned());
        let state = State::new(Fingerprint::default());
        checkpoints.write_state(&state, &entries(), &|number| Ok(values(number))).unwrap();
        (folder, checkpoints)
    }

    /// What is said of a state whose file was changed.
    fn told(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let (_folder, checkpoints) = written();
        let mut bytes = std::fs::read(checkpoints.state_file()).unwrap();
        change(&mut bytes);
        std::fs::write(checkpoints.state_file(), bytes).unwrap();
        checkpoints.read_state(&Fingerprint::default()).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn tensors_come_back_in_any_order_and_others_read_the_file() {
        let (_folder, checkpoints) = written();
        let (state, mut tensors) = checkpoints.read_state(&Fingerprint::default()).unwrap().unwrap();
        assert_eq!(state, State::new(Fingerprint::default()));
        for number in [1, 0] {
            let Entry { name, length } = &entries()[number];
            assert!(tensors.read(name, *length).unwrap() == values(number));
        }
        let bytes = std::fs::read(checkpoints.state_file()).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("a").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&values(0)));
        for (name, length, reason) in
            [("c", 3, "no tensor called c"), ("a", 4, "a is F32 [3], expected 4 elements")]
        {
            let told = tensors.read(name, length).unwrap_err().to_string();
            assert!(told.contains(reason), "{told}");
        }
    }

    #[test]
    fn a_damaged_file_is_told_from_a_whole_one() {
        for (told, reason) in [
            (told(|bytes| bytes.truncate(5)), "it has 5 bytes, expected a header"),
            (told(|bytes| bytes.truncate(100)), "its header ends at byte"),
            (told(|bytes| bytes.truncate(bytes.len() - 1)), "its tensors end at byte"),
            (told(|bytes| bytes.push(0)), "its tensors end at byte"),
            (told(|bytes| bytes[..8].fill(0xff)), "its header ends at byte"),
            (told(|bytes| bytes[8] = b'['), "the checkpoint cannot be read"),
        ] {
            assert!(told.contains(reason), "{told}");
        }
    }

    #[test]
    fn a_tensor_that_cannot_be_had_leaves_the_old_file() {
        let (_folder, checkpoints) = written();
        let before = std::fs::read(checkpoints.state_file()).unwrap();
        let state = State::new(Fingerprint::default());
        let fetch = |number: usize| match number {
            0 => Ok(values(1)[..3].to_vec()),
            _ => Err(Error::Collective("rank 1 is gone".to_owned())),
        };
        let told = checkpoints.write_state(&state, &entries(), &fetch).unwrap_err().to_string();
        assert_eq!(told, "rank 1 is gone");
        assert!(std::fs::read(checkpoints.state_file()).unwrap() == before);
    }
}

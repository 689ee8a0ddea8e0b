//! Safetensors files, read through a memory map, one or several that an index lists.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use engine::decoder::weights::{HostData, HostTensor};
use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensorError};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::mapped::{forget, map};
use crate::stored::{TensorFile, numbers};

/// The file of a model in one piece.
pub(crate) const WHOLE: &str = "model.safetensors";
/// The index of a model in several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// One mapped safetensors file.
pub(crate) struct SafeTensorsFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the header ends.
    start: usize,
}

impl SafeTensorsFile {
    /// Maps the file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        match SafeTensors::read_metadata(&map) {
            Ok((header, metadata)) => Ok(Self { path: path.to_owned(), map, metadata, start: header + 8 }),
            Err(error) => {
                let reason = explain(&map, &error);
                Err(Error::SafeTensors { path: path.to_owned(), reason })
            }
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Gives back the memory of what was read: see [`forget`].
    pub(crate) fn forget(&self) {
        forget(&self.map);
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A tensor as it is stored.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
        let Some(info) = self.metadata.info(name) else { return Ok(None) };
        // The offsets were checked against the file's length when the header was read.
        let bytes = &self.map[self.start + info.data_offsets.0..self.start + info.data_offsets.1];
        let data = match info.dtype {
            Dtype::F32 => HostData::F32(numbers(bytes)),
            Dtype::BF16 => HostData::Bf16(numbers(bytes)),
            Dtype::F16 => HostData::F16(numbers(bytes)),
            other => {
                return Err(Error::Type {
                    path: self.path.clone(),
                    tensor: name.to_owned(),
                    found: format!("{other:?}"),
                    expected: "F32, BF16 or F16",
                });
            }
        };
        Ok(Some(HostTensor { shape: info.shape.clone(), data }))
    }
}

/// Says which tensor a file cut short ends in, which the library's message does not.
fn explain(bytes: &[u8], error: &SafeTensorError) -> String {
    if bytes.len() < 8 {
        return format!("it has {} bytes; expected at least the 8 of the header's length", bytes.len());
    }
    let header =
        u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
    if matches!(error, SafeTensorError::InvalidHeaderLength | SafeTensorError::HeaderTooLarge) {
        return format!(
            "its header is said to have {header} bytes, but {} follow; is the file cut short?",
            bytes.len() - 8
        );
    }
    if matches!(error, SafeTensorError::MetadataIncompleteBuffer)
        && let Some(reason) = first_beyond_the_end(bytes, header)
    {
        return reason;
    }
    error.to_string()
}

fn first_beyond_the_end(bytes: &[u8], header: u64) -> Option<String> {
    let header = usize::try_from(header).ok()?;
    let end = header.checked_add(8)?;
    let entries: Value = serde_json::from_slice(bytes.get(8..end)?).ok()?;
    let available = (bytes.len() - end) as u64;
    let ends = entries.as_object()?.iter().filter_map(|(name, entry)| {
        let last = entry.get("data_offsets")?.get(1)?.as_u64()?;
        Some((last, name))
    });
    let ends: Vec<_> = ends.collect();
    let total = ends.iter().map(|(last, _)| *last).max()?;
    match ends.iter().filter(|(last, _)| *last > available).min() {
        Some((_, name)) => Some(format!(
            "it ends in tensor `{name}`: found {available} bytes of weights, expected {total}; is the file cut short?"
        )),
        None => Some(format!("found {available} bytes of weights, expected {total}")),
    }
}

/// The weights of a Hugging Face folder: one file, or those that the index lists.
pub(crate) struct FolderWeights {
    folder: PathBuf,
    files: Vec<SafeTensorsFile>,
    /// Which file has a tensor.
    places: HashMap<String, usize>,
    /// Left out of the names in files that were saved without a head.
    prefix: &'static str,
}

impl FolderWeights {
    /// Opens `model.safetensors`, or what `model.safetensors.index.json` lists.
    pub(crate) fn open(folder: &Path, prefix: &'static str) -> Result<Self> {
        let whole = folder.join(WHOLE);
        let index = folder.join(INDEX);
        let files = if whole.is_file() {
            vec![SafeTensorsFile::open(&whole)?]
        } else if index.is_file() {
            open_indexed(folder, &index)?
        } else {
            let reason = format!("expected {WHOLE} or {INDEX} in it{}", pickled(folder));
            return Err(Error::NotAModel { path: folder.to_owned(), reason });
        };
        let mut places = HashMap::new();
        for (place, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(first) = places.insert(name.clone(), place) {
                    let path = file.path().to_owned();
                    let reason = format!("tensor `{name}` is in {} too", files[first].path().display());
                    return Err(Error::SafeTensors { path, reason });
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), files, places, prefix })
    }

    /// The name under which the files have a tensor.
    pub(crate) fn stored_name<'n>(&self, name: &'n str) -> Option<&'n str> {
        [Some(name), name.strip_prefix(self.prefix)]
            .into_iter()
            .flatten()
            .find(|name| self.places.contains_key(*name))
    }

    /// All names in the files.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The mapped files.
    pub(crate) fn files(&self) -> &[SafeTensorsFile] {
        &self.files
    }
}

impl TensorFile for FolderWeights {
    fn tensor(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
        let Some(stored) = self.stored_name(name) else { return Ok(None) };
        self.files[self.places[stored]].tensor(stored)
    }

    fn path_of(&self, name: &str) -> &Path {
        let place = self.stored_name(name).and_then(|name| self.places.get(name));
        place.map_or(&self.folder, |&place| self.files[place].path())
    }
}

fn open_indexed(folder: &Path, index: &Path) -> Result<Vec<SafeTensorsFile>> {
    let text = fs::read(index).map_err(Error::io(index))?;
    let json: Value = serde_json::from_slice(&text).map_err(Error::json(index))?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| Error::MissingKey {
        path: index.to_owned(),
        key: "weight_map".to_owned(),
        expected: "an object from tensor names to file names".to_owned(),
    })?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        // A name with a folder in it could lead outside the model.
        let plain =
            file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|last| last == *name));
        names.insert(plain.ok_or_else(|| Error::BadKey {
            path: index.to_owned(),
            key: format!("weight_map.{tensor}"),
            found: file.to_string(),
            expected: "the name of a file in the same folder".to_owned(),
        })?);
    }
    let files: Vec<_> =
        names.iter().map(|name| SafeTensorsFile::open(&folder.join(name))).collect::<Result<_>>()?;
    for (tensor, file) in map {
        let listed = files.iter().find(|found| {
            found.path().file_name().is_some_and(|name| Some(name) == file.as_str().map(std::ffi::OsStr::new))
        });
        if listed.is_none_or(|found| found.metadata.info(tensor).is_none()) {
            return Err(Error::MissingTensor {
                path: folder.join(file.as_str().unwrap_or_default()),
                tensor: tensor.clone(),
                expected: Vec::new(),
            });
        }
    }
    Ok(files)
}

/// Says so where the folder has weights in the older, pickled format.
fn pickled(folder: &Path) -> &'static str {
    if folder.join("pytorch_model.bin").is_file() || folder.join("pytorch_model.bin.index.json").is_file() {
        "; pytorch_model.bin is not read, because a pickle can run any code: save the model as safetensors"
    } else {
        ""
    }
}

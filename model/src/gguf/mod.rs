//! GGUF files, versions 2 and 3: the container, read through a memory map.
//!
//! Nothing in the file is trusted: every count is held against the bytes that are left before memory is taken for it.

mod blocks;
mod metadata;
mod model;
mod vocabulary;
mod write;
mod write_vocabulary;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use engine::decoder::weights::{HostData, HostTensor, Precision};
use memmap2::Mmap;

use self::blocks::Block;
use self::metadata::{Cursor, Metadata};
use crate::error::{Error, Result};
use crate::mapped::{forget, map};
use crate::stored::{TensorFile, numbers};

pub(crate) use self::vocabulary::{Pieces, sentencepiece_json, tokenizer};
pub(crate) use self::write::write;

/// The first bytes of a GGUF file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// Tensors start at multiples of this where the file does not say otherwise.
const ALIGNMENT: u64 = 32;

/// A mapped GGUF file.
pub(crate) struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: HashMap<String, Metadata>,
    tensors: HashMap<String, Stored>,
}

/// Where a tensor lies, and as what.
struct Stored {
    /// `[rows, columns]`: the reverse of the file's order.
    shape: Vec<usize>,
    block: Block,
    start: usize,
    end: usize,
}

impl Gguf {
    /// Maps the file and reads all but its weights.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let mut cursor = Cursor::new(path, &map);
        if cursor.take(4)? != MAGIC {
            return Err(cursor.error("expected it to begin with `GGUF`"));
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            let reason = if version.swap_bytes() <= 3 {
                "the file is big-endian; expected a little-endian one".to_owned()
            } else {
                format!("version {version}; expected 2 or 3")
            };
            return Err(cursor.error(reason));
        }
        let tensor_count = cursor.u64()?;
        let key_count = cursor.u64()?;
        let metadata = read_metadata(&mut cursor, key_count)?;
        let alignment = read_alignment(&cursor, &metadata)?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
        Ok(Self { path: path.to_owned(), metadata, tensors, map })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The type of a tensor, if it is one that the engine keeps.
    pub(crate) fn precision(&self, name: &str) -> Option<Precision> {
        match self.tensors.get(name)?.block {
            Block::F16 => Some(Precision::F16),
            Block::Bf16 => Some(Precision::Bf16),
            _ => Some(Precision::F32),
        }
    }

    /// Gives back the memory of what was read: see [`forget`].
    pub(crate) fn forget(&self) {
        forget(&self.map);
    }

    fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }
}

impl TensorFile for Gguf {
    fn tensor(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
        let Some(stored) = self.tensors.get(name) else { return Ok(None) };
        let bytes = &self.map[stored.start..stored.end];
        let data = match stored.block {
            Block::F32 => HostData::F32(numbers(bytes)),
            Block::F16 => HostData::F16(numbers(bytes)),
            Block::Bf16 => HostData::Bf16(numbers(bytes)),
            block => HostData::F32(block.dequantise(bytes).into()),
        };
        Ok(Some(HostTensor { shape: stored.shape.clone(), data }))
    }

    fn path_of(&self, _: &str) -> &Path {
        &self.path
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<HashMap<String, Metadata>> {
    // A key takes at least the 8 bytes of its length, 4 of its type and 1 of its value.
    cursor.expect_room(count, 13, "keys")?;
    let mut metadata = HashMap::new();
    for _ in 0..count {
        let key = cursor.string()?;
        let value = cursor.value()?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(cursor.error(format!("key `{key}` is there twice")));
        }
    }
    Ok(metadata)
}

fn read_alignment(cursor: &Cursor<'_>, metadata: &HashMap<String, Metadata>) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(value) => value
            .unsigned()
            .filter(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 20)
            .ok_or_else(|| cursor.error("general.alignment is not a power of two up to 2^20")),
    }
}

/// A tensor's entry, before it is known where the weights begin.
struct Entry {
    name: String,
    shape: Vec<usize>,
    block: Block,
    offset: u64,
    length: u64,
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64, alignment: u64) -> Result<HashMap<String, Stored>> {
    // The length of a name, the number of dimensions, one dimension, a type and an offset.
    cursor.expect_room(count, 32, "tensors")?;
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(read_entry(cursor, alignment)?);
    }
    let data = (cursor.position() as u64).next_multiple_of(alignment);
    let size = cursor.size() as u64;
    entries.sort_by_key(|entry| entry.offset);
    let mut tensors = HashMap::new();
    let mut last: Option<(String, u64)> = None;
    for entry in entries {
        let Entry { name, shape, block, offset, length } = entry;
        let start = data.checked_add(offset);
        let range = start.and_then(|start| Some((start, start.checked_add(length)?)));
        let Some((start, end)) = range.filter(|(_, end)| *end <= size) else {
            return Err(cursor.error(format!(
                "tensor `{name}` has {length} bytes at {offset} of the weights, which begin at byte {data}; expected it \
                 to end within the file's {size} bytes; is the file cut short?"
            )));
        };
        if let Some((before, end_before)) = &last
            && start < *end_before
        {
            return Err(cursor.error(format!("tensors `{before}` and `{name}` overlap")));
        }
        last = Some((name.clone(), end));
        let stored = Stored { shape, block, start: start as usize, end: end as usize };
        if tensors.insert(name.clone(), stored).is_some() {
            return Err(cursor.error(format!("tensor `{name}` is there twice")));
        }
    }
    Ok(tensors)
}

fn read_entry(cursor: &mut Cursor<'_>, alignment: u64) -> Result<Entry> {
    let name = cursor.string()?;
    let dimensions = cursor.u32()?;
    if !(1..=4).contains(&dimensions) {
        return Err(cursor.error(format!("tensor `{name}` has {dimensions} dimensions; expected 1 to 4")));
    }
    let mut shape = Vec::new();
    let mut elements: u64 = 1;
    for _ in 0..dimensions {
        let dimension = cursor.u64()?;
        elements =
            elements.checked_mul(dimension).filter(|elements| (1..1 << 48).contains(elements)).ok_or_else(
                || cursor.error(format!("tensor `{name}` has an impossible dimension {dimension}")),
            )?;
        shape.push(dimension as usize);
    }
    let kind = cursor.u32()?;
    let block = Block::from_id(kind).ok_or_else(|| Error::Type {
        path: cursor.path().to_owned(),
        tensor: name.clone(),
        found: format!("{kind} ({})", blocks::name_of(kind)),
        expected: blocks::READ,
    })?;
    // The file's first dimension is the fastest: a row, which is whole blocks.
    let row = shape[0] as u64;
    if !row.is_multiple_of(block.elements() as u64) {
        let reason = format!(
            "tensor `{name}` has rows of {row}; expected a multiple of {} for {block:?}",
            block.elements()
        );
        return Err(cursor.error(reason));
    }
    let length = elements / block.elements() as u64 * block.bytes() as u64;
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(
            cursor.error(format!("tensor `{name}` is at {offset}; expected a multiple of {alignment}"))
        );
    }
    shape.reverse();
    Ok(Entry { name, shape, block, offset, length })
}

//! A model written as a Hugging Face folder.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use engine::decoder::config::DecoderConfig;
use engine::decoder::weights::{HostData, HostTensor, Slot, slots};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::{Value, json};

use crate::base_model::BaseModel;
use crate::error::{Error, Result};
use crate::families::{Family, Part};
use crate::safetensors_file::{INDEX, WHOLE};
use crate::stored::{bytes, split};
use crate::write::{persist, temporary_in, write_atomically};

/// A file of weights is not made larger than this, as transformers does it.
pub const SHARD_BYTES: usize = 5_000_000_000;

/// The type in which weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// Brain floats, rounded to the nearest.
    Bf16,
    /// Half floats, rounded to the nearest.
    F16,
}

impl Precision {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    pub(crate) fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    pub(crate) fn cast<'a>(self, data: HostData<'a>) -> HostData<'a> {
        match (self, data) {
            (Self::F32, data @ HostData::F32(_))
            | (Self::Bf16, data @ HostData::Bf16(_))
            | (Self::F16, data @ HostData::F16(_)) => data,
            (wanted, data) => {
                let wide = HostTensor { shape: Vec::new(), data }.to_f32();
                match wanted {
                    Self::F32 => HostData::F32(wide.into()),
                    Self::Bf16 => {
                        HostData::Bf16(wide.into_iter().map(bf16::from_f32).collect::<Vec<_>>().into())
                    }
                    Self::F16 => {
                        HostData::F16(wide.into_iter().map(f16::from_f32).collect::<Vec<_>>().into())
                    }
                }
            }
        }
    }
}

/// Writes `model`'s configuration and tokenizer with other weights: those that `tensor` gives for each slot, in the
/// decoder's layout.
///
/// Weights come first and `config.json` last, each under a temporary name until it is whole, and an old `config.json`
/// goes before the first of them: a folder that a kill left half written is never taken for a model.
///
/// # Errors
/// `tensor` fails or gives another shape than the slot's; a file could not be written.
pub fn write<'t>(
    folder: &Path,
    model: &BaseModel,
    precision: Precision,
    tensor: impl Fn(Slot) -> Result<HostTensor<'t>>,
) -> Result<()> {
    write_sharded(folder, model, precision, SHARD_BYTES, &tensor)
}

/// As [`write()`], with a limit of one's own for the size of a file.
///
/// # Errors
/// As for [`write()`].
pub fn write_sharded<'t>(
    folder: &Path,
    model: &BaseModel,
    precision: Precision,
    shard_bytes: usize,
    tensor: &dyn Fn(Slot) -> Result<HostTensor<'t>>,
) -> Result<()> {
    let mut config = model.config_json()?;
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let config_path = folder.join("config.json");
    remove(&config_path)?;
    write_weights(folder, model.family(), model.config(), precision, shard_bytes, tensor)?;
    model.tokenizer().save(folder)?;
    let generation = model.path().join("generation_config.json");
    if generation.is_file() {
        let text = fs::read(&generation).map_err(Error::io(&generation))?;
        write_atomically(&folder.join("generation_config.json"), &text)?;
    }
    if let Some(config) = config.as_object_mut() {
        // Transformers reads the old name where it does not know the new one.
        config.remove("torch_dtype");
        config.insert("dtype".to_owned(), precision.name().into());
        config.insert("torch_dtype".to_owned(), precision.name().into());
    }
    write_atomically(&config_path, format!("{config:#}\n").as_bytes())
}

/// Writes `config.json` and the tokenizer of a model, with its own weights.
///
/// # Errors
/// As for [`write()`].
pub fn copy(folder: &Path, model: &BaseModel, precision: Precision) -> Result<()> {
    write(folder, model, precision, |slot| model.tensor(slot))
}

/// A file's tensor, fetched when it is written.
struct Piece<'f, 't> {
    slot: Slot,
    part: Part,
    first: usize,
    offset: f32,
    slot_shape: Vec<usize>,
    shape: Vec<usize>,
    precision: Precision,
    fetch: &'f dyn Fn(Slot) -> Result<HostTensor<'t>>,
    /// The library's trait has no room for an error: the first one is kept here.
    failed: &'f RefCell<Option<Error>>,
}

impl Piece<'_, '_> {
    fn length(&self) -> usize {
        self.shape.iter().product::<usize>() * self.precision.size()
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let tensor = (self.fetch)(self.slot)?;
        if tensor.shape != self.slot_shape {
            return Err(Error::Shape {
                path: PathBuf::from("(new weights)"),
                tensor: self.part.name.clone(),
                found: tensor.shape,
                expected: self.slot_shape.clone(),
            });
        }
        let piece = split(&tensor, &self.part, self.first, self.offset);
        Ok(bytes(&self.precision.cast(piece.data)).into_owned())
    }
}

impl View for &Piece<'_, '_> {
    fn dtype(&self) -> Dtype {
        self.precision.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.failed.borrow().is_some() {
            return Cow::Owned(Vec::new());
        }
        self.bytes().map_or_else(
            |error| {
                *self.failed.borrow_mut() = Some(error);
                Cow::Owned(Vec::new())
            },
            Cow::Owned,
        )
    }

    fn data_len(&self) -> usize {
        self.length()
    }
}

fn write_weights<'t>(
    folder: &Path,
    family: Family,
    config: &DecoderConfig,
    precision: Precision,
    shard_bytes: usize,
    fetch: &dyn Fn(Slot) -> Result<HostTensor<'t>>,
) -> Result<()> {
    let failed = RefCell::new(None);
    let mut shards: Vec<Vec<Piece<'_, 't>>> = vec![Vec::new()];
    let mut size = 0;
    for slot in slots(config) {
        let parts = family.parts(config, slot);
        let slot_shape = slot.shape(config);
        let mut first = 0;
        for part in parts.parts {
            let shape = [&[part.rows], &slot_shape[1..]].concat();
            let rows = part.rows;
            let piece = Piece {
                slot,
                part,
                first,
                offset: parts.offset,
                slot_shape: slot_shape.clone(),
                shape,
                precision,
                fetch,
                failed: &failed,
            };
            first += rows;
            if size > 0 && size + piece.length() > shard_bytes {
                shards.push(Vec::new());
                size = 0;
            }
            size += piece.length();
            if let Some(shard) = shards.last_mut() {
                shard.push(piece);
            }
        }
    }
    let names: Vec<String> = match shards.len() {
        1 => vec![WHOLE.to_owned()],
        count => (1..=count).map(|n| format!("model-{n:05}-of-{count:05}.safetensors")).collect(),
    };
    for (name, shard) in names.iter().zip(&shards) {
        write_shard(&folder.join(name), shard, &failed)?;
    }
    if names.len() > 1 {
        write_index(folder, &names, &shards)?;
    }
    remove_stale(folder, &names)
}

fn write_shard(path: &Path, shard: &[Piece<'_, '_>], failed: &RefCell<Option<Error>>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = temporary_in(folder).map_err(Error::io(path))?;
    let views = shard.iter().map(|piece| (piece.part.name.as_str(), piece));
    // Transformers asks for this entry before it loads a file.
    let info = Some([("format".to_owned(), "pt".to_owned())].into_iter().collect());
    let written = safetensors::serialize_to_file(views, info, file.path());
    // A tensor that could not be had was handed over empty: that is what went wrong, whatever the library says of it.
    if let Some(error) = failed.borrow_mut().take() {
        return Err(error);
    }
    written.map_err(|error| match error {
        // A full disk is no damaged file.
        safetensors::SafeTensorError::IoError(error) => Error::io(path)(error),
        other => Error::SafeTensors { path: path.to_owned(), reason: other.to_string() },
    })?;
    // The library has put a new file under the temporary name.
    let (_, temporary) = file.into_parts();
    let written = fs::File::options().read(true).write(true).open(&temporary).map_err(Error::io(path))?;
    persist(tempfile::NamedTempFile::from_parts(written, temporary), path)
}

fn write_index(folder: &Path, names: &[String], shards: &[Vec<Piece<'_, '_>>]) -> Result<()> {
    let pieces =
        || names.iter().zip(shards).flat_map(|(name, shard)| shard.iter().map(move |piece| (name, piece)));
    let total: usize = pieces().map(|(_, piece)| piece.length()).sum();
    let map: BTreeMap<&str, &String> =
        pieces().map(|(name, piece)| (piece.part.name.as_str(), name)).collect();
    let index: Value = json!({"metadata": {"total_size": total}, "weight_map": map});
    write_atomically(&folder.join(INDEX), format!("{index:#}\n").as_bytes())
}

/// Refuses a folder that holds an adapter: with a model beside it, who reads it would take one for the other.
///
/// # Errors
/// There is one.
pub fn refuse_adapter(folder: &Path) -> Result<()> {
    refuse_beside(folder, "adapter_config.json", "an adapter", "a model's")
}

/// Refuses a folder that holds a model: an adapter beside it would be taken for one on it.
///
/// # Errors
/// There is one.
pub fn refuse_model(folder: &Path) -> Result<()> {
    refuse_beside(folder, "config.json", "a model", "an adapter's")
}

fn refuse_beside(folder: &Path, file: &str, found: &str, expected: &str) -> Result<()> {
    if folder.join(file).exists() {
        return Err(Error::OtherResult {
            path: folder.to_owned(),
            found: format!("{found} ({file})"),
            expected: expected.to_owned(),
        });
    }
    Ok(())
}

/// Weights of an earlier writing would be read in the place of the new, or beside them.
fn remove_stale(folder: &Path, names: &[String]) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let ours = name == WHOLE
            || (name.starts_with("model-") && name.ends_with(".safetensors") && name.contains("-of-"))
            || (name == INDEX && names.len() == 1);
        if ours && !names.iter().any(|new| new == name) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

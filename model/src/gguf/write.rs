//! A model written as a GGUF file, as llama.cpp reads it.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use engine::decoder::config::{DecoderConfig, Head, NormKind, Position, Residual};
use engine::decoder::weights::{HostData, HostTensor, Slot, slots};
use rayon::prelude::*;

use super::metadata::Metadata;
use super::model::{ROPE_FACTORS, parts};
use super::{ALIGNMENT, MAGIC};
use crate::base_model::BaseModel;
use crate::error::{Error, Result};
use crate::families::{self, Family, Parts};
use crate::folder::Precision;
use crate::stored::{bytes, split};
use crate::write::{persist, temporary_in};

/// The version of the format that is written.
const VERSION: u32 = 3;

/// Blocks by which llama.cpp knows a Baichuan that is rotated, and one that has ALiBi: its files do not say.
const BAICHUAN_BLOCKS: [usize; 2] = [32, 40];

/// Writes `model` with the weights that `tensor` gives for each slot, in the decoder's layout: matrices in `precision`,
/// vectors in f32, as llama.cpp wants them.
///
/// # Errors
/// `tensor` fails; the format cannot say what the model computes; the tokenizer is of a kind that it does not have; the
/// file could not be written.
pub(crate) fn write<'t>(
    path: &Path,
    model: &BaseModel,
    precision: Precision,
    tensor: &dyn Fn(Slot) -> Result<HostTensor<'t>>,
) -> Result<()> {
    let config = model.config();
    // What cannot be said is told of the model that has it.
    let said_by =
        if model.path().is_dir() { model.path().join("config.json") } else { model.path().to_owned() };
    let architecture = architecture(&said_by, model.family(), config)?;
    let rope = Rope::new(&said_by, model, architecture)?;
    let mut keys = model_keys(model, architecture, precision);
    keys.extend(rope.keys.iter().map(|(key, value)| (format!("{architecture}.rope.{key}"), value.clone())));
    keys.extend(super::write_vocabulary::keys(path, model)?);
    let entries = entries(model, precision, rope.factors.as_deref());

    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let file = temporary_in(folder).map_err(Error::io(path))?;
    let mut out = BufWriter::new(file);
    let header = header(&keys, &entries);
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path));
    write(&header)?;
    write(&padding(header.len()))?;
    for entry in &entries {
        let data = entry.data(model, precision, tensor)?;
        write(&data)?;
        write(&padding(data.len()))?;
    }
    let file = out.into_inner().map_err(|error| Error::io(path)(error.into_error()))?;
    persist(file, path)
}

/// The name by which llama.cpp knows the family.
fn architecture(path: &Path, family: Family, config: &DecoderConfig) -> Result<&'static str> {
    let refuse = |key: &str, found: String, expected: &str| Error::Unsupported {
        path: path.to_owned(),
        key: key.to_owned(),
        found,
        expected: format!("{expected}, because a GGUF file cannot say otherwise"),
    };
    if family == Family::Gemma3 {
        // llama.cpp has which blocks are local, and the base of their rotary embedding, in its code and not in the file.
        return Err(refuse("model_type", family.to_string(), "another family, or a Hugging Face folder"));
    }
    if family == Family::Baichuan {
        let [rotated, biased] = BAICHUAN_BLOCKS;
        let wanted = if config.position == Position::Alibi { biased } else { rotated };
        if config.layers != wanted {
            let expected = format!("{rotated} blocks with rotary positions, {biased} with ALiBi");
            return Err(refuse("num_hidden_layers", config.layers.to_string(), &expected));
        }
    }
    Ok(match family {
        // llama.cpp has no Mistral of its own: the block is LLaMA's.
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::GptNeox => "gptneox",
        Family::Bloom => "bloom",
        Family::Baichuan => "baichuan",
        Family::Gemma => "gemma",
        Family::Gemma3 => "gemma3",
    })
}

fn model_keys(model: &BaseModel, architecture: &str, precision: Precision) -> Vec<(String, Metadata)> {
    let config = model.config();
    let count = |number: usize| Metadata::Unsigned(number as u64);
    let file_type = match precision {
        Precision::F32 => 0,
        Precision::F16 => 1,
        Precision::Bf16 => 32,
    };
    let epsilon = match config.norm.kind {
        NormKind::Layer => "attention.layer_norm_epsilon",
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
    };
    let mut keys = vec![
        ("general.architecture".to_owned(), Metadata::Text(architecture.to_owned())),
        ("general.name".to_owned(), Metadata::Text(model.name())),
        ("general.file_type".to_owned(), count(file_type)),
    ];
    let mut add = |key: &str, value: Metadata| keys.push((format!("{architecture}.{key}"), value));
    add("vocab_size", count(config.vocabulary));
    add("context_length", count(config.max_positions));
    add("embedding_length", count(config.hidden));
    add("block_count", count(config.layers));
    add("feed_forward_length", count(config.intermediate));
    add("attention.head_count", count(config.heads));
    add("attention.head_count_kv", count(config.key_value_heads));
    add("attention.key_length", count(config.head_size));
    add("attention.value_length", count(config.head_size));
    add(epsilon, Metadata::Float(f64::from(config.norm.epsilon)));
    if model.family() == Family::GptNeox {
        add("use_parallel_residual", Metadata::Flag(config.residual == Residual::Parallel));
    }
    keys
}

/// What is said of the rotary embedding: keys, and where angles were stretched unevenly, a divisor of each.
struct Rope {
    keys: Vec<(&'static str, Metadata)>,
    factors: Option<Vec<f32>>,
}

impl Rope {
    fn new(path: &Path, model: &BaseModel, architecture: &str) -> Result<Self> {
        let Position::Rotary { rotated, frequencies } = &model.config().position else {
            return Ok(Self { keys: Vec::new(), factors: None });
        };
        let base = model.rotary_base()?;
        let mut keys = vec![
            ("dimension_count", Metadata::Unsigned(*rotated as u64)),
            ("freq_base", Metadata::Float(base)),
        ];
        let plain = families::rotary_position(*rotated, base, families::Scaling::None);
        let Position::Rotary { frequencies: plain, .. } = plain else {
            return Ok(Self { keys, factors: None });
        };
        let factors: Vec<f32> = plain.iter().zip(frequencies).map(|(plain, found)| plain / found).collect();
        let first = factors.first().copied().unwrap_or(1.0);
        // The quotients of rounded numbers.
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b.abs();
        if factors.iter().all(|factor| near(*factor, 1.0)) {
            return Ok(Self { keys, factors: None });
        }
        if factors.iter().all(|factor| near(*factor, first)) {
            keys.push(("scaling.type", Metadata::Text("linear".to_owned())));
            keys.push(("scaling.factor", Metadata::Float(f64::from(first))));
            return Ok(Self { keys, factors: None });
        }
        if architecture != "llama" {
            return Err(Error::Unsupported {
                path: path.to_owned(),
                key: "rope_scaling".to_owned(),
                found: "angles stretched unevenly".to_owned(),
                expected: format!(
                    "plain or linear ones, because a GGUF file of {architecture} cannot say otherwise"
                ),
            });
        }
        Ok(Self { keys, factors: Some(factors) })
    }
}

/// A tensor of the file.
struct Entry {
    name: String,
    shape: Vec<usize>,
    source: Source,
    matrix: bool,
    /// The format's number of its type.
    kind: u32,
    bytes: usize,
}

/// What a tensor is made of.
enum Source {
    /// Rows of a slot from `first` on.
    Slot { slot: Slot, parts: Parts, part: usize, first: usize },
    /// These numbers.
    Given(Vec<f32>),
}

fn entries(model: &BaseModel, precision: Precision, rope_factors: Option<&[f32]>) -> Vec<Entry> {
    let (family, config) = (model.family(), model.config());
    let mut entries = Vec::new();
    let mut given = |name: String, values: Vec<f32>| {
        let (shape, bytes) = (vec![values.len()], 4 * values.len());
        entries.push(Entry { name, shape, source: Source::Given(values), matrix: false, kind: 0, bytes });
    };
    if let Some(factors) = rope_factors {
        given(ROPE_FACTORS.to_owned(), factors.to_vec());
    }
    if family == Family::GptNeox {
        // llama.cpp wants its biases even where the model has none.
        for layer in 0..config.layers {
            if !config.query_key_value_bias {
                given(format!("blk.{layer}.attn_qkv.bias"), vec![0.0; config.query_key_value_rows()]);
            }
            if !config.output_bias {
                given(format!("blk.{layer}.attn_output.bias"), vec![0.0; config.hidden]);
            }
        }
    }
    let fused = matches!(family, Family::GptNeox | Family::Bloom);
    for slot in slots(config) {
        let (shape, matrix) = (slot.shape(config), slot.is_matrix());
        let mut first = 0;
        let whole = parts(family, config, fused, slot);
        for (place, part) in whole.parts.iter().enumerate() {
            let shape = [&[part.rows], &shape[1..]].concat();
            let elements: usize = shape.iter().product();
            let (kind, size) = if matrix { (kind_of(precision), precision.size()) } else { (0, 4) };
            let bytes = elements * size;
            let source = Source::Slot { slot, parts: whole.clone(), part: place, first };
            entries.push(Entry { name: part.name.clone(), shape, source, matrix, kind, bytes });
            first += part.rows;
        }
    }
    entries
}

impl Entry {
    fn data<'t>(
        &self,
        model: &BaseModel,
        precision: Precision,
        tensor: &dyn Fn(Slot) -> Result<HostTensor<'t>>,
    ) -> Result<Vec<u8>> {
        let (slot, parts, part, first) = match &self.source {
            Source::Given(values) => return Ok(bytes(&HostData::F32(values.as_slice().into())).into_owned()),
            Source::Slot { slot, parts, part, first } => (*slot, parts, &parts.parts[*part], *first),
        };
        let config = model.config();
        let mut whole = tensor(slot)?;
        if whole.shape != slot.shape(config) {
            return Err(Error::Shape {
                path: model.path().to_owned(),
                tensor: self.name.clone(),
                found: whole.shape,
                expected: slot.shape(config),
            });
        }
        if slot == Slot::Head && config.head == Head::Normalised {
            whole = with_rows_of_length_one(&whole);
        }
        let piece = split(&whole, part, first, parts.offset);
        let precision = if self.matrix { precision } else { Precision::F32 };
        Ok(bytes(&precision.cast(piece.data)).into_owned())
    }
}

/// The format's number of a type.
fn kind_of(precision: Precision) -> u32 {
    match precision {
        Precision::F32 => 0,
        Precision::F16 => 1,
        Precision::Bf16 => 30,
    }
}

/// llama.cpp does not normalise Baichuan-2's head: its files have it done.
fn with_rows_of_length_one(tensor: &HostTensor<'_>) -> HostTensor<'static> {
    let columns = tensor.shape[1].max(1);
    let mut values = tensor.to_f32();
    values.par_chunks_mut(columns).for_each(|row| {
        let length = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(1e-7) as f32;
        row.iter_mut().for_each(|x| *x /= length);
    });
    HostTensor { shape: tensor.shape.clone(), data: HostData::F32(values.into()) }
}

fn header(keys: &[(String, Metadata)], entries: &[Entry]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        put_text(&mut out, key);
        value.put(&mut out);
    }
    let mut offset = 0u64;
    for entry in entries {
        put_text(&mut out, &entry.name);
        out.extend((entry.shape.len() as u32).to_le_bytes());
        // The fastest dimension comes first.
        for dimension in entry.shape.iter().rev() {
            out.extend((*dimension as u64).to_le_bytes());
        }
        out.extend(entry.kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (entry.bytes as u64).next_multiple_of(ALIGNMENT);
    }
    out
}

fn padding(length: usize) -> Vec<u8> {
    vec![0; length.next_multiple_of(ALIGNMENT as usize) - length]
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

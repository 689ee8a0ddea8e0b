//! For tests, of this crate and of those after it: a small published model that comes in a format of its own.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::{Error, Result};
use crate::families::Family;
use crate::gguf::{Pieces, sentencepiece_json};
use crate::stored::numbers;
use crate::tokenizer::template;

/// The tiny models of `oracle/`, each with its family: one head and many, grouped and not, tied and not. Gemma 2's block
/// (capped scores) is not one that the decoder computes.
pub const TINY_MODELS: [(&str, Family); 24] = [
    ("llama-grouped", Family::Llama),
    ("llama-tied", Family::Llama),
    ("llama-bf16", Family::Llama),
    ("mistral", Family::Mistral),
    ("mistral-one-head", Family::Mistral),
    ("mistral-four-heads", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen2-one-head", Family::Qwen2),
    ("qwen2-six-heads", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("qwen3-one-head", Family::Qwen3),
    ("qwen3-four-heads", Family::Qwen3),
    ("gpt-neox-parallel", Family::GptNeox),
    ("gpt-neox-sequential", Family::GptNeox),
    ("gpt-neox-wide", Family::GptNeox),
    ("bloom", Family::Bloom),
    ("bloom-one-head", Family::Bloom),
    ("bloom-four-heads", Family::Bloom),
    ("baichuan-7b-like", Family::Baichuan),
    ("baichuan-13b-like", Family::Baichuan),
    ("baichuan-one-head", Family::Baichuan),
    ("gemma3", Family::Gemma3),
    ("gemma3-one-head", Family::Gemma3),
    ("gemma3-four-heads", Family::Gemma3),
];

/// Test material that is not part of the project: `POLYPACA_REAL`, or `shared/real` beside the workspace. None, said
/// on standard error, where there is no such folder.
pub fn real(path: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/real");
    let root = std::env::var_os("POLYPACA_REAL").map_or_else(beside, PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("skipped: {} is not there (set POLYPACA_REAL)", found.display());
    None
}

/// Writes stories260K, a llama2.c checkpoint (`checkpoint_v1.bin`, `tokenizer.bin` in `source`), as a Hugging Face
/// folder.
///
/// # Errors
/// A file cannot be read or written, or is cut short.
pub fn write_stories260k(source: &Path, folder: &Path) -> Result<()> {
    let path = source.join("checkpoint_v1.bin");
    let bytes = fs::read(&path).map_err(Error::io(&path))?;
    let short = || Error::NotAModel { path: path.clone(), reason: "cut short".to_owned() };
    let number = |place: usize| {
        let bytes = bytes.get(8 + 4 * place..12 + 4 * place)?;
        Some(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    let header: Option<Vec<usize>> = (0..7).map(number).collect();
    let header = header.ok_or_else(short)?;
    let [dim, hidden, layers, heads, kv_heads, vocabulary, positions] = header[..] else {
        return Err(short());
    };
    let head_size = dim / heads;
    let kv = kv_heads * head_size;
    let mut rest: &[f32] = &numbers(bytes.get(256..).ok_or_else(short)?);
    let mut next = |length: usize| -> Result<&[f32]> {
        let (taken, left) = rest.split_at_checked(length).ok_or_else(short)?;
        rest = left;
        Ok(taken)
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut each_layer = |name: &str, shape: Vec<usize>, all: &[f32], heads: usize| {
        for (layer, part) in all.chunks_exact(shape.iter().product()).enumerate() {
            let part = if heads > 0 { halves(part, heads, head_size, shape[1]) } else { part.to_vec() };
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.clone(), part));
        }
    };
    each_layer("input_layernorm", vec![dim], next(layers * dim)?, 0);
    each_layer("post_attention_layernorm", vec![dim], next(layers * dim)?, 0);
    let last_norm = next(dim)?.to_vec();
    let embedding = next(vocabulary * dim)?.to_vec();
    each_layer("self_attn.q_proj", vec![dim, dim], next(layers * dim * dim)?, heads);
    each_layer("self_attn.k_proj", vec![kv, dim], next(layers * kv * dim)?, kv_heads);
    each_layer("self_attn.v_proj", vec![kv, dim], next(layers * kv * dim)?, 0);
    each_layer("self_attn.o_proj", vec![dim, dim], next(layers * dim * dim)?, 0);
    each_layer("mlp.gate_proj", vec![hidden, dim], next(layers * hidden * dim)?, 0);
    each_layer("mlp.down_proj", vec![dim, hidden], next(layers * hidden * dim)?, 0);
    each_layer("mlp.up_proj", vec![hidden, dim], next(layers * hidden * dim)?, 0);
    tensors.push(("model.norm.weight".to_owned(), vec![dim], last_norm));
    tensors.push(("model.embed_tokens.weight".to_owned(), vec![vocabulary, dim], embedding));
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    write_tensors(&folder.join("model.safetensors"), &tensors)?;
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": dim,
        "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": 2,
    });
    write_text(&folder.join("config.json"), &config.to_string())?;
    write_vocabulary(&source.join("tokenizer.bin"), vocabulary, folder)
}

/// Rows of neighbouring pairs to rows of halves.
fn halves(rows: &[f32], heads: usize, head_size: usize, columns: usize) -> Vec<f32> {
    let order = crate::families::Order::Neighbours { head_size, rotated: head_size };
    (0..heads * head_size)
        .flat_map(|row| rows[order.stored_row(row) * columns..][..columns].to_vec())
        .collect()
}

fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Result<()> {
    let fault = |error: safetensors::SafeTensorError| Error::SafeTensors {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, data)| data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let mut views = Vec::new();
    for ((name, shape, _), bytes) in tensors.iter().zip(&bytes) {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        views.push((name, view.map_err(fault)?));
    }
    let bytes = safetensors::serialize(views, None).map_err(fault)?;
    fs::write(path, bytes).map_err(Error::io(path))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(path))
}

fn write_vocabulary(path: &Path, count: usize, folder: &Path) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let short = || Error::Tokenizer { path: path.to_owned(), reason: "cut short".to_owned() };
    let mut rest = bytes.get(4..).ok_or_else(short)?;
    let mut take = |length: usize| -> Result<Vec<u8>> {
        let (taken, left) = rest.split_at_checked(length).ok_or_else(short)?;
        rest = left;
        Ok(taken.to_vec())
    };
    let mut pieces = Pieces { texts: Vec::new(), kinds: Vec::new(), scores: Vec::new() };
    for id in 0..count {
        let score = take(4)?;
        pieces.scores.push(f32::from_le_bytes([score[0], score[1], score[2], score[3]]));
        let length = take(4)?;
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
        let text = String::from_utf8_lossy(&take(length as usize)?).into_owned();
        pieces.texts.push(match id {
            1 | 2 => text.trim().to_owned(),
            _ => text.replace(' ', "▁"),
        });
        pieces.kinds.push(match id {
            0 => 2,
            1 | 2 => 3,
            3..=258 => 6,
            _ => 1,
        });
    }
    let mut json = sentencepiece_json(&pieces, true);
    json["post_processor"] = template(Some(&(pieces.texts[1].clone(), 1)), None);
    write_text(&folder.join("tokenizer.json"), &json.to_string())?;
    let settings =
        json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true});
    write_text(&folder.join("tokenizer_config.json"), &settings.to_string())
}

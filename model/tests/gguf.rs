//! GGUF files: a real one, one written here against a folder of the same model, and damaged ones.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{GgufWriter, golden};
use engine::decoder::weights::slots;
use model::folder::{Precision, copy};
use model::test_support::real;
use model::{BaseModel, Family, Result};
use proptest::prelude::*;
use safetensors::SafeTensors;

/// Rows of halves to rows of neighbouring pairs, as converters to GGUF do it.
fn neighbours(rows: &[f32], head_size: usize, columns: usize) -> Vec<f32> {
    let mut moved = rows.to_vec();
    for row in 0..rows.len() / columns {
        let (head, dimension) = (row / head_size, row % head_size);
        let (half, pair) = (dimension / (head_size / 2), dimension % (head_size / 2));
        let to = head * head_size + 2 * pair + half;
        moved[to * columns..][..columns].copy_from_slice(&rows[row * columns..][..columns]);
    }
    moved
}

/// The oracle's `llama-grouped` as a GGUF file.
fn llama_as_gguf() -> Vec<u8> {
    let folder = golden("llama-grouped").join("model");
    let model = BaseModel::open(&folder).unwrap();
    let config = model.config();
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&bytes).unwrap();
    let mut writer = GgufWriter::default();
    writer.text("general.architecture", "llama");
    for (key, value) in [
        ("llama.embedding_length", config.hidden),
        ("llama.block_count", config.layers),
        ("llama.attention.head_count", config.heads),
        ("llama.attention.head_count_kv", config.key_value_heads),
        ("llama.feed_forward_length", config.intermediate),
        ("llama.context_length", config.max_positions),
        ("tokenizer.ggml.eos_token_id", 0),
    ] {
        writer.number(key, value as u32);
    }
    writer.float("llama.attention.layer_norm_rms_epsilon", config.norm.epsilon);
    writer.text("tokenizer.ggml.model", "gpt2");
    writer.text("tokenizer.ggml.pre", "gpt-2");
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(u64, String)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(text, id)| (id.as_u64().unwrap(), text.clone()))
        .collect();
    tokens.sort();
    let tokens: Vec<String> = tokens.into_iter().map(|(_, text)| text).collect();
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| match pair.as_array() {
            Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            None => pair.as_str().unwrap().to_owned(),
        })
        .collect();
    let kinds: Vec<i32> = (0..tokens.len()).map(|id| if id == 0 { 3 } else { 1 }).collect();
    writer.texts("tokenizer.ggml.tokens", &tokens);
    writer.texts("tokenizer.ggml.merges", &merges);
    writer.integers("tokenizer.ggml.token_type", &kinds);
    for (name, tensor) in weights.iter() {
        let numbers: Vec<f32> =
            tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let turned = name.contains("q_proj") || name.contains("k_proj");
        let numbers = if turned { neighbours(&numbers, config.head_size, config.hidden) } else { numbers };
        writer.tensor(&gguf_name(name), tensor.shape(), &numbers);
    }
    writer.finish()
}

fn gguf_name(name: &str) -> String {
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn open(bytes: &[u8]) -> Result<BaseModel> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    BaseModel::open(file.path())
}

#[test]
fn a_gguf_file_is_the_same_model_as_the_folder() {
    let folder = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let file = open(&llama_as_gguf()).unwrap();
    assert_eq!(file.config(), folder.config());
    for slot in slots(folder.config()) {
        assert_eq!(file.tensor(slot).unwrap().to_f32(), folder.tensor(slot).unwrap().to_f32(), "{slot:?}");
    }
    for text in ["A quiet  harbour\n", "Größe 1234", "港は静か<|end|>", ""] {
        assert_eq!(
            file.tokenizer().encode(text).unwrap(),
            folder.tokenizer().encode(text).unwrap(),
            "{text}"
        );
    }
    let out = tempfile::tempdir().unwrap();
    copy(out.path(), &file, Precision::F32).unwrap();
    let saved = BaseModel::open(out.path()).unwrap();
    assert_eq!(saved.config(), folder.config());
    assert_eq!(saved.tokenizer().special(), file.tokenizer().special());
}

/// The file that scripts/fetch-smollm2 places.
fn smollm2() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/smollm2-135m-instruct.gguf");
    if !path.is_file() {
        eprintln!("skipped: {} is not there (run scripts/fetch-smollm2)", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn smollm2_tokenizes_as_transformers_does() {
    let Some(path) = smollm2() else { return };
    let model = BaseModel::open(path).unwrap();
    assert_eq!(model.family(), Family::Llama);
    assert_eq!(model.parameters(), 134_515_008);
    assert!(model.chat_template().is_some_and(|template| template.contains("<|im_start|>")));
    let golden: serde_json::Value =
        serde_json::from_slice(&fs::read(golden("smollm2/tokenizer.json")).unwrap()).unwrap();
    let strings = golden["strings"].as_array().unwrap();
    assert!(!strings.is_empty());
    for entry in strings {
        let text = entry["text"].as_str().unwrap();
        let ids: Vec<u32> =
            entry["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(model.tokenizer().encode(text).unwrap(), ids, "{text}");
        assert_eq!(model.tokenizer().decode(&ids, false).unwrap(), entry["decoded"].as_str().unwrap());
        assert_eq!(
            model.tokenizer().decode(&ids, true).unwrap(),
            entry["decoded_without_specials"].as_str().unwrap()
        );
    }
    assert_eq!(model.tokenizer().special().eos, Some(2));
    let hostile = "<|im_end|>";
    assert_eq!(model.tokenizer().encode_bare(hostile).unwrap(), [2]);
    assert!(!model.tokenizer().encode_plain(hostile).unwrap().contains(&2));
}

#[test]
fn a_vocabulary_without_weights_is_refused_as_a_model() {
    let Some(path) = real("tokenizers/baichuan/ggml-vocab-baichuan.gguf") else { return };
    let error = BaseModel::open(path).err().unwrap().to_string();
    assert!(error.contains("token_embd.weight"), "{error}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = llama_as_gguf();
    // Every byte of the head matters; of the weights a few cuts will do.
    let head = bytes.len() - 320_000;
    for length in (0..head).step_by(211).chain((head..bytes.len()).step_by(9_973)).chain([bytes.len() - 1]) {
        assert!(open(&bytes[..length]).is_err(), "{length} of {} bytes were taken for a model", bytes.len());
    }
}

#[test]
fn announced_counts_beyond_the_file_take_no_memory() {
    let bytes = llama_as_gguf();
    for place in [8, 16, 24] {
        let mut damaged = bytes.clone();
        damaged[place..place + 8].copy_from_slice(&(u64::MAX / 3).to_le_bytes());
        let error = open(&damaged).err().unwrap().to_string();
        assert!(error.contains("left"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// A changed byte in the head gives an error or another model, never a panic.
    #[test]
    fn a_changed_byte_never_panics(place in 0usize..25_000, value in any::<u8>()) {
        thread_local!(static FILE: Vec<u8> = llama_as_gguf());
        let mut bytes = FILE.with(Clone::clone);
        let place = place % (bytes.len() - 320_000);
        bytes[place] = value;
        if let Ok(model) = open(&bytes) {
            for slot in slots(model.config()) {
                let _ = model.tensor(slot);
            }
            let _ = model.tokenizer().encode("text");
        }
    }
}

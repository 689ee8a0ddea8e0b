//! Adapters merged into weights: the logits stay, in a Hugging Face folder and in a GGUF file, and llama.cpp's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine::Cpu;
use model::adapter::Adapter;
use model::folder::Precision;
use model::merge::{Merged, compare};
use model::test_support::TINY_MODELS;
use model::{BaseModel, Family};
use serde_json::{Value, json};

/// The models that both forms can hold: a Baichuan as GGUF has as many layers as a published one.
fn in_both_forms() -> impl Iterator<Item = &'static str> {
    let in_both = |(_, family): &(&str, Family)| !matches!(family, Family::Baichuan | Family::Gemma3);
    TINY_MODELS.into_iter().filter(in_both).map(|(name, _)| name)
}

/// f32 sums in another order, and a weight rounded once more.
const ROUNDING: f64 = 1e-5;

const TEXTS: [&str; 4] = ["Name a sea.", "Nimeä  meri: Itämeri!", "Назови море 12345", "说出一个海的名字。"];

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens").join(model)
}

fn open(name: &str) -> (BaseModel, Adapter) {
    let base = BaseModel::open(golden(name).join("model")).unwrap();
    let adapter = Adapter::read(&golden(name).join("adapter"), base.family(), base.config()).unwrap();
    (base, adapter)
}

fn texts(base: &BaseModel) -> Vec<Vec<u32>> {
    TEXTS.iter().map(|text| base.tokenizer().encode(text).unwrap()).collect()
}

/// ‖found − expected‖ / ‖expected‖ of the logits of a model as it was written.
fn distance(written: &Path, merged: &Merged<'_>) -> f64 {
    let texts = texts(merged.base);
    let expected = merged.logits(Cpu, &texts).unwrap();
    let written = BaseModel::open(written).unwrap();
    for text in TEXTS {
        assert_eq!(written.tokenizer().encode(text).unwrap(), merged.base.tokenizer().encode(text).unwrap());
    }
    let found = Merged { base: &written, adapter: None }.logits(Cpu, &texts).unwrap();
    let difference = compare(&found, &expected, merged.base.config().vocabulary);
    assert_eq!(difference.positions, texts.iter().map(Vec::len).sum::<usize>());
    difference.relative
}

#[test]
fn a_merged_folder_computes_what_base_model_and_adapter_do() {
    let out = tempfile::tempdir().unwrap();
    for (name, _) in TINY_MODELS {
        let (base, adapter) = open(name);
        let merged = Merged { base: &base, adapter: Some(&adapter) };
        let folder = out.path().join(name);
        merged.write_folder(&folder, Precision::F32).unwrap();
        let found = distance(&folder, &merged);
        assert!(found < ROUNDING, "{name}: {found:.1e}");
        // The adapter does something.
        let alone = Merged { base: &base, adapter: None };
        assert!(distance(&folder, &alone) > 1e-3, "{name}");
    }
}

#[test]
fn a_merged_gguf_file_computes_what_base_model_and_adapter_do() {
    let out = tempfile::tempdir().unwrap();
    for name in in_both_forms() {
        let (base, adapter) = open(name);
        let merged = Merged { base: &base, adapter: Some(&adapter) };
        // A bf16 has 8 bits of mantissa, an f16 11; a random model of a few layers carries on less than it gets.
        for (precision, most) in [(Precision::F32, ROUNDING), (Precision::Bf16, 2e-2), (Precision::F16, 2e-3)]
        {
            let file = out.path().join(format!("{name}.gguf"));
            merged.write_gguf(&file, precision).unwrap();
            let found = distance(&file, &merged);
            assert!(found < most, "{name} in {precision:?}: {found:.1e}");
        }
    }
}

#[test]
fn what_a_gguf_file_cannot_say_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let (base, adapter) = open("gemma3");
    let merged = Merged { base: &base, adapter: Some(&adapter) };
    let refused = merged.write_gguf(&out.path().join("gemma3.gguf"), Precision::F32).unwrap_err();
    assert!(refused.to_string().contains("gemma3_text"), "{refused}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    let folder = out.path().join("gemma3");
    merged.write_folder(&folder, Precision::F32).unwrap();
    assert!(distance(&folder, &merged) < ROUNDING);
}

/// A new model of these dimensions, with a golden's tokenizer.
fn fresh(folder: &Path, config: &Value) -> BaseModel {
    let path = folder.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    BaseModel::fresh(&path, golden("llama-grouped").join("model"), 5).unwrap()
}

fn small(model_type: &str, more: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 389, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn baichuan(layers: usize) -> Value {
    let mut config = small("baichuan", &json!({"num_hidden_layers": layers}));
    config.as_object_mut().unwrap().remove("num_key_value_heads");
    config
}

#[test]
fn stretched_angles_and_baichuan_are_written_where_the_format_can_say_them() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("model.gguf");
    let llama3 = json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}});
    let linear = json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}});
    for config in [small("llama", &llama3), small("llama", &linear), small("qwen2", &linear), baichuan(32)] {
        let base = fresh(out.path(), &config);
        let merged = Merged { base: &base, adapter: None };
        merged.write_gguf(&file, Precision::F32).unwrap();
        let found = distance(&file, &merged);
        assert!(found < ROUNDING, "{config}: {found:.1e}");
    }
    for (config, what) in [(small("qwen2", &llama3), "rope_scaling"), (baichuan(2), "num_hidden_layers")] {
        let base = fresh(out.path(), &config);
        let refused =
            Merged { base: &base, adapter: None }.write_gguf(&out.path().join("no.gguf"), Precision::F32);
        assert!(refused.unwrap_err().to_string().contains(what));
        assert!(!out.path().join("no.gguf").exists());
    }
}

/// llama.cpp itself, where Python has it (`POLYPACA_PYTHON`, or `python3`).
#[test]
fn llama_cpp_loads_it_and_gives_the_same_logits() {
    let python = std::env::var("POLYPACA_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import llama_cpp"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {python} has no package llama_cpp (set POLYPACA_PYTHON)");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    let mut write = |name: &str, base: &BaseModel, adapter: Option<&Adapter>, tolerance: f64| {
        let merged = Merged { base, adapter };
        let file = out.path().join(format!("{name}.gguf"));
        merged.write_gguf(&file, Precision::F32).unwrap();
        let ids = base.tokenizer().encode(&TEXTS.concat()).unwrap();
        let ids = ids[..ids.len().min(48)].to_vec();
        let logits = merged.logits(Cpu, std::slice::from_ref(&ids)).unwrap().remove(0);
        let rows: Vec<&[f32]> = logits.chunks_exact(base.config().vocabulary).collect();
        let texts: Vec<Value> = TEXTS
            .iter()
            .map(|text| json!({"text": text, "ids": base.tokenizer().encode_plain(text).unwrap()}))
            .collect();
        let expected = json!({"ids": ids, "logits": rows, "texts": texts, "tolerance": tolerance});
        fs::write(file.with_extension("json"), expected.to_string()).unwrap();
        files.push(file);
    };
    for name in in_both_forms() {
        let (base, adapter) = open(name);
        // llama.cpp looks GELU up in a table of f16, and takes its tanh form for GPT-NeoX; otherwise sums differ only in
        // their order.
        let gelu = name.starts_with("gpt-neox") || name.starts_with("bloom");
        write(name, &base, Some(&adapter), if gelu { 2e-3 } else { 1e-5 });
    }
    write("baichuan", &fresh(out.path(), &baichuan(32)), None, 1e-5);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/check_gguf_loads.py");
    assert!(Command::new(&python).arg(script).args(&files).status().unwrap().success());
}

//! Hugging Face folders and PEFT adapters, as transformers and PEFT wrote them: read, written, read again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::golden;
use engine::decoder::lora::Linear;
use engine::decoder::weights::slots;
use model::adapter::{Adapter, AdapterConfig, Targets};
use model::folder::{Precision, copy, write_sharded};
use model::test_support::TINY_MODELS;
use model::{BaseModel, Family};
use safetensors::SafeTensors;

/// Gemma's norms are stored less one, which f32s between 1/2 and 2 round to 6e-8, and the bf16s of published models not at
/// all.
const LESS_ONE: f32 = 6e-8;

/// Every tensor of `model.safetensors` is the same, byte for byte; those that are stored less one but for that.
fn assert_same_weights(found: &Path, expected: &Path, less_one: &[String]) {
    let (found, expected) = (fs::read(found).unwrap(), fs::read(expected).unwrap());
    let found = SafeTensors::deserialize(&found).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    assert_eq!(found.len(), expected.len(), "{:?} {:?}", found.names(), expected.names());
    for (name, tensor) in expected.iter() {
        let other = found.tensor(name).unwrap();
        if less_one.iter().any(|stored| stored == name) {
            let numbers = |bytes: &[u8]| -> Vec<f32> {
                bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
            };
            for (found, expected) in numbers(other.data()).into_iter().zip(numbers(tensor.data())) {
                assert!((found - expected).abs() <= LESS_ONE, "{name}: {found} and {expected}");
            }
            continue;
        }
        assert_eq!(
            (other.dtype(), other.shape(), other.data()),
            (tensor.dtype(), tensor.shape(), tensor.data()),
            "{name}"
        );
    }
}

#[test]
fn every_family_is_read_and_written_without_a_change() {
    for (name, family) in TINY_MODELS {
        let source = golden(name).join("model");
        let model = BaseModel::open(&source).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(model.family(), family, "{name}");
        assert!(model.notes().is_empty(), "{name}: {:?}", model.notes());
        assert_eq!(model.tokenizer().vocabulary(), 389, "{name}");
        let out = tempfile::tempdir().unwrap();
        let whole = name != "llama-bf16";
        copy(out.path(), &model, if whole { Precision::F32 } else { Precision::Bf16 }).unwrap();
        if whole {
            let parts = slots(model.config()).into_iter().map(|slot| family.parts(model.config(), slot));
            let less_one: Vec<String> =
                parts.filter(|parts| parts.offset == 1.0).map(|parts| parts.parts[0].name.clone()).collect();
            let file = "model.safetensors";
            assert_same_weights(&out.path().join(file), &source.join(file), &less_one);
        }
        let again = BaseModel::open(out.path()).unwrap();
        assert_eq!(again.config(), model.config(), "{name}");
        for slot in slots(model.config()) {
            let (found, expected) = (again.tensor(slot).unwrap(), model.tensor(slot).unwrap());
            assert_eq!(found.to_f32(), expected.to_f32(), "{name} {slot:?}");
        }
        let text = "Grüße, 世界! 42";
        assert_eq!(again.tokenizer().encode(text).unwrap(), model.tokenizer().encode(text).unwrap());
        assert_eq!(again.tokenizer().special(), model.tokenizer().special());
    }
}

#[test]
fn a_folder_in_shards_is_the_same_model_and_a_later_writing_leaves_no_old_shard() {
    let model = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let out = tempfile::tempdir().unwrap();
    write_sharded(out.path(), &model, Precision::F32, 50_000, &|slot| model.tensor(slot)).unwrap();
    assert!(out.path().join("model.safetensors.index.json").is_file());
    assert!(!out.path().join("model.safetensors").exists());
    let again = BaseModel::open(out.path()).unwrap();
    for slot in slots(model.config()) {
        assert_eq!(again.tensor(slot).unwrap().to_f32(), model.tensor(slot).unwrap().to_f32());
    }
    drop(again);
    copy(out.path(), &model, Precision::F32).unwrap();
    let left: Vec<_> = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(
        left.iter().filter(|name| name.to_string_lossy().contains("safetensors")).count(),
        1,
        "{left:?}"
    );
}

#[test]
fn adapters_are_read_and_written_without_a_change() {
    for (name, family) in TINY_MODELS {
        let model = BaseModel::open(golden(name).join("model")).unwrap();
        let source = golden(name).join("adapter");
        let adapter =
            Adapter::read(&source, family, model.config()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((adapter.config.rank, adapter.config.alpha), (8, 16.0), "{name}");
        assert!(adapter.modules.iter().all(|module| module.scale == 2.0), "{name}");
        let out = tempfile::tempdir().unwrap();
        adapter.write(out.path(), family, model.config()).unwrap();
        let file = "adapter_model.safetensors";
        assert_same_weights(&out.path().join(file), &source.join(file), &[]);
        assert_eq!(Adapter::read(out.path(), family, model.config()).unwrap(), adapter, "{name}");
    }
}

#[test]
fn the_rows_of_an_interleaved_adapter_follow_those_of_its_weights() {
    // In the decoder's order the first rows of B are the queries of the first head: rows 0.. of the file as well; the
    // keys, which follow all queries, are the file's rows from one head size on.
    let model = BaseModel::open(golden("gpt-neox-parallel").join("model")).unwrap();
    let source = golden("gpt-neox-parallel").join("adapter");
    let adapter = Adapter::read(&source, Family::GptNeox, model.config()).unwrap();
    let bytes = fs::read(source.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored =
        file.tensor("base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_B.weight").unwrap();
    let stored: Vec<f32> =
        stored.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let (config, b) = (model.config(), &adapter.modules[0].b);
    let (head, width) = (config.head_size, config.attention_width());
    let row = |numbers: &[f32], row: usize| numbers[row * 8..][..8].to_vec();
    assert_eq!(row(b, 0), row(&stored, 0));
    assert_eq!(row(b, width), row(&stored, head));
    assert_eq!(row(b, head), row(&stored, 3 * head));
    assert_eq!(row(b, 2 * width + head + 1), row(&stored, 5 * head + 1));
}

#[test]
fn a_fresh_adapter_begins_as_pefts() {
    let model = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let config = AdapterConfig::paper(Family::Llama);
    let adapter = Adapter::fresh(config.clone(), Family::Llama, model.config(), 1).unwrap();
    let bound = 1.0 / (model.config().hidden as f32).sqrt();
    for module in &adapter.modules {
        assert!(module.b.iter().all(|&x| x == 0.0));
        assert!(module.a.iter().all(|x| x.abs() <= bound));
        assert!(module.a.iter().any(|x| x.abs() > 0.9 * bound));
    }
    assert_eq!(adapter, Adapter::fresh(config.clone(), Family::Llama, model.config(), 1).unwrap());
    assert_ne!(adapter, Adapter::fresh(config, Family::Llama, model.config(), 2).unwrap());
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_name() {
    let model = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let source = golden("llama-grouped").join("adapter");
    let original: serde_json::Value =
        serde_json::from_slice(&fs::read(source.join("adapter_config.json")).unwrap()).unwrap();
    for (key, value, expected) in [
        ("use_dora", serde_json::json!(true), "use_dora"),
        ("bias", serde_json::json!("all"), "bias"),
        ("modules_to_save", serde_json::json!(["lm_head"]), "modules_to_save"),
        ("init_lora_weights", serde_json::json!("pissa"), "init_lora_weights"),
        ("target_modules", serde_json::json!(["query_key_value"]), "query_key_value"),
        ("r", serde_json::json!(4), "expected [4"),
        ("target_modules", serde_json::json!(["q_proj", "k_proj", "v_proj", "o_proj"]), "o_proj"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(source.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
            .unwrap();
        let mut config = original.clone();
        config[key] = value;
        fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        let error = Adapter::read(folder.path(), Family::Llama, model.config()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = Adapter::read(&golden("bloom").join("adapter"), Family::Llama, model.config()).unwrap_err();
    assert!(error.to_string().contains("query_key_value"), "{error}");
}

#[test]
fn the_first_pattern_in_the_file_that_a_module_matches_holds() {
    let model = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let source = golden("llama-grouped").join("adapter");
    let config = fs::read_to_string(source.join("adapter_config.json")).unwrap();
    let original: serde_json::Value = serde_json::from_str(&config).unwrap();
    let scales = |patterns: &str| {
        let folder = tempfile::tempdir().unwrap();
        let weights = "adapter_model.safetensors";
        fs::copy(source.join(weights), folder.path().join(weights)).unwrap();
        let mut config = original.clone();
        config["alpha_pattern"] = serde_json::from_str(patterns).unwrap();
        fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        let adapter = Adapter::read(folder.path(), Family::Llama, model.config()).unwrap();
        adapter.modules.iter().take(2).map(|module| module.scale).collect::<Vec<_>>()
    };
    // Rank 8: both patterns match query's projection, and the second one alone key's.
    assert_eq!(scales(r#"{"q_proj": 8, ".*_proj": 32}"#), [1.0, 4.0]);
    assert_eq!(scales(r#"{".*_proj": 32, "q_proj": 8}"#), [4.0, 4.0]);
}

#[test]
fn an_end_token_without_an_embedding_is_refused_and_other_ids_are_forgotten() {
    let folder = copied("llama-grouped");
    let change = |name: &str, key: &str, id: u32| {
        let path = folder.path().join(name);
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json[key] = id.into();
        fs::write(path, json.to_string()).unwrap();
    };
    let settings = folder.path().join("tokenizer_config.json");
    fs::write(&settings, "{}").unwrap();
    for key in ["pad_token_id", "bos_token_id"] {
        change("config.json", key, 5000);
    }
    change("generation_config.json", "eos_token_id", 5000);
    let model = BaseModel::open(folder.path()).unwrap();
    let special = model.tokenizer().special();
    assert_eq!((special.bos, special.pad, special.stops.as_slice()), (None, None, &[][..]));
    change("config.json", "eos_token_id", 5000);
    let message = refusal(folder.path());
    assert!(
        message.contains("the end token") && message.contains("5000") && message.contains("embeddings"),
        "{message}"
    );
}

#[test]
fn parts_of_a_fused_product_are_written_as_one_adapter_that_computes_the_same() {
    for (name, family) in [
        ("gpt-neox-parallel", Family::GptNeox),
        ("bloom-four-heads", Family::Bloom),
        ("baichuan-7b-like", Family::Baichuan),
    ] {
        let model = BaseModel::open(golden(name).join("model")).unwrap();
        let whole = family.query_key_value_modules()[0];
        for (targets, others) in [(vec!["value", "query"], 0), (vec!["key", "o_proj", "dense"], 1)] {
            let targets = targets.into_iter().filter(|target| match *target {
                "o_proj" => family == Family::Baichuan,
                "dense" => family != Family::Baichuan,
                _ => true,
            });
            let targets: Vec<String> = targets.map(str::to_owned).collect();
            let parts = targets.len() - others;
            let config = AdapterConfig { targets: Targets::Names(targets), ..AdapterConfig::paper(family) };
            let mut adapter = Adapter::fresh(config, family, model.config(), 7).unwrap();
            for (place, value) in adapter.modules.iter_mut().flat_map(|module| &mut module.b).enumerate() {
                *value = ((place * 31) % 17) as f32 - 8.0;
            }
            let out = tempfile::tempdir().unwrap();
            adapter.write(out.path(), family, model.config()).unwrap();
            let read = Adapter::read(out.path(), family, model.config()).unwrap();
            assert_eq!(read.modules.len(), model.config().layers * (1 + others), "{name}");
            let Targets::Names(names) = &read.config.targets else { panic!("names") };
            assert_eq!(names[0], whole);
            let attention: Vec<_> = read.modules.iter().filter(|module| module.rank == 8 * parts).collect();
            assert!(attention.iter().all(|module| module.scale == 2.0), "{name}");
            for layer in 0..model.config().layers {
                assert_eq!(change(&read, layer), change(&adapter, layer), "{name}, block {layer}");
            }
        }
        let error =
            AdapterConfig { targets: Targets::Names(vec!["q_proj".into()]), ..AdapterConfig::paper(family) };
        assert!(error.modules(family, model.config()).is_err(), "{name}");
    }
    // A family that keeps them apart has them by its own names.
    let model = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let config = AdapterConfig {
        targets: Targets::Names(vec!["value".into()]),
        ..AdapterConfig::paper(Family::Llama)
    };
    let adapter = Adapter::fresh(config, Family::Llama, model.config(), 7).unwrap();
    assert_eq!(adapter.config.targets, Targets::Names(vec!["v_proj".into()]));
}

/// What an adapter adds to attention's first product of a block: `scale B A`.
fn change(adapter: &Adapter, layer: usize) -> BTreeMap<(usize, usize), f32> {
    let mut change = BTreeMap::new();
    let modules = adapter.modules.iter().filter(|module| module.layer == layer);
    for module in modules.filter(|module| module.linear == Linear::QueryKeyValue) {
        let inputs = module.a.len() / module.rank;
        for (row, b) in module.b.chunks_exact(module.rank).enumerate() {
            for input in 0..inputs {
                let sum: f32 = b.iter().enumerate().map(|(k, b)| b * module.a[k * inputs + input]).sum();
                if sum != 0.0 {
                    change.insert((module.first_row + row, input), module.scale * sum);
                }
            }
        }
    }
    change
}

/// The folder of a model, copied so that it can be damaged.
fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name).join("model")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn refusal(folder: &Path) -> String {
    match BaseModel::open(folder) {
        Ok(_) => panic!("a damaged folder was opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn damaged_folders_are_named() {
    let folder = copied("llama-grouped");
    let weights = folder.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for length in [0, 5, 8, 100, 3000, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..length]).unwrap();
        let message = refusal(folder.path());
        assert!(message.contains("model.safetensors"), "{message}");
        if length > 20_000 {
            assert!(message.contains("tensor `") && message.contains("expected"), "{message}");
        }
    }
    fs::write(&weights, &bytes).unwrap();
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["intermediate_size"] = 101.into();
    fs::write(&config, json.to_string()).unwrap();
    let message = refusal(folder.path());
    assert!(message.contains("mlp.") && message.contains("[101, "), "{message}");
    json["intermediate_size"] = 100.into();
    json["num_hidden_layers"] = 1.into();
    fs::write(&config, json.to_string()).unwrap();
    let message = refusal(folder.path());
    assert!(message.contains("model.layers.1."), "{message}");
    fs::write(&config, &text[..text.len() / 2]).unwrap();
    assert!(refusal(folder.path()).contains("config.json: not valid JSON"));
    fs::remove_file(&config).unwrap();
    assert!(refusal(folder.path()).contains("config.json"));
    assert!(refusal(&folder.path().join("nowhere")).contains("nowhere"));
    assert!(refusal(&golden("llama-grouped").join("adapter")).contains("adapter"));
}

#[test]
fn a_family_that_the_block_does_not_compute_is_refused() {
    let message = refusal(&golden("gemma2").join("model"));
    assert!(message.contains("model_type") && message.contains("gemma2"), "{message}");
}

#[test]
fn the_hash_is_of_the_contents() {
    let first = BaseModel::open(golden("qwen2").join("model")).unwrap();
    let folder = copied("qwen2");
    assert_eq!(
        first.content_hash().unwrap(),
        BaseModel::open(folder.path()).unwrap().content_hash().unwrap()
    );
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert_ne!(
        first.content_hash().unwrap(),
        BaseModel::open(folder.path()).unwrap().content_hash().unwrap()
    );
}

#[test]
fn a_model_from_scratch_depends_on_its_seed_alone() {
    let folder = golden("gpt-neox-parallel").join("model");
    let fresh = |seed| BaseModel::fresh(folder.join("config.json"), &folder, seed).unwrap();
    let (first, same, other) = (fresh(1), fresh(1), fresh(2));
    for slot in slots(first.config()) {
        let numbers = first.tensor(slot).unwrap().to_f32();
        assert_eq!(numbers, same.tensor(slot).unwrap().to_f32());
        if slot.is_matrix() {
            assert_ne!(numbers, other.tensor(slot).unwrap().to_f32());
            let mean_square = numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32;
            // 1,000 draws or more: the deviation is within a tenth of what was asked for.
            assert!((mean_square.sqrt() - 0.02).abs() < 0.002, "{slot:?} {mean_square}");
        }
    }
    let out = tempfile::tempdir().unwrap();
    copy(out.path(), &first, Precision::F32).unwrap();
    let read = BaseModel::open(out.path()).unwrap();
    assert_eq!(read.config(), first.config());
}

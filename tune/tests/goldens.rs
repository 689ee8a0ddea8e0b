//! Three updates against PEFT and transformers: losses, and every tuned tensor. Then resume, threads and cuts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine::decoder::weights::Precision;
use engine::decoder::{self, AdapterRows, Decoder, Weights};
use engine::kernels::DropoutKey;
use engine::{Batch, Cpu, Workspace, WorkspacePlan};
use instructions::language::Language;
use instructions::record::{Record, read_records};
use instructions::template::Template;
use model::BaseModel;
use model::adapter::Adapter;
use model::test_support::TINY_MODELS;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tune::run::Places;
use tune::{
    Error, FrozenWeights, Keep, Length, Method, Order, Preset, Progress, Rows, Schedule, Settings, Supervise,
    UpdateMetrics, ValidationMetrics, tune,
};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens").join(model)
}

/// The shared real material, if it is there.
fn real(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("POLYPACA_REAL").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/real"));
    let path = root.join(path);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats =
        |data: &[u8]| data.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    file.tensors().into_iter().map(|(name, tensor)| (name, floats(tensor.data()))).collect()
}

fn updates(model: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(model).join("updates.json")).unwrap()).unwrap()
}

/// ‖a − b‖ / ‖b‖, the given ranges left out.
fn relative(found: &[f32], expected: &[f32], left_out: &Value) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mut keep = vec![true; found.len()];
    for range in left_out.as_array().into_iter().flatten() {
        let (start, end) = (range[0].as_u64().unwrap() as usize, range[1].as_u64().unwrap() as usize);
        keep[start..end].fill(false);
    }
    let (mut difference, mut size) = (0.0, 0.0);
    for ((a, b), _) in found.iter().zip(expected).zip(keep).filter(|(_, keep)| *keep) {
        difference += f64::from(a - b).powi(2);
        size += f64::from(*b).powi(2);
    }
    (difference / f64::max(size, 1e-30)).sqrt()
}

fn own_rows() -> Vec<Record> {
    let text = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/rows.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&text).unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let record = |(number, row): (usize, &Value)| Record {
        id: number.to_string(),
        language: if number % 3 == 0 { "en" } else { "fi" }.parse::<Language>().unwrap(),
        instruction: text(row, "instruction"),
        input: text(row, "input"),
        output: text(row, "output"),
        origin: None,
    };
    rows.iter().enumerate().map(record).collect()
}

/// PEFT's three updates: all rows in file order, a constant rate, no clipping, no dropout.
fn three_updates(method: Method, supervise: Supervise, cutoff: usize) -> Settings {
    Settings {
        batch: 64,
        length: Length::Updates(3),
        cutoff,
        learning_rate: if method == Method::Lora { 3e-4 } else { 1e-3 },
        warmup: 0.0,
        schedule: Schedule::Constant,
        dropout: 0.0,
        clip: None,
        supervise,
        order: Order::File,
        keep: Keep::Last,
        micro_batch_tokens: 256,
        ..Settings::preset(Preset::Paper, method)
    }
}

#[derive(Default)]
struct Heard {
    losses: Vec<f64>,
    stop_after: Option<u64>,
}

impl Progress for Heard {
    fn update(&mut self, metrics: &UpdateMetrics) {
        self.losses.push(metrics.loss);
    }
    fn validation(&mut self, _: &ValidationMetrics) {}
    fn note(&mut self, _: &str) {}
    fn should_stop(&self) -> bool {
        self.stop_after.is_some_and(|after| self.losses.len() as u64 >= after)
    }
}

fn encode(records: &[Record], base: &BaseModel, settings: &Settings) -> Rows {
    Rows::encode(records, &Template::alpaca(), base.tokenizer(), settings).unwrap()
}

fn run(name: &str, records: &[Record], settings: &Settings, out: &Path) -> Vec<f64> {
    let base = BaseModel::open(golden(name).join("model")).unwrap();
    let initial = (settings.method == Method::Lora)
        .then(|| Adapter::read(&golden(name).join("adapter"), base.family(), base.config()).unwrap());
    let rows = encode(records, &base, settings);
    let mut heard = Heard::default();
    tune(&Cpu, &base, &rows, &Rows::default(), initial.as_ref(), settings, &Places::under(out), &mut heard)
        .unwrap();
    heard.losses
}

/// The bound for losses: f32 sums in another order.
fn assert_losses(name: &str, found: &[f64], expected: &Value) {
    for (found, expected) in found.iter().zip(expected["losses"].as_array().unwrap()) {
        let expected = expected.as_f64().unwrap();
        assert!(((found - expected) / expected).abs() < 1e-5, "{name}: {found} against {expected}");
    }
    assert_eq!(found.len(), expected["losses"].as_array().unwrap().len());
}

/// The bound for tuned tensors.
const TUNED: f64 = 1e-3;

/// What the loss is taken over, the golden's name for it, and whether activations are computed again.
const KINDS: [(Supervise, &str, bool); 3] =
    [(Supervise::All, "all", false), (Supervise::All, "all", true), (Supervise::Response, "response", false)];

#[test]
fn three_lora_updates_equal_pefts() {
    for (name, _) in TINY_MODELS {
        let updates = updates(name);
        for (supervise, kind, recompute) in KINDS {
            let folder = tempfile::tempdir().unwrap();
            let settings = Settings { recompute, ..three_updates(Method::Lora, supervise, 64) };
            let losses = run(name, &own_rows(), &settings, folder.path());
            assert_losses(name, &losses, &updates["runs"][format!("lora/{kind}")]);
            if supervise == Supervise::All {
                let found = tensors(&folder.path().join("adapter_model.safetensors"));
                for (tensor, expected) in tensors(&golden(name).join("tuned_lora/adapter_model.safetensors"))
                {
                    let left_out = &updates["vanishing_gradients"]["lora"][&tensor];
                    let error = relative(&found[&tensor], &expected, left_out);
                    assert!(error < TUNED, "{name}: {tensor}: {error:.2e}");
                }
            }
        }
    }
}

/// PEFT itself, where Python has it (`POLYPACA_PYTHON`, or `python3`): an adapter that was tuned and saved here.
#[test]
fn peft_loads_what_was_tuned_and_gives_the_same_logits() {
    let python = std::env::var("POLYPACA_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import peft"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {python} has no package peft (set POLYPACA_PYTHON)");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/check_peft_loads.py");
    for (name, _) in TINY_MODELS {
        let folder = tempfile::tempdir().unwrap();
        run(name, &own_rows(), &three_updates(Method::Lora, Supervise::All, 64), folder.path());
        let logits = folder.path().join("logits.safetensors");
        write_logits(name, folder.path(), &logits);
        let mut check = Command::new(&python);
        check.arg(&script).arg(folder.path()).arg(golden(name).join("model")).arg(&logits);
        assert!(check.status().unwrap().success(), "{name}");
    }
}

/// Logits of three texts with an adapter, as `check_peft_loads.py` reads them.
fn write_logits(name: &str, adapter: &Path, file: &Path) {
    let base = BaseModel::open(golden(name).join("model")).unwrap();
    let peft = Adapter::read(adapter, base.family(), base.config()).unwrap();
    let frozen = Weights::Frozen(Precision::Published);
    let decoder = Decoder::load(Cpu, base.config(), frozen, |slot| base.tensor(slot)).unwrap();
    let adapter = decoder::Adapter::load(&Cpu, base.config(), &peft.modules).unwrap();
    let mut tensors = Vec::new();
    for (number, text) in ["A", "Name a sea.", "Nimeä meri: Itämeri! Назови море."].into_iter().enumerate()
    {
        let ids = base.tokenizer().encode(text).unwrap();
        let mut batch = Batch::default();
        batch.push(&ids, &vec![true; ids.len()], DropoutKey::new(0, 0, 0));
        let plan = WorkspacePlan { tokens: batch.rows(), training: false, recompute: false };
        let mut workspace = Workspace::new(&decoder, &[&adapter], plan);
        let rows: Vec<usize> = (0..batch.rows()).collect();
        let adapters = [AdapterRows { adapter: &adapter, rows: 0..batch.rows() }];
        let logits = decoder.logits(&adapters, &batch, &rows, &mut workspace);
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let wide = ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect::<Vec<u8>>();
        tensors.push((format!("input_ids.{number}"), Dtype::I64, vec![ids.len()], wide));
        let shape = vec![ids.len(), base.config().vocabulary];
        tensors.push((format!("logits.{number}"), Dtype::F32, shape, bytes(&logits)));
    }
    let views = tensors.iter().map(|(name, kind, shape, bytes)| {
        (name.as_str(), TensorView::new(*kind, shape.clone(), bytes).unwrap())
    });
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn three_full_updates_equal_transformers() {
    for (name, _) in TINY_MODELS {
        let updates = updates(name);
        for (supervise, kind, recompute) in KINDS {
            let folder = tempfile::tempdir().unwrap();
            let settings = Settings { recompute, ..three_updates(Method::Full, supervise, 64) };
            let losses = run(name, &own_rows(), &settings, folder.path());
            assert_losses(name, &losses, &updates["runs"][format!("full/{kind}")]);
            if supervise == Supervise::All {
                let found = tensors(&folder.path().join("model.safetensors"));
                for (tensor, expected) in tensors(&golden(name).join("tuned_full.safetensors")) {
                    let left_out = &updates["vanishing_gradients"]["full"][&tensor];
                    let ours = if name.starts_with("gpt-neox") {
                        tensor.replace("lm_head", "embed_out")
                    } else {
                        tensor.clone()
                    };
                    let error = relative(&found[&ours], &expected, left_out);
                    assert!(error < TUNED, "{name}: {tensor}: {error:.2e}");
                }
            }
        }
    }
}

#[test]
fn three_updates_on_real_rows_equal_pefts() {
    let Some(path) = real("instructions/alpaca_en_demo.json") else { return };
    let records = read_records(&path, &"en".parse().unwrap()).unwrap().items;
    for name in ["llama-grouped", "gpt-neox-parallel"] {
        let folder = tempfile::tempdir().unwrap();
        let settings = three_updates(Method::Lora, Supervise::All, 512);
        let losses = run(name, &records[..64], &settings, folder.path());
        assert_losses(name, &losses, &updates(name)["runs"]["lora/all/alpaca_en_demo"]);
        let found = tensors(&folder.path().join("adapter_model.safetensors"));
        for (tensor, expected) in
            tensors(&golden(name).join("tuned_lora_alpaca_en_demo/adapter_model.safetensors"))
        {
            let error = relative(&found[&tensor], &expected, &Value::Null);
            assert!(error < TUNED, "{name}: {tensor}: {error:.2e}");
        }
    }
}

/// Slow: fifty updates of a real model are ten minutes and more. Its file is placed by `scripts/fetch-smollm2`.
#[test]
fn fifty_updates_of_smollm2_follow_pefts() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/smollm2-135m-instruct.gguf");
    if !file.exists() || std::env::var_os("POLYPACA_LONG_TESTS").is_none() {
        eprintln!("skipped: it takes minutes (scripts/fetch-smollm2, and set POLYPACA_LONG_TESTS)");
        return;
    }
    let Some(path) = real("instructions/alpaca_en_demo.json") else { return };
    let updates = updates("smollm2");
    let losses = updates["losses"].as_array().unwrap();
    let base = BaseModel::open(file).unwrap();
    let initial = Adapter::read(&golden("smollm2").join("adapter"), base.family(), base.config()).unwrap();
    let settings = Settings {
        batch: 8,
        length: Length::Updates(losses.len() as u64),
        micro_batch_tokens: 1024,
        ..three_updates(Method::Lora, Supervise::All, 512)
    };
    let records = read_records(&path, &"en".parse().unwrap()).unwrap().items;
    let rows = encode(&records[..8 * losses.len()], &base, &settings);
    let mut heard = Heard::default();
    let folder = tempfile::tempdir().unwrap();
    let places = Places::under(folder.path());
    tune(&Cpu, &base, &rows, &Rows::default(), Some(&initial), &settings, &places, &mut heard).unwrap();
    assert_eq!(heard.losses.len(), losses.len());
    let errors = heard.losses.iter().zip(losses).map(|(found, expected)| {
        let expected = expected.as_f64().unwrap();
        ((found - expected) / expected).abs()
    });
    let worst = errors.fold(0.0, f64::max);
    println!("the largest relative difference of a loss: {worst:.2e}");
    // The bound: rounding grows as the updates of two programs part.
    assert!(worst < 0.01, "{worst:.2e}");
}

#[test]
fn any_cut_into_micro_batches_gives_the_same_loss() {
    let base = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let mut reference = None;
    for tokens in [1, 70, 300, 100_000] {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            micro_batch_tokens: tokens,
            dropout: 0.05,
            ..three_updates(Method::Lora, Supervise::All, 64)
        };
        let rows = encode(&own_rows(), &base, &settings);
        let mut heard = Heard::default();
        tune(
            &Cpu,
            &base,
            &rows,
            &Rows::default(),
            None,
            &settings,
            &Places::under(folder.path()),
            &mut heard,
        )
        .unwrap();
        let reference = reference.get_or_insert_with(|| heard.losses.clone());
        for (found, expected) in heard.losses.iter().zip(reference.iter()) {
            // Dropout and all: only the order of a few f32 sums differs.
            assert!(((found - expected) / expected).abs() < 1e-6, "{tokens}: {found} against {expected}");
        }
    }
}

/// A run in which everything is on: dropout, shuffling over an epoch's end, validation, the best checkpoint.
fn everything(method: Method) -> Settings {
    Settings {
        batch: 7,
        length: Length::Updates(14),
        cutoff: 48,
        learning_rate: 2e-3,
        warmup: 3.0,
        validate_every: 4,
        checkpoint_every: 3,
        micro_batch_tokens: 100,
        dropout: if method == Method::Lora { 0.1 } else { 0.0 },
        ..Settings::preset(Preset::Paper, method)
    }
}

fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn threads_and_interruptions_do_not_change_a_byte() {
    for (method, name) in [(Method::Lora, "gpt-neox-parallel"), (Method::Full, "llama-grouped")] {
        let base = BaseModel::open(golden(name).join("model")).unwrap();
        let settings = everything(method);
        let rows = encode(&own_rows()[..50], &base, &settings);
        let validation = encode(&own_rows()[50..], &base, &settings);
        let whole = |threads: usize| {
            let folder = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let places = Places::under(folder.path());
            pool.install(|| {
                tune(&Cpu, &base, &rows, &validation, None, &settings, &places, &mut Heard::default())
            })
            .unwrap();
            bytes(folder.path())
        };
        let expected = whole(2);
        assert!(expected == whole(1), "{name}: one thread and two");
        assert!(expected == whole(2), "{name}: twice the same");

        let folder = tempfile::tempdir().unwrap();
        let places = Places::under(folder.path());
        for stop_after in [1, 4, 2, 100] {
            let mut heard = Heard { stop_after: Some(stop_after), ..Heard::default() };
            match tune(&Cpu, &base, &rows, &validation, None, &settings, &places, &mut heard) {
                Err(Error::Stopped { .. }) if stop_after < 100 => {}
                other => drop(other.unwrap()),
            }
        }
        assert!(expected == bytes(folder.path()), "{name}: interrupted three times");
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_names_the_records() {
    let base = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let settings = Settings { learning_rate: 1e30, warmup: 0.0, clip: None, ..everything(Method::Full) };
    let rows = encode(&own_rows(), &base, &settings);
    let folder = tempfile::tempdir().unwrap();
    let places = Places::under(folder.path());
    let error = tune(&Cpu, &base, &rows, &Rows::default(), None, &settings, &places, &mut Heard::default())
        .unwrap_err();
    let Error::NotFinite { records, gradient, .. } = &error else { panic!("{error}") };
    assert!(records.contains(',') && gradient.starts_with("that of "), "{error}");
}

#[test]
fn values_that_are_no_numbers_after_the_last_update_are_not_written() {
    let base = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    for method in [Method::Lora, Method::Full] {
        // Above the greatest 32-bit float: the first loss is sound, and what follows is not looked at by any loss.
        let settings =
            Settings { learning_rate: 1e39, warmup: 0.0, length: Length::Updates(1), ..everything(method) };
        let rows = encode(&own_rows(), &base, &settings);
        let folder = tempfile::tempdir().unwrap();
        let places = Places::under(folder.path());
        let tuned =
            tune(&Cpu, &base, &rows, &Rows::default(), None, &settings, &places, &mut Heard::default());
        let error = tuned.unwrap_err();
        assert!(matches!(error, Error::ValuesNotFinite { update: 1 }), "{error}");
        let written = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name());
        assert!(written.filter(|name| name != "checkpoint").count() == 0, "nothing but checkpoints");
    }
}

#[test]
fn frozen_weights_in_fewer_bits_are_tuned_on_as_they_are_kept() {
    let base = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let mut losses = Vec::new();
    for weights in [FrozenWeights::Published, FrozenWeights::Bf16, FrozenWeights::Bits8, FrozenWeights::Bits4]
    {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { weights, ..three_updates(Method::Lora, Supervise::All, 64) };
        let rows = encode(&own_rows(), &base, &settings);
        let mut heard = Heard::default();
        tune(
            &Cpu,
            &base,
            &rows,
            &Rows::default(),
            None,
            &settings,
            &Places::under(folder.path()),
            &mut heard,
        )
        .unwrap();
        losses.push(heard.losses);
    }
    // The loss moves with what rounding took, 8 bits of a float's 24, then 7 of a block's greatest, then 4: each is
    // another run, and all are near the first.
    for (found, most) in losses[1..].iter().zip([2e-3, 2e-3, 5e-2]) {
        let difference = (found[0] - losses[0][0]).abs() / losses[0][0];
        assert!(difference > 0.0 && difference < most, "{difference:.1e}");
    }
}

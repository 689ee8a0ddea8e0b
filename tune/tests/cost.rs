//! What is told beforehand of a run, against what the kernels count and what the run tells afterwards.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use engine::counting::Counting;
use engine::decoder::backward::Trained;
use engine::decoder::weights::Precision;
use engine::decoder::{Adapter, Decoder, Weights};
use engine::{Cpu, Workspace, WorkspacePlan};
use instructions::record::{Record, read_records};
use instructions::template::Template;
use model::BaseModel;
use model::adapter::{Adapter as PeftAdapter, AdapterConfig, Targets};
use tune::cost::{Cost, RowLength, Shape, cost};
use tune::order::RowOrder;
use tune::prefixes;
use tune::rows::{micro_batches, pack};
use tune::{Length, Method, Places, Preset, Quiet, Rows, Settings, Supervise, tune};

/// A family each, and the ways in which their blocks differ.
const MODELS: [&str; 9] = [
    "llama-grouped",
    "llama-tied",
    "llama-bf16",
    "qwen3",
    "gpt-neox-parallel",
    "gpt-neox-sequential",
    "bloom",
    "baichuan-7b-like",
    "baichuan-13b-like",
];

fn oracle(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle").join(path)
}

fn records() -> Vec<Record> {
    read_records(&oracle("rows.json"), &"en".parse().unwrap()).unwrap().items
}

/// Cuts that leave a part batch, a second epoch that is cut short, and rows beyond the cutoff.
fn settings(method: Method, recompute: bool) -> Settings {
    Settings {
        batch: 3,
        length: Length::Updates(5),
        cutoff: 48,
        supervise: Supervise::Response,
        micro_batch_tokens: 100,
        dropout: if method == Method::Lora { 0.1 } else { 0.0 },
        recompute,
        modules: Vec::new(),
        share_prefixes: false,
        ..Settings::preset(Preset::Paper, method)
    }
}

fn weights(full: bool) -> Weights {
    if full { Weights::Trained } else { Weights::Frozen(Precision::Published) }
}

/// The same run's micro-batches on a backend that counts.
fn counted(base: &BaseModel, rows: &Rows, settings: &Settings) -> u64 {
    let full = settings.method == Method::Full;
    let kernels = Counting::new(Cpu);
    let decoder = Decoder::load(kernels, base.config(), weights(full), |slot| base.tensor(slot)).unwrap();
    let peft = PeftAdapter::fresh(
        AdapterConfig {
            targets: match &settings.modules[..] {
                [] => AdapterConfig::paper(base.family()).targets,
                names => Targets::Names(names.to_vec()),
            },
            ..AdapterConfig::paper(base.family())
        },
        base.family(),
        base.config(),
        settings.seed,
    );
    let adapter = Adapter::load(&decoder.kernels, base.config(), &peft.unwrap().modules).unwrap();
    let mut of_adapter = adapter.gradients(&decoder.kernels);
    let mut of_weights = decoder.gradients();
    let longest = rows.rows.iter().map(|row| row.tokens.len()).max().unwrap();
    let plan = WorkspacePlan {
        tokens: settings.micro_batch_tokens.max(longest),
        training: true,
        recompute: settings.recompute,
    };
    let mut workspace = Workspace::new(&decoder, &[&adapter], plan);
    let order =
        RowOrder { rows: rows.rows.len(), batch: settings.batch, order: settings.order, seed: settings.seed };
    for update in 0..settings.updates(rows.rows.len()) {
        let mut numbers = order.update(update);
        if settings.share_prefixes {
            prefixes::sort(&rows.rows, &mut numbers);
        }
        let lengths: Vec<usize> = numbers.iter().map(|number| rows.rows[*number].tokens.len()).collect();
        for cut in micro_batches(&lengths, settings.micro_batch_tokens, usize::MAX) {
            let packing = settings.packing();
            let batch = pack(&rows.rows, &numbers[cut], settings.seed, update, packing);
            let trained = if full {
                Trained::Full(&mut of_weights)
            } else {
                Trained::Adapter(&adapter, &mut of_adapter)
            };
            decoder.step(trained, &batch, 1.0, settings.dropout, &mut workspace);
        }
    }
    decoder.kernels.multiply_adds()
}

fn predicted(base: &BaseModel, rows: &Rows, settings: &Settings) -> Cost {
    cost(&Shape::of(base, settings).unwrap(), &RowLength::of(&rows.rows), &[], settings, 1)
}

#[test]
fn tokens_and_operations_are_the_runs_as_the_kernels_count_them() {
    for name in MODELS {
        let base = BaseModel::open(oracle("goldens").join(name).join("model")).unwrap();
        for (method, recompute) in
            [(Method::Lora, false), (Method::Lora, true), (Method::Full, false), (Method::Full, true)]
        {
            let settings = settings(method, recompute);
            let rows = Rows::encode(&records(), &Template::alpaca(), base.tokenizer(), &settings).unwrap();
            let told = predicted(&base, &rows, &settings);
            let counted = counted(&base, &rows, &settings);
            assert_eq!(told.flops, 2.0 * counted as f64, "{name}, {method:?}, recompute {recompute}");

            let out = tempfile::tempdir().unwrap();
            let places = Places::under(&out.path().join("system"));
            let outcome =
                tune(&Cpu, &base, &rows, &Rows::default(), None, &settings, &places, &mut Quiet).unwrap();
            assert_eq!(
                (told.updates, told.tokens, told.flops, told.trained_parameters),
                (outcome.updates, outcome.tokens, outcome.flops, outcome.trained_parameters as u64),
                "{name}, {method:?}"
            );
        }
    }
}

#[test]
fn what_rows_begin_with_is_computed_once_and_told_as_if_it_were_not() {
    for (name, method) in [("llama-grouped", Method::Lora), ("gpt-neox-parallel", Method::Full)] {
        let base = BaseModel::open(oracle("goldens").join(name).join("model")).unwrap();
        let apart = Settings { supervise: Supervise::All, ..settings(method, false) };
        let shared = Settings { share_prefixes: true, ..apart.clone() };
        let rows = Rows::encode(&records(), &Template::alpaca(), base.tokenizer(), &apart).unwrap();
        let [told, counted] = [
            [&apart, &shared].map(|settings| predicted(&base, &rows, settings).flops),
            [&apart, &shared].map(|settings| 2.0 * counted(&base, &rows, settings) as f64),
        ];
        assert_eq!(told, [counted[0]; 2], "{name}");
        assert!(counted[1] < 0.9 * counted[0], "{name}: {counted:?}");
    }
}

#[test]
fn operations_follow_from_which_modules_are_trained() {
    for (name, modules) in [
        ("gpt-neox-parallel", &["dense_h_to_4h"][..]),
        ("gpt-neox-parallel", &["attention.dense"]),
        ("gpt-neox-parallel", &["query_key_value", "dense_4h_to_h"]),
        ("gpt-neox-sequential", &["dense_4h_to_h"]),
        ("llama-grouped", &["o_proj"]),
        ("llama-grouped", &["gate_proj", "down_proj"]),
    ] {
        let base = BaseModel::open(oracle("goldens").join(name).join("model")).unwrap();
        for recompute in [false, true] {
            let modules = modules.iter().map(|&module| module.to_owned()).collect();
            let settings = Settings { modules, ..settings(Method::Lora, recompute) };
            let rows = Rows::encode(&records(), &Template::alpaca(), base.tokenizer(), &settings).unwrap();
            let (told, counted) = (predicted(&base, &rows, &settings), counted(&base, &rows, &settings));
            assert_eq!(told.flops, 2.0 * counted as f64, "{name}, {:?}, {recompute}", settings.modules);
        }
    }
}

#[test]
fn weights_take_the_bytes_that_were_told() {
    for name in MODELS {
        let base = BaseModel::open(oracle("goldens").join(name).join("model")).unwrap();
        for method in [Method::Lora, Method::Full] {
            let settings = settings(method, false);
            let full = method == Method::Full;
            let decoder = Decoder::load(Cpu, base.config(), weights(full), |slot| base.tensor(slot)).unwrap();
            let told = Shape::of(&base, &settings).unwrap().weight_bytes();
            assert_eq!(told, decoder.weight_bytes(), "{name}, {method:?}");
        }
    }
}

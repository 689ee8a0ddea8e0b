//! The engine against transformers and PEFT: logits, losses and gradients of the tiny models under `oracle/goldens`, on
//! the CPU and (the same kernels that a GPU runs) on the emulated GPU.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::cuda::Arithmetic;
use engine::decoder::backward::Trained;
use engine::decoder::weights::{HostData, HostTensor, Precision, slots};
use engine::decoder::{Adapter, AdapterRows, Decoder, Weights};
use engine::kernels::{AdamW, DropoutKey, Kernels};
use engine::{Batch, BatchRow, Cpu, Workspace, WorkspacePlan};
use model::BaseModel;
use model::test_support::TINY_MODELS;
use safetensors::SafeTensors;
use serde_json::Value;

/// f32 sums in another order, through a few blocks: the bound for every family.
const TOLERANCE: f64 = 1e-4;

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens").join(model)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats =
        |data: &[u8]| data.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    file.tensors().into_iter().map(|(name, tensor)| (name, floats(tensor.data()))).collect()
}

fn ids(path: &Path, name: &str) -> Vec<u32> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let size = tensor.data().len() / tensor.shape()[0];
    tensor.data().chunks_exact(size).map(|x| u32::from_le_bytes(x[..4].try_into().unwrap())).collect()
}

/// ‖a − b‖ / ‖b‖
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    (difference / size.max(1e-30)).sqrt()
}

struct Loaded<K: Kernels> {
    base: BaseModel,
    decoder: Decoder<K>,
    adapter: Adapter<K>,
    peft: model::adapter::Adapter,
}

fn load<K: Kernels + Clone>(kernels: &K, name: &str, trained: bool) -> Loaded<K> {
    let base = BaseModel::open(golden(name).join("model")).unwrap();
    let decoder = Decoder::load(
        kernels.clone(),
        base.config(),
        if trained { Weights::Trained } else { Weights::Frozen(Precision::Published) },
        |slot| base.tensor(slot),
    )
    .unwrap();
    let peft =
        model::adapter::Adapter::read(&golden(name).join("adapter"), base.family(), base.config()).unwrap();
    let adapter = Adapter::load(kernels, base.config(), &peft.modules).unwrap();
    Loaded { base, decoder, adapter, peft }
}

/// The six rows of `loss.json`, as one packed batch.
fn rows(name: &str, labels: &str) -> (Batch, Vec<f64>) {
    let loss = json(&golden(name).join("loss.json"));
    let mut batch = Batch::default();
    for (index, row) in loss["rows"].as_array().unwrap().iter().enumerate() {
        let numbers = |key: &str| -> Vec<i64> {
            row[key].as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect()
        };
        let tokens: Vec<u32> = numbers("ids").into_iter().map(|x| x as u32).collect();
        let supervised: Vec<bool> = numbers(labels).into_iter().map(|x| x != -100).collect();
        batch.push(&tokens, &supervised, DropoutKey::new(0, 0, index as u64));
    }
    let kind = labels.trim_start_matches("labels_");
    let sums =
        ["base", "adapter"].map(|who| loss["losses"][format!("{who}/{kind}")]["sum"].as_f64().unwrap());
    (batch, sums.to_vec())
}

fn plan(tokens: usize, training: bool, recompute: bool) -> WorkspacePlan {
    WorkspacePlan { tokens, training, recompute }
}

fn logits_equal_transformers<K: Kernels + Clone>(kernels: &K) {
    for (name, _) in TINY_MODELS {
        let Loaded { decoder, adapter, .. } = load(kernels, name, false);
        let file = golden(name).join("forward.safetensors");
        let expected = tensors(&file);
        // All three sequences in one packed batch: each must come out as if it were alone.
        let mut batch = Batch::default();
        for length in [9, 1, 24] {
            let tokens = ids(&file, &format!("input_ids.{length}"));
            batch.push(&tokens, &vec![true; tokens.len()], DropoutKey::new(0, 0, 0));
        }
        let mut workspace = Workspace::new(&decoder, &[&adapter], plan(batch.rows(), false, false));
        let all: Vec<usize> = (0..batch.rows()).collect();
        for (prefix, adapters) in [
            ("logits", vec![]),
            ("adapter_logits", vec![AdapterRows { adapter: &adapter, rows: 0..batch.rows() }]),
        ] {
            let logits = decoder.logits(&adapters, &batch, &all, &mut workspace);
            let mut start = 0;
            for length in [9, 1, 24] {
                let found = &logits[start * 389..(start + length) * 389];
                let error = relative(found, &expected[&format!("{prefix}.{length}")]);
                assert!(error < TOLERANCE, "{name}: {prefix}.{length}: {error:.2e}");
                start += length;
            }
        }
    }
}

fn losses_equal_transformers<K: Kernels + Clone>(kernels: &K) {
    for (name, _) in TINY_MODELS {
        let Loaded { decoder, adapter, .. } = load(kernels, name, false);
        for labels in ["labels_all", "labels_response"] {
            let (batch, expected) = rows(name, labels);
            let mut workspace = Workspace::new(&decoder, &[&adapter], plan(batch.rows(), false, false));
            for (adapter, expected) in [(None, expected[0]), (Some(&adapter), expected[1])] {
                let losses = decoder.loss(adapter, &batch, &mut workspace);
                let sum: f64 = losses.iter().map(|loss| f64::from(*loss)).sum();
                assert!(
                    (sum - expected).abs() / expected < 1e-5,
                    "{name}: {labels}: {sum} against {expected}"
                );
            }
        }
    }
}

fn lora_gradients_equal_pefts<K: Kernels + Clone>(kernels: &K) {
    for (name, _) in TINY_MODELS {
        for recompute in [false, true] {
            let Loaded { base, decoder, adapter, mut peft } = load(kernels, name, false);
            let (batch, _) = rows(name, "labels_all");
            let mut workspace = Workspace::new(&decoder, &[&adapter], plan(batch.rows(), true, recompute));
            let mut gradients = adapter.gradients(kernels);
            let scale = 1.0 / batch.targets.len() as f32;
            decoder.step(Trained::Adapter(&adapter, &mut gradients), &batch, scale, 0.0, &mut workspace);
            // Written as if it were an adapter, so that names and row orders are PEFT's again.
            for (module, [a, b]) in peft.modules.iter_mut().zip(gradients.blocks.iter().flatten()) {
                module.a = kernels.download(a, module.a.len());
                module.b = kernels.download(b, module.b.len());
            }
            let folder = tempfile::tempdir().unwrap();
            peft.write(folder.path(), base.family(), base.config()).unwrap();
            let found = tensors(&folder.path().join("adapter_model.safetensors"));
            let expected = tensors(&golden(name).join("gradients_lora.safetensors"));
            assert_eq!(found.len(), expected.len(), "{name}");
            for (tensor, expected) in expected {
                let error = relative(&found[&tensor], &expected);
                assert!(error < TOLERANCE, "{name}: {tensor}, recompute {recompute}: {error:.2e}");
            }
        }
    }
}

fn full_gradients_equal_transformers<K: Kernels + Clone>(kernels: &K) {
    for (name, _) in TINY_MODELS {
        for recompute in [false, true] {
            let Loaded { base, decoder, .. } = load(kernels, name, true);
            let (batch, _) = rows(name, "labels_all");
            let mut workspace = Workspace::new(&decoder, &[], plan(batch.rows(), true, recompute));
            let mut gradients = decoder.gradients();
            let scale = 1.0 / batch.targets.len() as f32;
            decoder.step(Trained::Full(&mut gradients), &batch, scale, 0.0, &mut workspace);
            let values: BTreeMap<_, _> = gradients
                .iter()
                .map(|(slot, buffer)| (slot, decoder.gradient_values(slot, buffer)))
                .collect();
            assert_eq!(values.len(), slots(base.config()).len());
            let folder = tempfile::tempdir().unwrap();
            model::folder::write(folder.path(), &base, model::folder::Precision::F32, |slot| {
                let data = HostData::F32(values[&slot].as_slice().into());
                Ok(HostTensor { shape: slot.shape(base.config()), data })
            })
            .unwrap();
            let mut found = tensors(&folder.path().join("model.safetensors"));
            for slot in slots(base.config()) {
                let parts = base.family().parts(base.config(), slot);
                if parts.offset != 0.0 {
                    // What is taken off when weights are written is none of a gradient's.
                    found.insert(parts.parts[0].name.clone(), values[&slot].clone());
                }
            }
            for (tensor, expected) in tensors(&golden(name).join("gradients_full.safetensors")) {
                // Published GPT-NeoX folders, and ours, call the head embed_out; transformers 5 renames it on load.
                let ours = if name.starts_with("gpt-neox") {
                    tensor.replace("lm_head", "embed_out")
                } else {
                    tensor.clone()
                };
                let Some(found) = found.get(&ours) else { panic!("{name}: {tensor} is not there") };
                let size = expected.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                if size < 1e-6 {
                    // A gradient that is exactly zero (BLOOM's key bias): both sides hold rounding only.
                    continue;
                }
                let error = relative(found, &expected);
                assert!(error < TOLERANCE, "{name}: {tensor}, recompute {recompute}: {error:.2e}");
            }
        }
    }
}

/// Each of the checks above as a test of each backend.
macro_rules! on_backends {
    ($($check:ident),*) => {
        mod cpu {
            $(#[test]
            fn $check() {
                super::$check(&super::Cpu);
            })*
        }

        mod emulated_cuda {
            $(#[test]
            fn $check() {
                super::$check(&emulator::cuda(super::Arithmetic::F32));
            })*
        }
    };
}

on_backends!(
    logits_equal_transformers,
    losses_equal_transformers,
    lora_gradients_equal_pefts,
    full_gradients_equal_transformers
);

/// Rows that begin alike, as one batch with and one without what they share.
fn sharing_batches() -> [Batch; 2] {
    let beginning =
        |seed: usize, length: usize| (0..length).map(move |i| ((i * 31 + seed * 17 + 3) % 389) as u32);
    // The lengths of each group's beginning and of its rows behind it; from which token on a row is supervised.
    let groups: [(usize, &[(usize, usize)]); 4] = [
        (9, &[(5, 0), (1, 0), (12, 0)]),
        (70, &[(80, 0), (3, 75), (4, 72), (2, 60)]),
        (0, &[(6, 0)]),
        (1, &[(1, 0), (1, 2)]),
    ];
    let (mut shared, mut apart) = (Batch::default(), Batch::default());
    for (group, (length, rows)) in groups.into_iter().enumerate() {
        let rows: Vec<(Vec<u32>, Vec<bool>, Vec<DropoutKey>)> = rows
            .iter()
            .enumerate()
            .map(|(row, (own, from))| {
                let tokens: Vec<u32> = beginning(group, length).chain(beginning(7 * row + 1, *own)).collect();
                let supervised = (0..tokens.len()).map(|token| token >= *from).collect();
                let keys = DropoutKey::of_beginnings(3, 4, &tokens);
                (tokens, supervised, keys)
            })
            .collect();
        let rows: Vec<BatchRow<'_>> = rows
            .iter()
            .map(|(tokens, supervised, dropout_keys)| BatchRow { tokens, supervised, dropout_keys })
            .collect();
        shared.push_sharing(length, &rows);
        apart.push_sharing(0, &rows);
    }
    [shared, apart]
}

#[test]
fn rows_that_begin_alike_are_computed_once_to_the_same_end() {
    for (recompute, dropout) in [(false, 0.0), (true, 0.0), (false, 0.2), (true, 0.2)] {
        sharing_changes_nothing(&Cpu, recompute, dropout);
    }
}

#[test]
fn rows_that_begin_alike_are_computed_once_on_a_gpu() {
    sharing_changes_nothing(&emulator::cuda(Arithmetic::F32), false, 0.2);
}

/// Losses and gradients of all tiny models by both methods, with and without what rows share.
fn sharing_changes_nothing<K: Kernels + Clone>(kernels: &K, recompute: bool, dropout: f32) {
    // f32 sums in another order, through two blocks: what differs between sharing and not is rounding alone.
    const ROUNDING: f64 = 1e-5;
    let [shared, apart] = sharing_batches();
    assert!(shared.rows() + 2 * 9 + 3 * 70 + 1 == apart.rows() && shared.targets.len() < apart.targets.len());
    let count = apart.weights.iter().sum::<f32>();
    assert_eq!(count, shared.weights.iter().sum::<f32>());
    let values = |buffer: &K::Buffer| kernels.download(buffer, kernels.length(buffer));
    for (name, _) in TINY_MODELS {
        let Loaded { decoder, adapter, .. } = load(kernels, name, false);
        let of_adapter = [&shared, &apart].map(|batch| {
            let mut workspace = Workspace::new(&decoder, &[&adapter], plan(batch.rows(), true, recompute));
            let mut gradients = adapter.gradients(kernels);
            let trained = Trained::Adapter(&adapter, &mut gradients);
            let losses = decoder.step(trained, batch, 1.0 / count, dropout, &mut workspace);
            let gradients = gradients.blocks.iter().flatten().flatten();
            (batch.sum_of_losses(&losses), gradients.map(values).collect::<Vec<_>>())
        });
        let Loaded { decoder, .. } = load(kernels, name, true);
        let in_full = [&shared, &apart].map(|batch| {
            let mut workspace = Workspace::new(&decoder, &[], plan(batch.rows(), true, recompute));
            let mut gradients = decoder.gradients();
            let trained = Trained::Full(&mut gradients);
            let losses = decoder.step(trained, batch, 1.0 / count, 0.0, &mut workspace);
            (batch.sum_of_losses(&losses), gradients.iter().map(|(_, gradient)| values(gradient)).collect())
        });
        for [(loss, gradients), (expected_loss, expected)] in [of_adapter, in_full] {
            let what = format!("{name}, recompute {recompute}, dropout {dropout}");
            let error = (loss - expected_loss).abs() / expected_loss;
            assert!(error < ROUNDING, "{what}: loss {loss} against {expected_loss}");
            for (tensor, (found, expected)) in gradients.iter().zip(&expected).enumerate() {
                let size = expected.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                // BLOOM's key bias has no gradient but rounding.
                let error = if size < 1e-6 { 0.0 } else { relative(found, expected) };
                assert!(error < ROUNDING, "{what}: tensor {tensor}: {error:.2e}");
            }
        }
    }
}

/// Updates of a tiny model; the losses of the batch before each.
fn losses_of_updates<K: Kernels + Clone>(kernels: &K, name: &str, updates: u64) -> Vec<f64> {
    let Loaded { decoder, mut adapter, .. } = load(kernels, name, false);
    let (batch, _) = rows(name, "labels_all");
    let mut workspace = Workspace::new(&decoder, &[&adapter], plan(batch.rows(), true, false));
    let scale = 1.0 / batch.targets.len() as f32;
    let zeros = |adapter: &Adapter<K>| adapter.gradients(kernels);
    let mut moments = [zeros(&adapter), zeros(&adapter)];
    let update = |step| {
        let mut gradients = zeros(&adapter);
        let trained = Trained::Adapter(&adapter, &mut gradients);
        let losses = decoder.step(trained, &batch, scale, 0.05, &mut workspace);
        let settings = AdamW {
            learning_rate: 3e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            step,
            gradient_scale: 1.0,
        };
        let [first, second] = &mut moments;
        let of_modules = first.blocks.iter_mut().flatten().zip(second.blocks.iter_mut().flatten());
        let modules = adapter.blocks.iter_mut().flatten().zip(gradients.blocks.iter_mut().flatten());
        for ((module, [da, db]), ([a_first, b_first], [a_second, b_second])) in modules.zip(of_modules) {
            for (values, gradient, first, second) in
                [(&mut module.a, da, a_first, a_second), (&mut module.b, db, b_first, b_second)]
            {
                let none = || kernels.buffer(0);
                let mut moments = [std::mem::replace(first, none()), std::mem::replace(second, none())];
                kernels.adamw(&settings, values, gradient, &mut moments);
                [*first, *second] = moments;
            }
        }
        losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() * f64::from(scale)
    };
    (1..=updates).map(update).collect()
}

#[test]
fn updates_in_bf16_stay_within_a_hundredth_of_the_cpus_losses() {
    // Tensor cores are emulated lane by lane: fifty updates of all would take minutes.
    let runs = [
        ("llama-grouped", 50),
        ("gpt-neox-parallel", 6),
        ("bloom", 6),
        ("baichuan-7b-like", 6),
        ("qwen3", 6),
    ];
    for (name, updates) in runs {
        let expected = losses_of_updates(&Cpu, name, updates);
        let found = losses_of_updates(&emulator::cuda(Arithmetic::Bf16), name, updates);
        assert!(expected.last() < expected.first(), "{name}: the loss does not fall");
        for (update, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found - expected).abs() / expected;
            assert!(error < 0.01, "{name}, update {update}: {found} against {expected}");
        }
    }
}

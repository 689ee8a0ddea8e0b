//! An adapter's gradients against full tuning's: with B zero, that of B is `scale dW Aᵀ`, wherever the module lies.

use std::path::Path;

use engine::decoder::backward::Trained;
use engine::decoder::weights::{Precision, Slot};
use engine::decoder::{Adapter, Decoder, Weights};
use engine::kernels::{DropoutKey, Kernels};
use engine::{Batch, Cpu, Workspace, WorkspacePlan};
use model::BaseModel;
use model::adapter::{Adapter as PeftAdapter, AdapterConfig, Targets};

/// 32-bit sums in another order.
const TOLERANCE: f64 = 1e-4;

fn batch(vocabulary: usize) -> Batch {
    let mut batch = Batch::default();
    for (sequence, length) in [7, 1, 12].into_iter().enumerate() {
        let tokens: Vec<u32> =
            (0..length).map(|i| ((i * 31 + sequence * 17 + 3) % vocabulary) as u32).collect();
        batch.push(&tokens, &vec![true; length], DropoutKey::new(0, 0, sequence as u64));
    }
    batch
}

#[test]
fn an_adapters_gradients_are_full_tunings_wherever_its_modules_lie() {
    for (name, modules) in [
        ("gpt-neox-parallel", &["query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"][..]),
        ("gpt-neox-parallel", &["dense_h_to_4h"]),
        ("gpt-neox-parallel", &["query_key_value"]),
        ("gpt-neox-parallel", &["attention.dense"]),
        ("gpt-neox-sequential", &["query_key_value", "dense_4h_to_h"]),
        ("gpt-neox-sequential", &["dense_4h_to_h"]),
        ("llama-grouped", &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("llama-grouped", &["up_proj"]),
        ("bloom", &["query_key_value", "dense_h_to_4h"]),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens").join(name).join("model");
        let base = BaseModel::open(folder).unwrap();
        let config = base.config();
        let names = modules.iter().map(|&module| module.to_owned()).collect();
        let paper = AdapterConfig::paper(base.family());
        let settings = AdapterConfig { targets: Targets::Names(names), ..paper };
        let peft = PeftAdapter::fresh(settings, base.family(), config, 1).unwrap();
        let batch = batch(config.vocabulary);
        let plan = WorkspacePlan { tokens: batch.rows(), training: true, recompute: false };
        let load = |weights| Decoder::load(Cpu, config, weights, |slot| base.tensor(slot)).unwrap();

        let trained = load(Weights::Trained);
        let mut of_weights = trained.gradients();
        let mut workspace = Workspace::new(&trained, &[], plan);
        trained.step(Trained::Full(&mut of_weights), &batch, 1.0, 0.0, &mut workspace);

        let frozen = load(Weights::Frozen(Precision::F32));
        let adapter = Adapter::load(&Cpu, config, &peft.modules).unwrap();
        let mut of_adapter = adapter.gradients(&Cpu);
        let mut workspace = Workspace::new(&frozen, &[&adapter], plan);
        frozen.step(Trained::Adapter(&adapter, &mut of_adapter), &batch, 1.0, 0.0, &mut workspace);

        let mut places = vec![0; config.layers];
        for module in &peft.modules {
            let place = places[module.layer];
            places[module.layer] += 1;
            let [da, db] = &of_adapter.blocks[module.layer][place];
            assert!(da.iter().all(|gradient| *gradient == 0.0), "{name}: B is zero, and so is A's gradient");
            let found = Cpu.download(db, module.rows * module.rank);
            let slot = Slot::Layer(module.layer, module.linear.weight_slot());
            let (_, gradient) = of_weights.iter().find(|(other, _)| *other == slot).unwrap();
            let gradient = trained.gradient_values(slot, gradient);
            let inputs = module.a.len() / module.rank;
            let (mut difference, mut size) = (0.0f64, 0.0f64);
            for (row, found) in found.chunks_exact(module.rank).enumerate() {
                let of_row = &gradient[(module.first_row + row) * inputs..][..inputs];
                for (a, found) in module.a.chunks_exact(inputs).zip(found) {
                    let sum: f64 = of_row.iter().zip(a).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                    let expected = f64::from(module.scale) * sum;
                    difference += (f64::from(*found) - expected).powi(2);
                    size += expected.powi(2);
                }
            }
            let error = (difference / size).sqrt();
            let what = format!("{name}, block {}'s {:?} of {modules:?}", module.layer, module.linear);
            assert!(size > 0.0 && error < TOLERANCE, "{what}: {error:.2e}");
        }
    }
}

//! One LoRA step and one full step at published models' dimensions, with random weights: seconds and GFLOP/s.
//!
//!     cargo bench -p polypaca-engine --bench step [-- NAME]
//!
//! The products' operations are counted as `tune` counts them; the limit beside them is measured on the spot.

use std::time::Instant;

use engine::decoder::backward::Trained;
use engine::decoder::config::{Activation, DecoderConfig, Head, Norm, NormKind, Position, Residual};
use engine::decoder::lora::HostLora;
use engine::decoder::weights::{HostData, HostTensor, Precision};
use engine::decoder::{Adapter, Decoder, Weights, lora::Linear};
use engine::kernels::{DropoutKey, Kernels};
use engine::{Batch, Cpu, Workspace, WorkspacePlan};

struct Case {
    name: &'static str,
    config: DecoderConfig,
    sequences: usize,
    length: usize,
}

fn pythia_70m() -> DecoderConfig {
    DecoderConfig {
        vocabulary: 50_304,
        hidden: 512,
        layers: 6,
        heads: 8,
        key_value_heads: 8,
        head_size: 64,
        intermediate: 2048,
        norm: Norm { kind: NormKind::Layer, epsilon: 1e-5 },
        position: Position::rotary(16, 10_000.0),
        residual: Residual::Parallel,
        activation: Activation::GeluErf,
        embedding_norm: false,
        embedding_scale: 1.0,
        head: Head::Free,
        query_key_value_bias: true,
        output_bias: true,
        feed_forward_bias: true,
        query_key_norm: false,
        max_positions: 2048,
    }
}

fn smollm2_135m() -> DecoderConfig {
    DecoderConfig {
        vocabulary: 49_152,
        hidden: 576,
        layers: 30,
        heads: 9,
        key_value_heads: 3,
        head_size: 64,
        intermediate: 1536,
        norm: Norm { kind: NormKind::Rms, epsilon: 1e-5 },
        position: Position::rotary(64, 10_000.0),
        residual: Residual::Sequential,
        activation: Activation::SwiGlu,
        head: Head::Tied,
        query_key_value_bias: false,
        output_bias: false,
        feed_forward_bias: false,
        ..pythia_70m()
    }
}

fn bloom_560m() -> DecoderConfig {
    DecoderConfig {
        vocabulary: 250_880,
        hidden: 1024,
        layers: 24,
        heads: 16,
        key_value_heads: 16,
        head_size: 64,
        intermediate: 4096,
        position: Position::Alibi,
        residual: Residual::Sequential,
        activation: Activation::GeluTanh,
        embedding_norm: true,
        head: Head::Tied,
        ..pythia_70m()
    }
}

/// Small values that differ; their distribution does not matter for speed.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 0.02
    };
    (0..count).map(|_| next()).collect()
}

fn decoder(config: &DecoderConfig, trained: bool) -> Decoder<Cpu> {
    let source = |slot: engine::decoder::weights::Slot| {
        let shape = slot.shape(config);
        let data = HostData::F32(values(shape.iter().product()).into());
        Ok::<_, std::convert::Infallible>(HostTensor { shape, data })
    };
    let weights = if trained { Weights::Trained } else { Weights::Frozen(Precision::Published) };
    match Decoder::load(Cpu, config, weights, source) {
        Ok(decoder) => decoder,
        Err(error) => panic!("{error}"),
    }
}

fn adapter(config: &DecoderConfig) -> Adapter<Cpu> {
    let rows = config.query_key_value_rows();
    let module = |layer| HostLora {
        layer,
        linear: Linear::QueryKeyValue,
        first_row: 0,
        rows,
        rank: 8,
        scale: 2.0,
        a: values(8 * config.hidden),
        b: values(rows * 8),
    };
    match Adapter::load(&Cpu, config, &(0..config.layers).map(module).collect::<Vec<_>>()) {
        Ok(adapter) => adapter,
        Err(error) => panic!("{error}"),
    }
}

fn batch(case: &Case) -> Batch {
    let mut batch = Batch::default();
    for sequence in 0..case.sequences {
        let tokens: Vec<u32> = (0..case.length)
            .map(|i| ((i * 7919 + sequence * 104_729) % case.config.vocabulary) as u32)
            .collect();
        batch.push(&tokens, &vec![true; case.length], DropoutKey::new(0, 0, sequence as u64));
    }
    batch
}

fn operations(case: &Case, products: f64) -> f64 {
    let config = &case.config;
    let gate = usize::from(config.activation.gated());
    let block = config.hidden * (config.query_key_value_rows() + config.attention_width())
        + (2 + gate) * config.hidden * config.intermediate;
    let tokens = (case.sequences * case.length) as f64;
    let supervised = (case.sequences * (case.length - 1)) as f64;
    2.0 * products
        * (tokens * (config.layers * block) as f64 + supervised * (config.vocabulary * config.hidden) as f64)
}

/// The median of five, after one to warm up.
fn median(mut run: impl FnMut()) -> f64 {
    run();
    let mut seconds: Vec<f64> = (0..5)
        .map(|_| {
            let begin = Instant::now();
            run();
            begin.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[2]
}

/// The rate of a product whose panels stay in the first-level cache: what the registers give.
fn limit() -> f64 {
    let (rows, inputs, outputs) = (1792, 512, 256);
    let weight = Cpu.matrix(
        &HostTensor { shape: vec![outputs, inputs], data: HostData::F32(values(outputs * inputs).into()) },
        Precision::Published,
    );
    let x = Cpu.upload(&values(rows * inputs));
    let mut out = Cpu.buffer(rows * outputs);
    let seconds = median(|| {
        for _ in 0..20 {
            Cpu.product(rows, &x, &weight, None, &mut out, false);
        }
    });
    20.0 * 2.0 * (rows * inputs * outputs) as f64 / seconds
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    println!(
        "products from packed panels: {:.0} GFLOP/s on {} threads",
        limit() / 1e9,
        rayon::current_num_threads()
    );
    let cases = [
        Case { name: "pythia-70m", config: pythia_70m(), sequences: 8, length: 128 },
        Case { name: "smollm2-135m", config: smollm2_135m(), sequences: 8, length: 128 },
        Case { name: "bloom-560m", config: bloom_560m(), sequences: 4, length: 128 },
    ];
    for case in cases.iter().filter(|case| wanted.is_empty() || wanted.iter().any(|name| name == case.name)) {
        let batch = batch(case);
        let plan = WorkspacePlan { tokens: batch.rows(), recompute: false, training: true };
        let scale = 1.0 / batch.targets.len() as f32;
        {
            let (decoder, adapter) = (decoder(&case.config, false), adapter(&case.config));
            let mut workspace = Workspace::new(&decoder, &[&adapter], plan);
            let mut gradients = adapter.gradients(&Cpu);
            let seconds = median(|| {
                drop(decoder.step(
                    Trained::Adapter(&adapter, &mut gradients),
                    &batch,
                    scale,
                    0.05,
                    &mut workspace,
                ));
            });
            let rate = operations(case, 2.0) / seconds / 1e9;
            println!(
                "{}, {} x {}, LoRA step: {seconds:.3} s, {rate:.0} GFLOP/s",
                case.name, case.sequences, case.length
            );
        }
        if case.name == "pythia-70m" {
            let decoder = decoder(&case.config, true);
            let mut workspace = Workspace::new(&decoder, &[], plan);
            let mut gradients = decoder.gradients();
            let seconds = median(|| {
                drop(decoder.step(Trained::Full(&mut gradients), &batch, scale, 0.0, &mut workspace));
            });
            let rate = operations(case, 3.0) / seconds / 1e9;
            println!(
                "{}, {} x {}, full step: {seconds:.3} s, {rate:.0} GFLOP/s",
                case.name, case.sequences, case.length
            );
        }
    }
}

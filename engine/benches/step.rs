//! One LoRA step and one full step at published models' dimensions, with random weights: seconds and GFLOP/s.
//!
//!     cargo bench -p polypaca-engine --bench step [-- [--cuda] [NAME...]]
//!
//! With `--cuda` on the first GPU, products in bf16, with larger models and rows of Alpaca's length.
//! The products' operations are counted as `tune` counts them; the limit beside them is measured on the spot.

use std::sync::Arc;
use std::time::Instant;

use engine::cuda::Arithmetic;
use engine::cuda::driver::Driver;
use engine::decoder::backward::Trained;
use engine::decoder::config::{Activation, DecoderConfig, Head, Norm, NormKind, Position, Residual};
use engine::decoder::lora::HostLora;
use engine::decoder::weights::{HostData, HostTensor, Precision};
use engine::decoder::{Adapter, Decoder, Weights, lora::Linear};
use engine::kernels::{DropoutKey, Kernels};
use engine::{Batch, Cpu, Cuda, Workspace, WorkspacePlan};
use half::bf16;

struct Case {
    name: &'static str,
    config: DecoderConfig,
    sequences: usize,
    length: usize,
    /// Whether the full step is run too, and whether the LoRA step is.
    full: bool,
    lora: bool,
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
        output_norms: false,
        attention_scale: None,
        local: None,
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

fn pythia_1b() -> DecoderConfig {
    DecoderConfig {
        hidden: 2048,
        layers: 16,
        head_size: 256,
        intermediate: 8192,
        position: Position::rotary(64, 10_000.0),
        ..pythia_70m()
    }
}

fn llama_7b() -> DecoderConfig {
    DecoderConfig {
        vocabulary: 32_000,
        hidden: 4096,
        layers: 32,
        heads: 32,
        key_value_heads: 32,
        head_size: 128,
        intermediate: 11_008,
        position: Position::rotary(128, 10_000.0),
        head: Head::Free,
        ..smollm2_135m()
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

fn decoder<K: Kernels + Clone>(
    kernels: &K,
    config: &DecoderConfig,
    trained: bool,
    precision: Precision,
) -> Decoder<K> {
    let source = |slot: engine::decoder::weights::Slot| {
        let shape = slot.shape(config);
        let values = values(shape.iter().product());
        let data = if precision == Precision::Bf16 {
            HostData::Bf16(values.into_iter().map(bf16::from_f32).collect::<Vec<_>>().into())
        } else {
            HostData::F32(values.into())
        };
        Ok::<_, std::convert::Infallible>(HostTensor { shape, data })
    };
    let weights = if trained { Weights::Trained } else { Weights::Frozen(precision) };
    match Decoder::load(kernels.clone(), config, weights, source) {
        Ok(decoder) => decoder,
        Err(error) => panic!("{error}"),
    }
}

fn adapter<K: Kernels>(kernels: &K, config: &DecoderConfig) -> Adapter<K> {
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
    match Adapter::load(kernels, config, &(0..config.layers).map(module).collect::<Vec<_>>()) {
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
fn limit<K: Kernels>(kernels: &K, [rows, inputs, outputs]: [usize; 3]) -> f64 {
    let weight = kernels.matrix(
        &HostTensor { shape: vec![outputs, inputs], data: HostData::F32(values(outputs * inputs).into()) },
        Precision::Bf16,
    );
    let x = kernels.upload(&values(rows * inputs));
    let mut out = kernels.buffer(rows * outputs);
    let seconds = median(|| {
        for _ in 0..20 {
            kernels.product(rows, &x, &weight, None, &mut out, false);
        }
        // A GPU has done it all when the first value is there.
        drop(kernels.download(&out, 1));
    });
    20.0 * 2.0 * (rows * inputs * outputs) as f64 / seconds
}

/// Prints a step's seconds and rate.
fn tell(case: &Case, method: &str, products: f64, seconds: f64) {
    let rate = operations(case, products) / seconds / 1e9;
    let tokens = (case.sequences * case.length) as f64 / seconds;
    println!(
        "{}, {} x {}, {method} step: {seconds:.3} s, {tokens:.0} tokens/s, {rate:.0} GFLOP/s",
        case.name, case.sequences, case.length
    );
}

fn run<K: Kernels + Clone>(kernels: &K, cases: &[Case], precision: Precision) {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for case in cases.iter().filter(|case| wanted.is_empty() || wanted.iter().any(|name| name == case.name)) {
        let batch = batch(case);
        let plan = WorkspacePlan { tokens: batch.rows(), recompute: false, training: true };
        let scale = 1.0 / batch.targets.len() as f32;
        if case.lora {
            let (decoder, adapter) =
                (decoder(kernels, &case.config, false, precision), adapter(kernels, &case.config));
            let mut workspace = Workspace::new(&decoder, &[&adapter], plan);
            let mut gradients = adapter.gradients(kernels);
            let seconds = median(|| {
                let trained = Trained::Adapter(&adapter, &mut gradients);
                drop(decoder.step(trained, &batch, scale, 0.05, &mut workspace));
                drop(kernels.download(&gradients.blocks[0][0][0], 1));
            });
            tell(case, "LoRA", 2.0, seconds);
        }
        if case.full {
            let decoder = decoder(kernels, &case.config, true, Precision::F32);
            let mut workspace = Workspace::new(&decoder, &[], plan);
            let mut gradients = decoder.gradients();
            let seconds = median(|| {
                drop(decoder.step(Trained::Full(&mut gradients), &batch, scale, 0.0, &mut workspace));
                if let Some((_, gradient)) = gradients.iter().next() {
                    drop(kernels.download(gradient, 1));
                }
            });
            tell(case, "full", 3.0, seconds);
        }
    }
}

fn main() {
    let case = |name, config, sequences, length| Case {
        name,
        config,
        sequences,
        length,
        full: name.starts_with("pythia"),
        lora: name != "pythia-1b",
    };
    if std::env::args().any(|argument| argument == "--cuda") {
        let driver = match Driver::open(0, None) {
            Ok(driver) => driver,
            Err(error) => panic!("{error}"),
        };
        let cuda = Cuda::new(Arc::new(driver), Arithmetic::Bf16);
        println!("{}: products in bf16: {:.0} GFLOP/s", cuda.name(), limit(&cuda, [8192; 3]) / 1e9);
        let cases = [
            case("pythia-70m", pythia_70m(), 64, 128),
            case("pythia-1b", pythia_1b(), 64, 128),
            case("llama-7b", llama_7b(), 32, 128),
        ];
        run(&cuda, &cases, Precision::Bf16);
    } else {
        let (rate, threads) = (limit(&Cpu, [1792, 512, 256]) / 1e9, rayon::current_num_threads());
        println!("products from packed panels: {rate:.0} GFLOP/s on {threads} threads");
        let cases = [
            case("pythia-70m", pythia_70m(), 8, 128),
            case("smollm2-135m", smollm2_135m(), 8, 128),
            case("bloom-560m", bloom_560m(), 4, 128),
        ];
        // On one of the pool's threads, as the program's commands are.
        rayon::scope(|_| run(&Cpu, &cases, Precision::Published));
    }
}

//! Products at published models' shapes, in GFLOP/s, beside two limits that are measured on the spot.
//!
//!     cargo bench -p polypaca-engine --bench kernels
//!
//! *From registers* is what multiply-adds come to whose operands never leave the registers. *From packed panels* is a
//! product whose panels stay in the second-level cache, which is what the engine's own tile can reach. A product is the
//! one of a forward pass (`x Wᵀ`), with weights resident as they are named.

use std::hint::black_box;
use std::time::Instant;

use engine::Cpu;
use engine::decoder::weights::{HostData, HostTensor, Precision};
use engine::kernels::Kernels;

/// Rows of a batch of 8 × 128.
const ROWS: usize = 1024;

/// Registers of sums: enough to hide a multiply-add's latency on every processor that is known here, and few enough to
/// stay in AVX's 16 registers beside the factor and the summand.
const SUMS: usize = 12;

/// The best of nine: what others do on the machine takes time away and never gives any.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let mut least = f64::INFINITY;
    for _ in 0..9 {
        let begin = Instant::now();
        run();
        least = least.min(begin.elapsed().as_secs_f64());
    }
    least
}

/// Multiply-adds on registers alone: `steps` of them on each of [`SUMS`] registers. Written with intrinsics: of plain
/// loops the compiler makes what it likes.
#[cfg(target_arch = "x86_64")]
mod chains {
    use std::arch::x86_64::*;

    use super::SUMS;

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(steps: usize, factor: f32, summand: f32) -> f32 {
        let (factor, summand) = (_mm512_set1_ps(factor), _mm512_set1_ps(summand));
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, summand);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(steps: usize, factor: f32, summand: f32) -> f32 {
        let (factor, summand) = (_mm256_set1_ps(factor), _mm256_set1_ps(summand));
        let mut sums = [_mm256_set1_ps(1.0); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, summand);
            }
        }
        sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
    }
}

/// Operations a second from registers, on all threads; none on a processor whose registers are not known here.
fn from_registers() -> Option<f64> {
    const STEPS: usize = 2_000_000;
    #[cfg(target_arch = "x86_64")]
    {
        let rate = |lanes: usize, chains: fn(usize, f32, f32) -> f32| {
            let seconds = best(|| {
                rayon::broadcast(|_| black_box(chains(STEPS, black_box(0.999), black_box(0.001))));
            });
            2.0 * (STEPS * SUMS * lanes * rayon::current_num_threads()) as f64 / seconds
        };
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512.
            return Some(rate(16, |steps, factor, summand| unsafe {
                chains::avx512(steps, factor, summand)
            }));
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and fused multiply-adds.
            return Some(rate(8, |steps, factor, summand| unsafe { chains::avx2(steps, factor, summand) }));
        }
    }
    None
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 2000) as f32 / 1000.0 - 1.0).collect()
}

/// Operations a second of a product `[rows, inputs] · [outputs, inputs]ᵀ`.
fn product(rows: usize, inputs: usize, outputs: usize, precision: Precision) -> f64 {
    let weight = Cpu.matrix(
        &HostTensor { shape: vec![outputs, inputs], data: HostData::F32(values(outputs * inputs).into()) },
        precision,
    );
    let x = Cpu.upload(&values(rows * inputs));
    let mut out = Cpu.buffer(rows * outputs);
    let operations = 2.0 * (rows * inputs * outputs) as f64;
    // As many as take some milliseconds.
    let times = (1e9 / operations).ceil() as usize;
    let seconds = best(|| (0..times).for_each(|_| Cpu.product(rows, &x, &weight, None, &mut out, false)));
    times as f64 * operations / seconds
}

fn main() {
    println!("{} threads", rayon::current_num_threads());
    let registers = from_registers();
    if let Some(registers) = registers {
        println!("from registers: {:.0} GFLOP/s", registers / 1e9);
    }
    let panels = product(1792, 512, 256, Precision::Published) / 1e9;
    println!("from packed panels: {panels:.0} GFLOP/s");
    let shapes = [
        ("pythia-70m, query-key-value", 512, 1536),
        ("pythia-70m, up", 512, 2048),
        ("pythia-70m, down", 2048, 512),
        ("smollm2-135m, up", 576, 1536),
        ("smollm2-135m, down", 1536, 576),
        ("bloom-560m, up", 1024, 4096),
        ("bloom-560m, down", 4096, 1024),
        ("llama-7b, up", 4096, 11008),
    ];
    for (name, inputs, outputs) in shapes {
        let rate = |rows, precision| product(rows, inputs, outputs, precision) / 1e9;
        let f32 = rate(ROWS, Precision::Published);
        println!(
            "{name} ({inputs} to {outputs}), {ROWS} rows: {f32:.0} GFLOP/s{}; bf16 {:.0}, 8 bits {:.0}, 4 bits {:.0}; one \
             row {:.1}, eight rows {:.0}",
            registers.map_or_else(String::new, |registers| format!(
                ", {:.0} % of registers",
                1e11 * f32 / registers
            )),
            rate(ROWS, Precision::Bf16),
            rate(ROWS, Precision::Bits8),
            rate(ROWS, Precision::Nf4),
            rate(1, Precision::Published),
            rate(8, Precision::Published),
        );
    }
}

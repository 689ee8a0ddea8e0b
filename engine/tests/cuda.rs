//! Every kernel of the CUDA backend beside the CPU's, on the emulated GPU: the same inputs, at odd shapes.
//!
//! `model/tests/engine.rs` has whole passes of every family.

use std::sync::Arc;

use emulator::cuda;
use engine::Cpu;
use engine::cuda::{Arithmetic, Program, driver};
use engine::decoder::config::{Activation, Norm, NormKind};
use engine::decoder::weights::{HostData, HostTensor, Precision};
use engine::kernels::{
    AdamW, AttentionShape, CachedRow, DropoutKey, DropoutPlace, Kernels, LoraView, NO_WINDOW, Sequence,
};
use half::{bf16, f16};

/// 32-bit sums in another order.
const F32: f64 = 1e-5;

/// Operands of products rounded to 8 bits of mantissa.
const BF16: f64 = 2e-2;

/// Numbers between -1 and 1 that no two calls share.
fn numbers(seed: u64, length: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

/// ‖found − expected‖ / ‖expected‖
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|x| x.is_finite()), "a number that is none");
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = expected.iter().map(|b| f64::from(*b).powi(2)).sum();
    (difference / size.max(1e-30)).sqrt()
}

fn compare(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f64) {
    for (output, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = relative(found, expected);
        assert!(error <= tolerance, "{what}, output {output}: {error:.2e}");
    }
}

/// Runs the same on the CPU and on the emulated GPU, in 32 bits, and compares the outputs.
macro_rules! agree {
    ($what:expr, |$k:ident $(, $name:ident: $type:ty)*| $body:block $(, $value:expr)*) => {{
        fn run<K: Kernels>($k: &K $(, $name: $type)*) -> Vec<Vec<f32>> $body
        let expected = run(&Cpu $(, $value)*);
        compare(&$what, &run(&cuda(Arithmetic::F32) $(, $value)*), &expected, F32);
    }};
}

/// The same, and once more with products in bf16.
macro_rules! agree_in_both {
    ($what:expr, |$k:ident $(, $name:ident: $type:ty)*| $body:block $(, $value:expr)*) => {{
        fn run<K: Kernels>($k: &K $(, $name: $type)*) -> Vec<Vec<f32>> $body
        let expected = run(&Cpu $(, $value)*);
        compare(&$what, &run(&cuda(Arithmetic::F32) $(, $value)*), &expected, F32);
        compare(&format!("{}, bf16", $what), &run(&cuda(Arithmetic::Bf16) $(, $value)*), &expected, BF16);
    }};
}

fn tensor(rows: usize, columns: usize, values: Vec<f32>) -> HostTensor<'static> {
    HostTensor { shape: vec![rows, columns], data: HostData::F32(values.into()) }
}

#[test]
fn rows_are_copied_added_gathered_and_scattered() {
    for (rows, width) in [(1, 1), (5, 33), (40, 300)] {
        agree!(
            format!("{rows} × {width}"),
            |k, rows: usize, width: usize| {
                let x = k.upload(&numbers(1, rows * width));
                let mut out = k.upload(&numbers(2, rows * width));
                k.add(rows * width - 1, &x, &mut out);
                // Not in order, and one of them three times.
                let named: Vec<usize> = (0..rows).step_by(2).rev().chain([0, 0]).collect();
                let mut gathered = k.buffer((rows + 2) * width);
                k.gather(width, &named, &x, &mut gathered);
                let mut scattered = k.upload(&numbers(3, rows * width));
                k.scatter_add(width, &named, &gathered, &mut scattered);
                let mut copied = k.upload(&numbers(4, rows * width));
                k.copy(width, &x, &mut copied);
                k.clear(1, &mut copied);
                [out, gathered, scattered, copied].iter().map(|x| k.download(x, rows * width)).collect()
            },
            rows,
            width
        );
    }
}

#[test]
fn tokens_are_looked_up_and_their_gradients_added() {
    let kept = [
        HostData::F32(numbers(1, 11 * 37).into()),
        HostData::Bf16(numbers(1, 11 * 37).into_iter().map(bf16::from_f32).collect::<Vec<_>>().into()),
        HostData::F16(numbers(1, 11 * 37).into_iter().map(f16::from_f32).collect::<Vec<_>>().into()),
    ];
    for data in kept {
        let table = HostTensor { shape: vec![11, 37], data };
        agree!(
            "embedding",
            |k, table: &HostTensor<'_>| {
                let (tokens, width) = ([3u32, 10, 0, 3, 3, 7], 37);
                let table = k.matrix(table, Precision::Published);
                let mut out = k.buffer(6 * width);
                k.embed(&tokens, &table, 1.5, &mut out);
                let mut dtable = k.like_matrix(&table);
                for _ in 0..2 {
                    k.embed_backward(&tokens, &table, 1.5, &out, &mut dtable);
                }
                vec![k.download(&out, 6 * width), k.unpack_like(&table, &dtable)]
            },
            &table
        );
    }
}

#[test]
fn norms_and_their_gradients() {
    for kind in [NormKind::Layer, NormKind::Rms] {
        for (rows, width) in [(1, 1), (3, 40), (19, 257), (4, 1024)] {
            agree!(
                format!("{kind:?}, {rows} × {width}"),
                |k, kind: NormKind, rows: usize, width: usize| {
                    let norm = Norm { kind, epsilon: 1e-5 };
                    let x = k.upload(&numbers(1, rows * width));
                    let (weight, bias) = (k.upload(&numbers(2, width)), k.upload(&numbers(3, width)));
                    let bias = (kind == NormKind::Layer).then_some(&bias);
                    let (mut out, mut stats) = (k.buffer(rows * width), k.buffer(2 * rows));
                    k.norm(norm, rows, &x, &weight, bias, &mut out, &mut stats);
                    let dout = k.upload(&numbers(4, rows * width));
                    let mut dx = k.upload(&numbers(5, rows * width));
                    k.norm_backward(norm, rows, &x, &weight, &stats, &dout, &mut dx);
                    let (mut dweight, mut dbias) =
                        (k.upload(&numbers(6, width)), k.upload(&numbers(7, width)));
                    let of_bias = (kind == NormKind::Layer).then_some(&mut dbias);
                    k.norm_backward_weight(rows, &x, &stats, &dout, &mut dweight, of_bias);
                    // One column is normalised to zero: what is left of its gradient is rounding.
                    let dx = if width == 1 { Vec::new() } else { k.download(&dx, rows * width) };
                    let out = if width == 1 { Vec::new() } else { k.download(&out, rows * width) };
                    vec![out, dx, k.download(&dweight, width), k.download(&dbias, width)]
                },
                kind,
                rows,
                width
            );
        }
    }
}

/// Head counts, head sizes and whether there is ALiBi: odd ones, one head, and grouped ones.
const SHAPES: [(usize, usize, usize, bool); 7] = [
    (1, 1, 40, false),
    (4, 2, 8, true),
    (6, 6, 5, false),
    (8, 1, 64, false),
    (2, 1, 80, true),
    (3, 3, 128, false),
    (2, 2, 136, true),
];

fn attention_shape(
    (heads, key_value_heads, head_size, alibi): (usize, usize, usize, bool),
) -> AttentionShape {
    let slopes = if alibi { AttentionShape::alibi_slopes(heads) } else { Vec::new() };
    // One position, some, more than a tile, all.
    let window = match heads {
        3 => 1,
        4 => 6,
        8 => 20,
        2 => 70,
        _ => NO_WINDOW,
    };
    // Not the head size's own.
    let scale = 0.9 / (head_size as f32).sqrt();
    AttentionShape { heads, key_value_heads, head_size, scale, window, slopes }
}

#[test]
fn heads_are_rotated_and_normalised() {
    for shape in SHAPES {
        agree!(
            format!("{shape:?}"),
            |k, shape: AttentionShape| {
                let (rows, stride) = (7, shape.query_key_value_width());
                let positions = [0u32, 1, 2, 500, 0, 1, 2];
                let half = shape.head_size / 2;
                let frequencies: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i as i32)).collect();
                let mut x = k.upload(&numbers(1, rows * stride));
                let raw = k.upload(&numbers(1, rows * stride));
                let weight = k.upload(&numbers(2, shape.head_size));
                let heads = [0..shape.heads, shape.heads..shape.heads + shape.key_value_heads];
                let mut dx = k.upload(&numbers(3, rows * stride));
                let mut out = Vec::new();
                for heads in heads {
                    let mut stats = k.buffer(rows * heads.len());
                    k.head_norm(&shape, rows, heads.clone(), 1e-6, &weight, &mut x, &mut stats);
                    let mut dweight = k.upload(&numbers(4, shape.head_size));
                    let into = Some(&mut dweight);
                    k.head_norm_backward(&shape, rows, heads, &raw, &weight, &stats, &mut dx, into);
                    out.push(k.download(&dweight, shape.head_size));
                }
                k.rotate(&shape, &positions, &frequencies, 1.0, &mut x);
                k.rotate(&shape, &positions, &frequencies, -1.0, &mut dx);
                out.extend([x, dx].iter().map(|x| k.download(x, rows * stride)));
                out
            },
            attention_shape(shape)
        );
    }
}

/// Groups of sequences of given lengths that go on from a prefix, or from nothing where that has no length.
fn sequences(groups: &[(usize, &[usize])]) -> Vec<Sequence> {
    let (mut sequences, mut end) = (Vec::new(), 0);
    for (prefix, lengths) in groups {
        let prefix = end..end + prefix;
        sequences.extend((!prefix.is_empty()).then(|| Sequence::alone(prefix.clone())));
        end = prefix.end;
        for length in *lengths {
            let prefix = if prefix.is_empty() { 0..0 } else { prefix.clone() };
            sequences.push(Sequence { rows: end..end + length, prefix });
            end += length;
        }
    }
    sequences
}

#[test]
fn attention_and_its_gradient() {
    let batches: [&[(usize, &[usize])]; 5] = [
        &[(0, &[1])],
        &[(0, &[9, 1, 16, 33])],
        &[(0, &[70])],
        // A prefix of less than a tile and one of more, with what goes on from each, and a sequence alone.
        &[(5, &[3, 20, 1]), (0, &[18]), (70, &[1, 35])],
        &[(66, &[17, 66])],
    ];
    for shape in SHAPES {
        for groups in batches {
            let sequences = sequences(groups);
            agree_in_both!(
                format!("{shape:?}, {groups:?}"),
                |k, shape: AttentionShape, sequences: &[Sequence]| {
                    let rows = sequences.last().map_or(0, |last| last.rows.end);
                    let (width, full) = (shape.width(), shape.query_key_value_width());
                    let x = k.upload(&numbers(1, rows * full));
                    let (mut out, mut log_sums) = (k.buffer(rows * width), k.buffer(rows * shape.heads));
                    k.attention(&shape, sequences, &x, &mut out, &mut log_sums);
                    let dout = k.upload(&numbers(2, rows * width));
                    let mut dx = k.upload(&numbers(3, rows * full));
                    k.attention_backward(&shape, sequences, &x, &out, &log_sums, &dout, &mut dx);
                    // A sequence of one token has no gradient of its query and key: they are rounding.
                    let dx = k.download(&dx, rows * full);
                    let sums = k.download(&log_sums, rows * shape.heads);
                    vec![k.download(&out, rows * width), sums, if rows == 1 { Vec::new() } else { dx }]
                },
                attention_shape(shape),
                &sequences
            );
        }
    }
}

#[test]
fn attention_over_cached_pages() {
    for shape in SHAPES {
        agree!(
            format!("{shape:?}"),
            |k, shape: AttentionShape| {
                let page_size = 16;
                let (width, full) = (shape.width(), shape.query_key_value_width());
                let length = 2 * shape.key_value_heads * page_size * shape.head_size;
                let mut cache = k.buffer(6 * length);
                // Two sequences that share their first page.
                let pages: [Arc<[u32]>; 2] = [[0, 4, 2].into(), [0, 5].into()];
                let row =
                    |sequence: usize, position| CachedRow { pages: Arc::clone(&pages[sequence]), position };
                let first: Vec<CachedRow> = (0..40).map(|position| row(0, position)).collect();
                let x = k.upload(&numbers(1, 40 * full));
                k.store_key_values(&shape, page_size, &first, &x, &mut cache);
                k.copy_page(length, 4, 5, &mut cache);
                let next = [row(1, 25), row(0, 40), row(0, 3)];
                let x = k.upload(&numbers(2, 3 * full));
                k.store_key_values(&shape, page_size, &next[..2], &x, &mut cache);
                let mut out = k.buffer(3 * width);
                k.attention_cached(&shape, page_size, &next, &x, &cache, &mut out);
                vec![k.download(&out, 3 * width)]
            },
            attention_shape(shape)
        );
    }
}

#[test]
fn activations_and_their_gradients() {
    for kind in [Activation::GeluErf, Activation::GeluTanh, Activation::SwiGlu, Activation::GeGluTanh] {
        agree!(
            format!("{kind:?}"),
            |k, kind: Activation| {
                let length = 3001;
                let wide = |seed| numbers(seed, 3001).into_iter().map(|x| 6.0 * x).collect::<Vec<_>>();
                let (gate, up) = (k.upload(&wide(1)), k.upload(&wide(2)));
                let gate = kind.gated().then_some(&gate);
                let mut out = k.buffer(length);
                k.activate(kind, length, gate, &up, &mut out);
                let (mut dup, mut dgate) = (k.upload(&numbers(3, length)), k.buffer(length));
                let into = kind.gated().then_some(&mut dgate);
                k.activate_backward(kind, length, gate, &up, &mut dup, into);
                [out, dup, dgate].iter().map(|x| k.download(x, length)).collect()
            },
            kind
        );
    }
}

#[test]
fn dropout_draws_the_same_mask() {
    agree!("dropout", |k| {
        let keys = [DropoutKey::new(1, 2, 3), DropoutKey::new(9, 0, 1 << 40)].map(|key| key.of_positions(4));
        let keys = [keys.concat(), DropoutKey::of_beginnings(1, 2, &[5, 6, 7, 8])].concat();
        let place = DropoutPlace { rate: 0.3, keys: &keys, layer: 3, module: 2 };
        let width = 77;
        let x = k.upload(&numbers(1, 12 * width));
        let mut out = k.buffer(12 * width);
        k.dropout(&place, width, &x, &mut out);
        let (mut dout, mut dx) = (k.upload(&numbers(2, 12 * width)), k.upload(&numbers(3, 12 * width)));
        k.dropout_backward(&place, width, &mut dout, &mut dx);
        [out, dx].iter().map(|x| k.download(x, 12 * width)).collect()
    });
}

/// A matrix's three products: with and without a bias and adding, and its gradients.
fn products<K: Kernels>(k: &K, precision: Precision, [rows, inputs, outputs]: [usize; 3]) -> Vec<Vec<f32>> {
    let weight = k.matrix(&tensor(outputs, inputs, numbers(1, outputs * inputs)), precision);
    let x = k.upload(&numbers(2, rows * inputs));
    let bias = k.upload(&numbers(3, outputs));
    let mut out = k.upload(&numbers(4, rows * outputs));
    k.product(rows, &x, &weight, Some(&bias), &mut out, true);
    let mut plain = k.upload(&numbers(4, rows * outputs));
    k.product(rows, &x, &weight, None, &mut plain, false);
    let dout = k.upload(&numbers(5, rows * outputs));
    let mut dx = k.upload(&numbers(6, rows * inputs));
    k.product_backward(rows, &dout, &weight, &mut dx, true);
    let (mut dweight, mut dbias) = (k.like_matrix(&weight), k.buffer(outputs));
    k.product_backward_weight(rows, &weight, &x, &dout, &mut dweight, Some(&mut dbias));
    vec![
        k.download(&out, rows * outputs),
        k.download(&plain, rows * outputs),
        k.download(&dx, rows * inputs),
        k.unpack_like(&weight, &dweight),
        k.download(&dbias, outputs),
        k.matrix_values(&weight),
    ]
}

/// Rows, inputs and outputs of products.
const PRODUCTS: [[usize; 3]; 3] = [[1, 1, 1], [5, 33, 19], [40, 128, 70]];

#[test]
fn products_of_every_kept_type_forward_and_backward() {
    for precision in [
        Precision::F32,
        Precision::Bf16,
        Precision::F16,
        Precision::Bits8,
        Precision::Nf4,
        Precision::Published,
    ] {
        for sizes in PRODUCTS {
            agree_in_both!(
                format!("{precision:?}, {sizes:?}"),
                |k, precision: Precision, sizes: [usize; 3]| { products(k, precision, sizes) },
                precision,
                sizes
            );
        }
    }
}

#[test]
fn products_that_the_library_has_no_algorithm_for() {
    for sizes in PRODUCTS {
        let expected = products(&Cpu, Precision::F32, sizes);
        for (arithmetic, tolerance) in [(Arithmetic::F32, F32), (Arithmetic::Bf16, BF16)] {
            let found = products(&emulator::cuda_without_products(arithmetic), Precision::F32, sizes);
            compare(&format!("{arithmetic:?}, {sizes:?}"), &found, &expected, tolerance);
        }
    }
}

#[test]
fn lora_forward_and_backward() {
    for (rows, rank) in [(1, 1), (6, 3), (33, 8)] {
        agree_in_both!(
            format!("{rows} rows, rank {rank}"),
            |k, rows: usize, rank: usize| {
                // The module adds to columns 10..30 of rows 40 wide.
                let (inputs, outputs, out_width) = (24, 20, 40);
                let (a, b) = (k.upload(&numbers(1, rank * inputs)), k.upload(&numbers(2, outputs * rank)));
                let module = LoraView { a: &a, b: &b, rank, inputs, outputs, first: 10, scale: 0.75 };
                let x = k.upload(&numbers(3, rows * inputs));
                let mut hidden = k.buffer(rows * rank);
                let mut out = k.upload(&numbers(4, rows * out_width));
                k.lora(0..rows, &x, &module, &mut hidden, &mut out, out_width);
                k.lora(rows - 1..rows, &x, &module, &mut hidden, &mut out, out_width);
                let dout = k.upload(&numbers(5, rows * out_width));
                let (mut da, mut db) =
                    (k.upload(&numbers(6, rank * inputs)), k.upload(&numbers(7, outputs * rank)));
                k.lora_backward(rows, &x, &module, &hidden, &dout, out_width, &mut da, &mut db);
                let mut dx = k.upload(&numbers(8, rows * inputs));
                k.lora_backward_input(rows, &module, &dout, out_width, &mut dx, true);
                vec![
                    k.download(&hidden, rows * rank),
                    k.download(&out, rows * out_width),
                    k.download(&da, rank * inputs),
                    k.download(&db, outputs * rank),
                    k.download(&dx, rows * inputs),
                ]
            },
            rows,
            rank
        );
    }
}

/// Losses, and the gradients of the hidden state and of the head.
fn cross_entropies<K: Kernels>(k: &K, [rows, hidden, vocabulary]: [usize; 3]) -> Vec<Vec<f32>> {
    let head = k.matrix(&tensor(vocabulary, hidden, numbers(1, vocabulary * hidden)), Precision::F32);
    let x = k.upload(&numbers(2, rows * hidden));
    let targets: Vec<u32> = (0..rows).map(|row| (row * 97 % vocabulary) as u32).collect();
    let scales: Vec<f32> = (0..rows).map(|row| 0.1 * (1 + row % 3) as f32).collect();
    let losses = k.cross_entropy(&x, &head, &targets, None);
    let (mut dx, mut dx_full) = (k.buffer(rows * hidden), k.buffer(rows * hidden));
    let with_gradient = k.cross_entropy(&x, &head, &targets, Some((&scales, &mut dx)));
    let mut dhead = k.like_matrix(&head);
    let full = k.cross_entropy_full(&x, &head, &targets, &scales, &mut dx_full, &mut dhead);
    vec![
        losses,
        with_gradient,
        full,
        k.download(&dx, rows * hidden),
        k.download(&dx_full, rows * hidden),
        k.unpack_like(&head, &dhead),
    ]
}

#[test]
fn cross_entropy_and_its_gradients() {
    for sizes in [[1, 1, 2], [7, 33, 301], [20, 64, 1000]] {
        agree_in_both!(format!("{sizes:?}"), |k, sizes: [usize; 3]| { cross_entropies(k, sizes) }, sizes);
    }
}

#[test]
fn cross_entropy_of_four_rows_at_a_time() {
    // A vocabulary that tensor cores do not read in whole pieces, and a last piece of three rows.
    let sizes = [11, 33, 301];
    let expected = cross_entropies(&Cpu, sizes);
    for (arithmetic, tolerance) in [(Arithmetic::F32, F32), (Arithmetic::Bf16, BF16)] {
        let found = cross_entropies(&cuda(arithmetic).with_logits_bytes(0), sizes);
        compare(&format!("{arithmetic:?}"), &found, &expected, tolerance);
    }
}

#[test]
fn adamw_moves_the_same_way() {
    agree_in_both!("AdamW", |k| {
        let length = 31 * 17;
        let settings = AdamW {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step: 3,
            gradient_scale: 0.5,
        };
        let mut values = k.upload(&numbers(1, length));
        let mut gradient = k.upload(&numbers(2, length));
        let mut moments = [k.upload(&numbers(3, length)), k.upload(&vec![0.3; length])];
        let norm = k.squared_norm(&gradient);
        k.adamw(&settings, &mut values, &mut gradient, &mut moments);
        assert_eq!(k.squared_norm(&gradient), 0.0, "a gradient is zero after an update");
        let mut matrix = k.matrix(&tensor(31, 17, numbers(1, length)), Precision::F32);
        let mut packed = k.packed_values(&tensor(31, 17, numbers(2, length)));
        let mut of_matrix = [k.like_matrix(&matrix), k.like_matrix(&matrix)];
        k.adamw_matrix(&settings, &mut matrix, &mut packed, &mut of_matrix);
        // Products read the moved values.
        let mut out = k.buffer(31);
        k.product(1, &k.upload(&numbers(4, 17)), &matrix, None, &mut out, false);
        vec![
            k.download(&values, length),
            k.download(&moments[0], length),
            k.download(&moments[1], length),
            k.matrix_values(&matrix),
            k.unpack_like(&matrix, &of_matrix[1]),
            k.download(&out, 31),
            vec![norm as f32],
        ]
    });
}

#[test]
fn values_are_read_and_changed_where_they_lie() {
    agree_in_both!("values that are handed out", |k| {
        let mut buffer = k.upload(&numbers(1, 70));
        k.modify(&mut buffer, &mut |values| values.iter_mut().for_each(|x| *x *= 2.0));
        let mut read = Vec::new();
        k.read(&buffer, &mut |values| read.extend_from_slice(values));
        let mut matrix = k.matrix(&tensor(31, 17, numbers(2, 31 * 17)), Precision::F32);
        k.modify_matrix(&mut matrix, &mut |values| values.iter_mut().for_each(|x| *x *= -3.0));
        // Each backend has a layout of its own, but its values are the matrix's and zeros.
        let mut sum = 0.0;
        k.read_matrix(&matrix, &mut |values| sum = values.iter().map(|x| x * x).sum());
        // Products read the changed values.
        let mut out = k.buffer(31);
        k.product(1, &k.upload(&numbers(3, 17)), &matrix, None, &mut out, false);
        vec![read, k.matrix_values(&matrix), vec![sum], k.download(&out, 31)]
    });
}

#[test]
fn two_runs_give_the_same_bytes() {
    let run = || {
        let k = cuda(Arithmetic::Bf16);
        let head = k.matrix(&tensor(300, 64, numbers(1, 300 * 64)), Precision::Nf4);
        let x = k.upload(&numbers(2, 9 * 64));
        let mut dx = k.buffer(9 * 64);
        let losses = k.cross_entropy(&x, &head, &[1, 2, 3, 4, 5, 6, 7, 8, 299], Some((&[0.1; 9], &mut dx)));
        (losses, k.download(&dx, 9 * 64))
    };
    assert_eq!(run(), run());
}

/// NVRTC needs no GPU. Where it is not installed (`pip install nvidia-cuda-nvrtc`, its folder in `LD_LIBRARY_PATH`), this
/// says so.
#[test]
fn nvrtc_compiles_the_kernels() {
    // The oldest that has bf16 on tensor cores, and an H100; attention's programs take seconds each.
    let all = Program::all().map(|program| ("sm_90", program)).chain([("sm_80", Program::Base)]);
    for (architecture, program) in all {
        match driver::compile(architecture, program) {
            Ok(binary) => assert!(binary.starts_with(b"\x7fELF"), "{architecture}: no binary"),
            Err(error) if error.to_string().contains("was not found") => {
                eprintln!("skipped: {error}");
                return;
            }
            Err(error) => panic!("{program:?} for {architecture}: {error}"),
        }
    }
}

#[test]
fn without_a_driver_the_error_names_what_is_missing() {
    if let Err(error) = driver::Driver::open(0, None) {
        assert!(error.to_string().contains("NVIDIA") || error.to_string().contains("CUDA"), "{error}");
    }
}

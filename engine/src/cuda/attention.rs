//! Attention's launches: which kernel takes a head of this width, on how much shared memory.

use std::collections::BTreeMap;
use std::ops::Range;

use super::device::{Address, Argument, Heads};
use super::scratch::Scratch;
use super::{Arithmetic, Buffer, Cuda, address, int};
use crate::kernels::{AttentionShape, Sequence};

/// The widest head that the kernels take.
pub(super) const WIDEST_HEAD: usize = 256;

/// Rows of a tile in 32 bits: `QUERIES` and `KEYS` of `kernels/attention.cu`.
const PLAIN_ROWS: usize = 16;

/// As `kernels/heads.cuh` has it.
const TILE_NUMBERS: usize = 7;

/// One `ATTENTION_FOR` of `kernels/attention_tensor.cu`.
#[derive(Clone, Copy)]
struct TensorKernels {
    names: [&'static str; 3],
    /// What heads are padded to.
    size: usize,
    /// Warps of a block, of 16 rows each.
    warps: usize,
    /// Keys of a tile of the forward.
    key_rows: usize,
    /// Columns of keys' and values' gradients that a block has.
    out: usize,
}

/// The kernels of one width.
macro_rules! tensor_kernels {
    ($size:literal, $warps:literal, $key_rows:literal, $out:literal) => {
        TensorKernels {
            names: [
                concat!("attention_tensor_", $size),
                concat!("attention_tensor_backward_queries_", $size),
                concat!("attention_tensor_backward_keys_", $size),
            ],
            size: $size,
            warps: $warps,
            key_rows: $key_rows,
            out: $out,
        }
    };
}

const TENSOR_KERNELS: [TensorKernels; 5] = [
    tensor_kernels!(32, 4, 64, 32),
    tensor_kernels!(64, 4, 64, 64),
    tensor_kernels!(96, 4, 64, 96),
    tensor_kernels!(128, 4, 64, 128),
    tensor_kernels!(256, 2, 32, 128),
];

/// The widths that heads are padded to on tensor cores.
pub(super) fn tensor_sizes() -> impl Iterator<Item = usize> {
    TENSOR_KERNELS.iter().map(|kernels| kernels.size)
}

impl TensorKernels {
    /// The narrowest that take a head of this width.
    fn of(head_size: usize) -> &'static Self {
        let fitting = TENSOR_KERNELS.iter().find(|kernels| kernels.size >= head_size);
        fitting.unwrap_or(&TENSOR_KERNELS[TENSOR_KERNELS.len() - 1])
    }

    fn rows(&self) -> usize {
        16 * self.warps
    }

    fn threads(&self) -> u32 {
        32 * self.warps as u32
    }

    /// Bytes of lines of `length` elements, with their padding.
    fn lines(count: usize, length: usize) -> usize {
        2 * count * (length + 8)
    }

    fn forward_bytes(&self) -> usize {
        Self::lines(self.rows() + self.key_rows, self.size) + Self::lines(self.size, self.key_rows)
    }

    /// Both backward kernels take the other side's rows 32 at a time.
    fn backward_queries_bytes(&self) -> usize {
        Self::lines(2 * self.rows() + 2 * 32, self.size) + Self::lines(self.size, 32)
    }

    fn backward_keys_bytes(&self) -> usize {
        Self::lines(2 * self.rows() + 2 * 32, self.size) + Self::lines(2 * self.out, 32) + 2 * 4 * 32
    }
}

/// By the first row of a prefix, the sequences that go on from it. Panics where a prefix is not a whole earlier sequence
/// without one of its own: its keys would miss gradients.
fn following(sequences: &[Sequence]) -> BTreeMap<usize, Vec<&Sequence>> {
    let mut whole: BTreeMap<usize, &Range<usize>> = BTreeMap::new();
    let mut following: BTreeMap<usize, Vec<&Sequence>> = BTreeMap::new();
    for sequence in sequences {
        let Sequence { rows, prefix } = sequence;
        if prefix.is_empty() {
            whole.insert(rows.start, rows);
        } else {
            assert!(whole.get(&prefix.start) == Some(&prefix), "a prefix is a whole earlier sequence");
            following.entry(prefix.start).or_default().push(sequence);
        }
    }
    following
}

impl Cuda {
    /// What attention's kernels know of the heads.
    pub(super) fn heads(&self, scratch: &mut Scratch, shape: &AttentionShape) -> Argument {
        assert!(
            shape.head_size <= WIDEST_HEAD,
            "heads of {}; at most {WIDEST_HEAD} on a GPU",
            shape.head_size
        );
        let slopes = if shape.slopes.is_empty() { 0 } else { self.sent(scratch, &shape.slopes) };
        Argument::Heads(Heads {
            heads: shape.heads as i32,
            key_value_heads: shape.key_value_heads as i32,
            size: shape.head_size as i32,
            scale: shape.scale,
            window: i32::try_from(shape.window).unwrap_or(i32::MAX),
            slopes,
        })
    }

    /// Tiles of `rows` rows, [`TILE_NUMBERS`] for each, and how many there are; behind them, two numbers for each sequence
    /// that goes on from a prefix: `Tile` of `kernels/heads.cuh`.
    fn tiles(&self, scratch: &mut Scratch, sequences: &[Sequence], rows: usize) -> (Address, usize) {
        let count = sequences.iter().map(|sequence| sequence.rows.len().div_ceil(rows)).sum::<usize>();
        let mut following = following(sequences);
        let (mut tiles, mut followers) = (Vec::with_capacity(TILE_NUMBERS * count), Vec::new());
        for sequence in sequences {
            let Sequence { rows: own, prefix } = sequence;
            let behind = TILE_NUMBERS * count + followers.len();
            let of_this = following.remove(&own.start).unwrap_or_default();
            for first in (0..own.len()).step_by(rows) {
                let [place, length] = [prefix.len() + first, sequence.length()];
                tiles.extend([prefix.start, prefix.len(), own.start, length, place, of_this.len(), behind]);
            }
            followers.extend(of_this.iter().flat_map(|other| [other.rows.start, other.length()]));
        }
        let numbers: Vec<u32> = tiles.into_iter().chain(followers).map(|number| number as u32).collect();
        (self.sent(scratch, &numbers), count)
    }

    pub(super) fn attend(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &Buffer,
        out: &mut Buffer,
        log_sums: &mut Buffer,
    ) {
        let rows = sequences.last().map_or(0, |last| last.rows.end);
        let mut scratch = self.scratch();
        let tensor = (self.arithmetic == Arithmetic::Bf16).then(|| TensorKernels::of(shape.head_size));
        let tile = tensor.map_or(PLAIN_ROWS, TensorKernels::rows);
        let (tiles, count) = self.tiles(&mut scratch, sequences, tile);
        let arguments = [
            self.heads(&mut scratch, shape),
            Argument::Address(tiles),
            address(query_key_value, rows * shape.query_key_value_width()),
            address(out, rows * shape.width()),
            address(log_sums, rows * shape.heads),
        ];
        let grid = [count, shape.heads];
        match tensor {
            Some(kernels) => {
                let (threads, shared) = (kernels.threads(), kernels.forward_bytes());
                self.gpu.launch(kernels.names[0], grid, threads, shared, &arguments);
            }
            None => {
                // Queries, keys, values, sums; weights; three values a query.
                let shared = 4 * PLAIN_ROWS * (4 * shape.head_size + PLAIN_ROWS + 3);
                self.gpu.launch("attention", grid, 128, shared, &arguments);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a kernel names what it reads and writes")]
    pub(super) fn attend_backward(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &Buffer,
        out: &Buffer,
        log_sums: &Buffer,
        dout: &Buffer,
        dquery_key_value: &mut Buffer,
    ) {
        let rows = sequences.last().map_or(0, |last| last.rows.end);
        let mut scratch = self.scratch();
        let along = Argument::Address(scratch.rows.reserve(&self.gpu, 4 * rows * shape.heads));
        let dout = address(dout, rows * shape.width());
        let arguments =
            [int(shape.heads), int(shape.head_size), address(out, rows * shape.width()), dout, along];
        self.gpu.launch("attention_along", [rows, 1], 128, 0, &arguments);
        let tensor = (self.arithmetic == Arithmetic::Bf16).then(|| TensorKernels::of(shape.head_size));
        let tile = tensor.map_or(PLAIN_ROWS, TensorKernels::rows);
        let (tiles, count) = self.tiles(&mut scratch, sequences, tile);
        let full = rows * shape.query_key_value_width();
        let arguments = [
            self.heads(&mut scratch, shape),
            Argument::Address(tiles),
            address(query_key_value, full),
            address(log_sums, rows * shape.heads),
            along,
            dout,
            address(dquery_key_value, full),
        ];
        match tensor {
            Some(kernels) => {
                let (queries, keys) = (kernels.backward_queries_bytes(), kernels.backward_keys_bytes());
                let [_, of_queries, of_keys] = kernels.names;
                self.gpu.launch(of_queries, [count, shape.heads], kernels.threads(), queries, &arguments);
                let grid = [count, shape.key_value_heads * (kernels.size / kernels.out)];
                self.gpu.launch(of_keys, grid, kernels.threads(), keys, &arguments);
            }
            None => {
                // Queries, their outputs' gradients, keys, values, and one or two gradients; weights and scores'
                // gradients; two values a query.
                let shared = |tiles: usize| 4 * PLAIN_ROWS * (tiles * shape.head_size + 2 * PLAIN_ROWS + 2);
                let grid = [count, shape.heads];
                self.gpu.launch("attention_backward_queries", grid, 128, shared(5), &arguments);
                let grid = [count, shape.key_value_heads];
                self.gpu.launch("attention_backward_keys", grid, 128, shared(6), &arguments);
            }
        }
    }
}

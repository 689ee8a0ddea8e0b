//! The right-hand sides of products: anything that can give a block of a panel as `f32`.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::buffer::Buffer;
use super::quantised::{Code, Quantised};
use super::tile::{PANEL, transpose_square};
use crate::decoder::weights::{HostData, HostTensor, Precision};

/// A right-hand side `[depth, columns]`, cut into panels of [`PANEL`] columns.
pub(crate) trait Right: Sync {
    /// Columns of the product.
    fn columns(&self) -> usize;

    /// Length of the sums.
    fn depth(&self) -> usize;

    /// The block of panel `panel` at `depth`: `[depth.len()][PANEL]`, zeros beyond the last column.
    /// It is either a part of `self` or written to `scratch`, which is at least that long.
    fn block<'a>(&'a self, panel: usize, depth: Range<usize>, scratch: &'a mut [f32]) -> &'a [f32];
}

/// A weight matrix `[rows, columns]`, laid out for products in the order in which a tile reads it:
/// panels of 32 rows, in each the columns one after another, `[rows / 32][columns][32]`.
///
/// The same copy serves forward (`x · Wᵀ`: panels as they lie) and backward (`dy · W`: 32 × 32 blocks, each
/// contiguous, transposed on the way), the gradient and the optimizer, so no second copy is kept.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Values,
}

/// A matrix's elements in the type in which they are kept.
#[derive(Clone, Debug)]
enum Values {
    F32(Buffer),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    Quantised(Quantised),
}

impl Matrix {
    /// A matrix of zeros that can be trained.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: Values::F32(Buffer::zeros(packed_length(rows, columns))) }
    }

    /// Packs a row-major tensor of two dimensions, and keeps it in `precision`.
    pub fn pack(tensor: &HostTensor<'_>, precision: Precision) -> Self {
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let length = packed_length(rows, columns);
        let precision = match (precision, &tensor.data) {
            (Precision::Published, HostData::F32(_)) => Precision::F32,
            (Precision::Published, HostData::Bf16(_)) => Precision::Bf16,
            (Precision::Published, HostData::F16(_)) => Precision::F16,
            (other, _) => other,
        };
        let values = match precision {
            Precision::Published | Precision::F32 => {
                let mut packed = Buffer::zeros(length);
                pack_tensor(tensor, &mut packed, |x| x);
                Values::F32(packed)
            }
            Precision::Bf16 => {
                let mut packed = vec![bf16::ZERO; length];
                pack_tensor(tensor, &mut packed, bf16::from_f32);
                Values::Bf16(packed)
            }
            Precision::F16 => {
                let mut packed = vec![f16::ZERO; length];
                pack_tensor(tensor, &mut packed, f16::from_f32);
                Values::F16(packed)
            }
            Precision::Bits8 => Values::Quantised(Quantised::pack(tensor, Code::Bits8)),
            Precision::Nf4 => Values::Quantised(Quantised::pack(tensor, Code::Nf4)),
        };
        Self { rows, columns, values }
    }

    /// Outputs of the product `x · Wᵀ`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of the product `x · Wᵀ`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => 4 * values.len(),
            Values::Bf16(values) => 2 * values.len(),
            Values::F16(values) => 2 * values.len(),
            Values::Quantised(values) => values.bytes(),
        }
    }

    /// The elements in panel order, of a matrix kept in `f32`; none of another.
    pub fn values(&self) -> Option<&Buffer> {
        match &self.values {
            Values::F32(values) => Some(values),
            Values::Bf16(_) | Values::F16(_) | Values::Quantised(_) => None,
        }
    }

    /// The same, to be written.
    pub fn values_mut(&mut self) -> Option<&mut Buffer> {
        match &mut self.values {
            Values::F32(values) => Some(values),
            Values::Bf16(_) | Values::F16(_) | Values::Quantised(_) => None,
        }
    }

    /// The elements, row-major, widened to `f32`.
    pub fn unpack(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.columns];
        let mut row = vec![0.0; self.columns];
        for (index, target) in out.chunks_exact_mut(self.columns.max(1)).enumerate() {
            self.read_row(index, &mut row);
            target.copy_from_slice(&row);
        }
        out
    }

    /// Writes row `row`, widened to `f32`: an embedding.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let start = (row / PANEL) * self.columns * PANEL + row % PANEL;
        match &self.values {
            Values::F32(values) => {
                for (out, value) in out.iter_mut().zip(values[start..].iter().step_by(PANEL)) {
                    *out = *value;
                }
            }
            Values::Bf16(values) => {
                for (out, value) in out.iter_mut().zip(values[start..].iter().step_by(PANEL)) {
                    *out = value.to_f32();
                }
            }
            Values::F16(values) => {
                for (out, value) in out.iter_mut().zip(values[start..].iter().step_by(PANEL)) {
                    *out = value.to_f32();
                }
            }
            Values::Quantised(values) => values.read_row(row, out),
        }
    }

    /// `length` packed elements from `start` on, as `f32`.
    fn packed<'a>(&'a self, start: usize, length: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        match &self.values {
            Values::F32(values) => &values[start..start + length],
            Values::Bf16(values) => {
                widen_bf16(&values[start..start + length], &mut scratch[..length]);
                &scratch[..length]
            }
            Values::F16(values) => {
                values[start..start + length].convert_to_f32_slice(&mut scratch[..length]);
                &scratch[..length]
            }
            Values::Quantised(values) => {
                values.widen(start, &mut scratch[..length]);
                &scratch[..length]
            }
        }
    }
}

/// Floats in a packed matrix, the last panel's padding counted.
pub(crate) fn packed_length(rows: usize, columns: usize) -> usize {
    rows.div_ceil(PANEL) * PANEL * columns
}

/// A row-major tensor of any type to panels, a panel a task; narrower types round to nearest.
fn pack_tensor<T: Send>(tensor: &HostTensor<'_>, packed: &mut [T], convert: impl Fn(f32) -> T + Sync) {
    let columns = tensor.shape[1];
    match &tensor.data {
        HostData::F32(data) => pack_into(data, columns, packed, &convert),
        HostData::Bf16(data) => pack_into(data, columns, packed, |x| convert(x.to_f32())),
        HostData::F16(data) => pack_into(data, columns, packed, |x| convert(x.to_f32())),
    }
}

/// Row-major to panels.
fn pack_into<S: Copy + Sync, T: Send>(
    data: &[S],
    columns: usize,
    packed: &mut [T],
    convert: impl Fn(S) -> T + Sync,
) {
    if columns == 0 {
        return;
    }
    let panels = packed.par_chunks_mut(columns * PANEL).zip(data.par_chunks(columns * PANEL));
    panels.for_each(|(panel, rows)| {
        for (lane, values) in rows.chunks_exact(columns).enumerate() {
            for (target, value) in panel[lane..].iter_mut().step_by(PANEL).zip(values) {
                *target = convert(*value);
            }
        }
    });
}

/// A bf16 is the upper half of an `f32`; a plain loop that the compiler turns into vector shifts.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn widen_bf16(values: &[bf16], out: &mut [f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = f32::from_bits(u32::from(value.to_bits()) << 16);
    }
}

/// `x · Wᵀ`, or only the rows `first .. first + count` of `W`: the matrix's own panels.
pub(crate) struct Forward<'a> {
    /// The weights.
    pub matrix: &'a Matrix,
    /// First row of the weights that takes part; a multiple of [`PANEL`].
    pub first: usize,
    /// Rows that take part.
    pub count: usize,
}

impl<'a> Forward<'a> {
    /// With all rows.
    pub(crate) fn all(matrix: &'a Matrix) -> Self {
        Self { matrix, first: 0, count: matrix.rows }
    }
}

impl Right for Forward<'_> {
    fn columns(&self) -> usize {
        self.count
    }

    fn depth(&self) -> usize {
        self.matrix.columns
    }

    fn block<'a>(&'a self, panel: usize, depth: Range<usize>, scratch: &'a mut [f32]) -> &'a [f32] {
        let start = ((self.first / PANEL + panel) * self.matrix.columns + depth.start) * PANEL;
        self.matrix.packed(start, depth.len() * PANEL, scratch)
    }
}

/// `dy · W`, or only the rows `first .. first + count` of `W`: the panels transposed, block by block.
pub(crate) struct Backward<'a> {
    /// The weights.
    pub matrix: &'a Matrix,
    /// First row of the weights that takes part; a multiple of [`PANEL`].
    pub first: usize,
    /// Rows that take part.
    pub count: usize,
}

impl<'a> Backward<'a> {
    /// With all rows.
    pub(crate) fn all(matrix: &'a Matrix) -> Self {
        Self { matrix, first: 0, count: matrix.rows }
    }
}

impl Right for Backward<'_> {
    fn columns(&self) -> usize {
        self.matrix.columns
    }

    fn depth(&self) -> usize {
        self.count
    }

    fn block<'a>(&'a self, panel: usize, depth: Range<usize>, scratch: &'a mut [f32]) -> &'a [f32] {
        let columns = PANEL.min(self.matrix.columns - panel * PANEL);
        let mut widened = [0.0f32; PANEL * PANEL];
        let first = self.first + depth.start;
        debug_assert!(first.is_multiple_of(PANEL), "depth is cut at panels");
        let (out, _) = scratch.split_at_mut(depth.len() * PANEL);
        for (block, out) in out.chunks_mut(PANEL * PANEL).enumerate() {
            let start = ((first / PANEL + block) * self.matrix.columns + panel * PANEL) * PANEL;
            let source = self.matrix.packed(start, columns * PANEL, &mut widened);
            if columns == PANEL && out.len() == PANEL * PANEL {
                // What was widened is in the cache, and nothing lies behind it.
                let wide = matches!(self.matrix.values, Values::F32(_));
                let next = source.as_ptr().wrapping_add(if wide { self.matrix.columns * PANEL } else { 0 });
                transpose_square(source, next, out);
            } else {
                transpose_part(source, columns, out);
            }
        }
        out
    }
}

/// `out[lane][column] = source[column][lane]`, zeros beyond the last column.
fn transpose_part(source: &[f32], columns: usize, out: &mut [f32]) {
    for (lane, row) in out.chunks_exact_mut(PANEL).enumerate() {
        for (column, value) in row.iter_mut().enumerate() {
            *value = if column < columns { source[column * PANEL + lane] } else { 0.0 };
        }
    }
}

/// A row-major `[depth, columns]` slice whose rows lie `stride` apart, as it is.
pub(crate) struct Rows<'a> {
    /// The elements.
    pub values: &'a [f32],
    /// Floats from one row to the next.
    pub stride: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Columns of the product.
    pub columns: usize,
}

impl Right for Rows<'_> {
    fn columns(&self) -> usize {
        self.columns
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn block<'a>(&'a self, panel: usize, depth: Range<usize>, scratch: &'a mut [f32]) -> &'a [f32] {
        let first = panel * PANEL;
        let columns = PANEL.min(self.columns - first);
        let out = &mut scratch[..depth.len() * PANEL];
        for (row, out) in depth.zip(out.chunks_exact_mut(PANEL)) {
            let (head, tail) = out.split_at_mut(columns);
            head.copy_from_slice(&self.values[row * self.stride + first..][..columns]);
            tail.fill(0.0);
        }
        out
    }
}

/// A row-major `[columns, depth]` slice, transposed: LoRA's A and B in the forward products.
pub(crate) struct RowsTransposed<'a> {
    /// The elements.
    pub values: &'a [f32],
    /// Length of the sums: a row of `values`.
    pub depth: usize,
    /// Columns of the product: rows of `values`.
    pub columns: usize,
}

impl Right for RowsTransposed<'_> {
    fn columns(&self) -> usize {
        self.columns
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn block<'a>(&'a self, panel: usize, depth: Range<usize>, scratch: &'a mut [f32]) -> &'a [f32] {
        let first = panel * PANEL;
        let columns = PANEL.min(self.columns - first);
        let out = &mut scratch[..depth.len() * PANEL];
        if columns < PANEL {
            out.fill(0.0);
        }
        for column in 0..columns {
            let source = &self.values[(first + column) * self.depth..][depth.clone()];
            for (out, value) in out[column..].iter_mut().step_by(PANEL).zip(source) {
                *out = *value;
            }
        }
        out
    }
}

/// Panels to row-major.
pub(crate) fn unpack(packed: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let start = (row / PANEL) * columns * PANEL + row % PANEL;
        out.extend(packed[start..].iter().step_by(PANEL).take(columns));
    }
    out
}

/// Adds `scale * values` to row `row` of a packed matrix.
pub(crate) fn add_to_row(packed: &mut [f32], columns: usize, row: usize, scale: f32, values: &[f32]) {
    let start = (row / PANEL) * columns * PANEL + row % PANEL;
    for (target, value) in packed[start..].iter_mut().step_by(PANEL).zip(values) {
        *target += scale * value;
    }
}

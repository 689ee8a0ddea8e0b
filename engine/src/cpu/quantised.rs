//! Matrices in 8 and 4 bits: codes and shared scales in panel order, widened a block at a time where a product reads
//! them.

use half::f16;
use rayon::prelude::*;

use super::tile::PANEL;
use crate::decoder::weights::{HostData, HostTensor};

/// How an element is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// A signed byte times the scale of 32 elements of its row, the scale rounded to a half float: GGUF's `Q8_0`
    /// (ggml's `quantize_row_q8_0_ref`).
    Bits8,
    /// One of sixteen values times the greatest magnitude among 64 elements of its row: NormalFloat, as bitsandbytes'
    /// `quantize_4bit` has it.
    Nf4,
}

impl Code {
    /// Elements of a row that share a scale; a row's last block may be shorter.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::Bits8 => 32,
            Self::Nf4 => 64,
        }
    }

    /// The scale of a block.
    pub(crate) fn scale(self, block: &[f32]) -> f32 {
        let greatest = block.iter().fold(0.0f32, |greatest, x| greatest.max(x.abs()));
        match self {
            Self::Bits8 => greatest / 127.0,
            Self::Nf4 => greatest,
        }
    }

    /// What is kept of the scale.
    pub(crate) fn kept(self, scale: f32) -> f32 {
        match self {
            Self::Bits8 => f16::from_f32(scale).to_f32(),
            Self::Nf4 => scale,
        }
    }

    /// The code of an element over the scale as it was before it was rounded.
    pub(crate) fn encode(self, x: f32, scale: f32) -> u8 {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        match self {
            Self::Bits8 => (x * inverse).round() as i8 as u8,
            Self::Nf4 => NORMAL_FLOAT_BOUNDS.partition_point(|bound| x * inverse > *bound) as u8,
        }
    }
}

/// The values of NormalFloat with 4 bits: quantiles of the normal distribution, zero among them (Dettmers et al. 2023,
/// Appendix E).
const NORMAL_FLOAT: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Above which an element takes the next of [`NORMAL_FLOAT`]: the means of its neighbours.
const NORMAL_FLOAT_BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut index = 0;
    while index < 15 {
        bounds[index] = (NORMAL_FLOAT[index] + NORMAL_FLOAT[index + 1]) / 2.0;
        index += 1;
    }
    bounds
};

/// A matrix `[rows, columns]` in panel order, as [`super::panels::Matrix`] has it.
#[derive(Clone, Debug)]
pub(crate) struct Quantised {
    code: Code,
    columns: usize,
    /// `[rows / 32][columns][32]`, an element a byte, or two: the lower half is the even lane's.
    codes: Vec<u8>,
    /// `[rows / 32][blocks of a row][32]`
    scales: Vec<f32>,
}

impl Quantised {
    /// Codes a row-major tensor of two dimensions.
    pub(crate) fn pack(tensor: &HostTensor<'_>, code: Code) -> Self {
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let (panels, blocks) = (rows.div_ceil(PANEL), columns.div_ceil(code.block()));
        let line = line(code);
        let mut codes = vec![0; panels * columns * line];
        let mut scales = vec![0.0; panels * blocks * PANEL];
        if columns > 0 {
            let panels = codes.par_chunks_mut(columns * line).zip(scales.par_chunks_mut(blocks * PANEL));
            panels.enumerate().for_each(|(panel, (codes, scales))| {
                let mut row = vec![0.0; columns];
                for lane in 0..PANEL.min(rows - panel * PANEL) {
                    read(tensor, panel * PANEL + lane, &mut row);
                    pack_row(code, &row, lane, codes, scales);
                }
            });
        }
        Self { code, columns, codes, scales }
    }

    /// Bytes kept.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }

    /// Elements from `start` on in panel order, `start` and the length being multiples of [`PANEL`], as `f32`.
    pub(crate) fn widen(&self, start: usize, out: &mut [f32]) {
        let blocks = self.columns.div_ceil(self.code.block());
        let first = start / PANEL;
        for (step, out) in out.chunks_exact_mut(PANEL).enumerate() {
            let (panel, column) = ((first + step) / self.columns, (first + step) % self.columns);
            let scales = &self.scales[(panel * blocks + column / self.code.block()) * PANEL..][..PANEL];
            let line = line(self.code);
            let codes = &self.codes[(first + step) * line..][..line];
            match self.code {
                Code::Bits8 => widen_bits8(codes, scales, out),
                Code::Nf4 => widen_nf4(codes, scales, out),
            }
        }
    }

    /// Row `row`, as `f32`.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let mut values = [0.0; PANEL];
        for (column, out) in out.iter_mut().enumerate() {
            self.widen((panel * self.columns + column) * PANEL, &mut values);
            *out = values[lane];
        }
    }
}

/// Bytes of a column of a panel.
fn line(code: Code) -> usize {
    match code {
        Code::Bits8 => PANEL,
        Code::Nf4 => PANEL / 2,
    }
}

/// A row of a tensor of any type.
pub(crate) fn read(tensor: &HostTensor<'_>, row: usize, out: &mut [f32]) {
    let range = row * out.len()..(row + 1) * out.len();
    match &tensor.data {
        HostData::F32(data) => out.copy_from_slice(&data[range]),
        HostData::Bf16(data) => out.iter_mut().zip(&data[range]).for_each(|(out, x)| *out = x.to_f32()),
        HostData::F16(data) => out.iter_mut().zip(&data[range]).for_each(|(out, x)| *out = x.to_f32()),
    }
}

/// One row into its lane of a panel.
fn pack_row(code: Code, row: &[f32], lane: usize, codes: &mut [u8], scales: &mut [f32]) {
    for (block, values) in row.chunks(code.block()).enumerate() {
        let scale = code.scale(values);
        scales[block * PANEL + lane] = code.kept(scale);
        for (column, x) in values.iter().enumerate() {
            let column = block * code.block() + column;
            let element = code.encode(*x, scale);
            match code {
                Code::Bits8 => codes[column * PANEL + lane] = element,
                Code::Nf4 => codes[(column * PANEL + lane) / 2] |= element << (4 * (lane % 2)),
            }
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn widen_bits8(codes: &[u8], scales: &[f32], out: &mut [f32]) {
    for ((out, code), scale) in out.iter_mut().zip(codes).zip(scales) {
        *out = scale * f32::from(*code as i8);
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn widen_nf4(codes: &[u8], scales: &[f32], out: &mut [f32]) {
    for ((out, code), scales) in
        out.as_chunks_mut::<2>().0.iter_mut().zip(codes).zip(scales.as_chunks::<2>().0)
    {
        out[0] = scales[0] * NORMAL_FLOAT[usize::from(code & 15)];
        out[1] = scales[1] * NORMAL_FLOAT[usize::from(code >> 4)];
    }
}

#[cfg(test)]
mod tests {
    use super::super::panels::Matrix;
    use super::*;
    use crate::decoder::weights::Precision;

    /// Odd numbers of rows and columns, so that the last panel and the last blocks are short.
    fn tensor(rows: usize, columns: usize) -> HostTensor<'static> {
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 23.0).collect();
        HostTensor { shape: vec![rows, columns], data: HostData::F32(values.into()) }
    }

    #[test]
    fn an_element_is_within_half_a_step_of_what_it_was() {
        for (rows, columns) in [(1, 1), (40, 97), (64, 128)] {
            let tensor = tensor(rows, columns);
            let HostData::F32(expected) = &tensor.data else { unreachable!() };
            // Of values up to 50 / 23: half a step of 1/127th of it and the half float's rounding of the scale, and half
            // the widest gap between NormalFloat's values (-1 to -0.696).
            for (precision, bound) in [(Precision::Bits8, 0.0096), (Precision::Nf4, 0.331)] {
                let found = Matrix::pack(&tensor, precision).unpack();
                for (found, expected) in found.iter().zip(expected.iter()) {
                    assert!((found - expected).abs() <= bound, "{precision:?}: {found} for {expected}");
                }
            }
        }
    }

    #[test]
    fn a_value_that_a_code_has_comes_back_to_the_bit() {
        let values: Vec<f32> = (0..64).map(|i| 0.5 * NORMAL_FLOAT[i % 16]).collect();
        let one_row = HostTensor { shape: vec![1, 64], data: HostData::F32(values.clone().into()) };
        assert_eq!(Matrix::pack(&one_row, Precision::Nf4).unpack(), values);
        // Again from what came back: nothing moves.
        let once = Matrix::pack(&tensor(33, 64), Precision::Bits8).unpack();
        let again = HostTensor { shape: vec![33, 64], data: HostData::F32(once.clone().into()) };
        assert_eq!(Matrix::pack(&again, Precision::Bits8).unpack(), once);
    }
}

//! Weight matrices in a GPU's memory: row-major, in the type in which they are kept.

use half::{bf16, f16};
use rayon::prelude::*;

use super::device::{Address, Argument, Gpu, Memory};
use super::scratch::Scratch;
use super::{Arithmetic, blocks_for};
use crate::cpu::quantised::Code;
use crate::decoder::weights::{HostData, HostTensor, Precision};

/// A matrix `[rows, columns]`.
pub struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) kept: Kept,
    /// A trained matrix's values as bf16, which products read; moved with them.
    pub(super) narrowed: Option<Memory>,
}

/// The values of a matrix.
pub(super) enum Kept {
    /// 32-bit floats: the only ones that can be trained.
    F32(Memory),
    /// Brain floats.
    Bf16(Memory),
    /// Half floats.
    F16(Memory),
    /// Codes and the scales that blocks of them share, row by row.
    Quantised { code: Code, codes: Memory, scales: Memory },
}

impl Kept {
    /// The values of one of the plain types, and the number by which kernels know it (`common.cuh`).
    fn plain(&self) -> Option<(i32, &Memory)> {
        match self {
            Self::F32(memory) => Some((0, memory)),
            Self::Bf16(memory) => Some((1, memory)),
            Self::F16(memory) => Some((2, memory)),
            Self::Quantised { .. } => None,
        }
    }
}

impl Matrix {
    /// Lays a tensor `[rows, columns]` out. What is kept in `f32` may be trained: in bf16 arithmetic a copy for products is
    /// kept beside it, and moved with it.
    pub(super) fn new(
        gpu: &Gpu,
        tensor: &HostTensor<'_>,
        precision: Precision,
        arithmetic: Arithmetic,
    ) -> Self {
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let kept = match (precision, &tensor.data) {
            (Precision::Published, HostData::Bf16(data)) | (Precision::Bf16, HostData::Bf16(data)) => {
                Kept::Bf16(gpu.with_values(data))
            }
            (Precision::Published, HostData::F16(data)) | (Precision::F16, HostData::F16(data)) => {
                Kept::F16(gpu.with_values(data))
            }
            (Precision::Published | Precision::F32, _) => Kept::F32(gpu.with_values(&tensor.to_f32())),
            (Precision::Bf16, _) => {
                let narrowed: Vec<bf16> = tensor.to_f32().into_par_iter().map(bf16::from_f32).collect();
                Kept::Bf16(gpu.with_values(&narrowed))
            }
            (Precision::F16, _) => {
                let narrowed: Vec<f16> = tensor.to_f32().into_par_iter().map(f16::from_f32).collect();
                Kept::F16(gpu.with_values(&narrowed))
            }
            (Precision::Bits8, _) => quantised(gpu, tensor, Code::Bits8),
            (Precision::Nf4, _) => quantised(gpu, tensor, Code::Nf4),
        };
        let narrowed = match &kept {
            Kept::F32(values) if precision == Precision::F32 && arithmetic == Arithmetic::Bf16 => {
                let narrowed = gpu.allocate(2 * rows * columns);
                narrow(
                    gpu,
                    rows * columns,
                    values.at(0..4 * rows * columns),
                    narrowed.at(0..2 * rows * columns),
                );
                Some(narrowed)
            }
            _ => None,
        };
        Self { rows, columns, kept, narrowed }
    }

    /// Bytes kept.
    pub(super) fn bytes(&self) -> usize {
        let kept = match &self.kept {
            Kept::F32(memory) | Kept::Bf16(memory) | Kept::F16(memory) => memory.bytes(),
            Kept::Quantised { codes, scales, .. } => codes.bytes() + scales.bytes(),
        };
        kept + self.narrowed.as_ref().map_or(0, Memory::bytes)
    }

    /// The elements, row-major.
    pub(super) fn values(&self, gpu: &Gpu) -> Vec<f32> {
        let length = self.rows * self.columns;
        match &self.kept {
            Kept::F32(memory) => memory.read(length),
            Kept::Bf16(memory) => memory.read::<bf16>(length).into_iter().map(bf16::to_f32).collect(),
            Kept::F16(memory) => memory.read::<f16>(length).into_iter().map(f16::to_f32).collect(),
            Kept::Quantised { .. } => {
                let wide = gpu.allocate(4 * length);
                self.convert(gpu, wide.at(0..4 * length), false);
                wide.read(length)
            }
        }
    }

    /// Overwrites all elements of a trained matrix, and the copy that products read.
    pub(super) fn set_values(&mut self, gpu: &Gpu, values: &[f32]) {
        let length = self.rows * self.columns;
        assert_eq!(values.len(), length, "elements of a matrix");
        let Kept::F32(memory) = &self.kept else { unreachable!("a trained matrix is kept in f32") };
        memory.write(0, values);
        if let Some(narrowed) = &self.narrowed {
            narrow(gpu, length, memory.at(0..4 * length), narrowed.at(0..2 * length));
        }
    }

    /// Where all elements lie for a product in `arithmetic`: as they are kept, or converted into `scratch`.
    pub(super) fn operand(&self, gpu: &Gpu, arithmetic: Arithmetic, scratch: &mut Scratch) -> Address {
        let length = self.rows * self.columns;
        let narrow = arithmetic == Arithmetic::Bf16;
        match (&self.kept, &self.narrowed) {
            (_, Some(narrowed)) if narrow => narrowed.at(0..2 * length),
            (Kept::Bf16(memory), _) if narrow => memory.at(0..2 * length),
            (Kept::F32(memory), _) if !narrow => memory.at(0..4 * length),
            _ => {
                let to = scratch.weight.reserve(gpu, if narrow { 2 } else { 4 } * length);
                self.convert(gpu, to, narrow);
                to
            }
        }
    }

    /// Writes all elements to `to`, as bf16 or f32.
    fn convert(&self, gpu: &Gpu, to: Address, narrowed: bool) {
        let length = self.rows * self.columns;
        match &self.kept {
            Kept::F32(memory) if narrowed => narrow(gpu, length, memory.at(0..4 * length), to),
            Kept::Quantised { code, codes, scales } => {
                let bits = if *code == Code::Bits8 { 8 } else { 4 };
                let arguments = [
                    Argument::Int(self.columns as i32),
                    Argument::Int(bits),
                    Argument::Int(code.block() as i32),
                    Argument::Address(codes.at(0..codes.bytes())),
                    Argument::Address(scales.at(0..scales.bytes())),
                    Argument::Int(i32::from(narrowed)),
                    Argument::Address(to),
                ];
                gpu.launch("widen", [self.rows, 1], 256, 0, &arguments);
            }
            kept => {
                let Some((element_type, memory)) = kept.plain() else { unreachable!("quantised is above") };
                let arguments = [
                    Argument::Long(length as u64),
                    Argument::Int(element_type),
                    Argument::Address(memory.at(0..memory.bytes())),
                    Argument::Int(i32::from(narrowed)),
                    Argument::Address(to),
                ];
                gpu.launch("convert", blocks_for(length), 256, 0, &arguments);
            }
        }
    }

    /// The type by which kernels know a table that tokens are looked up in, and where it lies.
    pub(super) fn table(&self) -> (i32, Address) {
        let Some((element_type, memory)) = self.kept.plain() else {
            unreachable!("8 and 4 bits are for the blocks' products (Precision::of)")
        };
        (element_type, memory.at(0..memory.bytes()))
    }
}

/// `from` (f32) as bf16.
pub(super) fn narrow(gpu: &Gpu, length: usize, from: Address, to: Address) {
    let arguments = [Argument::Long(length as u64), Argument::Address(from), Argument::Address(to)];
    gpu.launch("narrow", blocks_for(length.div_ceil(4)), 256, 0, &arguments);
}

/// Codes a tensor: rows on all threads.
fn quantised(gpu: &Gpu, tensor: &HostTensor<'_>, code: Code) -> Kept {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    let line = if code == Code::Bits8 { columns } else { columns.div_ceil(2) };
    let blocks = columns.div_ceil(code.block());
    let (mut codes, mut scales) = (vec![0u8; rows * line], vec![0.0f32; rows * blocks]);
    if columns > 0 {
        codes.par_chunks_exact_mut(line).zip(scales.par_chunks_exact_mut(blocks)).enumerate().for_each(
            |(row, (codes, scales))| {
                let mut values = vec![0.0; columns];
                crate::cpu::quantised::read(tensor, row, &mut values);
                for (block, (values, kept)) in values.chunks(code.block()).zip(scales).enumerate() {
                    let scale = code.scale(values);
                    *kept = code.kept(scale);
                    for (column, x) in values.iter().enumerate() {
                        let (column, element) = (block * code.block() + column, code.encode(*x, scale));
                        match code {
                            Code::Bits8 => codes[column] = element,
                            Code::Nf4 => codes[column / 2] |= element << (4 * (column % 2)),
                        }
                    }
                }
            },
        );
    }
    Kept::Quantised { code, codes: gpu.with_values(&codes), scales: gpu.with_values(&scales) }
}

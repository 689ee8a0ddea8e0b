//! The CUDA backend: the kernels of `kernels/*.cu`, and cuBLASLt's matrix products.
//!
//! Read [`device`] first (what a GPU is asked for), then `matrix` and `scratch`; this file then says for each kernel of
//! the trait which of `kernels/` it runs, on how many threads, and checks the lengths of what it is given. `driver` has
//! CUDA itself, which is loaded when it is first asked for: the program builds and runs without it.
//!
//! Activations, gradients and moments are 32-bit floats, as on the CPU. With [`Arithmetic::Bf16`] both operands of a
//! product are rounded to bf16 and tensor cores sum in 32 bits; an adapter's products read their 32-bit floats as TF32.
//! With [`Arithmetic::F32`] everything is done in 32 bits. Two runs give the same bytes; unlike on the CPU a row's result
//! may depend on how many rows stand beside it, because cuBLASLt picks its order of sums by shape.

mod attention;
pub mod device;
pub mod driver;
mod matrix;
mod scratch;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::bf16;

pub use self::device::Arithmetic;
use self::device::{Address, Argument, Device, Gpu, Memory, Operand, Product};
use self::matrix::Kept;
pub use self::matrix::Matrix;
use self::scratch::Scratch;
use crate::decoder::config::{Activation, DecoderConfig, Head, Norm, NormKind};
use crate::decoder::weights::{HostTensor, Precision, Slot, slots};
use crate::kernels::{AdamW, AttentionShape, CachedRow, DropoutPlace, Kernels, LoraView, Sequence};

/// The kernels that are compiled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// All but attention on tensor cores.
    Base,
    /// Attention on tensor cores for heads padded to this width.
    TensorAttention(usize),
}

impl Program {
    /// The program that has a kernel.
    pub fn of(kernel: &str) -> Self {
        let size = || kernel.strip_prefix("attention_tensor_")?.rsplit('_').next()?.parse().ok();
        size().map_or(Self::Base, Self::TensorAttention)
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Base).chain(attention::tensor_sizes().map(Self::TensorAttention))
    }

    /// Its text.
    pub fn text(self) -> String {
        match self {
            Self::Base => BASE_KERNELS.to_owned(),
            Self::TensorAttention(size) => {
                format!("#define ATTENTION_SIZE {size}\n{TENSOR_ATTENTION_KERNELS}")
            }
        }
    }
}

const BASE_KERNELS: &str = concat!(
    include_str!("kernels/common.cuh"),
    include_str!("kernels/rows.cu"),
    include_str!("kernels/product.cu"),
    include_str!("kernels/quantised.cu"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/rotary.cu"),
    include_str!("kernels/activation.cu"),
    include_str!("kernels/dropout.cu"),
    include_str!("kernels/heads.cuh"),
    include_str!("kernels/attention.cu"),
    include_str!("kernels/cross_entropy.cu"),
    include_str!("kernels/adamw.cu"),
);

const TENSOR_ATTENTION_KERNELS: &str = concat!(
    include_str!("kernels/common.cuh"),
    include_str!("kernels/heads.cuh"),
    include_str!("kernels/attention_tensor.cu"),
);

/// Bytes of logits that exist at once, where nothing else is said; in bf16 arithmetic half as many again of their
/// gradients.
const LOGITS_BYTES: usize = 256 << 20;

/// What is taken beside matrices and rows: cuBLASLt's workspace, kernels' code, what the host has sent.
pub const LIBRARIES_BYTES: usize = 64 << 20;

/// The rows of a bf16 operand begin at a multiple of this many elements: tensor cores read 16 bytes at a time.
const NARROW_ALIGNMENT: usize = 8;

/// Threads of a block where nothing else is said.
const THREADS: u32 = 256;

/// The CUDA backend.
#[derive(Clone)]
pub struct Cuda {
    gpu: Gpu,
    arithmetic: Arithmetic,
    logits_bytes: usize,
    scratch: Arc<Mutex<Scratch>>,
}

/// Where logits and their gradients lie. Where products read bf16 the gradients lie behind the logits, in rows that begin
/// where they are read fast; elsewhere they overwrite them.
struct LogitsLayout {
    /// Rows whose logits exist at once.
    rows: usize,
    /// Of the logits.
    bytes: usize,
    /// Of gradients behind them.
    gradient_bytes: usize,
    /// Elements from one row of the gradients to the next.
    stride: usize,
}

/// 32-bit floats in a GPU's memory.
pub struct Buffer {
    memory: Memory,
    length: usize,
}

impl Buffer {
    /// Where a range of elements begins.
    fn at(&self, range: Range<usize>) -> Address {
        self.memory.at(4 * range.start..4 * range.end)
    }
}

/// Blocks of [`THREADS`] for a kernel whose threads take elements in turn.
fn blocks_for(length: usize) -> [usize; 2] {
    const MOST: usize = 4096;
    [length.div_ceil(THREADS as usize).min(MOST), 1]
}

impl Cuda {
    /// The backend on a device.
    pub fn new(device: Arc<dyn Device>, arithmetic: Arithmetic) -> Self {
        Self { gpu: Gpu::new(device), arithmetic, logits_bytes: LOGITS_BYTES, scratch: Arc::default() }
    }

    /// The same with no more logits at once than `bytes` hold, or four rows.
    pub fn with_logits_bytes(self, bytes: usize) -> Self {
        Self { logits_bytes: bytes, ..self }
    }

    /// What the device is called.
    pub fn name(&self) -> String {
        self.gpu.name()
    }

    /// The device's memory: bytes that are free, and bytes in all.
    ///
    /// # Errors
    /// The device's.
    pub fn memory(&self) -> Result<[usize; 2], device::DeviceError> {
        self.gpu.memory()
    }

    /// Held while a kernel of the trait uses scratch memory, so that threads do not use it at once.
    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // What a thread that panicked left there is overwritten before it is read.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The arithmetic of an adapter's products, whose operands are used once and not worth rounding in memory.
    fn adapter_arithmetic(&self) -> Arithmetic {
        if self.arithmetic == Arithmetic::F32 { Arithmetic::F32 } else { Arithmetic::Tf32 }
    }

    fn sent<T: bytemuck::NoUninit>(&self, scratch: &mut Scratch, values: &[T]) -> Address {
        let memory = scratch.sent.array(&self.gpu, values);
        memory.at(0..size_of_val(values))
    }

    /// A product's left operand: `length` values at `x`, as the arithmetic reads them.
    fn left(&self, scratch: &mut Scratch, x: Address, length: usize) -> Address {
        if self.arithmetic == Arithmetic::Bf16 { scratch.narrow_left(&self.gpu, length, x) } else { x }
    }

    /// `scale dout B` into scratch: `[rows, rank]`
    fn lora_dhidden(
        &self,
        scratch: &mut Scratch,
        rows: usize,
        module: &LoraView<'_, Buffer>,
        dout: &Buffer,
        out_width: usize,
    ) -> Address {
        let (rank, outputs) = (module.rank, module.outputs);
        let out = scratch.rows.reserve(&self.gpu, 4 * rows * rank);
        self.gpu.multiply(&Product {
            rows,
            columns: rank,
            depth: outputs,
            left: Operand::rows(dout.at(module.first..last_row_end(rows, out_width, module)), out_width),
            right: Operand::rows(module.b.at(0..outputs * rank), rank),
            out,
            out_stride: rank,
            scale: module.scale,
            accumulate: false,
            bias: 0,
            arithmetic: self.adapter_arithmetic(),
        });
        out
    }

    /// Pages and positions of rows that go on from a cache, as attention's kernels read them.
    fn cached_rows(&self, scratch: &mut Scratch, page_size: usize, rows: &[CachedRow]) -> [Argument; 4] {
        let (mut starts, mut pages, mut positions) = (Vec::new(), Vec::<u32>::new(), Vec::new());
        let mut before: Option<(&Arc<[u32]>, u32)> = None;
        for row in rows {
            // The rows of one sequence name the same pages: they are sent once.
            let start = match before {
                Some((known, start)) if Arc::ptr_eq(known, &row.pages) => start,
                _ => {
                    let start = pages.len() as u32;
                    pages.extend_from_slice(&row.pages);
                    start
                }
            };
            assert!(row.position / page_size < row.pages.len(), "a position beyond its pages");
            before = Some((&row.pages, start));
            starts.push(start);
            positions.push(row.position as u32);
        }
        [
            Argument::Int(page_size as i32),
            Argument::Address(self.sent(scratch, &starts)),
            Argument::Address(self.sent(scratch, &pages)),
            Argument::Address(self.sent(scratch, &positions)),
        ]
    }

    /// The logits of so many rows, as far as they exist at once; the same for every call over a batch.
    fn logits_layout(&self, vocabulary: usize, rows: usize) -> LogitsLayout {
        // Four at a time, so that each piece of the hidden state begins at a multiple of 16 bytes.
        let rows = rows.min((self.logits_bytes / (4 * vocabulary.max(1)) / 4 * 4).max(4));
        let bytes = (4 * rows * vocabulary).next_multiple_of(2 * NARROW_ALIGNMENT);
        if self.arithmetic != Arithmetic::Bf16 {
            return LogitsLayout { rows, bytes, gradient_bytes: 0, stride: vocabulary };
        }
        let stride = vocabulary.next_multiple_of(NARROW_ALIGNMENT);
        LogitsLayout { rows, bytes, gradient_bytes: 2 * rows * stride, stride }
    }

    /// The loss of each row, and what [`Kernels::cross_entropy`] and its full form write.
    fn head_pass(
        &self,
        x: &Buffer,
        head: &Matrix,
        targets: &[u32],
        gradient: Option<(&[f32], &mut Buffer)>,
        mut dhead: Option<&mut Buffer>,
    ) -> Vec<f32> {
        if targets.is_empty() {
            return Vec::new();
        }
        assert!(targets.iter().all(|target| (*target as usize) < head.rows), "a target beyond the head");
        let (gpu, hidden, vocabulary) = (&self.gpu, head.columns, head.rows);
        let mut scratch = self.scratch();
        let narrowed = self.arithmetic == Arithmetic::Bf16;
        let weight = head.operand(gpu, self.arithmetic, &mut scratch);
        let losses = scratch.rows.reserve(gpu, 4 * targets.len());
        let target_addresses = self.sent(&mut scratch, targets);
        let (scale_addresses, mut dx) = match gradient {
            Some((scales, dx)) => {
                assert_eq!(scales.len(), targets.len(), "a scale for each target");
                (self.sent(&mut scratch, scales), Some(dx))
            }
            None => (0, None),
        };
        let LogitsLayout { rows: most, bytes, gradient_bytes, stride } =
            self.logits_layout(vocabulary, targets.len());
        let logits = scratch.logits.reserve(gpu, bytes + gradient_bytes);
        let dlogits = if narrowed { logits + bytes as u64 } else { logits };
        for first in (0..targets.len()).step_by(most) {
            let rows = most.min(targets.len() - first);
            let part = first * hidden..(first + rows) * hidden;
            let left = self.left(&mut scratch, x.at(part.clone()), rows * hidden);
            let product = |rows, columns, depth, left, right, out, out_stride, accumulate| Product {
                rows,
                columns,
                depth,
                left,
                right,
                out,
                out_stride,
                scale: 1.0,
                accumulate,
                bias: 0,
                arithmetic: self.arithmetic,
            };
            let (left, right) = (Operand::rows(left, hidden), Operand::transposed(weight, hidden));
            gpu.multiply(&product(rows, vocabulary, hidden, left, right, logits, vocabulary, false));
            let arguments = [
                Argument::Int(vocabulary as i32),
                Argument::Address(target_addresses + 4 * first as u64),
                Argument::Address(if dx.is_some() { scale_addresses + 4 * first as u64 } else { 0 }),
                Argument::Address(logits),
                Argument::Address(losses + 4 * first as u64),
                Argument::Address(if narrowed { dlogits } else { 0 }),
                long(stride),
            ];
            gpu.launch("cross_entropy", [rows, 1], 512, 0, &arguments);
            if let Some(dx) = dx.as_deref_mut() {
                let (left, right) = (Operand::rows(dlogits, stride), Operand::rows(weight, hidden));
                gpu.multiply(&product(
                    rows,
                    hidden,
                    vocabulary,
                    left,
                    right,
                    dx.at(part.clone()),
                    hidden,
                    false,
                ));
            }
            if let Some(dhead) = dhead.as_deref_mut() {
                // `left` holds this part of x still.
                let x =
                    if narrowed { scratch.narrow_right(gpu, rows * hidden, x.at(part)) } else { x.at(part) };
                let (left, right) = (Operand::transposed(dlogits, stride), Operand::rows(x, hidden));
                let out = dhead.at(0..vocabulary * hidden);
                gpu.multiply(&product(vocabulary, hidden, rows, left, right, out, hidden, true));
            }
        }
        scratch.rows.read(targets.len())
    }
}

/// The end of the last row that a module adds to, of rows of `out_width`.
fn last_row_end(rows: usize, out_width: usize, module: &LoraView<'_, Buffer>) -> usize {
    if rows == 0 { module.first } else { (rows - 1) * out_width + module.first + module.outputs }
}

/// The number by which kernels know a norm.
fn norm_kind(norm: Norm) -> Argument {
    Argument::Int(match norm.kind {
        NormKind::Layer => 0,
        NormKind::Rms => 1,
    })
}

/// The number by which kernels know an activation.
fn activation_kind(kind: Activation) -> Argument {
    Argument::Int(match kind {
        Activation::GeluErf => 0,
        Activation::GeluTanh => 1,
        Activation::SwiGlu => 2,
        Activation::GeGluTanh => 3,
    })
}

fn int(value: usize) -> Argument {
    Argument::Int(value as i32)
}

fn long(value: usize) -> Argument {
    Argument::Long(value as u64)
}

fn address(buffer: &Buffer, length: usize) -> Argument {
    Argument::Address(buffer.at(0..length))
}

fn address_or_none(buffer: Option<&Buffer>, length: usize) -> Argument {
    buffer.map_or(Argument::Address(0), |buffer| address(buffer, length))
}

/// Threads enough for a row of this width, in whole warps.
fn row_threads(width: usize) -> u32 {
    (width.next_multiple_of(32) as u32).clamp(32, THREADS)
}

impl Kernels for Cuda {
    type Buffer = Buffer;
    type Matrix = Matrix;

    fn widest_head(&self) -> Option<usize> {
        Some(attention::WIDEST_HEAD)
    }

    fn most_bytes(&self) -> Option<u64> {
        Some(self.gpu.most_bytes() as u64)
    }

    fn available_bytes(&self) -> Option<u64> {
        self.memory().ok().map(|[free, _]| free as u64)
    }

    fn scratch_bytes(
        &self,
        config: &DecoderConfig,
        precision: &dyn Fn(Slot) -> Option<Precision>,
        tokens: usize,
        rank: Option<usize>,
    ) -> Option<u64> {
        let (full, rank) = (rank.is_none(), rank.unwrap_or(0));
        let narrow = self.arithmetic == Arithmetic::Bf16;
        let elements = |slot: Slot| slot.shape(config).iter().product::<usize>();
        let matrices = || slots(config).into_iter().filter(|slot| slot.is_matrix());
        // A table in which tokens are looked up is no operand of a product, unless it is the head too.
        let operands = || matrices().filter(|slot| *slot != Slot::Embedding || config.head == Head::Tied);
        // The largest matrix that products do not read as it is kept.
        let converted = operands()
            .filter(|slot| match precision(*slot) {
                // Kept with a copy beside it.
                None | Some(Precision::F32) => false,
                Some(Precision::Published) => narrow,
                Some(Precision::Bf16) => !narrow,
                Some(Precision::F16 | Precision::Bits8 | Precision::Nf4) => true,
            })
            .map(elements)
            .max();
        let weight = converted.unwrap_or(0) * if narrow { 2 } else { 4 };
        // Of what may be trained products read a copy.
        let normalised = (full && config.head == Head::Normalised).then_some(Slot::Head);
        let copied = || matrices().chain(normalised).filter(|slot| precision(*slot) == Some(Precision::F32));
        let copies = if narrow { 2 * copied().map(elements).sum::<usize>() } else { 0 };
        // The left operand is an input or the gradient of an output; beside that gradient an input is the right one.
        let inputs = config.attention_width().max(config.intermediate).max(config.hidden);
        let left = inputs.max(config.query_key_value_rows());
        let narrowed = if narrow { 2 * tokens * (left + if full { inputs } else { 0 }) } else { 0 };
        let of_logits = self.logits_layout(config.vocabulary, tokens);
        let logits = of_logits.bytes + of_logits.gradient_bytes;
        let rows = 4 * tokens * config.heads.max(rank);
        Some((weight + copies + narrowed + logits + rows + LIBRARIES_BYTES) as u64)
    }

    fn buffer(&self, length: usize) -> Buffer {
        Buffer { memory: self.gpu.zeros(4 * length), length }
    }

    fn upload(&self, values: &[f32]) -> Buffer {
        Buffer { memory: self.gpu.with_values(values), length: values.len() }
    }

    fn write(&self, values: &[f32], buffer: &mut Buffer) {
        buffer.memory.write(0, values);
    }

    fn download(&self, buffer: &Buffer, length: usize) -> Vec<f32> {
        buffer.memory.read(length)
    }

    fn length(&self, buffer: &Buffer) -> usize {
        buffer.length
    }

    fn matrix(&self, tensor: &HostTensor<'_>, precision: Precision) -> Matrix {
        Matrix::new(&self.gpu, tensor, precision, self.arithmetic)
    }

    fn modify_matrix(&self, matrix: &mut Matrix, modify: &mut dyn FnMut(&mut [f32])) {
        let mut values = matrix.values(&self.gpu);
        modify(&mut values);
        matrix.set_values(&self.gpu, &values);
    }

    fn read_matrix(&self, matrix: &Matrix, read: &mut dyn FnMut(&[f32])) {
        read(&matrix.values(&self.gpu));
    }

    fn matrix_values(&self, matrix: &Matrix) -> Vec<f32> {
        matrix.values(&self.gpu)
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.bytes()
    }

    fn like_matrix(&self, matrix: &Matrix) -> Buffer {
        self.buffer(matrix.rows * matrix.columns)
    }

    fn packed_values(&self, tensor: &HostTensor<'_>) -> Buffer {
        self.upload(&tensor.to_f32())
    }

    fn unpack_like(&self, matrix: &Matrix, buffer: &Buffer) -> Vec<f32> {
        self.download(buffer, matrix.rows * matrix.columns)
    }

    fn clear(&self, length: usize, x: &mut Buffer) {
        x.memory.clear(0..4 * length);
    }

    fn copy(&self, length: usize, x: &Buffer, out: &mut Buffer) {
        out.memory.copy(0, &x.memory, 0..4 * length);
    }

    fn add(&self, length: usize, x: &Buffer, out: &mut Buffer) {
        let arguments = [long(length), address(x, length), address(out, length)];
        self.gpu.launch("add", blocks_for(length), THREADS, 0, &arguments);
    }

    fn gather(&self, width: usize, rows: &[usize], x: &Buffer, out: &mut Buffer) {
        let named: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let end = rows.iter().max().map_or(0, |row| (row + 1) * width);
        // Held until the launch: what was sent stays where it is.
        let mut scratch = self.scratch();
        let named = Argument::Address(self.sent(&mut scratch, &named));
        let arguments = [int(width), named, address(x, end), address(out, rows.len() * width)];
        self.gpu.launch("gather", [rows.len(), 1], row_threads(width), 0, &arguments);
    }

    fn scatter_add(&self, width: usize, rows: &[usize], x: &Buffer, out: &mut Buffer) {
        let named: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let end = rows.iter().max().map_or(0, |row| (row + 1) * width);
        self.add_rows(width, &named, 1.0, address(x, rows.len() * width), address(out, end));
    }

    fn embed(&self, tokens: &[u32], table: &Matrix, scale: f32, out: &mut Buffer) {
        assert!(tokens.iter().all(|token| (*token as usize) < table.rows), "a token beyond the table");
        let (element_type, values) = table.table();
        let width = table.columns;
        let mut scratch = self.scratch();
        let arguments = [
            int(width),
            Argument::Address(self.sent(&mut scratch, tokens)),
            Argument::Int(element_type),
            Argument::Address(values),
            Argument::Float(scale),
            address(out, tokens.len() * width),
        ];
        self.gpu.launch("embed", [tokens.len(), 1], row_threads(width), 0, &arguments);
    }

    fn embed_backward(&self, tokens: &[u32], table: &Matrix, scale: f32, dout: &Buffer, dtable: &mut Buffer) {
        assert!(tokens.iter().all(|token| (*token as usize) < table.rows), "a token beyond the table");
        let width = table.columns;
        let (dout, dtable) = (address(dout, tokens.len() * width), address(dtable, table.rows * width));
        self.add_rows(width, tokens, scale, dout, dtable);
    }

    fn norm(
        &self,
        norm: Norm,
        rows: usize,
        x: &Buffer,
        weight: &Buffer,
        bias: Option<&Buffer>,
        out: &mut Buffer,
        stats: &mut Buffer,
    ) {
        let width = weight.length;
        let arguments = [
            norm_kind(norm),
            Argument::Float(norm.epsilon),
            int(width),
            address(x, rows * width),
            address(weight, width),
            address_or_none(bias, width),
            address(out, rows * width),
            address(stats, 2 * rows),
        ];
        self.gpu.launch("norm", [rows, 1], row_threads(width), 0, &arguments);
    }

    fn norm_backward(
        &self,
        norm: Norm,
        rows: usize,
        x: &Buffer,
        weight: &Buffer,
        stats: &Buffer,
        dout: &Buffer,
        dx: &mut Buffer,
    ) {
        let width = weight.length;
        let arguments = [
            norm_kind(norm),
            int(width),
            address(x, rows * width),
            address(weight, width),
            address(stats, 2 * rows),
            address(dout, rows * width),
            address(dx, rows * width),
        ];
        self.gpu.launch("norm_backward", [rows, 1], row_threads(width), 0, &arguments);
    }

    fn norm_backward_weight(
        &self,
        rows: usize,
        x: &Buffer,
        stats: &Buffer,
        dout: &Buffer,
        dweight: &mut Buffer,
        dbias: Option<&mut Buffer>,
    ) {
        let width = dweight.length;
        let arguments = [
            int(rows),
            int(width),
            address(x, rows * width),
            address(stats, 2 * rows),
            address(dout, rows * width),
            address(dweight, width),
            address_or_none(dbias.as_deref(), width),
        ];
        self.gpu.launch("norm_backward_weight", [width.div_ceil(32), 1], THREADS, 0, &arguments);
    }

    fn product(
        &self,
        rows: usize,
        x: &Buffer,
        weight: &Matrix,
        bias: Option<&Buffer>,
        out: &mut Buffer,
        accumulate: bool,
    ) {
        let (inputs, outputs) = (weight.columns, weight.rows);
        let mut scratch = self.scratch();
        let left = self.left(&mut scratch, x.at(0..rows * inputs), rows * inputs);
        let right = weight.operand(&self.gpu, self.arithmetic, &mut scratch);
        self.gpu.multiply(&Product {
            rows,
            columns: outputs,
            depth: inputs,
            left: Operand::rows(left, inputs),
            right: Operand::transposed(right, inputs),
            out: out.at(0..rows * outputs),
            out_stride: outputs,
            scale: 1.0,
            accumulate,
            bias: bias.map_or(0, |bias| bias.at(0..outputs)),
            arithmetic: self.arithmetic,
        });
    }

    fn product_backward(
        &self,
        rows: usize,
        dout: &Buffer,
        weight: &Matrix,
        dx: &mut Buffer,
        accumulate: bool,
    ) {
        let (inputs, outputs) = (weight.columns, weight.rows);
        let mut scratch = self.scratch();
        let left = self.left(&mut scratch, dout.at(0..rows * outputs), rows * outputs);
        let right = weight.operand(&self.gpu, self.arithmetic, &mut scratch);
        self.gpu.multiply(&Product {
            rows,
            columns: inputs,
            depth: outputs,
            left: Operand::rows(left, outputs),
            right: Operand::rows(right, inputs),
            out: dx.at(0..rows * inputs),
            out_stride: inputs,
            scale: 1.0,
            accumulate,
            bias: 0,
            arithmetic: self.arithmetic,
        });
    }

    fn product_backward_weight(
        &self,
        rows: usize,
        weight: &Matrix,
        x: &Buffer,
        dout: &Buffer,
        dweight: &mut Buffer,
        dbias: Option<&mut Buffer>,
    ) {
        let (inputs, outputs) = (weight.columns, weight.rows);
        let (x, dout) = (x.at(0..rows * inputs), dout.at(0..rows * outputs));
        let mut scratch = self.scratch();
        let left = self.left(&mut scratch, dout, rows * outputs);
        let right = if self.arithmetic == Arithmetic::Bf16 {
            scratch.narrow_right(&self.gpu, rows * inputs, x)
        } else {
            x
        };
        self.gpu.multiply(&Product {
            rows: outputs,
            columns: inputs,
            depth: rows,
            left: Operand::transposed(left, outputs),
            right: Operand::rows(right, inputs),
            out: dweight.at(0..outputs * inputs),
            out_stride: inputs,
            scale: 1.0,
            accumulate: true,
            bias: 0,
            arithmetic: self.arithmetic,
        });
        if let Some(dbias) = dbias {
            let arguments = [int(rows), int(outputs), Argument::Address(dout), address(dbias, outputs)];
            self.gpu.launch("column_sums", [outputs.div_ceil(32), 1], THREADS, 0, &arguments);
        }
    }

    fn lora(
        &self,
        range: Range<usize>,
        x: &Buffer,
        module: &LoraView<'_, Buffer>,
        hidden: &mut Buffer,
        out: &mut Buffer,
        out_width: usize,
    ) {
        let (rows, rank, inputs, outputs) = (range.len(), module.rank, module.inputs, module.outputs);
        if rows == 0 {
            return;
        }
        let hidden = hidden.at(range.start * rank..range.end * rank);
        let product = Product {
            rows,
            columns: rank,
            depth: inputs,
            left: Operand::rows(x.at(range.start * inputs..range.end * inputs), inputs),
            right: Operand::transposed(module.a.at(0..rank * inputs), inputs),
            out: hidden,
            out_stride: rank,
            scale: module.scale,
            accumulate: false,
            bias: 0,
            arithmetic: self.adapter_arithmetic(),
        };
        self.gpu.multiply(&product);
        let first = range.start * out_width + module.first;
        self.gpu.multiply(&Product {
            columns: outputs,
            depth: rank,
            left: Operand::rows(hidden, rank),
            right: Operand::transposed(module.b.at(0..outputs * rank), rank),
            out: out.at(first..range.start * out_width + last_row_end(rows, out_width, module)),
            out_stride: out_width,
            scale: 1.0,
            accumulate: true,
            ..product
        });
    }

    fn lora_backward(
        &self,
        rows: usize,
        x: &Buffer,
        module: &LoraView<'_, Buffer>,
        hidden: &Buffer,
        dout: &Buffer,
        out_width: usize,
        da: &mut Buffer,
        db: &mut Buffer,
    ) {
        let (rank, inputs, outputs) = (module.rank, module.inputs, module.outputs);
        let mut scratch = self.scratch();
        let dhidden = self.lora_dhidden(&mut scratch, rows, module, dout, out_width);
        // db = doutᵀ hidden
        let dout = dout.at(module.first..last_row_end(rows, out_width, module));
        let product = Product {
            rows: outputs,
            columns: rank,
            depth: rows,
            left: Operand::transposed(dout, out_width),
            right: Operand::rows(hidden.at(0..rows * rank), rank),
            out: db.at(0..outputs * rank),
            out_stride: rank,
            scale: 1.0,
            accumulate: true,
            bias: 0,
            arithmetic: self.adapter_arithmetic(),
        };
        self.gpu.multiply(&product);
        // da = dhiddenᵀ x
        self.gpu.multiply(&Product {
            rows: rank,
            columns: inputs,
            left: Operand::transposed(dhidden, rank),
            right: Operand::rows(x.at(0..rows * inputs), inputs),
            out: da.at(0..rank * inputs),
            out_stride: inputs,
            ..product
        });
    }

    fn lora_backward_input(
        &self,
        rows: usize,
        module: &LoraView<'_, Buffer>,
        dout: &Buffer,
        out_width: usize,
        dx: &mut Buffer,
        accumulate: bool,
    ) {
        let (rank, inputs) = (module.rank, module.inputs);
        let mut scratch = self.scratch();
        let dhidden = self.lora_dhidden(&mut scratch, rows, module, dout, out_width);
        self.gpu.multiply(&Product {
            rows,
            columns: inputs,
            depth: rank,
            left: Operand::rows(dhidden, rank),
            right: Operand::rows(module.a.at(0..rank * inputs), inputs),
            out: dx.at(0..rows * inputs),
            out_stride: inputs,
            scale: 1.0,
            accumulate,
            bias: 0,
            arithmetic: self.adapter_arithmetic(),
        });
    }

    fn dropout(&self, place: &DropoutPlace<'_>, width: usize, x: &Buffer, out: &mut Buffer) {
        self.drop_out(place, width, x, out, false);
    }

    fn dropout_backward(&self, place: &DropoutPlace<'_>, width: usize, dout: &mut Buffer, dx: &mut Buffer) {
        self.drop_out(place, width, dout, dx, true);
    }

    fn rotate(
        &self,
        shape: &AttentionShape,
        positions: &[u32],
        frequencies: &[f32],
        direction: f32,
        query_key_value: &mut Buffer,
    ) {
        let (stride, heads) = (shape.query_key_value_width(), shape.heads + shape.key_value_heads);
        let mut scratch = self.scratch();
        let arguments = [
            int(stride),
            int(heads),
            int(shape.head_size),
            int(frequencies.len()),
            Argument::Address(self.sent(&mut scratch, positions)),
            Argument::Address(self.sent(&mut scratch, frequencies)),
            Argument::Float(direction),
            address(query_key_value, positions.len() * stride),
        ];
        let threads = row_threads(heads * frequencies.len());
        self.gpu.launch("rotate", [positions.len(), 1], threads, 0, &arguments);
    }

    fn head_norm(
        &self,
        shape: &AttentionShape,
        rows: usize,
        heads: Range<usize>,
        epsilon: f32,
        weight: &Buffer,
        query_key_value: &mut Buffer,
        stats: &mut Buffer,
    ) {
        let (stride, size) = (shape.query_key_value_width(), shape.head_size);
        let arguments = [
            Argument::Float(epsilon),
            int(stride),
            int(heads.start * size),
            int(size),
            address(weight, size),
            address(query_key_value, rows * stride),
            address(stats, rows * heads.len()),
        ];
        self.gpu.launch("head_norm", [rows, heads.len()], row_threads(size), 0, &arguments);
    }

    fn head_norm_backward(
        &self,
        shape: &AttentionShape,
        rows: usize,
        heads: Range<usize>,
        x: &Buffer,
        weight: &Buffer,
        stats: &Buffer,
        dquery_key_value: &mut Buffer,
        dweight: Option<&mut Buffer>,
    ) {
        let (stride, size) = (shape.query_key_value_width(), shape.head_size);
        let (stride_argument, first) = (int(stride), int(heads.start * size));
        let (x, stats) = (address(x, rows * stride), address(stats, rows * heads.len()));
        let dx = address(dquery_key_value, rows * stride);
        if let Some(dweight) = dweight {
            let dweight = address(dweight, size);
            let arguments =
                [int(rows), int(heads.len()), stride_argument, first, int(size), x, stats, dx, dweight];
            self.gpu.launch("head_norm_backward_weight", [size.div_ceil(32), 1], THREADS, 0, &arguments);
        }
        let arguments = [stride_argument, first, int(size), x, address(weight, size), stats, dx];
        self.gpu.launch("head_norm_backward", [rows, heads.len()], row_threads(size), 0, &arguments);
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &Buffer,
        out: &mut Buffer,
        log_sums: &mut Buffer,
    ) {
        self.attend(shape, sequences, query_key_value, out, log_sums);
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        sequences: &[Sequence],
        query_key_value: &Buffer,
        out: &Buffer,
        log_sums: &Buffer,
        dout: &Buffer,
        dquery_key_value: &mut Buffer,
    ) {
        self.attend_backward(shape, sequences, query_key_value, out, log_sums, dout, dquery_key_value);
    }

    fn store_key_values(
        &self,
        shape: &AttentionShape,
        page_size: usize,
        rows: &[CachedRow],
        query_key_value: &Buffer,
        cache: &mut Buffer,
    ) {
        self.check_pages(shape, page_size, rows, cache);
        let mut scratch = self.scratch();
        let [page_size, starts, pages, positions] = self.cached_rows(&mut scratch, page_size, rows);
        let arguments = [
            self.heads(&mut scratch, shape),
            page_size,
            starts,
            pages,
            positions,
            address(query_key_value, rows.len() * shape.query_key_value_width()),
            address(cache, cache.length),
        ];
        let threads = row_threads(shape.key_value_heads * shape.head_size);
        self.gpu.launch("store_key_values", [rows.len(), 1], threads, 0, &arguments);
    }

    fn copy_page(&self, length: usize, from: u32, to: u32, cache: &mut Buffer) {
        let (from, to) = (from as usize * length, to as usize * length);
        cache.memory.copy(4 * to, &cache.memory, 4 * from..4 * (from + length));
    }

    fn attention_cached(
        &self,
        shape: &AttentionShape,
        page_size: usize,
        rows: &[CachedRow],
        query_key_value: &Buffer,
        cache: &Buffer,
        out: &mut Buffer,
    ) {
        const WARPS: usize = 4;
        self.check_pages(shape, page_size, rows, cache);
        let mut scratch = self.scratch();
        let [page_size, starts, pages, positions] = self.cached_rows(&mut scratch, page_size, rows);
        let arguments = [
            self.heads(&mut scratch, shape),
            page_size,
            starts,
            pages,
            positions,
            address(query_key_value, rows.len() * shape.query_key_value_width()),
            address(cache, cache.length),
            address(out, rows.len() * shape.width()),
        ];
        let shared = 4 * WARPS * (shape.head_size + 2);
        self.gpu.launch("attention_cached", [rows.len(), shape.heads], 32 * WARPS as u32, shared, &arguments);
    }

    fn activate(
        &self,
        kind: Activation,
        length: usize,
        gate: Option<&Buffer>,
        up: &Buffer,
        out: &mut Buffer,
    ) {
        assert_eq!(kind.gated(), gate.is_some(), "a gated activation has a gate, and no other");
        let arguments = [
            activation_kind(kind),
            long(length),
            address_or_none(gate, length),
            address(up, length),
            address(out, length),
        ];
        self.gpu.launch("activate", blocks_for(length), THREADS, 0, &arguments);
    }

    fn activate_backward(
        &self,
        kind: Activation,
        length: usize,
        gate: Option<&Buffer>,
        up: &Buffer,
        dup: &mut Buffer,
        dgate: Option<&mut Buffer>,
    ) {
        assert!(
            kind.gated() == gate.is_some() && kind.gated() == dgate.is_some(),
            "a gated activation has a gate and its gradient, and no other"
        );
        let arguments = [
            activation_kind(kind),
            long(length),
            address_or_none(gate, length),
            address(up, length),
            address(dup, length),
            address_or_none(dgate.as_deref(), length),
        ];
        self.gpu.launch("activate_backward", blocks_for(length), THREADS, 0, &arguments);
    }

    fn cross_entropy(
        &self,
        x: &Buffer,
        head: &Matrix,
        targets: &[u32],
        gradient: Option<(&[f32], &mut Buffer)>,
    ) -> Vec<f32> {
        self.head_pass(x, head, targets, gradient, None)
    }

    fn cross_entropy_full(
        &self,
        x: &Buffer,
        head: &Matrix,
        targets: &[u32],
        scales: &[f32],
        dx: &mut Buffer,
        dhead: &mut Buffer,
    ) -> Vec<f32> {
        self.head_pass(x, head, targets, Some((scales, dx)), Some(dhead))
    }

    fn adamw(&self, settings: &AdamW, values: &mut Buffer, gradient: &mut Buffer, moments: &mut [Buffer; 2]) {
        let length = values.length;
        self.move_values(settings, length, values.at(0..length), gradient, moments, 0);
    }

    fn adamw_matrix(
        &self,
        settings: &AdamW,
        values: &mut Matrix,
        gradient: &mut Buffer,
        moments: &mut [Buffer; 2],
    ) {
        let length = values.rows * values.columns;
        let Kept::F32(masters) = &values.kept else { unreachable!("a trained matrix is kept in f32") };
        let narrowed =
            values.narrowed.as_ref().map_or(0, |narrowed| narrowed.at(0..size_of::<bf16>() * length));
        self.move_values(settings, length, masters.at(0..4 * length), gradient, moments, narrowed);
    }

    fn squared_norm(&self, gradient: &Buffer) -> f64 {
        const BLOCKS: usize = 256;
        let parts = self.gpu.zeros(8 * BLOCKS);
        let length = gradient.length;
        let arguments = [long(length), address(gradient, length), Argument::Address(parts.at(0..8 * BLOCKS))];
        self.gpu.launch("squared_norm", [BLOCKS, 1], THREADS, 0, &arguments);
        parts.read::<f64>(BLOCKS).iter().sum()
    }
}

impl Cuda {
    /// `out (+)= x mask / (1 - rate)`
    fn drop_out(
        &self,
        place: &DropoutPlace<'_>,
        width: usize,
        x: &Buffer,
        out: &mut Buffer,
        accumulate: bool,
    ) {
        let rows = place.keys.len();
        let keys: Vec<u64> = place.keys.iter().map(|key| key.bits()).collect();
        let threshold = (f64::from(place.rate) * f64::from(u32::MAX)) as u32;
        let mut scratch = self.scratch();
        let arguments = [
            Argument::Address(self.sent(&mut scratch, &keys)),
            Argument::Long(((place.layer as u64) << 16) ^ place.module as u64),
            Argument::Unsigned(threshold),
            Argument::Float(1.0 / (1.0 - place.rate)),
            int(width),
            address(x, rows * width),
            address(out, rows * width),
            Argument::Int(i32::from(accumulate)),
        ];
        self.gpu.launch("dropout", [rows, 1], row_threads(width), 0, &arguments);
    }

    /// Adds `scale` times row `i` of `x` to row `named[i]` of `out`, those of one row in their order: each sum has one.
    fn add_rows(&self, width: usize, named: &[u32], scale: f32, x: Argument, out: Argument) {
        let mut order: Vec<u32> = (0..named.len() as u32).collect();
        order.sort_by_key(|row| named[*row as usize]);
        let (mut distinct, mut starts) = (Vec::new(), Vec::new());
        for (place, row) in order.iter().enumerate() {
            let row = named[*row as usize];
            if distinct.last() != Some(&row) {
                distinct.push(row);
                starts.push(place as u32);
            }
        }
        starts.push(order.len() as u32);
        // Held until the launch: what was sent stays where it is.
        let mut scratch = self.scratch();
        let arguments = [
            int(width),
            Argument::Address(self.sent(&mut scratch, &distinct)),
            Argument::Address(self.sent(&mut scratch, &starts)),
            Argument::Address(self.sent(&mut scratch, &order)),
            Argument::Float(scale),
            x,
            out,
        ];
        self.gpu.launch("add_rows", [distinct.len(), 1], row_threads(width), 0, &arguments);
    }

    /// One update of `length` values, and of their copy in bf16 where there is one; the gradient is zero after it.
    fn move_values(
        &self,
        settings: &AdamW,
        length: usize,
        values: Address,
        gradient: &mut Buffer,
        moments: &mut [Buffer; 2],
        narrowed: Address,
    ) {
        // The corrections are powers of numbers near one: in f64, as on the CPU.
        let correction1 = 1.0 - f64::from(settings.beta1).powi(settings.step as i32);
        let correction2 = 1.0 - f64::from(settings.beta2).powi(settings.step as i32);
        let [first, second] = moments;
        let arguments = [
            long(length),
            Argument::Float(settings.gradient_scale),
            Argument::Float(settings.beta1),
            Argument::Float(settings.beta2),
            Argument::Float((f64::from(settings.learning_rate) / correction1) as f32),
            Argument::Float(correction2.sqrt() as f32),
            Argument::Float(settings.epsilon),
            Argument::Float(1.0 - settings.learning_rate * settings.weight_decay),
            Argument::Address(values),
            address(gradient, length),
            address(first, length),
            address(second, length),
            Argument::Address(narrowed),
        ];
        self.gpu.launch("adamw", blocks_for(length), THREADS, 0, &arguments);
    }

    /// That every page a row names lies in the cache.
    fn check_pages(&self, shape: &AttentionShape, page_size: usize, rows: &[CachedRow], cache: &Buffer) {
        let length = 2 * shape.key_value_heads * page_size * shape.head_size;
        let pages = cache.length / length.max(1);
        let inside = |row: &CachedRow| row.pages.iter().all(|page| (*page as usize) < pages);
        assert!(rows.iter().all(inside), "a page beyond the cache's {pages}");
    }
}

//! What the backend asks of a GPU: memory, copies, kernels by name and matrix products, one after the other.
//!
//! [`Device`] is the narrow side that knows CUDA (`driver.rs`); the tests' emulator is another, which runs the same
//! kernels on the CPU. [`Gpu`] is the checked side that the kernels of `mod.rs` are written on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{AnyBitPattern, NoUninit};

/// A place in a device's memory; 0 is none.
pub type Address = u64;

/// What a device could not do, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

/// In what a product's operands are read; its sums and its result are always 32-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// 32-bit floats.
    F32,
    /// 32-bit floats in memory, of which tensor cores read 10 bits of mantissa.
    Tf32,
    /// Brain floats.
    Bf16,
}

/// One of a product's operands, as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Its first element.
    pub address: Address,
    /// Elements from one line in memory to the next.
    pub stride: usize,
    /// Whether a line in memory is a column of the operand, not a row.
    pub transposed: bool,
}

impl Operand {
    /// A row-major operand.
    pub fn rows(address: Address, stride: usize) -> Self {
        Self { address, stride, transposed: false }
    }

    /// The transposed of a row-major matrix.
    pub fn transposed(address: Address, stride: usize) -> Self {
        Self { address, stride, transposed: true }
    }
}

/// `out (+)= scale * left · right + bias`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Of `left` and `out`.
    pub rows: usize,
    /// Of `right` and `out`.
    pub columns: usize,
    /// Columns of `left`, rows of `right`.
    pub depth: usize,
    /// `[rows, depth]`
    pub left: Operand,
    /// `[depth, columns]`
    pub right: Operand,
    /// `[rows, columns]` of `f32`.
    pub out: Address,
    /// Elements from one row of `out` to the next.
    pub out_stride: usize,
    /// What the product is multiplied by.
    pub scale: f32,
    /// Whether `out` is added to.
    pub accumulate: bool,
    /// `[columns]` of `f32`, or 0.
    pub bias: Address,
    /// The type of both operands.
    pub arithmetic: Arithmetic,
}

/// What attention's kernels know of the heads: `struct Heads` of `kernels/heads.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Heads {
    /// Query heads.
    pub heads: i32,
    /// Key-value heads.
    pub key_value_heads: i32,
    /// Width of a head.
    pub size: i32,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Positions that a query sees, its own among them.
    pub window: i32,
    /// ALiBi's slopes, or 0.
    pub slopes: Address,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A pointer, or 0.
    Address(Address),
    /// `int`
    Int(i32),
    /// `u32`
    Unsigned(u32),
    /// `u64`
    Long(u64),
    /// `float`
    Float(f32),
    /// `Heads`
    Heads(Heads),
}

/// A kernel's name, the blocks and threads that run it, and its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// As in `kernels/`.
    pub name: &'static str,
    /// Blocks, in two dimensions.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory beyond what the kernel declares.
    pub shared_bytes: usize,
    /// In the kernel's order.
    pub arguments: &'a [Argument],
}

/// A GPU, or what stands in for one. All work happens in the order in which it was asked for.
pub trait Device: Send + Sync {
    /// What to call it.
    fn name(&self) -> String;

    /// Bytes that are free, and bytes in all.
    ///
    /// # Errors
    /// The device's.
    fn memory(&self) -> Result<[usize; 2], DeviceError>;

    /// Memory whose contents are undefined, at a multiple of 16 bytes.
    ///
    /// # Errors
    /// The device's: most often there is not enough.
    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `address` came from [`Device::allocate`], and is not used again.
    unsafe fn free(&self, address: Address);

    /// Overwrites memory with `bytes`.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// `bytes.len()` bytes from `to` on are allocated.
    unsafe fn upload(&self, bytes: &[u8], to: Address) -> Result<(), DeviceError>;

    /// Overwrites `bytes` with memory, when all work so far is done.
    ///
    /// # Errors
    /// The device's, those of earlier work among them.
    ///
    /// # Safety
    /// `bytes.len()` bytes from `from` on are allocated.
    unsafe fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies memory; the two places do not overlap.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// `bytes` bytes from both addresses on are allocated.
    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError>;

    /// Overwrites memory with zeros.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// `bytes` bytes from `to` on are allocated.
    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DeviceError>;

    /// Runs a kernel.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The arguments have the kernel's types, and what it reads and writes is allocated.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError>;

    /// Multiplies matrices; or says no, where the device's library has no algorithm for such operands.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// What the product names is allocated.
    unsafe fn multiply(&self, product: &Product) -> Result<bool, DeviceError>;
}

/// A device, with memory that is given back when it is dropped and lengths that are checked.
///
/// A device that fails while it works (a fault of a kernel, of the driver, of the card) leaves nothing to go on from, and
/// what must fit was planned before ([`Gpu::memory`] tells what there is): so its errors end the thread with a panic that
/// tells them.
#[derive(Clone)]
pub struct Gpu {
    device: Arc<dyn Device>,
    held: Arc<Held>,
}

/// Bytes that are allocated on a device, and the most that were at once.
#[derive(Debug, Default)]
struct Held {
    bytes: AtomicUsize,
    most: AtomicUsize,
}

impl Gpu {
    /// A device from here on.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self { device, held: Arc::default() }
    }

    /// What to call it.
    pub fn name(&self) -> String {
        self.device.name()
    }

    /// Bytes that are free, and bytes in all.
    ///
    /// # Errors
    /// The device's.
    pub fn memory(&self) -> Result<[usize; 2], DeviceError> {
        self.device.memory()
    }

    /// The most bytes that were allocated here at once; what the device's own libraries take is not among them.
    pub fn most_bytes(&self) -> usize {
        self.held.most.load(Ordering::Relaxed)
    }

    /// Memory with undefined contents.
    pub(super) fn allocate(&self, bytes: usize) -> Memory {
        // A device may not give no bytes.
        let taken = bytes.max(16);
        let address = self.must("allocate memory", self.device.allocate(taken));
        let held = self.held.bytes.fetch_add(taken, Ordering::Relaxed) + taken;
        self.held.most.fetch_max(held, Ordering::Relaxed);
        Memory { gpu: self.clone(), address, bytes }
    }

    /// Memory of zeros.
    pub(super) fn zeros(&self, bytes: usize) -> Memory {
        let memory = self.allocate(bytes);
        memory.clear(0..bytes);
        memory
    }

    /// Memory with these values.
    pub(super) fn with_values<T: NoUninit>(&self, values: &[T]) -> Memory {
        let memory = self.allocate(size_of_val(values));
        memory.write(0, values);
        memory
    }

    /// Runs a kernel; one without blocks does nothing. The caller has checked what it reads and writes.
    pub(super) fn launch(
        &self,
        name: &'static str,
        grid: [usize; 2],
        threads: u32,
        shared_bytes: usize,
        arguments: &[Argument],
    ) {
        let grid = grid.map(|blocks| blocks as u32);
        if grid.contains(&0) {
            return;
        }
        let launch = Launch { name, grid, threads, shared_bytes, arguments };
        // SAFETY: mod.rs, which alone calls this, passes what the kernel's declaration asks for, and checks the lengths of
        // its buffers; the tests run every kernel between pages that nobody may touch.
        self.must(name, unsafe { self.device.launch(&launch) });
    }

    /// Multiplies matrices; the caller has checked what is read and written.
    pub(super) fn multiply(&self, product: &Product) {
        let adds_nothing = product.depth == 0 && product.accumulate && product.bias == 0;
        if product.rows == 0 || product.columns == 0 || adds_nothing {
            return;
        }
        // SAFETY: as for `launch`.
        if !self.must("multiply matrices", unsafe { self.device.multiply(product) }) {
            self.multiply_plainly(product);
        }
    }

    /// The same by a kernel that takes any operands.
    fn multiply_plainly(&self, product: &Product) {
        let strides = |operand: Operand| {
            let (line, element) = (Argument::Long(operand.stride as u64), Argument::Long(1));
            if operand.transposed { [element, line] } else { [line, element] }
        };
        let ([left_row, left_step], [right_step, right_column]) =
            (strides(product.left), strides(product.right));
        let sizes = [product.rows, product.columns, product.depth];
        let [rows, columns, depth] = sizes.map(|size| Argument::Int(size as i32));
        let arguments = [
            rows,
            columns,
            depth,
            Argument::Int(i32::from(product.arithmetic == Arithmetic::Bf16)),
            Argument::Address(product.left.address),
            left_row,
            left_step,
            Argument::Address(product.right.address),
            right_step,
            right_column,
            Argument::Float(product.scale),
            Argument::Int(i32::from(product.accumulate)),
            Argument::Address(product.bias),
            Argument::Address(product.out),
            Argument::Long(product.out_stride as u64),
        ];
        self.launch(
            "product",
            super::blocks_for(product.rows * product.columns),
            super::THREADS,
            0,
            &arguments,
        );
    }

    fn must<T>(&self, what: &str, result: Result<T, DeviceError>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => panic!("{} could not {what}: {error}", self.device.name()),
        }
    }
}

/// Memory of a device.
pub struct Memory {
    gpu: Gpu,
    address: Address,
    bytes: usize,
}

impl Memory {
    /// Its length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where a range of bytes begins.
    pub(super) fn at(&self, range: Range<usize>) -> Address {
        assert!(
            range.start <= range.end && range.end <= self.bytes,
            "bytes {range:?} of a device's memory of {}",
            self.bytes
        );
        self.address + range.start as u64
    }

    /// Overwrites what begins at byte `start`.
    pub(super) fn write<T: NoUninit>(&self, start: usize, values: &[T]) {
        let to = self.at(start..start + size_of_val(values));
        // SAFETY: `at` checked the range.
        self.gpu.must("take values", unsafe { self.gpu.device.upload(bytemuck::cast_slice(values), to) });
    }

    /// `count` values from the beginning.
    pub(super) fn read<T: NoUninit + AnyBitPattern>(&self, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        let from = self.at(0..size_of_val(values.as_slice()));
        let bytes = bytemuck::cast_slice_mut(&mut values);
        // SAFETY: `at` checked the range.
        self.gpu.must("give values", unsafe { self.gpu.device.download(from, bytes) });
        values
    }

    /// Overwrites a range of bytes with zeros.
    pub(super) fn clear(&self, range: Range<usize>) {
        let (bytes, to) = (range.len(), self.at(range));
        // SAFETY: `at` checked the range.
        self.gpu.must("clear memory", unsafe { self.gpu.device.clear(to, bytes) });
    }

    /// Overwrites what begins at byte `start` with a range of another memory, or of this one elsewhere.
    pub(super) fn copy(&self, start: usize, from: &Self, range: Range<usize>) {
        let bytes = range.len();
        let (from, to) = (from.at(range), self.at(start..start + bytes));
        assert!(from.abs_diff(to) >= bytes as u64, "a copy onto itself");
        // SAFETY: `at` checked both ranges, and they do not overlap.
        self.gpu.must("copy memory", unsafe { self.gpu.device.copy(from, to, bytes) });
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `allocate` gave the address, and its owner is gone.
        unsafe { self.gpu.device.free(self.address) };
        self.gpu.held.bytes.fetch_sub(self.bytes.max(16), Ordering::Relaxed);
    }
}

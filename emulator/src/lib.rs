//! A GPU for tests: the CUDA backend's kernels, compiled as C++ and run on the CPU.
//!
//! It checks what the kernels compute and that they stay inside their memory: every allocation lies between pages that
//! nobody may touch, and holds no numbers before it is written. Matrix products are the `gemm` crate's, with operands
//! rounded as a GPU rounds them. It knows nothing of speed, and threads do not race.

#![expect(unsafe_code, reason = "kernels are C++, and their memory is addresses")]

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use engine::Cuda;
use engine::cuda::Arithmetic;
use engine::cuda::device::{Address, Argument, Device, DeviceError, Launch, Operand, Product};
use engine::cuda::driver::Driver;
use half::bf16;

unsafe extern "C" {
    fn emulator_allocate(bytes: usize) -> *mut c_void;
    fn emulator_free(memory: *mut c_void, bytes: usize);
    fn emulator_launch(
        name: *const c_char,
        grid_x: c_uint,
        grid_y: c_uint,
        threads: c_uint,
        shared_bytes: usize,
        arguments: *mut *mut c_void,
    ) -> c_int;
}

/// The emulated GPU.
#[derive(Default)]
pub struct Emulator {
    /// Whether it has no library for matrix products, and leaves them all to the backend's own kernel.
    pub without_products: bool,
    /// The length of each allocation.
    allocated: Mutex<HashMap<Address, usize>>,
    most: AtomicUsize,
}

impl Emulator {
    /// The most bytes that were allocated at once.
    pub fn most_bytes(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

/// The CUDA backend that tests run: on an emulated GPU or, with `POLYPACA_CUDA` set, on the machine's first.
///
/// # Panics
/// If a real one is asked for and cannot be had.
pub fn cuda(arithmetic: Arithmetic) -> Cuda {
    if std::env::var_os("POLYPACA_CUDA").is_none() {
        return Cuda::new(Arc::new(Emulator::default()), arithmetic);
    }
    // One for all tests: to open it and to compile its kernels takes seconds.
    static DEVICE: OnceLock<Arc<dyn Device>> = OnceLock::new();
    let open = || -> Arc<dyn Device> {
        match Driver::open(0, None) {
            Ok(driver) => Arc::new(driver),
            Err(error) => panic!("POLYPACA_CUDA is set: {error}"),
        }
    };
    Cuda::new(Arc::clone(DEVICE.get_or_init(open)), arithmetic)
}

/// The CUDA backend on an emulated GPU without a library for products.
pub fn cuda_without_products(arithmetic: Arithmetic) -> Cuda {
    Cuda::new(Arc::new(Emulator { without_products: true, ..Emulator::default() }), arithmetic)
}

impl Device for Emulator {
    fn name(&self) -> String {
        "the emulated GPU".to_owned()
    }

    fn memory(&self) -> Result<[usize; 2], DeviceError> {
        const TOTAL: usize = 80 << 30;
        let allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        Ok([TOTAL.saturating_sub(allocated.values().sum()), TOTAL])
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        // SAFETY: any length may be asked for.
        let address = unsafe { emulator_allocate(bytes) } as Address;
        if address == 0 {
            return Err(DeviceError(format!("no memory for {bytes} bytes")));
        }
        let mut allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        allocated.insert(address, bytes);
        self.most.fetch_max(allocated.values().sum(), Ordering::Relaxed);
        Ok(address)
    }

    unsafe fn free(&self, address: Address) {
        let bytes = self.allocated.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        if let Some(bytes) = bytes {
            // SAFETY: `allocate` gave the address, with this length.
            unsafe { emulator_free(address as *mut c_void, bytes) };
        }
    }

    unsafe fn upload(&self, bytes: &[u8], to: Address) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(to as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let name = CString::new(launch.name).map_err(|error| DeviceError(error.to_string()))?;
        let mut arguments: Vec<*mut c_void> = launch
            .arguments
            .iter()
            .map(|argument| {
                let place: *const c_void = match argument {
                    Argument::Address(value) | Argument::Long(value) => std::ptr::from_ref(value).cast(),
                    Argument::Int(value) => std::ptr::from_ref(value).cast(),
                    Argument::Unsigned(value) => std::ptr::from_ref(value).cast(),
                    Argument::Float(value) => std::ptr::from_ref(value).cast(),
                    Argument::Heads(value) => std::ptr::from_ref(value).cast(),
                };
                place.cast_mut()
            })
            .collect();
        let Launch { grid: [x, y], threads, shared_bytes, .. } = *launch;
        // SAFETY: the caller's promise; the arguments' places outlive the call, which is done when it returns.
        let code =
            unsafe { emulator_launch(name.as_ptr(), x, y, threads, shared_bytes, arguments.as_mut_ptr()) };
        match code {
            0 => Ok(()),
            1 => Err(DeviceError(format!("there is no kernel {}", launch.name))),
            2 => Err(DeviceError(format!("some threads of {} wait for others that never come", launch.name))),
            _ => Err(DeviceError(format!("{threads} threads a block cannot be had for {}", launch.name))),
        }
    }

    unsafe fn multiply(&self, product: &Product) -> Result<bool, DeviceError> {
        if self.without_products {
            return Ok(false);
        }
        let Product { rows, columns, depth, out_stride, scale, accumulate, bias, arithmetic, .. } = *product;
        // SAFETY: the caller's promise.
        let left = unsafe { operand(product.left, [rows, depth], arithmetic) };
        // SAFETY: as above.
        let right = unsafe { operand(product.right, [depth, columns], arithmetic) };
        let mut out = vec![0.0f32; rows * columns];
        // SAFETY: the three matrices are row-major and of these sizes.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                depth,
                out.as_mut_ptr(),
                1,
                columns as isize,
                false,
                left.as_ptr(),
                1,
                depth as isize,
                right.as_ptr(),
                1,
                columns as isize,
                0.0f32,
                scale,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        for (row, values) in out.chunks_exact(columns).enumerate() {
            for (column, value) in values.iter().enumerate() {
                let to = (product.out as *mut f32).wrapping_add(row * out_stride + column);
                // SAFETY: the caller's promise; a bias has a value a column.
                unsafe {
                    let bias = if bias == 0 { 0.0 } else { *(bias as *const f32).add(column) };
                    *to = value + bias + if accumulate { *to } else { 0.0 };
                }
            }
        }
        Ok(true)
    }
}

/// An operand as a row-major matrix of 32-bit floats, rounded as `arithmetic` reads it.
///
/// # Safety
/// Its elements are allocated.
unsafe fn operand(operand: Operand, [rows, columns]: [usize; 2], arithmetic: Arithmetic) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let (line, place) = if operand.transposed { (column, row) } else { (row, column) };
            let at = line * operand.stride + place;
            // SAFETY: the caller's promise.
            let value = unsafe {
                match arithmetic {
                    Arithmetic::F32 => *(operand.address as *const f32).add(at),
                    // The lowest 13 bits of the mantissa are not read.
                    Arithmetic::Tf32 => {
                        let value: f32 = *(operand.address as *const f32).add(at);
                        f32::from_bits(value.to_bits() & !0x1fff)
                    }
                    Arithmetic::Bf16 => (*(operand.address as *const bf16).add(at)).to_f32(),
                }
            };
            values.push(value);
        }
    }
    values
}

//! CUDA itself: the driver, NVRTC and cuBLASLt, each loaded when it is first asked for.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result as blas;
use cudarc::cublaslt::sys as blas_sys;
use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute, CUmemPool_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
    result as driver,
};
use cudarc::nvrtc::{Ptx, result as nvrtc, sys as nvrtc_sys};

use super::Program;
use super::device::{Address, Argument, Arithmetic, Device, DeviceError, Heads, Launch, Product};

/// An NVIDIA GPU.
pub struct Driver {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    architecture: String,
    cache: Option<PathBuf>,
    modules: Mutex<HashMap<Program, Arc<CudaModule>>>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
    products: Mutex<Products>,
}

/// cuBLASLt and what it knows.
struct Products {
    handle: blas_sys::cublasLtHandle_t,
    workspace: Address,
    /// None for a product that cuBLASLt has no algorithm for.
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: cuBLASLt's handle may be used from any thread, and lies behind a lock.
unsafe impl Send for Products {}

/// Bytes that cuBLASLt may use while it multiplies: what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

// SAFETY: `Heads` is `repr(C)` and laid out as the kernels' structure of the same name.
unsafe impl DeviceRepr for Heads {}

impl Driver {
    /// The GPU of this number. The common kernels are compiled now, attention's when they are first asked for; all are kept
    /// under `cache`, where it is given.
    ///
    /// # Errors
    /// What is missing: a driver, a GPU, NVRTC or cuBLASLt.
    pub fn open(number: usize, cache: Option<&Path>) -> Result<Self, DeviceError> {
        // SAFETY: the libraries are looked for and let go again; none of NVIDIA's does anything by being loaded.
        let present = unsafe {
            [
                ("driver (libcuda)", cudarc::driver::sys::is_culib_present()),
                ("compiler of kernels (libnvrtc)", nvrtc_sys::is_culib_present()),
                ("matrix products (libcublasLt)", blas_sys::is_culib_present()),
            ]
        };
        if let Some((library, _)) = present.iter().find(|(_, present)| !present) {
            return Err(DeviceError(format!(
                "NVIDIA's {library} was not found; it comes with the driver, and the other libraries with CUDA 12 or 13"
            )));
        }
        let context = CudaContext::new(number).map_err(error)?;
        let (major, minor) = context.compute_capability().map_err(error)?;
        let architecture = format!("sm_{major}{minor}");
        if major < 8 {
            return Err(DeviceError(format!(
                "{} is of compute capability {major}.{minor}; bf16 on tensor cores takes 8.0",
                context.name().map_err(error)?
            )));
        }
        let stream = context.new_stream().map_err(error)?;
        keep_freed_memory(&context).map_err(error)?;
        let handle = blas::create_handle().map_err(error)?;
        // SAFETY: the context is this thread's current one, and the stream is its own.
        let workspace =
            unsafe { driver::malloc_async(stream.cu_stream(), WORKSPACE_BYTES) }.map_err(error)?;
        let products = Mutex::new(Products { handle, workspace, plans: HashMap::new() });
        let driver = Self {
            context,
            stream,
            architecture,
            cache: cache.map(Path::to_path_buf),
            modules: Mutex::default(),
            functions: Mutex::default(),
            products,
        };
        // What every use takes is compiled now, so that a compiler that cannot is told here.
        driver.module(Program::Base)?;
        Ok(driver)
    }

    fn function(&self, name: &'static str) -> Result<CudaFunction, DeviceError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let module = self.module(Program::of(name))?;
        let function = module.load_function(&format!("kernel_{name}")).map_err(error)?;
        // What a block may have beyond 48 KiB has to be asked for.
        let most = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let most = self.context.attribute(most).map_err(error)?;
        let fixed = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let dynamic = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is the module's, which is loaded.
        unsafe {
            let fixed =
                driver::function::get_function_attribute(function.cu_function(), fixed).map_err(error)?;
            driver::function::set_function_attribute(function.cu_function(), dynamic, most - fixed)
                .map_err(error)?;
        }
        functions.insert(name, function.clone());
        Ok(function)
    }

    fn module(&self, program: Program) -> Result<Arc<CudaModule>, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&program) {
            return Ok(Arc::clone(module));
        }
        self.bind()?;
        let module = load_module(&self.context, &self.architecture, program, self.cache.as_deref())?;
        modules.insert(program, Arc::clone(&module));
        Ok(module)
    }

    /// Gives the memory that was freed back to the system, once all work is done.
    fn give_back_freed(&self) -> Result<(), DriverError> {
        // SAFETY: the stream and the pool are this context's.
        unsafe {
            driver::stream::synchronize(self.stream.cu_stream())?;
            let pool = driver::device::get_default_mem_pool(self.context.cu_device())?;
            driver::mem_pool::trim_to(pool, 0)
        }
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(error)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let products = self.products.get_mut().unwrap_or_else(PoisonError::into_inner);
        // What fails here fails at the end of all work, and there is nobody to tell.
        let _ = self.context.bind_to_thread();
        // SAFETY: nothing uses the plans, the workspace or the handle after this; the stream's work ends first.
        unsafe {
            let _ = driver::stream::synchronize(self.stream.cu_stream());
            products.plans.clear();
            let _ = driver::free_async(products.workspace, self.stream.cu_stream());
            let _ = blas::destroy_handle(products.handle);
        }
    }
}

impl Device for Driver {
    fn name(&self) -> String {
        self.context.name().unwrap_or_else(|_| "an NVIDIA GPU".to_owned())
    }

    fn memory(&self) -> Result<[usize; 2], DeviceError> {
        self.bind()?;
        // What was freed is kept for what comes next, and would not be counted as free.
        self.give_back_freed().map_err(error)?;
        let (free, total) = driver::mem_get_info().map_err(error)?;
        Ok([free, total])
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the stream is this context's.
        let allocate = || unsafe { driver::malloc_async(stream, bytes) };
        let again = |first: DriverError| {
            if first.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return Err(first);
            }
            // What was freed is kept for what comes next, and may be in pieces: it goes back to the system first.
            self.give_back_freed()?;
            allocate()
        };
        allocate().or_else(again).map_err(|source| DeviceError(format!("{bytes} bytes: {}", error(source))))
    }

    unsafe fn free(&self, address: Address) {
        let _ = self.context.bind_to_thread();
        // SAFETY: the caller's promise. An error would be one of earlier work, which the next call tells.
        let _ = unsafe { driver::free_async(address, self.stream.cu_stream()) };
    }

    unsafe fn upload(&self, bytes: &[u8], to: Address) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's promise; from pageable memory the call returns when `bytes` has been read.
        unsafe { driver::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }.map_err(error)
    }

    unsafe fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the caller's promise; `bytes` is borrowed until the copy is done.
        unsafe {
            if !bytes.is_empty() {
                driver::memcpy_dtoh_async(bytes, from, stream).map_err(error)?;
            }
            driver::stream::synchronize(stream).map_err(error)
        }
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { driver::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(error)
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { driver::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) }.map_err(error)
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.bind()?;
        let function = self.function(launch.name)?;
        let mut builder = self.stream.launch_builder(&function);
        for argument in launch.arguments {
            match argument {
                Argument::Address(value) | Argument::Long(value) => builder.arg(value),
                Argument::Int(value) => builder.arg(value),
                Argument::Unsigned(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
                Argument::Heads(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig {
            grid_dim: (launch.grid[0], launch.grid[1], 1),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: launch.shared_bytes as u32,
        };
        // SAFETY: the caller's promise.
        unsafe { builder.launch(config) }
            .map(|_| ())
            .map_err(|source| DeviceError(format!("kernel {}: {}", launch.name, error(source))))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<bool, DeviceError> {
        self.bind()?;
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        let (handle, workspace) = (products.handle, products.workspace);
        let key = Key::of(product);
        let plan = match products.plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                let plan = match Plan::new(handle, &key, product.bias) {
                    Ok(plan) => Some(plan),
                    Err(source) if has_no_algorithm(product, &source) => None,
                    Err(source) => return Err(refused(product, source)),
                };
                new.insert(plan)
            }
        };
        let Some(known) = plan else { return Ok(false) };
        let beta: f32 = if product.accumulate { 1.0 } else { 0.0 };
        let pointer = |address: Address| address as *const c_void;
        // cuBLASLt's matrices are column-major: what it multiplies here is the transposed, right operand first.
        // SAFETY: the caller's promise for the operands; the plan's descriptions live as long as it does.
        let multiplied = unsafe {
            known.set_bias(product.bias).map_err(error)?;
            blas::matmul(
                handle,
                known.description,
                pointer_to(&product.scale),
                pointer_to(&beta),
                pointer(product.right.address),
                known.right,
                pointer(product.left.address),
                known.left,
                pointer(product.out),
                known.out,
                product.out as *mut c_void,
                known.out,
                &raw const known.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        };
        match multiplied {
            Ok(()) => Ok(true),
            // It was refused before anything was written.
            Err(source) if has_no_algorithm(product, &source) => {
                *plan = None;
                Ok(false)
            }
            Err(source) => Err(refused(product, source)),
        }
    }
}

/// Whether cuBLASLt says that it cannot multiply such operands, which is told once: their plan is then none.
fn has_no_algorithm(product: &Product, source: &blas::CublasError) -> bool {
    let cannot = source.0 == blas_sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED;
    if cannot {
        let Product { rows, columns, depth, arithmetic, .. } = product;
        tracing::warn!(
            "cuBLASLt has no algorithm for {rows} × {depth} by {depth} × {columns} in {arithmetic:?}: a plain kernel \
             multiplies them, slowly"
        );
    }
    cannot
}

/// Lets the driver keep what is freed for what is allocated next: else it goes back to the system whenever the host waits,
/// which is once a micro-batch.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    let all = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is the context's, and the attribute is a 64-bit number.
    unsafe {
        let pool = driver::device::get_default_mem_pool(context.cu_device())?;
        driver::mem_pool::set_attribute(pool, threshold, std::ptr::from_ref(&all).cast_mut().cast())
    }
}

/// What a plan for a product depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    strides: [usize; 3],
    transposed: [bool; 2],
    /// The alignment of the operands and the result, up to 256 bytes.
    alignments: [u32; 3],
    /// The alignment of the bias; 0 where there is none.
    bias: u32,
    arithmetic: Arithmetic,
}

impl Key {
    fn of(product: &Product) -> Self {
        let alignment = |address: Address| 1 << address.trailing_zeros().min(8);
        Self {
            sizes: [product.rows, product.columns, product.depth],
            strides: [product.left.stride, product.right.stride, product.out_stride],
            transposed: [product.left.transposed, product.right.transposed],
            alignments: [
                alignment(product.left.address),
                alignment(product.right.address),
                alignment(product.out),
            ],
            bias: if product.bias == 0 { 0 } else { alignment(product.bias) },
            arithmetic: product.arithmetic,
        }
    }
}

/// A product as cuBLASLt describes it, and the algorithm that it picked.
struct Plan {
    description: blas_sys::cublasLtMatmulDesc_t,
    left: blas_sys::cublasLtMatrixLayout_t,
    right: blas_sys::cublasLtMatrixLayout_t,
    out: blas_sys::cublasLtMatrixLayout_t,
    algorithm: blas_sys::cublasLtMatmulAlgo_t,
    bias: bool,
}

impl Plan {
    /// `bias` is the first product's: its alignment is known from the key, and the algorithm may depend on it.
    fn new(handle: blas_sys::cublasLtHandle_t, key: &Key, bias: Address) -> Result<Self, blas::CublasError> {
        use blas_sys::cublasComputeType_t as Compute;
        use blas_sys::cublasLtMatmulDescAttributes_t as Attribute;
        use blas_sys::cudaDataType_t as Type;
        let (compute, element) = match key.arithmetic {
            Arithmetic::F32 => (Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F),
            Arithmetic::Tf32 => (Compute::CUBLAS_COMPUTE_32F_FAST_TF32, Type::CUDA_R_32F),
            Arithmetic::Bf16 => (Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_16BF),
        };
        let ([rows, columns, depth], [left, right, out]) = (key.sizes, key.strides);
        // A row-major matrix is a column-major one of its columns and rows, with the same stride.
        let layout = |element, lines: usize, length: usize, stride: usize| {
            blas::create_matrix_layout(element, length as u64, lines as u64, stride as i64)
        };
        let lines = |transposed, rows, columns| if transposed { (columns, rows) } else { (rows, columns) };
        let (left_lines, left_length) = lines(key.transposed[0], rows, depth);
        let (right_lines, right_length) = lines(key.transposed[1], depth, columns);
        let mut plan = Self {
            description: blas::create_matmul_desc(compute, Type::CUDA_R_32F)?,
            left: layout(element, left_lines, left_length, left)?,
            right: layout(element, right_lines, right_length, right)?,
            out: layout(Type::CUDA_R_32F, rows, columns, out)?,
            algorithm: blas_sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            bias: key.bias != 0,
        };
        let transpose = |transposed| i32::from(transposed);
        // The right operand is cuBLASLt's first.
        set(plan.description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transpose(key.transposed[1]))?;
        set(plan.description, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &transpose(key.transposed[0]))?;
        if key.bias != 0 {
            let epilogue = blas_sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(plan.description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            let of_bias = Type::CUDA_R_32F;
            set(plan.description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &of_bias)?;
        }
        plan.set_bias(bias)?;
        plan.algorithm = plan.pick(handle, key)?;
        Ok(plan)
    }

    /// The algorithm that cuBLASLt thinks fastest.
    fn pick(
        &self,
        handle: blas_sys::cublasLtHandle_t,
        key: &Key,
    ) -> Result<blas_sys::cublasLtMatmulAlgo_t, blas::CublasError> {
        use blas_sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = blas::create_matmul_pref()?;
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the preference was just made, and the value has the attribute's type.
            unsafe { blas::set_matmul_pref_attribute(preference, attribute, value, bytes) }
        };
        let result = (|| {
            let workspace = WORKSPACE_BYTES;
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            set(attribute, pointer_to(&workspace), size_of::<usize>())?;
            let [left, right, out] = key.alignments;
            for (attribute, alignment) in [
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, right),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, left),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
            ] {
                set(attribute, pointer_to(&alignment), size_of::<u32>())?;
            }
            // SAFETY: the descriptions were just made.
            unsafe {
                blas::get_matmul_algo_heuristic(
                    handle,
                    self.description,
                    self.right,
                    self.left,
                    self.out,
                    self.out,
                    preference,
                )
            }
        })();
        // SAFETY: nothing uses the preference after this.
        let _ = unsafe { blas::destroy_matmul_pref(preference) };
        result.map(|found| found.algo)
    }

    /// Where the bias of the next product lies.
    fn set_bias(&self, bias: Address) -> Result<(), blas::CublasError> {
        if !self.bias {
            return Ok(());
        }
        let attribute = blas_sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        set(self.description, attribute, &bias)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: the descriptions are this plan's own.
        unsafe {
            let _ = blas::destroy_matmul_desc(self.description);
            for layout in [self.left, self.right, self.out] {
                let _ = blas::destroy_matrix_layout(layout);
            }
        }
    }
}

/// Sets an attribute of a product's description.
fn set<T: Copy>(
    description: blas_sys::cublasLtMatmulDesc_t,
    attribute: blas_sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), blas::CublasError> {
    // SAFETY: callers pass a live description and a value of the attribute's type.
    unsafe { blas::set_matmul_desc_attribute(description, attribute, pointer_to(value), size_of::<T>()) }
}

fn pointer_to<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

fn refused(product: &Product, source: blas::CublasError) -> DeviceError {
    let Product { rows, columns, depth, arithmetic, .. } = product;
    DeviceError(format!(
        "cuBLASLt refused {rows} × {depth} by {depth} × {columns} in {arithmetic:?}: {source}"
    ))
}

/// An error of any of NVIDIA's libraries, in its own words.
fn error(source: impl std::fmt::Display) -> DeviceError {
    DeviceError(source.to_string())
}

/// The kernels for an architecture: from the cache, or compiled and put there.
fn load_module(
    context: &Arc<CudaContext>,
    architecture: &str,
    program: Program,
    cache: Option<&Path>,
) -> Result<Arc<CudaModule>, DeviceError> {
    let load = |binary: Vec<u8>| -> Result<Arc<CudaModule>, DriverError> {
        context.load_module(Ptx::from_binary(binary))
    };
    let kept = cache.map(|folder| folder.join(cache_name(architecture, program)));
    if let Some(module) =
        kept.as_ref().and_then(|path| std::fs::read(path).ok()).and_then(|binary| load(binary).ok())
    {
        return Ok(module);
    }
    let binary = compile(architecture, program)?;
    if let Some(path) = &kept {
        // A cache that cannot be written costs a second at the next start, and no more.
        let _ = keep(path, &binary);
    }
    load(binary).map_err(error)
}

/// The name of compiled kernels: all that determines them is in it.
fn cache_name(architecture: &str, program: Program) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the two places are this function's own.
    unsafe { nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    let hash = blake3::hash(program.text().as_bytes()).to_hex();
    format!("{architecture}-nvrtc{major}.{minor}-{}.cubin", &hash[..16])
}

/// Writes a file that is whole whenever it is there.
fn keep(path: &Path, binary: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    std::fs::create_dir_all(&folder)?;
    let unfinished = path.with_extension(format!("{}.unfinished", std::process::id()));
    std::fs::write(&unfinished, binary)?;
    std::fs::rename(&unfinished, path)
}

/// A program as a binary for an architecture (`sm_90`), by NVRTC; no GPU is needed.
///
/// # Errors
/// NVRTC's, with its log.
pub fn compile(architecture: &str, program: Program) -> Result<Vec<u8>, DeviceError> {
    // SAFETY: as in `Driver::open`.
    if !unsafe { nvrtc_sys::is_culib_present() } {
        return Err(DeviceError("NVIDIA's compiler of kernels (libnvrtc) was not found".to_owned()));
    }
    let text = CString::new(program.text()).map_err(error)?;
    let program =
        nvrtc::create_program(&text, Some(c"polypaca.cu")).map_err(|source| nvrtc_error(&source))?;
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
    // SAFETY: the program was just made, and is destroyed once, after its last use.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options)
            .map_err(|source| {
                let log = nvrtc::get_program_log(program).unwrap_or_default();
                let log = CStr::from_bytes_until_nul(bytemuck::cast_slice(&log)).unwrap_or_default();
                DeviceError(format!("{source:?} for {architecture}: {}", log.to_string_lossy()))
            })
            .and_then(|()| binary_of(program));
        let _ = nvrtc::destroy_program(program);
        compiled
    }
}

/// A compiled program's binary.
fn binary_of(program: nvrtc_sys::nvrtcProgram) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = 0;
    // SAFETY: the program is compiled; the binary's place has the length that was asked for.
    unsafe {
        nvrtc_sys::nvrtcGetCUBINSize(program, &raw mut bytes)
            .result()
            .map_err(|source| nvrtc_error(&source))?;
        let mut binary = vec![0u8; bytes];
        nvrtc_sys::nvrtcGetCUBIN(program, binary.as_mut_ptr().cast())
            .result()
            .map_err(|source| nvrtc_error(&source))?;
        Ok(binary)
    }
}

fn nvrtc_error(source: &nvrtc::NvrtcError) -> DeviceError {
    DeviceError(format!("{source:?}"))
}

//! `--device`: where a model's weights lie and its arithmetic is done.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use clap::ValueEnum;
use engine::Cuda;
use engine::cuda::Arithmetic;
use engine::cuda::driver::Driver;

use crate::failure::Failure;
use crate::output::Output;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// This machine's processor
    Cpu,
    /// An NVIDIA GPU, the first that CUDA shows; products in bf16
    Cuda,
}

/// The CUDA backend on the first GPU, its compiled kernels kept in the user's cache.
///
/// # Errors
/// What is missing, in words.
pub(crate) fn cuda(output: &Output) -> Result<Cuda, Failure> {
    if cfg!(all(target_env = "musl", target_feature = "crt-static")) {
        return Err(Failure::wrong_input(anyhow!(
            "--device cuda: the static program cannot load NVIDIA's libraries; expected --device cpu, or a program from \
             `cargo install`"
        )));
    }
    let driver = Driver::open(0, kernel_cache().as_deref())
        .map_err(|error| Failure::wrong_input(anyhow!("--device cuda: {error}; expected --device cpu")))?;
    let cuda = Cuda::new(Arc::new(driver), Arithmetic::Bf16);
    output.warning(format!(
        "{}: the CUDA backend's kernels have been tested on an emulated GPU and compiled for real ones; hold its first \
         losses against --device cpu",
        cuda.name()
    ));
    Ok(cuda)
}

/// `polypaca/kernels` in the user's cache, where there is one.
fn kernel_cache() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("polypaca/kernels"))
}

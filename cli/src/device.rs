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

/// What asks for a device, in its own words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    cuda: &'static str,
    cpu: &'static str,
}

/// A command's flag.
pub(crate) const FLAG: Asked = Asked { cuda: "--device cuda", cpu: "--device cpu" };

/// A setting of an experiment file.
pub(crate) const SETTING: Asked = Asked { cuda: "[experiment] device = \"cuda\"", cpu: "device = \"cpu\"" };

/// The CUDA backend on the first GPU, its compiled kernels kept in the user's cache.
///
/// # Errors
/// What is missing, in words.
pub(crate) fn cuda(asked: Asked, output: &Output) -> Result<Cuda, Failure> {
    if cfg!(all(target_env = "musl", target_feature = "crt-static")) {
        return Err(Failure::wrong_input(anyhow!(
            "{}: the static program cannot load NVIDIA's libraries; expected {}, or a program from `cargo install`",
            asked.cuda,
            asked.cpu
        )));
    }
    let driver = Driver::open(0, kernel_cache().as_deref())
        .map_err(|error| Failure::wrong_input(anyhow!("{}: {error}; expected {}", asked.cuda, asked.cpu)))?;
    let cuda = Cuda::new(Arc::new(driver), Arithmetic::Bf16);
    output.warning(format!(
        "{}: the CUDA backend's kernels have been tested on an emulated GPU and compiled for real ones; hold its first \
         losses against {}",
        cuda.name(),
        asked.cpu
    ));
    Ok(cuda)
}

/// `polypaca/kernels` in the user's cache, where there is one.
fn kernel_cache() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("polypaca/kernels"))
}

//! Files mapped into memory.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a file for reading, so that a model is read from disk only where it is used.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: the mapping is only read. Another program that shortens the file meanwhile would end this one with a
    // bus error; weights files are replaced, not rewritten in place (this program renames over them), and every
    // reader of safetensors takes the same risk.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

/// Gives back the memory of what was read: it counts as the program's as long as it is mapped. What is read again comes
/// from the file again.
pub(crate) fn forget(map: &Mmap) {
    // SAFETY: the mapping is shared and never written to, so dropped pages come back with the file's bytes.
    // That the system will not drop them changes nothing but the memory taken.
    #[cfg(unix)]
    let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    #[cfg(not(unix))]
    let _ = map;
}

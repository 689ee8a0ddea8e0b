//! The lock on a file that a judging writes: two programs at one file would each write it without the other's ratings.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::rating::{RatingError, beside};

/// The lock, held until it is dropped; the system ends it with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock on `out`, a file beside it.
    ///
    /// # Errors
    /// [`RatingError::InUse`] where another judging has it; [`RatingError::File`].
    pub(crate) fn take(out: &Path) -> Result<Lock, RatingError> {
        let path = beside(out, ".lock");
        let at_lock = |source| RatingError::File { path: path.clone(), source };
        loop {
            let mut options = File::options();
            let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = opened.map_err(at_lock)?;
            match file.try_lock() {
                // An owner that ended removed the file after it was opened here: it is no longer the lock.
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(RatingError::InUse { path: out.to_path_buf(), process: owner(&mut file) });
                }
                Err(TryLockError::Error(error)) => return Err(at_lock(error)),
            }
            name_owner(&mut file).map_err(at_lock)?;
            return Ok(Lock { path, _file: file });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked: whoever opened it meanwhile looks whether it is still there. A file that cannot be
        // removed locks nothing.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether an open file is the one at this path.
#[cfg(unix)]
fn is_at(opened: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (opened.metadata(), fs::metadata(path)) {
        (Ok(opened), Ok(found)) => identity(opened) == identity(found),
        _ => false,
    }
}

/// Elsewhere no lock's file is removed.
#[cfg(not(unix))]
fn is_at(_opened: &File, _path: &Path) -> bool {
    true
}

/// Who holds the lock, as it wrote itself down: it only helps to find the other program.
fn owner(file: &mut File) -> String {
    let mut owner = String::new();
    let _ = file.read_to_string(&mut owner);
    if owner.trim().is_empty() { "unknown".to_owned() } else { owner.trim().to_owned() }
}

fn name_owner(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { String::new() } else { format!(" on {}", host.trim()) };
    writeln!(file, "process {}{host}", std::process::id())
}

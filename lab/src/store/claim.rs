//! Locks on a store and on a cell: files that the system holds for a process, as long as it lives.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::{StoreError, file};

/// The lock on a folder, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    // Closing it ends the lock.
    _file: File,
}

/// A cell that this program alone works on, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _file: File,
}

/// What came of claiming a cell.
#[derive(Debug)]
pub enum Claimed {
    /// It is this program's.
    Ours(Claim),
    /// Another program works on it: which, in words.
    Theirs(String),
}

impl Lock {
    /// The folder's lock for one program alone.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another program has it; [`StoreError::File`].
    pub fn alone(folder: &Path) -> Result<Self, StoreError> {
        Self::hold(folder, File::try_lock)
    }

    /// The folder's lock for several programs.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another program has it alone; [`StoreError::File`].
    pub fn shared(folder: &Path) -> Result<Self, StoreError> {
        Self::hold(folder, File::try_lock_shared)
    }

    fn hold(folder: &Path, lock: impl Fn(&File) -> Result<(), TryLockError>) -> Result<Self, StoreError> {
        let path = folder.join("lock");
        let mut opened = open(&path)?;
        match lock(&opened) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { folder: folder.to_owned(), process: owner(&mut opened) });
            }
            Err(TryLockError::Error(error)) => return Err(file("lock", &path)(error)),
        }
        name_owner(&mut opened).map_err(file("write", &path))?;
        Ok(Self { _file: opened })
    }
}

impl Claim {
    /// Takes the claim at `path`, or says who has it.
    pub(super) fn take(path: &Path) -> Result<Claimed, StoreError> {
        loop {
            let mut opened = open(path)?;
            match opened.try_lock() {
                // An owner that ended removed the file after it was opened here: it is no longer the claim.
                Ok(()) if !is_at(&opened, path) => continue,
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Claimed::Theirs(owner(&mut opened))),
                Err(TryLockError::Error(error)) => return Err(file("lock", path)(error)),
            }
            name_owner(&mut opened).map_err(file("write", path))?;
            return Ok(Claimed::Ours(Self { path: path.to_owned(), _file: opened }));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it is still locked: whoever opened it meanwhile looks whether it is still there. A file that cannot be
        // removed is only an empty claim.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).map_err(file("open", path))
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

/// Elsewhere no claim's file is removed.
#[cfg(not(unix))]
fn is_at(_opened: &File, _path: &Path) -> bool {
    true
}

/// Who holds a lock, as it wrote itself down. It only helps to find the other program; the lock itself is the system's.
fn owner(lock: &mut File) -> String {
    let mut owner = String::new();
    let _ = lock.read_to_string(&mut owner);
    match owner.trim() {
        "" => "unknown".to_owned(),
        named => named.to_owned(),
    }
}

fn name_owner(lock: &mut File) -> std::io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", this_program())
}

/// This program, to be found by: its process, the machine, and the Slurm job where it is one.
fn this_program() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut named = format!("process {}", std::process::id());
    if !host.trim().is_empty() {
        named += &format!(" on {}", host.trim());
    }
    if let Ok(job) = std::env::var("SLURM_JOB_ID") {
        named += &format!(", Slurm job {job}");
    }
    named
}

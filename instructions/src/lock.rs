//! Locks that the system holds for a process, as long as it lives: none is left behind by a kill.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// A lock, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    removed: bool,
    // Closing it ends the lock.
    _file: File,
}

/// What came of taking a lock.
#[derive(Debug)]
pub enum Taken {
    /// It is this program's.
    Ours(Lock),
    /// Another program has it: which, in words.
    Theirs(String),
}

/// With whom a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// By one program.
    Alone,
    /// By several, none of which has it alone.
    Shared,
}

impl Lock {
    /// The lock at `path`, a file that stays.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn hold(path: &Path, sharing: Sharing) -> io::Result<Taken> {
        Self::take(path, sharing, false)
    }

    /// The lock at `path` for this program alone, a file that is removed with it.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn claim(path: &Path) -> io::Result<Taken> {
        Self::take(path, Sharing::Alone, true)
    }

    fn take(path: &Path, sharing: Sharing, removed: bool) -> io::Result<Taken> {
        loop {
            let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            let locked = match sharing {
                Sharing::Alone => file.try_lock(),
                Sharing::Shared => file.try_lock_shared(),
            };
            match locked {
                // An owner that ended removed the file after it was opened here: it is no longer the lock.
                Ok(()) if removed && !is_at(&file, path) => continue,
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Taken::Theirs(owner(&mut file))),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            name_owner(&mut file)?;
            return Ok(Taken::Ours(Self { path: path.to_owned(), removed, _file: file }));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked: whoever opened it meanwhile looks whether it is still there. A file that cannot be
        // removed locks nothing.
        if self.removed && cfg!(unix) {
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

/// Who holds a lock, as it wrote itself down. It only helps to find the other program; the lock itself is the system's.
fn owner(lock: &mut File) -> String {
    let mut owner = String::new();
    let _ = lock.read_to_string(&mut owner);
    match owner.trim() {
        "" => "unknown".to_owned(),
        named => named.to_owned(),
    }
}

fn name_owner(lock: &mut File) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_has_it_and_it_goes_with_its_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let Taken::Ours(first) = Lock::claim(&path).expect("a file") else { panic!("nobody has it") };
        let Taken::Theirs(owner) = Lock::claim(&path).expect("a file") else { panic!("it was taken twice") };
        assert!(owner.contains(&format!("process {}", std::process::id())), "{owner}");
        drop(first);
        assert!(!path.exists());
        let shared = [Sharing::Shared; 2].map(|sharing| Lock::hold(&path, sharing).expect("a file"));
        assert!(shared.iter().all(|taken| matches!(taken, Taken::Ours(_))));
        assert!(matches!(Lock::hold(&path, Sharing::Alone).expect("a file"), Taken::Theirs(_)));
        drop(shared);
        assert!(matches!(Lock::hold(&path, Sharing::Alone).expect("a file"), Taken::Ours(_)));
        assert!(path.exists());
    }
}

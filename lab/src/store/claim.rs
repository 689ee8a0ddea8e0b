//! Locks on a store and on a cell.

use std::path::Path;

use instructions::lock::{Lock, Sharing, Taken};

use super::{StoreError, file};

/// The lock on a folder, held until it is dropped.
#[derive(Debug)]
pub struct FolderLock(#[expect(dead_code, reason = "it is there to be held")] Lock);

/// A cell that this program alone works on, until this is dropped.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "it is there to be held")] Lock);

/// What came of claiming a cell.
#[derive(Debug)]
pub enum Claimed {
    /// It is this program's.
    Ours(Claim),
    /// Another program works on it: which, in words.
    Theirs(String),
}

impl FolderLock {
    /// The folder's lock for one program alone.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another program has it; [`StoreError::File`].
    pub fn alone(folder: &Path) -> Result<Self, StoreError> {
        Self::hold(folder, Sharing::Alone)
    }

    /// The folder's lock for several programs.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another program has it alone; [`StoreError::File`].
    pub fn shared(folder: &Path) -> Result<Self, StoreError> {
        Self::hold(folder, Sharing::Shared)
    }

    fn hold(folder: &Path, sharing: Sharing) -> Result<Self, StoreError> {
        let path = folder.join("lock");
        match Lock::hold(&path, sharing).map_err(file("lock", &path))? {
            Taken::Ours(lock) => Ok(Self(lock)),
            Taken::Theirs(process) => Err(StoreError::InUse { folder: folder.to_owned(), process }),
        }
    }
}

impl Claim {
    /// Takes the claim at `path`, or says who has it.
    pub(super) fn take(path: &Path) -> Result<Claimed, StoreError> {
        Ok(match Lock::claim(path).map_err(file("lock", path))? {
            Taken::Ours(lock) => Claimed::Ours(Self(lock)),
            Taken::Theirs(owner) => Claimed::Theirs(owner),
        })
    }
}

//! The store: results of finished cells, by the hash of everything that determines them.
//!
//! ```text
//! STORE/lock               held while programs write: by several that claim cells, or by one alone
//! STORE/claims/KEY         held by the program that works on the cell; names it
//! STORE/work/KEY/          a cell that is being worked on: its checkpoints survive a kill
//! STORE/cells/KEY/         a finished cell: its files, and cell.json
//! STORE/cells/KEY/cell.json
//! ```
//!
//! A cell becomes finished by one rename, after its files and its manifest are on the disk: a kill at any
//! moment leaves it unfinished or finished, and nothing between. Its files are hashed when it is finished and
//! verified when it is read: what was changed since is never served.
//!
//! Several programs may work on one store, on one machine or on several with a shared file system: each claims a cell
//! before it works on it. A claim is the system's lock on a file (`flock`), so it ends with the process that holds it,
//! however that ends: no clock and no process number decides whether a claim still holds. A shared file system has to
//! support such locks between its machines, as NFS 4, Lustre with `flock`, GPFS and CephFS do.

mod claim;
mod manifest;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use claim::{Claim, Claimed, FolderLock};
pub use manifest::{Determinants, FileHash, Key, Manifest};

/// The name of a finished cell's manifest.
pub const MANIFEST_FILE: &str = "cell.json";

/// In a cell's folder: its result is whole, but more may come of it when it is tried again. Holds the reason.
pub const INCOMPLETE_FILE: &str = "incomplete.txt";

/// A folder of finished cells.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    // What was verified once need not be read again by the same program.
    verified: Mutex<BTreeSet<Key>>,
    lock: Option<FolderLock>,
}

/// Why a store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another program holds the store.
    #[error("{} is in use by another program ({process}): wait for it to end, or use another folder", folder.display())]
    InUse {
        /// The store, or the results' folder.
        folder: PathBuf,
        /// As the other program wrote it.
        process: String,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
    /// A finished cell is not as it was when it was finished.
    #[error("the finished cell {} is corrupted: {reason}", folder.display())]
    Corrupted {
        /// The cell's folder.
        folder: PathBuf,
        /// Which file, what was found and what was expected.
        reason: String,
    },
    /// The store was opened for reading alone.
    #[error("the store {} was opened for reading", folder.display())]
    ReadOnly {
        /// The store.
        folder: PathBuf,
    },
}

/// Names the file in an error of the system.
fn file<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> StoreError + 'a {
    move |error| StoreError::File { action, path: path.to_owned(), error }
}

impl Store {
    /// Opens a store to write into, and makes it if it is not there. Nobody else may write meanwhile.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another program writes into it; [`StoreError::File`].
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Self::make(folder)?;
        let lock = FolderLock::alone(folder)?;
        Ok(Self { folder: folder.to_owned(), verified: Mutex::default(), lock: Some(lock) })
    }

    /// Opens a store to work on cells beside other programs, and makes it if it is not there. Each cell is to be
    /// claimed ([`Store::claim`]) before it is worked on, replaced or removed.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another program holds the store alone; [`StoreError::File`].
    pub fn share(folder: &Path) -> Result<Self, StoreError> {
        Self::make(folder)?;
        let lock = FolderLock::shared(folder)?;
        Ok(Self { folder: folder.to_owned(), verified: Mutex::default(), lock: Some(lock) })
    }

    fn make(folder: &Path) -> Result<(), StoreError> {
        for part in ["cells", "work", "claims"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(file("make the folder", &path))?;
        }
        Ok(())
    }

    /// Claims a cell: as long as the claim is held, no other program works on it.
    ///
    /// # Errors
    /// [`StoreError::File`], [`StoreError::ReadOnly`].
    pub fn claim(&self, key: &Key) -> Result<Claimed, StoreError> {
        self.writable()?;
        Claim::take(&self.folder.join("claims").join(key.to_string()))
    }

    /// Opens a store to look into. It need not be there, and another program may be writing into it.
    pub fn read(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), verified: Mutex::default(), lock: None }
    }

    /// Where the store lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a finished cell of this key lies, or would lie.
    pub fn cell_folder(&self, key: &Key) -> PathBuf {
        self.folder.join("cells").join(key.to_string())
    }

    /// Where a cell of this key is worked on. What an earlier attempt left there is kept: its checkpoints.
    ///
    /// # Errors
    /// [`StoreError::File`], [`StoreError::ReadOnly`].
    pub fn work_folder(&self, key: &Key) -> Result<PathBuf, StoreError> {
        self.writable()?;
        let folder = self.folder.join("work").join(key.to_string());
        fs::create_dir_all(&folder).map_err(file("make the folder", &folder))?;
        Ok(folder)
    }

    /// Finishes a cell: hashes what lies in its work folder, writes the manifest, and renames the folder.
    ///
    /// # Errors
    /// [`StoreError::File`], [`StoreError::ReadOnly`].
    pub fn finish(
        &self,
        key: &Key,
        determinants: &Determinants,
        experiment: &str,
        took: Duration,
    ) -> Result<(), StoreError> {
        let work = self.work_folder(key)?;
        let mut files = BTreeMap::new();
        for path in files_below(&work)? {
            let name = relative_name(&work, &path);
            if name == MANIFEST_FILE {
                continue; // an attempt that was killed between the manifest and the rename
            }
            sync(&path)?;
            files.insert(name, hash_file(&path)?);
        }
        let manifest = Manifest {
            key: *key,
            determinants: determinants.clone(),
            files,
            experiment: experiment.to_owned(),
            seconds: took.as_secs_f64(),
            finished: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        };
        write_atomically(&work.join(MANIFEST_FILE), &manifest.to_json())?;
        let target = self.cell_folder(key);
        if target.exists() {
            fs::remove_dir_all(&target).map_err(file("replace", &target))?;
        }
        fs::rename(&work, &target).map_err(file("rename", &work))?;
        sync_folder(&self.folder.join("cells"))
    }

    /// The folder of a finished cell, verified; `None` where it is not finished.
    ///
    /// # Errors
    /// [`StoreError::Corrupted`] where a file of it is not as it was.
    pub fn finished(&self, key: &Key) -> Result<Option<PathBuf>, StoreError> {
        let folder = self.cell_folder(key);
        if !folder.exists() {
            return Ok(None);
        }
        let known = self.verified.lock().is_ok_and(|verified| verified.contains(key));
        if !known {
            verify(&folder, key)?;
            if let Ok(mut verified) = self.verified.lock() {
                verified.insert(*key);
            }
        }
        Ok(Some(folder))
    }

    /// Whether a cell has a folder among the finished ones. Verifies nothing.
    pub fn has(&self, key: &Key) -> bool {
        self.cell_folder(key).join(MANIFEST_FILE).exists()
    }

    /// Why a finished cell is to be gone on with, where it is: its worker left [`INCOMPLETE_FILE`]. Verifies nothing.
    pub fn incomplete(&self, key: &Key) -> Option<String> {
        let reason = fs::read_to_string(self.cell_folder(key).join(INCOMPLETE_FILE)).ok()?;
        self.has(key).then(|| reason.trim().to_owned())
    }

    /// The manifest of a finished cell.
    ///
    /// # Errors
    /// [`StoreError::Corrupted`] where it cannot be read.
    pub fn manifest(&self, key: &Key) -> Result<Manifest, StoreError> {
        read_manifest(&self.cell_folder(key))
    }

    /// The manifests of all finished cells, and what is wrong with those that have none, by label.
    ///
    /// # Errors
    /// [`StoreError::File`] where the store itself cannot be read.
    pub fn list(&self) -> Result<Vec<Result<Manifest, StoreError>>, StoreError> {
        let cells = self.folder.join("cells");
        if !cells.exists() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&cells).map_err(file("list", &cells))?;
        let mut manifests = Vec::new();
        for entry in entries {
            let entry = entry.map_err(file("list", &cells))?;
            manifests.push(read_manifest(&entry.path()));
        }
        manifests.sort_by_cached_key(|manifest| match manifest {
            Ok(manifest) => (manifest.determinants.label.clone(), manifest.finished),
            Err(error) => (error.to_string(), 0),
        });
        Ok(manifests)
    }

    /// Removes every finished cell, those that cannot be read among them, with what was left of making them; gives their
    /// number.
    ///
    /// # Errors
    /// [`StoreError::File`], [`StoreError::ReadOnly`].
    pub fn remove_all(&self) -> Result<usize, StoreError> {
        self.writable()?;
        let cells = self.folder.join("cells");
        let mut removed = 0;
        for entry in fs::read_dir(&cells).map_err(file("list", &cells))? {
            let entry = entry.map_err(file("list", &cells))?;
            for folder in [entry.path(), self.folder.join("work").join(entry.file_name())] {
                if folder.is_dir() {
                    fs::remove_dir_all(&folder).map_err(file("remove", &folder))?;
                } else if folder.exists() {
                    fs::remove_file(&folder).map_err(file("remove", &folder))?;
                }
            }
            removed += 1;
        }
        if let Ok(mut verified) = self.verified.lock() {
            verified.clear();
        }
        Ok(removed)
    }

    /// Removes a cell, finished or not. Removing what is not there does nothing.
    ///
    /// # Errors
    /// [`StoreError::File`], [`StoreError::ReadOnly`].
    pub fn remove(&self, key: &Key) -> Result<(), StoreError> {
        self.writable()?;
        for folder in [self.cell_folder(key), self.folder.join("work").join(key.to_string())] {
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(file("remove", &folder))?;
            }
        }
        if let Ok(mut verified) = self.verified.lock() {
            verified.remove(key);
        }
        Ok(())
    }

    /// Removes whatever unfinished cells have left, checkpoints too. Returns how many there were.
    ///
    /// # Errors
    /// [`StoreError::File`], [`StoreError::ReadOnly`].
    pub fn remove_unfinished(&self) -> Result<usize, StoreError> {
        self.writable()?;
        let work = self.folder.join("work");
        let mut removed = 0;
        for entry in fs::read_dir(&work).map_err(file("list", &work))? {
            let path = entry.map_err(file("list", &work))?.path();
            fs::remove_dir_all(&path).map_err(file("remove", &path))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Takes a finished cell back to its work folder, to be gone on with.
    ///
    /// # Errors
    /// [`StoreError::File`], [`StoreError::ReadOnly`].
    pub fn reopen(&self, key: &Key) -> Result<(), StoreError> {
        let work = self.work_folder(key)?;
        fs::remove_dir_all(&work).map_err(file("remove", &work))?;
        let cell = self.cell_folder(key);
        fs::rename(&cell, &work).map_err(file("rename", &cell))
    }

    fn writable(&self) -> Result<(), StoreError> {
        match self.lock {
            Some(_) => Ok(()),
            None => Err(StoreError::ReadOnly { folder: self.folder.clone() }),
        }
    }
}

/// Writes a file so that a reader finds the old one or the new one, and never a part.
///
/// # Errors
/// [`StoreError::File`].
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(file("write", path))
}

/// The content hash of a file.
///
/// # Errors
/// [`StoreError::File`].
pub fn hash_file(path: &Path) -> Result<FileHash, StoreError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(path).map_err(file("read", path))?;
    Ok(FileHash { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}

/// All files below a folder, sorted by path.
///
/// # Errors
/// [`StoreError::File`].
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(file("list", folder))? {
        let path = entry.map_err(file("list", folder))?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_manifest(folder: &Path) -> Result<Manifest, StoreError> {
    let corrupted = |reason: String| StoreError::Corrupted { folder: folder.to_owned(), reason };
    let path = folder.join(MANIFEST_FILE);
    let text = fs::read(&path).map_err(|error| corrupted(format!("{MANIFEST_FILE}: {error}")))?;
    serde_json::from_slice(&text).map_err(|error| corrupted(format!("{MANIFEST_FILE}: {error}")))
}

fn verify(folder: &Path, key: &Key) -> Result<(), StoreError> {
    let corrupted = |reason: String| StoreError::Corrupted { folder: folder.to_owned(), reason };
    let manifest = read_manifest(folder)?;
    if manifest.key != *key || manifest.determinants.key() != *key {
        return Err(corrupted(format!(
            "{MANIFEST_FILE} is of another cell, {}",
            manifest.determinants.key()
        )));
    }
    for (name, expected) in &manifest.files {
        let path = folder.join(name);
        let found = hash_file(&path).map_err(|error| corrupted(format!("{name}: {error}")))?;
        if found.bytes != expected.bytes {
            return Err(corrupted(format!("{name} has {} bytes, expected {}", found.bytes, expected.bytes)));
        }
        if found.blake3 != expected.blake3 {
            let reason = format!("{name} has the hash {}, expected {}", found.blake3, expected.blake3);
            return Err(corrupted(reason));
        }
    }
    Ok(())
}

/// A file's path inside the folder, with `/` on every system.
fn relative_name(folder: &Path, path: &Path) -> String {
    let parts = path.strip_prefix(folder).unwrap_or(path).components();
    parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|opened| opened.sync_all()).map_err(file("write", path))
}

/// A rename is on the disk when its folder is. Systems that cannot open a folder need no such call.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    if cfg!(unix) { sync(folder) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn determinants(value: &str) -> Determinants {
        let mut determinants = Determinants::new("mix", 1, "mix/english");
        determinants.add("value", value);
        determinants
    }

    fn finish(store: &Store, value: &str) -> Key {
        let determinants = determinants(value);
        let key = determinants.key();
        let work = store.work_folder(&key).unwrap();
        fs::create_dir(work.join("inner")).unwrap();
        fs::write(work.join("inner/rows.jsonl"), value).unwrap();
        store.finish(&key, &determinants, "test", Duration::from_secs(1)).unwrap();
        key
    }

    #[test]
    fn what_is_finished_is_found_and_what_is_not_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let key = finish(&store, "one");
        let found = store.finished(&key).unwrap().unwrap();
        assert_eq!(fs::read_to_string(found.join("inner/rows.jsonl")).unwrap(), "one");
        let other = determinants("two").key();
        store.work_folder(&other).unwrap();
        assert!(store.finished(&other).unwrap().is_none());
        assert_eq!(store.list().unwrap().len(), 1);
        store.remove(&key).unwrap();
        assert!(store.finished(&key).unwrap().is_none());
    }

    #[test]
    fn a_changed_file_is_named_and_never_served() {
        for (change, said) in
            [("ona", "inner/rows.jsonl has the hash"), ("ones", "inner/rows.jsonl has 4 bytes, expected 3")]
        {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let key = finish(&store, "one");
            fs::write(store.cell_folder(&key).join("inner/rows.jsonl"), change).unwrap();
            let error = store.finished(&key).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_missing_file_and_a_broken_or_foreign_manifest_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (one, two, three) = (finish(&store, "one"), finish(&store, "two"), finish(&store, "three"));
        fs::remove_file(store.cell_folder(&one).join("inner/rows.jsonl")).unwrap();
        assert!(store.finished(&one).unwrap_err().to_string().contains("inner/rows.jsonl"));
        fs::copy(store.cell_folder(&three).join(MANIFEST_FILE), store.cell_folder(&two).join(MANIFEST_FILE))
            .unwrap();
        assert!(store.finished(&two).unwrap_err().to_string().contains("another cell"));
        fs::write(store.cell_folder(&three).join(MANIFEST_FILE), "{\"key\":").unwrap();
        assert!(store.finished(&three).unwrap_err().to_string().contains("cell.json"));
        assert_eq!(store.list().unwrap().iter().filter(|manifest| manifest.is_err()).count(), 1);
        assert_eq!(store.remove_all().unwrap(), 3);
        assert!(store.list().unwrap().is_empty(), "what cannot be read is removed too");
    }

    #[test]
    fn two_programs_do_not_share_a_store() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }));
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        assert!(Store::share(folder.path()).is_err(), "held alone");
        drop(first);
        assert!(Store::open(folder.path()).is_ok());
    }

    #[test]
    fn programs_that_share_a_store_claim_its_cells() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| Store::share(folder.path()).unwrap());
        assert!(Store::open(folder.path()).is_err(), "not alone");
        let key = determinants("one").key();
        let Claimed::Ours(claim) = one.claim(&key).unwrap() else { panic!("nobody else has it") };
        let Claimed::Theirs(owner) = other.claim(&key).unwrap() else { panic!("it was claimed twice") };
        assert!(owner.contains(&format!("process {}", std::process::id())), "{owner}");
        assert!(matches!(other.claim(&determinants("two").key()).unwrap(), Claimed::Ours(_)));
        drop(claim);
        assert!(matches!(other.claim(&key).unwrap(), Claimed::Ours(_)));
        let left = fs::read_dir(folder.path().join("claims")).unwrap().count();
        assert_eq!(left, 0, "a claim that ended has left its file");
    }

    #[test]
    fn what_a_dead_program_had_claimed_is_claimed_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::share(folder.path()).unwrap();
        let key = determinants("one").key();
        // What is left of it is the file; the system took the lock away.
        fs::write(folder.path().join("claims").join(key.to_string()), "process 1 on elsewhere").unwrap();
        assert!(matches!(store.claim(&key).unwrap(), Claimed::Ours(_)));
    }

    #[test]
    fn checkpoints_of_an_unfinished_cell_are_kept_for_the_next_program() {
        let folder = tempfile::tempdir().unwrap();
        let key = determinants("one").key();
        {
            let store = Store::open(folder.path()).unwrap();
            fs::write(store.work_folder(&key).unwrap().join("checkpoint"), "half").unwrap();
        }
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(fs::read(store.work_folder(&key).unwrap().join("checkpoint")).unwrap(), b"half");
        assert_eq!(store.remove_unfinished().unwrap(), 1);
    }
}
